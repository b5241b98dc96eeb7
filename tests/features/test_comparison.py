"""Features beside nulls and shuffled classes: counts against loops, and worlds in which it is known what is true."""

import numpy as np
import pytest

from stitch_utils.features.comparison import above_labels, below_labels, census, labellings, statistics, summarise

FEATURES, ROWS = 400, 201


def resampled(values, *, noise=0.01, seed=0):
    """Correlations of the text, and of resamples that scatter around them."""
    generator = np.random.default_rng(seed)
    return np.vstack([values, values + generator.normal(0, noise, (ROWS - 1, len(values)))])


def nulls(spread, *, seed=1):
    generator = np.random.default_rng(seed)
    return {
        null: [resampled(generator.normal(0, size, FEATURES), seed=10 * draw) for draw in range(19)]
        for null, size in (("random", spread), ("components", 2 * spread))
    }


def test_summaries_count_features():
    values = np.array([0.9, 0.8, 0.7, 0.2, 0.1, -0.4, -0.1, 0.6, 0.4])
    rows = resampled(values, noise=0.2)
    found = summarise(statistics(rows))
    expected = (values.mean(), np.median(values), values.std(), 4 / 9, 2 / 9)
    assert list(found) == ["mean", "median", "spread", "above_half", "below_zero"]
    assert [part.value for part in found.values()] == pytest.approx(expected)
    assert found["mean"][1:] == pytest.approx(tuple(np.quantile(rows[1:].mean(1), (0.025, 0.975))))
    shares = (rows < 0).mean(1)
    moved = shares[1:] - shares[1:].mean() + 2 / 9
    assert found["below_zero"][1:] == pytest.approx(tuple(np.quantile(moved.clip(0, 1), (0.025, 0.975))))
    both = summarise(statistics(rows), statistics(rows + 0.1))
    assert both["median"].value == pytest.approx(np.median(values) + 0.05)
    with pytest.raises(ValueError, match="no features to summarise"):
        statistics(rows[:, :0])


def test_a_census_counts_as_a_loop_does():
    generator, draws = np.random.default_rng(3), nulls(0.2)
    fitted = resampled(generator.normal(0.2, 0.4, FEATURES))
    spoken = resampled(generator.normal(0.05, 0.05, FEATURES))
    found = census(fitted, draws, spoken)
    random, components = (np.stack([rows[0] for rows in some]) for some in draws.values())
    above = [fitted[0] > some.max(0) for some in (random, components)]
    better, flipped = above[0] & above[1], (fitted[0] < np.minimum(random.min(0), components.min(0))) & (fitted[0] < 0)
    assert found.better.value == better.mean() and found.flipped.value == flipped.mean() > 0
    assert [one.value for one in found.better_than.values()] == [some.mean() for some in above]
    assert found.better.low < better.mean() < found.better.high
    assert found.flipped_of_left.value.value == pytest.approx(flipped.sum() / (~better).sum())
    every = np.concatenate([fitted[:1], random, components])
    shares = []
    for stitch in range(1, 39):
        lowest, highest = every.argmin(0) == stitch, every.argmax(0) == stitch
        shares.append((lowest & (every[stitch] < 0)).sum() / (~highest).sum())
    assert found.flipped_of_left.best == pytest.approx(max(shares))
    speaks = np.quantile(spoken[1:], 0.025, axis=0) > 0
    lost = speaks & (np.quantile(fitted[1:], 0.975, axis=0) <= random.max(0))
    assert 0 < found.speaking == speaks.sum() < FEATURES and found.lost.value == lost.sum() / speaks.sum()
    assert found.lost.low < found.lost.value < found.lost.high
    assert census(fitted, draws, spoken - 9).lost is None
    lowest = census(np.full_like(fitted, 0.1), {"high": [np.full_like(fitted, 0.3)] * 2}, spoken)
    assert lowest.flipped.value == lowest.better.value == 0, "what is lowest and above zero is not flipped"
    with pytest.raises(ValueError, match="no features to compare"):
        census(fitted[:, :0], {name: [rows[:, :0] for rows in some] for name, some in draws.items()}, spoken[:, :0])


def test_flips_are_told_from_what_chance_flips():
    """Most features transfer. Of the others, all are as across a null, or a third are flipped."""
    spoken = resampled(np.ones(FEATURES))
    for seed in range(5):
        by_chance = nulls(0.05, seed=seed)
        drawn = np.random.default_rng(100 + seed).normal(0, 0.05, FEATURES)
        values = np.where(np.arange(FEATURES) < 300, 0.7, drawn)
        assert not census(resampled(values), by_chance, spoken).flipped_of_left.is_told
        values[300:333] = -0.5
        found = census(resampled(values), by_chance, spoken)
        assert found.flipped_of_left.is_told and found.better.value == pytest.approx(0.75, abs=0.02)


def test_labels_are_shuffled_within_bins():
    labels, bins = np.arange(60) % 3 == 0, np.repeat([0, 1, 2], 20)
    free, within = labellings(labels, seed=1), labellings(labels, within=bins, seed=1)
    for found in (free, within):
        assert found.shape == (60, 20) and np.array_equal(found[:, 0], labels)
        assert (found.sum(0) == 20).all() and len({tuple(column) for column in found.T}) == 20
    of_bins = [within[bins == one].sum(0) for one in range(3)]
    assert all((counts == counts[0]).all() for counts in of_bins)
    assert len(set(free[bins == 0].sum(0))) > 1


def test_a_difference_of_classes_is_judged_beside_shuffled_ones():
    """A division of the features at random has a difference with a narrow interval, and no more than chance gives."""
    generator = np.random.default_rng(0)
    rows, told = resampled(generator.normal(0.4, 0.3, FEATURES)), 0
    for seed in range(20):
        labels = labellings(np.random.default_rng(seed).random(FEATURES) < 0.3, seed=seed).astype(float)
        means = [rows @ some / some.sum(0) for some in (labels, 1 - labels)]
        above, below = above_labels("it", means[0] - means[1]), below_labels("it", means[0] - means[1])
        width = above["it"].high - above["it"].low
        assert width < 0.01 and above["it"] == below["it"]
        told += (above["it.more"].low > 0) + (below["it.less"].high < 0)
    assert told <= 4
    labels = labellings(rows[0] > 0.5).astype(float)
    means = [rows @ some / some.sum(0) for some in (labels, 1 - labels)]
    assert above_labels("it", means[0] - means[1])["it.more"].low > 0.2
    assert below_labels("it", means[1] - means[0])["it.less"].high < -0.2
