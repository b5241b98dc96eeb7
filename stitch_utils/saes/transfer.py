r"""Sparse autoencoders: carry them across a stitch, measure them.

Section 3, Eqs. 4-6, App. B.1 (Eqs. 11-12) and App. C (Table 2). An SAE of model A,

    f(x) = act(x W_e + b_e)      (4)        SAE(x) = f(x) W_d + b_d      (5)

between the stitch's two maps is again an SAE, of model B:

    (W_e', b_e', W_d', b_d') = (P_down W_e, b_down W_e + b_e, W_d P_up, b_d P_up + b_up)      (6)

The latents see what they saw before, so nothing about the activation function matters: TopK, JumpReLU and ReLU go
through alike. Two things must be written into the weights first. Many SAEs subtract b_d from their input; since b_d'
is another vector, that is folded into b_e. And a TopK SAE may choose its latents by f_i ||W_d,i||; the norms change on
the way, so they are folded into the encoder.

Offers `load_sae` (of `io`), `transfer_sae`, `fold_decoder_norms`, `sae_ranks`, `evaluate_sae`, `evaluate_saes`,
`SAEMetrics`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from sae_lens import SAE, SAEConfig, TopKSAEConfig, TrainingSAE
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor

from ..data.text import TokenBatch
from ..models.harvest import as_fits
from ..models.language_model import LanguageModel
from ..stitching.evaluation import splice
from ..stitching.stitch import Stitch
from ..utils.progress import progress
from ..utils.stats import Estimate, from_draws, resampled_counts
from .io import built, load_sae

__all__ = [
    "SAEMetrics",
    "evaluate_sae",
    "evaluate_saes",
    "fold_decoder_norms",
    "load_sae",
    "sae_ranks",
    "transfer_sae",
]
ARCHITECTURES = ("topk", "jumprelu", "standard")  # BatchTopK SAEs are JumpReLU SAEs once they are trained
TOKENS_AT_ONCE = 4096  # bounds the activations of latents: 0.5 GB for 32k of them


def _for_inference(sae: SAE, purpose: str) -> tuple[SAEConfig, dict[str, Tensor]]:
    """Configuration and weights (float64) of an SAE; of one in training, those with which it would be saved."""
    config = sae.cfg
    tensors = {name: tensor.detach().clone() for name, tensor in sae.state_dict().items()}
    if isinstance(sae, TrainingSAE):
        sae.process_state_dict_for_saving_inference(tensors)
        config = SAEConfig.from_dict(config.get_inference_sae_cfg_dict())
    if config.architecture() not in ARCHITECTURES:
        raise ValueError(
            f"cannot {purpose} an SAE of architecture {config.architecture()!r}: expected {', '.join(ARCHITECTURES)}"
        )
    return config, {name: tensor.double() for name, tensor in tensors.items()}


def _with_unit_decoder(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with decoder rows of length 1, their norms moved into what the encoder computes.

    A row of zeros stays one, and its latent, which had no effect, becomes silent.
    """
    norms = tensors["W_dec"].norm(dim=1)  # (d_sae,)
    scaled = {name: tensors[name] * norms for name in ("W_enc", "b_enc", "threshold") if name in tensors}
    return {**tensors, **scaled, "W_dec": tensors["W_dec"] / torch.where(norms > 0, norms, 1)[:, None]}


