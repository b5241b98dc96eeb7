"""Figures of section 4 on probes: Figs. 3a, 9 and 10.

Offers `probe_accuracy` and `probe_panels`, and `PROBE_LABELS`, the names of the curves.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from .style import BLUE, GREY, ORANGE, PURPLE, intervals, legend_below

OF_PROBE = {"native": PURPLE, "transferred": BLUE, "retrained": ORANGE, "random": GREY}
PROBE_LABELS = {
    "native": "SAE of B",
    "transferred": "transferred",
    "retrained": "transferred, probe retrained",
    "random": "random features of B's SAE",
    "dense.native": "dense, B",
    "dense.transferred": "dense of A, transferred",
}


def probe_accuracy(sparse: Mapping[str, Mapping[int, tuple]], dense: Mapping[str, tuple]) -> Figure:
    """Draw Fig. 3a: accuracy of probes over the number of features they may look at; dense probes as horizontal lines,
    in bands that show their intervals."""
    figure, axes = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
    _probe_lines(axes, sparse, dense)
    axes.set(xlabel="features, k", ylabel="test accuracy")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def probe_panels(panels: Mapping[str, tuple[Mapping[str, Mapping[int, tuple]], Mapping[str, tuple]]]) -> Figure:
    """Draw Fig. 9: what `probe_accuracy` draws, in a panel for each data set."""
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    shape = {"figsize": (2.6 * columns, 2.4 * rows + 0.5), "layout": "constrained"}
    figure, grid = plt.subplots(rows, columns, sharex=True, sharey=True, squeeze=False, **shape)
    for axes, (name, (sparse, dense)) in zip(grid.flat, panels.items()):
        _probe_lines(axes, sparse, dense)
        axes.set_title(name.replace("_", " "), fontsize="medium")
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    for axes in list(grid.flat)[max(0, len(panels) - columns) : len(panels)]:
        axes.set_xlabel("features, k")
        axes.tick_params(labelbottom=True)  # a panel above an empty place is the last of its column
    figure.supylabel("test accuracy", fontsize="medium")
    legend_below(figure, grid.flat[0])
    return figure


def _probe_lines(axes, sparse: Mapping[str, Mapping[int, tuple]], dense: Mapping[str, tuple]) -> None:
    ks = list(next(iter(sparse.values())))
    for curve, values in sparse.items():
        style = {"fmt": "o-", "ms": 4, "capsize": 2, "color": OF_PROBE[curve], "label": PROBE_LABELS[curve]}
        intervals(axes, range(len(ks)), values.values(), **style)
    for curve, style, color in (("dense.native", "--", PURPLE), ("dense.transferred", ":", BLUE)):
        middle, low, high = dense[curve]
        axes.axhspan(low, high, color=color, alpha=0.15, lw=0)
        axes.axhline(middle, color=color, lw=1.2, ls=style, label=PROBE_LABELS[curve])
    axes.axhline(0.5, color=GREY, lw=0.8)
    axes.set_xticks(range(len(ks)), [str(k) for k in ks])
