"""Where the book shows what a chapter computed, and the command that would compute it (no section of its own).

A verdict can be doubted only by somebody who finds the cells behind it, so every claim, table and figure leads to the
section of the page that computed its numbers, and what was not run to the command that runs it.

Offers `page_of`, `anchor`, `command_for`, `pair_argument`, `pair_file`.
"""

import json
import re
import shlex
from pathlib import Path

from ..data.pairs import known_pairs
from ..utils.files import project_root


def anchor(heading: str) -> str:
    """The id that the rendered page gives to the section under `heading`, as docutils makes it."""
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def page_of(pair: str, chapter: str, heading: str = "") -> str:
    """Where the book shows the section, from `_build/html` on; "" if the pair has no page of this chapter."""
    page = Path("book", "runs", pair, chapter)
    if not (project_root() / page.with_name(f"{chapter}.ipynb")).is_file():
        return ""
    return f"{page.as_posix()}.html" + (f"#{anchor(heading)}" if heading else "")


def command_for(given: str, chapter: str = "") -> str:
    """The command that runs a chapter, or all of them, for the pair that `given` names (`pair_argument`)."""
    return f".venv/bin/stitch-book run --pair {shlex.quote(given)}" + (f" --chapter {chapter}" if chapter else "")


def pair_argument(pair: str, file: str = "") -> str:
    """What a command takes for the pair: its name, or its file if it is an own one, by default as its pages name it."""
    return pair if pair in known_pairs() else file or pair_file(pair) or f"{pair}.yml"


def pair_file(pair: str) -> str:
    """The pair file that the pages of a pair were made from, as they name it; "" if there is none."""
    for page in sorted((project_root() / "book" / "runs" / pair).glob("[!.]*.ipynb")):
        try:
            file = json.loads(page.read_text(encoding="utf-8"))["metadata"]["stitch_book"]["parameters"]["pair"]
        except (OSError, ValueError, KeyError, TypeError):  # half a page, or none of ours: another may know
            continue
        if file:
            return str(file)
    return ""
