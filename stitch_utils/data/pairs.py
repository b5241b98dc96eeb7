"""Which two models, which layers, which text, how much of it: the only place where such choices live.

Table 1 and App. A: the paper's model-layer pairs and the text they are stitched on. A pair is a YAML file, one of the
package's (`pairs/<name>.yml`) or the user's own; chapters and commands take its name or its path and nothing else. The
least that a file must say is two models, a layer of the first, and a text:

    name: mine
    a: {model: path/or/hub-id, layer: 3}
    b: {model: path/or/hub-id}
    text: my-text.txt

Paths in a file are relative to it. Where B has no layer, SVCCA chooses it (`svcca.stitched_layers`). A text that is not
split into `train` and `evaluation` keeps every tenth document for evaluation.

Offers `ModelPair` and its parts (`ModelRef`, `TextRef`, `DatasetRef`, `SAERef`, `AugmenterRef`, `SAERecipe`, `Scale`),
`load_pair`, `known_pairs` and `blaming`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

PAIRS_FOLDER = Path(__file__).parent / "pairs"
SCALES = ("smoke", "default", "paper")
DTYPES = ("float32", "bfloat16", "float16")
SOURCES = ("world", "hub", "files")
FILE_KINDS = (".txt", ".jsonl", ".parquet")
HELD_OUT_EVERY = 10
OWN_CONTEXT = 128


@dataclass(frozen=True)
class ModelRef:
    """One side of a pair."""

    model: str
    """Hub id, folder, or `embedded:NAME`."""
    layer: int | None = None
    """The stitched residual stream is the one before this block; None, for B alone, leaves the choice to SVCCA."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    config: Mapping[str, Any] | None = None
    """Entries of its Hugging Face configuration that say how large it is, so that its cost is known without it."""

    @property
    def short(self) -> str:
        """The model's name without what stands before it, for figures."""
        return self.model.rsplit("/", 1)[-1].removeprefix("embedded:")


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
    held_out: bool | None = None
    """False: all but every tenth document. True: every tenth alone. None: all."""

    def __post_init__(self):
        if self.source not in SOURCES:
            raise ValueError(f"unknown text source {self.source!r}: expected world, hub or files")
        if self.skip < 0 or (self.take is not None and self.take < 1):
            raise ValueError(f"skip must not be negative and take must be positive: got {self.skip} and {self.take}")


@dataclass(frozen=True)
class DatasetRef:
    """A data set that an experiment reads row by row."""

    name: str
    """Id of a data set of the Hub; path or URL of a .jsonl file, where the experiment reads such."""
    config: str | None = None
    split: str = "train"
    revision: str | None = None


@dataclass(frozen=True)
class SAERef:
    """A sparse autoencoder of a model's stitched residual stream."""

    format: str
    """`sae_lens`: a release of SAELens' directory. `sparsify`: a checkpoint in EleutherAI's format."""
    release: str
    """Name of the release; Hub id."""
    id: str
    """Which one of it."""
    revision: str | None = None


@dataclass(frozen=True)
class AugmenterRef:
    """A model that follows instructions, to write sentences anew (App. H.1)."""

    model: str
    """Hub id or folder."""
    revision: str | None = None
    dtype: str = "bfloat16"

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}: expected one of {', '.join(DTYPES)}")


@dataclass(frozen=True)
class SAERecipe:
    """How SAEs of a pair are trained where none is published; by default the paper's choices (App. D)."""

    k: int = 32
    """Latents that fire on a token."""
    lr: float = 1e-4
    batch_tokens: int = 4096
    dead_after: int = 1000
    """Steps without firing after which a latent counts as dead, where the auxiliary loss is tried."""


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
    """Rows a forward pass; halved by itself where they do not fit into memory."""
    sae_latents: int = 512
    """Width of the SAEs that are trained here."""
    sae_steps: int = 20
    """Steps of their training."""
    sae_sweep_steps: int = 10
    """Steps of each run where many are compared."""

    def __post_init__(self):
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{entry.name} must be a positive whole number: got {value!r}")


