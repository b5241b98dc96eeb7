"""Read documents from the embedded world, docstrings of packages, the Hub, or files (no section of its own).

Offers `read_documents`.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

from .documentation import docstrings
from .embedded.world import documents
from .hub import dataset_rows
from .pairs import HELD_OUT_EVERY, TextRef
from .text_files import file_texts


def read_documents(text: TextRef) -> Iterator[str]:
    """Yield the documents of a source that are not empty: after `skip`, up to `take`, and as `held_out` says.

    Raise ValueError, naming the source, if it holds no documents or too few, has no such column of text, or is a file
    that cannot be read (see `text_files`). Raise HubError if a data set cannot be read.
    """
    column = functools.partial(_column, text)
    if text.source == "hub":  # the Hub's rows are skipped before they are fetched
        asked: dict[str, Any] = {"config": text.config, "split": text.split, "revision": text.revision}
        source = dataset_rows(text.name, column, picked=text.column, skip=text.skip, **asked)
    elif text.source == "files":
        source = file_texts(text.name, text.column, skip=text.skip, take=text.take)
    elif text.source == "documentation":
        source = (one.text for one in itertools.islice(docstrings(text.name), text.skip, None))
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


def _column(text: TextRef, row: dict) -> str:
    """Return the text of a row of a data set, "" where there is none."""
    if isinstance(found := row.get(text.column), str):
        return found
    if text.column in row and found is None:
        return ""
    raise ValueError(f"dataset {text.name!r} has no text column {text.column!r}: its columns are {', '.join(row)}")
