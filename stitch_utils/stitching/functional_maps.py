r"""Latent functional maps: few pairs of tokens tell how functions on one stream become functions on the other.

Fumero et al. (arXiv 2406.14183), after Ovsjanikov et al. (2012). The tokens of a sample make a graph of neighbours in
each stream. The slowest eigenfunctions of its Laplacian, I - D^-1/2 W D^-1/2, are a basis Phi of smooth functions on
the tokens. A functional map C carries coefficients in the basis of A to those in the basis of B. It is found from
functions that are known on both sides: the cosines to the same anchors (relative representations). With
F_A = Phi_A' (cosines) and eigenvalues a, b,

    C = argmin |C F_A - F_B|^2 + weight sum_ij (b_i - a_j)^2 C_ij^2

where the second term asks C to commute with the Laplacians. Each row of C is a small linear system. The function that
is one at a single token has that token's row of Phi as coefficients, so C also says which token of B belongs to each of
A: the one whose row of Phi_B is the nearest to what C makes of its row of Phi_A. As in that paper, these matches stand
for pairs that nobody knows, and an affine map is fitted to them.

The anchors' pairs are known, and no others are used. Left out are that paper's third term, by which C commutes with
products of functions, and its refinement of matches.

Offers `laplacian_basis`, `Basis`; `functional_map`, `FunctionalMap`; `fit_functional`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse.linalg import eigsh
from torch import Tensor

from .maps import fit_least_squares
from .moments import PairMoments
from .neighbours import neighbour_graph
from .relative import check_sample, relative
from .stitch import AffineMap


class Basis(NamedTuple):
    """The slowest eigenfunctions of the Laplacian of a graph."""

    values: Float[Tensor, " k"]
    """The eigenvalues from 0 upwards, at most 2."""
    functions: Float[Tensor, "n k"]
    """The value of each function at each point; columns of length one."""


class FunctionalMap(NamedTuple):
    """How functions on the tokens of A become functions on those of B."""

    C: Float[Tensor, "k k"]
    """From coefficients in the basis of A (a column) to coefficients in the basis of B."""
    matches: Int[Tensor, " n"]
    """The place of the token of B that belongs to each token of A. Anchors belong to themselves."""


def laplacian_basis(points: Float[Tensor, "n d"], *, functions: int, neighbours: int) -> Basis:
    """Compute the slowest eigenfunctions of the normalised Laplacian of the graph of neighbours, by angles.

    Points are centred and scaled to length one. An edge of length l weighs exp(-l^2 / mean l^2), as the heat kernel
    does (Belkin & Niyogi 2003). ValueError unless `functions` is from 1 to n - 1, and as `neighbour_graph`.
    """
    if not 1 <= functions < len(points):
        raise ValueError(f"functions must be from 1 to {len(points) - 1} for {len(points)} points: got {functions}")
    centred = points.double().cpu() - points.double().cpu().mean(0)
    weights = neighbour_graph(torch.nn.functional.normalize(centred, dim=1), neighbours)
    squares = weights.data**2
    weights.data = np.exp(-squares / squares.mean())
    roots = np.sqrt(weights.sum(axis=0))
    weights.data /= roots[weights.indices] * np.repeat(roots, np.diff(weights.indptr))
    start = np.random.default_rng(0).standard_normal(len(points))  # ARPACK's own would differ from run to run
    values, vectors = eigsh(weights, functions, which="LA", v0=start)
    slowest = np.argsort(-values)
    return Basis(torch.from_numpy(1 - values[slowest]), torch.from_numpy(vectors[:, slowest]))


def functional_map(
    x: Float[Tensor, "n d_a"],
    y: Float[Tensor, "n d_b"],
    anchors: Int[Tensor, " k"],
    *,
    functions: int = 50,
    neighbours: int = 10,
    weight: float = 1.0,
) -> FunctionalMap:
    """Find C from the anchors, and the matches of all tokens of the sample.

    `functions` is the size of both bases, and `weight` that of the second term as a share of the mean eigenvalue of
    F_A F_A'. ValueError for a negative weight, and as `laplacian_basis` and `check_sample`.
    """
    if weight < 0:
        raise ValueError(f"weight must not be negative: got {weight}")
    check_sample(x, y, anchors)
    samples, anchors = [part.double().cpu() for part in (x, y)], anchors.cpu()
    samples = [part - part.mean(0) for part in samples]
    bases = [laplacian_basis(part, functions=functions, neighbours=neighbours) for part in samples]
    given, wanted = (basis.functions.T @ relative(part, part[anchors]) for basis, part in zip(bases, samples))
    gram = given @ given.T
    level = gram.trace() / functions
    gaps = bases[1].values[:, None] - bases[0].values
    # Functions that no anchor tells of are left at zero by a trace of a ridge.
    systems = gram + torch.diag_embed(weight * level * gaps.square() + 1e-9 * level)
    C = torch.linalg.solve(systems, wanted @ given.T)
    matches = torch.cdist(bases[0].functions @ C.T, bases[1].functions).argmin(1)
    matches[anchors] = anchors
    return FunctionalMap(C, matches)


def fit_functional(
    x: Float[Tensor, "n d_a"],
    y: Float[Tensor, "n d_b"],
    anchors: Int[Tensor, " k"],
    *,
    fit: Callable[[PairMoments], AffineMap] = fit_least_squares,
    **options,
) -> AffineMap:
    """Fit an affine map to the matches of `functional_map`, which takes the options, by any fit from moments.

    Least squares suits many matches, and `fit_procrustes` few or doubtful ones. ValueError as `functional_map`.
    """
    matches = functional_map(x, y, anchors, **options).matches
    moments = PairMoments(x.shape[1], y.shape[1])
    moments.update(x, y[matches.to(y.device)])
    return fit(moments)
