"""Keep the pages and results of a finished run in the repository (no section of its own).

A run on real models takes longer than a fresh checkout can afford, so its executed pages and its results are tracked in
`book/recorded/<pair>/`, with a file that says when, on what and from which commit they were made. The book renders
them, marked as recorded, and nothing executes them. A record is written as a whole, and recording a run again gives the
same files.

Offers `record`, and the limits `LARGEST` and `WIDEST`.
"""

import base64
import io
import json
import os
import posixpath
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from PIL import Image

from ..utils.files import remove_leftovers, write_whole
from .chapters import RECORDED, RequestError, chapter_names
from .reproducibility import machine
from .runs import HOME_PAIR, RUNS, Run, find_pair, is_fresh, key_of, plan

LARGEST = 6_000_000  # bytes of a record
WIDEST = 1400  # pixels of a figure
VERSIONS = ("torch", "transformers", "transformer-lens", "sae-lens")
# Folders that every system has: a text that names a file in them says nothing about this machine.
SYSTEM = ("bin", "boot", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "sys", "usr", "var")
PATH = re.compile(r"(?<![\w.])/[\w.+@-]+(?:/[\w.+@-]+)+")


class Finished(NamedTuple):
    """A run whose page is up to date, and this page."""

    run: Run
    page: dict[str, Any]


def record(root: Path, *, pair: str) -> str:
    """Put the pages and results of a pair's finished run into `book/recorded/<pair>/`, and say what was written.

    `pair` is a name or a pair file, as for `stitch-book run`. RequestError where nothing was run, where a page or its
    results are missing, out of date or not as the run wrote them, for runs on random weights, for a path of this
    machine in what would be written, and for a record of more than `LARGEST` bytes. Then the earlier record stays.
    """
    name = find_pair(root, pair).described.name
    if name == HOME_PAIR:
        raise RequestError(f"the pair {HOME_PAIR!r} is run wherever the book is built, so nothing of it is recorded")
    pages = _finished(root, pair, name)
    about = _about(root, name, pages)
    chapters = {run.chapter for run, _ in pages}
    documents: dict[str, Any] = {"record.yml": about}
    for run, page in pages:
        documents[f"{run.chapter}.ipynb"] = _slim(page, chapters, about)
        if (root / run.results).is_file():
            rows = json.loads((root / run.results).read_text(encoding="utf-8"))
            if rows.get("run.stand_in"):
                raise RequestError(f"{run.label} was run on random weights: there is nothing to record of it")
            documents[f"results/{run.chapter}.json"] = dict(sorted({**rows, "run.recorded": about["date"]}.items()))
    contents = {file: _written(file, document, root).encode() for file, document in documents.items()}
    size = sum(map(len, contents.values()))
    if size > LARGEST:
        largest = sorted(contents, key=lambda file: -len(contents[file]))[:3]
        named = ", ".join(f"{file} {len(contents[file]) / 1e6:.1f} MB" for file in largest)
        raise RequestError(f"the record would be {size / 1e6:.1f} MB, and {LARGEST / 1e6:g} are allowed: {named}")

    def write(folder: Path) -> None:
        for file, content in contents.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)

    remove_leftovers(root / RECORDED)
    write_whole(root / RECORDED / name, write, sealed=False)
    return f"{(RECORDED / name).as_posix()}: {len(pages)} pages of the run of {about['date']}, {size / 1e6:.1f} MB"


def _finished(root: Path, given: str, name: str) -> list[Finished]:
    """Read the pages of a pair, in reading order; RequestError unless all are fresh."""
    found = {path.stem for path in (root / RUNS / name).glob("[!.]*.ipynb")}
    if not found:
        raise RequestError(f"there is no page of the pair {name!r}: run it first, `stitch-book run --pair {given}`")
    if unknown := sorted(found - set(chapter_names(root))):
        raise RequestError(f"book/runs/{name}/{unknown[0]}.ipynb is the page of no chapter: remove it")
    planned = plan(root, pair=given, chapter=None, scale=None, given=[], force=False)
    return [_read(root, run, given) for run in planned if run.chapter in found and run.pair == name]


