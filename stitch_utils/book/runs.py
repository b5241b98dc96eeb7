"""Make the page of a chapter for a pair of models, and tell when it is out of date (no section of its own).

A page is a chapter executed for one pair, `book/runs/<pair>/<chapter>.ipynb`. Pages are expensive, so each carries the
key of all that made it (its source, its parameters, this package, the published numbers, the lock file) and the digests
of its results and of itself. One with which all of these still agree is left alone; a page is replaced whole, at the
end of a run that worked, or not at all.

Offers `plan`, which turns a request into `Run`s; `key_of` and `is_fresh`, which tell whether a page is up to date;
`execute` and `execute_all`, which make one or all, or raise `WorkError`; `jobs_at_once`, `find_pair`, and the constants
`HOME_PAIR` and `RUNS`.
"""

import hashlib
import json
import os
import re
import subprocess
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import yaml
from click import unstyle
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

from ..data.pairs import ModelPair, SAERef, known_pairs, load_pair
from ..data.text_files import text_files_key
from ..utils.cache import PACKAGE
from ..utils.files import digest, tree_digest, write_whole
from .chapters import (
    HOME_PAIR,
    SUMMARIES,
    RequestError,
    chapter_names,
    for_pair,
    one_line,
    parse_value,
    read_chapter,
    refusing,
)

RUNS = Path("book", "runs")
EXPLAINED = ("HubError", "HubBusy", "NotWritten")  # errors of the surroundings, which no line of a traceback helps with


class WorkError(Exception):
    """A chapter or a rendering that failed; exit code 1."""


class Pair(NamedTuple):
    """A pair, what chapters are given for it, and for a user's own pair the digest of its files."""

    described: ModelPair
    value: str
    digest: str | None


class Run(NamedTuple):
    """A chapter to execute for a pair: the parameters to pass, all its parameters, and what its key is made of."""

    chapter: str
    pair: str
    notebook: Any
    passed: dict[str, Any]
    parameters: dict[str, Any]
    ingredients: dict[str, Any]
    force: bool

    @property
    def page(self) -> Path:
        return RUNS / self.pair / f"{self.chapter}.ipynb"

    @property
    def results(self) -> Path:
        return Path("results", self.pair, f"{self.chapter}.json")

    @property
    def label(self) -> str:
        return f"{self.chapter} ({', '.join(filter(None, (self.pair, self.parameters.get('scale'))))})"


def find_pair(root: Path, given: str) -> Pair:
    """Find the pair that `given` names: one of `stitch_utils/data/pairs`, or the path of a pair file."""
    known = known_pairs()
    if given in known:
        return Pair(load_pair(given), given, None)
    path = Path(given).resolve()
    with refusing(ValueError, TypeError, KeyError, OSError, yaml.YAMLError):
        pair = load_pair(path if path.suffix in (".yml", ".yaml") else given)
    if pair.name in known or not re.fullmatch(r"\w[\w.-]*", pair.name):
        rule = f"must be fit for a folder and not one of {', '.join(known)}"
        raise RequestError(f"pair file {given}: the name {pair.name!r} {rule}")
    value = path.relative_to(root) if path.is_relative_to(root) else path
    said = json.dumps([digest(path), _local_files(pair)])
    return Pair(pair, value.as_posix(), hashlib.sha256(said.encode()).hexdigest())


def _local_files(pair: ModelPair) -> list[tuple[str, int, int]]:
    """List all files on this disk that a pair names, with their times and sizes; models are too large to read."""
    saes = (sae.release if isinstance(sae, SAERef) else sae for sae in pair.saes.values())
    models = (ref.model for ref in (pair.a, pair.b, pair.augmenter) if ref)
    texts = {ref.name for ref in (pair.train, pair.evaluation, *pair.datasets.values())}
    found = [one for name in sorted(texts) for one in text_files_key(name)]
    for place in (Path(name).expanduser() for name in sorted({*saes, *models})):
        for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
            name = file.relative_to(place).as_posix()  # the place is in the pair's file, and may move with it
            if file.is_file() and not re.search(r"(^|/)\.\w", name):  # hidden files aside
                found.append((name, file.stat().st_mtime_ns, file.stat().st_size))
    return found


