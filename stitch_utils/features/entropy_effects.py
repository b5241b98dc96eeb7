"""Whether a direction changes how sure a model is, more than it changes which token the model prefers.

Section 5.2 calls features entropy features by their geometry alone (see `entropy`). Gurnee et al. 2024 also fix such
a neuron's activation and watch the entropy of the prediction and the rank of the right token; nobody has done so for
features of SAEs, or for transferred ones. Here a direction is added to the residual stream at all ordinary tokens, and
the size of the entropy's change is divided by the size of the change of the next token's rank (of its logarithm). Any
large direction changes both; one that acts through the final norm's divisor moves all logits together and leaves their
order. So the yardstick is random directions of the same norm. Sums are kept by document, so that intervals can be had
by resampling documents.

Offers `entropy_effects`, `EntropyEffects`, `entropy_tests`, `EntropyTests`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..data.text import TokenBatch
from ..models.harvest import as_fits
from ..models.language_model import LanguageModel
from ..stitching.evaluation import splice
from ..utils.progress import progress
from ..utils.stats import DocumentSums


class EntropyEffects(NamedTuple):
    """What adding directions to the stream does to predictions; means over tokens, one entry a direction."""

    sums: Float[Tensor, "*n documents 3"]
    """Over the predictions of each document: of `entropy`, `entropy_size`, `rank_size`."""
    tokens: Float[Tensor, "*n documents"]
    """Predictions of each document."""

    @property
    def entropy(self) -> Float[Tensor, "*n"]:
        """Change of the entropy, nats."""
        return self._mean(0)

    @property
    def entropy_size(self) -> Float[Tensor, "*n"]:
        """Size of the change of the entropy, nats."""
        return self._mean(1)

    @property
    def rank_size(self) -> Float[Tensor, "*n"]:
        """Change of the logarithm of the rank that the token which comes next has among all, without its sign."""
        return self._mean(2)

    @property
    def per_rank(self) -> Float[Tensor, "*n"]:
        """Change of the entropy for each unit of change of the rank."""
        return self.entropy_size / self.rank_size.clamp_min(1e-6)

    def resampled(self, counts: np.ndarray) -> EntropyEffects:
        """Take each document as often as `counts`, (draws, documents), says: means get a dimension of draws before all
        others. See `resampled_counts`. ValueError for a single document, from which nothing is known of others."""
        if counts.shape[1] < 2:
            raise ValueError(f"an interval over documents needs two at least: got {counts.shape[1]}")
        weights = torch.from_numpy(counts).to(self.sums)
        sums = torch.einsum("rd,...dk->r...k", weights, self.sums)
        tokens = torch.einsum("rd,...d->r...", weights, self.tokens)
        return EntropyEffects(sums[..., None, :], tokens[..., None])

    def _mean(self, column: int) -> Tensor:
        return self.sums[..., column].sum(-1) / self.tokens.sum(-1)


def entropy_effects(
    model: LanguageModel, layer: int, directions: Float[Tensor, "n d_model"], batches: Iterable[TokenBatch]
) -> EntropyEffects:
    """Add each direction to the residual stream before `layer`, at all ordinary tokens at once.

    Predictions count where both the token and the next are ordinary. ValueError if there are none.
    """

    @torch.no_grad()
    def predictions(batch: TokenBatch, stream: Tensor, direction: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Entropy and log rank of the next token: (n,), (n,)."""
        counted = (batch.mask[:, :-1] & batch.mask[:, 1:]).to(model.device)

        def edit(residual: Tensor) -> Tensor:
            moved = residual if direction is None else residual + direction.to(residual)
            return splice(moved, batch.mask)(residual)

        logits = model.logits(batch.tokens, layer=layer, edit=None if direction is None else edit, stream=stream)
        logits = logits[:, :-1][counted].float()
        following = batch.tokens[:, 1:].to(model.device)[counted]
        logs = logits.log_softmax(-1)
        above = (logits > logits.gather(1, following[:, None])).sum(-1)
        return -(logs.exp() * logs).sum(-1).double(), (1 + above).double().log()

    def read(batch: TokenBatch) -> DocumentSums:
        """Sum by document, (n, 4): three changes for each direction, and the number of predictions."""
        stream = model.residuals(batch.tokens, [layer])[layer]
        entropy, rank = predictions(batch, stream)
        values = torch.zeros(len(entropy), len(directions), 4, dtype=torch.float64)
        for index, direction in enumerate(progress(directions, "directions")):
            new_entropy, new_rank = predictions(batch, stream, direction)
            change = new_entropy - entropy
            columns = change, change.abs(), (new_rank - rank).abs(), torch.ones_like(change)
            values[:, index] = torch.stack(columns, dim=1).cpu()
        owners = batch.documents[:, 1:][batch.mask[:, :-1] & batch.mask[:, 1:]]
        return DocumentSums.of(owners, values)

    total = DocumentSums()
    for part in as_fits(batches, read):
        total.add(part)
    if not len(total):
        raise ValueError("the batches predict no ordinary token: expected at least one document of two tokens")
    sums = torch.from_numpy(total.table())  # (documents, n, 4)
    return EntropyEffects(sums[..., :3].transpose(0, 1), sums[..., 3].T)


class EntropyTests(NamedTuple):
    """Features' directions beside random ones of the same norms."""

    features: EntropyEffects
    """(n,)"""
    random: EntropyEffects
    """(n, random directions)"""

    @property
    def exceeded(self) -> Float[Tensor, "*n"]:
        """Share of the random directions that change the entropy less for each unit of change of the rank."""
        return (self.random.per_rank < self.features.per_rank[..., None]).float().mean(-1)

    @property
    def acting(self) -> Bool[Tensor, "*n"]:
        """Whether a feature exceeds at least 95% of them, and changes the entropy at all."""
        return (self.exceeded >= 0.95) & (self.features.entropy_size > 0)

    @property
    def documents(self) -> int:
        return self.features.tokens.shape[-1]

    def resampled(self, counts: np.ndarray) -> EntropyTests:
        """Resample both with the same draws of documents; see `EntropyEffects.resampled`."""
        return EntropyTests(*(effects.resampled(counts) for effects in self))


def entropy_tests(
    model: LanguageModel,
    layer: int,
    directions: Float[Tensor, "n d_model"],
    batches: Iterable[TokenBatch],
    *,
    n_random: int = 20,
    seed: int = 0,
) -> EntropyTests:
    """Measure the effects of features (mean activation times decoder row, say) and of random directions beside each."""
    drawn = torch.randn(n_random, model.d_model, generator=torch.Generator().manual_seed(seed))
    drawn = drawn / drawn.norm(dim=1, keepdim=True)
    own = directions.detach().cpu().float()
    beside = torch.cat([drawn * norm for norm in own.norm(dim=1)]) if len(own) else own
    effects = entropy_effects(model, layer, torch.cat([own, beside]), batches)
    features = EntropyEffects(*(values[: len(own)] for values in effects))
    beside = (values[len(own) :].unflatten(0, (len(own), n_random)) for values in effects)
    return EntropyTests(features, EntropyEffects(*beside))
