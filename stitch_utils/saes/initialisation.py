"""How a training run of an SAE begins: its configuration, and the SAE before its first step.

Section 3.1 and App. D, items 1-3. A run starts at random (encoder = decoder transposed), from a transferred SAE, or,
as a control, from the decoder directions of A's SAE turned at random into B's space, which keeps their angles and
knows nothing of B.

The rows of a transferred decoder are not of unit norm. Multiplying latent i's encoder by its row's norm n_i makes the
row a unit one and leaves what the latent writes as it was, but TopK then ranks by n_i pre_i instead of pre_i. No
scaling keeps both: outputs need the factor n_i, the ranks need one factor for all. So there are two ways.
`decoder_norm="unit"`, the paper's, starts from the SAE that ranks latents by what they write (SAELens'
`rescale_acts_by_decoder_norm`), which is the transferred one wherever both choose the same latents.
`decoder_norm="initial"` keeps each row at the norm it starts with, and starts from exactly the transferred SAE.

Offers `SAETrainingConfig`, `starting_sae`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sae_lens import SAE, TopKTrainingSAE, TopKTrainingSAEConfig

from .transfer import fold_decoder_norms

INITIALS = ("random", "stitch", "rotation")


@dataclass(frozen=True)
class SAETrainingConfig:
    """The configuration of one run of a sweep."""

    d_sae: int
    """Number of latents."""
    k: int
    """Number of latents that may fire on a token."""
    n_steps: int
    initial: str = "random"
    """`random`, `stitch` (from a transferred SAE) or `rotation` (decoder directions of A's SAE, turned at random)."""
    seed: int = 0
    """Seed of the initial weights; the batches are the same for every run."""
    lr: float = 1e-4
    """Constant learning rate, for Adam with SAELens' betas 0.9 and 0.999."""
    batch_tokens: int = 4096
    decoder_norm: str = "unit"
    """`unit`, or `initial` to keep each decoder row at the norm it starts with."""
    initial_bias: str = "zero"
    """b_dec of `random` and `rotation` at the start: `zero`, as SAELens has it, or the first batch's `mean`."""
    auxiliary_loss: bool = False
    """SAELens' loss for dead latents, coefficient 1; the paper does without."""
    dead_after: int = 1000
    """Steps without firing after which the auxiliary loss takes a latent for dead; 1000 is SAELens' choice."""

    def __post_init__(self):
        known_values = {"initial": INITIALS, "decoder_norm": ("unit", "initial"), "initial_bias": ("zero", "mean")}
        for field, known in known_values.items():
            if getattr(self, field) not in known:
                raise ValueError(f"unknown {field} {getattr(self, field)!r}: expected one of {', '.join(known)}")
        if min(self.n_steps, self.batch_tokens, self.k, self.dead_after) < 1 or self.k > self.d_sae or self.lr <= 0:
            raise ValueError(f"expected n_steps, batch_tokens, dead_after, lr > 0 and 1 <= k <= d_sae: got {self}")

    @property
    def name(self) -> str:
        """The name of its folder and curve, such as `stitch-1024-k16-seed0`; it tells all but defaults and n_steps."""
        extra = [f"lr{self.lr:g}"] if self.lr != 1e-4 else []
        extra += ["initial-norm"] if self.decoder_norm == "initial" else []
        extra += ["mean-bias"] if self.initial_bias == "mean" else []
        extra += [f"auxiliary{self.dead_after}"] if self.auxiliary_loss else []
        return "-".join([self.initial, str(self.d_sae), f"k{self.k}", f"seed{self.seed}", *extra])


def starting_sae(config: SAETrainingConfig, d_in: int, given: SAE | None = None) -> TopKTrainingSAE:
    """Build the SAE from which a run starts; its decoder rows are unit ones unless `decoder_norm` is `initial`.

    `given` is a TopK SAE of `d_sae` latents: for `stitch` a transferred one of width `d_in`, for `rotation` one of A,
    no wider. ValueError if it is anything else.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        options = {"apply_b_dec_to_input": False, "decoder_init_norm": 1.0, "rescale_acts_by_decoder_norm": False}
        options |= {"k": config.k, "aux_loss_coefficient": float(config.auxiliary_loss)}
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=config.d_sae, **options))
        turn = torch.randn(d_in, given.cfg.d_in) if config.initial == "rotation" and given is not None else None
    if config.initial == "random":
        return sae
    given = _checked(config, d_in, given)
    if config.initial == "rotation" or config.decoder_norm == "unit" or given.cfg.rescale_acts_by_decoder_norm:
        given = fold_decoder_norms(given, reselect=True)
    with torch.no_grad():
        weights = given.state_dict()
        encoder, decoder, b_enc, b_dec = (weights[name].cpu().float() for name in ("W_enc", "W_dec", "b_enc", "b_dec"))
        if config.initial == "rotation":
            orthonormal, _ = torch.linalg.qr(turn)  # (d_in, d_a)
            sae.W_dec.copy_(decoder @ orthonormal.T)
            sae.W_enc.copy_(sae.W_dec.T)
            return sae
        if given.cfg.apply_b_dec_to_input:
            b_enc = b_enc - b_dec @ encoder
    sae.load_state_dict({"W_enc": encoder, "W_dec": decoder, "b_enc": b_enc, "b_dec": b_dec})
    return sae


def _checked(config: SAETrainingConfig, d_in: int, given: SAE | None) -> SAE:
    """Return the SAE that a run starts from; ValueError if it is missing or does not fit."""
    if given is None:
        raise ValueError(f"run {config.name!r} starts from an SAE: none was given in initial_saes")
    if given.cfg.architecture() != "topk" or given.cfg.normalize_activations != "none":
        raise ValueError(
            f"run {config.name!r} was given a {given.cfg.architecture()!r} SAE with normalize_activations="
            f"{given.cfg.normalize_activations!r}: expected 'topk' and 'none'"
        )
    width, fits = given.cfg.d_in, given.cfg.d_in == d_in if config.initial == "stitch" else given.cfg.d_in <= d_in
    if given.cfg.d_sae != config.d_sae or not fits:
        raise ValueError(
            f"run {config.name!r} was given an SAE of {given.cfg.d_sae} latents and width {width}: expected "
            f"{config.d_sae} latents and width {d_in}{' or less' if config.initial == 'rotation' else ''}"
        )
    return given
