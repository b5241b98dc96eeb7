"""Figures of section 3 and App. B to D: Figs. 1c, 2a and 2b, Table 2 as a picture, and SAEs in training.

Runs of training are given as {start: one `Curve` for each seed}; `extra` are FLOPs to be added to those of a start.

Offers `sae_metrics`, `sae_curves`, `flops_saved`, `scaling_laws`, `cosines`.
"""

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from .style import BESIDE, GREY, OF_MODEL, OF_START, interval_rows, intervals


def sae_metrics(metrics: Mapping[str, tuple[tuple, tuple]], *, on_a: Sequence[str]) -> Figure:
    """Draw Table 2: {name: (FUV, delta loss)}, both estimates; the colour is that of the model that the SAE runs on."""
    figure, panels = plt.subplots(1, 2, figsize=(8.5, 2.8), sharey=True, layout="constrained")
    colors = [OF_MODEL["a" if name in on_a else "b"] for name in metrics]
    titles = ("fraction of unexplained variance", "delta loss (nats)")
    for axes, title, column in zip(panels, titles, zip(*metrics.values())):
        interval_rows(axes, dict(zip(metrics, column)), colors)
        axes.set(xlabel=title, xlim=(0, None))
    panels[0].axvline(1, color=GREY, lw=1, ls="--")
    return figure


def sae_curves(runs: Mapping[str, Sequence], *, extra: Mapping[str, float]) -> Figure:
    """Draw the held-out explained variance of SAEs in training over FLOPs and over seconds."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
    for start, curves in runs.items():
        for index, curve in enumerate(curves):
            label = f"from {start}" if index == 0 else None
            style = {"color": OF_START[start], "lw": 1.2, "label": label}
            panels[0].plot(curve.flops[1:] + extra.get(start, 0.0), curve.explained_variance[1:], **style)
            panels[1].plot(curve.seconds[1:], curve.explained_variance[1:], **style)
    panels[0].set(xlabel="training FLOPs, the stitch's included", ylabel="explained variance", xscale="log")
    panels[0].xaxis.set_minor_formatter(NullFormatter())  # its labels would lie on each other
    panels[1].set(xlabel="seconds of training steps")
    panels[1].legend(frameon=False, loc="lower right")
    return figure


def flops_saved(savings: Mapping[int, Mapping[float, tuple]]) -> Figure:
    """Draw Fig. 2a, the FLOPs saved: {width: {explained variance: estimate}}."""
    figure, axes = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
    shades = sns.color_palette("flare", len(savings))
    for color, (width, values) in zip(shades, savings.items()):
        if values:
            style = {"fmt": "o-", "ms": 4, "color": color, "label": f"{width} latents"}
            intervals(axes, list(values), values.values(), **style)
    axes.axhline(0, color=GREY, lw=1, ls="--")
    axes.set(xlabel="explained variance to reach", ylabel="FLOPs saved")
    axes.yaxis.set_major_formatter("{x:.0%}")
    if any(savings.values()):
        axes.legend(**BESIDE)
    return figure


def scaling_laws(
    runs: Mapping[str, Sequence], laws: Mapping[str, Callable], flops: Sequence, *, extra: Mapping[str, float]
) -> Figure:
    """Draw Fig. 1c: held-out error of all runs (thin) and the fitted law (thick) of each start, over `flops`."""
    figure, axes = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
    for start, curves in runs.items():
        for curve in curves:
            axes.plot(curve.flops[1:] + extra.get(start, 0.0), curve.mse[1:], color=OF_START[start], lw=0.6, alpha=0.5)
        axes.plot(flops, laws[start](flops), color=OF_START[start], lw=2.5, label=f"from {start}")
    axes.set(xlabel="training FLOPs, the stitch's included", ylabel="held-out MSE", xscale="log", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend(frameon=False)
    return figure


def cosines(values: Mapping[str, Sequence[float]]) -> Figure:
    """Draw Fig. 2b: histograms of the cosine of decoder rows after training to themselves before, {start: cosines}."""
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    bins = list(np.linspace(min(0, min(map(min, values.values()))), 1, 41))
    for start, found in values.items():
        axes.hist(found, bins=bins, density=True, histtype="step", lw=1.8, color=OF_START[start], label=f"from {start}")
    axes.set(xlabel="cosine to the direction at the start", ylabel="density")
    axes.legend(frameon=False, loc="upper left")
    return figure