@functools.cache
def _sizes() -> dict[str, dict[str, dict[str, Any]]]:
    """Read `sizes.yml`: sizes by scale and experiment."""
    return yaml.safe_load((Path(__file__).parent / "sizes.yml").read_text(encoding="utf-8"))


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
    threads: int = 0
    """CPU threads that PyTorch gets, whatever the machine has, since sums are rounded otherwise with another number
    and training makes much of it; 0: as many as it takes by itself."""
    saes: Mapping[str, SAERef | str] = field(default_factory=dict)
    """SAEs of `a` and `b` that exist, as `saes.load_sae` takes them; the chapters train what is missing."""
    sae_recipe: SAERecipe = SAERecipe()
    datasets: Mapping[str, DatasetRef] = field(default_factory=dict)
    """What the experiments beyond plain text read, by its role; without one, the embedded world stands in."""
    strength: float = 0.0
    """At which vectors steer, where a run names none; 1 is the paper's. 0: chosen on prompts that are not evaluated."""
    augmenter: AugmenterRef | None = None
    """Writes versions of sentences with other words; without one, the sentences are the embedded world's."""
    file: str = ""
    """Where all this was said, for messages."""

    def __post_init__(self):
        if not isinstance(self.name, str):  # as YAML reads 160, 1e5, no or a date
            raise ValueError(f"name is no text but {self.name!r}: expected it in quotation marks")
        if self.a.layer is None:
            raise ValueError("model a has no layer: expected the number of the block before which it is stitched")
        if not self.scales:
            raise ValueError(f"scales is empty: expected at least one, of {', '.join(SCALES)}")
        if unknown := sorted(set(self.saes) - {"a", "b"}):
            raise ValueError(f"saes of unknown side {', '.join(unknown)}: expected a or b")
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}: expected one of {', '.join(DTYPES)}")
        if self.rows not in ("document", "packed"):
            raise ValueError(f"unknown rows {self.rows!r}: expected document or packed")
        if type(self.threads) is not int or self.threads < 0:
            raise ValueError(f"threads must be a number of threads, or 0: got {self.threads!r}")
        if isinstance(self.strength, bool) or not isinstance(self.strength, int | float) or self.strength < 0:
            raise ValueError(f"strength must be a positive number, or 0 to choose one: got {self.strength!r}")
        if self.context < 2:
            raise ValueError(f"context must be at least 2: got {self.context}")
        if self.train == self.evaluation:
            raise ValueError(f"training and evaluation text are the same: {self.train}")

    def scale(self, name: str) -> Scale:
        """Return the sizes of a scale; raise ValueError, naming the known ones, for another."""
        if name not in self.scales:
            raise ValueError(f"unknown scale {name!r} for pair {self.name!r}: known are {', '.join(self.scales)}")
        return self.scales[name]

    def sizes_of(self, experiment: str, scale: str) -> dict[str, Any]:
        """Return the sizes of an experiment at a scale, by the names of its configuration's fields (`sizes.yml`).

        A scale that only the pair's file knows takes the sizes of `default`. Raise ValueError for a scale that the
        pair does not have.
        """
        self.scale(scale)
        found = _sizes().get(scale, _sizes()["default"])[experiment]
        return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


@contextlib.contextmanager
def blaming(pair: ModelPair, part: str):
    """Re-raise ValueErrors with the pair, its file and the part of it that they concern.

    A HubError keeps its class, so that nobody looks for its cause in the code.
    """
    try:
        yield
    except ValueError as error:
        from .hub import HubError  # its clients are slow to import

        kind = type(error) if isinstance(error, HubError) else ValueError
        raise kind(f"pair {pair.name!r} ({pair.file}), {part}: {error}") from error


def known_pairs() -> list[str]:
    """Return the names of the package's pairs, the embedded one first."""
    return sorted((path.stem for path in PAIRS_FOLDER.glob("*.yml")), key=lambda name: (name != "tiny", name))


def load_pair(name: str | Path) -> ModelPair:
    """Load the pair of that name, or the one that a YAML file describes.

    Raise ValueError, with what is expected, for an unknown name and for a file with missing or unknown entries.
    """
    path = Path(name).expanduser() if str(name).endswith((".yml", ".yaml")) else PAIRS_FOLDER / f"{name}.yml"
    if not path.is_file():
        known = f"known are {', '.join(known_pairs())}, or the path of a .yml file"
        if path.parent == PAIRS_FOLDER:
            raise ValueError(f"unknown pair {str(name)!r}: {known}")
        raise ValueError(f"unknown pair {str(name)!r}: there is no file {str(path.absolute())!r}; {known}")
    data = None
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("holds no mapping: expected at least the entries name, a, b, text")
        return _build(ModelPair, _parsed(data, path))
    except KeyError as error:
        known = {entry.name for entry in dataclasses.fields(ModelPair)} - {"train", "evaluation", "file"} | {"text"}
        unknown = [f", and {key!r} is none that is known" for key in data or () if key not in known]
        raise ValueError(f"{path.name}: the entry {error.args[0]!r} is missing{''.join(unknown)}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path.name}: {' '.join(str(error).split())}") from None


