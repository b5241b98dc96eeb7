"""What stitching costs: next-token cross-entropy with one model's residual stream computed from the other's.

Section 2, "Downstream Performance": Table 1 and Fig. 7. In A->B the residual stream of B before its stitched layer is
replaced by up(x), and B finishes the computation; in A->B->A that of A is replaced by down(up(x)), and so on. The
host's own residual stays at special tokens, which no stitch has seen (App. A masks them). Where documents share a
row, the end-of-text token between two of them has read the first, so a little of the host's own reading stays. Losses
are summed document by document, so that intervals can be had by resampling documents.

Offers `measure_fidelity`, `Fidelity`, `CONDITIONS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.text import TokenBatch
from ..models.harvest import as_fits
from ..models.language_model import LanguageModel
from ..utils.progress import progress
from ..utils.stats import RESAMPLES, Estimate, from_draws, resampled_counts
from .stitch import Stitch

# Condition -> the model that comes last.
CONDITIONS = {"a_to_b": "b", "b_to_a": "a", "a_to_b_to_a": "a", "b_to_a_to_b": "b"}


@dataclass(frozen=True)
class Fidelity:
    """Cross-entropy of every condition, summed for each document."""

    tokens: np.ndarray
    """(documents,): tokens predicted in each."""
    sums: Mapping[tuple[str, str], np.ndarray]
    """(stitch, condition) -> (documents,), nats. The models' own losses are ("own", "a") and ("own", "b")."""
    seed: int = 0
    """Of the bootstrap."""
    resamples: int = RESAMPLES

    def _draws(self) -> np.ndarray:
        """(resamples, documents): how often each document is drawn; the same draws for every condition."""
        return resampled_counts(len(self.tokens), self.seed, self.resamples)

    def cross_entropy(self, stitch: str, condition: str) -> Estimate:
        """Mean over tokens, nats, with a bootstrap interval over documents."""
        total = self.sums[stitch, condition]
        draws = self._draws()
        return from_draws(total.sum() / self.tokens.sum(), draws @ total / (draws @ self.tokens))

    def increase(self, stitch: str, condition: str) -> Estimate:
        """Relative increase over the own loss of the model that comes last: 0.11 for +11%."""
        total, own = self.sums[stitch, condition], self.sums["own", CONDITIONS.get(condition, condition[0])]
        draws = self._draws()
        return from_draws(total.sum() / own.sum() - 1, draws @ total / (draws @ own) - 1)


def splice(replacement: Tensor, mask: Tensor):
    """An edit that puts `replacement` (batch, pos, d_model) at the ordinary tokens and keeps the host's residual
    elsewhere."""
    keep = mask[..., None]
    return lambda residual: torch.where(keep.to(residual.device), replacement.to(residual), residual)


def measure_fidelity(
    model_a: LanguageModel,
    model_b: LanguageModel,
    layer_a: int,
    layer_b: int,
    stitches: Mapping[str, Stitch],
    batches: Iterable[TokenBatch],
    *,
    means: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
) -> Fidelity:
    """Cross-entropy of both models and of the four stitched conditions, for several stitches in one pass.

    `means` are the mean residuals (d_a,), (d_b,): if given, ("own", "a_without_layer") and ("own", "b_without_layer")
    are the losses with the stream replaced by its mean, which any stitch should beat. ValueError if the batches
    predict no ordinary token.
    """
    tokens: dict[int, float] = {}
    sums: dict[tuple[str, str], dict[int, float]] = {}
    models, layers = {"a": model_a, "b": model_b}, {"a": layer_a, "b": layer_b}
    stitches = {name: stitch.to(model_b.device) for name, stitch in stitches.items()}

    def losses(batch: TokenBatch) -> tuple[TokenBatch, dict[tuple[str, str], Tensor]]:
        """{(stitch, condition): (batch, pos-1)} on the CPU."""

        def spliced(host: str, replacement: Tensor) -> Tensor:
            edit = splice(replacement, batch.mask)
            return models[host].cross_entropy(batch.tokens, layer=layers[host], edit=edit).cpu()

        x = model_a.residuals(batch.tokens, [layer_a])[layer_a]
        y = model_b.residuals(batch.tokens, [layer_b])[layer_b]
        found = {("own", host): model.cross_entropy(batch.tokens).cpu() for host, model in models.items()}
        if means is not None:
            for host, stream, mean in (("a", x, means[0]), ("b", y, means[1])):
                found["own", f"{host}_without_layer"] = spliced(host, mean.to(stream).expand_as(stream))
        for name, stitch in stitches.items():
            up_x, down_y = stitch.up(x.to(y.device)), stitch.down(y)
            found[name, "a_to_b"] = spliced("b", up_x)
            found[name, "b_to_a"] = spliced("a", down_y)
            found[name, "a_to_b_to_a"] = spliced("a", stitch.down(up_x))
            found[name, "b_to_a_to_b"] = spliced("b", stitch.up(down_y))
        return batch, found

    for batch, found in progress(as_fits(batches, losses), "cross-entropy"):
        _add(tokens, torch.ones(batch.tokens[:, 1:].shape), batch)
        for key, values in found.items():
            _add(sums.setdefault(key, {}), values, batch)
    if not tokens:
        raise ValueError("the batches predict no ordinary token: expected at least one document of two tokens")
    order = sorted(tokens)
    return Fidelity(
        np.array([tokens[document] for document in order]),
        {key: np.array([values[document] for document in order]) for key, values in sums.items()},
        seed,
    )


def _add(store: dict[int, float], values: Tensor, batch: TokenBatch) -> None:
    """Adds the values (batch, pos-1) at ordinary tokens to the sum of the document that each token belongs to."""
    scored = batch.mask[:, 1:]
    owners = batch.documents[:, 1:][scored]
    totals = torch.bincount(owners, weights=values.double()[scored]) if len(owners) else torch.zeros(0)
    for document in owners.unique().tolist():
        store[document] = store.get(document, 0.0) + totals[document].item()
