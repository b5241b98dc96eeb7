r"""Open-ended tasks with judges that are rules: capitals, a topic, a language.

The sister paper (arXiv 2506.00653) steers free responses towards capital letters, mentions of dogs, and French, and
counts the responses that have become so. A task here is contrast pairs for a vector (`caa.contrast_vector`), and a rule
that looks at a response alone. For models that read English at large the topic is dogs, as in that paper, in sentences
written for this package; the embedded world has no dogs, so there it is the sea.

Offers `FreeTask`, `free_tasks`, `FreeConfig`, `free_config`, `steer_freely`, `FreeSweep`.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..data.embedded.grammar import load_concepts, load_lexicon
from ..data.pairs import ModelPair
from ..models.generation import Response
from ..utils.progress import progress
from ..utils.stats import Estimate, clopper_pearson, crossed_mean
from .behaviours import world_behaviour
from .languages import chosen_strength
from .prompts import parallel_pairs
from .responses import Respondent, added
from .verifiers import verify

LANGUAGE = "fr"
DOG = re.compile(r"\b(dogs?|pupp(y|ies)|hounds?)\b", re.IGNORECASE)
# What a sentence is about -> the same with another animal or thing.
DOG_SENTENCES = (
    "I took my {} for a walk in the park.",
    "The {} was sleeping next to the fireplace.",
    "She has wanted a {} since she was a child.",
    "We could hear the {} from the other side of the street.",
    "Nobody knew to whom the {} belonged.",
    "He wrote a long article about his {}.",
    "There is a picture of a {} on the wall.",
    "My neighbour talks about her {} all day.",
    "On Sunday they gave the {} a thorough wash.",
    "The children were playing with the {} in the garden.",
    "It was the biggest {} that I had ever seen.",
    "After dinner he went out with the {}.",
)
INSTEAD = ("cat", "horse", "bicycle", "piano", "car", "parrot", "kite", "camera")


class FreeTask(NamedTuple):
    """Something that a response can be or not be."""

    name: str
    contrasts: tuple[tuple[str, str], ...]
    """Texts that are so and that are not."""
    is_done: Callable[[str], bool]
    """Whether a response is so."""


def free_tasks(pair: ModelPair, contrasts: int, *, seed: int = 0) -> list[FreeTask]:
    """The three tasks, with at most so many contrast pairs each from the world or the pair's parallel sentences."""
    of_world = pair.train.source == "world" and "parallel" not in pair.datasets
    if of_world:
        drawn = {
            name: world_behaviour(name, contrasts=contrasts, choices=1, seed=seed).contrasts
            for name in ("capitals", "sea", "french")
        }
        topic = FreeTask("sea", drawn["sea"], _mentions_the_sea)
    else:
        english = parallel_pairs(pair, LANGUAGE, contrasts)
        drawn = {
            "capitals": tuple((text.upper(), text) for text, _ in english),
            "french": tuple((french, text) for text, french in english),
        }
        topic = FreeTask("dogs", _of_dogs(contrasts), lambda response: bool(DOG.search(response)))
    return [
        FreeTask("capitals", drawn["capitals"], functools.partial(verify, "change_case:english_capital")),
        topic,
        FreeTask("french", drawn["french"], functools.partial(verify, "language:response_language", language=LANGUAGE)),
    ]


def _of_dogs(count: int) -> tuple[tuple[str, str], ...]:
    drawn = ((line.format("dog"), line.format(other)) for other in INSTEAD for line in DOG_SENTENCES)
    return tuple(itertools.islice(drawn, count))


@functools.cache
def _sea_words() -> re.Pattern:
    """Its people and things, whatever their number."""
    words, nouns = load_concepts()["topics"]["sea"], load_lexicon("en").nouns
    forms = {nouns[concept][number] for concept in (*words["agents"], *words["objects"]) for number in ("sg", "pl")}
    return re.compile(rf"\b({'|'.join(sorted(forms))})\b", re.IGNORECASE)


def _mentions_the_sea(response: str) -> bool:
    return bool(_sea_words().search(response))


@dataclass(frozen=True)
class FreeConfig:
    """What is run."""

    prompts: int
    """Responses to each cell."""
    choosing_prompts: int
    """On which a strength is chosen, by the model's own vector."""
    strengths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    """Length of what is added, in units of the stream's spread (`choice_sweep.spread`)."""
    wanted_share: float = 0.7
    """Of responses, for a strength to be chosen."""
    max_new_tokens: int = 32
    batch_size: int = 64
    seed: int = 0
    """Of the random directions and of the bootstrap."""

    def __post_init__(self):
        if min(self.prompts, self.choosing_prompts) < 1:
            raise ValueError("at least one prompt is needed, to choose on and to evaluate")
        if not self.strengths or min(self.strengths) <= 0:
            raise ValueError(f"strengths must be positive: got {self.strengths}")


