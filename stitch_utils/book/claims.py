"""Decide the papers' claims, from our numbers and from their own (no section of its own).

`book/published.yml` holds the papers' numbers under ids like `table1.pythia.a_to_b`, and their claims, each with the
ids it needs and a predicate over them such as `a_to_b_to_a < 1.01 * a`. The same predicate is asked of our numbers and
of the papers' own, which shows a threshold that the papers themselves would miss. If a number is missing, the claim
counts as not run.

Where a number has a 95% interval, the predicates are asked of its estimate, and again with this one number at either
end and all others where they are. A verdict is what all of these answers have in common: a claim holds if all say so,
is partly true if each says that it holds or that it is partly true, does not hold if none does, and is inconclusive
otherwise. One number at a time is right where each has an interval of its own; numbers that are measured on the same
documents err together, so a claim that compares them needs their difference or ratio, with the interval of that. A
claim that asks something of the run, such as an SAE that explains most of the variance, is not testable on others.

`book/unclaimed.yml` holds what else the main paper says of its own results, section by section: for each statement the
claims and numbers that cover it, or why there is no claim.

Offers `published`, which reads the first file into a `Published` of `Claim`s and `Figure`s; `unclaimed`, which reads
the second into an `Unclaimed` of `Statement`s; `verdicts`, which compares claims with our results as `Verdict`s; and,
to print these, `VERDICTS`, `named` and `said_of_turns`.
"""

import functools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..utils.files import project_root
from ..utils.yaml_files import mapping, parse_yaml
from .chapters import command_for, page_of, pair_file
from .digits import parts, with_interval
from .predicates import FUNCTIONS, compiled, meets
from .results import read_results

VERDICTS = ("holds", "partly", "inconclusive", "does not hold", "not testable", "not run")
_BOUND = r"[<>]\d+(?:\.\d+)?%?"
_SECTION = r"(?:\d|[A-Z])(?:\.\d)?\b"


@dataclass(frozen=True)
class Claim:
    """One sentence that a paper, or this package, asserts, with the predicate that decides it.

    `text` is the claim in our words, `source` the section, table or figure that makes it. `needs` maps short names to
    the result ids that `chapter` writes under `heading` (empty: anywhere), in which `{pair}` stands for the name of the
    pair. `holds` is a predicate over the short names, and `partly` a weaker one, asked when `holds` is false. Where the
    estimates miss `testable`, the run cannot test the claim. Numbers that are `timed` differ from run to run: pages
    show the verdict on them and not the numbers.
    """

    id: str
    text: str
    source: str
    chapter: str
    needs: Mapping[str, str]
    holds: str
    partly: str = ""
    testable: str = ""
    heading: str = ""
    timed: bool = False

    def __post_init__(self):
        for name, id in self.needs.items():
            if not name.isidentifier() or name in FUNCTIONS:
                raise ValueError(f"claim '{self.id}': {name!r} in needs is not a usable name")
            if "{pair}" not in id:
                raise ValueError(f"claim '{self.id}': {name} needs '{id}', expected an id that contains {{pair}}")
            if id.endswith((".low", ".high")):
                expected = "expected the number itself, at both ends of whose interval predicates are asked"
                raise ValueError(f"claim '{self.id}': {name} needs '{id}': {expected}")
        for predicate in (self.holds, self.partly or self.holds, self.testable or self.holds):
            try:
                compiled(predicate, self.needs)
            except (SyntaxError, ValueError) as error:
                raise ValueError(f"claim '{self.id}': predicate {predicate!r}: {error}") from None

    @property
    def sections(self) -> set[str]:
        """What `source` names of the main paper, such as "Abstract" and "Section 3.1"; nothing if the claim is ours."""
        if self.source.startswith("this package"):
            return set()
        lists = re.findall(rf"Sections? ((?:{_SECTION}(?:, | and )?)+)", self.source)
        found = {f"Section {section}" for section in re.findall(_SECTION, " ".join(lists))}
        return found | set(re.findall("Abstract", self.source))


@dataclass(frozen=True)
class Figure:
    """One table or figure of a paper: what it shows, the paper's section, and the chapter that recomputes it.

    The ids of its numbers begin with `prefix`, which may contain `{pair}` and is empty for a drawing. `heading` is that
    of the chapter's section; empty for the page as a whole. `of` names the pairs that the paper shows it for, where
    another table or figure shows the others; empty if it stands for any pair.
    """

    id: str
    title: str
    section: str
    chapter: str
    prefix: str
    heading: str = ""
    of: Sequence[str] = ()


@dataclass(frozen=True)
class Statement:
    """Something that the main paper says of its own results and that is no claim of its own here.

    `where` is "Abstract" or such as "Section 3.1, Fig. 2", and `says` is in our words. Either `instead` gives the ids
    of the claims and published numbers that cover it, or `why` is one of the kinds of `Unclaimed`, and `because` the
    reason.
    """

    where: str
    says: str
    instead: list[str] = field(default_factory=list)
    why: str = ""
    because: str = ""

    @property
    def section(self) -> str:
        """The section, as `Claim.sections` and `Unclaimed.sections` write it."""
        return self.where.partition(",")[0]


