r"""The stitch that descends the host's own loss: "task loss matching", where Eq. 3 is "direct matching".

Section 2 fits its maps to the streams and measures the host's next-token cross-entropy afterwards (Table 1). Others
train the map on that loss itself (Lenc & Vedaldi 2015; Bansal et al. 2021), and Csiszarik et al. (2021) name the two
ways. Starting from a fitted stitch, this shows how low the loss of Table 1 can go with an affine map. Such a map need
not lead to the host's own streams: it may write what the host never sees (Balogh & Jelasity 2025), so that its squared
error belongs beside its loss.

The loss is the cross-entropy of the text, and not the divergence from the host's own predictions. It is what Table 1
reports and `measure_fidelity` measures, and it lets the stitched model be better than its host where the other model
knows more.

Offers `tune_on_loss` and `Tuned`.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.pairs import check_known
from ..data.text import PairedBatch, TokenBatch
from ..models.gradients import edited_cross_entropy
from ..models.harvest import NormLimits, without_outliers
from ..models.language_model import LanguageModel
from .descent import descend
from .evaluation import splice
from .stitch import Stitch


class Tuned(NamedTuple):
    """A stitch with one map tuned, and how its loss came down."""

    stitch: Stitch
    """The stitch that was given, with one of its maps changed, and without its report."""
    losses: list[float]
    """The host's cross-entropy in nats on the batch of each step, before that step."""


def tune_on_loss(
    model_a: LanguageModel,
    model_b: LanguageModel,
    layer_a: int,
    layer_b: int,
    stitch: Stitch,
    batches: Iterable[PairedBatch | TokenBatch],
    *,
    to: str = "b",
    n_steps: int,
    lr: float = 1e-4,
    weight_decay: float = 0.01,
    limits: NormLimits | None = None,
) -> Tuned:
    """Tune the map that leads to `to`, `"a"` or `"b"`, by AdamW on that model's cross-entropy; weights stay frozen.

    One batch is a step, and `batches` is iterated again when it ends. The loss is the mean over the ordinary tokens of
    the host, its stream replaced where `measure_fidelity` replaces it. What is trained is the difference to the given
    map, so `weight_decay` pulls back to it. ValueError for another `to`, a batch that predicts no ordinary token, and
    as `descend`.
    """
    check_known("to", to, ("a", "b"))
    models, layers = {"a": model_a, "b": model_b}, {"a": layer_a, "b": layer_b}
    host, start = models[to], stitch.towards(to).to(models[to].device, torch.float32)
    change = [torch.zeros_like(part).requires_grad_() for part in (start.P, start.b)]

    def loss_of(batch: PairedBatch | TokenBatch) -> Tensor:
        batch = PairedBatch.of(batch)
        rows, scored = {"a": batch.a, "b": batch.b}, (batch.a if to == "a" else batch.b).mask[:, 1:]
        if not scored.any():
            raise ValueError("a batch holds no ordinary token after another: there is no loss to descend")
        streams = {side: models[side].residuals(rows[side].tokens, [layers[side]])[layers[side]] for side in "ab"}
        batch = without_outliers(batch, streams["a"], streams["b"], limits)
        met = {"a": batch.met_a, "b": batch.met_b}
        other = "a" if to == "b" else "b"
        source = streams[other][met[other].to(streams[other].device)].to(start.P)
        replacement = source @ (start.P + change[0]) + start.b + change[1]
        options = {"layer": layers[to], "edit": splice(replacement, met[to]), "stream": streams[to]}
        losses = edited_cross_entropy(host, rows[to].tokens, **options)
        return losses[scored.to(losses.device)].mean()

    losses = descend(change, batches, loss_of, n_steps=n_steps, lr=lr, weight_decay=weight_decay, title="tuning")
    names = ("P_up", "b_up") if to == "b" else ("P_down", "b_down")
    tuned = [(part + moved.detach()).to(getattr(stitch, names[0])) for part, moved in zip((start.P, start.b), change)]
    return Tuned(replace(stitch, report=None, **dict(zip(names, tuned))), losses)
