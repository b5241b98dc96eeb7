"""One engine for all experiments that steer free responses: languages, instructions, and open-ended tasks.

Section 4, App. F and F.2, and arXiv 2506.00653. An experiment fills cells with greedy responses. Of a cell two things
are measured: the share of its responses that do what steering is for, and the rise of their NLL, which is what they
cost the unsteered model in nats a token over its own responses. The strength is chosen on prompts that are not
evaluated. Responses take most of the time, so they are kept in `artifacts/`.

Offers `Cell`, `Answers`, `Move`, `clamped`, `SweepConfig`, `Sweep`, `chosen_strength`, `kept_json`.
"""

import functools
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data.pairs import blaming
from ..models.generation import Response, generate_texts
from ..models.harvest import weights_digest
from ..models.language_model import Edit
from ..stitching.pair import StitchedPair
from ..utils.cache import artifact, kept
from ..utils.progress import progress
from ..utils.stats import Estimate, clopper_pearson, crossed_mean
from .vectors import SteeringVector, clamp

UNSTEERED = ("none", "instructed")  # conditions in which no stream is moved
WANTED_SHARE = 0.7  # of the responses must do what steering is for, for a strength to be chosen


class Cell(NamedTuple):
    """The place of one set of responses in a sweep."""

    split: str
    """The part of the prompts: `chosen`, on which the strength is chosen, or `evaluated`."""
    side: str
    """The model that responds, `a` or `b`."""
    condition: str
    """How it is steered."""
    of: str
    """What it is steered towards: a language, a kind of instruction, or a task."""
    strength: float = 0.0
    """How strongly; 0 without steering."""


# `partial(clamp, direction, z)` or `partial(add, direction, length)`: an edit in parts that a key can name.
Move = functools.partial[Edit]


def clamped(vector: SteeringVector, strength: float) -> Move:
    """Set the component along `vector` to what `strength` makes it (Eqs. 8 and 9)."""
    return functools.partial(clamp, vector.direction, vector.z(strength))


class Answers(NamedTuple):
    """Responses to the same prompts, in their order."""

    responses: tuple[Response, ...]
    judged: tuple[str, ...] = ()
    """What the judge said of each; empty without a judge."""
    done: tuple[bool, ...] = ()
    """Whether each does what steering is for."""


def kept_json(path: Path, make: Callable[[], Any]) -> Any:
    """Read JSON from a file of `artifacts/`; if it is missing, make the value and save it there first."""

    def save(made: Any, place: Path) -> None:
        place.write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")

    return kept(path, make, save, lambda place: json.loads(place.read_text(encoding="utf-8")))


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """The settings that all sweeps share."""

    prompts: int
    """Responses to each cell, if there are so many prompts."""
    choosing_prompts: int
    """Prompts on which a strength is chosen."""
    strengths: tuple[float, ...]
    """Strengths among which one is chosen."""
    strength: float = 0.0
    """The strength at which all conditions are run; 0 leaves it to `chosen_strength`."""
    max_new_tokens: int
    """Tokens of a response at most."""
    batch_size: int = 64
    seed: int = 0
    """Seed of the random directions and of the bootstrap."""

    def __post_init__(self):
        for name, value in vars(self).items():
            if name.endswith("strengths") and (min(value, default=0) <= 0 or self.strength < 0):
                raise ValueError(f"strengths must be positive: got {value} and {self.strength}")
            if name not in ("seed", "strength") and (value == () or (isinstance(value, int) and value < 1)):
                raise ValueError(f"{name}={value}: a sweep needs at least one, to choose on and to evaluate")