def plan(
    root: Path, *, pair: str, chapter: str | None, scale: str | None, given: Iterable[tuple[str, str]], force: bool
) -> list[Run]:
    """List the runs that a request asks for, summaries last, all checked before any starts.

    The summaries follow every request, for the embedded pair and at their defaults unless asked for by name.
    RequestError, naming those that exist, for an unknown chapter, pair, scale or parameter.
    """
    names = chapter_names(root)
    if chapter is not None and chapter not in names:
        raise RequestError(f"unknown chapter {chapter!r}: expected one of {', '.join(names)}")
    asked_for, home = find_pair(root, pair), find_pair(root, HOME_PAIR)
    scales = asked_for.described.scales
    if scale is not None and scale not in scales:
        raise RequestError(f"unknown scale {scale!r}: expected one of {', '.join(scales)}")
    few = scales[scale].chapters if scale else ()
    if unknown := [name for name in few if name not in names]:
        raise RequestError(f"{asked_for.described.file}: unknown chapter {unknown[0]!r} of scale {scale!r}")
    if chapter in SUMMARIES and asked_for != home:
        raise RequestError(f"chapter {chapter!r} covers all pairs and runs for {HOME_PAIR} only, got --pair {pair}")
    if reserved := [name for name, _ in given if name in ("pair", "scale")]:
        raise RequestError(f"-p {reserved[0]} is not a way to choose it: use --{reserved[0]}")
    shared = {
        "package": tree_digest(PACKAGE, "**/*"),
        "requirements": digest(root / "requirements.lock"),
        "published": tree_digest(root, "book/published.yml", "book/findings.yml", "book/departures.yml"),
    }
    runs = []
    for name in names:
        is_summary = name in SUMMARIES
        asked = name == chapter or (chapter is None and not is_summary and (not few or name in few))
        if not asked and not is_summary:
            continue
        notebook, defaults, source = read_chapter(root, name)
        here = home if is_summary else asked_for
        passed = {"pair": here.value} | ({"scale": scale} if asked and scale is not None else {})
        texts = dict(given) if asked else {}
        if unknown := [parameter for parameter in passed | texts if parameter not in defaults]:
            known = ", ".join(defaults) or "none"
            raise RequestError(f"chapter {name!r} has no parameter {', '.join(map(repr, unknown))}: it has {known}")
        passed |= {parameter: parse_value(parameter, text, defaults[parameter]) for parameter, text in texts.items()}
        ingredients = {**shared, "chapter": name, "source": source, "pair": here.digest}
        if here != home:
            notebook = for_pair(notebook, here.described.name)
        forced = force and (asked or chapter is None)
        runs.append(Run(name, here.described.name, notebook, passed, defaults | passed, ingredients, forced))
    return runs


def key_of(root: Path, run: Run) -> str:
    """Return the digest of all that determines a page."""
    ingredients = {**run.ingredients, "parameters": run.parameters}
    if run.chapter in SUMMARIES:
        ingredients["results"] = tree_digest(root / "results", "**/*.json")
        ingredients["unclaimed"] = tree_digest(root, "book/unclaimed.yml")
        pages = [page for page in (root / RUNS).glob("*/[!.]*.ipynb") if page.stem not in SUMMARIES]
        ingredients["pages"] = sorted(page.relative_to(root).as_posix() for page in pages)  # summaries link them
    if run.pair == HOME_PAIR:  # its pages open with what is recorded of others
        of = "**/*" if run.chapter in SUMMARIES else f"**/{run.chapter}.*"
        ingredients["recorded"] = tree_digest(root, f"book/recorded/{of}")
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


