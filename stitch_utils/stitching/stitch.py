r"""The stitch: two affine maps between residual streams, and two ways to fit them.

Section 2, Eqs. 1-3, and App. A. With row vectors x of model A and y of model B,

    up(x) = x P_up + b_up      (1)        down(y) = y P_down + b_down      (2)
    L = MSE(up(x), y) + MSE(down(y), x) + alpha MSE(down(up(x)), x) + alpha MSE(up(down(y)), y)      (3)

All four terms are squared errors of affine maps, so L is a function of the means and second moments of (x, y) (see
`moments`). The best biases make all residuals centred; what is left is quadratic in either map while the other is
fixed, and its stationarity A Q + B Q C = E is solved by two symmetric eigendecompositions. `fit_exact` alternates
such solutions from least squares and polishes both maps together by L-BFGS in whitened coordinates. `fit_adam` is the
paper's recipe.

Offers `Stitch`, `StitchLoss`, `FitReport`, `stitch_loss`, `fit_exact`, `fit_adam`, `trace_adam`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..utils.progress import progress
from .moments import PairMoments

TENSORS = ("P_up", "b_up", "P_down", "b_down")


class FitReport(NamedTuple):
    """How a stitch was fitted."""

    method: str
    """`exact` or `adam`."""
    alpha: float
    """Weight of the inversion terms."""
    loss: float
    """Eq. 3 where the fit ended: on its moments (exact), or mean over the last tenth of the steps (adam)."""
    converged: bool
    """exact: the last steps lowered the loss by less than the tolerance. adam: always False, it stops after n_steps."""
    sweeps: int
    """exact: alternating solutions."""
    evaluations: int
    """exact: loss evaluations of L-BFGS. adam: steps."""
    ridge: float
    """Added to the diagonals of the covariances, as a share of their mean eigenvalue."""
    seconds: float


class StitchLoss(NamedTuple):
    """Eq. 3 term by term: mean squared errors over tokens and dimensions, before alpha."""

    up: float
    down: float
    cycle_a: float
    """down(up(x)) against x."""
    cycle_b: float
    """up(down(y)) against y."""
    total: float
    """up + down + alpha (cycle_a + cycle_b)."""


@dataclass(frozen=True)
class Stitch:
    """Eqs. 1 and 2: affine maps between the residual streams of A and B."""

    P_up: Float[Tensor, "d_a d_b"]
    b_up: Float[Tensor, d_b]
    P_down: Float[Tensor, "d_b d_a"]
    b_down: Float[Tensor, d_a]
    report: FitReport | None = None
    """How it was fitted, where it was."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What it is for: names of the models, layers, text, losses; anything JSON holds. Kept in the file, of no effect.
    """

    def __post_init__(self):
        if self.P_up.dim() != 2:
            raise ValueError(f"P_up has shape {tuple(self.P_up.shape)}: expected (d_a, d_b)")
        d_a, d_b = self.P_up.shape
        for name, shape in (("b_up", (d_b,)), ("P_down", (d_b, d_a)), ("b_down", (d_a,))):
            if getattr(self, name).shape != shape:
                found = tuple(getattr(self, name).shape)
                raise ValueError(f"{name} has shape {found}: expected {shape}, since P_up has {(d_a, d_b)}")

    def up(self, x: Float[Tensor, "... d_a"]) -> Float[Tensor, "... d_b"]:
        """Eq. 1, computed in the stitch's dtype and returned in that of `x`; ValueError for another width."""
        _check_width(x, self.P_up, "up")
        return (x.to(self.P_up) @ self.P_up + self.b_up).to(x.dtype)

    def down(self, y: Float[Tensor, "... d_b"]) -> Float[Tensor, "... d_a"]:
        """Eq. 2, computed in the stitch's dtype and returned in that of `y`; ValueError for another width."""
        _check_width(y, self.P_down, "down")
        return (y.to(self.P_down) @ self.P_down + self.b_down).to(y.dtype)

    def to(self, *args, **kwargs) -> Stitch:
        """The same maps on another device or in another dtype."""
        tensors = (getattr(self, name) for name in TENSORS)
        return replace(self, **dict(zip(TENSORS, (tensor.to(*args, **kwargs) for tensor in tensors))))

    @classmethod
    def identity(cls, d: int) -> Stitch:
        """Maps that change nothing, between streams of one width."""
        return cls(torch.eye(d), torch.zeros(d), torch.eye(d), torch.zeros(d))

    def save(self, path: str | Path) -> None:
        """Write a safetensors file; in its header `report`, `about`, and a digest of them and of the maps."""
        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in TENSORS}
        said = [json.dumps(self.report and self.report._asdict()), json.dumps(dict(self.about))]
        meta = {"kind": "Stitch", "report": said[0], "about": said[1], "digest": _digest(tensors, *said)}
        save_file(tensors, str(path), metadata=meta)

    @classmethod
    def load(cls, path: str | Path) -> Stitch:
        """Read what `save` wrote; ValueError for a file that is another, or damaged."""
        try:
            with safe_open(str(path), framework="pt") as file:
                meta = file.metadata() or {}
                if meta.get("kind") != "Stitch":
                    raise ValueError(f"{path} holds {meta.get('kind', 'no')} data: expected a Stitch")
                tensors = {name: file.get_tensor(name) for name in TENSORS}
            said = [meta.get(name, "null") for name in ("report", "about")]
            report, about = map(json.loads, said)
            report = FitReport(**report) if report else None
        except (SafetensorError, json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path} is no whole stitch file, as `Stitch.save` writes it ({error})") from error
        # Older files have a digest of the maps alone.
        if meta.get("digest", meta.get("sha256")) != _digest(tensors, *(said if "digest" in meta else ())):
            raise ValueError(f"{path} is damaged: it does not hold what was saved. Fit or fetch it again.")
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise ValueError(f"{name} of {path} holds values that are not finite (NaN or infinity)")
        return cls(**tensors, report=report, about=about or {})


