"""Decide the papers' claims, from our numbers and from their own (no section of its own).

`book/published.yml` holds the papers' numbers under ids like `table1.pythia.a_to_b`, and their claims, each with the
ids it needs and a predicate over them such as `a_to_b_to_a < 1.01 * a`. The same predicate is asked of our numbers and
of the papers' own, so that a threshold which the papers themselves would miss shows. Nothing that a predicate needs is
ever filled in: if a number is missing, the claim counts as not run. A predicate is parsed as Python, and then only
arithmetic, comparisons, and, or, not, abs, min and max over the claim's names are carried out, so a line of data cannot
run code.

A verdict compares the estimates. Where a number has a 95% interval, the predicate is asked again with this one number
at either end of it and all others where they are: a verdict that changes has its threshold inside that interval.

Offers `published`, which reads the file into a `Published` of `Claim`s and `Figure`s, `verdicts` and `figures_status`,
which compare it with our results as `Verdict`s and `FigureStatus`es, and for whoever prints these `VERDICTS`,
`with_interval`, `named` and `said_of_turns`.
"""

import ast
import functools
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..utils.files import project_root
from .chapters import command_for, page_of, pair_argument
from .results import read_results

VERDICTS = ("holds", "partly", "does not hold", "not run")
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
}


@dataclass(frozen=True)
class Claim:
    """One sentence that a paper, or this package, asserts, with the predicate that decides it."""

    id: str
    """Unique name."""
    text: str
    """The claim in our words, one sentence."""
    source: str
    """Section, table or figure that makes it."""
    chapter: str
    """Chapter that writes the numbers it needs."""
    needs: Mapping[str, str]
    """Short name -> result id, in which `{pair}` stands for the name of the pair."""
    holds: str
    """Predicate over the short names: the claim holds."""
    partly: str = ""
    """Weaker predicate, asked when `holds` is false; empty if there is none."""
    heading: str = ""
    """Heading of the chapter's section that computes these numbers; empty for the page as a whole."""
    timed: bool = False
    """Its numbers are times, which differ from run to run: pages show the verdict on them and not the numbers."""

    def __post_init__(self):
        for name, id in self.needs.items():
            if not name.isidentifier() or name in ("abs", "max", "min"):
                raise ValueError(f"claim '{self.id}': {name!r} in needs is not a usable name")
            if "{pair}" not in id:
                raise ValueError(f"claim '{self.id}': {name} needs '{id}', expected an id that contains {{pair}}")
        for predicate in (self.holds, self.partly) if self.partly else (self.holds,):
            try:
                _compiled(predicate, self.needs)
            except (SyntaxError, ValueError) as error:
                raise ValueError(f"claim '{self.id}': predicate {predicate!r}: {error}") from None


@dataclass(frozen=True)
class Figure:
    """One table or figure of a paper."""

    id: str
    """Unique name, such as `table1` or `figure3b`."""
    title: str
    """What it shows, in our words."""
    section: str
    """Section of the paper that it belongs to."""
    chapter: str
    """Chapter that recomputes it."""
    prefix: str = ""
    """How the ids of its numbers begin; may contain `{pair}`."""
    schematic: bool = False
    """A drawing of the method: nothing to recompute, and no prefix."""
    heading: str = ""
    """Heading of the chapter's section that recomputes it; empty for the page as a whole."""

    def __post_init__(self):
        if self.schematic == bool(self.prefix):
            raise ValueError(f"figure '{self.id}': expected either a prefix or schematic: true")


@dataclass(frozen=True)
class Published:
    """Everything in `book/published.yml`."""

    numbers: Mapping[str, float]
    """Result id -> published value; ids that end in `.low` and `.high` bound a 95% interval."""
    claims: tuple[Claim, ...]
    """In the order of the chapters."""
    figures: tuple[Figure, ...]
    """Tables and figures in the order of the papers."""

    @property
    def pairs(self) -> tuple[str, ...]:
        """Pairs that have published numbers, in the file's order."""
        return tuple(dict.fromkeys(id.split(".")[1] for id in self.numbers))


class Verdict(NamedTuple):
    """What one pair's numbers say about a claim. `ours` and `published` are keyed by the claim's short names, with
    `.low` and `.high` where there is an interval; `published_verdict` is "" unless all that it needs was published.
    `turns` says which end of which of our intervals would change the verdict, and into what. `page` is the section that
    computed our numbers, `command` what would compute those that are not there; one of the two is "". Where a run has
    left out some of them, `missing` names their ids and `scale` its scale, and there is a command only if that was
    smoke."""

    id: str
    text: str
    source: str
    chapter: str
    verdict: str
    ours: dict[str, float]
    published: dict[str, float]
    published_verdict: str
    turns: dict[str, str]
    page: str
    command: str
    missing: tuple[str, ...]
    scale: str
    timed: bool


class FigureStatus(NamedTuple):
    """Whether a table or figure has been recomputed; `status` is "done", "not run" or "schematic". `page` is the
    section that did so, `command` what would; "" where that does not apply."""

    id: str
    title: str
    section: str
    chapter: str
    status: str
    page: str
    command: str


