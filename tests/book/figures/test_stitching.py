"""What figures of stitches show."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from stitch_utils.book.figures.stitching import cross_entropies, map_losses, training_curves
from stitch_utils.book.figures.style import MODEL_A, MODEL_B, NULL, STITCHED, YARDSTICK


@pytest.mark.parametrize(("steps", "at_a_time"), [(3906, 25), (100, 30), (15, 25)])
def test_training_curves_end_at_the_last_token(steps, at_a_time):
    starts = range(0, steps, at_a_time)
    losses = [1 + 1 / (1 + start) for start in starts]
    model = {"steps": steps, "batch_size": 16, "context": 256, "curve_steps": at_a_time, "loss_curve": losses}
    a, b = training_curves({"one": model, "other": model | {"batch_size": 8}}).axes[0].lines
    until = np.array([min(start + at_a_time, steps) for start in starts])
    np.testing.assert_allclose(a.get_xdata(), until * 16 * 256 / 1e6)
    np.testing.assert_allclose(b.get_xdata(), until * 8 * 256 / 1e6)
    np.testing.assert_allclose(a.get_ydata(), losses)


def test_the_control_stands_below_the_stitch_in_the_colour_of_nulls():
    stitched = {"a_to_b": (3.0, 2.9, 3.1), "b_to_a": (2.8, 2.7, 2.9)}
    control = {"a_to_b": (6.0, 5.9, 6.1), "b_to_a": (7.0, 6.8, 7.2)}
    own = {"a": (2.2, 2.1, 2.3), "b": (2.0, 1.9, 2.1)}
    (axes, *_) = cross_entropies(own, stitched, {"pairs": 3.7}, nulls={"components alone": control}).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["A → B", "B → A", "A → B, components alone", "B → A, components alone"]
    points = {}
    for container in axes.containers:
        line = container.lines[0]
        points |= {float(y): (float(x), to_hex(line.get_color())) for x, y in zip(*line.get_data())}
    drawn = [points[tick] for tick in axes.get_yticks()]
    assert drawn == [(3.0, MODEL_B), (2.8, MODEL_A), (6.0, NULL), (7.0, NULL)]


def test_maps_stand_beside_the_stitch_the_host_and_the_yardsticks():
    losses = {"b": {"stitch": (3.0, 2.9, 3.1), "null": (6.0, 5.9, 6.1)}}
    losses["a"] = {"stitch": (3.5, 3.4, 3.6), "null": (7.0, 6.9, 7.1)}
    own, yardsticks = {"a": 2.5, "b": 2.0}, {"a": {"bigrams": 5.5}, "b": {"bigrams": 5.0}}
    panels = map_losses(losses, own, yardsticks, nulls=["null"]).axes
    for axes, side, color, bigram in zip(panels, "ba", (MODEL_B, MODEL_A), (5.0, 5.5)):
        points = [container.lines[0] for container in axes.containers]
        assert [(*line.get_xdata(), to_hex(line.get_color())) for line in points] == [
            (losses[side]["stitch"][0], color),
            (losses[side]["null"][0], NULL),
        ]
        lines = {
            to_hex(line.get_color()): line.get_xdata()[0] for line in axes.lines if list(line.get_ydata()) == [0, 1]
        }
        assert lines == {color: own[side], STITCHED: losses[side]["stitch"][0], YARDSTICK: bigram}
        assert axes.get_xlabel().endswith({"a": "B → A", "b": "A → B"}[side])
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["stitch", "null"]
