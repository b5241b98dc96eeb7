"""Thresholds against a loop, the power law against scipy, numpy and laws that are known."""

import numpy as np
import pytest
from scipy.stats import linregress

from stitch_utils.saes.scaling import (
    PowerLaw,
    at_common_threshold,
    crossing,
    dead_latents,
    explained_over_seeds,
    fit_power_law,
    frontier,
    frontier_law,
    in_tokens,
    savings,
    shares_saved,
    threshold_cost,
)
from stitch_utils.saes.training import Curve
from stitch_utils.utils.stats import Estimate, over_seeds


def curve(explained, flops_per_step, mse=None, fires_in=(-1, -2)):
    """A run that is evaluated before training and after each step, of 10 tokens."""
    points = np.arange(len(explained))
    return Curve(
        steps=points,
        tokens=points * 10,
        flops=points * float(flops_per_step),
        mse=1 - np.array(explained) if mse is None else np.array(mse),
        explained_variance=np.array(explained, dtype=float),
        seconds=points * 0.1,
        cosine=np.ones(len(fires_in)),
        fires_in=np.array(fires_in),
        counted=np.array(100),
    )


@pytest.mark.parametrize("every", [1, 2, 4])
def test_thresholds_are_where_the_line_through_the_evaluations_first_reaches_them(every):
    """The line, walked along in small steps."""
    rng = np.random.default_rng(0)
    explained = np.linspace(0.1, 0.9, 41) + 0.2 * rng.normal(size=41)
    run = curve(explained, 7.0)
    costs = np.linspace(0, 280, 280_001)
    line = np.interp(costs, 7.0 * np.arange(0, 41, every), explained[::every])
    for threshold in (0.3, 0.5, 0.7):
        found = threshold_cost(run, threshold, every=every)
        assert found == pytest.approx(costs[np.argmax(line >= threshold)], abs=2e-3)
        step = next(i for i in range(0, 41, every) if explained[i] >= threshold)
        assert threshold_cost(run, threshold, every=every, interpolated=False) == 7 * step >= found
    assert threshold_cost(run, -1.0, every=every) == 0 and np.isnan(threshold_cost(run, 5.0, every=every))


def test_explained_variance_after_the_first_evaluation_is_averaged_over_seeds():
    ours, theirs = [
        [curve(run, 1.0) for run in runs] for runs in ([[0, 0.5, 0.75], [0.5, 0.25, 1]], [[0, 0.25, 0.25]] * 2)
    ]
    assert explained_over_seeds(ours) == [over_seeds([0.5, 0.25]), over_seeds([0.75, 1])]
    assert explained_over_seeds(ours, less=theirs) == [over_seeds([0.25, 0]), over_seeds([0.5, 0.75])]


def saved(stitch, scratch, threshold, **options):
    """What each of two seeds alike saves; None where one never arrives."""
    found = savings([stitch] * 2, [scratch] * 2, [threshold], **options)
    return found[threshold].value if found else None


def test_saved_counts_the_stitch():
    """From the stitch .6 is reached half way to the second evaluation, from scratch half way to the fourth."""
    stitch, scratch = curve([0.1, 0.2, 1.0], 10), curve([0.0, 0.1, 0.2, 0.3, 0.9], 10)
    assert saved(stitch, scratch, 0.6) == pytest.approx(1 - 15 / 35)
    assert saved(stitch, scratch, 0.6, extra=30) == pytest.approx(1 - 45 / 35)
    assert saved(stitch, scratch, 0.95) is None and saved(scratch, stitch, 0.95) is None
    assert saved(scratch, curve([0.7, 0.8], 10), 0.6) is None, "nothing is left to save"
    assert saved(curve([0.7, 0.8], 10), scratch, 0.6, extra=7) == pytest.approx(1 - 7 / 35)