def published() -> Published:
    """Read and check `book/published.yml`, once a process. ValueError says which entry is wrong and how."""
    path = project_root() / "book" / "published.yml"
    return _parsed(path, path.read_text(encoding="utf-8"))


@functools.lru_cache(maxsize=4)
def _parsed(path: Path, text: str) -> Published:
    document = yaml.load(text, _UniqueKeys)
    if set(document) != {"numbers", "figures", "claims"}:
        raise ValueError(f"{path} has the parts {sorted(document)}: expected numbers, figures and claims")
    values = {}
    for id, value in document["numbers"].items():
        triple = isinstance(value, list) and len(value) == 3
        for suffix, number in zip(("", ".low", ".high"), value if triple else [value], strict=False):
            if type(number) not in (int, float) or id.count(".") < 2:
                form = "<table>.<pair>.<quantity>: a number or [number, low, high]"
                raise ValueError(f"{path}: '{id}: {value}': expected {form}")
            if id + suffix in values:
                raise ValueError(f"{path}: number '{id}{suffix}' is given twice")
            values[id + suffix] = number
    claims = _entries(Claim, document["claims"], path)
    return Published(values, claims, _entries(Figure, document["figures"], path))


def verdicts(pair: str, *, book: Published | None = None, file: str = "") -> list[Verdict]:
    """Decide each claim of `book` (default: `published()`), from our results and the papers' on the pair.

    `file` is that of a pair of one's own, for the commands; by default it is what its pages name.
    """
    book, (ours, runs) = book or published(), read_results(pair)
    given = pair_argument(pair, file)
    rows = []
    for claim in book.claims:
        own, theirs = _needed(claim, pair, ours), _needed(claim, pair, book.numbers)
        said, scale = _decide(claim, own), str(runs.get(claim.chapter, {}).get("scale", ""))
        page, command = page_of(pair, claim.chapter, claim.heading), ""
        if said == "not run":
            page, command = "", command_for(given, claim.chapter) if scale in ("", "smoke") else ""
        missing = tuple(id.replace("{pair}", pair) for name, id in claim.needs.items() if name not in own and scale)
        on_theirs = _decide(claim, theirs).replace("not run", "")
        about = (claim.id, claim.text, claim.source, claim.chapter)
        where = (page, command, missing, scale)
        rows.append(Verdict(*about, said, own, theirs, on_theirs, _turns(claim, own), *where, claim.timed))
    return rows


def figures_status(pair: str) -> list[FigureStatus]:
    """Say which tables and figures have numbers for the pair, in the order of `published.yml`."""
    ids, given = tuple(read_results(pair).numbers), pair_argument(pair)
    rows = []
    for figure in published().figures:
        done = any(id.startswith(figure.prefix.replace("{pair}", pair)) for id in ids)
        status = "schematic" if figure.schematic else "done" if done else "not run"
        page = page_of(pair, figure.chapter, figure.heading) if status == "done" else ""
        command = command_for(given, figure.chapter) if status == "not run" else ""
        rows.append(FigureStatus(figure.id, figure.title, figure.section, figure.chapter, status, page, command))
    return rows


def with_interval(values: Mapping[str, object], name: str) -> str:
    """Write `value [low, high]`, from a number and its `.low` and `.high`, in digits that are worth printing."""
    middle, low, high = (_printed(values, name, suffix) for suffix in ("", ".low", ".high"))
    return f"{middle} [{low}, {high}]".strip() if low or high else middle


def named(values: Mapping[str, float]) -> list[str]:
    """Write `name = value [low, high]` for each name of a verdict's numbers."""
    return [f"{name} = {with_interval(values, name)}" for name in dict.fromkeys(id.split(".")[0] for id in values)]


def said_of_turns(verdict: Verdict) -> list[str]:
    """Say what else the verdict could be inside the intervals, such as "partly if b were 2.31", a line for each."""
    ends: dict[str, list[str]] = {}
    for end, other in verdict.turns.items():
        name, _, side = end.rpartition(".")
        ends.setdefault(other, []).append(f"{name} were {_printed(verdict.ours, name, '.' + side)}")
    return [f"{other} if {' or '.join(found)}" for other, found in ends.items()]


def _printed(values: Mapping[str, object], name: str, suffix: str) -> str:
    number = values.get(name + suffix)
    if not isinstance(number, int | float):
        return "" if number is None else str(number)
    if name.endswith("increase"):
        return f"{round(number, 3) + 0.0:+.1%}"  # + 0.0, since -0.0 would print its sign
    return f"{round(number, _digits(values.get(f'{name}.low'), values.get(f'{name}.high'))) + 0.0:.4g}"


def _digits(low: object, high: object) -> int:
    """Return how many decimals are worth printing: two digits of the interval's width, if there is one."""
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return 15
    if not math.isfinite(high - low) or low >= high:
        return 15
    return 1 - math.floor(math.log10(high - low))


Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same language, read nine times faster


