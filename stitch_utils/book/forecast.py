"""What chapters will take, before any weights are loaded (no section of its own).

`workloads` and `chapter_costs` count positions and FLOPs. Here they become hours and bytes, on this machine's
processors or on a card. Hours are FLOPs over the rate of large products, so they are the least that a run can take: one
token at a time, as in responses, is far slower. Bytes are those of live tensors, so a card needs some more.

Offers `plan_runs`, the command; `forecast` and `Forecast`; `CARDS` and `card_of`; `measured_rate`.
"""

import math
import re
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..data.hub import HubError
from ..models.costs import harvest_cost
from .chapter_costs import CHAPTERS, SHARED, Chapter
from .chapters import CHAT_CHAPTERS, HEAD_CHAPTERS, SUMMARIES, RequestError, read_chapter, refusing
from .runs import WorkError, find_pair, plan
from .workloads import Sizes, Workload, sizes_of

GIGABYTE = 10**9


class Card(NamedTuple):
    """A graphics card: bytes of memory, and dense FLOP/s in float32 and in bfloat16, by its maker's data sheet."""

    memory: float
    float32: float
    bfloat16: float


# Where a sheet gives rates with sparsity, half of them.
CARDS = {
    # https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf
    "a100": Card(80e9, 19.5e12, 312e12),
    # https://www.nvidia.com/en-us/data-center/h100/ (SXM)
    "h100": Card(80e9, 67e12, 989e12),
    # https://www.nvidia.com/en-us/data-center/l4/
    "l4": Card(24e9, 30.3e12, 121e12),
    # https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf, appendix A
    "rtx4090": Card(24e9, 82.6e12, 165.2e12),
}


class Forecast(NamedTuple):
    """What a chapter takes. None for what is not counted, NaN for what is not known of a family of models."""

    tokens: float | None
    """Positions that a model reads, those of both models added."""
    flops: float | None
    device: float
    """The most bytes at once where the models are."""
    host: float
    """Bytes of activations that are kept in memory."""
    disk: float
    """Bytes that are written to `artifacts/`."""
    notes: tuple[str, ...] = ()
    """What is split, and what earlier chapters have left."""


def forecast(
    sizes: Sizes, chapter: str, given: Mapping[str, Any], *, memory: float | None = None, kept: Collection[str] = ()
) -> Forecast:
    """Forecast a chapter with the parameters `given`, on a card of `memory` bytes, or where all fits.

    What is named in `kept`, of `SHARED`, is in `artifacts/` already. WorkError, which says what would fit, if one row
    does not fit beside the weights, or the SAEs of a sweep do not.
    """
    plans, work, notes = CHAPTERS.get(chapter, Chapter()), Workload(), []
    for name in plans.takes:
        if name in kept:
            notes.append(f"{name}: made before")
        else:
            work += SHARED[name](sizes)
    tokens = flops = None
    if plans.own is None:
        notes.append("memory and disk: of the stitch alone")
    else:
        try:
            work += plans.own(sizes, given)
            tokens, flops = work.tokens, work.flops
        except HubError:
            tokens = flops = math.nan
            notes.append("its data sets are not to be had")
    device, rows = _device(sizes, work, chapter, memory)
    if rows < sizes.scale.batch_size:
        notes.append(f"batches of {rows} rows, not {sizes.scale.batch_size}")
    if chapter in CHAT_CHAPTERS:
        notes.append("only for models with a chat template")
    if chapter in HEAD_CHAPTERS:
        notes.append("only for families whose heads are worked out")
    return Forecast(tokens, flops, device, work.host, work.disk, tuple(notes))


