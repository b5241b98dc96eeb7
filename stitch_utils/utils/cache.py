"""Keep what takes long to make in `artifacts/`, under a name that says what made it (no section of its own).

A file's name holds a digest of its ingredients (the pair, the sizes, the models' weights), of the code that made it,
and of the versions of the libraries that compute, so nothing stale is read. The code is that of the named modules, of
all that they import of this package but its `__init__.py`s, and of the data files that a module names in `DATA_FILES`.
The processor, the device and the number of threads change the last bits of a sum, but not the name, so that an artifact
serves on another machine.

Offers `artifact` and `kept`.
"""

import ast
import functools
import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from filelock import FileLock

from . import ranks
from .files import (
    NotWritten,
    is_intact,
    project_root,
    remove_if_damaged,
    warn_once,
    writable_folder,
    write_whole,
)

T = TypeVar("T")
PACKAGE = Path(__file__).parents[1]
# The next version of any of these may change the last digit of a number, or read a text or a file differently.
LIBRARIES = ["datasets", "langdetect", "numpy", "sae-lens", "scikit-learn", "scipy", "tokenizers", "torch"]
LIBRARIES += ["transformer-lens", "transformers"]


class Code:
    """The source of a package when this object was made: later edits are not what the process computes with."""

    def __init__(self, package: Path):
        self.name = package.name
        found = [path for pattern in ("*.py", "*.yml") for path in sorted(package.rglob(pattern))]
        self.files = {path.relative_to(package).as_posix(): path.read_bytes() for path in found}

    def closure(self, modules: Iterable[str]) -> dict[str, str]:
        """Return digests, by file name, of these modules (`package.room.module`), their imports, and their data.

        Raise ValueError for a module that the package does not have, and for `DATA_FILES` that match nothing.
        """
        found, waiting = set(), list(modules)
        while waiting:
            module = waiting.pop()
            file = self._file(module)
            if file is None:
                raise ValueError(f"{module!r} is no module of {self.name}: an artifact cannot be keyed by it")
            if file not in found:
                imported, data = self._reads(module, file)
                waiting += imported
                found |= {file, *data}
        return {name: hashlib.sha256(self.files[name]).hexdigest() for name in sorted(found)}

    def _file(self, module: str) -> str | None:
        """Return the file of a module; None for a package, or for a name that is no module."""
        package, _, rest = module.partition(".")
        file = f"{rest.replace('.', '/')}.py"
        return file if package == self.name and file in self.files else None

    def _reads(self, module: str, file: str) -> tuple[list[str], list[str]]:
        """List the modules of this package that a module imports anywhere, and the data files that it names."""
        imported, data = [], []
        for node in ast.walk(ast.parse(self.files[file])):
            if isinstance(node, ast.Import):
                imported += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = module.rsplit(".", node.level)[0] if node.level else ""
                source = ".".join(part for part in (base, node.module) if part)
                imported += [source, *(f"{source}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "DATA_FILES":
                pattern = f"{file.rpartition('/')[0]}/{ast.literal_eval(node.value)}"
                data += (found := [name for name in self.files if Path(name).match(pattern)])
                if not found:
                    raise ValueError(f"{module} names the data files {pattern!r}, and there are none")
        return [name for name in imported if self._file(name)], data


CODE = Code(PACKAGE)


@functools.cache
def _made_with(modules: tuple[str, ...]) -> dict[str, object]:
    """Return the code and the versions of the libraries behind an artifact."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"code": CODE.closure(modules), "libraries": versions, "python": sys.version_info[:2]}


def artifact(
    pair: str, kind: str, ingredients: Mapping[str, object], *, sources: Iterable[ModuleType | Callable], suffix: str
) -> Path:
    """Return the path below `artifacts/<pair>/` of what these ingredients make.

    `sources` are the functions, classes or modules that make it; their imports count too. Raise ValueError without a
    source, and for one that is not of this package.
    """
    modules = sorted({source.__name__ if isinstance(source, ModuleType) else source.__module__ for source in sources})
    if not modules:
        raise ValueError("an artifact needs at least one source: the function or module that makes it")
    said = json.dumps([ingredients, _made_with(tuple(modules))], sort_keys=True, default=str)
    return project_root() / "artifacts" / pair / f"{kind}-{hashlib.sha256(said.encode()).hexdigest()[:16]}{suffix}"


def kept(
    path: Path,
    make: Callable[[], T],
    save: Callable[[T, Path], object],
    load: Callable[[Path], T],
    *,
    anew: bool = False,
) -> T:
    """Load what `path` holds. If it is missing or damaged, or with `anew`, make it and save it there first.

    Where two processes want it at once, one makes it and the other waits and loads it. Where its folder cannot be
    written, it is made without being saved, with a warning.

    In a group of processes (`ranks`), `make` is called in each, unless the first can load it for all; the first saves
    it, once all have made it.
    """
    if ranks.count() > 1:
        found = ranks.from_first(lambda: [load(path)] if not anew and is_intact(path) else [])
        made = found[0] if found else make()

        def keep() -> None:
            kept(path, lambda: made, save, load, anew=anew)

        if not found:
            ranks.from_first(keep)
        return made
    if not anew and is_intact(path):
        return load(path)
    try:
        writable_folder(path.parent)
    except NotWritten as error:
        warn_once(f"{error}. Until then nothing is kept there, and each run makes everything anew")
        return make()
    with FileLock(path.with_name(f".{path.name}.lock")):
        if not anew and path.exists() and not remove_if_damaged(path):
            return load(path)
        made = make()
        write_whole(path, lambda place: save(made, place))
        return made
