"""Figures of the chapter on the sister paper (2506.00653).

Errors of maps, answers and responses under native and mapped steering, what an SAE's code tells of the other model, and
one decoder regressed on the other.

Offers `map_errors`, `answers`, `recipes`, `free_shares`, `code_errors`, `decoder_residuals`.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from .style import BESIDE, BLUE, GREY, OF_MODEL, ORANGE, interval_rows, intervals, legend_below, panel_grid, panel_row

BLACK = "#222222"
OF_RECIPE = {"main": BLUE, "unbiased": BLUE, "bias": ORANGE, "transferred": ORANGE}
OF_CONDITION = OF_RECIPE | {"native": OF_MODEL["b"], "random": GREY, "none": BLACK}


def map_errors(lengths: Mapping[str, Mapping[str, tuple]], means: Mapping[str, float]) -> Figure:
    """Draw the mean length of each map's error, {model that it leads to: {title: estimate}}; dashed: the mean's."""
    figure, panels = plt.subplots(1, len(lengths), figsize=(9, 2.6), sharey=True, layout="constrained")
    for axes, (side, values) in zip(panels, lengths.items()):
        interval_rows(axes, values, [OF_MODEL[side]] * len(values), ms=5)
        axes.axvline(means[side], color=GREY, lw=1, ls="--")
        axes.set(xlabel=f"mean length of the error, towards {side.upper()}")
    return figure


def answers(doses: Sequence, responses: Mapping[str, Mapping], *, titles: Mapping[str, str]) -> Figure:
    """Draw the mean logit difference over the dose, a panel for each behaviour: {behaviour: {condition: values}}."""
    figure, grid = panel_grid(responses, (2.4, 2), ("dose", "logit difference"))
    for axes, curves in zip(grid, responses.values()):
        for condition, values in curves.items():
            axes.plot(doses, values, "o-", ms=3, lw=1.5, color=OF_CONDITION[condition], label=titles[condition])
        axes.axvline(0, color=GREY, lw=0.6)
    return legend_below(figure, grid[0], columns=len(titles))


def recipes(columns: Mapping[str, Mapping[str, tuple]]) -> Figure:
    """Draw what each recipe does, {quantity: {recipe: estimate}}; dotted: what the first one does."""
    figure, panels = plt.subplots(1, len(columns), figsize=(10, 3), sharey=True, layout="constrained")
    for axes, (title, values) in zip(panels, columns.items()):
        interval_rows(axes, values, [OF_MODEL["b"]] * len(values), ms=5)
        axes.axvline(next(iter(values.values()))[0], color=GREY, lw=1, ls=":")
        axes.set(xlabel=title)
    return figure


def free_shares(shares: Mapping[str, Mapping[str, Mapping[float, tuple]]], *, titles: Mapping[str, str]) -> Figure:
    """Draw the share of the responses that do a task over the strength, {task: {condition: {strength: estimate}}}."""
    figure, panels = panel_row(shares, (9 / len(shares), 3), "responses that do it", sharey=True)
    for axes, curves in zip(panels, shares.values()):
        for condition, values in curves.items():
            style = {"fmt": "o-", "ms": 4, "capsize": 2, "color": OF_CONDITION[condition]}
            intervals(axes, list(values), values.values(), label=titles[condition], **style)
        axes.set(xlabel="strength", ylim=(-0.03, 1.03))
        axes.yaxis.set_major_formatter("{x:.0%}")
    panels[-1].legend(**BESIDE)
    return figure


def code_errors(fuv: Mapping[str, tuple], *, of_x: Sequence[str]) -> Figure:
    """Draw the fraction of B's variance that each prediction leaves, {title: estimate}; blue: read off A's stream."""
    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    interval_rows(axes, fuv, [OF_MODEL["a" if title in of_x else "b"] for title in fuv], ms=5)
    axes.set(xlabel="fraction of unexplained variance of B", xlim=(0, None))
    return figure


def decoder_residuals(residuals: Mapping[str, float], chance: Mapping[str, tuple[float, tuple]]) -> Figure:
    """Draw the norm that a regression of one decoder on the other leaves, {title: norm}.

    `chance` holds its level in closed form (drawn as a line) and the estimate for shuffled rows.
    """
    figure, axes = plt.subplots(figsize=(7, 1.6 + 0.5 * len(residuals)), layout="constrained")
    shuffled = {title: chance[title][1] for title in residuals}
    interval_rows(axes, shuffled, [GREY] * len(shuffled), fmt="s", ms=5, label="rows shuffled")
    for y, (title, norm) in enumerate(residuals.items()):
        axes.plot([chance[title][0]] * 2, [y - 0.3, y + 0.3], color=BLACK, lw=1.5, label="chance, closed form")
        axes.plot(norm, y, "o", ms=7, color=ORANGE, label="residual norm")
    ends = [*residuals.values(), *(closed for closed, _ in chance.values())]
    axes.set(xlabel="Frobenius norm of what is left", xlim=(0.9 * min(ends), 1.03 * max(ends)))
    entries = dict(zip(*axes.get_legend_handles_labels()[::-1]))  # one for each label
    axes.legend(entries.values(), entries, **BESIDE)
    return figure
