"""What figures of stitches show."""

import numpy as np
import pytest

from stitch_utils.book.figures.stitching import training_curves


@pytest.mark.parametrize(("steps", "at_a_time"), [(3906, 25), (500, 10), (15, 25)])
def test_training_curves_end_at_the_last_token(steps, at_a_time):
    starts = range(0, steps, at_a_time)
    losses = [1 + 1 / (1 + start) for start in starts]
    model = {"steps": steps, "batch_size": 16, "context": 256, "loss_curve": losses}
    a, b = training_curves({"one": model, "other": model | {"batch_size": 8}}).axes[0].lines
    until = np.array([min(start + at_a_time, steps) for start in starts])
    np.testing.assert_allclose(a.get_xdata(), until * 16 * 256 / 1e6)
    np.testing.assert_allclose(b.get_xdata(), until * 8 * 256 / 1e6)
    np.testing.assert_allclose(a.get_ydata(), losses)