def test_other_costs_are_counted_at_the_same_point():
    """A step reads 10 tokens; both runs reach 0.6 at an evaluation, after 2 and after 4 steps."""
    stitch, scratch = curve([0.1, 0.2, 0.6, 0.7], 10), curve([0.0, 0.1, 0.2, 0.3, 0.6], 10)
    assert threshold_cost(scratch, 0.25, cost=in_tokens) == pytest.approx(25)
    assert saved(stitch, scratch, 0.6, cost=in_tokens, extra=5) == pytest.approx(1 - 25 / 40)
    passes = saved(stitch, scratch, 0.6, cost=lambda run: run.flops + 3 * in_tokens(run))
    assert passes == pytest.approx(1 - (20 + 60) / (40 + 120))


def test_savings_are_those_of_each_seed_where_all_arrive():
    stitch = [curve([0.0, 0.2, 0.5, 0.8], 10), curve([0.0, 0.5, 0.7, 0.9], 10)]
    scratch = [curve([0.0, 0.1, 0.2, 0.5], 10), curve([0.0, 0.1, 0.5, 0.85], 10)]
    found = savings(stitch, scratch, [0.5, 0.85], extra=2)
    shares = [1 - 22 / 30, 1 - 12 / 20]
    assert list(found) == [0.5], "the first seed never reaches 0.85"
    assert found[0.5] == over_seeds(shares) and found[0.5].value == pytest.approx(np.mean(shares))
    assert np.isnan(shares_saved(stitch, scratch, 0.85)).tolist() == [True, False]


def test_dead_latents_have_the_interval_of_the_jackknife():
    """Each document left out in turn: the latents that fire in it alone would be dead."""
    rng = np.random.default_rng(0)
    kinds = [-1] * 500 + [-2] * 1000 + [*range(2000)][::4]
    runs = [curve([0, 1], 1, fires_in=rng.choice(kinds, size=300)) for _ in range(2)]
    found = dead_latents(runs)
    without = [np.mean([(run.dead | (run.fires_in == left)).sum() for run in runs]) for left in range(2000)]
    error = np.sqrt(1999 / 2000 * np.square(without - np.mean(without)).sum())
    assert found.value == np.mean([(run.fires_in == -1).sum() for run in runs])
    assert found.high - found.value == pytest.approx(1.96 * error, rel=0.05) and error > 3
    assert found.low == max(0, 2 * found.value - found.high)
    assert dead_latents([curve([0, 1], 1, fires_in=[-2, -1, -1])]) == (2, 2, 2), "no document matters"


def test_the_frontier_is_the_best_of_the_runs_within_each_budget():
    small = curve([0.0] * 5, 10, mse=(9.0, 4.0, 3.0, 3.5, 2.5))
    large = curve([0.0] * 5, 20, mse=(9.0, 5.0, 2.8, 1.5, 1.0))
    np.testing.assert_array_equal(
        frontier([small, large], [5, 10, 30, 40, 60, 1000]), [np.nan, 4.0, 3.0, 2.5, 1.5, 1.0]
    )
    np.testing.assert_array_equal(frontier([small, large], [12, 15, 25], extra_flops=5), [np.nan, 4.0, 3.0])


def test_a_known_law_is_found_exactly():
    """Table 4, pythia-160m-deduped from scratch."""
    flops = np.logspace(14, 17, 12)
    law = fit_power_law(flops, 41.2 * flops**-0.16, range(12))
    assert law.coefficient == pytest.approx((41.2, 41.2, 41.2), rel=1e-9)
    assert law.exponent == pytest.approx((0.16, 0.16, 0.16), rel=1e-9)
    np.testing.assert_allclose(law(flops), 41.2 * flops**-0.16)


def test_a_noisy_law_is_that_of_scipy_and_the_interval_is_that_of_theory():
    rng = np.random.default_rng(1)
    flops = np.logspace(13, 17, 300)
    loss = 5 * flops**-0.1 * np.exp(0.05 * rng.normal(size=300))
    law = fit_power_law(flops, loss, range(300))
    line = linregress(np.log(flops), np.log(loss))
    assert law.exponent.value == pytest.approx(-line.slope) and law.coefficient.value == pytest.approx(
        np.exp(line.intercept)
    )
    for estimate, centre, error in (
        (law.exponent, -line.slope, line.stderr),
        (Estimate(*np.log(law.coefficient)), line.intercept, line.intercept_stderr),
    ):
        assert centre - estimate.low == pytest.approx(1.96 * error, rel=0.15)
        assert estimate.high - centre == pytest.approx(1.96 * error, rel=0.15)
    assert fit_power_law(flops, loss, range(300)) == law, "the bootstrap has a seed"


