r"""Entropy features: SAE features that write where the unembedding hardly reads, and so change how sure a model is.

Section 5.2, Fig. 5a, after Stolfo et al. 2024 and Gurnee et al. 2024. Let U take the last residual stream to logits,
the final norm's weight included. Its effective null space is spanned by V, the left singular directions of its smallest
2% of singular values. Of the squared norm of a decoder row d_i the share rho_i^2 = ||V^T d_i||^2 / ||d_i||^2 lies there
(by chance about 2%). What lies there moves no logit against another, but it lengthens the stream. The norm divides by
that length, so all logits move together: the entropy of the prediction changes and the order of the tokens does not.
So an entropy feature writes much (its largest activation times ||d_i||) and with a large share there. A LayerNorm takes
the direction of equal entries away first, so rows are then centred. A causal test follows, which Gurnee et al. 2024
made for neurons: a direction is added to the residual stream at all ordinary tokens, and the size of the entropy's
change is divided by that of the change of the next token's rank (of its logarithm). Any large direction changes both,
so random directions of the same norm are the yardstick.

Offers `unembedding`, `null_space`, `NullSpace`, `decoder_rows`, `summarise_activations`, `ActivationSummary`,
`entropy_features`, `EntropyFeatures`; `entropy_effects`, `EntropyEffects`, `entropy_tests`.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from scipy.stats import beta, hypergeom
from torch import Tensor

from ..data.text import TokenBatch
from ..models.harvest import TOKENS_AT_ONCE, as_fits
from ..models.language_model import Edit, LanguageModel
from ..models.unembedding import LogitWeights
from ..stitching.evaluation import splice
from ..utils.progress import progress
from ..utils.stats import DocumentSums, Estimate, resampled_totals

Directions = Float[Tensor, "n d_model"]
BOTTOM = 0.02  # the share of the singular values that make the null space (section 5.2)
# Changes of the prediction's entropy, with sign and without, nats; of the logarithm of the next token's rank, without.
CHANGES = ("entropy", "entropy size", "rank size")
COLUMNS_AT_ONCE = 16_384  # bounds float64 copies of an unembedding: 0.5 GB where a stream has 3584 dimensions


def unembedding(model: LanguageModel) -> tuple[Float[Tensor, "d_model vocab"], bool]:
    """Read what takes the last residual stream to logits, and whether the final norm subtracts the stream's mean.

    The mean over the vocabulary, which no probability sees, is taken out; `LogitWeights` says what else is left out.
    """
    readout = LogitWeights(model)
    columns = readout.columns(torch.arange(len(readout.weight)), centre=True)  # (vocab, d_model)
    return (columns * readout.scale).T, readout.takes_mean


class NullSpace(NamedTuple):
    """Where an unembedding hardly reads."""

    directions: Float[Tensor, "d_model n"]
    """Orthonormal columns, in float64."""
    centred: bool
    """Whether rows are centred before they are measured."""

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


def null_space(W_U: Float[Tensor, "d_model vocab"], centred: bool = False, *, bottom: float = BOTTOM) -> NullSpace:
    """Find the left singular directions of the smallest singular values, a share `bottom` of them, rounded up.

    `centred` says that a norm takes the direction of equal entries away, so that it is neither found nor counted.
    ValueError unless `bottom` lies between 0 and 1.
    """
    if not 0 < bottom < 1:
        raise ValueError(f"bottom is a share of the singular values, between 0 and 1: got {bottom}")
    gram = torch.zeros(len(W_U), len(W_U), dtype=torch.float64, device=W_U.device)
    for part in W_U.split(COLUMNS_AT_ONCE, dim=1):
        part = part.double() - part.double().mean(0) * centred
        gram += part @ part.T
    if centred:  # lift that direction, whose singular value is 0, above all others
        gram += gram.trace() / len(gram)
    _, vectors = torch.linalg.eigh(gram)
    return NullSpace(vectors[:, : math.ceil(bottom * (len(gram) - centred))], centred)


def decoder_rows(sae: SAE) -> Float[Tensor, "d_sae d_model"]:
    """Return what each latent writes for each unit of its activation."""
    rows = sae.W_dec.detach()
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    return rows


class ActivationSummary(NamedTuple):
    """What the latents of an SAE do over a text's ordinary tokens."""

    tokens: int
    fires: Int[Tensor, " d_sae"]
    """The number of tokens on which it fires."""
    mean: Float[Tensor, " d_sae"]
    """Its mean activation where it fires; 0 if it never does."""
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
        return len(y), {name: _activity(sae, y) for name, sae in saes.items() if len(y)}

    for n, found in as_fits(batches, read):
        tokens += n
        for name, values in found.items():
            sums[name][:2] += values[:2]
            sums[name][2].clamp_(min=values[2])
    if not tokens:
        raise ValueError("the batches hold no ordinary token: expected at least one")
    return {
        name: ActivationSummary(tokens, fires.long(), (total / fires.clamp_min(1)).float(), largest.float())
        for name, (fires, total, largest) in sums.items()
    }


