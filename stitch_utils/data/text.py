"""Make rows of tokens of a text: those that two models read at once, or those of one model.

App. A: stitches are fitted on the first documents of OpenWebText with a fixed context, special tokens masked out, since
their residual streams are so large that they would dominate every moment. A row begins with such a token. Models of two
tokenizers read rows of the same characters, each in its own tokens (`alignment`).

Offers `TokenBatch`, `PairedBatch`, `paired_batches`, `token_batches`; for texts that are in memory `text_rows`,
`padded_rows`.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .alignment import Encoded, encode, meeting, reader_of_both
from .documents import read_documents
from .pairs import TextRef
from .tokenizer import begin_and_end, special_ids

TOKENIZE_AT_ONCE = 256


class TokenBatch(NamedTuple):
    """Rows of tokens, all of one length."""

    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    """True at ordinary tokens, False at special and padding ones."""
    documents: Int[Tensor, "batch pos"]
    """The number of each token's document."""
    n_bytes: Int[Tensor, "batch pos"] | None = None
    """How many bytes of the text, in UTF-8, each token adds to what is read; None where that is not known."""

    def each(self, change: Callable[[Tensor], Tensor]) -> "TokenBatch":
        """Change every tensor in the same way."""
        n_bytes = None if self.n_bytes is None else change(self.n_bytes)
        return TokenBatch(change(self.tokens), change(self.mask), change(self.documents), n_bytes)

    def split(self, rows: int) -> "Iterator[TokenBatch]":
        """Split into batches of at most `rows` rows."""
        return (
            self.each(lambda part, start=start: part[start : start + rows])
            for start in range(0, len(self.tokens), rows)
        )


class PairedBatch(NamedTuple):
    """The same rows of text in the tokens of A and in those of B, and where they meet."""

    a: TokenBatch
    b: TokenBatch
    met_a: Bool[Tensor, "batch pos_a"]
    """True at the ordinary tokens of A that end where an ordinary token of B ends."""
    met_b: Bool[Tensor, "batch pos_b"]
    """The same of B. A row has as many as in `met_a`, so x[met_a] and y[met_b] are pairs in one order."""

    @classmethod
    def of(cls, batch: "PairedBatch | TokenBatch") -> "PairedBatch":
        """Take a batch of one tokenizer, which is the same for both models and met at all ordinary tokens."""
        return batch if isinstance(batch, PairedBatch) else cls(batch, batch, batch.mask, batch.mask)

    def split(self, rows: int) -> "Iterator[PairedBatch]":
        """Split into batches of at most `rows` rows."""
        sides, masks = (side.split(rows) for side in self[:2]), (mask.split(rows) for mask in self[2:])
        return (PairedBatch(*parts) for parts in zip(*sides, *masks))


class _Row(NamedTuple):
    """A row of one text for both models, without begin-of-text."""

    sides: tuple["_Side", "_Side"]
    met: np.ndarray
    """(met, 2): the places (i of A, j of B) of tokens that meet."""


class _Side(NamedTuple):
    """A row, or what waits to become one, in the tokens of one model."""

    ids: np.ndarray
    owners: np.ndarray
    """The document of each token."""
    n_bytes: np.ndarray

    @classmethod
    def of(cls, document: Encoded, owner: int, end: Sequence[int] = ()) -> "_Side":
        """Take a document, with end-of-text after it if it is given."""
        ids = np.append(document.ids, np.array(end, np.int64))
        return cls(ids, np.full(len(ids), owner), np.append(document.n_bytes, np.zeros(len(end), np.int64)))

    def cut(self, start: int, end: int | None = None) -> "_Side":
        return _Side(*(part[start:end] for part in self))


