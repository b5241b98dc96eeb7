"""Structural and semantic features: those that fire whatever a sentence speaks of, and those that do not.

Section 5.1, Figs. 4 and 15. A sentence and its versions of the same structure (`rewriting`) are a group. In it a
feature of the original SAE fires in all versions (on some ordinary token of each), in some or in none. It is
*structural* if it fires in all versions of at least a share of the groups in which it fires in any, *semantic* if of
fewer, and *dead* if it fires in too few groups to tell. The paper gives no share. This rule calls a feature that fires
in every sentence structural, whatever it is about. Frequent features may transfer better for that alone, so
`matched_rates` compares the classes where they fire equally often. `unrelated` deals versions out among the groups: a
feature that is still consistent there is only dense.

The paper cannot check the classes. The embedded world's grammar marks every word that came from a slot for content: a
feature whose activation falls on such words should be semantic, any other structural. Where that fails, the feature
follows a role that any word may fill (the noun of place, say), or fires too often or too seldom for the classes.

Offers `feature_presence`, `classify`, `FeatureClasses`, `unrelated`, `matched_rates`, `density_ratios`,
`known_words`, `KnownWords`, `recovery`, `Recovery`.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from sae_lens import SAE
from scipy.stats import rankdata
from torch import Tensor

from ..data.embedded.marked import MarkedSentence
from ..data.text import TokenBatch, text_rows
from ..models.harvest import TOKENS_AT_ONCE, as_fits
from ..models.language_model import LanguageModel
from ..saes.evaluation import check_width
from ..utils.progress import progress
from ..utils.stats import Estimate
from .attribution import OfFeatures, over_features

Presence = Bool[np.ndarray, "groups versions features"]
CONTEXT = 128  # tokens of a sentence that are read, the beginning-of-text token included (App. H.1)
BATCH_SIZE = 64
SHARE = 0.5
MIN_GROUPS = 5
BINS_A_DECADE = 5


def feature_presence(
    model: LanguageModel, layer: int, sae: SAE, groups: Sequence[Sequence[str]], *, threshold: float = 0.0
) -> Presence:
    """Tell whether each feature exceeds `threshold` on an ordinary token of each sentence.

    ValueError for no groups, groups of different sizes, an SAE of another width than the model, and a sentence without
    an ordinary token.
    """
    sizes = {len(group) for group in groups}
    if len(sizes) != 1:
        raise ValueError(f"expected groups of one size: got {', '.join(map(str, sorted(sizes))) or 'no groups'}")
    texts = list(itertools.chain(*groups))
    present = np.zeros((len(texts), sae.cfg.d_sae), dtype=bool)
    for owners, _, latents in _of_sentences(model, layer, sae, texts, "sentences"):
        token, feature = (latents > threshold).nonzero().cpu().unbind(1)
        present[owners[token].numpy(), feature.numpy()] = True
    return present.reshape(len(groups), -1, sae.cfg.d_sae)


def _of_sentences(
    model: LanguageModel, layer: int, sae: SAE, texts: Sequence[str], title: str
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Give, for some ordinary tokens at a time, their sentences, places in the row, and latents (n, features)."""
    check_width(sae, model)

    def read(batch: TokenBatch) -> tuple[TokenBatch, Tensor]:
        empty = batch.documents[~batch.mask.any(1), 0]
        if len(empty):
            raise ValueError(f"the sentence {texts[int(empty[0])][:40]!r} has no ordinary token: expected at least one")
        return batch, model.residuals(batch.tokens, [layer])[layer][batch.mask.to(model.device)]

    batches = text_rows(texts, model.tokenizer, context=CONTEXT, batch_size=BATCH_SIZE)
    for batch, stream in progress(as_fits(batches, read), title):
        columns = batch.documents[batch.mask], batch.mask.nonzero()[:, 1], stream
        for owners, places, part in zip(*(column.split(TOKENS_AT_ONCE) for column in columns)):
            with torch.no_grad():
                latents = sae.encode(part.to(sae.W_enc))
            yield owners, places, latents


