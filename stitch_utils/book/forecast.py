"""What chapters will take, before any weights are loaded (no section of its own).

`workloads` and `chapter_costs` count positions and FLOPs. Here they become hours and bytes, on this machine or on a
card. Hours are FLOPs over the rate of large products, so they are the least that a run can take: one token at a time,
as in responses, is far slower. Bytes are those of live tensors, so a card needs some more. Disk is that of
`artifacts/`: models and texts that are fetched are not in it.

Offers `plan_runs`, the command; `forecast` and `Forecast`; `Machine`, `CARDS`, `machine_of` and `measured_rate`.
"""

import dataclasses
import math
import os
import re
import shutil
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..data.hub import HubError
from ..data.pairs import ModelPair
from ..models.costs import harvest_cost
from .chapter_costs import CHAPTERS, SHARED, Chapter
from .chapters import CHAT_CHAPTERS, HEAD_CHAPTERS, SUMMARIES, RequestError, refusing, why_no_chats
from .runs import WorkError, find_pair, plan
from .workloads import Sizes, Workload, sizes_of

GIGABYTE = 10**9


class Machine(NamedTuple):
    """Where a run is planned: bytes of memory, and dense FLOP/s by data type, of which some may not be known."""

    memory: float
    rates: Mapping[str, float]
    source: str
    """Where the rates come from."""
    is_here: bool = False
    """Whether it is this machine, whose disk is known, too."""


def _card(memory: float, float32: float, bfloat16: float, float64: float) -> Machine:
    rates = {"float32": float32, "bfloat16": bfloat16, "float16": bfloat16, "float64": float64}
    return Machine(memory, rates, "by the data sheet")


# Where a sheet gives rates with sparsity, half of them.
CARDS = {
    # https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf
    "a100": _card(80e9, 19.5e12, 312e12, 19.5e12),
    # https://www.nvidia.com/en-us/data-center/h100/ (SXM)
    "h100": _card(80e9, 67e12, 989e12, 67e12),
    # https://www.nvidia.com/en-us/data-center/l4/; float64 at a 64th of float32, as the architecture has it
    "l4": _card(24e9, 30.3e12, 121e12, 30.3e12 / 64),
    # NVIDIA Ampere GA102 GPU Architecture, V2.0, appendix A
    "rtx3090": _card(24e9, 35.6e12, 71e12, 35.6e12 / 64),
    # https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf, appendix A
    "rtx4090": _card(24e9, 82.6e12, 165.2e12, 82.6e12 / 64),
}


class Forecast(NamedTuple):
    """What a chapter takes, and whether it fits."""

    work: Workload
    """Of which `device` holds the models, too: the most bytes at once where they are. NaN for what is not known of a
    family of models."""
    is_counted: bool = True
    """Whether tokens and FLOPs are counted, which they are not for all chapters."""
    notes: tuple[str, ...] = ()
    """What is split, and what earlier chapters have left."""
    problem: str = ""
    """Why it does not fit, and what would; empty if it does."""

    def hours(self, machine: Machine, dtype: str) -> float:
        """Divide the FLOPs by the rates of a machine; NaN where one is not known."""
        rest, unknown = self.work.flops - self.work.double, math.nan
        rates = machine.rates.get(dtype, unknown), machine.rates.get("float64", unknown)
        return (rest / rates[0] + self.work.double / rates[1]) / 3600


