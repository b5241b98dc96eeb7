"""The experiment of App. F.2: both models steered towards instructions, by their own vectors and by the other's.

Figs. 12 and 13, after Stolfo et al. 2025. Conditions: `none`, the bare prompt; `instructed`, the prompt with the
instruction in words, which is what steering is to replace; `native`, the model's own vector; `transferred`, the other
model's, carried across by the stitch as the paper fits it; `template` and `often`, carried across by stitches that have
seen the chat template's tokens (`diagnostics`); and `random`, a random direction along which the stream is moved as far
as the native vector moves it. The paper's strength is s = 1. Small models need more, so all conditions are run at a
strength that is chosen for each model and instruction, and `native` and `transferred` at s = 1 as well. Carried vectors
have their own, the best for `transferred` among larger ones: the farther their direction is from the model's own, the
closer their two components lie, and they are not to fail for want of strength.

Offers `InstructionConfig`, `instruction_config`, `evaluated_chats`, `sweep_instructions`, `InstructionSweep`.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..data.pairs import ModelPair, blaming
from ..models.generation import chat
from ..stitching.pair import StitchedPair
from ..stitching.stitch import Stitch
from ..utils.stats import Estimate, stratified_mean
from .prompts import InstructionPrompt, instruction_kinds, instruction_prompts
from .sweep import Cell, Sweep, SweepConfig, clamped
from .vectors import MeanStreams, SteeringVector, condition_vectors, last_token_residuals

CONDITIONS = ("none", "instructed", "native", "transferred", "template", "often", "random")
# Conditions in which the other model's vector is carried across -> by which stitch.
CARRIED = {"transferred": "without", "template": "with", "often": "often"}
AT_THE_MEAN = ("native", "transferred")  # run at the paper's strength as well
# All that is run on the evaluated prompts: condition, strength (None is the chosen one), and the end of its ids.
RUNS = (*((name, None, "") for name in CONDITIONS), *((name, 1.0, "_at_1") for name in AT_THE_MEAN))
FIGURES = {"a": "figure12", "b": "figure13"}  # by the side that is steered


@dataclass(frozen=True, kw_only=True)
class InstructionConfig(SweepConfig):
    """What is run."""

    kinds: tuple[str, ...]
    """Instructions, as `instruction_kinds` names them."""
    fit_prompts: int = 100
    """Pairs of prompts that a vector comes from."""
    strengths: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0)
    """Strengths of which one is chosen for the model's own vector."""
    carried_strengths: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 6.0)
    """Strengths of which one is chosen for vectors that are carried across."""
    max_new_tokens: int = 64
    """Tokens of a response: enough for most of the world's answers to end, where some instructions show."""


def instruction_config(pair: ModelPair, scale: str, *, strength: float = 0.0, seed: int = 0) -> InstructionConfig:
    """Take the sizes of a scale, with some instructions that lie far apart in their list, or all.

    Without a strength, take that of the pair's file.
    """
    sizes, kinds = pair.sizes_of("instructions", scale), instruction_kinds(pair)
    count = min(sizes.pop("kinds", len(kinds)), len(kinds))
    some = tuple(kinds[i] for i in np.linspace(0, len(kinds) - 1, count).round().astype(int))
    return InstructionConfig(kinds=some, strength=strength or pair.strength, seed=seed, **sizes)


@dataclass(frozen=True, kw_only=True)
class InstructionSweep(Sweep):
    """All responses, and what follows from them; a strength is chosen by side, kind, and `native` or `transferred`."""

    config: InstructionConfig
    prompts: Mapping[tuple[str, str], Sequence[InstructionPrompt]]
    """By split (`fit`, `chosen`, `evaluated`) and kind."""
    vectors: Mapping[tuple[str, str], Mapping[str, SteeringVector]]
    """By side and kind, then by condition."""
    shifts: Mapping[tuple[str, str], Float[Tensor, "pairs d_model"]]
    """By side and kind: what the instruction adds to the stream at the last token, for each prompt of the vector."""

    def chosen_for(self, side: str, condition: str, of: str) -> float:
        return self.chosen[side, of, "transferred" if condition in CARRIED else "native"]

    def mean(self, rows: Sequence[np.ndarray]) -> Estimate:
        """Average over the instructions, whose prompts differ: they are drawn anew within each."""
        return stratified_mean(rows, self.config.seed)

    def followed_anyway(self) -> list[str]:
        """List the instructions that every response to a bare prompt follows, in both models: they tell nothing."""
        return [k for k in self.config.kinds if all(self.share(side, "none", k).value == 1 for side in FIGURES)]

    def numbers(self, pair: str) -> dict[str, float]:
        """List the entries of a results file, under the ids of Figs. 12 and 13."""
        found = {f"{FIGURES[side]}.{pair}.{of}.strength.{on}": s for (side, of, on), s in self.chosen.items()}
        kinds, prompts = self.config.kinds, self.prompts
        casing = [kind for kind in kinds if prompts["evaluated", kind][0].instruction_id.startswith("change_case:")]
        for side, figure in FIGURES.items():
            start = f"{figure}.{pair}"
            for condition, kind in itertools.product(CONDITIONS, kinds):
                id = f"{start}.{kind}.{condition}"
                found |= self.share(side, condition, kind).numbers(id)
                if condition != "none":
                    found |= self.nll_rise(side, condition, of=(kind,)).numbers(f"{id}.nll_rise")
            for condition, strength, suffix in RUNS:
                at = f"{condition}{suffix}"
                found |= self.mean_share(side, condition, strength).numbers(f"{start}.mean.{at}")
                if condition != "none":
                    rise, alone = (self.nll_rise(side, condition, strength, alone=bare) for bare in (False, True))
                    found |= rise.numbers(f"{start}.nll_rise.{at}") | alone.numbers(f"{start}.nll_rise_alone.{at}")
            found |= self._counted(side, start)
            for name, some in (("casing", casing), ("other", [kind for kind in kinds if kind not in casing])):
                if some:
                    found |= self.advantage(side, "transferred", "none", some).numbers(f"{start}.{name}.gain")
            for condition in CARRIED:
                if condition != "transferred":
                    found |= self.advantage(side, condition, "transferred").numbers(f"{start}.{condition}_gain")
                both = [[self.vectors[side, kind][c].direction for c in ("native", condition)] for kind in kinds]
                found[f"{start}.cosine.{condition}"] = float(np.mean([(own @ other).item() for own, other in both]))
        return found

    def _counted(self, side: str, start: str) -> dict[str, float]:
        """Count what transferred steering wins, improves or matches, by intervals that do not overlap."""
        shares = {c + suffix: np.array([self.share(side, c, k, s) for k in self.config.kinds]) for c, s, suffix in RUNS}
        value, low, high = ({run: found[:, part] for run, found in shares.items()} for part in range(3))
        counted = {
            "won": low["transferred"] > high["native"],
            "won_at_1": low["transferred_at_1"] > high["native_at_1"],
            "improved": low["transferred"] > high["none"],
            "matched": (low["native"] > high["none"]) & (value["transferred"] >= value["native"]),
        }
        return {f"{start}.{name}": int(some.sum()) for name, some in counted.items()}


