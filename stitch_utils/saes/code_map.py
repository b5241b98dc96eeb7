r"""From the small model's SAE code straight to the large model's stream: the sister paper's third map.

Bello et al. (arXiv 2506.00653) fit an affine map from f(x), the latents of A's SAE, to B's stream,

    y ~ f(x) M + c,

by AdamW on the mean length of the error. M is a decoder: what the main paper writes down by Eq. 6 without a look at the
data, W_d' = W_d P_up, is here fitted to it. So the two papers' answers differ in two things, which are told apart by
taking all four combinations: which code is decoded (A's own, of x, or the transferred SAE's, of down(y), which has seen
y), and whether the decoder is composed by the formula or fitted. Reading a token costs the same in each, and so does
fitting M.

For SAEs of up to a few thousand latents, M is exact: ridge least squares from the second moments of code and stream, in
one pass, with the ridge that predicts a validation text best, since latents that hardly ever fire are known badly. The
moments of a wider SAE do not fit into memory, and M is fitted by AdamW on the unsquared loss, as that paper has it.

Offers `fit_code_map`, `CodeMap`, `code_map_flops`, `reconstructions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from ..stitching.fit import fit_exact
from ..stitching.maps import Prediction, fit_unsquared_adam, moments_of
from ..stitching.stitch import AffineMap, Stitch, stitch_loss
from .transfer import transfer_sae

RIDGES = (1e-6, 1e-4, 1e-2, 1e-1)
LARGEST_EXACT = 4096  # latents: beyond it the moments take more than a gigabyte


class CodeMap(NamedTuple):
    """An affine map from an SAE's latents."""

    sae: SAE
    matrix: Float[Tensor, "d_sae d_out"]
    bias: Float[Tensor, " d_out"]
    method: str
    """`exact` or `adam`."""
    ridge: float
    """As a share of the mean variance of a latent; 0 for `adam`."""

    def predict(self, stream: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"]:
        """What the code of a stream says of the other one."""
        with torch.no_grad():
            code = self.sae.encode(stream.to(self.sae.W_enc))
            return code.to(self.matrix) @ self.matrix + self.bias


def code_map_flops(d_in: int, d_sae: int, d_out: int) -> int:
    """FLOPs a token of encoding and decoding, at two for a multiply-add."""
    return 2 * d_sae * (d_in + d_out)


def fit_code_map(
    sae: SAE,
    batches: Iterable[tuple[Tensor, Tensor]],
    held_out: Iterable[tuple[Tensor, Tensor]],
    *,
    ridges: tuple[float, ...] = RIDGES,
    method: str = "",
    lr: float = 1e-4,
    epochs: int = 4,
    seed: int = 0,
) -> CodeMap:
    """The map from the code of the first stream of each pair to the second.

    `batches` and `held_out` give (stream that the SAE reads, stream to predict). `method` is `exact` or `adam`, by
    default the first for SAEs of up to `LARGEST_EXACT` latents; `adam` iterates `batches` `epochs` times and does not
    read `held_out`. ValueError for another method, and for a stream of another width than the SAE reads.
    """
    method = method or ("exact" if sae.cfg.d_sae <= LARGEST_EXACT else "adam")
    if method not in ("exact", "adam"):
        raise ValueError(f"unknown method {method!r}: expected exact or adam")
    if method == "exact":
        moments, validation = (moments_of(_Coded(sae, part)) for part in (batches, held_out))
        found = {}
        for ridge in ridges:
            stitch = fit_exact(moments, alpha=0, ridge=ridge)
            found[ridge] = stitch_loss(stitch, validation, alpha=0).up, stitch
        ridge = min(found, key=lambda one: found[one][0])
        return _built(sae, found[ridge][1].up, "exact", ridge)
    d_out = next(iter(batches))[1].shape[1]
    fit = fit_unsquared_adam(
        _Coded(sae, batches),
        d_a=sae.cfg.d_sae,
        d_b=d_out,
        lr=lr,
        epochs=epochs,
        directions="up",
        seed=seed,
        device=sae.W_enc.device,
    )
    return _built(sae, fit.maps["up"], "adam", 0.0)


def _built(sae: SAE, one: AffineMap, method: str, ridge: float) -> CodeMap:
    return CodeMap(sae, one.P.to(sae.W_enc), one.b.to(sae.W_enc), method, ridge)


class _Coded:
    """The pairs with an SAE's code in place of the first stream; iterated as often as they can be."""

    def __init__(self, sae: SAE, pairs: Iterable[tuple[Tensor, Tensor]]):
        self.sae, self.pairs = sae, pairs

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for stream, target in self.pairs:
            if stream.shape[1] != self.sae.cfg.d_in:
                raise ValueError(
                    f"the SAE reads {self.sae.cfg.d_in} dimensions: expected streams of that width, got "
                    f"{stream.shape[1]}"
                )
            with torch.no_grad():
                code = self.sae.encode(stream.to(self.sae.W_enc))
            yield code, target.to(code)


class _Second:
    """The second stream of each pair, twice."""

    def __init__(self, pairs: Iterable[tuple[Tensor, Tensor]]):
        self.pairs = pairs

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((y, y) for _, y in self.pairs)


def reconstructions(
    sae: SAE,
    stitch: Stitch,
    batches: Iterable[tuple[Tensor, Tensor]],
    held_out: Iterable[tuple[Tensor, Tensor]],
    **options,
) -> tuple[dict[str, Prediction], dict[str, CodeMap]]:
    """B's stream from the code of an SAE of A, in the four ways: `a_composed`, `a_fitted` (the sister paper's map),
    `b_composed` (the transferred SAE, Eq. 6) and `b_fitted`; and the two fitted maps, by `a` and `b`.

    `batches` and `held_out` give (x, y); `options` are those of `fit_code_map`.
    """
    moved = transfer_sae(sae, stitch)
    maps = {
        "a": fit_code_map(sae, batches, held_out, **options),
        "b": fit_code_map(moved, _Second(batches), _Second(held_out), **options),
    }
    predictions = {
        "a_composed": Prediction("b", lambda x, y: stitch.up(_through(sae, x).to(stitch.P_up))),
        "a_fitted": Prediction("b", lambda x, y: maps["a"].predict(x)),
        "b_composed": Prediction("b", lambda x, y: _through(moved, y)),
        "b_fitted": Prediction("b", lambda x, y: maps["b"].predict(y)),
    }
    return predictions, maps


def _through(sae: SAE, stream: Tensor) -> Tensor:
    return sae.decode(sae.encode(stream.to(sae.W_enc)))
