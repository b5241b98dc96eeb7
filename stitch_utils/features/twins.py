"""The study of section 5.2 as a whole: features with a role in A, their twins on B, and random twins beside them.

Feature i of A's SAE and feature i of the transferred SAE are twins. Entropy features (Fig. 5a) are found by geometry
and put to a causal test; attention deactivation (Figs. 5b and 16) is searched for in A, and the feature that moves a
head most is followed to B. What chosen features and heads do is measured on another text; the sizes and ranks by which
entropy features are chosen are of the text that is searched. The SAE through stitches of random matrices stands beside
everything.

Offers `functional_twins`, `FunctionalTwins`, `study_entropy`, `EntropyStudy`, `study_deactivation`,
`DeactivationStudy`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sae_lens import SAE
from torch import Tensor

from ..data.text import TokenBatch
from ..models.language_model import LanguageModel
from ..saes.transfer import transfer_sae
from ..stitching.pair import StitchedPair
from ..stitching.stitch import random_stitch
from ..utils.stats import Estimate, from_draws, over_seeds, resampled_counts
from .attention import DeactivationSearch, HeadRoles, deactivation_search, head_roles
from .entropy import (
    ActivationSummary,
    EntropyFeatures,
    FunctionalConfig,
    NullSpace,
    decoder_rows,
    entropy_features,
    functional_texts,
    null_space,
    summarise_activations,
    unembedding,
)
from .entropy_effects import EntropyTests, entropy_tests

SHOWN = 8  # entropy features that are followed, at most
ENDS = ("closing", "opening")
MEASURES = {
    "entropy_change": lambda test: test.features.entropy_size,
    "rank_change": lambda test: test.features.rank_size,
    "per_rank": lambda test: test.features.per_rank,
    "per_rank_of_random_directions": lambda test: test.random.per_rank.mean(-1),
}


@dataclass(frozen=True)
class FunctionalTwins:
    """A's SAE, `before`; on B the transferred one, `after`, and those through random stitches, `random 0` and on."""

    config: FunctionalConfig
    stitched: StitchedPair
    saes: Mapping[str, SAE]
    activity: Mapping[str, ActivationSummary]
    """Of each SAE on the text that is searched."""
    spaces: tuple[NullSpace, NullSpace]
    """Where A's and B's unembeddings hardly read."""
    search: Sequence[TokenBatch]
    evaluation: Sequence[TokenBatch]
    few: Sequence[TokenBatch]
    """To which directions are added."""

    @property
    def groups(self) -> dict[str, list[str]]:
        """`before`, `after` and `random`, with the SAEs of each."""
        return {"before": ["before"], "after": ["after"], "random": [key for key in self.saes if key.startswith("r")]}

    def at(self, key: str) -> tuple[LanguageModel, int]:
        """The model that an SAE reads, and the block before which it does."""
        return self.stitched.side("a" if key == "before" else "b")

    def space(self, key: str) -> NullSpace:
        """The null space of the model that an SAE reads."""
        return self.spaces[key != "before"]


def functional_twins(stitched: StitchedPair, original: SAE, config: FunctionalConfig) -> FunctionalTwins:
    """Transfer A's SAE `original` to B, and read all texts; ValueError for text without an ordinary token."""
    stitch, means = stitched.stitch, (stitched.moments.mean_x, stitched.moments.mean_y)
    twins = {"after": transfer_sae(original, stitch)}
    for number in range(config.random_stitches):
        twins[f"random {number}"] = transfer_sae(original, random_stitch(stitch, config.seed + number, means=means))
    search, evaluation, few = functional_texts(stitched, config)
    activity = summarise_activations(*stitched.side("a"), {"before": original}, search)
    activity |= summarise_activations(*stitched.side("b"), twins, search)
    spaces = [null_space(unembedding(model), bottom=config.bottom) for model in stitched.models]
    saes = {"before": original, **twins}
    return FunctionalTwins(config, stitched, saes, activity, (spaces[0], spaces[1]), search, evaluation, few)


