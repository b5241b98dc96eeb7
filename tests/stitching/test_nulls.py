"""Stitches without pairing: what they keep, what they know nothing of, and where they are not defined."""

import numpy as np
import pytest
import torch
from toy_streams import ArrayModel, rows_of

from stitch_utils.models.harvest import NormLimits
from stitch_utils.stitching.evaluation import measure_fidelity
from stitch_utils.stitching.fit import fit_exact
from stitch_utils.stitching.moments import PairMoments, harvest_moments
from stitch_utils.stitching.nulls import (
    COMPARED_ROWS,
    DRAWS,
    component_stitch,
    component_stitches,
    null_of,
    shuffled_moments,
    shuffled_within,
    strongest,
)
from stitch_utils.stitching.pair import StitchedPair


def moments_of(x, y):
    moments = PairMoments(x.shape[1], y.shape[1])
    moments.update(torch.from_numpy(x), torch.from_numpy(y))
    return moments


def streams(seed, n=500, d_a=4, d_b=6):
    rng = np.random.default_rng(seed)
    spread_a, spread_b = (np.diag(2.0 ** -np.arange(d)) for d in (d_a, d_b))
    mixed = [np.linalg.qr(rng.normal(size=(d, d)))[0] for d in (d_a, d_b)]
    return (
        rng.normal(size=(n, d_a)) @ spread_a @ mixed[0] + 3,
        rng.normal(size=(n, d_b)) @ spread_b @ mixed[1] - 1,
    )


@pytest.mark.parametrize(("d_a", "d_b"), [(4, 6), (6, 4), (5, 5)])
def test_components_go_to_those_of_their_rank(d_a, d_b):
    """Against numpy's SVD of the centred streams, a component at a time."""
    x, y = streams(0, d_a=d_a, d_b=d_b)
    stitch = component_stitch(moments_of(x, y), seed=1, dtype=torch.float64)
    (_, s_x, v_x), (_, s_y, v_y) = (np.linalg.svd(z - z.mean(0), full_matrices=False) for z in (x, y))
    up, down = stitch.P_up.numpy(), stitch.P_down.numpy()
    signs = []
    for rank in range(min(d_a, d_b)):
        image = v_x[rank] @ up / (s_y[rank] / s_x[rank])
        signs.append(round(float(image @ v_y[rank])))
        assert np.allclose(image, signs[-1] * v_y[rank]) and abs(signs[-1]) == 1
        assert np.allclose(v_y[rank] @ down, signs[-1] * (s_x[rank] / s_y[rank]) * v_x[rank])
    for rank in range(min(d_a, d_b), d_a):
        assert np.allclose(v_x[rank] @ up, 0)
    assert np.allclose(stitch.up(torch.from_numpy(x.mean(0))), y.mean(0))
    assert np.allclose(stitch.down(torch.from_numpy(y.mean(0))), x.mean(0))


def test_the_way_back_is_the_inverse_and_the_covariance_is_the_other_streams():
    x, y = streams(1, d_a=5, d_b=5)
    moments = moments_of(x, y)
    stitch = component_stitch(moments, seed=0, dtype=torch.float64)
    assert torch.allclose(stitch.down(stitch.up(torch.from_numpy(x))), torch.from_numpy(x))
    assert np.allclose(np.cov(stitch.up(torch.from_numpy(x)).T, bias=True), moments.cyy)


def test_it_does_not_know_which_tokens_belong_together():
    x, y = streams(2)
    there = component_stitch(moments_of(x, y), seed=3, dtype=torch.float64)
    shuffled = component_stitch(moments_of(x, y[::-1].copy()), seed=3, dtype=torch.float64)
    assert torch.allclose(there.P_up, shuffled.P_up)
    assert np.allclose(there.up(torch.from_numpy(x)).var(0), shuffled.up(torch.from_numpy(x)).var(0))