class Published(NamedTuple):
    """All of `book/published.yml`, in its order; numbers whose ids end in `.low` and `.high` bound a 95% interval."""

    numbers: Mapping[str, float]
    claims: tuple[Claim, ...]
    figures: tuple[Figure, ...]
    bounds: Mapping[str, str] = {}
    """What the papers print as a bound alone, such as "<1%", by id. Tables show it, and claims cannot use it."""

    @property
    def pairs(self) -> tuple[str, ...]:
        """Pairs that have published numbers, in the file's order."""
        return tuple(dict.fromkeys(id.split(".")[1] for id in self.numbers))


class Unclaimed(NamedTuple):
    """All of `book/unclaimed.yml`: titles by section, what the kinds of reasons mean, and statements in its order."""

    sections: Mapping[str, str]
    kinds: Mapping[str, str]
    statements: tuple[Statement, ...]


class Verdict(NamedTuple):
    """What one pair's numbers say about a claim.

    `ours` and `published` are keyed by the claim's short names, with `.low` and `.high` where there is an interval;
    `published_verdict` is "" unless all that the claim needs was published. `estimates` is what our estimates alone
    say, and `turns` which end of which of our intervals says something else, and what. `page` is the section that
    computed our numbers, `command` what would compute them; one of the two is "". Where a run left some of them out,
    `missing` names their ids and `scale` its scale, and there is a command only if that was smoke. `recorded` is the
    date of the run if our numbers come from its record, and "" if they were measured in this checkout.
    """

    id: str
    text: str
    source: str
    chapter: str
    verdict: str
    ours: dict[str, float]
    published: dict[str, float]
    published_verdict: str
    estimates: str
    turns: dict[str, str]
    page: str
    command: str
    missing: tuple[str, ...]
    scale: str
    timed: bool
    recorded: str


def published() -> Published:
    """Read and check `book/published.yml`, once a process. ValueError says which entry is wrong and how."""
    path = project_root() / "book" / "published.yml"
    return _parsed(path, path.read_text(encoding="utf-8"))


@functools.lru_cache(maxsize=4)
def _parsed(path: Path, text: str) -> Published:
    document = _parts(path, text, "numbers", "figures", "claims")
    values, bounds = {}, {}
    for id, value in document["numbers"].items():
        if isinstance(value, str) and re.fullmatch(_BOUND, value) and id.count(".") >= 2:
            bounds[id] = value
            continue
        triple = isinstance(value, list) and len(value) == 3
        for suffix, number in zip(("", ".low", ".high"), value if triple else [value], strict=False):
            if type(number) not in (int, float) or id.count(".") < 2:
                form = "<table>.<pair>.<quantity>: a number, [number, low, high] or a bound such as <1%"
                raise ValueError(f"{path}: '{id}: {value}': expected {form}")
            if id + suffix in values:
                raise ValueError(f"{path}: number '{id}{suffix}' is given twice")
            values[id + suffix] = number
    claims = _entries(Claim, document["claims"], path)
    return Published(values, claims, _entries(Figure, document["figures"], path), bounds)


def unclaimed(*, book: Published | None = None) -> Unclaimed:
    """Read `book/unclaimed.yml` and check it against the claims and numbers of `book` (default: `published()`).

    ValueError says in one line which entry is wrong and how.
    """
    path, book = project_root() / "book" / "unclaimed.yml", book or published()
    document = _parts(path, path.read_text(encoding="utf-8"), "sections", "kinds", "statements")
    statements = _entries(Statement, document["statements"], path, keys=("where", "says"))
    sections, kinds = (mapping(document[part], f"{path}: {part}") for part in ("sections", "kinds"))
    found, order = Unclaimed(sections, kinds, statements), list(sections)
    covering = {claim.id for claim in book.claims} | set(book.numbers)
    reached = 0
    for one in statements:
        if wrong := _wrong(one, found, covering):
            raise ValueError(f"{path}: statement '{one.where}: {one.says}': {wrong}")
        if order.index(one.section) < reached:
            raise ValueError(f"{path}: statement '{one.where}: {one.says}' stands after those of a later section")
        reached = order.index(one.section)
    return found


def _wrong(one: Statement, book: Unclaimed, covering: Collection[str]) -> str:
    """Say what is wrong with a statement, if anything."""
    for name in ("where", "says", "why", "because"):
        if not isinstance(text := getattr(one, name), str):
            return f"{name}: expected a text, got {text!r}"
    if one.section not in book.sections:
        return f"where: expected one of {', '.join(book.sections)}"
    if not isinstance(one.instead, list) or bool(one.instead) == bool(one.why):
        return "expected either instead, a list of ids, or why"
    if unknown := [id for id in one.instead if id not in covering]:
        return f"instead: no claim and no published number is called {unknown[0]!r}"
    if one.why and one.why not in book.kinds:
        return f"why: expected one of {', '.join(book.kinds)}, got {one.why!r}"
    return "" if bool(one.because) == bool(one.why) else "expected because, in words, together with why"


