"""The experiment of App. F.2: both models steered towards instructions, by their own vectors and by the other's.

Figs. 12 and 13. Conditions: `none`, the bare prompt; `instructed`, the prompt with the instruction in words, which is
what steering is to replace; `native`, the model's own vector; `transferred`, the other model's, carried across by the
stitch as the paper fits it; `template` and `often`, the same by stitches that have seen the chat template's tokens, as
they come or many times over (`template_tokens`); and `random`, a direction drawn at random along which the stream is
moved as far as the native vector moves it. The paper clamps to the mean over prompts with the instruction, s = 1; small
models need more, so all are run at a strength that is chosen, for each model and instruction, on prompts which are not
evaluated, and the native and transferred vectors at s = 1 as well. What is carried across has its own strength, the
best for `transferred`, among larger ones: its two components lie as close together as its direction is far from the
model's own, and it is not to fail for want of strength.

Offers `InstructionConfig`, `instruction_config`, `evaluated_chats`, `sweep_instructions`, `InstructionSweep`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..data.pairs import ModelPair, blaming
from ..models.generation import Response, chat
from ..models.language_model import LanguageModel
from ..stitching.stitch import Stitch
from ..utils.progress import progress
from ..utils.stats import Estimate, clopper_pearson, stratified_mean
from .instructions import (
    InstructionPrompt,
    family,
    instruction_kinds,
    instruction_prompts,
    last_token_residuals,
    means_of,
)
from .languages import chosen_strength
from .responses import clamped, respondents
from .vectors import LanguageMeans, SteeringVector, random_direction, steering_vector, transfer_vector

CONDITIONS = ("none", "instructed", "native", "transferred", "template", "often", "random")
UNSTEERED = ("none", "instructed")
# Conditions in which the other model's vector is carried across -> by which stitch.
CARRIED = {"transferred": "without", "template": "with", "often": "often"}
AT_THE_MEAN = ("native", "transferred")  # run at the paper's strength as well
# Condition -> that on whose responses its strength is chosen.
CHOSEN_ON = {"native": "native", "random": "native"} | dict.fromkeys(CARRIED, "transferred")
# A vector of one model is called in the other's figure: Fig. 12 steers A, Fig. 13 steers B.
FIGURES = {"a": "figure12", "b": "figure13"}


@dataclass(frozen=True)
class InstructionConfig:
    """What is run."""

    kinds: tuple[str, ...]
    """Instructions, as `instruction_kinds` names them."""
    prompts: int
    """Responses to each cell, if there are so many prompts."""
    choosing_prompts: int
    """Responses on which a strength is chosen."""
    fit_prompts: int = 100
    """Pairs of prompts that a vector comes from."""
    strengths: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0)
    """Among which one is chosen for the model's own vector."""
    carried_strengths: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 6.0)
    """Among which one is chosen for what is carried across."""
    strength: float = 0.0
    """At which all conditions are run; 0 leaves it to `chosen_strength`: for each model and instruction, and apart for
    its own vector and for those carried across."""
    wanted_share: float = 0.7
    """Of responses that follow the instruction, for a strength to be chosen."""
    max_new_tokens: int = 64
    """Of a response: enough for most of the world's answers to come to their end, where some instructions show."""
    batch_size: int = 64
    seed: int = 0
    """Of the random directions and of the bootstrap."""

    def __post_init__(self):
        if min(self.prompts, self.choosing_prompts, self.fit_prompts, len(self.kinds)) < 1:
            raise ValueError("at least one instruction and one prompt are needed, to fit, to choose and to evaluate")
        for strengths in (self.strengths, self.carried_strengths):
            if not strengths or min(strengths) <= 0 or self.strength < 0:
                raise ValueError(f"strengths must be positive: got {strengths} and {self.strength}")

    def candidates(self, condition: str) -> tuple[float, ...]:
        """The strengths of which one is chosen for a condition."""
        return self.carried_strengths if condition in CARRIED else self.strengths


def instruction_config(pair: ModelPair, scale: str, *, strength: float = 0.0, seed: int = 0) -> InstructionConfig:
    """The sizes of a scale; where there is no time for all instructions, some that lie far apart in their list.

    Without a strength, that of the pair's file.
    """
    sizes, kinds = pair.sizes_of("instructions", scale), instruction_kinds(pair)
    count = min(sizes.pop("kinds", len(kinds)), len(kinds))
    some = np.linspace(0, len(kinds) - 1, count).round().astype(int)
    return InstructionConfig(tuple(kinds[i] for i in some), strength=strength or pair.strength, seed=seed, **sizes)


