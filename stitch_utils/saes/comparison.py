r"""SAEs of two models beside each other: from one's code to the other's stream, and decoder against decoder.

What the sister paper, Bello et al. (arXiv 2506.00653), does with SAEs. It fits y ~ f(x) M + c, from the latents f(x) of
A's SAE to B's stream, by AdamW on the mean length of the error; here, unless the SAE is wide, by least squares. M is a
decoder, which the main paper composes without a look at the data, W_d' = W_d P_up (Eq. 6).

Its Fig. 2 asks whether the decoder of the small model's SAE (n latents, width d_to) is a linear image of the large
one's (n, d_from). n rows of unit length that have nothing to do with the d_from regressors leave, in the mean of the
square, || W_to - W_from M ||_F ~ sqrt(n (1 - d_from / n)); only what is clearly below that is a relation. Besides, SAEs
number their latents as they were initialised, so rows of one number are unrelated even where the models agree;
`match_latents` pairs latents by how they fire.

Offers `fit_code_map`, `CodeMap`, `reconstructions`; `decoder_regression`, `DecoderRegression`; `match_latents`,
`Matches`.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor

from ..stitching.fit import fit_exact
from ..stitching.lrt_maps import Prediction, fit_unsquared_adam, moments_of
from ..stitching.stitch import AffineMap, Stitch, stitch_loss
from ..utils.progress import progress
from ..utils.stats import Estimate, from_draws
from .transfer import transfer_sae

RIDGES = (1e-6, 1e-4, 1e-2, 1e-1)
LARGEST_EXACT = 4096  # latents: beyond it the moments take more than a gigabyte
DRAWS = 20  # of unrelated rows
Pairs = Iterable[tuple[Tensor, Tensor]]


class CodeMap(NamedTuple):
    """An affine map from an SAE's latents."""

    sae: SAE
    decoder: AffineMap
    method: str
    """How the map was fitted: `exact` or `adam`."""
    ridge: float
    """The ridge, as a share of the mean variance of a latent; 0 for `adam`."""

    @property
    def flops(self) -> int:
        """FLOPs a token of encoding and decoding, at two for a multiply-add."""
        return 2 * self.sae.cfg.d_sae * (self.sae.cfg.d_in + len(self.decoder.b))

    @torch.no_grad()
    def predict(self, stream: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"]:
        """Predict the other stream from the code of this one."""
        return self.decoder(self.sae.encode(stream.to(self.sae.W_enc)))


class _Coded:
    """Pairs of an SAE's code and y, from pairs (x, y); `reads` is the place of the stream that the SAE reads."""

    def __init__(self, sae: SAE, pairs: Pairs, reads: int):
        self.sae, self.pairs, self.reads = sae, pairs, reads

    @torch.no_grad()
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for pair in self.pairs:
            code = self.sae.encode(pair[self.reads].to(self.sae.W_enc))
            yield code, pair[1].to(code)


def fit_code_map(
    sae: SAE, batches: Pairs, held_out: Pairs, *, reads: int = 0, lr: float = 1e-4, epochs: int = 4, seed: int = 0
) -> CodeMap:
    """Fit the map from an SAE's code to y: by least squares up to `LARGEST_EXACT` latents, else by AdamW.

    `batches` and `held_out` give (x, y); the SAE reads x, or y if `reads` is 1. The exact fit takes the one of `RIDGES`
    that predicts `held_out` best; AdamW reads `batches` alone, and takes `lr`, `epochs` and `seed`.
    """
    coded = _Coded(sae, batches, reads)
    if sae.cfg.d_sae <= LARGEST_EXACT:
        moments, validation = moments_of(coded), moments_of(_Coded(sae, held_out, reads))
        stitches = {ridge: fit_exact(moments, alpha=0, ridge=ridge) for ridge in RIDGES}
        best = min(stitches, key=lambda ridge: stitch_loss(stitches[ridge], validation, alpha=0).up)
        return CodeMap(sae, stitches[best].up.to(sae.W_enc), "exact", best)
    widths = {"d_a": sae.cfg.d_sae, "d_b": next(iter(batches))[1].shape[1]}
    recipe = {"lr": lr, "epochs": epochs, "seed": seed, "device": sae.W_enc.device}
    fit = fit_unsquared_adam(coded, **widths, **recipe, up_alone=True)
    return CodeMap(sae, fit.up.to(sae.W_enc), "adam", 0.0)


def reconstructions(
    sae: SAE, stitch: Stitch, batches: Pairs, held_out: Pairs, **options
) -> tuple[dict[str, Prediction], dict[str, CodeMap]]:
    """Predict B's stream from the code of an SAE of A in four ways, and give the two fitted maps, by `a` and `b`.

    The ways are `a_composed`, `a_fitted` (the sister paper's map), `b_composed` (the transferred SAE, Eq. 6) and
    `b_fitted`. `batches` and `held_out` give (x, y); `options` are those of `fit_code_map`.
    """
    moved = transfer_sae(sae, stitch)
    maps = {
        "a": fit_code_map(sae, batches, held_out, **options),
        "b": fit_code_map(moved, batches, held_out, reads=1, **options),
    }
    predictions = {
        "a_composed": ("b", lambda x, y: stitch.up(sae(x.to(sae.W_enc)).to(stitch.P_up))),
        "a_fitted": ("b", lambda x, y: maps["a"].predict(x)),
        "b_composed": ("b", lambda x, y: moved(y.to(moved.W_enc))),
        "b_fitted": ("b", lambda x, y: maps["b"].predict(y)),
    }
    return predictions, maps


class DecoderRegression(NamedTuple):
    """What a regression leaves of W_to, beside what it would leave of unrelated rows, in Frobenius norms."""

    residual: float
    """What is left of W_to."""
    chance: float
    """In closed form: what is left of unrelated rows of the lengths that W_to's have."""
    simulated: Estimate
    """What is left of rows of these lengths drawn evenly from the sphere: mean and middle 95% of the draws."""
    shuffled: Estimate
    """What is left of W_to's rows in another order, unrelated but for a direction that all share; likewise."""


def decoder_regression(
    W_from: Float[Tensor, "latents d_from"], W_to: Float[Tensor, "_ d_to"], *, seed: int = 0
) -> DecoderRegression:
    """Regress the rows of `W_to` on those of `W_from` by least squares, and so `DRAWS` draws of unrelated rows.

    ValueError for matrices of different lengths.
    """
    if len(W_from) != len(W_to):
        raise ValueError(f"decoders of {len(W_from)} and {len(W_to)} latents: expected as many of both")
    given, wanted = (matrix.detach().double() for matrix in (W_from, W_to.to(W_from.device)))
    left, values, _ = torch.linalg.svd(given, full_matrices=False)
    basis = left[:, values > values[0] * max(given.shape) * torch.finfo(given.dtype).eps]  # of the span of the columns

    def norm(rows: Tensor) -> float:
        return (rows - basis @ (basis.T @ rows)).norm().item()

    generator = torch.Generator().manual_seed(seed)
    lengths, simulated, shuffled = wanted.norm(dim=1, keepdim=True), [], []
    for _ in range(DRAWS):
        drawn = torch.randn(wanted.shape, generator=generator, dtype=torch.float64).to(wanted)
        simulated.append(norm(drawn / drawn.norm(dim=1, keepdim=True) * lengths))
        shuffled.append(norm(wanted[torch.randperm(len(wanted), generator=generator).to(wanted.device)]))
    chance = (lengths.square().sum().item() * max(0.0, 1 - given.shape[1] / len(given))) ** 0.5
    draws = (from_draws(float(np.mean(norms)), np.array(norms)) for norms in (simulated, shuffled))
    return DecoderRegression(norm(wanted), chance, *draws)


class Matches(NamedTuple):
    """Latents of one SAE, each with the latent of another SAE that fires most like it."""

    latents: Int[Tensor, " matched"]
    """The latents of the first SAE that fire on the text."""
    partners: Int[Tensor, " matched"]
    """For each, the latent of the second SAE whose activations correlate most. One may be the partner of several."""
    correlations: Float[Tensor, " matched"]
    """The correlation of each with its partner."""


@torch.no_grad()
def match_latents(saes: tuple[SAE, SAE], batches: Pairs) -> Matches:
    """Find for each latent of the first SAE the latent of the second that fires most like it on the same tokens.

    `batches` give the streams (x, y) that the two SAEs read. Likeness is Pearson's correlation of the activations over
    all tokens. ValueError where one SAE fires nowhere.
    """
    device, count, cross = saes[0].W_enc.device, 0, 0
    # Of each SAE's latents the sums of activations and of their squares.
    totals = [torch.zeros(2, sae.cfg.d_sae, dtype=torch.float64, device=device) for sae in saes]
    for streams in progress(batches, "latents"):
        codes = [sae.encode(stream.to(sae.W_enc)) for sae, stream in zip(saes, streams)]
        first, second = (code.to(device, torch.promote_types(codes[0].dtype, torch.float32)) for code in codes)
        count += len(first)
        cross = cross + (first.T @ second).double()
        for total, code in zip(totals, (first.double(), second.double())):
            total += torch.stack([code.sum(0), code.square().sum(0)])
    if not all(squares.any() for _, squares in totals):
        raise ValueError("an SAE fires on no token of the batches: there is nothing to match")
    spreads = [(squares / count - (sums / count).square()).clamp_min(0).sqrt() for sums, squares in totals]
    covariance = cross / count - torch.outer(totals[0][0], totals[1][0]) / count**2
    both = torch.outer(*spreads)
    # A latent that never varies correlates with nothing; -2 is below every correlation.
    correlation = torch.where(both > 0, covariance / both.clamp_min(1e-300), -2.0)
    best, partners = correlation.max(dim=1)
    alive = best > -2
    return Matches(alive.nonzero()[:, 0].cpu(), partners[alive].cpu(), best[alive].float().cpu())
