"""The experiment of App. F.2: both models steered towards instructions, by their own vectors and by the other's.

Figs. 12 and 13, after Stolfo et al. 2025. Conditions: `none`, the bare prompt; `instructed`, the prompt with the
instruction in words, which is what steering is to replace; `native`, the model's own vector; `transferred`, the other
model's, carried across by the stitch as the paper fits it; `template` and `often`, carried across by stitches that have
seen the chat template's tokens (`diagnostics`); and `random`, many random directions, along each of which the stream is
moved as far as the native vector moves it, for a few prompts. The paper's strength is s = 1. Small models need more, so
all conditions are run at a strength that is chosen for each model and instruction, and `native` and `transferred` at
s = 1 as well. Carried vectors have their own, the best for `transferred` among the same strengths.

A response follows an instruction if the rule says so and its loss under the unsteered model is not too far above that
of the model's own response. Where a data set has few prompts for an instruction, they are split in folds: each is
answered once, under a vector and at a strength that come from the other folds.

Offers `InstructionConfig`, `instruction_config`, `evaluated_chats`, `sweep_instructions`, `InstructionSweep`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..data.pairs import ModelPair, blaming
from ..models.generation import chat, encoded
from ..stitching.pair import StitchedPair
from ..stitching.stitch import Stitch
from ..utils.stats import Estimate, is_more_often, stratified_mean
from .prompts import InstructionPrompt, instruction_folds, instruction_kinds, instruction_prompts
from .sweep import FLUENT, MAY_BE_CUT, Cell, Move, Sweep, SweepConfig, clamped, clamped_each
from .vectors import (
    MeanStreams,
    SteeringVector,
    condition_vectors,
    last_token_residuals,
    moved_as_far,
    random_direction,
)

CONDITIONS = ("none", "instructed", "native", "transferred", "template", "often", "random")
# Conditions in which the other model's vector is carried across -> by which stitch.
CARRIED = {"transferred": "without", "template": "with", "often": "often"}
AT_THE_MEAN = ("native", "transferred")  # run at the paper's strength as well
# All that is run on the evaluated prompts: condition, strength (None is the chosen one), and the end of its ids.
RUNS = (*((name, None, "") for name in CONDITIONS), *((name, 1.0, "_at_1") for name in AT_THE_MEAN))
FIGURES = {"a": "figure12", "b": "figure13"}  # by the side that is steered
ANY_COST = float("inf")  # no ceiling on the rise of the NLL, as in the paper


@dataclass(frozen=True, kw_only=True)
class InstructionConfig(SweepConfig):
    """What is run."""

    kinds: tuple[str, ...]
    """Instructions, as `instruction_kinds` names them."""
    fit_prompts: int = 100
    """Pairs of prompts that a vector comes from."""
    strengths: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 6.0)
    """Strengths of which one is chosen for the model's own vector, and one for those that are carried across."""
    max_new_tokens: int = 208
    """Tokens of a response at most, or as many as the models leave room for after the longest prompt. Of the world's
    answers 99% are shorter; those in capitals are the longest."""
    nll_ceiling: float = FLUENT
    random_directions: int = 20
    """Random directions for each instruction: a single one can happen to do what an instruction asks for."""
    random_prompts: int = 4
    """Prompts that are answered under each of them."""
    folds: int = 1
    """Parts of the prompts, each evaluated with what comes of the others (`instruction_folds`)."""


def instruction_config(pair: ModelPair, scale: str, *, strength: float = 0.0, seed: int = 0) -> InstructionConfig:
    """Take the sizes of a scale, with some instructions that lie far apart in their list, or all.

    Without a strength, take that of the pair's file.
    """
    sizes, kinds = pair.sizes_of("instructions", scale), instruction_kinds(pair)
    count = min(sizes.pop("kinds", len(kinds)), len(kinds))
    some = tuple(kinds[i] for i in np.linspace(0, len(kinds) - 1, count).round().astype(int))
    sizes |= {"kinds": some, "folds": instruction_folds(pair)}
    return InstructionConfig(strength=strength or pair.strength, seed=seed, **sizes)