@dataclass(frozen=True)
class InstructionSweep:
    """All responses, and what follows from them. A side is the model that is steered, `a` or `b`."""

    config: InstructionConfig
    prompts: Mapping[tuple[str, str], Sequence[InstructionPrompt]]
    """By split (`choose`, `evaluate`) and kind."""
    chosen: Mapping[tuple[str, str, str], float]
    """The strength, by side, kind, and `native` or `transferred`."""
    responses: Mapping[tuple[str, str, str, str, float], Sequence[Response]]
    """By split, side, condition, kind and strength, which is 0 without steering."""
    followed: Mapping[tuple[str, str, str, str, float], np.ndarray]
    """The same keys: which of the responses follow the instruction."""
    cosines: Mapping[tuple[str, str, str], float]
    """By side, kind and condition: between the native direction and the one carried across."""
    shifts: Mapping[tuple[str, str], Float[Tensor, "pairs d_model"]]
    """By side and kind: what the instruction adds to the stream at the last token, for each prompt of the vector."""

    def key(
        self, side: str, condition: str, kind: str, strength: float | None = None, split: str = "evaluate"
    ) -> tuple[str, str, str, str, float]:
        """Of the responses at a strength, by default the chosen one."""
        if condition in UNSTEERED:
            strength = 0.0
        elif strength is None:
            strength = self.chosen[side, kind, CHOSEN_ON[condition]]
        return split, side, condition, kind, strength

    def share(
        self, side: str, condition: str, kind: str, strength: float | None = None, split: str = "evaluate"
    ) -> Estimate:
        """Of the responses, those that follow, with Clopper and Pearson's interval."""
        followed = self.followed[self.key(side, condition, kind, strength, split)]
        return clopper_pearson(int(followed.sum()), len(followed))

    def mean_share(self, side: str, condition: str, strength: float | None = None) -> Estimate:
        """Mean of the shares of all kinds, with a bootstrap interval over the prompts of each."""
        return self._mean(lambda kind: self.followed[self.key(side, condition, kind, strength)])

    def advantage(self, side: str, condition: str, over: str, kinds: Sequence[str] = ()) -> Estimate:
        """Mean difference of the shares under two conditions, prompt by prompt, over `kinds`, by default all; interval
        as in `mean_share`."""

        def differences(kind: str) -> np.ndarray:
            here, there = (self.followed[self.key(side, which, kind)] for which in (condition, over))
            return here.astype(float) - there

        return self._mean(differences, kinds)

    def nll_rise(
        self,
        side: str,
        condition: str,
        strength: float | None = None,
        *,
        kinds: Sequence[str] = (),
        alone: bool = False,
    ) -> Estimate:
        """Nats a token by which the responses cost the unsteered model more than its own to the bare prompts.

        Mean over `kinds`, by default all; interval as in `mean_share`. Each response is read after its own prompt;
        `alone`: without.
        """

        def losses(which: str, kind: str) -> np.ndarray:
            found = self.responses[self.key(side, which, kind, strength)]
            return np.array([response.nll_alone if alone else response.nll for response in found])

        return self._mean(lambda kind: losses(condition, kind) - losses("none", kind), kinds)

    def gain(self, side: str, *, casing: bool) -> Estimate | None:
        """`advantage` of transferred over none in the instructions about letter case, or in all others; None without
        any."""
        some = [kind for kind in self.config.kinds if (self.family(kind) == "casing") == casing]
        return self.advantage(side, "transferred", "none", some) if some else None

    def followed_anyway(self) -> list[str]:
        """Instructions that every response to a bare prompt follows, in both models: they tell nothing."""
        return [k for k in self.config.kinds if all(self.share(side, "none", k).value == 1 for side in FIGURES)]

    def family(self, kind: str) -> str:
        """What sort of instruction a kind is."""
        return family(self.prompts["evaluate", kind][0].instruction_id)

    def numbers(self, pair: str) -> dict[str, float]:
        """Everything that goes into a results file, under the ids of Figs. 12 and 13."""
        found: dict[str, float] = {}
        for side, figure in FIGURES.items():
            start = f"{figure}.{pair}"
            for condition in CONDITIONS:
                for kind in self.config.kinds:
                    found |= self.share(side, condition, kind).numbers(f"{start}.{kind}.{condition}")
                    if condition != "none":
                        rise = self.nll_rise(side, condition, kinds=(kind,))
                        found |= rise.numbers(f"{start}.{kind}.{condition}.nll_rise")
                found |= self.mean_share(side, condition).numbers(f"{start}.mean.{condition}")
                if condition != "none":
                    found |= self.nll_rise(side, condition).numbers(f"{start}.nll_rise.{condition}")
                    alone = self.nll_rise(side, condition, alone=True)
                    found |= alone.numbers(f"{start}.nll_rise_alone.{condition}")
            for condition in AT_THE_MEAN:
                found |= self.mean_share(side, condition, 1.0).numbers(f"{start}.mean.{condition}_at_1")
                found |= self.nll_rise(side, condition, 1.0).numbers(f"{start}.nll_rise.{condition}_at_1")
                alone = self.nll_rise(side, condition, 1.0, alone=True)
                found |= alone.numbers(f"{start}.nll_rise_alone.{condition}_at_1")
            for condition in AT_THE_MEAN:
                for kind in self.config.kinds:
                    found[f"{start}.{kind}.strength.{condition}"] = self.chosen[side, kind, condition]
            shares = {c: [self.share(side, c, kind) for kind in self.config.kinds] for c in ("none", *AT_THE_MEAN)}
            shares |= {f"{c}_at_1": [self.share(side, c, kind, 1.0) for kind in self.config.kinds] for c in AT_THE_MEAN}

            def ahead(first: str, second: str) -> list[bool]:
                return [one.low > other.high for one, other in zip(shares[first], shares[second])]  # noqa: B023

            found[f"{start}.won"] = sum(ahead("transferred", "native"))
            found[f"{start}.won_at_1"] = sum(ahead("transferred_at_1", "native_at_1"))
            found[f"{start}.improved"] = sum(ahead("transferred", "none"))
            found[f"{start}.matched"] = sum(
                works and carried.value >= own.value
                for works, own, carried in zip(ahead("native", "none"), shares["native"], shares["transferred"])
            )
            gains = {"casing": self.gain(side, casing=True), "other": self.gain(side, casing=False)}
            for name, gain in gains.items():
                found |= gain.numbers(f"{start}.{name}.gain") if gain else {}
            for condition in ("template", "often"):
                found |= self.advantage(side, condition, "transferred").numbers(f"{start}.{condition}_gain")
            for condition in CARRIED:
                angles = [self.cosines[side, kind, condition] for kind in self.config.kinds]
                found[f"{start}.cosine.{condition}"] = float(np.mean(angles))
        return found

    def _mean(self, of_kind: Callable[[str], np.ndarray], kinds: Sequence[str] = ()) -> Estimate:
        rows = [np.asarray(of_kind(kind), dtype=float) for kind in kinds or self.config.kinds]
        return stratified_mean(rows, self.config.seed)


