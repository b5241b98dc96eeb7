"""Figures of section 2 and App. A: Figs. 6 and 7, Table 1 as a picture, and the two ways to fit Eq. 3.

And of the chapter on pairs: how the embedded models were trained, and what they say; and of that on others' maps.

Offers `training_curves`, `language_shares`, `svcca_heatmap`, `svcca_lines`, `fit_trace`, `cross_entropies`,
`alpha_sweep`, `alpha_slider`, `sae_alpha_sweep`, `map_losses`, `layer_map`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from IPython.display import HTML
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullFormatter

from ...stitching.evaluation import CONDITIONS
from .sliders import Board, Panel, slider
from .style import (
    GUIDE,
    MODEL_A,
    MODEL_B,
    NULL,
    OF_MODEL,
    SCALE,
    STITCHED,
    STITCHED_OTHERWISE,
    YARDSTICK,
    figure_of,
    interval_rows,
    intervals,
    legend,
    panel,
    round_ticks,
)

PATHS = {condition: condition.upper().replace("_TO_", " → ") for condition in CONDITIONS}
LOSS, ALPHA = "next-token cross-entropy (nats)", "α, weight of the inversion terms"


def training_curves(models: Mapping[str, Mapping]) -> Figure:
    """Draw the training loss of the embedded models over tokens, from its means over `curve_steps` at a time."""
    axes = panel((6, 3.2), xlabel="training tokens (millions)", ylabel="training loss (nats)", yscale="log")
    for side, model in zip("ab", models.values()):
        until = np.minimum(model["curve_steps"] * np.arange(1, len(model["loss_curve"]) + 1), model["steps"])
        tokens = until * model["batch_size"] * model["context"]
        axes.plot(tokens / 1e6, model["loss_curve"], color=OF_MODEL[side], label=f"model {side.upper()}")
    round_ticks(axes.yaxis)
    return legend(axes)


def language_shares(languages: Sequence[str], shares: Sequence[float], detected: Sequence[tuple]) -> Figure:
    """Draw each language's share of the world's text (left) and of the model's own text in it that is recognised."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.4), sharey=True, layout="constrained")
    left.barh(languages, np.array(shares) * 100, color=GUIDE)
    left.set(xlabel="share of the documents (%)")
    intervals(right, languages, np.array(detected) * 100, sideways=True, color=MODEL_B)
    right.axvline(90, color=GUIDE, lw=1, ls="--")
    right.set(xlabel="continuations of B in the right language (%)", xlim=(None, 101))
    left.invert_yaxis()
    for axes in (left, right):
        axes.grid(axis="y", visible=False)
    return figure


def svcca_heatmap(
    scores: np.ndarray, *, chosen: tuple[int, int], name_a: str, name_b: str, grid: tuple[list[int], list[int]]
) -> Figure:
    """Draw Fig. 6: mean canonical correlation of layers of A (rows) with layers of B (columns), numbered by `grid`."""
    rows, columns = scores.shape
    axes = panel((min(1.6 + 0.75 * columns, 9), min(1.4 + 0.6 * rows, 7)))
    small = rows * columns <= 60
    labels: dict[str, Any] = {"yticklabels": grid[0], "xticklabels": grid[1]}
    if grid == tuple(list(range(n)) for n in scores.shape):
        labels = {}  # seaborn numbers them, and leaves out labels that would lie on each other
    bar = {"label": "mean SVCCA correlation"}
    sns.heatmap(scores, ax=axes, cmap=SCALE, annot=small, fmt=".2f", cbar_kws=bar, **labels)
    row, column = (layers.index(layer) for layers, layer in zip(grid, chosen))
    axes.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor=STITCHED, lw=2.5))
    axes.set(xlabel=f"layer of B ({name_b})", ylabel=f"layer of A ({name_a})")
    axes.tick_params(axis="y", rotation=0)
    return figure_of(axes)


