"""Execute chapters as jobs of a cluster, one chapter of one pair a job (no section of its own).

submitit hands the jobs to SLURM or, where there is none, starts processes of this machine. The command that submits
them stays until the last has ended and holds the checkout's lock meanwhile, so a job takes none but that of its page.
A page is put in place whole by its own job, so whatever ends a job or the command, the next call goes on from there.

Offers `execute_as_jobs` and `CLUSTERS`.
"""

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..utils.files import writable_folder
from .chapters import RequestError, refusing
from .runs import Run, WorkError, execute, is_fresh

CLUSTERS = {"slurm": 5.0, "local": 0.2}  # and the seconds between two looks at the jobs
DEFAULTS = {"timeout_min": 24 * 60, "name": "stitch-book"}
GPUS = "CUDA_VISIBLE_DEVICES"


def execute_as_jobs(
    runs: Sequence[Run],
    keys: Mapping[Path, str],
    *,
    cluster: str,
    logs: Path,
    resources: Mapping[str, Any],
    at_once: int | None,
) -> Iterator[tuple[Run, float]]:
    """Execute each chapter in a job, in the current folder; give each that worked with the seconds it took.

    At most `at_once` jobs are there at the same time, by default all; `resources` are what submitit's `AutoExecutor`
    takes. Logs go to `logs`. A failed job ends no other: WorkError, once all have ended, names each in a line. An
    interrupt cancels the jobs.
    """
    executor = _executor(cluster, logs, resources)
    # submitit hides all GPUs from a local job that asks for none
    gpus = os.environ.get(GPUS, "all") if cluster == "local" and "gpus_per_node" not in resources else None
    waiting, begun, failures = list(runs), [], []
    try:
        while waiting or begun:
            while waiting and len(begun) < (at_once or len(runs)):
                run = waiting.pop(0)
                begun.append((executor.submit(_work, Path.cwd(), run, keys[run.page], gpus), run))
            for job, run in [one for one in begun if one[0].done()]:
                begun.remove((job, run))
                seconds, failure = _outcome(job, run)
                if failure:
                    failures.append(f"{failure}: see {job.paths.stderr}")
                else:
                    yield run, seconds
            if begun:
                time.sleep(CLUSTERS[cluster])
    finally:
        for job, _ in begun:
            job.cancel(check=False)
    if failures:
        raise WorkError("\n".join([f"{len(failures)} of {len(runs)} jobs failed", *failures]))


def _executor(cluster: str, logs: Path, resources: Mapping[str, Any]) -> Any:
    """Make submitit's executor; RequestError where it is missing, or knows no such cluster or resource."""
    try:
        import submitit
    except ImportError:
        raise RequestError("--cluster needs submitit: pip install 'stitch-utils[cluster]'") from None
    with refusing(RuntimeError, ValueError, NameError, TypeError, AssertionError):  # as submitit says it
        executor = submitit.AutoExecutor(writable_folder(logs), cluster=cluster)
        executor.update_parameters(**DEFAULTS | dict(resources))
    return executor


def _work(root: Path, run: Run, key: str, gpus: str | None) -> tuple[float, str]:
    """Execute a chapter in a job; return its seconds and "", or 0 and the first line of what failed."""
    os.chdir(root)
    if gpus is not None:
        os.environ.pop(GPUS, None)
        os.environ.update({} if gpus == "all" else {GPUS: gpus})
    warnings.simplefilter("ignore")
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    # A job whose command was killed may still be at work on the page.
    with FileLock(writable_folder(run.page.parent) / f".{run.chapter}.lock"):
        try:
            return (0.0 if not run.force and is_fresh(root, run, key) else execute(run, key)), ""
        except WorkError as error:
            print(error, file=sys.stderr)
            return 0.0, str(error).splitlines()[0]


def _outcome(job: Any, run: Run) -> tuple[float, str]:
    """Return the seconds of a job that has ended, and what failed, if anything did."""
    with contextlib.suppress(Exception):  # what submitit says of a dead job takes many lines, which are in its log
        return job.result()
    return 0.0, f"{run.label} failed: its job ended before the page was there"
