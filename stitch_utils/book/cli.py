"""The console script `stitch-book`: executes the chapters, renders the book, prints the claims (no section of its own).

    stitch-book run                                           every chapter for the embedded pair, then the summaries
    stitch-book run --pair my-pair.yml --chapter stitching -p alpha 0.1
    stitch-book run --pair pythia --pair gpt2 --cluster slurm --resource gpus_per_node 1
    stitch-book plan --pair gemma --scale paper --gpu 24GB    what the chapters will take, before anything is loaded
    stitch-book build                                         renders the pages into _build/html
    stitch-book record --pair my-pair.yml                     keeps its pages and results in book/recorded
    stitch-book claims --json

The commands for models of one's own are in `commands.py`: check, fit, sweep, transfer-sae, transfer-vector,
transfer-probe and push. `torchrun --nproc_per_node N -m stitch_utils` runs fit and sweep in N processes.
Chapters are plain papermill notebooks; a page that papermill itself made carries no key and is made anew.

Exit codes: 0; 1 when a chapter or the rendering fails; 2 when the request makes no sense; 130 when interrupted.
"""

import argparse
import contextlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path
from typing import Any

import yaml
from click import unstyle
from filelock import FileLock, Timeout

from ..data.pairs import ModelPair
from ..utils import ranks
from ..utils.files import DAMAGED, project_root, remove_damaged, remove_leftovers, tree_digest, writable_folder
from ..utils.progress import progress
from .chapters import (
    CHAT_CHAPTERS,
    HEAD_CHAPTERS,
    SUMMARIES,
    RequestError,
    one_line,
    parse_value,
    recorded_pages,
    refusing,
    toc_files,
    why_no_chats,
)
from .claims import VERDICTS, named, said_of_turns, verdicts
from .cluster import CLUSTERS, execute_as_jobs
from .runs import HOME_PAIR, RUNS, WorkError, execute_all, find_pair, is_fresh, jobs_at_once, key_of, plan

HTML = Path("_build", "html", "index.html")
KEPT = "nothing half-made is kept, so run the same again"
SPREAD = ("fit", "sweep")  # commands that several processes work on together


def run_chapters(
    root: Path,
    *,
    pairs: list[str] | None,
    jobs: int | None,
    cluster: str | None,
    resources: list[tuple[str, str]],
    **choices: Any,
) -> None:
    """Execute the runs of a request (`plan`) that are not fresh, a line for each, while no other command does so here.

    `jobs` chapters run side by side, by default as many as the processors take, or SLURM; the summaries begin after all
    others. On a `cluster`, each chapter of each pair is a job (`cluster.py`).
    """
    if jobs is not None and jobs < 1:
        raise RequestError(f"--jobs {jobs}: expected a whole number of at least 1")
    pairs = pairs or [HOME_PAIR]
    models = {one.name: one for one in (find_pair(root, pair).described for pair in pairs)}
    if len(models) < len(pairs):
        raise RequestError(f"--pair {' '.join(pairs)}: expected pairs of different names")
    runs = list({run.page: run for pair in pairs for run in plan(root, pair=pair, **choices)}.values())
    if cluster != "slurm":
        jobs = jobs or min(jobs_at_once(one.threads) for one in models.values())
    asked = {name: parse_value(name, value, None) for name, value in resources}
    logs = Path("artifacts", "jobs", time.strftime(f"%Y%m%d-%H%M%S-{os.getpid()}"))
    with _lock(root), contextlib.chdir(root), warnings.catch_warnings(), progress(runs, "chapters") as bar:
        warnings.simplefilter("ignore")
        logging.getLogger("papermill").setLevel(logging.CRITICAL)
        for leftover in RUNS.glob("*/.*.partial.ipynb"):
            leftover.unlink()
        for folder in (RUNS, Path("results")):
            remove_leftovers(folder)
        tidied = False
        for is_last in (False, True):
            group = [run for run in runs if (run.chapter in SUMMARIES) == is_last]
            keys = {run.page: key_of(root, run) for run in group}
            stale = [run for run in group if run.force or not is_fresh(root, run, keys[run.page])]
            left_out = {name: _left_out(models[name]) for name in {run.pair for run in stale} - {HOME_PAIR}}
            for run in group:
                if run not in stale:
                    bar.write(f"{run.label}: unchanged")
                elif why := left_out.get(run.pair, {}).get(run.chapter):
                    bar.write(f"{run.label}: left out, since {why}")
                    stale.remove(run)
            for artifact in remove_damaged(root) if stale and not tidied else ():  # what is executed reads artifacts
                bar.write(f"stitch-book: {artifact.relative_to(root)} {DAMAGED}", file=sys.stderr)
            tidied = tidied or bool(stale)
            bar.update(len(group) - len(stale))
            if cluster and stale:
                bar.write(f"jobs: {len(stale)}, with logs in {logs.as_posix()}")
                at_work = execute_as_jobs(stale, keys, cluster=cluster, logs=logs, resources=asked, at_once=jobs)
            else:
                at_work = execute_all(stale, keys, jobs or 1)
            for run, seconds in at_work:
                bar.write(f"{run.label}: {seconds:.0f} s")
                bar.update()


