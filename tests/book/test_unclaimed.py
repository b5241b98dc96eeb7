"""What the main paper says and what is no claim here: the book's own list, and which files are refused."""

import json
import re
import shutil
from pathlib import Path

import pytest
from browser import needs_chromium, opened

from stitch_utils.book.claims import Claim, published, unclaimed
from stitch_utils.book.tables import folded, unclaimed_counts, unclaimed_table

ROOT = Path(__file__).resolve().parents[2]
NUMBERED = "1 2 3 3.1 4 5 5.1 5.2 6 7 A A.1 A.2 B B.1 B.2 C D D.1 D.2 E F F.1 F.2 G H H.1 H.2 I J"
SECTIONS = ["Abstract", *(f"Section {number}" for number in NUMBERED.split())]
KINDS = {"undecided", "unmeasured", "reading", "judgement", "identity", "recipe", "limits", "cost", "others"}
SMALL = """
sections: {Abstract: "", Section 1: Maps & more, Section 2: Results}
kinds: {reading: What they mean., cost: "What is < free."}
statements:
  - {where: Abstract, says: Maps are cheap., instead: [order, table1.big.a]}
  - {where: "Section 1, Fig. 3", says: A < B by far., why: reading, because: "`a` is < `b`."}
"""


@pytest.fixture
def small(project):
    """The small project with a list of two statements; its path."""
    path = project / "book" / "unclaimed.yml"
    path.write_text(SMALL, encoding="utf-8")
    return path


@pytest.fixture
def papers(project):
    """The book's own claims and list."""
    for name in ("published.yml", "unclaimed.yml"):
        shutil.copy(ROOT / "book" / name, project / "book" / name)
    return published(), unclaimed()


def test_every_section_of_the_paper_makes_a_claim_or_has_a_statement(papers):
    book, paper = papers
    assert list(paper.sections) == SECTIONS
    claimed = set().union(*(claim.sections for claim in book.claims))
    said = {statement.section for statement in paper.statements}
    assert claimed <= set(SECTIONS) and said <= set(SECTIONS)
    assert set(SECTIONS) - claimed - said == set()


def test_every_statement_is_covered_by_what_there_is_or_has_a_reason_of_a_known_kind(papers):
    book, paper = papers
    assert set(paper.kinds) == KINDS == {statement.why for statement in paper.statements} - {""}
    known = {claim.id for claim in book.claims} | set(book.numbers)
    for statement in paper.statements:
        assert set(statement.instead) <= known and bool(statement.instead) != bool(statement.because), statement
        assert len(set(statement.instead)) == len(statement.instead), statement


def test_what_a_statement_repeats_is_a_claim_of_the_papers_or_a_check_that_bears_on_it(papers):
    book, paper = papers
    ours = {claim.id for claim in book.claims if claim.source.startswith("this package")}
    repeated = {id for statement in paper.statements for id in statement.instead}
    assert ours & repeated == {"b-is-better", "instruction-vectors-steer", "structure-matters-beyond-density"}
    assert not [id for id in repeated if id.startswith("lrt")], "the sister paper's"


def test_reasons_name_what_there_is(papers):
    """Ids of claims, prefixes of numbers that chapters write, and two names of other things."""
    book, paper = papers
    kept = (json.loads(path.read_text()) for path in (ROOT / "tests" / "reference" / "results" / "tiny").glob("*.json"))
    written = {id for numbers in kept for id in numbers}
    claims = {claim.id for claim in book.claims}
    for statement in paper.statements:
        marked = re.findall("`([^`]+)`", statement.because)
        prefixes = [name.replace("{pair}", "tiny") for name in marked if "{pair}" in name]
        assert all(any(id.startswith(f"{prefix}.") or id == prefix for id in written) for prefix in prefixes), statement
        others = {name for name in marked if "{pair}" not in name}
        assert others <= claims | {"departures.yml", "transfer_probe"}, statement
        assert bool(prefixes) == (statement.why == "undecided"), "what could decide it is named"


@pytest.mark.parametrize(
    ("source", "sections"),
    [
        ("Section 2, Table 1", {"Section 2"}),
        ("Sections 3.1 and D.2, Fig. 1c, Table 4", {"Section 3.1", "Section D.2"}),
        ("Section E, Figs. 9 and 10", {"Section E"}),
        ("Abstract and Section 1; partly from the 30% of Section 3.1", {"Abstract", "Section 1", "Section 3.1"}),
        ("Section A (two epochs), Table 3", {"Section A"}),
        ("Section I, Fig. 16; through random stitches is this package's", {"Section I"}),
        ("Sections 1, 2 and C, Eq. 6", {"Section 1", "Section 2", "Section C"}),
        ("this package (a control for what Section G suspects)", set()),
        ("LRT, Fig. 2", set()),
    ],
)
def test_the_source_of_a_claim_names_sections(source, sections):
    assert Claim("c", "text", source, "chapter", {"a": "t.{pair}.a"}, "a > 1").sections == sections


