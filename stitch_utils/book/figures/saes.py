"""Figures of section 3 and App. B to D: Figs. 1c, 2a and 2b, Table 2 as a picture, and SAEs in training.

Runs of training are given as {start: one `Curve` for each seed}; `extra` are FLOPs to be added to those of a start.

Offers `sae_metrics`, `sae_curves`, `variance_slider`, `flops_saved`, `scaling_laws`, `cosines`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from .sliders import Panel, slider
from .style import BETWEEN, GUIDE, OF_MODEL, OF_START, figure_of, interval_rows, intervals, legend, panel


def sae_metrics(metrics: Mapping[str, tuple[tuple, tuple]], *, on_a: Sequence[str]) -> Figure:
    """Draw Table 2: {name: (FUV, delta loss)}, both estimates; the colour is that of the model that the SAE runs on."""
    figure, panels = plt.subplots(1, 2, figsize=(8.5, 2.8), sharey=True, layout="constrained")
    colors = [OF_MODEL["a" if name in on_a else "b"] for name in metrics]
    titles = ("fraction of unexplained variance", "delta loss (nats)")
    for axes, title, column in zip(panels, titles, zip(*metrics.values())):
        interval_rows(axes, dict(zip(metrics, column)), colors)
        axes.set(xlabel=title, xlim=(0, None))
    panels[0].axvline(1, color=GUIDE, lw=1, ls="--")
    return figure


def sae_curves(runs: Mapping[str, Sequence], *, extra: Mapping[str, float]) -> Figure:
    """Draw the held-out explained variance of SAEs in training over FLOPs and over seconds."""
    _, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
    for start, curves in runs.items():
        for index, curve in enumerate(curves):
            style = {"color": OF_START[start], "lw": 1.2, "label": f"from {start}" if index == 0 else None}
            left.plot(curve.flops[1:] + extra.get(start, 0.0), curve.explained_variance[1:], **style)
            right.plot(curve.seconds[1:], curve.explained_variance[1:], **style)
    left.set(xlabel="training FLOPs, the stitch's included", ylabel="explained variance", xscale="log")
    left.xaxis.set_minor_formatter(NullFormatter())  # its labels would lie on each other
    right.set(xlabel="seconds of training steps")
    return legend(right, "lower right")


def variance_slider(curve: Any, values: Mapping[str, Sequence], leads: Mapping[str, Sequence]) -> HTML:
    """Make a slider over the evaluations of `curve`, one of the runs, after the first: explained variance by start.

    `values`, {start: estimates}, are of each start, and `leads`, {start: estimates}, the differences from scratch.
    """
    panels = [Panel("explained variance", values), Panel("lead over scratch", leads)]
    at = [f"{int(tokens):,} (step {int(step):,})" for step, tokens in zip(curve.steps[1:], curve.tokens[1:])]
    return slider("training tokens", at, panels, colours=OF_START, start=len(at) - 1)


def flops_saved(savings: Mapping[int, Mapping[float, tuple]]) -> Figure:
    """Draw Fig. 2a, the FLOPs saved: {width: {explained variance: estimate}}."""
    axes = panel((6.5, 3.4), xlabel="explained variance to reach", ylabel="FLOPs saved")
    for color, (width, values) in zip(BETWEEN(np.linspace(0, 1, len(savings))), savings.items()):
        if values:
            intervals(axes, values, values.values(), fmt="o-", ms=4, color=color, label=f"{width} latents")
    axes.axhline(0, color=GUIDE, lw=1, ls="--")
    axes.yaxis.set_major_formatter("{x:.0%}")
    return legend(axes, "beside") if any(savings.values()) else figure_of(axes)


def scaling_laws(runs: Mapping[str, Sequence], laws: Mapping[str, Callable], flops: Sequence) -> Figure:
    """Draw Fig. 1c: held-out error of all runs (thin) and the fitted law (thick) of each start, over `flops`."""
    axes = panel((6.5, 3.8), xlabel="training FLOPs", ylabel="held-out MSE")
    for start, curves in runs.items():
        for curve in curves:
            axes.plot(curve.flops[1:], curve.mse[1:], color=OF_START[start], lw=0.6, alpha=0.5)
        axes.plot(flops, laws[start](flops), color=OF_START[start], lw=2.5, label=f"from {start}")
    axes.set(xscale="log", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    return legend(axes)


def cosines(values: Mapping[str, Sequence[float]]) -> Figure:
    """Draw Fig. 2b: histograms of the cosine of decoder rows after training to themselves before, {start: cosines}."""
    axes = panel((6, 3), xlabel="cosine to the direction at the start", ylabel="density")
    bins = list(np.linspace(min(0, min(map(min, values.values()))), 1, 41))
    for start, found in values.items():
        axes.hist(found, bins=bins, density=True, histtype="step", lw=1.8, color=OF_START[start], label=f"from {start}")
    return legend(axes, "upper left")
