"""What maps between two streams do to probes and vectors: the same texts, read once, judge any number of maps.

Section 4, in short: dense probes and differences of means of A, carried to B. The chapters on probes and on steering
have the whole of it; here one question of each data set is enough to compare maps by.

Offers `read_texts` and `ReadTexts`, `contrasts_of`, `judge_carrying` and `Carrying`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..stitching.pair import StitchedPair
from ..stitching.stitch import Stitch
from ..utils.progress import progress
from ..utils.stats import Estimate, stratified_mean
from .probes import fit_probe, mean_activations, transfer_probe
from .tasks import ProbingTask


class ReadTexts(NamedTuple):
    """One question, and both models' mean streams over the texts that it is asked of."""

    task: ProbingTask
    train: Mapping[str, np.ndarray]
    """By side: (texts, d), in the order of the task's texts."""
    test: Mapping[str, np.ndarray]

    def direction(self, side: str) -> Tensor:
        """Subtract the means of the two classes of the test texts: (d,)."""
        labels = np.array(self.task.test_labels)
        return torch.from_numpy(self.test[side][labels].mean(0) - self.test[side][~labels].mean(0))


class Carrying(NamedTuple):
    """How A's probes and vectors do in B."""

    accuracy: Estimate
    """Share of B's test texts that A's probes tell rightly, mean over the questions."""
    difference: Estimate
    """That less the first map's, on the same texts."""
    cosine: float
    """Between A's difference of means, carried to B, and B's own of the same texts; mean over the questions."""


def read_texts(stitched: StitchedPair, tasks: Sequence[ProbingTask]) -> list[ReadTexts]:
    """Read the texts of the first task of each data set by both models; ValueError as `mean_activations`."""
    first: dict[str, ProbingTask] = {}
    for task in tasks:
        first.setdefault(task.dataset, task)
    found = []
    for task in progress(first.values(), "texts"):
        texts, n_train = [*task.train_texts, *task.test_texts], len(task.train_texts)
        means = {
            side: mean_activations(*stitched.side(side), texts, {"it": lambda stream: stream})["it"] for side in "ab"
        }
        parts = ({side: rows[part] for side, rows in means.items()} for part in (slice(n_train), slice(n_train, None)))
        found.append(ReadTexts(task, *parts))
    return found


def contrasts_of(read: Sequence[ReadTexts]) -> tuple[Tensor, Tensor]:
    """Subtract each training text without the property from one that has it: (n, d_a) and (n, d_b), all questions."""

    def differences(side: str) -> Tensor:
        marked = ((one.train[side], np.array(one.task.train_labels)) for one in read)
        return torch.from_numpy(np.concatenate([rows[labels] - rows[~labels] for rows, labels in marked]))

    return differences("a"), differences("b")


def judge_carrying(read: Sequence[ReadTexts], stitches: Mapping[str, Stitch], *, seed: int = 0) -> dict[str, Carrying]:
    """Carry A's dense probe of every question, and its difference of means, to B by each stitch."""
    probes = [fit_probe(one.train["a"], np.array(one.task.train_labels), seed=seed) for one in read]
    right: dict[str, list[np.ndarray]] = {}
    cosines: dict[str, list[float]] = {}
    for name, stitch in stitches.items():
        for one, probe in zip(read, probes):
            said = transfer_probe(probe, stitch).predict(one.test["b"])
            right.setdefault(name, []).append((said == np.array(one.task.test_labels)).astype(float))
            image = one.direction("a").to(stitch.P_up) @ stitch.P_up
            own = one.direction("b").to(image)
            cosines.setdefault(name, []).append(torch.cosine_similarity(image, own, dim=0).item())
    first = next(iter(right.values()))
    return {
        name: Carrying(
            stratified_mean(rows, seed),
            stratified_mean([row - other for row, other in zip(rows, first)], seed),
            float(np.mean(cosines[name])),
        )
        for name, rows in right.items()
    }
