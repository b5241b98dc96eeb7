"""Which two models, which layers, which text, how much of it: the only place where such choices live.

Table 1 and App. A: the paper's model-layer pairs and the text they are stitched on. A pair is a YAML file, one of the
package's (`pairs/<name>.yml`) or the user's own; chapters and commands take its name or its path and nothing else.

Offers `ModelPair` and its parts, `load_pair`, `known_pairs`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

PAIRS_FOLDER = Path(__file__).parent / "pairs"
SCALES = ("smoke", "default", "paper")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ModelRef:
    """One side of a pair."""

    model: str
    """Hub id, folder, or `embedded:NAME`."""
    layer: int
    """The stitched residual stream is the one before this block."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""


@dataclass(frozen=True)
class TextRef:
    """A source of documents."""

    source: str
    """`world`, `hub` or `files`."""
    name: str
    """Seed of a stream of the embedded world; id of a Hub dataset; path of a .txt, .jsonl or .parquet file."""
    column: str = "text"
    """Column that holds the text, in a dataset, .jsonl or .parquet."""
    split: str = "train"
    config: str | None = None
    """Configuration of a Hub dataset."""
    revision: str | None = None
    skip: int = 0
    """Documents passed over at the start."""
    take: int | None = None
    """Documents used at most."""

    def __post_init__(self):
        if self.source not in ("world", "hub", "files"):
            raise ValueError(f"unknown text source {self.source!r}: expected world, hub or files")
        if self.skip < 0 or (self.take is not None and self.take < 1):
            raise ValueError(f"skip must not be negative and take must be positive: got {self.skip} and {self.take}")


@dataclass(frozen=True)
class Scale:
    """How much of everything a run uses."""

    train_tokens: int
    """Positions harvested to fit stitches."""
    svcca_tokens: int
    """Positions on which layers are compared (App. A.1: a small sample)."""
    eval_documents: int
    """Documents on which cross-entropy is measured."""
    adam_steps: int
    """Steps of the paper's fitter, App. A."""
    batch_size: int
    """Rows a forward pass."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{field.name} must be a positive whole number: got {value!r}")


@dataclass(frozen=True)
class ModelPair:
    """A small model A and a large model B of one family, and the text that both read."""

    name: str
    title: str
    a: ModelRef
    b: ModelRef
    context: int
    """Positions of a row, the beginning-of-text token included."""
    train: TextRef
    evaluation: TextRef
    scales: Mapping[str, Scale]
    dtype: str = "float32"
    rows: str = "document"
    """`document`: one row a document, cut at the context; `packed`: documents one after another."""

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}: expected one of {', '.join(DTYPES)}")
        if self.rows not in ("document", "packed"):
            raise ValueError(f"unknown rows {self.rows!r}: expected document or packed")
        if self.context < 2:
            raise ValueError(f"context must be at least 2: got {self.context}")
        if self.train == self.evaluation:
            raise ValueError(f"training and evaluation text are the same: {self.train}")

    def scale(self, name: str) -> Scale:
        """The sizes of a scale; ValueError, naming those that exist, for another."""
        if name not in self.scales:
            raise ValueError(f"unknown scale {name!r} for pair {self.name!r}: known are {', '.join(self.scales)}")
        return self.scales[name]


def known_pairs() -> list[str]:
    """Names of the pairs that come with the package."""
    return sorted(path.stem for path in PAIRS_FOLDER.glob("*.yml"))


def load_pair(name: str | Path) -> ModelPair:
    """The pair of that name, or the one that a YAML file describes.

    ValueError for a name that is neither, and for a file with missing or unknown entries; each says which are expected.
    """
    path = Path(name) if str(name).endswith((".yml", ".yaml")) else PAIRS_FOLDER / f"{name}.yml"
    if not path.is_file():
        raise ValueError(
            f"unknown pair {str(name)!r}: known are {', '.join(known_pairs())}, or the path of a .yml file"
        )
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise ValueError(f"{path.name} holds no mapping: expected the entries name, a, b, context, text, scales")
    try:
        data = dict(data)
        text = data.pop("text")
        return _build(
            ModelPair,
            data
            | {
                "title": data.get("title", data["name"]),
                "a": _build(ModelRef, data["a"]),
                "b": _build(ModelRef, data["b"]),
                "train": _build(TextRef, text["train"]),
                "evaluation": _build(TextRef, text["evaluation"]),
                "scales": {key: _build(Scale, value) for key, value in data["scales"].items()},
            },
        )
    except KeyError as error:
        raise ValueError(f"{path.name}: the entry {error.args[0]!r} is missing") from None
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def _build(kind, data: dict):
    """A dataclass from a mapping, with an error that names its entries."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(data) - set(fields))
    missing = sorted(
        name for name, field in fields.items() if name not in data and field.default is dataclasses.MISSING
    )
    if unknown or missing:
        wrong = [f"{word} {', '.join(names)}" for word, names in (("unknown", unknown), ("missing", missing)) if names]
        raise ValueError(f"{kind.__name__}: {'; '.join(wrong)}; expected {', '.join(fields)}")
    return kind(**data)
