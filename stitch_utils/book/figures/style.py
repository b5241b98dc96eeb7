"""The look that all figures share, and how estimates and panels are drawn (no section of its own).

Colours follow the paper's Table 1: blue for model A, purple for model B.

Offers the colours `BLUE`, `PURPLE`, `GREY`, `ORANGE`, `OF_MODEL` and `OF_START`, the place `BESIDE` of a legend, and
`set_style`, `panel_row`, `panel_grid`, `legend_below`, `whiskers`, `intervals`, `interval_rows`, `round_ticks`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
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
BESIDE = {"frameon": False, "loc": "center left", "bbox_to_anchor": (1, 0.5)}


def set_style() -> None:
    """Give every figure one look; call it once at the head of a chapter."""
    sns.set_theme(context="notebook", style="whitegrid", font_scale=0.9)
    # Text stays text in the page's SVG, so that it can be searched and read aloud.
    plt.rcParams.update(
        {"figure.dpi": 110, "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}
    )


def panel_row(titles: Collection[str], size: tuple, ylabel: str, **shared: Any) -> tuple[Figure, list[Axes]]:
    """Make a row of panels, each of `size` (width, height) in inches, under their titles; `ylabel` is at the first."""
    shape = (size[0] * len(titles), size[1])
    figure, grid = plt.subplots(1, len(titles), figsize=shape, squeeze=False, layout="constrained", **shared)
    for axes, title in zip(grid[0], titles):
        axes.set_title(title)
    grid[0, 0].set_ylabel(ylabel)
    return figure, list(grid[0])


def panel_grid(titles: Collection[str], size: tuple, labels: tuple, **shared: Any) -> tuple[Figure, list[Axes]]:
    """Make panels of `size` (width, height) in inches, at most four in a row, with `labels` (x, y) for all of them."""
    columns = min(4, len(titles))
    rows = -(-len(titles) // columns)
    shape = (size[0] * columns + 0.4, size[1] * rows + 0.6)
    options = {"sharex": True, "squeeze": False, "layout": "constrained"} | shared
    figure, grid = plt.subplots(rows, columns, figsize=shape, **options)
    for place, (axes, title) in enumerate(zip(grid.flat, titles)):
        axes.set_title(title, fontsize="medium")
        if place + columns >= len(titles):
            axes.set_xlabel(labels[0])
            axes.tick_params(labelbottom=True)  # a panel above an empty place is the last of its column
    for axes in grid.flat[len(titles) :]:
        axes.set_visible(False)
    figure.supylabel(labels[1], fontsize="medium")
    return figure, list(grid.flat[: len(titles)])


def legend_below(figure: Figure, axes: Axes, *, columns: int = 3) -> Figure:
    """Draw one legend below all panels, which leaves them the width of the page, and return the figure."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=columns)
    return figure


def whiskers(value, low, high) -> np.ndarray:
    """Return how far intervals reach below and above their estimates, (2, n).

    A bootstrap's interval may leave its estimate out, with few samples or by rounding; then it ends at the estimate.
    """
    return np.maximum(0, [np.atleast_1d(value - low), np.atleast_1d(high - value)])


def intervals(
    axes: Axes, places: Sequence | np.ndarray, estimates: Iterable[tuple], *, sideways: bool = False, **style: Any
) -> None:
    """Draw estimates at `places` along x, or with `sideways` at `places` along y."""
    value, low, high = (np.array(part) for part in zip(*estimates))
    reach = whiskers(value, low, high)
    across = (value, places) if sideways else (places, value)
    axes.errorbar(*across, **{"xerr" if sideways else "yerr": reach}, **{"fmt": "o", "capsize": 3} | style)


def interval_rows(axes: Axes, estimates: Mapping[str, tuple], colors: Iterable[str], **style: Any) -> None:
    """Draw each estimate in a row of its own and colour, the first on top, and name the rows."""
    for y, (estimate, color) in enumerate(zip(estimates.values(), colors)):
        intervals(axes, [y], [estimate], sideways=True, color=color, **style)
    axes.set_yticks(range(len(estimates)), list(estimates))
    axes.set_ylim(len(estimates) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def round_ticks(axis: Axis, *, between: Sequence[float] = (1, 1.5, 2, 3, 4, 5, 6, 8)) -> None:
    """Label a logarithmic axis at round numbers, `between` times powers of ten, and nowhere else."""
    axis.set_major_locator(LogLocator(subs=between))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
