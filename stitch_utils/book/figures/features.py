"""Figures of section 5 on which features transfer: Figs. 4b, 14 and 15.

Two are not in the paper: correlations against firing rates, and how well the classes recover what is known.

Offers `correlation_histograms`, `class_densities`, `rates_and_correlations`, `recovery_by_versions`.
"""

import itertools
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from .style import BLUE, GREY, ORANGE, PURPLE, intervals, legend_below, panel_row

OF_TWIN = {"transferred": BLUE, "random": GREY}
OF_KIND = {"structural": PURPLE, "semantic": ORANGE}
TICKS = (-1, -0.5, 0, 0.5, 1)
BINS = list(np.linspace(-1, 1, 41))
COARSE = np.linspace(-1, 1, 21)


def correlation_histograms(panels: Mapping[str, Mapping[str, np.ndarray]], *, labels: Mapping[str, str]) -> Figure:
    """Draw Fig. 14: {title: {twin: correlations of all features}}."""
    figure, row = panel_row(panels, (4, 3.2), "density of features")
    for axes, values in zip(row, panels.values()):
        for twin, some in values.items():
            axes.hist(some, bins=BINS, density=True, alpha=0.6, color=OF_TWIN[twin], label=labels[twin])
        axes.set(xlabel="attribution correlation", xlim=(-1, 1), xticks=TICKS)
        axes.axvline(0, color="#222222", lw=0.8)
    return legend_below(figure, row[0])


def class_densities(panels: Mapping[str, Mapping[str, np.ndarray]], *, random: Mapping[str, tuple]) -> Figure:
    """Draw Fig. 4b: densities of the correlations of both classes, {title: {class: correlations}}.

    Above them: the share that each class would have in a bin if both had as many features, with the number of features
    in the bin. `random`: {title: (low, high)}, between which most correlations lie across a random stitch.
    """
    shape = {"figsize": (4 * len(panels), 4.2), "height_ratios": (1, 2), "layout": "constrained"}
    figure, grid = plt.subplots(2, len(panels), sharex=True, sharey="row", squeeze=False, **shape)
    for (above, below), (title, values) in zip(grid.T, panels.items()):
        densities = {kind: np.histogram(some, bins=COARSE, density=True)[0] for kind, some in values.items()}
        counts = sum(np.histogram(some, bins=COARSE)[0] for some in values.values())
        total = np.maximum(sum(densities.values()), 1e-12)
        bottom = np.zeros(len(total))
        for kind, density in densities.items():
            style = {"align": "edge", "color": OF_KIND[kind], "lw": 0}
            above.bar(COARSE[:-1], density / total, np.diff(COARSE), bottom=bottom, **style)
            bottom = bottom + density / total
            below.stairs(density, COARSE, color=OF_KIND[kind], fill=True, alpha=0.4)
            below.stairs(density, COARSE, color=OF_KIND[kind], lw=1.4, label=f"{kind} ({len(values[kind])})")
        above.axhline(0.5, color="white", lw=1)
        for middle, count in zip((COARSE[:-1] + COARSE[1:]) / 2, np.broadcast_to(counts, len(total))):
            if count:
                above.text(middle, 1.03, str(count), ha="center", va="bottom", rotation=90, fontsize=6)
        below.axvspan(*random[title], color=GREY, alpha=0.5, lw=0, label="random stitch")
        above.set(ylim=(0, 1))
        above.set_title(title, pad=22)  # above the numbers
        below.set(xlabel="attribution correlation", xlim=(-1, 1), xticks=TICKS)
        below.legend(frameon=False, loc="upper left")
    grid[0, 0].set(ylabel="relative density")
    grid[1, 0].set(ylabel="density of features")
    return figure


def rates_and_correlations(panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> Figure:
    """Draw correlations against firing rates: {title: {class: (firing rates, correlations)}}."""
    figure, row = panel_row(panels, (4, 3.4), "attribution correlation", sharey=True)
    for axes, values in zip(row, panels.values()):
        for kind, (rates, correlations) in values.items():
            axes.plot(rates, correlations, "o", ms=3.5, alpha=0.55, mew=0, color=OF_KIND[kind], label=kind)
        axes.set(xscale="log", xlabel="share of tokens at which a feature fires", ylim=(-1.02, 1.02))
    return legend_below(figure, row[0])


def recovery_by_versions(panels: Mapping[str, Mapping[str, Sequence[tuple]]]) -> Figure:
    """Draw {title: {measure: [estimate for 1, 2, ... versions]}}; the third and fourth measure are dashed."""
    figure, row = panel_row(panels, (4, 3.2), "agreement with the grammar", sharey=True)
    for axes, measures in zip(row, panels.values()):
        styles = itertools.product(("o-", "s--"), (PURPLE, BLUE))
        for number, ((measure, estimates), (line, color)) in enumerate(zip(measures.items(), styles)):
            places = np.arange(1, len(estimates) + 1) + 0.1 * (number // 2)  # beside each other, to be told apart
            intervals(axes, places, estimates, fmt=line, ms=4, capsize=2, color=color, label=measure)
        axes.axhline(0.5, color=GREY, lw=1, ls="--")
        axes.set(xlabel="versions of a sentence, k")
        axes.set_xticks(range(1, len(next(iter(measures.values()))) + 1))
    return legend_below(figure, row[0])
