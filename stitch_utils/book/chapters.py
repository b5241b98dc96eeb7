"""List the chapters, their parameters and their pages (no section of its own).

A chapter is a text notebook, `book/<chapter>.md`, with one cell tagged `parameters` that assigns literals; `_toc.yml`
says which there are and in which order. What a user writes on a command line is text, and the default of a parameter
decides what it stands for: `1e-4` is a number where a number stood, `no` is Norwegian where a language stood. Whatever
was computed leads to the section that computed it, and what was not run to the command that runs it.

Pages and results of a pair come from a run in this checkout or, chapter by chapter, from its record, which is tracked
(`recorded.py`). Where there are both, the run counts.

Offers `chapter_names`, `toc_files`, `read_chapter`, `for_pair`, `parse_value`, `page_of`, `command_for`, `pair_file`,
`is_replaced` and `recorded_pages`, which tell the record of a chapter from a run; `one_line`, `RequestError` for a
request that makes no sense, and `refusing`, which makes others into it; `why_no_chats`; and the constants `HOME_PAIR`,
`SUMMARIES`, `CHAT_CHAPTERS`, `HEAD_CHAPTERS`, `EMBEDDED_ONLY` and `RECORDED`.
"""

import ast
import contextlib
import hashlib
import json
import math
import re
import shlex
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import yaml
from docutils.nodes import make_id

from ..data.pairs import ModelPair, known_pairs
from ..utils.files import project_root

HOME_PAIR = "tiny"  # the embedded pair, whose pages every book has
# They read the results of all pairs, so they come last, in this order.
SUMMARIES = ("claims", "reproducibility", "index")
CHAT_CHAPTERS = ("instruction_following",)  # left out for models that have no chat template
HEAD_CHAPTERS = ("functional_features",)  # left out for models whose attention heads are not worked out by hand
EMBEDDED_ONLY = "embedded-pair"  # tag of cells that are about the embedded pair and nothing else
RECORDED = Path("book", "recorded")


class RequestError(Exception):
    """A request that makes no sense. The message is one line, and the exit code is 2."""


@contextlib.contextmanager
def refusing(*kinds: type[Exception]) -> Iterator[None]:
    """Re-raise these errors as RequestErrors: for steps that refuse what a user gave, and not for what prints."""
    try:
        yield
    except kinds as error:
        raise RequestError(one_line(error)) from error


def toc_files(root: Path) -> list[str]:
    """List the files that `_toc.yml` names, root first, in reading order, without their endings; globs are left out."""
    from sphinx_external_toc.parsing import MalformedError, parse_toc_yaml

    try:
        files = list(parse_toc_yaml(root / "_toc.yml"))
    except FileNotFoundError:
        raise RequestError(f"{root} holds no _toc.yml: expected a checkout (STITCH_ROOT names one)") from None
    except (yaml.YAMLError, MalformedError, AttributeError, TypeError) as error:
        raise RequestError(f"_toc.yml is not a table of contents: {one_line(error)}") from error
    return [file.removesuffix(".ipynb").removesuffix(".md") for file in files]


def chapter_names(root: Path) -> list[str]:
    """List the chapters of `_toc.yml` that have a source, in its order but with the summaries last.

    A file in `book` itself is a page of plain text, and not the run of a chapter.
    """
    files = (PurePosixPath(file) for file in toc_files(root))
    found = dict.fromkeys(file.name for file in files if file.parent != PurePosixPath("book"))
    names = [name for name in found if (root / "book" / f"{name}.md").is_file()]
    return [name for name in names if name not in SUMMARIES] + [name for name in SUMMARIES if name in names]


def read_chapter(root: Path, chapter: str) -> tuple[Any, dict[str, Any], str]:
    """Read a chapter: its notebook, its parameters with their defaults, and the digest of its source."""
    import jupytext

    source = (root / "book" / f"{chapter}.md").read_text(encoding="utf-8")
    notebook = jupytext.reads(source, fmt="md:myst")
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    if len(cells) != 1:
        raise RequestError(f"book/{chapter}.md: expected one cell tagged 'parameters', found {len(cells)}")
    defaults = {}
    try:
        for node in ast.parse(cells[0].source).body:
            match node:
                case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), _, ast.expr() as value):
                    defaults[name] = ast.literal_eval(value)
                case _:
                    raise SyntaxError("expected the assignment of a value to a name")
        json.dumps(defaults, allow_nan=False)
    except (SyntaxError, ValueError, TypeError) as error:
        raise RequestError(f"book/{chapter}.md: the cell 'parameters' must assign plain literals only") from error
    return notebook, defaults, hashlib.sha256(source.encode()).hexdigest()


