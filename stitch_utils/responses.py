"""What a model answers to prompts while its stream is edited, kept in `artifacts/` (section 4, App. F).

Greedy responses depend on the model, the prompts and the edit alone, and they are what the chapters on steering spend
their time on; so each set is found again by what made it.

Offers `Respondent`, `Answers`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .artifacts import artifact, kept, of_activations
from .generation import Response, generate_texts
from .models import Model
from .pairs import ModelPair
from .steering import SteeringVector, clamp

SOURCES = ("generation.py", "models.py", "steering.py")


class Answers(NamedTuple):
    """Responses to the same prompts."""

    responses: tuple[Response, ...]
    judged: tuple[str, ...]
    """What the judge said of each; empty without a judge."""


@dataclass(frozen=True)
class Respondent:
    """A model that answers, and where its answers are kept."""

    model: Model
    layer: int
    """At which the stream is edited."""
    made_of: dict[str, object]
    """What tells the model from others, for the key of its answers."""
    pair: str
    """Name of the pair, and of the folder below `artifacts/`."""
    max_new_tokens: int
    batch_size: int
    judge: Callable[[str], str] | None = None
    """Asked about each response; kept with it, since judges take their time."""
    judge_source: str = ""
    """The file of this package that has the judge."""

    def answer(
        self, prompts: Sequence[str], vector: SteeringVector | None = None, strength: float = 0.0, *, title: str = ""
    ) -> Answers:
        """Answers while the component along `vector` is clamped at a strength (Eqs. 8 and 9); without one, as ever."""
        edit = moved = None
        if vector is not None:
            z = vector.z(strength)
            edit = clamp(vector.direction, z)
            moved = [hashlib.sha256(vector.direction.numpy().tobytes()).hexdigest(), z]
        ingredients = self.made_of | {
            "layer": self.layer, "moved": moved, "prompts": list(prompts), "tokens": self.max_new_tokens,
            "batch": self.batch_size,
        }  # fmt: skip
        sources = (*SOURCES, self.judge_source) if self.judge else SOURCES

        def make() -> Answers:
            responses = generate_texts(
                self.model, prompts, max_new_tokens=self.max_new_tokens, layer=self.layer, edit=edit,
                batch_size=self.batch_size, title=title,
            )  # fmt: skip
            judged = tuple(self.judge(response.text) for response in responses) if self.judge else ()
            return Answers(tuple(responses), judged)

        return kept(artifact(self.pair, "responses", ingredients, sources=sources, suffix=".json"), make, _save, _load)


def respondents(
    pair: ModelPair, models: tuple[Model, Model], layers: tuple[int, int], *, scale: str, **options
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
