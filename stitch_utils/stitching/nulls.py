"""Stitches that know two streams and nothing of which tokens they share: what a fitted stitch has to beat.

No section of the paper, which compares with Gaussian maps alone. Two streams with a few wide dimensions each can be
mapped into each other by their spectra: the widest direction of one to the widest of the other, and so on. Such maps
keep most of the variance in its place, so an SAE that is carried by them looks far better than one carried by Gaussian
maps, and yet no token was paired with itself.

Offers `component_stitch`.
"""

import torch
from torch import Tensor

from .moments import PairMoments
from .stitch import Stitch


def component_stitch(moments: PairMoments, seed: int, *, dtype: torch.dtype = torch.float32) -> Stitch:
    """Map principal components of x to those of y by their rank, with random signs, each scaled to the other's spread.

    Means are mapped to means. The stream of fewer dimensions has a component for each of them; further components of
    the other are not used. ValueError for moments of no tokens.
    """
    r = min(moments.d_a, moments.d_b)
    (of_x, spread_x), (of_y, spread_y) = (_components(matrix, r) for matrix in (moments.cxx, moments.cyy))
    signs = torch.randint(2, (r,), generator=torch.Generator().manual_seed(seed)).to(of_x) * 2 - 1
    up = of_x * (signs * _ratio(spread_y, spread_x)) @ of_y.T
    down = of_y * (signs * _ratio(spread_x, spread_y)) @ of_x.T
    mean_x, mean_y = moments.mean_x, moments.mean_y
    return Stitch(up, mean_y - mean_x @ up, down, mean_x - mean_y @ down, about={"components_seed": seed}).to(dtype)


def _components(covariance: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Compute the r widest principal components, (d, r), and their standard deviations, the widest first."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors.flip(-1)[:, :r], values.flip(-1)[:r].clamp_min(0).sqrt()


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Divide spreads; a component that does not vary is carried to nothing."""
    varies = below > 1e-7 * below.max()
    return torch.where(varies, above / below.where(varies, torch.ones_like(below)), torch.zeros_like(above))
