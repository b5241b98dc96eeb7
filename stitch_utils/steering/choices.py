r"""The sister paper's multiple-choice experiment: the large model steered by its own vectors and by the small one's.

Bello et al. (arXiv 2506.00653), Table 1. For each behaviour (`behaviours`) both models give a contrast vector (`caa`).
The small model's is mapped, and the large one is steered along both, at the same lengths: do the answers move alike?
Lengths are in units of how far the stream is from its mean on an ordinary token, so that they mean the same for every
behaviour and model. Any number of maps can be compared on the same questions; `random` is the control.

Offers `ChoiceConfig`, `choice_config`, `spread`, `contrast_vectors`, `steering_directions`, `steer_choices`,
`ChoiceSweep`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..data.pairs import ModelPair
from ..models.language_model import LanguageModel
from ..stitching.moments import PairMoments
from ..stitching.stitch import Stitch
from ..utils.progress import progress
from ..utils.stats import Estimate, stratified_mean
from .behaviours import Behaviour
from .contrast import (
    contrast_vector,
    correlation,
    curve_correlation,
    dose_responses,
    each_correlation,
    questions,
    relative_slope,
)
from .vectors import random_direction, transfer_vector


@dataclass(frozen=True)
class ChoiceConfig:
    """What is run."""

    contrasts: int
    """Pairs of texts that a vector comes from."""
    choices: int
    """Questions of each behaviour."""
    behaviours: int = 0
    """How many of those that there are; 0 for all."""
    doses: tuple[float, ...] = (-0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6)
    """Lengths of what is added, in units of the stream's spread (`spread`)."""
    batch_size: int = 64
    seed: int = 0
    """Of the behaviours' texts, of the random directions and of the bootstrap."""

    def __post_init__(self):
        if min(self.contrasts, self.choices) < 1 or self.behaviours < 0:
            raise ValueError(f"expected contrast pairs and choices: got {self.contrasts} and {self.choices}")
        if len(set(self.doses)) < 3:
            raise ValueError(f"a correlation over doses needs three at least: got {self.doses}")


def choice_config(pair: ModelPair, scale: str, *, seed: int = 0) -> ChoiceConfig:
    """The sizes of a scale."""
    return ChoiceConfig(**pair.sizes_of("choices", scale), seed=seed)


def spread(moments: PairMoments) -> float:
    """How far B's stream is from its mean on an ordinary token: the root of the mean squared distance."""
    return moments.cyy.trace().sqrt().item()


def contrast_vectors(
    model: LanguageModel, layer: int, contrasts: Mapping[str, Sequence[tuple[str, str]]], *, batch_size: int = 64
) -> dict[str, Float[Tensor, " d_model"]]:
    """`caa.contrast_vector` for each name."""
    rows = progress(contrasts.items(), "vectors")
    return {name: contrast_vector(model, layer, pairs, batch_size=batch_size) for name, pairs in rows}


def steering_directions(
    native: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    maps: Mapping[str, tuple[Stitch, bool]],
    *,
    towards: str = "b",
    seed: int = 0,
) -> dict[str, dict[str, Tensor]]:
    """By name and condition, at unit length: `native`; the other model's vector through each of `maps` (a stitch, and
    whether its bias is added); and `random`."""
    found = {}
    for number, (name, own) in enumerate(native.items()):
        found[name] = {"native": (own / own.norm()).float()}
        for condition, (stitch, with_bias) in maps.items():
            found[name][condition] = transfer_vector(other[name], stitch, to=towards, with_bias=with_bias)
        found[name]["random"] = random_direction(len(own), seed=1000 * seed + number)
    return found