def evaluated_chats(stitched: StitchedPair, config: InstructionConfig) -> list[str]:
    """Put the evaluated prompts of all instructions, with and without them, each once, in the chat template."""
    pair = stitched.pair
    prompts = itertools.chain(*(instruction_prompts(pair, kind, config.prompts, "evaluated") for kind in config.kinds))
    texts = [text for prompt in prompts for text in (prompt.without, prompt.given)]
    with blaming(pair, "instructions"):
        return chat(stitched.models[0], list(dict.fromkeys(texts)))


def sweep_instructions(
    stitched: StitchedPair, stitches: Mapping[str, Stitch], config: InstructionConfig
) -> InstructionSweep:
    """Run the whole experiment; responses that were made before are found in `artifacts/`, cell by cell.

    `stitches` are those of `diagnostics.fit_template_stitches`, by name. ValueError for a tokenizer without a chat
    template, and for a prompt that leaves no room for a response.
    """
    pair, both = stitched.pair, list(itertools.product(FIGURES, config.kinds))
    counts = {"fit": config.fit_prompts, "chosen": config.choosing_prompts, "evaluated": config.prompts}
    prompts = {
        (split, kind): instruction_prompts(pair, kind, count, split, choosing=not config.strength)
        for split, count in counts.items()
        for kind in config.kinds
    }

    def chats(side: str, split: str, kind: str, given: bool) -> list[str]:
        texts = [prompt.given if given else prompt.without for prompt in prompts[split, kind]]
        return chat(stitched.side(side)[0], texts)

    def streams(side: str, kind: str) -> list[Float[Tensor, "pairs d_model"]]:
        texts = [chats(side, "fit", kind, given) for given in (False, True)]
        return [last_token_residuals(*stitched.side(side), some, batch_size=config.batch_size) for some in texts]

    with blaming(pair, "instructions"):
        read = {key: streams(*key) for key in both}
    means = {key: MeanStreams(*(stream.double().mean(0) for stream in found)) for key, found in read.items()}
    maps = {condition: (stitches[name], False) for condition, name in CARRIED.items()}
    vectors = condition_vectors(means, maps, config.seed, at_unit_length=True)
    shifts = {key: given - without for key, (without, given) in read.items()}
    sweep = InstructionSweep(config=config, prompts=prompts, vectors=vectors, shifts=shifts)
    run = functools.partial(
        sweep.fill,
        stitched=stitched,
        prompts=lambda cell: chats(cell.side, cell.split, cell.of, cell.condition == "instructed"),
        move=lambda cell: clamped(vectors[cell.side, cell.of][cell.condition], cell.strength),
        is_done=lambda cell, number, text: prompts[cell.split, cell.of][number].is_followed(text),
        part="instructions",
    )
    candidates = {"none": (0.0,), "native": config.strengths, "transferred": config.carried_strengths}
    if not config.strength:
        doses = [(c, strength) for c, strengths in candidates.items() for strength in strengths]
        run([Cell("chosen", side, c, kind, s) for side, kind in both for c, s in doses])
    for (side, kind), on in itertools.product(both, AT_THE_MEAN):
        sweep.chosen[side, kind, on] = sweep.choose(side, on, [kind], candidates[on])
    run([sweep.cell(side, c, kind, s) for side, kind in both for c, s, _ in RUNS])
    return sweep
