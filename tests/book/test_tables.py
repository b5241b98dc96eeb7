"""Tables: ours beside the published numbers, and the claims with their verdicts."""

import html
import re
import shutil
from pathlib import Path

import jupytext
import pytest

from stitch_utils.book.claims import VERDICTS, published, verdicts
from stitch_utils.book.results import write_results
from stitch_utils.book.tables import (
    beside,
    claims_table,
    runs_table,
    shares_and_costs,
    stand_in_notice,
    status_table,
    verdict_counts,
)

REPOSITORY = Path(__file__).resolve().parents[2]
ANOTHER_CLAIM = """
  - {id: other, text: C is low, source: Figure 1, chapter: second, needs: {c: "map.{pair}.loss"}, holds: c < 1}
"""


def _rows(table):
    """The rows of the claims."""
    return re.findall(r'<li class="claim" .*?</li>', table.data)


def _part(row, name):
    """What a part of a claim's row shows before it is unfolded, as HTML."""
    return re.search(rf'<span class="claim-{name}">(.*?)</span>(?= <span class="claim-|</summary>)', row)[1]


def _claims(table):
    """The claims of a table, in its order."""
    return [_plain(_part(row, "says")).partition(" published:")[0] for row in _rows(table)]


def _badges(row):
    """The badges of a row: {pair, as filters know it: (the verdict that filters know, what is read)}."""
    found = re.findall(r'<span class="verdict" data-verdict="(.*?)"(?: data-pair="(.*?)")?>(.*?)</b></span>', row)
    return {pair: (verdict, _plain(shown)) for verdict, pair, shown in found}


def _unfolded(row):
    """What a row shows when it is unfolded, as text: what is said of the claim, then of each pair."""
    return [_plain(part) for part in re.findall("<p>(.*?)</p>", row)]


def _cells(row):
    return re.findall(r"<td [^>]*>(.*?)</td>", row)


def _plain(cell):
    """What a cell says, a bar between its lines."""
    return re.sub(r"<[^>]*>", "", cell.replace("<br>", "|"))


def test_beside_puts_ours_first_in_the_rows_of_the_labels(project):
    ours = {"table1.tiny.b": 2.0, "table1.tiny.b.low": 1.5, "table1.tiny.b.high": 2.51239, "table1.tiny.extra": 1}
    write_results("tiny", "first", ours | {"table10.tiny.a": 9.0})
    labels = {"a": "A", "b": "B", "gain": "gain", "extra": "more"}
    frame = beside("tiny", "table1.", labels=labels)
    assert list(frame.columns) == ["tiny", "big, published"]
    assert list(frame.index) == ["A", "B", "gain", "more"]
    assert list(frame["tiny"]) == ["", "2.00 [1.50, 2.51]", "", "1"]
    assert list(frame["big, published"]) == ["3", "2.0 [1.9, 2.1]", "[0.3, ]", ""]
    assert list(beside("tiny", "table1", labels=labels)["tiny"]) == list(frame["tiny"])
    assert list(beside("big", "table1", labels=labels).columns) == ["big", "big, published"]
    assert list(beside("tiny", "table99", labels={"a": "A"})["tiny"]) == [""]
    assert list(beside("tiny", "table1", labels=labels, others=False).columns) == ["tiny"]
    assert list(beside("big", "table1", labels=labels, others=False).columns) == ["big", "big, published"]


def test_what_a_paper_prints_as_a_bound_is_shown_as_one(project):
    path = project / "book" / "published.yml"
    path.write_text(path.read_text("utf-8").replace("  table1.big.a: 3.0", '  table1.big.a: "<1%"'), "utf-8")
    assert list(beside("tiny", "table1", labels={"a": "A", "b": "B"})["big, published"]) == ["<1%", "2.0 [1.9, 2.1]"]
    assert "table1.big.a" not in published().numbers and published().bounds == {"table1.big.a": "<1%"}
    assert next(found for found in verdicts("big") if found.id == "order").published_verdict == ""
    path.write_text(path.read_text("utf-8").replace("<1%", "about 1%"), "utf-8")
    with pytest.raises(ValueError, match=r"'table1.big.a: about 1%': expected .* or a bound such as <1%"):
        published()


def test_every_share_stands_over_what_it_costs(project):
    ours = {
        "table5.tiny.de.native": 0.5,
        "table5.tiny.de.native.low": 0.4,
        "table5.tiny.de.native.high": 0.61,
        "table5.tiny.de.native.nll_rise": 0.7,
        "table5.tiny.fr.native": 1.0,
        "table6.tiny.fr.random": 0.3,
    }
    write_results("tiny", "first", ours)
    table = shares_and_costs("tiny", "table5", {"de": "German", "fr": "<fr>"}, {"native": "own", "random": "random"})
    assert re.findall(r"<th [^>]*>(.*?)</th>", table.data) == ["", "own", "random"]
    rows = [[_plain(cell) for cell in _cells(row)] for row in table.data.split("<tr>")[2:]]
    assert rows == [["German", "0.50 [0.40, 0.61]|+0.70 nats", ""], ["&lt;fr&gt;", "1", ""]]


