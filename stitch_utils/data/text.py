"""Make batches of tokens from a text source, with special tokens marked once.

App. A: stitches are fitted on the first documents of OpenWebText with a fixed context, special tokens masked out, since
their residual streams are so large that they would dominate every moment. Every row begins with such a token.

Offers `TokenBatch`, `read_documents`, `token_batches`; for texts that are in memory `text_rows`, `padded_rows`; and
`begin_and_end`.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .embedded.world import documents
from .hub import dataset_rows
from .pairs import FILE_KINDS, HELD_OUT_EVERY, TextRef

TOKENIZE_AT_ONCE = 256


class TokenBatch(NamedTuple):
    """Rows of tokens, all of one length."""

    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    """True at ordinary tokens, False at special and padding ones."""
    documents: Int[Tensor, "batch pos"]
    """The number of each token's document."""

    def split(self, rows: int) -> "Iterator[TokenBatch]":
        """Split into batches of at most `rows` rows."""
        return (TokenBatch(*parts) for parts in zip(*(part.split(rows) for part in self)))


def read_documents(text: TextRef) -> Iterator[str]:
    """Yield the documents of a source that are not empty: after `skip`, up to `take`, and as `held_out` says.

    Raise ValueError, naming the source, if it holds no documents or too few, has no such column of text, or is not a
    file of .txt (blank lines separate documents), .jsonl or .parquet. Raise HubError if a data set cannot be read.
    """
    column = functools.partial(_column, text)
    if text.source == "hub":  # the Hub's rows are skipped before they are fetched
        asked: dict[str, Any] = {"config": text.config, "split": text.split, "revision": text.revision}
        source = dataset_rows(text.name, column, picked=text.column, skip=text.skip, **asked)
    elif text.source == "files":
        source = itertools.islice(map(column, _file_rows(text)), text.skip, None)
    else:
        source = (document.text for document in documents(text.name, start=text.skip))
    usable = (document for document in itertools.islice(source, text.take) if document.strip())
    read = 0
    for read, document in enumerate(usable, start=1):
        if text.held_out is None or text.held_out == (read % HELD_OUT_EVERY == 0):
            yield document
    if not read:
        after = f" after skipping {text.skip}" if text.skip else ""
        raise ValueError(
            f"no documents in {text.source} source {text.name!r}{after}: expected at least one that is not empty"
        )
    if text.held_out and read < HELD_OUT_EVERY:
        raise ValueError(
            f"{text.source} source {text.name!r} has {read} documents that are not empty: every tenth is kept for "
            f"evaluation, so at least {HELD_OUT_EVERY} are needed (in a .txt file, blank lines separate documents), or "
            "give `train` and `evaluation` separately"
        )


def _file_rows(text: TextRef) -> Iterator[dict]:
    """Yield the rows of a file; a .txt file has one for each paragraph."""
    path = Path(text.name).expanduser()
    if path.suffix not in FILE_KINDS:
        raise ValueError(f"text file {text.name!r} is not of a known kind: expected .txt, .jsonl or .parquet")
    if not path.is_file():
        raise ValueError(f"text file {text.name!r} does not exist")
    if path.suffix == ".txt":
        yield from ({text.column: document} for document in path.read_text(encoding="utf-8").split("\n\n"))
        return
    if not path.stat().st_size:
        raise ValueError(f"text file {text.name!r} is empty")
    from datasets import load_dataset  # slow to import, and not needed by the other sources

    kind = "json" if path.suffix == ".jsonl" else "parquet"
    try:
        yield from load_dataset(kind, data_files=str(path), split="train", streaming=True)
    except Exception as error:  # the readers of each kind raise classes of their own, pyarrow's among them
        expected = f'one object such as {{"{text.column}": "..."}} a line' if kind == "json" else "rows"
        raise ValueError(f"text file {text.name!r} cannot be read ({error}): expected {expected}") from error