def svcca_lines(scores: np.ndarray, *, chosen: tuple[int, int], grid: tuple[list[int], list[int]]) -> Figure:
    """Draw Fig. 6 as lines: one for each layer of A over the layers of B, with the stitched pair marked."""
    axes = panel((6, 3.4), xlabel="layer of B", ylabel="mean SVCCA correlation")
    layers = np.array(grid[1])
    for layer, row in zip(grid[0], scores):
        color, alpha, lw, zorder = (MODEL_A, 1, 2, 3) if layer == chosen[0] else (GUIDE, 0.5, 1, 2)
        axes.plot(layers, row, "o-", ms=4, color=color, alpha=alpha, lw=lw, zorder=zorder)
        if layer == chosen[0] or len(scores) <= 8:  # more labels than that lie on each other
            beside = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(f"A.{layer}", (layers[-1], row[-1]), color=color, **beside)
    row, column = (layers.index(layer) for layers, layer in zip(grid, chosen))
    axes.plot(chosen[1], scores[row, column], "o", ms=11, mfc="none", mec=STITCHED, mew=2, zorder=4)
    axes.set(xticks=layers[:: 1 + len(layers) // 20])
    return figure_of(axes)


def layer_map(
    scores: np.ndarray, losses: Mapping[int, float], *, chosen: tuple[int, int], grid: tuple[list[int], list[int]]
) -> HTML:
    """Make Fig. 6 a map to click on: its score and, in the row of the stitched layer of A, the loss of A → B.

    `losses`, {layer of B: nats a token}, are of stitches from that layer of A.
    """
    cells = [(a, b) for a in grid[0] for b in grid[1]]
    loss = [losses[b] if a == chosen[0] else "no stitch was fitted between these layers" for a, b in cells]
    panels = [
        Panel("mean SVCCA correlation", {"score": list(map(float, scores.ravel()))}),
        Panel(LOSS, {"A → B": loss}),
    ]
    return slider(
        "layer of A (rows) and layer of B (columns)",
        [f"layer {a} of A, layer {b} of B" for a, b in cells],
        panels,
        colours={"score": NULL, "A → B": MODEL_B},
        start=cells.index(chosen),
        board=Board(scores, *grid, marked=chosen[0]),
    )


def fit_trace(
    tokens: Sequence, seconds: Sequence, losses: Sequence, *, exact_loss: float, exact_seconds: float, exact_tokens: int
) -> Figure:
    """Draw Eq. 3 on held-out text while Adam runs, over tokens and over time, beside the exact fit."""
    _, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axes, values, at in ((left, tokens, exact_tokens), (right, seconds, exact_seconds)):
        axes.plot(values, losses, "o-", ms=3, color=STITCHED_OTHERWISE, label="Adam, the paper's recipe")
        axes.axhline(exact_loss, color=STITCHED, lw=1, ls="--")
        axes.plot(at, exact_loss, "D", color=STITCHED, label="exact, from moments")
        axes.set(xscale="log", yscale="log")
        round_ticks(axes.yaxis)
        axes.xaxis.set_minor_formatter(NullFormatter())
    left.set(xlabel="activations seen (tokens)", ylabel="Eq. 3 on held-out text")
    right.set(xlabel="seconds after the pass over the text")
    return legend(right)


def cross_entropies(
    own: Mapping[str, tuple],
    stitched: Mapping[str, tuple],
    yardsticks: Mapping[str, float],
    *,
    nulls: Mapping[str, Mapping[str, tuple]],
) -> Figure:
    """Draw Table 1, {condition: estimate}; coloured lines are the models' own losses, {side: estimate}.

    `yardsticks`, {name: loss}, are losses without any network, drawn as dashed lines with their names. `nulls`,
    {name: {condition: estimate}}, are those of stitches that know no pairing, in grey.
    """
    axes = panel((7, 3.3), xlabel=LOSS)
    for model, (value, low, high) in own.items():
        axes.axvline(value, color=OF_MODEL[model], lw=1.2, label=f"{model.upper()} itself")
        axes.axvspan(low, high, color=OF_MODEL[model], alpha=0.12, lw=0)
    above = {"xycoords": ("data", "axes fraction"), "xytext": (3, 2), "textcoords": "offset points", "ha": "center"}
    for name, value in yardsticks.items():
        axes.axvline(value, color=YARDSTICK, lw=1, ls="--")
        axes.annotate(name, (value, 1), color=YARDSTICK, **above)
    rows = {PATHS[condition]: estimate for condition, estimate in stitched.items()}
    colors = [OF_MODEL[CONDITIONS[condition]] for condition in stitched]
    rows |= {f"{PATHS[condition]}, {null}": found[condition] for null, found in nulls.items() for condition in found}
    colors += [NULL] * (len(rows) - len(colors))
    interval_rows(axes, rows, colors)
    return legend(axes, "beside")


def alpha_sweep(alphas: Sequence[float], losses: Mapping[str, Sequence[tuple]], own: Mapping[str, float]) -> Figure:
    """Draw Fig. 7: cross-entropy of the four conditions, {condition: [estimate at each alpha]}; dashed: round trips."""
    axes = panel((6.5, 3.8), xlabel=ALPHA, ylabel=LOSS)
    names = [f"{alpha:g}" for alpha in alphas]  # as numbers, alpha = 0 would crowd the others
    for condition, values in losses.items():
        line, color = "s--" if condition.count("_to_") == 2 else "o-", OF_MODEL[CONDITIONS[condition]]
        intervals(axes, names, values, fmt=line, ms=5, color=color, label=PATHS[condition])
    for model, value in own.items():
        axes.axhline(value, color=OF_MODEL[model], lw=1, ls=":", label=f"{model.upper()} itself")
    return legend(axes, "beside")


def alpha_slider(
    alphas: Sequence[float], losses: Mapping[str, Sequence], rises: Mapping[str, Sequence], *, start: float
) -> HTML:
    """Make a slider over alpha of the losses and of their rises over the host's own, {condition: estimates}."""
    panels = [
        Panel(title, {PATHS[condition]: found for condition, found in values.items()}, is_rise)
        for title, values, is_rise in ((LOSS, losses, False), ("rise over the host's own", rises, True))
    ]
    colours = {PATHS[condition]: OF_MODEL[model] for condition, model in CONDITIONS.items()}
    at = list(alphas).index(start) if start in alphas else 0
    return slider("α", [f"{alpha:g}" for alpha in alphas], panels, colours=colours, start=at)


def sae_alpha_sweep(alphas: Sequence[float], delta_losses: Sequence[tuple]) -> Figure:
    """Draw Fig. 7's curve for a transferred SAE: an estimate at each alpha."""
    axes = panel((5.5, 3.2), xlabel=ALPHA, ylabel="delta loss on B (nats)")
    intervals(axes, [f"{alpha:g}" for alpha in alphas], delta_losses, fmt="o-", ms=5, color=OF_MODEL["b"])
    return figure_of(axes)


def map_losses(
    losses: Mapping[str, Mapping[str, tuple]],
    own: Mapping[str, float],
    yardsticks: Mapping[str, Mapping[str, float]],
    *,
    nulls: Sequence[str],
) -> Figure:
    """Draw what each map costs its host, {model that comes last: {title: estimate}}; the first is dotted through.

    `own` is the host's own loss, a line in its colour; `yardsticks`, {model: {name: loss}}, are dashed. Maps that a
    good one has to beat, `nulls`, are grey.
    """
    size = (9.5, 0.6 + 0.27 * len(next(iter(losses.values()))))
    figure, panels = plt.subplots(1, len(losses), figsize=size, sharey=True, layout="constrained")
    above = {"xycoords": ("data", "axes fraction"), "xytext": (0, 2), "textcoords": "offset points", "ha": "center"}
    for axes, (model, values) in zip(panels, losses.items()):
        interval_rows(axes, values, [NULL if title in nulls else OF_MODEL[model] for title in values], ms=5)
        axes.axvline(own[model], color=OF_MODEL[model], lw=1.2)
        axes.axvline(next(iter(values.values()))[0], color=STITCHED, lw=1, ls=":")
        for name, value in yardsticks[model].items():
            axes.axvline(value, color=YARDSTICK, lw=1, ls="--")
            axes.annotate(name, (value, 1), color=YARDSTICK, fontsize="small", **above)
        axes.set(xlabel=f"{LOSS}, {'B → A' if model == 'a' else 'A → B'}")
    return figure
