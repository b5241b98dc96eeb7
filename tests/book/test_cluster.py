"""Chapters of two pairs as jobs: side by side, failures in a line each, and a second call that goes on."""

import json
from datetime import datetime
from pathlib import Path

import pytest
from toy_book import call, call_here, chapter, outcomes

MISHAP = """
import os, signal, time
from pathlib import Path

time.sleep(2)
if pair != "tiny" and Path("mishap").exists():
    {mishap}
print(pair)
"""
COMMON = 'pair = "tiny"\nscale = "default"\nseed = 0\n'


@pytest.fixture
def two_pairs(bare_book, small_pair):
    """The toy book, in which a chapter fails and another loses its job where the file `mishap` is; a pair's file."""
    for name, mishap in {"numbers": "1 / 0", "words": "os.kill(os.getppid(), signal.SIGKILL)"}.items():
        (bare_book / "book" / f"{name}.md").write_text(chapter(COMMON, MISHAP.format(mishap=mishap)))
    (bare_book / "mishap").touch()
    return bare_book, small_pair()


def at_work(page):
    """When a page was begun, and when it was done."""
    note = json.loads(page.read_text())["metadata"]["papermill"]
    return [datetime.fromisoformat(note[f"{end}_time"].replace("Z", "+00:00")) for end in ("start", "end")]


def test_chapters_of_two_pairs_are_jobs_side_by_side(two_pairs):
    root, file = two_pairs
    command = ("run", "--pair", "tiny", "--pair", str(file), "--cluster", "local", "--jobs", "4")
    code, (said, *lines), err = call(root, *command)
    assert said.startswith("jobs: 4, with logs in artifacts/jobs/") and code == 1
    assert sorted(outcomes(lines)) == ["numbers (tiny, default)", "words (tiny, default)"]
    summary, *failures = err.splitlines()
    assert summary == "stitch-book: 2 of 4 jobs failed"
    failed, lost = sorted(failures)
    assert failed.startswith("numbers (mine, default) failed in cell 3: ")
    assert lost.startswith("words (mine, default) failed: its job ended before the page was there: see ")
    logs = [Path(line.rsplit(": see ", 1)[1]) for line in (failed, lost)]
    assert "ZeroDivisionError" in logs[0].read_text() and logs[1].is_file()
    assert all(log.is_relative_to(root / said.rsplit(" ", 1)[1]) for log in logs)
    spans = [at_work(root / "book" / "runs" / "tiny" / f"{name}.ipynb") for name in ("numbers", "words")]
    assert max(start for start, _ in spans) < min(end for _, end in spans), "one after the other"

    (root / "mishap").unlink()
    code, lines, err = call(root, *command)
    assert (code, err) == (0, "")
    told = outcomes(line for line in lines if "with logs" not in line)
    assert [label for label, is_done in told.items() if not is_done] == [
        "numbers (tiny, default)",
        "words (tiny, default)",
    ]
    assert {"numbers (mine, default)", "words (mine, default)", "claims (tiny)"} < set(told)


def test_what_no_cluster_takes_is_refused(bare_book, small_pair):
    run = ("run", "--cluster", "local")
    code, _, err = call_here(bare_book, *run, "--resource", "gpu", "1")
    assert code == 2 and err.startswith("stitch-book: ") and "gpu" in err
    code, _, err = call_here(bare_book, "run", "--cluster", "slurm")
    assert code == 2 and "srun" in err
    code, _, err = call_here(bare_book, *run, "--pair", "tiny", "--pair", "tiny")
    assert (code, err) == (2, "stitch-book: --pair tiny tiny: expected pairs of different names\n")