def _column(text: TextRef, row: dict) -> str:
    if isinstance(found := row.get(text.column), str):
        return found
    kind = "dataset" if text.source == "hub" else "text file"
    raise ValueError(f"{kind} {text.name!r} has no text column {text.column!r}: its columns are {', '.join(row)}")


def token_batches(
    text: TextRef,
    tokenizer,
    *,
    context: int,
    batch_size: int,
    rows: str = "document",
    n_tokens: int | None = None,
    n_documents: int | None = None,
) -> Iterator[TokenBatch]:
    """Yield batches of at most `batch_size` rows of `context` tokens, up to `n_tokens` positions or `n_documents`.

    `rows="document"` makes one row of a document, cut at the context or padded. `rows="packed"` ends each document with
    the end-of-text token, lays them one after another, and drops an incomplete last row. Raise ValueError if the source
    has no documents, or packed text is shorter than one row.
    """
    if n_tokens is not None and n_tokens < context:
        raise ValueError(f"n_tokens={n_tokens} is less than one context of {context} tokens")
    begin, end = begin_and_end(tokenizer)
    start = [] if begin is None else [begin]
    special = torch.tensor(sorted({*tokenizer.all_special_ids, *start}))
    found = _tokenized(itertools.islice(read_documents(text), n_documents), tokenizer)
    if rows == "packed":
        made = _packed(found, context, start, end, text)
    else:
        made = (([*start, *ids][:context], [index] * context) for index, ids in enumerate(found))
    made = itertools.islice(made, None if n_tokens is None else -(-n_tokens // context))
    while chunk := list(itertools.islice(made, batch_size)):
        tokens = torch.tensor([row + [end] * (context - len(row)) for row, _ in chunk])
        filled = torch.tensor([len(row) for row, _ in chunk])[:, None] > torch.arange(context)
        owners = torch.tensor([owners for _, owners in chunk])
        inner = torch.arange(context) > 0  # a row's first token has a stream unlike all others, whichever token it is
        yield TokenBatch(tokens, ~torch.isin(tokens, special) & filled & inner, owners)


def _tokenized(source: Iterator[str], tokenizer) -> Iterator[list[int]]:
    while texts := list(itertools.islice(source, TOKENIZE_AT_ONCE)):
        # verbose=False: rows are cut to the context below, so the tokenizer need not warn of long documents.
        yield from tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def _packed(source, context, start, end, text):
    tokens, owners, made, room = [], [], 0, context - len(start)
    for index, ids in enumerate(source):
        tokens += [*ids, end]
        owners += [index] * (len(ids) + 1)
        while len(tokens) >= room:
            made += 1
            yield [*start, *tokens[:room]], [*owners[: len(start)], *owners[:room]]
            tokens, owners = tokens[room:], owners[room:]
    if not made:
        raise ValueError(
            f"the text of {text.source} source {text.name!r} is shorter than one context: {len(tokens)} tokens, "
            f"expected at least {room}"
        )


def begin_and_end(tokenizer) -> tuple[int | None, int]:
    """Return the tokens that begin and end a text, which may be the same.

    The first is None where the tokenizer has no such token, as Qwen's: none is put before a text then. A tokenizer that
    only names the first ends texts with it, too. Raise ValueError if there is neither.
    """
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if begin is None and end is None:
        raise ValueError("the tokenizer has no token for the beginning or the end of a text: expected at least one")
    return begin, begin if end is None else end


def text_rows(texts: Sequence[str], tokenizer, *, context: int | None, batch_size: int) -> Iterator[TokenBatch]:
    """Yield batches of texts of similar lengths, a row each, cut at `context` tokens; `documents` is a text's index.

    The mask is False at special tokens and at the first of a row. A text without tokens is a row of the end token.
    """
    begin, end = begin_and_end(tokenizer)
    start = [] if begin is None else [begin]
    special = torch.tensor(sorted({*tokenizer.all_special_ids, *start, end}))
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
