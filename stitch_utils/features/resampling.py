"""Intervals for statistics of features, by drawing the features anew (Figs. 4b, 14 and 15).

Which features an SAE has is chance, so every statistic of a group comes with the middle 95% of its values over groups
of the same size, drawn with replacement. Offers `over_features`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..utils.stats import RESAMPLES, Estimate, from_draws


def over_features(statistics: Callable[..., Sequence[float]], *groups: np.ndarray, seed: int) -> list[Estimate]:
    """Estimate each of the `statistics`, which take the groups, with intervals by resampling within each group.

    Draws that give no number are left out; a statistic that is no number of the groups themselves stays one.
    """
    generator = np.random.default_rng(seed)
    draws = np.array([statistics(*(generator.choice(group, len(group)) for group in groups)) for _ in range(RESAMPLES)])
    return [
        from_draws(value, column[np.isfinite(column)]) if np.isfinite(value) else Estimate(np.nan, np.nan, np.nan)
        for value, column in zip(statistics(*groups), draws.T)
    ]
