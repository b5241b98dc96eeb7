"""A toy book of two chapters and a summary, and ways to call `stitch-book` on it; `conftest.py` has it as fixtures."""

import contextlib
import functools
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import yaml

import stitch_utils
from stitch_utils.book.cli import main
from stitch_utils.book.runs import plan

PACKAGE = Path(stitch_utils.__file__).parent
CONFIG = {
    "title": "Toy",
    "only_build_toc_files": True,
    "exclude_patterns": ["**/.*"],
    "execute": {"execute_notebooks": "off"},
    "sphinx": {"config": {"suppress_warnings": ["etoc.glob"]}},
}
TOC = {
    "format": "jb-book",
    "root": "book/runs/tiny/claims",
    "chapters": [
        {
            "file": "book/runs/tiny/numbers",
            "sections": [{"glob": f"book/{part}/*/numbers"} for part in ("runs", "recorded")],
        },
        {"file": "book/runs/tiny/words"},
    ],
}
NUMBERS = """
import json, os, sys, time
from pathlib import Path

if wait:
    Path("asleep").touch()
    time.sleep(wait)
if crash:
    os.abort()
---
results = Path("results", pair, "numbers.json")
results.parent.mkdir(parents=True, exist_ok=True)
results.write_text(json.dumps({"numbers.tiny.inverse": 1 / alpha, "numbers.tiny.language": language}))
print(os.getcwd(), sys.executable, alpha, language, sep="|")
"""
PUBLISHED = {
    "numbers": {"numbers.gpt2.inverse": 2},
    "figures": [],
    "claims": [
        {
            "id": "positive",
            "text": "The inverse is positive.",
            "source": "Section 1",
            "chapter": "numbers",
            "needs": {"inverse": "numbers.{pair}.inverse"},
            "holds": "inverse > 0",
        }
    ],
}


def chapter(parameters, code):
    """The MyST source of a chapter; `---` separates its code cells."""
    cells = [":tags: [parameters]\n\n" + parameters, *code.strip().split("\n---\n")]
    return "# Toy\n\n" + "\n".join(f"```{{code-cell}} ipython3\n{cell}\n```\n" for cell in cells)


def write_toy(root):
    """The book's sources, without pages."""
    (root / "book").mkdir()
    (root / "_toc.yml").write_text(yaml.safe_dump(TOC))
    (root / "_config.yml").write_text(yaml.safe_dump(CONFIG))
    (root / "requirements.lock").write_text("numpy==2.0.0\n")
    (root / "book" / "published.yml").write_text(yaml.safe_dump(PUBLISHED))
    common = 'pair = "tiny"\nscale = "default"\nseed = 0\n'
    parameters = common + 'alpha = 0.5\nlanguage: str = "en"\nwait = 0\ncrash = False'
    (root / "book" / "numbers.md").write_text(chapter(parameters, NUMBERS))
    (root / "book" / "words.md").write_text(chapter(common, 'print(pair, scale, seed, sep="|")'))
    (root / "book" / "claims.md").write_text(chapter('pair = "tiny"', "from pathlib import Path\nlen(pair)"))


@contextlib.contextmanager
def project_root_at(folder):
    """`STITCH_ROOT` is the folder, and afterwards what it was."""
    before = os.environ.get("STITCH_ROOT")
    os.environ["STITCH_ROOT"] = str(folder)
    try:
        yield
    finally:
        del os.environ["STITCH_ROOT"]
        if before is not None:
            os.environ["STITCH_ROOT"] = before


def start(root, *arguments):
    """`stitch-book` as a user calls it: a process."""
    # from the package's own folder, so that the book's root comes from STITCH_ROOT and not from where we are
    environment = {**os.environ, "STITCH_ROOT": str(root)}
    command = [sys.executable, "-m", "stitch_utils.book.cli", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell that runs the tests in the background has Ctrl-C ignored, and a child inherits that.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, cwd=PACKAGE.parent, env=environment, preexec_fn=heed, **pipes)


def call(root, *arguments):
    """(exit code, lines of stdout, stderr) of a process."""
    process = start(root, *arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out.splitlines(), err


def call_here(root, *arguments):
    """The same without a process, where no chapter has to be executed: starting one takes longer than all the rest."""
    out, err = io.StringIO(), io.StringIO()
    with project_root_at(root), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(arguments))
    return code, out.getvalue().splitlines(), err.getvalue()


def outcomes(lines):
    """{"numbers (tiny, default)": True if it was executed, False if it was left alone}"""
    return {label: not said.endswith("unchanged") for label, said in (line.split(": ") for line in lines)}


def printed(root, name, pair="tiny"):
    """What the cells of a page printed, split at its bars."""
    cells = json.loads((root / "book" / "runs" / pair / f"{name}.ipynb").read_text())["cells"]
    return "".join("".join(output.get("text", "")) for cell in cells for output in cell.get("outputs", ())).split("|")


def runs(root, **choices):
    """{chapter: Run} of `plan` with those choices."""
    defaults = {"pair": "tiny", "chapter": None, "scale": None, "given": [], "force": False}
    return {run.chapter: run for run in plan(root, **defaults | choices)}
