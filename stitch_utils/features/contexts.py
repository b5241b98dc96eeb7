"""The texts in which a feature is most active, for all features in one pass.

App. H.2, Table 8: a feature is described by the contexts in which it fires most, its activations shown token by token.
A document gives a feature at most one context, or a text that repeats itself would fill the list. Each batch keeps only
what can still enter a list, so memory holds the lists and no activations.

Offers `Context`, `top_contexts`, `highlighted`.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from sae_lens import SAE
from torch import Tensor

from ..data.text import TokenBatch
from ..models.harvest import TOKENS_AT_ONCE, as_fits
from ..models.language_model import LanguageModel
from ..utils.progress import progress

BEFORE, AFTER = 10, 5  # tokens of a context on either side of its peak, at most
ENTRIES_AT_ONCE = 2**26  # bounds activations, tokens x features, to 0.25 GB
NOTHING = -1  # stands for a token beyond the ends of a context
BROKEN = "\ufffd"  # what a decoder writes for bytes that are only a part of a character
LONGEST = 8  # tokens that are tried to make whole characters; one of four bytes has four at most


class Context(NamedTuple):
    """A stretch of one document around the token at which a feature is most active in it."""

    document: int
    tokens: tuple[tuple[str, float], ...]
    """Each token as it is written, with the feature's activation there; tokens that share a character's bytes are one
    piece, with their largest activation."""
    peak: int
    """The place of the most active token."""


class _Found(NamedTuple):
    """Contexts as columns, one row each."""

    feature: np.ndarray
    document: np.ndarray
    activation: np.ndarray
    """At the peak."""
    tokens: np.ndarray
    """(contexts, width)"""
    activations: np.ndarray
    """(contexts, width)"""

    @classmethod
    def best(cls, parts: Sequence[_Found], n: int) -> _Found:
        """Join parts and keep each feature's `n` most active contexts."""
        joined = [np.concatenate(columns) for columns in zip(*parts)]
        chosen = _best(*joined[:3], n)
        return cls(*(column[chosen] for column in joined))


def _best(feature: np.ndarray, document: np.ndarray, activation: np.ndarray, n: int) -> np.ndarray:
    """Find each feature's `n` most active entries, one a document, the most active first; among equals the earlier."""
    table = pd.DataFrame({"feature": feature, "document": document, "activation": -activation})
    ordered = table.sort_values(["feature", "activation", "document"])
    return ordered.drop_duplicates(["feature", "document"]).groupby("feature").head(n).index.to_numpy()


