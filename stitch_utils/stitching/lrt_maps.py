r"""Affine maps that make the mean length of the error small, not its mean square: the sister paper's fit.

Bello et al. (arXiv 2506.00653) map the stream x of one model to the stream y of another by

    A, p = argmin  E || x A + p - y ||_2

and descend by AdamW on batches of 32 rows of 512 tokens, four times over 10M tokens, a tenth of them kept for
validation. The length of the error is convex in A and p, so there is one minimum, and it can be found without a
gradient. For lengths r and s > 0, r <= (r^2 / s + s) / 2, with equality at r = s. So least squares in which every token
counts with the inverse of its present error can only lower the mean length; where it changes nothing is the minimum
(Weiszfeld's algorithm; iteratively reweighted least squares). Each pass gathers moments with those weights and solves
as `fit_exact` does for alpha = 0. A token that is far off counts with its distance, and not with its square.

Each direction is fitted by itself: no term ties them together, as alpha ties them in Eq. 3. `map_errors` measures
whatever predicts one model's stream, in the units of both papers: the mean length of the error on activations as they
are, and the fraction of unexplained variance.

Offers `fit_unsquared`, `fit_unsquared_adam`, `MapFit`, `moments_of`; `map_errors`, `MapErrors`, `Prediction`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..data.text import TokenBatch
from ..models.harvest import as_fits
from ..models.language_model import LanguageModel
from ..utils.progress import progress
from ..utils.stats import DocumentSums, Estimate, from_draws, resampled_counts
from .fit import affine, fit_exact, linear_maps
from .moments import PairMoments
from .stitch import AffineMap, FitReport, Stitch

SMALLEST = 1e-3  # share of the mean error below which an error counts as if it were so long
DIRECTIONS = {"both": ("up", "down"), "up": ("up",)}


class MapFit(NamedTuple):
    """Maps fitted by the unsquared error, by direction: `up`, and `down` if it was asked for."""

    maps: Mapping[str, AffineMap]
    report: FitReport
    lengths: Mapping[str, tuple[float, ...]] = {}
    """By reweighting, the mean lengths of the errors on the tokens fitted on: of least squares, then of each pass."""

    @property
    def stitch(self) -> Stitch:
        """Both maps in one; ValueError if only one was fitted."""
        if "down" not in self.maps:
            raise ValueError("only the map up was fitted: expected directions='both'")
        return Stitch.of(self.maps["up"], self.maps["down"], report=self.report)


def _named(directions: str) -> tuple[str, ...]:
    """Name the directions asked for; ValueError for others."""
    if directions not in DIRECTIONS:
        raise ValueError(f"unknown directions {directions!r}: expected {' or '.join(DIRECTIONS)}")
    return DIRECTIONS[directions]


def fit_unsquared(
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    directions: str = "both",
    ridge: float = 1e-8,
    tolerance: float = 1e-5,
    max_passes: int = 20,
    dtype: torch.dtype = torch.float32,
) -> MapFit:
    """Find the maps with the smallest mean length of the error, by reweighted moments.

    `batches` gives (x, y) of shapes (n, d_a), (n, d_b), and the same again each time it is iterated, as
    `harvest.ActivationStream` does: once for the least squares that the fit starts from, then once for each of at most
    `max_passes` reweightings, until one lowers no loss by more than `tolerance` of it. `directions` is "both" or "up".

    ValueError for other directions, for no batches, and for batches that can be iterated only once.
    """
    began = time.perf_counter()
    names = _named(directions)
    if max_passes < 1:
        raise ValueError(f"max_passes must be positive: got {max_passes}")
    moments = moments_of(batches)
    squares = fit_exact(moments, alpha=0, ridge=ridge, dtype=torch.float64)
    maps: dict[str, AffineMap] = {name: getattr(squares, name) for name in names}
    losses: dict[str, list[float]] = {name: [] for name in names}
    at = dict.fromkeys(names, 0.0)  # the present mean length, which makes the weights about 1
    converged = False
    for _ in progress(range(max_passes), "reweighting"):
        gathered = {name: PairMoments(moments.d_a, moments.d_b) for name in names}
        totals, count = dict.fromkeys(names, 0.0), 0
        for x, y in batches:
            count += len(x)
            for name, one in maps.items():
                given, wanted = (x, y) if name == "up" else (y, x)
                lengths = (one(given.double()) - wanted.double()).norm(dim=1)
                totals[name] += lengths.sum().item()
                at[name] = scale = at[name] or lengths.mean().item() or 1.0
                gathered[name].update(x, y, scale / lengths.clamp_min(SMALLEST * scale))
        if count != moments.count:
            raise ValueError(f"batches gave {moments.count} tokens, then {count}: expected the same each time")
        at = {name: totals[name] / count for name in names}
        for name, loss in at.items():
            losses[name].append(loss)
        converged = all(len(found) > 1 and found[-2] - found[-1] <= tolerance * found[-2] for found in losses.values())
        if converged:
            break
        solved = {name: fit_exact(gathered[name], alpha=0, ridge=ridge, dtype=torch.float64) for name in names}
        maps = {name: getattr(stitch, name) for name, stitch in solved.items()}
    seconds = time.perf_counter() - began
    report = FitReport("unsquared", 0.0, sum(at.values()), converged, len(losses["up"]), 0, ridge, seconds)
    lengths = {name: tuple(found) for name, found in losses.items()}
    return MapFit({name: one.to(dtype) for name, one in maps.items()}, report, lengths)


def moments_of(batches: Iterable[tuple[Tensor, Tensor]]) -> PairMoments:
    """Gather the moments of all pairs (x, y); ValueError for none."""
    moments = None
    for x, y in progress(batches, "moments"):
        moments = moments or PairMoments(x.shape[1], y.shape[1])
        moments.update(x, y)
    if moments is None:
        raise ValueError("no batches given: expected at least one")
    return moments


def fit_unsquared_adam(
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    d_a: int,
    d_b: int,
    lr: float = 1e-4,
    epochs: int = 4,
    weight_decay: float = 0.01,
    directions: str = "both",
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> MapFit:
    """Fit by the sister paper's recipe: AdamW at a constant `lr` on the mean length of each batch's errors, in order.

    `batches` gives (x, y), one pair a step, and is iterated `epochs` times. Weights start as torch's Linear does, from
    `seed`; betas and weight decay, which that paper does not give, are torch's. `directions` is "both" or "up".
    ValueError for other directions, no epochs, no batches, and batches that can be iterated only once.
    """
    began = time.perf_counter()
    names = _named(directions)
    if epochs < 1:
        raise ValueError(f"epochs must be positive: got {epochs}")
    layers = dict(zip(names, linear_maps(d_a, d_b, seed=seed, device=device)))
    optimizer = torch.optim.AdamW(
        [p for layer in layers.values() for p in layer.parameters()], lr=lr, weight_decay=weight_decay
    )
    losses: list[Tensor] = []
    for epoch in progress(range(epochs), "AdamW"):
        before = len(losses)
        for x, y in batches:
            x, y = x.to(device, torch.float32), y.to(device, torch.float32)
            loss = (layers["up"](x) - y).norm(dim=1).mean()
            if "down" in layers:
                loss = loss + (layers["down"](y) - x).norm(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        if len(losses) == before:
            raise ValueError(f"batches gave nothing in epoch {epoch + 1}: expected some, the same in each")
    final = torch.stack(losses[-max(1, len(losses) // 10) :]).mean().item()
    report = FitReport("unsquared adam", 0.0, final, False, 0, len(losses), 0.0, time.perf_counter() - began)
    return MapFit({name: affine(layer).copy() for name, layer in layers.items()}, report)


Key = TypeVar("Key", bound=Hashable)


class Prediction(NamedTuple):
    """Something that predicts the stream of one of two models."""

    target: str
    """The side whose stream is predicted: `a` or `b`."""
    of: AffineMap | Callable[[Tensor, Tensor], Tensor]
    """A map from the other side's stream, or a function of both: x (n, d_a) and y (n, d_b) -> (n, d_target)."""


