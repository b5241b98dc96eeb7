"""The experiment of sections 5 and 5.1: which features keep their effect under the stitch, and of which kind they are.

Figs. 4b, 14 and 15, Tables 7 and 8. In each direction every feature of one model's SAE is compared with its twins in
the other model, across the fitted stitch and across a random one (Eq. 10), and classed by the sentences and versions in
which it fires. What the paper suspects, that structural features transfer better because they fire more often, is
tested at matched firing rates; and where the truth about words is known, so is how often the classes are right.

Offers `FeatureStudyConfig`, `feature_study_config`, `study_features`, `FeatureStudy`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from sae_lens import SAE

from ..data.embedded.marked import marked_groups
from ..data.pairs import ModelPair
from ..stitching.pair import StitchedPair
from .attribution import (
    MIN_FIRES,
    SIDES,
    AttributionCorrelation,
    Twins,
    against_random,
    attribution_correlations,
    carried,
    median,
    summarise,
)
from .contexts import Context, top_contexts
from .known_words import OneKindError, Recovery, known_words, recovery
from .rewriting import AugmentedGroups, RewritingConfig, augmented_groups, world_stream
from .structure import FeatureClasses, classify, density_ratios, feature_presence, matched_rates, unrelated

KINDS = ("structural", "semantic")
TWINS = ("transferred", "random")


@dataclass(frozen=True)
class FeatureStudyConfig:
    """What is run."""

    sentences: int
    """That are drawn, each with its versions."""
    versions: int = 5
    """Of a sentence, beside the original (App. H.1)."""
    share: float = 0.5
    """Of the groups in which a feature fires at all, those in which it must fire in all versions to be structural."""
    min_groups: int = 5
    """Groups in which a feature must fire to be classed."""
    threshold: float = 0.0
    """That an activation must exceed for a feature to count as firing in a sentence."""
    min_fires: int = MIN_FIRES
    """Tokens on which a feature must fire, in both models, to be compared."""
    contexts: int = 3
    """Texts that are kept of each feature and model."""
    context_documents: int = 200
    """Documents of the evaluation text in which these are looked for."""
    seed: int = 0
    """Of the random stitch, of the sentences and of the bootstrap."""

    def __post_init__(self):
        if min(self.sentences, self.versions, self.contexts, self.context_documents) < 1:
            raise ValueError("at least one sentence, version, context and document are needed")
        if min(self.min_groups, self.min_fires) < 1 or self.threshold < 0:
            raise ValueError(
                f"expected min_groups >= 1, min_fires >= 1 and threshold >= 0: got {self.min_groups}, "
                f"{self.min_fires} and {self.threshold}"
            )


def feature_study_config(pair: ModelPair, scale: str, *, seed: int = 0, **changes) -> FeatureStudyConfig:
    """Take the sizes of a scale, with `changes` to them, where None changes nothing.

    A model that writes versions takes its time, so it rewrites fewer sentences at scale smoke.
    """
    sizes = pair.sizes_of("feature_study", scale) | {"seed": seed}
    if scale == "smoke" and pair.augmenter is not None:
        sizes["sentences"] = 4
    return FeatureStudyConfig(**sizes | {name: value for name, value in changes.items() if value is not None})


@dataclass(frozen=True)
class FeatureStudy:
    """What was found. A direction is `up`, A's SAE carried to B, or `down`, the converse."""

    config: FeatureStudyConfig
    correlations: Mapping[str, Mapping[str, AttributionCorrelation]]
    """By direction and twin, `transferred` or `random`."""
    groups: AugmentedGroups
    classes: Mapping[str, FeatureClasses]
    by_chance: Mapping[str, FeatureClasses]
    """The classes from sentences that have nothing to do with each other."""
    recovered: Mapping[str, list[Recovery]]
    """For 1, 2, ... versions; empty where it is not known which words are content."""
    recovered_clean: Mapping[str, list[Recovery]]
    """The same from the groups of which no version breaks a rule."""
    contexts: Mapping[str, Mapping[str, Mapping[int, list[Context]]]]
    """By direction and model, `a` or `b`: the top contexts of each feature there."""

    def fires_enough(self, direction: str) -> np.ndarray:
        """Features that can be compared with their twins across the fitted stitch."""
        return self.correlations[direction]["transferred"].alive(self.config.min_fires)

    def alive(self, direction: str) -> np.ndarray:
        """Features that fire often enough in both models, whose classes are known."""
        return self.fires_enough(direction) & ~self.classes[direction].dead

    def of_kind(self, direction: str, kind: str) -> np.ndarray:
        """Numbers of the living features of a class."""
        return np.flatnonzero(self.alive(direction) & getattr(self.classes[direction], kind))

    def correlation(self, direction: str, twin: str = "transferred") -> np.ndarray:
        """Of all features that are alive across the fitted stitch, and across this one."""
        found = self.correlations[direction][twin].correlation
        return found[self.fires_enough(direction) & np.isfinite(found)]

    def random_band(self, direction: str) -> tuple[float, float]:
        """Between which nine tenths of the correlations across the random stitch lie; NaN where no twin fires."""
        found = self.correlation(direction, "random")
        low, high = np.quantile(found, (0.05, 0.95)) if len(found) else (np.nan, np.nan)
        return float(low), float(high)

    def numbers(self, pair: str) -> dict[str, float]:
        """Everything that goes into a results file, under the ids of Figs. 14 and 4b and of Table 7."""
        found: dict[str, float] = {}
        for direction in self.correlations:
            found |= self._figure14(f"figure14.{pair}.{direction}", direction)
            found |= self._figure4b(f"figure4b.{pair}.{direction}", direction)
            found |= self._recovery(f"recovery.{pair}.{direction}", direction)
        if self.recovered:
            found[f"recovery.{pair}.groups"] = len(self.groups.groups)
            found[f"recovery.{pair}.kept_groups"] = sum(self.groups.clean)
        found[f"table7.{pair}.versions"] = self.groups.versions
        found[f"table7.{pair}.whole"] = self.groups.whole / self.groups.versions
        for rule, count in self.groups.broken.items():
            found[f"table7.{pair}.broken.{rule.replace(' ', '_')}"] = count / self.groups.versions
        return found

    def _recovery(self, start: str, direction: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, features, of in (("k", "features", self.recovered), ("kept", "kept_features", self.recovered_clean)):
            for one in of.get(direction, ()):
                for measure in ("accuracy", "balanced", "auc"):
                    found |= getattr(one, measure).numbers(f"{start}.{name}_{one.k}.{measure}")
                found[f"{start}.{features}"] = one.content + one.others  # the same for every k
        return found

    def _figure14(self, start: str, direction: str) -> dict[str, float]:
        found: dict[str, float] = {}
        values = {twin: self.correlation(direction, twin) for twin in TWINS}
        for twin, some in values.items():
            if not len(some):  # across a random stitch a JumpReLU SAE may fire nowhere
                continue
            summary = summarise(some, seed=self.config.seed)
            for measure in ("mean", "median", "above_half", "below_zero"):
                found |= getattr(summary, measure).numbers(f"{start}.{twin}.{measure}")
        if all(map(len, values.values())):
            beside = against_random(values["transferred"], values["random"], seed=self.config.seed)
            found |= beside.better.numbers(f"{start}.better") | beside.negative.numbers(f"{start}.negative")
        enough = self.fires_enough(direction)
        found[f"{start}.features"], found[f"{start}.left_out"] = int(enough.sum()), int((~enough).sum())
        return found

    def _figure4b(self, start: str, direction: str) -> dict[str, float]:
        result, classes = self.correlations[direction]["transferred"], self.classes[direction]
        found: dict[str, float] = {}
        for kind in KINDS:
            some = self.of_kind(direction, kind)
            found[f"{start}.{kind}.features"] = len(some)
            found[f"{start}.{kind}.by_chance"] = int(getattr(self.by_chance[direction], kind).sum())
            if len(some):
                summary = summarise(result.correlation[some], seed=self.config.seed)
                found |= summary.mean.numbers(f"{start}.{kind}.mean") | summary.spread.numbers(f"{start}.{kind}.spread")
                found |= median(result.firing_rate[some], seed=self.config.seed).numbers(f"{start}.{kind}.rate")
        if all(len(self.of_kind(direction, kind)) for kind in KINDS):
            options = {"alive": self.alive(direction), "seed": self.config.seed}
            low, high = density_ratios(result.correlation, classes, **options)
            found |= low.numbers(f"{start}.lowest_tenth") | high.numbers(f"{start}.highest_tenth")
            compared = matched_rates(result.correlation, result.firing_rate, classes, **options)
            for name, one in (("all", compared.all), ("matched", compared.matched)):
                if one is not None:
                    found |= one.mean.numbers(f"{start}.{name}.mean") | one.spread.numbers(f"{start}.{name}.spread")
                    found |= {f"{start}.{name}.{kind}": getattr(one, kind) for kind in KINDS}
        return found


def study_features(stitched: StitchedPair, saes: tuple[SAE, SAE], config: FeatureStudyConfig) -> FeatureStudy:
    """Run all of it; `saes` are A's and B's."""
    twins = {
        direction: carried(stitched, saes[source], direction=direction, seed=config.seed)
        for direction, (source, _) in SIDES.items()
    }
    correlations = attribution_correlations(stitched, twins)
    rewriting = RewritingConfig(seed=config.seed, at_once=min(RewritingConfig.at_once, config.sentences))
    groups = augmented_groups(stitched.pair, config.sentences, config.versions, config=rewriting)
    presence = {
        direction: feature_presence(
            *stitched.side("ab"[source]), saes[source], groups.groups, threshold=config.threshold
        )
        for direction, (source, _) in SIDES.items()
    }
    options = {"share": config.share, "min_groups": config.min_groups}
    return FeatureStudy(
        config,
        correlations,
        groups,
        {direction: classify(found, **options) for direction, found in presence.items()},
        {direction: classify(unrelated(found, seed=config.seed), **options) for direction, found in presence.items()},
        *_recovered(stitched, saes, presence, groups, config),
        {direction: _contexts(stitched, direction, some, config) for direction, some in twins.items()},
    )


def _contexts(
    stitched: StitchedPair, direction: str, twins: Twins, config: FeatureStudyConfig
) -> dict[str, dict[int, list[Context]]]:
    """Find the top contexts of an SAE and of its transferred twin, by the model that each reads."""
    found = {}
    for side, sae in zip(SIDES[direction], (twins.sae, twins.others["transferred"])):
        batches = itertools.takewhile(
            lambda batch: int(batch.documents.min()) < config.context_documents, stitched.evaluation_batches()
        )
        found["ab"[side]] = top_contexts(*stitched.side("ab"[side]), sae, None, batches, n=config.contexts)
    return found


def _recovered(
    stitched: StitchedPair,
    saes: tuple[SAE, SAE],
    presence: Mapping[str, np.ndarray],
    groups: AugmentedGroups,
    config: FeatureStudyConfig,
) -> tuple[dict[str, list[Recovery]], dict[str, list[Recovery]]]:
    """Compare classes with known words in all groups, and in those of which no version breaks a rule."""
    if groups.source != "world":
        return {}, {}
    options = {name: getattr(config, name) for name in ("share", "min_groups", "min_fires", "seed")}
    marked = marked_groups(world_stream(config.seed), len(groups.groups), config.versions)
    sentences = [sentence for group in marked for sentence in group]
    everywhere, clean = {}, {}
    for direction, (source, _) in SIDES.items():
        known = known_words(*stitched.side("ab"[source]), saes[source], sentences)
        for found, some in ((everywhere, presence[direction]), (clean, presence[direction][groups.clean])):
            try:
                found[direction] = recovery(some, known, **options)
            except OneKindError:  # all features are of one kind, which happens in small runs: nothing to tell apart
                found[direction] = []
    return everywhere, clean
