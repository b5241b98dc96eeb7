"""Whether a direction changes how sure a model is, more than it changes which token the model prefers.

Section 5.2 calls features entropy features by their geometry alone (see `functional`). Gurnee et al. 2024 also fix such
a neuron's activation and watch the entropy of the prediction and the rank of the right token; nobody has done so for
features of SAEs, or for transferred ones. Here a direction is added to the residual stream at all ordinary tokens, and
the size of the entropy's change is divided by the size of the change of the next token's rank (of its logarithm). Any
large direction changes both; one that acts through the final norm's divisor moves all logits together and leaves their
order. So the yardstick is random directions of the same norm.

Offers `entropy_effects`, `EntropyEffects`, `entropy_tests`, `EntropyTests`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .fidelity import splice
from .harvest import as_fits
from .models import Model
from .progress import progress
from .text import TokenBatch


class EntropyEffects(NamedTuple):
    """What adding directions to the stream does to predictions; means over tokens, one entry a direction."""

    entropy: Float[Tensor, "*n"]
    """Change of the entropy, nats."""
    entropy_size: Float[Tensor, "*n"]
    """The same without its sign."""
    rank_size: Float[Tensor, "*n"]
    """Change of the logarithm of the rank that the token which comes next has among all, without its sign."""

    @property
    def per_rank(self) -> Float[Tensor, "*n"]:
        """Change of the entropy for each unit of change of the rank."""
        return self.entropy_size / self.rank_size.clamp_min(1e-6)


def entropy_effects(
    model: Model, layer: int, directions: Float[Tensor, "n d_model"], batches: Iterable[TokenBatch]
) -> EntropyEffects:
    """Each direction added to the residual stream before `layer` at all ordinary tokens at once.

    Predictions count where both the token and the next are ordinary. ValueError if there are none.
    """

    @torch.no_grad()
    def predictions(batch: TokenBatch, direction: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Entropy and log rank of the next token: (n,), (n,)."""
        counted = (batch.mask[:, :-1] & batch.mask[:, 1:]).to(model.device)

        def edit(residual: Tensor) -> Tensor:
            return splice(residual + direction.to(residual), batch.mask)(residual)

        logits = model.logits(batch.tokens, layer=layer, edit=None if direction is None else edit)
        logits = logits[:, :-1][counted].float()
        following = batch.tokens[:, 1:].to(model.device)[counted]
        logs = logits.log_softmax(-1)
        above = (logits > logits.gather(1, following[:, None])).sum(-1)
        return -(logs.exp() * logs).sum(-1).double(), (1 + above).double().log()

    def read(batch: TokenBatch) -> tuple[int, Tensor]:
        entropy, rank = predictions(batch)
        sums = []
        for direction in progress(directions, "directions"):
            new_entropy, new_rank = predictions(batch, direction)
            change = new_entropy - entropy
            sums.append(torch.stack([change.sum(), change.abs().sum(), (new_rank - rank).abs().sum()]).cpu())
        return len(entropy), torch.stack(sums)

    total, tokens = torch.zeros(len(directions), 3, dtype=torch.float64), 0
    for n, sums in as_fits(batches, read):
        total, tokens = total + sums, tokens + n
    if not tokens:
        raise ValueError("the batches predict no ordinary token: expected at least one document of two tokens")
    return EntropyEffects(*(total / tokens).float().T)


class EntropyTests(NamedTuple):
    """Features' directions beside random ones of the same norms."""

    features: EntropyEffects
    """(n,)"""
    random: EntropyEffects
    """(n, random directions)"""

    @property
    def exceeded(self) -> Float[Tensor, " n"]:
        """Share of the random directions that change the entropy less for each unit of change of the rank."""
        return (self.random.per_rank < self.features.per_rank[:, None]).float().mean(1)

    @property
    def acting(self) -> Bool[Tensor, " n"]:
        """Whether a feature exceeds at least 95% of them, and changes the entropy at all."""
        return (self.exceeded >= 0.95) & (self.features.entropy_size > 0)


def entropy_tests(
    model: Model, layer: int, directions: Float[Tensor, "n d_model"], batches: Iterable[TokenBatch], *,
    n_random: int = 20, seed: int = 0,
) -> EntropyTests:  # fmt: skip
    """`entropy_effects` of features (mean activation times decoder row, say) and of random directions beside each."""
    drawn = torch.randn(n_random, model.d_model, generator=torch.Generator().manual_seed(seed))
    drawn = drawn / drawn.norm(dim=1, keepdim=True)
    own = directions.detach().cpu().float()
    beside = torch.cat([drawn * norm for norm in own.norm(dim=1)]) if len(own) else own
    effects = entropy_effects(model, layer, torch.cat([own, beside]), batches)
    features = EntropyEffects(*(values[: len(own)] for values in effects))
    return EntropyTests(features, EntropyEffects(*(values[len(own) :].view(len(own), n_random) for values in effects)))