def test_signs_follow_the_seed():
    x, y = streams(4)
    moments = moments_of(x, y)
    first, again, other = (component_stitch(moments, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.P_up, again.P_up) and not torch.allclose(first.P_up, other.P_up)
    assert first.P_up.dtype == torch.float32 and first.about["components_seed"] == 0


def test_directions_that_do_not_vary_are_carried_to_nothing():
    x, y = streams(5, d_a=4, d_b=4)
    x[:, 0] = 7
    stitch = component_stitch(moments_of(x, y), seed=0, dtype=torch.float64)
    assert torch.isfinite(stitch.P_up).all() and torch.isfinite(stitch.P_down).all()
    assert np.linalg.matrix_rank(stitch.P_up.numpy(), tol=1e-6) == 3
    assert np.allclose(stitch.P_up[0], 0, atol=1e-6)


def test_moments_of_nothing():
    with pytest.raises(ValueError, match="moments of 0 tokens"):
        component_stitch(PairMoments(2, 3), seed=0)


def array_models(seed, documents=30, length=20, topics=1.0):
    """Two models whose streams are images of one code, of which a part is the same all through a document."""
    rng = np.random.default_rng(seed)
    code = rng.normal(size=(documents * length, 4)) + topics * rng.normal(size=(documents, 4)).repeat(length, axis=0)
    x, y = (torch.from_numpy(code @ rng.normal(size=(4, d)) + 0.01 * rng.normal(size=(len(code), d))) for d in (5, 7))
    return (ArrayModel(x, "a"), ArrayModel(y, "b")), rows_of(0, documents, length)


def test_rows_are_shuffled_within_documents_and_nowhere_else():
    documents = torch.tensor([3, 1, 3, 3, 1, 2, 3, 1])
    y = torch.arange(8.0)[:, None]
    found = {
        tuple(shuffled_within(y, documents, torch.Generator().manual_seed(seed))[:, 0].tolist()) for seed in range(50)
    }
    assert len(found) > 20
    for order in found:
        assert sorted(order) == list(range(8))
        assert all(documents[int(row)] == document for row, document in zip(order, documents))


def test_shuffled_moments_keep_what_tokens_of_a_document_share():
    """Against the expectation: cross moments of the documents' means, and each stream's own moments as they are."""
    models, batch = array_models(0)
    paired = harvest_moments(*models, [batch], [(1, 1)])[1, 1]
    drawn = [shuffled_moments(models, (1, 1), [batch], seed=seed) for seed in range(40)]
    assert all(torch.allclose(one.cxx, paired.cxx) and torch.allclose(one.cyy, paired.cyy) for one in drawn)
    x, y = (model.rows[batch.tokens[:, 1:]].double() for model in models)  # (documents, tokens, d)
    means = [side.mean(1) - side.mean((0, 1)) for side in (x, y)]
    expected = means[0].T @ means[1] / len(x)
    found = torch.stack([one.cxy for one in drawn]).mean(0)
    assert torch.allclose(found, expected, atol=0.15) and expected.abs().max() > 0.5
    assert not torch.allclose(found, paired.cxy, atol=0.5)


def test_shuffled_tokens_leave_out_outliers():
    models, batch = array_models(1)
    limits = NormLimits(*(model.rows.norm(dim=1).quantile(0.8).item() for model in models))
    found = shuffled_moments(models, (1, 1), [batch], seed=0, limits=limits)
    within = [
        int((model.rows[batch.tokens[batch.mask]].norm(dim=1) <= limit).sum()) for model, limit in zip(models, limits)
    ]
    assert 0 < found.count <= min(within)


def test_a_fit_on_shuffled_tokens_learns_from_what_documents_share():
    """Topics that hold a share t of the code's variance make it t times the map: of the code, 1 - t is left out."""
    for topics in (0.0, 0.5, 2.0):
        models, batch = array_models(2, documents=200, topics=topics)
        fitted = fit_exact(harvest_moments(*models, [batch], [(1, 1)])[1, 1], alpha=0)
        shuffled = fit_exact(shuffled_moments(models, (1, 1), [batch], seed=0), alpha=0)
        stitches = {"fitted": fitted, "shuffled": shuffled}
        found = measure_fidelity(*models, 1, 1, stitches, [batch])  # a loss of 1 more is that of the mean
        rises = {name: found.increase(name, "a_to_b").value for name in stitches}
        expected = (1 - topics**2 / (1 + topics**2)) ** 2
        assert rises["fitted"] < 0.01 < rises["shuffled"] == pytest.approx(expected, rel=0.25), topics


def test_the_strongest_of_several_draws_has_the_best_map_each_way():
    models, batch = array_models(3)
    moments = harvest_moments(*models, [batch], [(1, 1)])[1, 1]
    draws = [component_stitch(moments, seed) for seed in range(6)]
    best = strongest(draws, models, (1, 1), [batch])
    losses = measure_fidelity(*models, 1, 1, {str(i): each for i, each in enumerate(draws)} | {"best": best}, [batch])
    for condition in ("a_to_b", "b_to_a"):
        each = [losses.cross_entropy(str(i), condition).value for i in range(6)]
        assert losses.cross_entropy("best", condition).value == min(each) < max(each)


def test_the_null_of_a_pair_is_the_strongest_on_its_first_rows(pair, models):
    stitched = StitchedPair(pair, models, (1, 2), "smoke")
    null, draws = null_of(stitched, draws=3, seed=5), list(component_stitches(stitched.moments, 3, seed=5))
    first = next(stitched.evaluation_batches())
    assert len(first.a.tokens) > COMPARED_ROWS
    best = strongest(draws, models, (1, 2), [next(first.split(COMPARED_ROWS))])
    assert torch.equal(null.P_up, best.P_up) and torch.equal(null.P_down, best.P_down)


@pytest.mark.parametrize(("d_a", "d_b"), [(4, 6), (6, 4), (5, 5)])
def test_draws_differ_from_one_component_stitch_in_signs_alone(d_a, d_b):
    x, y = streams(6, d_a=d_a, d_b=d_b)
    moments = moments_of(x, y)
    one, found = component_stitch(moments, seed=0), list(component_stitches(moments))
    v_x, v_y = (np.linalg.svd(z - z.mean(0), full_matrices=False)[2][: min(d_a, d_b)] for z in (x, y))
    signs = []
    for stitch in found:
        ours, its = (v_x @ each.P_up.double().numpy() @ v_y.T for each in (stitch, one))
        signs.append(np.sign(np.diag(ours)))
        assert np.allclose(np.abs(ours), np.abs(its), atol=1e-5)
        back, its = (v_y @ each.P_down.double().numpy() @ v_x.T for each in (stitch, one))
        assert np.allclose(np.abs(back), np.abs(its), atol=1e-5) and (np.sign(np.diag(back)) == signs[-1]).all()
        assert np.allclose(stitch.up(torch.from_numpy(x.mean(0))), y.mean(0), atol=1e-5)
        assert np.allclose(stitch.down(torch.from_numpy(y.mean(0))), x.mean(0), atol=1e-5)
    assert torch.allclose(found[0].P_up, one.P_up, atol=1e-6) and torch.allclose(found[0].P_down, one.P_down, atol=1e-6)
    assert len(found) == DRAWS and (np.std(signs, axis=0) > 0.5).all(), "each sign is drawn"
    assert torch.equal(found[3].P_up, list(component_stitches(moments, 4))[3].P_up)
    assert not torch.equal(found[0].P_up, next(component_stitches(moments, seed=1)).P_up)