def forecast(
    sizes: Sizes, chapter: str, given: Mapping[str, Any], *, memory: float = math.inf, kept: Collection[str] = ()
) -> Forecast:
    """Forecast a chapter with the parameters `given`, on a device of `memory` bytes.

    What is named in `kept`, of `SHARED`, is in `artifacts/` already.
    """
    plans, work, notes = CHAPTERS.get(chapter, Chapter()), Workload(), []
    for name in plans.takes:
        if name in kept:
            notes.append(f"{name}: made before")
        else:
            work += SHARED[name](sizes)
    if plans.own is None:
        notes.append("memory and disk: of the stitch alone")
    else:
        try:
            work += plans.own(sizes, given)
        except HubError:
            work += Workload(math.nan, math.nan)
            notes.append("its data sets are not to be had")
    device, rows, problem = _device(sizes, work, plans, memory)
    if rows < sizes.scale.batch_size and not problem:
        notes.append(f"rows of a batch: {rows}, not {sizes.scale.batch_size}")
    if work.written:
        notes.append(f"{work.written / GIGABYTE:.2g} GB of checkpoints, one after the other")
    if chapter in HEAD_CHAPTERS:
        notes.append("only for families whose heads are worked out")
    return Forecast(dataclasses.replace(work, device=device), plans.own is not None, tuple(notes), problem)


def _device(sizes: Sizes, work: Workload, plans: Chapter, memory: float) -> tuple[float, int, str]:
    """Find the most bytes at once on the device, the rows of a batch, and why it does not fit.

    A GPU's batches are halved until they fit. Without a GPU the device's memory is the host's.
    """
    a, b, rows = sizes.models["a"], sizes.models["b"], sizes.scale.batch_size
    if a is None or b is None:
        return math.nan, rows, ""
    pair, layers = sizes.pair, (sizes.layers["a"], sizes.layers["b"])
    options = {"tokens": sizes.scale.train_tokens, "context": pair.context, "dtype": pair.dtype}

    def needed(rows: int) -> tuple[float, float]:
        cost = harvest_cost(a, b, layers, batch_size=rows, **options)
        return cost.weights, max(
            cost.peak, cost.weights + max(sizes.logits(side, rows * pair.context) for side in "ab")
        )

    weights, peak = needed(rows)
    while sizes.on_gpu and peak > memory and rows > 1:
        rows //= 2
        weights, peak = needed(rows)
    device = max(peak, weights + work.device)
    most = device if sizes.on_gpu else device + work.host
    if most <= memory or pair.a.device_map or pair.b.device_map:
        return device, rows, ""
    if peak > memory:
        most = peak  # of all chapters alike
    if peak > memory and sizes.on_gpu:
        text, other = "one row of text", "device_map: auto in the pair's file over several"
    elif peak > memory:
        text, other = f"{rows} rows of text", "a smaller batch_size in the pair's file" * (needed(1)[1] <= memory)
    elif weights + work.device > memory:
        text, other = plans.holds, plans.lighter
    else:
        text, other = "the activations that are kept", "fewer train_tokens and svcca_tokens in the pair's file"
    takes = f"weights of {weights / GIGABYTE:.1f} GB and {text} take {most / GIGABYTE:.1f} GB"
    place = f"{'a card' if sizes.on_gpu else 'memory'} of {math.ceil(most / GIGABYTE)} GB or more"
    return device, rows, f"{takes}: expected {place}" + (f", or {other}" if other else "")


def measured_rate(dtype: str = "float32", *, device: str = "cpu", times: int = 5) -> float:
    """Measure FLOP/s of this machine: the best of a few products of two square matrices."""
    size, best = 8192 if device == "cuda" else 1024, math.inf
    x = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    for _ in range(times):
        began = time.perf_counter()
        (x @ x)[0, 0].item()  # waits for a GPU
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def machine_of(text: str | None, dtype: str) -> Machine:
    """Read `24GB` or the name of one of `CARDS`; RequestError for others. None is this machine, which is measured."""
    if text is None:
        device, words = "cpu", f"{torch.get_num_threads()} threads of this machine"
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if torch.cuda.is_available():
            device, words, memory = "cuda", torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1]
        rates = {name: measured_rate(name, device=device) for name in sorted({dtype, "float64"})}
        return Machine(memory, rates, f"measured on {words}", is_here=True)
    if card := CARDS.get(re.sub(r"[\s_-]", "", text.lower())):
        return card
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?gb", text.strip().lower())
    if not found or not float(found[1]):
        raise RequestError(f"--gpu {text}: expected a size such as 24GB, or one of {', '.join(CARDS)}")
    memory = float(found[1]) * GIGABYTE
    alike = [name for name, card in CARDS.items() if card.memory == memory] or CARDS
    return Machine(memory, {}, f"not known of a card by its size; --gpu {' or '.join(alike)} gives hours")


