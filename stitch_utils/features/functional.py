"""The study of section 5.2: features with a role in A, their twins on B, and random twins beside them.

Entropy features (Fig. 5a) are found by geometry and put to a causal test. Attention deactivation (Figs. 5b and 16) is
searched for in A, and the feature that moves a head most is followed to B. What chosen features and heads do is
measured on another text; sizes and ranks, which choose the entropy features, are of the text that is searched.

Offers `FunctionalConfig`, `functional_config`, `functional_texts`, `FunctionalTexts`, `functional_twins`,
`FunctionalTwins`, `study_entropy`, `EntropyStudy`, `study_deactivation`, `DeactivationStudy`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from sae_lens import SAE

from ..data.pairs import ModelPair, check_whole_numbers
from ..data.text import TokenBatch
from ..models.harvest import evaluation_batches, training_batches
from ..models.language_model import LanguageModel
from ..saes.transfer import transfer_sae
from ..stitching.nulls import DRAWS, component_stitches
from ..stitching.pair import StitchedPair
from ..stitching.stitch import random_stitch
from ..utils.stats import Beyond, Estimate, from_resamples, over_seeds
from . import entropy
from .attention import ENDS, DeactivationSearch, PathEffect, deactivation_search, head_roles

SHOWN = 8  # bounds the entropy features that are followed
MEASURES = {
    "entropy_change": lambda test: test.mean("entropy size")[..., 0],
    "rank_change": lambda test: test.mean("rank size")[..., 0],
    "per_rank": lambda test: test.per_rank[..., 0],
    "per_rank_of_random_directions": lambda test: test.per_rank[..., 1:].mean(-1),
    "over_random_directions": lambda test: test.over_random,
}
OWN = ("entropy_change", "rank_change", "per_rank")  # of these, those that need no random directions
NULLS = ("random", "components")  # groups of twins that know no pairing


@dataclass(frozen=True)
class FunctionalConfig:
    """How much text is read, and where lines are drawn; the paper gives none of these numbers but the 2%."""

    search_documents: int
    """Documents of the training text on which features and heads are chosen."""
    evaluation_documents: int
    """Documents of the evaluation text on which those chosen are measured."""
    entropy_documents: int
    """Documents, the first of the evaluation text, on which directions are added; an interval needs two."""
    candidates: int
    """Paths from a feature to a head that the search tries, those of the largest and smallest scores."""
    max_tokens: int
    """Tokens on which a path is tried, at most."""
    min_tokens: int = 20
    """Tokens of the search on which a feature must fire."""
    quantile: float = 0.95
    """Quantile of size and of share that an entropy feature exceeds."""
    bottom: float = entropy.BOTTOM
    """Share of the unembedding's singular values whose directions count as its null space."""
    random_directions: int = 20
    """Random directions that are set beside each feature's own."""
    smallest: float = 0.05
    """Change of the attention to the first token from which on a feature counts as one that switches a head off."""
    random_stitches: int = 5
    """Random stitches that carry A's SAE to B as a yardstick; an interval needs two."""
    component_stitches: int = DRAWS
    """Stitches that know both streams' principal components and no pairing, another yardstick (`stitching.nulls`)."""
    seed: int = 0
    """Seed of the stitches and directions that are drawn, and of the bootstrap."""

    def __post_init__(self):
        check_whole_numbers(self, random_stitches=2, component_stitches=2, entropy_documents=2, seed=0)
        if not (0 < self.quantile < 1 and 0 < self.bottom < 1):
            raise ValueError(f"quantile and bottom lie between 0 and 1: got {self.quantile} and {self.bottom}")


def functional_config(pair: ModelPair, scale: str, **changes: Any) -> FunctionalConfig:
    """Take the sizes of a scale, with `changes` to them."""
    return FunctionalConfig(**pair.sizes_of("entropy", scale) | changes)


class FunctionalTexts(NamedTuple):
    """The texts of one model."""

    search: Sequence[TokenBatch]
    evaluation: Sequence[TokenBatch]
    few: Sequence[TokenBatch]
    """The text to which directions are added."""


