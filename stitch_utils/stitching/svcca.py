"""Which layer of B is most like a layer of A.

Section 2 and App. A.1, Fig. 6: A's layer is fixed, B's is the one with the highest mean correlation under SVCCA
(Raghu et al. 2017). Each stream is reduced to the directions that hold most of its variance, so that noise does not
count; canonical correlations between the two reduced streams are then averaged.

Being alike is not the aim. The layer that SVCCA names is worth what its stitch is worth beside the stitches to other
layers, by the cross-entropy of A->B.

Offers `svcca_table`, `main_directions`, `layer_grid`, the layers of a deep model that are compared, and `judge_layer`
with its answer, `LayerWorth`.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..data.text import PairedBatch, TokenBatch
from ..models.harvest import Residuals
from ..models.language_model import LanguageModel
from ..utils.stats import Estimate, from_resamples, resampled_totals
from .evaluation import measure_fidelity
from .stitch import Stitch


def main_directions(x: Float[Tensor, "n d"], variance: float) -> Float[Tensor, "n k"]:
    """Span the principal components that hold this share of the variance of `x`, by orthonormal columns."""
    if len(x) <= x.shape[1]:
        raise ValueError(f"SVCCA of {len(x)} tokens in {x.shape[1]} dimensions: more tokens than dimensions are needed")
    if not 0 < variance <= 1:
        raise ValueError(f"variance must be a share above 0 and at most 1: got {variance}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    centred = x.to(device).double()
    centred -= centred.mean(dim=0)
    # Of the d x d matrix: an SVD of all tokens would do more work for the same directions.
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    held = values.cumsum(0) / values.sum()
    if not torch.isfinite(held).all():
        raise ValueError("activations do not vary: SVCCA is not defined")
    size = min(int((held < variance - 1e-12).sum()) + 1, int((values > values[0] * 1e-12).sum()))
    return (centred @ (vectors[:, :size] / values[:size].sqrt())).cpu()


def layer_grid(n_layers: int, *, at_most: int, always: int) -> list[int]:
    """List `at_most` layers, evenly spread from the first to the last, with `always` among them; all for 0."""
    if not at_most or at_most >= n_layers:
        return list(range(n_layers))
    spread = torch.linspace(0, n_layers - 1, at_most).round().int().tolist()
    nearest = min(range(len(spread)), key=lambda place: abs(spread[place] - always))
    spread[nearest] = always
    return spread


def svcca_table(xs: Residuals, ys: Residuals, *, variance: float = 0.99) -> Float[Tensor, "layers_a layers_b"]:
    """Average the canonical correlations between the main directions of every layer of A (rows) and of B (columns).

    Layers are in the order of their numbers, scores between 0 and 1. The paper does not give its share of variance;
    0.99 is that of Raghu et al. ValueError if there are not more tokens than dimensions: every score is then 1.
    """
    rows, columns = ([main_directions(side[layer], variance) for layer in sorted(side)] for side in (xs, ys))
    # Columns are orthonormal, so the canonical correlations are the cosines between the two subspaces.
    scores = [[torch.linalg.svdvals(u.T @ v).clamp(max=1).mean().item() for v in columns] for u in rows]
    return torch.tensor(scores)


class LayerWorth(NamedTuple):
    """What stitching A to one layer of B costs beside the other layers."""

    losses: dict[int, float]
    """Cross-entropy of A->B by layer of B, nats a token, on all documents."""
    best_other: int
    """Of the other layers, the one with the lowest cross-entropy on every second document."""
    excess: Estimate
    """Cross-entropy over that at `best_other`, less 1, on the other documents: 0.01 is 1% more."""
    over_mean: Estimate
    """Cross-entropy over the mean of the other layers', less 1, on the same documents: what a draw of one costs."""


def judge_layer(
    models: tuple[LanguageModel, LanguageModel],
    layer_a: int,
    layer_b: int,
    stitches: Mapping[int, Stitch],
    batches: Iterable[PairedBatch | TokenBatch],
    *,
    seed: int = 0,
) -> LayerWorth:
    """Compare A->B at `layer_b` with A->B at the other layers of B, each by its own of the `stitches`.

    Intervals resample documents, for all layers together. ValueError without another layer, and for fewer than four
    documents.
    """
    if len({layer_b, *stitches}) < 2 or layer_b not in stitches:
        raise ValueError(f"stitches to layers {sorted(stitches)}: expected layer {layer_b} and another")
    batches = list(batches)
    found = {
        layer: measure_fidelity(*models, layer_a, layer, {"fitted": stitch}, batches, conditions=("a_to_b",))
        for layer, stitch in stitches.items()
    }
    tokens = found[layer_b].counts["b"].tokens
    if len(tokens) < 4:
        raise ValueError(f"{len(tokens)} documents: expected two to choose a layer on and two to judge it by")
    sums = np.stack([of_layer.sums["fitted", "a_to_b"] for of_layer in found.values()], axis=1)  # (documents, layers)
    losses = dict(zip(found, sums[::2].sum(0)))
    others = [layer for layer in found if layer != layer_b]
    best = min(others, key=losses.__getitem__)
    totals = dict(zip(found, resampled_totals(sums[1::2], seed).T))
    mean = np.mean([totals[layer] for layer in others], axis=0)
    excess, over_mean = (from_resamples(totals[layer_b] / other - 1) for other in (totals[best], mean))
    return LayerWorth(dict(zip(found, (sums.sum(0) / tokens.sum()).tolist())), best, excess, over_mean)