def _left_out(pair: ModelPair) -> dict[str, str]:
    """Say which chapters the pair has to do without, and why; RequestError for what would end a run later."""
    from ..models.heads import ARCHITECTURES
    from ..models.language_model import load_config
    from ..stitching.pair import preflight

    with refusing(ValueError):
        preflight(pair)
    found: dict[str, str] = {}
    if why := why_no_chats(pair):
        found |= dict.fromkeys(CHAT_CHAPTERS, why)
    for ref in (pair.a, pair.b):
        if (kind := load_config(ref.model, **ref.source).model_type) not in ARCHITECTURES:
            why = f"attention heads of the family {kind!r} ({ref.model!r}) are not worked out by hand"
            found |= dict.fromkeys(HEAD_CHAPTERS, why)
    return found


def _lock(root: Path) -> contextlib.AbstractContextManager:
    lock = FileLock(writable_folder(root / RUNS) / ".lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"stitch-book: another run holds {RUNS.as_posix()}/.lock; waiting for it to end", file=sys.stderr)
        return lock.acquire()


def record_run(root: Path, *, pair: str) -> None:
    """Keep the pages and results of a finished run in `book/recorded/<pair>`, while no other command runs chapters."""
    from .recorded import record  # loads PyTorch

    with _lock(root):
        print(record(root, pair=pair))


def build(root: Path) -> None:
    """Render the pages into `_build/html` unless nothing in them has changed; WorkError shows the warnings.

    Of a chapter that was run here and is recorded too, the run's page is shown (`book/_ext/recorded.py`).
    """
    sources = ["book/runs/**/*.ipynb", "book/recorded/**/*.ipynb", "book/references.bib", "book/_static/**/*"]
    sources += ["book/symbols.md", "book/_ext/*.py", "_config.yml", "_toc.yml"]
    stamp = root / "_build" / ".stamp"
    with _lock(root):  # nobody renders what another is writing
        files = [Path(file) for file in toc_files(root) if Path(file).parent == RUNS / HOME_PAIR]
        if missing := [file.name for file in files if not (root / f"{file}.ipynb").is_file()]:
            raise RequestError(f"the embedded pair has no page of {', '.join(missing)}: make it by `stitch-book run`")
        replaced = [page for page, is_replaced in recorded_pages(root).items() if is_replaced]
        for page in replaced:
            print(f"{page.stem} ({page.parent.name}): the run of this checkout is shown, and not {page.as_posix()}")
        key = tree_digest(root, *sources, "requirements.lock") + "".join(f"\n{page.as_posix()}" for page in replaced)
        if not (stamp.is_file() and stamp.read_text() == key and (root / HTML).is_file()):
            stamp.unlink(missing_ok=True)
            print("rendering the book", flush=True)
            # jupyter_book cannot be run with -m; --all, because pages from Sphinx's cache hide their warnings
            command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
            command += ["build", ".", "--path-output", ".", "--all", "-W", "-n", "--keep-going", "-q"]
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
            if done.returncode:
                raise WorkError(f"the book did not render\n\n{unstyle(done.stderr or done.stdout).strip()}")
            stamp.write_text(key)
    print(f"the book is in {HTML.as_posix()}")


def print_claims(root: Path, pair: str, *, as_json: bool) -> None:
    """Print the verdict on each claim, our numbers beside the published ones, and where or how they are computed."""
    models = find_pair(root, pair)
    with refusing(ValueError, TypeError, OSError, yaml.YAMLError):
        found = verdicts(models.described.name, file=models.value)
    if as_json:
        print(json.dumps([verdict._asdict() for verdict in found], indent=2, ensure_ascii=False))
        return
    width = shutil.get_terminal_size().columns
    columns = max((len(verdict.id) for verdict in found), default=0), max(map(len, VERDICTS))
    for verdict in found:
        origin = f"{verdict.chapter}: {verdict.source}" + f" (recorded {verdict.recorded})" * bool(verdict.recorded)
        print(f"{verdict.id:{columns[0]}}  {verdict.verdict:{columns[1]}}  {origin}")
        numbers = {"ours": verdict.ours, f"published ({verdict.published_verdict or 'incomplete'})": verdict.published}
        lines = [verdict.text, *(f"{side}: {', '.join(named(values))}" for side, values in numbers.items() if values)]
        lines += said_of_turns(verdict) + [f"its run at scale {verdict.scale} gave no {id}" for id in verdict.missing]
        for line in lines:
            print(textwrap.fill(line, width, initial_indent="    ", subsequent_indent="      "))
        if where := (HTML.parent / verdict.page).as_posix() if verdict.page else verdict.command:
            print(f"    {where}")  # not broken into lines, so that it can be copied


class _Parser(argparse.ArgumentParser):
    """Errors in one line, as all of ours; `-1e-4` is a value and not an option."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = re.compile(r"-[.\d]")

    def error(self, message: str) -> None:
        raise RequestError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="stitch-book", description="Executes the chapters, renders the book, prints the claims.")
    add = parser.add_subparsers(dest="command", required=True).add_parser
    home, pair, scale, across, to = (_Parser(add_help=False) for _ in range(5))
    known = "a name in stitch_utils/data/pairs or a .yml file"
    home.add_argument("--pair", default=HOME_PAIR, help=f"{known} (default {HOME_PAIR})")
    pair.add_argument("--pair", required=True, help=known)
    scale.add_argument("--scale", default="default", help="how much text: smoke, default or paper (default: default)")
    across.add_argument("--stitch", help="a file, or OWNER/NAME[@REVISION] on the Hub (default: what `fit` saved)")
    to.add_argument("--to", "--towards", choices=("a", "b"), default="b", help="the model that it is for (default: b)")

    run = add("run", help="execute chapters whose page is missing or out of date")
    run.add_argument("--pair", action="append", dest="pairs", help=f"{known} (default {HOME_PAIR}); repeatable")
    run.add_argument("--chapter", help="this chapter only (default: all, in reading order)")
    run.add_argument("--scale", help="smoke, default or paper (default: the chapter's own)")
    given = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    run.add_argument("-p", dest="given", help="set a parameter of the chapters; repeatable", **given)
    run.add_argument("--jobs", type=int, metavar="N", help="chapters side by side (default: what fits)")
    run.add_argument("--cluster", choices=CLUSTERS, help="execute each chapter of each pair as a job, by submitit")
    for_jobs = "what each job gets, in submitit's words, such as slurm_partition or gpus_per_node; repeatable"
    run.add_argument("--resource", dest="resources", help=for_jobs, **given)
    run.add_argument("--force", action="store_true", help="execute even where nothing has changed")

    check = add("check", help="load a model and say whether it can be stitched")
    check.add_argument("model", metavar="MODEL", help="a Hub id, a folder, a GGUF file, or embedded:NAME")
    check.add_argument("--revision", help="branch, tag or commit on the Hub")
    check.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16 (default: float32)")
    run_code = "let code that the repository brings run (default: such a model is refused)"
    check.add_argument("--trust-remote-code", action="store_true", help=run_code)

    fit = add("fit", parents=[pair, scale], help="fit the stitch of a pair and save it")
    fit.add_argument("--alpha", type=float, default=1.0, help="weight of the inversion terms (default 1)")
    fit.add_argument("--ridge", type=_ridge, metavar="NUMBER|auto", help="ridge of the fit (default: as the pair says)")
    fit.add_argument("--out", help="file to write (default: artifacts/<pair>/stitch.safetensors)")

    sweep = add("sweep", parents=[pair, scale], help="train the SAEs that the chapter sae_training compares")
    sweep.add_argument("--alpha", type=float, default=1.0, help="weight of the inversion terms (default 1)")
    sweep.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each kind (default 3)")

    sae = add("transfer-sae", parents=[pair, across, to, scale], help="carry an SAE to the other model")
    read = "a folder (SAELens, sparsify), sae_lens:RELEASE/ID or sparsify:OWNER/NAME/HOOKPOINT"
    sae.add_argument("sae", metavar="SAE", help=read)
    sae.add_argument("--out", required=True, metavar="FOLDER", help="folder to write, as SAELens reads it")

    vector = add("transfer-vector", parents=[pair, across, to, scale], help="carry directions to the other model")
    vector.add_argument("vector", metavar="FILE", help=".npy, or .safetensors with one tensor: a vector, or a matrix")
    vector.add_argument("--out", required=True, metavar="FILE.npy", help="file to write")
    vector.add_argument("--keep-norm", action="store_true", help="leave the length as it comes (default: unit length)")

    probe = add("transfer-probe", parents=[pair, across, to, scale], help="carry a probe to the other model")
    read = ".npz or .safetensors with coef_ (classes or 1, d) and intercept_, and classes_ if wanted"
    probe.add_argument("probe", metavar="FILE", help=read)
    probe.add_argument("--out", required=True, metavar="FILE.npz", help="file to write")

    push = add("push", parents=[pair, across], help="publish a stitch on the Hub")
    push.add_argument("name", metavar="OWNER/NAME", help="made if it does not exist")
    push.add_argument("--license", dest="licence", help="the stitch's own, as the Hub writes it: mit, apache-2.0, ...")
    push.add_argument("--private", action="store_true", help="if the repository is made")
    push.add_argument("--folder", help="write it there instead of publishing it")

    plans = add("plan", parents=[home, scale], help="say what the chapters will take, before anything is loaded")
    plans.add_argument("--gpu", metavar="SIZE|NAME", help="such as 24GB or a100 (default: this machine)")
    add("record", parents=[pair], help="keep the pages and results of a finished run in book/recorded")
    add("build", help="render the pages into _build/html")
    claims = add("claims", parents=[home], help="print the verdict on each claim")
    claims.add_argument("--json", action="store_true", dest="as_json", help="as a list of objects")
    return parser


def _asked(argv: list[str] | None) -> dict[str, Any]:
    """Read the command line: the options by their names, and the `command`."""
    options = vars(_parser().parse_args(argv))
    if (processes := ranks.started()) > 1 and (command := options["command"]) not in SPREAD:
        expected = f"expected {' or '.join(SPREAD)} under torchrun, which started {processes} processes"
        raise RequestError(f"{command} runs in one process: {expected}")
    return options


def _ridge(text: str) -> float | str:
    """Read a number, or leave `auto` and what is wrong as it is: the fit checks it."""
    try:
        return float(text)
    except ValueError:
        return text


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return the exit code."""
    warnings.formatwarning = lambda message, *_, **__: f"stitch-book: {one_line(message)}\n"
    try:
        with contextlib.ExitStack() as group:
            with refusing(ValueError):
                group.enter_context(ranks.joined())
            options = ranks.from_first(lambda: _asked(argv))
            command = options.pop("command")
            act = {"run": run_chapters, "record": record_run, "build": build, "claims": print_claims}.get(command)
            if command == "plan":
                from .forecast import plan_runs as act  # loads PyTorch
            elif act is None:
                from . import commands  # takes seconds

                act = getattr(commands, command.replace("-", "_"))
            act(project_root().resolve(), **options)
            sys.stdout.flush()
    except (RequestError, WorkError) as error:
        print(f"stitch-book: {error}", file=sys.stderr)
        return 2 if isinstance(error, RequestError) else 1
    except ranks.Elsewhere as error:  # the process where it arose has said it; of one that was lost the first does
        if isinstance(error, ranks.Lost) and not ranks.number():
            print(f"stitch-book: {error}; {KEPT}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stitch-book: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit fails once more
        return 1
    except OSError as error:
        print(f"stitch-book: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
