"""The residual streams of two models on the same tokens, read batch by batch and never stored.

App. A masks out special tokens. Each batch passes once through both models, truncated at the deepest layer asked for.
Moments, a small sample or a step of Adam are taken from its activations before the next batch is read.

Offers `training_batches`, `evaluation_batches`, `as_fits`, `paired_residuals`, `sample_residuals`, `Residuals`,
`in_steps`, `ActivationStream`, `ModelStream`, the sizes `TOKENS_AT_ONCE` and `ROWS_AT_ONCE`; `of_activations`, the key
of whatever is made from activations, and its parts `weights_digest` and `text_key`.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import try_to_load_from_cache
from jaxtyping import Float
from torch import Tensor

from ..data.hub import resolve
from ..data.pairs import ModelPair, ModelRef, Scale, TextRef, blaming
from ..data.text import TokenBatch, token_batches
from ..utils.files import digest
from .language_model import LanguageModel

T = TypeVar("T")
TOKENS_AT_ONCE = 4096  # bounds the activations of latents: 0.5 GB for an SAE of 32 thousand
ROWS_AT_ONCE = 4096  # bounds the float64 copies that moments make: 0.2 GB for two models of width 3000

# {layer: (n, d_model)}; the widths of two models differ, so the axes are not named across them.
Residuals = dict[int, Float[Tensor, "_ _"]]


def training_batches(pair: ModelPair, scale: Scale, tokenizer, n_tokens: int) -> Iterator[TokenBatch]:
    """Give the first `n_tokens` positions of the pair's training text."""
    return _batches(pair, pair.train, scale, tokenizer, n_tokens=n_tokens)


def evaluation_batches(pair: ModelPair, scale: Scale, tokenizer) -> Iterator[TokenBatch]:
    """Give the documents of the pair's evaluation text that the scale takes."""
    return _batches(pair, pair.evaluation, scale, tokenizer, n_documents=scale.eval_documents)


def _batches(pair: ModelPair, text: TextRef, scale: Scale, tokenizer, **limits) -> Iterator[TokenBatch]:
    with blaming(pair, "text"):
        yield from token_batches(
            text, tokenizer, context=pair.context, batch_size=scale.batch_size, rows=pair.rows, **limits
        )


def as_fits(batches: Iterable[TokenBatch], work: Callable[[TokenBatch], T]) -> Iterator[T]:
    """Give `work(batch)` for each batch; halve a batch that does not fit into the accelerator's memory until it does.

    The size that fitted holds for the batches after it. `work` may read a row again, so it must leave nothing behind
    when it fails. ValueError if a single row does not fit.
    """
    limit: int | None = None
    for batch in batches:
        waiting = [batch] if limit is None else [*batch.split(limit)]
        while waiting:
            part = waiting.pop(0)
            try:
                yield work(part)
                continue
            except torch.OutOfMemoryError as error:
                if len(part.tokens) == 1:
                    raise ValueError(
                        f"one row of {part.tokens.shape[1]} tokens does not fit into memory: choose a shorter context, "
                        f"bfloat16, or a larger accelerator ({error})"
                    ) from error
                limit = len(part.tokens) // 2
                waiting = [half for each in (part, *waiting) for half in each.split(limit)]
            torch.cuda.empty_cache()  # out of the handler, whose traceback held the tensors


def paired_residuals(
    model_a: LanguageModel,
    model_b: LanguageModel,
    batches: Iterable[TokenBatch],
    layers_a: Sequence[int],
    layers_b: Sequence[int],
) -> Iterator[tuple[Residuals, Residuals]]:
    """Give both streams of the ordinary tokens of each batch (or part, see `as_fits`), by layer: (n, d_model)."""
    return as_fits(batches, lambda batch: (_ordinary(model_a, batch, layers_a), _ordinary(model_b, batch, layers_b)))


def _ordinary(model: LanguageModel, batch: TokenBatch, layers: Sequence[int]) -> Residuals:
    """Read the residual streams of a batch's ordinary tokens."""
    keep = batch.mask.to(model.device)
    return {layer: residual[keep] for layer, residual in model.residuals(batch.tokens, layers).items()}


def sample_residuals(
    model_a: LanguageModel, model_b: LanguageModel, batches: Iterable[TokenBatch], *, layers_a: Sequence[int] = ()
) -> tuple[Residuals, Residuals]:
    """Read a small sample to the CPU, at all layers of B and at all (or `layers_a`) of A; ValueError if it is empty."""
    layers_a = layers_a or range(model_a.n_layers)
    streams = paired_residuals(model_a, model_b, batches, layers_a, range(model_b.n_layers))
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
    batches: Callable[[], Iterable[TokenBatch]]
    _: KW_ONLY
    step_tokens: int = 5120
    keep: bool = False
    _kept: list[tuple[Tensor, Tensor]] = field(default_factory=list, init=False)

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "step d_a"], Float[Tensor, "step d_b"]]]:
        if self.keep and not self._kept:
            self._kept = list(self._steps())
        return iter(self._kept) if self._kept else self._steps()

    def _steps(self):
        streams = paired_residuals(self.model_a, self.model_b, self.batches(), [self.layer_a], [self.layer_b])
        pairs = ((xs[self.layer_a].float(), ys[self.layer_b].float()) for xs, ys in streams)
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
        read = functools.partial(_ordinary, self.model, layers=[self.layer])
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
    sizes, alike = pair.scale(scale), ("dtype", "context", "rows", "threads")
    return {name: getattr(pair, name) for name in alike} | {
        "models": [weights_digest(ref) for ref in (pair.a, pair.b)],
        "layers": layers,
        "texts": [text_key(text) for text in (pair.train, pair.evaluation)],
        "tokens": sizes.train_tokens,
        "documents": sizes.eval_documents,
    }


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
    """Return the ingredients of a text's key: the reference, and a file's size and time."""
    file = Path(text.name)
    status = file.stat() if file.is_file() else None
    return {**asdict(text), **({"changed": status.st_mtime_ns, "size": status.st_size} if status else {})}
