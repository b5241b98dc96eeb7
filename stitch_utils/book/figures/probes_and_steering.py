"""Figures of section 4 on what is carried across: probes (Figs. 3a, 9, 10) and steering (Figs. 3b, 3c, 11, 12, 13).

Two are not in the paper: the dose-response, and what a stitch that has seen chat tokens changes.

Offers `probe_accuracy` and `probe_panels`, and `PROBE_LABELS`, the names of the curves; `dose_response`,
`strength_slider`, `steering_shares`, `clipped_gaps`, `gaps_by_frequency`, `instruction_shares`, `template_unexplained`,
`template_shares`.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .sliders import Panel, slider
from .style import (
    BETWEEN,
    COMPONENTS,
    COMPONENTS_RETRAINED,
    GROUND,
    GUIDE,
    NULL,
    OF_MODEL,
    PUBLISHED,
    STITCHED,
    STITCHED_OTHERWISE,
    YARDSTICK,
    figure_of,
    intervals,
    legend,
    panel,
    panel_grid,
    panel_row,
    round_ticks,
)

OF_PROBE = {"native": OF_MODEL["b"], "transferred": STITCHED, "retrained": STITCHED_OTHERWISE, "random": NULL}
OF_PROBE |= {"components": COMPONENTS, "components_retrained": COMPONENTS_RETRAINED}
# A stitch that has read plain text alone, and two that have read chats, the second more of them.
OF_STITCH = (BETWEEN(0.0), BETWEEN(0.5), BETWEEN(1.0))
DOSES = ("share in the target language", "rise of the NLL (nats a token)")
PROBE_LABELS = {
    "native": "SAE of B",
    "transferred": "transferred",
    "retrained": "transferred, probe retrained",
    "random": "random features of B's SAE",
    "components": "transferred without pairing",
    "components_retrained": "without pairing, probe retrained",
    "dense.native": "dense, B",
    "dense.transferred": "dense of A, transferred",
    "dense.components": "dense of A, without pairing",
}


def probe_accuracy(sparse: Mapping[str, Mapping[int, tuple]], dense: Mapping[str, tuple]) -> Figure:
    """Draw Fig. 3a: accuracy over the number of features that a probe may look at, {curve: {k: estimate}}.

    `dense` probes, {curve: estimate}, are horizontal lines in bands that show their intervals.
    """
    axes = panel((6.5, 3.8), xlabel="features, k", ylabel="test accuracy")
    _probe_lines(axes, sparse, dense)
    return legend(axes, "beside")


def probe_panels(panels: Mapping[str, tuple[Mapping[str, Mapping[int, tuple]], Mapping[str, tuple]]]) -> Figure:
    """Draw Fig. 9: what `probe_accuracy` draws, in a panel for each data set."""
    titles = [name.replace("_", " ") for name in panels]
    grid = panel_grid(titles, (2.6, 2.4), ("features, k", "test accuracy"), sharey=True)
    for axes, (sparse, dense) in zip(grid, panels.values()):
        _probe_lines(axes, sparse, dense)
    return legend(grid[0], "below")


def _probe_lines(axes: Axes, sparse: Mapping[str, Mapping[int, tuple]], dense: Mapping[str, tuple]) -> None:
    for curve, values in sparse.items():
        style = {"ms": 4, "capsize": 2, "color": OF_PROBE[curve], "label": PROBE_LABELS[curve]}
        intervals(axes, map(str, values), values.values(), fmt="o-", **style)
    for curve, style in (("dense.native", "--"), ("dense.transferred", ":"), ("dense.components", "-.")):
        (middle, low, high), color = dense[curve], OF_PROBE[curve.removeprefix("dense.")]
        axes.axhspan(low, high, color=color, alpha=0.15, lw=0)
        axes.axhline(middle, color=color, lw=1.2, ls=style, label=PROBE_LABELS[curve])
    axes.axhline(0.5, color=GUIDE, lw=0.8)


def dose_response(strengths: Sequence, doses: Mapping[tuple, Sequence], *, chosen: Mapping[str, float]) -> Figure:
    """Draw share and NLL rise over the strength: {(side, condition): [(share, rise), ...]}, both estimates."""
    _, panels = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for (side, condition), row in doses.items():
        style = {"fmt": "o-" if condition == "native" else "s--", "color": OF_MODEL[side], "ms": 4}
        for axes, values in zip(panels, zip(*row)):
            intervals(axes, strengths, values, label=f"{side.upper()}, {condition}", **style)
    for axes, title in zip(panels, DOSES):
        for side, strength in chosen.items():
            axes.axvline(strength, color=OF_MODEL[side], lw=1, ls=":")
        axes.set(xlabel="strength s", ylabel=title)
    panels[0].set_ylim(-0.02, 1.02)
    return legend(panels[1], "beside")


def strength_slider(strengths: Sequence, doses: Mapping[tuple, Sequence], *, chosen: Mapping[str, float]) -> HTML:
    """Make a slider over the strength of what `dose_response` draws; it opens at the strength chosen for B."""
    names = {key: f"{key[0].upper()}, {'own vectors' if key[1] == 'native' else key[1]}" for key in doses}
    panels = [
        Panel(title, {names[key]: [dose[place] for dose in row] for key, row in doses.items()})
        for place, title in enumerate(DOSES)
    ]
    chosen_for = {s: " and ".join(side.upper() for side, one in chosen.items() if one == s) for s in strengths}
    texts = [f"{s:g}" + (f" (chosen for {chosen_for[s]})" if chosen_for[s] else "") for s in strengths]
    colours = {names[key]: OF_MODEL[key[0]] for key in doses}
    start = list(strengths).index(chosen["b"]) if chosen["b"] in strengths else 0
    return slider("strength s", texts, panels, colours=colours, start=start)


def steering_shares(shares: Mapping[str, Mapping[str, tuple]], at_mean: Mapping[str, Mapping[str, tuple]]) -> Figure:
    """Draw Fig. 3b: {side: {condition: estimate}}, and as circles what the paper's strength gives."""
    figure, panels = plt.subplots(1, len(shares), figsize=(9, 3), sharey=True, layout="constrained")
    for axes, (side, values) in zip(panels, shares.items()):
        axes.barh(list(values), [value for value, *_ in values.values()], color=OF_MODEL[side], alpha=0.75)
        intervals(axes, values, values.values(), sideways=True, fmt="none", ecolor=GUIDE)
        circle = {"ms": 7, "zorder": 3, "mfc": GROUND, "mec": PUBLISHED, "mew": 2, "ecolor": PUBLISHED}
        intervals(axes, at_mean[side], at_mean[side].values(), sideways=True, **circle)
        axes.set(xlabel=f"share in the target language, {side.upper()} steered", xlim=(0, 1))
        axes.grid(axis="y", visible=False)
    panels[0].invert_yaxis()
    return figure