def instruction_vectors(
    means: Mapping[tuple[str, str], LanguageMeans], stitches: Mapping[str, Stitch], seed: int
) -> dict[tuple[str, str], dict[str, SteeringVector]]:
    """For each (side, kind) the vectors of all conditions, with components taken in the steered model.

    `stitches` are those of `template_tokens`, by name.
    """
    vectors = {}
    for number, ((side, kind), found) in enumerate(means.items()):
        own, other = steering_vector(found), steering_vector(means["ab".replace(side, ""), kind])
        drawn = steering_vector(found, random_direction(len(own.direction), seed=1000 * seed + number))
        across = {
            name: steering_vector(found, transfer_vector(other.direction, stitches[of], to=side))
            for name, of in CARRIED.items()
        }
        vectors[side, kind] = {
            "native": own,
            **across,
            "random": drawn._replace(target=drawn.source + own.target - own.source),
        }
    return vectors


def evaluated_chats(pair: ModelPair, model: LanguageModel, config: InstructionConfig) -> list[str]:
    """The evaluated prompts of all instructions, with and without them, each once, in the chat template."""
    prompts = [
        prompt for kind in config.kinds for prompt in instruction_prompts(pair, kind, config.prompts, "evaluate")
    ]
    texts = [text for prompt in prompts for text in (prompt.without, prompt.given)]
    with blaming(pair, "instructions"):
        return chat(model, list(dict.fromkeys(texts)))


