"""Figures of the chapter on pairs: how the embedded models were trained, and what they say (no section of its own).

Offers `training_curves` and `language_shares`.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from .style import GREY, OF_MODEL, ORANGE, PURPLE, intervals, round_ticks


def training_curves(models: Mapping[str, Mapping]) -> Figure:
    """Draw the training loss of the embedded models over tokens, from what was recorded every 25 steps."""
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for side, model in zip("ab", models.values()):
        tokens = 25 * model["batch_size"] * model["context"] * np.arange(1, len(model["loss_curve"]) + 1)
        axes.plot(tokens / 1e6, model["loss_curve"], color=OF_MODEL[side], label=f"model {side.upper()}")
    axes.set(xlabel="training tokens (millions)", ylabel="training loss (nats)", yscale="log")
    round_ticks(axes.yaxis)
    axes.legend(frameon=False)
    return figure


def language_shares(languages: Sequence[str], shares: Sequence[float], detected: Sequence[tuple]) -> Figure:
    """Draw each language's share of the world's text (left) and of the model's own text in it that is recognised."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.4), sharey=True, layout="constrained")
    places = range(len(languages))
    left.barh(places, np.array(shares) * 100, color=GREY)
    left.set(xlabel="share of the documents (%)", yticks=places, yticklabels=languages)
    intervals(right, places, np.array(detected) * 100, sideways=True, color=PURPLE)
    right.axvline(90, color=ORANGE, lw=1, ls="--")
    right.set(xlabel="continuations of B in the right language (%)", xlim=(None, 101))
    left.invert_yaxis()
    for axes in (left, right):
        axes.grid(axis="y", visible=False)
    return figure