def functional_texts(stitched: StitchedPair, config: FunctionalConfig) -> dict[str, FunctionalTexts]:
    """Read the texts in the tokens of `a` and of `b`, without columns that are filled up in all rows.

    Each document has a row of its own, also where the pair packs them, so that a head has one token that begins a text.
    """
    alone, sizes, tokenizers = replace(stitched.pair, rows="document"), stitched.sizes, stitched.tokenizers
    texts = [list(training_batches(alone, sizes, tokenizers, config.search_documents * alone.context))]
    for count in (config.evaluation_documents, config.entropy_documents):
        texts.append(list(evaluation_batches(alone, replace(sizes, eval_documents=count), tokenizers)))

    def trimmed(batch: TokenBatch) -> TokenBatch:
        width = 1 + max([1, *batch.mask.any(0).nonzero()[:, 0].tolist()])
        return batch.each(lambda part: part[:, :width])

    return {
        side: FunctionalTexts(*([trimmed(getattr(batch, side)) for batch in text] for text in texts)) for side in "ab"
    }


@dataclass(frozen=True)
class FunctionalTwins:
    """A's SAE, `before`; on B the transferred one, `after`, and those through stitches that know no pairing.

    The latter are `random 0` and on, through Gaussian maps, and `components 0` and on, by principal components.
    """

    config: FunctionalConfig
    saes: Mapping[str, SAE]
    sides: Mapping[str, tuple[LanguageModel, int]]
    """The model that each SAE reads, and the block before which it does."""
    activity: Mapping[str, entropy.ActivationSummary]
    """The activity of each SAE on the text that is searched."""
    spaces: Mapping[str, entropy.NullSpace]
    """Where the unembedding of each SAE's model hardly reads."""
    texts: Mapping[str, FunctionalTexts]
    """By model, `a` or `b`."""

    def texts_of(self, key: str) -> FunctionalTexts:
        """Return the texts in the tokens of the model that an SAE reads."""
        return self.texts["a" if key == "before" else "b"]

    @property
    def groups(self) -> dict[str, list[str]]:
        """`before`, `after`, `random` and `components`, with the SAEs of each."""
        nulls = {group: [key for key in self.saes if key.startswith(f"{group} ")] for group in NULLS}
        return {"before": ["before"], "after": ["after"], **nulls}


def functional_twins(stitched: StitchedPair, original: SAE, config: FunctionalConfig) -> FunctionalTwins:
    """Transfer A's SAE `original` to B, and read all texts; ValueError for text without an ordinary token."""
    stitch, means = stitched.stitch, (stitched.moments.mean_x, stitched.moments.mean_y)
    twins = {"after": transfer_sae(original, stitch)}
    for number in range(config.random_stitches):
        twins[f"random {number}"] = transfer_sae(original, random_stitch(stitch, config.seed + number, means=means))
    drawn = component_stitches(stitched.moments, config.component_stitches, seed=config.seed)
    twins |= {f"components {number}": transfer_sae(original, null) for number, null in enumerate(drawn)}
    texts, sides, activity, spaces = functional_texts(stitched, config), {}, {}, {}
    for side, saes in (("a", {"before": original}), ("b", twins)):
        model, layer = stitched.side(side)
        sides |= dict.fromkeys(saes, (model, layer))
        activity |= entropy.summarise_activations(model, layer, saes, texts[side].search)
        spaces |= dict.fromkeys(saes, entropy.null_space(*entropy.unembedding(model), bottom=config.bottom))
    return FunctionalTwins(config, {"before": original, **twins}, sides, activity, spaces, texts)


