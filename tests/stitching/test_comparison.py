"""All maps of one pair side by side: which pairs of tokens each was fitted to, and what is compared with what."""

import itertools

import numpy as np
import pytest
import torch
from toy_samples import streams
from toy_streams import moments_of

from stitch_utils.data.pairs import SCALES, load_pair
from stitch_utils.stitching.comparison import (
    ANCHORED,
    ANCHORS_ALONE,
    FOLDS,
    TITLES,
    ComparisonConfig,
    FittedMap,
    compare_maps,
    comparison_config,
    comparison_numbers,
    fit_contrasts,
    fit_maps,
    judged_batches,
)
from stitch_utils.stitching.evaluation import Fidelity, HostCounts
from stitch_utils.stitching.lrt_maps import MapErrors
from stitch_utils.stitching.maps import MapPair, fit_least_squares
from stitch_utils.stitching.pair import StitchedPair
from stitch_utils.stitching.stitch import Stitch
from stitch_utils.utils.stats import Estimate

CONFIG = ComparisonConfig(
    sample=300,
    anchors=20,
    functions=6,
    hidden=4,
    relu_steps=2,
    tuning_steps=2,
    tuning_rows=4,
    documents=6,
    ranks=(2, 40),
)


@pytest.fixture
def stitched(small_pair):
    return StitchedPair.open(small_pair(), "smoke")


@pytest.fixture
def fitted(stitched):
    x, y = streams(*(model.d_model for model in stitched.models), n=60)
    return fit_maps(stitched, CONFIG, (x.float(), y.float()))


def test_every_scale_has_sizes():
    pair = load_pair("tiny")
    configs = [comparison_config(pair, scale, seed=3) for scale in SCALES]
    assert all(config.seed == 3 and 128 < config.anchors < config.sample for config in configs), "B is 128 wide"


def test_every_map_is_fitted_measured_and_listed(stitched, fitted):
    known = [name for name in fitted if not name.startswith("rank_")]
    assert known == list(TITLES) and [name for name in fitted if name not in known] == ["rank_2"], "40 is too wide"
    assert fitted["exact"].stitch is stitched.stitch
    bent = {name for name, one in fitted.items() if one.stitch is None}
    assert bent == {"relu", "geodesic"} and all(isinstance(fitted[name].maps, MapPair) for name in bent)
    assert fitted["tuned"].flops > fitted["relu"].flops > 0 and fitted["exact"].flops is None
    fidelity, errors = compare_maps(stitched, CONFIG, fitted)
    numbers = comparison_numbers("mine", fitted, fidelity, errors)
    assert {id.split(".")[2] for id in numbers if id.endswith(".seconds")} == set(fitted)
    assert all(np.isfinite(value) for value in numbers.values())
    given = {"a": [], "b": []}
    assert len(fidelity.counts["a"].tokens) == 6, "documents of nine"
    for batch in judged_batches(stitched, CONFIG):
        for side, (model, layer) in zip("ab", zip(stitched.models, stitched.layers)):
            given[side].append(model.residuals(getattr(batch, side).tokens, [layer])[layer][batch.met_b])
    x, y = (torch.cat(given[side]).double() for side in "ab")
    for name, (side, of, target) in itertools.product(fitted, (("b", x, y), ("a", y, x))):
        mapped = (fitted[name].maps.up if side == "b" else fitted[name].maps.down)(of)
        expected = (mapped - target).square().sum() / (target - target.mean(0)).square().sum()
        assert numbers[f"maps.mine.{name}.fuv.{side}"] == pytest.approx(expected.item(), rel=1e-3), name


def test_both_maps_of_the_stitch_are_tuned(stitched, fitted):
    for name in ("P_up", "P_down"):
        start = getattr(stitched.stitch, name)
        moved = (getattr(fitted["tuned"].maps, name) - start).abs().max()
        # a step of Adam moves an entry by the rate at most, and there are two
        assert 0 < moved <= 2 * CONFIG.tuning_rate * start.square().mean().sqrt(), name


