"""Figures of section 5 on which features transfer, and on those that act: Figs. 4b, 5a, 5b, 14, 15 and 16.

Two are not in the paper: correlations against firing rates, and how well the classes recover what is known.

Offers `correlation_histograms`, `class_densities`, `rates_and_correlations`, `recovery_by_versions`, `null_shares` and
`first_token_attention`, and the colours `OF_KIND` of the classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from .style import (
    COMPONENTS,
    GROUND,
    GUIDE,
    MODEL_A,
    NULL,
    SEMANTIC,
    STITCHED,
    STRUCTURAL,
    figure_of,
    intervals,
    legend,
    panel_row,
    round_ticks,
)

OF_TWIN = {"transferred": STITCHED, "before": MODEL_A, "after": STITCHED, "random": NULL, "components": COMPONENTS}
OF_KIND = {"structural": STRUCTURAL, "semantic": SEMANTIC}
CLOUD: Any = {"alpha": 0.5, "mew": 0, "rasterized": True}  # thousands of points would make a page heavy
TICKS = (-1, -0.5, 0, 0.5, 1)
COARSE = np.linspace(-1, 1, 21)


def correlation_histograms(panels: Mapping[str, Mapping[str, np.ndarray]], *, labels: Mapping[str, str]) -> Figure:
    """Draw Fig. 14: {title: {twin: correlations of all features}}."""
    row = panel_row(panels, (4, 3.2), "density of features")
    for axes, values in zip(row, panels.values()):
        for twin, some in values.items():
            axes.hist(some, bins=40, range=(-1, 1), density=True, alpha=0.6, color=OF_TWIN[twin], label=labels[twin])
        axes.set(xlabel="attribution correlation", xlim=(-1, 1), xticks=TICKS)
        axes.axvline(0, color=GUIDE, lw=0.8)
    return legend(row[0], "below")


def class_densities(
    panels: Mapping[str, Mapping[str, np.ndarray]], *, bands: Mapping[str, Mapping[str, tuple[float, float]]]
) -> Figure:
    """Draw Fig. 4b: densities of the correlations of both classes, {title: {class: correlations}}.

    Above them: the share that each class would have in a bin if both had as many features, with the number of features
    in the bin. `bands`: {title: {null: (low, high)}}, between which most correlations lie across a null; the first null
    is the darkest.
    """
    shape = {"figsize": (4 * len(panels), 4.2), "height_ratios": (1, 2), "layout": "constrained"}
    figure, grid = plt.subplots(2, len(panels), sharex=True, sharey="row", squeeze=False, **shape)
    for (above, below), (title, values) in zip(grid.T, panels.items()):
        densities = {kind: np.histogram(some, bins=COARSE, density=True)[0] for kind, some in values.items()}
        total = np.maximum(sum(densities.values()), 1e-12)
        bottom = np.zeros(len(total))
        for kind, density in densities.items():
            color = OF_KIND[kind]
            above.bar(COARSE[:-1], density / total, np.diff(COARSE), bottom, align="edge", color=color, lw=0)
            bottom = bottom + density / total
            below.stairs(density, COARSE, color=color, fill=True, alpha=0.4)
            below.stairs(density, COARSE, color=color, lw=1.4, label=f"{kind} ({len(values[kind])})")
        above.axhline(0.5, color=GROUND, lw=1)
        counts, _ = np.histogram(np.concatenate(list(values.values())), bins=COARSE)
        for place in np.flatnonzero(counts):
            middle = (COARSE[place] + COARSE[place + 1]) / 2
            above.text(middle, 1.03, str(counts[place]), ha="center", va="bottom", rotation=90, fontsize=6)
        for number, (null, band) in enumerate(bands[title].items()):
            below.axvspan(*band, color=NULL, alpha=0.5 / (1 + number), lw=0, label=null)
        above.set(ylim=(0, 1))
        above.set_title(title, pad=22)  # above the numbers
        below.set(xlabel="attribution correlation", xlim=(-1, 1), xticks=TICKS)
        legend(below, "upper left")
    grid[0, 0].set(ylabel="relative density")
    grid[1, 0].set(ylabel="density of features")
    return figure


def rates_and_correlations(panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> Figure:
    """Draw correlations against firing rates: {title: {class: (firing rates, correlations)}}."""
    row = panel_row(panels, (4, 3.4), "attribution correlation", sharey=True)
    for axes, values in zip(row, panels.values()):
        for kind, (rates, correlations) in values.items():
            axes.plot(rates, correlations, "o", ms=3.5, color=OF_KIND[kind], label=kind, **CLOUD)
        axes.set(xscale="log", xlabel="share of tokens at which a feature fires", ylim=(-1.02, 1.02))
    return legend(row[0], "below")


def recovery_by_versions(panels: Mapping[str, Mapping[str, Sequence[tuple]]]) -> Figure:
    """Draw {title: {measure: [estimate for 1, 2, ... versions]}}.

    The third and fourth measure are dashed, the second and fourth hollow.
    """
    row = panel_row(panels, (4, 3.2), "agreement with the grammar", sharey=True)
    for axes, measures in zip(row, panels.values()):
        for number, (measure, estimates) in enumerate(measures.items()):
            line, inside = ("o-", "s--")[number // 2], (GUIDE, GROUND)[number % 2]
            places = np.arange(1, len(estimates) + 1) + 0.1 * (number // 2)  # beside each other, to be told apart
            intervals(axes, places, estimates, fmt=line, ms=4, capsize=2, color=GUIDE, mfc=inside, label=measure)
        axes.axhline(0.5, color=NULL, lw=1, ls="--")
        axes.set(xlabel="versions of a sentence", xticks=range(1, len(next(iter(measures.values()))) + 1))
    return legend(row[0], "below")


def null_shares(features: Mapping[str, tuple], *, titles: Mapping[str, str]) -> Figure:
    """Draw Fig. 5a: share of the norm in the unembedding's null space against size, a panel for the SAE of each twin.

    {twin: (sizes, shares, marked, chance)}: the largest norm that each feature writes, the share of its norm in the
    null space, whether it is to be pointed out, and the bounds of the middle 95% of random directions.
    """
    ylabel = "share of the norm in the null space"
    row = panel_row([titles[twin] for twin in features], (3.3, 3.3), ylabel, sharey=True)
    for axes, (twin, (sizes, shares, marked, chance)) in zip(row, features.items()):
        chosen = np.asarray(marked, dtype=bool)
        axes.axhspan(*chance, color=NULL, alpha=0.25, lw=0)
        axes.plot(sizes[~chosen], shares[~chosen], "o", ms=3, color=OF_TWIN[twin], **CLOUD)
        axes.plot(sizes[chosen], shares[chosen], "o", ms=6, mfc="none", mec=GUIDE, mew=2, zorder=3)
        axes.set(xlabel="largest norm written", ylim=(0, 1.02))
        if len(sizes):
            axes.set_xscale("log")
            round_ticks(axes.xaxis, between=(1, 2, 5))
    return figure_of(row[0])


def first_token_attention(panels: Mapping[str, Sequence[tuple]], *, titles: Mapping[str, str]) -> Figure:
    """Draw Figs. 5b and 16: attention to the first token with a feature and without it, at tokens where it fires.

    {twin: [(with, without) for each feature]}. Where a point is below the diagonal, the feature raised the attention.
    """
    row = panel_row([titles[twin] for twin in panels], (3.2, 3.3), "path ablated", sharey=True)
    for axes, (twin, pairs) in zip(row, panels.items()):
        axes.plot([0, 1], [0, 1], color=GUIDE, lw=1, ls="--", zorder=1)
        for attended, ablated in pairs:
            axes.plot(attended, ablated, "o", ms=3, color=OF_TWIN[twin], **CLOUD)
            if len(attended):
                axes.plot(attended.mean(), ablated.mean(), "D", ms=6, mfc=OF_TWIN[twin], mec=GROUND, zorder=3)
        axes.set(xlabel="with the feature", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    return figure_of(row[0])