def verdicts(pair: str, *, book: Published | None = None, file: str = "") -> list[Verdict]:
    """Decide each claim of `book` (default: `published()`), from our results and the papers' on the pair.

    `file` is the file of a user's own pair, for the commands; by default it is the one that the pair's pages name.
    """
    book, (ours, runs) = book or published(), read_results(pair)
    file = file or pair_file(pair)
    rows = []
    for claim in book.claims:
        own, theirs = _needed(claim, pair, ours), _needed(claim, pair, book.numbers)
        said, estimates, turns = _decide(claim, own)
        scale, recorded = (str(runs.get(claim.chapter, {}).get(name, "")) for name in ("scale", "recorded"))
        page = "" if said == "not run" else page_of(pair, claim.chapter, claim.heading)
        again = said == "not run" and scale in ("", "smoke")
        command = command_for(pair, claim.chapter, file=file) if again else ""
        missing = tuple(id.replace("{pair}", pair) for name, id in claim.needs.items() if name not in own and scale)
        decided = (said, own, theirs, _decide(claim, theirs)[0].replace("not run", ""), estimates, turns)
        about = (claim.id, claim.text, claim.source, claim.chapter)
        rows.append(Verdict(*about, *decided, page, command, missing, scale, claim.timed, recorded))
    return rows


def named(values: Mapping[str, float]) -> list[str]:
    """Write `name = value [low, high]` for each name of a verdict's numbers."""
    return [f"{name} = {with_interval(values, name)}" for name in dict.fromkeys(id.split(".")[0] for id in values)]


def said_of_turns(verdict: Verdict) -> list[str]:
    """Say where in the intervals the answer turns, such as "partly if b were 2.31", a line for each other answer.

    Where the verdict is not that of the estimates, theirs comes first.
    """
    ends: dict[str, list[str]] = {}
    for end, other in verdict.turns.items():
        name, _, side = end.rpartition(".")
        ends.setdefault(other, []).append(f"{name} were {parts(verdict.ours, name)['.' + side]}")
    first = [f"{verdict.estimates} by the estimates"] * (verdict.estimates != verdict.verdict)
    return first + [f"{other} if {' or '.join(found)}" for other, found in ends.items()]


def _parts(path: Path, text: str, *names: str) -> dict[str, Any]:
    """Parse a file that has these parts and no others."""
    document = mapping(parse_yaml(text), str(path))
    if set(document) != set(names):
        expected = " and ".join([", ".join(names[:-1]), names[-1]])
        raise ValueError(f"{path} has the parts {sorted(document)}: expected {expected}")
    return document


def _entries(kind: type, entries: Iterable[Mapping], path: Path, keys: Sequence[str] = ("id",)) -> tuple:
    """Build one `kind` for each entry, whose keys must be its fields and which `keys` together must tell apart."""
    built = {}
    for entry in entries:
        what = f"{path}: {kind.__name__.lower()}"
        name = ": ".join(str(mapping(entry, what).get(key, "?")) for key in keys)
        if name in built:
            raise ValueError(f"{what} '{name}' is given twice")
        try:
            built[name] = kind(**entry)
        except TypeError as error:
            raise ValueError(f"{what} '{name}': {error}") from error
    return tuple(built.values())


def _needed(claim: Claim, pair: str, values: Mapping[str, Any]) -> dict[str, float]:
    needed = {name: id.replace("{pair}", pair) for name, id in claim.needs.items()}
    ids = {name + end: id + end for name, id in needed.items() for end in ("", ".low", ".high") if id + end in values}
    for id in ids.values():
        if isinstance(values[id], str):
            raise ValueError(f"claim '{claim.id}' needs '{id}', which is {values[id]!r}: expected a number")
    return {name: values[id] for name, id in ids.items()}


def _decide(claim: Claim, values: Mapping[str, float]) -> tuple[str, str, dict[str, str]]:
    """Return the verdict, what the estimates alone say, and {end: answer} for the ends of intervals that differ."""
    said = _answer(claim, values)
    if said in ("not run", "not testable"):
        return said, said, {}
    turns = {}
    for end in (id for id in values if "." in id):
        try:
            other = _answer(claim, {**values, end.rpartition(".")[0]: values[end]}, testable=True)
        except ValueError:  # a division by zero there
            other = "undefined"
        if other != said:
            turns[end] = other
    answers = {said, *turns.values()}
    if len(answers) == 1:
        return said, said, turns
    return ("partly" if answers == {"holds", "partly"} else "inconclusive"), said, turns


def _answer(claim: Claim, values: Mapping[str, float], *, testable: bool = False) -> str:
    """Say what these values, without intervals, make of the claim."""
    if any(name not in values for name in claim.needs):
        return "not run"
    if claim.testable and not testable and not _meets(claim, claim.testable, values):
        return "not testable"
    for answer, predicate in (("holds", claim.holds), ("partly", claim.partly)):
        if predicate and _meets(claim, predicate, values):
            return answer
    return "does not hold"


def _meets(claim: Claim, predicate: str, values: Mapping[str, float]) -> bool:
    try:
        return meets(predicate, {name: values[name] for name in claim.needs})
    except ArithmeticError as error:
        raise ValueError(f"claim '{claim.id}': {predicate!r} with {dict(values)}: {error}") from None
