"""`stitch-book` on the toy book, as a user calls it: its exit code, its output, its files."""

import hashlib
import json
import os
import signal
import sys
import time
import warnings

import psutil
import pytest
from filelock import FileLock
from toy_book import call, call_here, chapter, outcomes, printed, runs, start
from toy_families import save_family

from stitch_utils.book import cli
from stitch_utils.book.runs import is_fresh, jobs_at_once, key_of
from stitch_utils.data.pairs import load_pair


def test_a_first_run_executes_everything_in_order_with_the_summary_last(executed_book):
    root, lines = executed_book
    assert sorted(outcomes(lines)) == ["claims (tiny)", "numbers (tiny, default)", "words (tiny, default)"]
    assert list(outcomes(lines))[-1] == "claims (tiny)"
    assert all(outcomes(lines).values())
    assert printed(root, "numbers") == [str(root), sys.executable, "0.5", "en\n"]
    assert json.loads((root / "results" / "tiny" / "numbers.json").read_text())["numbers.tiny.inverse"] == 2
    note = json.loads((root / "book" / "runs" / "tiny" / "numbers.ipynb").read_text())["metadata"]["stitch_book"]
    assert note["parameters"]["alpha"] == 0.5 and note["pair"] == "tiny" and note["scale"] == "default"
    assert note["results"] == hashlib.sha256((root / "results" / "tiny" / "numbers.json").read_bytes()).hexdigest()
    assert str(root) not in json.dumps(json.loads((root / "book" / "runs" / "tiny" / "words.ipynb").read_text()))
    assert sorted(path.name for path in (root / "book" / "runs" / "tiny").iterdir()) == [
        "claims.ipynb",
        "numbers.ipynb",
        "words.ipynb",
    ]


def test_unchanged_pages_are_left_alone_even_in_another_folder(book):
    before = {path: path.read_bytes() for path in book.glob("book/runs/tiny/*")}
    code, lines, _ = call_here(book, "run")
    assert code == 0
    assert list(outcomes(lines).values()) == [False, False, False]
    assert {path: path.read_bytes() for path in book.glob("book/runs/tiny/*")} == before


def test_parameters_reach_the_kernel_and_make_another_page(book):
    code, lines, _ = call(
        book, "run", "--chapter", "numbers", "--scale", "smoke", "-p", "alpha", "-1e-1", "-p", "language", "no"
    )
    assert code == 0
    assert outcomes(lines) == {"numbers (tiny, smoke)": True, "claims (tiny)": True}
    assert printed(book, "numbers")[2:] == ["-0.1", "no\n"]
    assert json.loads((book / "results" / "tiny" / "numbers.json").read_text())["numbers.tiny.inverse"] == -10

    plain = runs(book)["numbers"]
    assert not is_fresh(book, plain, key_of(book, plain))


def test_changed_results_are_noticed_and_a_run_that_works_removes_what_failed_before(book):
    failed = book / "book" / "runs" / "tiny" / ".numbers.failed.ipynb"
    failed.touch()
    (book / "results" / "tiny" / "numbers.json").write_text("{}")
    code, lines, _ = call(book, "run")
    assert code == 0
    # the summary is refreshed after the results were, and finds them as they were when it was made
    assert outcomes(lines) == {"numbers (tiny, default)": True, "words (tiny, default)": False, "claims (tiny)": False}
    assert not failed.exists()


@pytest.mark.parametrize(
    "arguments", [["run", "--chapter", "nmbers"], ["run", "--chapter"], ["run", "--jobs", "0"], ["fly"], ["build"]]
)
def test_such_requests_end_in_one_line_and_exit_code_2(bare_book, arguments):
    code, lines, err = call_here(bare_book, *arguments)
    assert (code, lines) == (2, [])
    assert err.startswith("stitch-book: ") and err.count("\n") == 1


def test_a_failing_cell_is_told_and_leaves_the_old_page(book):
    page = book / "book" / "runs" / "tiny" / "numbers.ipynb"
    before = page.read_bytes()
    code, lines, err = call(book, "run", "--chapter", "numbers", "-p", "alpha", "0")
    assert (code, lines) == (1, [])
    assert "numbers (tiny, default) failed in cell 4: results = Path(" in err
    assert "ZeroDivisionError" in err and "\x1b" not in err and "stitch_utils" not in err
    failed = book / "book" / "runs" / "tiny" / ".numbers.failed.ipynb"
    assert "book/runs/tiny/.numbers.failed.ipynb" in err
    assert "ZeroDivisionError" in failed.read_text()
    assert page.read_bytes() == before


@pytest.mark.parametrize("kind", ["HubError", "HubBusy"])
def test_what_the_hub_does_not_give_is_told_without_a_traceback(bare_book, kind):
    code = f"from stitch_utils.data.hub import {kind}\nraise {kind}('dataset a/b is not to be had')"
    (bare_book / "book" / "words.md").write_text(chapter('pair = "tiny"\nscale = "default"', code))
    code, lines, err = call(bare_book, "run", "--chapter", "words")
    assert (code, lines) == (1, [])
    assert f"{kind}: dataset a/b is not to be had" in err and "Traceback" not in err and "----" not in err


def test_a_kernel_that_dies_is_a_failed_cell(book):
    code, _, err = call(book, "run", "--chapter", "numbers", "-p", "crash", "true")
    assert code == 1
    assert "failed in cell 3: import json, os, sys, time" in err and "died" in err
    assert (book / "book" / "runs" / "tiny" / ".numbers.failed.ipynb").exists()


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_an_interrupted_run_leaves_the_old_page_and_the_next_one_works(book, sent, code):
    folder = book / "book" / "runs" / "tiny"
    before = (folder / "numbers.ipynb").read_bytes()
    process = start(book, "run", "--chapter", "numbers", "-p", "wait", "600")
    deadline = time.monotonic() + 120
    while not (book / "asleep").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(sent)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code
    assert err == ("stitch-book: interrupted\n" if sent == signal.SIGINT else "")
    assert (folder / "numbers.ipynb").read_bytes() == before
    assert (folder / ".numbers.partial.ipynb").exists() == (sent == signal.SIGKILL)
    assert call_here(book, "run")[0] == 0
    assert list(folder.glob(".*")) == []