@dataclass(frozen=True, kw_only=True)
class Sweep(ABC):
    """All responses of an experiment, and what follows from them.

    A kind of sweep says which strength it chose (`chosen_for`), and how it makes means with bootstrap intervals over
    subjects and prompts (`mean`). A side is the model that is steered; a strength of None is the chosen one.
    """

    config: SweepConfig
    cells: dict[Cell, Answers] = field(default_factory=dict)
    chosen: dict[Any, float] = field(default_factory=dict)
    """The strengths chosen, by what each kind of sweep chooses one for."""

    @abstractmethod
    def chosen_for(self, side: str, condition: str, of: str) -> float:
        """Return the strength that was chosen for a condition."""

    def subjects(self, split: str) -> list[str]:
        """List what is steered towards with the prompts of a split, in the order in which cells were filled."""
        return list(dict.fromkeys(cell.of for cell in self.cells if cell.split == split))

    def mean(self, rows: Sequence[np.ndarray]) -> Estimate:
        """Average over subjects and prompts; by default all subjects have the same prompts, and both are drawn anew."""
        return crossed_mean(np.array(rows), self.config.seed)

    def fill(
        self,
        wanted: Iterable[Cell],
        *,
        stitched: StitchedPair,
        prompts: Callable[[Cell], Sequence[str]],
        move: Callable[[Cell], Move],
        is_done: Callable[[Cell, int, str], bool],
        judge: Callable[[str], str] | None = None,
        part: str,
    ) -> None:
        """Fill those `wanted` cells that are empty with greedy answers to their `prompts`.

        Where the strength is not 0, the stream is moved by the `move` of the cell. What the `judge` says of a response
        is kept with it; `is_done` gets it, or without a judge the response, after the cell and the prompt's number.
        ValueError, naming the pair and the `part` of it, for a prompt that leaves no room for a response.
        """
        for cell in progress([cell for cell in dict.fromkeys(wanted) if cell not in self.cells], "cells"):
            with blaming(stitched.pair, part):
                found = self._answer(stitched, cell, prompts(cell), move(cell) if cell.strength else None, judge)
            said = found.judged or [response.text for response in found.responses]
            done = tuple(bool(is_done(cell, number, one)) for number, one in enumerate(said))
            self.cells[cell] = found._replace(done=done)

    def _answer(self, stitched: StitchedPair, cell: Cell, prompts: Sequence[str], move: Move | None, judge) -> Answers:
        """Make the answers of a cell, or find those that were made before."""
        (model, layer), pair, config = stitched.side(cell.side), stitched.pair, self.config
        sizes: dict[str, Any] = {"max_new_tokens": config.max_new_tokens, "batch_size": config.batch_size}
        moved = None
        if move:
            direction, by = move.args
            digest = hashlib.sha256(direction.cpu().double().numpy().tobytes()).hexdigest()
            moved = [move.func.__name__, digest, by]
        ingredients = {
            "model": weights_digest(pair.a if cell.side == "a" else pair.b),
            "dtype": pair.dtype,
            "layer": layer,
            "moved": moved,
            "prompts": list(prompts),
            **sizes,
        }

        def make() -> dict[str, list]:
            title = f"{cell.side}, {cell.condition}"
            responses = generate_texts(model, prompts, **sizes, layer=layer, edit=move and move(), title=title)
            return {"responses": responses, "judged": [judge(one.text) for one in responses] if judge else []}

        sources = [source for source in (generate_texts, clamp, judge) if source]
        found = kept_json(artifact(pair.name, "responses", ingredients, sources=sources, suffix=".json"), make)
        return Answers(tuple(Response(*row) for row in found["responses"]), tuple(found["judged"]))

    def cell(self, side: str, condition: str, of: str, strength: float | None = None, split: str = "evaluated") -> Cell:
        """Return the cell at a strength."""
        if condition in UNSTEERED:
            strength = 0.0
        elif strength is None:
            strength = self.chosen_for(side, condition, of)
        return Cell(split, side, condition, of, strength)

    def answers(self, *cell, **more) -> Answers:
        """Return the responses in a cell; arguments as in `cell`."""
        return self.cells[self.cell(*cell, **more)]

    def share(self, *cell, **more) -> Estimate:
        """Measure the share of responses that are done, with Clopper and Pearson's interval; arguments as in `cell`."""
        done = self.answers(*cell, **more).done
        return clopper_pearson(sum(done), len(done))

    def mean_share(
        self, side: str, condition: str, strength: float | None = None, split: str = "evaluated"
    ) -> Estimate:
        """Average the shares of all subjects."""
        return self.mean([self._done(side, condition, one, strength, split) for one in self.subjects(split)])

    def advantage(self, side: str, condition: str, over: str, of: Sequence[str] = ()) -> Estimate:
        """Average the difference of two conditions, prompt by prompt, over the subjects `of`, by default all."""
        some = of or self.subjects("evaluated")
        return self.mean([self._done(side, condition, one) - self._done(side, over, one) for one in some])

    def nll_rise(
        self,
        side: str,
        condition: str,
        strength: float | None = None,
        split: str = "evaluated",
        *,
        of: Sequence[str] = (),
        alone: bool = False,
    ) -> Estimate:
        """Measure the nats a token by which responses cost the unsteered model more than its own to the same prompts.

        The mean is over the subjects `of`, by default all; with `alone`, responses are read without their prompts.
        """
        some = of or self.subjects(split)
        return self.mean([self._rises(side, condition, one, strength, split, alone) for one in some])

    def choose(self, side: str, condition: str, of: Sequence[str], strengths: Sequence[float]) -> float:
        """Choose one of `strengths` for the subjects `of` together, on the prompts for it; a given one is taken."""
        if self.config.strength:
            return self.config.strength
        shares, rises = (
            {s: float(np.mean([measured(side, condition, one, s, "chosen") for one in of])) for s in strengths}
            for measured in (self._done, self._rises)
        )
        return chosen_strength(shares, rises)

    def _done(self, *cell) -> np.ndarray:
        """Give 1 for each response that does what steering is for, else 0; arguments as in `cell`."""
        return np.array(self.answers(*cell).done, dtype=float)

    def _rises(self, side: str, condition: str, of: str, strength: float | None, split: str, alone=False) -> np.ndarray:
        """Subtract the NLL of the unsteered responses from that of the others, prompt by prompt."""
        both = (self.answers(side, which, of, strength, split).responses for which in (condition, "none"))
        steered, own = (np.array([one.nll_alone if alone else one.nll for one in found]) for found in both)
        return steered - own


def chosen_strength(shares: Mapping[float, float], rises: Mapping[float, float]) -> float:
    """Choose, among the strengths whose share is at least `WANTED_SHARE`, the one whose responses cost least.

    Where none reaches it, choose the one with the largest share, of equals the smallest; where all shares are 0 the
    largest strength, so that what fails does not fail for want of strength.
    """
    if not any(shares.values()):
        return max(shares)
    if enough := [strength for strength in shares if shares[strength] >= WANTED_SHARE]:
        return min(enough, key=lambda strength: (rises[strength], strength))
    return min(shares, key=lambda strength: (-shares[strength], strength))