def free_config(pair: ModelPair, scale: str, *, seed: int = 0) -> FreeConfig:
    """The sizes of a scale."""
    return FreeConfig(**pair.sizes_of("free_tasks", scale), seed=seed)


@dataclass(frozen=True)
class FreeSweep:
    """Responses of one model, steered and not, and what follows from them."""

    config: FreeConfig
    tasks: tuple[str, ...]
    chosen: Mapping[str, float]
    """The strength of each task."""
    responses: Mapping[tuple[str, str, float], Sequence[Response]]
    """By task, condition and strength, which is 0 without steering."""
    done: Mapping[tuple[str, str, float], np.ndarray]
    """The same keys: which of the responses are what the task wants."""

    def share(self, task: str, condition: str, strength: float | None = None) -> Estimate:
        """Of the responses at a strength, by default the chosen one, with Clopper and Pearson's interval."""
        done = self.done[self.key(task, condition, strength)]
        return clopper_pearson(int(done.sum()), len(done))

    def mean_share(self, condition: str) -> Estimate:
        """Mean of the tasks' shares at their chosen strengths, with a bootstrap interval over the prompts."""
        return self._mean(lambda key: self.done[key], condition)

    def nll_rise(self, condition: str) -> Estimate:
        """Nats a token by which the responses cost the unsteered model more than its own to the same prompts."""

        def losses(key: tuple[str, str, float]) -> np.ndarray:
            return np.array([response.nll for response in self.responses[key]])

        return self._mean(lambda key: losses(key) - losses((key[0], "none", 0.0)), condition)

    def numbers(self, pair: str) -> dict[str, float]:
        """The entries of a results file: shares at the chosen strengths, and at every one."""
        start = f"lrt.{pair}.steering"
        found: dict[str, float] = {f"{start}.{task}.strength": at for task, at in self.chosen.items()}
        for condition in dict.fromkeys(key[1] for key in self.responses):
            found |= self.mean_share(condition).numbers(f"{start}.{condition}")
            found |= self.nll_rise(condition).numbers(f"{start}.{condition}.nll_rise")
            for task in self.tasks:
                found |= self.share(task, condition).numbers(f"{start}.{task}.{condition}")
        for task, condition, strength in self.responses:
            if strength and condition != "random":
                share = self.share(task, condition, strength)
                found |= share.numbers(f"{start}.{task}.dose_{strength:g}.{condition}")
        return found

    def key(self, task: str, condition: str, strength: float | None = None) -> tuple[str, str, float]:
        at = self.chosen[task] if strength is None else strength
        return task, condition, 0.0 if condition == "none" else at

    def _mean(self, of_cell: Callable, condition: str) -> Estimate:
        """Of (tasks, prompts): the tasks are these and no others, so only the prompts are drawn anew."""
        values = np.array([of_cell(self.key(task, condition)) for task in self.tasks], dtype=float)
        return crossed_mean(values.mean(0, keepdims=True), self.config.seed)


def steer_freely(
    answering: Respondent,
    tasks: Sequence[FreeTask],
    prompts: Mapping[str, Sequence[str]],
    directions: Mapping[str, Mapping[str, Float[Tensor, " d_model"]]],
    config: FreeConfig,
    *,
    unit: float,
) -> FreeSweep:
    """Its responses to `prompts["evaluated"]` under each direction of each task, `directions[task][condition]`, at each
    strength, and under none.

    `unit` is the length of a strength of 1. Among the strengths the task's direction `native` chooses, on
    `prompts["chosen"]`: of those that reach the wanted share the one whose responses cost the model least. `random`
    runs at that one alone.
    """

    def respond(split: str, direction: Tensor, strength: float, title: str) -> Sequence[Response]:
        return answering.answer(prompts[split], added(direction, strength * unit), title=title).responses

    unsteered = {split: answering.answer(asked, title="no steering").responses for split, asked in prompts.items()}
    responses, done, chosen = {}, {}, {}
    for task in progress(tasks, "tasks"):
        found = directions[task.name]

        def judged(texts: Sequence[Response], task: FreeTask = task) -> np.ndarray:
            return np.array([task.is_done(response.text) for response in texts])

        shares, rises = {}, {}
        before = np.mean([response.nll for response in unsteered["chosen"]])
        for strength in config.strengths:
            tried = respond("chosen", found["native"], strength, f"{task.name}, choosing")
            shares[strength] = float(judged(tried).mean())
            rises[strength] = float(np.mean([response.nll for response in tried]) - before)
        chosen[task.name] = chosen_strength(shares, rises, config.wanted_share)
        responses[task.name, "none", 0.0] = unsteered["evaluated"]
        for condition, direction in found.items():
            for strength in config.strengths if condition != "random" else (chosen[task.name],):
                key = (task.name, condition, strength)
                responses[key] = respond("evaluated", direction, strength, f"{task.name}, {condition}")
        done |= {key: judged(texts) for key, texts in responses.items() if key[0] == task.name}
    return FreeSweep(config, tuple(task.name for task in tasks), chosen, responses, done)
