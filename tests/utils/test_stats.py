"""Intervals against scipy's."""

import numpy as np
import pytest
import torch
from scipy import stats

from stitch_utils.utils.stats import (
    Beyond,
    DocumentSums,
    clopper_pearson,
    crossed_mean,
    from_resamples,
    is_more_often,
    over_seeds,
    resampled_counts,
    resampled_totals,
    stratified_mean,
)


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


def test_the_interval_of_a_mean_draws_languages_and_prompts():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(12, 1)) + rng.normal(size=(1, 40)) + 0.1 * rng.normal(size=(12, 40))
    value, low, high = crossed_mean(values, seed=0)
    assert value == pytest.approx(values.mean())
    spread = np.sqrt(values.mean(1).var() / 12 + values.mean(0).var() / 40)
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.15)
    share = crossed_mean((rng.random((1, 200)) < 0.3).astype(float), seed=0)  # one language: prompts alone
    count = round(share.value * 200)
    expected = [stats.binom.ppf(q, 200, share.value) / 200 for q in (0.025, 0.975)]
    assert count == share.value * 200 and [share.low, share.high] == pytest.approx(expected, abs=0.02)


def test_a_mean_over_rows_of_different_lengths():
    rows = [np.array([0.0, 1, 0, 1] * 25), np.ones(10)]
    value, low, high = stratified_mean(rows, 0)
    half = 1.96 * (0.5 / np.sqrt(100)) / 2  # the second row does not vary
    assert (
        value == 0.75 and low == pytest.approx(0.75 - half, abs=0.006) and high == pytest.approx(0.75 + half, abs=0.006)
    )


def test_a_table_among_the_rows_draws_both_of_its_axes():
    """Twenty random directions by four prompts: directions that differ widen the interval as prompts that differ do."""
    directions, prompts = np.linspace(0, 1, 20)[:, None], np.linspace(0, 1, 4)
    for table in (directions + 0 * prompts, 0 * directions + prompts, directions + prompts):
        value, low, high = stratified_mean([table], 0)
        alone = crossed_mean(table, 0)
        assert (value, low, high) == alone and value == pytest.approx(table.mean())
    flat = stratified_mean([(directions + 0 * prompts).ravel()], 0)  # as if all 80 were drawn one by one
    table = stratified_mean([directions + 0 * prompts], 0)
    assert table.high - table.low > 1.5 * (flat.high - flat.low)
    both = stratified_mean([np.ones(7), directions + 0 * prompts], 0)
    assert both.value == pytest.approx(0.75) and both.high - both.low == pytest.approx(
        (table.high - table.low) / 2, rel=0.1
    )


@pytest.mark.parametrize(
    ("wins", "losses", "ties"), [(6, 0, 0), (5, 0, 50), (9, 1, 3), (8, 2, 3), (0, 0, 4), (0, 9, 0)]
)
def test_more_often_is_mcnemars_exact_test(wins, losses, ties):
    one = np.array([True] * wins + [False] * losses + [True] * ties)
    other = np.array([False] * wins + [True] * losses + [True] * ties)
    for comparisons in (1, 8):
        test = stats.binomtest(wins, wins + losses) if wins + losses else None
        expected = test is not None and wins > losses and test.pvalue < 0.05 / comparisons
        assert is_more_often(one, other, comparisons=comparisons) == expected


def test_resamples_draw_each_as_often_as_the_others():
    counts = resampled_counts(8, 0, resamples=5000)
    assert counts.shape == (5000, 8) and (counts.sum(1) == 8).all()
    assert counts.mean(0) == pytest.approx(np.ones(8), abs=0.06) and counts.var(0) == pytest.approx(
        np.full(8, 7 / 8), rel=0.1
    )
    assert (resampled_counts(8, 0) == resampled_counts(8, 0)).all()


def test_totals_are_of_the_text_and_then_of_its_resamples():
    table = np.random.default_rng(0).normal(size=(7, 2))
    found, counts = resampled_totals(table, 5), resampled_counts(7, 5)
    assert found.shape == (1001, 2)
    assert found[0] == pytest.approx(table.sum(0)) and found[4] == pytest.approx(table.repeat(counts[3], axis=0).sum(0))
    value, low, high = from_resamples(found[:, 0])
    assert value == pytest.approx(table[:, 0].sum())
    assert (low, high) == pytest.approx(tuple(np.quantile(found[1:, 0], (0.025, 0.975))))
    other = resampled_totals(np.ones(7), 5)  # a table of other columns meets the same resamples
    assert other == pytest.approx(np.full(1001, 7))


def test_sums_by_document_are_those_of_a_loop():
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randint(0, 5, (30,), generator=generator), torch.randn(30, 3, generator=generator)) for _ in range(3)
    ]
    sums, expected = DocumentSums(), {}
    for documents, values in batches:
        sums.add(DocumentSums.of(documents, values))
        for document, row in zip(documents.tolist(), values.double()):
            expected[document] = expected.get(document, 0) + row
    assert len(sums) == len(expected) == 5
    table = np.array([expected[document].numpy() for document in sorted(expected)])
    np.testing.assert_allclose(sums.table(), table, rtol=1e-12)


def test_a_value_beside_the_best_draw_of_each_resample():
    rng = np.random.default_rng(0)
    table = rng.random((12, 4)) + np.array([10, 0.5, 0, 0.3])  # counts, the value, two draws
    sums = resampled_totals(table, 3)
    assert sums[0] == pytest.approx(table.sum(0)) and sums.shape == (1001, 4)
    found = Beyond.of(sums[:, 1] / sums[:, 0], sums[:, 2:] / sums[:, :1])
    draws = np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), size=1000)
    values, more = [], []
    for draw in draws:
        count, own, *others = np.repeat(table, draw, axis=0).sum(0)
        values.append(own / count)
        more.append((own - max(others)) / count)
    shares = table[:, 1:].sum(0) / table[:, 0].sum()
    assert tuple(found.value) == pytest.approx((shares[0], *np.quantile(values, (0.025, 0.975))))
    assert (found.mean, found.best) == pytest.approx((shares[1:].mean(), shares[1:].max()))
    assert tuple(found.more) == pytest.approx((shares[0] - shares[1:].max(), *np.quantile(more, (0.025, 0.975))))