def _meeting(name, other, then=""):
    """A chapter that ends only once the other one has begun."""
    code = f"""
import time
from pathlib import Path
Path("{name}.begun").touch()
while not Path("{other}.begun").exists():
    time.sleep(0.05)
{then}"""
    return chapter('pair = "tiny"\nscale = "default"', code)


def test_chapters_run_side_by_side_and_the_summary_after_them(bare_book):
    (bare_book / "book" / "numbers.md").write_text(_meeting("numbers", "words", 'print("met")'))
    (bare_book / "book" / "words.md").write_text(_meeting("words", "numbers", 'print("met")'))
    code, lines, err = call(bare_book, "run", "--jobs", "2")
    assert (code, err) == (0, "") and list(outcomes(lines))[-1] == "claims (tiny)" and len(lines) == 3
    assert printed(bare_book, "numbers") == printed(bare_book, "words") == ["met\n"]
    assert not any(outcomes(call_here(bare_book, "run")[1]).values())


def test_a_failure_lets_the_chapter_beside_it_end(bare_book):
    (bare_book / "book" / "numbers.md").write_text(_meeting("numbers", "words", "1 / 0"))
    (bare_book / "book" / "words.md").write_text(_meeting("words", "numbers", "time.sleep(1)"))
    code, _, err = call(bare_book, "run", "--jobs", "2")
    assert code == 1 and "numbers (tiny, default) failed in cell 3" in err and "ZeroDivisionError" in err
    folder = bare_book / "book" / "runs" / "tiny"
    assert sorted(path.name for path in folder.iterdir()) == [".numbers.failed.ipynb", "words.ipynb"]


def test_an_interrupt_ends_all_chapters_that_run_side_by_side(book):
    folder = book / "book" / "runs" / "tiny"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for name, other in (("numbers", "words"), ("words", "numbers")):
        (book / "book" / f"{name}.md").write_text(_meeting(name, other, f'Path("{name}.met").touch(); time.sleep(600)'))
    process = start(book, "run", "--jobs", "2")
    deadline = time.monotonic() + 120
    while not ((book / "numbers.met").exists() and (book / "words.met").exists()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    kernels = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (130, "", "stitch-book: interrupted\n")
    assert len(kernels) == 2 and psutil.wait_procs(kernels, timeout=60)[1] == []
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_warning_is_one_line(bare_book, monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # puts it back afterwards
    call_here(bare_book, "claims")
    assert warnings.formatwarning("two\nlines", UserWarning, "file.py", 3) == "stitch-book: two lines\n"


def test_as_many_chapters_as_have_processors_for_their_threads(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(5)), raising=False)
    assert [jobs_at_once(threads) for threads in (0, 1, 2, 3, 8)] == [1, 5, 2, 1, 1]


def test_a_second_run_waits_for_the_first(book):
    with FileLock(book / "book" / "runs" / ".lock"):
        process = start(book, "run")
        said = process.stderr.readline()
        assert "another run" in said and process.poll() is None
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and err == ""
    assert not any(outcomes(out.splitlines()).values())


def test_claims_as_text_and_as_json(executed_book):
    code, lines, _ = call_here(executed_book[0], "claims")
    assert code == 0
    assert lines[0].split()[:2] == ["positive", "holds"] and "inverse = 2" in lines[2]
    code, lines, _ = call_here(executed_book[0], "claims", "--json")
    (claim,) = json.loads("\n".join(lines))
    assert (claim["id"], claim["verdict"], claim["ours"]) == ("positive", "holds", {"inverse": 2.0})


def test_build_renders_once_and_shows_warnings(book):
    html = book / "_build" / "html" / "book" / "runs" / "tiny" / "numbers.html"
    code, lines, err = call_here(book, "build")
    assert code == 0, err
    assert lines[-1] == "the book is in _build/html/index.html"
    assert "0.5" in html.read_text() and (book / "_build" / "html" / "index.html").is_file()

    stamp = html.stat().st_mtime_ns
    assert call_here(book, "build")[0] == 0
    assert html.stat().st_mtime_ns == stamp

    page = book / "book" / "runs" / "tiny" / "words.ipynb"
    content = json.loads(page.read_text())
    content["cells"][0]["source"] = ["# Toy\n", "\n", "[broken](#no-such-label)"]
    page.write_text(json.dumps(content))
    code, _, err = call_here(book, "build")
    assert code == 1
    assert "no-such-label" in err and "Traceback" not in err
    assert not (book / "_build" / ".stamp").exists()

    page.unlink()
    code, _, err = call_here(book, "build")
    assert code == 2 and "has no page of words" in err


@pytest.mark.parametrize("kind", ["qwen2", "smollm3", "gemma3"])
def test_a_chapter_that_a_family_cannot_have_ends_no_run(small_pair, tmp_path, kind):
    """Models with chats and heads of an unknown family; the small pair has chats, too, and known heads."""
    save_family(kind, tmp_path / "model")
    mine = {"a": {"model": str(tmp_path / "model"), "layer": 1}, "b": {"model": str(tmp_path / "model")}}
    left_out = cli._left_out(load_pair(small_pair(**mine)))
    assert list(left_out) == ["functional_features"] and "are not worked out by hand" in left_out["functional_features"]
    assert cli._left_out(load_pair(small_pair())) == {}