def test_groups_are_drawn_whole():
    """Three seeds that differ in level alone: each draw is the mean of three of their levels, and one slope."""
    flops = np.tile(np.logspace(13, 15, 5), 3)
    seeds = np.repeat(["x", "y", "z"], 5)
    level = np.repeat([1.0, 2.0, 4.0], 5)
    law = fit_power_law(flops, level * flops**-0.2, seeds)
    assert law.exponent == pytest.approx((0.2, 0.2, 0.2))
    assert law.coefficient == pytest.approx((2.0, 1.0, 4.0)), "1 / 27 of the draws are one seed thrice, each way"
    points = fit_power_law(flops, level * flops**-0.2, range(15))
    assert points.exponent.high - points.exponent.low > 0.05


def test_few_points_do_not_divide_by_zero():
    law = fit_power_law([1.0, 10.0], [4.0, 2.0], [0, 1])
    assert law.exponent == pytest.approx([np.log10(2)] * 3)
    assert np.isfinite(law.coefficient).all()


def test_the_law_of_several_seeds_is_fitted_to_their_frontiers():
    flops = np.array([10.0, 20.0, 40.0])
    runs = {
        seed: [curve([0.5] * 5, 10, mse=[9, *(factor * 5 * np.arange(1, 5) ** -0.5)]) for factor in (1, 2)]
        for seed in (0, 1)
    }
    expected = fit_power_law([*flops, *flops], [5, 5 / 2**0.5, 2.5] * 2, [0] * 3 + [1] * 3)
    law = frontier_law(runs, [5.0, *flops])  # nothing has begun at 5
    assert law.exponent.value == pytest.approx(0.5) and law.coefficient == pytest.approx(expected.coefficient)
    later = frontier_law(runs, flops + 3, extra_flops=3)
    assert later(13.0) == pytest.approx(5, rel=0.05)


def test_laws_cross_where_they_agree():
    """Table 4's laws for Pythia cross near 10^17.4 FLOPs."""

    def law(coefficient, exponent):
        return PowerLaw(Estimate(coefficient, *[coefficient] * 2), Estimate(exponent, *[exponent] * 2))

    scratch, stitch = law(41.2, 0.16), law(18.5, 0.14)
    where = crossing(scratch, stitch)
    assert np.log10(where) == pytest.approx(17.4, abs=0.05)
    assert scratch(where) == pytest.approx(stitch(where)) and crossing(stitch, scratch) == pytest.approx(where)
    assert crossing(scratch, scratch) is None


def test_errors():
    for groups in ([0, 1], [0, 1, 2]):
        with pytest.raises(ValueError, match="dimension"):
            fit_power_law([1, 2], [1, 2, 3], groups)
    with pytest.raises(ValueError, match="dimension"):
        fit_power_law([1, 2], [1, 2], [0, 1, 2])
    with pytest.raises(ValueError, match="positive numbers"):
        fit_power_law([0, 2], [1, 2], [0, 1])
    with pytest.raises(ValueError, match="positive numbers"):
        fit_power_law([1, 2], [1, np.nan], [0, 1])
    with pytest.raises(ValueError, match="two different FLOPs: got 1"):
        fit_power_law([2, 2], [1, 2], [0, 1])


def test_widths_are_compared_where_all_of_them_come():
    small, middle, large = (
        {at: Estimate(at + width, 0, 1) for at in reached}
        for width, reached in ((-0.6, (0.5, 0.6, 0.7)), (0.1, (0.6, 0.7, 0.8)), (0.2, (0.6, 0.7, 0.9)))
    )
    threshold, found = at_common_threshold({64: small, 128: middle, 256: large})
    assert threshold == 0.7 and list(found) == [64, 128, 256]
    assert [one.value for one in found.values()] == pytest.approx([0.1, 0.8, 0.9])
    assert at_common_threshold({64: small, 128: {0.9: small[0.5]}}) == (None, {})
    assert at_common_threshold({64: {}, 128: middle}) == (None, {})
