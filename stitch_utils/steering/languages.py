"""The experiment of section 4 on languages: both models steered towards each, by their own vectors and by the other's.

Fig. 3b and c, Tables 5 and 6, App. F with Fig. 11. Conditions: `none`; `native`, the model's own vector; `transferred`,
the other model's carried across; and three controls: `biased`, carried across with the map's bias; `components`, by the
closest of several maps that know the principal components of both streams and no pairing (`stitching.nulls`); and
`random`, a random direction along which tokens are moved as far as the native vector moves them. The paper's strength
is s = 1; small models need more, so all conditions are run at a strength that is chosen, and the first three at s = 1
as well.

Offers `LanguageConfig`, `language_config`, `sweep_languages`, `LanguageSweep`, and what Figs. 3c and 11 are made of:
`clipped_gap`, `language_frequencies`, `rank_correlations`.
"""

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import rankdata

from ..data.documents import read_documents
from ..data.pairs import ModelPair, blaming
from ..models.harvest import of_activations
from ..stitching.nulls import component_stitches
from ..stitching.pair import StitchedPair
from ..utils.cache import artifact
from ..utils.progress import progress
from ..utils.stats import (
    Estimate,
    clopper_pearson,
    correlations,
    crossed_mean,
    from_draws,
    is_more_often,
    resampled_counts,
)
from .prompts import languages, parallel_pairs, steering_prompts
from .sweep import FLUENT, Cell, Sweep, SweepConfig, clamped, kept_json
from .vectors import condition_vectors, language_means
from .verifiers import detect_language

NULLS = ("components", "random")
CONDITIONS = ("none", "native", "transferred", "biased", *NULLS)
STEERED = ("native", "transferred")  # run at the paper's strength as well
AT_THE_MEAN = 1.0  # the paper's strength
# All that is run on the evaluated prompts: condition, strength (None is the chosen one), and the end of its ids.
RUNS = (*((name, None, "") for name in CONDITIONS), *((name, AT_THE_MEAN, "_at_mean") for name in STEERED))
TABLES = {"a": "table5", "b": "table6"}  # by the side that is steered
# Where one sentence ends and the next begins; a list or a poem has one a line.
SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'»”)\]]*\s+|\n+")


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(SweepConfig):
    """What is run."""

    languages: tuple[str, ...]
    """Languages that are steered towards."""
    choosing_languages: tuple[str, ...]
    """Those of them on which the dose-response is measured, and a strength is chosen for each model."""
    pairs: int = 100
    """Parallel sentences that a vector comes from (section 4; App. F says 250)."""
    strengths: tuple[float, ...] = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.75, 2.0, 2.5)
    """Strengths of the dose-response."""
    max_new_tokens: int = 40
    """Tokens of a response at most; the paper does not say."""
    frequency_documents: int = 400
    """Documents of the training text in which languages are counted (Fig. 11)."""


def language_config(pair: ModelPair, scale: str, *, strength: float = 0.0, seed: int = 0) -> LanguageConfig:
    """Take the sizes of a scale; the languages to choose on are spread over all, from frequent to rare.

    Without a strength, take that of the pair's file.
    """
    sizes = pair.sizes_of("languages", scale)
    some = languages(pair)[: sizes.pop("languages", None)]
    spread = np.linspace(0, len(some) - 1, sizes.pop("choosing_languages", len(some))).round().astype(int)
    sizes |= {"languages": some, "choosing_languages": tuple(some[i] for i in spread)}
    return LanguageConfig(strength=strength or pair.strength, seed=seed, **sizes)