class MapErrors(NamedTuple):
    """Errors over the ordinary tokens of a text, with 95% intervals by resampling its documents."""

    length: Estimate
    """Mean length of the error: the sister paper's validation loss."""
    fuv: Estimate
    """Sum of squared errors over the sum of squared deviations from the mean of the same tokens."""


def map_errors(
    models: tuple[LanguageModel, LanguageModel],
    layers: tuple[int, int],
    batches: Iterable[TokenBatch],
    predictions: Mapping[Key, Prediction],
    *,
    seed: int = 0,
) -> dict[Key, MapErrors]:
    """Measure the errors of all predictions, by their names, in one pass over the text.

    ValueError for a target other than `a` and `b`, a prediction of another shape, and batches without an ordinary
    token.
    """
    if unknown := sorted({prediction.target for prediction in predictions.values()} - {"a", "b"}):
        raise ValueError(f"unknown target {unknown[0]!r}: expected a or b")

    @torch.no_grad()
    def read(batch: TokenBatch) -> DocumentSums:
        """Sum counts, squares, errors and streams by document: (3 + 2 predictions + d_a + d_b,)."""
        streams = {}
        for side, model, layer in zip("ab", models, layers):
            streams[side] = model.residuals(batch.tokens, [layer])[layer][batch.mask.to(model.device)].float()
        streams["b"] = streams["b"].to(streams["a"].device)
        x, y = streams["a"], streams["b"]
        columns = [torch.ones(len(x), 1), *(stream.double().square().sum(1, keepdim=True) for stream in (x, y))]
        for name, (side, of) in predictions.items():
            target = streams[side]
            found = of(x if side == "b" else y) if isinstance(of, AffineMap) else of(x, y)
            if found.shape != target.shape:
                raise ValueError(
                    f"prediction {name!r} has shape {tuple(found.shape)}: expected {tuple(target.shape)}, that of the "
                    f"stream of {side}"
                )
            squares = (found.to(target).double() - target.double()).square().sum(1, keepdim=True)
            columns += [squares.sqrt(), squares]
        values = torch.cat([column.double().cpu() for column in (*columns, x, y)], dim=1)
        return DocumentSums.of(batch.documents[batch.mask], values)

    documents = DocumentSums()
    for part in progress(as_fits(batches, read), "errors"):
        documents.add(part)
    if not len(documents):
        raise ValueError("the batches hold no ordinary token: expected at least one document of one token")
    table = documents.table()
    # The first row is of all documents, once; the others are draws: (1 + resamples, columns).
    totals = np.concatenate([np.ones((1, len(table))), resampled_counts(len(table), seed)]) @ table
    count, squares = totals[:, 0], {"a": totals[:, 1], "b": totals[:, 2]}
    errors = totals[:, 3 : 3 + 2 * len(predictions)]
    sums = dict(zip("ab", np.split(totals[:, 3 + 2 * len(predictions) :], [models[0].d_model], axis=1)))
    variation = {side: squares[side] - (sums[side] ** 2).sum(1) / count for side in "ab"}

    def estimate(values: np.ndarray) -> Estimate:
        return from_draws(values[0], values[1:])

    return {
        name: MapErrors(estimate(errors[:, 2 * index] / count), estimate(errors[:, 2 * index + 1] / variation[target]))
        for index, (name, (target, _)) in enumerate(predictions.items())
    }