def _parsed(data: dict, path: Path) -> dict:
    """Turn the entries of a file into the fields of `ModelPair`."""
    train, evaluation = _texts(data["text"], path.parent)
    scales = (
        {key: _build(Scale, value) for key, value in data["scales"].items()}
        if "scales" in data
        else {key: Scale(**found["own_pair"]) for key, found in _sizes().items()}
    )
    return {key: value for key, value in data.items() if key != "text"} | {
        "title": data.get("title", data["name"]),
        "a": _model(data["a"], path.parent),
        "b": _model(data["b"], path.parent),
        "context": data.get("context", OWN_CONTEXT),
        "train": train,
        "evaluation": evaluation,
        "scales": scales,
        "saes": {key: _sae(value, path.parent) for key, value in data.get("saes", {}).items()},
        "sae_recipe": _build(SAERecipe, data.get("sae_recipe", {})),
        "datasets": {key: _dataset(value, path.parent) for key, value in data.get("datasets", {}).items()},
        "augmenter": _augmenter(data.get("augmenter"), path.parent),
        "file": path.relative_to(PAIRS_FOLDER.parents[2]).as_posix() if path.parent == PAIRS_FOLDER else str(path),
    }


def _model(data: dict, folder: Path) -> ModelRef:
    ref = _build(ModelRef, data)
    return dataclasses.replace(ref, model=_beside(folder, ref.model))


def _augmenter(data: dict | None, folder: Path) -> AugmenterRef | None:
    if data is None:
        return None
    ref = _build(AugmenterRef, data)
    return dataclasses.replace(ref, model=_beside(folder, ref.model))


def _texts(data: str | dict, folder: Path) -> tuple[TextRef, TextRef]:
    """Parse the text to fit on and to evaluate on, which is every tenth document unless the file gives it."""
    if isinstance(data, dict) and ("train" in data or "evaluation" in data):
        return _text(data["train"], folder), _text(data["evaluation"], folder)
    both = _text(data, folder)
    return dataclasses.replace(both, held_out=False), dataclasses.replace(both, held_out=True)


def _text(data: str | dict, folder: Path) -> TextRef:
    """Parse a `TextRef` from a mapping, or from a name: of a file if it ends as one or is one, else of a dataset."""
    if isinstance(data, str):
        of_file = data.endswith(FILE_KINDS) or (folder / Path(data).expanduser()).is_file()
        data = {"source": "files" if of_file else "hub", "name": data}
    ref = _build(TextRef, data)
    return dataclasses.replace(ref, name=_beside(folder, ref.name)) if ref.source == "files" else ref


def _dataset(data: dict, folder: Path) -> DatasetRef:
    ref = _build(DatasetRef, data)
    return dataclasses.replace(ref, name=_beside(folder, ref.name)) if ref.name.endswith(".jsonl") else ref


def _sae(data: str | dict, folder: Path) -> SAERef | str:
    return _beside(folder, data) if isinstance(data, str) else _build(SAERef, data)


def _beside(folder: Path, name: str) -> str:
    """Make a path that exists relative to `folder` absolute; return anything else, such as a Hub id, as it is."""
    path = (folder / Path(name).expanduser()).resolve()
    return str(path) if path.exists() else name


def _build(kind, data: dict):
    """Build a dataclass from a mapping; raise ValueError, naming the expected entries, for others."""
    if not isinstance(data, dict):
        raise ValueError(f"{kind.__name__}: expected a mapping, got {data!r}")
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}
    unknown = sorted(set(data) - set(fields))
    missing = sorted(name for name, entry in fields.items() if name not in data and _required(entry))
    if unknown or missing:
        wrong = [f"{word} {', '.join(names)}" for word, names in (("unknown", unknown), ("missing", missing)) if names]
        raise ValueError(f"{kind.__name__}: {'; '.join(wrong)}; expected {', '.join(fields)}")
    return kind(**data)


def _required(entry: dataclasses.Field) -> bool:
    return entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