def paired_batches(
    text: TextRef,
    tokenizers: tuple,
    *,
    context: int,
    batch_size: int,
    rows: str = "document",
    n_tokens: int | None = None,
    n_documents: int | None = None,
) -> Iterator[PairedBatch]:
    """Yield batches of at most `batch_size` rows of `context` tokens, up to `n_tokens` positions or `n_documents`.

    `rows="document"` makes one row of a document, cut at the context or padded. `rows="packed"` ends each document with
    the end-of-text token, lays them one after another, and drops an incomplete last row. Each model reads its own
    begin-of-text first, if it has one. Where the two tokenizers differ, a row ends at the last place within the context
    of both at which their tokens meet; with one tokenizer all tokens meet. Raise ValueError if the source has no
    documents, packed text is shorter than one row, its tokens do not meet within a context, or a tokenizer does not say
    where its tokens lie.
    """
    if n_tokens is not None and n_tokens < context:
        raise ValueError(f"n_tokens={n_tokens} is less than one context of {context} tokens")
    marks = [begin_and_end(tokenizer) for tokenizer in tokenizers]
    rooms = np.array([context - (begin is not None) for begin, _ in marks])
    source = _encoded(itertools.islice(read_documents(text), n_documents), tokenizers)
    found = _packed(source, rooms, [end for _, end in marks], text) if rows == "packed" else _single(source, rooms)
    stream = itertools.islice(found, None if n_tokens is None else -(-n_tokens // context))
    same = special_ids(tokenizers[0]) == special_ids(tokenizers[1]) and marks[0] == marks[1]
    same = same and reader_of_both(*tokenizers) is not None
    while chunk := list(itertools.islice(stream, batch_size)):
        a = _batch([row.sides[0] for row in chunk], tokenizers[0], context)
        if same:
            yield PairedBatch.of(a)
            continue
        b = _batch([row.sides[1] for row in chunk], tokenizers[1], context)
        met = [torch.zeros_like(side.mask) for side in (a, b)]
        for number, row in enumerate(chunk):
            places = [torch.from_numpy(row.met[:, side]) + context - int(rooms[side]) for side in (0, 1)]
            ordinary = a.mask[number, places[0]] & b.mask[number, places[1]]
            for mask, place in zip(met, places):
                mask[number, place[ordinary]] = True
        yield PairedBatch(a, b, *met)


def token_batches(text: TextRef, tokenizer, **sizes) -> Iterator[TokenBatch]:
    """Yield the rows of one model; the sizes are those of `paired_batches`."""
    return (batch.a for batch in paired_batches(text, (tokenizer, tokenizer), **sizes))


def _encoded(source: Iterator[str], tokenizers: tuple) -> Iterator[tuple[Encoded, Encoded, np.ndarray]]:
    """Give each document in the tokens of A and of B, and the tokens at which they meet."""
    both = reader_of_both(*tokenizers)
    while texts := list(itertools.islice(source, TOKENIZE_AT_ONCE)):
        if both is None:
            for a, b in zip(*(encode(tokenizer, texts) for tokenizer in tokenizers)):
                yield a, b, meeting(a, b)
        else:
            for found in encode(both, texts):
                yield found, found, np.arange(len(found.ids))[:, None].repeat(2, axis=1)


def _single(source: Iterator[tuple[Encoded, Encoded, np.ndarray]], rooms: np.ndarray) -> Iterator[_Row]:
    """Make a row of each document, which ends where the document does or where its tokens last meet within `rooms`."""
    for owner, (*sides, met) in enumerate(source):
        fitting = _within(met, rooms)
        cut = np.array([len(side.ids) for side in sides])
        if (cut > rooms).any():
            cut = fitting[-1] + 1 if len(fitting) else np.zeros(2, int)
        if cut.all():
            a, b = (_Side.of(side, owner).cut(0, n) for side, n in zip(sides, cut.tolist()))
            yield _Row((a, b), fitting)


def _within(places: np.ndarray, rooms: np.ndarray) -> np.ndarray:
    """Return the places, which grow on both sides, up to the last that lies within both `rooms`."""
    return places[: min(np.searchsorted(side, room) for side, room in zip(places.T, rooms))]


def _packed(source, rooms: np.ndarray, ends: Sequence[int], text: TextRef) -> Iterator[_Row]:
    """Lay documents one after another, each with its end-of-text, and cut where the tokens last meet within `rooms`."""
    waiting, places, made = [_Side(*np.zeros((3, 0), int)) for _ in ends], np.zeros((0, 2), int), 0
    for owner, (*sides, met) in enumerate(source):
        lengths = np.array([len(side.ids) for side in waiting])
        places = np.concatenate([places, lengths + met, [lengths + [len(side.ids) for side in sides]]])
        new = [_Side.of(side, owner, [end]) for side, end in zip(sides, ends)]
        waiting = [_Side(*map(np.concatenate, zip(*parts))) for parts in zip(waiting, new)]
        while any(len(side.ids) >= room for side, room in zip(waiting, rooms)):
            fitting = _within(places, rooms)
            if not len(fitting):
                raise ValueError(f"{text.source} source {text.name!r}: no two tokens meet within {rooms.max()} tokens")
            cut, made = fitting[-1] + 1, made + 1
            a, b = (side.cut(0, n) for side, n in zip(waiting, cut.tolist()))
            yield _Row((a, b), fitting)
            waiting, places = [side.cut(n) for side, n in zip(waiting, cut.tolist())], places[len(fitting) :] - cut
    if not made:
        raise ValueError(
            f"the text of {text.source} source {text.name!r} is shorter than one context: {len(waiting[0].ids)} tokens,"
            f" expected at least {rooms[0]}"
        )


def _batch(rows: Sequence[_Side], tokenizer, context: int) -> TokenBatch:
    """Begin and pad rows of one model."""
    begin, end = begin_and_end(tokenizer)
    first = [] if begin is None else [begin]
    tokens, owners = np.full((len(rows), context), end), np.zeros((len(rows), context), int)
    n_bytes, lengths = np.zeros((len(rows), context), int), []
    for number, row in enumerate(rows):
        ids = [*first, *row.ids]
        tokens[number, : len(ids)] = ids
        n_bytes[number, len(first) : len(ids)] = row.n_bytes
        padding = context - len(ids)
        owners[number] = np.concatenate([row.owners[: len(first)], row.owners, row.owners[-1:].repeat(padding)])
        lengths.append(len(ids))
    filled = np.array(lengths)[:, None] > np.arange(context)
    mask = filled & ~np.isin(tokens, special_ids(tokenizer))
    mask[:, 0] = False  # without a begin-of-text the first token gathers attention in its place, and grows as large
    return TokenBatch(*map(torch.from_numpy, (tokens, mask, owners, n_bytes)))


def text_rows(texts: Sequence[str], tokenizer, *, context: int | None, batch_size: int) -> Iterator[TokenBatch]:
    """Yield batches of texts of similar lengths, a row each, cut at `context` tokens; `documents` is a text's index.

    The mask is False at special tokens and at the first of a row. A text without tokens is a row of the end token.
    """
    begin, end = begin_and_end(tokenizer)
    start = [] if begin is None else [begin]
    special = torch.tensor(special_ids(tokenizer), dtype=torch.long)
    ids = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    for batch in padded_rows([[*start, *row][:context] or [end] for row in ids], end, batch_size=batch_size):
        inner = torch.arange(batch.tokens.shape[1]) > 0
        yield batch._replace(mask=batch.mask & ~torch.isin(batch.tokens, special) & inner)


def padded_rows(rows: Sequence[Sequence[int]], fill: int, *, batch_size: int) -> Iterator[TokenBatch]:
    """Yield batches of rows of similar lengths, padded on the right; `documents` is a row's index.

    The mask is True at the rows' own tokens; causal attention keeps these from seeing the padding.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for start in range(0, len(rows), batch_size):
        chosen = order[start : start + batch_size]
        lengths = torch.tensor([len(rows[index]) for index in chosen])
        tokens = torch.tensor([[*rows[index], *[fill] * (max(lengths) - len(rows[index]))] for index in chosen])
        filled = lengths[:, None] > torch.arange(tokens.shape[1])
        yield TokenBatch(tokens, filled, torch.tensor(chosen)[:, None].expand_as(tokens))
