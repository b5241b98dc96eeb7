"""Our results beside the published numbers, as tables for a page (no section of its own: every chapter ends with them).

Numbers come from `results.py`, the papers' and the verdicts from `claims.py`. Every table has the pair that is asked
for first, then every other pair with results. What comes from the record of a run is marked as recorded.

Offers `beside`, a DataFrame, and in HTML `on_real_models`, `shares_and_costs`, `claims_table`, `verdict_counts`,
`unclaimed_table`, `unclaimed_counts`, `status_table`, `runs_table`, `stand_in_notice`; `folded`, which folds one of
these away; and `title_of`, the title of a pair.
"""

import contextlib
import html
import re
from collections.abc import Mapping

import pandas as pd
from docutils.nodes import make_id
from IPython.display import HTML

from ..data.pairs import known_pairs, load_pair
from ..utils.files import project_root
from .chapters import SUMMARIES, command_for, page_of, pair_file, recorded_pages
from .claim_rows import claim_row, filters, not_run, was_run
from .claims import VERDICTS, Published, Statement, published, unclaimed, verdicts
from .digits import with_interval
from .markup import badge, code, fold, link, table
from .results import pairs_with_results, read_results


def beside(pair: str, prefix: str, *, labels: Mapping[str, str], others: bool = True) -> pd.DataFrame:
    """Set a table or figure of ours (`prefix` is "table1", say) beside the published one, as short strings.

    The rows are those of `labels`, {quantity: label}; a quantity is what stands after the pair in the ids. The columns
    are our values as `value [low, high]`, under the name of the pair, and those of each pair that the papers report, or
    without `others` of this pair alone, where another pair's are no measure of it. A string is empty where there is no
    number, and a bound such as "<1%" where the papers print no more.
    """
    book, prefix = published(), prefix.rstrip(".")
    papers = {**book.numbers, **book.bounds}
    columns: dict[str, tuple[Mapping, str]] = {pair: (read_results(pair, stand_ins=True).numbers, f"{prefix}.{pair}.")}
    for name in book.pairs if others else (pair,):
        if any(id.startswith(f"{prefix}.{name}.") for id in papers):
            columns[f"{name}, published"] = (papers, f"{prefix}.{name}.")
    cells = {name: [with_interval(ids, start + row) for row in labels] for name, (ids, start) in columns.items()}
    return pd.DataFrame(cells, index=list(labels.values()), dtype=object)


def on_real_models(prefix: str, *, chapter: str, labels: Mapping[str, str]) -> HTML:
    """Set the rows of a table or figure side by side for all pairs that are recorded.

    `prefix` and `labels` are those of `beside`; the title of a pair links to its page of the chapter. Without such a
    pair, say how to make one.
    """
    recorded = {page.parent.name for page in recorded_pages(project_root())}
    found = {name: read_results(name) for name in pairs_with_results() if name in recorded}
    start = {name: f"{prefix}.{name}." for name in found}
    found = {name: of for name, of in found.items() if any(id.startswith(start[name]) for id in of.numbers)}
    if not found:
        return HTML("<p>No run on real models is recorded here; <code>make real</code> makes one.</p>")
    links = [
        link(page_of(name, chapter), title_of(name) or name) + _mark(of.runs.get(chapter, {}))
        for name, of in found.items()
    ]
    rows = [
        [html.escape(label), *(with_interval(of.numbers, start[name] + row) for name, of in found.items())]
        for row, label in labels.items()
    ]
    return table(["", *links], rows)


def shares_and_costs(pair: str, figure: str, rows: Mapping[str, str], conditions: Mapping[str, str]) -> HTML:
    """Show shares of steered responses and, under each, what it costs: the rise of the NLL in nats a token.

    `rows` and `conditions` are {name in the id: title}; the ids are `<figure>.<pair>.<row>.<condition>`, and the same
    with `.nll_rise`. A cell is empty where there is no number.
    """
    numbers = read_results(pair, stand_ins=True).numbers

    def cell(row: str, condition: str) -> str:
        id = f"{figure}.{pair}.{row}.{condition}"
        rise = numbers.get(f"{id}.nll_rise")
        return with_interval(numbers, id) + ("" if rise is None else f"<br><small>{rise:+.2f} nats</small>")

    cells = [[f"<b>{html.escape(title)}</b>", *(cell(row, c) for c in conditions)] for row, title in rows.items()]
    return table(["", *map(html.escape, conditions.values())], cells)


