"""Open-ended tasks with judges that are rules: capitals, a topic, a language.

The sister paper (arXiv 2506.00653) steers free responses towards capital letters, mentions of dogs, and French, and
counts the responses that have become so. A task here is contrast pairs for a vector (`vectors.contrast_vectors`), and
a rule that looks at a response alone. The embedded world has no dogs, so there the topic is the sea.

Offers `FreeTask`, `free_tasks`, `sweep_free_tasks`, `FreeSweep`.
"""

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..data.embedded.grammar import load_concepts, load_lexicon
from ..data.pairs import ModelPair
from ..stitching.pair import StitchedPair
from ..utils.stats import Estimate, crossed_mean
from .behaviours import world_behaviour
from .prompts import parallel_pairs, steering_prompts
from .sweep import Cell, Sweep, SweepConfig
from .vectors import Directions, add
from .verifiers import verify

LANGUAGE = "fr"
CONTROLS = ("components", "random")
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
    """A property that a response can have."""

    name: str
    contrasts: tuple[tuple[str, str], ...]
    """Texts that have it, each with one that does not."""
    is_done: Callable[[str], bool]
    """Tells whether a response has it."""


def free_tasks(pair: ModelPair, contrasts: int, *, seed: int = 0) -> list[FreeTask]:
    """Make the three tasks, with at most so many contrast pairs each, of the world or the pair's parallel sentences."""
    if pair.train.source == "world" and "parallel" not in pair.datasets:
        draw = functools.partial(world_behaviour, contrasts=contrasts, choices=1, seed=seed)
        capitals, about, french = (draw(name).contrasts for name in ("capitals", "sea", "french"))
        concepts, nouns = load_concepts()["topics"]["sea"], load_lexicon("en").nouns
        forms = {nouns[one][number] for one in concepts["agents"] + concepts["objects"] for number in ("sg", "pl")}
        topic, words = "sea", re.compile(rf"\b({'|'.join(sorted(forms))})\b", re.IGNORECASE)
    else:
        english = parallel_pairs(pair, LANGUAGE, contrasts)
        capitals = tuple((text.upper(), text) for text, _ in english)
        french = tuple((other, text) for text, other in english)
        topic, words = "dogs", DOG
        of_dogs = ((line.format("dog"), line.format(other)) for other in INSTEAD for line in DOG_SENTENCES)
        about = tuple(itertools.islice(of_dogs, contrasts))
    return [
        FreeTask("capitals", capitals, functools.partial(verify, "change_case:english_capital")),
        FreeTask(topic, about, lambda response: bool(words.search(response))),
        FreeTask("french", french, functools.partial(verify, "language:response_language", language=LANGUAGE)),
    ]


class FreeSweep(Sweep):
    """Responses of B, steered and not, and what follows from them; a strength is chosen for each task."""

    def chosen_for(self, side: str, condition: str, of: str, fold: int) -> float:
        return self.chosen[of]

    def mean(self, rows: Sequence[np.ndarray]) -> Estimate:
        """Average over tasks and prompts: the tasks are these and no others, so only the prompts are drawn anew."""
        return crossed_mean(np.array(rows).mean(0, keepdims=True), self.config.seed)

    def numbers(self, pair: str) -> dict[str, float]:
        """List the entries of a results file: shares at the chosen strengths, and at every one."""
        start = f"lrt.{pair}.steering"
        found: dict[str, float] = {f"{start}.{task}.strength": at for task, at in self.chosen.items()}
        evaluated = [cell for cell in self.cells if cell.split == "evaluated"]
        conditions = dict.fromkeys(cell.condition for cell in evaluated)
        found |= self.paired_numbers("b", start, [one for one in CONTROLS if one in conditions])
        for condition in conditions:
            found |= self.mean_share("b", condition).numbers(f"{start}.{condition}")
            found |= self.nll_rise("b", condition).numbers(f"{start}.{condition}.nll_rise")
            for task in self.chosen:
                found |= self.share("b", condition, task).numbers(f"{start}.{task}.{condition}")
        for _, side, condition, task, strength, _ in evaluated:
            if condition not in ("none", *CONTROLS):
                id = f"{start}.{task}.dose_{strength:g}.{condition}"
                found |= self.share(side, condition, task, strength).numbers(id)
        return found


def sweep_free_tasks(
    stitched: StitchedPair, tasks: Sequence[FreeTask], directions: Directions, config: SweepConfig, *, unit: float
) -> FreeSweep:
    """Let B respond under each direction of each task, `directions[task][condition]`, at each strength, and under none.

    `unit` is the length of a strength of 1, such as `vectors.spread`. One strength for each task is chosen by the
    responses to its direction `native`; `CONTROLS` run at that one alone.
    """
    prompts = {
        split: steering_prompts(stitched.pair, count, tokenizer=stitched.models[1].tokenizer, split=split)
        for split, count in (("evaluated", config.prompts), ("chosen", config.choosing_prompts))
    }
    rules = {task.name: task.is_done for task in tasks}
    sweep = FreeSweep(config=config)
    run = functools.partial(
        sweep.fill,
        stitched=stitched,
        prompts=lambda cell: prompts[cell.split],
        move=lambda cell: functools.partial(add, directions[cell.of][cell.condition], cell.strength * unit),
        is_done=lambda cell, _, text: rules[cell.of](text),
        part="free tasks",
    )
    doses = [("none", 0.0), *(("native", strength) for strength in config.strengths)]
    run([Cell("chosen", "b", c, task, s) for task in rules for c, s in doses])
    sweep.chosen.update({task: sweep.choose("b", "native", (task,), config.strengths) for task in rules})
    run(
        sweep.cell("b", condition, task, strength)
        for task in rules
        for condition in ("none", *directions[task])
        for strength in (None, *(config.strengths if condition not in CONTROLS else ()))
    )
    return sweep