def _digest(tensors: Mapping[str, Tensor], *said: str) -> str:
    """Of the bytes of the maps, whatever their dtype, and of what is said of them."""
    raw = (tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for name in TENSORS)
    return hashlib.sha256(b"".join([*raw, "\0".join(said).encode()])).hexdigest()


def _check_width(x: Tensor, matrix: Tensor, name: str) -> None:
    if x.shape[-1] != len(matrix):
        raise ValueError(f"{name} was given shape {tuple(x.shape)}: expected (..., {len(matrix)})")


def stitch_loss(stitch: Stitch, moments: PairMoments, *, alpha: float = 1.0) -> StitchLoss:
    """Eq. 3 on the data that `moments` describe; exact, whatever text the stitch was fitted on."""
    device = moments.mean.device
    maps = stitch.to(device, torch.float64)
    cxx, cxy, cyy = moments.cxx, moments.cxy, moments.cyy
    mean_x, mean_y = moments.mean_x, moments.mean_y

    def mse(c_in, c_out, c_in_out, matrix, offset):
        # E|u M + b - v|^2 / d for u ~ c_in, v ~ c_out, offset = E[u M + b - v]
        spread = (matrix * (c_in @ matrix)).sum() - 2 * (matrix * c_in_out).sum() + c_out.trace()
        return ((spread + offset @ offset) / len(c_out)).item()

    at_mean_x, at_mean_y = mean_x @ maps.P_up + maps.b_up, mean_y @ maps.P_down + maps.b_down
    terms = (
        mse(cxx, cyy, cxy, maps.P_up, at_mean_x - mean_y),
        mse(cyy, cxx, cxy.T, maps.P_down, at_mean_y - mean_x),
        mse(cxx, cxx, cxx, maps.P_up @ maps.P_down, at_mean_x @ maps.P_down + maps.b_down - mean_x),
        mse(cyy, cyy, cyy, maps.P_down @ maps.P_up, at_mean_y @ maps.P_up + maps.b_up - mean_y),
    )
    return StitchLoss(*terms, terms[0] + terms[1] + alpha * (terms[2] + terms[3]))


