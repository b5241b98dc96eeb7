"""Affine maps from moments against scipy, scikit-learn and NumPy on the activations themselves, for a narrower, an
equal and a wider source; and what each of them is defined by."""

import itertools

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.cross_decomposition import CCA
from sklearn.linear_model import LinearRegression
from toy_streams import gaussian_pair, moments_of

from stitch_utils.stitching.fit import fit_exact
from stitch_utils.stitching.maps import (
    both_ways,
    fit_least_squares,
    fit_procrustes,
    fit_reduced_rank,
    fit_whitened_procrustes,
    rescaled,
    swapped,
)
from stitch_utils.stitching.moments import PairMoments
from stitch_utils.stitching.stitch import AffineMap

WIDTHS = [(7, 12), (9, 9), (12, 7)]
EXACT = {"dtype": torch.float64}


def streams(d_a, d_b, seed=0):
    """Correlated streams off centre: (x, y), float64."""
    return gaussian_pair(seed, 30, d_a, d_b, n=400, shared=6)


def error(fitted, x, y):
    """The mean squared error, as Eq. 3 has it."""
    return (fitted(x) - y).square().mean().item()


def assert_leads_from_mean_to_mean(fitted, x, y):
    torch.testing.assert_close(fitted(x.mean(0)), y.mean(0))


# ---- least squares and reduced rank -------------------------------------------------------------------------------


@pytest.mark.parametrize(("d_a", "d_b"), WIDTHS)
def test_least_squares_against_scikit_learn(d_a, d_b):
    x, y = streams(d_a, d_b)
    expected = LinearRegression().fit(x, y)
    found = fit_least_squares(moments_of(x, y), ridge=0, **EXACT)
    np.testing.assert_allclose(found.P, expected.coef_.T, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.b, expected.intercept_, rtol=1e-8, atol=1e-10)
    assert fit_least_squares(moments_of(x, y)).P.dtype == torch.float32


def test_the_ridge_is_a_share_of_the_mean_variance():
    x, y = streams(7, 12)
    inputs, targets = (part - part.mean(0) for part in (x, y))
    gram = (inputs.T @ inputs / len(x)).numpy()
    penalty = 0.3 * np.trace(gram) / 7 * np.eye(7)
    expected = np.linalg.solve(gram + penalty, (inputs.T @ targets / len(x)).numpy())
    found = fit_least_squares(moments_of(x, y), ridge=0.3, **EXACT)
    np.testing.assert_allclose(found.P, expected, rtol=1e-9)
    assert_leads_from_mean_to_mean(found, x, y)


def best_of_rank(x, y, rank):
    """The least error of rank r: least squares, and the singular values of its fitted values that are cut off."""
    fitted = LinearRegression().fit(x, y).predict(x)
    left, sizes, right = np.linalg.svd(fitted - fitted.mean(0), full_matrices=False)
    kept = (left[:, :rank] * sizes[:rank]) @ right[:rank] + fitted.mean(0)
    return ((kept - y.numpy()) ** 2).mean(), kept


@pytest.mark.parametrize(("d_a", "d_b"), WIDTHS)
def test_reduced_rank_is_the_truncated_svd_of_the_fitted_values(d_a, d_b):
    x, y = streams(d_a, d_b)
    moments = moments_of(x, y)
    errors = []
    for rank in range(1, 8):
        found = fit_reduced_rank(moments, rank, ridge=0, **EXACT)
        best, kept = best_of_rank(x, y, rank)
        np.testing.assert_allclose(found(x), kept, atol=1e-9)
        assert error(found, x, y) == pytest.approx(best, rel=1e-10)
        assert np.linalg.matrix_rank(found.P.numpy()) == rank
        errors.append(error(found, x, y))
    assert all(after < before for before, after in itertools.pairwise(errors))
    full, squares = fit_reduced_rank(moments, min(d_a, d_b), **EXACT), fit_least_squares(moments, **EXACT)
    torch.testing.assert_close(full.P, squares.P)
    torch.testing.assert_close(full.b, squares.b)


def test_no_product_of_two_thin_matrices_has_a_smaller_error():
    x, y = gaussian_pair(0, 2, 7, 12, n=400, shared=6)
    ours = error(fit_reduced_rank(moments_of(x, y), 2, ridge=0, **EXACT), x, y)
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(3):
        sizes = ((7, 2), (2, 12), (12,))
        parts = [torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_() for size in sizes]
        optimizer = torch.optim.LBFGS(parts, max_iter=500, line_search_fn="strong_wolfe")

        def loss(parts=parts):
            return (x @ parts[0] @ parts[1] + parts[2] - y).square().mean()

        def closure(parts=parts, optimizer=optimizer, loss=loss):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value

        optimizer.step(closure)
        found.append(loss().item())
    assert min(found) == pytest.approx(ours, rel=1e-6) and min(found) >= ours * (1 - 1e-10)


