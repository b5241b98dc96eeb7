"""Which two models, which layers, which text, and how much of it is read.

Table 1 and App. A. A pair is a YAML file of the package (`pairs/<name>.yml`) or of the user. A file must name two
models, a layer of the first, and a text:

    name: mine
    a: {model: path/or/hub-id, layer: 3}
    b: {model: path/or/hub-id}
    text: my-text.txt

Paths in a file are relative to it. SVCCA chooses a missing layer of B. A text that is not split into `train` and
`evaluation` keeps every tenth document for evaluation.

Offers `ModelPair` and its parts (`ModelRef`, `TextRef`, `DatasetRef`, `SAERef`, `AugmenterRef`, `SAERecipe`,
`Outliers`, `Scale`), `load_pair`, `known_pairs`, `blaming`, `is_gguf`, and `check_known`, `check_ridge` and
`check_whole_numbers`.
"""

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..utils.yaml_files import build, check_entries, mapping, parse_yaml
from .text_files import is_pattern, names_files

PAIRS_FOLDER = Path(__file__).parent / "pairs"
SCALES = ("smoke", "default", "paper")
DTYPES = ("float32", "bfloat16", "float16")
HELD_OUT_EVERY = 10


def is_gguf(model: str) -> bool:
    """Tell whether a model's reference is the path of a GGUF file, by its ending."""
    return model.lower().endswith(".gguf")


def check_known(what: str, value: Any, known: Iterable[str]) -> None:
    """Raise ValueError, with the known values, unless `value` is one of them; `what` names it in the message."""
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}: expected one of {', '.join(known)}")


def check_whole_numbers(config: Any, **least: int) -> None:
    """Raise ValueError unless all fields of type `int` hold whole numbers of 1 or more, or of what `least` gives."""
    for entry in dataclasses.fields(config):
        value, lowest = getattr(config, entry.name), least.get(entry.name, 1)
        if entry.type in (int, "int") and (type(value) is not int or value < lowest):
            kind = "" if type(value) is int else "a whole number, "
            raise ValueError(f"{entry.name} must be {kind}{lowest} or more: got {value!r}")


def check_ridge(ridge: Any) -> None:
    """Raise ValueError unless `ridge` is a finite number of 0 or more, or `auto`."""
    is_number = isinstance(ridge, int | float) and not isinstance(ridge, bool)
    if ridge != "auto" and not (is_number and 0 <= ridge < math.inf):
        raise ValueError(f"ridge must be a number of 0 or more, or auto: got {ridge!r}")


@dataclass(frozen=True)
class ModelRef:
    """One side of a pair."""

    model: str
    """Hub id (whose branch, tag or commit is `revision`), folder, GGUF file, or `embedded:NAME`."""
    layer: int | None = None
    """The stitch joins the residual streams before this block. None, for B alone, lets SVCCA choose."""
    revision: str | None = None
    config: Mapping[str, Any] | None = None
    """Sizes from the model's Hugging Face configuration; they give its cost before it is downloaded."""
    trust_remote_code: bool = False
    """Whether code that the model's repository brings may run; without it such a model is refused."""
    device_map: str | Mapping[str, str | int] | None = None
    """Which GPU holds which part of a model that is too large for one, as transformers takes it: `auto`, or the devices
    by the names of modules."""

    @property
    def source(self) -> dict[str, Any]:
        """Return what the loaders of `models.language_model` need beside the model's name."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    @property
    def short(self) -> str:
        """Return the model's name without owner, folder, `embedded:` or `.gguf`, for figures."""
        name = self.model.rsplit("/", 1)[-1].removeprefix("embedded:")
        return name[: -len(".gguf")] if is_gguf(name) else name


