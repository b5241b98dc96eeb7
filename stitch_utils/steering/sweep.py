"""One engine for all experiments that steer free responses: languages, instructions, and open-ended tasks.

Section 4, App. F and F.2, and arXiv 2506.00653. An experiment fills cells with greedy responses: one cell for each set
of prompts, steered model, condition (no steering, the model's own vector, the other model's, a random one, ...), thing
that is steered towards, and strength. Of a cell two things are measured: the share of its responses that do what
steering is for, and the rise of their NLL, which is what they cost the unsteered model in nats a token over its own
responses. The strength is chosen on prompts that are not evaluated. Responses take most of the time of these
experiments and depend on the model, the prompts and the move of the stream alone, so they are kept in `artifacts/`.

Offers `Cell`, `SweepConfig`, `Sweep`, `fill`, `chosen_strength`; `Respondent` and `Answers`; and what moves a stream:
`Move`, `clamped`, `added`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..data.pairs import blaming
from ..models.generation import Response, generate_texts
from ..models.harvest import weights_digest
from ..models.language_model import Edit
from ..stitching.pair import StitchedPair
from ..utils.cache import artifact, kept
from ..utils.progress import progress
from ..utils.stats import Estimate, clopper_pearson, crossed_mean
from .vectors import SteeringVector, add, clamp

# ---- responses -------------------------------------------------------------------------------------------------------


class Move(NamedTuple):
    """How a stream is moved along a direction: an edit that the key of an artifact can name."""

    edit: Callable[[Float[Tensor, " d_model"], float], Edit]
    direction: Float[Tensor, " d_model"]
    by: float

    def key(self) -> list:
        """Return what tells this move from others."""
        digest = hashlib.sha256(self.direction.cpu().double().numpy().tobytes()).hexdigest()
        return [self.edit.__name__, digest, self.by]


def clamped(vector: SteeringVector, strength: float) -> Move:
    """Set the component along `vector` to what `strength` makes it (Eqs. 8 and 9)."""
    return Move(clamp, vector.direction, vector.z(strength))


def added(direction: Float[Tensor, " d_model"], length: float) -> Move:
    """Add a vector of `length` along `direction` (arXiv 2506.00653)."""
    return Move(add, direction, length)


class Answers(NamedTuple):
    """Responses to the same prompts, in their order."""

    responses: tuple[Response, ...]
    judged: tuple[str, ...] = ()
    """What the judge said of each; empty without a judge."""
    done: tuple[bool, ...] = ()
    """Whether each does what steering is for; `fill` finds out."""


@dataclass(frozen=True)
class Respondent:
    """Either model of a pair, answering prompts; answers are kept in `artifacts/`."""

    stitched: StitchedPair
    max_new_tokens: int
    batch_size: int
    judge: Callable[[str], str] | None = None
    """Asked about each response; its answer is kept with the response, since judges take their time."""

    def answer(self, side: str, prompts: Sequence[str], move: Move | None = None, *, title: str = "") -> Answers:
        """Let the model of `side` answer greedily while its stream is moved; without a move, as it is."""
        (model, layer), pair = self.stitched.side(side), self.stitched.pair
        ingredients = {
            "model": weights_digest({"a": pair.a, "b": pair.b}[side]),
            "dtype": pair.dtype,
            "layer": layer,
            "moved": move and move.key(),
            "prompts": list(prompts),
            "tokens": self.max_new_tokens,
            "batch": self.batch_size,
        }
        sources = [source for source in (generate_texts, clamp, self.judge) if source]

        def make() -> Answers:
            responses = generate_texts(
                model,
                prompts,
                max_new_tokens=self.max_new_tokens,
                layer=layer,
                edit=move and move.edit(move.direction, move.by),
                batch_size=self.batch_size,
                title=title,
            )
            judged = tuple(self.judge(response.text) for response in responses) if self.judge else ()
            return Answers(tuple(responses), judged)

        return kept(artifact(pair.name, "responses", ingredients, sources=sources, suffix=".json"), make, _save, _load)


def _save(answers: Answers, path: Path) -> None:
    said = {"responses": answers.responses, "judged": answers.judged}
    path.write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")


def _load(path: Path) -> Answers:
    found = json.loads(path.read_text(encoding="utf-8"))
    return Answers(tuple(Response(*row) for row in found["responses"]), tuple(found["judged"]))


# ---- cells -----------------------------------------------------------------------------------------------------------


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


def fill(
    cells: dict[Cell, Answers],
    wanted: Iterable[Cell],
    *,
    respondent: Respondent,
    prompts: Callable[[Cell], Sequence[str]],
    move: Callable[[Cell], Move],
    is_done: Callable[[Cell, Answers], Iterable[bool]],
    part: str,
    title: str,
) -> None:
    """Fill those `wanted` cells that are empty with answers to their `prompts`, and judge them.

    Where the strength is not 0, the stream is moved by the `move` of the cell. ValueError, naming the
    pair and the `part` of it, for a prompt that leaves no room for a response.
    """
    for cell in progress([cell for cell in dict.fromkeys(wanted) if cell not in cells], title):
        with blaming(respondent.stitched.pair, part):
            moved = move(cell) if cell.strength else None
            found = respondent.answer(cell.side, prompts(cell), moved, title=f"{cell.side}, {cell.condition}")
        cells[cell] = found._replace(done=tuple(map(bool, is_done(cell, found))))


# ---- the sweep -------------------------------------------------------------------------------------------------------


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
    wanted_share: float = 0.7
    """Share of responses that must do what steering is for, for a strength to be chosen."""
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
class Sweep:
    """All responses of an experiment, and what follows from them.

    A kind of sweep says what it steers towards (`subjects`), which strength it chose (`chosen_for`), and how means over
    subjects and prompts are made (`mean`).
    """

    UNSTEERED: ClassVar[tuple[str, ...]] = ("none",)
    """Conditions in which no stream is moved."""

    config: SweepConfig
    cells: dict[Cell, Answers] = field(default_factory=dict)
    chosen: Mapping[Any, float] = field(default_factory=dict)
    """The strengths chosen."""

    def subjects(self, split: str) -> Sequence[str]:
        """List what is steered towards with the prompts of a split."""
        raise NotImplementedError

    def chosen_for(self, side: str, condition: str, of: str) -> float:
        """Return the strength that was chosen for a condition."""
        raise NotImplementedError

    def mean(self, rows: Sequence[np.ndarray]) -> Estimate:
        """Average over subjects and prompts; by default the prompts are the same for all, and both are drawn anew."""
        return crossed_mean(np.array(rows), self.config.seed)

    def cell(self, side: str, condition: str, of: str, strength: float | None = None, split: str = "evaluated") -> Cell:
        """Return the cell at a strength, by default the chosen one."""
        if condition in self.UNSTEERED:
            strength = 0.0
        elif strength is None:
            strength = self.chosen_for(side, condition, of)
        return Cell(split, side, condition, of, strength)

    def answers(self, *cell, **more) -> Answers:
        """Return the responses in a cell; arguments as `cell` takes them."""
        return self.cells[self.cell(*cell, **more)]

    def share(
        self, side: str, condition: str, of: str, strength: float | None = None, split: str = "evaluated"
    ) -> Estimate:
        """Measure the share of responses that do what steering is for, with Clopper and Pearson's interval."""
        done = self.answers(side, condition, of, strength, split).done
        return clopper_pearson(sum(done), len(done))

    def mean_share(
        self, side: str, condition: str, strength: float | None = None, split: str = "evaluated"
    ) -> Estimate:
        """Average the shares of all subjects, with the bootstrap interval of `mean`."""
        return self.mean([self._done(side, condition, one, strength, split) for one in self.subjects(split)])

    def advantage(self, side: str, condition: str, over: str, of: Sequence[str] = ()) -> Estimate:
        """Average the difference of two conditions, prompt by prompt, over the subjects `of`, by default all, with the
        bootstrap interval of `mean`."""
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

        The mean is over the subjects `of`, by default all, with the bootstrap interval of `mean`. Each response is read
        after its prompt; with `alone`, without it.
        """
        return self.mean(
            [self._rises(side, condition, one, strength, split, alone) for one in of or self.subjects(split)]
        )

    def choose(self, side: str, condition: str, of: Sequence[str], strengths: Sequence[float]) -> float:
        """Choose one of `strengths` for the subjects `of` together, on the prompts for it; a given one is taken."""
        if self.config.strength:
            return self.config.strength
        shares, rises = (
            {s: float(np.mean([measured(side, condition, one, s, "chosen") for one in of])) for s in strengths}
            for measured in (self._done, self._rises)
        )
        return chosen_strength(shares, rises, self.config.wanted_share)

    def _done(self, *cell) -> np.ndarray:
        """Give 1 for each response that does what steering is for, else 0; arguments as `answers` takes them."""
        return np.array(self.answers(*cell).done, dtype=float)

    def _rises(self, side: str, condition: str, of: str, strength: float | None, split: str, alone=False) -> np.ndarray:
        """Subtract the NLL of the unsteered responses from that of the others, prompt by prompt."""
        after, before = (self.answers(side, which, of, strength, split).responses for which in (condition, "none"))
        losses = [np.array([one.nll_alone if alone else one.nll for one in responses]) for responses in (after, before)]
        return losses[0] - losses[1]


def chosen_strength(shares: Mapping[float, float], rises: Mapping[float, float], wanted: float) -> float:
    """Choose, among the strengths whose share is at least `wanted`, the one whose responses cost least, the smallest of
    equals.

    Where none reaches it, choose the one with the largest share, again the smallest of equals; where all shares are 0
    the largest, so that what fails does not fail for want of strength.
    """
    if not any(shares.values()):
        return max(shares)
    if enough := [strength for strength in shares if shares[strength] >= wanted]:
        return min(enough, key=lambda strength: (rises[strength], strength))
    return min(shares, key=lambda strength: (-shares[strength], strength))