@dataclass(frozen=True, kw_only=True)
class LanguageSweep(Sweep):
    """All responses, and what follows from them; one strength is chosen for each side."""

    config: LanguageConfig
    prompts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Those of A by split: `evaluated`, and `chosen`, those on which the strength was chosen."""
    frequencies: Mapping[str, int] = field(default_factory=dict)
    """By language: sentences of the training text (Fig. 11)."""

    def chosen_for(self, side: str, condition: str, of: str, fold: int) -> float:
        return self.chosen[side]

    def gaps(self, side: str) -> dict[str, float]:
        """Compute Eq. 16 for each language."""
        return {
            language: clipped_gap(*(self.share(side, c, language).value for c in ("transferred", "native")))
            for language in self.config.languages
        }

    def _table(self, side: str, condition: str) -> np.ndarray:
        """Give 1 for each response in the target language, else 0: (languages, prompts)."""
        return np.array([self._over_folds(self._done, side, condition, of) for of in self.config.languages])

    def able(self) -> list[str]:
        """List the languages towards which both models are significantly steered by their own vectors.

        By McNemar's test of the responses to the same prompts, at 95% for all languages and both models together.
        """
        rows = [zip(*(self._table(side, condition) for condition in ("native", "none"))) for side in TABLES]
        tests = len(TABLES) * len(self.config.languages)
        told = [[is_more_often(*both, comparisons=tests) for both in of_side] for of_side in rows]
        return [language for language, sides in zip(self.config.languages, zip(*told)) if all(sides)]

    def frequency_correlation(self, some: Sequence[str]) -> Estimate:
        """Correlate the gap of the languages `some`, as the mean of both directions, with their frequency, by rank.

        The interval is a bootstrap over languages and prompts. Resamples in which all frequencies or all gaps are the
        same have no order and are left out. Fewer than five languages say nothing: the interval is [-1, 1].
        """
        if not some:
            return Estimate(0.0, -1.0, 1.0)
        places = [self.config.languages.index(language) for language in some]
        counts = np.array([self.frequencies.get(language, 0) for language in some], dtype=float)
        tables = [[self._table(side, c)[places] for c in ("transferred", "native")] for side in TABLES]

        def gaps(weights: np.ndarray) -> np.ndarray:
            shares = [[weights @ table.T for table in of_side] for of_side in tables]
            found = np.mean([clipped_gaps(*of_side) for of_side in shares], axis=0)  # (draws, languages)
            return found.round(12)  # rounding errors would break ties

        prompts = tables[0][0].shape[1]
        value = float(rank_correlations(counts, gaps(np.full((1, prompts), 1 / prompts))[0]))
        if np.isnan(value) or len(some) < 5:
            return Estimate(0.0 if np.isnan(value) else value, -1.0, 1.0)
        rng = np.random.default_rng(self.config.seed)
        of_draws = gaps(resampled_counts(prompts, rng) / prompts)
        drawn = rng.integers(len(some), size=of_draws.shape)
        draws = rank_correlations(counts[drawn], np.take_along_axis(of_draws, drawn, axis=1))
        return from_draws(value, draws[~np.isnan(draws)])

    def away(self, side: str, condition: str) -> Estimate:
        """Measure the share of responses that are in any of the languages, whichever the cell is of."""
        some = {language: self.answers(side, condition, language).judged for language in self.config.languages}
        rows = np.array([[said in some for said in judged] for judged in some.values()], dtype=float)
        if condition == "none":  # every language has the same responses
            return clopper_pearson(int(rows[0].sum()), rows.shape[1])
        return crossed_mean(rows, self.config.seed)

    def numbers(self, pair: str, *, failing: float = 0.1) -> dict[str, float]:
        """List the entries of a results file, under the ids of Tables 5 and 6 and of Figs. 3 and 11.

        `failing` is the share below which native steering counts as failed.
        """
        found: dict[str, float] = {f"steering.{pair}.{side}.strength": self.chosen[side] for side in TABLES}
        for side, condition, s in itertools.product(TABLES, STEERED, self.config.strengths):
            id = f"steering.{pair}.{side}.dose_{s:g}.{condition}"
            found |= self.mean_share(side, condition, s, "chosen").numbers(id)
            found |= self.nll_rise(side, condition, s, "chosen").numbers(f"{id}.nll_rise")
        for (side, table), (condition, strength, suffix) in itertools.product(TABLES.items(), RUNS):
            for language in self.config.languages:
                id = f"{table}.{pair}.{language}.{condition}{suffix}"
                found |= self.share(side, condition, language, strength).numbers(id)
                found |= self.nll_rise(side, condition, strength, of=(language,)).numbers(f"{id}.nll_rise")
            at = f"{side}.{condition}{suffix}"
            found |= self.mean_share(side, condition, strength).numbers(f"figure3b.{pair}.{at}")
            fluent = self.mean_share(side, condition, strength, ceiling=FLUENT)
            found |= fluent.numbers(f"steering.{pair}.{at}.fluent")
            id = f"steering.{pair}.{at}.nll_rise"
            found |= self.nll_rise(side, condition, strength).numbers(id)
            found |= self.nll_rise(side, condition, strength, alone=True).numbers(f"{id}_alone")
        for side in TABLES:
            start = f"steering.{pair}.{side}"
            found |= self.paired_numbers(side, start, (*NULLS, "biased"))
            for condition in ("none", "random"):
                found |= self.away(side, condition).numbers(f"{start}.{condition}.away")
        gaps = {(side, language): gap for side in TABLES for language, gap in self.gaps(side).items()}
        works = [gap for (side, of), gap in gaps.items() if self.share(side, "native", of).value >= failing]
        for suffix, some in (("", [*gaps.values()]), ("_where_native_works", works)):
            if some:
                found[f"figure3c.{pair}.near_zero{suffix}"] = sum(gap <= 0.25 for gap in some) / len(some)
                found[f"figure3c.{pair}.near_one{suffix}"] = sum(gap >= 0.75 for gap in some) / len(some)
        found[f"figure3c.{pair}.high"] = sum(gap >= 0.75 for gap in gaps.values())
        found[f"figure3c.{pair}.high_where_native_fails"] = found[f"figure3c.{pair}.high"] - sum(
            g >= 0.75 for g in works
        )
        able = self.able()
        found[f"figure11.{pair}.able"] = len(able)
        for suffix, of in (("", self.config.languages), ("_where_native_works", able)):
            found |= self.frequency_correlation(of).numbers(f"figure11.{pair}.correlation{suffix}")
        return found | {f"steering.{pair}.responses": len(self.prompts["evaluated"])}


def sweep_languages(stitched: StitchedPair, config: LanguageConfig) -> LanguageSweep:
    """Run the whole experiment; responses that were made before are found in `artifacts/`, cell by cell.

    The evaluated prompts share none with those on which a strength is chosen; where the strength is given, all may be
    evaluated. ValueError for a language without parallel text, and for a prompt that leaves no room for a response.
    """
    pair, keys = stitched.pair, [*itertools.product(TABLES, config.languages)]
    parallel = {language: parallel_pairs(pair, language, config.pairs) for language in config.languages}
    splits = {"chosen": ("chosen", config.choosing_prompts), "evaluated": ("evaluated", config.prompts)}
    if config.strength:
        splits["evaluated"] = ("all", config.prompts)
    prompts = {
        (side, name): steering_prompts(pair, count, tokenizer=tokenizer, split=split)
        for side, tokenizer in zip("ab", stitched.tokenizers)
        for name, (split, count) in splits.items()
    }
    means = {
        (side, language): language_means(*stitched.side(side), parallel[language], batch_size=config.batch_size)
        for side, language in keys
    }
    maps = {"transferred": (stitched.stitch, False), "biased": (stitched.stitch, True)}
    nulls = [(stitch, False) for stitch in component_stitches(stitched.moments, seed=config.seed)]
    vectors = condition_vectors(means, maps, config.seed, nulls=nulls)
    texts = of_activations(pair, (0, 0), scale=stitched.scale)["texts"]
    made_of, sources = {"texts": texts, "documents": config.frequency_documents}, (language_frequencies, read_documents)
    with blaming(pair, "text"):
        frequencies = kept_json(
            artifact(pair.name, "languages", made_of, sources=sources, suffix=".json"),
            lambda: language_frequencies(itertools.islice(read_documents(pair.train), config.frequency_documents)),
        )
    of_a = {name: prompts["a", name] for name in splits}
    sweep = LanguageSweep(config=config, prompts=of_a, frequencies=frequencies)
    run = functools.partial(
        sweep.fill,
        stitched=stitched,
        prompts=lambda cell: prompts[cell.side, cell.split],
        move=lambda cell: clamped(vectors[cell.side, cell.of][cell.condition], cell.strength),
        is_done=lambda cell, _, language: language == cell.of,
        judge=detect_language,
        part="steering",
    )
    some, doses = config.choosing_languages, [("none", 0.0), *itertools.product(STEERED, config.strengths)]
    run([Cell("chosen", side, c, language, s) for side in TABLES for language in some for c, s in doses])
    sweep.chosen.update({side: sweep.choose(side, "native", some, config.strengths) for side in TABLES})
    run([sweep.cell(side, c, language, s) for side, language in keys for c, s, _ in RUNS])
    return sweep


def clipped_gap(transferred: float, native: float) -> float:
    """Divide transferred steering's share by native steering's, clipped to [0, 1] (Eq. 16).

    0/0 is 0, anything positive over 0 is 1, and whatever is negative 0. So 1 can also mean that native steering failed.
    """
    return clipped_gaps(np.array(transferred), np.array(native)).item()


def clipped_gaps(transferred: np.ndarray, native: np.ndarray) -> np.ndarray:
    """Compute `clipped_gap` of arrays, element by element."""
    whole = np.array(transferred > 0, dtype=float)
    return np.asarray(np.clip(np.divide(transferred, native, out=whole, where=native != 0), 0, 1))


def language_frequencies(documents: Iterable[str]) -> dict[str, int]:
    """Count the sentences of each language, as langdetect sees it; the most frequent language comes first.

    Fig. 11's measure: a sentence ends in a full stop or the like, or with its line; one without letters is not counted.
    """
    counts: Counter[str] = Counter()
    for document in progress(documents, "languages"):
        counts.update(detect_language(sentence) for sentence in SENTENCE_END.split(document) if sentence)
    del counts["unknown"]
    return dict(counts.most_common())


def rank_correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Compute Spearman's correlation along the last axis; NaN where all x or all y are the same."""
    return correlations(rankdata(x, axis=-1), rankdata(y, axis=-1), axis=-1, still=np.nan)
