"""What a model answers to prompts while its stream is moved, kept in `artifacts/` (section 4, App. F, and 2506.00653).

Greedy responses depend on the model, the prompts and the move alone, and they are what the chapters on steering spend
their time on; so each set is found again by what made it.

Offers `Respondent`, `respondents`, `Answers`, and what moves a stream: `clamped`, `added`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from ..data.pairs import ModelPair
from ..models.generation import Response, generate_texts
from ..models.harvest import of_activations
from ..models.language_model import Edit, LanguageModel
from ..utils.cache import artifact, kept
from .vectors import SteeringVector, add, clamp


class Move(NamedTuple):
    """How a stream is moved along a direction: an edit that the key of an artifact can name."""

    edit: Callable[[Float[Tensor, " d_model"], float], Edit]
    direction: Float[Tensor, " d_model"]
    by: float

    def key(self) -> list:
        digest = hashlib.sha256(self.direction.cpu().double().numpy().tobytes()).hexdigest()
        return [self.edit.__name__, digest, self.by]


def clamped(vector: SteeringVector, strength: float) -> Move:
    """The component along `vector` becomes what `strength` makes it (Eqs. 8 and 9)."""
    return Move(clamp, vector.direction, vector.z(strength))


def added(direction: Float[Tensor, " d_model"], length: float) -> Move:
    """A vector of `length` is added along `direction` (2506.00653)."""
    return Move(add, direction, length)


class Answers(NamedTuple):
    """Responses to the same prompts."""

    responses: tuple[Response, ...]
    judged: tuple[str, ...]
    """What the judge said of each; empty without a judge."""


@dataclass(frozen=True)
class Respondent:
    """A model that answers, and where its answers are kept."""

    model: LanguageModel
    layer: int
    """At which the stream is moved."""
    made_of: dict[str, object]
    """What tells the model from others, for the key of its answers."""
    pair: str
    """Name of the pair, and of the folder below `artifacts/`."""
    max_new_tokens: int
    batch_size: int
    judge: Callable[[str], str] | None = None
    """Asked about each response; kept with it, since judges take their time."""

    def answer(self, prompts: Sequence[str], move: Move | None = None, *, title: str = "") -> Answers:
        """Greedy answers while the stream is moved; without a move, the model's own."""
        edit = None if move is None else move.edit(move.direction, move.by)
        ingredients = self.made_of | {
            "layer": self.layer,
            "moved": move and move.key(),
            "prompts": list(prompts),
            "tokens": self.max_new_tokens,
            "batch": self.batch_size,
        }
        sources = [source for source in (generate_texts, clamp, self.judge) if source]

        def make() -> Answers:
            responses = generate_texts(
                self.model,
                prompts,
                max_new_tokens=self.max_new_tokens,
                layer=self.layer,
                edit=edit,
                batch_size=self.batch_size,
                title=title,
            )
            judged = tuple(self.judge(response.text) for response in responses) if self.judge else ()
            return Answers(tuple(responses), judged)

        return kept(artifact(self.pair, "responses", ingredients, sources=sources, suffix=".json"), make, _save, _load)


def respondents(
    pair: ModelPair, models: tuple[LanguageModel, LanguageModel], layers: tuple[int, int], *, scale: str, **options
) -> dict[str, Respondent]:
    """Both models of a pair, `a` and `b`, with the same `options` of `Respondent`."""
    digests = of_activations(pair, layers, scale=scale)["models"]
    return {
        side: Respondent(model, layer, {"model": digest, "dtype": pair.dtype}, pair.name, **options)
        for side, model, layer, digest in zip("ab", models, layers, digests)
    }


def _save(answers: Answers, path: Path) -> None:
    path.write_text(json.dumps(answers._asdict(), ensure_ascii=False), encoding="utf-8")


def _load(path: Path) -> Answers:
    found = json.loads(path.read_text(encoding="utf-8"))
    return Answers(tuple(Response(*row) for row in found["responses"]), tuple(found["judged"]))
