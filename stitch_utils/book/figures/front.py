"""The bars of the front page: losses relative to the host's own, as HTML that a phone, a dark page and a reader's voice
take as they are (no section of its own).

Offers `Bar` and `relative_bars`; colours and widths are in `book/_static/book.css`.
"""

import html
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from IPython.display import HTML


class Bar(NamedTuple):
    """One row: its name, the loss over the host's own (1 is the host itself), and what is written beside the bar.

    `kind` is the CSS class that colours it, and `interval` the 95% interval of `ratio`, or None.
    """

    name: str
    ratio: float
    said: str
    kind: str = "null"
    interval: tuple[float, float] | None = None


def relative_bars(panels: Mapping[str, Sequence[Bar]], *, caption: str) -> HTML:
    """Draw the bars of each panel, {title: bars}, on one scale from 0, over a `caption` in HTML."""
    longest = max(max(bar.ratio, *(bar.interval or (0,))) for bars in panels.values() for bar in bars)
    parts = []
    for title, bars in panels.items():
        parts.append(f'<p class="bars-title">{html.escape(title)}</p>')
        parts += [_row(bar, 100 / longest) for bar in bars]
    return HTML(f'<figure class="bars">{"".join(parts)}<figcaption>{caption}</figcaption></figure>')


def _row(bar: Bar, percent: float) -> str:
    drawn = f'<span class="bar" style="width: {bar.ratio * percent:.1f}%"></span>'
    if bar.interval:
        low, high = bar.interval
        place = f"left: {low * percent:.1f}%; width: {(high - low) * percent:.1f}%"
        drawn += f'<span class="bar-interval" style="{place}"></span>'
    name, said = html.escape(bar.name), html.escape(bar.said)
    track = f'<span class="bar-track" aria-hidden="true">{drawn}</span>'
    return f'<div class="bar-row {bar.kind}"><span>{name}</span>{track}<span>{said}</span></div>'
