"""Curves of many SAE training runs turned into what the paper plots: FLOPs saved, and scaling laws.

Section 3.1 and App. D.2, Figs. 1c, 2a, 8 and Table 4. Fig. 2a: the first FLOPs at which the moving average of the
explained variance reaches a threshold, from a stitch against from scratch, with the stitch's own FLOPs added; what
else a run costs, tokens or seconds, can be counted in their place. Fig. 1c:

    L(C) = A C^-beta      (14)

fitted as a line in log-log space to the frontier, the lowest loss that any width has reached within C FLOPs. The law
has no irreducible loss, so it compares two ways of training on one range of C and must not be carried far beyond it.

Offers `threshold_cost`, `saved`, `savings`, the costs `in_flops` and `in_tokens`; `frontier`,
`fit_power_law`, `frontier_law`, `PowerLaw`, `crossing`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..utils.stats import RESAMPLES, Estimate, from_draws, over_seeds, resampled_counts
from .training import Curve

# What a run has cost after each of its steps, (n_steps,).
Cost = Callable[[Curve], np.ndarray]


def in_flops(curve: Curve) -> np.ndarray:
    """Of the training itself, on activations that are at hand (the paper's count)."""
    return curve.training_flops


def in_tokens(curve: Curve) -> np.ndarray:
    """Activations read."""
    return _each_step(curve) * curve.tokens[-1] / curve.steps[-1]


def _each_step(curve: Curve) -> np.ndarray:
    return np.arange(1, len(curve.training_flops) + 1)


def threshold_cost(
    curve: Curve, explained_variance: float, *, cost: Cost = in_flops, window: int = 100
) -> float | None:
    """The cost after which the training batches' explained variance, averaged over the last `window` steps, is at
    least `explained_variance` for the first time; None if it never is."""
    reached = np.flatnonzero(curve.moving_average(window) >= explained_variance)
    return float(cost(curve)[reached[0]]) if len(reached) else None


def saved(
    stitch: Curve,
    scratch: Curve,
    explained_variance: float,
    *,
    extra: float = 0.0,
    cost: Cost = in_flops,
    window: int = 100,
) -> float | None:
    """The share of the cost from scratch that a start from a stitch saves on the way to a threshold (Fig. 2a).

    `extra` is that of the stitch. Negative if the stitch does not pay; None if one run never gets there.
    """
    ours, theirs = (threshold_cost(curve, explained_variance, cost=cost, window=window) for curve in (stitch, scratch))
    return None if ours is None or theirs is None else 1 - (ours + extra) / theirs


def savings(
    stitch: Sequence[Curve],
    scratch: Sequence[Curve],
    thresholds: Iterable[float],
    *,
    extra: float = 0.0,
    cost: Cost = in_flops,
    window: int = 100,
) -> dict[float, Estimate]:
    """`saved` for each threshold that every run reaches, over seeds: one curve of each side a seed, in one order."""
    found = {}
    for threshold in thresholds:
        shares = [saved(s, r, threshold, extra=extra, cost=cost, window=window) for s, r in zip(stitch, scratch)]
        if None not in shares:
            found[threshold] = over_seeds(shares)
    return found


def at_common_threshold(
    of_widths: Mapping[int, Mapping[float, Estimate]],
) -> tuple[float | None, dict[int, Estimate]]:
    """The highest threshold that all widths reach, with what each saves on the way there; None and nothing where they
    share none. `of_widths` are `savings` by width."""
    common = set.intersection(*map(set, of_widths.values()))
    if not common:
        return None, {}
    return max(common), {width: values[max(common)] for width, values in of_widths.items()}


def share_that_saves(found: Iterable[Estimate]) -> float:
    """Of some savings, those above zero; ValueError for none."""
    values = [one.value for one in found]
    if not values:
        raise ValueError("no savings given: expected at least one")
    return sum(value > 0 for value in values) / len(values)


def frontier(curves: Iterable[Curve], flops: Sequence[float] | np.ndarray, *, extra_flops: float = 0.0) -> np.ndarray:
    """For each of `flops` the lowest held-out MSE that any of the runs has reached within it; nan where none has begun.

    A run counts from its first training step on, and `extra_flops` are added to every run's.
    """
    best = np.full(len(flops), np.nan)
    for curve in curves:
        trained = curve.flops > 0
        spent, mse = curve.flops[trained] + extra_flops, curve.mse[trained]
        for i, limit in enumerate(flops):
            if (within := mse[spent <= limit]).size:
                best[i] = np.fmin(best[i], within.min())
    return best


class PowerLaw(NamedTuple):
    """L(C) = coefficient C^-exponent (Eq. 14), each with its 95% interval."""

    coefficient: Estimate
    exponent: Estimate

    def __call__(self, flops):
        """The loss that the law gives at `flops`, a number or an array."""
        return self.coefficient.value * np.asarray(flops, dtype=float) ** -self.exponent.value


def fit_power_law(
    flops: Sequence[float] | np.ndarray,
    loss: Sequence[float] | np.ndarray,
    *,
    groups: Sequence | np.ndarray | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> PowerLaw:
    """Eq. 14 by least squares in log-log space, with intervals from a bootstrap.

    The bootstrap draws points, or with `groups` (the seed of each point, say) whole groups: points of one run are not
    independent. Draws in which all points have the same FLOPs say nothing about a slope and are left out. ValueError
    for fewer than two different FLOPs, a value that is not positive, or lengths that differ.
    """
    flops, loss = np.asarray(flops, dtype=float), np.asarray(loss, dtype=float)
    labels = np.arange(len(flops)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if not len(flops) == len(loss) == len(labels):
        raise ValueError(f"got {len(flops)} FLOPs, {len(loss)} losses and {len(labels)} groups: expected as many each")
    if not (np.all(flops > 0) and np.all(loss > 0)):
        raise ValueError("FLOPs and losses must be positive numbers: leave out points before training and nan")
    if len(np.unique(flops)) < 2:
        raise ValueError(f"a line needs two different FLOPs: got {len(np.unique(flops))}")

    x, y = np.log(flops), np.log(loss)
    members = labels == np.arange(labels.max() + 1)[:, None]  # (groups, points)
    draws = resampled_counts(len(members), seed, resamples)
    weights = np.vstack(
        [np.ones(len(x)), draws @ members]
    )  # (1 + resamples, points): the points as they are come first
    total = weights.sum(1)
    mean_x, mean_y = weights @ x / total, weights @ y / total
    off_x, off_y = x - mean_x[:, None], y - mean_y[:, None]
    spread = (weights * off_x**2).sum(1)
    usable = spread > 1e-9 * spread[0]
    slope = (weights * off_x * off_y).sum(1)[usable] / spread[usable]
    coefficient = np.exp(mean_y[usable] - slope * mean_x[usable])
    return PowerLaw(from_draws(coefficient[0], coefficient[1:]), from_draws(-slope[0], -slope[1:]))


def frontier_law(
    runs: Mapping[int, Sequence[Curve]], flops: Sequence[float] | np.ndarray, *, extra_flops: float = 0.0, seed: int = 0
) -> PowerLaw:
    """Eq. 14 fitted to the frontiers of several seeds, {seed: curves of all widths}, at the given FLOPs (Fig. 1c)."""
    points = [
        (spent, loss, name)
        for name, curves in runs.items()
        for spent, loss in zip(flops, frontier(curves, flops, extra_flops=extra_flops))
        if np.isfinite(loss)
    ]
    spent, losses, groups = zip(*points)
    return fit_power_law(spent, losses, groups=groups, seed=seed)


def crossing(law: PowerLaw, other: PowerLaw) -> float | None:
    """The FLOPs at which two laws give the same loss; None for parallel ones."""
    gap = law.exponent.value - other.exponent.value
    ratio = law.coefficient.value / other.coefficient.value
    return None if gap == 0 else float(np.exp(np.log(ratio) / gap))
