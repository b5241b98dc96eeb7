"""The book's figures. No numbers are computed here: each function draws what it is given and returns the figure.

Colours follow the paper's Table 1: blue for model A, purple for model B.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ...stitching.evaluation import CONDITIONS

BLUE, PURPLE, GREY, ORANGE = "#2f6db3", "#7b3f9d", "#9a9a9a", "#d1731f"
OF_MODEL = {"a": BLUE, "b": PURPLE}
OF_START = {"scratch": GREY, "stitch": ORANGE, "rotation": "#3f8f5f"}
CONDITION_LABELS = {"a_to_b": "A → B", "b_to_a": "B → A", "a_to_b_to_a": "A → B → A", "b_to_a_to_b": "B → A → B"}


def set_style() -> None:
    """One look for every figure; call once at the head of a chapter."""
    sns.set_theme(context="notebook", style="whitegrid", font_scale=0.9)
    # Text stays text in the page's SVG, so that it can be searched and read aloud.
    plt.rcParams.update(
        {"figure.dpi": 110, "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}
    )


def legend_below(figure: Figure, axes, *, columns: int = 3) -> None:
    """One legend for all panels, which leaves them the width of the page."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=columns)


def whiskers(value, low, high) -> np.ndarray:
    """(2, n): how far intervals reach below and above. A bootstrap's may leave its estimate out, of few samples or by
    rounding, and then reaches to it on that side."""
    return np.maximum(0, [np.atleast_1d(value - low), np.atleast_1d(high - value)])


def svcca_heatmap(scores: np.ndarray, *, chosen: tuple[int, int], name_a: str, name_b: str) -> Figure:
    """Fig. 6: mean canonical correlation of every layer of A (rows) with every layer of B (columns)."""
    rows, columns = scores.shape
    figure, axes = plt.subplots(figsize=(min(1.6 + 0.75 * columns, 9), min(1.4 + 0.6 * rows, 7)), layout="constrained")
    small = rows * columns <= 60
    sns.heatmap(scores, ax=axes, cmap="viridis", annot=small, fmt=".2f", cbar_kws={"label": "mean SVCCA correlation"})
    axes.add_patch(plt.Rectangle((chosen[1], chosen[0]), 1, 1, fill=False, edgecolor=ORANGE, lw=2.5))
    axes.set(xlabel=f"layer of B ({name_b})", ylabel=f"layer of A ({name_a})")
    axes.tick_params(axis="y", rotation=0)
    return figure


