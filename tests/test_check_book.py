"""What the check of a built book finds: each kind of thing that can be broken, and nothing in a page that is whole."""

import base64
from pathlib import Path

import pytest
from browser import needs_chromium

pytest.importorskip("axe_playwright_python", reason="axe-core is installed by `make install` alone")
from check_book import THEMES, WIDTHS, broken_links, broken_pages, main

PIXEL = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
HEAD = '<html lang="en"><head><title>A page</title></head><body>'


@pytest.fixture
def book(tmp_path):
    def write(body, other='<h1 id="one">One</h1>'):
        (tmp_path / "sub").mkdir(exist_ok=True)
        (tmp_path / "dot.gif").write_bytes(PIXEL)
        for page, inside in ("index.html", body), ("sub/b c.html", other):
            (tmp_path / page).write_text(f"{HEAD}<main>{inside}</main></body></html>")
        return tmp_path

    return write


WHOLE = (
    '<div class="feature-explorer"></div>'
    "<script>setTimeout(() => document.querySelector('.feature-explorer').dataset.drawn = 'yes', 1500)</script>"
    '<h1 id="p">x</h1><img src="dot.gif" alt="a dot">'
    '<a href="#p">x</a> <a href="sub/b%20c.html#one">y</a> <a href="https://x.org/y#z">z</a>'
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
    assert broken_pages(book('<h1 style="width: 600px">x</h1><style>body {margin: 0}</style>')) == [
        "index.html (phone): 210 pixels wider than its window"
    ]


@needs_chromium
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('<img src="dot.gif">', "image-alt (light): img"),
        ("<input>", "label (light): input"),
        ("<h3>y</h3>", "heading-order (light): h3"),
        ("<details><summary>z</summary><img src='dot.gif'></details>", "image-alt (light): img"),
        ('<p>dark words</p><p style="color: #aaa">pale words</p>', "color-contrast (light): p:nth-child(3)"),
        ("<style>[data-theme=dark] p {color: #ccc}</style><p>some words</p>", "color-contrast (dark): p"),
    ],
)
def test_what_is_not_accessible(book, body, said):
    found = broken_pages(book(f"<h1>x</h1>{body}"))
    assert set(found) >= {f"index.html ({device}): {said}" for device in WIDTHS}


@needs_chromium
def test_text_of_one_look_is_measured_once_and_shown_again(book):
    pale = '<p style="color: #aaa">pale words</p>'
    found = broken_pages(book(f"<h1>x</h1>{pale * 3}<div style='background: #000'>{pale}</div>"))
    assert found == [
        f"index.html ({device}): color-contrast ({theme}): p:nth-child(2)" for device in WIDTHS for theme in THEMES
    ]


@needs_chromium
def test_a_page_that_leads_on_is_not_opened(book):
    root = book(WHOLE)
    (root / "index.html").write_text('<meta http-equiv="Refresh" content="0; url=sub/b%20c.html">')
    assert broken_pages(root) == []


def test_a_folder_without_a_book(tmp_path, capsys):
    assert main(tmp_path) == 2 and "expected a built book" in capsys.readouterr().err
