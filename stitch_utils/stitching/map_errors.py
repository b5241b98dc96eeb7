r"""How far maps between two residual streams are off, in the units of both papers, on the same tokens.

The sister paper (arXiv 2506.00653) gives the mean length of the error, E || y' - y ||_2, on activations as they are;
the main paper the fraction of unexplained variance. Whatever predicts one model's stream is measured alike: a stitch, a
map from an SAE's code, an SAE itself. Sums are kept for each document, so that intervals come from resampling
documents.

Offers `Prediction`, `map_errors`, `MapErrors`, `up`, `down`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.text import TokenBatch
from ..models.harvest import as_fits
from ..models.language_model import LanguageModel
from ..utils.progress import progress
from ..utils.stats import Estimate, from_draws, resampled_counts
from .stitch import Stitch


class Prediction(NamedTuple):
    """Something that predicts the stream of one of two models."""

    target: str
    """`a` or `b`."""
    of: Callable[[Tensor, Tensor], Tensor]
    """From the streams x (n, d_a) and y (n, d_b) of n tokens to the prediction (n, d_target)."""


class MapErrors(NamedTuple):
    """Over the ordinary tokens of a text; 95% intervals by resampling its documents."""

    length: Estimate
    """Mean length of the error: the sister paper's validation loss."""
    fuv: Estimate
    """Sum of squared errors over the sum of squared deviations from the mean of the same tokens."""


def up(stitch: Stitch) -> Prediction:
    """What a stitch makes of A's stream."""
    return Prediction("b", lambda x, y: stitch.up(x.to(stitch.P_up)))


def down(stitch: Stitch) -> Prediction:
    """What a stitch makes of B's stream."""
    return Prediction("a", lambda x, y: stitch.down(y.to(stitch.P_down)))


def map_errors(
    models: tuple[LanguageModel, LanguageModel],
    layers: tuple[int, int],
    batches: Iterable[TokenBatch],
    predictions: Mapping[Hashable, Prediction],
    *,
    seed: int = 0,
) -> dict[Hashable, MapErrors]:
    """The errors of all predictions, whatever they are called, in one pass over the text.

    ValueError for a target other than `a` and `b`, a prediction of another shape, and batches without an ordinary
    token.
    """
    if unknown := sorted({prediction.target for prediction in predictions.values()} - {"a", "b"}):
        raise ValueError(f"unknown target {unknown[0]!r}: expected a or b")
    documents: dict[int, np.ndarray] = {}

    @torch.no_grad()
    def read(batch: TokenBatch) -> tuple[list[int], np.ndarray]:
        """The documents of a batch, and sums over the tokens of each: (documents, columns)."""
        streams = {}
        for side, model, layer in zip("ab", models, layers):
            streams[side] = model.residuals(batch.tokens, [layer])[layer][batch.mask.to(model.device)].float()
        streams["b"] = streams["b"].to(streams["a"].device)
        x, y = streams["a"], streams["b"]
        columns = [torch.ones(len(x), 1), *(stream.double().square().sum(1, keepdim=True) for stream in (x, y))]
        for name, prediction in predictions.items():
            target, found = streams[prediction.target], prediction.of(x, y)
            if found.shape != target.shape:
                raise ValueError(
                    f"prediction {name!r} has shape {tuple(found.shape)}: expected {tuple(target.shape)}, that of the "
                    f"stream of {prediction.target}"
                )
            squares = (found.to(target).double() - target.double()).square().sum(1, keepdim=True)
            columns += [squares.sqrt(), squares]
        owners, place = batch.documents[batch.mask].unique(return_inverse=True)
        values = torch.cat([column.double().cpu() for column in (*columns, x, y)], dim=1)
        sums = torch.zeros(len(owners), values.shape[1], dtype=torch.float64)
        return owners.tolist(), sums.index_add_(0, place, values).numpy()

    for owners, sums in progress(as_fits(batches, read), "errors"):
        for document, total in zip(owners, sums):
            documents[document] = documents.get(document, 0) + total
    if not documents:
        raise ValueError("the batches hold no ordinary token: expected at least one document of one token")
    table = np.array([documents[document] for document in sorted(documents)])
    weights = resampled_counts(len(table), seed)
    totals = np.concatenate([np.ones((1, len(table))), weights]) @ table  # (1 + resamples, columns)
    count, squares = totals[:, 0], {"a": totals[:, 1], "b": totals[:, 2]}
    start = 3 + 2 * len(predictions)
    sums = dict(zip("ab", np.split(totals[:, start:], [models[0].d_model], axis=1)))
    variation = {side: squares[side] - (sums[side] ** 2).sum(1) / count for side in "ab"}
    return {
        name: MapErrors(
            _estimate(totals[:, 3 + 2 * index] / count),
            _estimate(totals[:, 4 + 2 * index] / variation[prediction.target]),
        )
        for index, (name, prediction) in enumerate(predictions.items())
    }


def _estimate(values: np.ndarray) -> Estimate:
    """The first value, with the spread of the others."""
    return from_draws(values[0], values[1:])
