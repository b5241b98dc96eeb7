"""One engine for all experiments that steer free responses: languages, instructions, and open-ended tasks.

Section 4, App. F and F.2, and arXiv 2506.00653. An experiment fills cells with greedy responses. Of a cell two things
are measured: the share of its responses that do what steering is for, and the rise of their NLL, which is what they
cost the unsteered model in nats a token over its own responses. Word salad can pass for what steering is for, such as
lower case, so there is a ceiling on that rise, above which a response does not count. The strength is chosen on prompts
that are not evaluated; where prompts are few, they are split in folds, and each is evaluated with what the other folds
gave. Responses take most of the time, so cells share batches, and responses are kept in `artifacts/`.

Offers `Cell`, `Answers`, `Move`, `clamped`, `SweepConfig`, `Sweep`, `chosen_strength`, `kept_json`.
"""

import functools
import hashlib
import itertools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

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
FLUENT = 1.0  # nats a token that a response may cost more than the model's own: each token is e times less likely
TOGETHER = 256  # prompts of several cells, each under its own edit: what a batch needs once for all it shares out
MAY_BE_CUT = 0.05  # share of a cell's responses; a page lists the cells of which more are cut


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
    fold: int = 0
    """Which fold of the prompts is evaluated."""


# `partial(clamp, direction, z)` or `partial(add, direction, length)`: an edit in parts that a key can name. A tensor of
# two dimensions has a direction for each prompt, and what follows is a tensor, too.
Move = functools.partial[Edit]


def clamped(vector: SteeringVector, strength: float) -> Move:
    """Set the component along `vector` to what `strength` makes it (Eqs. 8 and 9)."""
    return functools.partial(clamp, vector.direction, vector.z(strength))


