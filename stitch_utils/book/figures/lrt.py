"""Figures of the chapter on the sister paper (2506.00653).

Errors of maps, answers and responses under native and mapped steering, what an SAE's code tells of the other model, and
one decoder regressed on the other.

Offers `map_errors`, `answers`, `recipes`, `free_shares`, `code_errors`, `decoder_residuals`.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from .style import (
    COMPONENTS,
    GUIDE,
    MODEL_A,
    MODEL_B,
    NULL,
    OF_MODEL,
    STITCHED,
    STITCHED_OTHERWISE,
    figure_of,
    interval_rows,
    intervals,
    legend,
    panel,
    panel_grid,
    panel_row,
)

OF_CONDITION = {"native": MODEL_B, "main": STITCHED, "unbiased": STITCHED, "bias": STITCHED_OTHERWISE}
OF_CONDITION |= {"transferred": STITCHED, "components": COMPONENTS, "random": NULL}


def map_errors(lengths: Mapping[str, Mapping[str, tuple]], means: Mapping[str, float]) -> Figure:
    """Draw the mean length of each map's error, {model that it leads to: {title: estimate}}; dashed: the mean's."""
    figure, panels = plt.subplots(1, len(lengths), figsize=(9, 2.6), sharey=True, layout="constrained")
    for axes, (side, values) in zip(panels, lengths.items()):
        interval_rows(axes, values, [OF_MODEL[side]] * len(values), ms=5)
        axes.axvline(means[side], color=GUIDE, lw=1, ls="--")
        axes.set(xlabel=f"mean length of the error, towards {side.upper()}")
    return figure


def answers(doses: Sequence, responses: Mapping[str, Mapping], *, titles: Mapping[str, str]) -> Figure:
    """Draw the mean logit difference over the dose, a panel for each behaviour: {behaviour: {condition: values}}."""
    grid = panel_grid(responses, (2.4, 2), ("dose", "logit difference"))
    for axes, curves in zip(grid, responses.values()):
        for condition, values in curves.items():
            axes.plot(doses, values, "o-", ms=3, lw=1.5, color=OF_CONDITION[condition], label=titles[condition])
        axes.axvline(0, color=GUIDE, lw=0.6)
    return legend(grid[0], "below", ncols=len(titles))


def recipes(columns: Mapping[str, Mapping[str, tuple]]) -> Figure:
    """Draw what each recipe does, {quantity: {recipe: estimate}}; dotted: what the first one does."""
    figure, panels = plt.subplots(1, len(columns), figsize=(10, 3), sharey=True, layout="constrained")
    for axes, (title, values) in zip(panels, columns.items()):
        interval_rows(axes, values, [STITCHED] * len(values), ms=5)
        axes.axvline(next(iter(values.values()))[0], color=GUIDE, lw=1, ls=":")
        axes.set(xlabel=title)
    return figure


def free_shares(shares: Mapping[str, Mapping[str, Mapping[float, tuple]]], *, titles: Mapping[str, str]) -> Figure:
    """Draw the share of the responses that do a task over the strength, {task: {condition: {strength: estimate}}}."""
    panels = panel_row(shares, (9 / len(shares), 3), "responses that do it", sharey=True)
    for axes, curves in zip(panels, shares.values()):
        for condition, values in curves.items():
            style = {"ms": 4, "capsize": 2, "color": OF_CONDITION[condition], "label": titles[condition]}
            intervals(axes, values, values.values(), fmt="o-", **style)
        axes.set(xlabel="strength", ylim=(-0.03, 1.03))
        axes.yaxis.set_major_formatter("{x:.0%}")
    return legend(panels[-1], "beside")


def code_errors(fuv: Mapping[str, tuple], *, of_x: Sequence[str]) -> Figure:
    """Draw the fraction of B's variance that each prediction leaves, {title: estimate}; blue: read off A's stream."""
    axes = panel((7, 2.8), xlabel="fraction of unexplained variance of B")
    interval_rows(axes, fuv, [OF_MODEL["a" if title in of_x else "b"] for title in fuv], ms=5)
    axes.set(xlim=(0, None))
    return figure_of(axes)


def decoder_residuals(norms: Mapping[str, tuple[float, float, tuple]]) -> Figure:
    """Draw what a regression of one decoder on the other leaves: {title: (norm, chance, estimate for shuffled rows)}.

    Chance is in closed form, and drawn as a line.
    """
    axes = panel((7, 1.6 + 0.5 * len(norms)), xlabel="Frobenius norm of what is left")
    (left, chance, shuffled), rows = zip(*norms.values()), np.arange(len(norms))
    interval_rows(axes, dict(zip(norms, shuffled)), [NULL] * len(norms), fmt="s", ms=5)
    line = axes.vlines(chance, rows - 0.3, rows + 0.3, color=NULL, lw=1.5, capstyle="round")
    (dots,) = axes.plot(left, rows, "o", ms=7, color=MODEL_A)
    axes.set_xlim(0.9 * min(*left, *chance), 1.03 * max(*left, *chance))
    entries = {"chance, closed form": line, "residual norm": dots, "rows shuffled": axes.containers[0]}
    return legend(axes, "beside", handles=entries.values(), labels=entries)
