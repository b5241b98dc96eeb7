"""Fitted things that are worth keeping, in `artifacts/`, found again by what made them (no section of its own).

A file's name holds a digest of its ingredients: the pair, the sizes, the models' own files where they are on this
disk (else the commit of the Hub that was fetched), the modules that did the work with all that they import of this
package, and the versions of the libraries that compute. Whatever changes among these makes another name, so nothing
stale is ever read. Not among them are the processor, the device and the number of threads, so that an artifact may be
carried from one machine to another: they move the last bits of a sum, as they would if it were made anew.

A file appears under its name only once it is whole, and is read only if it is still what was written (`files.py`).

Offers `artifact`, `kept`, `of_activations`, `ACTIVATION_SOURCES`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import posixpath
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

from huggingface_hub import try_to_load_from_cache

from .files import damaged, digest, put
from .models import resolve
from .pairs import ModelPair, ModelRef, TextRef
from .results import project_root

T = TypeVar("T")
PACKAGE = Path(__file__).parent
# The code that turns a pair into activations, as patterns.
ACTIVATION_SOURCES = ("embedded/*.py", "embedded/lexicons/*", "text.py", "models.py", "harvest.py")
LEXICONS = "embedded/lexicons/*"
# Any of them may compute another last digit, or read a text or a file otherwise, in its next version.
LIBRARIES = (
    "datasets", "langdetect", "numpy", "sae-lens", "scikit-learn", "scipy", "tokenizers", "torch", "transformer-lens",
    "transformers",
)  # fmt: skip
IMPORT = re.compile(r"^\s*from (\.+)([\w.]+) import ", re.MULTILINE)


def _read_code(package: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """For each source file and lexicon of the package its digest, and the patterns of those that it imports."""
    found = {}
    for file in sorted([*package.rglob("*.py"), *package.glob(LEXICONS)]):
        name, text = file.relative_to(package).as_posix(), file.read_bytes()
        imports = [LEXICONS] if name.startswith("embedded/") and file.suffix == ".py" else []
        for dots, module in IMPORT.findall(text.decode("utf-8")) if file.suffix == ".py" else ():
            folder = posixpath.join(posixpath.dirname(name), *[".."] * (len(dots) - 1))
            imports.append(posixpath.normpath(posixpath.join(folder, f"{module.replace('.', '/')}.py")))
        found[name] = hashlib.sha256(text).hexdigest(), tuple(imports)
    return found


# As it was when this process imported it: files that are edited while it runs are not what it computes with.
CODE = _read_code(PACKAGE)


def _closure(patterns: tuple[str, ...], code: Mapping[str, tuple[str, tuple[str, ...]]]) -> dict[str, str]:
    """Digests of the files that match, of what they import, and so on."""
    digests: dict[str, str] = {}
    waiting = list(patterns)
    while waiting:
        pattern = waiting.pop()
        for name in [pattern] if pattern in code else [name for name in code if fnmatch(name, pattern)]:
            if name not in digests:
                digests[name], imports = code[name]
                waiting += imports
    return digests


@functools.cache
def _made_with(sources: tuple[str, ...]) -> dict[str, object]:
    """The code and the libraries behind an artifact."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"code": _closure(sources, CODE), "libraries": versions, "python": sys.version_info[:2]}


def artifact(pair: str, kind: str, ingredients: Mapping[str, object], *, sources: tuple[str, ...], suffix: str) -> Path:
    """Where the thing that these ingredients make is kept. `sources` are the files of this package that make it, as
    patterns; what they import is found."""
    said = json.dumps([ingredients, _made_with(sources)], sort_keys=True, default=str)
    return project_root() / "artifacts" / pair / f"{kind}-{hashlib.sha256(said.encode()).hexdigest()[:16]}{suffix}"


def kept(
    path: Path, make: Callable[[], T], save: Callable[[T, Path], None], load: Callable[[Path], T], *, anew: bool = False
) -> T:
    """What `path` holds; if there is nothing, or it is damaged, or `anew`, it is made, and kept for the next time."""
    if not anew and path.exists() and not damaged(path):
        return load(path)
    made = make()
    put(path, lambda place: save(made, place))
    return made


def of_activations(pair: ModelPair, layers: tuple[int, int], *, scale: str) -> dict[str, object]:
    """The ingredients of whatever is made from the activations of a pair's two texts at these layers."""
    sizes = pair.scale(scale)
    return {
        "models": [_model(ref) for ref in (pair.a, pair.b)], "layers": layers, "dtype": pair.dtype,
        "texts": [_text(text) for text in (pair.train, pair.evaluation)], "context": pair.context, "rows": pair.rows,
        "tokens": sizes.train_tokens, "documents": sizes.eval_documents, "threads": pair.threads,
    }  # fmt: skip


def _model(ref: ModelRef) -> str:
    """Its files' digest where they lie in a folder, else its id and its commit on the Hub: a branch may move."""
    folder = Path(resolve(ref.model))
    if not folder.is_dir():
        config = try_to_load_from_cache(ref.model, "config.json", revision=ref.revision)
        commit = Path(config).parent.name if isinstance(config, str) else ref.revision or "main"
        return f"{ref.model}@{commit}"
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix not in ("", ".md"))
    return hashlib.sha256(json.dumps([[file.name, digest(file)] for file in files]).encode()).hexdigest()


def _text(text: TextRef) -> dict[str, object]:
    file = Path(text.name)
    status = file.stat() if file.is_file() else None
    return asdict(text) | ({"changed": status.st_mtime_ns, "size": status.st_size} if status else {})
