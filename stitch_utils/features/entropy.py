r"""Entropy features: SAE features that write where the unembedding hardly reads, and so change how sure a model is.

Section 5.2, Fig. 5a, after Stolfo et al. 2024 and Gurnee et al. 2024. Let U be what takes the last residual stream to
logits (the final norm's weight is part of it), and V the left singular directions of its smallest singular values, 2%
of them: its effective null space. Of a decoder row d_i,

    rho_i^2 = ||V^T d_i||^2 / ||d_i||^2

is the share of its squared norm that lies there; by chance it is about 2%. What lies there moves no logit against
another, but it lengthens the stream, and since the final norm divides by that length all logits move together: the
entropy of the prediction changes and the order of the tokens does not. So an entropy feature is one that writes much
(its largest activation times ||d_i||) and with a large share. Where the final norm is a LayerNorm, the direction of
equal entries is taken away before the norm measures anything; rows are centred first, and that direction belongs
neither to the null space nor to the rest.

Whether such a feature also does what the geometry suggests is another question, for `entropy_effects`.

Offers `unembedding`, `Unembedding`, `null_space`, `NullSpace`, `null_directions`, `decoder_rows`,
`summarise_activations`, `ActivationSummary`, `entropy_features`, `EntropyFeatures`, and what all of section 5.2 shares:
`FunctionalConfig`, `functional_config`, `functional_texts`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from scipy.stats import beta
from torch import Tensor

from ..data.pairs import ModelPair
from ..data.text import TokenBatch
from ..models.harvest import TOKENS_AT_ONCE, as_fits, evaluation_batches, training_batches
from ..models.language_model import LanguageModel
from ..models.unembedding import LogitWeights
from ..stitching.pair import StitchedPair
from ..utils.stats import Estimate

BOTTOM = 0.02  # of the singular values (section 5.2)
COLUMNS_AT_ONCE = 16_384  # of an unembedding in float64: 0.5 GB where a stream has 3584 dimensions


@dataclass(frozen=True)
class FunctionalConfig:
    """How much text is read, and where lines are drawn; the paper gives none of these numbers but the 2%."""

    search_documents: int
    """Documents, of the training text, on which features and heads are chosen."""
    evaluation_documents: int
    """Documents, of the evaluation text, on which those chosen are measured."""
    entropy_documents: int
    """Documents, the first of the evaluation text, on which directions are added to the stream; two at least, for the
    sake of an interval."""
    candidates: int
    """Paths from a feature to a head that are tried in the search, those of the largest and smallest scores."""
    max_tokens: int
    """Tokens on which a path is tried, at most."""
    min_tokens: int = 20
    """Tokens of the search on which a feature must fire."""
    quantile: float = 0.95
    """Of size and of share, above which a feature counts as an entropy feature."""
    bottom: float = BOTTOM
    """Share of the unembedding's singular values whose directions count as its null space."""
    random_directions: int = 20
    """Set beside each feature's own."""
    smallest: float = 0.05
    """Change of the attention to the first token from which on a feature counts as one that switches a head off."""
    random_stitches: int = 5
    """Through which A's SAE is carried to B as a yardstick; two at least, for the sake of an interval."""
    seed: int = 0
    """Of the random stitches and directions, and of the bootstrap."""

    def __post_init__(self):
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            least = {"random_stitches": 2, "entropy_documents": 2, "seed": 0}.get(entry.name, 1)
            if entry.type == "int" and value < least:
                raise ValueError(f"{entry.name} must be {least} or more: got {value}")
        if not (0 < self.quantile < 1 and 0 < self.bottom < 1):
            raise ValueError(f"quantile and bottom lie between 0 and 1: got {self.quantile} and {self.bottom}")


def functional_config(pair: ModelPair, scale: str, **changes: Any) -> FunctionalConfig:
    """Take the sizes of a scale, with `changes` to them."""
    return FunctionalConfig(**pair.sizes_of("entropy", scale) | changes)


