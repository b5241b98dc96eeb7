"""How much of a steering vector is the accident of its prompts: two vectors whose prompts share none, compared.

App. F.2 supposes that instruction vectors from few pairs of prompts, about ten, are noisy and that carrying them across
compounds it. Two vectors from n pairs each have a cosine of 1 where there is no noise, and of 0 where there is nothing
else. The same two, carried across as v P, say what the stitch makes of it, and what is lost on the way is their cosine
before minus the one after. Instructions differ in how many prompts they have: each gives vectors from as many pairs as
it has twice over.

Offers `VectorNoise`, `vector_noise`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..stitching.stitch import Stitch
from ..utils.stats import Estimate, from_draws

COUNTS = (2, 3, 5, 10, 20, 50)
DRAWS = 200
WAYS = ("native", "carried")


@dataclass(frozen=True)
class VectorNoise:
    """Mean cosines of two vectors of an instruction that come from different prompts.

    Means are over the draws and over the instructions that have prompts enough for that many pairs, which for more
    pairs may be fewer instructions. Intervals are the middle 95% of the draws.
    """

    cosines: Mapping[tuple[str, int, str], Estimate]
    """By model, `a` or `b`, pairs of prompts behind each vector, and `native` or `carried`, to the other model."""
    lost: Mapping[tuple[str, int], Estimate]
    """By model and pairs of prompts: native minus carried, on the same draws."""
    instructions: Mapping[tuple[str, int], int]
    """By model and pairs of prompts: how many instructions the means are over."""

    @property
    def counts(self) -> list[int]:
        """Numbers of pairs for which some instruction has prompts, twice over."""
        return sorted({count for _, count, _ in self.cosines})

    def numbers(self, pair: str) -> dict[str, float]:
        """The entries of a results file."""
        found: dict[str, float] = {}
        for (side, count, way), estimate in self.cosines.items():
            found |= estimate.numbers(f"noise.{pair}.{side}.pairs_{count}.{way}")
        for (side, count), estimate in self.lost.items():
            found |= estimate.numbers(f"noise.{pair}.{side}.pairs_{count}.lost")
            found[f"noise.{pair}.{side}.pairs_{count}.instructions"] = self.instructions[side, count]
        return found


def vector_noise(
    shifts: Mapping[tuple[str, str], Float[Tensor, "pairs d_model"]],
    stitch: Stitch,
    *,
    counts: tuple[int, ...] = COUNTS,
    draws: int = DRAWS,
    seed: int = 0,
) -> VectorNoise:
    """`shifts[side, kind]`: what an instruction adds to the stream of a model, prompt by prompt.

    At each number of pairs, the mean is over the instructions that have it twice over; one that none has is left out.
    ValueError without draws.
    """
    if draws < 1:
        raise ValueError(f"draws={draws}: expected at least one")
    matrices = {"a": stitch.P_up, "b": stitch.P_down}
    cosines, lost, instructions = {}, {}, {}
    for side in sorted({side for side, _ in shifts}):
        own = [found.double() for (of, _), found in shifts.items() if of == side]
        matrix = matrices[side].cpu().double()
        for count in counts:
            wide = [shift for shift in own if len(shift) >= 2 * count]
            if not wide:
                continue
            generator = torch.Generator().manual_seed(seed)
            found = {way: np.zeros(draws) for way in WAYS}
            for draw in range(draws):
                for shift in wide:
                    order = torch.randperm(len(shift), generator=generator)
                    both = torch.stack([shift[order[:count]].mean(0), shift[order[count : 2 * count]].mean(0)])
                    for way, vectors in zip(WAYS, (both, both @ matrix)):
                        found[way][draw] += torch.cosine_similarity(*vectors, dim=0).item() / len(wide)
            cosines |= {(side, count, way): from_draws(drawn.mean(), drawn) for way, drawn in found.items()}
            less = found["native"] - found["carried"]
            lost[side, count], instructions[side, count] = from_draws(less.mean(), less), len(wide)
    return VectorNoise(cosines, lost, instructions)
