"""The texts in which a feature is most active, for all features in one pass.

App. H.2, Table 8: a feature is described by the contexts in which it fires most, its activations shown token by token.
A document gives a feature at most one context, or a text that repeats itself would fill the list. Each batch keeps only
what can still enter a list, so memory holds the lists and no activations.

Offers `Context`, `top_contexts`, `highlighted`.
"""

import functools
import html
import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pandas as pd
import torch
from sae_lens import SAE
from torch import Tensor

from ..data.text import TokenBatch
from ..models.harvest import TOKENS_AT_ONCE, as_fits
from ..models.language_model import LanguageModel
from ..saes.evaluation import check_width
from ..utils.progress import progress

BEFORE, AFTER = 10, 5  # tokens of a context on either side of its peak, at most
ENTRIES_AT_ONCE = 2**26  # bounds activations, tokens x features, to 0.25 GB
NOTHING = -1  # stands for a token beyond the ends of a context
BROKEN = "\ufffd"  # what a decoder writes for bytes that are only a part of a character
LONGEST = 8  # tokens that are tried to make whole characters; one of four bytes has four at most

# Texts and activations of a stretch's tokens; those that share a character's bytes are one piece, with their largest.
Context = tuple[tuple[str, float], ...]


def _best(table: pd.DataFrame, n: int) -> pd.DataFrame:
    """Select each feature's `n` most active rows, one a document, the most active first; among equals the earlier."""
    ordered = table.sort_values(["feature", "activation", "document"], ascending=[True, False, True])
    return ordered.drop_duplicates(["feature", "document"]).groupby("feature").head(n)


@torch.no_grad()
def top_contexts(
    model: LanguageModel, layer: int, sae: SAE, batches: Iterable[TokenBatch], *, n: int
) -> dict[int, list[Context]]:
    """Find {feature: at most `n` contexts of different documents, the most active first}.

    A context is the most active token of a document with up to `BEFORE` tokens before it and `AFTER` behind it; it ends
    with the document and at special tokens. A feature that never fires has an empty list. ValueError for an SAE of
    another width than the model.
    """
    check_width(sae, model)
    if n < 1:
        raise ValueError(f"n must be positive: got {n}")
    at_once = min(TOKENS_AT_ONCE, max(1, ENTRIES_AT_ONCE // sae.cfg.d_sae))
    threshold = np.zeros(sae.cfg.d_sae)  # what an activation must exceed to enter a feature's list

    def read(batch: TokenBatch) -> list[pd.DataFrame]:
        stream = model.residuals(batch.tokens, [layer])[layer]
        rows = max(1, at_once // batch.tokens.shape[1])
        parts = (_candidates(sae, *part, threshold, n) for part in zip(stream.split(rows), batch.split(rows)))
        return [part for part in parts if len(part)]

    found: list[pd.DataFrame] = []
    for new in progress(as_fits(batches, read), "contexts"):
        if new:
            found = [_best(pd.concat([*found, *new]), n)]
            last = found[0].groupby("feature")["activation"].agg(["size", "min"]).query("size == @n")["min"]
            threshold[last.index] = last
    lists: dict[int, list[Context]] = {feature: [] for feature in range(sae.cfg.d_sae)}
    for feature, context in itertools.chain(*(_contexts(table, model.tokenizer) for table in found)):
        lists[feature].append(context)
    return lists


def _candidates(sae: SAE, stream: Tensor, batch: TokenBatch, threshold: np.ndarray, n: int) -> pd.DataFrame:
    """Tabulate the `n` best tokens of each feature above its threshold, one a document, with their surroundings."""
    width = batch.tokens.shape[1]
    tokens, mask, documents = (part.reshape(-1) for part in batch[:3])  # rows laid end to end
    keep = mask.nonzero()[:, 0]
    latents = sae.encode(stream.reshape(-1, stream.shape[-1])[keep.to(stream.device)].to(sae.W_enc)).float()
    row, feature = (latents > torch.from_numpy(threshold).to(latents)).nonzero().unbind(1)
    columns = {"feature": feature, "document": documents[keep[row.cpu()]], "activation": latents[row, feature]}
    table = pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})
    best = _best(table, n)
    chosen = best.index.to_numpy(copy=True)
    feature, peak = feature.cpu()[chosen], keep[row.cpu()[chosen]]

    apart = ~(mask[1:] & mask[:-1]) | (documents[1:] != documents[:-1])
    apart[width - 1 :: width] = True
    stretch = torch.nn.functional.pad(apart.cumsum(0), (1, 0))  # one number for tokens that may stand in one context
    wanted = peak[:, None] + torch.arange(-BEFORE, AFTER + 1)  # (contexts, width)
    place = wanted.clamp(0, len(tokens) - 1)
    shown = (place == wanted) & (stretch[place] == stretch[peak][:, None])
    rows = (mask.cumsum(0) - 1)[place]  # of `latents`, for the tokens that are shown
    values = latents[rows.to(latents.device), feature[:, None].to(latents.device)].cpu()
    written = torch.where(shown, tokens[place], NOTHING)
    return best.assign(tokens=list(written.numpy()), activations=list(values.numpy()))


def _contexts(table: pd.DataFrame, tokenizer) -> Iterator[tuple[int, Context]]:
    @functools.cache
    def decode(*ids: int) -> str:
        return tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)

    for feature, tokens, activations in table[["feature", "tokens", "activations"]].itertuples(index=False):
        shown = tokens != NOTHING
        pieces = _pieces(tokens[shown].tolist(), decode)
        yield feature, tuple((text, float(activations[shown][part].max())) for part, text in pieces)


def _pieces(ids: list[int], decode: Callable[..., str]) -> Iterator[tuple[slice, str]]:
    """Cut tokens into the shortest pieces of whole characters, each with its text.

    A character of which the context holds only a part stays broken, one token a piece.
    """
    start = 0
    while start < len(ids):
        end = start + 1
        if BROKEN in decode(ids[start]):
            longer = range(start + 2, min(len(ids), start + LONGEST) + 1)
            end = next((end for end in longer if BROKEN not in decode(*ids[start:end])), end)
        yield slice(start, end), decode(*ids[start:end])
        start = end


def highlighted(context: Context, *, rgb: str = "226, 135, 40") -> str:
    """Write the context as HTML; the colour behind a token is as strong as its share of the largest activation."""
    top = max(activation for _, activation in context)
    spans = []
    for token, activation in context:
        text = html.escape(token).replace("\n", "↵")
        share = activation / top if top > 0 else 0.0
        spans.append(f'<span style="background: rgba({rgb}, {share:.2f})">{text}</span>' if share > 0 else text)
    return f'<span style="white-space: pre-wrap">{"".join(spans)}</span>'