def functional_texts(stitched: StitchedPair, config: FunctionalConfig) -> tuple[list[TokenBatch], ...]:
    """Read text to search in, to measure on, and to add directions to.

    Each document has a row of its own, also where the pair packs them: a head should have but one token that begins a
    text to look at. Columns in which all rows are filled up are cut off.
    """
    alone = dataclasses.replace(stitched.pair, rows="document")
    sizes = dataclasses.replace(stitched.sizes, eval_documents=config.evaluation_documents)
    few = dataclasses.replace(sizes, eval_documents=config.entropy_documents)
    texts = (
        training_batches(alone, sizes, stitched.tokenizer, config.search_documents * alone.context),
        evaluation_batches(alone, sizes, stitched.tokenizer),
        evaluation_batches(alone, few, stitched.tokenizer),
    )
    return tuple([_trimmed(batch) for batch in text] for text in texts)


def _trimmed(batch: TokenBatch) -> TokenBatch:
    width = max(int(batch.mask.any(0).nonzero().max()) + 1 if batch.mask.any() else 1, 2)
    return TokenBatch(*(part[:, :width] for part in batch))


class Unembedding(NamedTuple):
    """What takes the last residual stream to logits, up to the length of the stream."""

    matrix: Float[Tensor, "d_model vocab"]
    """The final norm's scale written into it, the mean over the vocabulary, which no probability sees, taken out."""
    centred: bool
    """Whether the final norm subtracts the mean of a stream, so that the direction of equal entries reaches nothing."""


def unembedding(model: LanguageModel) -> Unembedding:
    """Read the whole unembedding of a model; `LogitWeights` says what is left out."""
    readout = LogitWeights(model)
    columns = readout.columns(torch.arange(len(readout.weight)), centre=True)  # (vocab, d_model)
    return Unembedding((columns * readout.scale).T, readout.takes_mean)


def null_directions(
    W_U: Float[Tensor, "d_model vocab"], *, bottom: float = BOTTOM, centred: bool = False
) -> Float[Tensor, "d_model n"]:
    """Find orthonormal left singular directions of the smallest singular values, a share `bottom`, rounded up.

    So of 64 there are 2, and always at least one. `centred` leaves the direction of equal entries out of account, so
    that it is neither one of them nor counted. ValueError for a share that does not lie between 0 and 1.
    """
    if not 0 < bottom < 1:
        raise ValueError(f"bottom is a share of the singular values, between 0 and 1: got {bottom}")
    gram = torch.zeros(len(W_U), len(W_U), dtype=torch.float64, device=W_U.device)
    for part in W_U.split(COLUMNS_AT_ONCE, dim=1):
        part = part.double() - part.double().mean(0) * centred
        gram += part @ part.T
    if centred:  # lifted above all others
        gram += gram.trace() / len(gram)
    _, vectors = torch.linalg.eigh(gram)
    return vectors[:, : math.ceil(bottom * (len(gram) - centred))]


class NullSpace(NamedTuple):
    """Where an unembedding hardly reads."""

    directions: Float[Tensor, "d_model n"]
    """Orthonormal columns."""
    centred: bool
    """Whether rows are centred before they are measured (see `Unembedding`)."""

    def share(self, rows: Float[Tensor, "rows d_model"]) -> Float[Tensor, " rows"]:
        """Compute rho^2, the share of each row's squared norm that lies within; 0 for a row of zeros."""
        rows = rows.to(self.directions)
        rows = rows - rows.mean(1, keepdim=True) * self.centred
        inside = (rows @ self.directions).square().sum(1)
        return (inside / rows.square().sum(1).clamp_min(torch.finfo(rows.dtype).tiny)).float().cpu()

    @property
    def chance(self) -> Estimate:
        """The share of directions drawn at random: its mean, and the middle 95% of its distribution (Beta)."""
        d_model, n = self.directions.shape
        others = d_model - self.centred - n
        low, high = beta.ppf((0.025, 0.975), n / 2, others / 2)
        return Estimate(n / (n + others), float(low), float(high))


def null_space(outward: Unembedding, *, bottom: float = BOTTOM) -> NullSpace:
    """Find the null space of an unembedding, in float64; see `null_directions`."""
    return NullSpace(null_directions(outward.matrix, bottom=bottom, centred=outward.centred), outward.centred)


def decoder_rows(sae: SAE) -> Float[Tensor, "d_sae d_model"]:
    """Give what each latent writes for each unit of its activation."""
    rows = sae.W_dec.detach()
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    return rows


