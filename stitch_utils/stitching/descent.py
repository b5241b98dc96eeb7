"""Descend a loss over batches as the paper trains its stitches: AdamW, a cosine to zero, the gradient's norm clipped.

App. A, with AdamW (Loshchilov & Hutter 2019) in the place of Adam: without weight decay they are the same. The maps
that have no closed form share this loop: the ReLU map, and the stitch that is tuned on the model's own loss.

Offers `descend`.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
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
) -> list[float]:
    """Take `n_steps` steps from the parameters as they are, one a batch; return the loss before each step.

    `batches` is iterated again when it ends. Gradients are taken of the parameters alone, whatever else the loss
    depends on. ValueError for no steps, a learning rate that is not positive, a negative weight decay, a loss that is
    not finite, and batches that end early and cannot be iterated again.
    """
    if n_steps < 1 or lr <= 0 or weight_decay < 0:
        given = f"n_steps={n_steps}, lr={lr}, weight_decay={weight_decay}"
        raise ValueError(f"steps and learning rate must be positive, weight decay not negative: got {given}")
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    losses: list[float] = []
    with progress(None, title, total=n_steps) as bar:
        while (before := len(losses)) < n_steps:
            for batch in itertools.islice(batches, n_steps - before):
                loss = loss_of(batch)
                losses.append(loss.item())
                if not torch.isfinite(loss):
                    raise ValueError(f"the loss is {losses[-1]} at step {len(losses)}: expected a finite number")
                for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters)):
                    parameter.grad = gradient
                torch.nn.utils.clip_grad_norm_(parameters, max_norm=1.0)
                optimizer.step()
                schedule.step()
                bar.update()
            if len(losses) == before:
                raise ValueError(f"batches ended after {before} of {n_steps} steps and cannot be iterated again")
    return losses
