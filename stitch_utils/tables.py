"""Our results beside the published numbers, as tables for a page (no section of its own: every chapter ends with them).

What a reader sees first is a table of the paper with our numbers beside it, or a claim with its verdict. Nothing is
measured or decided here: the numbers come from `results.py`, the papers' numbers and the verdicts from `claims.py`.

Offers `beside`, a DataFrame, and in HTML `claims_table`, `verdict_counts`, `status_table`, `runs_table`,
`stand_in_notice`.
"""

import html
import json
import math
import re
from collections.abc import Mapping

import pandas as pd
from IPython.display import HTML

from .chapters import SUMMARIES
from .claims import VERDICTS, figures_status, published, verdicts
from .pairs import known_pairs, load_pair
from .results import pairs_with_results, project_root, read_results


def beside(pair: str, prefix: str, *, labels: Mapping[str, str] | None = None) -> pd.DataFrame:
    """A table or figure (`prefix` is "table1", say) as a DataFrame of short strings, ours first.

    One row for each quantity (the rest of the id after the pair), in the order of `published.yml` and then by name; a
    column named after the pair with our values as `value [low, high]`, and a column `<pair>, published` for each pair
    that the papers report. An empty string where there is no number. `labels` chooses the rows, their order and what
    they are called: {quantity: label}.
    """
    book, prefix = published(), prefix.rstrip(".")
    sources = {pair: (read_results(pair, stand_ins=True), f"{prefix}.{pair}.")}
    sources |= {f"{name}, published": (book.numbers, f"{prefix}.{name}.") for name in book.pairs}
    columns = {
        column: {id.removeprefix(start): value for id, value in values.items() if id.startswith(start)}
        for column, (values, start) in sources.items()
    }
    ours, theirs = columns[pair], {name: column for name, column in columns.items() if column and name != pair}
    rows = dict.fromkeys(re.sub(r"\.(low|high)$", "", id) for column in (*theirs.values(), ours) for id in column)
    rows = rows if labels is None else labels
    cells = {name: [_with_interval(column, row) for row in rows] for name, column in {pair: ours, **theirs}.items()}
    index = pd.Index(list(rows) if labels is None else list(labels.values()), name=None if labels else prefix)
    return pd.DataFrame(cells, index=index, dtype=object)


def claims_table(
    pair: str = "tiny", *, detail: bool = True, chapter: str | None = None, only_run: bool = False
) -> HTML:
    """All claims with their verdicts for `pair` and then for every other pair that has results.

    With `detail`, also each predicate, the numbers that went into it, and what the papers' own numbers say. `chapter`
    keeps the claims of one chapter, `only_run` those that some pair has run.
    """
    book = published()
    ours = {name: verdicts(name, book=book) for name in (pair, *pairs_with_results())}
    theirs = {name: verdicts(name, book=book) for name in book.pairs if detail}
    rows = []
    for i, claim in enumerate(book.claims):
        if chapter not in (None, claim.chapter) or (only_run and all(v[i].verdict == "not run" for v in ours.values())):
            continue
        about = f"{html.escape(claim.text)}<br><small>{html.escape(claim.source)}"
        if detail:
            about += f"<br>holds if <code>{html.escape(claim.holds)}</code>"
            about += f"<br>partly if <code>{html.escape(claim.partly)}</code>" if claim.partly else ""
        row = [about + "</small>", _link(pair, claim.chapter)]
        row += [f"<b>{v[i].verdict}</b>" + (_listed(v[i].ours) if detail else "") for v in ours.values()]
        known = [(name, v[i]) for name, v in theirs.items() if v[i].published]
        said = [f"<b>{name}: {v.published_verdict or 'incomplete'}</b>{_listed(v.published)}" for name, v in known]
        rows.append(row + (["<br>".join(said)] if detail else []))
    return _table(["Claim", "Chapter", *ours, *(["Published"] if detail else [])], rows)


