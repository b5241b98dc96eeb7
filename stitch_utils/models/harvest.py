"""The residual streams of two models on the same text, read batch by batch and never stored.

App. A masks out special tokens. Each batch passes once through both models, truncated at the deepest layer asked for.
Moments, a small sample or a step of Adam are taken from its activations before the next batch is read. Of models with
two tokenizers, the tokens that meet are taken (`data.alignment`).

Offers `training_batches`, `evaluation_batches`, `as_fits`, `paired_residuals`, `sample_residuals`, `Residuals`;
`NormLimits`, `norm_limits`, `within`, `usual`, `without_outliers`, which leave outliers out; `in_steps`,
`ActivationStream`, `ModelStream`, the sizes `TOKENS_AT_ONCE` and `ROWS_AT_ONCE`; `of_activations`, the key of whatever
is made from activations, and its parts `weights_digest` and `text_key`.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from huggingface_hub import try_to_load_from_cache
from jaxtyping import Bool, Float
from torch import Tensor

from ..data.documentation import documentation_key
from ..data.hub import resolve
from ..data.pairs import ModelPair, ModelRef, Scale, TextRef, blaming
from ..data.text import PairedBatch, TokenBatch, paired_batches
from ..data.text_files import text_files_key
from ..utils.files import digest
from .agreement import is_finite, overflow
from .language_model import LanguageModel

T = TypeVar("T")
Batch = TypeVar("Batch", TokenBatch, PairedBatch)
TOKENS_AT_ONCE = 4096  # bounds the activations of latents: 0.5 GB for an SAE of 32 thousand
ROWS_AT_ONCE = 4096  # bounds the float64 copies that moments make: 0.2 GB for two models of width 3000

# {layer: (n, d_model)}; the widths of two models differ, so the axes are not named across them.
Residuals = dict[int, Float[Tensor, "_ _"]]


def training_batches(pair: ModelPair, scale: Scale, tokenizers: tuple, n_tokens: int) -> Iterator[PairedBatch]:
    """Give the first `n_tokens` positions of the pair's training text, in the tokens of both models."""
    return _batches(pair, pair.train, scale, tokenizers, n_tokens=n_tokens)


def evaluation_batches(pair: ModelPair, scale: Scale, tokenizers: tuple) -> Iterator[PairedBatch]:
    """Give the documents of the pair's evaluation text that the scale takes, in the tokens of both models."""
    return _batches(pair, pair.evaluation, scale, tokenizers, n_documents=scale.eval_documents)


def _batches(pair: ModelPair, text: TextRef, scale: Scale, tokenizers: tuple, **limits) -> Iterator[PairedBatch]:
    with blaming(pair, "text"):
        sizes = {"context": pair.context, "batch_size": scale.batch_size, "rows": pair.rows}
        yield from paired_batches(text, tokenizers, **sizes, **limits)


def as_fits(batches: Iterable[Batch], work: Callable[[Batch], T]) -> Iterator[T]:
    """Give `work(batch)` for each batch; halve a batch that does not fit into the accelerator's memory until it does.

    The size that fitted holds for the batches after it. `work` may read a row again, so it must leave nothing behind
    when it fails. ValueError if a single row does not fit.
    """
    limit: int | None = None
    for batch in batches:
        waiting: list[Any] = [batch] if limit is None else [*batch.split(limit)]
        while waiting:
            part = waiting.pop(0)
            try:
                yield work(part)
                continue
            except torch.OutOfMemoryError as error:
                n_rows, width = PairedBatch.of(part).a.tokens.shape
                if n_rows == 1:
                    raise ValueError(
                        f"one row of {width} tokens does not fit into memory: choose a shorter context, "
                        f"bfloat16, or a larger accelerator ({error})"
                    ) from error
                limit = n_rows // 2
                waiting = [half for each in (part, *waiting) for half in each.split(limit)]
            torch.cuda.empty_cache()  # out of the handler, whose traceback held the tensors


def paired_residuals(
    model_a: LanguageModel,
    model_b: LanguageModel,
    batches: Iterable[PairedBatch | TokenBatch],
    layers_a: Sequence[int],
    layers_b: Sequence[int],
) -> Iterator[tuple[Residuals, Residuals]]:
    """Give both streams where the models meet, by layer, (n, d_model), for each batch or part of it (see `as_fits`)."""

    def read(batch: PairedBatch) -> tuple[Residuals, Residuals]:
        x = _chosen(model_a, batch.a.tokens, batch.met_a, layers_a)
        return x, _chosen(model_b, batch.b.tokens, batch.met_b, layers_b)

    return as_fits(map(PairedBatch.of, batches), read)


