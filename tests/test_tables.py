"""Tables: ours beside the published numbers, and the claims with their verdicts."""

import re
import shutil
from pathlib import Path

import jupytext
import pytest

from stitch_utils.results import write_results
from stitch_utils.tables import (
    _with_interval,
    beside,
    claims_table,
    runs_table,
    stand_in_notice,
    status_table,
    verdict_counts,
)

REPOSITORY = Path(__file__).resolve().parent.parent
ANOTHER_CLAIM = """
  - {id: other, text: C is low, source: Figure 1, chapter: second, needs: {c: "map.{pair}.loss"}, holds: c < 1}
"""


def _claims(table):
    """First line of each row, without its markup."""
    return re.findall(r"<tr><td [^>]*>(.*?)<br>", table.data)


def test_beside_puts_ours_first_and_keeps_the_papers_order(project):
    ours = {"table1.tiny.b": 2.0, "table1.tiny.b.low": 1.5, "table1.tiny.b.high": 2.51239, "table1.tiny.extra": 1}
    write_results("tiny", "first", ours | {"table10.tiny.a": 9.0})
    frame = beside("tiny", "table1.")
    assert list(frame.columns) == ["tiny", "big, published"]
    assert list(frame.index) == ["a", "b", "gain", "extra"]
    assert list(frame["tiny"]) == ["", "2 [1.5, 2.5]", "", "1"]
    assert list(frame["big, published"]) == ["3", "2 [1.9, 2.1]", "[0.3, ]", ""]
    assert list(beside("tiny", "table1")["tiny"]) == list(frame["tiny"])
    assert list(beside("big", "table1").columns) == ["big", "big, published"]
    assert beside("tiny", "table99").empty


def test_claims_table_shows_each_pair_with_results_and_the_papers(project):
    write_results("tiny", "first", {"table1.tiny.a": 1.0, "table1.tiny.b": 2.0, "table1.tiny.b.low": 1.5})
    write_results("other", "first", {"table1.other.a": 2.0, "table1.other.b": 1.0})
    (project / "book" / "runs" / "tiny").mkdir(parents=True)
    assert "<a href" not in claims_table().data
    (project / "book" / "runs" / "tiny" / "first.ipynb").touch()
    full = claims_table("tiny").data
    assert full.index(">tiny</th>") < full.index(">other</th>") < full.index(">Published</th>")
    assert "A is &lt; B" in full and "A is < B" not in full
    assert "<code>a &lt; 1.1 * b</code>" in full and "b = 2 [1.5, ]" in full
    assert "<b>holds</b>" in full and "<b>does not hold</b>" in full and "<b>big: does not hold</b>" in full
    assert '<a href="../tiny/first.html">first</a>' in full
    short = claims_table("tiny", detail=False).data
    assert "<b>holds</b>" in short and "<code>" not in short and "Published" not in short
    assert full == claims_table("tiny").data


def test_claims_table_keeps_the_claims_of_one_chapter(project):
    with (project / "book" / "published.yml").open("a", encoding="utf-8") as file:
        file.write(ANOTHER_CLAIM)
    assert _claims(claims_table()) == ["A is &lt; B", "B is twice A", "C is low"]
    assert _claims(claims_table(chapter="first")) == ["A is &lt; B", "B is twice A"]
    assert _claims(claims_table("tiny", chapter="second")) == ["C is low"]
    assert _claims(claims_table(chapter="third")) == []


def test_claims_table_keeps_what_some_pair_has_run(project):
    with (project / "book" / "published.yml").open("a", encoding="utf-8") as file:
        file.write(ANOTHER_CLAIM)
    assert _claims(claims_table(only_run=True)) == []  # what was published only has not been run
    write_results("tiny", "first", {"table1.tiny.a": 1.0})
    assert _claims(claims_table(only_run=True)) == []  # half of what a claim needs
    write_results("other", "second", {"map.other.loss": 2.0})
    assert _claims(claims_table(only_run=True)) == ["C is low"]
    assert "<b>not run</b>" in claims_table(only_run=True).data
    write_results("tiny", "first", {"table1.tiny.a": 1.0, "table1.tiny.b": 2.0})
    assert _claims(claims_table(only_run=True)) == ["A is &lt; B", "B is twice A", "C is low"]
    assert _claims(claims_table(only_run=True, chapter="first")) == ["A is &lt; B", "B is twice A"]