def sweep_instructions(
    pair: ModelPair,
    models: tuple[LanguageModel, LanguageModel],
    layers: tuple[int, int],
    stitches: Mapping[str, Stitch],
    config: InstructionConfig,
    *,
    scale: str,
) -> InstructionSweep:
    """Run all of it, with `stitches` as `template_tokens.fit_template_stitches` gives them; responses that were made
    before are found in `artifacts/`, cell by cell.

    ValueError for a tokenizer without a chat template, and for a prompt that leaves no room for a response.
    """
    answering = respondents(
        pair, models, layers, scale=scale, max_new_tokens=config.max_new_tokens, batch_size=config.batch_size
    )
    counts = {"fit": config.fit_prompts, "choose": config.choosing_prompts, "evaluate": config.prompts}
    if config.strength:
        del counts["choose"]
    prompts = {
        (split, kind): instruction_prompts(pair, kind, count, split, choosing=not config.strength)
        for split, count in counts.items()
        for kind in config.kinds
    }
    with blaming(pair, "instructions"):
        chats = {
            (side, *key, given): chat(one.model, [prompt.given if given else prompt.without for prompt in found])
            for side, one in answering.items()
            for key, found in prompts.items()
            for given in (False, True)
        }
        streams = {
            (side, kind): [
                last_token_residuals(
                    one.model, one.layer, chats[side, "fit", kind, given], batch_size=config.batch_size
                )
                for given in (False, True)
            ]
            for side, one in answering.items()
            for kind in config.kinds
        }
    vectors = instruction_vectors({key: means_of(*found) for key, found in streams.items()}, stitches, config.seed)
    responses: dict[tuple, Sequence[Response]] = {}
    followed: dict[tuple, np.ndarray] = {}

    def run(split: str, side: str, condition: str, kind: str, strength: float) -> Sequence[Response]:
        asked = chats[side, split, kind, condition == "instructed"]
        move = None if condition in UNSTEERED else clamped(vectors[side, kind][condition], strength)
        with blaming(pair, "instructions"):
            return answering[side].answer(asked, move, title=f"{side}, {condition}").responses

    def fill(keys: Sequence[tuple], title: str) -> None:
        for key in progress(dict.fromkeys(keys), title):
            split, _, _, kind, _ = key
            responses[key] = run(*key)
            pairs = zip(prompts[split, kind], responses[key])
            followed[key] = np.array([prompt.is_followed(response.text) for prompt, response in pairs])

    both = [(side, kind) for side in answering for kind in config.kinds]
    if not config.strength:
        bare = [("choose", side, "none", kind, 0.0) for side, kind in both]
        doses = [
            ("choose", side, condition, kind, strength)
            for side, kind in both
            for condition in AT_THE_MEAN
            for strength in config.candidates(condition)
        ]
        fill([*bare, *doses], "strengths")
    cosines = {
        (*key, condition): (found["native"].direction @ found[condition].direction).item()
        for key, found in vectors.items()
        for condition in CARRIED
    }
    shifts = {key: given - without for key, (without, given) in streams.items()}
    sweep = InstructionSweep(config, prompts, {}, responses, followed, cosines, shifts)
    chosen = {(*key, on): config.strength or _choose(sweep, *key, on) for key in both for on in AT_THE_MEAN}
    sweep = replace(sweep, chosen=chosen)
    fill(
        [
            sweep.key(side, condition, kind, strength)
            for side, kind in both
            for condition in CONDITIONS
            for strength in ((None, 1.0) if condition in AT_THE_MEAN else (None,))
        ],
        "responses",
    )
    return sweep


def _choose(sweep: InstructionSweep, side: str, kind: str, condition: str) -> float:
    shares, rises = {}, {}
    before = [response.nll for response in sweep.responses["choose", side, "none", kind, 0.0]]
    for strength in sweep.config.candidates(condition):
        key = sweep.key(side, condition, kind, strength, "choose")
        shares[strength] = float(sweep.followed[key].mean())
        rises[strength] = float(np.mean([response.nll for response in sweep.responses[key]]) - np.mean(before))
    return chosen_strength(shares, rises, sweep.config.wanted_share)
