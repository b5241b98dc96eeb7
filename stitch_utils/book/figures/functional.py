"""Figures of section 5.2 on entropy features and attention deactivation: Figs. 5a, 5b and 16.

Offers `Cloud`, `null_shares` and `first_token_attention`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from .style import BLUE, GREY, ORANGE, PURPLE, panel_row, round_ticks

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
    ylabel = "share of the norm in the null space"
    figure, panels = panel_row([titles[name] for name in clouds], (3.3, 3.3), ylabel, sharey=True)
    for axes, (name, cloud) in zip(panels, clouds.items()):
        chosen = np.asarray(cloud.marked, dtype=bool)
        axes.axhspan(*cloud.chance, color=GREY, alpha=0.25, lw=0)
        axes.plot(cloud.size[~chosen], cloud.share[~chosen], "o", ms=3, alpha=0.5, mew=0, color=OF_TWIN[name])
        axes.plot(cloud.size[chosen], cloud.share[chosen], "o", ms=6, mfc="none", mec=ORANGE, mew=2, zorder=3)
        axes.set(xlabel="largest norm written", ylim=(0, 1.02))
        if len(cloud.size):
            axes.set_xscale("log")
            round_ticks(axes.xaxis, between=(1, 2, 5))
    return figure


def first_token_attention(panels: Mapping[str, Sequence[tuple]], *, titles: Mapping[str, str]) -> Figure:
    """Draw Figs. 5b and 16: attention to the first token with a feature and without it, at tokens where it fires.

    {twin: [(with, without) for each feature]}. Where a point is below the diagonal, the feature raised the attention.
    """
    figure, grid = panel_row([titles[name] for name in panels], (3.2, 3.3), "path ablated", sharey=True)
    for axes, (name, pairs) in zip(grid, panels.items()):
        axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", zorder=1)
        for attended, ablated in pairs:
            axes.plot(attended, ablated, "o", ms=3, alpha=0.5, mew=0, color=OF_TWIN[name])
            if len(attended):
                axes.plot(attended.mean(), ablated.mean(), "D", ms=6, mfc=OF_TWIN[name], mec="white", zorder=3)
        axes.set(xlabel="with the feature", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    return figure
