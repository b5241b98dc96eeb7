"""Fitted things that are worth keeping, in `artifacts/`, found again by what made them (no section of its own).

A file's name holds a digest of its ingredients: the pair, the sizes, the models' own files where they are on this
disk, and the modules that did the work. Whatever changes among these makes another name, so nothing stale is ever
read; and a file appears under its name only once it is whole.

Offers `artifact`, `kept`, `of_activations`, `ACTIVATION_SOURCES`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from .models import resolve
from .pairs import ModelPair, ModelRef, TextRef
from .results import project_root

T = TypeVar("T")
PACKAGE = Path(__file__).parent
# The code that turns a pair into activations, as patterns.
ACTIVATION_SOURCES = ("embedded/*.py", "embedded/lexicons/*", "text.py", "models.py", "harvest.py")


def artifact(pair: str, kind: str, ingredients: Mapping[str, object], *, sources: tuple[str, ...], suffix: str) -> Path:
    """Where the thing that these ingredients make is kept; files of this package, given as patterns, are among them."""
    files = sorted({file for pattern in sources for file in PACKAGE.glob(pattern)})
    code = {file.relative_to(PACKAGE).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    said = json.dumps([ingredients, code], sort_keys=True, default=str)
    return project_root() / "artifacts" / pair / f"{kind}-{hashlib.sha256(said.encode()).hexdigest()[:16]}{suffix}"


def kept(
    path: Path, make: Callable[[], T], save: Callable[[T, Path], None], load: Callable[[Path], T], *, anew: bool = False
) -> T:
    """What `path` holds; if it does not exist, or `anew`, it is made, and saved in one step: it is whole or absent."""
    if path.exists() and not anew:
        return load(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{os.getpid()}.{path.name}")
    made = make()
    save(made, scratch)
    os.replace(scratch, path)
    return made


def of_activations(pair: ModelPair, layers: tuple[int, int], *, scale: str) -> dict[str, object]:
    """The ingredients of whatever is made from the activations of a pair's two texts at these layers."""
    sizes = pair.scale(scale)
    return {
        "models": [_model(ref) for ref in (pair.a, pair.b)], "layers": layers, "dtype": pair.dtype,
        "texts": [_text(text) for text in (pair.train, pair.evaluation)], "context": pair.context, "rows": pair.rows,
        "tokens": sizes.train_tokens, "documents": sizes.eval_documents,
    }  # fmt: skip


def _model(ref: ModelRef) -> str:
    """Its weights' digest where they lie in a folder, else its id and revision on the Hub."""
    folder = Path(resolve(ref.model))
    if not folder.is_dir():
        return f"{ref.model}@{ref.revision or 'main'}"
    files = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".json", ".bin"))
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


def _text(text: TextRef) -> dict[str, object]:
    file = Path(text.name)
    return asdict(text) | ({"changed": file.stat().st_mtime_ns} if file.is_file() else {})
