"""What all figures share."""

import numpy as np
import pytest

from stitch_utils.book.figures.lrt import recipes
from stitch_utils.book.figures.style import whiskers


def test_whiskers_reach_from_the_estimate_to_the_ends():
    np.testing.assert_allclose(whiskers(0.5, 0.25, 1.0), [[0.25], [0.5]])
    middle, low, high = np.array([[1.0, 2.0], [0.5, 1.0], [3.0, 2.5]])
    np.testing.assert_allclose(whiskers(middle, low, high), [[0.5, 1.0], [2.0, 0.5]])


def test_an_interval_beside_its_estimate_is_drawn_to_it():
    np.testing.assert_array_equal(whiskers(1.0, 1.25, 1.5), [[0], [0.5]])
    np.testing.assert_array_equal(whiskers(1.0, 0.25, 0.5), [[0.75], [0]])
    values = {"main": (1.0, 1.0 + 1e-12, 2.0), "bias": (3.0, 1.0, 2.0)}
    figure = recipes({"correlation": values, "slope": values})
    lines = figure.axes[0].containers[0].get_children()[-1].get_segments()
    assert lines[0][:, 0] == pytest.approx([1.0, 2.0])
