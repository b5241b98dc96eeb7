"""Figures of section 2 and App. A: Figs. 6 and 7, Table 1 as a picture, and the two ways to fit Eq. 3.

Offers `svcca_heatmap`, `svcca_lines`, `fit_trace`, `cross_entropies`, `alpha_sweep`, `sae_alpha_sweep`.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullFormatter

from ...stitching.evaluation import CONDITIONS
from .style import BESIDE, BLUE, GREY, OF_MODEL, ORANGE, interval_rows, intervals, round_ticks


def _path(condition: str) -> str:
    """Write "a_to_b" as "A → B"."""
    return condition.upper().replace("_TO_", " → ")


def svcca_heatmap(scores: np.ndarray, *, chosen: tuple[int, int], name_a: str, name_b: str) -> Figure:
    """Draw Fig. 6: mean canonical correlation of every layer of A (rows) with every layer of B (columns)."""
    rows, columns = scores.shape
    figure, axes = plt.subplots(figsize=(min(1.6 + 0.75 * columns, 9), min(1.4 + 0.6 * rows, 7)), layout="constrained")
    small = rows * columns <= 60
    sns.heatmap(scores, ax=axes, cmap="viridis", annot=small, fmt=".2f", cbar_kws={"label": "mean SVCCA correlation"})
    axes.add_patch(Rectangle((chosen[1], chosen[0]), 1, 1, fill=False, edgecolor=ORANGE, lw=2.5))
    axes.set(xlabel=f"layer of B ({name_b})", ylabel=f"layer of A ({name_a})")
    axes.tick_params(axis="y", rotation=0)
    return figure


def svcca_lines(scores: np.ndarray, *, chosen: tuple[int, int]) -> Figure:
    """Draw Fig. 6 as lines: one for each layer of A over the layers of B, with the stitched pair marked."""
    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    layers = np.arange(scores.shape[1])
    for layer, row in enumerate(scores):
        of_interest = layer == chosen[0]
        color = BLUE if of_interest else GREY
        alpha, lw, zorder = (1, 2, 3) if of_interest else (0.5, 1, 2)
        axes.plot(layers, row, "o-", ms=4, color=color, alpha=alpha, lw=lw, zorder=zorder)
        if of_interest or len(scores) <= 8:  # more labels than that lie on each other
            beside = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(f"A.{layer}", (layers[-1], row[-1]), color=color, **beside)
    axes.plot(chosen[1], scores[chosen], "o", ms=11, mfc="none", mec=ORANGE, mew=2, zorder=4)
    axes.set(xlabel="layer of B", ylabel="mean SVCCA correlation", xticks=layers[:: 1 + len(layers) // 20])
    return figure


def fit_trace(
    tokens: Sequence, seconds: Sequence, losses: Sequence, *, exact_loss: float, exact_seconds: float, exact_tokens: int
) -> Figure:
    """Draw Eq. 3 on held-out text while Adam runs, over tokens and over time, beside the exact fit."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axes, values, at in ((left, tokens, exact_tokens), (right, seconds, exact_seconds)):
        axes.plot(values, losses, "o-", ms=3, color=GREY, label="Adam, the paper's recipe")
        axes.axhline(exact_loss, color=ORANGE, lw=1, ls="--")
        axes.plot(at, exact_loss, "D", color=ORANGE, label="exact, from moments")
        axes.set(xscale="log", yscale="log")
        round_ticks(axes.yaxis)
        axes.xaxis.set_minor_formatter(NullFormatter())
    left.set(xlabel="activations seen (tokens)", ylabel="Eq. 3 on held-out text")
    right.set(xlabel="seconds after the pass over the text")
    right.legend(frameon=False)
    return figure


def cross_entropies(own: Mapping[str, tuple], stitched: Mapping[str, tuple], yardsticks: Mapping[str, float]) -> Figure:
    """Draw Table 1, {condition: estimate}; coloured lines are the models' own losses, {side: estimate}.

    `yardsticks`, {name: loss}, are losses without any network, drawn as dashed lines with their names.
    """
    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    for model, (value, low, high) in own.items():
        axes.axvline(value, color=OF_MODEL[model], lw=1.2, label=f"{model.upper()} itself")
        axes.axvspan(low, high, color=OF_MODEL[model], alpha=0.12, lw=0)
    above = {"xycoords": ("data", "axes fraction"), "xytext": (3, 2), "textcoords": "offset points", "ha": "center"}
    for name, value in yardsticks.items():
        axes.axvline(value, color=GREY, lw=1, ls="--")
        axes.annotate(name, (value, 1), color=GREY, **above)
    rows = {_path(condition): estimate for condition, estimate in stitched.items()}
    interval_rows(axes, rows, [OF_MODEL[CONDITIONS[condition]] for condition in stitched])
    axes.set(xlabel="next-token cross-entropy (nats)")
    axes.legend(**BESIDE)
    return figure


def alpha_sweep(alphas: Sequence[float], losses: Mapping[str, Sequence[tuple]], own: Mapping[str, float]) -> Figure:
    """Draw Fig. 7: cross-entropy of the four conditions, {condition: [estimate at each alpha]}; dashed: round trips."""
    figure, axes = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
    places = _over_alpha(axes, alphas)
    for condition, values in losses.items():
        line, color = "s--" if condition.count("_to_") == 2 else "o-", OF_MODEL[CONDITIONS[condition]]
        intervals(axes, places, values, fmt=line, ms=5, color=color, label=_path(condition))
    for model, value in own.items():
        axes.axhline(value, color=OF_MODEL[model], lw=1, ls=":", label=f"{model.upper()} itself")
    axes.set(ylabel="next-token cross-entropy (nats)")
    axes.legend(**BESIDE)
    return figure


def sae_alpha_sweep(alphas: Sequence[float], delta_losses: Sequence[tuple]) -> Figure:
    """Draw Fig. 7's curve for a transferred SAE: an estimate at each alpha."""
    figure, axes = plt.subplots(figsize=(5.5, 3.2), layout="constrained")
    intervals(axes, _over_alpha(axes, alphas), delta_losses, fmt="o-", ms=5, color=OF_MODEL["b"])
    axes.set(ylabel="delta loss on B (nats)")
    return figure


def _over_alpha(axes: Axes, alphas: Sequence[float]) -> range:
    """Give each alpha a place of its own, so that alpha = 0 has one too; return the places."""
    axes.set_xticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
    axes.set(xlabel="α, weight of the inversion terms")
    return range(len(alphas))
