"""The findings that a page opens with: sentences with our numbers, the papers', and verdicts (no section of its own).

`book/findings.yml` lists the findings of each chapter, and names those of the front page. A finding names its claim of
`published.yml` and the numbers that its sentence needs; nothing is decided here. A chapter's last cell glues its
findings, when all its numbers are written, and the page shows them at its top. The page of the embedded pair shows the
recorded pairs of real models first. The page of any other pair shows its own numbers and the papers'.

Offers `Finding`; `listed`, which reads the file into `Findings`; `chapter_findings` and `front_findings`, in HTML; and
`pairs_recorded`.
"""

import functools
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml
from docutils.nodes import make_id
from IPython.display import HTML

from ..utils.files import project_root
from ..utils.yaml_files import build, check_entries, mapping, parse_yaml
from .chapters import HOME_PAIR, command_for, one_line, page_of, recorded_pages
from .claims import Claim, Published, Verdict, published, verdicts
from .digits import with_interval
from .markup import badge, code, link
from .results import pairs_with_results, read_results
from .tables import title_of

PLACE = re.compile(r"\{(%?)\}")


@dataclass(frozen=True)
class Finding:
    """One finding: the id of its claim, and a sentence with a place for each of its numbers.

    `numbers` are ids of results, in which `{pair}` stands for the name of the pair. A number takes the place `{}` in
    `says` as it is, and the place `{%}` in percent.
    """

    claim: str
    says: str
    numbers: tuple[str, ...]

    def __post_init__(self):
        places = len(PLACE.findall(self.says))
        if places != len(self.numbers) or re.search("[{}]", PLACE.sub("", self.says)):
            expected = f"expected one {{}} or {{%}} for each of {len(self.numbers)} numbers, and no other brace"
            raise ValueError(f"says {self.says!r}: {expected}")
        if wrong := [id for id in self.numbers if "{pair}" not in id]:
            raise ValueError(f"numbers: {wrong[0]!r}: expected an id that contains {{pair}}")


class Findings(NamedTuple):
    """All of `book/findings.yml`: the findings of the front page, and those of each chapter, in the file's order."""

    front: tuple[Finding, ...]
    chapters: Mapping[str, tuple[Finding, ...]]


def listed(*, book: Published | None = None) -> Findings:
    """Read `book/findings.yml` and check it against the claims of `book` (default: `published()`).

    ValueError says in one line which entry is wrong and how.
    """
    path, claims = project_root() / "book" / "findings.yml", (book or published()).claims
    known = frozenset((claim.id, claim.chapter) for claim in claims)
    return _parsed(path, path.read_text(encoding="utf-8"), known)


@functools.lru_cache(maxsize=4)
def _parsed(path: Path, text: str, known: frozenset[tuple[str, str]]) -> Findings:
    try:
        document = parse_yaml(text)
        check_entries(document, "", ("front", "chapters"), ("front", "chapters"))
        chapters = {
            chapter: tuple(build(Finding, one, f"{chapter}.{i}") for i, one in enumerate(_list(found, chapter)))
            for chapter, found in mapping(document["chapters"], "chapters").items()
        }
        _check(chapters, known)
        by_claim = {one.claim: one for found in chapters.values() for one in found}
        front = _list(document["front"], "front")
        if unknown := [claim for claim in front if claim not in by_claim]:
            raise ValueError(f"front: no finding of a chapter has the claim {unknown[0]!r}")
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {one_line(error)}") from None
    return Findings(tuple(by_claim[claim] for claim in front), chapters)


def _check(chapters: Mapping[str, Sequence[Finding]], known: frozenset[tuple[str, str]]) -> None:
    """Raise ValueError for a chapter without claims, and for a claim that is not of its chapter or stands twice."""
    of_claim = dict(known)
    for chapter, found in chapters.items():
        if chapter not in of_claim.values():
            raise ValueError(f"{chapter}: expected one of {', '.join(sorted(set(of_claim.values())))}")
        for place, one in enumerate(found):
            if one.claim not in of_claim:
                raise ValueError(f"{chapter}.{place}: there is no claim {one.claim!r}")
            if of_claim[one.claim] != chapter:
                raise ValueError(f"{chapter}.{place}: the claim {one.claim!r} is of the chapter {of_claim[one.claim]}")
            if one.claim in [other.claim for other in found[:place]]:
                raise ValueError(f"{chapter}.{place}: the claim {one.claim!r} has a finding already")