def test_a_claims_row_has_ours_published_interval_and_verdict_of_each_pair(project):
    path = project / "book" / "published.yml"
    path.write_text(path.read_text().replace("    holds: a < b\n", "    holds: a < b\n    heading: The b\n"))
    write_results("tiny", "first", {"table1.tiny.a": 1.0, "table1.tiny.b": 2.0, "table1.tiny.b.low": 0.95})
    write_results("other", "first", {"table1.other.a": 2.0, "table1.other.b": 1.0})
    assert "<a href" not in claims_table().data
    for pair in ("tiny", "other"):
        (project / "book" / "runs" / pair).mkdir(parents=True)
        (project / "book" / "runs" / pair / "first.ipynb").touch()
    full = claims_table("tiny")
    order = _rows(full)[0]
    assert _part(order, "source") == "Table 1"
    assert _badges(order) == {
        "big, published": ("does not hold", "big ✗ does not hold"),
        "tiny": ("partly", "tiny ◐ partly"),
        "other": ("does not hold", "other ✗ does not hold"),
    }
    about, tiny, other, big = _unfolded(order)
    assert about == ("Table 1; order|Holds if a is below b: a &lt; b|Partly if a is below 1.1 times b: a &lt; 1.1 * b")
    assert tiny == ("tiny: partly|holds by the estimates|partly if b were 0.95|a = 1|b = 2 [0.95, ]|first: The b")
    assert other == "other: does not hold|a = 2|b = 1|first: The b"
    assert big == "big, published: does not hold|a = 3|b = 2.0 [1.9, 2.1]"
    assert '<br><a href="../tiny/first.html#the-b">first: The b</a></p>' in order
    assert 'href="../other/first.html#the-b"' in order and full.data == claims_table("tiny").data
    here = claims_table("tiny", chapter="first").data
    assert '<a href="#the-b">' in here and '<a href="../other/first.html#the-b">' in here


def test_every_claim_has_one_row_in_order_and_every_badge_its_word(project):
    shutil.copy(REPOSITORY / "book" / "published.yml", project / "book" / "published.yml")
    shutil.copytree(REPOSITORY / "tests" / "reference" / "results", project / "results")
    claims, rows = published().claims, _rows(claims_table())
    assert _claims(claims_table()) == [html.escape(claim.text) for claim in claims]
    assert claims_table().data.count("<details>") == len(claims)
    assert [re.findall('data-chapter="(.*?)"', row) for row in rows] == [[claim.chapter] for claim in claims]
    sources = [re.findall('data-source="(.*?)"', row) for row in rows]
    for claim, source in zip(claims, sources, strict=True):
        starts = {"main paper": ("Section", "Abstract"), "sister paper": ("LRT",), "this package": ("this package",)}
        assert len(source) == 1 and claim.source.startswith(starts[source[0]])
    for row, own in zip(rows, verdicts("tiny"), strict=True):
        assert _badges(row)["tiny"][0] == own.verdict
        for pair, (verdict, shown) in _badges(row).items():
            assert verdict in (*VERDICTS, "incomplete")
            assert shown.startswith(f"{pair.removesuffix(', published')} ") and shown.endswith(f" {verdict}")


def test_a_row_has_the_sign_for_its_sections_and_unfolds_to_the_word(project):
    path = project / "book" / "published.yml"
    path.write_text(path.read_text().replace("source: Table 1", 'source: "Sections 2 and A.1, Fig. 6 (left)"', 1))
    row = _rows(claims_table())[0]
    assert _part(row, "source") == "§2 and A.1, Fig. 6"
    assert _unfolded(row)[0].startswith("Sections 2 and A.1, Fig. 6 (left); order|")


def test_names_in_a_row_are_escaped(project):
    path = project / "book" / "published.yml"
    text = path.read_text().replace("source: Table 1", "source: \"A <i> & 'b'\"").replace("A is < B", "<script>A & B")
    path.write_text(text.replace("chapter: first\n", 'chapter: "fi\\"rst"\n'))
    shown = claims_table().data
    assert "<i>" not in shown and "<script>A" not in shown and 'fi"rst' not in shown
    row = _rows(claims_table())[0]
    assert _part(row, "source") == "A &lt;i&gt; &amp; &#x27;b&#x27;"
    assert 'data-chapter="fi&quot;rst"' in row and _claims(claims_table())[0] == "&lt;script&gt;A &amp; B"


