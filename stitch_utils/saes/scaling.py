"""What the paper plots of many SAE training runs: the FLOPs that a stitch saves, and scaling laws.

Section 3.1 and App. D.2, Figs. 1c, 2a, 8 and Table 4. Fig. 2a compares the FLOPs, or another cost, at which explained
variance first reaches a threshold, from a stitch and from scratch, with the stitch's own cost added. The paper takes a
moving average over batches, of a length that it does not give; here it is held-out explained variance, interpolated
between evaluations. Fig. 1c fits

    L(C) = A C^-beta      (14)

as a line in log-log space to the frontier, the lowest loss that any width has reached within C FLOPs.

Offers `Cost`, `in_flops`, `in_tokens`, `threshold_cost`, `shares_saved`, `savings`, `at_common_threshold`; `frontier`,
`PowerLaw`, `fit_power_law`, `frontier_law`, `crossing`; `dead_latents`; `explained_over_seeds`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..utils.stats import Estimate, from_draws, over_seeds, resampled_counts
from .training import Curve

Numbers = Sequence[float] | np.ndarray
Cost = Callable[[Curve], np.ndarray]  # gives what a run has cost at each of its evaluations, (points,)


def in_flops(curve: Curve) -> np.ndarray:
    """Count the FLOPs of the training itself, on activations that are at hand, as the paper does."""
    return curve.flops


def in_tokens(curve: Curve) -> np.ndarray:
    """Count the activations read."""
    return curve.tokens


def threshold_cost(
    curve: Curve, threshold: float, *, cost: Cost = in_flops, every: int = 1, interpolated: bool = True
) -> float:
    """Find the cost at which held-out explained variance first reaches `threshold`; nan if it never does.

    Between two evaluations, of which only each `every`-th is looked at, explained variance is taken to rise in a
    straight line over the cost. If it is not `interpolated`, the cost is that of the evaluation that finds it reached.
    """
    spent, found = cost(curve)[::every], curve.explained_variance[::every]
    reached = np.flatnonzero(found >= threshold)
    if not len(reached):
        return np.nan
    at = reached[0]
    return float(np.interp(threshold, found[[at - 1, at]], spent[[at - 1, at]]) if interpolated and at else spent[at])


def shares_saved(
    stitch: Sequence[Curve], scratch: Sequence[Curve], threshold: float, *, extra: float = 0.0, **options
) -> np.ndarray:
    """Compute, for each seed, the share of the cost from scratch that the stitch saves up to a threshold (Fig. 2a).

    Both sides have one curve a seed, in order. A stitch costs `extra` itself, so the share may be negative. It is nan
    where a run never reaches the threshold, and where the one from scratch begins there. `options` are those of
    `threshold_cost`.
    """
    ours, theirs = (
        np.array([threshold_cost(curve, threshold, **options) for curve in curves]) for curves in (stitch, scratch)
    )
    return 1 - (ours + extra) / np.where(theirs > 0, theirs, np.nan)


def savings(
    stitch: Sequence[Curve], scratch: Sequence[Curve], thresholds: Iterable[float], **options
) -> dict[float, Estimate]:
    """Average `shares_saved` over seeds, for each threshold that all runs reach."""
    found = {at: shares_saved(stitch, scratch, at, **options) for at in thresholds}
    return {at: over_seeds(shares) for at, shares in found.items() if not np.isnan(shares).any()}


def explained_over_seeds(curves: Sequence[Curve], *, less: Sequence[Curve] = ()) -> list[Estimate]:
    """Average explained variance over seeds, at each evaluation after the first.

    That of the runs `less`, one a seed in the same order, is subtracted seed by seed.
    """
    found, other = (np.array([curve.explained_variance[1:] for curve in some]) for some in (curves, less))
    return list(map(over_seeds, (found - other if less else found).T))


def at_common_threshold(of_widths: Mapping[int, Mapping[float, Estimate]]) -> tuple[float | None, dict[int, Estimate]]:
    """Find the highest threshold in the `savings` of all widths, and what each saves there; None and {} without one."""
    highest = max(set.intersection(*map(set, of_widths.values())), default=None)
    return highest, {} if highest is None else {width: values[highest] for width, values in of_widths.items()}


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


def dead_latents(curves: Sequence[Curve]) -> Estimate:
    """Average the number of dead latents of several runs, with a jackknife interval over documents.

    All runs were counted on the same documents. Without a document, the latents that fire in it alone would be dead, so
    the variance of the number is the sum, over documents, of the squares of how many these are, for many documents.
    """
    alone = np.concatenate([curve.fires_in[curve.fires_in >= 0] for curve in curves])
    half = 1.96 * np.sqrt(np.square(np.bincount(alone) / len(curves)).sum())
    value = float(np.mean([curve.dead.sum() for curve in curves]))
    return Estimate(value, max(0.0, value - half), value + half)