@dataclass(frozen=True)
class EntropyStudy:
    """Fig. 5a: entropy features of A, what becomes of them on B, and whether they act on the entropy."""

    twins: FunctionalTwins
    found: Mapping[str, EntropyFeatures]
    """By SAE."""
    tests: Mapping[str, EntropyTests]
    """By SAE, of the features that are followed."""

    @property
    def candidates(self) -> tuple[int, ...]:
        """The entropy features of A's SAE."""
        return self.found["before"].candidates

    @property
    def followed(self) -> list[int]:
        """The first of them; without any, the feature that comes closest."""
        return _followed(self.found["before"])

    @property
    def kept(self) -> list[int]:
        """Of A's entropy features those whose twins are entropy features of the transferred SAE."""
        return [feature for feature in self.candidates if feature in self.found["after"].candidates]

    def random_count(self) -> float:
        """Entropy features of the SAE through a random stitch, on average."""
        return _mean([len(self.found[key].candidates) for key in self.twins.groups["random"]])

    def marked(self, key: str) -> np.ndarray:
        """Which of the features that fire are followed."""
        alive = self.found[key].alive.numpy()
        return np.isin(np.arange(len(alive)), self.followed)[alive]

    def numbers(self, pair: str) -> dict[str, float]:
        """The entries of a results file: under `figure5a.<pair>`, counts and then the means over those followed."""
        start, followed, own = f"figure5a.{pair}", self.followed, self.found["before"]
        numbers: dict[str, float] = {
            f"{start}.count": len(self.candidates),
            f"{start}.followed": len(followed) if self.candidates else 0,
            f"{start}.kept": len(self.kept),
            f"{start}.by_chance": own.by_chance,
            f"{start}.after.count": len(self.found["after"].candidates),
            f"{start}.random.count": self.random_count(),
        }
        for group, keys in self.twins.groups.items():
            some = [self.found[key] for key in keys]
            numbers |= {
                f"{start}.{group}.null_rank": _mean([one.share_rank[followed].min() for one in some]),
                f"{start}.{group}.norm_rank": _mean([one.size_rank[followed].min() for one in some]),
                f"{start}.{group}.null_share": _mean([one.share[followed].sqrt().mean() for one in some]),
                f"{start}.{group}.chance": self.twins.space(keys[0]).chance.value ** 0.5,
            }
            for quantity, measure in MEASURES.items():
                numbers |= self.of_group(group, measure).numbers(f"{start}.{group}.{quantity}")
            numbers |= self.acting(group).numbers(f"{start}.{group}.acting")
        return numbers

    def of_group(self, group: str, measure: Callable[[EntropyTests], Tensor]) -> Estimate:
        """Mean of a measure over its last dimension, the features followed, say, and over a group's SAEs; documents are
        resampled."""
        tests = [self.tests[key] for key in self.twins.groups[group]]
        counts = resampled_counts(tests[0].documents, self.twins.config.seed)
        value = _mean([measure(test).float().mean() for test in tests])
        draws = [measure(test.resampled(counts)).float().mean(1).numpy() for test in tests]
        return from_draws(value, np.mean(draws, axis=0))

    def of_feature(self, feature: int, group: str) -> dict[str, float]:
        """Of a feature that is followed, on average over a group's SAEs: its share of the norm and rank by size; means
        of what adding it does, the entropy's change with its sign and without, the rank's, and their ratio; the median
        of that ratio for random directions, and how many of them it exceeds."""
        place, keys = self.followed.index(feature), self.twins.groups[group]
        tests = [self.tests[key] for key in keys]
        of_saes = {
            "share": [self.found[key].share[feature].sqrt() for key in keys],
            "size rank": [self.found[key].size_rank[feature] for key in keys],
            "entropy": [test.features.entropy[place] for test in tests],
            "its size": [test.features.entropy_size[place] for test in tests],
            "rank": [test.features.rank_size[place] for test in tests],
            "ratio": [test.features.per_rank[place] for test in tests],
            "random": [test.random.per_rank[place].median() for test in tests],
            "above": [test.exceeded[place] for test in tests],
        }
        return {name: _mean(values) for name, values in of_saes.items()}

    def acting(self, group: str) -> Estimate:
        """How many of the entropy features that are followed act on the entropy, on average over a group's SAEs."""
        if not self.candidates:
            return Estimate(0.0, 0.0, 0.0)
        return self.of_group(group, lambda test: test.acting.sum(-1, keepdim=True))