def test_pairs_that_were_not_run_share_one_line_with_the_command(project):
    def line(**choice):
        return [
            _plain(found) for found in re.findall('<p class="claims-not-run">(.*?)</p>', claims_table(**choice).data)
        ]

    with (project / "book" / "published.yml").open("a", encoding="utf-8") as file:
        file.write(ANOTHER_CLAIM)
    said = "Not run here: tiny, big.yml (all chapters). To run one: .venv/bin/stitch-book run --pair PAIR --chapter "
    assert line() == [f"{said}CHAPTER"]
    assert _badges(_rows(claims_table())[2]) == {"": ("not run", "○ not run")}
    write_results("tiny", "first", {"table1.tiny.a": 1.0, "table1.tiny.b": 1.5})
    assert line() == [f"{said}CHAPTER".replace("tiny, big.yml (all chapters)", "tiny (second); big.yml (all chapters)")]
    assert line(chapter="first") == [f"{said}first".replace("tiny, big.yml (all chapters)", "big.yml")]
    for pair in ("tiny", "big"):
        write_results(pair, "second", {f"map.{pair}.loss": 1.0})
    write_results("big", "first", {"table1.big.a": 1.0, "table1.big.b": 1.5})
    assert line() == []


def test_filters_offer_what_there_is_and_only_on_the_page_of_all_claims(project):
    write_results("tiny", "first", {"table1.tiny.a": 1.0, "table1.tiny.b": 1.5})
    form = re.search(r'<form class="claims-filter" hidden>.*?</form>', claims_table().data, re.DOTALL)[0]
    names = re.findall(r'<label>(\w+) <select name="(\w+)">', form)
    assert names == [("Verdict", "verdict"), ("Chapter", "chapter"), ("Pair", "pair"), ("Source", "source")]
    options = [re.findall("<option>(.*?)</option>", part) for part in form.split("</select>")]
    assert options[0] == [*VERDICTS, "incomplete"] and options[1] == ["first"]
    assert options[2] == ["tiny", "big, published"] and options[3] == ["main paper", "sister paper", "this package"]
    assert "@" not in form and "<form" not in claims_table(chapter="first").data


def test_times_decide_but_are_not_shown(project):
    path = project / "book" / "published.yml"
    path.write_text(path.read_text().replace("    holds: a < b\n", "    holds: a < b\n    timed: true\n"))
    write_results("tiny", "first", {"table1.tiny.a": 1.234, "table1.tiny.b": 2.345})
    timed, plain = _rows(claims_table("tiny"))
    assert _badges(timed)["tiny"][0] == "holds" and _unfolded(timed)[1] == "tiny: holds|times, in results|first"
    assert _unfolded(plain)[1] == "tiny: does not hold|a = 1.234|b = 2.345|first" and "1.234" not in timed


def test_a_run_without_a_number_says_which_it_lacks(project):
    write_results("tiny", "first", {"table1.tiny.a": 1.0}, parameters={"scale": "default"})
    row = _rows(claims_table("tiny"))[0]
    assert _badges(row)["tiny"][0] == "not run"
    assert _unfolded(row)[1] == "tiny: not run|the run at scale default gave no table1.tiny.b|a = 1"


def test_claims_table_keeps_the_claims_of_one_chapter(project):
    with (project / "book" / "published.yml").open("a", encoding="utf-8") as file:
        file.write(ANOTHER_CLAIM)
    assert _claims(claims_table()) == ["A is &lt; B", "B is twice A", "C is low"]
    assert _claims(claims_table(chapter="first")) == ["A is &lt; B", "B is twice A"]
    assert _claims(claims_table("tiny", chapter="second")) == ["C is low"]
    assert _claims(claims_table(chapter="third")) == []


def test_verdicts_are_counted(project):
    path = project / "book" / "published.yml"
    more = ("a < 1.2", "testable: a > 1"), ("a < 1", "heading: x"), ("a < 1", "testable: a == 1")
    for number, (holds, extra) in enumerate(more):
        claim = f"id: c{number}, text: t, source: s, chapter: first, needs: {{a: 'table1.{{pair}}.a'}}, holds: {holds}"
        path.write_text(path.read_text() + f"  - {{{claim}, {extra}}}\n")
    numbers = {"table1.tiny.a": 1.0, "table1.tiny.b": 1.5, "table1.tiny.b.low": 0.9, "table1.tiny.b.high": 1.9}
    write_results("tiny", "first", numbers, parameters={"scale": "smoke"})
    counts = _cells(verdict_counts("tiny").data)
    assert counts == ["tiny", "smoke", "0", "0", "1", "3", "1", "0"]


