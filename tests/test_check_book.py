"""What the check of a built book finds: each kind of thing that can be broken, and nothing in a page that is whole."""

import base64
from pathlib import Path

import pytest
from browser import needs_chromium
from check_book import broken_links, broken_pages, main

PIXEL = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")


@pytest.fixture
def book(tmp_path):
    def write(body, other='<h1 id="one">One</h1>'):
        (tmp_path / "sub").mkdir(exist_ok=True)
        (tmp_path / "dot.gif").write_bytes(PIXEL)
        (tmp_path / "index.html").write_text(f"<html><head></head><body>{body}</body></html>")
        (tmp_path / "sub" / "b c.html").write_text(f"<html><head></head><body>{other}</body></html>")
        return tmp_path

    return write


WHOLE = (
    '<div class="feature-explorer"></div>'
    "<script>setTimeout(() => document.querySelector('.feature-explorer').dataset.drawn = 'yes', 1500)</script>"
    '<p id="p">x</p><img src="dot.gif"><a href="#p"></a><a href="sub/b%20c.html#one"></a><a href="https://x.org/y#z">'
)


def test_links_that_lead_somewhere(book):
    assert broken_links(book(WHOLE, '<a href="../index.html">')) == ["index.html: sub/b%20c.html#one: no such section"]
    assert broken_links(book(WHOLE)) == []
    for name in ("frame-index.html", "watched-index.html"):  # what a look that was cut off has left
        (book(WHOLE) / name).write_text('<a href="none.html">')
    assert broken_links(book(WHOLE)) == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('<a href="none.html">', "index.html: none.html: no such file"),
        ('<a href="#q">', "index.html: #q: no such section"),
        ('<img src="none.png">', "index.html: none.png: no such file"),
    ],
)
def test_links_that_do_not(book, body, said):
    assert broken_links(book(body)) == [said]


@needs_chromium
def test_a_whole_book(book, capsys, monkeypatch):
    monkeypatch.chdir(book(WHOLE).parent)
    assert main(Path(book(WHOLE).name)) == 0
    assert capsys.readouterr().out.startswith("every page opens")


def test_without_a_browser_only_links_are_said_to_be_whole(book, capsys, monkeypatch):
    monkeypatch.setattr("check_book.CHROMIUM", None)
    assert main(book(WHOLE)) == 0
    out, err = capsys.readouterr()
    assert out == "every link inside the book resolves\n" and "no Chromium" in err
    assert main(book('<a href="none.html">')) == 1 and "none.html: no such file" in capsys.readouterr().out


@needs_chromium
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("<script>missing()</script>", "console: Uncaught ReferenceError: missing is not defined"),
        ('<script>console.error("of", "ours")</script>', "console: of ours"),
        ('<img src="data:image/png;base64,AAAA">', "image does not load: data:image/png;base64,AAAA"),
        ('<div class="feature-explorer"></div>', "1 interactive figure not drawn"),
        ('<div class="figure-slider"></div>', "1 interactive figure not drawn"),
    ],
)
def test_what_breaks_a_page(book, body, said, monkeypatch):
    monkeypatch.setattr("check_book.PATIENCE", 1)
    found = broken_pages(book(body))
    assert f"index.html (desktop): {said}" in found and f"index.html (phone): {said}" in found


@needs_chromium
def test_a_page_too_wide_for_a_phone(book):
    assert broken_pages(book('<div style="width: 600px">x</div><style>body {margin: 0}</style>')) == [
        "index.html (phone): 210 pixels wider than its window"
    ]


@needs_chromium
def test_a_page_that_leads_on_is_not_opened(book):
    root = book(WHOLE)
    (root / "index.html").write_text('<meta http-equiv="Refresh" content="0; url=sub/b%20c.html">')
    assert broken_pages(root) == []


def test_a_folder_without_a_book(tmp_path, capsys):
    assert main(tmp_path) == 2 and "expected a built book" in capsys.readouterr().err
