"""The residual streams of two models on the same tokens, read batch by batch and never stored.

App. A masks out special tokens. Each batch passes once through both models, truncated at the deepest layer asked for.
Moments, a small sample or a step of Adam are taken from its activations before the next batch is read.

Offers `training_batches`, `evaluation_batches`, `as_fits`, `paired_residuals`, `sample_residuals`, `Residuals`,
`ActivationStream`, `ModelStream`, the sizes `TOKENS_AT_ONCE` and `ROWS_AT_ONCE`; `of_activations`, the key of whatever
is made from activations, and `weights_digest`.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
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


class ActivationStream:
    """Pairs (x, y) in steps of a fixed number of tokens, for fitters that need the activations themselves (float32).

    Each iteration runs the models over `batches()`, unless `keep` holds the first. An incomplete last step is dropped.
    """

    def __init__(
        self,
        model_a: LanguageModel,
        model_b: LanguageModel,
        layer_a: int,
        layer_b: int,
        batches: Callable[[], Iterable[TokenBatch]],
        *,
        step_tokens: int = 5120,
        keep: bool = False,
    ):
        self.models, self.layers = (model_a, model_b), (layer_a, layer_b)
        self.batches, self.step_tokens, self.keep = batches, step_tokens, keep
        self._kept: list[tuple[Tensor, Tensor]] | None = None

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "step d_a"], Float[Tensor, "step d_b"]]]:
        if self.keep and not self._kept:
            self._kept = list(self._steps())
        return iter(self._kept) if self._kept else self._steps()

    def _steps(self):
        layer_a, layer_b = self.layers
        waiting: list[tuple[Tensor, Tensor]] = []
        for xs, ys in paired_residuals(*self.models, self.batches(), [layer_a], [layer_b]):
            waiting.append((xs[layer_a].float(), ys[layer_b].float()))
            held = sum(len(x) for x, _ in waiting)
            if held >= self.step_tokens:
                x, y = map(torch.cat, zip(*waiting))
                whole = held // self.step_tokens * self.step_tokens
                yield from zip(x[:whole].split(self.step_tokens), y[:whole].split(self.step_tokens))
                waiting = [(x[whole:], y[whole:])]


class ModelStream:
    """The activations of one model at one layer, batch by batch of tokens, in float32.

    Each iteration runs the model over `batches()`; with `keep` it reads a batch only when it is first wanted.
    """

    def __init__(
        self, model: LanguageModel, layer: int, batches: Callable[[], Iterable[TokenBatch]], *, keep: bool = False
    ):
        self.model, self.layer, self.batches, self.keep = model, layer, batches, keep
        self._kept: dict[int, Tensor] = {}

    def count(self) -> int:
        """Count the activations of one pass, without the model."""
        return sum(int(batch.mask.sum()) for batch in self.batches())

    def __iter__(self) -> Iterator[Float[Tensor, "_ _"]]:
        return self.after(0)

    def after(self, skip: int) -> Iterator[Float[Tensor, "_ _"]]:
        """Give the activations but for the first `skip`; the model reads no batch that holds only those."""

        wanted: list[TokenBatch] = []
        # One for all batches, so that it keeps the size that fits.
        parts = as_fits(
            iter(wanted.pop, None), lambda batch: _ordinary(self.model, batch, [self.layer])[self.layer].float()
        )
        for number, batch in enumerate(self.batches()):
            rows = int(batch.mask.sum())
            passed = min(skip, rows)
            skip -= passed
            if passed == rows:
                continue
            if (found := self._kept.get(number)) is None:
                wanted.append(batch)
                found = next(parts)
                while len(found) < rows:
                    found = torch.cat([found, next(parts)])
                if self.keep:
                    self._kept[number] = found
            yield found[passed:]


def of_activations(pair: ModelPair, layers: tuple[int, int], *, scale: str) -> dict[str, Any]:
    """Return the ingredients of the key of whatever is made from the activations of a pair's two texts at `layers`."""
    sizes = pair.scale(scale)
    return {
        "models": [weights_digest(ref) for ref in (pair.a, pair.b)],
        "layers": layers,
        "dtype": pair.dtype,
        "texts": [_text_key(text) for text in (pair.train, pair.evaluation)],
        "context": pair.context,
        "rows": pair.rows,
        "tokens": sizes.train_tokens,
        "documents": sizes.eval_documents,
        "threads": pair.threads,
    }


def weights_digest(ref: ModelRef) -> str:
    """Digest the files of a model in a folder; give id and commit of one on the Hub, since a branch may move."""
    folder = Path(resolve(ref.model))
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


def _text_key(text: TextRef) -> dict[str, object]:
    file = Path(text.name)
    status = file.stat() if file.is_file() else None
    return {**asdict(text), **({"changed": status.st_mtime_ns, "size": status.st_size} if status else {})}
