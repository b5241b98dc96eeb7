"""Measure SAEs in the model that they read: how many latents write how much of its stream (section 3, App. C, Table 2).

Offers `evaluate_saes`, `SAEMetrics`; `resample_saes`, which keeps the resamples, for paired comparisons, as
`SAEResamples`; `check_width`; `judge_sae` and `SAETrust`, for a transferred SAE and its original.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from sae_lens import SAE
from torch import Tensor

from ..data.text import PairedBatch, TokenBatch
from ..models.harvest import TOKENS_AT_ONCE, as_fits, paired_residuals
from ..models.language_model import LanguageModel
from ..stitching.evaluation import splice
from ..stitching.nulls import component_stitches
from ..stitching.pair import StitchedPair
from ..stitching.stitch import AffineMap, Stitch
from ..utils.progress import progress
from ..utils.stats import Beyond, DocumentSums, Estimate, from_resamples, resampled_totals
from .transfer import transfer_sae


class SAEMetrics(NamedTuple):
    """The columns of Table 2, over ordinary tokens; intervals by resampling documents."""

    l0: Estimate
    """Latents that fire (f_i > 0) on a token."""
    fuv: Estimate
    """Sum of squared errors over the sum of squared deviations from the mean of the same tokens."""
    mse: Estimate
    """Mean squared error over tokens and dimensions."""
    delta_loss: Estimate
    """Next-token cross-entropy with the reconstruction spliced in, minus the model's own; nats."""
    dead_fraction: float
    """Share of latents that fire nowhere in the text. It falls with the length of the text, so it has no interval."""


class SAEResamples(NamedTuple):
    """The same of the text and of its resamples, (1 + resamples,) each.

    Differences of two SAEs, resample by resample, are paired: one seed draws the same documents for both.
    """

    l0: np.ndarray
    fuv: np.ndarray
    mse: np.ndarray
    delta_loss: np.ndarray
    dead_fraction: float
    own_loss: np.ndarray
    """The model's own cross-entropy, nats a token."""

    def metrics(self) -> SAEMetrics:
        """Return the columns of Table 2."""
        return SAEMetrics(*map(from_resamples, self[:4]), dead_fraction=self.dead_fraction)


def check_width(sae: SAE, model: LanguageModel, name: str = "the SAE") -> None:
    """Raise ValueError, in which the SAE is called `name`, unless it is one of a stream as wide as the model's."""
    if sae.cfg.reshape_activations != "none" or hasattr(sae.cfg, "d_out"):
        found = f"{name} is a {sae.cfg.architecture()} with reshape_activations={sae.cfg.reshape_activations!r}"
        raise ValueError(f"{found}: expected an SAE of the residual stream of {model.ref!r}")
    if sae.cfg.d_in != model.d_model:
        raise ValueError(f"{name} reads {sae.cfg.d_in} dimensions: expected {model.d_model}, that of {model.ref!r}")


def evaluate_saes(
    saes: Mapping[str, SAE],
    model: LanguageModel,
    layer: int,
    batches: Iterable[TokenBatch],
    *,
    limit: float = math.inf,
    seed: int = 0,
) -> dict[str, SAEMetrics]:
    """Measure several SAEs of the residual stream before `layer` in one pass; each computes where its weights are.

    Special tokens, and those of a norm beyond `limit`, keep the model's own residual and are not counted. ValueError
    for an SAE of another width, and for batches without an ordinary token.
    """
    found = resample_saes(saes, model, layer, batches, limit=limit, seed=seed)
    return {name: of_sae.metrics() for name, of_sae in found.items()}


