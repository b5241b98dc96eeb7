"""Figures of the chapter on the sister paper (2506.00653).

Errors of maps, answers and responses under native and mapped steering, what an SAE's code tells of the other model, and
one decoder regressed on the other.

Offers `map_errors`, `answers`, `recipes`, `free_shares`, `code_errors`, `decoder_residuals`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from .style import BLUE, GREY, OF_MODEL, ORANGE, intervals

OF_CONDITION = {
    "native": OF_MODEL["b"],
    "main": BLUE,
    "bias": ORANGE,
    "unbiased": BLUE,
    "transferred": ORANGE,
    "random": GREY,
    "none": "#222222",
}


def _dots(axes, values: Mapping[str, tuple], *, color: str) -> None:
    """Draw (value, low, high) of each name in a row of its own."""
    for y, estimate in enumerate(values.values()):
        intervals(axes, [y], [estimate], sideways=True, ms=5, color=color)
    axes.grid(axis="y", visible=False)


def _rows(axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(len(names) - 0.5, -0.5)


def map_errors(lengths: Mapping[str, Mapping[str, tuple]], means: Mapping[str, float]) -> Figure:
    """Draw the mean length of each map's error, {model that it leads to: {title: (value, low, high)}}; dashed: the
    mean's."""
    figure, panels = plt.subplots(1, len(lengths), figsize=(9, 2.6), sharey=True, layout="constrained")
    for axes, (side, values) in zip(panels, lengths.items()):
        _dots(axes, values, color=OF_MODEL[side])
        axes.axvline(means[side], color=GREY, lw=1, ls="--")
        axes.set(xlabel=f"mean length of the error, towards {side.upper()}")
    _rows(panels[0], list(next(iter(lengths.values()))))
    return figure


def answers(
    doses: Sequence[float], responses: Mapping[str, Mapping[str, Sequence[float]]], *, titles: Mapping[str, str]
) -> Figure:
    """Draw the mean logit difference over the dose, a panel for each behaviour: {behaviour: {condition: values}}."""
    columns = min(4, len(responses))
    rows = -(-len(responses) // columns)
    size = (2.4 * columns + 0.4, 2 * rows + 0.6)
    figure, grid = plt.subplots(rows, columns, figsize=size, sharex=True, squeeze=False, layout="constrained")
    for axes, (behaviour, curves) in zip(grid.flat, responses.items()):
        for condition, values in curves.items():
            axes.plot(doses, values, "o-", ms=3, lw=1.5, color=OF_CONDITION[condition], label=titles[condition])
        axes.axvline(0, color=GREY, lw=0.6)
        axes.set_title(behaviour, fontsize="medium")
    for place, axes in enumerate(grid.flat):
        axes.set_visible(place < len(responses))
        if place + columns >= len(responses):  # nothing below it
            axes.set_xlabel("dose")
            axes.xaxis.set_tick_params(labelbottom=True)
    figure.supylabel("logit difference", fontsize="medium")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=len(labels))
    return figure


def recipes(columns: Mapping[str, Mapping[str, tuple]]) -> Figure:
    """Draw what each recipe does: {quantity: {recipe: (value, low, high)}}, a panel for each quantity."""
    figure, panels = plt.subplots(1, len(columns), figsize=(10, 3), sharey=True, layout="constrained")
    for axes, (title, values) in zip(panels, columns.items()):
        _dots(axes, values, color=OF_MODEL["b"])
        first = next(iter(values.values()))[0]
        axes.axvline(first, color=GREY, lw=1, ls=":")
        axes.set(xlabel=title)
    _rows(panels[0], list(next(iter(columns.values()))))
    return figure


def free_shares(shares: Mapping[str, Mapping[str, Mapping[float, tuple]]], *, titles: Mapping[str, str]) -> Figure:
    """Draw the share of the responses that do a task over the strength: {task: {condition: {strength: (value, low,
    high)}}}."""
    figure, panels = plt.subplots(1, len(shares), figsize=(9, 3), sharey=True, layout="constrained")
    for axes, (task, curves) in zip(panels, shares.items()):
        for condition, values in curves.items():
            style = {"fmt": "o-", "ms": 4, "capsize": 2, "color": OF_CONDITION[condition]}
            intervals(axes, list(values), values.values(), label=titles[condition], **style)
        axes.set(title=task, xlabel="strength", ylim=(-0.03, 1.03))
        axes.yaxis.set_major_formatter("{x:.0%}")
    panels[0].set_ylabel("responses that do it")
    panels[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def code_errors(fuv: Mapping[str, tuple], *, of_x: Sequence[str]) -> Figure:
    """Draw the fraction of B's variance that each prediction leaves: {title: (value, low, high)}; blue: read off A's
    stream."""
    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    for y, (title, estimate) in enumerate(fuv.items()):
        intervals(axes, [y], [estimate], sideways=True, ms=5, color=OF_MODEL["a" if title in of_x else "b"])
    _rows(axes, list(fuv))
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="fraction of unexplained variance of B", xlim=(0, None))
    return figure


def decoder_residuals(residuals: Mapping[str, float], chance: Mapping[str, tuple[float, tuple]]) -> Figure:
    """Draw the norm that a regression of one decoder on the other leaves: {title: norm}, with its chance level in
    closed form (line) and for shuffled rows (value, low, high)."""
    figure, axes = plt.subplots(figsize=(7, 1.6 + 0.5 * len(residuals)), layout="constrained")
    for y, (title, norm) in enumerate(residuals.items()):
        closed, shuffled = chance[title]
        axes.plot([closed, closed], [y - 0.3, y + 0.3], color="#222222", lw=1.5, label="chance, closed form")
        intervals(axes, [y], [shuffled], sideways=True, fmt="s", ms=5, color=GREY, label="rows shuffled")
        axes.plot(norm, y, "o", ms=7, color=ORANGE, label="residual norm")
    _rows(axes, list(residuals))
    axes.grid(axis="y", visible=False)
    ends = [*residuals.values(), *(closed for closed, _ in chance.values())]
    axes.set(xlabel="Frobenius norm of what is left", xlim=(0.9 * min(ends), 1.03 * max(ends)))
    entries = dict(zip(*axes.get_legend_handles_labels()[::-1]))  # one for each label
    axes.legend(entries.values(), entries, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
