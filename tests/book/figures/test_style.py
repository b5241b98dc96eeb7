"""What all figures share."""

import numpy as np
import pytest

from stitch_utils.book.figures.style import intervals, legend, panel

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