@dataclass(frozen=True)
class TextRef:
    """A source of documents: `take` of them at most, after the first `skip`."""

    source: str
    """`world`, `hub`, `files` or `documentation` (the docstrings of installed packages)."""
    name: str
    """Seed of a stream of the embedded world; id of a Hub dataset; a file, a folder of files, or a pattern such as
    `texts/*.jsonl` (see `text_files`); a package of `requirements.lock`, or `all` of them."""
    column: str = "text"
    """The column that holds the text, in a dataset and in files that have columns."""
    split: str = "train"
    config: str | None = None
    revision: str | None = None
    skip: int = 0
    take: int | None = None
    held_out: bool | None = None
    """False leaves every tenth document out; True uses every tenth alone; None uses all."""

    def __post_init__(self):
        check_known("text source", self.source, ("world", "hub", "files", "documentation"))
        if self.skip < 0 or (self.take is not None and self.take < 1):
            raise ValueError(f"skip must not be negative and take must be positive: got {self.skip} and {self.take}")


@dataclass(frozen=True)
class DatasetRef:
    """A data set that an experiment reads row by row."""

    name: str
    """Id of a data set of the Hub, or, for an experiment that reads one, a file, a folder, a pattern, or the URL of a
    .jsonl file."""
    config: str | None = None
    split: str = "train"
    revision: str | None = None


@dataclass(frozen=True)
class SAERef:
    """A sparse autoencoder of a model's stitched residual stream."""

    format: str
    """`sae_lens` (`release` is one of SAELens' directory) or `sparsify` (the Hub id of one in EleutherAI's format)."""
    release: str
    id: str
    """Which SAE of the release or checkpoint."""
    revision: str | None = None


@dataclass(frozen=True)
class AugmenterRef:
    """An instruction-tuned model that writes sentences anew (App. H.1)."""

    model: str
    """Hub id or folder."""
    revision: str | None = None
    dtype: str = "bfloat16"

    def __post_init__(self):
        check_known("dtype", self.dtype, DTYPES)


@dataclass(frozen=True)
class SAERecipe:
    """How the chapters train an SAE where none is published; the defaults are the paper's (App. D)."""

    k: int = 32
    """How many latents fire on a token."""
    lr: float = 1e-4
    batch_tokens: int = 4096
    dead_after: int = 1000
    """After so many steps without firing, the auxiliary loss treats a latent as dead."""

    def __post_init__(self):
        check_whole_numbers(self)
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be a number above 0: got {self.lr!r}")


@dataclass(frozen=True)
class Outliers:
    """Which tokens are left out of fits and splices: a few of a huge norm would own a least-squares fit."""

    beyond: float
    """How many medians of a stream's norms a token's norm may be."""

    def __post_init__(self):
        if not 1 < self.beyond < math.inf:
            raise ValueError(f"beyond must be a number above 1, of medians: got {self.beyond!r}")