def _list(value: object, name: str) -> list:
    if not isinstance(value, list):
        raise ValueError(f"{name}: expected a list, got {value!r}")
    return value


def chapter_findings(chapter: str, pair: str) -> HTML:
    """List the findings of a chapter, for its page of `pair`; KeyError for a chapter without any."""
    names = [*pairs_recorded(), pair] if pair == HOME_PAIR else [pair]
    return _shown(listed().chapters[chapter], list(dict.fromkeys(names)), here=pair)


def front_findings(pair: str = HOME_PAIR) -> HTML:
    """List the findings of the front page, with the numbers of the recorded pairs, of `pair` and of the papers."""
    return _shown(listed().front, list(dict.fromkeys((*pairs_recorded(), pair))))


def pairs_recorded() -> list[str]:
    """Name the pairs that are recorded and whose numbers count."""
    recorded = {page.parent.name for page in recorded_pages(project_root())}
    return [name for name in pairs_with_results() if name in recorded]


def _shown(findings: Sequence[Finding], names: Sequence[str], here: str = "") -> HTML:
    """List findings with the numbers of the pairs `names`. Links to sections of the pair `here` stay on its page."""
    book = published()
    claims = {claim.id: claim for claim in book.claims}
    judged = {name: {one.id: one for one in verdicts(name, book=book)} for name in dict.fromkeys((*names, *book.pairs))}
    items = []
    for one in findings:
        of = {name: found[one.claim] for name, found in judged.items()}
        items.append(f"<li>{_item(one, claims[one.claim], of, names, here)}</li>")
    return HTML(f'<ol class="findings">{"".join(items)}</ol>')


def _item(finding: Finding, claim: Claim, of: Mapping[str, Verdict], names: Sequence[str], here: str) -> str:
    """Write one finding: a sentence on the first pair that has its numbers, what the others say, and the verdicts."""
    known = {name: values for name in names if (values := _values(finding, read_results(name).numbers, name))}
    papers = {name: values for name in of if (values := _values(finding, published().numbers, name))}
    run = f"{badge('not run')} {code(command_for(names[-1], claim.chapter))}"
    text, where = html.escape(claim.text), {name: html.escape(title_of(name) or name) for name in names}
    if not known and not papers:
        return f"{text} {run}"
    first, *others = known or papers
    section = f"#{make_id(claim.heading)}" if claim.heading else ""
    links = {name: f"{name}, published" for name in papers} | {
        name: link(page_of(name, claim.chapter, claim.heading), title_of(name) or name, here=section * (name == here))
        for name in known
    }
    told = iter((known or papers)[first])
    says = PLACE.sub(lambda _: f"<b>{next(told)}</b>", html.escape(finding.says))
    beside = [f"{links[name]}: {_joined(known[name])}." for name in others if name in known]
    beside += [f"{where[name]}: not run." for name in names if known and name not in known]
    if theirs := "; ".join(f"{name} {_joined(papers[name])}" for name in papers if known or name != first):
        beside.append(f"Published: {theirs}.")
    decided = [badge(of[name].verdict, name) for name in known if of[name].verdict != "not run"]
    decided += [badge(v.published_verdict, name, published=True) for name, v in of.items() if v.published_verdict]
    said = " ".join([*decided, *([] if known else [run])]) or "no run has all the numbers that decide it."
    small = (f"<small>{line}</small>" for line in (" ".join(beside), f"The claim: {text} {said}") if line)
    return f"{says} ({links[first]}).{''.join(small)}"


def _joined(values: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(values[:-1]), values[-1]]))


def _values(finding: Finding, numbers: Mapping[str, object], pair: str) -> list[str]:
    """Write the finding's numbers with their intervals, or none if one of them is missing."""
    ids = [id.replace("{pair}", pair) for id in finding.numbers]
    units = PLACE.findall(finding.says)
    values = [_percent(numbers, id) if unit else with_interval(numbers, id) for unit, id in zip(units, ids)]
    return values if all(values) else []


def _percent(numbers: Mapping[str, object], id: str) -> str:
    """Write a share in percent, as `value [low, high]`; "" if there is none."""
    found = {end: numbers[id + end] for end in ("", ".low", ".high") if id + end in numbers}
    scaled = {id + end: 100 * value for end, value in found.items() if isinstance(value, int | float)}
    return re.sub(r"[-+.\de]*\d", r"\g<0>%", with_interval(scaled, id))