def _read(root: Path, run: Run, given: str) -> Finished:
    """Read the page of a chapter, with the run that made it; RequestError unless it is fresh."""
    again = f"make it again with `stitch-book run --pair {given} --chapter {run.chapter}`"
    try:
        page = json.loads((root / run.page).read_text(encoding="utf-8"))
        note = page["metadata"]["stitch_book"]
        lost = note["results"] and not (root / run.results).is_file()
        run = run._replace(parameters=note["parameters"])
        is_whole = is_fresh(root, run, key_of(root, run)) and "end_time" in page["metadata"]["papermill"]
    except (OSError, ValueError, KeyError, TypeError):
        page, lost, is_whole = {}, False, False
    if lost:
        raise RequestError(f"{run.results.as_posix()} is missing, which {run.page.as_posix()} came with: {again}")
    if not is_whole:
        said = "is not as its run wrote it, or was made from other sources than those here"
        raise RequestError(f"{run.page.as_posix()} {said}: {again}")
    return Finished(run, page)


def _about(root: Path, name: str, pages: Sequence[Finished]) -> dict[str, Any]:
    """Say when, on what, from which commit and with which parameters the pages were made."""
    found = dict(machine().itertuples(index=False, name=None))
    python = found.pop("Python")
    commit, is_clean = _commit(root)
    chapters = {}
    for run, page in pages:
        note = page["metadata"]["stitch_book"]
        chapters[run.chapter] = {name: note[name] for name in ("scale", "seconds", "parameters")}
    return {
        "pair": name,
        "date": max(page["metadata"]["papermill"]["end_time"] for _, page in pages)[:10],
        "hardware": found,
        "commit": commit,
        "clean": is_clean,
        "versions": {"python": python, **{package: metadata.version(package) for package in VERSIONS}},
        "chapters": chapters,
    }


def _commit(root: Path) -> tuple[str | None, bool]:
    """Return the commit of the checkout, None without git, and whether nothing but records differs from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return None, False
        changed = git("status", "--porcelain", "--", ".", f":(exclude){RECORDED.as_posix()}")
        return git("rev-parse", "HEAD"), not changed
    except (OSError, subprocess.CalledProcessError):
        return None, False


def _slim(page: dict[str, Any], chapters: set[str], about: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a page: marked as recorded, figures made small, without progress and what papermill noted."""
    page = json.loads(json.dumps(page))
    note = {
        name: page["metadata"]["stitch_book"][name] for name in ("pair", "chapter", "scale", "parameters", "seconds")
    }
    for cell in page["cells"]:
        for name in ("papermill", "execution"):
            cell["metadata"].pop(name, None)
        if cell["cell_type"] != "code":
            continue
        cell["outputs"] = [output for output in cell["outputs"] if output.get("name") != "stderr"]
        for data in (output["data"] for output in cell["outputs"] if "data" in output):
            if "image/png" in data:
                data["image/png"] = _small_png("".join(data["image/png"]))
                drawings = [kind for kind in ("image/png", "image/svg+xml") if kind in data]
                for kind in sorted(drawings, key=lambda kind: len("".join(data[kind])))[1:]:
                    del data[kind]
            for kind in (kind for kind in data if kind.endswith("text/html")):  # glued or not
                data[kind] = _with_links("".join(data[kind]), note["pair"], chapters)
    titles = [cell for cell in page["cells"] if cell["cell_type"] == "markdown" and "".join(cell["source"]).strip()]
    if titles:
        title, _, rest = "".join(titles[0]["source"]).partition("\n")
        titles[0]["source"] = "\n\n".join(filter(None, (title, _mark(note, about), rest.strip("\n"))))
    kept = {name: value for name, value in page["metadata"].items() if name != "papermill"}
    return page | {"metadata": kept | {"stitch_book": note | {"recorded": about["date"]}}}


