r"""Other people's affine maps between two residual streams, from means and second moments alone.

Orthogonal Procrustes (Schoenemann 1966; between latent spaces: Maiorca et al., arXiv 2311.00664), whitened Procrustes
(Artetxe, Labaka & Agirre 2018), reduced-rank regression (Izenman 1975), and least squares, which is Eq. 3 for alpha = 0
in one direction. For centred x and y with covariances Cxx, Cxy and Cyy they are

    least squares          P = Cxx^-1 Cxy
    reduced rank r         P = Cxx^-1 Cxy V V'            V: the r leading eigenvectors of Cxy' Cxx^-1 Cxy
    Procrustes             P = U V'                       of Cxy = U S V'
    whitened Procrustes    P = Cxx^-1/2 U V' Cyy^1/2      of Cxx^-1/2 Cxy Cyy^-1/2 = U S V'

In the last line S holds the canonical correlations. With U S V' in the place of U V' that line would be least squares,
which shrinks every canonical direction by its correlation. Whitened Procrustes keeps the directions at full length, so
that the mapped stream varies as y does, at the price of a larger squared error.

Every fit leads from x to y. `swapped` turns the moments round, and `both_ways` makes a stitch of the two directions.

Offers `fit_least_squares`, `fit_reduced_rank`, `fit_procrustes`, `fit_whitened_procrustes`; `between_means`,
`rescaled`; `swapped`, `both_ways`; for maps that need not be affine `StreamMap` and `MapPair`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from .fit import fit_exact
from .moments import PairMoments
from .stitch import AffineMap, Stitch

RIDGE = 1e-8  # of regressions, as in `fit_exact`
WHITENING_RIDGE = 1e-6  # whitening divides by the spread of every direction, down to those that hold rounding errors


def fit_least_squares(moments: PairMoments, *, ridge: float = RIDGE, dtype: torch.dtype = torch.float32) -> AffineMap:
    """Minimise the mean squared error of x P + b against y: the map up of `fit_exact` for alpha = 0.

    `ridge` times the mean eigenvalue of Cxx is added to its diagonal. ValueError for a negative ridge, too few tokens,
    or activations that do not vary at all.
    """
    return fit_exact(moments, alpha=0, ridge=ridge, dtype=dtype).up


def fit_reduced_rank(
    moments: PairMoments, rank: int, *, ridge: float = RIDGE, dtype: torch.dtype = torch.float32
) -> AffineMap:
    """Minimise the mean squared error among the maps whose P has this rank, at most the smaller of both widths.

    By Eckart and Young, the fitted values of least squares are projected on their leading principal components. At the
    largest rank it is least squares itself. ValueError for another rank, and as `fit_least_squares`.
    """
    most = min(moments.d_a, moments.d_b)
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= most:
        raise ValueError(f"rank must be a whole number from 1 to {most}, the smaller of both widths: got {rank!r}")
    full = fit_least_squares(moments, ridge=ridge, dtype=torch.float64).P
    fitted = moments.cxy.T @ full  # their covariance: symmetric but for rounding
    leading = torch.linalg.eigh((fitted + fitted.T) / 2).eigenvectors[:, -rank:]
    return between_means(full @ leading @ leading.T, moments, dtype)


def fit_procrustes(moments: PairMoments, *, scaled: bool = False, dtype: torch.dtype = torch.float32) -> AffineMap:
    """Rotate x about its mean towards y; with `scaled`, also stretch it by the one factor that fits best.

    Between streams of one width P is the orthogonal matrix of least squared error. From a narrower stream to a wider
    one it is the best matrix with orthonormal rows. From a wider one it has orthonormal columns: it is the best
    rotation of x towards y padded with zeros, so the way down is the transpose of the way up (without a factor).
    ValueError for activations that do not vary at all.
    """
    _check_varying(moments)
    left, _, right = torch.linalg.svd(moments.cxy, full_matrices=False)
    rotation = between_means(left @ right, moments, torch.float64)
    return (rescaled(rotation, moments) if scaled else rotation).to(dtype)


def fit_whitened_procrustes(
    moments: PairMoments, *, ridge: float = WHITENING_RIDGE, dtype: torch.dtype = torch.float32
) -> AffineMap:
    """Whiten x, rotate it towards the whitened y, and give it the spread of y.

    A direction whose variance is less than `ridge` times the mean variance of its stream is not whitened but faded out,
    since its full length would be noise. Without a ridge, and from a stream that is no narrower, the mapped stream has
    the covariance of y. ValueError for a negative ridge, and for activations that do not vary at all.
    """
    if ridge < 0:
        raise ValueError(f"ridge must not be negative: got {ridge}")
    _check_varying(moments)
    (inverse_x, _), (inverse_y, root_y) = (_roots(matrix, ridge) for matrix in (moments.cxx, moments.cyy))
    left, _, right = torch.linalg.svd(inverse_x @ moments.cxy @ inverse_y, full_matrices=False)
    return between_means(inverse_x @ left @ right @ root_y, moments, dtype)


def rescaled(fitted: AffineMap, moments: PairMoments) -> AffineMap:
    """Multiply P by the one factor of least squared error, and let the mean of x lead to that of y.

    A map that keeps lengths, or takes them from y, has a larger error than one that says less where it knows less;
    with its factor it can be compared with least squares. ValueError for a map that is constant over these tokens.
    """
    P = fitted.P.to(moments.mean)
    spread = (P * (moments.cxx @ P)).sum()
    if spread <= 0:
        raise ValueError("the map leads all tokens to one place: no factor makes it better")
    return between_means(P * ((P * moments.cxy).sum() / spread), moments, fitted.P.dtype)


def swapped(moments: PairMoments) -> PairMoments:
    """Turn moments of (x, y) into those of (y, x)."""
    d_a = moments.d_a
    order = torch.cat([torch.arange(d_a, d_a + moments.d_b), torch.arange(d_a)]).to(moments.mean.device)
    result = PairMoments(moments.d_b, d_a)
    result.count, result.left_out = moments.count, moments.left_out
    result.mean, result.scatter = moments.mean[order], moments.scatter[order][:, order]
    return result


def both_ways(fit: Callable[..., AffineMap], moments: PairMoments, *given, **options) -> Stitch:
    """Make a stitch of `fit(moments, ...)` and of the same fit from y to x: `both_ways(fit_reduced_rank, moments, 8)`.

    Each direction is fitted by itself; nothing makes one the inverse of the other.
    """
    return Stitch.of(fit(moments, *given, **options), fit(swapped(moments), *given, **options))


@runtime_checkable
class StreamMap(Protocol):
    """What an `AffineMap`, a `ReluMap` and a `GeodesicMap` have in common."""

    @property
    def d_in(self) -> int:
        """The width of the stream that it reads."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """Map a stream (..., d_in), and answer in its dtype and on its device."""
        ...

    def to(self, *args, **kwargs) -> "StreamMap":
        """Copy the map to another device or dtype."""
        ...


@dataclass(frozen=True)
class MapPair:
    """Two maps that need not be affine, in the place of a `Stitch` where its maps are only called."""

    up: StreamMap
    down: StreamMap

    def to(self, *args, **kwargs) -> "MapPair":
        """Copy the maps to another device or dtype."""
        return MapPair(self.up.to(*args, **kwargs), self.down.to(*args, **kwargs))


def between_means(matrix: Tensor, moments: PairMoments, dtype: torch.dtype) -> AffineMap:
    """Add the bias that carries the mean of x to that of y."""
    return AffineMap(matrix, moments.mean_y - moments.mean_x @ matrix).to(dtype)


def _roots(covariance: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Compute the symmetric C^1/2 (C + ridge)^-1, which is C^-1/2 but for directions without variance, and C^1/2."""
    values, vectors = torch.linalg.eigh(covariance)
    roots = values.clamp_min(0).sqrt()
    inverses = roots / (roots.square() + max(ridge, 1e-15) * values.mean())
    return (vectors * inverses) @ vectors.T, (vectors * roots) @ vectors.T


def _check_varying(moments: PairMoments) -> None:
    for name, covariance in (("x", moments.cxx), ("y", moments.cyy)):
        if covariance.trace() <= 0:
            said = f"the activations {name} do not vary over {moments.count} tokens"
            raise ValueError(f"{said}: there is nothing to fit")