def resample_saes(
    saes: Mapping[str, SAE | AffineMap],
    model: LanguageModel,
    layer: int,
    batches: Iterable[TokenBatch],
    *,
    limit: float = math.inf,
    seed: int = 0,
) -> dict[str, SAEResamples]:
    """Measure as `evaluate_saes` does, and keep what each resample of the documents gives.

    An affine map from the stream to itself, such as a stitch to the other model and back, counts as a reconstruction
    without latents.
    """
    for name, sae in saes.items():
        if isinstance(sae, SAE):
            check_width(sae, model, f"SAE {name!r}")
    sums = DocumentSums()
    latents = {name: sae.cfg.d_sae if isinstance(sae, SAE) else 0 for name, sae in saes.items()}
    fired = {name: torch.zeros(size, dtype=torch.bool) for name, size in latents.items()}

    @torch.no_grad()
    def read(batch: TokenBatch) -> DocumentSums:
        """Sum the columns over the tokens of each document, and note which latents fire."""
        residual = model.residuals(batch.tokens, [layer])[layer]
        keep = batch.mask.to(model.device)
        if limit < math.inf:
            keep = keep & (residual.float().norm(dim=-1) <= limit)
        y = residual[keep]  # (n, d_model)

        def loss(edit=None) -> Tensor:  # (n,), 0 for the first token of a row
            losses = model.cross_entropy(batch.tokens, layer=layer, edit=edit, stream=residual)
            return torch.nn.functional.pad(losses, (1, 0))[keep].double()

        columns = [torch.ones(len(y), dtype=torch.float64, device=y.device), y.double().square().sum(1), loss()]
        for name, sae in saes.items():  # those that fire in a batch fire in its halves, too, should it be read again
            reconstruction, l0 = _reconstruct(sae, y, fired[name])
            error = (reconstruction.double() - y.double()).square().sum(1)
            columns += [l0, error, loss(splice(reconstruction, keep))]
        values = torch.cat([torch.stack(columns, dim=1), y.double()], dim=1)
        return DocumentSums.of(batch.documents[keep.cpu()], values)

    for of_batch in progress(as_fits(batches, read), "SAEs"):
        sums.add(of_batch)
    table = sums.table()
    totals = resampled_totals(table, seed)
    count, squares, own = totals[:, :3].T
    variation = squares - (totals[:, 3 + 3 * len(saes) :] ** 2).sum(axis=1) / count
    found = {}
    for index, name in enumerate(saes):
        l0, error, loss_with = totals[:, 3 + 3 * index : 6 + 3 * index].T
        quotients = (l0 / count, error / variation, error / count / model.d_model, (loss_with - own) / count)
        dead = 1 - fired[name].double().mean().item()
        found[name] = SAEResamples(*quotients, dead_fraction=dead, own_loss=own / count)
    return found


