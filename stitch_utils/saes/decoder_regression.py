r"""Regressing one SAE's decoder on another's, and what two unrelated decoders would leave.

The sister paper's Fig. 2 (arXiv 2506.00653) asks whether the decoder of the small model's SAE (n latents, width d_to)
is a linear image of the large one's (n, d_from), and reports the norm of what

    min_M || W_to - W_from M ||_F

leaves. That number says nothing by itself. Whatever the d regressors are, their columns span d of n dimensions; rows of
W_to that have unit length and nothing to do with them keep the share (n - d) / n of their squared length outside, so

    || W_to - W_from M ||_F  ~  sqrt(n (1 - d / n)),

exactly so in the mean of the square, since rows drawn independently around zero are orthogonal to each other in the
mean. Only what is clearly below it is a relation. There is a second trap: row i of one decoder and row i of the other
are two latents that no one has matched. SAEs number their latents as they were initialised, so for two of them that
were trained apart the rows are unrelated even where the models agree. `match_latents` pairs each latent with the one
that fires most like it on the same tokens, without a look at the decoders.

Offers `decoder_regression`, `DecoderRegression`, `chance_norm`, `match_latents`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor

from ..utils.progress import progress
from ..utils.stats import Estimate, from_draws


class DecoderRegression(NamedTuple):
    """What a regression leaves, beside what it would leave of unrelated rows."""

    residual: float
    """Frobenius norm of what is left."""
    total: float
    """Of W_to itself (around its mean row, with an intercept)."""
    chance: float
    """`chance_norm` for rows of the lengths that W_to's have."""
    simulated: Estimate
    """The same by simulation: rows drawn evenly from the sphere, at these lengths; mean and 95% of the draws."""
    shuffled: Estimate
    """W_to's own rows in another order: unrelated, but with whatever direction they share. As above."""


def chance_norm(n: int, d: int, *, squares: float | None = None, intercept: bool = False) -> float:
    """Norm that `d` regressors leave of `n` unrelated rows of unit length, or with this sum of squared lengths.

    An intercept is one regressor more. 0 where there are as many regressors as rows. ValueError for counts below one.
    """
    if n < 1 or d < 1:
        raise ValueError(f"expected at least one row and one regressor: got {n} and {d}")
    return float(((n if squares is None else squares) * max(0.0, 1 - (d + intercept) / n)) ** 0.5)


def decoder_regression(
    W_from: Float[Tensor, "latents d_from"],
    W_to: Float[Tensor, "_ d_to"],
    *,
    intercept: bool = False,
    draws: int = 20,
    seed: int = 0,
) -> DecoderRegression:
    """Least squares of `W_to`'s rows on `W_from`'s, and the same for `draws` draws of unrelated rows.

    ValueError for matrices of different lengths.
    """
    if len(W_from) != len(W_to):
        raise ValueError(f"decoders of {len(W_from)} and {len(W_to)} latents: expected as many of both")
    given, wanted = (matrix.detach().double() for matrix in (W_from, W_to.to(W_from.device)))
    if intercept:
        given = torch.cat([given, torch.ones_like(given[:, :1])], dim=1)
    left, values, _ = torch.linalg.svd(given, full_matrices=False)
    basis = left[:, values > values[0] * max(given.shape) * torch.finfo(given.dtype).eps]  # of what the columns span

    def norm(rows: Tensor) -> float:
        return (rows - basis @ (basis.T @ rows)).norm().item()

    generator = torch.Generator().manual_seed(seed)
    lengths, simulated, shuffled = wanted.norm(dim=1, keepdim=True), [], []
    for _ in range(draws):
        drawn = torch.randn(wanted.shape, generator=generator, dtype=torch.float64).to(wanted)
        simulated.append(norm(drawn / drawn.norm(dim=1, keepdim=True) * lengths))
        shuffled.append(norm(wanted[torch.randperm(len(wanted), generator=generator).to(wanted.device)]))
    total = (wanted - wanted.mean(0)) if intercept else wanted
    return DecoderRegression(
        norm(wanted),
        total.norm().item(),
        chance_norm(len(wanted), W_from.shape[1], squares=lengths.square().sum().item(), intercept=intercept),
        from_draws(float(np.mean(simulated)), np.array(simulated)),
        from_draws(float(np.mean(shuffled)), np.array(shuffled)),
    )


class Matches(NamedTuple):
    """Latents of one SAE with their likes in another."""

    latents: Int[Tensor, " matched"]
    """Those of the first that fire on the text."""
    partners: Int[Tensor, " matched"]
    """Of the second, the one whose activations correlate most with each. One may be the partner of several."""
    correlations: Float[Tensor, " matched"]


@torch.no_grad()
def match_latents(saes: tuple[SAE, SAE], batches: Iterable[tuple[Tensor, Tensor]]) -> Matches:
    """For each latent of the first SAE the one of the second that fires most like it, on the streams (x, y) of the same
    tokens.

    Pearson's correlation of the activations, from sums over all tokens. ValueError where one SAE fires nowhere.
    """
    count, cross = 0, 0
    sums: list = [0, 0]
    squares: list = [0, 0]
    for streams in progress(batches, "latents"):
        codes = [sae.encode(stream.to(sae.W_enc)) for sae, stream in zip(saes, streams)]
        wide = torch.promote_types(codes[0].dtype, torch.float32)
        codes = [code.to(codes[0].device, wide) for code in codes]
        count += len(codes[0])
        cross = cross + (codes[0].T @ codes[1]).double()
        for side, code in enumerate(codes):
            sums[side], squares[side] = sums[side] + code.double().sum(0), squares[side] + code.double().square().sum(0)
    if not count or not all((square > 0).any() for square in squares):
        raise ValueError("an SAE fires on no token of the batches: there is nothing to match")
    spreads = [(square / count - (total / count).square()).clamp_min(0).sqrt() for square, total in zip(squares, sums)]
    covariance = cross / count - torch.outer(sums[0], sums[1]) / count**2
    # A latent that never varies correlates with nothing; -2 is below every correlation.
    both = torch.outer(*spreads)
    correlation = torch.where(both > 0, covariance / both.clamp_min(1e-300), -2.0)
    best, partners = correlation.max(dim=1)
    alive = best > -2
    return Matches(alive.nonzero()[:, 0].cpu(), partners[alive].cpu(), best[alive].float().cpu())
