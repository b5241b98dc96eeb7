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

Offers `feature_presence`, `classify`, `FeatureClasses`, `unrelated`, `matched_rates`, `density_ratios`, `rate_ratio`,
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
from ..utils.stats import Estimate, from_resamples, resampled_totals
from .attribution import OfFeatures, Resampled
from .comparison import above_labels, below_labels, labellings

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
    correlation: Resampled, rate: OfFeatures, classes: FeatureClasses, *, seed: int = 0
) -> tuple[dict[str, Estimate], dict[str, int]]:
    """Compare the classes' correlations, of `all` features and `matched` in bins of the logarithm of the firing rate.

    Return the differences, structural less semantic, of the mean and the standard deviation (`all.mean`, `all.spread`,
    `matched.mean`, `matched.spread`), each beside what shuffled classes reach (`.more` of the mean, `.less` of the
    spread), and how many features are compared (`all.structural`, ...). In the matched comparison, which is missing if
    the rates never meet, only bins with features of both classes count, and a structural feature weighs as much as
    there are semantic ones for each structural one in its bin; classes are shuffled within bins. Rows are the text and
    its resamples. Features that have no correlation (NaN) or never fire are left out. ValueError if a class has no
    feature left.
    """
    usable = np.isfinite(correlation[0]) & (rate > 0)
    labels = _labels(classes, usable)
    values = correlation[:, labels.places]
    logs = np.floor(BINS_A_DECADE * np.log10(rate[labels.places])).astype(int)
    bins = logs - logs.min()
    ours, theirs = (np.bincount(bins[some], minlength=bins.max() + 1) for some in (labels.of, ~labels.of))
    met = (ours > 0) & (theirs > 0)
    every = labellings(labels.of, seed=seed).astype(float)
    found = _differences("all", values, every, 1 - every)
    counts = {"all.structural": int(labels.of.sum()), "all.semantic": int((~labels.of).sum())}
    if met.any():
        within = labellings(labels.of, within=bins, seed=seed)
        weights = (theirs * met / np.maximum(ours, 1))[bins, None] * within
        found |= _differences("matched", values, weights, met[bins, None] * ~within)
        counts |= {"matched.structural": int(ours[met].sum()), "matched.semantic": int(theirs[met].sum())}
    return found, counts


class _Labels(NamedTuple):
    places: Int[np.ndarray, " usable"]
    """The numbers of the features that are usable and have a class."""
    of: Bool[np.ndarray, " usable"]
    """Whether each is structural."""


def _labels(classes: FeatureClasses, usable: np.ndarray) -> _Labels:
    places = np.flatnonzero(usable & ~classes.dead)
    of = classes.structural[places]
    if not of.any() or of.all():
        raise ValueError(f"groups of {of.sum()} and {(~of).sum()} features: expected some in each")
    return _Labels(places, of)


def _differences(name: str, values: Resampled, ours: np.ndarray, theirs: np.ndarray) -> dict[str, Estimate]:
    """Subtract weighted means and spreads; weights are (features, labellings)."""
    moments = []
    for weights in (ours, theirs):
        total = weights.sum(0)
        mean = values @ weights / total
        moments.append((mean, np.sqrt(np.maximum(values**2 @ weights / total - mean**2, 0))))
    mean, spread = (one - other for one, other in zip(*moments))
    return above_labels(f"{name}.mean", mean) | below_labels(f"{name}.spread", spread)


def density_ratios(correlation: Resampled, classes: FeatureClasses, *, seed: int = 0) -> dict[str, Estimate]:
    """Compute Fig. 4b's relative density, semantic over structural, in `lowest_tenth` and `highest_tenth`.

    Half a feature is added to each count, so that an empty end has a ratio. `.more` is what a ratio is more than the
    largest that shuffled classes reach. Rows are the text and its resamples. Features that have no correlation (NaN)
    are left out. ValueError if a class has no feature left.
    """
    labels = _labels(classes, np.isfinite(correlation[0]))
    values, structural = correlation[:, labels.places], labellings(labels.of, seed=seed)
    low, high = np.quantile(values, (0.1, 0.9), axis=1)
    found = {}
    for name, ends in (("lowest_tenth", values <= low[:, None]), ("highest_tenth", values >= high[:, None])):
        shares = [(ends @ side.astype(float) + 0.5) / (side.sum(0) + 1) for side in (~structural, structural)]
        found |= above_labels(name, shares[0] / shares[1])
    return found


def rate_ratio(rate: Resampled, classes: FeatureClasses, usable: np.ndarray, *, seed: int = 0) -> dict[str, Estimate]:
    """Divide the median firing rate of structural features by that of semantic ones: `rate_ratio`, and its `.more`.

    Rows are the text and its resamples; only `usable` features count. ValueError if a class has no feature left.
    """
    labels = _labels(classes, usable)
    values = rate[:, labels.places]
    ratios = [
        np.median(values[:, of], axis=1) / np.median(values[:, ~of], axis=1)
        for of in labellings(labels.of, seed=seed).T
    ]
    return above_labels("rate_ratio", np.stack(ratios, axis=1))


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
    """The `accuracy`; `balanced`, the mean of those for both kinds; `auc`, the probability that a content feature is
    less consistent than another one; and `gain`, the AUC less that of one version. `gain.more` is what the gain is more
    than the largest if other features, as many, were those of content words. Intervals resample groups of sentences."""
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
    content = known.share[usable] > 0.5
    counts = int(content.sum()), int((~content).sum())
    if not all(counts):
        return []
    labels, found, first = labellings(content, seed=seed), [], None
    for k in range(1, presence.shape[1]):
        versions = presence[:, : k + 1][..., usable]
        fires, all_fire = (resampled_totals(some.astype(float), seed) for some in (versions.any(1), versions.all(1)))
        consistency = np.divide(all_fire, fires, out=np.full_like(fires, np.nan), where=fires > 0)
        consistency = np.where(fires > 0, consistency, consistency[:1])  # a feature may fire in no group of a resample
        below = rankdata(-consistency, axis=1) @ labels.astype(float) - counts[0] * (counts[0] + 1) / 2
        auc = below / (counts[0] * counts[1])  # (1 + resamples, labellings)
        right = (consistency >= share) != content
        kinds = [right[:, kind].mean(1) for kind in (content, ~content)]
        first = auc if first is None else first
        scores = {"accuracy": right.mean(1), "balanced": np.mean(kinds, axis=0), "auc": auc[:, 0]}
        gain = above_labels("gain", auc - first)
        found.append(Recovery(k, {name: from_resamples(values) for name, values in scores.items()} | gain, *counts))
    return found