def _activity(sae: SAE, y: Tensor) -> Tensor:
    """Find on how many tokens each latent fires, the sum and the maximum of its activations: (3, d_sae)."""
    parts = []
    for part in y.split(TOKENS_AT_ONCE):
        latents = sae.encode(part.to(sae.W_enc))
        counts, totals = (latents > 0).sum(0).double(), latents.sum(0, dtype=torch.float64)
        parts.append(torch.stack([counts, totals, latents.amax(0).double()]))
    found = torch.stack(parts)
    return torch.cat([found[:, :2].sum(0), found[:, 2:].amax(0)]).cpu()


class EntropyFeatures(NamedTuple):
    """Fig. 5a: size and share of every feature. Ranks are shares of the features that fire which have less, 0 to 1."""

    alive: Bool[Tensor, " d_sae"]
    """Whether it fires anywhere in the text."""
    size: Float[Tensor, " d_sae"]
    """The largest norm that it writes: largest activation times the norm of its decoder row."""
    share: Float[Tensor, " d_sae"]
    """The share of its squared norm in the unembedding's null space."""
    size_rank: Float[Tensor, " d_sae"]
    share_rank: Float[Tensor, " d_sae"]
    candidates: tuple[int, ...]
    """Features whose ranks both reach the quantile and whose share is above chance, the lower rank's highest first."""
    closest: int
    """The first of the candidates, or the feature that comes closest if there is none."""
    by_chance: Estimate
    """How many candidates there would be if sizes were dealt out anew among the features that fire, so that size and
    share had nothing to do with each other: the mean, and the middle 95% of all ways to deal (hypergeometric)."""


def entropy_features(sae: SAE, summary: ActivationSummary, space: NullSpace, *, quantile: float) -> EntropyFeatures:
    """Find features that write much, and much of it where the unembedding hardly reads; none where none fires."""
    rows, alive = decoder_rows(sae), summary.fires > 0
    share = space.share(rows)
    size = summary.largest * rows.float().norm(dim=1).cpu()
    share_rank, size_rank = _ranks(share, alive), _ranks(size, alive)
    lower = torch.minimum(share_rank, size_rank)
    order = lower.argsort(descending=True, stable=True)
    large, inside = alive & (size_rank >= quantile), alive & (share_rank >= quantile) & (share > space.chance.high)
    candidates = tuple(order[(large & inside)[order]].tolist())
    by_chance = _overlap(int(alive.sum()), int(large.sum()), int(inside.sum()))
    return EntropyFeatures(alive, size, share, size_rank, share_rank, candidates, int(order[0]), by_chance)


def _overlap(n: int, some: int, others: int) -> Estimate:
    """Count what two sets of such sizes, drawn at random among n things, share: the mean and the middle 95%."""
    if not some or not others:
        return Estimate(0.0, 0.0, 0.0)
    return Estimate(some * others / n, *map(float, hypergeom.ppf((0.025, 0.975), n, some, others)))


def _ranks(values: Tensor, among: Tensor) -> Tensor:
    """Compute for each value the share of the others `among` these that are smaller; 0 where there are none."""
    ordered = values[among].sort().values
    return torch.searchsorted(ordered, values).float().div(max(len(ordered) - 1, 1)).clamp_max(1)