@pytest.mark.parametrize("rank", [0, 8, -1, 2.0, True])
def test_a_rank_that_no_map_has_is_refused(rank):
    with pytest.raises(ValueError, match=f"rank must be a whole number from 1 to 7, .*: got {rank}"):
        getattr(fit_reduced_rank, "__wrapped__", fit_reduced_rank)(moments_of(*streams(7, 12)), rank)


# ---- Procrustes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d_a", "d_b"), WIDTHS)
@pytest.mark.parametrize("scaled", [False, True])
def test_procrustes_against_scipy_on_streams_padded_with_zeros(d_a, d_b, scaled):
    x, y = streams(d_a, d_b)
    inputs, targets = ((part - part.mean(0)).numpy() for part in (x, y))
    wide = max(d_a, d_b)
    padded = [np.pad(part, ((0, 0), (0, wide - part.shape[1]))) for part in (inputs, targets)]
    expected = orthogonal_procrustes(*padded)[0][:d_a, :d_b]
    if scaled:
        mapped = inputs @ expected
        expected = expected * np.linalg.lstsq(mapped.reshape(-1, 1), targets.reshape(-1), rcond=None)[0]
    found = fit_procrustes(moments_of(x, y), scaled=scaled, **EXACT)
    np.testing.assert_allclose(found.P, expected, atol=1e-10)
    assert_leads_from_mean_to_mean(found, x, y)


@pytest.mark.parametrize(("d_a", "d_b"), WIDTHS)
def test_the_rotation_is_orthogonal_and_the_way_back_is_its_transpose(d_a, d_b):
    stitch = both_ways(fit_procrustes, moments_of(*streams(d_a, d_b)), **EXACT)
    narrow = stitch.P_up if d_a <= d_b else stitch.P_up.T
    torch.testing.assert_close(narrow @ narrow.T, torch.eye(min(d_a, d_b), dtype=torch.float64))
    torch.testing.assert_close(stitch.P_down, stitch.P_up.T)


@pytest.mark.parametrize(("d_a", "d_b"), WIDTHS[:2])
def test_a_planted_rotation_is_recovered(d_a, d_b):
    x, _ = streams(d_a, d_b)
    generator = torch.Generator().manual_seed(1)
    rotation = torch.linalg.qr(torch.randn(d_b, d_a, generator=generator, dtype=torch.float64))[0].T
    y = 3 * (x @ rotation) + 5
    moments = moments_of(x, y)
    torch.testing.assert_close(fit_procrustes(moments, **EXACT).P, rotation)
    found = fit_procrustes(moments, scaled=True, **EXACT)
    torch.testing.assert_close(found.P, 3 * rotation)
    torch.testing.assert_close(found(x), y)
    back = fit_procrustes(swapped(moments), scaled=True, **EXACT)
    torch.testing.assert_close(back(y), x)


def test_a_factor_and_a_bias_leave_the_least_error_that_they_can():
    x, y = streams(7, 12)
    given = AffineMap(torch.randn(7, 12, generator=torch.Generator().manual_seed(3)).double(), torch.ones(12).double())
    found = rescaled(given, moments_of(x, y))
    centred = [(part - part.mean(0)).reshape(-1).numpy() for part in (given(x), y)]
    factor = np.linalg.lstsq(centred[0][:, None], centred[1], rcond=None)[0].item()
    np.testing.assert_allclose(found.P, factor * given.P, rtol=1e-9)
    assert_leads_from_mean_to_mean(found, x, y)
    assert rescaled(given.to(torch.float32), moments_of(x, y)).P.dtype == torch.float32
    with pytest.raises(ValueError, match="the map leads all tokens to one place"):
        rescaled(AffineMap(torch.zeros(7, 12), torch.ones(12)), moments_of(x, y))


# ---- whitened Procrustes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d_a", "d_b"), WIDTHS)
def test_whitened_procrustes_carries_canonical_directions_into_each_other(d_a, d_b):
    """Scikit-learn's directions v of y, read off the mapped stream, are its directions u of x at unit variance."""
    x, y = streams(d_a, d_b)
    found = fit_whitened_procrustes(moments_of(x, y), ridge=0, **EXACT)
    cca = CCA(n_components=4, scale=False, max_iter=20_000, tol=1e-14).fit(x.numpy(), y.numpy())
    pairs = zip(cca.x_rotations_.T, cca.y_rotations_.T)
    centred = [(part - part.mean(0)).numpy() for part in (x, y)]
    for of_x, of_y in pairs:
        of_x, of_y = (each / (part @ each).std() for each, part in zip((of_x, of_y), centred))
        np.testing.assert_allclose(found.P.numpy() @ of_y, of_x, atol=1e-5)


