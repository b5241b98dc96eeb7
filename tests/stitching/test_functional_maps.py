"""Functional maps: the basis against a dense Laplacian, C against one large least squares, and matches of streams that
are the same but for a rotation."""

import itertools

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import laplacian
from toy_samples import rotated, share_of_variance, shuffled_but, streams
from toy_streams import moments_of

from stitch_utils.stitching.functional_maps import fit_functional, functional_map, laplacian_basis
from stitch_utils.stitching.maps import fit_least_squares, fit_procrustes
from stitch_utils.stitching.neighbours import neighbour_graph
from stitch_utils.stitching.relative import draw_anchors, relative


def centred(x):
    return x - x.mean(0)


def test_the_basis_is_that_of_the_dense_laplacian():
    x = streams(7, 12)[0]
    basis = laplacian_basis(x, functions=12, neighbours=5)
    directions = torch.nn.functional.normalize(centred(x), dim=1)
    lengths = neighbour_graph(directions, 5).toarray()
    joined = [(i, j) for i, j in itertools.product(range(len(x)), repeat=2) if lengths[i, j] > 0]
    typical = np.mean([lengths[pair] ** 2 for pair in joined])
    weights = np.zeros_like(lengths)
    for pair in joined:
        weights[pair] = np.exp(-(lengths[pair] ** 2) / typical)
    values, functions = np.linalg.eigh(laplacian(weights, normed=True))
    np.testing.assert_allclose(basis.values, values[:12], atol=1e-9)
    signs = np.sign((basis.functions.numpy() * functions[:, :12]).sum(0))
    np.testing.assert_allclose(basis.functions.numpy() * signs, functions[:, :12], atol=1e-6)
    again = laplacian_basis(x, functions=12, neighbours=5)
    assert torch.equal(basis.functions, again.functions), "the same to the last digit"


def test_c_is_the_minimum_of_the_two_terms():
    x, y = streams(7, 12)
    anchors, size = draw_anchors(len(x), 10), 6
    found = functional_map(x, y, anchors, functions=size, neighbours=5, weight=0.7).C
    bases = [laplacian_basis(part, functions=size, neighbours=5) for part in (x, y)]
    cosines = [relative(centred(part), centred(part)[anchors]).numpy() for part in (x, y)]
    given, wanted = (basis.functions.numpy().T @ part for basis, part in zip(bases, cosines))
    factor = np.sqrt(0.7 * np.trace(given @ given.T) / size)
    (slow_a, slow_b), rows, targets = (basis.values.numpy() for basis in bases), [], []
    for i, k in itertools.product(range(size), range(10)):  # one equation for each descriptor and function of B
        rows.append(np.zeros((size, size)))
        rows[-1][i] = given[:, k]
        targets.append(wanted[i, k])
    for i, j in itertools.product(range(size), repeat=2):
        rows.append(np.zeros((size, size)))
        rows[-1][i, j] = factor * (slow_b[i] - slow_a[j])
        targets.append(0)
    expected = np.linalg.lstsq(np.array(rows).reshape(len(rows), -1), np.array(targets))[0].reshape(size, size)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_of_streams_that_differ_by_a_rotation_all_tokens_are_matched():
    x = streams(7, 12)[0]
    y, anchors = rotated(x, 12), draw_anchors(len(x), 12)
    found = functional_map(x, y, anchors, functions=20, neighbours=6)
    torch.testing.assert_close(found.C.abs(), torch.eye(20, dtype=torch.float64), rtol=0, atol=1e-3)
    assert torch.equal(found.matches, torch.arange(len(x)))
    fitted = fit_functional(x, y, anchors, functions=20, neighbours=6, fit=lambda m: fit_procrustes(m, scaled=True))
    torch.testing.assert_close(fitted(x), y, rtol=1e-4, atol=1e-4)


def test_matches_are_found_by_anchors_alone():
    x = streams(7, 12)[0]
    y = rotated(x, 12)
    y = y + 0.1 * y.std() * torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    anchors = draw_anchors(len(x), 20)
    options = {"functions": 15, "neighbours": 6}
    found = functional_map(x, y, anchors, **options).matches
    assert torch.equal(found[anchors], anchors)
    assert (found == torch.arange(len(x))).float().mean() > 0.3, "chance is one in a hundred and fifty, and anchors"
    other, order = shuffled_but(y, anchors)
    assert torch.equal(order[functional_map(x, other, anchors, **options).matches], found)


def test_the_map_is_fitted_to_the_matches():
    x, y = streams(7, 12)
    anchors, options = draw_anchors(len(x), 20), {"functions": 15, "neighbours": 6, "weight": 0.3}
    matches = functional_map(x, y, anchors, **options).matches
    found, expected = fit_functional(x, y, anchors, **options), fit_least_squares(moments_of(x, y[matches]))
    torch.testing.assert_close(found.P, expected.P)
    torch.testing.assert_close(found.b, expected.b)
    turned = fit_functional(x, y, anchors, fit=fit_procrustes, **options)
    torch.testing.assert_close(turned.P, fit_procrustes(moments_of(x, y[matches])).P)
    known = fit_least_squares(moments_of(x, y))
    assert share_of_variance(known(x), y) < share_of_variance(found(x), y) < 1


def test_what_has_no_functional_map():
    x, y = streams(7, 12)
    anchors = draw_anchors(len(x), 10)
    for functions in (0, 150):
        with pytest.raises(ValueError, match=f"functions must be from 1 to 149 for 150 points: got {functions}"):
            functional_map(x, y, anchors, functions=functions)
    with pytest.raises(ValueError, match="weight must not be negative: got -1"):
        functional_map(x, y, anchors, weight=-1.0)
    with pytest.raises(ValueError, match="two or more different anchors"):
        fit_functional(x, y, torch.tensor([1]))
    with pytest.raises(ValueError, match="neighbours must be from 1"):
        fit_functional(x, y, anchors, neighbours=150)