FIRST, SECOND = "statement 'Abstract: Maps are cheap.'", "statement 'Section 1, Fig. 3: A < B by far.'"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[order, table1.big.a]", "[order, table1.big.c]", f"{FIRST}: instead: no claim .* called 'table1.big.c'"),
        ("[order, table1.big.a]", "[oder]", f"{FIRST}: instead: no claim .* called 'oder'"),
        ("[order, table1.big.a]", "order", f"{FIRST}: expected either instead, a list of ids, or why"),
        ("[order, table1.big.a]", "[]", f"{FIRST}: expected either instead, a list of ids, or why"),
        ("[order, table1.big.a]", "[order], why: cost", f"{FIRST}: expected either instead, a list of ids, or why"),
        ("[order, table1.big.a]", "[order], because: So.", f"{FIRST}: expected because, in words, together with why"),
        ("why: reading", "why: reeding", f"{SECOND}: why: expected one of reading, cost, got 'reeding'"),
        (', because: "`a` is < `b`."', "", f"{SECOND}: expected because, in words, together with why"),
        ("why: reading", "reason: reading", f"{SECOND}: .* unexpected keyword argument 'reason'"),
        ("why: reading", "why: [reading]", rf"{SECOND}: why: expected a text, got \['reading'\]"),
        ("Section 1, Fig. 3", "Section 4, Fig. 3", "'Section 4, .*: where: expected one of Abstract, Section 1, Sec"),
        ('where: "Section 1, Fig. 3"', 'where: "1"', "statement '1: .*: where: expected one of Abstract"),
        ("where: Abstract", "where: Section 2", f"{SECOND} stands after those of a later section"),
        ('where: "Section 1, Fig. 3", says: A < B by far.', "where: Abstract, says: Maps are cheap.", "given twice"),
        ("says: Maps are cheap.,", "", r"statement 'Abstract: \?': .* missing .* 'says'"),
        ("says: Maps are cheap.", "says: ", "statement 'Abstract: None': says: expected a text, got None"),
        ("  - {where: Abstract, says: Maps are cheap., instead: [order, table1.big.a]}", "  - maps", "got 'maps'"),
        ("kinds: {", "sorts: {", "expected sections, kinds and statements"),
    ],
)
def test_mistakes_in_the_list_are_named_in_one_line(small, old, new, message):
    assert old in SMALL
    small.write_text(SMALL.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as refused:
        unclaimed()
    assert str(refused.value).startswith(f"{small}: ") or str(refused.value).startswith(f"{small} has the parts")
    assert len(str(refused.value).splitlines()) == 1


def test_the_list_is_read_as_it_is_written(small):
    found = unclaimed()
    assert [statement.section for statement in found.statements] == ["Abstract", "Section 1"]
    assert found.statements[0].instead == ["order", "table1.big.a"] and found.statements[1].why == "reading"
    assert found.sections["Section 1"] == "Maps & more"


def _plain(row):
    return re.sub(r"<[^>]*>", "", row.replace("</td>", "|").replace("<br>", " / ")).strip()


def test_the_page_shows_sections_with_their_claims_and_statements(small):
    path = small.with_name("published.yml")
    path.write_text(path.read_text().replace("source: Table 1", "source: Section 2", 1))
    shown = re.findall("<details><summary>(.*?)</summary>(.*?)</details>", unclaimed_table().data, re.DOTALL)
    assert [_plain(title) for title, _ in shown] == [
        "Abstract (1)",
        "Section 1 Maps &amp; more (1)",
        "Section 2 Results (0)",
    ]
    assert [[_plain(row) for row in inside.splitlines()[1:-1]] for _, inside in shown] == [
        ["Abstract|Maps are cheap.|order, table1.big.a|"],
        ["Section 1, Fig. 3|A &lt; B by far.|reading: a is &lt; b.|"],
        [],
    ]
    assert _plain(shown[2][1]) == "claims: order / numbers: t1"
    assert "<code>a</code> is &lt; <code>b</code>." in unclaimed_table().data


SEEN = """<script>
addEventListener("load", () => {
  const is_seen = one => one.checkVisibility({contentVisibilityAuto: true});
  const seen = [...document.querySelectorAll("summary")].filter(is_seen);
  const said = JSON.stringify(seen.map(one => one.textContent));
  fetch("@REPORT@", {method: "POST", mode: "no-cors", body: said});
});
</script>"""


@needs_chromium
@pytest.mark.parametrize("on_paper", [False, True])
def test_the_folded_list_shows_its_sections_on_paper(small, on_paper):
    style = (ROOT / "book" / "_static" / "book.css").read_text(encoding="utf-8")
    style = style.replace("@media print", "@media screen") if on_paper else style
    page = small.with_name("page.html")
    shown = f'<div class="cell">{folded(unclaimed_table(), "All").data}</div>'
    page.write_text(f"<html><head><style>{style}</style></head><body>{shown}</body></html>", encoding="utf-8")
    sections = ["Abstract (1)", "Section 1 Maps & more (1)", "Section 2 Results (0)"]
    assert opened(page, SEEN) == ["All", *sections * on_paper]


def test_statements_are_counted_by_kind(small):
    assert [_plain(row) for row in unclaimed_counts().data.splitlines()[1:-1]] == [
        "covered|Claims or published numbers cover it.|1|",
        "reading|What they mean.|1|",
        "cost|What is &lt; free.|0|",
    ]
