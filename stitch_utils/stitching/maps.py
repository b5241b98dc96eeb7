r"""Affine maps that make the mean length of the error small, not its mean square: the sister paper's fit.

Bello et al. (arXiv 2506.00653) map the stream x of one model to the stream y of another by

    A, p = argmin  E || x A + p - y ||_2

and descend by AdamW on batches of 32 rows of 512 tokens, four times over 10M tokens, a tenth of them kept for
validation. The length of the error is convex in A and p, so there is one minimum, and a gradient is not needed to find
it. For lengths r and s > 0, r <= (r^2 / s + s) / 2, with equality at r = s. So the least squares in which every token
counts with the inverse of its present error can only lower the mean length, and where it changes nothing is the
minimum (Weiszfeld's algorithm; iteratively reweighted least squares). Each pass gathers moments with those weights and
solves as `stitch.fit_exact` does for alpha = 0. A token far off counts with its distance, and not with its square: that
is all that the missing square changes.

Both directions are fitted, each by itself: no term ties them together, as alpha ties them in Eq. 3.

Offers `fit_unsquared`, `UnsquaredFit`, `fit_unsquared_adam`, `moments_of`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..utils.progress import progress
from .fit import finished_stitch, fit_exact, linear_maps, view_as_stitch
from .moments import PairMoments
from .stitch import FitReport, Stitch

SMALLEST = 1e-3  # share of the mean error below which an error counts as if it were so long
DIRECTIONS = ("both", "up")


class UnsquaredFit(NamedTuple):
    """Maps, and how the mean length of their errors came down."""

    stitch: Stitch
    up: tuple[float, ...]
    """Mean length of up(x) - y over the tokens fitted on: by least squares, then after each reweighting."""
    down: tuple[float, ...]
    """The same of down(y) - x; empty if it was not asked for."""


def fit_unsquared(
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    directions: str = "both",
    ridge: float = 1e-8,
    tolerance: float = 1e-5,
    max_passes: int = 20,
    dtype: torch.dtype = torch.float32,
) -> UnsquaredFit:
    """The maps with the smallest mean length of the error, by reweighted moments.

    `batches` gives (x, y) of shapes (n, d_a), (n, d_b) and must give the same again each time it is iterated, as
    `harvest.ActivationStream` does: once for the least squares that it starts from, then once for each reweighting, at
    most `max_passes` of these, until one lowers no loss by more than `tolerance` of it. With `directions="up"` the map
    down stays that of least squares.

    ValueError for other directions, for no batches, and for batches that can be iterated only once.
    """
    began = time.perf_counter()
    if directions not in DIRECTIONS:
        raise ValueError(f"unknown directions {directions!r}: expected {' or '.join(DIRECTIONS)}")
    if max_passes < 1:
        raise ValueError(f"max_passes must be positive: got {max_passes}")
    moments = moments_of(batches)
    squares = fit_exact(moments, alpha=0, ridge=ridge, dtype=torch.float64)
    maps = {"up": squares} if directions == "up" else {"up": squares, "down": squares}
    losses: dict[str, list[float]] = {name: [] for name in maps}
    at = dict.fromkeys(maps, 0.0)  # the present mean length, which makes the weights about 1
    converged = False
    for _ in progress(range(max_passes), "reweighting"):
        gathered = {name: PairMoments(moments.d_a, moments.d_b) for name in maps}
        totals, count = dict.fromkeys(maps, 0.0), 0
        for x, y in batches:
            count += len(x)
            for name, stitch in maps.items():
                lengths = _lengths(stitch, name, x, y)
                totals[name] += lengths.sum().item()
                scale = at[name] or lengths.mean().item() or 1.0
                at[name] = scale
                gathered[name].update(x, y, scale / lengths.clamp_min(SMALLEST * scale))
        if count != moments.count:
            raise ValueError(f"batches gave {moments.count} tokens, then {count}: expected the same each time")
        at = {name: totals[name] / count for name in maps}
        for name, loss in at.items():
            losses[name].append(loss)
        converged = all(len(found) > 1 and found[-2] - found[-1] <= tolerance * found[-2] for found in losses.values())
        if converged:
            break
        maps = {name: fit_exact(gathered[name], alpha=0, ridge=ridge, dtype=torch.float64) for name in maps}
    up, down = maps["up"], maps.get("down", squares)
    report = FitReport(
        "unsquared", 0.0, sum(at.values()), converged, len(losses["up"]), 0, ridge, time.perf_counter() - began
    )
    stitch = Stitch(up.P_up, up.b_up, down.P_down, down.b_down, report=report).to(dtype)
    return UnsquaredFit(stitch, tuple(losses["up"]), tuple(losses.get("down", ())))


def moments_of(batches: Iterable[tuple[Tensor, Tensor]]) -> PairMoments:
    """Moments of all pairs (x, y); ValueError for none."""
    moments = None
    for x, y in progress(batches, "moments"):
        moments = moments or PairMoments(x.shape[1], y.shape[1])
        moments.update(x, y)
    if moments is None:
        raise ValueError("no batches given: expected at least one")
    return moments


def _lengths(stitch: Stitch, direction: str, x: Tensor, y: Tensor) -> Tensor:
    """(n,): length of each token's error, in float64."""
    x, y = x.double(), y.double()
    if direction == "up":
        return (x @ stitch.P_up + stitch.b_up - y).norm(dim=1)
    return (y @ stitch.P_down + stitch.b_down - x).norm(dim=1)


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
    on_step: Callable[[int, Stitch], None] | None = None,
) -> Stitch:
    """The sister paper's recipe: AdamW at a constant `lr` on the mean length of each batch's errors, in its order.

    `batches` gives (x, y), one pair a step, and is iterated `epochs` times. Weights start as torch's Linear does, from
    `seed`; betas and weight decay, which that paper does not give, are torch's. With `directions="up"` no map down is
    fitted: it stays zero. `on_step(step, stitch)` is called after each step with the maps as they then are (views: copy
    what is kept). ValueError for other directions, no epochs, no batches, and batches that can be iterated only once.
    """
    began = time.perf_counter()
    if directions not in DIRECTIONS:
        raise ValueError(f"unknown directions {directions!r}: expected {' or '.join(DIRECTIONS)}")
    if epochs < 1:
        raise ValueError(f"epochs must be positive: got {epochs}")
    up, down = linear_maps(d_a, d_b, seed=seed, device=device)
    if directions == "up":
        torch.nn.init.zeros_(down.weight)
        torch.nn.init.zeros_(down.bias)
    layers = (up, down) if directions == "both" else (up,)
    optimizer = torch.optim.AdamW([p for layer in layers for p in layer.parameters()], lr=lr, weight_decay=weight_decay)
    losses: list[Tensor] = []
    for epoch in progress(range(epochs), "AdamW"):
        before = len(losses)
        for x, y in batches:
            x, y = x.to(device, torch.float32), y.to(device, torch.float32)
            loss = (up(x) - y).norm(dim=1).mean()
            if directions == "both":
                loss = loss + (down(y) - x).norm(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            if on_step is not None:
                on_step(len(losses), view_as_stitch(up, down))
        if len(losses) == before:
            raise ValueError(f"batches gave nothing in epoch {epoch + 1}: expected some, the same in each")
    final = torch.stack(losses[-max(1, len(losses) // 10) :]).mean().item()
    report = FitReport("unsquared adam", 0.0, final, False, 0, len(losses), 0.0, time.perf_counter() - began)
    return finished_stitch(up, down, report)
