"""Pages: the section that shows a number, and the command that would compute it."""

import json
import shlex

import pytest
from docutils.nodes import make_id

from stitch_utils.book.pages import anchor, command_for, page_of, pair_argument


@pytest.mark.parametrize(
    "heading",
    ["What it saves", "One SAE, seen through the stitch", "Do they act?", "A model's own, 2 (App. D)", "+ x"],
)
def test_anchors_are_those_of_docutils(heading):
    assert anchor(heading) == make_id(heading)


def test_a_page_is_there_once_it_was_executed(project):
    assert page_of("tiny", "first", "What it saves") == ""
    (project / "book" / "runs" / "tiny").mkdir(parents=True)
    (project / "book" / "runs" / "tiny" / "first.ipynb").touch()
    assert page_of("tiny", "first", "What it saves") == "book/runs/tiny/first.html#what-it-saves"
    assert page_of("tiny", "first") == "book/runs/tiny/first.html"
    assert page_of("gpt2", "first") == "" == page_of("tiny", "second")


def test_an_own_pair_is_named_by_its_file_as_its_pages_do(project):
    assert (pair_argument("gpt2"), pair_argument("mine")) == ("gpt2", "mine.yml")
    folder = project / "book" / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "a.ipynb").touch()
    (folder / "b.ipynb").write_text(json.dumps({"cells": [], "metadata": {}}))
    (folder / "b-half.ipynb").write_text('{"cells": [], "metadata": {"stitch_')
    (folder / "b-other.ipynb").write_text("[]")
    assert pair_argument("mine") == "mine.yml"
    note = {"stitch_book": {"parameters": {"pair": "my pairs/mine.yml"}}}
    (folder / "c.ipynb").write_text(json.dumps({"cells": [], "metadata": note}))
    assert pair_argument("mine") == "my pairs/mine.yml"
    assert pair_argument("mine", "other.yml") == "other.yml" and pair_argument("gpt2", "other.yml") == "gpt2"
    said = [".venv/bin/stitch-book", "run", "--pair", "my pairs/mine.yml", "--chapter", "first"]
    assert shlex.split(command_for(pair_argument("mine"), "first")) == said
    assert command_for("gpt2") == ".venv/bin/stitch-book run --pair gpt2"
