"""Labelled texts that the documentation of the installed packages gives for nothing.

No section of its own: where Section 4 probes for labels that people wrote, these come from the source code around a
docstring (`data.documentation`). What would give a label away in a word is removed where that can be done:

- `package`: of which of five packages a docstring is. Each of their names is replaced by the same word.
- `code`: `code` is the body of a function without its docstring, `prose` the docstring of the same function. Docstrings
  that show code are left out.
- `definition`: whether a docstring is of a class or of a function.
- `raises`: whether the function of a docstring has a `raise` statement of its own.

For the last two a docstring is read up to the section that says what is returned or raised, or any after it, and each
class has as many texts of every package, so that the style of a package tells nothing. A sentence before these sections
may still say what is raised.

Offers `DOCUMENTATION`, the sets, and `PACKAGES`.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from ..data.documentation import SHORTEST, DocString, docstrings

# Large ones that are written by different people and about different things.
PACKAGES = ("torch", "transformers", "scipy", "sympy", "pandas")
NAMES = re.compile(rf"(py)?({'|'.join(PACKAGES)})", re.IGNORECASE)
REPLACEMENT = "package"
SHOWN_CODE = (">>>", "```", "::\n")
# A heading of a section, alone in its line or with a colon, as NumPy, Google or Markdown write it, or a field of reST.
SECTION = re.compile(
    r"^[ \t#*]*(returns?|yields?|receives?|raises?|warns?|warnings?|attributes?|methods|see also|notes?|examples?"
    r"|references?|usage)[ \t*]*(:.*)?$"
    r"|^[ \t]*[:@](returns?|rtype|yields?|raises?|except|exception|ivar|cvar|var|vartype)\b",
    re.IGNORECASE | re.MULTILINE,
)

Row = tuple[str, str]  # a class and a text of it


def _drawn(seed: str) -> list[DocString]:
    """List all docstrings in the order of a digest of the seed and the text, whatever else is installed."""
    return sorted(docstrings(), key=lambda one: hashlib.sha256(f"{seed}\n{one.text}".encode()).digest())


def _packages(seed: str) -> Iterator[Row]:
    return ((one.package, NAMES.sub(REPLACEMENT, one.text)) for one in _drawn(seed) if one.package in PACKAGES)


def _code(seed: str) -> Iterator[Row]:
    for one in _drawn(seed):
        if len(one.code) >= SHORTEST and not any(shown in one.text for shown in SHOWN_CODE):
            yield "code", one.code
            yield "prose", one.text


def _definitions(seed: str) -> Iterator[Row]:
    return _matched((one.package, one.kind, one.text) for one in _drawn(seed) if one.kind != "module")


def _raises(seed: str) -> Iterator[Row]:
    functions = (one for one in _drawn(seed) if one.kind == "function")
    return _matched((one.package, "raises" if one.raises else "raises nothing", one.text) for one in functions)


def opening(text: str) -> str:
    """Return a docstring up to the section that says what is returned or raised, or any after the parameters."""
    found = SECTION.search(text)
    return text[: found.start()].rstrip() if found else text


def _matched(rows: Iterable[tuple[str, str, str]]) -> Iterator[Row]:
    """Yield openings of two classes from rows of (package, class, text): after one of a class, its match.

    The match is a text of the other class from the same package. An opening that is too short, or occurred before, is
    left out.
    """
    known: set[str] = set()
    waiting: defaultdict[str, list[Row]] = defaultdict(list)  # of a package; all of them are of one class
    for package, name, text in rows:
        text = opening(text)
        if len(text) < SHORTEST or text in known:
            continue
        known.add(text)
        if waiting[package] and waiting[package][0][0] != name:
            yield waiting[package].pop(0)
            yield name, text
        else:
            waiting[package].append((name, text))


# Classes of each set, and its rows given a seed.
DOCUMENTATION: dict[str, tuple[tuple[str, ...], Callable[[str], Iterator[Row]]]] = {
    "package": (PACKAGES, _packages),
    "code": (("code", "prose"), _code),
    "definition": (("class", "function"), _definitions),
    "raises": (("raises", "raises nothing"), _raises),
}
