"""Read documents from the embedded world, docstrings of packages, the Hub, or a file (no section of its own).

Offers `read_documents`.
"""

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .documentation import docstrings
from .embedded.world import documents
from .hub import dataset_rows
from .pairs import FILE_KINDS, HELD_OUT_EVERY, TextRef


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
