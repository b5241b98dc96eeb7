"""What comes from the Hugging Face Hub: what its errors mean to a user, and texts that are fetched once.

No section of the paper. The Hub's clients say what went wrong in many words and classes; a user needs to know what was
asked for and what to do. Models are kept in the Hub's own cache; streamed data sets are not, so what is taken of their
rows is remembered beside it, and a run that was made once can be made again without a network.

Offers `HubError`, `reaching`, `model_is_there`, `dataset_rows`, `dataset_texts`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from filelock import FileLock, Timeout
from huggingface_hub import HfApi, constants, errors, hf_hub_download


class HubError(ValueError):
    """Something on the Hub could not be had; the message says what, and what to do."""


@contextlib.contextmanager
def reaching(kind: str, name: str, revision: str | None = None):
    """Whatever goes wrong on the way to `name`, a `model` or a `dataset`, is told as one HubError."""
    try:
        yield
    except HubError:
        raise
    except Exception as error:  # clients wrap what went wrong in classes of their own; what is not the Hub's goes on
        if said := _meaning(error, kind, name, revision):
            raise HubError(f"{kind} {name!r} {said}") from error
        raise


def _meaning(error: BaseException | None, kind: str, name: str, revision: str | None) -> str | None:
    """What an error, or one that it came from, means; None if the Hub had no part in it."""
    from datasets.exceptions import DatasetNotFoundError  # slow to import

    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        gated_data = isinstance(error, DatasetNotFoundError) and "is a gated dataset" in str(error)
        # The clients' classes overlap: the more special come first.
        if gated_data or isinstance(error, errors.GatedRepoError):
            return (
                f"is gated, and this account has no access to it: accept its conditions on {page}, "
                "then log in with `hf auth login` (or set HF_TOKEN)"
            )
        if isinstance(error, errors.RepositoryNotFoundError | DatasetNotFoundError):
            return (
                f"does not exist on {constants.ENDPOINT}, or is private: check the name "
                "(a private one needs `hf auth login`)"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return f"has no revision {revision!r}: see {page}/tree/main for those it has"
        if isinstance(error, errors.RemoteEntryNotFoundError):
            return f"lacks a file that is needed: {page}/tree/{revision or 'main'} shows what it has"
        if isinstance(error, errors.OfflineModeIsEnabled) or (constants.HF_HUB_OFFLINE and isinstance(error, OSError)):
            return f"is not in {constants.HF_HOME}: unset HF_HUB_OFFLINE once to fetch it"
        if isinstance(error, errors.LocalEntryNotFoundError | httpx.TransportError | ConnectionError):
            return f"is not in {constants.HF_HOME}, and {constants.ENDPOINT} cannot be reached: check the network"
        if isinstance(error, RuntimeError) and "Dataset scripts are no longer supported" in str(error):
            return "has a loading script, which `datasets` no longer runs: its files must be named instead"
        error = error.__cause__ or error.__context__
    return None


def model_is_there(name: str, revision: str | None = None) -> None:
    """Fetches a model's config.json, or finds it in the cache; HubError says why not."""
    with reaching("model", name, revision):
        hf_hub_download(name, "config.json", revision=revision)


def dataset_rows(
    name: str, pick: Callable[[dict], Any], *, picked: str, config: str | None = None, split: str = "train",
    revision: str | None = None, skip: int = 0, files: str | None = None,
) -> Iterator[Any]:  # fmt: skip
    """What `pick` takes of each row of a data set, from row `skip` on: anything JSON holds, or None to pass over it.

    Each row is fetched once, and what was taken of it is remembered in HF_HOME under the name `picked`. `files` are
    parquet files of the repository, as a pattern, for a data set whose loading script `datasets` refuses. HubError
    where the data set cannot be had.
    """
    asked = json.dumps([constants.ENDPOINT, name, config, split, revision, picked, skip, *([files] if files else [])])
    file = f"{name.replace('/', '--')}-{hashlib.sha256(asked.encode()).hexdigest()[:12]}.jsonl"

    def stream(start: int) -> Iterator[Any]:
        with reaching("dataset", name, revision):
            for row in _streamed(name, config, split, revision, files).skip(skip + start):
                value = pick(row)
                yield False if value is None else value

    rows = remembered(Path(constants.HF_HOME, "stitch_utils", file), stream)
    return (value for value in rows if value is not False)


def _streamed(name: str, config: str | None, split: str, revision: str | None, files: str | None):
    from datasets import load_dataset

    if not files:
        return load_dataset(name, config, split=split, revision=revision, streaming=True)
    commit = HfApi().dataset_info(name, revision=revision).sha  # says what is wrong, where a pattern only finds nothing
    found = {split: f"hf://datasets/{name}@{commit}/{files}"}
    try:
        return load_dataset("parquet", data_files=found, split=split, streaming=True)
    except ValueError as error:
        if "valid data file" in str(error):
            raise HubError(f"dataset {name!r} has no files {files!r}") from error
        raise


def dataset_texts(
    name: str, config: str | None, split: str, revision: str | None, column: str, skip: int
) -> Iterator[str]:
    """One column of a data set, from row `skip` on, each row fetched once and then remembered in HF_HOME.

    HubError where it cannot be had; ValueError if it has no such column of text.
    """

    def pick(row: dict) -> str:
        if not isinstance(row.get(column), str):
            raise ValueError(f"dataset {name!r} has no text column {column!r}: its columns are {', '.join(row)}")
        return row[column]

    return dataset_rows(name, pick, picked=column, config=config, split=split, revision=revision, skip=skip)


def remembered(path: Path, stream: Callable[[int], Iterator[Any]]) -> Iterator[Any]:
    """The values of `stream(0)`: first those that `path` already holds, then `stream(n)`, written down as they come.

    A line of the file is a value in JSON; `null` ends a stream that is exhausted. Whoever finds the file in use by
    another process reads on without writing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    count = 0
    with open(path, "r+b") as file, contextlib.ExitStack() as stack:

        def known() -> Iterator[Any]:
            nonlocal count
            while (line := file.readline()).endswith(b"\n"):
                count += 1
                yield json.loads(line)
            file.seek(-len(line), 1)  # the end of the last whole line: an interrupted write leaves a part of one

        for value in known():
            if value is None:
                return
            yield value
        try:
            stack.enter_context(FileLock(f"{path}.lock", timeout=0))
            for value in known():  # written by another process since
                if value is None:
                    return
                yield value
            file.truncate()
            writing = True
        except Timeout:
            writing = False
        for value in stream(count):
            if writing:
                file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
                file.flush()
            yield value
        if writing:
            file.write(b"null\n")