def verdict_counts(pair: str = "tiny") -> HTML:
    """How many claims hold, hold partly, do not hold and were not run, for `pair` and every other pair with results."""
    rows = []
    for name in dict.fromkeys((pair, *pairs_with_results())):
        words = [verdict.verdict for verdict in verdicts(name)]
        scales = {str(value) for id, value in read_results(name).items() if re.fullmatch(r"run\.\w+\.scale", id)}
        rows.append([name, ", ".join(sorted(scales)), *(str(words.count(word)) for word in VERDICTS)])
    return _table(["Pair", "Scale of the runs", *VERDICTS], rows)


def runs_table(home: str = "tiny") -> HTML:
    """Every pair that is known or was run, with the chapters that were run on it, or the command that runs them."""
    executed: dict[str, list[str]] = {}
    files: dict[str, str] = {}
    for page in sorted((project_root() / "book" / "runs").glob("*/[!.]*.ipynb")):
        if page.stem not in SUMMARIES:
            executed.setdefault(page.parent.name, []).append(page.stem)
            note = json.loads(page.read_text(encoding="utf-8") or "{}").get("metadata", {}).get("stitch_book", {})
            files[page.parent.name] = str(note.get("parameters", {}).get("pair", ""))
    rows = []
    for name in dict.fromkeys((home, *known_pairs(), *executed)):
        own = f"a pair file of your own: {files.get(name) or 'unknown'}"
        title = load_pair(name).title if name in known_pairs() else own
        pages = ", ".join(_link(name, chapter) for chapter in executed.get(name, ()))
        if pages and name not in pairs_with_results():
            pages += " (random weights: no results)"
        rows.append(
            [name, html.escape(title), pages or f"not run: <code>.venv/bin/stitch-book run --pair {name}</code>"]
        )
    return _table(["Pair", "Models", "Chapters run"], rows)


def stand_in_notice(is_stand_in: bool) -> HTML | None:
    """A box that says so where a page was run on random weights; nothing where it was not."""
    if not is_stand_in:
        return None
    return HTML(
        '<div class="admonition warning"><p class="admonition-title">Random weights</p>'
        "<p>This page was run on untrained stand-ins that only bear the names of these models. It shows that the "
        "chapter runs on their architecture; its numbers mean nothing and are counted nowhere.</p></div>"
    )


def status_table(pair: str = "tiny") -> HTML:
    """Every table and figure of the papers, the chapter that recomputes it, and whether it is done for the pair."""
    rows = [[s.id, html.escape(s.title), s.section, _link(pair, s.chapter), s.status] for s in figures_status(pair)]
    return _table(["", "Shows", "Section", "Chapter", pair], rows)


def _with_interval(values: Mapping[str, object], name: str) -> str:
    ends = [values.get(name + suffix) for suffix in (".low", ".high")]
    digits = _digits(*ends)

    def said(number: object) -> str:
        if not isinstance(number, int | float):
            return "" if number is None else str(number)
        return f"{number:+.1%}" if name.endswith("increase") else f"{round(number, digits):.4g}"

    low, high = map(said, ends)
    middle = said(values.get(name))
    return f"{middle} [{low}, {high}]".strip() if low or high else middle


def _digits(low: object, high: object) -> int:
    """Decimals that are worth printing: two digits of the interval's width, if there is one."""
    if not (
        isinstance(low, int | float) and isinstance(high, int | float) and math.isfinite(high - low) and low < high
    ):
        return 15
    return 1 - math.floor(math.log10(high - low))


def _listed(values: Mapping[str, float]) -> str:
    names = dict.fromkeys(name.split(".")[0] for name in values)
    return "".join(f"<br>{name} = {_with_interval(values, name)}" for name in names)


def _link(pair: str, chapter: str) -> str:
    """The chapter's name, as a link to its page once it has been executed."""
    executed = project_root() / "book" / "runs" / pair / f"{chapter}.ipynb"
    return f'<a href="../{pair}/{chapter}.html">{chapter}</a>' if executed.is_file() else chapter


def _table(header: list[str], rows: list[list[str]]) -> HTML:
    """The one place that decides how a table looks. Cells are HTML."""
    # The book's theme aligns tables of cell outputs to the right, which suits numbers but not sentences.
    style = 'style="text-align: left; vertical-align: top"'
    head = "".join(f"<th {style}>{cell}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td {style}>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return HTML(f'<table class="dataframe"><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>')
