"""Chapters, their parameters and their pages: which there are, what the text of a command line stands for, and which
section shows a number or which command would compute it."""

import hashlib
import json
import shlex
from pathlib import Path

import jupytext
import pytest
import yaml
from toy_book import chapter

from stitch_utils.book.chapters import (
    RequestError,
    chapter_names,
    command_for,
    for_pair,
    page_of,
    parse_value,
    read_chapter,
    toc_files,
)


def test_chapters_come_in_reading_order_with_the_summaries_last(bare_book):
    runs = "book/runs/tiny"
    pages = [f"{runs}/numbers", f"{runs}/words"]
    assert toc_files(bare_book) == [f"{runs}/claims", *pages]
    assert chapter_names(bare_book) == ["numbers", "words", "claims"]
    parts = [
        {"caption": "One", "chapters": [{"file": f"{runs}/{name}.ipynb"}]} for name in ("words", "none", "numbers")
    ]
    toc = {"format": "jb-book", "root": f"{runs}/index.ipynb", "parts": parts}
    (bare_book / "_toc.yml").write_text(yaml.safe_dump(toc))
    assert toc_files(bare_book) == [f"{runs}/{name}" for name in ("index", "words", "none", "numbers")]
    assert chapter_names(bare_book) == ["words", "numbers"]
    (bare_book / "book" / "index.md").touch()
    assert chapter_names(bare_book) == ["words", "numbers", "index"]
    toc["parts"].append({"caption": "Two", "chapters": [{"file": "book/symbols"}]})
    (bare_book / "_toc.yml").write_text(yaml.safe_dump(toc))
    (bare_book / "book" / "symbols.md").touch()
    assert chapter_names(bare_book) == ["words", "numbers", "index"]  # a page without code is no chapter


@pytest.mark.parametrize(
    ("toc", "message"),
    [(None, "no _toc.yml"), ("[", "not a table"), ("- a", "not a table"), ("parts: 3", "not a table")],
)
def test_a_folder_without_a_table_of_contents_is_refused(tmp_path, toc, message):
    if toc is not None:
        (tmp_path / "_toc.yml").write_text(toc)
    with pytest.raises(RequestError, match=message) as error:
        toc_files(tmp_path)
    assert "\n" not in str(error.value)


def test_a_chapter_is_read_with_its_defaults_and_the_digest_of_its_source(bare_book):
    notebook, defaults, digest = read_chapter(bare_book, "numbers")
    assert [cell.cell_type for cell in notebook.cells] == ["markdown", "code", "code", "code"]
    assert defaults == {
        "pair": "tiny",
        "scale": "default",
        "seed": 0,
        "alpha": 0.5,
        "language": "en",
        "wait": 0,
        "crash": False,
    }
    assert digest == hashlib.sha256((bare_book / "book" / "numbers.md").read_bytes()).hexdigest()


@pytest.mark.parametrize("parameters", ["x = len('a')", "x = 1e999", "x =", "x: int", "x.y = 1", "len('a')"])
def test_parameters_are_literals(bare_book, parameters):
    (bare_book / "book" / "words.md").write_text(chapter(parameters, "1"))
    with pytest.raises(RequestError, match=r"book/words\.md: .* plain literals only"):
        read_chapter(bare_book, "words")