def study_entropy(twins: FunctionalTwins) -> EntropyStudy:
    """Find the entropy features of every SAE, and add what those of A that are followed write to the stream."""
    config = twins.config
    found = {
        key: entropy_features(sae, twins.activity[key], twins.space(key), quantile=config.quantile)
        for key, sae in twins.saes.items()
    }
    some, tests = _followed(found["before"]), {}
    for key, sae in twins.saes.items():
        directions = twins.activity[key].mean[some, None] * decoder_rows(sae).cpu()[some]
        options = {"n_random": config.random_directions, "seed": config.seed}
        tests[key] = entropy_tests(*twins.at(key), directions, twins.few, **options)
    return EntropyStudy(twins, found, tests)


def _followed(found: EntropyFeatures) -> list[int]:
    return list(found.candidates[:SHOWN] or (found.closest,))


def _mean(values: Sequence) -> float:
    return float(np.mean(values))


@dataclass(frozen=True)
class DeactivationStudy:
    """Figs. 5b and 16: the feature of A that most sends a head to the first token, and its twins."""

    twins: FunctionalTwins
    search: DeactivationSearch
    feature: int
    roles: Mapping[str, HeadRoles]
    """By SAE: the head that the feature most sends there (`closing`), and that it draws away most, or sends there
    least (`opening`)."""
    changes: Mapping[tuple[str, str], Estimate]
    """By SAE and end: change of the attention to the first token when the path to that head is ablated."""

    @property
    def exists(self) -> bool:
        """Whether A has a deactivation feature: ablation lowers the attention, also on the other text, beyond chance
        and by the config's `smallest` at least."""
        change = self.changes["before", "closing"]
        return change.high < 0 and change.value <= -self.twins.config.smallest

    def share(self, key: str) -> float:
        """Of the feature's squared norm, in the null space of the unembedding."""
        return self.twins.space(key).share(decoder_rows(self.twins.saes[key])[self.feature, None]).item()

    def numbers(self, pair: str) -> dict[str, float]:
        """The entries of a results file, under `figure5b.<pair>` and `figure16.<pair>`."""
        strangers, numbers = self.twins.groups["random"], {}
        start = f"figure5b.{pair}"
        for key in ("before", "after"):
            effect, share = self.roles[key].closing, self.share(key)
            numbers |= self.changes[key, "closing"].numbers(f"{start}.{key}.change")
            numbers |= {
                f"{start}.{key}.attended": float(effect.attended.mean()) if len(effect.attended) else 0.0,
                f"{start}.{key}.tokens": len(effect.attended),
                f"{start}.{key}.null_share": share**0.5,
                f"{start}.{key}.null_share_squared": share,
                f"{start}.{key}.chance": self.twins.space(key).chance.value ** 0.5,
            }
        random = {end: [self.changes[key, end].value for key in strangers] for end in ENDS}
        numbers[f"{start}.random.null_share"] = _mean([self.share(key) ** 0.5 for key in strangers])
        numbers |= over_seeds(random["closing"]).numbers(f"{start}.random.change")
        numbers[f"{start}.random.lowest_change"] = min(random["closing"])
        numbers[f"{start}.found"] = int(self.exists)
        numbers |= self.changes["after", "opening"].numbers(f"figure16.{pair}.change")
        numbers |= self.changes["before", "opening"].numbers(f"figure16.{pair}.before.change")
        numbers[f"figure16.{pair}.random.highest_change"] = max(random["opening"])
        return numbers | over_seeds(random["opening"]).numbers(f"figure16.{pair}.random.change")


def study_deactivation(twins: FunctionalTwins) -> DeactivationStudy:
    """Search A for the path whose ablation lowers the attention to the first token most, and follow its feature.

    ValueError if no feature fires often enough.
    """
    config, sizes = twins.config, {"max_tokens": twins.config.max_tokens}
    search = deactivation_search(
        *twins.at("before"),
        twins.saes["before"],
        twins.activity["before"],
        twins.search,
        candidates=config.candidates,
        min_tokens=config.min_tokens,
        **sizes,
    )
    feature = search.effects[0].path.feature
    assert feature is not None  # the search tries paths of single features
    roles = {
        key: head_roles(*twins.at(key), sae, feature, twins.search, twins.evaluation, **sizes)
        for key, sae in twins.saes.items()
    }
    changes = {(key, end): getattr(role, end).change(seed=config.seed) for key, role in roles.items() for end in ENDS}
    return DeactivationStudy(twins, search, feature, roles, changes)
