"""The look that all figures share, and how an estimate with its interval is drawn (no section of its own).

Each module of this folder draws the figures of one chapter. No numbers are computed here: a function draws what it is
given and returns the figure. Colours follow the paper's Table 1: blue for model A, purple for model B.

Offers the colours `BLUE`, `PURPLE`, `GREY`, `ORANGE`, `OF_MODEL` and `OF_START`, and `set_style`, `legend_below`,
`whiskers`, `intervals`, `round_ticks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

BLUE, PURPLE, GREY, ORANGE = "#2f6db3", "#7b3f9d", "#9a9a9a", "#d1731f"
OF_MODEL = {"a": BLUE, "b": PURPLE}
OF_START = {"scratch": GREY, "stitch": ORANGE, "rotation": "#3f8f5f"}


def set_style() -> None:
    """Give every figure one look; call it once at the head of a chapter."""
    sns.set_theme(context="notebook", style="whitegrid", font_scale=0.9)
    # Text stays text in the page's SVG, so that it can be searched and read aloud.
    plt.rcParams.update(
        {"figure.dpi": 110, "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}
    )


def legend_below(figure: Figure, axes: Axes, *, columns: int = 3) -> None:
    """Draw one legend below all panels, which leaves them the width of the page."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=columns)


def whiskers(value, low, high) -> np.ndarray:
    """Return how far intervals reach below and above their estimates, (2, n).

    A bootstrap's interval may leave its estimate out, with few samples or by rounding; then it ends at the estimate.
    """
    return np.maximum(0, [np.atleast_1d(value - low), np.atleast_1d(high - value)])


def intervals(
    axes: Axes, places: Sequence | np.ndarray, estimates: Iterable[tuple], *, sideways: bool = False, **style: Any
) -> None:
    """Draw estimates (value, low, high) at `places`: upwards, or with `sideways` along x, with the places along y."""
    value, low, high = (np.array(part) for part in zip(*estimates))
    reach = whiskers(value, low, high)
    across = (value, places) if sideways else (places, value)
    axes.errorbar(*across, **{"xerr" if sideways else "yerr": reach}, **{"fmt": "o", "capsize": 3} | style)


def round_ticks(axis: Axis, *, between: Sequence[float] = (1, 1.5, 2, 3, 4, 5, 6, 8)) -> None:
    """Label a logarithmic axis at round numbers, `between` times powers of ten, and nowhere else."""
    axis.set_major_locator(LogLocator(subs=between))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