def test_a_chapter_has_one_cell_of_parameters(bare_book):
    source = bare_book / "book" / "words.md"
    source.write_text(source.read_text() * 2)
    with pytest.raises(RequestError, match="expected one cell tagged 'parameters', found 2"):
        read_chapter(bare_book, "words")
    source.write_text("# Words\n")
    with pytest.raises(RequestError, match="found 0"):
        read_chapter(bare_book, "words")


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("1e-4", 1.0, 1e-4),
        ("2", 1.0, 2.0),
        (".5", 1.0, 0.5),
        ("1e3", 5, 1000),
        ("-3", 5, -3),
        ("true", False, True),
        ("no", "en", "no"),
        ("1", "en", "1"),
        ("2020-01-01", "today", "2020-01-01"),
        ("[0.1, 1e-3, no]", [1], [0.1, 1e-3, "no"]),
        ("2020-01-01", None, "2020-01-01"),
        ("nan", None, "nan"),
        ("1:30", None, "1:30"),
        ("1e-4", None, 1e-4),
        ("null", None, None),
    ],
)
def test_values_are_what_they_look_like(text, default, value):
    parsed = parse_value("x", text, default)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "default"),
    [
        ("nan", 1.0),
        (".inf", 1.0),
        ("1e999", 1.0),
        ("0.5", 3),
        ("true", 3),
        ("yes", True),
        ("1", True),
        ("3", [1]),
        ("[", 1),
    ],
)
def test_values_that_do_not_fit_are_errors(text, default):
    with pytest.raises(RequestError, match="x.*" + text.replace("[", r"\[")):
        parse_value("x", text, default)


PAGE = """# Stitching

See {numref}`fig-one`.

```{code-cell} ipython3
---
tags: [hide-input]
mystnb:
  figure:
    name: fig-one
---
1
```

+++ {"tags": ["embedded-pair"]}

# Not a title of the other pair's page

```{code-cell} ipython3
:tags: [embedded-pair]

2
```
"""


def test_the_page_of_another_pair():
    notebook = jupytext.reads(PAGE, fmt="md:myst")
    page = for_pair(notebook, "mine")
    assert [cell.source for cell in page.cells] == ["# Stitching: mine\n\nSee {numref}`fig-one-mine`.", "1"]
    assert page.cells[1].metadata["mystnb"]["figure"]["name"] == "fig-one-mine"
    assert len(notebook.cells) == 4 and notebook.cells[0].source.startswith("# Stitching\n"), (
        "the chapter stays as it was"
    )


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("chapter", chapter_names(ROOT))
def test_the_reference_notebook_was_made_from_the_chapter_as_it_is(chapter):
    def code(notebook):
        kept = (cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", ()))
        return [cell.source for cell in kept if cell.cell_type == "code"]

    reference = jupytext.read(ROOT / "tests" / "reference" / f"{chapter}.ipynb")
    assert code(reference) == code(read_chapter(ROOT, chapter)[0]), "`make reference` renews it"


# Pages


def test_a_page_is_there_once_it_was_executed(project):
    assert page_of("tiny", "first", "What it saves") == ""
    (project / "book" / "runs" / "tiny").mkdir(parents=True)
    (project / "book" / "runs" / "tiny" / "first.ipynb").touch()
    assert page_of("tiny", "first", "What it saves") == "book/runs/tiny/first.html#what-it-saves"
    assert page_of("tiny", "first") == "book/runs/tiny/first.html"
    assert page_of("gpt2", "first") == "" == page_of("tiny", "second")


def test_an_own_pair_is_named_by_its_file_as_its_pages_do(project):
    def given(pair, **file):
        *start, name = shlex.split(command_for(pair, **file))
        assert start == [".venv/bin/stitch-book", "run", "--pair"]
        return name

    assert (given("gpt2"), given("mine")) == ("gpt2", "mine.yml")
    folder = project / "book" / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "a.ipynb").touch()
    (folder / "b.ipynb").write_text(json.dumps({"cells": [], "metadata": {}}))
    (folder / "b-half.ipynb").write_text('{"cells": [], "metadata": {"stitch_')
    (folder / "b-other.ipynb").write_text("[]")
    assert given("mine") == "mine.yml"
    note = {"stitch_book": {"parameters": {"pair": "my pairs/mine.yml"}}}
    (folder / "c.ipynb").write_text(json.dumps({"cells": [], "metadata": note}))
    assert given("mine") == "my pairs/mine.yml"
    assert given("mine", file="other.yml") == "other.yml" and given("gpt2", file="other.yml") == "gpt2"
    said = [".venv/bin/stitch-book", "run", "--pair", "my pairs/mine.yml", "--chapter", "first"]
    assert shlex.split(command_for("mine", "first")) == said
