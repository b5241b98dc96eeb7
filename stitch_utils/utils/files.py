"""Files that are whole or absent, and known to be what was written (no section of its own).

Runs are killed, disks fill up and turn bits over, and none of it may become a number. So a file or a folder is written
beside its place, under a name that nobody reads, and moved there in one step; and before that its digest is noted in a
hidden file next to it, its seal. What does not agree with its seal is not read: whoever needs it makes it again.

A seal keeps the digests of the last few contents. A process that dies between seal and move leaves what was there
before, which is then as good as it was; of two processes that write at once, either may be the last.

Offers `project_root`, `put`, `check_ours`, `is_sound`, `is_sealed`, `discard`, `damaged`, `sweep_up`, `tidy`,
`NotWritten`, `digest` and `tree_digest`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

CONTENTS = 4  # digests that a seal keeps
SCRATCH = re.compile(r"\.(\d+)\.new\..+")


def project_root() -> Path:
    """The folder that holds `book` and `results`: `STITCH_ROOT`, else the checkout of this package, else the cwd."""
    if root := os.environ.get("STITCH_ROOT"):
        return Path(root)
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "_toc.yml").is_file() else Path.cwd()


class NotWritten(OSError):
    """A file could not be written; what was there before is as it was."""


def put(path: str | Path, write: Callable[[Path], object], *, sealed: bool = True) -> None:
    """`path` becomes what `write` leaves at the place that it is given, a file or a folder; in one step, or not at all.

    NotWritten, naming `path` and the cause, where the disk does not take it, or a file would replace a folder.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise NotWritten(f"{path} could not be written: expected the name of a file or folder")
    scratch, seal = _scratch_of(path), _seal_of(path)
    aside = _scratch_of(scratch)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(scratch)
        replaces = path.exists()
        if path.is_dir() and not scratch.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder, and a file was to be written")
        if sealed:
            known = "".join(f"{line}\n" for line in _known(seal, _content(scratch)))
            _scratch_of(seal).write_text(known, encoding="ascii")
            _move(_scratch_of(seal), seal, through=replaces)
        if path.is_dir():
            os.replace(path, aside)  # one folder cannot take the place of another
        _move(scratch, path, through=replaces)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise NotWritten(
            f"{path} could not be written ({reason}): what was finished before is kept, so mend that and run again"
        ) from error
    finally:
        if aside.exists() and not path.exists():
            os.replace(aside, path)
        for leftover in (scratch, _scratch_of(seal), aside):
            _remove(leftover)


def check_ours(folder: Path, mark: str, *others: str) -> None:
    """ValueError unless the folder is new, empty, or holds `mark` and at most those others: it is to be replaced."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is there and is no folder")
    found, known = {path.name for path in folder.iterdir()}, {mark, *others}
    if found and (mark not in found or found - known):
        first, *more = sorted(found - known or found)
        raise ValueError(
            f"{folder} is there and holds {first}{f' and {len(more)} more' if more else ''}: expected a new folder, an "
            f"empty one, or one with {mark} and nothing beside it but {' and '.join(others)}"
        )


def is_sealed(path: str | Path) -> bool:
    """Whether it is known what should be there."""
    return _seal_of(Path(path)).is_file()


def is_sound(path: str | Path) -> bool:
    """Whether what is there is what `put` wrote and sealed."""
    path = Path(path)
    try:
        known = _seal_of(path).read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return False
    return _content(path) in known


def discard(path: str | Path) -> None:
    """Removes it and its seal."""
    _remove(Path(path))
    _remove(_seal_of(Path(path)))


def sweep_up(folder: Path) -> None:
    """Removes what processes that are gone have left half-written, in the folder and those in it."""
    for scratch in folder.rglob(".*.new.*"):
        found = SCRATCH.fullmatch(scratch.name)
        if found and not _runs(int(found[1])):
            _remove(scratch)


def damaged(path: Path) -> bool:
    """Whether a file or folder is not what was written there; then it is removed, and a warning says so. What has been
    removed already is said no more."""
    if is_sound(path):
        return False
    if path.exists():
        warnings.warn(damage(path), stacklevel=3)
    discard(path)
    return True


def damage(path: Path) -> str:
    """What is said of it."""
    return f"{path} is not as it was written (truncated, or changed on the disk): it is made again"


def tidy(root: Path) -> Iterator[Path]:
    """Removes from the artifacts of a project what killed runs left half-written, and what is damaged, which it gives.

    For a command to say before it starts; a notebook that meets damage says it on its page.
    """
    sweep_up(root / "artifacts")
    for seal in sorted((root / "artifacts").rglob(".*.sha256")):
        path = seal.with_name(seal.name.removeprefix(".").removesuffix(".sha256"))
        if not path.exists():
            seal.unlink()
        elif not is_sound(path):
            discard(path)
            yield path


def digest(path: Path) -> str | None:
    """SHA-256 of a file, None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digest(folder: Path, *patterns: str) -> str:
    """One SHA-256 over the names and contents of the files below `folder` that match; hidden files and caches aside."""
    names = {
        path.relative_to(folder).as_posix() for pattern in patterns for path in folder.glob(pattern) if path.is_file()
    }
    names = sorted(name for name in names if not re.search(r"(^|/)(\.|__pycache__/)", name))
    return hashlib.sha256("".join(f"{digest(folder / name)}  {name}\n" for name in names).encode()).hexdigest()


def _content(path: Path) -> str | None:
    return tree_digest(path, "**/*") if path.is_dir() else digest(path)


def _seal_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")


def _scratch_of(path: Path) -> Path:
    return path.with_name(f".{os.getpid()}.new.{path.name}")


def _known(seal: Path, content: str | None) -> list[str]:
    """The lines of a seal to which a content is added."""
    before = seal.read_text(encoding="ascii", errors="replace").split() if seal.is_file() else []
    return [str(content), *(line for line in before if line != content)][:CONTENTS]


def _move(scratch: Path, path: Path, *, through: bool) -> None:
    """`through` to the disk first: after a power cut one of the two is there whole. What is new is made again then."""
    files = [file for file in (scratch, *scratch.rglob("*")) if file.is_file()] if through else []
    for file in files:
        with file.open("rb") as written:
            os.fsync(written.fileno())
    os.replace(scratch, path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