def best_given_other(p: Tensor, cxx: Tensor, cxy: Tensor, cyy: Tensor, alpha: float) -> Tensor:
    """The P_down that minimises Eq. 3 for centred data when P_up = `p`; swap x and y for the converse.

    Setting the derivative to zero gives A Q + B Q C = E with B = Cyy, A = (Cyy + alpha p' Cxx p) / d_a, C = alpha p
    p' / d_b. With C = V diag(c) V' and W from the pencil (A, B), W'AW = I and W'BW = diag(beta), the columns of QV
    decouple.
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
    """Eq. 3 with the best biases."""
    d_a, d_b = cxy.shape
    gap_a, gap_b = up @ down, down @ up
    gap_a = gap_a - torch.eye(d_a).to(gap_a)
    gap_b = gap_b - torch.eye(d_b).to(gap_b)
    terms_a = (down * (cyy @ down - 2 * cxy.T)).sum() + cxx.trace() + alpha * (gap_a * (cxx @ gap_a)).sum()
    terms_b = (up * (cxx @ up - 2 * cxy)).sum() + cyy.trace() + alpha * (gap_b * (cyy @ gap_b)).sum()
    return terms_a / d_a + terms_b / d_b


def _polish(up, down, covariances, alpha, tolerance, max_evaluations):
    """L-BFGS on both maps in coordinates in which x and y are white (Liu & Nocedal 1989)."""
    cxx, _, cyy = covariances
    unwhiten = []
    for matrix in (cxx, cyy):
        values, vectors = torch.linalg.eigh(matrix)
        root = values.clamp_min(values[-1] * 1e-14).sqrt()
        unwhiten.append(((vectors / root) @ vectors.T, (vectors * root) @ vectors.T))
    (x_inverse, x_root), (y_inverse, y_root) = unwhiten
    parameters = [(x_root @ up).requires_grad_(), (y_root @ down).requires_grad_()]
    optimizer = torch.optim.LBFGS(
        parameters,
        lr=1,
        max_iter=25,
        max_eval=31,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )
    evaluations = 0

    def loss_now() -> Tensor:
        return _centred_loss(x_inverse @ parameters[0], y_inverse @ parameters[1], *covariances, alpha)

    def closure() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        loss = loss_now()
        loss.backward()
        return loss

    best, best_maps, converged = float("inf"), (up, down), False
    while evaluations < max_evaluations and not converged:
        optimizer.step(closure)
        with torch.no_grad():
            loss = loss_now().item()
            converged = 0 <= best - loss < tolerance * abs(loss)
            if loss < best:
                best, best_maps = loss, (x_inverse @ parameters[0], y_inverse @ parameters[1])
            elif not converged:  # a line search that went astray: what was found before stands
                break
    return *best_maps, evaluations, converged


def fit_exact(
    moments: PairMoments,
    *,
    alpha: float = 1.0,
    ridge: float = 1e-8,
    tolerance: float = 1e-4,
    max_sweeps: int = 20,
    max_evaluations: int = 500,
    dtype: torch.dtype = torch.float32,
) -> Stitch:
    """The minimiser of Eq. 3, from moments alone: for alpha = 0 exactly, else the best stationary point found.

    `ridge` times the mean eigenvalue is added to the diagonals of Cxx and Cyy, so that dead or repeated dimensions do
    no harm; it follows the scale of the data, and at its default it moves the loss by about one part in 1e8. For
    alpha = 0 the answer is two least-squares problems. For alpha > 0 the problem is not convex: alternating solutions
    are followed by L-BFGS until 25 steps lower the loss by less than `tolerance` (relative). `Stitch.report` says how
    it ended.

    Raises ValueError for a negative alpha or ridge, too few tokens, or activations that do not vary at all.
    """
    began = time.perf_counter()
    if alpha < 0 or ridge < 0:
        raise ValueError(f"alpha and ridge must not be negative: got alpha={alpha}, ridge={ridge}")
    moments._require(2)
    covariances = cxx, cxy, cyy = [matrix.clone() for matrix in (moments.cxx, moments.cxy, moments.cyy)]
    for name, matrix in (("x", cxx), ("y", cyy)):
        level = matrix.trace() / len(matrix)
        if level <= 0:
            raise ValueError(f"the activations {name} do not vary over {moments.count} tokens: there is nothing to fit")
        matrix.diagonal().add_(max(ridge, 1e-15) * level)

    up, down = torch.linalg.solve(cxx, cxy), torch.linalg.solve(cyy, cxy.T)
    sweeps, evaluations, converged = 0, 0, True
    loss = _centred_loss(up, down, *covariances, alpha).item()
    if alpha > 0:
        for sweeps in range(1, max_sweeps + 1):  # noqa: B007
            before = loss
            down = best_given_other(up, cxx, cxy, cyy, alpha)
            up = best_given_other(down, cyy, cxy.T, cxx, alpha)
            loss = _centred_loss(up, down, *covariances, alpha).item()
            if before - loss < 10 * tolerance * loss:
                break
        up, down, evaluations, converged = _polish(up, down, covariances, alpha, tolerance, max_evaluations)
    mean_x, mean_y = moments.mean_x, moments.mean_y
    stitch = Stitch(up, mean_y - mean_x @ up, down, mean_x - mean_y @ down)
    loss = stitch_loss(stitch, moments, alpha=alpha).total  # without the ridge
    seconds = time.perf_counter() - began
    report = FitReport("exact", alpha, loss, converged, sweeps, evaluations, ridge, seconds)
    return replace(stitch.to(dtype), report=report)


def fit_adam(
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    d_a: int,
    d_b: int,
    alpha: float = 1.0,
    lr: float = 1e-4,
    max_grad_norm: float = 1.0,
    n_steps: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_step: Callable[[int, Stitch], None] | None = None,
) -> Stitch:
    """The paper's recipe (App. A): Adam at `lr` with cosine annealing to zero, gradient norm clipped, biases from zero.

    `batches` gives (x, y) of shapes (n, d_a), (n, d_b), one a step; it is iterated anew when it ends, if it can be.
    Weights start as torch's Linear does, from `seed`; Adam's betas, which the paper does not give, are torch's.
    `on_step(step, stitch)` is called after each step with the maps as they then are (views: copy what is kept).

    Raises ValueError if `batches` ends before `n_steps` and cannot be iterated again.
    """
    began = time.perf_counter()
    if n_steps < 1:
        raise ValueError(f"n_steps must be positive: got {n_steps}")
    up, down = linear_maps(d_a, d_b, seed=seed, device=device)
    for layer in (up, down):
        torch.nn.init.zeros_(layer.bias)
    parameters = [*up.parameters(), *down.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    mse = torch.nn.functional.mse_loss
    losses = []
    for step, (x, y) in enumerate(progress(_repeat(batches, n_steps), "Adam", total=n_steps), 1):
        x, y = x.to(device, torch.float32), y.to(device, torch.float32)
        up_x, down_y = up(x), down(y)
        loss = mse(up_x, y) + mse(down_y, x)
        if alpha:
            loss = loss + alpha * (mse(down(up_x), x) + mse(up(down_y), y))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        if on_step is not None:
            on_step(step, view_as_stitch(up, down))
    final = torch.stack(losses[-max(1, n_steps // 10) :]).mean().item()
    report = FitReport("adam", alpha, final, False, 0, n_steps, 0.0, time.perf_counter() - began)
    return finished_stitch(up, down, report)


def linear_maps(
    d_a: int, d_b: int, *, seed: int, device: torch.device | str
) -> tuple[torch.nn.Linear, torch.nn.Linear]:
    """A map up and a map down as torch's Linear starts them, from `seed`; the global generator is left alone."""
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    maps = torch.nn.Linear(d_a, d_b), torch.nn.Linear(d_b, d_a)
    torch.random.set_rng_state(generator_state)
    return tuple(layer.to(device) for layer in maps)