@torch.no_grad()
def top_contexts(
    model: LanguageModel, layer: int, sae: SAE, batches: Iterable[TokenBatch], *, n: int = 8
) -> dict[int, list[Context]]:
    """Find {feature: at most `n` contexts of different documents, the most active first}.

    A context is the most active token of a document with up to `BEFORE` tokens before it and `AFTER` behind it; it ends
    with the document and at special tokens. A feature that never fires has an empty list. ValueError for an SAE of
    another width than the model.
    """
    if sae.cfg.d_in != model.d_model:
        raise ValueError(f"the SAE reads {sae.cfg.d_in} dimensions: expected {model.d_model}, those of {model.ref!r}")
    at_once = min(TOKENS_AT_ONCE, max(1, ENTRIES_AT_ONCE // sae.cfg.d_sae))
    threshold = np.zeros(sae.cfg.d_sae)  # what an activation must exceed to enter a feature's list

    def read(batch: TokenBatch) -> _Found:
        stream = model.residuals(batch.tokens, [layer])[layer]
        rows = max(1, at_once // batch.tokens.shape[1])
        parts = zip(stream.split(rows), batch.split(rows))
        return _Found.best([_candidates(sae, *part, threshold, n) for part in parts], n)

    found: list[_Found] = []
    for new in progress(as_fits(batches, read), "contexts"):
        found = [_Found.best([*found, new], n)]
        full, place, counts = np.unique(found[0].feature, return_index=True, return_counts=True)
        last = found[0].activation[place + counts - 1]
        threshold[full[counts == n]] = last[counts == n]
    lists: dict[int, list[Context]] = {feature: [] for feature in range(sae.cfg.d_sae)}
    for part in found:
        for feature, context in _contexts(part, model.tokenizer):
            lists[feature].append(context)
    return lists


def _candidates(sae: SAE, stream: Tensor, batch: TokenBatch, threshold: np.ndarray, n: int) -> _Found:
    """Find the `n` best tokens above the threshold for each feature, one a document, with their surroundings."""
    width = batch.tokens.shape[1]
    tokens, mask, documents = (part.reshape(-1) for part in batch)  # rows laid end to end
    keep = mask.nonzero()[:, 0]
    latents = sae.encode(stream.reshape(-1, stream.shape[-1])[keep.to(stream.device)].to(sae.W_enc)).float()
    token, feature = (latents > torch.from_numpy(threshold).to(latents)).nonzero().unbind(1)
    activation = latents[token, feature].cpu().numpy().astype(np.float64)
    token, feature = token.cpu(), feature.cpu()
    chosen = _best(feature.numpy(), documents[keep[token]].numpy(), activation, n)
    token, feature = token[chosen], feature[chosen]

    apart = ~(mask[1:] & mask[:-1]) | (documents[1:] != documents[:-1])
    apart[width - 1 :: width] = True
    stretch = torch.nn.functional.pad(apart.cumsum(0), (1, 0))  # one number for tokens that may stand in one context
    peak = keep[token]
    wanted = peak[:, None] + torch.arange(-BEFORE, AFTER + 1)  # (contexts, width)
    place = wanted.clamp(0, len(tokens) - 1)
    shown = (place == wanted) & (stretch[place] == stretch[peak][:, None])
    row = (mask.cumsum(0) - 1)[place]  # of `latents`, for the tokens that are shown
    values = latents[row.to(latents.device), feature[:, None].to(latents.device)].cpu()
    return _Found(
        feature.numpy(),
        documents[peak].numpy(),
        activation[chosen],
        torch.where(shown, tokens[place], NOTHING).numpy(),
        torch.where(shown, values, 0).numpy(),
    )


def _contexts(found: _Found, tokenizer) -> Iterator[tuple[int, Context]]:
    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    @functools.cache
    def written(token: int) -> str:
        return decode([token])

    for feature, document, _, tokens, activations in zip(*found):
        shown = np.flatnonzero(tokens != NOTHING)
        ids, peak = tokens[shown].tolist(), int(np.flatnonzero(shown == BEFORE)[0])
        ends = _ends(ids, written, decode)
        starts = [0, *ends[:-1]]
        texts = [written(ids[a]) if b == a + 1 else decode(ids[a:b]) for a, b in zip(starts, ends)]
        largest = [float(activations[shown][a:b].max()) for a, b in zip(starts, ends)]
        place = int(np.searchsorted(ends, peak, side="right"))
        yield int(feature), Context(int(document), tuple(zip(texts, largest)), place)


def _ends(ids: list[int], written: Callable[[int], str], decode: Callable[[list[int]], str]) -> list[int]:
    """Find where each piece ends: behind the token, or behind the last that its characters need to be whole.

    A character of which the context holds only a part stays broken.
    """
    ends, start = [], 0
    while start < len(ids):
        end = start + 1
        if BROKEN in written(ids[start]):
            longer = range(start + 2, min(len(ids), start + LONGEST) + 1)
            end = next((end for end in longer if BROKEN not in decode(ids[start:end])), end)
        ends.append(end)
        start = end
    return ends


def highlighted(context: Context, *, rgb: str = "226, 135, 40") -> str:
    """Write the context as HTML; the colour behind a token is as strong as its share of the largest activation."""
    top = max(activation for _, activation in context.tokens)
    spans = []
    for token, activation in context.tokens:
        text = html.escape(token).replace("\n", "↵")
        share = activation / top if top > 0 else 0.0
        spans.append(f'<span style="background: rgba({rgb}, {share:.2f})">{text}</span>' if share > 0 else text)
    return f'<span style="white-space: pre-wrap">{"".join(spans)}</span>'
