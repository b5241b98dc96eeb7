"""The experiment of section 4 on languages: both models steered towards each, by their own vectors and by the other's.

Fig. 3b and c, Tables 5 and 6, App. F. Conditions: `none`; `native`, the model's own vector; `transferred`, the other
model's carried across; and two controls, `biased`, carried across with the map's bias, and `random`, a direction drawn
at random along which tokens are moved as far as the native vector moves them. The paper's strength is s = 1; small
models need more, so all are run at a strength that is chosen on prompts which are not evaluated, and the first three at
s = 1 as well. Beside every share of responses stands what the steering cost: the rise of the model's own loss on its
responses, prompt by prompt, over what it answers without steering.

Offers `SteeringConfig`, `steering_config`, `sweep_steering`, `SteeringSweep`, `chosen_strength`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..data.pairs import ModelPair, blaming
from ..models.language_model import LanguageModel
from ..stitching.stitch import Stitch
from ..utils.progress import progress
from ..utils.stats import Estimate, clopper_pearson, crossed_mean
from .language import detect_language
from .prompts import languages, parallel_pairs, steering_prompts
from .responses import Answers, clamped, respondents
from .vectors import (
    LanguageMeans,
    SteeringVector,
    clipped_gap,
    language_means,
    random_direction,
    steering_vector,
    transfer_vector,
)

CONDITIONS = ("none", "native", "transferred", "biased", "random")
STEERED = ("native", "transferred")
AT_THE_MEAN = 1.0  # the paper's strength


@dataclass(frozen=True)
class SteeringConfig:
    """What is run."""

    languages: tuple[str, ...]
    """Steered towards."""
    prompts: int
    """Responses to each cell of the tables, if there are so many prompts."""
    choosing_languages: tuple[str, ...]
    """On which the dose-response is measured, and a strength is chosen."""
    choosing_prompts: int
    """The same."""
    pairs: int = 100
    """Parallel sentences that a vector comes from (section 4; App. F says 250)."""
    strengths: tuple[float, ...] = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.75, 2.0, 2.5)
    """Of the dose-response."""
    strength: float = 0.0
    """At which all conditions are run; 0 leaves it to `chosen_strength`, for each model by itself."""
    wanted_share: float = 0.7
    """Of responses in the language, for a strength to be chosen."""
    max_new_tokens: int = 40
    """Of a response; the paper does not say."""
    frequency_documents: int = 400
    """Of the training text, in which languages are counted (Fig. 11)."""
    batch_size: int = 64
    seed: int = 0
    """Of the random directions and of the bootstrap."""

    def __post_init__(self):
        if unknown := sorted(set(self.choosing_languages) - set(self.languages)):
            raise ValueError(f"languages to choose a strength on that are not steered towards: {', '.join(unknown)}")
        if min(self.prompts, self.choosing_prompts, len(self.languages), len(self.choosing_languages)) < 1:
            raise ValueError("at least one prompt and one language are needed, to choose on and to evaluate")
        if not self.strengths or min(self.strengths) <= 0 or self.strength < 0:
            raise ValueError(f"strengths must be positive: got {self.strengths} and {self.strength}")


def steering_config(pair: ModelPair, scale: str, *, strength: float = 0.0, seed: int = 0) -> SteeringConfig:
    """The sizes of a scale; the languages to choose on are spread over all, from frequent to rare.

    Without a strength, that of the pair's file.
    """
    sizes = pair.sizes_of("languages", scale)
    chosen = languages(pair)[: sizes.pop("languages", None)]
    spread = np.linspace(0, len(chosen) - 1, sizes.pop("choosing_languages", len(chosen))).round().astype(int)
    return SteeringConfig(
        chosen,
        choosing_languages=tuple(chosen[i] for i in spread),
        strength=strength or pair.strength,
        seed=seed,
        **sizes,
    )


@dataclass(frozen=True)
class SteeringSweep:
    """All responses, and what follows from them. A side is the model that is steered, `a` or `b`."""

    config: SteeringConfig
    chosen: Mapping[str, float]
    """The strength of each side."""
    prompts: Mapping[str, Sequence[str]]
    """`evaluated` and `chosen`, those on which the strength was chosen."""
    cells: Mapping[tuple[str, str, str, str, float], Answers]
    """By split of the prompts, side, condition, language and strength; without steering language and strength are ''
    and 0. Their languages are judged."""
    cosines: Mapping[tuple[str, str], float]
    """By side and language: between the native direction and the transferred one."""

    def cell(
        self, side: str, condition: str, language: str, strength: float | None = None, split: str = "evaluated"
    ) -> Answers:
        """Responses at a strength, by default the chosen one."""
        if condition == "none":
            return self.cells[split, side, "none", "", 0.0]
        return self.cells[split, side, condition, language, self.chosen[side] if strength is None else strength]

    def share(self, side: str, condition: str, language: str, strength: float | None = None) -> Estimate:
        """Of the responses to the evaluated prompts, those in `language`, with Clopper and Pearson's interval."""
        found = self.cell(side, condition, language, strength).judged
        return clopper_pearson(found.count(language), len(found))

    def mean_share(
        self, side: str, condition: str, strength: float | None = None, split: str = "evaluated"
    ) -> Estimate:
        """Mean of the shares of all languages of the split, with a bootstrap interval over languages and prompts."""
        return self._mean(
            split,
            lambda language: [
                found == language for found in self.cell(side, condition, language, strength, split).judged
            ],
        )

    def nll_rise(
        self,
        side: str,
        condition: str,
        strength: float | None = None,
        split: str = "evaluated",
        *,
        languages: Sequence[str] = (),
        alone: bool = False,
    ) -> Estimate:
        """Nats a token by which the steered model's responses cost the unsteered model more than its own to the same
        prompts; means over `languages`, by default all, and intervals as in `mean_share`. `alone`: without the prompt
        before them."""
        before = _losses(self.cell(side, "none", "", split=split), alone)

        def rises(language: str) -> np.ndarray:
            return _losses(self.cell(side, condition, language, strength, split), alone) - before

        return self._mean(split, rises, languages)

    def gaps(self, side: str, strength: float | None = None) -> dict[str, float]:
        """Eq. 16 for each language."""
        return {
            language: clipped_gap(*(self.share(side, c, language, strength).value for c in ("transferred", "native")))
            for language in self.config.languages
        }

    def _mean(self, split: str, of_language, some: Sequence[str] = ()) -> Estimate:
        some = some or (self.config.languages if split == "evaluated" else self.config.choosing_languages)
        return crossed_mean(np.array([of_language(language) for language in some], dtype=float), self.config.seed)