def _device(sizes: Sizes, work: Workload, chapter: str, memory: float | None) -> tuple[float, int]:
    """Find the most bytes at once on the device, and the rows of a batch, halved until they fit `memory`."""
    a, b, rows = sizes.models["a"], sizes.models["b"], sizes.scale.batch_size
    if a is None or b is None:
        return math.nan, rows
    pair, layers, vocab = sizes.pair, (sizes.layers["a"], sizes.layers["b"]), max(a.vocab, b.vocab)
    options = {"tokens": sizes.scale.train_tokens, "context": pair.context, "dtype": pair.dtype}
    a_logit = getattr(torch, pair.dtype).itemsize + 2 * 4  # and in float32, as are their log-probabilities

    def needed(rows: int) -> tuple[float, float]:
        cost = harvest_cost(a, b, layers, batch_size=rows, **options)
        return cost.weights, max(cost.peak, cost.weights + rows * pair.context * vocab * a_logit)

    weights, peak = needed(rows)
    while memory is not None and peak > memory and rows > 1:
        rows //= 2
        weights, peak = needed(rows)
    most = max(peak, weights + work.device)
    if memory is not None and most > memory and not (pair.a.device_map or pair.b.device_map):
        what = "the SAEs of its sweep" if peak <= memory else "one row of text"
        remedy = "fewer sae_sweep_widths" if peak <= memory else "device_map: auto in the pair's file over several"
        said = f"weights of {weights / GIGABYTE:.1f} GB and {what} take {most / GIGABYTE:.1f} GB"
        expected = f"expected a card of {math.ceil(most / GIGABYTE)} GB or more, or {remedy}"
        raise WorkError(
            f"{chapter} ({pair.name}, {sizes.name}) does not fit {memory / GIGABYTE:g} GB: {said}: {expected}"
        )
    return most, rows


def measured_rate(dtype: str = "float32", *, size: int = 1024, times: int = 5) -> float:
    """Measure FLOP/s of this machine's processors: the best of a few products of two (size, size) matrices."""
    x, best = torch.randn(size, size).to(getattr(torch, dtype)), math.inf
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
    """Print what each chapter takes, in the order of a run; WorkError, after the table, for the first that cannot fit.

    Of a card whose rate is not known no hours are given.
    """
    described = find_pair(root, pair).described
    memory, card = card_of(gpu) if gpu else (None, None)
    with refusing(ValueError):
        sizes = sizes_of(described, scale, on_gpu=memory is not None)
    rate, source = math.nan, "not known of a card by its size"
    if card:
        rate, source = card.float32 if described.dtype == "float32" else card.bfloat16, "by the data sheet"
    elif memory is None:
        rate, source = measured_rate(described.dtype), f"measured on {torch.get_num_threads()} threads of this machine"
    print("FLOP/s: " + source if math.isnan(rate) else f"{rate:.3g} FLOP/s, {source}; hours are the least")
    _print_row("chapter", "tokens", "FLOPs", "hours", "device, GB", "host, GB", "disk, GB")
    refused, kept, total = None, set(), Workload()
    for run in plan(root, pair=pair, chapter=None, scale=scale, given=(), force=False):
        if run.chapter in SUMMARIES:
            continue  # they read results alone
        try:
            given = read_chapter(root, run.chapter)[1]
            found = forecast(sizes, run.chapter, given, memory=memory, kept=kept)
        except WorkError as error:
            refused = refused or error
            _print_row(run.chapter, "does not fit")
            continue
        plans = CHAPTERS.get(run.chapter, Chapter())
        kept |= {*plans.takes, plans.makes}
        if found.tokens is not None and found.flops is not None:
            total += Workload(found.tokens, found.flops)
        work = (found.tokens, found.flops, None if found.flops is None else found.flops / rate / 3600)
        _print_row(run.chapter, *map(_number, work), *(_number(size / GIGABYTE) for size in found[2:5]), *found.notes)
    _print_row("together", *map(_number, (total.tokens, total.flops, total.flops / rate / 3600)))
    if refused:
        raise refused


def _number(value: float | None) -> str:
    return "not counted" if value is None else "not known" if math.isnan(value) else f"{value:.2g}"


def _print_row(chapter: str, *cells: str) -> None:
    """Print a row of up to six cells, then notes."""
    print(f"{chapter:22}{''.join(f'{cell:>12}' for cell in cells[:6])}  {'; '.join(cells[6:])}".rstrip())
