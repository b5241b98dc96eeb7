"""Read the docstrings of the installed packages, as text that every machine has without a network.

No section of its own. The source files of the packages in `requirements.lock` are parsed, never imported. Their
docstrings are several million tokens of technical English, and the code around a docstring labels it at no cost. Every
machine with the same packages reads the same documents in the same order: that of the texts' digests, so that
neighbours are of different modules, and the first documents are a fair sample of all. `artifacts/documentation/` keeps
what a package holds, since parsing all of them takes a minute or two.

Offers `DocString`, `docstrings`, and `documentation_key`.
"""

import ast
import hashlib
import heapq
import importlib.metadata
import importlib.util
import json
import re
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..utils.cache import artifact, kept
from ..utils.files import locked
from ..utils.progress import progress

ALL = "all"
SHORTEST = 80  # characters of a docstring
CODE_CHARACTERS = 600  # of a function's body: about as many as 128 tokens hold
# Tests describe no package, and copies of other packages would be read under the wrong name.
SKIPPED = re.compile(r"_?tests?|test_.*|.*_tests?|conftest|_?vendor(ed)?|\.\.")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NAMED = (ast.ClassDef, *FUNCTIONS)
KINDS = {ast.Module: "module", ast.ClassDef: "class", **dict.fromkeys(FUNCTIONS, "function")}
BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")


class DocString(NamedTuple):
    """A docstring of an installed package, and what its source file says of it."""

    text: str
    """Without the indentation of the code."""
    package: str
    """The distribution, as `requirements.lock` names it: lower case, with hyphens."""
    kind: str
    """What is documented: `module`, `class` or `function` (methods among them)."""
    name: str
    """The dotted name of it."""
    raises: bool
    """Whether it is a function with a `raise` statement of its own, not in a function or class within it."""
    code: str
    """The first `CODE_CHARACTERS` of a function's body after the docstring, without indentation; else empty."""


def docstrings(name: str = ALL) -> Iterator[DocString]:
    """Yield the docstrings of a package, or of all, each text once: the first package of the lock that has it owns it.

    Docstrings of fewer than 80 characters, tests, and packages within packages are left out. Raise ValueError if
    `requirements.lock` is missing, or does not name the package, or the package is not installed.
    """
    packages = progress(_installed(name).items(), "reading docstrings")
    found = [_package_rows(package, record) for package, record in packages]
    last = None
    for key, *fields in heapq.merge(*found, key=lambda row: row[0]):
        if key != last:
            yield DocString(*fields)
        last = key


def documentation_key(name: str) -> str:
    """Return a digest of the source files that `docstrings(name)` reads; ValueError as there."""
    return hashlib.sha256(json.dumps(_installed(name)).encode()).hexdigest()


def _installed(name: str) -> dict[str, str]:
    """Return, for each package that is asked for and installed, a digest of the names and contents of its files.

    Only those of .py files count, since installers write others of their own that differ between machines.
    """
    lock, found = locked(), {}
    if name != ALL and name not in lock:
        raise ValueError(f"unknown package {name!r}: expected one of requirements.lock, or {ALL!r}")
    for package in lock if name == ALL else (name,):
        try:
            record = importlib.metadata.distribution(package).read_text("RECORD") or ""
        except importlib.metadata.PackageNotFoundError:
            continue
        if sources := sorted(line for line in record.splitlines() if ".py," in line):
            found[package] = hashlib.sha256("\n".join(sources).encode()).hexdigest()
    if not found:
        what = "no package of requirements.lock" if name == ALL else f"package {name!r}"
        raise ValueError(f"{what} is installed with Python files and a record of them in {sys.prefix}")
    return found


def _package_rows(package: str, record: str) -> Iterator[list]:
    """Yield what the artifact of a package holds: a text's digest and the fields of a DocString, by digest."""
    path = artifact("documentation", package, {"record": record}, sources=(docstrings,), suffix=".jsonl")
    # Read at once, since a process may not open as many files as there are packages; parsed one by one.
    lines = kept(path, lambda: _parsed(package), lambda made, place: place.write_bytes(made), Path.read_bytes)
    return map(json.loads, lines.splitlines())


def _parsed(package: str) -> bytes:
    """Parse the files of a package into lines of JSON; of several docstrings with one text, the first counts."""
    found: dict[str, list] = {}
    for file in sorted(importlib.metadata.files(package) or []):
        if file.suffix != ".py" or any(SKIPPED.fullmatch(part.removesuffix(".py")) for part in file.parts):
            continue
        module = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
        for one in _in_file(Path(str(file.locate())), package, module):
            found.setdefault(hashlib.sha256(one.text.encode()).hexdigest(), list(one))
    return "".join(f"{json.dumps([key, *found[key]])}\n" for key in sorted(found)).encode("ascii")


def _in_file(path: Path, package: str, module: str) -> Iterator[DocString]:
    """Yield the docstrings of a source file; none if it is missing, or no Python of this interpreter."""
    try:
        source = path.read_bytes()
        if b'"""' not in source and b"'''" not in source:  # most others are on one line, and short
            return
        source = importlib.util.decode_source(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what the packages write
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    lines = source.split("\n")
    for name, node in [(module, tree), *_within(tree, f"{module}.")]:
        text = (ast.get_docstring(node) or "").strip() if isinstance(node, tuple(KINDS)) else ""  # cleaned by `inspect`
        if len(text) < SHORTEST or not _is_unicode(text):
            continue
        raises, code = False, ""
        if isinstance(node, FUNCTIONS):
            raises = any(isinstance(inner, ast.Raise) for _, inner in _within(node, closed=NAMED))
            code = _code(node, lines)
        yield DocString(text, package, KINDS[type(node)], name, raises, code)


def _within(node: ast.AST, prefix: str = "", closed: tuple = ()) -> Iterator[tuple[str, ast.AST]]:
    """Yield the statements within a node in order, with the dotted names of the functions and classes among them.

    Those within nodes of the classes `closed` are left out. Expressions are not entered: they hold no statements.
    """
    waiting = [(prefix, inner) for inner in reversed(_blocks(node))]
    while waiting:
        prefix, inner = waiting.pop()
        name = prefix + inner.name if isinstance(inner, NAMED) else ""
        yield name, inner
        if not isinstance(inner, closed):
            waiting += [(f"{name}." if name else prefix, each) for each in reversed(_blocks(inner))]


def _blocks(node: ast.AST) -> list[ast.AST]:
    return [inner for block in BLOCKS for inner in getattr(node, block, ())]


def _code(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
    """Return the lines after a function's docstring, without indentation and cut; empty if there are none."""
    docstring, *rest = node.body
    if not rest or rest[0].lineno <= (docstring.end_lineno or 0):
        return ""
    body = textwrap.dedent("\n".join(lines[docstring.end_lineno or 0 : node.end_lineno]))
    return body.strip("\n")[:CODE_CHARACTERS] if _is_unicode(body) else ""


def _is_unicode(text: str) -> bool:
    """Tell whether a text has no half of a surrogate pair, which is in no file and no tokenizer's vocabulary."""
    return not re.search("[\ud800-\udfff]", text)
