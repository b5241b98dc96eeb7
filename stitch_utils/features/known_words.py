"""How well the classes of section 5.1 tell what features fire on, where that is known.

The paper infers from versions of a sentence whether a feature is about its words or about its form, and cannot check
it. In the embedded world the grammar marks every word that came from a slot for content (`embedded.marked`), so it is
known how much of a feature's activation falls on content words. A feature of content words should be semantic, one of
function words and punctuation structural. Where that fails, the feature follows a role that any word may fill (the noun
of place, say), or fires too often or too seldom for the classes.

Offers `known_words`, `KnownWords`, `recovery`, `Recovery`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from scipy.stats import rankdata
from torch import Tensor

from ..data.embedded.marked import MarkedSentence
from ..models.language_model import LanguageModel
from ..utils.stats import Estimate
from .resampling import over_features
from .structure import CONTEXT, MIN_GROUPS, SHARE, FeatureClasses, Parts, classify, over_sentences


class KnownWords(NamedTuple):
    """What features fire on, where it is known which words are content words."""

    share: Float[np.ndarray, " features"]
    """The share of a feature's activation that falls on tokens of content words; NaN if it never fires."""
    fires: Int[np.ndarray, " features"]
    """The number of tokens on which it does."""
    tokens: float
    """The share of all tokens that belong to content words: what a feature that fires anywhere would have."""


def known_words(model: LanguageModel, layer: int, sae: SAE, sentences: Sequence[MarkedSentence]) -> KnownWords:
    """Measure where each feature's activation falls in sentences with marked content words; needs a fast tokenizer."""
    texts = [sentence.text for sentence in sentences]
    encoded = model.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    content = torch.zeros(len(texts), CONTEXT, dtype=torch.bool)
    for row, sentence, spans in zip(content, sentences, encoded):
        for position, span in enumerate(spans[: CONTEXT - 1], 1):  # the beginning-of-text token comes first
            row[position] = sentence.is_content(*span)

    def add_up(parts: Parts) -> tuple[Tensor, int, int]:
        """Sum activations, those on content words, and fires, (3, features); count content tokens, and all."""
        sums, n_inside, tokens = torch.zeros(3, sae.cfg.d_sae, dtype=torch.float64), 0, 0
        for part in parts:
            latents, inside = part.latents.double().cpu(), content[part.owners, part.positions]
            sums += torch.stack([latents.sum(0), latents[inside].sum(0), (latents > 0).sum(0)])
            n_inside, tokens = n_inside + int(inside.sum()), tokens + len(inside)
        return sums, n_inside, tokens

    columns = zip(*over_sentences(model, layer, sae, texts, add_up, title="known words"))
    (mass, on_content, fires), inside, tokens = (functools.reduce(operator.add, column) for column in columns)
    share = torch.where(mass > 0, on_content / mass, torch.nan)
    return KnownWords(share.numpy(), fires.long().numpy(), inside / tokens)


class Recovery(NamedTuple):
    """How well the classes from `k` versions tell content features from others; intervals by resampling features."""

    k: int
    accuracy: Estimate
    balanced: Estimate
    """The mean of the accuracies for both kinds."""
    auc: Estimate
    """The probability that a content feature is less consistent than another one, without any threshold."""
    content: int
    """The number of features more than half of whose activation falls on content words."""
    others: int


def recovery(
    presence: Bool[np.ndarray, "groups versions features"],
    known: KnownWords,
    *,
    share: float = SHARE,
    min_groups: int = MIN_GROUPS,
    min_fires: int = 10,
    seed: int = 0,
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

        def scores(content: np.ndarray, others: np.ndarray, classes: FeatureClasses = classes) -> tuple[float, ...]:
            right = classes.semantic[content], classes.structural[others]
            ranks = rankdata(-classes.consistency[np.concatenate([content, others])])[: len(content)]
            above = ranks.sum() - len(content) * (len(content) + 1) / 2
            balanced = (right[0].mean() + right[1].mean()) / 2
            return np.concatenate(right).mean(), balanced, above / (len(content) * len(others))

        estimates = over_features(scores, *kinds, seed=seed)  # the same draws for all k
        found.append(Recovery(k, *estimates, *map(len, kinds)))
    return found