@pytest.mark.parametrize(("d_a", "d_b"), WIDTHS)
def test_the_mapped_stream_varies_as_the_target_does(d_a, d_b):
    x, y = streams(d_a, d_b)
    found = fit_whitened_procrustes(moments_of(x, y), ridge=0, **EXACT)
    covariance = np.cov(found(x).numpy(), rowvar=False)
    if d_a >= d_b:
        np.testing.assert_allclose(covariance, np.cov(y.numpy(), rowvar=False), rtol=1e-6, atol=1e-8)
    else:
        assert np.linalg.matrix_rank(covariance, tol=1e-8) == d_a
    assert_leads_from_mean_to_mean(found, x, y)
    assert error(found, x, y) > error(fit_least_squares(moments_of(x, y), **EXACT), x, y)


def test_any_invertible_map_is_recovered_by_whitening_and_not_by_a_rotation():
    x, _ = streams(9, 9)
    y = x @ torch.randn(9, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64) - 4
    moments = moments_of(x, y)
    assert error(fit_whitened_procrustes(moments, ridge=0, **EXACT), x, y) < 1e-12
    assert error(fit_procrustes(moments, scaled=True, **EXACT), x, y) > 0.1


def test_whitening_leaves_dead_dimensions_of_both_streams_alone():
    streams_alive = streams(7, 12)
    x, y = (torch.cat([part, torch.full((400, 1), 4.0, dtype=torch.float64)], 1) for part in streams_alive)
    found, expected = (fit_whitened_procrustes(moments_of(*part), **EXACT) for part in ((x, y), streams_alive))
    torch.testing.assert_close(found.P[:7, :12], expected.P, rtol=1e-4, atol=1e-4)
    assert found.P[7].abs().max() < 1e-6 and found.P[:, 12].abs().max() < 1e-6
    assert found.b[12] == pytest.approx(4)


def test_the_ridge_of_whitening_fades_directions_out():
    """Of variances 1 and 9, whose mean is 5, there remain v / (v + 5 ridge): uncorrelated dimensions stay apart."""
    one = torch.tensor([-1.0, 1.0]).double()
    x = torch.cartesian_prod(one, 3 * one)
    found = fit_whitened_procrustes(moments_of(x, 2 * x + 1), ridge=0.2, **EXACT)
    torch.testing.assert_close(found.P, 2 * torch.diag(torch.tensor([1 / 2, 9 / 10])).double())


# ---- directions and refusals --------------------------------------------------------------------------------------


def test_swapped_moments_are_those_of_the_swapped_streams():
    x, y = streams(7, 12)
    moments = moments_of(x, y)
    moments.left_out = 3
    found, expected = swapped(moments), moments_of(y, x)
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.scatter, expected.scatter)
    assert (found.d_a, found.d_b, found.count, found.left_out) == (12, 7, 400, 3)


@pytest.mark.parametrize("fit", [fit_least_squares, fit_procrustes, fit_whitened_procrustes])
def test_a_stitch_of_both_directions(fit):
    x, y = streams(7, 12)
    stitch, up, down = both_ways(fit, moments_of(x, y)), fit(moments_of(x, y)), fit(moments_of(y, x))
    for name, expected in (("P_up", up.P), ("b_up", up.b), ("P_down", down.P), ("b_down", down.b)):
        torch.testing.assert_close(getattr(stitch, name), expected)
    assert both_ways(fit_reduced_rank, moments_of(x, y), 2, ridge=0.1).P_down.shape == (12, 7)


def test_least_squares_both_ways_is_the_exact_fit_without_inversion_terms():
    moments = moments_of(*streams(7, 12))
    found, expected = both_ways(fit_least_squares, moments, ridge=1e-3), fit_exact(moments, alpha=0, ridge=1e-3)
    torch.testing.assert_close(found.P_up, expected.P_up)
    torch.testing.assert_close(found.P_down, expected.P_down)


@pytest.mark.parametrize("fit", [fit_least_squares, fit_procrustes, fit_whitened_procrustes])
def test_what_cannot_be_fitted(fit):
    x, y = streams(7, 12)
    for still, name in ((moments_of(torch.ones_like(x), y), "x"), (moments_of(x, torch.ones_like(y)), "y")):
        with pytest.raises(ValueError, match=f"activations {name} do not vary over 400 tokens: there is nothing"):
            fit(still)
    with pytest.raises(ValueError, match="at least one is needed"):
        fit(PairMoments(7, 12))
    if fit is not fit_procrustes:
        with pytest.raises(ValueError, match="must not be negative"):
            fit(moments_of(x, y), ridge=-1.0)
