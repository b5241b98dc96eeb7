"""Measure SAEs in the model that they read: how many latents write how much of its stream (section 3, App. C, Table 2).

Offers `evaluate_saes`, `SAEMetrics`; `resample_saes`, which keeps the resamples, for paired comparisons, as
`SAEResamples`; `check_width`; `judge_sae` and `SAETrust`, for a transferred SAE and its original.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from sae_lens import SAE
from torch import Tensor

from ..data.text import PairedBatch, TokenBatch
from ..models.harvest import TOKENS_AT_ONCE, as_fits
from ..models.language_model import LanguageModel
from ..stitching.evaluation import measure_fidelity, splice
from ..stitching.pair import StitchedPair
from ..stitching.stitch import AffineMap, Stitch
from ..utils.progress import progress
from ..utils.stats import DocumentSums, Estimate, from_resamples, resampled_totals


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
        found[name] = SAEResamples(*quotients, dead_fraction=1 - fired[name].double().mean().item())
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
    round_trip_loss: float
    """Cross-entropy of the target with its stream carried to the source and back, without an SAE."""
    original: SAEMetrics
    carried: SAEMetrics


def judge_sae(
    stitched: StitchedPair,
    sae: SAE,
    carried: SAE,
    *,
    stitch: Stitch,
    batches: Iterable[PairedBatch | TokenBatch] | None = None,
    to: str = "b",
) -> SAETrust:
    """Measure an SAE and the one that `stitch` carried to model `to`, each in its own model, and the stitch alone.

    `batches` are by default those of the pair's evaluation text.
    """
    both = [PairedBatch.of(batch) for batch in (stitched.evaluation_batches() if batches is None else batches)]
    source = "a" if to == "b" else "b"
    rows = {side: [getattr(batch, side) for batch in both] for side in "ab"}
    limit = stitched.limit
    losses = measure_fidelity(*stitched.models, *stitched.layers, {"stitch": stitch}, both, limits=stitched.limits)
    return SAETrust(
        sum(int(batch.mask.sum()) for batch in rows[to]),
        losses.cross_entropy("own", source).value,
        losses.cross_entropy("own", to).value,
        losses.cross_entropy("stitch", f"{to}_to_{source}_to_{to}").value,
        evaluate_saes({"original": sae}, *stitched.side(source), rows[source], limit=limit(source))["original"],
        evaluate_saes({"carried": carried}, *stitched.side(to), rows[to], limit=limit(to))["carried"],
    )
