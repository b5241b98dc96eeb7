"""The console script `stitch-book`: executes the chapters, renders the book, prints the claims (no section of its own).

    stitch-book run                                           every chapter for the embedded pair, then the summaries
    stitch-book run --pair my-pair.yml --chapter stitching -p alpha 0.1
    stitch-book build                                         renders the pages into _build/html
    stitch-book claims --json

`commands.py` has those for a pair of one's own: fit, transfer-sae, transfer-vector, transfer-probe, push. Chapters are
plain papermill notebooks, which jupytext makes of their sources; a page that papermill itself made carries no key, so
the next `stitch-book run` executes it again.

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
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from ..data.pairs import ModelPair, load_pair
from ..utils.files import DAMAGED, project_root, remove_damaged, remove_leftovers, tree_digest
from ..utils.progress import progress
from .chapters import CHAT_CHAPTERS, SUMMARIES, RequestError, one_line, toc_files
from .claims import VERDICTS, named, said_of_turns, verdicts
from .commands import add_parsers, look_ahead
from .runs import HOME_PAIR, RUNS, WorkError, execute_all, find_pair, is_fresh, jobs_at_once, key_of, plain, plan

HTML = Path("_build", "html", "index.html")


def run_chapters(root: Path, *, jobs: int | None, **choices: Any) -> None:
    """Execute the runs of a request (`plan`) that are not fresh, a line for each, while no other command does so here.

    `jobs` chapters run side by side, by default as many as the processors take. The summaries read the results of all
    others, so they begin when those are done.
    """
    if jobs is not None and jobs < 1:
        raise RequestError(f"--jobs {jobs}: expected a whole number of at least 1")
    runs = plan(root, **choices)
    with _lock(root), contextlib.chdir(root), warnings.catch_warnings(), progress(runs, "chapters") as bar:
        warnings.simplefilter("ignore")
        logging.getLogger("papermill").setLevel(logging.CRITICAL)
        for leftover in RUNS.glob("*/.*.partial.ipynb"):
            leftover.unlink()
        for folder in (RUNS, Path("results")):
            remove_leftovers(folder)
        chapters = [run for run in runs if run.chapter not in SUMMARIES]
        jobs = jobs or (jobs_at_once(load_pair(chapters[0].parameters["pair"]).threads) if chapters else 1)
        tidied = False
        for group in (chapters, [run for run in runs if run.chapter in SUMMARIES]):
            keys = {run.chapter: key_of(root, run) for run in group}
            stale = [run for run in group if run.force or not is_fresh(root, run, keys[run.chapter])]
            silent = None
            if stale and stale[0].pair != HOME_PAIR:
                silent = _without_chat(look_ahead(root, str(stale[0].parameters["pair"])))
            for run in group:
                if run not in stale:
                    bar.write(f"{run.label}: unchanged")
                elif silent and run.chapter in CHAT_CHAPTERS:
                    bar.write(f"{run.label}: left out, since the tokenizer of {silent!r} has no chat template")
                    stale.remove(run)
            if stale and not tidied:  # artifacts are read by what is executed
                for damaged in remove_damaged(root):
                    bar.write(f"stitch-book: {damaged.relative_to(root)} {DAMAGED}", file=sys.stderr)
                tidied = True
            bar.update(len(group) - len(stale))
            for run, seconds in execute_all(stale, keys, jobs):
                bar.write(f"{run.label}: {seconds:.0f} s")
                bar.update()


def _without_chat(pair: ModelPair) -> str | None:
    """Name a model of the pair whose tokenizer has no chat template, if there is one."""
    from ..models.language_model import load_tokenizer

    for ref in (pair.a, pair.b):
        if not getattr(load_tokenizer(ref.model, revision=ref.revision), "chat_template", None):
            return ref.model
    return None


def _lock(root: Path) -> AbstractContextManager:
    (root / RUNS).mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / RUNS / ".lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"stitch-book: another run holds {RUNS.as_posix()}/.lock; waiting for it to end", file=sys.stderr)
        return lock.acquire()


def build(root: Path) -> None:
    """Render the pages into `_build/html` unless nothing in them has changed; WorkError shows the warnings."""
    home = f"{(RUNS / HOME_PAIR).as_posix()}/"
    sources = ("book/runs/**/*.ipynb", "_config.yml", "_toc.yml", "book/references.bib", "book/_static/**/*")
    stamp = root / "_build" / ".stamp"
    with _lock(root):  # nobody renders what another is writing
        files = [file for file in toc_files(root) if file.startswith(home)]
        if missing := [file.removeprefix(home) for file in files if not (root / f"{file}.ipynb").is_file()]:
            whose = f"the embedded pair, whose pages are the book's own, has none yet for {', '.join(missing)}"
            raise RequestError(f"{whose}: make them with `stitch-book run`")
        key = tree_digest(root, *sources, "requirements.lock")
        if not (stamp.is_file() and stamp.read_text() == key and (root / HTML).is_file()):
            stamp.unlink(missing_ok=True)
            print("rendering the book", flush=True)
            # jupyter_book cannot be run with -m; --all, because pages from Sphinx's cache hide their warnings
            command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
            command += ["build", ".", "--path-output", ".", "--all", "-W", "-n", "--keep-going", "-q"]
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
            if done.returncode:
                raise WorkError(f"the book did not render\n\n{plain(done.stderr or done.stdout).strip()}")
            stamp.write_text(key)
    print(f"the book is in {HTML.as_posix()}")


def print_claims(root: Path, pair: str, *, as_json: bool) -> None:
    """Print the verdict on each claim, our numbers beside the published ones, and where or how they are computed."""
    models = find_pair(root, pair)
    try:
        found = verdicts(models.name, file=models.value)
    except (ValueError, TypeError, OSError, yaml.YAMLError) as error:
        raise RequestError(one_line(error)) from error
    if as_json:
        print(json.dumps([verdict._asdict() for verdict in found], indent=2, ensure_ascii=False))
        return
    width = shutil.get_terminal_size().columns
    columns = max((len(verdict.id) for verdict in found), default=0), max(map(len, VERDICTS))
    for verdict in found:
        print(f"{verdict.id:{columns[0]}}  {verdict.verdict:{columns[1]}}  {verdict.chapter}: {verdict.source}")
        print(textwrap.fill(verdict.text, width, initial_indent="    ", subsequent_indent="    "))
        numbers = {"ours": verdict.ours, f"published ({verdict.published_verdict or 'incomplete'})": verdict.published}
        lines = [f"{side}: {', '.join(named(values))}" for side, values in numbers.items() if values]
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
    commands = parser.add_subparsers(dest="command", required=True)
    pair = _Parser(add_help=False)
    known = f"a name in stitch_utils/data/pairs or a .yml file (default {HOME_PAIR})"
    pair.add_argument("--pair", default=HOME_PAIR, help=known)
    run = commands.add_parser("run", parents=[pair], help="execute chapters whose page is missing or out of date")
    run.set_defaults(act=run_chapters)
    run.add_argument("--chapter", help="this chapter only (default: all, in reading order)")
    run.add_argument("--scale", help="smoke, default or paper (default: the chapter's own)")
    given = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    run.add_argument("-p", dest="given", help="set a parameter of the chapters; repeatable", **given)
    run.add_argument("--jobs", type=int, metavar="N", help="chapters side by side (default: what fits)")
    run.add_argument("--force", action="store_true", help="execute even where nothing has changed")
    add_parsers(commands)
    commands.add_parser("build", help="render the pages into _build/html").set_defaults(act=build)
    claims = commands.add_parser("claims", parents=[pair], help="print the verdict on each claim")
    claims.set_defaults(act=print_claims)
    claims.add_argument("--json", action="store_true", dest="as_json", help="as a list of objects")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return the exit code."""
    try:
        options = vars(_parser().parse_args(argv))
        del options["command"]
        options.pop("act")(project_root().resolve(), **options)
        sys.stdout.flush()
    except (RequestError, WorkError) as error:
        print(f"stitch-book: {error}", file=sys.stderr)
        return 2 if isinstance(error, RequestError) else 1
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