def for_pair(notebook: Any, pair: str) -> Any:
    """Copy a notebook for another pair: its title and labels name it, and cells of the embedded pair are left out."""
    copy = deepcopy(notebook)
    copy.cells = [cell for cell in copy.cells if EMBEDDED_ONLY not in cell.metadata.get("tags", ())]
    labels = set()
    for cell in copy.cells:
        if name := cell.metadata.get("mystnb", {}).get("figure", {}).get("name"):
            cell.metadata["mystnb"]["figure"]["name"] = f"{name}-{pair}"
            labels.add(name)
    for cell in copy.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"^# (.*)", rf"# \1: {pair}", cell.source, count=1, flags=re.M)
            for label in labels:
                cell.source = cell.source.replace(f"`{label}`", f"`{label}-{pair}`")
    return copy


def parse_value(name: str, text: str, default: Any) -> Any:
    """Return the value that `text` stands for as a parameter of that `default`; one of None takes any YAML value."""
    if isinstance(default, str):
        return text
    try:
        value: Any = yaml.load(text, _PlainYAML)
    except yaml.YAMLError as error:
        raise RequestError(f"{name}: {text!r} is not a YAML value") from error
    if default is None:
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    expected, fits = {
        bool: ("true or false", isinstance(value, bool)),
        int: ("a whole number", is_number and value == int(value)),
        float: ("a finite number", is_number),
    }.get(type(default), (f"a YAML {type(default).__name__}", isinstance(value, type(default))))
    if not fits:
        raise RequestError(f"parameter {name} (default {default!r}): expected {expected}, got {text!r}")
    return type(default)(value)


def page_of(pair: str, chapter: str, heading: str = "") -> str:
    """Return where the book shows the section, from `_build/html` on; "" if the pair has no page of this chapter.

    A recorded page may be older than its chapter: where it lacks the heading, the page as a whole is meant.
    """
    root = project_root()
    is_recorded = not is_replaced(root, pair, chapter)
    page = f"book/{'recorded' if is_recorded else 'runs'}/{pair}/{chapter}"
    file, title = root / f"{page}.ipynb", json.dumps(f"# {heading}", ensure_ascii=False)[1:-1]
    if not file.is_file():
        return ""
    if is_recorded and title not in file.read_text(encoding="utf-8"):
        heading = ""
    return f"{page}.html" + (f"#{make_id(heading)}" if heading else "")


def is_replaced(root: Path, pair: str, chapter: str) -> bool:
    """Tell whether this checkout holds a page or results of a chapter's run, which count in the place of its record."""
    return any((root / f).is_file() for f in (f"book/runs/{pair}/{chapter}.ipynb", f"results/{pair}/{chapter}.json"))


def recorded_pages(root: Path) -> dict[Path, bool]:
    """List the recorded pages, as paths from `root`, and tell of each whether a run takes its place."""
    pages = sorted(page.relative_to(root) for page in (root / RECORDED).glob("[!.]*/[!.]*.ipynb"))
    return {page: is_replaced(root, page.parent.name, page.stem) for page in pages}


def command_for(pair: str, chapter: str = "", *, file: str = "") -> str:
    """Return the command that runs a chapter, or all, for a pair or its `file`, by default that of its pages."""
    given = pair if pair in known_pairs() else file or pair_file(pair) or f"{pair}.yml"
    return f".venv/bin/stitch-book run --pair {shlex.quote(given)}" + (f" --chapter {chapter}" if chapter else "")


def pair_file(pair: str) -> str:
    """Return the pair file that the pages of a pair were made from, as they name it; "" if there is none."""
    folders = (project_root() / folder / pair for folder in (Path("book", "runs"), RECORDED))
    for page in (page for folder in folders for page in sorted(folder.glob("[!.]*.ipynb"))):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # no page of ours: another may know
            return str(json.loads(page.read_text(encoding="utf-8"))["metadata"]["stitch_book"]["parameters"]["pair"])
    return ""


def one_line(error: object) -> str:
    """Return what an error says, without its line breaks."""
    return " ".join(str(error).split())


class _PlainYAML(yaml.SafeLoader):
    """YAML 1.2's scalars: `1e-4` is a number; dates, `no`, `1:30` and `nan` stay the text that they look like."""

    yaml_implicit_resolvers: ClassVar[dict] = {}


for _tag, _pattern in {
    "null": r"null|~|",
    "bool": r"true|false",
    "int": r"[-+]?(0|[1-9][0-9]*)",
    "float": r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?",
}.items():
    _PlainYAML.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), None)


def why_no_chats(pair: ModelPair) -> str | None:
    """Say why the pair has no chats that both models read alike; None where it has.

    HubError where a tokenizer is not to be had.
    """
    from ..data.alignment import reader_of_both
    from ..models.language_model import load_tokenizer

    refs = pair.a, pair.b
    tokenizers = [load_tokenizer(ref.model, **ref.source) for ref in refs]
    for ref, tokenizer in zip(refs, tokenizers):
        if not getattr(tokenizer, "chat_template", None):
            return f"the tokenizer of {ref.model!r} has no chat template"
    if reader_of_both(*tokenizers) is None:
        return "the two models have different tokenizers"
    return None
