r"""Affine maps that make the mean length of the error small, not its mean square: the sister paper's fit.

Bello et al. (arXiv 2506.00653, "linear representation transferability") map the stream x of one model to the stream y
of another by

    A, p = argmin  E || x A + p - y ||_2

and descend by AdamW on batches of 32 rows of 512 tokens, four times over 10M tokens, a tenth of them kept for
validation. The length of the error is convex in A and p, so its minimum can be found without a gradient. For lengths r
and s > 0, r <= (r^2 / s + s) / 2, with equality at r = s. So least squares in which every token counts with the inverse
of its present error can only lower the mean length; where it changes nothing is the minimum (Weiszfeld's algorithm).
Each pass gathers moments with those weights and solves as `fit_exact` does for alpha = 0.

Each direction is fitted by itself: no term ties them, as alpha does in Eq. 3. `map_errors` measures whatever predicts
one model's stream in the units of both papers, the mean length of the error and the unexplained variance.

Offers `fit_unsquared`, `fit_unsquared_adam`, `MapFit`, `moments_of`; `map_errors`, `MapErrors`, `Prediction`.
"""

import functools
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
from .fit import Pairs, affine, fit_exact, last_tenth, linear_maps
from .moments import PairMoments
from .stitch import AffineMap, FitReport, Stitch

RIDGE = 1e-8
SMALLEST = 1e-3  # share of the mean error below which an error counts as if it were so long


class MapFit(NamedTuple):
    """Maps fitted by the unsquared error, by direction: `up`, and `down` if it was asked for."""

    maps: Mapping[str, AffineMap]
    report: FitReport
    lengths: Mapping[str, tuple[float, ...]] = {}
    """By reweighting, the mean lengths of the errors on the tokens fitted on: of least squares, then of each pass."""

    @property
    def stitch(self) -> Stitch:
        """Both maps in one; ValueError if only the map up was fitted."""
        if "down" not in self.maps:
            raise ValueError("only the map up was fitted: a stitch has both")
        return Stitch.of(self.maps["up"], self.maps["down"], report=self.report)


def fit_unsquared(
    batches: Pairs, *, tolerance: float = 1e-5, max_passes: int = 20, dtype: torch.dtype = torch.float32
) -> MapFit:
    """Find the maps with the smallest mean length of the error, by reweighted moments.

    `batches` is iterated once for the least squares that the fit starts from, then once for each of at most
    `max_passes` reweightings, until one lowers no loss by more than `tolerance` of it. ValueError for no batches, and
    for batches that can be iterated only once.
    """
    if max_passes < 1:
        raise ValueError(f"max_passes must be positive: got {max_passes}")
    began = time.perf_counter()
    moments = moments_of(batches)
    solve = functools.partial(fit_exact, alpha=0, ridge=RIDGE, dtype=torch.float64)
    squares = solve(moments)
    maps = {"up": squares.up, "down": squares.down}
    losses: dict[str, list[float]] = {name: [] for name in maps}
    at = dict.fromkeys(maps, 0.0)  # the present mean length, which makes the weights about 1
    converged = False
    for _ in progress(range(max_passes), "reweighting"):
        gathered = {name: PairMoments(moments.d_a, moments.d_b) for name in maps}
        totals, count = dict.fromkeys(maps, 0.0), 0
        for x, y in batches:
            count += len(x)
            for name, given, wanted in (("up", x, y), ("down", y, x)):
                lengths = (maps[name](given.double()) - wanted.double()).norm(dim=1)
                totals[name] += lengths.sum().item()
                at[name] = scale = at[name] or lengths.mean().item() or 1.0
                gathered[name].update(x, y, scale / lengths.clamp_min(SMALLEST * scale))
        if count != moments.count:
            raise ValueError(f"batches gave {moments.count} tokens, then {count}: expected the same each time")
        at = {name: total / count for name, total in totals.items()}
        losses = {name: [*found, at[name]] for name, found in losses.items()}
        converged = all(len(found) > 1 and found[-2] - found[-1] <= tolerance * found[-2] for found in losses.values())
        if converged:
            break
        maps = {"up": solve(gathered["up"]).up, "down": solve(gathered["down"]).down}
    seconds = time.perf_counter() - began
    report = FitReport("unsquared", 0.0, sum(at.values()), converged, len(losses["up"]), 0, RIDGE, seconds)
    lengths = {name: tuple(found) for name, found in losses.items()}
    return MapFit({name: one.to(dtype) for name, one in maps.items()}, report, lengths)