@dataclass(frozen=True)
class EntropyStudy:
    """Fig. 5a: entropy features of A, what becomes of them on B, and whether they act on the entropy."""

    twins: FunctionalTwins
    found: Mapping[str, entropy.EntropyFeatures]
    """By SAE."""
    followed: list[int]
    """The first entropy features of A's SAE; without any, the feature that comes closest."""
    tests: Mapping[str, entropy.EntropyEffects]
    """By SAE, of the features that are followed."""

    def marked(self, key: str) -> np.ndarray:
        """Mark, among the features that fire, those that are followed."""
        return np.isin(np.flatnonzero(self.found[key].alive.numpy()), self.followed)

    def numbers(self, pair: str) -> dict[str, float]:
        """Return the entries of a results file under `figure5a.<pair>`: counts, and means over those followed."""
        start, followed = f"figure5a.{pair}", self.followed
        found = {key: one.candidates for key, one in self.found.items()}
        numbers: dict[str, float] = {
            f"{start}.count": len(found["before"]),
            f"{start}.followed": len(followed) if found["before"] else 0,
            f"{start}.kept": len({*found["before"]} & {*found["after"]}),
            f"{start}.after.count": len(found["after"]),
            **self.found["before"].by_chance.numbers(f"{start}.by_chance"),
        }
        for group, keys in self.twins.groups.items():
            some, begin = [self.found[key] for key in keys], f"{start}.{group}"
            numbers |= {
                f"{begin}.null_rank": _mean([one.share_rank[followed].min() for one in some]),
                f"{begin}.norm_rank": _mean([one.size_rank[followed].min() for one in some]),
                f"{begin}.null_share": _mean([one.share[followed].sqrt().mean() for one in some]),
                f"{begin}.lowest_rank": _mean([self._lowest_rank(key) for key in keys]),
                **_root(self.twins.spaces[keys[0]].chance).numbers(f"{begin}.chance"),
            }
            for quantity in OWN if group == "components" else MEASURES:
                numbers |= from_resamples(self._resampled(group, quantity).mean(1)).numbers(f"{begin}.{quantity}")
        after = self._resampled("after", "per_rank")[:, 0]
        for null in NULLS:
            keys = self.twins.groups[null]
            numbers[f"{start}.{null}.count"] = _mean([len(found[key]) for key in keys])
            best = max(self._lowest_rank(key) for key in keys)
            numbers[f"{start}.after.lowest_rank.beyond_{null}"] = self._lowest_rank("after") - best
            beyond = Beyond.of(after, self._resampled(null, "per_rank"))
            numbers |= beyond.more.numbers(f"{start}.after.per_rank.beyond_{null}")
        return numbers

    def _lowest_rank(self, key: str) -> float:
        """Take the lowest rank, by share or by size, of all features that are followed."""
        one = self.found[key]
        return float(min(one.share_rank[self.followed].min(), one.size_rank[self.followed].min()))

    def _resampled(self, group: str, quantity: str) -> np.ndarray:
        """Average one of `MEASURES` over features, for a group's SAEs: (1 + resamples of documents, SAEs)."""
        tests = (self.tests[key].resampled(self.twins.config.seed) for key in self.twins.groups[group])
        return np.stack([MEASURES[quantity](test).float().mean(1).numpy() for test in tests], axis=1)

    def of_feature(self, feature: int, group: str) -> dict[str, float]:
        """Average over a group's SAEs what is known of a feature that is followed.

        Its share of the norm and its rank by size; what adding it changes: the entropy, with its sign and without, the
        rank, and their ratio; the median ratio of random directions, and the share of them that it exceeds, where such
        directions were tried.
        """
        place, keys = self.followed.index(feature), self.twins.groups[group]
        found, tests = [self.found[key] for key in keys], [self.tests[key] for key in keys]
        known = {
            "share": _mean([one.share[feature].sqrt() for one in found]),
            "size rank": _mean([one.size_rank[feature] for one in found]),
            "entropy": _mean([test.mean("entropy")[place, 0] for test in tests]),
            "its size": _mean([test.mean("entropy size")[place, 0] for test in tests]),
            "rank": _mean([test.mean("rank size")[place, 0] for test in tests]),
            "ratio": _mean([test.per_rank[place, 0] for test in tests]),
        }
        if group != "components":
            known["random"] = _mean([test.per_rank[place, 1:].median() for test in tests])
            known["above"] = _mean([test.exceeded[place] for test in tests])
        return known


def study_entropy(twins: FunctionalTwins) -> EntropyStudy:
    """Find the entropy features of every SAE, and add what those of A that are followed write to the stream.

    Each is compared with random directions, except the twins by principal components, which are too many.
    """
    config, found, tests = twins.config, {}, {}
    for key, sae in twins.saes.items():
        found[key] = entropy.entropy_features(sae, twins.activity[key], twins.spaces[key], quantile=config.quantile)
    followed = list(found["before"].candidates[:SHOWN] or (found["before"].closest,))
    for key, sae in twins.saes.items():
        directions = twins.activity[key].mean[followed, None] * entropy.decoder_rows(sae).cpu()[followed]
        n_random = 0 if key in twins.groups["components"] else config.random_directions
        options = {"n_random": n_random, "seed": config.seed}
        tests[key] = entropy.entropy_tests(*twins.sides[key], directions, twins.texts_of(key).few, **options)
    return EntropyStudy(twins, found, followed, tests)