def is_fresh(root: Path, run: Run, key: str) -> bool:
    """Tell whether the page was made by `key`, shows no error, and it and its results are still as they were left."""
    try:
        page = json.loads((root / run.page).read_text(encoding="utf-8"))
        note = page["metadata"]["stitch_book"]
        kinds = {output["output_type"] for cell in page["cells"] for output in cell.get("outputs", ())}
        agrees = (note["key"], note["results"]) == (key, digest(root / run.results))
        return agrees and "error" not in kinds and note["page"] == _page_digest(page)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _page_digest(page: dict[str, Any]) -> str:
    """Return the digest of all in a page but this digest itself."""
    note = {name: value for name, value in page["metadata"]["stitch_book"].items() if name != "page"}
    rest = page | {"metadata": page["metadata"] | {"stitch_book": note}}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def jobs_at_once(threads: int) -> int:
    """Return how many chapters fit side by side, each with so many threads; one where PyTorch takes all (0)."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, processors // threads) if threads else 1


def execute_all(runs: Sequence[Run], keys: Mapping[Path, str], jobs: int) -> Iterator[tuple[Run, float]]:
    """Execute chapters, `jobs` at once, begun in order, in the current folder; give each with the seconds it took.

    After a failure no other chapter begins, and those at work end; an interrupt ends them too.
    """
    if jobs == 1 or len(runs) < 2:
        yield from ((run, execute(run, keys[run.page])) for run in runs)
        return
    _Kernel.unwanted = False
    with ThreadPoolExecutor(jobs) as pool:
        begun = {pool.submit(execute, run, keys[run.page]): run for run in runs}
        try:
            for done in as_completed(begun):
                yield begun[done], done.result()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if not isinstance(error, WorkError):
                _Kernel.kill_all()
            raise


def execute(run: Run, key: str) -> float:
    """Execute a chapter in the current folder, put its page in place, return its seconds; WorkError if a cell fails."""
    import nbformat
    import papermill  # takes a second to import, which unchanged pages can do without

    partial, failed = (run.page.with_name(f".{run.chapter}.{end}.ipynb") for end in ("partial", "failed"))
    started = time.monotonic()
    run.page.parent.mkdir(parents=True, exist_ok=True)
    # iopub_timeout: the default of 4 s is too short for a busy machine
    options: Any = {"kernel_manager_class": _Kernel, "kernel_name": "python3", "language": "python"}
    options |= {"start_timeout": 300, "iopub_timeout": 60}
    options |= {"progress_bar": {"desc": "  cells", "leave": False, "disable": None}}
    try:
        nbformat.write(run.notebook, partial)
        page = papermill.execute_notebook(str(partial), str(partial), run.passed, **options)
        seconds = round(time.monotonic() - started, 1)
        for cell in page.cells:
            if "injected-parameters" in cell.metadata.get("tags", ()):
                cell.metadata.tags.append("remove-input")  # as the chapter's own parameters are
        page.metadata.papermill.update(input_path=f"book/{run.chapter}.md", output_path=run.page.as_posix())
        note = {"key": key, "results": digest(run.results), "pair": run.pair, "chapter": run.chapter}
        note |= {"scale": run.parameters.get("scale"), "parameters": run.parameters, "seconds": seconds}
        page.metadata["stitch_book"] = note
        page.metadata.stitch_book["page"] = _page_digest(json.loads(nbformat.writes(page)))
        write_whole(run.page, lambda place: nbformat.write(page, place), sealed=False)
        failed.unlink(missing_ok=True)
        return seconds
    except (papermill.PapermillExecutionError, RuntimeError, TimeoutError) as error:
        if _Kernel.unwanted:
            raise WorkError(f"{run.label} was interrupted") from error
        os.replace(partial, failed)
        said = f"{run.label} failed {_failure(failed, error)}\nThe partial notebook is {failed.as_posix()}"
        raise WorkError(said) from error
    except OSError as error:  # a disk that is full, mostly
        raise WorkError(f"{run.label} could not be kept: {one_line(error)}") from error
    finally:
        partial.unlink(missing_ok=True)


class _Kernel(AsyncKernelManager):
    """A kernel of this interpreter, whatever the user's home calls `python3`, in the same surroundings everywhere."""

    started: ClassVar[weakref.WeakSet] = weakref.WeakSet()
    unwanted: ClassVar[bool] = False
    """Whether an interrupt has come, which reaches the main thread only."""

    async def start_kernel(self, **options: Any) -> None:
        # what a cell prints is in its page already; what is left is the kernel's own noise
        await super().start_kernel(**options, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _Kernel.started.add(self)
        if _Kernel.unwanted:
            _Kernel.kill_all()

    @classmethod
    def kill_all(cls) -> None:
        """Kill all kernels, those too that other threads are about to start."""
        cls.unwanted = True
        for kernel in list(cls.started):
            if process := getattr(kernel.provisioner, "process", None):
                process.kill()

    @property
    def kernel_spec(self) -> KernelSpec:
        # Chapters run in the root, with another backend their pages would lack figures, and bars show times.
        surroundings = {"STITCH_ROOT": str(Path.cwd()), "PYTHONHASHSEED": "0", "TQDM_DISABLE": "1"}
        surroundings["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
        # debugpy otherwise complains of frozen modules in every kernel
        command = get_kernel_dict(python_arguments=["-Xfrozen_modules=off"])
        return KernelSpec(resource_dir=RESOURCES, env=surroundings, **command)


def _failure(partial: Path, error: Exception) -> str:
    """Say which cell failed, with the traceback, or with the message alone where it explains the error."""
    try:
        cells = json.loads(partial.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):  # the disk was too full for it
        cells = []
    cells = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
    # a kernel that dies leaves no error output, so the cell is the last that started
    begun = [i for i, cell in enumerate(cells) if cell["metadata"].get("papermill", {}).get("start_time")]
    where = "before its first cell"
    if begun:
        where = f"in cell {begun[-1] + 1}: {''.join(cells[begun[-1]]['source']).strip().splitlines()[0]}"
    trace = "\n".join(getattr(error, "traceback", ())) or str(error)
    if (name := getattr(error, "ename", None)) in EXPLAINED:
        trace = f"{name}: {getattr(error, 'evalue', '')}"
    return f"{where}\n\n{unstyle(trace).strip()}\n"
