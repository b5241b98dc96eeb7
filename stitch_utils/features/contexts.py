"""The texts in which a feature is most active, for many features in one pass.

App. H.2, Table 8: a feature is described by the contexts in which it fires most, its activations shown token by token.
A document gives a feature one context at most, or a text that repeats itself would fill the list. For each batch only
what can still enter a list is kept, so that all features of an SAE are served while the text goes by once, and memory
holds the lists and no activations.

Offers `Context`, `top_contexts`, `highlighted`.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from sae_lens import SAE
from torch import Tensor

from ..data.text import TokenBatch
from ..models.harvest import TOKENS_AT_ONCE, as_fits
from ..models.language_model import LanguageModel
from ..utils.progress import progress

ENTRIES_AT_ONCE = 2**26  # tokens x features: bounds their activations to 0.25 GB
NOTHING = -1  # in the place of a token, beyond the ends of a context
BROKEN = "\ufffd"  # what a decoder writes for bytes that are a part of a character only
LONGEST = 8  # tokens that are tried to make whole characters; one of four bytes has four at most


class Context(NamedTuple):
    """A stretch of one document around the token at which a feature is most active in it."""

    document: int
    tokens: tuple[tuple[str, float], ...]
    """Each token as it is written, with the feature's activation there; tokens that share a character's bytes are one
    piece, with their largest activation."""
    peak: int
    """Which of them is the most active."""

    @property
    def text(self) -> str:
        return "".join(token for token, _ in self.tokens)


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

    def best(self, n: int) -> _Found:
        """Of each feature the `n` most active contexts, of each document one; the most active first, of equals the
        earlier document."""
        first = np.lexsort((-self.activation, self.document, self.feature))
        one = _Found(*(column[first] for column in self))
        new = np.ones(len(first), dtype=bool)
        new[1:] = (one.feature[1:] != one.feature[:-1]) | (one.document[1:] != one.document[:-1])
        one = _Found(*(column[new] for column in one))
        order = np.lexsort((one.document, -one.activation, one.feature))
        ranked = _Found(*(column[order] for column in one))
        starts = np.searchsorted(ranked.feature, ranked.feature)  # where each one's feature begins
        return _Found(*(column[np.arange(len(order)) - starts < n] for column in ranked))


@torch.no_grad()
def top_contexts(
    model: LanguageModel,
    layer: int,
    sae: SAE,
    features: Sequence[int] | None,
    batches: Iterable[TokenBatch],
    *,
    n: int = 8,
    before: int = 10,
    after: int = 5,
) -> dict[int, list[Context]]:
    """{feature: at most `n` contexts of different documents, the most active first}; `features` None means all.

    A context is the most active token of a document with up to `before` tokens before it and `after` behind it; it ends
    with the document and at special tokens. A feature that never fires has an empty list. ValueError for an SAE of
    another width than the model, a feature that it does not have, and sizes that make no context.
    """
    if sae.cfg.d_in != model.d_model:
        raise ValueError(f"the SAE reads {sae.cfg.d_in} dimensions: expected {model.d_model}, those of {model.ref!r}")
    if n < 1 or before < 0 or after < 0:
        raise ValueError(f"n must be positive, before and after not negative: got {n}, {before} and {after}")
    wanted = np.arange(sae.cfg.d_sae) if features is None else np.unique(np.array(features, dtype=np.int64))
    if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < sae.cfg.d_sae:
        raise ValueError(f"no feature {wanted[0] if wanted[0] < 0 else wanted[-1]}: the SAE has {sae.cfg.d_sae}")
    at_once = min(TOKENS_AT_ONCE, max(1, ENTRIES_AT_ONCE // sae.cfg.d_sae))
    reach = torch.arange(-before, after + 1)
    threshold = np.zeros(sae.cfg.d_sae)  # what an activation must exceed to enter a feature's list

    def read(batch: TokenBatch) -> _Found:
        stream = model.residuals(batch.tokens, [layer])[layer]
        rows = max(1, at_once // batch.tokens.shape[1])
        parts = [
            _candidates(sae, part_stream, part, wanted, threshold, reach)
            for part_stream, part in zip(stream.split(rows), batch.split(rows))
        ]
        return _joined(parts).best(n)

    found = _nothing(len(reach))
    for new in progress(as_fits(batches, read), "contexts"):
        found = _joined([found, new]).best(n)
        full, place = np.unique(found.feature, return_index=True)
        counts = np.diff([*place, len(found.feature)])
        last = found.activation[place + counts - 1]
        threshold[full[counts == n]] = last[counts == n]
    return _contexts(found, wanted, model.tokenizer, before)


def _candidates(
    sae: SAE, stream: Tensor, batch: TokenBatch, wanted: np.ndarray, threshold: np.ndarray, reach: Tensor
) -> _Found:
    """The most active token of each document for each feature, if it is above the threshold, with its surroundings."""
    keep = batch.mask.reshape(-1).nonzero()[:, 0]  # of ordinary tokens, in the rows laid end to end
    if not len(keep):
        return _nothing(len(reach))
    latents = sae.encode(stream.reshape(-1, stream.shape[-1])[keep.to(stream.device)].to(sae.W_enc)).float()
    if len(wanted) < latents.shape[1]:
        latents = latents[:, torch.from_numpy(wanted).to(latents.device)]
    limit = torch.from_numpy(threshold[wanted]).to(latents)
    token, column = (latents > limit).nonzero().cpu().unbind(1)
    activation = latents[token.to(latents.device), column.to(latents.device)].cpu().numpy()
    document = batch.documents.reshape(-1)[keep[token]].numpy()
    order = np.lexsort((token.numpy(), -activation, document, column.numpy()))
    key = np.stack([column.numpy(), document])[:, order]
    chosen = order[np.r_[True, (key[:, 1:] != key[:, :-1]).any(0)]] if len(order) else order

    token, column = token[chosen], column[chosen]
    peak, tokens, documents = keep[token], batch.tokens.reshape(-1), batch.documents.reshape(-1)
    place = (peak[:, None] + reach).clamp(0, len(tokens) - 1)  # (contexts, reach)
    width = batch.tokens.shape[1]
    shown = (place == peak[:, None] + reach) & (place // width == peak[:, None] // width)
    shown &= batch.mask.reshape(-1)[place] & (documents[place] == documents[peak][:, None])
    middle = int((reach == 0).nonzero())
    behind = shown[:, middle:].long().cumprod(1).bool()  # nothing is shown beyond what is not
    ahead = shown[:, : middle + 1].flip(1).long().cumprod(1).flip(1).bool()
    shown = torch.cat([ahead[:, :-1], behind], dim=1)
    index = torch.zeros(len(tokens), dtype=torch.int64)
    index[keep] = torch.arange(len(keep))
    values = latents[index[place].to(latents.device), column[:, None].to(latents.device)].cpu()
    return _Found(
        wanted[column.numpy()],
        document[chosen],
        activation[chosen].astype(np.float64),
        torch.where(shown, tokens[place], NOTHING).numpy(),
        torch.where(shown, values, 0).numpy(),
    )


def _nothing(width: int) -> _Found:
    whole = np.zeros(0, np.int64)
    return _Found(whole, whole, np.zeros(0), np.zeros((0, width), np.int64), np.zeros((0, width), np.float32))


def _joined(parts: Sequence[_Found]) -> _Found:
    return _Found(*(np.concatenate(columns) for columns in zip(*parts)))


def _contexts(found: _Found, wanted: np.ndarray, tokenizer, before: int) -> dict[int, list[Context]]:
    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    @functools.cache
    def written(token: int) -> str:
        return decode([token])

    lists: dict[int, list[Context]] = {int(feature): [] for feature in wanted}
    for feature, document, _, tokens, activations in zip(*found):
        shown = np.flatnonzero(tokens != NOTHING)
        ids, peak = tokens[shown].tolist(), int(np.flatnonzero(shown == before)[0])
        ends = _ends(ids, written, decode)
        starts = [0, *ends[:-1]]
        pieces = tuple(
            (
                written(ids[start]) if end == start + 1 else decode(ids[start:end]),
                float(activations[shown][start:end].max()),
            )
            for start, end in zip(starts, ends)
        )
        lists[int(feature)].append(Context(int(document), pieces, int(np.searchsorted(ends, peak, side="right"))))
    return lists


def _ends(ids: list[int], written: Callable[[int], str], decode: Callable[[list[int]], str]) -> list[int]:
    """Where each piece ends: behind the token, or behind the last that is needed to write it in whole characters.

    A character of which the context holds a part stays broken, as its tokens are.
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
    """The context as HTML, each token on a ground as strong as its share of the activation at the peak."""
    top = max(activation for _, activation in context.tokens)
    spans = []
    for token, activation in context.tokens:
        text = html.escape(token).replace("\n", "↵")
        share = activation / top if top > 0 else 0.0
        spans.append(f'<span style="background: rgba({rgb}, {share:.2f})">{text}</span>' if share > 0 else text)
    return f'<span style="white-space: pre-wrap">{"".join(spans)}</span>'