@dataclass(frozen=True, kw_only=True)
class InstructionSweep(Sweep):
    """All responses, and what follows from them.

    A strength is chosen by side, kind, `native` or `transferred`, and fold.
    """

    config: InstructionConfig
    prompts: Mapping[tuple[str, str, int], Sequence[InstructionPrompt]]
    """By split (`fit`, `chosen`, `evaluated`), kind and fold."""
    vectors: Mapping[tuple[str, tuple[str, int]], Mapping[str, SteeringVector]]
    """By side, kind and fold, then by condition, but for `random`."""
    shifts: Mapping[tuple[str, str], Float[Tensor, "pairs d_model"]]
    """By side and kind: what the instruction adds to the stream at the last token, for each prompt of a vector."""

    @property
    def folds(self) -> range:
        return range(self.config.folds)

    def chosen_for(self, side: str, condition: str, of: str, fold: int) -> float:
        return self.chosen[side, of, "transferred" if condition in CARRIED else "native", fold]

    def strengths(self, side: str, condition: str, of: str) -> list[float]:
        """List the strengths that were chosen for a condition in the folds, each once."""
        return sorted({self.chosen_for(side, condition, of, fold) for fold in self.folds})

    def asked(self, cell: Cell) -> Sequence[InstructionPrompt]:
        """List the prompts that are answered in a cell, under `random` those that each direction has."""
        found = self.prompts[cell.split, cell.of, cell.fold]
        return found[: -(-self.config.random_prompts // self.config.folds)] if cell.condition == "random" else found

    def evaluated(self, kind: str) -> list[InstructionPrompt]:
        """List the evaluated prompts of all folds."""
        return [prompt for fold in self.folds for prompt in self.prompts["evaluated", kind, fold]]

    def by_prompt(self, cell: Cell, values: Sequence[float]) -> np.ndarray:
        """Arrange what was measured of the responses in a cell: (prompts,), or under `random` (directions, prompts)."""
        found = np.array(values, dtype=float)
        return found.reshape(self.config.random_directions, -1) if cell.condition == "random" else found

    def mean(self, rows: Sequence[np.ndarray]) -> Estimate:
        """Average over the instructions, whose prompts differ: they are drawn anew within each."""
        return stratified_mean(rows, self.config.seed)

    def followed_anyway(self) -> list[str]:
        """List the instructions that every response to a bare prompt follows, in both models: they tell nothing."""
        return [k for k in self.config.kinds if all(self.share(side, "none", k).value == 1 for side in FIGURES)]

    def cut_short(self) -> list[tuple[str, str, str]]:
        """List side, kind and run of the cells that the limit of tokens cuts too often, among those evaluated."""
        cells = [(side, kind, run) for side in FIGURES for kind in self.config.kinds for run in RUNS]
        return [(side, kind, c + end) for side, kind, (c, s, end) in cells if self.cut(side, c, kind, s) > MAY_BE_CUT]

    def numbers(self, pair: str) -> dict[str, float]:
        """List the entries of a results file, under the ids of Figs. 12 and 13."""
        kinds, found = self.config.kinds, {}
        for side, figure in FIGURES.items():
            start = f"{figure}.{pair}"
            for kind, on in itertools.product(kinds, AT_THE_MEAN):
                strengths = [self.chosen_for(side, on, kind, fold) for fold in self.folds]
                found[f"{start}.{kind}.strength.{on}"] = float(np.mean(strengths))
            for condition, kind in itertools.product(CONDITIONS, kinds):
                id, cell = f"{start}.{kind}.{condition}", (side, condition, kind)
                found |= self.share(*cell).numbers(id) | {f"{id}.cut": self.cut(*cell)}
                if condition != "none":
                    found |= self.share(*cell, ceiling=ANY_COST).numbers(f"{id}.any_cost")
                    found |= self.nll_rise(side, condition, of=(kind,)).numbers(f"{id}.nll_rise")
            for condition, strength, suffix in RUNS:
                at = f"{condition}{suffix}"
                found |= self.mean_share(side, condition, strength).numbers(f"{start}.mean.{at}")
                cut = [self.cut(side, condition, kind, strength) for kind in kinds]
                found |= {f"{start}.cut.{at}": float(np.mean(cut)), f"{start}.cut.{at}.most": max(cut)}
                if condition != "none":
                    any_cost = self.mean_share(side, condition, strength, ceiling=ANY_COST)
                    rise, alone = (self.nll_rise(side, condition, strength, alone=bare) for bare in (False, True))
                    found |= any_cost.numbers(f"{start}.mean.{at}.any_cost")
                    found |= rise.numbers(f"{start}.nll_rise.{at}") | alone.numbers(f"{start}.nll_rise_alone.{at}")
            found[f"{start}.cut"] = max(found[f"{start}.cut.{condition}{suffix}.most"] for condition, _, suffix in RUNS)
            found |= self._compared(side, start) | self._casing(side, start)
            for condition in CARRIED:
                if condition != "transferred":
                    found |= self.advantage(side, condition, "transferred").numbers(f"{start}.{condition}_gain")
                of_kinds = [own for (of, _), own in self.vectors.items() if of == side]
                both = [(own["native"].direction, own[condition].direction) for own in of_kinds]
                found[f"{start}.cosine.{condition}"] = float(np.mean([(own @ other).item() for own, other in both]))
        return found

    def _compared(self, side: str, start: str) -> dict[str, float]:
        """Count the instructions at which one condition beats another on the same prompts, and average differences."""
        kinds, comparisons = self.config.kinds, len(self.config.kinds)

        def done(condition: str, strength: float | None = None) -> list[np.ndarray]:
            return [self._over_folds(self._done, side, condition, kind, strength) for kind in kinds]

        none, native, transferred = (done(condition) for condition in ("none", "native", "transferred"))
        at_1 = [*zip(done("transferred", 1.0), done("native", 1.0))]
        beats = functools.partial(is_more_often, comparisons=comparisons)
        steered = [beats(own, bare) for own, bare in zip(native, none)]
        improved = [beats(carried, bare) for carried, bare in zip(transferred, none)]
        as_well = [carried.mean() >= own.mean() for carried, own in zip(transferred, native)]
        counted = {
            "steered": steered,
            "won_at_1": [beats(*both) for both in at_1],
            # a vector that all prompts followed would win where native steering fails often enough
            "could_win_at_1": [beats(np.ones_like(own), own) for _, own in at_1],
            "improved": improved,
            "matched": [all(three) for three in zip(steered, improved, as_well)],
        }
        found = self.paired_numbers(side, start, ["random"])
        found |= self.advantage(side, "random", "none").numbers(f"{start}.random_gain")
        return found | {f"{start}.{name}": int(sum(some)) for name, some in counted.items()}

    def _casing(self, side: str, start: str) -> dict[str, float]:
        """Compare what transfer gains at letter case and at other instructions, of those that native steering can do.

        Without any of either kind, the difference is anything between -1 and 1.
        """
        kinds = self.config.kinds
        done = {c: [self._over_folds(self._done, side, c, k) for k in kinds] for c in ("none", "native", "transferred")}
        gains: dict[str, list[np.ndarray]] = {"casing": [], "other": []}
        for kind, none, native, transferred in zip(kinds, *done.values()):
            if is_more_often(native, none, comparisons=len(kinds)):
                is_casing = self.evaluated(kind)[0].instruction_id.startswith("change_case:")
                gains["casing" if is_casing else "other"].append(transferred - none)
        found = {f"{start}.{name}.able": len(some) for name, some in gains.items()}
        for name, some in gains.items():
            found |= self.mean(some).numbers(f"{start}.{name}.gain") if some else {}
        lead = Estimate(0.0, -1.0, 1.0)
        if all(gains.values()):
            casing, other = gains["casing"], gains["other"]
            share = {"casing": len(casing + other) / len(casing), "other": -len(casing + other) / len(other)}
            lead = self.mean([share[name] * gain for name, some in gains.items() for gain in some])
        return found | lead.numbers(f"{start}.casing.lead")


def evaluated_chats(stitched: StitchedPair, config: InstructionConfig) -> list[str]:
    """Put the evaluated prompts of all instructions, with and without them, each once, in the chat template."""
    prompts = _prompts(stitched.pair, config)
    some = [prompt for (split, _, _), found in prompts.items() if split == "evaluated" for prompt in found]
    texts = [text for prompt in some for text in (prompt.without, prompt.given)]
    with blaming(stitched.pair, "instructions"):
        return chat(stitched.models[0], list(dict.fromkeys(texts)))


def _prompts(pair: ModelPair, config: InstructionConfig) -> dict[tuple[str, str, int], list[InstructionPrompt]]:
    """Read the prompts by split, kind and fold; of those evaluated each fold has its part."""
    counts = {"fit": config.fit_prompts, "chosen": config.choosing_prompts, "evaluated": config.prompts}
    counts["evaluated"] = -(-config.prompts // config.folds)
    return {
        (split, kind, fold): instruction_prompts(pair, kind, count, split, choosing=not config.strength, fold=fold)
        for split, count in counts.items()
        for kind in config.kinds
        for fold in range(config.folds)
    }


def sweep_instructions(
    stitched: StitchedPair, stitches: Mapping[str, Stitch], config: InstructionConfig
) -> InstructionSweep:
    """Run the whole experiment; responses that were made before are found in `artifacts/`, cell by cell.

    `stitches` are those of `diagnostics.fit_template_stitches`, by name. ValueError for a tokenizer without a chat
    template, and for a prompt that leaves no room for a response.
    """
    pair, both = stitched.pair, list(itertools.product(FIGURES, config.kinds))
    prompts, folds = _prompts(pair, config), range(config.folds)
    of_vectors = {
        kind: list({p.without: p for fold in folds for p in prompts["fit", kind, fold]}.values())
        for kind in config.kinds
    }

    def chats(side: str, some: Sequence[InstructionPrompt], given: bool) -> list[str]:
        return chat(stitched.side(side)[0], [prompt.given if given else prompt.without for prompt in some])

    def streams(side: str, kind: str) -> list[Float[Tensor, "pairs d_model"]]:
        texts = [chats(side, of_vectors[kind], given) for given in (False, True)]
        return [last_token_residuals(*stitched.side(side), some, batch_size=config.batch_size) for some in texts]

    def means_of(side: str, kind: str, fold: int) -> MeanStreams:
        places = [of_vectors[kind].index(prompt) for prompt in prompts["fit", kind, fold]]
        return MeanStreams(*(stream[places].double().mean(0) for stream in read[side, kind]))

    with blaming(pair, "instructions"):
        read = {key: streams(*key) for key in both}
        everything = [prompt for found in prompts.values() for prompt in found]
        longest = min(_room(stitched.side(side)[0], chats(side, everything, True)) for side in FIGURES)
    config = dataclasses.replace(config, max_new_tokens=min(config.max_new_tokens, longest))
    means = {(side, (kind, fold)): means_of(side, kind, fold) for (side, kind), fold in itertools.product(both, folds)}
    maps = {condition: (stitches[name], False) for condition, name in CARRIED.items()}
    vectors = condition_vectors(means, maps, config.seed, at_unit_length=True)
    for of_condition in vectors.values():  # one direction, where there are to be many
        del of_condition["random"]
    shifts = {key: given - without for key, (without, given) in read.items()}
    sweep = InstructionSweep(config=config, prompts=prompts, vectors=vectors, shifts=shifts)
    drawn = {
        (side, kind): [random_direction(stitched.side(side)[0].d_model, seed) for seed in seeds]
        for (side, kind), seeds in zip(both, _seeds(config, len(both)))
    }

    def move(cell: Cell) -> Move:
        own = vectors[cell.side, (cell.of, cell.fold)]
        if cell.condition != "random":
            return clamped(own[cell.condition], cell.strength)
        of_prompts, directions = means[cell.side, (cell.of, cell.fold)], drawn[cell.side, cell.of]
        moved = [moved_as_far(own["native"], of_prompts, direction) for direction in directions]
        return clamped_each([vector for vector in moved for _ in sweep.asked(cell)], cell.strength)

    def texts(cell: Cell) -> list[str]:
        found = chats(cell.side, sweep.asked(cell), cell.condition == "instructed")
        return found * (config.random_directions if cell.condition == "random" else 1)

    def follows(cell: Cell, number: int, text: str) -> bool:
        return (asked := sweep.asked(cell))[number % len(asked)].is_followed(text)

    run = functools.partial(
        sweep.fill, stitched=stitched, prompts=texts, move=move, is_done=follows, part="instructions"
    )
    every = [(side, kind, fold) for side, kind in both for fold in folds]
    if not config.strength:
        doses = [("none", 0.0), *itertools.product(AT_THE_MEAN, config.strengths)]
        run([Cell("chosen", side, c, kind, s, fold) for side, kind, fold in every for c, s in doses])
    for (side, kind, fold), on in itertools.product(every, AT_THE_MEAN):
        sweep.chosen[side, kind, on, fold] = sweep.choose(side, on, [kind], config.strengths, fold)
    run([sweep.cell(side, c, kind, s, fold=fold) for side, kind, fold in every for c, s, _ in RUNS])
    return sweep


def _room(model, prompts: Sequence[str]) -> int:
    """Count the tokens that a model can add to the longest of `prompts`."""
    longest = max(len(encoded(model, prompt, 1)) for prompt in dict.fromkeys(prompts))
    return (getattr(model.config, "max_position_embeddings", None) or 10**9) - longest


def _seeds(config: InstructionConfig, count: int) -> list[range]:
    """Number the random directions of each of `count` models and instructions."""
    n = config.random_directions
    return [range(n * at, n * (at + 1)) for at in range(1000 * config.seed, 1000 * config.seed + count)]