def clamped_each(vectors: Sequence[SteeringVector], strength: float) -> Move:
    """Set the component along one of `vectors` for each prompt."""
    directions, z = (torch.stack([v.direction for v in vectors]), torch.tensor([v.z(strength) for v in vectors]))
    return functools.partial(clamp, directions, z)


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
    nll_ceiling: float = math.inf
    """A response counts only if it costs the unsteered model at most so many nats a token more than its own."""
    batch_size: int = 64
    seed: int = 0
    """Seed of the random directions and of the bootstrap."""

    def __post_init__(self):
        for name, value in vars(self).items():
            if name.endswith("strengths") and (min(value, default=0) <= 0 or self.strength < 0):
                raise ValueError(f"strengths must be positive: got {value} and {self.strength}")
            if name == "nll_ceiling" and not value > 0:
                raise ValueError(f"nll_ceiling={value}: expected more than 0 nats a token")
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
    def chosen_for(self, side: str, condition: str, of: str, fold: int) -> float:
        """Return the strength that was chosen for a condition."""

    @property
    def folds(self) -> range:
        """Number the folds of the prompts; by default there is one."""
        return range(1)

    def by_prompt(self, cell: Cell, values: Sequence[float]) -> np.ndarray:
        """Arrange what was measured of the responses in a cell, (prompts,), or (directions, prompts)."""
        return np.array(values, dtype=float)

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
        empty = [cell for cell in dict.fromkeys(wanted) if cell not in self.cells]
        empty.sort(key=lambda cell: cell.strength != 0)
        for group in progress(_groups([(cell, len(prompts(cell))) for cell in empty]), "cells"):
            with blaming(stitched.pair, part):
                moves = [move(cell) if cell.strength else None for cell in group]
                found = self._answer(stitched, group, [prompts(cell) for cell in group], moves, judge)
            for cell, answers in zip(group, found):
                said = answers.judged or [response.text for response in answers.responses]
                done = tuple(bool(is_done(cell, number, one)) for number, one in enumerate(said))
                self.cells[cell] = answers._replace(done=done)

    def _answer(
        self,
        stitched: StitchedPair,
        group: Sequence[Cell],
        prompts: Sequence[Sequence[str]],
        moves: Sequence[Move | None],
        judge: Callable[[str], str] | None,
    ) -> list[Answers]:
        """Make the answers of a group of cells, or find those that were made before."""
        (model, layer), pair, config = stitched.side(group[0].side), stitched.pair, self.config
        sizes: dict[str, Any] = {"max_new_tokens": config.max_new_tokens, "batch_size": config.batch_size}
        steered: dict[str, Any] = {}
        moved, rows = None, [prompt for of_cell in prompts for prompt in of_cell]
        if moves[0]:
            func, each = moves[0].func, [_for_each(move, len(of_cell)) for move, of_cell in zip(moves, prompts) if move]
            directions, by = (torch.cat(parts) for parts in zip(*each))
            digest = hashlib.sha256(directions.double().numpy().tobytes()).hexdigest()
            moved = [func.__name__, digest, by.tolist()]
            steered = {"edits": lambda numbers: func(directions[numbers], by[numbers])}
        ingredients = {
            "model": weights_digest(pair.a if group[0].side == "a" else pair.b),
            "dtype": pair.dtype,
            "layer": layer,
            "moved": moved,
            "prompts": rows,
            **sizes,
        }

        def make() -> dict[str, list]:
            title = f"{group[0].side}, {', '.join(dict.fromkeys(cell.condition for cell in group))}"
            responses = generate_texts(model, rows, **sizes, layer=layer, **steered, title=title)
            return {"responses": responses, "judged": [judge(one.text) for one in responses] if judge else []}

        sources = [source for source in (generate_texts, clamp, judge) if source]
        found = kept_json(artifact(pair.name, "responses", ingredients, sources=sources, suffix=".json"), make)
        places = itertools.pairwise(itertools.accumulate([len(of_cell) for of_cell in prompts], initial=0))
        responses, judged = tuple(Response(*row) for row in found["responses"]), tuple(found["judged"])
        return [Answers(responses[start:stop], judged[start:stop]) for start, stop in places]

    def cell(
        self,
        side: str,
        condition: str,
        of: str,
        strength: float | None = None,
        split: str = "evaluated",
        fold: int = 0,
    ) -> Cell:
        """Return the cell at a strength."""
        if condition in UNSTEERED:
            strength = 0.0
        elif strength is None:
            strength = self.chosen_for(side, condition, of, fold)
        return Cell(split, side, condition, of, strength, fold)

    def answers(self, *cell, **more) -> Answers:
        """Return the responses in a cell, those of all folds one after the other; arguments as in `cell`."""
        found = [self.cells[self.cell(*cell, **more, fold=fold)] for fold in self.folds]
        return Answers(*(tuple(itertools.chain(*part)) for part in zip(*found)))

    def share(self, *cell, ceiling: float | None = None, **more) -> Estimate:
        """Measure the share of responses that are done, with Clopper and Pearson's interval; arguments as in `cell`.

        Where each prompt is answered under several directions, both are drawn anew. The `ceiling` on the rise of the
        NLL is by default that of the configuration.
        """
        done = self._over_folds(self._done, *cell, ceiling=ceiling, **more)
        return crossed_mean(done, self.config.seed) if done.ndim > 1 else clopper_pearson(int(done.sum()), len(done))

    def mean_share(
        self,
        side: str,
        condition: str,
        strength: float | None = None,
        split: str = "evaluated",
        *,
        ceiling: float | None = None,
    ) -> Estimate:
        """Average the shares of all subjects; `ceiling` as in `share`."""
        some = [(side, condition, one, strength, split) for one in self.subjects(split)]
        return self.mean([self._over_folds(self._done, *cell, ceiling=ceiling) for cell in some])

    def advantage(
        self, side: str, condition: str, over: str, of: Sequence[str] = (), strength: float | None = None
    ) -> Estimate:
        """Average the difference of two conditions, prompt by prompt, over the subjects `of`, by default all."""
        return self.contrast(side, {condition: 1, over: -1}, of, strength)

    def contrast(
        self, side: str, weights: Mapping[str, float], of: Sequence[str] = (), strength: float | None = None
    ) -> Estimate:
        """Average a weighted sum of conditions, {condition: weight}, prompt by prompt, over the subjects `of`.

        What conditions share, their subjects and prompts, is drawn anew for all of them together. Prompts that one of
        the conditions lacks are left out.
        """
        first = next(iter(weights))

        def weighted(cell: Cell) -> np.ndarray:
            cells = (self.cell(side, name, cell.of, strength, cell.split, cell.fold) for name in weights)
            rows = [weight * self._done(cell) for weight, cell in zip(weights.values(), cells)]
            fewest = min(row.shape[-1] for row in rows)
            return sum((row[..., :fewest] for row in rows), np.zeros(fewest))

        some = of or self.subjects("evaluated")
        return self.mean([self._over_folds(weighted, side, first, one, strength) for one in some])

    def paired_numbers(self, side: str, id: str, nulls: Sequence[str]) -> dict[str, float]:
        """List what native and transferred vectors gain over no steering and over each other, and over `nulls`.

        `.beyond_half` is the gain of transferred vectors less half of that of native ones.
        """
        pairs = {"native_gain": ("native", "none"), "gain": ("transferred", "none")}
        pairs |= {"native_lead": ("native", "transferred"), **{f"over_{null}": ("transferred", null) for null in nulls}}
        found = self.contrast(side, {"transferred": 1, "native": -0.5, "none": -0.5}).numbers(f"{id}.beyond_half")
        for name, both in pairs.items():
            found |= self.advantage(side, *both).numbers(f"{id}.{name}")
        return found

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
        some = [(side, condition, one, strength, split) for one in of or self.subjects(split)]
        return self.mean([self._over_folds(self._rises, *cell, alone=alone) for cell in some])

    def cut(self, *cell, **more) -> float:
        """Measure the share of responses that the limit of tokens has cut; arguments as in `cell`."""
        return float(np.mean([response.cut for response in self.answers(*cell, **more).responses]))

    def choose(self, side: str, condition: str, of: Sequence[str], strengths: Sequence[float], fold: int = 0) -> float:
        """Choose one of `strengths` for the subjects `of` together, on the prompts for it; a given one is taken."""
        if self.config.strength:
            return self.config.strength
        shares, rises = (
            {s: np.mean([measured(Cell("chosen", side, condition, k, s, fold)) for k in of]).item() for s in strengths}
            for measured in (self._done, self._rises)
        )
        return chosen_strength(shares, rises)

    def _over_folds(self, read: Callable[..., np.ndarray], *cell, **more) -> np.ndarray:
        """Put what `read` takes of a cell in each fold one after the other."""
        cells = [self.cell(*cell, fold=fold) for fold in self.folds]
        return np.concatenate([read(cell, **more) for cell in cells], axis=-1)

    def _done(self, cell: Cell, *, ceiling: float | None = None) -> np.ndarray:
        """Give 1 for each response that does what steering is for below the ceiling, else 0."""
        done = self.by_prompt(cell, self.cells[cell].done)
        ceiling = self.config.nll_ceiling if ceiling is None else ceiling
        return done if cell.condition == "none" or ceiling == math.inf else done * (self._rises(cell) <= ceiling)

    def _rises(self, cell: Cell, *, alone: bool = False) -> np.ndarray:
        """Subtract the NLL of the unsteered responses from that of the others, prompt by prompt."""
        both = ((one, self.cells[one].responses) for one in (cell, cell._replace(condition="none", strength=0.0)))
        steered, own = (self.by_prompt(one, [r.nll_alone if alone else r.nll for r in found]) for one, found in both)
        return steered - own[: steered.shape[-1]]


def _groups(cells: Iterable[tuple[Cell, int]]) -> list[list[Cell]]:
    """Put steered cells of a model, each with its number of prompts, into groups of at least `TOGETHER` prompts.

    Unsteered cells stay alone: several may have the same prompts, which are answered once.
    """
    found: list[list[Cell]] = []
    sizes: list[int] = []
    for cell, count in cells:
        full = not found or not cell.strength or not found[-1][-1].strength or sizes[-1] >= TOGETHER
        if full or found[-1][-1].side != cell.side:
            found.append([])
            sizes.append(0)
        found[-1].append(cell)
        sizes[-1] += count
    return found


def _for_each(move: Move, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the direction and the number of a move for each of `count` prompts."""
    direction, by = move.args
    if direction.ndim > 1:
        return direction.cpu(), by
    return direction.cpu().expand(count, -1), torch.full((count,), by)


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