class ActivationSummary(NamedTuple):
    """What the latents of an SAE do over a text's ordinary tokens."""

    tokens: int
    fires: Int[Tensor, " d_sae"]
    """On how many of them."""
    mean: Float[Tensor, " d_sae"]
    """Mean activation where it fires; 0 if it never does."""
    largest: Float[Tensor, " d_sae"]


def summarise_activations(
    model: LanguageModel, layer: int, saes: Mapping[str, SAE], batches: Iterable[TokenBatch]
) -> dict[str, ActivationSummary]:
    """Summarise several SAEs of the residual stream before `layer` in one pass; keep nothing of single tokens.

    ValueError for batches without an ordinary token.
    """
    tokens = 0
    sums = {name: torch.zeros(3, sae.cfg.d_sae, dtype=torch.float64) for name, sae in saes.items()}

    @torch.no_grad()
    def read(batch: TokenBatch) -> tuple[int, dict[str, Tensor]]:
        y = model.residuals(batch.tokens, [layer])[layer][batch.mask.to(model.device)]
        found = {}
        for name, sae in saes.items():
            parts = []
            for part in y.split(TOKENS_AT_ONCE) if len(y) else ():
                latents = sae.encode(part.to(sae.W_enc))
                counts, totals = (latents > 0).sum(0).double(), latents.sum(0, dtype=torch.float64)
                parts.append(torch.stack([counts, totals, latents.amax(0).double()]))
            if parts:
                parts = torch.stack(parts)
                found[name] = torch.cat([parts[:, :2].sum(0), parts[:, 2:].amax(0)]).cpu()
        return len(y), found

    for n, found in as_fits(batches, read):
        tokens += n
        for name, values in found.items():
            total = sums[name]
            total[:2] += values[:2]
            total[2] = torch.maximum(total[2], values[2])
    if not tokens:
        raise ValueError("the batches hold no ordinary token: expected at least one")
    return {
        name: ActivationSummary(tokens, fires.long(), (total / fires.clamp_min(1)).float(), largest.float())
        for name, (fires, total, largest) in sums.items()
    }


class EntropyFeatures(NamedTuple):
    """Fig. 5a: size and share of every feature. Ranks are shares of the features that fire which have less, 0 to 1."""

    alive: Bool[Tensor, " d_sae"]
    """Fires anywhere in the text."""
    size: Float[Tensor, " d_sae"]
    """The largest norm that it writes: largest activation times the norm of its decoder row."""
    share: Float[Tensor, " d_sae"]
    """Of its squared norm, in the unembedding's null space."""
    size_rank: Float[Tensor, " d_sae"]
    share_rank: Float[Tensor, " d_sae"]
    candidates: tuple[int, ...]
    """Features whose ranks both reach the quantile and whose share is above chance, the lower rank's highest first."""
    closest: int
    """The first of the candidates, or the feature that comes closest if there is none."""
    by_chance: float
    """How many features would reach both quantiles if size and share had nothing to do with each other."""


def entropy_features(
    sae: SAE, summary: ActivationSummary, space: NullSpace, *, quantile: float = 0.95
) -> EntropyFeatures:
    """Find features that write much, and much of it where the unembedding hardly reads; none where none fires."""
    rows, alive = decoder_rows(sae), summary.fires > 0
    share = space.share(rows)
    size = summary.largest * rows.float().norm(dim=1).cpu()
    share_rank, size_rank = _ranks(share, alive), _ranks(size, alive)
    lower = torch.minimum(share_rank, size_rank)
    order = lower.argsort(descending=True, stable=True)
    fits = (lower >= quantile) & (share > space.chance.high)
    return EntropyFeatures(
        alive,
        size,
        share,
        size_rank,
        share_rank,
        tuple(order[fits[order]].tolist()),
        int(order[0]),
        int(alive.sum()) * (1 - quantile) ** 2,
    )


def _ranks(values: Tensor, among: Tensor) -> Tensor:
    """Compute for each value the share of the others `among` these that are smaller; 0 where there are none."""
    ordered = values[among].sort().values
    return torch.searchsorted(ordered, values).float().div(max(len(ordered) - 1, 1)).clamp_max(1)