def svcca_lines(scores: np.ndarray, *, chosen: tuple[int, int]) -> Figure:
    """Fig. 6 as lines: one for each layer of A over the layers of B, the stitched pair marked."""
    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    layers = np.arange(scores.shape[1])
    for layer, row in enumerate(scores):
        of_interest = layer == chosen[0]
        axes.plot(
            layers,
            row,
            "o-",
            ms=4,
            color=BLUE if of_interest else GREY,
            alpha=1 if of_interest else 0.5,
            lw=2 if of_interest else 1,
            zorder=3 if of_interest else 2,
        )
        if of_interest or len(scores) <= 8:  # more labels than that lie on each other
            axes.annotate(
                f"A.{layer}",
                (layers[-1], row[-1]),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                color=BLUE if of_interest else GREY,
            )
    axes.plot(chosen[1], scores[chosen], "o", ms=11, mfc="none", mec=ORANGE, mew=2, zorder=4)
    axes.set(xlabel="layer of B", ylabel="mean SVCCA correlation", xticks=layers[:: 1 + len(layers) // 20])
    return figure


def fit_trace(
    tokens: Sequence[float],
    seconds: Sequence[float],
    losses: Sequence[float],
    *,
    exact_loss: float,
    exact_seconds: float,
    exact_tokens: int,
) -> Figure:
    """Eq. 3 on held-out text while Adam runs, over tokens and over time, beside the exact fit."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axes, values, at in ((left, tokens, exact_tokens), (right, seconds, exact_seconds)):
        axes.plot(values, losses, "o-", ms=3, color=GREY, label="Adam, the paper's recipe")
        axes.axhline(exact_loss, color=ORANGE, lw=1, ls="--")
        axes.plot(at, exact_loss, "D", color=ORANGE, label="exact, from moments")
        axes.set(xscale="log", yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8)))
        axes.yaxis.set_major_formatter("{x:g}")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(NullFormatter())
    left.set(xlabel="activations seen (tokens)", ylabel="Eq. 3 on held-out text")
    right.set(xlabel="seconds after the pass over the text")
    right.legend(frameon=False)
    return figure


def cross_entropies(own: Mapping[str, tuple], stitched: Mapping[str, tuple], yardsticks: Mapping[str, float]) -> Figure:
    """Table 1 as a picture: (value, low, high) of each condition; coloured lines are the models' own losses.

    `own` is keyed by "a" and "b"; `yardsticks` are losses without any network, drawn as dashed lines with their names.
    """
    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    for model, (value, low, high) in own.items():
        axes.axvline(value, color=OF_MODEL[model], lw=1.2, label=f"{model.upper()} itself")
        axes.axvspan(low, high, color=OF_MODEL[model], alpha=0.12, lw=0)
    for name, value in yardsticks.items():
        axes.axvline(value, color=GREY, lw=1, ls="--")
        axes.annotate(
            name,
            (value, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, 2),
            textcoords="offset points",
            ha="center",
            color=GREY,
        )
    for y, (name, (value, low, high)) in enumerate(stitched.items()):
        color = OF_MODEL[CONDITIONS[name]]
        axes.errorbar(value, y, xerr=whiskers(value, low, high), fmt="o", color=color, capsize=3)
    axes.set_yticks(range(len(stitched)), [CONDITION_LABELS[name] for name in stitched])
    axes.set(xlabel="next-token cross-entropy (nats)")
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def alpha_sweep(alphas: Sequence[float], losses: Mapping[str, Sequence[tuple]], own: Mapping[str, float]) -> Figure:
    """Fig. 7: cross-entropy of the four conditions, (value, low, high) at each alpha; alpha = 0 has a place of its
    own."""
    figure, axes = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
    positions = range(len(alphas))
    styles = {"a_to_b": "o-", "b_to_a": "o-", "a_to_b_to_a": "s--", "b_to_a_to_b": "s--"}
    for name, values in losses.items():
        middle, low, high = (np.array(part) for part in zip(*values))
        axes.errorbar(
            positions,
            middle,
            yerr=whiskers(middle, low, high),
            fmt=styles[name],
            ms=5,
            capsize=3,
            color=OF_MODEL[CONDITIONS[name]],
            label=CONDITION_LABELS[name],
        )
    for model, value in own.items():
        axes.axhline(value, color=OF_MODEL[model], lw=1, ls=":", label=f"{model.upper()} itself")
    axes.set_xticks(positions, [f"{alpha:g}" for alpha in alphas])
    axes.set(xlabel="α, weight of the inversion terms", ylabel="next-token cross-entropy (nats)")
    axes.legend(frameon=False, ncols=1, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def training_curves(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Training loss of the embedded models over tokens: {"a": (tokens, losses), "b": ...}."""
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for model, (tokens, losses) in curves.items():
        axes.plot(np.array(tokens) / 1e6, losses, color=OF_MODEL[model], label=f"model {model.upper()}")
    axes.set(xlabel="training tokens (millions)", ylabel="training loss (nats)", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False)
    return figure


def language_shares(languages: Sequence[str], shares: Sequence[float], detected: Sequence[tuple]) -> Figure:
    """Share of each language in the world's text (left), and how often the model's own text is recognised as it
    (right)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.4), sharey=True, layout="constrained")
    places = range(len(languages))
    left.barh(places, np.array(shares) * 100, color=GREY)
    left.set(xlabel="share of the documents (%)", yticks=places, yticklabels=languages)
    middle, low, high = (np.array(part) * 100 for part in zip(*detected))
    right.errorbar(middle, places, xerr=whiskers(middle, low, high), fmt="o", color=PURPLE, capsize=3)
    right.axvline(90, color=ORANGE, lw=1, ls="--")
    right.set(xlabel="continuations of B in the right language (%)", xlim=(None, 101))
    left.invert_yaxis()
    for axes in (left, right):
        axes.grid(axis="y", visible=False)
    return figure


def sae_metrics(metrics: Mapping[str, tuple[tuple, tuple]], *, on_a: Sequence[str]) -> Figure:
    """Table 2 as a picture: {name: (FUV, delta loss)}, each (value, low, high); colour: the model that it runs on."""
    figure, panels = plt.subplots(1, 2, figsize=(8.5, 2.8), sharey=True, layout="constrained")
    titles = ("fraction of unexplained variance", "delta loss (nats)")
    for axes, title, column in zip(panels, titles, zip(*metrics.values())):
        for y, (name, (value, low, high)) in enumerate(zip(metrics, column)):
            color = OF_MODEL["a" if name in on_a else "b"]
            axes.errorbar(value, y, xerr=whiskers(value, low, high), fmt="o", color=color, capsize=3)
        axes.set(xlabel=title, xlim=(0, None))
        axes.grid(axis="y", visible=False)
    panels[0].axvline(1, color=GREY, lw=1, ls="--")
    panels[0].set_yticks(range(len(metrics)), list(metrics))
    panels[0].invert_yaxis()
    return figure


def sae_alpha_sweep(alphas: Sequence[float], delta_losses: Sequence[tuple]) -> Figure:
    """Fig. 7's curve for a transferred SAE: (value, low, high) at each alpha; alpha = 0 has a place of its own."""
    figure, axes = plt.subplots(figsize=(5.5, 3.2), layout="constrained")
    middle, low, high = (np.array(part) for part in zip(*delta_losses))
    positions = range(len(alphas))
    axes.errorbar(positions, middle, yerr=whiskers(middle, low, high), fmt="o-", ms=5, capsize=3, color=OF_MODEL["b"])
    axes.set_xticks(positions, [f"{alpha:g}" for alpha in alphas])
    axes.set(xlabel="α, weight of the inversion terms", ylabel="delta loss on B (nats)")
    return figure


def sae_curves(runs: Mapping[str, Sequence], *, extra: Mapping[str, float]) -> Figure:
    """Held-out explained variance of SAEs in training over FLOPs and over seconds: {start: one Curve a seed}.

    `extra` are FLOPs to be added to those of a start.
    """
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
    """Fig. 2a: {width: {explained variance: (value, low, high)}}."""
    figure, axes = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
    shades = sns.color_palette("flare", len(savings))
    for color, (width, values) in zip(shades, savings.items()):
        if values:
            middle, low, high = (np.array(part) for part in zip(*values.values()))
            axes.errorbar(
                list(values),
                middle,
                yerr=whiskers(middle, low, high),
                fmt="o-",
                ms=4,
                capsize=3,
                color=color,
                label=f"{width} latents",
            )
    axes.axhline(0, color=GREY, lw=1, ls="--")
    axes.set(xlabel="explained variance to reach", ylabel="FLOPs saved")
    axes.yaxis.set_major_formatter("{x:.0%}")
    if any(savings.values()):
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def scaling_laws(
    runs: Mapping[str, Sequence], laws: Mapping[str, Callable], flops: Sequence[float], *, extra: Mapping[str, float]
) -> Figure:
    """Fig. 1c: held-out error of all runs (thin) and the fitted law (thick) of each start, over `flops`."""
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
    """Fig. 2b: cosine of decoder rows at the end of training to themselves at the start, a histogram a start."""
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    bins = np.linspace(min(0, min(map(min, values.values()))), 1, 41)
    for start, found in values.items():
        axes.hist(found, bins=bins, density=True, histtype="step", lw=1.8, color=OF_START[start], label=f"from {start}")
    axes.set(xlabel="cosine to the direction at the start", ylabel="density")
    axes.legend(frameon=False, loc="upper left")
    return figure