@dataclass(frozen=True)
class Scale:
    """How much of everything a run uses."""

    train_tokens: int
    """Positions on which stitches are fitted."""
    svcca_tokens: int
    """Positions on which SVCCA compares layers (App. A.1: a small sample)."""
    eval_documents: int
    """Documents on which cross-entropy is measured."""
    adam_steps: int
    """Steps of the paper's fitter (App. A)."""
    batch_size: int
    """Rows of a forward pass; a pass that does not fit into memory halves them."""
    sae_latents: int = 512
    """Width of the SAEs that the chapters train."""
    sae_steps: int = 20
    sae_sweep_steps: int = 10
    """Steps of each training that a sweep compares."""
    sae_sweep_widths: tuple[int, ...] = ()
    """Latents of the SAEs that a sweep compares; by default half, once and twice `sae_latents`."""
    svcca_layers: int = 0
    """The number of layers of each model that the page compares by SVCCA, evenly spread; 0 for all."""
    chapters: tuple[str, ...] = ()
    """The chapters that a run takes if none is named; by default all."""

    def __post_init__(self):
        check_whole_numbers(self, svcca_layers=0)
        if any(type(width) is not int or width < 2 for width in self.sae_sweep_widths):
            raise ValueError(f"sae_sweep_widths must be whole numbers of 2 or more: got {self.sae_sweep_widths!r}")

    @property
    def sweep_widths(self) -> list[int]:
        """Latents of the SAEs that a sweep compares, the smallest first."""
        return sorted(self.sae_sweep_widths) or [max(2, self.sae_latents // 2), self.sae_latents, 2 * self.sae_latents]


@functools.cache
def _sizes() -> dict[str, dict[str, dict[str, Any]]]:
    """Read `sizes.yml`: sizes by scale and experiment."""
    return yaml.safe_load((Path(__file__).parent / "sizes.yml").read_text(encoding="utf-8"))


@dataclass(frozen=True, kw_only=True)
class ModelPair:
    """Two language models, A and B, and the text that both read."""

    name: str
    title: str
    a: ModelRef
    b: ModelRef
    context: int = 128
    """Positions of a row, with the beginning-of-text token."""
    train: TextRef
    evaluation: TextRef
    scales: Mapping[str, Scale]
    dtype: str = "float32"
    rows: str = "document"
    """`document` cuts each document at the context; `packed` fills rows with one document after another."""
    threads: int = 0
    """PyTorch's CPU threads, on any machine: their number changes how sums round. 0 lets PyTorch choose."""
    saes: Mapping[str, SAERef | str] = field(default_factory=dict)
    """Published SAEs of `a` and `b`, as `saes.load_sae` takes them; the chapters train those that are missing."""
    sae_recipe: SAERecipe = SAERecipe()
    outliers: Outliers | None = None
    """Which tokens fits and splices leave out; by default none but special ones."""
    datasets: Mapping[str, DatasetRef] = field(default_factory=dict)
    """Data sets by their role in an experiment; the embedded world stands in for a missing one."""
    ridge: float | str = "auto"
    """The ridge of `stitching.fit.fit_exact`; `auto` chooses one on training documents that are left out of the fit."""
    strength: float = 0.0
    """The default strength of a steering vector; the paper's is 1. 0 chooses one on prompts that are not evaluated."""
    augmenter: AugmenterRef | None = None
    """Writes versions of sentences; without it, the sentences are the embedded world's."""
    file: str = ""
    """The pair's file, for messages."""

    def __post_init__(self):
        check_known("dtype", self.dtype, DTYPES)
        check_known("rows", self.rows, ("document", "packed"))
        check_whole_numbers(self, context=2, threads=0)
        if self.a.layer is None:
            raise ValueError("model a has no layer: expected the number of the block before which it is stitched")
        if not self.scales:
            raise ValueError(f"scales is empty: expected at least one, of {', '.join(SCALES)}")
        if unknown := sorted(set(self.saes) - {"a", "b"}):
            raise ValueError(f"saes of unknown side {', '.join(unknown)}: expected a or b")
        if not 0 <= self.strength < math.inf:
            raise ValueError(f"strength must be a positive number, or 0 to choose one: got {self.strength!r}")
        check_ridge(self.ridge)
        if self.train == self.evaluation:
            raise ValueError(f"training and evaluation text are the same: {self.train}")

    def scale(self, name: str) -> Scale:
        """Return the sizes of a scale; raise ValueError, naming the known ones, for another."""
        if name not in self.scales:
            raise ValueError(f"unknown scale {name!r} for pair {self.name!r}: known are {', '.join(self.scales)}")
        return self.scales[name]

    def sizes_of(self, experiment: str, scale: str) -> dict[str, Any]:
        """Return the sizes of an experiment at a scale, by the names of its configuration's fields (`sizes.yml`).

        What `sizes.yml` does not say of a scale is as at `default`. Raise ValueError for an unknown scale.
        """
        self.scale(scale)
        sizes = _sizes()
        found = sizes.get(scale, {}).get(experiment, sizes["default"][experiment])
        return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


@contextlib.contextmanager
def blaming(pair: ModelPair, part: str):
    """Re-raise a ValueError with the pair, its file and the part of it that is wrong; a HubError keeps its class."""
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
        sought = "" if path.parent == PAIRS_FOLDER else f"there is no file {str(path.absolute())!r}; "
        known = f"known are {', '.join(known_pairs())}, or the path of a .yml file"
        raise ValueError(f"unknown pair {str(name)!r}: {sought}{known}")
    try:
        return _parsed(parse_yaml(path.read_text(encoding="utf-8")), path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}: is not in UTF-8 ({error.reason}): save it as UTF-8") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path.name}: {' '.join(str(error).split())}") from None


def _parsed(data: Any, path: Path) -> ModelPair:
    """Build a pair from the entries of its file."""
    if not isinstance(data, dict):
        raise ValueError("holds no mapping: expected at least the entries name, a, b, text")
    written = [one.name for one in dataclasses.fields(ModelPair) if one.name not in ("train", "evaluation", "file")]
    check_entries(data, "", [*written, "text"], ("name", "a", "b", "text"))
    folder, scales = path.parent, {key: found["own_pair"] for key, found in _sizes().items() if "own_pair" in found}
    parts = {key: value for key, value in data.items() if key != "text"} | {
        "title": data.get("title", data["name"]),
        "a": _placed(ModelRef, data["a"], "a", folder),
        "b": _placed(ModelRef, data["b"], "b", folder),
        **_texts(data["text"], folder),
        "scales": {key: build(Scale, value, f"scales.{key}") for key, value in _part(data, "scales", scales).items()},
        "saes": {
            side: _beside(folder, ref) if isinstance(ref, str) else build(SAERef, ref, f"saes.{side}")
            for side, ref in _part(data, "saes").items()
        },
        "sae_recipe": build(SAERecipe, _part(data, "sae_recipe"), "sae_recipe"),
        "datasets": {
            key: _placed(DatasetRef, value, f"datasets.{key}", folder) for key, value in _part(data, "datasets").items()
        },
        "file": path.relative_to(PAIRS_FOLDER.parents[2]).as_posix() if folder == PAIRS_FOLDER else str(path),
    }
    if data.get("outliers") is not None:
        parts["outliers"] = build(Outliers, data["outliers"], "outliers")
    if data.get("augmenter") is not None:
        parts["augmenter"] = _placed(AugmenterRef, data["augmenter"], "augmenter", folder)
    return build(ModelPair, parts, "")


def _part(data: dict, name: str, default: Mapping[str, Any] = {}) -> Mapping[str, Any]:
    """Return the mapping that stands under `name`."""
    return mapping(data[name], name) if name in data else default


def _texts(data: Any, folder: Path) -> dict[str, TextRef]:
    """Parse the text to fit on and to evaluate on, which is every tenth document unless the file gives it."""
    if isinstance(data, dict) and ("train" in data or "evaluation" in data):
        parts = ("train", "evaluation")
        check_entries(data, "text", parts, parts)
        return {part: _text(data[part], f"text.{part}", folder) for part in parts}
    both = _text(data, "text", folder)
    return {"train": dataclasses.replace(both, held_out=False), "evaluation": dataclasses.replace(both, held_out=True)}


def _text(data: Any, name: str, folder: Path) -> TextRef:
    """Parse a `TextRef` from a mapping, or from a name, of files (`names_files`) or else of a dataset."""
    if isinstance(data, str):
        data = {"source": "files" if names_files(data, folder) else "hub", "name": data}
    return _placed(TextRef, data, name, folder)


def _beside(folder: Path, name: str) -> str:
    """Make a path relative to `folder` absolute if it is there, or a pattern or a GGUF file's; leave a Hub id as it is.

    A link stays a link, since what it leads to may have another ending.
    """
    path = os.path.abspath(folder / Path(name).expanduser())
    return path if os.path.lexists(path) or is_pattern(name) or is_gguf(name) else name


def _placed(kind: type, data: Any, name: str, folder: Path) -> Any:
    """Build a reference; a model or a data set is sought in `folder` first, and so is a text that is of files."""
    ref = build(kind, data, name)
    entry = "model" if hasattr(ref, "model") else "name"
    found = getattr(ref, entry)
    is_path = entry == "model" or (getattr(ref, "source", "files") == "files" and "://" not in found)
    return dataclasses.replace(ref, **{entry: _beside(folder, found)}) if is_path else ref