def _mark(note: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """Write the box that stands at the top of a recorded page."""
    hardware, versions = about["hardware"], about["versions"]
    scale = f" at scale {note['scale']}" if note["scale"] else ""
    commit = f"commit `{about['commit'][:12]}`" if about["commit"] else "a folder that is no git checkout"
    changed = "" if about["clean"] or not about["commit"] else ", with changes that are not committed"
    return (
        "```{admonition} Recorded\n:class: note\n"
        f"This page shows a run of {about['date']}{scale}, which took {note['seconds']:.0f} seconds. "
        "It is kept with the book and is not run again when the book is built. "
        f"Processor: {hardware['processor']} ({hardware['processors']} processors); memory: {hardware['memory']}; "
        f"accelerator: {hardware['accelerator']}. It was made from {commit}{changed}, with "
        f"{', '.join(f'{package} {version}' for package, version in versions.items())}.\n```"
    )


def _small_png(encoded: str) -> str:
    """Encode a PNG (base64) anew, at most `WIDEST` wide, with a palette if that is smaller; return the smallest."""
    image = Image.open(io.BytesIO(base64.b64decode(encoded)))
    candidates = [] if image.width > WIDEST else [encoded.strip()]
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.width > WIDEST:
        image = image.resize((WIDEST, round(image.height * WIDEST / image.width)), Image.Resampling.LANCZOS)
    method = Image.Quantize.FASTOCTREE if image.mode == "RGBA" else Image.Quantize.MEDIANCUT
    for version in (image, image.quantize(256, method=method, dither=Image.Dither.NONE)):
        written = io.BytesIO()
        version.save(written, format="PNG", optimize=True)
        candidates.append(base64.b64encode(written.getvalue()).decode("ascii"))
    return min(candidates, key=len)


def _with_links(text: str, pair: str, chapters: set[str]) -> str:
    """Rewrite links to other pages, which a page of `book/runs/<pair>` counts from its folder, for its record.

    Pages that every book has are linked as a whole, since their sections may change. Links to pages that only this
    checkout has become plain text.
    """

    def link(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join("book/runs", pair, match[1]))
        folder, of, page = target.removeprefix("book/").split("/", 2) if target.count("/") == 3 else ("", "", "")
        chapter, _, section = page.partition(".html")
        if (folder, of) == ("runs", pair) and chapter in chapters:
            target = f"{chapter}.html{section}"
        elif (folder, of) == ("runs", HOME_PAIR):
            target = f"../../runs/{of}/{chapter}.html"
        else:
            return match[2]
        return f'<a href="{target}">{match[2]}</a>'

    return re.sub(r'<a href="(\.\./[^"]*)">(.*?)</a>', link, text, flags=re.S)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Change every string in a JSON value but the images in base64."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    if isinstance(value, dict):
        return {key: item if key == "image/png" else _mapped(item, change) for key, item in value.items()}
    return value


def _written(file: str, document: Any, root: Path) -> str:
    """Write a document as JSON or YAML, with paths of the checkout from its root; RequestError for other paths."""

    def portable(text: str) -> str:
        text = re.sub(rf"{re.escape(str(root))}(/(?=[\w.])|(?![\w-]))", lambda match: "" if match[1] else ".", text)
        if paths := list(filter(_is_of_this_machine, PATH.findall(text))):
            raise RequestError(f"{file} would be recorded with the path {paths[0]}, which is only on this machine")
        return text

    document = _mapped(document, portable)
    if file.endswith(".yml"):
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _is_of_this_machine(path: str) -> bool:
    """Tell whether a path in a text lies in a folder that is here and not on every machine."""
    _, first, second, *_ = Path(path).parts
    if first in SYSTEM:
        return False
    home = Path(os.path.expanduser("~"))
    is_own = len(home.parts) > 1 and Path(path).is_relative_to(home)
    is_scratch = path.startswith(f"{tempfile.gettempdir()}/tmp")  # which may be gone by now
    return is_own or is_scratch or os.path.exists(Path("/", first, second))  # False where we may not look
