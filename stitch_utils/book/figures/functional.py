"""Figures of section 5.2 on entropy features and attention deactivation: Figs. 5a, 5b and 16.

Offers `Cloud`, `null_shares` and `first_token_attention`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from .style import BLUE, GREY, ORANGE, PURPLE, round_ticks

OF_TWIN = {"before": BLUE, "after": PURPLE, "random": GREY}


class Cloud(NamedTuple):
    """All features of one SAE that fire."""

    size: np.ndarray
    """The largest norm that each feature writes."""
    share: np.ndarray
    """The share of its norm in the null space."""
    marked: Sequence[bool]
    """Whether a feature is to be pointed out."""
    chance: tuple[float, float]
    """The bounds of the middle 95% of random directions."""


def null_shares(clouds: Mapping[str, Cloud], *, titles: Mapping[str, str]) -> Figure:
    """Draw Fig. 5a: share of the norm in the unembedding's null space against size, a panel for each SAE."""
    size = (3.3 * len(clouds), 3.3)
    figure, panels = plt.subplots(1, len(clouds), figsize=size, sharey=True, layout="constrained", squeeze=False)
    for axes, (name, cloud) in zip(panels[0], clouds.items()):
        chosen = np.asarray(cloud.marked, dtype=bool)
        axes.axhspan(*cloud.chance, color=GREY, alpha=0.25, lw=0)
        axes.plot(cloud.size[~chosen], cloud.share[~chosen], "o", ms=3, alpha=0.5, mew=0, color=OF_TWIN[name])
        axes.plot(cloud.size[chosen], cloud.share[chosen], "o", ms=6, mfc="none", mec=ORANGE, mew=2, zorder=3)
        axes.set(title=titles[name], xlabel="largest norm written", ylim=(0, 1.02))
        if len(cloud.size):
            axes.set_xscale("log")
            round_ticks(axes.xaxis, between=(1, 2, 5))
    panels[0, 0].set_ylabel("share of the norm in the null space")
    return figure


def first_token_attention(
    panels: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]], *, titles: Mapping[str, str]
) -> Figure:
    """Draw Figs. 5b and 16: attention to the first token, (with the feature, without it) for each token where it
    fires.

    Several pairs in a panel are several features. Points below the diagonal: the feature raised it.
    """
    size = (3.2 * len(panels), 3.3)
    figure, grid = plt.subplots(1, len(panels), figsize=size, sharey=True, layout="constrained", squeeze=False)
    for axes, (name, pairs) in zip(grid[0], panels.items()):
        axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", zorder=1)
        for attended, ablated in pairs:
            axes.plot(attended, ablated, "o", ms=3, alpha=0.5, mew=0, color=OF_TWIN[name])
            if len(attended):
                axes.plot(attended.mean(), ablated.mean(), "D", ms=6, mfc=OF_TWIN[name], mec="white", zorder=3)
        axes.set(title=titles[name], xlabel="with the feature", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    grid[0, 0].set_ylabel("path ablated")
    return figure
