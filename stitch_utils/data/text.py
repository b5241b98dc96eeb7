"""Make batches of tokens from a text source, with special tokens marked once.

App. A: stitches are fitted on the first documents of OpenWebText with a fixed context, special tokens masked out.
Every row begins with the beginning-of-text token, as the models saw in training. It and all other special tokens are
marked here and nowhere else, since their residual streams are so large that they would dominate every moment.

Offers `TokenBatch`, `read_documents`, `token_batches`; for texts that are in memory `text_rows`, `padded_rows`; and
`begin_and_end`.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
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
    if text.source == "hub":  # the Hub's rows are skipped before they are fetched
        asked: dict[str, Any] = {"config": text.config, "split": text.split, "revision": text.revision}
        source = dataset_rows(
            text.name, lambda row: _column(row, text), picked=text.column, skip=text.skip, **asked
        )
    else:
        found = _files(text) if text.source == "files" else (one.text for one in documents(text.name))
        source = itertools.islice(found, text.skip, None)
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


def _files(text: TextRef) -> Iterator[str]:
    path = Path(text.name).expanduser()
    if path.suffix not in FILE_KINDS:
        raise ValueError(f"text file {text.name!r} is not of a known kind: expected .txt, .jsonl or .parquet")
    if not path.is_file():
        raise ValueError(f"text file {text.name!r} does not exist")
    if path.suffix == ".txt":
        return iter(path.read_text(encoding="utf-8").split("\n\n"))
    if not path.stat().st_size:
        raise ValueError(f"text file {text.name!r} is empty")
    from datasets import load_dataset  # slow to import, and not needed by the other sources

    kind = "json" if path.suffix == ".jsonl" else "parquet"
    rows = load_dataset(kind, data_files=str(path), split="train", streaming=True)
    return (_column(row, text) for row in _readable(rows, text))


def _readable(rows: Iterable[dict], text: TextRef) -> Iterator[dict]:
    """Yield the rows of a file; raise one ValueError for any error of its reader."""
    try:
        yield from rows
    except Exception as error:  # the readers of each kind raise classes of their own, pyarrow's among them
        expected = f'one object such as {{"{text.column}": "..."}} a line' if ".jsonl" in text.name else "rows"
        raise ValueError(f"text file {text.name!r} cannot be read ({error}): expected {expected}") from error


def _column(row: dict, text: TextRef) -> str:
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
    special = torch.tensor(sorted({*tokenizer.all_special_ids, begin}))
    make_rows = _packed if rows == "packed" else _one_per_document
    n_rows = None if n_tokens is None else -(-n_tokens // context)
    source = itertools.islice(read_documents(text), n_documents)
    stream = itertools.islice(make_rows(_tokenized(source, tokenizer), context, begin, end, text), n_rows)
    while chunk := list(itertools.islice(stream, batch_size)):
        tokens = torch.tensor([tokens for tokens, _, _ in chunk])
        filled = torch.tensor([length for _, _, length in chunk])[:, None] > torch.arange(context)
        owners = torch.tensor([owners for _, owners, _ in chunk])
        yield TokenBatch(tokens, ~torch.isin(tokens, special) & filled, owners)


def _tokenized(source: Iterator[str], tokenizer) -> Iterator[list[int]]:
    while texts := list(itertools.islice(source, TOKENIZE_AT_ONCE)):
        # verbose=False: rows are cut to the context below, so the tokenizer need not warn of long documents.
        yield from tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def _one_per_document(source, context, begin, end, text):
    for index, ids in enumerate(source):
        row = [begin, *ids[: context - 1]]
        yield row + [end] * (context - len(row)), [index] * context, len(row)


def _packed(source, context, begin, end, text):
    tokens, owners, made = [], [], 0
    for index, ids in enumerate(source):
        tokens += [*ids, end]
        owners += [index] * (len(ids) + 1)
        while len(tokens) >= context - 1:
            made += 1
            yield [begin, *tokens[: context - 1]], [owners[0], *owners[: context - 1]], context
            tokens, owners = tokens[context - 1 :], owners[context - 1 :]
    if not made:
        raise ValueError(
            f"the text of {text.source} source {text.name!r} is shorter than one context: {len(tokens)} tokens, "
            f"expected at least {context - 1}"
        )


def begin_and_end(tokenizer) -> tuple[int, int]:
    """Return the tokens that begin and end a text, which may be the same; raise ValueError if there is none."""
    ends = [id for id in (tokenizer.bos_token_id, tokenizer.eos_token_id) if id is not None]
    if not ends:
        raise ValueError("the tokenizer has no token for the beginning or the end of a text: expected at least one")
    return ends[0], ends[-1]


def text_rows(texts: Sequence[str], tokenizer, *, context: int | None, batch_size: int) -> Iterator[TokenBatch]:
    """Yield batches of texts of similar lengths, a row each, cut at `context` tokens; `documents` is a text's index."""
    begin, end = begin_and_end(tokenizer)
    special = torch.tensor(sorted({*tokenizer.all_special_ids, begin, end}))
    ids = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    for batch in padded_rows([[begin, *row][:context] for row in ids], end, batch_size=batch_size):
        yield batch._replace(mask=batch.mask & ~torch.isin(batch.tokens, special))


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