class NormLimits(NamedTuple):
    """Norms beyond which a token is an outlier, and left out of fits and splices."""

    a: float
    b: float


def norm_limits(
    models: tuple[LanguageModel, LanguageModel],
    layers: tuple[int, int],
    batches: Iterable[PairedBatch | TokenBatch],
    *,
    beyond: float,
) -> NormLimits:
    """Take `beyond` medians of the norms of each stream over a sample of text; ValueError if it is empty."""
    norms = [
        [side[layer].float().norm(dim=1).cpu() for side, layer in zip(streams, layers)]
        for streams in paired_residuals(*models, batches, *([layer] for layer in layers))
    ]
    if not sum(len(part) for part, _ in norms):
        raise ValueError("the text holds no token at which the models meet: there is no norm to take the median of")
    return NormLimits(*(beyond * torch.cat(parts).median().item() for parts in zip(*norms)))


def within(x: Float[Tensor, "n d_a"], y: Float[Tensor, "n d_b"], limits: NormLimits) -> Bool[Tensor, " n"]:
    """Mark the pairs of which neither norm is beyond its limit, on the device of `x`."""
    return (x.float().norm(dim=1) <= limits.a) & (y.float().norm(dim=1) <= limits.b).to(x.device)


def usual(x: Tensor, y: Tensor, limits: NormLimits) -> tuple[Tensor, Tensor]:
    """Leave out the pairs beyond the limits."""
    keep = within(x, y, limits)
    return x[keep], y[keep.to(y.device)]


def without_outliers(
    batch: PairedBatch, x: Float[Tensor, "batch _ d_a"], y: Float[Tensor, "batch _ d_b"], limits: NormLimits | None
) -> PairedBatch:
    """Take the tokens whose streams lie beyond the limits from those that are met."""
    if limits is None:
        return batch
    keep = within(x[batch.met_a.to(x.device)], y[batch.met_b.to(y.device)], limits).cpu()
    return batch._replace(
        **{name: getattr(batch, name).masked_scatter(getattr(batch, name), keep) for name in ("met_a", "met_b")}
    )


def _chosen(model: LanguageModel, tokens: Tensor, chosen: Tensor, layers: Sequence[int]) -> Residuals:
    """Read the residual streams of some tokens of a batch; ValueError names the first layer that is not finite."""
    streams = model.residuals(tokens, layers)
    found = {layer: stream[chosen.to(stream.device)] for layer, stream in streams.items()}
    if not all(map(is_finite, found.values())):
        streams = model.residuals(tokens, range(max(layers) + 1))
        first = min(at for at, stream in streams.items() if not is_finite(stream[chosen.to(stream.device)]))
        what = f"the residual stream before layer {first}"
        raise ValueError(overflow(what, model.ref, streams[first].dtype))
    return found


def sample_residuals(
    model_a: LanguageModel,
    model_b: LanguageModel,
    batches: Iterable[PairedBatch | TokenBatch],
    *,
    layers_a: Sequence[int] = (),
    layers_b: Sequence[int] = (),
) -> tuple[Residuals, Residuals]:
    """Read a small sample to the CPU, at the layers named of each model or at all; ValueError if it is empty."""
    layers_a, layers_b = layers_a or range(model_a.n_layers), layers_b or range(model_b.n_layers)
    streams = paired_residuals(model_a, model_b, batches, layers_a, layers_b)
    parts = [[{layer: values.cpu() for layer, values in side.items()} for side in sides] for sides in streams]
    if not parts:
        raise ValueError("no batches given: expected at least one")
    xs, ys = ({layer: torch.cat([chunk[layer] for chunk in chunks]) for layer in chunks[0]} for chunks in zip(*parts))
    return xs, ys


def in_steps(parts: Iterable[tuple[Tensor, ...]], size: int) -> Iterator[Any]:
    """Cut streams of the same tokens, given in parts of any length, into steps of `size`; drop what is left."""
    waiting: list[tuple[Tensor, ...]] = []
    for part in parts:
        waiting.append(part)
        held = sum(len(first) for first, *_ in waiting)
        if held >= size:
            streams, whole = [torch.cat(stream) for stream in zip(*waiting)], held // size * size
            yield from zip(*(stream[:whole].split(size) for stream in streams))
            waiting = [tuple(stream[whole:] for stream in streams)]


