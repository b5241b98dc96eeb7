"""What chapters will take, before any weights are loaded (no section of its own; App. D counts FLOPs as here).

Counted are the matrix products of the passes through both models (`models.costs`), of the stitch's fits, and of SAE
trainings; the parameters of a chapter and the pair's scale say how many. Of chapters that are not in `COUNTED` no more
is known than that they need the stitch, and the table says so. Hours are FLOPs over the rate of large products, so they
are the least that a run can take.

It stands in this room, since chapters do; no room below knows their parameters.

Offers `plan_runs`, the command; `forecast` and `Forecast`; `CARDS` and `card_of`.
"""

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..data.pairs import ModelPair, Scale
from ..data.text import paired_batches
from ..models.costs import Architecture, architecture_of, forward_flops, harvest_cost, stitch_adam_flops
from ..models.language_model import load_tokenizer
from ..saes.initialisation import INITIALS
from ..saes.pair import COUNTED_TOKENS, EVALUATIONS, JUDGED_TOKENS
from ..saes.training import training_flops
from .chapters import RequestError, read_chapter, refusing
from .runs import WorkError, find_pair, plan

ADAM_TOKENS = 5120  # of a step of the paper's fitter, derived from Table 3
GIGABYTE = 10**9


class Card(NamedTuple):
    """A graphics card: bytes of memory, and dense FLOP/s in float32 and in bfloat16, by its maker's data sheet."""

    memory: float
    float32: float
    bfloat16: float


# NVIDIA's data sheets: "A100 Tensor Core GPU" (2021), "H100 Tensor Core GPU" (2023, SXM), "L4 Tensor Core GPU" (2023;
# without sparsity), "Ada GPU architecture" (2022, appendix A) for the RTX 4090.
CARDS = {
    "a100": Card(80e9, 19.5e12, 312e12),
    "h100": Card(80e9, 67e12, 989e12),
    "l4": Card(24e9, 30.3e12, 121e12),
    "rtx4090": Card(24e9, 82.6e12, 165e12),
}


class Forecast(NamedTuple):
    """What a chapter takes, with nothing of it in `artifacts/` yet."""

    tokens: int
    """Positions that a model reads, those of both models added."""
    flops: int
    device: int
    """The most bytes at once where the models are."""
    host: int
    """Bytes of activations that are kept in memory."""
    disk: int
    """Bytes in `artifacts/`."""
    notes: tuple[str, ...] = ()
    """What is split, and what is not counted."""


class _Sizes(NamedTuple):
    """A pair at a scale."""

    pair: ModelPair
    scale: Scale
    models: tuple[Architecture, Architecture]
    layers: tuple[int, int]
    held_out: int
    """Positions of the evaluation text, of one model."""
    keeps: bool
    """Whether activations stay in memory, as they do at all scales but `paper`."""

    @property
    def passes(self) -> tuple[list[int], list[int]]:
        """FLOPs a token of each model up to the stitched layer, and from there to the logits."""
        context, prefixes, rests = self.pair.context, [], []
        for model, layer in zip(self.models, self.layers):
            prefixes.append(forward_flops(model, context, layer))
            whole = forward_flops(model, context, model.n_layers) + 2 * model.d_model * model.vocab
            rests.append(whole - prefixes[-1])
        return prefixes, rests

    def harvest(self, tokens: int) -> int:
        sizes = {"context": self.pair.context, "batch_size": self.scale.batch_size, "dtype": self.pair.dtype}
        return harvest_cost(*self.models, self.layers, tokens=tokens, **sizes).flops

    def fidelity(self, tokens: int, losses: int) -> int:
        """Of `measure_fidelity`: a pass up to the layer, and for each of a host's `losses` one from there on."""
        prefixes, rests = self.passes
        return tokens * (sum(prefixes) + losses * sum(rests))


class _Work(NamedTuple):
    tokens: int
    flops: int
    sae_bytes: int = 0
    """Of all SAEs that are trained side by side, with gradients and Adam's moments."""
    sae_disk: int = 0


def _stitch(sizes: _Sizes, given: Mapping[str, Any], on_gpu: bool) -> _Work:
    tokens = sizes.scale.train_tokens
    return _Work(2 * tokens, sizes.harvest(tokens))