def test_counts_and_status_tables(project):
    write_results("tiny", "first", {"table1.tiny.a": 1.0, "table1.tiny.b": 1.5}, parameters={"scale": "smoke"})
    counts = verdict_counts("tiny").data
    assert [cell.split("<")[0] for cell in counts.split('top">')[1:]][6:] == ["tiny", "smoke", "1", "0", "1", "0"]
    status = status_table("tiny").data
    assert "a &lt; b &amp; c" in status and status.count(">done<") == 1 and status.count(">not yet<") == 1


def test_the_claims_page_runs(project):
    shutil.copy(REPOSITORY / "book" / "published.yml", project / "book" / "published.yml")
    notebook = jupytext.read(REPOSITORY / "book" / "claims.md")
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "parameters" in cells[0].metadata["tags"]
    assert all("hide-input" in cell.metadata["tags"] for cell in cells)
    space = {}
    for cell in cells:
        exec(cell.source, space)
    assert (space["pair"], space["scale"], space["seed"]) == ("tiny", "default", 0)
    assert notebook.metadata["kernelspec"]["name"] == "python3"


def test_labels_choose_name_and_order_rows_and_increases_are_percentages(project):
    write_results("tiny", "first", {"table1.tiny.b": 2.0, "table1.tiny.a": 3.0, "table1.tiny.a.increase": 0.271})
    frame = beside("tiny", "table1", labels={"a.increase": "change", "b": "B itself"})
    assert list(frame.index) == ["change", "B itself"]
    assert list(frame["tiny"]) == ["+27.1%", "2"]


def test_every_pair_with_its_pages_or_the_command_that_makes_them(project):
    rows = re.findall(r"<tr><td [^>]*>(.*?)</td>.*(not run: <code>.*?)</code></td></tr>", runs_table().data)
    assert rows[0][0] == "tiny" and {"pythia", "gpt2", "gemma", "gemma-it"} < {name for name, _ in rows}
    assert all(said.endswith(f"stitch-book run --pair {name}") for name, said in rows)
    for pair, stand_in in (("pythia", True), ("mine", False)):
        (project / "book" / "runs" / pair).mkdir(parents=True)
        (project / "book" / "runs" / pair / "first.ipynb").touch()
        write_results(pair, "first", {f"table1.{pair}.a": 1.0}, parameters={"stand_in": stand_in})
    table = runs_table().data
    assert '<a href="../mine/first.html">first</a></td>' in table
    assert '<a href="../pythia/first.html">first</a> (random weights: no results)' in table


def test_a_notice_only_where_weights_are_random():
    assert stand_in_notice(False) is None
    assert "untrained stand-ins" in stand_in_notice(True).data


@pytest.mark.parametrize(
    ("value", "low", "high", "said"),
    [
        (0.86912, 0.7871, 0.9402, "0.87 [0.79, 0.94]"),
        (0.84113, 0.83331, 0.84881, "0.841 [0.833, 0.849]"),
        (4.37e-5, 4.29e-5, 4.44e-5, "4.37e-05 [4.29e-05, 4.44e-05]"),
        (8.2e16, 8.11e16, 8.34e16, "8.2e+16 [8.11e+16, 8.34e+16]"),
        (0.12345678, 0.12345678, 0.12345678, "0.1235 [0.1235, 0.1235]"),
        (0.0, 0.0, 0.03622, "0 [0, 0.036]"),
    ],
)
def test_an_interval_says_how_many_digits_are_worth_printing(value, low, high, said):
    assert _with_interval({"x": value, "x.low": low, "x.high": high}, "x") == said
