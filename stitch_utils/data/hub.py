"""Read from the Hugging Face Hub: explain its errors to a user, and fetch each text once.

No section of the paper. The Hub's clients report errors in many classes and many words; a user needs to know what was
asked for and what to do. The Hub's own cache keeps models, but not the rows of a streamed data set. This module keeps
what is taken of each row, so that a run can be made again without a network, and a lost connection loses no row.

Offers `HubError`, `HubBusy`, `reaching`, `fetched`, `dataset_rows`, `remembered`, `EMBEDDED`, and what a model
reference means: `resolve`, `embedded_folder`.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from json import JSONDecodeError
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from huggingface_hub import HfApi, constants, errors
from safetensors import SafetensorError

from ..utils.files import NotWritten, warn_once, writable_folder
from .pairs import is_gguf
from .text_files import HUB_ID, file_rows, names_files

T = TypeVar("T")
EMBEDDED = Path(__file__).parent / "embedded"
WAITS = (1, 2, 4, 8)  # seconds before a busy Hub is asked again


class HubError(ValueError):
    """Something on the Hub could not be read; the message says what, and what to do."""


class HubBusy(HubError):
    """The Hub is busy or a connection was lost, so trying again later may help."""


@contextlib.contextmanager
def reaching(kind: str, name: str, revision: str | None = None):
    """Re-raise an error of the Hub's clients as a HubError about `name`, a `model` or a `dataset`; let others pass."""
    try:
        yield
    except HubError:
        raise
    except Exception as error:  # the clients wrap errors in classes of their own
        if said := _meaning(error, kind, name, revision):
            # The client has asked for a file's metadata several times before it raises LocalEntryNotFoundError. It asks
            # only once for the file, and gives up when an open connection is reset (ReadError).
            asked = isinstance(error, errors.LocalEntryNotFoundError)
            passing = not asked and any(_busy_status(one) or _is_a(one, "ReadError") for one in _chain(error))
            raise (HubBusy if passing else HubError)(f"{kind} {name!r} {said}") from error
        raise


def fetched(kind: str, name: str, fetch: Callable[[], T], *, revision: str | None = None) -> T:
    """Call `fetch`, again if the Hub is busy, and return its result; raise HubError if it still fails."""
    asked = reaching(kind, name, revision)(fetch)
    for wait in WAITS:
        try:
            return asked()
        except HubBusy:
            time.sleep(wait)
    return asked()


