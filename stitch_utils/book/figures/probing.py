"""Figures of section 4 on probes: Figs. 3a, 9 and 10.

Offers `probe_accuracy` and `probe_panels`, and `PROBE_LABELS`, the names of the curves.
"""

from collections.abc import Mapping

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from .style import BESIDE, BLUE, GREY, ORANGE, PURPLE, intervals, legend_below, panel_grid

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
    """Draw Fig. 3a: accuracy over the number of features that a probe may look at, {curve: {k: estimate}}.

    `dense` probes, {curve: estimate}, are horizontal lines in bands that show their intervals.
    """
    figure, axes = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
    _probe_lines(axes, sparse, dense)
    axes.set(xlabel="features, k", ylabel="test accuracy")
    axes.legend(**BESIDE)
    return figure


def probe_panels(panels: Mapping[str, tuple[Mapping[str, Mapping[int, tuple]], Mapping[str, tuple]]]) -> Figure:
    """Draw Fig. 9: what `probe_accuracy` draws, in a panel for each data set."""
    titles = [name.replace("_", " ") for name in panels]
    figure, grid = panel_grid(titles, (2.6, 2.4), ("features, k", "test accuracy"), sharey=True)
    for axes, (sparse, dense) in zip(grid, panels.values()):
        _probe_lines(axes, sparse, dense)
    return legend_below(figure, grid[0])


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
