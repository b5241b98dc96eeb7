"""Sphinx extension: where a term first stands in the text of a page, a link to its definition, which also shows it.

The definitions are those of the `glossary` on the page `book/symbols`, and nowhere else. A definition is shown while
its term is pointed at or has the keyboard's focus, and Escape hides it; on a touch screen the first touch shows it and
the second follows the link. Headings, code, equations, links, captions, tables and outputs are left as they are.
"""

import html
import re
from typing import NamedTuple

from docutils import nodes
from sphinx import addnodes

GLOSSARY = "book/symbols"
# Nodes within which no term is marked.
LEFT_OUT = (
    *(nodes.title, nodes.rubric, nodes.caption, nodes.table, nodes.reference, nodes.citation, nodes.footnote),
    *(nodes.literal, nodes.literal_block, nodes.math, nodes.math_block, nodes.raw, nodes.Invisible),
    *(nodes.system_message, addnodes.toctree),
)
SCRIPT = """
for (const [kind, hidden] of [["keydown", true], ["pointerover", false], ["focusin", false]])
  document.addEventListener(kind, event => {
    if (!hidden || event.key === "Escape") document.documentElement.classList.toggle("definitions-hidden", hidden);
  });
document.addEventListener("click", event => {
  const link = event.target.closest?.(".defined > a");
  for (const one of document.querySelectorAll(".touched")) if (one !== link) one.classList.remove("touched");
  if (link && matchMedia("(hover: none)").matches && !link.classList.contains("touched")) {
    event.preventDefault();
    link.classList.add("touched");
    link.focus();
  }
});
"""


class Term(NamedTuple):
    """A term's definition, as plain text, and its place on the page of terms."""

    definition: str
    place: str


class defined(nodes.General, nodes.Inline, nodes.TextElement):
    """A term in a text; `definition` is not part of the text, so that no search finds it."""


def terms_of(document: nodes.document) -> dict[str, Term]:
    """Read the glossary of a page: {term: what it means}. Terms of one item share it."""
    found = {}
    for item in document.findall(nodes.definition_list_item):
        says = " ".join(part.astext() for part in item.findall(nodes.definition)).replace("\n", " ")
        named = list(item.findall(nodes.term))
        found |= {term.astext(): Term(says, named[0]["ids"][0]) for term in named}
    return found


def pattern_of(terms: dict[str, Term]) -> re.Pattern:
    """Match any term as a whole word, the longest first, in the plural too; an abbreviation in its own letters only."""
    longest = sorted(terms, key=len, reverse=True)
    each = [re.escape(term) if term != term.lower() else f"(?i:{re.escape(term)})" for term in longest]
    return re.compile(rf"(?<![\w-])({'|'.join(each)})(?:s|es)?(?![\w-])")


def mark(document: nodes.document, terms: dict[str, Term], page: str) -> None:
    """Mark the first occurrence of each term; `page` is the page of terms, as seen from this one."""
    pattern, seen = pattern_of(terms), set()
    names = {term.lower(): term for term in terms}
    for text in list(document.findall(nodes.Text)):
        if not _is_prose(text):
            continue
        parts, reached, said = [], 0, text.astext()
        for found in pattern.finditer(said):
            term = terms[names[found[1].lower()]]
            if term in seen:
                continue
            seen.add(term)
            parts.append(nodes.Text(said[reached : found.start()]))
            parts.append(defined("", found[0], definition=term.definition, place=term.place, page=page))
            reached = found.end()
        if parts:
            text.parent.replace(text, [part for part in (*parts, nodes.Text(said[reached:])) if part.astext()])


def _is_prose(text: nodes.Text) -> bool:
    """Tell whether a text is in a paragraph, and in nothing that is left out or an output of a cell."""
    node, in_paragraph = text.parent, False
    while node is not None:
        if isinstance(node, LEFT_OUT) or (
            isinstance(node, nodes.container) and "cell_output" in node.get("classes", ())
        ):
            return False
        in_paragraph = in_paragraph or isinstance(node, nodes.paragraph)
        node = node.parent
    return in_paragraph


def _visit(self, node):
    name, page = f"definition-{node['place']}", html.escape(f"{node['page']}#{node['place']}")
    self.body.append(f'<span class="defined"><a href="{page}" aria-describedby="{name}">')
    node["after"] = (
        f'</a><span class="definition" role="tooltip" id="{name}">{html.escape(node["definition"])}</span></span>'
    )


def _depart(self, node):
    self.body.append(node["after"])


def setup(app):
    terms: dict[str, Term] = {}

    def mark_page(app, document, docname):
        if app.builder.format != "html" or docname == GLOSSARY or GLOSSARY not in app.env.found_docs:
            return
        if not terms:  # all pages have been read by now
            terms.update(terms_of(app.env.get_doctree(GLOSSARY)))
        mark(document, terms, app.builder.get_relative_uri(docname, GLOSSARY))

    app.add_node(defined, html=(_visit, _depart))
    app.add_js_file(None, body=SCRIPT)
    app.connect("doctree-resolved", mark_page)
    return {"parallel_read_safe": True}