def transfer_sae(sae: SAE, stitch: Stitch, *, direction: str = "up") -> SAE:
    """Eq. 6: `up` makes an SAE of A one of B, y -> stitch.up(sae(stitch.down(y))); `down` one of B one of A.

    An ordinary SAELens SAE, computed in float64 and stored in the dtype of `sae`, which is unchanged; its metadata say
    where it came from. An SAE in training is carried over as it would be saved for inference. ValueError for a
    direction, width or kind of SAE that does not fit.
    """
    if direction == "up":
        inward, inward_bias, outward, outward_bias = stitch.P_down, stitch.b_down, stitch.P_up, stitch.b_up
        source, target = "a", "b"
    elif direction == "down":
        inward, inward_bias, outward, outward_bias = stitch.P_up, stitch.b_up, stitch.P_down, stitch.b_down
        source, target = "b", "a"
    else:
        raise ValueError(f"unknown direction {direction!r}: expected up or down")
    config, tensors = _for_inference(sae, "transfer")
    for entry in ("normalize_activations", "reshape_activations"):
        if (found := getattr(config, entry)) != "none":
            raise ValueError(
                f"cannot transfer an SAE with {entry}={found!r}: Eq. 6 holds for SAEs of the residual stream as it is "
                "(the paper's footnote 2)"
            )
    if config.d_in != len(outward):
        raise ValueError(
            f"the SAE reads {config.d_in} dimensions: expected {len(outward)}, the width of model {source}, for "
            f"direction {direction!r}"
        )
    changes: dict[str, Any] = {"d_in": len(inward), "apply_b_dec_to_input": False}
    if getattr(config, "rescale_acts_by_decoder_norm", False):
        tensors = _with_unit_decoder(tensors)
        changes["rescale_acts_by_decoder_norm"] = False
    maps = (part.to(tensors["W_enc"]) for part in (inward, inward_bias, outward, outward_bias))
    inward, inward_bias, outward, outward_bias = maps

    centre = inward_bias - tensors["b_dec"] if config.apply_b_dec_to_input else inward_bias
    moved = {
        "W_enc": inward @ tensors["W_enc"],
        "b_enc": centre @ tensors["W_enc"] + tensors["b_enc"],
        "W_dec": tensors["W_dec"] @ outward,
        "b_dec": tensors["b_dec"] @ outward + outward_bias,
    }
    about = dict(stitch.about)
    known = {"model_name": about.get(target)}
    if f"layer_{target}" in about:
        known["hook_name"] = f"blocks.{about[f'layer_{target}']}.hook_resid_pre"
    origin = {"stitch": about, "direction": direction, "transferred_from": sae.cfg.metadata.to_dict()}
    changes["metadata"] = SAEMetadata(**{name: value for name, value in known.items() if value}, **origin)
    return built(dataclasses.replace(config, **changes), {**tensors, **moved})


def fold_decoder_norms(sae: SAE, *, reselect: bool = False) -> SAE:
    """The same function with decoder rows of unit norm: f_i ||W_dec,i|| is what the new latents give (App. D).

    Exact for ReLU and JumpReLU (whose thresholds are scaled too), for TopK with `rescale_acts_by_decoder_norm`, and for
    plain TopK where all rows have one norm. Of any other plain TopK SAE the latents win by f_i, and those of one with
    unit rows would win by f_i ||W_dec,i||: it computes the same only for inputs on which both choose alike. So that is
    a ValueError, unless `reselect` asks for the SAE that chooses in the second way: what the same weights compute with
    `rescale_acts_by_decoder_norm=True`.
    """
    config, tensors = _for_inference(sae, "fold the decoder norms of")
    changes: dict[str, Any] = {"metadata": SAEMetadata(**config.metadata.to_dict())}
    if isinstance(config, TopKSAEConfig):
        norms = tensors["W_dec"].norm(dim=1)
        low, high = norms.min().item(), norms.max().item()
        as_chosen = config.rescale_acts_by_decoder_norm or high - low <= 10 * torch.finfo(sae.dtype).eps * high
        if not (as_chosen or reselect):
            raise ValueError(
                f"decoder rows of norms {low:.4g} to {high:.4g}: scaling latents by them changes which {config.k} of a "
                "TopK SAE win; expected rows of one norm, or reselect=True to let the scaled ones compete"
            )
        changes["rescale_acts_by_decoder_norm"] = False
    return built(dataclasses.replace(config, **changes), _with_unit_decoder(tensors))


def sae_ranks(sae: SAE) -> tuple[int, int]:
    """Ranks of W_enc and W_dec: of a transferred SAE at most the smaller of both models' widths (App. B.1).

    Singular values below what rounding to the SAE's dtype makes of a matrix of lower rank count as zero.
    """

    def rank(matrix: Tensor) -> int:
        rows, columns = matrix.shape
        # Rounding an entry is off by at most eps/2 of it; such errors have the spectral norm of a random matrix. Ten
        # times that, since the products before were rounded too.
        noise = torch.finfo(sae.dtype).eps * matrix.double().norm() * (rows**-0.5 + columns**-0.5)
        return int((torch.linalg.svdvals(matrix.double()) > 10 * noise).sum())

    return rank(sae.W_enc.detach()), rank(sae.W_dec.detach())


class SAEMetrics(NamedTuple):
    """Table 2's columns, over ordinary tokens; intervals by resampling documents."""

    l0: Estimate
    """Latents that fire (f_i > 0) a token."""
    fuv: Estimate
    """Sum of squared errors over the sum of squared deviations from the mean of the same tokens."""
    mse: Estimate
    """Mean squared error over tokens and dimensions."""
    delta_loss: Estimate
    """Next-token cross-entropy with the reconstruction spliced in, minus the model's own; nats."""
    dead_fraction: float
    """Latents that fire nowhere in the text. It falls with the length of the text, so it has no interval."""


