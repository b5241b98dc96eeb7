"""Kills `stitch-book run` at random moments, lets one run end, and compares its numbers with those of a clean run.

    python tests/kill_report.py --kills 20 --scale smoke

Each kill is a SIGKILL of the command and of its kernels at once, after a delay that is drawn anew. Should a run end
before it is killed, its pages and numbers are removed, and the kills go on with what it has left in `artifacts/`. Exit
code 0 if all numbers but timings are equal, in every digit that is stored; else 1, and the ids that differ.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

TESTS = Path(__file__).resolve().parent
SHORTEST, LONGEST = 1.0, 45.0  # seconds; `--longest` is for chapters that take more at scale smoke


class Comparison(NamedTuple):
    """Of the numbers after kills with those of a clean run."""

    killed: int
    """Runs that were."""
    numbers: int
    """Compared."""
    different: dict[str, tuple]
    """{file and id: (after kills, clean)}; None where there is none."""


def start(root: Path, arguments: Sequence[str], log: Path) -> subprocess.Popen:
    environment = os.environ | {"STITCH_ROOT": str(root), "PYTHONPATH": str(TESTS.parent)}
    command = [sys.executable, "-m", "stitch_utils.book.cli", "run", *arguments]
    with log.open("w") as output:
        return subprocess.Popen(
            command, cwd=TESTS.parent, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def finish(root: Path, arguments: Sequence[str], log: Path) -> None:
    """A run that nobody disturbs; SystemExit, with what it said, if it fails."""
    if code := start(root, arguments, log).wait():
        raise SystemExit(f"a run ended with exit code {code}:\n{log.read_text()}")


def killed(process: subprocess.Popen, delay: float) -> bool:
    """Kills the process, its group and all that it has started after so many seconds; False if it ends before."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(delay)
        return False
    process.send_signal(signal.SIGSTOP)  # so that it starts nothing more
    kernels = psutil.Process(process.pid).children(recursive=True)  # they are in groups of their own
    os.killpg(process.pid, signal.SIGKILL)
    for kernel in kernels:
        with contextlib.suppress(psutil.NoSuchProcess):
            kernel.kill()
    psutil.wait_procs(kernels, timeout=30)
    return process.wait() == -signal.SIGKILL


def numbers(root: Path) -> dict[str, object]:
    """{"tiny/stitching table1.tiny.a": value} of all results, timings aside."""
    spec = importlib.util.spec_from_file_location("numbers_of_reference", TESTS / "reference" / "test_numbers.py")
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    found = {}
    for file in sorted((root / "results").glob("*/[!.]*.json")):
        for id, value in json.loads(file.read_text(encoding="utf-8")).items():
            if not any(word in id for word in reference.UNCHECKED):
                found[f"{file.parent.name}/{file.stem} {id}"] = value
    return found


def differences(ours: dict[str, object], clean: dict[str, object]) -> dict[str, tuple]:
    return {
        id: (ours.get(id), clean.get(id))
        for id in sorted({*ours, *clean})
        if id not in ours or id not in clean or ours[id] != clean[id]
    }


def compare(
    prepare: Callable[[Path], None],
    folder: Path,
    arguments: Sequence[str],
    *,
    kills: int,
    seed: int = 0,
    delays: tuple[float, float] = (SHORTEST, LONGEST),
    say: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """`prepare` puts the sources of a book into an empty folder; `arguments` are those of `stitch-book run`."""
    draw, count = random.Random(seed), 0
    roots = {name: folder / name for name in ("killed", "clean")}
    for root in roots.values():
        root.mkdir()
        prepare(root)
    root, log = roots["killed"], folder / "run.log"
    while count < kills:
        delay = draw.uniform(*delays)
        process = start(root, arguments, log)
        if killed(process, delay):
            count += 1
            pages = sorted(page.stem for page in (root / "book" / "runs").glob("*/[!.]*.ipynb"))
            say(f"kill {count} after {delay:.1f} s: {len(pages)} pages are finished")
        elif process.returncode:
            raise SystemExit(f"a run ended with exit code {process.returncode}:\n{log.read_text()}")
        else:
            say("a run ended before it was killed: its pages are made again")
            shutil.rmtree(root / "book" / "runs")
            shutil.rmtree(root / "results")
    for other in roots.values():
        finish(other, arguments, log)
    ours, clean = (numbers(roots[name]) for name in ("killed", "clean"))
    return Comparison(count, len(clean), differences(ours, clean))


def main(argv: Sequence[str] | None = None) -> int:
    from renew_reference import copy_sources

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--scale", default="smoke", help="smoke, default or paper (default: smoke)")
    parser.add_argument("--seed", type=int, default=0, help="of the delays")
    parser.add_argument("--longest", type=float, default=LONGEST, help=f"seconds before a kill (default {LONGEST:g})")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = compare(
            copy_sources,
            Path(folder),
            ["--scale", options.scale],
            kills=options.kills,
            seed=options.seed,
            delays=(SHORTEST, options.longest),
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
    for id, (ours, clean) in found.different.items():
        print(f"{id}: {ours} after kills, {clean} in a clean run")
    if found.different or not found.numbers:
        print(f"{len(found.different)} of {found.numbers} numbers differ after {found.killed} kills")
        return 1
    print(f"after {found.killed} kills all {found.numbers} numbers are those of a clean run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