class _UniqueKeys(Loader):
    """A YAML loader to which two equal keys are an error; PyYAML keeps the last of them without a word."""

    def construct_mapping(self, node, deep=False):
        keys = Counter(self.construct_object(key, deep=True) for key, _ in node.value)
        if twice := {key for key, times in keys.items() if times > 1}:
            raise ValueError(f"line {node.start_mark.line + 1} and after: given twice: {', '.join(sorted(twice))}")
        return super().construct_mapping(node, deep)


def _entries(kind: type, entries: Iterable[Mapping], path: Path) -> tuple:
    """Build one `kind` for each entry, whose keys must be its fields and whose ids must differ."""
    known = {f.name: f.default is MISSING for f in fields(kind)}
    built = {}
    for entry in entries:
        where = f"{path}: {kind.__name__.lower()} '{entry.get('id', '?')}'"
        if unknown := sorted(set(entry) - set(known)):
            raise ValueError(f"{where} has unknown keys {', '.join(unknown)}: expected {', '.join(known)}")
        if missing := [name for name, required in known.items() if required and name not in entry]:
            raise ValueError(f"{where} lacks {', '.join(missing)}")
        if entry["id"] in built:
            raise ValueError(f"{where} is given twice")
        built[entry["id"]] = kind(**entry)
    return tuple(built.values())


def _needed(claim: Claim, pair: str, values: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, id in claim.needs.items():
        for suffix in ("", ".low", ".high"):
            if (key := id.replace("{pair}", pair) + suffix) in values:
                if isinstance(values[key], str):
                    raise ValueError(f"claim '{claim.id}' needs '{key}', which is {values[key]!r}: expected a number")
                found[name + suffix] = values[key]
    return found


def _decide(claim: Claim, values: Mapping[str, float]) -> str:
    if any(name not in values for name in claim.needs):
        return "not run"
    for verdict, predicate in (("holds", claim.holds), ("partly", claim.partly)):
        try:
            if predicate and _compiled(predicate, claim.needs)(values):
                return verdict
        except ArithmeticError as error:
            raise ValueError(f"claim '{claim.id}': {predicate!r} with {dict(values)}: {error}") from None
    return "does not hold"


def _turns(claim: Claim, values: Mapping[str, float]) -> dict[str, str]:
    """Return the verdict with one number at one end of its interval, wherever that differs from that on the estimates.

    One at a time, since numbers of one run err together: all at their worst ends at once would be too harsh.
    """
    said, turns = _decide(claim, values), {}
    for name in claim.needs if said != "not run" else ():
        for end in (".low", ".high"):
            try:
                other = _decide(claim, {**values, name: values.get(name + end, values[name])})
            except ValueError:  # a division by zero there
                other = "undefined"
            if other != said:
                turns[name + end] = other
    return turns


def _compiled(text: str, names: Iterable[str]) -> Callable[[Mapping[str, float]], bool]:
    """Turn a predicate into a function of the values of `names`. ValueError or SyntaxError if it is none."""
    root = ast.parse(text, mode="eval").body
    decide: Any = _compile(root, names)
    if not isinstance(root, ast.Compare | ast.BoolOp) and type(getattr(root, "op", None)) is not ast.Not:
        raise ValueError("expected a comparison, or several joined by and, or, not")
    return decide


def _compile(node: ast.expr, names: Iterable[str]) -> Callable[[Mapping[str, float]], float | bool]:
    """Turn a parsed predicate into a function of the values of `names`; whatever else it holds is a ValueError."""
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return lambda values: value
        case ast.Name(id=name) if name in names:
            return lambda values: values[name]
        case ast.Name(id=name):
            raise ValueError(f"{name} is not among its needs: {', '.join(names)}")
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _OPERATORS for op in ops):
            sides = [_compile(side, names) for side in (left, *others)]
            steps = [(_OPERATORS[type(op)], x, y) for op, x, y in zip(ops, sides, sides[1:], strict=False)]
            return lambda values: all(operation(x(values), y(values)) for operation, x, y in steps)
        case ast.BoolOp(op=op, values=parts):
            decide, sides = all if isinstance(op, ast.And) else any, [_compile(part, names) for part in parts]
            return lambda values: decide(side(values) for side in sides)
        case ast.UnaryOp(op=op, operand=part) if type(op) in _OPERATORS:
            operation, parts = _OPERATORS[type(op)], [part]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            operation, parts = _OPERATORS[type(op)], [left, right]
        case ast.Call(func=ast.Name(id="abs"), args=[_] as parts, keywords=[]):
            operation = abs
        case ast.Call(func=ast.Name(id="max" | "min" as name), args=[_, _, *_] as parts, keywords=[]):
            operation = max if name == "max" else min
        case _:
            raise ValueError(f"'{ast.unparse(node)}' is not arithmetic, a comparison, and, or, not, abs, min or max")
    operands = [_compile(part, names) for part in parts]
    return lambda values: operation(*(operand(values) for operand in operands))