def _mean(values: Sequence) -> float:
    return float(np.mean(values))


def _root(share: Estimate) -> Estimate:
    """Turn a share of the squared norm into one of the norm."""
    return Estimate(*(value**0.5 for value in share))


@dataclass(frozen=True)
class DeactivationStudy:
    """Figs. 5b and 16: the feature of A that most sends a head to the first token, and its twins."""

    twins: FunctionalTwins
    search: DeactivationSearch
    feature: int
    roles: Mapping[str, Mapping[str, PathEffect]]
    """By SAE and end: the effects on the heads that the feature moves most."""
    changes: Mapping[tuple[str, str], Estimate]
    """By SAE and end: change of the attention to the first token when the path to that head is ablated."""

    @property
    def exists(self) -> bool:
        """Whether A's feature is one: ablation lowers the attention on the other text beyond chance, by `smallest`."""
        change = self.changes["before", "closing"]
        return change.high < 0 and change.value <= -self.twins.config.smallest

    def share(self, key: str) -> float:
        """Compute the share of the feature's squared norm in the null space of the unembedding."""
        return self.twins.spaces[key].share(entropy.decoder_rows(self.twins.saes[key])[self.feature, None]).item()

    def numbers(self, pair: str) -> dict[str, float]:
        """Return the entries of a results file under `figure5b.<pair>` and `figure16.<pair>`."""
        start, other, numbers = f"figure5b.{pair}", f"figure16.{pair}", {}
        for key in ("before", "after"):
            effect, share = self.roles[key]["closing"], self.share(key)
            numbers |= self.changes[key, "closing"].numbers(f"{start}.{key}.change")
            numbers |= {
                f"{start}.{key}.attended": float(effect.attended.mean()) if len(effect.attended) else 0.0,
                f"{start}.{key}.tokens": len(effect.attended),
                f"{start}.{key}.null_share": share**0.5,
                f"{start}.{key}.null_share_squared": share,
                **_root(self.twins.spaces[key].chance).numbers(f"{start}.{key}.chance"),
            }
        numbers[f"{start}.found"] = int(self.exists)
        numbers |= self.changes["after", "opening"].numbers(f"{other}.change")
        numbers |= self.changes["before", "opening"].numbers(f"{other}.before.change")
        for null in NULLS:
            keys = self.twins.groups[null]
            closing, opening = ([self.changes[key, end].value for key in keys] for end in ENDS)
            shares = [self.share(key) ** 0.5 for key in keys]
            numbers |= over_seeds(closing).numbers(f"{start}.{null}.change")
            numbers |= over_seeds(opening).numbers(f"{other}.{null}.change")
            numbers[f"{start}.{null}.null_share"] = _mean(shares)
            numbers[f"{start}.after.null_share.beyond_{null}"] = self.share("after") ** 0.5 - max(shares)
            numbers |= self._beyond("closing", keys).numbers(f"{start}.after.change.beyond_{null}")
            numbers |= self._beyond("opening", keys).numbers(f"{other}.change.beyond_{null}")
        return numbers

    def _beyond(self, end: str, keys: Sequence[str]) -> Estimate:
        """Say how much further the twin moves its head than the best of these SAEs does, on the same documents."""
        effects = [self.roles[key][end] for key in ("after", *keys)]
        own, *others = effects if end == "closing" else [effect.reversed() for effect in effects]
        return own.beyond(others, seed=self.twins.config.seed)


def study_deactivation(twins: FunctionalTwins) -> DeactivationStudy:
    """Search A for the path whose ablation lowers the attention to the first token most, and follow its feature.

    ValueError if no feature fires often enough.
    """
    config, sizes, roles = twins.config, {"max_tokens": twins.config.max_tokens}, {}
    limits = sizes | {"candidates": config.candidates, "min_tokens": config.min_tokens}
    original = twins.saes["before"], twins.activity["before"]
    search = deactivation_search(*twins.sides["before"], *original, twins.texts["a"].search, **limits)
    feature = search.effects[0].path.feature
    for key, sae in twins.saes.items():
        search_text, evaluation, _ = twins.texts_of(key)
        roles[key] = head_roles(*twins.sides[key], sae, feature, search_text, evaluation, **sizes)
    changes = {(key, end): roles[key][end].change(seed=config.seed) for key in roles for end in ENDS}
    return DeactivationStudy(twins, search, feature, roles, changes)
