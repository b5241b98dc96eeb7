"""Descend a loss over batches as the paper trains its stitches: Adam, a cosine to zero, the gradient's norm clipped.

App. A. Adam is AdamW (Loshchilov & Hutter 2019) without weight decay. All maps that have no closed form share this
loop: the stitch by the paper's recipe, the ReLU map, and the stitch that is tuned on the model's own loss.

Offers `descend`, and `repeated`, which begins batches again when they end.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ..utils.progress import progress

Batch = TypeVar("Batch")


@torch.enable_grad()
def descend(
    parameters: Sequence[Tensor],
    batches: Iterable[Batch],
    loss_of: Callable[[Batch], Tensor],
    *,
    n_steps: int,
    lr: float,
    weight_decay: float = 0.0,
    title: str = "AdamW",
    on_step: Callable[[int], None] | None = None,
) -> list[float]:
    """Take `n_steps` steps from the parameters as they are, one a batch; return the loss before each step.

    `batches` is iterated again when it ends. Gradients are taken of the parameters alone, whatever else the loss
    depends on. `on_step(step)` is called after each step, the first of which is 1. ValueError for no steps, a learning
    rate that is not positive, a negative weight decay, a loss that is not finite, and as `repeated`.
    """
    if n_steps < 1 or lr <= 0 or weight_decay < 0:
        given = f"n_steps={n_steps}, lr={lr}, weight_decay={weight_decay}"
        raise ValueError(f"steps and learning rate must be positive, weight decay not negative: got {given}")
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    losses: list[float] = []
    for step, batch in enumerate(progress(repeated(batches, n_steps), title, total=n_steps), 1):
        loss = loss_of(batch)
        losses.append(loss.item())
        if not torch.isfinite(loss):
            raise ValueError(f"the loss is {losses[-1]} at step {step}: expected a finite number")
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters)):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(parameters, max_norm=1.0)
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step(step)
    return losses


def repeated(batches: Iterable[Batch], n_steps: int) -> Iterator[Batch]:
    """Give `n_steps` batches, from the first again when they end; ValueError if they cannot be iterated again."""
    taken = 0
    while taken < n_steps:
        at_start = taken
        for batch in itertools.islice(batches, n_steps - at_start):
            taken += 1
            yield batch
        if taken == at_start:
            raise ValueError(f"batches ended after {taken} of {n_steps} steps and cannot be iterated again")
