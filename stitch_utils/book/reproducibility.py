"""Evidence for the reproducibility card (no section of its own).

An automatic reading of the main paper found no pseudocode and no versions of software. The card answers all that this
reading asks from what can be measured: versions from the lock and from what is installed, settings from the results
files, splits from the documents that two texts share, effects of departures from the numbers of the chapters.

Offers `versions`, `machine`, `settings`, `text_splits`, `departures`, `open_points`, each a DataFrame.
"""

import contextlib
import html
import os
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import pandas as pd
import torch
import yaml

from ..data.pairs import ModelPair
from ..data.repeats import count_repeats
from ..models.harvest import evaluation_batches, training_batches
from ..models.language_model import load_tokenizer
from ..utils.files import locked, project_root
from .chapters import chapter_names, command_for
from .results import read_results

# The packages that make numbers; the lock has all others too.
NAMED = ("torch", "transformers", "tokenizers", "transformer-lens", "sae-lens", "datasets", "safetensors")
NAMED += ("numpy", "scipy", "scikit-learn", "langdetect", "papermill", "jupyter-book")


def versions() -> pd.DataFrame:
    """List the packages that make numbers, locked and installed; the last row counts all and names what differs."""
    lock = locked()
    installed = dict.fromkeys(lock, "not installed")
    for name in lock:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    rows = [[name, lock[name], installed[name]] for name in NAMED]
    differ = [name for name in lock if lock[name] != installed[name].split("+")[0]]
    others = f"{len(lock) - len(differ)} as in the lock" + (f"; not: {', '.join(differ)}" if differ else "")
    return pd.DataFrame([*rows, [f"all {len(lock)}", "", others]], columns=["package", "in the lock", "installed"])


def machine() -> pd.DataFrame:
    """Describe the machine that executes this page."""
    told = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.*)$", told.read_text(), re.M) if told.is_file() else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    rows = {
        "processor": named[1] if named else platform.processor() or "unknown",
        "processors": str(os.cpu_count()),
        "memory": f"{memory / 2**30:.0f} GiB" if memory else "unknown",
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": f"{platform.system()}, {platform.machine()}",
        "Python": platform.python_version(),
    }
    return pd.DataFrame(rows.items(), columns=["", "value"])


def settings(pair: str) -> pd.DataFrame:
    """List the parameters with which each chapter was last run on the pair, the seed among them."""
    runs = read_results(pair, stand_ins=True).runs
    rows = []
    for chapter in (name for name in dict.fromkeys((*chapter_names(project_root()), *runs)) if name in runs):
        run = runs[chapter]
        others = [f"{name} {run[name]}" for name in sorted(set(run) - {"scale", "seed", "stand_in"})]
        rows.append([chapter, str(run.get("scale", "")), str(run.get("seed", "")), ", ".join(others)])
    return pd.DataFrame(rows, columns=["chapter", "scale", "seed", "other parameters"])


def text_splits(pair: ModelPair, scale: str) -> pd.DataFrame:
    """Compare the text that things are fitted on with the text that they are measured on.

    Counts the documents that a scale reads of each, the tokens of them that are used (special ones and those that are
    not met are not), and the documents of the second that are among the first, white space aside.
    """
    sizes = pair.scale(scale)
    tokenizers = tuple(load_tokenizer(ref.model, **ref.source) for ref in (pair.a, pair.b))
    rows: list[list[str]] = []
    fitted_on = 0
    for part, text, batches in (
        ("fitted on", pair.train, training_batches(pair, sizes, tokenizers, sizes.train_tokens)),
        ("measured on", pair.evaluation, evaluation_batches(pair, sizes, tokenizers)),
    ):
        read, count = 0, 0
        for batch in batches:
            read, count = int(batch.a.documents.max()) + 1, count + int(batch.met_a.sum())
        shared = ""
        if fitted_on:
            shared = f"{count_repeats(pair.train, text, n_held_out=read, n_train=fitted_on)[0]:,}"
        fitted_on = fitted_on or read
        source = f"{text.source}: {Path(text.name).name if text.source == 'files' else text.name}"
        rows.append([part, source, f"{read:,}", f"{count:,}", shared])
    return pd.DataFrame(rows, columns=["text", "source", "documents", "tokens", "documents also fitted on"])


def departures(pair: str) -> pd.DataFrame:
    """List what is done otherwise than the papers say, and what that changes on the pair or why it was not measured."""
    numbers, entries = read_results(pair).numbers, _entries("departures")
    rows = [[entry["chapter"], entry["paper"], entry["here"], _effect(entry, pair, numbers)] for entry in entries]
    return pd.DataFrame(rows, columns=["chapter", "the papers", "here", "what that does"])


def open_points() -> pd.DataFrame:
    """List what the papers leave open or say in two ways, what is taken here, and where to take something else."""
    titles = {"chapter": "chapter", "what": "open", "taken": "taken", "where": "to change it"}
    rows = [[html.escape(entry[field]) for field in titles] for entry in _entries("open")]
    return pd.DataFrame(rows, columns=list(titles.values())).replace(r"`([^`]+)`", r"<code>\1</code>", regex=True)


def _effect(entry: Mapping, pair: str, numbers: Mapping[str, object]) -> str:
    if "effect" not in entry:
        return f"not measured: {entry['because']}"
    found = {name: numbers.get(id.replace("{pair}", pair)) for name, id in entry["effect"]["needs"].items()}
    if None in found.values():
        return f"not run: {command_for(pair, entry['chapter'])}"
    return entry["effect"]["text"].format(**found)


def _entries(kind: str) -> list[dict]:
    return yaml.safe_load((project_root() / "book" / "departures.yml").read_text(encoding="utf-8"))[kind]
