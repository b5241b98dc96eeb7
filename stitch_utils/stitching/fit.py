"""Fit a stitch: the exact minimum of Eq. 3 from moments, and the paper's own recipe with Adam.

Section 2, Eq. 3, and App. A. Eq. 3 depends on the data through means and second moments alone, so `fit_exact` needs no
activations. The best biases make all residuals centred. Each map is solved in turn with the other fixed, and L-BFGS in
whitened coordinates ends the descent. `fit_adam` is the paper's fitter, for comparison.

Short text needs a ridge: `choose_ridge` finds one on folds of the text that are left out in turn.

Offers `fit_exact`; `best_given_other`, its step; `choose_ridge` and `RidgeChoice`; `scarcity`; `fit_adam`; `trace_adam`
and `AdamTrace`; and `linear_maps`, `affine` and `last_tenth`, which other fitters by gradient descent share.
"""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Linear

from .descent import descend, repeated
from .moments import PairMoments, total
from .stitch import AffineMap, FitReport, Stitch, stitch_loss

SWEEPS, EVALUATIONS = 20, 500  # of alternating solutions and of L-BFGS, at most
TOLERANCE = 1e-4  # share of the loss that the last steps may still gain
RIDGES = tuple(10.0**power for power in range(-8, 2))  # that `choose_ridge` compares
POINTS = 24  # at which `trace_adam` computes the loss
Pairs = Iterable[tuple[Tensor, Tensor]]  # activations x (n, d_a) and y (n, d_b) of the same tokens


def best_given_other(p: Tensor, cxx: Tensor, cxy: Tensor, cyy: Tensor, alpha: float) -> Tensor:
    """Find the P_down that minimises Eq. 3 for centred data when P_up = `p`; swap x and y for the converse.

    A zero derivative is the generalised Sylvester equation A Q + B Q C = E with A = (Cyy + alpha p' Cxx p) / d_a,
    B = Cyy and C = alpha p p' / d_b. With C = V diag(c) V' and W from the pencil (A, B), W'AW = I and
    W'BW = diag(beta), the columns of QV decouple.
    """
    d_a, d_b = p.shape
    left = (cyy + alpha * p.T @ cxx @ p) / d_a
    right = cxy.T / d_a + alpha * (p.T @ cxx) / d_a + alpha * (cyy @ p.T) / d_b
    c, v = torch.linalg.eigh(alpha * p @ p.T / d_b)
    lower = torch.linalg.cholesky(left)
    half = torch.linalg.solve_triangular(lower, cyy, upper=False)
    pencil = torch.linalg.solve_triangular(lower, half.T, upper=False)
    beta, u = torch.linalg.eigh((pencil + pencil.T) / 2)
    w = torch.linalg.solve_triangular(lower.T, u, upper=True)
    scale = 1 + beta.clamp_min(0)[:, None] * c.clamp_min(0)[None, :]
    return w @ ((w.T @ right @ v) / scale) @ v.T


def _centred_loss(up: Tensor, down: Tensor, cxx: Tensor, cxy: Tensor, cyy: Tensor, alpha: float) -> Tensor:
    """Compute Eq. 3 with the best biases."""
    d_a, d_b = cxy.shape
    gap_a, gap_b = up @ down - torch.eye(d_a).to(up), down @ up - torch.eye(d_b).to(up)
    terms_a = (down * (cyy @ down - 2 * cxy.T)).sum() + cxx.trace() + alpha * (gap_a * (cxx @ gap_a)).sum()
    terms_b = (up * (cxx @ up - 2 * cxy)).sum() + cyy.trace() + alpha * (gap_b * (cyy @ gap_b)).sum()
    return terms_a / d_a + terms_b / d_b


def _polish(up: Tensor, down: Tensor, covariances: tuple[Tensor, Tensor, Tensor], alpha: float):
    """Improve both maps by L-BFGS, in coordinates in which x and y are white (Liu & Nocedal 1989)."""
    cxx, _, cyy = covariances
    unwhiten = []
    for matrix in (cxx, cyy):
        values, vectors = torch.linalg.eigh(matrix)
        root = values.clamp_min(values[-1] * 1e-14).sqrt()
        unwhiten.append(((vectors / root) @ vectors.T, (vectors * root) @ vectors.T))
    (x_inverse, x_root), (y_inverse, y_root) = unwhiten
    parameters = [(x_root @ up).requires_grad_(), (y_root @ down).requires_grad_()]
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=25, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=0, tolerance_change=0
    )
    evaluations = 0

    def maps() -> tuple[Tensor, Tensor]:
        return x_inverse @ parameters[0], y_inverse @ parameters[1]

    def closure() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        loss = _centred_loss(*maps(), *covariances, alpha=alpha)
        loss.backward()
        return loss

    best, best_maps, converged = float("inf"), (up, down), False
    while evaluations < EVALUATIONS and not converged:
        optimizer.step(closure)
        with torch.no_grad():
            found = maps()
            loss = _centred_loss(*found, *covariances, alpha=alpha).item()
        converged = 0 <= best - loss < TOLERANCE * abs(loss)
        if loss < best:
            best, best_maps = loss, found
        elif not converged:  # the line search went astray: keep what was found before
            break
    return *best_maps, evaluations, converged