def claims_table(pair: str = "tiny", *, chapter: str = "") -> HTML:
    """Show each claim in a row that unfolds, with the verdict of each pair, and of the pairs that the papers report.

    Unfolded, a row shows the predicates, the numbers and the section that computed them. Above the rows stands which
    pairs were not run, with the command. `chapter` keeps the claims of one chapter, whose page for `pair` shows the
    table; without it, there are filters.
    """
    book, run = published(), _pairs(pair)
    found = {name: verdicts(name, book=book) for name in dict.fromkeys((*run, *book.pairs))}
    places = [i for i, claim in enumerate(book.claims) if chapter in ("", claim.chapter)]
    chapters = list(dict.fromkeys(book.claims[i].chapter for i in places))
    done = {name: {of[i].chapter for i in places if was_run(of[i])} for name, of in found.items()}
    rows = []
    for i in places:
        claim, of = book.claims[i], {name: of_pair[i] for name, of_pair in found.items()}
        here = f"#{make_id(claim.heading)}" if chapter and claim.heading else ""
        links = {name: link(v.page, v.chapter, claim.heading, here * (name == pair)) for name, v in of.items()}
        rows.append(claim_row(claim, of, links, [name for name in run if claim.chapter in done[name]], home=pair))
    lacking = {name: [one for one in chapters if one not in done[name]] for name in found}
    theirs = [f"{name}, published" for name, of in found.items() if any(of[i].published for i in places)]
    form = "" if chapter else filters(chapters, [*(name for name in run if done[name]), *theirs])
    shown = "\n".join(rows)
    return HTML(f'{not_run(lacking, chapters)}\n{form}<ul class="claims">\n{shown}\n</ul>')


def verdict_counts(pair: str = "tiny") -> HTML:
    """Count, for each pair, the claims of each verdict."""
    rows = []
    for name in _pairs(pair):
        words = [verdict.verdict for verdict in verdicts(name)]
        scales = {f"{run['scale']}{_mark(run)}" for run in read_results(name).runs.values() if "scale" in run}
        rows.append([name, ", ".join(sorted(scales)), *(str(words.count(word)) for word in VERDICTS)])
    return table(["Pair", "Scale of the runs", *map(badge, VERDICTS)], rows)


def unclaimed_counts() -> HTML:
    """Count what the main paper says apart from the claims: what claims or numbers cover, and the rest by its kind."""
    book = unclaimed()
    whys = [one.why for one in book.statements]
    rows = [["covered", "Claims or published numbers cover it.", str(whys.count(""))]]
    rows += [[kind, html.escape(meaning), str(whys.count(kind))] for kind, meaning in book.kinds.items()]
    return table(["", "What that means", "Statements"], rows)


def unclaimed_table() -> HTML:
    """List what the main paper says apart from the claims: what covers it, or why it is no claim. Sections are folded.

    Each section begins with the claims that name it as their source, and with its tables and figures of which numbers
    are published.
    """
    claims, book = published(), unclaimed()
    sections = []
    for section, title in book.sections.items():
        said = [one for one in book.statements if one.section == section]
        rows = [[one.where, html.escape(one.says), _covered(one)] for one in said]
        shown = table(["Where", "What it says, in our words", "Covered by, or why it is no claim"], rows)
        inside = f"<p>{found}</p>" if (found := _claimed(claims, section)) else ""
        inside += str(shown.data) if said else ""
        name = f"<b>{section}</b> {html.escape(title)}".strip()
        sections.append(fold(f"{name} ({len(said)})", inside))
    return HTML('<div class="sections">\n' + "\n".join(sections) + "\n</div>")


def folded(shown: HTML, summary: str) -> HTML:
    """Fold a table away under its `summary`."""
    return HTML(fold(html.escape(summary), str(shown.data)))


