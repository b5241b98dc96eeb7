"""Draw the claims as rows that unfold, and the form that filters them (no section of its own).

A row shows the sentence, where it stands in a paper, and a badge for each pair whose numbers decide it. Unfolded, it
shows the predicates, in words and as they are written, and for each pair the numbers with their 95% intervals, where
in these the answer turns, and the section that computed them. The form stands in `claim_filters.html`. It is hidden
until its script runs, so that a page without scripts shows all rows.

Offers `claim_row`, `not_run`, `was_run`, `source_of` and `filters`.
"""

import html
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from .chapters import command_for
from .claims import VERDICTS, Claim, Verdict, named, said_of_turns
from .markup import badge, code, fold
from .predicates import in_words

SOURCES = ("main paper", "sister paper", "this package")


def was_run(verdict: Verdict) -> bool:
    """Tell whether the claim's chapter wrote anything for the pair."""
    return verdict.verdict != "not run" or bool(verdict.ours or verdict.scale)


def source_of(claim: Claim) -> str:
    """Return which of `SOURCES` makes a claim."""
    starts = {"this package": "this package", "LRT": "sister paper"}
    return next((source for start, source in starts.items() if claim.source.startswith(start)), "main paper")


def claim_row(
    claim: Claim, of: Mapping[str, Verdict], links: Mapping[str, str], run: Collection[str], *, home: str
) -> str:
    """Make the row of a claim, as an item of a list in one line of HTML.

    `of` has the verdicts and `links` the HTML links to the section, both by pair. Pairs in `run` ran the chapter. Each
    that decides the claim has a badge, and so have `home`, where it is among them, and each pair with published
    numbers. Where none of ours is shown, the row says that the claim was not run.
    """
    theirs = {name: verdict for name, verdict in of.items() if verdict.published}
    shown = [name for name in run if of[name].verdict != "not run" or name == home]
    ours = "".join(badge(of[name].verdict, name) for name in shown)
    said = " ".join(badge(v.published_verdict or "incomplete", name, published=True) for name, v in theirs.items())
    where = re.sub("Sections? ", "§", re.split("[;(]", claim.source)[0].strip(" ,"))  # in full where it unfolds
    published = said and f' <span class="claim-published"><small>published:</small> {said}</span>'
    parts = {"says": html.escape(claim.text) + published, "source": html.escape(where)}
    parts["verdicts"] = ours or badge("not run")
    summary = " ".join(f'<span class="claim-{name}">{part}</span>' for name, part in parts.items())
    pairs = [_ours(name, of[name], links[name]) for name in run]
    pairs += [_published(name, verdict) for name, verdict in theirs.items()]
    inside = f'<div class="claim-detail">{_about(claim)}<div class="claim-pairs">{"".join(pairs)}</div></div>'
    about = f'data-chapter="{html.escape(claim.chapter)}" data-source="{source_of(claim)}"'
    return f'<li class="claim" {about}>{fold(summary, inside)}</li>'


def not_run(lacking: Mapping[str, Sequence[str]], chapters: Sequence[str]) -> str:
    """Say in one line which of `chapters` which pairs lack, and how to run one; "" if they lack none.

    `lacking` has the chapters by pair. A pair is named as the command takes it: by its name, or by its file.
    """
    alike: dict[tuple[str, ...], list[str]] = {}
    for pair, missing in lacking.items():
        if missing:
            alike.setdefault(tuple(missing), []).append(code(command_for(pair).partition("--pair ")[2]))
    if not alike:
        return ""
    one = len(chapters) == 1

    def said(missing: tuple[str, ...], pairs: Iterable[str]) -> str:
        which = "all chapters" if set(missing) == set(chapters) else html.escape(", ".join(missing))
        return ", ".join(pairs) + ("" if one else f" ({which})")

    parts = "; ".join(said(missing, pairs) for missing, pairs in alike.items())
    command = code(f".venv/bin/stitch-book run --pair PAIR --chapter {chapters[0] if one else 'CHAPTER'}")
    return f'<p class="claims-not-run"><b>Not run here</b>: {parts}. To run one: {command}</p>'


def filters(chapters: Iterable[str], pairs: Iterable[str]) -> str:
    """Make the form that shows the claims of a verdict, chapter, pair and source, with its script."""
    choices = {"VERDICTS": (*VERDICTS, "incomplete"), "CHAPTERS": chapters, "PAIRS": pairs, "SOURCES": SOURCES}
    form = Path(__file__).with_name("claim_filters.html").read_text(encoding="utf-8")
    for name, values in choices.items():
        options = "".join(f"<option>{html.escape(value)}</option>" for value in values)
        form = form.replace(f"@{name}@", options)
    return form


def _about(claim: Claim) -> str:
    """Say what the claim rests on: its source, its id and its predicates."""
    lines = [f"{html.escape(claim.source)}; {code(claim.id)}"]
    for word, predicate in (("Holds", claim.holds), ("Partly", claim.partly), ("Testable", claim.testable)):
        if predicate:
            words = html.escape(in_words(predicate))
            lines.append(f"<b>{word}</b> if {words + ': ' if words else ''}{code(predicate)}")
    return f"<p>{'<br>'.join(lines)}</p>"


def _ours(pair: str, verdict: Verdict, link: str) -> str:
    """Show the verdict on a pair, where the answer turns, the numbers, and what computed them or would."""
    recorded = verdict.recorded and verdict.verdict != "not run"
    mark = f"<small>recorded {html.escape(verdict.recorded)}</small>" if recorded else ""
    missing = (f"the run at scale {verdict.scale} gave no {code(id)}" for id in verdict.missing)
    # Without times, two builds of the book can be compared digit by digit.
    hidden = verdict.timed and verdict.ours
    numbers = ["times, in <code>results</code>"] if hidden else map(html.escape, named(verdict.ours))
    command = code(verdict.command) if verdict.command else ""
    where = "" if verdict.verdict == "not run" else link
    turns = map(html.escape, said_of_turns(verdict))
    return _lines(f"<b>{html.escape(pair)}</b>: {verdict.verdict}", mark, *turns, *missing, command, *numbers, where)


def _published(pair: str, verdict: Verdict) -> str:
    """Show what the papers' own numbers say."""
    said = verdict.published_verdict or "incomplete"
    return _lines(f"<b>{html.escape(pair)}</b>, published: {said}", *map(html.escape, named(verdict.published)))


def _lines(*lines: str) -> str:
    return f"<p>{'<br>'.join(filter(None, lines))}</p>"