def _reconstruct(sae: SAE | AffineMap, y: Tensor, fired: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruct activations (n, d), count the latents that fire on each (n,), and note them in `fired` (d_sae,)."""
    if isinstance(sae, AffineMap):
        return sae(y), torch.zeros(len(y), dtype=torch.float64, device=y.device)
    parts, counts = [], []
    for part in y.split(TOKENS_AT_ONCE):
        latents = sae.encode(part.to(sae.W_enc))
        parts.append(sae.decode(latents).to(y.device))
        counts.append((latents > 0).sum(1).double().to(y.device))
        fired |= (latents > 0).any(0).cpu()
    return torch.cat(parts), torch.cat(counts)


class SAETrust(NamedTuple):
    """How an SAE of one model (the source) and the one carried to the other (the target) do on held-out text."""

    tokens: int
    """Ordinary tokens of the text, as the target model reads it."""
    source_loss: float
    """Cross-entropy of the source model itself, nats a token."""
    target_loss: float
    """Cross-entropy of the target model itself."""
    over_mean: Beyond
    """Of the latents that fire on a token in the original or in the carried SAE, the share that fires in both, over the
    tokens that meet; beside what a map that takes every token to the mean would reach."""
    over_null: Beyond
    """The same share, beside those of stitches that know nothing of pairs (`component_stitches`)."""
    original: SAEMetrics
    carried: SAEMetrics
    null: SAEMetrics
    """Of the SAE carried by one of these stitches."""
    alone: SAEMetrics
    """Of the stream carried to the source and back without an SAE."""
    above_null: Estimate
    """Cross-entropy with the carried SAE, less that with the null's, on the same tokens; below 0 the pairing helps."""

    @property
    def is_told(self) -> bool:
        """Whether more of the same latents fire than with the mean and with the nulls."""
        return self.over_mean.is_told and self.over_null.is_told


@torch.no_grad()
def judge_sae(
    stitched: StitchedPair,
    sae: SAE,
    carried: SAE,
    *,
    stitch: Stitch,
    batches: Iterable[PairedBatch | TokenBatch] | None = None,
    to: str = "b",
    seed: int = 0,
) -> SAETrust:
    """Measure an SAE and the one that `stitch` carried to model `to`: whether the same latents fire, and what either
    leaves of its own model's stream and loss, beside nulls and the stitch alone.

    `batches` are by default those of the pair's evaluation text; they give the nulls their moments, too.
    """
    both = [PairedBatch.of(batch) for batch in (stitched.evaluation_batches() if batches is None else batches)]
    source = "a" if to == "b" else "b"
    rows = {side: [getattr(batch, side) for batch in both] for side in "ab"}
    moments = stitched.gather(both)
    nulls = list(component_stitches(moments, seed=seed))
    in_target: dict[str, SAE | AffineMap] = {
        "carried": carried,
        "null": transfer_sae(sae, nulls[0], to=to).to(carried.device),
        "alone": stitch.towards(source).then(stitch.towards(to)),
    }
    found: dict[str, SAEResamples] = {}
    for side, saes in ((source, {"original": sae}), (to, in_target)):
        where = {"limit": stitched.limit(side), "seed": seed}
        found |= resample_saes(saes, *stitched.side(side), rows[side], **where)
    mean = (moments.mean_x if to == "b" else moments.mean_y).float()
    to_mean = AffineMap(mean.new_zeros(stitched.side(to)[0].d_model, len(mean)), mean)
    inward = [to_mean, *(each.towards(source) for each in nulls)]
    shares = _same_latents(stitched, sae, carried, inward, both, to=to, seed=seed)
    beyond = Beyond.of(shares[:, 0], shares[:, 1:2]), Beyond.of(shares[:, 0], shares[:, 2:])
    above = from_resamples(found["carried"].delta_loss - found["null"].delta_loss)
    tokens = sum(int(batch.mask.sum()) for batch in rows[to])
    source_loss, target_loss = (float(found[name].own_loss[0]) for name in ("original", "carried"))
    metrics = {name: one.metrics() for name, one in found.items()}
    return SAETrust(tokens, source_loss, target_loss, *beyond, **metrics, above_null=above)


def _same_latents(
    stitched: StitchedPair,
    sae: SAE,
    carried: SAE,
    nulls: Sequence[AffineMap],
    batches: Sequence[PairedBatch],
    *,
    to: str,
    seed: int,
) -> np.ndarray:
    """Measure of the latents that fire on either stream of a token which share fires on both: (1 + resamples, SAEs).

    SAEs are the carried one, and one for each of `nulls`, which lead from the target's stream to the source's: by Eq. 6
    a carried SAE encodes y as the original encodes what the map back makes of y.
    """
    layer_a, layer_b = stitched.layers
    counts = []
    for xs, ys in paired_residuals(*stitched.models, batches, [layer_a], [layer_b]):
        for x, y in zip(xs[layer_a].split(TOKENS_AT_ONCE), ys[layer_b].split(TOKENS_AT_ONCE)):
            own, other = (stream.to(sae.W_enc) for stream in ((x, y) if to == "b" else (y, x)))
            fires, found = sae.encode(own) > 0, [carried.encode(other.to(carried.W_enc)) > 0]
            columns = []
            for latents in itertools.chain(found, (sae.encode(each(other)) > 0 for each in nulls)):
                columns += [(fires & latents).sum(1), (fires | latents).sum(1)]
            counts.append(torch.stack(columns, dim=1).cpu())
    owners = torch.cat([batch.a.documents[batch.met_a] for batch in batches])
    sums = resampled_totals(DocumentSums.of(owners, torch.cat(counts)).table(), seed)
    both, either = sums[:, 0::2], sums[:, 1::2]
    return np.divide(both, either, out=np.zeros_like(both), where=either > 0)
