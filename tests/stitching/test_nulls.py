"""The stitch by principal components: what it keeps, what it knows nothing of, and where it is not defined."""

import numpy as np
import pytest
import torch

from stitch_utils.stitching.moments import PairMoments
from stitch_utils.stitching.nulls import component_stitch


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