def test_tables_and_figures_are_done_once_their_numbers_exist(project):
    def status():
        return [_cells(row) for row in status_table("tiny").data.splitlines()[1:-1]]

    command = "not run: .venv/bin/stitch-book run --pair tiny --chapter"
    write_results("tiny", "first", {"table10.tiny.a": 1.0, "map.tiny.other": 1.0}, parameters={"table1.": 1})
    assert [_plain(cells[3]) for cells in status()] == [f"{command} first", f"{command} second", "schematic"]
    write_results("tiny", "second", {"table1.tiny.a": 1.0, "map.tiny.loss": 1.0})
    assert status()[0] == ["t1", "a &lt; b &amp; c", "2", "first"]
    assert [cells[3] for cells in status()] == ["first", "second", "schematic"]
    (project / "book" / "runs" / "tiny").mkdir(parents=True)
    (project / "book" / "runs" / "tiny" / "first.ipynb").touch()
    assert status()[0][3] == '<a href="../tiny/first.html">first</a>'
    source = project / "book" / "published.yml"
    source.write_text(
        source.read_text().replace("chapter: first, prefix: table1.}", "chapter: first, prefix: table1., of: [big]}")
    )
    assert [cells[3] for cells in status()] == ["of big alone", "second", "schematic"]


@pytest.mark.parametrize("page", ["claims", "index"])
def test_the_summaries_run_on_the_reference_results(project, page):
    for name in ("published.yml", "unclaimed.yml", "findings.yml"):
        shutil.copy(REPOSITORY / "book" / name, project / "book" / name)
    shutil.copytree(REPOSITORY / "tests" / "reference" / "results", project / "results")
    notebook = jupytext.read(REPOSITORY / "book" / f"{page}.md")
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "parameters" in cells[0].metadata["tags"]
    assert all("remove-input" in cell.metadata["tags"] for cell in cells)
    space, shown = {}, ""
    for cell in cells:
        exec(cell.source, space)
        if cell is not cells[0]:
            shown += eval(cell.source.splitlines()[-1], space).data
    cells = re.sub(r"<thead>.*?</thead>", "", shown, flags=re.DOTALL)
    found = {verdict for verdict in VERDICTS if f">{verdict}<" in cells}
    assert found >= {"holds", "inconclusive", "does not hold"}
    assert ("not run" in found) == (page == "claims")  # the front page leaves out claims that no run has decided
    # which takes more steps of Adam than scale smoke has
    lack = "the run at scale smoke gave no stitch.tiny.adam.full_loss|.venv/bin/stitch-book run --pair tiny"
    assert (page == "claims") == (lack in _plain(shown))
    assert (space["pair"], space["scale"], space["seed"]) == ("tiny", "default", 0)
    assert notebook.metadata["kernelspec"]["name"] == "python3"


def test_labels_choose_name_and_order_rows_and_increases_are_percentages(project):
    write_results("tiny", "first", {"table1.tiny.b": 2.0, "table1.tiny.a": 3.0, "table1.tiny.a.increase": 0.271})
    frame = beside("tiny", "table1", labels={"a.increase": "change", "b": "B itself"})
    assert list(frame.index) == ["change", "B itself"]
    assert list(frame["tiny"]) == ["+27.1%", "2"]


def test_every_pair_with_its_pages_or_the_command_that_makes_them(project):
    rows = [(cells[0], _plain(cells[2])) for row in runs_table().data.splitlines()[1:-1] if (cells := _cells(row))]
    assert rows[0][0] == "tiny" and {"pythia", "gpt2", "gemma", "gemma-it"} < {name for name, _ in rows}
    assert all(said.endswith(f"stitch-book run --pair {name}") for name, said in rows)
    for pair, stand_in in (("pythia", True), ("mine", False)):
        (project / "book" / "runs" / pair).mkdir(parents=True)
        (project / "book" / "runs" / pair / "first.ipynb").touch()
        write_results(pair, "first", {f"table1.{pair}.a": 1.0}, parameters={"stand_in": stand_in})
    (project / "book" / "runs" / "gpt2").mkdir()
    (project / "book" / "runs" / "gpt2" / "carry.ipynb").touch()  # with which no results came
    table = runs_table().data
    assert '<a href="../gpt2/carry.html">carry</a></td>' in table
    assert '<a href="../mine/first.html">first</a></td>' in table
    assert '<a href="../pythia/first.html">first</a> (random weights: no results)' in table


def test_a_notice_only_where_weights_are_random():
    assert stand_in_notice(False) is None
    assert "untrained stand-ins" in stand_in_notice(True).data
