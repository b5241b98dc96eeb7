"""Runs every chapter at scale smoke and keeps the notebooks, without images, and their numbers in tests/reference/.

`make reference` calls it after a change that is meant to move numbers; look at the diff before committing it. With the
names of chapters, it renews these alone, and the rest stays as it is kept:

    python tests/renew_reference.py [CHAPTER ...]
"""

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "tests" / "reference"
LONGEST = 200_000  # characters of an output that is kept


def copy_sources(target: Path) -> None:
    """What a run needs of the repository beside the package, so that it can write its results elsewhere.

    Records of runs stay behind: pages count the verdicts on recorded pairs, and what is compared must not.
    """
    shutil.copytree(ROOT / "book", target / "book", ignore=shutil.ignore_patterns("runs", "recorded"))
    for name in ("_toc.yml", "requirements.lock"):
        shutil.copy(ROOT / name, target / name)


def without_images(page: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what differs from run to run or weighs much: images, pages of data, timings, progress bars,
    run metadata, random names."""
    for number, cell in enumerate(page.cells):
        cell.id = f"cell-{number}"
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        told = "this-machine" not in cell.metadata.get("tags", ())
        cell.outputs = [output for output in cell.outputs if told and output.get("name") != "stderr"]
        for output in cell.outputs:
            data = output.get("data", {})
            for kind in [kind for kind in data if kind.startswith("image/") or len(data[kind]) > LONGEST]:
                del data[kind]
            if "text/html" in data:  # a styled table is also text, which names it by its address
                data.pop("text/plain", None)
                data["text/html"] = re.sub(r"\bT_[0-9a-f]{5}", f"T_{number}", data["text/html"])
    for name in ("papermill", "stitch_book"):
        page.metadata.pop(name, None)
    return page


def renew(chapters: Sequence[str] = ()) -> None:
    """Run `chapters`, or all without any, and keep them; a chapter that sums up others reads what is kept of them."""
    from stitch_utils.book.chapters import SUMMARIES
    from stitch_utils.book.cli import main

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder)
        pages = target / "book" / "runs" / "tiny"
        copy_sources(target)
        if chapters:
            shutil.copytree(REFERENCE, pages, ignore=shutil.ignore_patterns("results", "*.py", "__pycache__"))
            shutil.copytree(REFERENCE / "results", target / "results")
        os.environ["STITCH_ROOT"] = folder
        # In a run of all chapters, those that sum up others have the scale of their cell of parameters.
        asked = [["--chapter", name] + ["--scale", "smoke"] * (name not in SUMMARIES) for name in chapters]
        if any(main(["run", *each]) for each in asked or [["--scale", "smoke"]]):
            raise SystemExit(1)
        for old in REFERENCE.glob("*.ipynb"):
            if not chapters or old.stem in chapters:
                old.unlink()
        for path in sorted(pages.glob("[!.]*.ipynb")):
            if not chapters or path.stem in chapters:
                nbformat.write(without_images(nbformat.read(path, 4)), REFERENCE / path.name)
        shutil.rmtree(REFERENCE / "results", ignore_errors=True)
        shutil.copytree(target / "results", REFERENCE / "results", ignore=shutil.ignore_patterns(".*"))


if __name__ == "__main__":
    renew(sys.argv[1:])
