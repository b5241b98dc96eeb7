"""The study of sections 5 and 5.1: which features keep their effect under the stitch, and of which kind they are.

Figs. 4b, 14 and 15, Tables 7 and 8. In each direction every feature of one model's SAE is compared with its twins in
the other model, across the fitted stitch and across draws of two nulls (Eq. 10), and classed by the sentences and
versions in which it fires. The paper suspects that structural features transfer better because they fire more often; a
comparison at matched firing rates tests that. Where the truth about words is known, so is how often the classes are
right. Four features of a published SAE have published classes (Table 8), which ours are set beside.

Offers `FeatureStudyConfig`, `feature_study_config`, `study_features`, `FeatureStudy`, `KINDS`, `TWINS`,
`named_features`.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd
from sae_lens import SAE

from ..data.embedded.marked import marked_groups
from ..data.pairs import ModelPair, check_whole_numbers, load_pair
from ..stitching.pair import StitchedPair
from ..utils.stats import Estimate
from . import attribution, structure
from .attribution import NULLS, SIDES, AttributionCorrelation, drawn
from .comparison import census, statistics, summarise
from .contexts import Context, top_contexts
from .rewriting import AugmentedGroups, augmented_groups, world_stream

KINDS = ("structural", "semantic")
TWINS = ("transferred", *NULLS)
# The features of the SAE of pythia-70m-deduped that Table 8 shows, with their classes there.
TABLE_8 = {18139: "semantic", 4469: "semantic", 889: "structural", 11062: "structural"}


@dataclass(frozen=True)
class FeatureStudyConfig:
    """Sizes and thresholds of the study."""

    sentences: int
    """Sentences that are drawn, each with its versions."""
    versions: int = 5
    """Versions of a sentence, beside the original (App. H.1)."""
    share: float = structure.SHARE
    """Share of the groups in which a feature fires at all where a structural one fires in all versions."""
    min_groups: int = structure.MIN_GROUPS
    """Groups in which a feature must fire to be classed."""
    threshold: float = 0.0
    """Activation that a feature must exceed to count as firing in a sentence."""
    min_fires: int = attribution.MIN_FIRES
    """Tokens on which a feature must fire, in both models, to be compared."""
    contexts: int = 3
    """Texts that are kept of each feature and model."""
    context_documents: int = 200
    """Documents of the evaluation text in which these are looked for."""
    null_documents: int = 100
    """Documents of the evaluation text on which features are held against the draws of the nulls."""
    seed: int = 0
    """Seed of the nulls, of the sentences and of the bootstrap."""

    def __post_init__(self):
        check_whole_numbers(self, seed=0)
        if not 0 < self.share <= 1 or self.threshold < 0:
            raise ValueError(f"expected a share in (0, 1] and threshold >= 0: got {self.share} and {self.threshold}")


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
    """Results for both directions: `up`, A's SAE carried to B, and `down`, the converse."""

    config: FeatureStudyConfig
    correlations: Mapping[str, Mapping[str, AttributionCorrelation]]
    """By direction, of the one twin `transferred`."""
    beside_nulls: Mapping[str, Mapping[str, AttributionCorrelation]]
    """The same on fewer documents, with the draws of the nulls (`attribution.drawn`) among the twins."""
    groups: AugmentedGroups
    classes: Mapping[str, structure.FeatureClasses]
    by_chance: Mapping[str, structure.FeatureClasses]
    """The classes from sentences that have nothing to do with each other."""
    recovered: Mapping[str, list[structure.Recovery]]
    """For 1, 2, ... versions; empty where it is not known which words are content."""
    recovered_clean: Mapping[str, list[structure.Recovery]]
    """From those groups alone of which no version breaks a rule."""
    contexts: Mapping[str, Mapping[str, Mapping[int, list[Context]]]]
    """By direction and model, `a` or `b`: the top contexts of each feature there."""
    named: Mapping[int, str]
    """Features of A's SAE whose classes are published; empty for other SAEs than that of Table 8."""

    def fires_enough(self, direction: str) -> np.ndarray:
        """Mark the features that can be compared with their twins across the fitted stitch."""
        return self.correlations[direction]["transferred"].alive(self.config.min_fires)

    def alive(self, direction: str) -> np.ndarray:
        """Mark the features that fire often enough in both models and have a class."""
        return self.fires_enough(direction) & ~self.classes[direction].dead

    def of_kind(self, direction: str, kind: str) -> np.ndarray:
        """List the numbers of the living features of a class."""
        return np.flatnonzero(self.alive(direction) & getattr(self.classes[direction], kind))

    def compared(self, direction: str) -> np.ndarray:
        """Mark the features that fire often enough there, too, where they are held against the nulls."""
        twins = self.beside_nulls[direction]
        return self.fires_enough(direction) & twins["transferred"].alive(self.config.min_fires)

    def correlation(self, direction: str, twin: str = "transferred") -> np.ndarray:
        """Select the correlations of features that are alive across the fitted stitch: across it, or all of a null."""
        if twin == "transferred":
            return self.correlations[direction][twin].correlation[self.fires_enough(direction)]
        twins, some = self.beside_nulls[direction], self.compared(direction)
        found = np.concatenate([twins[name].correlation[some] for name in drawn(twin)])
        return found[np.isfinite(found)]

    def band(self, direction: str, null: str) -> tuple[float, float]:
        """Find the middle nine tenths of the correlations across the draws of a null; NaN where no twin fires."""
        found = self.correlation(direction, null)
        return tuple(np.quantile(found, (0.05, 0.95)).tolist()) if len(found) else (np.nan, np.nan)

    def table8(self) -> pd.DataFrame:
        """Tabulate the features whose classes are published: the class there, ours, and the consistency."""
        classes = self.classes["up"]
        rows = [
            (feature, published, self.class_of(feature), classes.consistency[feature])
            for feature, published in self.named.items()
        ]
        return pd.DataFrame(rows, columns=["feature", "class in the paper", "class here", "consistency"])

    def class_of(self, feature: int) -> str:
        """Name the class of a feature of A's SAE, or `dead`."""
        return next((kind for kind in KINDS if getattr(self.classes["up"], kind)[feature]), "dead")

    def numbers(self, pair: str) -> dict[str, float]:
        """Return the entries of a results file, under the ids of Figs. 14 and 4b and of Table 7."""
        found: dict[str, float] = {}
        for direction in self.correlations:
            found |= self._figure14(f"figure14.{pair}.{direction}", direction)
            found |= self._figure4b(f"figure4b.{pair}.{direction}", direction)
            found |= self._recovery(f"recovery.{pair}.{direction}", direction)
        if self.recovered:
            found[f"recovery.{pair}.groups"] = len(self.groups.groups)
            found[f"recovery.{pair}.kept_groups"] = sum(self.groups.clean)
        found[f"table7.{pair}.versions"] = self.groups.versions
        found |= self.groups.whole(self.config.seed).numbers(f"table7.{pair}.whole")
        for rule, count in self.groups.broken.items():
            found[f"table7.{pair}.broken.{rule.replace(' ', '_')}"] = count / self.groups.versions
        if self.named:
            agree = sum(self.class_of(feature) == published for feature, published in self.named.items())
            found |= {f"table8.{pair}.named": len(self.named), f"table8.{pair}.agree": agree}
        return found

    def _recovery(self, start: str, direction: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, features, of in (("k", "features", self.recovered), ("kept", "kept_features", self.recovered_clean)):
            for one in of.get(direction, ()):
                found |= _estimates(f"{start}.{name}_{one.k}", one.scores)
                found[f"{start}.{features}"] = one.content + one.others  # the same for every k
        return found

    def _figure14(self, start: str, direction: str) -> dict[str, float]:
        enough, compared, seed = self.fires_enough(direction), self.compared(direction), self.config.seed
        found: dict[str, float] = {f"{start}.features": int(enough.sum()), f"{start}.left_out": int((~enough).sum())}
        found[f"{start}.compared"] = int(compared.sum())
        if not compared.any():
            return found
        whole, _ = self.correlations[direction]["transferred"].sums.correlations(seed)
        twins, measured = self.beside_nulls[direction], {null: [] for null in NULLS}

        def rows_of(name: str) -> np.ndarray:
            return twins[name].sums.correlations(seed)[0][:, compared]

        def draws_of(null: str) -> Iterator[np.ndarray]:
            """Read one draw at a time, since together they would fill the memory; a silent twin counts as 0."""
            for name in drawn(null):
                rows = np.nan_to_num(rows_of(name))
                measured[null].append(statistics(rows))
                yield rows

        spoken = twins["transferred"].sums.spoken(seed)[:, compared]
        counted = census(rows_of("transferred"), {null: draws_of(null) for null in NULLS}, spoken)
        for twin, of_twin in ({"transferred": [statistics(whole[:, enough])]} | measured).items():
            found |= _estimates(f"{start}.{twin}", summarise(*of_twin), "mean", "median", "above_half", "below_zero")
        found |= counted.better.numbers(f"{start}.better_than.both") | counted.flipped.numbers(f"{start}.flipped")
        found |= _estimates(f"{start}.better_than", counted.better_than)
        found |= {
            f"{start}.speaking": counted.speaking,
            f"{start}.flipped_of_left": counted.flipped_of_left.value.value,
        }
        found |= counted.flipped_of_left.more.numbers(f"{start}.flipped_of_left.more")
        return found | (counted.lost.numbers(f"{start}.lost") if counted.lost else {})

    def _figure4b(self, start: str, direction: str) -> dict[str, float]:
        result, classes, seed = self.correlations[direction]["transferred"], self.classes[direction], self.config.seed
        correlations, rates = result.sums.correlations(seed)
        found: dict[str, float] = {}
        for kind in KINDS:
            some, begin = self.of_kind(direction, kind), f"{start}.{kind}"
            found[f"{begin}.features"] = len(some)
            found[f"{begin}.by_chance"] = int(getattr(self.by_chance[direction], kind).sum())
            if len(some):
                found |= _estimates(begin, summarise(statistics(correlations[:, some])), "mean", "spread")
                found |= summarise(statistics(rates[:, some]))["median"].numbers(f"{begin}.rate")
        if all(len(self.of_kind(direction, kind)) for kind in KINDS):
            alive = self.alive(direction)
            living = np.where(alive, correlations, np.nan)
            found |= _estimates(start, structure.density_ratios(living, classes, seed=seed))
            found |= _estimates(start, structure.rate_ratio(rates, classes, alive, seed=seed))
            differences, counts = structure.matched_rates(living, result.firing_rate, classes, seed=seed)
            found |= _estimates(start, differences) | {f"{start}.{name}": count for name, count in counts.items()}
        return found


def _estimates(start: str, of: Mapping[str, Estimate], *names: str) -> dict[str, float]:
    """Collect the entries of all estimates, or of some, under their names."""
    return {id: value for name in names or of for id, value in of[name].numbers(f"{start}.{name}").items()}


def study_features(stitched: StitchedPair, saes: tuple[SAE, SAE], config: FeatureStudyConfig) -> FeatureStudy:
    """Compare and class all features of `saes`, A's and B's, and find their contexts."""
    seed, sides = config.seed, list(zip(saes, SIDES.items()))
    twins = {way: attribution.carried(stitched, sae, to=target, seed=seed) for sae, (way, (_, target)) in sides}
    fitted = {way: both._replace(others={"transferred": both.others["transferred"]}) for way, both in twins.items()}
    correlations = attribution.attribution_correlations(stitched, fitted)
    some = stitched.evaluation_batches(config.null_documents)
    beside_nulls = attribution.attribution_correlations(stitched, twins, some)
    groups = augmented_groups(stitched.pair, config.sentences, config.versions, seed=seed)
    size = len(groups.groups), config.versions
    marked = marked_groups(world_stream(seed), *size) if groups.source == "world" else []
    options = {"share": config.share, "min_groups": config.min_groups}

    def contexts_of(side: str, sae: SAE) -> dict[int, list[Context]]:
        batches = stitched.evaluation_rows(side)
        some = itertools.takewhile(lambda batch: int(batch.documents.min()) < config.context_documents, batches)
        return top_contexts(*stitched.side(side), sae, some, n=config.contexts)

    classes, by_chance, recovered, clean, contexts = {}, {}, {}, {}, {}
    for sae, (direction, (source, target)) in sides:
        model, layer = stitched.side(source)
        found = structure.feature_presence(model, layer, sae, groups.groups, threshold=config.threshold)
        classes[direction] = structure.classify(found, **options)
        by_chance[direction] = structure.classify(structure.unrelated(found, seed=seed), **options)
        if marked:
            known = structure.known_words(model, layer, sae, list(itertools.chain(*marked)))
            judge = functools.partial(structure.recovery, known=known, min_fires=config.min_fires, seed=seed, **options)
            recovered[direction], clean[direction] = judge(found), judge(found[groups.clean])
        twin = cast(SAE, twins[direction].others["transferred"])
        contexts[direction] = {source: contexts_of(source, sae), target: contexts_of(target, twin)}
    named = named_features(stitched.pair, saes[0])
    return FeatureStudy(
        config, correlations, beside_nulls, groups, classes, by_chance, recovered, clean, contexts, named
    )


def named_features(pair: ModelPair, sae: SAE) -> dict[int, str]:
    """Return the features of A's SAE whose classes are published: those of Table 8, or none for another SAE."""
    reference = load_pair("pythia")
    theirs = reference.a.model, reference.a.layer, reference.saes["a"]
    is_theirs = (pair.a.model, pair.a.layer, pair.saes.get("a")) == theirs and sae.cfg.d_sae > max(TABLE_8)
    return TABLE_8 if is_theirs else {}