def view_as_stitch(up: torch.nn.Linear, down: torch.nn.Linear) -> Stitch:
    """The maps as they are; they go on being trained, so copy what is kept."""
    return Stitch(*(tensor.detach() for tensor in (up.weight.T, up.bias, down.weight.T, down.bias)))


def finished_stitch(up: torch.nn.Linear, down: torch.nn.Linear, report: FitReport) -> Stitch:
    """A copy of the maps, on the CPU."""
    tensors = (up.weight.T, up.bias, down.weight.T, down.bias)
    return Stitch(*(tensor.detach().cpu().clone() for tensor in tensors), report=report)


def _repeat(batches: Iterable, n_steps: int):
    """`n_steps` items, starting again when the batches end."""
    taken = 0
    while taken < n_steps:
        at_start = taken
        for batch in batches:
            yield batch
            taken += 1
            if taken == n_steps:
                return
        if taken == at_start:
            raise ValueError(f"batches ended after {taken} of {n_steps} steps and cannot be iterated again")


class AdamTrace(NamedTuple):
    """How a run of `fit_adam` came down, at a few steps from the first to the last."""

    stitch: Stitch
    """As it ended."""
    steps: list[int]
    tokens: list[int]
    """Activations seen, repeats counted."""
    seconds: list[float]
    """Since the start, without the evaluation."""
    losses: list[float]
    """Eq. 3 on the moments given."""


