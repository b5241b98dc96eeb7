"""Terms that show their definitions: which are marked, where, and that the page of terms defines each."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from browser import needs_chromium, opened
from docutils import nodes
from docutils.utils import new_document
from extensions import extension

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "book" / "symbols.md"


@pytest.fixture(scope="module")
def definitions():
    return extension("definitions")


@pytest.fixture
def terms(definitions):
    stitch, null = definitions.Term("A pair of maps.", "term-stitch"), definitions.Term("To be beaten.", "term-null")
    space = definitions.Term("Hardly read.", "term-null-space")
    shared = definitions.Term("Reads & writes.", "term-SAE")
    return {"stitch": stitch, "null": null, "null space": space, "SAE": shared, "sparse autoencoder": shared}


def page(*parts):
    document = new_document("page")
    document += parts
    return document


def marked(definitions, document, terms):
    definitions.mark(document, terms, "../symbols.html")
    return [(node.astext(), node["place"]) for node in document.findall(definitions.defined)]


def test_the_first_occurrence_of_each_term_is_marked(definitions, terms):
    said = "Stitches have a null space. A stitch beats a null; two nulls, an SAE, a sparse autoencoder."
    document = page(nodes.paragraph("", said), nodes.paragraph("", "The stitch again."))
    assert marked(definitions, document, terms) == [
        ("Stitches", "term-stitch"),
        ("null space", "term-null-space"),
        ("null", "term-null"),
        ("SAE", "term-SAE"),
    ]
    assert document.astext() == f"{said}\n\nThe stitch again."


def test_words_that_only_look_like_terms_are_left(definitions, terms):
    assert (
        marked(definitions, page(nodes.paragraph("", "A stitched nullspace, a non-null saE, re-stitch")), terms) == []
    )


@pytest.mark.parametrize("kind", [nodes.literal, nodes.math, nodes.reference, nodes.caption, nodes.title, nodes.raw])
def test_code_equations_links_and_headings_are_left(definitions, terms, kind):
    document = page(nodes.paragraph("", "", kind("", "stitch", nodes.Text("stitch"))), nodes.paragraph("", "a stitch"))
    definitions.mark(document, terms, "../symbols.html")
    (node,) = document.findall(definitions.defined)
    assert node.parent is document[1]


def test_outputs_tables_and_headings_are_left(definitions, terms):
    output = nodes.container("", nodes.paragraph("", "stitch"), classes=["cell_output", "docutils"])
    heading = nodes.section("", nodes.title("", "A stitch"))
    table = nodes.table("", nodes.paragraph("", "stitch"))
    assert marked(definitions, page(output, heading, table), terms) == []
    item = nodes.bullet_list("", nodes.list_item("", nodes.paragraph("", "", nodes.strong("", "stitch"))))
    assert marked(definitions, page(item), terms) == [("stitch", "term-stitch")]


def test_a_definition_is_told_to_those_who_do_not_see_it(definitions, terms):
    writer = SimpleNamespace(body=[])
    node = definitions.defined("", "SAE", definition="Reads & <writes>.", place="term-SAE", page="../symbols.html")
    definitions._visit(writer, node)
    writer.body.append(node.astext())
    definitions._depart(writer, node)
    assert "".join(writer.body) == (
        '<span class="defined"><a href="../symbols.html#term-SAE" aria-describedby="definition-term-SAE">SAE</a>'
        '<span class="definition" role="tooltip" id="definition-term-SAE">Reads &amp; &lt;writes&gt;.</span></span>'
    )


def test_the_glossary_is_read_from_its_page(definitions):
    item = nodes.definition_list_item("", nodes.term("", "SAE", ids=["term-SAE"]), nodes.term("", "code", ids=["x"]))
    item += nodes.definition("", nodes.paragraph("", "Reads\nand writes."))
    found = definitions.terms_of(page(nodes.definition_list("", item)))
    term = definitions.Term("Reads and writes.", "term-SAE")
    assert found == {"SAE": term, "code": term}


def glossary():
    """The items of the page's glossary: (terms, definition)."""
    (block,) = re.findall(r"^```\{glossary\}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    items = [item.split("\n") for item in block.strip().split("\n\n")]
    return [
        ([line for line in item if line[0] != " "], " ".join(line.strip() for line in item if line[0] == " "))
        for item in items
    ]


def test_definitions_are_short_plain_and_in_order():
    items = glossary()
    assert len(items) > 40
    first = [terms[0].lower() for terms, _ in items]
    assert first == sorted(first) and len(set(first)) == len(first)
    for terms, says in items:
        assert says.endswith(".") and len(says.split()) <= 45, terms
        assert not re.search(r"[$`{}\[\]*]", says), terms  # shown as plain text


def test_a_symbol_has_one_row():
    rows = re.findall(r"^\| (.*?) \|", PAGE.read_text(encoding="utf-8"), re.M)[1:]
    symbols = [symbol for row in rows for symbol in row.split(", ")]
    assert len(symbols) > 30 and len(set(symbols)) == len(symbols)


# Reaches a term by the keyboard and by Escape, and writes down what is seen.
REACH = """<script>
addEventListener("load", () => {
  const shown = document.querySelector(".definition"), link = document.querySelector(".defined > a"), seen = [];
  const look = () => {
    const box = shown.getBoundingClientRect();
    const within = box.left >= 0 && box.right <= innerWidth && box.bottom <= innerHeight;
    seen.push(box.width ? [shown.textContent, within] : null);
  };
  look();
  link.focus();
  look();
  document.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
  look();
  link.blur();
  link.focus();
  look();
  fetch("@REPORT@", {method: "POST", mode: "no-cors", body: JSON.stringify(seen)});
});
</script>"""


@needs_chromium
@pytest.mark.parametrize("width", [390, 1400])
def test_a_definition_is_seen_at_the_keyboards_focus_and_leaves_at_escape(definitions, tmp_path, width):
    writer = SimpleNamespace(body=["<p>At the end of a line of text, to the right, a long way: "])
    node = definitions.defined("", "SAE", definition="Reads and writes. " * 9, place="x", page="symbols.html")
    definitions._visit(writer, node)
    writer.body.append("SAE")
    definitions._depart(writer, node)
    style = (ROOT / "book" / "_static" / "book.css").read_text(encoding="utf-8")
    page = tmp_path / "page.html"
    head = f"<head><style>{style}</style><script>{definitions.SCRIPT}</script></head>"
    page.write_text(f"<html>{head}<body>{''.join(writer.body)}</p></body></html>", encoding="utf-8")
    shown = ["Reads and writes. " * 9, True]
    assert opened(page, REACH, width=width) == [None, shown, None, shown]