def _stitching(sizes: _Sizes, given: Mapping[str, Any], on_gpu: bool) -> _Work:
    """The cells of `book/stitching.md` in their order; without the refit of a layer of massive activations."""
    scale, held_out, context = sizes.scale, sizes.held_out, sizes.pair.context
    a, b = sizes.models
    alphas = len({*given["alphas"], given["alpha"]})
    first = min(held_out, scale.batch_size * context)
    fitted = scale.train_tokens + held_out + scale.train_tokens // 4
    flops = sizes.harvest(fitted)
    flops += sizes.fidelity(first, 1 + given["draws"]) + sizes.fidelity(held_out, 2 + 2 * (2 + alphas))
    depth = [forward_flops(model, context, model.n_layers - 1) for model in sizes.models]
    flops += scale.svcca_tokens * (sum(depth) + 2 * a.n_layers * b.n_layers * a.d_model * b.d_model)
    prefixes, rests = sizes.passes
    steps = given["adam_steps"] or scale.adam_steps
    rounds = 1 if sizes.keeps else -(-steps * ADAM_TOKENS // scale.train_tokens)
    flops += rounds * scale.train_tokens * sum(prefixes) + stitch_adam_flops(a.d_model, b.d_model, steps * ADAM_TOKENS)
    flops += held_out * sum(prefixes) + sizes.fidelity(held_out, 3)
    flops += held_out * (prefixes[1] + (1 + alphas) * rests[1])
    read = fitted + first + 5 * held_out + scale.svcca_tokens + rounds * scale.train_tokens
    return _Work(2 * read, flops)


def _sae_training(sizes: _Sizes, given: Mapping[str, Any], on_gpu: bool) -> _Work:
    """The sweep of `book/sae_training.md`: all runs of a side read the same batches."""
    scale, recipe, seeds = sizes.scale, sizes.pair.sae_recipe, given["seeds"]
    widths = sorted(given["widths"]) or scale.sweep_widths
    steps, read = scale.sae_sweep_steps, scale.sae_sweep_steps * recipe.batch_tokens
    rounds = 1 if sizes.keeps else -(-read // scale.train_tokens)
    work = _stitch(sizes, given, on_gpu)
    tokens, flops, most, disk = work.tokens, work.flops, 0, 0
    of_b = [*widths * len(INITIALS), max(widths), max(widths), min(widths), min(widths)]
    for model, prefix, runs in zip(sizes.models, sizes.passes[0], (widths, of_b)):
        passed = rounds * scale.train_tokens + sizes.held_out
        tokens, flops = tokens + passed, flops + passed * prefix
        encoded = (1 + min(steps, EVALUATIONS)) * min(JUDGED_TOKENS, sizes.held_out)
        encoded += min(COUNTED_TOKENS, scale.train_tokens)
        weights = 0
        for width in runs * seeds:
            # a CPU computes the encoder's product alone and gathers the few latents that fire (`saes.sparse_step`)
            step = training_flops(model.d_model, width) if on_gpu else 2 * model.d_model * width
            flops += read * step + 2 * encoded * model.d_model * width
            weights += 4 * (2 * model.d_model * width + width + model.d_model)
        most, disk = max(most, 4 * weights), disk + 4 * weights  # the state of a sweep holds Adam's moments, too
    return _Work(tokens, flops, most, disk)


COUNTED: dict[str, Callable[[_Sizes, Mapping[str, Any], bool], _Work]] = {
    "stitching": _stitching,
    "sae_training": _sae_training,
}


def _sizes_of(pair: ModelPair, scale: str) -> _Sizes:
    """Look up sizes; RequestError for a family whose costs are not known."""
    models = []
    for ref in (pair.a, pair.b):
        if (found := architecture_of(ref)) is None:
            raise RequestError(f"what {ref.model!r} takes is not known: its family is not in stitch_utils/models/costs")
        models.append(found)
    layers = pair.a.layer or 0, models[1].n_layers if pair.b.layer is None else pair.b.layer
    sizes = pair.scale(scale)
    held_out = sizes.eval_documents * pair.context  # a document is a row, cut or padded
    if pair.rows == "packed":  # several documents share a row, so they are counted
        tokenizers = tuple(load_tokenizer(ref.model, **ref.source) for ref in (pair.a, pair.b))
        options = {"context": pair.context, "batch_size": sizes.batch_size, "rows": pair.rows}
        found = paired_batches(pair.evaluation, tokenizers, n_documents=sizes.eval_documents, **options)
        held_out = sum(batch.a.tokens.numel() for batch in found)
    return _Sizes(pair, sizes, (models[0], models[1]), layers, held_out, scale != "paper")


def forecast(
    pair: ModelPair, scale: str, chapter: str, given: Mapping[str, Any], *, memory: float | None = None
) -> Forecast:
    """Forecast a chapter with the parameters `given`, on a card of so many bytes, or on the CPU.

    WorkError, which says what would fit, if a batch of one row does not fit beside the weights, or the SAEs of a sweep
    do not.
    """
    sizes = _sizes_of(pair, scale)
    work = COUNTED.get(chapter, _stitch)(sizes, given, memory is not None)
    notes = () if chapter in COUNTED else ("its own work is not counted, the stitch alone is",)
    options = {"tokens": sizes.scale.train_tokens, "context": pair.context, "dtype": pair.dtype}
    rows = sizes.scale.batch_size
    cost = harvest_cost(*sizes.models, sizes.layers, batch_size=rows, **options)
    while memory is not None and cost.peak > memory and rows > 1:
        rows //= 2
        cost = harvest_cost(*sizes.models, sizes.layers, batch_size=rows, **options)
    need = max(cost.peak, cost.weights + work.sae_bytes)
    if memory is not None and need > memory:
        what = "the SAEs of its sweep" if work.sae_bytes > cost.peak - cost.weights else "one row of text"
        smaller = f"a card of {need / GIGABYTE:.0f} GB or more"
        weights = f"weights of {cost.weights / GIGABYTE:.1f} GB"
        said = f"{weights} and {what} take {need / GIGABYTE:.1f} GB: expected {smaller}"
        raise WorkError(f"{chapter} ({pair.name}, {scale}) does not fit {memory / GIGABYTE:.0f} GB: {said}")
    if rows < sizes.scale.batch_size:
        notes += (f"batches of {rows} rows, not {sizes.scale.batch_size}",)
    width = sum(model.d_model for model in sizes.models)
    host = 4 * width * sizes.scale.train_tokens if chapter in COUNTED and sizes.keeps else 0
    disk = 8 * width**2 + 8 * sizes.models[0].d_model * sizes.models[1].d_model + work.sae_disk
    return Forecast(work.tokens, work.flops, need, host, disk, notes)


def measured_rate(dtype: str = "float32", *, size: int = 1024, times: int = 5) -> float:
    """Measure FLOP/s of this machine's processors: the best of a few products of two (size, size) matrices."""
    x, best = torch.randn(size, size).to(getattr(torch, dtype)), float("inf")
    for _ in range(times):
        began = time.perf_counter()
        x @ x
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def card_of(text: str) -> tuple[float, Card | None]:
    """Read `24GB` or the name of one of `CARDS`: bytes of memory, and the card; RequestError for others."""
    name = re.sub(r"[\s_-]", "", text.lower())
    if name in CARDS:
        return CARDS[name].memory, CARDS[name]
    if not (found := re.fullmatch(r"(\d+(?:\.\d+)?)gb", name)):
        raise RequestError(f"--gpu {text}: expected a size such as 24GB, or one of {', '.join(CARDS)}")
    return float(found[1]) * GIGABYTE, None


def plan_runs(root: Path, *, pair: str, scale: str, gpu: str | None) -> None:
    """Print what each chapter takes; WorkError, after the table, for the first that does not fit."""
    described = find_pair(root, pair).described
    memory, card = card_of(gpu) if gpu else (None, None)
    with refusing(ValueError):
        described.scale(scale)
    rate = getattr(card, "float32" if described.dtype == "float32" else "bfloat16") if card else measured_rate()
    print(f"{rate:.3g} FLOP/s, {'by the data sheet' if card else 'measured on this machine'}; hours are the least")
    print(f"{'chapter':22}{'tokens':>10}{'FLOPs':>10}{'hours':>10}{'device':>10}{'host':>10}{'disk':>10}  (GB)")
    refused: WorkError | None = None
    for run in plan(root, pair=pair, chapter=None, scale=scale, given=(), force=False):
        if run.pair != described.name or run.parameters.get("scale") != scale:
            continue  # the summaries only read results
        try:
            found = forecast(described, scale, run.chapter, read_chapter(root, run.chapter)[1], memory=memory)
        except WorkError as error:
            refused = refused or error
            print(f"{run.chapter:22}does not fit")
            continue
        sizes = "".join(f"{size / GIGABYTE:10.3g}" for size in (found.device, found.host, found.disk))
        hours = found.flops / rate / 3600
        notes = "; ".join(found.notes)
        print(f"{run.chapter:22}{found.tokens:10.2g}{found.flops:10.2g}{hours:10.2g}{sizes}  {notes}".rstrip())
    if refused:
        raise refused
