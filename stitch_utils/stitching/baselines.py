"""What a model without any network gets on the same text: the yardstick for a stitched model's cross-entropy.

No section of the paper, which compares stitched losses with the models' own only (Table 1). A loss between the two
says little until one knows what the frequencies of tokens, or of pairs of tokens, already give.

Offers `ngram_cross_entropy`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..data.text import TokenBatch


def ngram_cross_entropy(
    training: Iterable[TokenBatch], evaluation: Iterable[TokenBatch], vocabulary: int
) -> dict[str, float]:
    """Cross-entropy (nats a token) on the ordinary tokens of `evaluation`: {"unigram": ..., "bigram": ...}.

    Counts come from `training`. The unigram model adds one to each of the `vocabulary` counts; the bigram model is
    smoothed towards it by Witten and Bell's rule: weight c / (c + k) to the pair counts of a context seen c times
    with k different successors. ValueError if either text has no ordinary token after another.
    """
    successors, contexts = _pairs(training)
    counts = torch.bincount(successors, minlength=vocabulary).double()
    unigram = (counts + 1) / (counts + 1).sum()

    pairs, pair_counts = torch.unique(contexts * vocabulary + successors, return_counts=True)
    context_counts = torch.bincount(contexts, minlength=vocabulary).double()
    kinds = torch.bincount(pairs // vocabulary, minlength=vocabulary).double()

    targets, given = _pairs(evaluation)
    wanted = given * vocabulary + targets
    place = torch.searchsorted(pairs, wanted).clamp(max=len(pairs) - 1)
    seen = torch.where(pairs[place] == wanted, pair_counts[place], 0).double()
    total = context_counts[given] + kinds[given]
    # A context never seen leaves all the weight to the unigram model.
    bigram = torch.where(total > 0, (seen + kinds[given] * unigram[targets]) / total.clamp(min=1), unigram[targets])
    return {"unigram": -unigram[targets].log().mean().item(), "bigram": -bigram.log().mean().item()}


def _pairs(batches: Iterable[TokenBatch]) -> tuple[Tensor, Tensor]:
    """Ordinary tokens and the tokens before them, of all batches."""
    targets, contexts = [], []
    for batch in batches:
        scored = batch.mask[:, 1:]
        targets.append(batch.tokens[:, 1:][scored])
        contexts.append(batch.tokens[:, :-1][scored])
    if not targets or not sum(map(len, targets)):
        raise ValueError("the text has no ordinary token after another: there is nothing to count")
    return torch.cat(targets), torch.cat(contexts)