def evaluate_sae(
    sae: SAE, model: LanguageModel, layer: int, batches: Iterable[TokenBatch], *, seed: int = 0
) -> SAEMetrics:
    """`evaluate_saes` for one."""
    return evaluate_saes({"sae": sae}, model, layer, batches, seed=seed)["sae"]


def evaluate_saes(
    saes: Mapping[str, SAE], model: LanguageModel, layer: int, batches: Iterable[TokenBatch], *, seed: int = 0
) -> dict[str, SAEMetrics]:
    """Table 2 for several SAEs of the residual stream before `layer`, in one pass; each computes where its weights are.

    Special tokens keep the model's own residual and count nowhere. ValueError for an SAE of another width, and for
    batches without an ordinary token.
    """
    for name, sae in saes.items():
        if sae.cfg.d_in != model.d_model:
            raise ValueError(
                f"SAE {name!r} reads {sae.cfg.d_in} dimensions: expected {model.d_model}, the width of {model.ref!r}"
            )
    documents: dict[int, np.ndarray] = {}
    fired = {name: torch.zeros(sae.cfg.d_sae, dtype=torch.bool) for name, sae in saes.items()}

    @torch.no_grad()
    def read(batch: TokenBatch) -> tuple[list[int], np.ndarray, dict[str, Tensor]]:
        """The documents of a batch, sums over the tokens of each (documents, columns), and which latents fired."""
        keep = batch.mask.to(model.device)
        residual = model.residuals(batch.tokens, [layer])[layer]
        y = residual[keep]  # (n, d_model)

        def loss(edit=None) -> Tensor:  # (n,), nothing for the first token of a row
            losses = model.cross_entropy(batch.tokens, layer=layer, edit=edit)
            return torch.nn.functional.pad(losses, (1, 0))[keep].double()

        columns = [torch.ones(len(y), dtype=torch.float64, device=y.device), y.double().square().sum(1), loss()]
        active = {}
        for name, sae in saes.items():
            reconstruction, l0, active[name] = _reconstruct(sae, y)
            spliced = residual.clone()
            spliced[keep] = reconstruction.to(residual)
            error = (reconstruction.double() - y.double()).square().sum(1)
            columns += [l0, error, loss(splice(spliced, batch.mask))]
        owners, place = batch.documents[batch.mask].unique(return_inverse=True)
        values = torch.cat([torch.stack(columns, dim=1), y.double()], dim=1)
        sums = torch.zeros(len(owners), values.shape[1], dtype=torch.float64, device=y.device)
        return owners.tolist(), sums.index_add_(0, place.to(y.device), values).cpu().numpy(), active

    for owners, sums, active in progress(as_fits(batches, read), "SAEs"):
        for document, total in zip(owners, sums):
            documents[document] = documents.get(document, 0) + total
        for name, some in active.items():
            fired[name] |= some
    if not documents:
        raise ValueError("the batches hold no ordinary token: expected at least one document of one token")
    table = np.array([documents[document] for document in sorted(documents)])
    weights = resampled_counts(len(table), seed)
    weights = np.concatenate([np.ones((1, len(table))), weights])  # the text itself, then its resamples
    totals = weights @ table  # (1 + resamples, columns)
    scalars, stream = totals[:, : 3 + 3 * len(saes)], totals[:, 3 + 3 * len(saes) :]
    count, squares, own = scalars[:, :3].T
    variation = squares - (stream**2).sum(axis=1) / count

    def estimate(values: np.ndarray) -> Estimate:
        return from_draws(values[0], values[1:])

    metrics = {}
    for index, name in enumerate(saes):
        l0, error, spliced = scalars[:, 3 + 3 * index : 6 + 3 * index].T
        quotients = (l0 / count, error / variation, error / count / model.d_model, (spliced - own) / count)
        metrics[name] = SAEMetrics(*map(estimate, quotients), 1 - fired[name].double().mean().item())
    return metrics


def _reconstruct(sae: SAE, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of activations (n, d): what the SAE makes of them, latents that fire for each (n,), and ever (d_sae,)."""
    parts, counts, ever = [], [], torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=sae.W_enc.device)
    for part in y.split(TOKENS_AT_ONCE):
        latents = sae.encode(part.to(sae.W_enc))
        parts.append(sae.decode(latents).to(y.device))
        counts.append((latents > 0).sum(1).double().to(y.device))
        ever |= (latents > 0).any(0)
    return torch.cat(parts), torch.cat(counts), ever.cpu()