@pytest.mark.parametrize("name", ["anchors_least_squares", "relative"])
def test_a_map_of_few_anchors_has_no_more_dimensions_than_they(fitted, name):
    P = fitted[name].maps.P_up.double()
    assert 1 < torch.linalg.matrix_rank(P, rtol=1e-5) <= CONFIG.anchors < min(P.shape)


def test_contrasts_are_fitted_about_zero_and_between_the_streams_means():
    x, y = streams(5, 7, n=400)
    x, y = x + 4, y - 3  # a mean, which a difference must not be rid of
    whole = moments_of(*streams(5, 7))
    found = fit_contrasts(x, y, whole)
    for P, given, wanted in ((found.P_up, x, y), (found.P_down, y, x)):
        naive = np.linalg.lstsq(given.numpy(), wanted.numpy(), rcond=None)[0]
        np.testing.assert_allclose(P, naive, atol=0.06 * np.abs(naive).max())  # but for the ridge
    torch.testing.assert_close(found.up(whole.mean_x.float()), whole.mean_y.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.down(whole.mean_y.float()), whole.mean_x.float(), rtol=1e-4, atol=1e-4)
    centred = fit_least_squares(moments_of(x, y)).P
    assert (found.P_up - centred).abs().max() > 0.1 * centred.abs().max(), "the mean counts"


def test_a_contrast_and_its_opposite_are_in_one_fold():
    """Pure noise: were a difference's opposite in another fold, the ridge would be chosen to fit it."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(8 * FOLDS, 30, generator=generator, dtype=torch.float64) for _ in range(2))
    found = fit_contrasts(x, y, moments_of(x, y))
    assert found.P_up.norm() < 0.3 * torch.linalg.lstsq(x, y).solution.norm()


def test_what_is_compared_with_what():
    """Two documents, and losses that only the right differences turn into these numbers."""
    losses = dict(zip(TITLES, itertools.count(30.0, 2.0))) | {"anchors_least_squares": 45.0, "anchors_procrustes": 47.0}
    sums = {(name, way): np.array([loss, loss]) for name, loss in losses.items() for way in ("a_to_b", "b_to_a")}
    sums["anchors_least_squares", "b_to_a"] = np.array([49.0, 49.0])
    owns = ("a", "b", "a_without_layer", "b_without_layer")
    sums |= {("own", own): np.array([20.0, 20.0]) for own in owns}
    fidelity = Fidelity(dict.fromkeys("ab", HostCounts(np.array([10.0, 10.0]), None, None)), sums)
    one = Estimate(0.5, 0.4, 0.6)
    errors = {(name, side): MapErrors(one, one) for name in TITLES for side in "ab"}
    errors["relu", "a"] = MapErrors(one, one._replace(value=0.4))
    stitch = FittedMap(Stitch.identity(2), 1.0, None, "")
    fitted = {name: stitch._replace(title=title) for name, title in TITLES.items()}
    numbers = comparison_numbers("mine", fitted, fidelity, errors)
    for name, way in itertools.product(TITLES, ("a_to_b", "b_to_a")):
        if name != "exact":
            gap, id = losses[name] - 30, f"maps.mine.{name}.{way}"
            if (name, way) != ("anchors_least_squares", "b_to_a"):
                assert numbers[f"{id}.difference"] == pytest.approx(gap / 10)
                assert numbers[f"{id}.saved"] == pytest.approx(-gap / 10)
        anchors = f"maps.mine.{name}.{way}.anchors"
        assert (anchors in numbers) == (name in ANCHORED)
        if name in ANCHORED:
            assert numbers[anchors] == pytest.approx((losses[name] - {"a_to_b": 45, "b_to_a": 47}[way]) / 10)
    relu, squares = losses["relu"], losses["least_squares"]
    assert numbers["maps.mine.relu.a_to_b.bends"] == pytest.approx((squares - relu) / (squares - 20))
    assert numbers["maps.mine.relu.explained.a"] == pytest.approx(0.2) and not numbers["maps.mine.relu.explained.b"]
    assert set(ANCHORS_ALONE) < set(TITLES) and "maps.mine.exact.a_to_b.difference" not in numbers
