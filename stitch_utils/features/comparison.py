"""Set features beside what chance makes of them: stitches that know no pairs, and classes that know no sentences.

Section 5 and App. G compare with one random stitch, and classes as they are. Here a feature is held against all draws
of the nulls (`attribution.NULLS`): of equals, one in twenty would exceed 19 draws. What classes do is held against
`DRAWS` other ways to hand out the same labels. The features of an SAE are given, documents are not: intervals resample
documents, and a null, since with the features given a random division of them has a narrow interval, too.

Offers `statistics` and `summarise`, `Census` and `census`, `labellings`, and `above_labels`, `below_labels`.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ..stitching.nulls import DRAWS
from ..utils.stats import Beyond, Estimate, clopper_pearson, from_resamples
from .attribution import Resampled

Labels = Bool[np.ndarray, "features labellings"]


STATISTICS = ("mean", "median", "spread", "above_half", "below_zero")


def statistics(rows: Resampled) -> Float[np.ndarray, "5 rows"]:
    """Compute the `STATISTICS` of the correlations of features, for the text and each resample.

    `spread` is the standard deviation; `above_half` (0.5) and `below_zero` are shares. ValueError for no features.
    """
    if not rows.shape[1]:
        raise ValueError("there are no features to summarise: expected some")
    shares = (rows > 0.5).mean(1), (rows < 0).mean(1)
    return np.stack([rows.mean(1), np.median(rows, axis=1), rows.std(1), *shares])


def summarise(*of_tables: Float[np.ndarray, "5 rows"]) -> dict[str, Estimate]:
    """Give the `STATISTICS` of a table of correlations, or their mean over several, intervals over documents."""
    return {
        name: _share(values) if name in ("above_half", "below_zero") else from_resamples(values)
        for name, values in zip(STATISTICS, np.mean(of_tables, axis=0))
    }


def _share(values: Float[np.ndarray, " rows"]) -> Estimate:
    """Give a share of features its interval, moved so that its draws have the mean of the estimate.

    Correlations of a resample are noisier than those of the text, since documents repeat in it. That moves the share of
    features beyond a bound, and not only spreads it.
    """
    return from_resamples(np.clip(np.append(values[0], values[1:] - values[1:].mean() + values[0]), 0, 1))


class Census(NamedTuple):
    """How many features do better or worse across the fitted stitch than across any draw of the nulls."""

    better: Estimate
    """The share of features that exceed all draws of all nulls."""
    better_than: Mapping[str, Estimate]
    """The share that exceed all draws of one null."""
    lost: Estimate | None
    """Of the features that speak for the next token in their own model, the share that surely do not exceed all draws
    of the first null: even the high end of their correlation does not. Clopper-Pearson; None if none speaks."""
    speaking: int
    """The number of the features that do: their centred attribution is above zero, at the low end of its interval."""
    flipped: Estimate
    """The share of features that are below zero and below all draws of all nulls."""
    flipped_of_left: Beyond
    """Of the features that do not exceed all draws, the share of the flipped; beside the share that a draw reaches in
    place of the fitted stitch."""


def census(fitted: Resampled, nulls: Mapping[str, Iterable[Resampled]], spoken: Resampled) -> Census:
    """Count features, of the text and of its resamples.

    `spoken` is `BlockSums.spoken` of the same features. ValueError for no features.
    """
    if not fitted.shape[1]:
        raise ValueError("there are no features to compare: expected some")
    stitches = 1
    # The stitch that is lowest and highest of those so far, for each resample and feature; 0 is the fitted one.
    lowest, highest = np.zeros(fitted.shape, dtype=np.int16), np.zeros(fitted.shape, dtype=np.int16)
    low, high, better_than, bests = fitted.copy(), fitted.copy(), {}, []
    for null, draws in nulls.items():
        best = np.full_like(fitted, -np.inf)
        for rows in draws:
            best = np.maximum(best, rows)
            below, above = rows < low, rows > high
            lowest[below], highest[above] = stitches, stitches
            low, high = np.minimum(low, rows), np.maximum(high, rows)
            stitches += 1
        better_than[null] = _share((fitted > best).mean(1))
        bests.append(best[0])
    is_lowest = low < 0
    left = [(highest != stitch).sum(1) for stitch in range(stitches)]
    flips = [((lowest == stitch) & is_lowest).sum(1) for stitch in range(stitches)]
    shares = np.stack([np.divide(some, np.maximum(of, 1)) for some, of in zip(flips, left)], axis=1)
    speaking = np.quantile(spoken[1:], 0.025, axis=0) > 0
    lost = (np.quantile(fitted[1:], 0.975, axis=0) <= bests[0])[speaking]
    return Census(
        _share((highest == 0).mean(1)),
        better_than,
        clopper_pearson(int(lost.sum()), len(lost)) if len(lost) else None,
        len(lost),
        _share(flips[0] / fitted.shape[1]),
        Beyond.of(shares[:, 0], shares[:, 1:]),
    )


def labellings(labels: Bool[np.ndarray, " features"], *, within: np.ndarray | None = None, seed: int = 0) -> Labels:
    """Give the labels, and `DRAWS` shuffles of them: of all features, or of those of one bin (`within`) each."""
    generator, columns = np.random.default_rng(seed), [labels]
    bins = np.zeros(len(labels), dtype=int) if within is None else within
    for _ in range(DRAWS):
        shuffled = labels.copy()
        for number in np.unique(bins):
            shuffled[bins == number] = generator.permutation(labels[bins == number])
        columns.append(shuffled)
    return np.stack(columns, axis=1)


def above_labels(name: str, values: Float[np.ndarray, "rows labellings"]) -> dict[str, Estimate]:
    """Give a value of the labels, `name`, and what it is more than the largest that shuffled ones reach, `name.more`.

    Rows are the text and its resamples, and columns those of `labellings`.
    """
    found = Beyond.of(values[:, 0], values[:, 1:])
    return {name: found.value, f"{name}.more": found.more}


def below_labels(name: str, values: Float[np.ndarray, "rows labellings"]) -> dict[str, Estimate]:
    """Give a value of the labels, and that less the smallest that shuffled ones reach, `name.less`."""
    less = values[:, 0] - values[:, 1:].min(1)
    return {name: from_resamples(values[:, 0]), f"{name}.less": from_resamples(less)}