def fit_exact(
    moments: PairMoments, *, alpha: float = 1.0, ridge: float = 1e-8, dtype: torch.dtype = torch.float32
) -> Stitch:
    """Minimise Eq. 3 from moments alone: exactly for alpha = 0, else to the best stationary point found.

    `ridge` times the mean eigenvalue is added to the diagonals of Cxx and Cyy, so that dead or repeated dimensions do
    no harm. For alpha = 0 the problem is two least squares. For alpha > 0 it is not convex: L-BFGS follows the
    alternating solutions, until 25 steps lower the loss by less than `TOLERANCE`. `Stitch.report` says how it ended.
    ValueError for a negative alpha or ridge, too few tokens, or activations that do not vary at all.
    """
    began = time.perf_counter()
    if alpha < 0 or ridge < 0:
        raise ValueError(f"alpha and ridge must not be negative: got alpha={alpha}, ridge={ridge}")
    covariances = cxx, cxy, cyy = moments.cxx.clone(), moments.cxy.clone(), moments.cyy.clone()
    for matrix, level in zip((cxx, cyy), _levels(moments)):
        matrix.diagonal().add_(max(ridge, 1e-15) * level)

    up, down = torch.linalg.solve(cxx, cxy), torch.linalg.solve(cyy, cxy.T)
    sweeps, evaluations, converged = 0, 0, True
    loss = _centred_loss(up, down, *covariances, alpha=alpha).item()
    if alpha > 0:
        for sweeps in range(1, SWEEPS + 1):  # noqa: B007
            before = loss
            down = best_given_other(up, cxx, cxy, cyy, alpha)
            up = best_given_other(down, cyy, cxy.T, cxx, alpha)
            loss = _centred_loss(up, down, *covariances, alpha=alpha).item()
            if before - loss < 10 * TOLERANCE * loss:
                break
        up, down, evaluations, converged = _polish(up, down, covariances, alpha)
    mean_x, mean_y = moments.mean_x, moments.mean_y
    stitch = Stitch(up, mean_y - mean_x @ up, down, mean_x - mean_y @ down)
    loss = stitch_loss(stitch, moments, alpha=alpha).total  # without the ridge
    seconds = time.perf_counter() - began
    report = FitReport("exact", alpha, loss, converged, sweeps, evaluations, ridge, seconds)
    return replace(stitch.to(dtype), report=report)


class RidgeChoice(NamedTuple):
    """The ridge that loses least on folds that are left out of the fit."""

    ridge: float
    ridges: tuple[float, ...]
    """Those that were compared."""
    losses: tuple[float, ...]
    """Eq. 3 of each on the folds that are left out, mean over tokens."""
    by_fold: tuple[tuple[float, ...], ...]
    """Eq. 3 of each on every fold that holds tokens."""


def choose_ridge(folds: Sequence[PairMoments], *, alpha: float = 1.0, ridges: Sequence[float] = RIDGES) -> RidgeChoice:
    """Choose the ridge whose least-squares maps, fitted to all folds but one, have the least Eq. 3 on that one.

    The maps are those of `fit_exact` for alpha = 0, which share an eigendecomposition over all ridges, so that the
    choice takes less than one fit for alpha > 0; `alpha` counts in the loss that judges them. Folds without tokens do
    not count. ValueError for fewer than two others, no ridges, a negative one, or activations that do not vary.
    """
    if not ridges or min(ridges) < 0 or alpha < 0:
        raise ValueError(f"alpha and ridges must not be negative: got alpha={alpha}, ridges={tuple(ridges)}")
    folds = [fold for fold in folds if fold.count]
    if len(folds) < 2:
        held = f"{len(folds)} folds hold tokens, each of whole documents, and each is to be left out in turn"
        raise ValueError(f"{held}: expected two or more; give a number as the ridge of a text of one document")
    by_fold = []
    for left_out, fold in enumerate(folds):
        rest = total([*folds[:left_out], *folds[left_out + 1 :]])
        sides = zip((rest.cxx, rest.cyy), (rest.cxy, rest.cxy.T), _levels(rest))
        of_ridges = []
        for up, down in zip(*(_ridge_regressions(*side, ridges) for side in sides)):
            stitch = Stitch(up, rest.mean_y - rest.mean_x @ up, down, rest.mean_x - rest.mean_y @ down)
            of_ridges.append(stitch_loss(stitch, fold, alpha=alpha).total)
        by_fold.append(tuple(of_ridges))
    count = sum(fold.count for fold in folds)
    losses = tuple(sum(fold.count / count * loss for fold, loss in zip(folds, each)) for each in zip(*by_fold))
    return RidgeChoice(ridges[losses.index(min(losses))], tuple(ridges), losses, tuple(zip(*by_fold)))


