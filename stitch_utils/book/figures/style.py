"""The look that all figures share, and how estimates and panels are drawn (no section of its own).

A colour has one meaning in the whole book, and a figure takes it from here by its meaning. They follow the paper's
Table 1, blue for model A and purple for model B, and the colour-blind can tell each from every other. What the papers
print is hollow or dashed as well. `book/_static/book.css` has the same colours for the front page.

Offers the colours, `OF_MODEL` and `OF_START`, which choose among them, the maps `BETWEEN` and `SCALE`, and `set_style`,
`panel`, `panel_row`, `panel_grid`, `figure_of`, `legend`, `intervals`, `interval_rows`, `round_ticks`.
"""

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib_inline.config import InlineBackend

MODEL_A = "#4a90d9"  # of A, or finished by A
MODEL_B = "#7b3f9d"  # of B, or finished by B
STITCHED = "#d1731f"  # carried across by the stitch, or chosen for it
STITCHED_OTHERWISE = "#8a2a0a"  # carried in another way: retrained, with the bias, by a stitch of other text
NULL = "#8e8e8e"  # knows nothing: random, shuffled
COMPONENTS = "#7d6d58"  # the null that knows principal components and no pairing
COMPONENTS_RETRAINED = "#cfb98f"  # the same, retrained
YARDSTICK = "#004f38"  # what needs no transfer: counts of tokens, instructions in the prompt
PUBLISHED = "#222222"  # what the papers print or prescribe
STRUCTURAL = "#0b4f6c"  # of structural features
SEMANTIC = "#d9ad00"  # of semantic features
GUIDE = "#616161"  # no data: lines to read by, and their names
GROUND = "#ffffff"  # of the figures
BETWEEN: Any = sns.blend_palette([STITCHED, STITCHED_OTHERWISE], as_cmap=True)  # several of what is carried
SCALE = "viridis"  # of a map of numbers
OF_MODEL = {"a": MODEL_A, "b": MODEL_B}
# From scratch is B's own way; a rotation of A's SAE knows nothing of B.
OF_START = {"scratch": MODEL_B, "stitch": STITCHED, "rotation": NULL}


def set_style() -> None:
    """Give every figure one look, and draw it as SVG on a page; call it once at the head of a chapter."""
    # Text stays text in the page's SVG, so that it can be searched and read aloud.
    settings = {"figure.dpi": 110, "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}
    settings["svg.hashsalt"] = "stitch"  # two runs draw one file
    sns.set_theme(style="whitegrid", font_scale=0.9, rc=settings)
    if (shell := get_ipython()) is not None:
        inline = InlineBackend.instance(parent=shell)
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of the backend's own handlers
            inline.print_figure_kwargs = {**inline.print_figure_kwargs, "metadata": {"Date": None}}
            inline.figure_formats = {"svg"}


def panel(size: tuple, **settings: Any) -> Axes:
    """Make a figure of `size` (width, height) in inches with one panel, and give that `settings` of `Axes.set`."""
    axes = plt.subplots(figsize=size, layout="constrained")[1]
    axes.set(**settings)
    return axes


def panel_row(titles: Collection[str], size: tuple, ylabel: str, **shared: Any) -> list[Axes]:
    """Make a row of panels, each of `size` (width, height) in inches, under their titles; `ylabel` is at the first."""
    shape = (size[0] * len(titles), size[1])
    _, grid = plt.subplots(1, len(titles), figsize=shape, squeeze=False, layout="constrained", **shared)
    for axes, title in zip(grid[0], titles):
        axes.set_title(title)
    grid[0, 0].set_ylabel(ylabel)
    return list(grid[0])


def panel_grid(titles: Collection[str], size: tuple, labels: tuple, *, sharey: bool = False) -> list[Axes]:
    """Make panels of `size` (width, height) in inches, at most four in a row, with `labels` (x, y) for all of them."""
    columns = min(4, len(titles))
    rows = -(-len(titles) // columns)
    options = {"figsize": (size[0] * columns + 0.4, size[1] * rows + 0.6), "layout": "constrained"}
    figure, grid = plt.subplots(rows, columns, sharex=True, sharey=sharey, squeeze=False, **options)
    for place, (axes, title) in enumerate(zip(grid.flat, titles)):
        axes.set_title(title, fontsize="medium")
        if place + columns >= len(titles):
            axes.set_xlabel(labels[0])
            axes.tick_params(labelbottom=True)  # a panel above an empty place is the last of its column
    for axes in grid.flat[len(titles) :]:
        axes.set_visible(False)
    figure.supylabel(labels[1], fontsize="medium")
    return list(grid.flat[: len(titles)])


def figure_of(axes: Axes) -> Figure:
    """Return the figure that a panel is in."""
    return cast(Figure, axes.figure)


def legend(axes: Axes, place: str = "best", **options: Any) -> Figure:
    """Draw a legend and return the figure.

    `place` is one of matplotlib's within the panel, `beside` it, or `below` all panels, to leave them the page's width.
    """
    if place == "below":
        handles, labels = axes.get_legend_handles_labels()
        axes.figure.legend(handles, labels, frameon=False, **{"loc": "outside lower center", "ncols": 3} | options)
    else:
        where = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if place == "beside" else {"loc": place}
        axes.legend(frameon=False, **where, **options)
    return figure_of(axes)


def intervals(axes: Axes, places: Iterable, estimates: Iterable, *, sideways: bool = False, **style: Any) -> None:
    """Draw estimates at `places` along x, or with `sideways` at `places` along y; names stand at 0, 1, ..."""
    value, low, high = (np.array(part) for part in zip(*estimates))
    # A bootstrap's interval may leave its estimate out, with few samples or by rounding; then it ends at the estimate.
    reach = np.maximum(0, [value - low, high - value])
    across = (value, list(places)) if sideways else (list(places), value)
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