@dataclass(eq=False)
class ActivationStream:
    """Pairs (x, y) in steps of a fixed number of tokens, for fitters that need the activations themselves (float32).

    Each iteration runs the models over `batches()`, unless `keep` holds the first. An incomplete last step is dropped.
    """

    model_a: LanguageModel
    model_b: LanguageModel
    layer_a: int
    layer_b: int
    batches: Callable[[], Iterable[PairedBatch | TokenBatch]]
    _: KW_ONLY
    step_tokens: int = 5120
    keep: bool = False
    limits: NormLimits | None = None
    """Leaves out the pairs of a norm beyond them."""
    _kept: list[tuple[Tensor, Tensor]] = field(default_factory=list, init=False)

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "step d_a"], Float[Tensor, "step d_b"]]]:
        if self.keep and not self._kept:
            self._kept = list(self._steps())
        return iter(self._kept) if self._kept else self._steps()

    def _steps(self):
        streams = paired_residuals(self.model_a, self.model_b, self.batches(), [self.layer_a], [self.layer_b])
        pairs = ((xs[self.layer_a].float(), ys[self.layer_b].float()) for xs, ys in streams)
        if self.limits is not None:
            pairs = (usual(x, y, self.limits) for x, y in pairs)
        return in_steps(pairs, self.step_tokens)


@dataclass(eq=False)
class ModelStream:
    """The activations of one model at one layer, batch by batch of tokens, in float32.

    Each iteration runs the model over `batches()`; with `keep` it reads a batch only when it is first wanted.
    """

    model: LanguageModel
    layer: int
    batches: Callable[[], Iterable[TokenBatch]]
    _: KW_ONLY
    keep: bool = False
    _kept: dict[int, Tensor] = field(default_factory=dict, init=False)

    def count(self) -> int:
        """Count the activations of one pass, without the model."""
        return sum(int(batch.mask.sum()) for batch in self.batches())

    def __iter__(self) -> Iterator[Float[Tensor, "_ _"]]:
        return self.after(0)

    def after(self, skip: int) -> Iterator[Float[Tensor, "_ _"]]:
        """Give the activations but for the first `skip`; the model reads no batch that holds only those."""
        wanted: list[TokenBatch] = []

        def read(batch: TokenBatch) -> Residuals:
            return _chosen(self.model, batch.tokens, batch.mask, [self.layer])

        parts = as_fits(iter(wanted.pop, None), read)  # one for all batches, so that it keeps the size that fits
        for number, batch in enumerate(self.batches()):
            rows = int(batch.mask.sum())
            passed = min(skip, rows)
            skip -= passed
            if passed == rows:
                continue
            if (found := self._kept.get(number)) is None:
                wanted.append(batch)
                found = next(parts)[self.layer].float()
                while len(found) < rows:
                    found = torch.cat([found, next(parts)[self.layer].float()])
                if self.keep:
                    self._kept[number] = found
            yield found[passed:]


def of_activations(pair: ModelPair, layers: tuple[int, int], *, scale: str) -> dict[str, Any]:
    """Return the ingredients of the key of whatever is made from the activations of a pair's two texts at `layers`."""
    sizes, alike = pair.scale(scale), ("dtype", "context", "rows", "threads", "outliers")
    sample = {} if pair.outliers is None else {"sample": sizes.svcca_tokens}
    return (
        {name: getattr(pair, name) for name in alike}
        | sample
        | {
            "models": [weights_digest(ref) for ref in (pair.a, pair.b)],
            "layers": layers,
            "texts": [text_key(text) for text in (pair.train, pair.evaluation)],
            "tokens": sizes.train_tokens,
            "documents": sizes.eval_documents,
        }
    )


def weights_digest(ref: ModelRef) -> str:
    """Digest a GGUF file, or a model's folder; give id and commit of a model on the Hub, since a branch may move."""
    folder = Path(resolve(ref.model))
    if folder.is_file():
        return str(_digest_once(folder, folder.stat().st_mtime_ns, folder.stat().st_size))
    if not folder.is_dir():
        config = try_to_load_from_cache(ref.model, "config.json", revision=ref.revision)
        commit = Path(config).parent.name if isinstance(config, str) else ref.revision or "main"
        return f"{ref.model}@{commit}"
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix not in ("", ".md"))
    found = [[file.name, _digest_once(file, file.stat().st_mtime_ns, file.stat().st_size)] for file in files]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


@functools.cache  # as long as time and size stay the same
def _digest_once(file: Path, changed: int, size: int) -> str | None:
    return digest(file)


def text_key(text: TextRef) -> dict[str, object]:
    """Return the ingredients of a text's key: the reference, and the files it means, or what is installed."""
    if text.source == "documentation":
        return {**asdict(text), "installed": documentation_key(text.name)}
    return {**asdict(text), **({"files": text_files_key(text.name)} if text.source == "files" else {})}
