r"""A map with a hidden layer, which shows whether an affine map leaves anything to be had.

No section of its own: the paper's stitches (Eqs. 1 and 2) are affine. Here

    m(x) = x P + b + ReLU(x W_in + b_in) W_out

where P is that of the affine map of least squared error (`fit_least_squares`) and stays as it is. The hidden layer is
fitted to what that map leaves of y. It begins by adding nothing, so that what it gains is due to the bends of the ReLU
and not to a better affine part. Transfers of SAEs, probes and vectors need affine maps; this one serves to measure
errors and losses.

Offers `ReluMap` and `fit_relu`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Linear

from .descent import descend
from .fit import fit_exact
from .moments import PairMoments
from .stitch import AffineMap, stitch_loss


@dataclass(frozen=True)
class ReluMap:
    """x -> x P + b + ReLU(x W_in + b_in) W_out, from one residual stream (row vectors) to another."""

    P: Float[Tensor, "d_in d_out"]
    b: Float[Tensor, " d_out"]
    W_in: Float[Tensor, "d_in hidden"]
    b_in: Float[Tensor, " hidden"]
    W_out: Float[Tensor, "hidden d_out"]

    @property
    def d_in(self) -> int:
        return self.P.shape[0]

    def __call__(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        """Map a stream in the dtype of `P`, and answer in that of `x`, on its device; ValueError for another width."""
        here = self.to(x.device)
        affine = AffineMap(here.P, here.b)(given := x.to(here.P.dtype))
        return (affine + torch.relu(given @ here.W_in + here.b_in) @ here.W_out).to(x.dtype)

    def to(self, *args, **kwargs) -> "ReluMap":
        """Copy the map to another device or dtype."""
        return ReluMap(*(getattr(self, field.name).to(*args, **kwargs) for field in fields(self)))


def fit_relu(
    batches: Iterable[tuple[Tensor, Tensor]],
    moments: PairMoments,
    *,
    hidden: int,
    n_steps: int,
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> ReluMap:
    """Fit a hidden layer of `hidden` units by `descend`, on the mean squared error of what least squares leaves.

    `batches` gives x (n, d_a) and y (n, d_b) a step, and is iterated again when it ends; `moments` are those of the
    same text. Units read x at mean zero and variance one in each dimension, and write in units of the error of least
    squares; both are taken into the weights afterwards. The first layer starts as torch's Linear does, from `seed`.
    ValueError for no units or steps, activations that do not vary, and as `descend`.
    """
    if hidden < 1:
        raise ValueError(f"hidden must be positive: got {hidden}")
    both = fit_exact(moments, alpha=0, dtype=torch.float64)
    start, error = both.up.to("cpu"), stitch_loss(both, moments).up
    mean, variances = moments.mean_x.cpu(), moments.cxx.diagonal().cpu()
    deviations = variances.where(variances > 0, 1).sqrt()
    # Where least squares leaves nothing, rounding errors are no unit to count in.
    unit = max(error, 1e-6 * moments.cyy.trace().item() / moments.d_b) ** 0.5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reads, writes = Linear(moments.d_a, hidden), Linear(hidden, moments.d_b)
    torch.nn.init.zeros_(writes.weight)
    torch.nn.init.zeros_(writes.bias)
    reads, writes = reads.to(device), writes.to(device)
    parameters = [*reads.parameters(), *writes.parameters()]
    centre, scale = mean.to(device), deviations.to(device)

    def loss_of(batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = (part.to(device, torch.float64) for part in batch)
        target, given = (y - start(x)) / unit, (x - centre) / scale
        return torch.nn.functional.mse_loss(writes(torch.relu(reads(given.float()))), target.float())

    descend(parameters, batches, loss_of, n_steps=n_steps, lr=lr, weight_decay=weight_decay, title="ReLU map")
    read, offset, write, bias = (part.detach().cpu().double() for part in parameters)
    W_in = read.T / deviations[:, None]
    fitted = ReluMap(start.P, start.b + bias * unit, W_in, offset - mean @ W_in, write.T * unit)
    return fitted.to(torch.float32)