def moments_of(batches: Pairs) -> PairMoments:
    """Gather the moments of all pairs (x, y); ValueError for none."""
    moments = None
    for x, y in progress(batches, "moments"):
        moments = moments or PairMoments(x.shape[1], y.shape[1])
        moments.update(x, y)
    if moments is None:
        raise ValueError("no batches given: expected at least one")
    return moments


def fit_unsquared_adam(
    batches: Pairs,
    *,
    d_a: int,
    d_b: int,
    lr: float = 1e-4,
    epochs: int = 4,
    weight_decay: float = 0.01,
    up_alone: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> MapFit:
    """Fit by the sister paper's recipe: AdamW at a constant `lr` on the mean length of each batch's errors, in order.

    `batches` gives a pair a step, and is iterated `epochs` times. Weights start as torch's Linear does, from `seed`;
    betas and weight decay, which that paper does not give, are torch's. ValueError for no epochs, no batches, and
    batches that can be iterated only once.
    """
    began = time.perf_counter()
    if epochs < 1:
        raise ValueError(f"epochs must be positive: got {epochs}")
    layers = dict(zip(("up",) if up_alone else ("up", "down"), linear_maps(d_a, d_b, seed, device)))
    parameters = [p for layer in layers.values() for p in layer.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    losses: list[Tensor] = []
    for epoch in progress(range(epochs), "AdamW"):
        before = len(losses)
        for x, y in batches:
            x, y = x.to(device, torch.float32), y.to(device, torch.float32)
            loss = (layers["up"](x) - y).norm(dim=1).mean()
            if not up_alone:
                loss = loss + (layers["down"](y) - x).norm(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        if len(losses) == before:
            raise ValueError(f"batches gave nothing in epoch {epoch + 1}: expected some, the same in each")
    final, seconds = last_tenth(losses), time.perf_counter() - began
    report = FitReport("unsquared adam", 0.0, final, False, 0, len(losses), 0.0, seconds)
    return MapFit({name: affine(layer).copy() for name, layer in layers.items()}, report)


Key = TypeVar("Key", bound=Hashable)


class Prediction(NamedTuple):
    """What predicts the stream of one of two models."""

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

    ValueError for a prediction of another stream than a's or b's, or of another shape than its target's, and for
    batches without an ordinary token.
    """
    if unknown := sorted({side for side, _ in predictions.values()} - {"a", "b"}):
        raise ValueError(f"unknown target {unknown[0]!r}: expected a or b")

    @torch.no_grad()
    def read(batch: TokenBatch) -> DocumentSums:
        """Sum counts, squares, errors and streams by document: (3 + 2 predictions + d_a + d_b,)."""
        x, y = (
            model.residuals(batch.tokens, [layer])[layer][batch.mask.to(model.device)].float()
            for model, layer in zip(models, layers)
        )
        y = y.to(x.device)
        columns = [torch.ones(len(x), 1), *(stream.double().square().sum(1, keepdim=True) for stream in (x, y))]
        for name, (side, of) in predictions.items():
            given, target = {"a": (y, x), "b": (x, y)}[side]
            found = of(given) if isinstance(of, AffineMap) else of(x, y)
            if found.shape != target.shape:
                shape, expected = tuple(found.shape), tuple(target.shape)
                raise ValueError(
                    f"prediction {name!r} has shape {shape}: expected {expected}, that of the stream of {side}"
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
    ends = np.cumsum([1, 1, 1, 2 * len(predictions), models[0].d_model])
    count, squares_a, squares_b, errors, sums_a, sums_b = np.split(totals, ends, axis=1)
    count = count[:, 0]
    variation = {"a": squares_a[:, 0] - (sums_a**2).sum(1) / count, "b": squares_b[:, 0] - (sums_b**2).sum(1) / count}

    def estimate(values: np.ndarray) -> Estimate:
        return from_draws(values[0], values[1:])

    return {
        name: MapErrors(estimate(lengths / count), estimate(squares / variation[target]))
        for (name, (target, _)), lengths, squares in zip(predictions.items(), errors.T[::2], errors.T[1::2])
    }