def _losses(cell: Answers, alone: bool) -> np.ndarray:
    return np.array([response.nll_alone if alone else response.nll for response in cell.responses])


def chosen_strength(shares: Mapping[float, float], rises: Mapping[float, float], wanted: float) -> float:
    """Among the strengths whose share is at least `wanted` the one whose responses cost least, the smallest of equals.

    Where none reaches it, the one with the largest share, again the smallest of equals; where all shares are 0 the
    largest, so that what fails does not fail for want of strength.
    """
    if not any(shares.values()):
        return max(shares)
    if enough := [strength for strength in shares if shares[strength] >= wanted]:
        return min(enough, key=lambda strength: (rises[strength], strength))
    return min(shares, key=lambda strength: (-shares[strength], strength))


def steering_vectors(
    means: Mapping[tuple[str, str], LanguageMeans], stitch: Stitch, seed: int
) -> dict[tuple[str, str], dict[str, SteeringVector]]:
    """For each (side, language) the vectors of all conditions, with components taken in the steered model."""
    native = {key: steering_vector(found) for key, found in means.items()}
    vectors = {}
    for number, ((side, language), own) in enumerate(native.items()):
        found, other = means[side, language], means["ab".replace(side, ""), language]
        moved = other.target - other.source  # at its own length, which counts where a bias is added
        drawn = steering_vector(found, random_direction(len(own.direction), seed=1000 * seed + number))
        vectors[side, language] = {
            "native": own,
            "transferred": steering_vector(found, transfer_vector(moved, stitch, to=side)),
            "biased": steering_vector(found, transfer_vector(moved, stitch, to=side, with_bias=True)),
            "random": drawn._replace(target=drawn.source + own.target - own.source),
        }
    return vectors


def sweep_steering(
    pair: ModelPair,
    models: tuple[LanguageModel, LanguageModel],
    layers: tuple[int, int],
    stitch: Stitch,
    config: SteeringConfig,
    *,
    scale: str,
) -> SteeringSweep:
    """Run all of it; responses that were made before are found in `artifacts/`, cell by cell.

    The evaluated prompts share none with those on which a strength is chosen; where the strength is given, all may be
    evaluated. ValueError for a language without parallel text, and for a prompt that leaves no room for a response.
    """
    tokenizer = models[0].tokenizer
    answering = respondents(
        pair,
        models,
        layers,
        scale=scale,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        judge=detect_language,
    )
    parallel = {language: parallel_pairs(pair, language, config.pairs) for language in config.languages}
    prompts = {
        "chosen": steering_prompts(pair, config.choosing_prompts, tokenizer=tokenizer, split="chosen"),
        "evaluated": steering_prompts(
            pair, config.prompts, tokenizer=tokenizer, split="all" if config.strength else "evaluated"
        ),
    }
    means = {
        (side, language): language_means(one.model, one.layer, parallel[language], batch_size=config.batch_size)
        for side, one in answering.items()
        for language in config.languages
    }
    vectors = steering_vectors(means, stitch, config.seed)
    cells: dict[tuple[str, str, str, str, float], Answers] = {}

    def run(split: str, side: str, condition: str, language: str, strength: float) -> Answers:
        move = None if condition == "none" else clamped(vectors[side, language][condition], strength)
        with blaming(pair, "steering"):
            return answering[side].answer(prompts[split], move, title=f"{side}, {condition}")

    def fill(keys: Sequence[tuple], title: str) -> None:
        for key in progress(dict.fromkeys(keys), title):
            cells[key] = run(*key)

    unsteered = [(split, side, "none", "", 0.0) for split in prompts for side in answering]
    doses = [
        ("chosen", side, condition, language, strength)
        for side in answering
        for condition in STEERED
        for language in config.choosing_languages
        for strength in config.strengths
    ]
    fill([*unsteered, *doses], "doses")
    sweep = SteeringSweep(
        config,
        {},
        prompts,
        cells,
        {key: (found["native"].direction @ found["transferred"].direction).item() for key, found in vectors.items()},
    )
    chosen = {side: config.strength or _choose(sweep, side) for side in answering}
    fill(
        [
            ("evaluated", side, condition, language, strength)
            for side in answering
            for language in config.languages
            for condition in CONDITIONS[1:]
            for strength in ((chosen[side], AT_THE_MEAN) if condition in STEERED else (chosen[side],))
        ],
        "responses",
    )
    return replace(sweep, chosen=chosen)


def _choose(sweep: SteeringSweep, side: str) -> float:
    strengths = sweep.config.strengths
    shares = {strength: sweep.mean_share(side, "native", strength, "chosen").value for strength in strengths}
    rises = {strength: sweep.nll_rise(side, "native", strength, "chosen").value for strength in strengths}
    return chosen_strength(shares, rises, sweep.config.wanted_share)