def _chain(error: BaseException | None) -> list[BaseException]:
    """List an error and the errors that caused it."""
    found: list[BaseException] = []
    while error is not None and all(error is not one for one in found):
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _busy_status(error: BaseException) -> int | None:
    """Return the HTTP status of an answer that asks to come back later, else None."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) and (status == 429 or status >= 500) else None


def _is_a(error: BaseException, name: str) -> bool:
    """Compare an error's class by name, since the Hub's client has changed its HTTP library."""
    kinds = {(kind.__module__.split(".")[0], kind.__name__) for kind in type(error).__mro__}
    return not kinds.isdisjoint({("httpx", name), ("httpx2", name)})


def _meaning(raised: BaseException, kind: str, name: str, revision: str | None) -> str | None:
    """Explain an error or one of its causes to a user; return None if the Hub had no part in it."""
    from datasets.exceptions import DatasetNotFoundError  # slow to import

    hub, home = constants.ENDPOINT, constants.HF_HOME
    page = f"{hub}/{'datasets/' if kind == 'dataset' else ''}{name}"
    # a file that is there and broken is no missing one
    broken = any(isinstance(one, UnicodeError | JSONDecodeError) for one in _chain(raised))
    offline = constants.HF_HUB_OFFLINE and not broken
    for error in _chain(raised):
        gated_data = isinstance(error, DatasetNotFoundError) and "is a gated dataset" in str(error)
        # The clients' classes overlap: the more special come first.
        if gated_data or isinstance(error, errors.GatedRepoError):
            return (
                f"is gated, and this account has no access to it: accept its conditions on {page}, "
                "then log in with `hf auth login` (or set HF_TOKEN)"
            )
        if isinstance(error, errors.RepositoryNotFoundError | DatasetNotFoundError):
            return f"does not exist on {hub}, or is private: check the name (a private one needs `hf auth login`)"
        if isinstance(error, errors.RevisionNotFoundError):
            return f"has no revision {revision!r}: see {page}/tree/main for those it has"
        if isinstance(error, errors.RemoteEntryNotFoundError):
            return f"lacks a file that is needed: {page}/tree/{revision or 'main'} shows what it has"
        if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
            where = getattr(error, "filename", None) or home
            return f"cannot be kept, since {where} cannot be written: let HF_HOME name a folder that can be"
        if isinstance(error, errors.OfflineModeIsEnabled) or (offline and isinstance(error, OSError)):
            return f"is not in {home}: unset HF_HUB_OFFLINE once to fetch it"
        if busy := next(filter(None, map(_busy_status, _chain(error))), None):
            return f"could not be had: {hub} is busy (status {busy}). Nothing is lost: try again later"
        if isinstance(error, errors.LocalEntryNotFoundError | ConnectionError) or _is_a(error, "TransportError"):
            return f"is not whole in {home}, and {hub} cannot be reached: check the network"
        if isinstance(error, SafetensorError):
            folder = Path(constants.HF_HUB_CACHE, f"{kind}s--{name.replace('/', '--')}")
            return f"has weights that are damaged ({error}): remove {folder} and run again, to fetch them anew"
        if isinstance(error, RuntimeError) and "Dataset scripts are no longer supported" in str(error):
            return "has a loading script, which `datasets` no longer runs: its files must be named instead"
    return None


def dataset_rows(
    name: str,
    pick: Callable[[dict], Any],
    *,
    picked: str,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    skip: int = 0,
    files: str | None = None,
) -> Iterator[Any]:
    """Yield what `pick` takes of each row of a data set, from row `skip` on: a JSON value, or None to leave a row out.

    Each row is fetched once; HF_HOME keeps what was taken of it, under the name `picked`. `files` is a pattern of
    parquet files, for a data set whose loading script `datasets` refuses. A name may mean files of this disk
    (`text_files`) where neither configuration nor split is asked for. Raise HubError if the data cannot be read, and
    ValueError for files.
    """
    if names_files(name):
        if config or split != "train":
            wanted = f"configuration {config!r}" if config else f"split {split!r}"
            raise ValueError(f"{name!r} names files, which have no {wanted}: expected the id of a data set of the Hub")
        rows = itertools.islice(file_rows(name), skip, None)
        return (value for value in map(pick, rows) if value is not None)
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
        with _room_for_clients() as cache_dir:
            return load_dataset(name, config, split=split, revision=revision, streaming=True, cache_dir=cache_dir)
    commit = HfApi().dataset_info(name, revision=revision).sha  # says what is wrong, where a pattern only finds nothing
    found = {split: f"hf://datasets/{name}@{commit}/{files}"}
    try:
        with _room_for_clients() as cache_dir:
            return load_dataset("parquet", data_files=found, split=split, streaming=True, cache_dir=cache_dir)
    except ValueError as error:
        if "valid data file" in str(error):
            raise HubError(f"dataset {name!r} has no files {files!r}") from error
        raise


@contextlib.contextmanager
def _room_for_clients() -> Iterator[str | None]:
    """Give the Hub's clients a passing folder for a data set's card where their own cannot be written; else None."""
    kept_in = constants.HF_HUB_CACHE
    try:
        writable_folder(Path(kept_in))
    except NotWritten:
        with tempfile.TemporaryDirectory() as folder:
            try:
                constants.HF_HUB_CACHE = folder
                yield folder
            finally:
                constants.HF_HUB_CACHE = kept_in
    else:
        yield None


def remembered(path: Path, stream: Callable[[int], Iterator[Any]]) -> Iterator[Any]:
    """Yield the values of `stream(0)`: first those that `path` holds, then those of `stream(n)`, and write these down.

    A line of the file holds a digest of all values so far, then a value in JSON; `null` ends a finished stream. Values
    from the first damaged line on are fetched again. A process that finds the file in use reads on without writing, and
    so does one that may not write it, with a warning.
    Raise NotWritten if the disk is full; the file keeps what it holds.
    """
    if not (is_kept := _can_keep(path)) and not (path.is_file() and os.access(path, os.R_OK)):
        yield from stream(0)
        return
    count, chain, lock = 0, b"", FileLock(f"{path}.lock")
    with open(path, "r+b" if is_kept else "rb") as file, contextlib.ExitStack() as stack:
        for locking in (False, True):  # before there was a lock, another process may have written more
            if locking and is_kept:
                with contextlib.suppress(Timeout):
                    stack.enter_context(lock.acquire(timeout=0))
            while line := file.readline():
                digest, _, said = line.partition(b" ")
                if digest != (following := _link(chain, said)):
                    file.seek(-len(line), 1)
                    break
                count, chain, value = count + 1, following, json.loads(said)
                if value is None:
                    return
                yield value
        if not lock.is_locked:
            yield from stream(count)
            return
        end = file.truncate()
        for value in itertools.chain(stream(count), [None]):
            said = json.dumps(value, ensure_ascii=False).encode() + b"\n"
            chain = _link(chain, said)
            line = chain + b" " + said
            try:  # not through the file's buffer, which would try again when it is closed
                while line:
                    written = os.pwrite(file.fileno(), line, end)
                    line, end = line[written:], end + written
            except OSError as error:
                raise NotWritten(f"{path} could not be written ({error.strerror}): what it holds is kept") from error
            if value is not None:
                yield value


def _can_keep(path: Path) -> bool:
    """Tell whether a file can be written, and warn if it cannot."""
    try:
        writable_folder(path.parent, "HF_HOME" if path.is_relative_to(constants.HF_HOME) else "STITCH_ROOT")
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o666))
    except OSError as error:
        reason = error if isinstance(error, NotWritten) else f"{path} cannot be written ({error.strerror})"
        warn_once(f"nothing is remembered, and each run fetches or makes it anew: {reason}")
        return False
    return True


def _link(chain: bytes, said: bytes) -> bytes:
    """Return the digest of a line that comes after those whose last digest is `chain`."""
    return hashlib.sha256(chain + said).hexdigest()[:16].encode()


def resolve(ref: str) -> str:
    """Return the folder of `embedded:NAME`, or a folder, GGUF file or Hub id as it is; raise ValueError for others."""
    if ref.startswith("embedded:"):
        return str(embedded_folder(ref, "model", "config.json"))
    folder = Path(ref).expanduser()
    if is_gguf(ref) and not folder.is_dir():
        if not folder.is_file():
            raise ValueError(f"there is no GGUF file {str(folder)!r}: expected a path, relative to the pair's file")
        return str(folder)
    if (folder / "config.json").exists():
        return str(folder)
    if ref.startswith((".", "/", "~")) or folder.is_dir() or not re.fullmatch(HUB_ID, ref):
        raise ValueError(f"{ref!r} is no folder with a Hugging Face model (config.json is not in it), and no Hub id")
    return ref


def embedded_folder(ref: str, kind: str, file: str) -> Path:
    """Return the folder that `embedded:NAME` means; raise ValueError, naming the known ones, if it has no `file`."""
    folder = EMBEDDED / ref.removeprefix("embedded:")
    if not (folder / file).exists():
        known = sorted(path.parent.name for path in EMBEDDED.glob(f"*/{file}"))
        raise ValueError(f"there is no embedded {kind} {folder.name!r}: known are {', '.join(known) or 'none'}")
    return folder
