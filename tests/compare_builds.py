"""Makes the pages twice, from copies of the sources, and compares what they print: `make compare`.

    python tests/compare_builds.py                       two runs at scale default, alike in everything
    python tests/compare_builds.py --scale smoke --threads 1 2
    python tests/compare_builds.py FIRST SECOND          two folders that hold book/runs and results already

Numbers of results files must be equal to the last digit, but for times; what a page prints, its images aside, must be
the same text. With different `--threads` sums are rounded otherwise, so only the text is compared. Exit code 1 names
what differs.
"""

import argparse
import difflib
import html
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from renew_reference import copy_sources

ROOT = Path(__file__).parent.parent
TIMES = ("seconds", "speedup")
GLUED = "application/papermill.record/"  # what a page shows at another place than that of the cell


def make(folder: Path, scale: str, threads: int | None) -> None:
    """All chapters, executed on a copy of the sources in `folder`."""
    copy_sources(folder)
    environment = os.environ | {"STITCH_ROOT": str(folder), "TQDM_DISABLE": "1"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-m", "stitch_utils.book.cli", "run", "--scale", scale]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def printed(page: Path) -> list[str]:
    """What an executed notebook shows, line by line, without tags, images, progress and names drawn at random."""
    lines = []
    for cell in json.loads(page.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", ()):
            data = {kind.removeprefix(GLUED): said for kind, said in output.get("data", {}).items()}
            kinds = ("text/html", "text/markdown", "text/plain")
            told = next(filter(None, map(data.get, kinds)), output.get("text", ""))
            if output.get("name") == "stderr" or any(kind.startswith("image/") for kind in data):
                continue
            text = re.sub(r"<(style|script)\b.*?</\1>", "", "".join(told), flags=re.S)
            text = html.unescape(re.sub(r"<[^>]*>", "\n", text))
            lines += [line.strip() for line in text.splitlines() if line.strip()]
    return lines


def differences(first: Path, second: Path, *, numbers: bool = True) -> list[str]:
    """What two folders' results and pages do not share, a line each."""
    found, pages = [], 0
    for folder, ending in (("results", "json"), ("book/runs", "ipynb")):
        sides = [
            {file.relative_to(side / folder) for file in (side / folder).glob(f"*/[!.]*.{ending}")}
            for side in (first, second)
        ]
        found += [f"{folder}/{name}: only in one of the two" for name in sorted(sides[0] ^ sides[1])]
        for name in sorted(sides[0] & sides[1]):
            both = first / folder / name, second / folder / name
            if ending == "ipynb":
                pages += 1
                lines = difflib.unified_diff(*map(printed, both), "first", "second", lineterm="", n=0)
                found += [f"{folder}/{name}: {line}" for line in lines if not line.startswith(("---", "+++", "@@"))]
            elif numbers:
                ours, theirs = (json.loads(path.read_text(encoding="utf-8")) for path in both)
                found += [
                    f"{folder}/{name}: {id}: {ours.get(id)} and {theirs.get(id)}"
                    for id in sorted(ours.keys() | theirs.keys())
                    if ours.get(id) != theirs.get(id) and not any(word in id for word in TIMES)
                ]
    if not pages:
        found.append("there is nothing to compare: the two have no page in common")
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Makes the pages twice and compares what they print.")
    parser.add_argument("folders", nargs="*", type=Path, help="two folders with results and pages, instead of runs")
    parser.add_argument("--scale", default="default", help="of the runs (default: default)")
    parser.add_argument("--threads", nargs=2, type=int, default=(None, None), help="OMP_NUM_THREADS of each run")
    options = parser.parse_args(argv)
    if len(options.folders) not in (0, 2):
        parser.error(f"expected two folders or none: got {len(options.folders)}")
    with tempfile.TemporaryDirectory() as scratch:
        folders = options.folders or [Path(scratch, name) for name in ("first", "second")]
        if not options.folders:
            for folder, threads in zip(folders, options.threads):
                make(folder, options.scale, threads)
        found = differences(*folders, numbers=options.threads[0] == options.threads[1])
    print("\n".join(found) if found else "both agree in all that they print")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
