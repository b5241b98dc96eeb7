"""Values with 95% intervals: Clopper-Pearson for shares (App. F), and bootstraps over documents, which the paper lacks.

Things measured on the same documents err together. Each is kept as (1 + resamples,) values, of the text and of its
resamples; arithmetic on these, resample by resample, gives paired differences and ratios, and `from_resamples` their
intervals.

Offers `Estimate`, `from_draws`, `from_resamples`, `DocumentSums`, `resampled_counts`, `resampled_totals`,
`Beyond`, `stratified_mean`, `crossed_mean`, `over_seeds`, `clopper_pearson`, `is_more_often`, `correlations`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import beta, t
from torch import Tensor

RESAMPLES = 1000


class Estimate(NamedTuple):
    """A value with its 95% interval."""

    value: float
    low: float
    high: float

    def numbers(self, id: str) -> dict[str, float]:
        """Return the three entries of a results file: `id`, `id.low`, `id.high`."""
        return {id: self.value, f"{id}.low": self.low, f"{id}.high": self.high}


def from_draws(value: float, draws: np.ndarray) -> Estimate:
    """Return a value with the middle 95% of its bootstrap draws."""
    low, high = np.quantile(draws, (0.025, 0.975))
    return Estimate(float(value), float(low), float(high))


def from_resamples(values: np.ndarray) -> Estimate:
    """Return the first value with the middle 95% of the others, its bootstrap draws."""
    return from_draws(values[0], values[1:])


class DocumentSums(dict[int, np.ndarray]):
    """Sums over the tokens of each document, by its number, for bootstraps that resample documents."""

    @classmethod
    def of(cls, documents: Int[Tensor, " n"], values: Float[Tensor, " n *columns"]) -> "DocumentSums":
        """Sum `values` over the tokens of each document, in float64; `documents` tells whose each token is."""
        owners, place = documents.unique(return_inverse=True)
        sums = torch.zeros(len(owners), *values.shape[1:], dtype=torch.float64, device=values.device)
        sums.index_add_(0, place.to(values.device), values.double())
        return cls(zip(owners.tolist(), sums.cpu().numpy()))

    def add(self, other: "DocumentSums") -> None:
        """Add the sums of another batch, which may hold more tokens of the same documents."""
        for document, values in other.items():
            self[document] = self[document] + values if document in self else values

    def table(self) -> np.ndarray:
        """Return the sums, (documents, *columns), in the order of the documents' numbers; raise ValueError for none."""
        if not self:
            raise ValueError(
                "the batches hold no ordinary token to measure: expected a document of two tokens at least"
            )
        return np.array([self[document] for document in sorted(self)])


def resampled_counts(n: int, seed: int | np.random.Generator, resamples: int = RESAMPLES) -> np.ndarray:
    """Draw n of n things with replacement and count how often each is drawn: (resamples, n)."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)


def resampled_totals(table: Float[np.ndarray, "documents *columns"], seed: int) -> Float[np.ndarray, "draws *columns"]:
    """Add up rows (documents, *columns), then those of each resample: (1 + resamples, *columns).

    The resamples of one seed are the same for every table of as many documents.
    """
    weights = np.concatenate([np.ones((1, len(table))), resampled_counts(len(table), seed)])
    return np.tensordot(weights, table, 1)


class Beyond(NamedTuple):
    """A value beside what draws of a null reach on the same documents."""

    value: Estimate
    mean: float
    """Of the draws of the null."""
    best: float
    """The largest of the draws."""
    more: Estimate
    """The value less the largest draw; each resample of the documents has its own largest."""

    @property
    def is_told(self) -> bool:
        """Whether the value exceeds the largest draw at both ends of the interval."""
        return self.more.low > 0

    @classmethod
    def of(cls, values: Float[np.ndarray, " rows"], draws: Float[np.ndarray, "rows draws"]) -> "Beyond":
        """Compare; the first row is of the documents as they are, the others of resamples (`resampled_totals`)."""
        best = draws.max(1)
        return cls(from_resamples(values), float(draws[0].mean()), float(best[0]), from_resamples(values - best))


def stratified_mean(rows: Sequence[np.ndarray], seed: int) -> Estimate:
    """Average the means of rows, which may differ in length, with a bootstrap interval within each row.

    A row may itself be a table, such as (random directions, prompts), of which both axes are resampled.
    """
    rng = np.random.default_rng(seed)
    draws = sum((_resampled_means(row, rng) for row in rows), np.zeros(RESAMPLES)) / len(rows)
    return from_draws(float(np.mean([row.mean() for row in rows])), draws)


def crossed_mean(values: np.ndarray, seed: int) -> Estimate:
    """Average a table, such as (languages, prompts), with a bootstrap interval that resamples both axes."""
    return from_draws(values.mean(), _resampled_means(values, np.random.default_rng(seed)))


def _resampled_means(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Average each resample of values (n,), or of a table (rows, columns) whose rows and columns are both drawn."""
    if values.ndim == 1:
        return resampled_counts(len(values), rng) @ values / len(values)
    rows, columns = (resampled_counts(n, rng) for n in values.shape)
    return ((rows @ values) * columns).sum(1) / values.size


def over_seeds(values) -> Estimate:
    """Average independent runs, with Student's 95% interval; raise ValueError for fewer than two."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        raise ValueError(f"an interval over seeds needs two runs at least: got {len(values)}")
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return Estimate(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def clopper_pearson(successes: int, trials: int, *, confidence: float = 0.95) -> Estimate:
    """Return the share of successes with its exact interval; raise ValueError without trials."""
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"expected 0 <= successes <= trials and at least one trial: got {successes} of {trials}")
    failures, tail = trials - successes, (1 - confidence) / 2
    low = beta.ppf(tail, successes, failures + 1) if successes else 0.0
    high = beta.ppf(1 - tail, successes + 1, failures) if failures else 1.0
    return Estimate(successes / trials, float(low), float(high))


def is_more_often(one: np.ndarray, other: np.ndarray, *, comparisons: int = 1) -> bool:
    """Whether `one` is true of the same things significantly more often than `other` (McNemar's exact test).

    Of the things on which the two differ, `one` is true of more than half with 95% confidence, for all of so many
    `comparisons` together (Bonferroni).
    """
    wins, losses = int((one > other).sum()), int((one < other).sum())
    confidence = 1 - 0.05 / comparisons
    return wins > 0 and clopper_pearson(wins, wins + losses, confidence=confidence).low > 0.5


def correlations(x: np.ndarray, y: np.ndarray, *, axis: int = 0, still: float = 0.0) -> np.ndarray:
    """Compute Pearson's correlation of the values along `axis`; `still` where those of x or y are all the same."""
    x, y = x - x.mean(axis, keepdims=True), y - y.mean(axis, keepdims=True)
    norms = np.sqrt((x**2).sum(axis) * (y**2).sum(axis))
    return np.divide((x * y).sum(axis), norms, out=np.full_like(norms, still), where=norms > 1e-12)
