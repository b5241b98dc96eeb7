"""How a training run of an SAE begins: its configuration, and the SAE before its first step.

Section 3.1 and App. D, items 1-3. The rows of a transferred decoder are scaled to unit norm, and the encoder with them.
No scaling of the encoder keeps both what latents write and how TopK ranks them; ours keeps what they write. `rotation`
is a control: it keeps the angles between A's decoder directions and knows nothing of B.

Offers `SAETrainingConfig`, `starting_sae`, and `INITIALS`, the ways to start.
"""

from dataclasses import dataclass

import torch
from sae_lens import SAE, TopKTrainingSAE, TopKTrainingSAEConfig

from ..data.pairs import check_known
from .transfer import for_inference, with_unit_decoder

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
    """`random` (encoder = decoder transposed), `stitch` (a transferred SAE), or `rotation` (A's, turned at random)."""
    seed: int = 0
    """Seed of the initial weights; the batches are the same for every run."""
    lr: float = 1e-4
    """Constant learning rate of Adam."""
    beta1: float = 0.9
    """Adam's first beta: SAELens' default of today. Before version 6, and so for the paper, it was 0."""
    batch_tokens: int = 4096
    mean_bias: bool = False
    """Whether `random` and `rotation` start centred: b_dec at the mean of the first batch, b_enc at -mean W_enc.

    The encoder then reads what the first batch deviates from its mean by. SAELens starts both at zero.
    """
    auxiliary_loss: bool = False
    """SAELens' loss for dead latents, coefficient 1; the paper does without."""
    dead_after: int = 1000
    """Steps without firing after which the auxiliary loss takes a latent for dead; 1000 is SAELens' choice."""

    def __post_init__(self):
        check_known("initial", self.initial, INITIALS)
        if min(self.n_steps, self.batch_tokens, self.k, self.dead_after) < 1 or self.k > self.d_sae or self.lr <= 0:
            raise ValueError(f"expected n_steps, batch_tokens, dead_after, lr > 0 and 1 <= k <= d_sae: got {self}")
        if not 0 <= self.beta1 < 1:
            raise ValueError(f"expected beta1 from 0 to below 1: got {self.beta1}")

    @property
    def name(self) -> str:
        """The name of its folder and curve, such as `stitch-1024-k16-seed0`; it tells all but defaults and n_steps."""
        extra = [f"lr{self.lr:g}"] if self.lr != 1e-4 else []
        extra += [f"beta{self.beta1:g}"] if self.beta1 != 0.9 else []
        extra += ["mean-bias"] if self.mean_bias else []
        extra += [f"auxiliary{self.dead_after}"] if self.auxiliary_loss else []
        return "-".join([self.initial, str(self.d_sae), f"k{self.k}", f"seed{self.seed}", *extra])


def starting_sae(config: SAETrainingConfig, d_in: int, given: SAE | None = None) -> TopKTrainingSAE:
    """Build the SAE from which a run starts, with decoder rows of unit norm.

    `given` is a TopK SAE of `d_sae` latents: for `stitch` a transferred one of width `d_in`, for `rotation` one of A,
    no wider. ValueError if it is anything else.
    """
    options = {"apply_b_dec_to_input": False, "decoder_init_norm": 1.0, "rescale_acts_by_decoder_norm": False}
    options |= {"k": config.k, "aux_loss_coefficient": float(config.auxiliary_loss)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=config.d_sae, **options))
        if config.initial == "random":
            return sae
        if given is None:
            raise ValueError(f"run {config.name!r} starts from an SAE: none was given in initial_saes")
        turn = torch.randn(d_in, given.cfg.d_in)
    found = given.cfg.architecture(), given.cfg.normalize_activations, given.cfg.d_sae, given.cfg.d_in
    width = min(given.cfg.d_in, d_in) if config.initial == "rotation" else d_in
    if found != (expected := ("topk", "none", config.d_sae, width)):
        entries = "architecture, normalize_activations, d_sae, d_in"
        raise ValueError(f"run {config.name!r} was given an SAE with {entries} of {found}: expected {expected}")
    weights = {name: tensor.cpu().float() for name, tensor in with_unit_decoder(for_inference(given)[1]).items()}
    if config.initial == "rotation":
        decoder = weights["W_dec"] @ torch.linalg.qr(turn).Q.T
        weights = sae.state_dict() | {"W_enc": decoder.T, "W_dec": decoder}
    elif given.cfg.apply_b_dec_to_input:
        weights["b_enc"] = weights["b_enc"] - weights["b_dec"] @ weights["W_enc"]
    sae.load_state_dict(weights)
    return sae
