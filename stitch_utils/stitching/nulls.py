"""Nulls for a fitted stitch: stitches that know both streams, but not which of their tokens correspond.

No section of the paper, which compares with Gaussian maps alone. Two streams with a few wide dimensions each can be
mapped into each other by their spectra: the widest direction of one to the widest of the other, and so on. Such maps
keep most of the variance in its place, so an SAE that is carried by them looks far better than one carried by Gaussian
maps, and yet no token was paired with itself.

Pairing can also be broken before the fit. Over a whole text that gives no null of its own: with independent pairs the
cross moments of x and y vanish, so that the minimum of Eq. 3 maps all to the mean at alpha = 0, which has a row of its
own in Table 1, and above it the inversion terms alone pull towards a map between the two spectra, as above. Within
documents it gives no null at all: whatever the tokens of a document share stays paired, and a linear map that is
learned from it serves their differences, too, only shrunk. Such a fit says how much of the map documents alone give.

Offers `component_stitch`; `component_stitches`, several draws of its signs, and their number `DRAWS`; `strongest` of
several draws, and `null_of` a stitched pair; `shuffled_moments`, for a fit with tokens shuffled within documents.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.text import PairedBatch, TokenBatch
from ..models.harvest import NormLimits, usual
from ..models.language_model import LanguageModel
from .evaluation import measure_fidelity
from .moments import PairMoments, owned_residuals
from .pair import StitchedPair
from .stitch import Stitch

DRAWS = 19  # what is the largest of these and one more by chance is so once in twenty times
COMPARED_ROWS = 8  # of held-out text, on which draws are compared: they differ by more than nats


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


def shuffled_moments(
    models: tuple[LanguageModel, LanguageModel],
    layers: tuple[int, int],
    batches: Iterable[PairedBatch | TokenBatch],
    *,
    seed: int,
    limits: NormLimits | None = None,
) -> PairMoments:
    """Gather moments in which each token of A meets a random token of B, of the same document and batch."""
    moments = PairMoments(*(model.d_model for model in models))
    generator = torch.Generator().manual_seed(seed)
    for documents, xs, ys in owned_residuals(*models, batches, layers[:1], layers[1:]):
        x, y = xs[layers[0]], shuffled_within(ys[layers[1]], documents, generator).to(xs[layers[0]].device)
        moments.update(*((x, y) if limits is None else usual(x, y, limits)))
    return moments


def shuffled_within(
    y: Float[Tensor, "n d_b"], documents: Int[Tensor, " n"], generator: torch.Generator
) -> Float[Tensor, "n d_b"]:
    """Put the rows of each document in random order."""
    mixed = torch.randperm(len(y), generator=generator)
    mixed = mixed[documents[mixed].argsort(stable=True)]  # by document, in random order within each
    order = torch.empty_like(mixed)
    order[documents.argsort(stable=True)] = mixed
    return y[order.to(y.device)]


def strongest(
    draws: Sequence[Stitch],
    models: tuple[LanguageModel, LanguageModel],
    layers: tuple[int, int],
    batches: Iterable[PairedBatch | TokenBatch],
    *,
    limits: NormLimits | None = None,
) -> Stitch:
    """Join the map up that gives the lowest cross-entropy in A->B, of several draws, to the best map down in B->A."""
    named = {str(number): stitch for number, stitch in enumerate(draws)}
    found = measure_fidelity(*models, *layers, named, batches, limits=limits, conditions=("a_to_b", "b_to_a"))

    def best(condition: str) -> Stitch:
        return named[min(named, key=lambda name: found.cross_entropy(name, condition).value)]

    return Stitch.of(best("a_to_b").up, best("b_to_a").down)


def null_of(stitched: StitchedPair, *, draws: int = DRAWS, seed: int = 0) -> Stitch:
    """Take the strongest of several component stitches of a pair, by the first `COMPARED_ROWS` of held-out text."""
    first = itertools.islice(next(stitched.evaluation_batches()).split(COMPARED_ROWS), 1)
    drawn = list(component_stitches(stitched.moments, draws, seed=seed))
    return strongest(drawn, stitched.models, stitched.layers, first, limits=stitched.limits)


def _components(covariance: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Compute the r widest principal components, (d, r), and their standard deviations, the widest first."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors.flip(-1)[:, :r], values.flip(-1)[:r].clamp_min(0).sqrt()


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Divide spreads; a component that does not vary is carried to nothing."""
    varies = below > 1e-7 * below.max()
    return torch.where(varies, above / below.where(varies, torch.ones_like(below)), torch.zeros_like(above))


def component_stitches(moments: PairMoments, draws: int = DRAWS, *, seed: int = 0) -> Iterator[Stitch]:
    """Give `component_stitch(moments, seed)`, and others with new signs; the components are computed once for all."""
    first = component_stitch(moments, seed, dtype=torch.float64)
    of_y, _ = _components(moments.cyy, min(moments.d_a, moments.d_b))
    generator = torch.Generator().manual_seed(seed)
    mean_x, mean_y = moments.mean_x, moments.mean_y
    drawn = [torch.randint(2, (of_y.shape[1],), generator=generator).to(of_y) * 2 - 1 for _ in range(draws)]
    for signs in drawn:
        turn = of_y * (signs * drawn[0]) @ of_y.T  # (d_b, d_b): some components of y change the signs of `first`
        up, down = first.P_up @ turn, turn @ first.P_down
        yield Stitch(up, mean_y - mean_x @ up, down, mean_x - mean_y @ down).to(torch.float32)
