"""Maps through similarities to anchors: cosines against scikit-learn, the inverse written out token by token, graphs
and ways along them against naive ones, and relations that only some of the maps can follow."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.manifold import Isomap
from sklearn.metrics.pairwise import cosine_similarity
from toy_samples import rotated, share_of_variance, shuffled_but, streams
from toy_streams import moments_of

from stitch_utils.stitching.maps import fit_least_squares
from stitch_utils.stitching.neighbours import graph_distances, neighbour_graph
from stitch_utils.stitching.relative import GeodesicMap, draw_anchors, fit_geodesic, fit_relative, relative

WIDTHS = [(7, 12), (9, 9), (12, 7)]


# ---- cosines ------------------------------------------------------------------------------------------------------


def test_cosines_against_scikit_learn():
    x, anchors = streams(7, 12)[0], streams(7, 12)[0][:20] + 1
    x[3] = 0
    np.testing.assert_allclose(relative(x, anchors), cosine_similarity(x, anchors), atol=1e-12)


def test_anchors_are_different_tokens_drawn_from_a_seed():
    drawn = [draw_anchors(30, 30), draw_anchors(30, 8), draw_anchors(30, 8, seed=1)]
    assert sorted(drawn[0].tolist()) == list(range(30)) and len(drawn[1]) == 8
    assert torch.equal(drawn[1], draw_anchors(30, 8)) and not torch.equal(drawn[1], drawn[2])
    for count in (1, 31):
        with pytest.raises(ValueError, match=f"from 2 to 30, the tokens of the sample: got {count}"):
            draw_anchors(30, count)


@pytest.mark.parametrize(("d_a", "d_b"), WIDTHS)
@pytest.mark.parametrize(("count", "ridge"), [(40, 0.0), (5, 0.0), (40, 0.2)])
def test_the_inverse_projection_token_by_token(d_a, d_b, count, ridge):
    x, y = streams(d_a, d_b)
    anchors = draw_anchors(len(x), count)
    found = fit_relative(x, y, anchors, ridge=ridge, dtype=torch.float64)
    (inputs, targets) = ((part - part.mean(0)).numpy() for part in (x, y))
    rows = targets[anchors] / np.linalg.norm(targets[anchors], axis=1, keepdims=True)
    # A ridge is as many further rows that ask for zero.
    penalty = np.sqrt(ridge * count / d_b) * np.eye(d_b)
    directions = []
    for token in inputs:
        cosines = cosine_similarity(token[None], inputs[anchors])[0]
        wanted = np.concatenate([cosines, np.zeros(d_b)])
        direction = np.linalg.lstsq(np.concatenate([rows, penalty]), wanted, rcond=1e-10)[0]
        directions.append(direction * np.linalg.norm(token))
    mapped = np.array(directions)
    mapped *= np.sqrt((targets**2).sum() / (mapped**2).sum())
    np.testing.assert_allclose(found(x), mapped + y.mean(0).numpy(), atol=1e-8)


def test_it_is_the_transpose_of_the_regression_of_the_anchors_of_a_on_those_of_b():
    x, y = streams(7, 12)
    anchors = draw_anchors(len(x), 40)
    found = fit_relative(x, y, anchors, ridge=0, dtype=torch.float64).P.numpy()
    rows = [part[anchors] - part.mean(0) for part in (x, y)]
    rows_x, rows_y = (part / part.norm(dim=1, keepdim=True) for part in rows)
    expected = LinearRegression(fit_intercept=False).fit(rows_y, rows_x).coef_
    np.testing.assert_allclose(found / np.linalg.norm(found), expected / np.linalg.norm(expected), atol=1e-10)


@pytest.mark.parametrize(("d_a", "d_b"), WIDTHS[:2])
def test_a_planted_rotation_is_recovered(d_a, d_b):
    x = streams(d_a, d_b)[0]
    y = rotated(x, d_b)
    found = fit_relative(x, y, draw_anchors(len(x), 20), ridge=0, dtype=torch.float64)
    torch.testing.assert_close(found(x), y)


def test_no_pair_but_those_of_anchors_counts():
    x, y = streams(9, 9)
    anchors = draw_anchors(len(x), 20)
    other = shuffled_but(y, anchors)[0]
    one, two = (fit_relative(x, part, anchors, dtype=torch.float64) for part in (y, other))
    torch.testing.assert_close(one.P, two.P)
    torch.testing.assert_close(one.b, two.b)
    of_others = fit_relative(x, y, draw_anchors(len(x), 20, seed=1), dtype=torch.float64)
    assert not torch.allclose(of_others.P, one.P, rtol=0.1)


# ---- graphs -------------------------------------------------------------------------------------------------------


def naive_graph(points, neighbours):
    """Neighbours of each point in turn, then edges from the shortest on, where they join two parts (Kruskal)."""
    n = len(points)
    lengths = [[float(np.linalg.norm(points[i] - points[j])) for j in range(n)] for i in range(n)]
    graph = np.zeros((n, n))
    for i in range(n):
        for j in sorted((j for j in range(n) if j != i), key=lambda j, i=i: lengths[i][j])[:neighbours]:
            graph[i, j] = graph[j, i] = lengths[i][j]
    part = list(range(n))
    for i, j in sorted(itertools.combinations(range(n), 2), key=lambda edge: lengths[edge[0]][edge[1]]):
        if part[i] != part[j]:
            graph[i, j] = graph[j, i] = lengths[i][j]
            part = [part[i] if each == part[j] else each for each in part]
    return graph


@pytest.mark.parametrize("neighbours", [1, 3])
def test_graphs_against_naive_ones(neighbours):
    points = streams(7, 12, n=40)[0] + 1000
    points[20:] += 100  # two heaps
    graph = neighbour_graph(points, neighbours)
    np.testing.assert_allclose(graph.toarray(), naive_graph(points.numpy(), neighbours), rtol=1e-7)
    assert (graph.toarray()[:20, 20:] > 0).sum() == 1, "the shortest step between the heaps, and no other"


def test_ways_against_scikit_learn():
    points = torch.rand(60, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = Isomap(n_neighbors=12).fit(points.numpy()).dist_matrix_
    found = graph_distances(neighbour_graph(points, 12), torch.tensor([5, 0, 9]))
    np.testing.assert_allclose(found, expected[:, [5, 0, 9]], rtol=1e-7)


def test_the_same_token_twice_is_no_distance_away():
    points = streams(7, 12, n=40)[0]
    points[7] = points[3]
    found = graph_distances(neighbour_graph(points, 2), torch.tensor([3, 20]))
    assert found.isfinite().all() and found[7, 0] < 1e-6 * found[20, 0]
    assert found[7, 1] == pytest.approx(found[3, 1].item(), rel=1e-6)


def test_graphs_that_cannot_be_made():
    for neighbours in (0, 20):
        with pytest.raises(ValueError, match=f"neighbours must be from 1 to 19 for 20 points: got {neighbours}"):
            neighbour_graph(torch.rand(20, 3), neighbours)
    with pytest.raises(ValueError, match="the 20 points are all the same"):
        neighbour_graph(torch.ones(20, 3), 2)


# ---- geodesics ----------------------------------------------------------------------------------------------------


def rolled(n, seed=0):
    """A strip in the plane, and the same strip rolled up in space, eight times as large: (flat, roll)."""
    flat = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * torch.tensor([9, 2])
    angle = (1 + 4 * flat[:, 0]).sqrt() * 2  # an Archimedean spiral, passed at about the same speed everywhere
    return flat, torch.stack([angle * angle.cos(), angle * angle.sin(), flat[:, 1] * 8], 1)


def test_distances_along_a_roll_unroll_it_and_no_affine_map_does():
    flat, roll = rolled(500)
    x, y, anchors = roll[:400], flat[:400], draw_anchors(400, 40)
    new_x, new_y = roll[400:], flat[400:]
    along = fit_geodesic(x, y, anchors, neighbours=8, ridge=1e-4)
    affine = fit_least_squares(moments_of(x, y))
    assert share_of_variance(along(new_x), new_y) < 0.02
    assert share_of_variance(affine(new_x), new_y) > 0.3
    assert share_of_variance(fit_relative(x, y, anchors)(new_x), new_y) > 0.3


@pytest.mark.parametrize(("d_a", "d_b"), WIDTHS[:2])
def test_straight_ways_carry_a_rotation(d_a, d_b):
    """With all others as neighbours, ways are straight, and decoding is exact."""
    x = streams(d_a, d_b, n=80)[0]
    y = rotated(x, d_b)
    found = fit_geodesic(x[:60], y[:60], draw_anchors(60, 20), neighbours=59, ridge=1e-13)
    torch.testing.assert_close(found(x[:60]), y[:60], rtol=1e-5, atol=1e-5)
    assert share_of_variance(found(x[60:]), y[60:]) < 0.05, "a new token may lack the anchor that is farthest away"


def test_new_tokens_go_by_their_nearest_neighbours():
    x, y = streams(7, 12)
    new = x[:10] + 0.3
    anchors = draw_anchors(len(x), 15)
    found = fit_geodesic(x, y, anchors, neighbours=4)
    ways = graph_distances(neighbour_graph(x, 4), anchors)
    torch.testing.assert_close(found.relative(x), ways, rtol=1e-6, atol=1e-6)
    for token, measured in zip(new, found.relative(new)):
        steps = (x - token).norm(dim=1)
        near = steps.argsort()[:4]
        expected = [min((steps[i] + ways[i, k]).item() for i in near) for k in range(15)]
        np.testing.assert_allclose(measured, expected, rtol=1e-9)


def test_decoding_is_learnt_in_b_from_inner_products():
    x, y = streams(7, 12)
    anchors = draw_anchors(len(x), 15)
    found = fit_geodesic(x, y, anchors, neighbours=6, ridge=0.1)

    def features(part):
        squares = graph_distances(neighbour_graph(part, 6), anchors).numpy() ** 2
        return -(squares - squares.mean(1, keepdims=True)) / 2, squares[anchors].mean()

    (of_x, apart_x), (of_y, apart_y) = features(x), features(y)
    penalty = 0.1 * of_y.var(0).mean() * len(y)
    decode = Ridge(alpha=penalty).fit(of_y, y).coef_.T
    expected = (of_x - of_x.mean(0)) @ decode * apart_y / apart_x + y.mean(0).numpy()
    np.testing.assert_allclose(found(x), expected, rtol=1e-6, atol=1e-6)
    # No pair but those of anchors counts.
    other = fit_geodesic(x, shuffled_but(y, anchors)[0], anchors, neighbours=6, ridge=0.1)
    torch.testing.assert_close(found(x), other(x))


def test_a_geodesic_map_answers_as_an_affine_map_does():
    x, y = streams(7, 12)
    found = fit_geodesic(x, y, draw_anchors(len(x), 15))
    assert isinstance(found, GeodesicMap) and found.d_in == 7
    answer = found(x)
    rows = torch.cat([x] * 14)  # more than are mapped at once
    torch.testing.assert_close(found(rows), torch.cat([answer] * 14))
    torch.testing.assert_close(found(x.reshape(3, 50, 7)), answer.reshape(3, 50, 12))
    assert found(x.float()).dtype == torch.float32 and found(x[:0]).shape == (0, 12)
    half = found.to(torch.float32)
    assert half.P.dtype == half.points.dtype == torch.float32 and half.neighbours == found.neighbours
    torch.testing.assert_close(half(x), answer, rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match=r"the map was given shape \(2, 8\): expected \(\.\.\., 7\)"):
        found(torch.zeros(2, 8))


# ---- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", [fit_relative, fit_geodesic])
def test_samples_that_cannot_be_fitted(fit):
    x, y = streams(7, 12)
    anchors = draw_anchors(len(x), 15)
    still, broken = torch.ones_like(y), y.clone()
    broken[3, 2] = torch.nan
    with pytest.raises(ValueError, match=r"y of shape \(n, d_b\): got \(150, 7\) and \(149, 12\)"):
        getattr(fit, "__wrapped__", fit)(x, y[1:], anchors)
    with pytest.raises(ValueError, match="the sample y holds values that are not finite"):
        fit(x, broken, anchors)
    with pytest.raises(ValueError, match="the sample y does not vary over 150 tokens"):
        fit(x, still, anchors)
    for wrong in ([3], [3, 3], [-1, 3], [3, 150]):
        with pytest.raises(ValueError, match="two or more different anchors, each a place from 0 to 149"):
            fit(x, y, torch.tensor(wrong))
    with pytest.raises(ValueError, match="must not be negative"):
        fit(x, y, anchors, ridge=-1.0)