@dataclass(frozen=True)
class ChoiceSweep:
    """All answers, and what follows from them."""

    config: ChoiceConfig
    directions: Mapping[str, Mapping[str, Tensor]]
    """By behaviour and condition."""
    responses: Mapping[tuple[str, str], np.ndarray]
    """By behaviour and condition: (doses, questions), logit differences."""

    @property
    def behaviours(self) -> tuple[str, ...]:
        return tuple(self.directions)

    @property
    def conditions(self) -> tuple[str, ...]:
        """All but `native`."""
        return tuple(name for name in next(iter(self.directions.values())) if name != "native")

    def mean_response(self, behaviour: str, condition: str) -> np.ndarray:
        """(doses,): mean over the questions."""
        return self.responses[behaviour, condition].mean(1)

    def correlation(self, behaviour: str, condition: str) -> Estimate:
        """Over doses, with the native responses; mean over the questions (`caa.correlation`)."""
        return correlation(*self._pair(behaviour, condition), seed=self.config.seed)

    def curve_correlation(self, behaviour: str, condition: str) -> Estimate:
        """The same of the mean responses."""
        return curve_correlation(*self._pair(behaviour, condition), seed=self.config.seed)

    def relative_slope(self, behaviour: str, condition: str) -> Estimate:
        """How far the answers move a step, next to native steering."""
        return relative_slope(*self._pair(behaviour, condition), self.config.doses, seed=self.config.seed)

    def mean_correlation(self, condition: str) -> Estimate:
        """Mean of the behaviours' correlations, with a bootstrap interval over the questions of each."""
        rows = [each_correlation(*self._pair(name, condition)) for name in self.behaviours]
        return stratified_mean(rows, self.config.seed)

    def overall_slope(self, condition: str) -> Estimate:
        """`relative_slope` of the mean over the behaviours, so that one which native steering hardly moves counts
        little."""
        pairs = [self._pair(name, condition) for name in self.behaviours]
        fewest = min(native.shape[1] for native, _ in pairs)
        means = (np.mean([both[side][:, :fewest] for both in pairs], axis=0) for side in (0, 1))
        return relative_slope(*means, self.config.doses, seed=self.config.seed)

    def cosine(self, behaviour: str, condition: str) -> float:
        """Between a direction and the native one."""
        found = self.directions[behaviour]
        return torch.cosine_similarity(found["native"].double(), found[condition].double(), dim=0).item()

    def mean_cosine(self, condition: str) -> float:
        return float(np.mean([self.cosine(name, condition) for name in self.behaviours]))

    def likeness(self, condition: str) -> float:
        """Mean cosine between the directions of two behaviours: near 1 where all have become one direction."""
        rows = torch.stack([self.directions[name][condition].double() for name in self.behaviours])
        rows = rows / rows.norm(dim=1, keepdim=True)
        between = rows @ rows.T
        n = len(rows)
        return ((between.sum() - between.trace()) / max(1, n * (n - 1))).item()

    def _pair(self, behaviour: str, condition: str) -> tuple[np.ndarray, np.ndarray]:
        return self.responses[behaviour, "native"], self.responses[behaviour, condition]


def steer_choices(
    model: LanguageModel,
    layer: int,
    some: Sequence[Behaviour],
    directions: Mapping[str, Mapping[str, Tensor]],
    config: ChoiceConfig,
    *,
    unit: float,
) -> ChoiceSweep:
    """The answers to every behaviour's questions under each of its directions, `native` among them, at each dose.

    `unit` is the length of a dose of 1. ValueError for a behaviour without directions.
    """
    if missing := sorted({one.name for one in some} - set(directions)):
        raise ValueError(f"no directions for behaviour {missing[0]!r}: known are {', '.join(directions)}")
    responses = {}
    for one in progress(some, "behaviours"):
        found = dose_responses(
            model,
            layer,
            questions(model, one.choices),
            directions[one.name],
            [dose * unit for dose in config.doses],
            batch_size=config.batch_size,
        )
        responses |= {(one.name, condition): values for condition, values in found.items()}
    return ChoiceSweep(config, {one.name: directions[one.name] for one in some}, responses)