def runs_table(home: str = "tiny") -> HTML:
    """List every pair that is known or was run, with the chapters run on it, or the command that runs them."""
    executed: dict[str, dict[str, str]] = {}
    root = project_root()
    for page in sorted((root / "book" / "runs").glob("*/[!.]*.ipynb")):
        if page.stem not in SUMMARIES:
            executed.setdefault(page.parent.name, {})[page.stem] = ""
    for page in (page for page, is_replaced in recorded_pages(root).items() if not is_replaced):
        executed.setdefault(page.parent.name, {})[page.stem] = " (recorded)"
    rows = []
    for name in dict.fromkeys((home, *known_pairs(), *executed)):
        title = title_of(name) or f"a pair file of your own: {pair_file(name) or 'unknown'}"
        links = (link(page_of(name, chapter), chapter) + mark for chapter, mark in executed.get(name, {}).items())
        pages = ", ".join(links)
        if pages and any(read_results(name, stand_ins=True)) and not any(read_results(name)):
            pages += " (random weights: no results)"
        rows.append([name, html.escape(title), pages or f"not run: {code(command_for(name))}"])
    return table(["Pair", "Models", "Chapters run"], rows)


def stand_in_notice(is_stand_in: bool) -> HTML | None:
    """Warn, in a box, that a page was run on random weights; show nothing where it was not."""
    notice = (
        '<div class="admonition warning"><p class="admonition-title">Random weights</p>'
        "<p>This page was run on untrained stand-ins that only bear the names of these models. It shows that the "
        "chapter runs on their architecture; its numbers mean nothing and are counted nowhere.</p></div>"
    )
    return HTML(notice) if is_stand_in else None


def status_table(pair: str = "tiny") -> HTML:
    """List the papers' tables and figures, with the section that recomputed each, or the command that would."""
    found = {name: read_results(name) for name in _pairs(pair)}
    rows = []
    for figure in published().figures:
        cells = []
        for name, (ids, runs) in found.items():
            if not figure.prefix:
                cells.append("schematic")
            elif figure.of and name not in figure.of:
                cells.append(f"of {' and '.join(figure.of)} alone")
            elif any(id.startswith(figure.prefix.replace("{pair}", name)) for id in ids):
                section = link(page_of(name, figure.chapter, figure.heading), figure.chapter, figure.heading)
                cells.append(section + _mark(runs.get(figure.chapter, {})))
            else:
                cells.append(f"not run: {code(command_for(name, figure.chapter))}")
        rows.append([figure.id, html.escape(figure.title), figure.section, *cells])
    return table(["", "Shows", "Section", *found], rows)


def _pairs(first: str) -> list[str]:
    return list(dict.fromkeys((first, *pairs_with_results())))


def _claimed(book: Published, section: str) -> str:
    """Name the claims that a section makes, and its tables and figures that published numbers come from."""
    claims = [code(claim.id) for claim in book.claims if section in claim.sections]
    starts = {
        figure.id: tuple(figure.prefix.replace("{pair}", pair) for pair in book.pairs)
        for figure in book.figures
        if figure.prefix and section == f"Section {figure.section}"
    }
    numbers = [code(id) for id, start in starts.items() if any(number.startswith(start) for number in book.numbers)]
    parts = {"claims": claims, "numbers": numbers}
    return "<br>".join(f"{name}: {', '.join(ids)}" for name, ids in parts.items() if ids)


def _covered(one: Statement) -> str:
    because = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(one.because))
    return f"<b>{one.why}</b>: {because}" if one.why else ", ".join(map(code, one.instead))


def title_of(pair: str) -> str:
    """Return the title of a pair of the package, or of a pair file that is in the checkout; else ""."""
    if pair in known_pairs():
        return load_pair(pair).title
    with contextlib.suppress(ValueError):
        if (file := project_root() / pair_file(pair)).is_file():
            return load_pair(file).title
    return ""


def _mark(run: Mapping[str, object]) -> str:
    return " (recorded)" if run.get("recorded") else ""
