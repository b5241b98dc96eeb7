"""What the paper plots of many SAE training runs: the FLOPs that a stitch saves, and scaling laws.

Section 3.1 and App. D.2, Figs. 1c, 2a, 8 and Table 4. Fig. 2a compares the FLOPs, or another cost, at which the moving
average of the explained variance first reaches a threshold, from a stitch and from scratch, with the stitch's own cost
added. Fig. 1c fits

    L(C) = A C^-beta      (14)

as a line in log-log space to the frontier, the lowest loss that any width has reached within C FLOPs.

Offers `Cost`, `in_flops`, `in_tokens`, `threshold_cost`, `savings`, `at_common_threshold`, `share_that_saves`;
`frontier`, `PowerLaw`, `fit_power_law`, `frontier_law`, `crossing`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..utils.stats import Estimate, from_draws, over_seeds, resampled_counts
from .training import Curve

Numbers = Sequence[float] | np.ndarray
Cost = Callable[[Curve], np.ndarray]  # gives what a run has cost after each of its steps, (n_steps,)


def in_flops(curve: Curve) -> np.ndarray:
    """Count the FLOPs of the training itself, on activations that are at hand, as the paper does."""
    return curve.training_flops


def in_tokens(curve: Curve) -> np.ndarray:
    """Count the activations read."""
    return np.arange(1, len(curve.training_flops) + 1) * curve.tokens[-1] / curve.steps[-1]


def threshold_cost(curve: Curve, threshold: float, *, cost: Cost = in_flops, window: int = 100) -> float:
    """Find the cost at which explained variance, averaged over `window` batches, reaches `threshold`; nan if never."""
    total = np.concatenate([[0.0], np.cumsum(curve.training_explained_variance)])
    last = np.arange(1, len(total))
    first = np.maximum(last - window, 0)  # fewer steps at the beginning
    reached = np.flatnonzero((total[last] - total[first]) / (last - first) >= threshold)
    return float(cost(curve)[reached[0]]) if len(reached) else np.nan


def savings(
    stitch: Sequence[Curve], scratch: Sequence[Curve], thresholds: Iterable[float], *, extra: float = 0.0, **options
) -> dict[float, Estimate]:
    """Average, over seeds, the share of the cost from scratch that stitches save up to each threshold (Fig. 2a).

    Both sides have one curve a seed, in order. A stitch costs `extra` itself, so the share may be negative. A threshold
    that a run never reaches is left out. `options` are those of `threshold_cost`.
    """
    found = {}
    for at in thresholds:
        ours, theirs = ([threshold_cost(curve, at, **options) for curve in curves] for curves in (stitch, scratch))
        shares = [1 - (cost + extra) / full for cost, full in zip(ours, theirs)]
        if not np.isnan(shares).any():
            found[at] = over_seeds(shares)
    return found


def at_common_threshold(of_widths: Mapping[int, Mapping[float, Estimate]]) -> tuple[float | None, dict[int, Estimate]]:
    """Find the highest threshold in the `savings` of all widths, and what each saves there; None and {} without one."""
    highest = max(set.intersection(*map(set, of_widths.values())), default=None)
    return highest, {} if highest is None else {width: values[highest] for width, values in of_widths.items()}


def share_that_saves(found: Iterable[Estimate]) -> float:
    """Compute the share of these savings, at least one, that are above zero."""
    return float(np.mean([one.value > 0 for one in found]))


def frontier(curves: Iterable[Curve], flops: Numbers, *, extra_flops: float = 0.0) -> np.ndarray:
    """Find for each of `flops` the lowest held-out MSE that any run has reached within it; nan where none has begun.

    A run counts from its first training step on, and `extra_flops` are added to every run's.
    """
    points = [(curve.flops[1:] + extra_flops, curve.mse[1:]) for curve in curves]
    spent, mse = (np.concatenate(part) for part in zip(*points))
    return np.array([np.fmin.reduce(mse[spent <= limit], initial=np.nan) for limit in flops])


class PowerLaw(NamedTuple):
    """L(C) = coefficient C^-exponent (Eq. 14), each with its 95% interval."""

    coefficient: Estimate
    exponent: Estimate

    def __call__(self, flops):
        """Compute the loss at `flops`, a number or an array."""
        return self.coefficient.value * np.asarray(flops, dtype=float) ** -self.exponent.value


def fit_power_law(flops: Numbers, loss: Numbers, groups: Numbers, *, seed: int = 0) -> PowerLaw:
    """Fit Eq. 14 by least squares in log-log space, with intervals from a bootstrap.

    The bootstrap draws whole groups, such as the points of one seed, which are not independent; `groups` says whose
    each point is. Draws in which all points have the same FLOPs are left out. ValueError for fewer than two different
    FLOPs, a value that is not positive, or lengths that differ.
    """
    flops, loss, groups = np.asarray(flops, dtype=float), np.asarray(loss, dtype=float), np.asarray(groups)
    if not (np.all(flops > 0) and np.all(loss > 0)):
        raise ValueError("FLOPs and losses must be positive numbers: leave out points before training and nan")
    if len(np.unique(flops)) < 2:
        raise ValueError(f"a line needs two different FLOPs: got {len(np.unique(flops))}")

    x, y = np.log(flops), np.log(loss)
    members = groups == np.unique(groups)[:, None]  # (groups, points)
    draws = resampled_counts(len(members), seed)
    weights = np.vstack([np.ones(len(x)), draws @ members])  # (1 + resamples, points): first the points as they are
    total = weights.sum(1)
    mean_x, mean_y = weights @ x / total, weights @ y / total
    off_x, off_y = x - mean_x[:, None], y - mean_y[:, None]
    spread = (weights * off_x**2).sum(1)
    usable = spread > 1e-9 * spread[0]
    slope = (weights * off_x * off_y).sum(1)[usable] / spread[usable]
    coefficient = np.exp(mean_y[usable] - slope * mean_x[usable])
    return PowerLaw(from_draws(coefficient[0], coefficient[1:]), from_draws(-slope[0], -slope[1:]))


def frontier_law(
    runs: Mapping[int, Sequence[Curve]], flops: Numbers, *, extra_flops: float = 0.0, seed: int = 0
) -> PowerLaw:
    """Fit Eq. 14 to the frontiers of several seeds, {seed: curves of all widths}, at the given FLOPs (Fig. 1c)."""
    losses = np.concatenate([frontier(curves, flops, extra_flops=extra_flops) for curves in runs.values()])
    spent, names, begun = np.tile(flops, len(runs)), np.repeat(list(runs), len(flops)), np.isfinite(losses)
    return fit_power_law(spent[begun], losses[begun], names[begun], seed=seed)


def crossing(law: PowerLaw, other: PowerLaw) -> float | None:
    """Find the FLOPs at which two laws have the same loss; None for parallel ones."""
    gap = law.exponent.value - other.exponent.value
    ratio = law.coefficient.value / other.coefficient.value
    return None if gap == 0 else float(np.exp(np.log(ratio) / gap))