def plan_runs(root: Path, *, pair: str, scale: str, gpu: str | None) -> None:
    """Print what each chapter takes, in the order of a run, and all together; WorkError, after the table, for what
    does not fit."""
    described = find_pair(root, pair).described
    with refusing(ValueError):
        described.scale(scale)
    machine = machine_of(gpu, described.dtype)
    runs = plan(root, pair=pair, chapter=None, scale=scale, given=(), force=False)
    with refusing(ValueError):
        sizes = sizes_of(described, scale, on_gpu=not machine.is_here or torch.cuda.is_available())
    rates = ", ".join(
        f"{rate:.3g} in {dtype}" for dtype, rate in machine.rates.items() if dtype in (described.dtype, "float64")
    )
    print(f"FLOP/s: {rates}, {machine.source}; hours are the least" if rates else f"FLOP/s: {machine.source}")
    _print_row("chapter", "tokens", "FLOPs", "hours", "device, GB", "host, GB", "disk, GB")
    kept, total, count, problems, chats = set(), Workload(), 0, {}, _why_no_chats(described)
    for run in runs:
        if run.chapter in SUMMARIES:
            continue  # they read results alone
        if chats and run.chapter in CHAT_CHAPTERS:
            _print_row(run.chapter, *[""] * 6, f"left out, since {chats}")
            continue
        with refusing(ValueError):
            found = forecast(sizes, run.chapter, run.parameters, memory=machine.memory, kept=kept)
        plans = CHAPTERS.get(run.chapter, Chapter())
        kept |= {*plans.takes, plans.makes}
        if found.problem:
            found = found._replace(notes=("does not fit", *found.notes))
        if chats is None and run.chapter in CHAT_CHAPTERS:
            found = found._replace(notes=(*found.notes, "only with chat templates, and so not in the sums"))
        else:
            total += found.work
            count += 1
            if found.problem:
                problems.setdefault(found.problem, []).append(run.chapter)
        _print_forecast(run.chapter, found, found.hours(machine, described.dtype))
    together = Forecast(total)
    _print_forecast("together", together, together.hours(machine, described.dtype))
    said = [f"{', '.join(chapters)}: {problem}" for problem, chapters in problems.items()]
    if [len(chapters) for chapters in problems.values()] == [count]:
        said = [f"all chapters: {problem}" for problem in problems]
    if machine.is_here and total.disk > (free := shutil.disk_usage(root).free):
        said.append(f"artifacts/ takes {total.disk / GIGABYTE:.1f} GB: {free / GIGABYTE:.1f} GB are free")
    if said:
        where = f"{machine.memory / GIGABYTE:.3g} GB"
        raise WorkError(f"{described.name} at scale {scale} does not fit {where}; {'; '.join(said)}")


def _why_no_chats(pair: ModelPair) -> str | None:
    """Say why the pair has no chats, or nothing if it has; None where a tokenizer is not to be had."""
    with refusing(ValueError):
        try:
            return why_no_chats(pair) or ""
        except HubError:
            return None


def _print_forecast(chapter: str, found: Forecast, hours: float) -> None:
    numbers = (found.work.tokens, found.work.flops, hours)
    cells = [_number(number) if found.is_counted else "not counted" for number in numbers]
    cells += [_number(size / GIGABYTE) for size in (found.work.device, found.work.host, found.work.disk)]
    _print_row(chapter, *cells, *found.notes)


def _number(value: float) -> str:
    return "not known" if math.isnan(value) else f"{value:.2g}"


def _print_row(chapter: str, *cells: str) -> None:
    """Print a row of up to six cells, then notes."""
    print(f"{chapter:22}{''.join(f'{cell:>12}' for cell in cells[:6])}  {'; '.join(cells[6:])}".rstrip())