def clipped_gaps(gaps: Mapping[str, Sequence[float]]) -> Figure:
    """Draw Fig. 3c: a histogram of Eq. 16 over languages, {side: gaps} stacked."""
    axes = panel((5.5, 2.8), xlabel="clipped relative transfer gap", ylabel="languages", xlim=(0, 1))
    colours, labels = [OF_MODEL[side] for side in gaps], [f"{side.upper()} steered" for side in gaps]
    axes.hist(list(gaps.values()), bins=list(np.linspace(0, 1, 11)), stacked=True, color=colours, label=labels)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return legend(axes)


def gaps_by_frequency(counts: Mapping[str, int], gaps: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw Fig. 11: {side: {language: gap}} over {language: sentences}; a language without any stands at one half."""
    axes = panel((6.5, 3.4), xlabel="sentences of the training text", ylabel="clipped relative transfer gap")
    before = 0.0
    for language, count in sorted(counts.items(), key=lambda item: item[1]):
        place, values = max(count, 0.5), [of[language] for of in gaps.values()]
        axes.plot([place] * len(values), values, color=GUIDE, lw=1, zorder=1)
        for side, value in zip(gaps, values):
            axes.plot(place, value, "o", ms=5, color=OF_MODEL[side])
        left = place < 1.05 * before  # two names side by side, not one upon the other
        beside = {"xytext": (-5 if left else 5, 0), "textcoords": "offset points", "ha": "right" if left else "left"}
        axes.annotate(language, (place, sum(values) / len(values)), va="center", color=GUIDE, **beside)
        before = 0.0 if left else place
    axes.margins(x=0.08)
    axes.set(xscale="log", ylim=(-0.05, 1.05))
    round_ticks(axes.xaxis, between=(1, 2, 5))
    return figure_of(axes)


def _of_conditions(axes, shares, titles, colours) -> None:
    """Draw {kind: {condition: estimate}}, a group of points for each kind."""
    conditions = list(next(iter(shares.values())))
    for index, condition in enumerate(conditions):
        places = np.arange(len(shares)) + (index - (len(conditions) - 1) / 2) * 0.7 / len(conditions)
        style = {"ms": 4.5, "capsize": 2, "color": colours[condition], "label": titles[condition]}
        intervals(axes, places, [row[condition] for row in shares.values()], **style)
    names = [kind.replace("_", " ") for kind in shares]
    long = max(map(len, names)) > 10
    axes.set_xticks(range(len(shares)), names, rotation=30 if long else 0, ha="right" if long else "center")
    axes.set(ylim=(-0.03, 1.03))
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.grid(axis="x", visible=False)


def instruction_shares(shares: Mapping[str, Mapping[str, tuple]], *, side: str, titles: Mapping[str, str]) -> Figure:
    """Draw Figs. 12 and 13: share of the responses of model `side` that follow, {kind: {condition: estimate}}."""
    axes = panel((8, 3.9), ylabel="responses that follow")
    colours = {"none": GUIDE, "instructed": YARDSTICK, "native": OF_MODEL[side], "transferred": STITCHED}
    _of_conditions(axes, shares, titles, colours | {"random": NULL})
    return legend(axes, "below")


def template_unexplained(unexplained: Mapping[tuple, float], *, groups: Mapping, stitches: Mapping) -> Figure:
    """Draw the unexplained variance of held-out streams: {(stitch, group of tokens, model that the map leads to)}.

    `groups` and `stitches` are {name: title}.
    """
    panels = panel_row(("A → B", "B → A"), (4, 3.6), "", sharex=True, sharey=True)
    shown = [group for group in groups if any(group == found for _, found, _ in unexplained)]
    for axes, to in zip(panels, "ba"):
        for index, (stitch, color) in enumerate(zip(stitches, OF_STITCH)):
            values = [unexplained[stitch, group, to] for group in shown]
            places = np.arange(len(shown)) + (index - 1) * 0.26
            axes.barh(places, values, 0.24, color=color, label=stitches[stitch])
        axes.axvline(1, color=GUIDE, lw=1, ls="--")
        axes.set(xlabel="unexplained variance")
        axes.grid(axis="y", visible=False)
    panels[0].set_yticks(range(len(shown)), [groups[group] for group in shown])
    panels[0].invert_yaxis()  # shared by both
    return legend(panels[0], "below")


def template_shares(shares: Mapping[str, Mapping[str, Mapping[str, tuple]]], *, titles: Mapping[str, str]) -> Figure:
    """Draw shares of responses that follow, {side: {kind: {condition: estimate}}}; conditions are several stitches."""
    steered = [f"{side.upper()} steered" for side in shares]
    panels = panel_row(steered, (4, 3.6), "responses that follow", sharey=True)
    colours = dict(zip(("transferred", "template", "often"), OF_STITCH))
    for axes, rows in zip(panels, shares.values()):
        _of_conditions(axes, rows, titles, colours)
        plt.setp(axes.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")
    return legend(panels[0], "below")
