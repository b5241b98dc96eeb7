"""Small pieces of HTML that the tables of a page are made of (no section of its own).

The functions escape every text, except where a docstring says that a piece is HTML. `book/_static/book.css` gives them
their look; a plain notebook, which has no style sheet, shows the same words.

Offers `code`, `link`, `badge`, `fold` and `table`.
"""

import html
import posixpath

from IPython.display import HTML

GLYPHS = {"holds": "✓", "partly": "◐", "inconclusive": "?", "does not hold": "✗", "not testable": "–", "not run": "○"}


def code(text: str) -> str:
    """Set a text as code that may break anywhere."""
    return f'<code style="overflow-wrap: anywhere">{html.escape(text)}</code>'


def link(page: str, chapter: str, heading: str = "", here: str = "") -> str:
    """Link a chapter and its section: to the page, seen from another one, or to `here`, on this one."""
    name = html.escape(f"{chapter}: {heading}" if heading else chapter)
    target = here or (page and posixpath.relpath(page, "book/runs/any"))
    return f'<a href="{html.escape(target)}">{name}</a>' if target else name


def badge(verdict: str, pair: str = "", *, published: bool = False) -> str:
    """Show a verdict as a word and a sign on its colour, under the name of the pair if one is given.

    Filters find the pair, with ", published" for the papers' own numbers, and the verdict in `data-` attributes.
    """
    name = html.escape(f"{pair}, published" if published else pair)
    about = f' data-pair="{name}"' if pair else ""
    sign = f'<span aria-hidden="true">{GLYPHS.get(verdict, "–")}</span>'
    before = f"{html.escape(pair)} " if pair else ""
    return f'<span class="verdict" data-verdict="{verdict}"{about}>{before}{sign} <b>{verdict}</b></span>'


def fold(summary: str, inside: str) -> str:
    """Fold `inside` away under a `summary`; both are HTML."""
    return f"<details><summary>{summary}</summary>{inside}</details>"


def table(header: list[str], rows: list[list[str]]) -> HTML:
    """Draw a table. Cells are HTML; a row of one cell is as wide as the table."""
    # The book's theme aligns tables of cell outputs to the right, which suits numbers but not sentences.
    style = 'style="text-align: left; vertical-align: top"'
    head = "".join(f"<th {style}>{cell}</th>" for cell in header)
    wide = f'colspan="{len(header)}" {style}'
    cells = [[f"<td {wide if len(row) == 1 < len(header) else style}>{cell}</td>" for cell in row] for row in rows]
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in cells)
    return HTML(f'<table class="dataframe"><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>')
