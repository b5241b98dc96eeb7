"""What all figures share."""

import ast
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import print_figure
from matplotlib import rc_context
from matplotlib.colors import is_color_like, to_rgb

from stitch_utils.book.figures import style
from stitch_utils.book.figures.style import intervals, legend, panel

FIGURES = Path(style.__file__).parent
STYLESHEET = FIGURES.parents[2] / "book" / "_static" / "book.css"
PALETTE = {name: value for name, value in vars(style).items() if re.fullmatch("#[0-9a-f]{6}", str(value))}
TAKES_COLOUR = {"c", "color", "colors", "ecolor", "mec", "mfc", "edgecolor", "facecolor", "cmap", "palette"}
# Linear RGB as the two common kinds of colour blindness see it (Vienot, Brettel and Mollon, 1999).
SEEN = {
    "all": np.eye(3),
    "protanopia": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "deuteranopia": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
}
TO_XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
LEAST = 12  # in CIELAB, where about 2 can just be told

# Within its interval, below it and above it.
ESTIMATES = [(1.0, 0.5, 3.0), (1.0, 1.25, 1.5), (3.0, 1.0, 2.0)]


@pytest.mark.parametrize("sideways", [False, True])
def test_intervals_are_drawn_to_their_ends_and_always_to_the_estimate(sideways):
    axes = panel((3, 2))
    intervals(axes, "abc", ESTIMATES, sideways=sideways)
    bars = axes.containers[0].get_children()[-1].get_segments()
    along, across = (0, 1) if sideways else (1, 0)
    np.testing.assert_allclose([bar[:, along] for bar in bars], [[0.5, 3], [1, 1.5], [1, 3]])
    np.testing.assert_allclose([bar[:, across] for bar in bars], [[0, 0], [1, 1], [2, 2]])


def test_a_legend_is_within_the_panel_or_outside():
    axes = panel((3, 2), ylabel="it")
    axes.plot([0, 1], label="one")
    assert legend(axes, "beside") is axes.figure and axes.get_ylabel() == "it"
    assert axes.get_legend().get_bbox_to_anchor().x0 == axes.bbox.x1
    (below,) = legend(axes, "below").legends
    assert [text.get_text() for text in below.get_texts()] == ["one"]


def in_lab(colour, matrix):
    """A colour in CIELAB as someone sees it, under D65."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(np.array(matrix) @ linear, 0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eyes", SEEN)
def test_everyone_can_tell_the_colours_apart(eyes):
    assert len(PALETTE) == 13
    for one, other in itertools.combinations(PALETTE, 2):
        distance = np.linalg.norm(in_lab(PALETTE[one], SEEN[eyes]) - in_lab(PALETTE[other], SEEN[eyes]))
        assert distance > LEAST, (one, other)


def literal_colours(source):
    """The strings that are colours: of three characters or more anywhere, and any where a colour is expected."""
    tree, found = ast.parse(source), set()
    for node in ast.walk(tree):
        pairs = []
        if isinstance(node, ast.keyword):
            pairs = [(node.arg, node.value)]
        elif isinstance(node, ast.Dict):
            pairs = [(getattr(key, "value", None), value) for key, value in zip(node.keys, node.values)]
        elif isinstance(node, ast.Constant) and len(str(node.value)) > 2:
            pairs = [(None, node)]
        for name, value in pairs:
            said = getattr(value, "value", None)
            named = name in TAKES_COLOUR and said not in ("none", None)
            if isinstance(said, str) and (named or (name is None and is_color_like(said) and said != "none")):
                found.add(said)
    return found


def test_literal_colours_are_found_in_all_their_forms():
    source = (
        """axes.plot(x, color="k", mfc="none", label="b"); sns.heatmap(cmap="flare"); y = {"mec": "C1", "a": "b"}"""
    )
    assert literal_colours(source) == {"k", "flare", "C1"}
    assert literal_colours('COLOURS = ("#222", "#12345678", "white", "xkcd:sky blue")') == {
        "#222",
        "#12345678",
        "white",
        "xkcd:sky blue",
    }


@pytest.mark.parametrize("path", sorted(FIGURES.glob("*.py")), ids=lambda path: path.name)
def test_no_figure_names_a_colour_by_itself(path):
    if path.name != "style.py":
        assert not literal_colours(path.read_text(encoding="utf-8"))


def test_the_front_page_has_the_colours_of_the_figures():
    (day,) = re.findall(r":root \{ (--model-a.*?) \}", STYLESHEET.read_text(encoding="utf-8"))
    found = dict(re.findall(r"--([\w-]+): (#\w+);", day))
    assert {"model-a", "model-b", "stitched", "null", "yardstick", "published"} == set(found)
    assert found == {name: PALETTE[name.replace("-", "_").upper()] for name in found}


@pytest.mark.filterwarnings("ignore:InlineBackend._:DeprecationWarning")  # the library's own
def test_figures_of_a_page_are_drawings_that_two_runs_draw_alike(monkeypatch):
    shell = InteractiveShell()
    monkeypatch.setattr(style, "get_ipython", lambda: shell)
    monkeypatch.setattr(style.InlineBackend, "_instance", None)
    with rc_context():
        style.set_style()
        inline = style.InlineBackend.instance()
        drawn = []
        for _ in range(2):
            axes = panel((2, 2), title="told")
            axes.plot([0, 1])
            drawn.append(print_figure(axes.figure, fmt=next(iter(inline.figure_formats)), **inline.print_figure_kwargs))
    assert inline.figure_formats == {"svg"} and ">told</text>" in drawn[0] and drawn[0] == drawn[1]
    style.InlineBackend.clear_instance()
