"""Activations, a stream of them and a transferred SAE, for the tests of how runs begin and how they go on."""

import dataclasses

import torch
from sae_lens import TopKSAE, TopKSAEConfig

from stitch_utils.saes.initialisation import SAETrainingConfig

D, M, K, BATCH = 12, 64, 4, 64
SMALL = {"d_sae": M, "k": K, "batch_tokens": BATCH}


def activations(n, d=D, seed=0):
    """Sparse sums of 60 directions off the origin, as residual streams are."""
    generator = torch.Generator().manual_seed(7)
    directions = torch.randn(60, d, generator=generator)
    generator = torch.Generator().manual_seed(seed)
    fires = (torch.rand(n, 60, generator=generator) < 0.05) * torch.rand(n, 60, generator=generator)
    return 3 * fires @ directions + 0.5


class Stream:
    """Batches that do not fit the steps; counts how often it is begun."""

    def __init__(self, n=64 * 40, size=50, seed=0):
        self.parts, self.begun = activations(n, seed=seed).split(size), 0

    def __iter__(self):
        self.begun += 1
        return iter(self.parts)


def transferred(d_in=D, rescale=False, subtract=False, seed=3, uneven=True):
    """A TopK SAE with decoder rows of norms from 0.2 to 3, as a stitch leaves them."""
    cfg = TopKSAEConfig(d_in=d_in, d_sae=M, k=K, apply_b_dec_to_input=subtract, rescale_acts_by_decoder_norm=rescale)
    generator = torch.Generator().manual_seed(seed)
    sae = TopKSAE(cfg)
    with torch.no_grad():
        rows = torch.randn(M, d_in, generator=generator)
        norms = torch.linspace(0.2, 3, M)[:, None] if uneven else torch.full((M, 1), 1.7)
        sae.W_dec.copy_(norms * rows / rows.norm(dim=-1, keepdim=True))
        sae.W_enc.copy_(torch.randn(d_in, M, generator=generator) / d_in**0.5)
        sae.b_enc.copy_(0.1 * torch.randn(M, generator=generator))
        sae.b_dec.copy_(torch.randn(d_in, generator=generator))
    return sae


def with_ranking_by_contribution(sae):
    other = TopKSAE(dataclasses.replace(sae.cfg, rescale_acts_by_decoder_norm=True))
    other.load_state_dict(sae.state_dict())
    return other


def assert_same_outputs(ours, theirs):
    assert (ours - theirs).abs().max() < 1e-6 * theirs.abs().max(), "they differ by more than float32 rounds"


def winners(sae, x):
    return sae.encode(x) > 0


def config(**changes):
    return SAETrainingConfig(**{**SMALL, "n_steps": 30, **changes})
