"""What the figures of section 5.2 draw: every feature once, the marked ones apart, and nothing where nothing fires."""

import numpy as np

from stitch_utils.book.figures.features import first_token_attention, null_shares


def points(axes, marker, hollow=None):
    lines = [line for line in axes.lines if line.get_marker() == marker]
    if hollow is not None:
        lines = [line for line in lines if (line.get_markerfacecolor() == "none") == hollow]
    return np.concatenate([line.get_xydata() for line in lines]) if lines else np.zeros((0, 2))


def test_every_feature_is_drawn_once_and_the_marked_ones_stand_out():
    size, share = np.array([1.0, 2.0, 30.0]), np.array([0.1, 0.2, 0.9])
    clouds = {
        "before": (size, share, [False, False, True], (0.05, 0.3)),
        "random": (np.zeros(0), np.zeros(0), [], (0.05, 0.3)),
    }
    figure = null_shares(clouds, titles={"before": "A", "random": "random"})
    full, empty = figure.axes
    np.testing.assert_array_equal(points(full, "o", hollow=False), [[1, 0.1], [2, 0.2]])
    np.testing.assert_array_equal(points(full, "o", hollow=True), [[30, 0.9]])
    assert full.get_xscale() == "log" and full.get_title() == "A"
    assert len(points(empty, "o")) == 0


def test_each_token_is_a_point_and_each_feature_has_its_mean():
    pairs = [(np.array([0.2, 0.4]), np.array([0.1, 0.1])), (np.array([0.9]), np.array([1.0]))]
    nothing = (np.zeros(0), np.zeros(0))
    figure = first_token_attention({"after": pairs, "random": [nothing]}, titles={"after": "B", "random": "none"})
    np.testing.assert_allclose(points(figure.axes[0], "o"), [[0.2, 0.1], [0.4, 0.1], [0.9, 1.0]])
    np.testing.assert_allclose(points(figure.axes[0], "D"), [[0.3, 0.1], [0.9, 1.0]])
    assert len(points(figure.axes[1], "D")) == 0
