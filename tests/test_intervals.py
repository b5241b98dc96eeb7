"""Intervals against scipy's."""

import numpy as np
import pytest
from scipy import stats

from stitch_utils.intervals import clopper_pearson, over_seeds


def test_the_interval_over_seeds_is_students():
    values = [0.31, 0.27, 0.44, 0.35]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = over_seeds(values)
    assert found.value == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    with pytest.raises(ValueError, match="needs two runs at least: got 1"):
        over_seeds([0.3])


@pytest.mark.parametrize(("successes", "trials"), [(0, 20), (7, 20), (20, 20)])
def test_the_interval_of_a_share_is_clopper_and_pearsons(successes, trials):
    expected = stats.binomtest(successes, trials).proportion_ci(0.95, method="exact")
    found = clopper_pearson(successes, trials)
    assert (found.value, found.low, found.high) == pytest.approx((successes / trials, expected.low, expected.high))
