"""Figures of section 4 on steering: Figs. 3b, 3c, 11, 12 and 13.

Two are not in the paper: the dose-response, and what a stitch that has seen chat tokens changes.

Offers `dose_response`, `steering_shares`, `clipped_gaps`, `gaps_by_frequency`, `instruction_shares`,
`template_unexplained`, `template_shares`.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .style import BESIDE, GREY, OF_MODEL, OF_START, ORANGE, intervals, legend_below, panel_row, round_ticks, whiskers


def dose_response(strengths: Sequence, doses: Mapping[tuple, Sequence], *, chosen: Mapping[str, float]) -> Figure:
    """Draw share and NLL rise over the strength: {(side, condition): [(share, rise), ...]}, both estimates."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for (side, condition), row in doses.items():
        style = {"fmt": "o-" if condition == "native" else "s--", "color": OF_MODEL[side], "ms": 4}
        for axes, values in zip(panels, zip(*row)):
            intervals(axes, strengths, values, label=f"{side.upper()}, {condition}", **style)
    for axes, title in zip(panels, ("share in the target language", "rise of the NLL (nats a token)")):
        for side, strength in chosen.items():
            axes.axvline(strength, color=OF_MODEL[side], lw=1, ls=":")
        axes.set(xlabel="strength s", ylabel=title)
    panels[0].set_ylim(-0.02, 1.02)
    panels[1].legend(**BESIDE)
    return figure


def steering_shares(shares: Mapping[str, Mapping[str, tuple]], at_mean: Mapping[str, Mapping[str, tuple]]) -> Figure:
    """Draw Fig. 3b: {side: {condition: estimate}}, and as circles what the paper's strength gives."""
    figure, panels = plt.subplots(1, len(shares), figsize=(9, 3), sharey=True, layout="constrained")
    for axes, (side, values) in zip(panels, shares.items()):
        places = {condition: place for place, condition in enumerate(values)}
        middle, low, high = (np.array(part) for part in zip(*values.values()))
        bars = {"xerr": whiskers(middle, low, high), "color": OF_MODEL[side], "alpha": 0.75, "capsize": 3}
        axes.barh(list(places.values()), middle, **bars)
        circle = {"ms": 7, "zorder": 3, "mfc": "white", "mec": ORANGE, "mew": 2, "ecolor": ORANGE}
        for condition, estimate in at_mean[side].items():
            intervals(axes, [places[condition]], [estimate], sideways=True, **circle)
        axes.set(xlabel=f"share in the target language, {side.upper()} steered", xlim=(0, 1))
        axes.set_yticks(list(places.values()), list(places))
        axes.grid(axis="y", visible=False)
    panels[0].invert_yaxis()
    return figure


def clipped_gaps(gaps: Mapping[str, Sequence[float]]) -> Figure:
    """Draw Fig. 3c: a histogram of Eq. 16 over languages, {side: gaps} stacked."""
    figure, axes = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
    colours, labels = [OF_MODEL[side] for side in gaps], [f"{side.upper()} steered" for side in gaps]
    axes.hist(list(gaps.values()), bins=list(np.linspace(0, 1, 11)), stacked=True, color=colours, label=labels)
    axes.set(xlabel="clipped relative transfer gap", ylabel="languages", xlim=(0, 1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    return figure


def gaps_by_frequency(counts: Mapping[str, int], gaps: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw Fig. 11: {side: {language: gap}} over {language: sentences}; a language without any stands at one half."""
    figure, axes = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
    before = 0.0
    for language, count in sorted(counts.items(), key=lambda item: item[1]):
        place, values = max(count, 0.5), [of[language] for of in gaps.values()]
        axes.plot([place] * len(values), values, color=GREY, lw=1, zorder=1)
        for side, value in zip(gaps, values):
            axes.plot(place, value, "o", ms=5, color=OF_MODEL[side])
        left = place < 1.05 * before  # two names side by side, not one upon the other
        beside = {"xytext": (-5 if left else 5, 0), "textcoords": "offset points", "ha": "right" if left else "left"}
        axes.annotate(language, (place, sum(values) / len(values)), va="center", color=GREY, **beside)
        before = 0.0 if left else place
    axes.margins(x=0.08)
    axes.set(xlabel="sentences of the training text", ylabel="clipped relative transfer gap")
    axes.set(xscale="log", ylim=(-0.05, 1.05))
    round_ticks(axes.xaxis, between=(1, 2, 5))
    return figure


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
    figure, axes = plt.subplots(figsize=(8, 3.9), layout="constrained")
    colours = {"none": GREY, "instructed": "#222222", "native": OF_MODEL[side], "transferred": ORANGE}
    _of_conditions(axes, shares, titles, colours | {"random": "#cfb9a4"})
    axes.set(ylabel="responses that follow")
    return legend_below(figure, axes)


def template_unexplained(unexplained: Mapping[tuple, float], *, groups: Mapping, stitches: Mapping) -> Figure:
    """Draw the unexplained variance of held-out streams: {(stitch, group of tokens, model that the map leads to)}.

    `groups` and `stitches` are {name: title}.
    """
    figure, panels = panel_row(("A → B", "B → A"), (4, 3.6), "", sharex=True, sharey=True)
    shown = [group for group in groups if any(group == found for _, found, _ in unexplained)]
    for axes, to in zip(panels, "ba"):
        for index, (stitch, color) in enumerate(zip(stitches, (GREY, OF_START["rotation"], ORANGE))):
            values = [unexplained[stitch, group, to] for group in shown]
            places = np.arange(len(shown)) + (index - 1) * 0.26
            axes.barh(places, values, 0.24, color=color, label=stitches[stitch])
        axes.axvline(1, color="#222222", lw=1, ls="--")
        axes.set(xlabel="unexplained variance")
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
    panels[0].set_yticks(range(len(shown)), [groups[group] for group in shown])
    panels[0].invert_yaxis()  # shared by both
    return legend_below(figure, panels[0])


def template_shares(shares: Mapping[str, Mapping[str, Mapping[str, tuple]]], *, titles: Mapping[str, str]) -> Figure:
    """Draw shares of responses that follow, {side: {kind: {condition: estimate}}}; conditions are several stitches."""
    steered = [f"{side.upper()} steered" for side in shares]
    figure, panels = panel_row(steered, (4, 3.6), "responses that follow", sharey=True)
    colours = {"transferred": GREY, "template": OF_START["rotation"], "often": ORANGE}
    for axes, rows in zip(panels, shares.values()):
        _of_conditions(axes, rows, titles, colours)
        plt.setp(axes.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")
    return legend_below(figure, panels[0])
