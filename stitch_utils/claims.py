"""The papers' claims, decided by our numbers and by their own (no section of its own: every claim passes through here).

`book/published.yml` holds the papers' numbers under ids like `table1.pythia.a_to_b`, and their claims, each with the
ids it needs and a predicate over them such as `a_to_b_to_a < 1.01 * a`. The same predicate is asked of our numbers and
of the papers' own, so that a threshold which the papers themselves would miss shows. Nothing that a predicate needs is
ever filled in: if a number is missing, the claim counts as not run.

Offers `published`, which reads the file into a `Published` of `Claim`s and `Figure`s, and `verdicts` and
`figures_status`, which compare it with our results.
"""

import ast
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import yaml

from .results import project_root, read_results

VERDICTS = ("holds", "partly", "does not hold", "not run")
_OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.USub: operator.neg, ast.Not: operator.not_,
}  # fmt: skip


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

    def __post_init__(self):
        for name, id in self.needs.items():
            if not name.isidentifier() or name in ("abs", "max", "min"):
                raise ValueError(f"claim '{self.id}': {name!r} in needs is not a usable name")
            if "{pair}" not in id:
                raise ValueError(f"claim '{self.id}': {name} needs '{id}', expected an id that contains {{pair}}")
        for predicate in (self.holds, self.partly) if self.partly else (self.holds,):
            try:
                root = ast.parse(predicate, mode="eval").body
                _compile(root, self.needs)
                if not isinstance(root, ast.Compare | ast.BoolOp) and type(getattr(root, "op", None)) is not ast.Not:
                    raise ValueError("expected a comparison, or several joined by and, or, not")
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
    `.low` and `.high` where there is an interval; `published_verdict` is "" unless all that it needs was published."""

    id: str
    text: str
    source: str
    chapter: str
    verdict: str
    ours: dict[str, float]
    published: dict[str, float]
    published_verdict: str


class FigureStatus(NamedTuple):
    """Whether a table or figure has been recomputed; `status` is "done", "not yet" or "schematic"."""

    id: str
    title: str
    section: str
    chapter: str
    status: str


def published() -> Published:
    """`book/published.yml` of the project, checked. ValueError says which entry is wrong and how."""
    path = project_root() / "book" / "published.yml"
    document = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
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


def verdicts(pair: str, *, book: Published | None = None) -> list[Verdict]:
    """One verdict for each claim of `book` (default: `published()`), from our results and the papers' on the pair."""
    book, ours = book or published(), read_results(pair)
    rows = []
    for claim in book.claims:
        own, theirs = _needed(claim, pair, ours), _needed(claim, pair, book.numbers)
        about = (claim.id, claim.text, claim.source, claim.chapter)
        rows.append(Verdict(*about, _decide(claim, own), own, theirs, _decide(claim, theirs).replace("not run", "")))
    return rows


def figures_status(pair: str) -> list[FigureStatus]:
    """Which tables and figures have numbers for the pair, in the order of `published.yml`."""
    ids = tuple(read_results(pair))
    rows = []
    for figure in published().figures:
        done = any(id.startswith(figure.prefix.replace("{pair}", pair)) for id in ids)
        status = "schematic" if figure.schematic else "done" if done else "not yet"
        rows.append(FigureStatus(figure.id, figure.title, figure.section, figure.chapter, status))
    return rows


class _UniqueKeys(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # the same language, read nine times faster
    """PyYAML keeps the last of two equal keys without a word; here that is an error."""

    def construct_mapping(self, node, deep=False):
        keys = Counter(self.construct_object(key, deep=True) for key, _ in node.value)
        if twice := {key for key, times in keys.items() if times > 1}:
            raise ValueError(f"line {node.start_mark.line + 1} and after: given twice: {', '.join(sorted(twice))}")
        return super().construct_mapping(node, deep)


def _entries(kind: type, entries: Iterable[Mapping], path: Path) -> tuple:
    """Builds one `kind` for each entry, whose keys must be its fields and whose ids must differ."""
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


def _compile(node: ast.expr, names: Iterable[str]) -> Callable[[Mapping[str, float]], float | bool]:
    """Turns a parsed predicate into a function of the values of `names`; whatever else it holds is a ValueError."""
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


def _needed(claim: Claim, pair: str, values: Mapping[str, float]) -> dict[str, float]:
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
            if predicate and _compile(ast.parse(predicate, mode="eval").body, claim.needs)(values):
                return verdict
        except ArithmeticError as error:
            raise ValueError(f"claim '{claim.id}': {predicate!r} with {dict(values)}: {error}") from None
    return "does not hold"
