r"""Sparse autoencoders: carry them across a stitch.

Section 3, Eqs. 4-6, App. B.1 (Eqs. 11-12). An SAE of model A,

    f(x) = act(x W_e + b_e)      (4)        SAE(x) = f(x) W_d + b_d      (5)

between the stitch's two maps is again an SAE, of model B:

    (W_e', b_e', W_d', b_d') = (P_down W_e, b_down W_e + b_e, W_d P_up, b_d P_up + b_up)      (6)

The latents see what they saw before, so the formula holds for TopK, JumpReLU and ReLU alike. The encoder first takes in
what changes on the way: b_d, which many SAEs subtract from their input, and the norms ||W_d,i||, by whose product with
f_i a TopK SAE may choose its latents.

Offers `transfer_sae`, `sae_ranks`; `for_inference` and `with_unit_decoder` for the starts of training.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from sae_lens import SAE, SAEConfig, TrainingSAE
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor

from ..stitching.stitch import Stitch
from .io import built

ARCHITECTURES = ("topk", "jumprelu", "standard")  # BatchTopK SAEs are JumpReLU SAEs once they are trained


def for_inference(sae: SAE) -> tuple[SAEConfig, dict[str, Tensor]]:
    """Copy the configuration and weights (float64) of an SAE; of one in training, those that it would be saved with."""
    config = sae.cfg
    tensors = {name: tensor.detach().clone() for name, tensor in sae.state_dict().items()}
    if isinstance(sae, TrainingSAE):
        sae.process_state_dict_for_saving_inference(tensors)
        config = SAEConfig.from_dict(config.get_inference_sae_cfg_dict())
    return config, {name: tensor.double() for name, tensor in tensors.items()}


def with_unit_decoder(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scale the decoder rows of a TopK SAE to length 1 and move their norms into the encoder (App. D).

    Latents then write what they wrote, and compete by it, as with `rescale_acts_by_decoder_norm`. A row of zeros stays
    one, and its latent falls silent.
    """
    norms = tensors["W_dec"].norm(dim=1)  # (d_sae,)
    scaled = {name: tensors[name] * norms for name in ("W_enc", "b_enc")}
    return {**tensors, **scaled, "W_dec": tensors["W_dec"] / torch.where(norms > 0, norms, 1)[:, None]}


def transfer_sae(sae: SAE, stitch: Stitch, *, to: str = "b") -> SAE:
    """Carry an SAE across a stitch (Eq. 6): `to="b"` makes one of A into one of B, y -> stitch.up(sae(stitch.down(y))).

    The result is an ordinary SAELens SAE, computed in float64 and stored in the dtype of `sae`, which is unchanged; its
    metadata say where it came from. An SAE in training is carried as it would be saved for inference. ValueError for
    another `to`, another width, or a kind of SAE that Eq. 6 does not fit.
    """
    source = "a" if to == "b" else "b"
    outward, inward = stitch.towards(to), stitch.towards(source)
    config, tensors = for_inference(sae)
    if config.architecture() not in ARCHITECTURES:
        found, expected = config.architecture(), ", ".join(ARCHITECTURES)
        raise ValueError(f"cannot transfer an SAE of architecture {found!r}: expected {expected}")
    for entry in ("normalize_activations", "reshape_activations"):
        if (found := getattr(config, entry)) != "none":
            expected = "Eq. 6 holds for SAEs of the residual stream as it is (the paper's footnote 2)"
            raise ValueError(f"cannot transfer an SAE with {entry}={found!r}: {expected}")
    if config.d_in != outward.d_in:
        expected = f"expected {outward.d_in}, the width of model {source}, to be transferred to {to}"
        raise ValueError(f"the SAE reads {config.d_in} dimensions: {expected}")
    changes: dict[str, Any] = {"d_in": inward.d_in, "apply_b_dec_to_input": False}
    if getattr(config, "rescale_acts_by_decoder_norm", False):
        tensors = with_unit_decoder(tensors)
        changes["rescale_acts_by_decoder_norm"] = False
    inward, outward = inward.to(tensors["W_enc"]), outward.to(tensors["W_enc"])
    centre = inward.b - tensors["b_dec"] if config.apply_b_dec_to_input else inward.b
    moved = {
        "W_enc": inward.P @ tensors["W_enc"],
        "b_enc": centre @ tensors["W_enc"] + tensors["b_enc"],
        "W_dec": tensors["W_dec"] @ outward.P,
        "b_dec": tensors["b_dec"] @ outward.P + outward.b,
    }
    about = dict(stitch.about)
    origin = {"stitch": about, "to": to, "transferred_from": sae.cfg.metadata.to_dict()}
    if to in about:
        origin["model_name"] = about[to]
    if f"layer_{to}" in about:
        origin["hook_name"] = f"blocks.{about[f'layer_{to}']}.hook_resid_pre"
    changes["metadata"] = SAEMetadata(**origin)
    return built(dataclasses.replace(config, **changes), tensors | moved)


def sae_ranks(sae: SAE) -> tuple[int, int]:
    """Compute the ranks of W_enc and W_dec: of a transferred SAE at most the smaller model's width (App. B.1).

    Singular values that rounding to the SAE's dtype can make of a matrix of lower rank count as zero.
    """
    ranks = []
    for matrix in (sae.W_enc.detach().double(), sae.W_dec.detach().double()):
        # Rounding moves an entry by at most eps/2 of it, and such errors have the spectral norm of a random matrix.
        # The limit is ten times that, since the products before were rounded too.
        noise = torch.finfo(sae.dtype).eps * matrix.norm() * sum(size**-0.5 for size in matrix.shape)
        ranks.append(int((torch.linalg.svdvals(matrix) > 10 * noise).sum()))
    return ranks[0], ranks[1]
