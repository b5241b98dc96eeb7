"""Write files whole or not at all, and notice when one has changed since (no section of its own).

Runs are killed, disks fill up and bits flip, and none of this may change a number. `write_whole` writes a file or
folder under a scratch name beside its place, writes its digest to a hidden file, its seal, and then moves it to its
place in one step. A file that does not agree with its seal is removed and made again. A seal keeps the digests of the
last few contents, since a process may die between sealing and moving, and two may write at once.

Offers `project_root`, `locked`, `NotWritten`, `writable_folder`, `warn_once`, `write_whole`, `check_ours`, `is_sealed`,
`is_intact`, `remove_sealed`, `remove_leftovers`, `remove_if_damaged`, `DAMAGED`, `remove_damaged`, `digest` and
`tree_digest`.
"""

import errno
import functools
import hashlib
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

CONTENTS = 4  # digests that a seal keeps
DAMAGED = "is not as it was written (truncated, or changed on the disk): it is made again"
SCRATCH = re.compile(r"\.(\d+)\.new\..+")


def project_root() -> Path:
    """Return the folder of `book` and `results`: `STITCH_ROOT`, else this package's checkout, else the cwd."""
    if root := os.environ.get("STITCH_ROOT"):
        return Path(root)
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "_toc.yml").is_file() else Path.cwd()


def locked(root: Path | None = None) -> dict[str, str]:
    """Read {package: version} from `requirements.lock`; ValueError without one, or for a line that pins nothing."""
    path, found = (root or project_root()) / "requirements.lock", {}
    if not path.is_file():
        raise ValueError(f"{path} does not exist: expected the root of a checkout, which STITCH_ROOT may name")
    for line in path.read_text(encoding="utf-8").splitlines():
        if line := line.split("#")[0].strip():
            name, pinned, version = line.partition("==")
            if not pinned:
                raise ValueError(f"requirements.lock: {line!r}: expected name==version")
            found[re.sub(r"[-_.]+", "-", name.strip()).lower()] = version
    return found


class NotWritten(OSError):
    """A file could not be written; what was there before is as it was."""


def writable_folder(folder: Path, variable: str = "STITCH_ROOT") -> Path:
    """Make a folder if it is missing, and return it; raise NotWritten, with the remedy, if no file can be made in it.

    `variable` is the environment's, which says where such folders are.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        remedy = f"make it writable, or let {variable} name a folder that is"
        raise NotWritten(f"{folder} cannot be written ({error.strerror}): {remedy}") from error
    return folder


@functools.cache
def warn_once(message: str) -> None:
    """Warn with this message, once in a process."""
    warnings.warn(message, stacklevel=3)


def write_whole(path: str | Path, write: Callable[[Path], object], *, sealed: bool = True) -> None:
    """Write a file or folder to `path` in one step: `write` gets a scratch path, which is then moved to `path`.

    Raise NotWritten, naming `path` and the cause, if the disk refuses it or a file would replace a folder.
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
            content = str(_content(scratch))
            known = [content, *(line for line in _sealed(seal) if line != content)][:CONTENTS]
            _scratch_of(seal).write_text("".join(f"{line}\n" for line in known), encoding="ascii")
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
    """Raise ValueError unless the folder may be replaced: new, empty, or with `mark` and nothing but `others`."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is there and is no folder")
    found, known = {path.name for path in folder.iterdir()} if folder.exists() else set(), {mark, *others}
    if found and (mark not in found or found - known):
        first, *more = sorted(found - known or found)
        raise ValueError(
            f"{folder} is there and holds {first}{f' and {len(more)} more' if more else ''}: expected a new folder, an "
            f"empty one, or one with {mark} and nothing beside it but {' and '.join(others)}"
        )


def is_sealed(path: str | Path) -> bool:
    """Tell whether `path` has a seal."""
    return _seal_of(Path(path)).is_file()


def is_intact(path: str | Path) -> bool:
    """Tell whether the content of `path` is one that `write_whole` sealed."""
    return _content(Path(path)) in _sealed(_seal_of(Path(path)))


def remove_sealed(path: str | Path) -> None:
    """Remove a file or folder and its seal."""
    _remove(Path(path))
    _remove(_seal_of(Path(path)))


def remove_leftovers(folder: Path) -> None:
    """Remove what dead processes left half-written in the folder and its subfolders."""
    for scratch in folder.rglob(".*.new.*"):
        if (found := SCRATCH.fullmatch(scratch.name)) and not _runs(int(found[1])):
            _remove(scratch)


def remove_if_damaged(path: Path) -> bool:
    """Tell whether `path` is missing or not as it was written; if it is still there, remove it with a warning."""
    if is_intact(path):
        return False
    if path.exists():
        warnings.warn(f"{path} {DAMAGED}", stacklevel=3)
    remove_sealed(path)
    return True


def remove_damaged(root: Path) -> Iterator[Path]:
    """Remove half-written and damaged artifacts of a project, and yield the damaged ones."""
    remove_leftovers(root / "artifacts")
    for seal in sorted((root / "artifacts").rglob(".*.sha256")):
        path = seal.with_name(seal.name.removeprefix(".").removesuffix(".sha256"))
        if not path.exists():
            seal.unlink()
        elif not is_intact(path):
            remove_sealed(path)
            yield path


def digest(path: Path) -> str | None:
    """Return the SHA-256 of a file, or None if there is no such file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digest(folder: Path, *patterns: str) -> str:
    """Return one SHA-256 of the names and contents of matching files, except hidden files and caches."""
    files = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    names = sorted(path.relative_to(folder).as_posix() for path in files)
    names = [name for name in names if not re.search(r"(^|/)(\.|__pycache__/)", name)]
    return hashlib.sha256("".join(f"{digest(folder / name)}  {name}\n" for name in names).encode()).hexdigest()


def _content(path: Path) -> str | None:
    return tree_digest(path, "**/*") if path.is_dir() else digest(path)


def _seal_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")


def _scratch_of(path: Path) -> Path:
    return path.with_name(f".{os.getpid()}.new.{path.name}")


def _sealed(seal: Path) -> list[str]:
    """Return the digests that a seal keeps; none if it cannot be read."""
    try:
        return seal.read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return []


def _move(scratch: Path, path: Path, *, through: bool) -> None:
    """Move `scratch` to `path`; with `through`, flush it to the disk first, so that a power cut leaves one whole."""
    for file in (scratch, *scratch.rglob("*")) if through else ():
        if file.is_file():
            with file.open("rb") as written:
                os.fsync(written.fileno())
    os.replace(scratch, path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError) as error:
        return not isinstance(error, ProcessLookupError)
    return True
