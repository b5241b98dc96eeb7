"""A figure with a choice: a slider, or a map to click on, over what a chapter has computed (no section of its own).

Bars show the numbers of the chosen position, each panel on one scale for all positions. The page, `sliders.html` with
its data put in, chooses and draws; texts and places are made here. It needs no server and no library.

Offers `slider`, `Panel` and `Board`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from IPython.display import HTML
from matplotlib.colors import Normalize, to_hex

from ..digits import percent, with_interval
from .style import MODEL_A, MODEL_B, NULL, SCALE, STITCHED

Shown = tuple[float, float, float] | float | str  # an estimate, a number without an interval, or words in its place
# The names under which `book/_static/book.css` has a colour, with a lighter one by night.
BY_NIGHT = {MODEL_A: "--model-a", MODEL_B: "--model-b", STITCHED: "--stitched", NULL: "--null"}


class Panel(NamedTuple):
    """Bars on one scale, which includes 0."""

    title: str
    rows: Mapping[str, Sequence[Shown]]
    """{name: what is shown at each position}."""
    is_percent: bool = False
    """Whether estimates are relative changes, written in percent."""


class Board(NamedTuple):
    """A map in place of the slider: its cells, row by row, are the positions."""

    scores: np.ndarray
    """(rows, columns): what colours the cells."""
    rows: Sequence[int]
    columns: Sequence[int]
    marked: int
    """Which of `rows` has a frame."""


def slider(
    label: str,
    positions: Sequence[str],
    panels: Sequence[Panel],
    *,
    colours: Mapping[str, str],
    start: int = 0,
    board: Board | None = None,
) -> HTML:
    """Make the figure of `panels`, in the `colours` of their rows, that shows one of `positions` at a time.

    It opens at the position with the number `start`. ValueError for a row that has not one entry for each position.
    """
    for panel in panels:
        for name, row in panel.rows.items():
            if len(row) != len(positions):
                raise ValueError(f"{panel.title}, {name}: {len(row)} entries for {len(positions)} positions")
    colours = {name: f"var({BY_NIGHT[c]}, {c})" if c in BY_NIGHT else c for name, c in colours.items()}
    data = {"label": label, "positions": list(positions), "start": start}
    data["panels"] = [_panel(panel, colours) for panel in panels]
    if board:
        ground = mpl.colormaps[SCALE](Normalize()(board.scores.ravel()))
        data["board"] = {"rows": list(board.rows), "columns": list(board.columns), "marked": board.marked}
        data["board"] |= {"colours": list(map(to_hex, ground)), "frame": f"var(--stitched, {STITCHED})"}
    # "</" would end the script element.
    inside = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("</", "<\\/")
    page = Path(__file__).with_name("sliders.html").read_text(encoding="utf-8")
    name = f"slider-{hashlib.sha256(inside.encode()).hexdigest()[:12]}"
    return HTML(page.replace("@ID@", name).replace("@DATA@", inside))


def _panel(panel: Panel, colours: Mapping[str, str]) -> dict[str, Any]:
    """Write the entries of a panel, and say where in percent of the scale 0, its bars and their intervals lie."""
    numbers = [np.ravel(one) for row in panel.rows.values() for one in row if not isinstance(one, str)]
    reach = np.concatenate([[0.0], *numbers])
    scale = 100 / ((reach.max() - reach.min()) or 1.0)

    def entry(one: Shown) -> dict[str, Any]:
        if isinstance(one, str):
            return {"text": one}
        ends = np.ravel(one).tolist()
        known: dict[str, float] = dict(zip(("", ".low", ".high"), ends))
        text = percent((ends[0], ends[1], ends[2])) if panel.is_percent else with_interval(known, "")
        return {"text": text, "at": [round(scale * (end - reach.min()), 2) for end in ends]}

    rows = [
        {"name": name, "colour": colours[name], "entries": list(map(entry, row))} for name, row in panel.rows.items()
    ]
    return {"title": panel.title, "zero": round(-scale * reach.min(), 2), "rows": rows}
