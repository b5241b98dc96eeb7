"""Intervals over features against a loop over draws, and statistics that are no numbers."""

import numpy as np
import pytest

from stitch_utils.features.attribution import over_features


def test_groups_are_drawn_anew_one_after_the_other():
    groups = np.arange(30.0), np.arange(12.0) ** 2

    def statistics(first, second):
        return first.mean() - second.mean(), second.std(), np.nan, np.nan if first.max() == 28 else 1.0

    found = over_features(statistics, *groups, seed=4)
    generator = np.random.default_rng(4)
    draws = [statistics(*(generator.choice(group, len(group)) for group in groups)) for _ in range(1000)]
    for estimate, value, column in list(zip(found, statistics(*groups), np.array(draws).T))[:2]:
        assert estimate == pytest.approx((value, *np.quantile(column, (0.025, 0.975))))
    assert np.isnan(found[2]).all() and found[3] == (1, 1, 1), "draws without a number are left out"