class FeatureClasses(NamedTuple):
    """Every feature is structural, semantic or dead."""

    structural: Bool[np.ndarray, " features"]
    semantic: Bool[np.ndarray, " features"]
    consistency: OfFeatures
    """Of the groups in which it fires, the share where it does in all versions; NaN if it fires in none."""

    @property
    def dead(self) -> Bool[np.ndarray, " features"]:
        return ~(self.structural | self.semantic)


def classify(presence: Presence, *, share: float = SHARE, min_groups: int = MIN_GROUPS) -> FeatureClasses:
    """Class features by where they fire; ValueError for groups without a version beside the original."""
    if presence.shape[1] < 2:
        raise ValueError(f"groups of {presence.shape[1]} sentences: expected an original and at least one version")
    if not 0 < share <= 1 or min_groups < 1:
        raise ValueError(f"expected a share in (0, 1] and min_groups >= 1: got {share} and {min_groups}")
    groups, consistent = presence.any(axis=1).sum(axis=0), presence.all(axis=1).sum(axis=0)
    consistency = np.divide(consistent, groups, out=np.full(len(groups), np.nan), where=groups > 0)
    enough = groups >= min_groups
    structural = enough & (consistency >= share)
    return FeatureClasses(structural, enough & ~structural, consistency)


def unrelated(presence: Presence, *, seed: int = 0) -> Presence:
    """Deal each version to another group at random, so that the sentences of a group share no structure."""
    generator = np.random.default_rng(seed)
    return np.stack([column[generator.permutation(len(column))] for column in presence.swapaxes(0, 1)], axis=1)