def trace_adam(
    batches: Iterable[tuple[Tensor, Tensor]],
    moments: PairMoments,
    *,
    points: int = 24,
    alpha: float = 1.0,
    n_steps: int,
    **options,
) -> AdamTrace:
    """`fit_adam` with `options`, and Eq. 3 on `moments` (say held-out ones) at `points` steps, evenly spaced on a log
    scale."""
    wanted = {round(n_steps ** (i / (points - 1))) for i in range(points)} | {n_steps}
    kept: list[tuple[int, float, Stitch]] = []
    began = time.perf_counter()

    def keep(step: int, stitch: Stitch) -> None:
        if step in wanted:
            now = time.perf_counter() - began
            maps = (stitch.P_up, stitch.b_up, stitch.P_down, stitch.b_down)
            kept.append((step, now, Stitch(*(tensor.clone() for tensor in maps))))

    sizes = []

    def counted():
        for x, y in _repeat(batches, n_steps):
            sizes.append(len(x))
            yield x, y

    stitch = fit_adam(
        counted(), d_a=moments.d_a, d_b=moments.d_b, alpha=alpha, n_steps=n_steps, on_step=keep, **options
    )
    steps = [step for step, _, _ in kept]
    losses = [stitch_loss(at, moments, alpha=alpha).total for _, _, at in kept]
    return AdamTrace(stitch, steps, [sum(sizes[:step]) for step in steps], [now for _, now, _ in kept], losses)


def random_stitch(stitch: Stitch, seed: int, *, means: tuple[Float[Tensor, d_a], Float[Tensor, d_b]]) -> Stitch:
    """What a stitch is worth more than: Gaussian maps of the same shapes whose columns have the same norms.

    The biases carry the mean residuals `means` of A and B into each other, as those of a fitted stitch do.
    """
    generator = torch.Generator().manual_seed(seed)
    maps = []
    for matrix in (stitch.P_up, stitch.P_down):
        drawn = torch.randn(matrix.shape, generator=generator, dtype=torch.float64)
        maps.append(drawn * (matrix.cpu().double().norm(dim=0) / drawn.norm(dim=0)))
    (up, down), (mean_x, mean_y) = maps, (mean.cpu().double() for mean in means)
    parts = (up, mean_y - mean_x @ up, down, mean_x - mean_y @ down)
    return Stitch(*(part.to(stitch.P_up) for part in parts), about={**stitch.about, "random_seed": seed})