class EntropyEffects(NamedTuple):
    """What adding directions to the stream does to predictions, one entry a direction.

    In tests (`entropy_tests`) the last dimension of *n holds a feature's own direction, and then random ones.
    """

    sums: Float[Tensor, "*n documents 3"]
    """The sum of each of `CHANGES` over the predictions of each document."""
    tokens: Float[Tensor, "*n documents"]
    """The number of predictions of each document."""

    def mean(self, change: str) -> Float[Tensor, "*n"]:
        """Average one of `CHANGES` over predictions."""
        return self.sums[..., CHANGES.index(change)].sum(-1) / self.tokens.sum(-1)

    @property
    def per_rank(self) -> Float[Tensor, "*n"]:
        """The size of the entropy's change for each unit of change of the rank."""
        return self.mean("entropy size") / self.mean("rank size").clamp_min(1e-6)

    @property
    def exceeded(self) -> Float[Tensor, "*features"]:
        """The share of the random directions of a test for which `per_rank` is less than for the feature."""
        return (self.per_rank[..., 1:] < self.per_rank[..., :1]).float().mean(-1)

    @property
    def over_random(self) -> Float[Tensor, "*features"]:
        """`per_rank` of the feature of a test, divided by what 95% of its random directions do not exceed."""
        return self.per_rank[..., 0] / self.per_rank[..., 1:].quantile(0.95, dim=-1).clamp_min(1e-6)

    def resampled(self, seed: int) -> "EntropyEffects":
        """Draw documents anew; means get a first dimension, of the documents as they are and of their resamples.

        ValueError for a single document, which says nothing of others.
        """
        n = self.tokens.shape[-1]
        if n < 2:
            raise ValueError(f"an interval over documents needs two at least: got {n}")
        tables = self.sums.movedim(-2, 0), self.tokens.movedim(-1, 0)  # (documents, ...)
        sums, tokens = (torch.from_numpy(resampled_totals(table.numpy(), seed)) for table in tables)
        return EntropyEffects(sums[..., None, :], tokens[..., None])


def entropy_effects(
    model: LanguageModel, layer: int, directions: Directions, batches: Iterable[TokenBatch]
) -> EntropyEffects:
    """Add each direction to the residual stream before `layer`, at all ordinary tokens at once.

    Predictions count where both the token and the next are ordinary. ValueError if there are none.
    """

    @torch.no_grad()
    def read(batch: TokenBatch) -> DocumentSums:
        """Sum by document, (n, 4): three changes for each direction, and the number of predictions."""
        stream = model.residuals(batch.tokens, [layer])[layer]
        counted = batch.mask[:, :-1] & batch.mask[:, 1:]
        following = batch.tokens[:, 1:][counted].to(model.device)

        def predictions(edit: Edit | None = None) -> tuple[Tensor, Tensor]:
            """Compute entropies and log ranks of the next tokens: (n,), (n,)."""
            logits = model.logits(batch.tokens, layer=layer, edit=edit, stream=stream)
            logits = logits[:, :-1][counted.to(model.device)].float()
            logs = logits.log_softmax(-1)
            above = (logits > logits.gather(1, following[:, None])).sum(-1)
            return -(logs.exp() * logs).sum(-1).double(), (1 + above).double().log()

        entropy, rank = predictions()
        values = torch.zeros(len(entropy), len(directions), 4, dtype=torch.float64)
        for index, direction in enumerate(progress(directions, "directions")):
            new_entropy, new_rank = predictions(
                splice((stream + direction.to(stream))[batch.mask.to(stream.device)], batch.mask)
            )
            change = new_entropy - entropy
            columns = change, change.abs(), (new_rank - rank).abs(), torch.ones_like(change)
            values[:, index] = torch.stack(columns, dim=1).cpu()
        return DocumentSums.of(batch.documents[:, 1:][counted], values)

    total = DocumentSums()
    for part in as_fits(batches, read):
        total.add(part)
    sums = torch.from_numpy(total.table())  # (documents, n, 4)
    return EntropyEffects(sums[..., :3].transpose(0, 1), sums[..., 3].T)


def entropy_tests(
    model: LanguageModel, layer: int, directions: Directions, batches: Iterable[TokenBatch], *, n_random: int, seed: int
) -> EntropyEffects:
    """Measure the effects, (n, 1 + n_random), of each direction and then of random ones of its norm."""
    drawn = torch.randn(n_random, model.d_model, generator=torch.Generator().manual_seed(seed))
    drawn, own = drawn / drawn.norm(dim=1, keepdim=True), directions.detach().cpu().float()[:, None]
    tried = torch.cat([own, drawn * own.norm(dim=2, keepdim=True)], dim=1)  # (n, 1 + n_random, d_model)
    effects = entropy_effects(model, layer, tried.flatten(0, 1), batches)
    return EntropyEffects(*(values.unflatten(0, tried.shape[:2]) for values in effects))