def matched_rates(
    correlation: OfFeatures, rate: OfFeatures, classes: FeatureClasses, *, seed: int = 0
) -> tuple[dict[str, Estimate], dict[str, int]]:
    """Compare the classes' correlations, of `all` features and `matched` in bins of the logarithm of the firing rate.

    Return the differences, structural less semantic, of the mean and the standard deviation (`all.mean`, `all.spread`,
    `matched.mean`, `matched.spread`), and how many features are compared (`all.structural`, ...). In the matched
    comparison, which is missing if the rates never meet, only bins with features of both classes count, and a
    structural feature weighs as much as there are semantic ones for each structural one in its bin. Features that have
    no correlation (NaN) or never fire are left out. ValueError if a class has no feature left.
    """
    usable = np.isfinite(correlation) & (rate > 0)
    sides = {name: np.flatnonzero(getattr(classes, name) & usable) for name in ("structural", "semantic")}
    bins = np.full(len(rate), -1)
    logs = np.floor(BINS_A_DECADE * np.log10(rate[usable])).astype(int)
    bins[usable] = logs - logs.min()
    n_bins = bins.max() + 1

    def matching(structural: np.ndarray, semantic: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weigh each structural feature, and mark the semantic ones that count."""
        counts, others = (np.bincount(bins[some], minlength=n_bins) for some in (structural, semantic))
        return (others / np.maximum(counts, 1))[bins[structural]], counts[bins[semantic]] > 0

    def differences(structural: np.ndarray, semantic: np.ndarray) -> dict[str, float]:
        """Subtract mean and spread as they are, and where matched."""
        ours, theirs = correlation[structural], correlation[semantic]
        weights, met = matching(structural, semantic)
        found = {"all.mean": ours.mean() - theirs.mean(), "all.spread": ours.std() - theirs.std()}
        if met.any():
            mean = np.average(ours, weights=weights)
            spread = np.average((ours - mean) ** 2, weights=weights) ** 0.5
            found |= {"matched.mean": mean - theirs[met].mean(), "matched.spread": spread - theirs[met].std()}
        return found

    counts = {f"all.{name}": len(some) for name, some in sides.items()}
    weights, met = matching(**sides)
    if met.any():
        counts |= {"matched.structural": int((weights > 0).sum()), "matched.semantic": int(met.sum())}
    return over_features(differences, *sides.values(), seed=seed), counts


def density_ratios(correlation: OfFeatures, classes: FeatureClasses, *, seed: int = 0) -> dict[str, Estimate]:
    """Compute Fig. 4b's relative density, semantic over structural, in `lowest_tenth` and `highest_tenth`.

    Half a feature is added to each count, so that an empty end has a ratio. Features that have no correlation (NaN) are
    left out. ValueError if a class has no feature left.
    """
    sides = [correlation[kind & np.isfinite(correlation)] for kind in (classes.semantic, classes.structural)]

    def ratios(*sides: np.ndarray) -> dict[str, float]:
        low, high = np.quantile(np.concatenate(sides), (0.1, 0.9))
        lowest = [((side <= low).sum() + 0.5) / (len(side) + 1) for side in sides]
        highest = [((side >= high).sum() + 0.5) / (len(side) + 1) for side in sides]
        return {"lowest_tenth": lowest[0] / lowest[1], "highest_tenth": highest[0] / highest[1]}

    return over_features(ratios, *sides, seed=seed)


class KnownWords(NamedTuple):
    """What features fire on, where it is known which words are content words."""

    share: OfFeatures
    """The share of a feature's activation that falls on tokens of content words; NaN if it never fires."""
    fires: Int[np.ndarray, " features"]
    """The number of tokens on which it does."""


def known_words(model: LanguageModel, layer: int, sae: SAE, sentences: Sequence[MarkedSentence]) -> KnownWords:
    """Measure where each feature's activation falls in sentences with marked content words; needs a fast tokenizer."""
    texts = [sentence.text for sentence in sentences]
    encoded = model.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    content = torch.zeros(len(texts), CONTEXT, dtype=torch.bool)
    for row, sentence, spans in zip(content, sentences, encoded):
        for position, span in enumerate(spans[: CONTEXT - 1], 1):  # the beginning-of-text token comes first
            row[position] = sentence.is_content(*span)

    mass, on_content, fires = torch.zeros(3, sae.cfg.d_sae, dtype=torch.float64)
    for owners, places, latents in _of_sentences(model, layer, sae, texts, "known words"):
        latents = latents.double().cpu()
        mass += latents.sum(0)
        on_content += latents[content[owners, places]].sum(0)
        fires += (latents > 0).sum(0)
    return KnownWords(torch.where(mass > 0, on_content / mass, torch.nan).numpy(), fires.long().numpy())


class Recovery(NamedTuple):
    """How well the classes from `k` versions tell content features from others."""

    k: int
    scores: Mapping[str, Estimate]
    """The `accuracy`; `balanced`, the mean of those for both kinds; and `auc`, the probability that a content feature
    is less consistent than another one. Intervals resample features."""
    content: int
    """The number of features more than half of whose activation falls on content words."""
    others: int


def recovery(
    presence: Presence, known: KnownWords, *, share: float, min_groups: int, min_fires: int, seed: int
) -> list[Recovery]:
    """Compare the classes from 1, 2, ... versions (semantic: a content feature) with what is known.

    The same features count for every k: those that are not dead by their originals and first versions, and fire on
    `min_fires` known tokens. The list is empty if they are all of one kind, as in small runs.
    """
    usable = ~classify(presence[:, :2], share=share, min_groups=min_groups).dead & (known.fires >= min_fires)
    content = known.share > 0.5
    kinds = [np.flatnonzero(usable & content), np.flatnonzero(usable & ~content)]
    if not all(map(len, kinds)):
        return []
    found = []
    for k in range(1, presence.shape[1]):
        classes = classify(presence[:, : k + 1], share=share, min_groups=min_groups)

        def scores(content: np.ndarray, others: np.ndarray, classes: FeatureClasses = classes) -> dict[str, float]:
            right = classes.semantic[content], classes.structural[others]
            ranks = rankdata(-classes.consistency[np.concatenate([content, others])])[: len(content)]
            above = ranks.sum() - len(content) * (len(content) + 1) / 2
            balanced, auc = (right[0].mean() + right[1].mean()) / 2, above / (len(content) * len(others))
            return {"accuracy": np.concatenate(right).mean(), "balanced": balanced, "auc": auc}

        found.append(Recovery(k, over_features(scores, *kinds, seed=seed), *map(len, kinds)))  # the same draws for each
    return found