def _ridge_regressions(c_in: Tensor, c_in_out: Tensor, level: Tensor, ridges: Sequence[float]) -> Iterator[Tensor]:
    """Give the map of least squares for each ridge."""
    values, vectors = torch.linalg.eigh(c_in)
    rotated = vectors.T @ c_in_out
    for ridge in ridges:
        yield vectors @ (rotated / (values.clamp_min(0) + max(ridge, 1e-15) * level)[:, None])


def scarcity(moments: PairMoments) -> str:
    """Say that tokens are too few, if they are fewer than twice the dimensions of both streams; else "".

    A map from d dimensions has d + 1 unknowns for each dimension that it leads to, so with about as many tokens it can
    fit anything; and the two maps are fitted together.
    """
    both = moments.d_a + moments.d_b
    if moments.count >= 2 * both:
        return ""
    least = f"fewer than twice the {both:,} dimensions of both streams"
    return f"{moments.count:,.0f} tokens are {least}: the maps follow this text more than the models; give more text"


def _levels(moments: PairMoments) -> list[Tensor]:
    """Compute the mean eigenvalues of Cxx and Cyy; ValueError for activations that do not vary at all."""
    levels = [matrix.trace() / len(matrix) for matrix in (moments.cxx, moments.cyy)]
    for name, level in zip("xy", levels):
        if level <= 0:
            raise ValueError(f"the activations {name} do not vary over {moments.count} tokens: there is nothing to fit")
    return levels


def fit_adam(
    batches: Pairs,
    *,
    d_a: int,
    d_b: int,
    alpha: float = 1.0,
    lr: float = 1e-4,
    n_steps: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_step: Callable[[int, Stitch], None] | None = None,
) -> Stitch:
    """Fit by the paper's recipe (App. A): Adam at `lr` with cosine annealing to zero, the gradient's norm clipped at 1.

    `batches` gives a pair a step, and is iterated again when it ends. Weights start as torch's Linear does, from
    `seed`, biases from zero; Adam's betas, which the paper does not give, are torch's. `on_step(step, stitch)` gets
    views of the maps after each step. ValueError as `descend`.
    """
    began = time.perf_counter()
    up, down = linear_maps(d_a, d_b, seed, device)
    for layer in (up, down):
        torch.nn.init.zeros_(layer.bias)
    mse = torch.nn.functional.mse_loss

    def loss_of(batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = (part.to(device, torch.float32) for part in batch)
        up_x, down_y = up(x), down(y)
        loss = mse(up_x, y) + mse(down_y, x)
        return loss + alpha * (mse(down(up_x), x) + mse(up(down_y), y)) if alpha else loss

    parameters = [*up.parameters(), *down.parameters()]
    told = None if on_step is None else lambda step: on_step(step, Stitch.of(affine(up), affine(down)))
    losses = descend(parameters, batches, loss_of, n_steps=n_steps, lr=lr, title="Adam", on_step=told)
    report = FitReport("adam", alpha, last_tenth(losses), False, 0, n_steps, 0.0, time.perf_counter() - began)
    return Stitch.of(affine(up), affine(down), report=report).to("cpu")


def linear_maps(d_a: int, d_b: int, seed: int, device: torch.device | str) -> tuple[Linear, Linear]:
    """Start a map up and a map down as torch's Linear does, from `seed`; leave the global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        up, down = Linear(d_a, d_b), Linear(d_b, d_a)
    return up.to(device), down.to(device)


def affine(layer: Linear) -> AffineMap:
    """View a layer as a map, which changes as the layer is trained."""
    return AffineMap(layer.weight.T.detach(), layer.bias.detach())


def last_tenth(losses: list[float]) -> float:
    """Average the losses of the last tenth of the steps."""
    return torch.tensor(losses[-max(1, len(losses) // 10) :]).mean().item()


class AdamTrace(NamedTuple):
    """How the loss of a run of `fit_adam` came down, at points from the first step to the last."""

    stitch: Stitch
    tokens: list[int]
    """Activations seen by then, repeats counted."""
    seconds: list[float]
    losses: list[float]
    """Eq. 3 on the moments given."""


def trace_adam(batches: Pairs, moments: PairMoments, *, alpha: float = 1.0, n_steps: int, seed: int = 0) -> AdamTrace:
    """Run `fit_adam`, and compute Eq. 3 on `moments` at steps evenly spaced on a log scale."""
    wanted = {round(n_steps ** (i / (POINTS - 1))) for i in range(POINTS)} | {n_steps}
    kept: list[tuple[int, float, Stitch]] = []
    seen, began = 0, time.perf_counter()

    def counted():
        nonlocal seen
        for x, y in repeated(batches, n_steps):
            seen += len(x)
            yield x, y

    def keep(step: int, stitch: Stitch) -> None:
        if step in wanted:
            kept.append((seen, time.perf_counter() - began, copy.deepcopy(stitch.to("cpu"))))

    d_a, d_b = moments.d_a, moments.d_b
    stitch = fit_adam(counted(), d_a=d_a, d_b=d_b, alpha=alpha, n_steps=n_steps, seed=seed, on_step=keep)
    tokens, seconds, stitches = map(list, zip(*kept))
    return AdamTrace(stitch, tokens, seconds, [stitch_loss(at, moments, alpha=alpha).total for at in stitches])
