"""What the front page shows: the headline of a stitch, and five findings (Table 1; sections 2 to 4; LRT, Fig. 2).

The numbers of a recorded pair of real models come first, then those of the embedded pair, then the papers'. Nothing is
decided here: a finding names its claim of `published.yml`, and shows the verdict. What was not run says so.

Offers, in HTML, `headline` and `findings`; and the constant `FINDINGS`, of `Finding`.
"""

import html
from collections.abc import Mapping
from typing import NamedTuple

from IPython.display import HTML

from ..utils.files import project_root
from .chapters import command_for, page_of, recorded_pages
from .claims import Claim, Verdict, published, verdicts
from .digits import with_interval
from .figures.front import Bar, relative_bars
from .markup import link
from .results import pairs_with_results, read_results
from .tables import title_of


class Finding(NamedTuple):
    """One finding: the id of its claim, and a sentence with a place for each of `numbers`, ids with `{pair}`."""

    claim: str
    says: str
    numbers: tuple[str, ...]


FINDINGS = (
    Finding(
        "stitch-near-ground-truth",
        "Going on from the other model's stream changes the cross-entropy by {} in A → B and by {} in B → A",
        ("table1.{pair}.a_to_b.increase", "table1.{pair}.b_to_a.increase"),
    ),
    Finding(
        "sae-transfer-between-random-and-trained",
        "A's SAE, carried to B and not trained, leaves {} of B's variance unexplained; of A's it leaves {}",
        ("table2.{pair}.fuv.transferred", "table2.{pair}.fuv.original"),
    ),
    Finding(
        "dense-probes-transfer",
        "A probe of A, carried to B, is right about a share of {} of the texts, and B's own probe about {}",
        ("figure3a.{pair}.dense.transferred", "figure3a.{pair}.dense.native"),
    ),
    Finding(
        "steering-transfers",
        "Carried steering vectors raise the share of responses in the target language by {} in A and by {} in B",
        ("steering.{pair}.a.gain", "steering.{pair}.b.gain"),
    ),
    Finding(
        "lrt-decoders-share-basis",
        "Regressing the decoder of A's SAE on that of B's leaves a norm of {}, and unrelated decoders would leave {}",
        ("lrt.{pair}.decoder_residual", "lrt.{pair}.decoder_residual.chance"),
    ),
)

# What a stitch has to beat: its name and its id after the pair.
NULLS = {
    "the mean of the stream": "{host}_without_layer",
    "principal components alone": "{condition}.components",
    "a fit on shuffled tokens": "{condition}.shuffled",
}


def headline(pair: str = "tiny") -> HTML:
    """Draw what the other model's stream costs, both ways, beside the strongest null, the bigram model and the papers.

    The pair is the first of the recorded ones that ran the chapter on stitching, else `pair`.
    """
    name = next(iter(_ran("table1.{pair}.a_to_b.increase", pair)), "")
    if not name:
        return HTML(f"<p>Not run: <code>{html.escape(command_for(pair, 'stitching'))}</code>.</p>")
    numbers = read_results(name).numbers
    own = {side: float(numbers[f"table1.{name}.{side}"]) for side in "ab"}
    panels, costs, without = {}, [], []
    for condition, host in (("a_to_b", "b"), ("b_to_a", "a")):
        null, loss = _strongest_null(numbers, name, condition, host)
        bars = [Bar(f"{host.upper()} itself", 1.0, f"{own[host]:.2f} nats", f"of-{host}")]
        bars += [_stitched(numbers, name, condition, host), *_of_papers(condition, host)]
        if (bigram := _bigram(numbers, name, condition, host)) is None:
            without.append(host.upper())
        else:
            bars.append(_beside("bigram model", bigram, own[host], "yardstick"))
        bars.append(_beside(null, loss, own[host]))
        panels[f"{_arrow(condition)}: {host.upper()} goes on from the other's stream"] = bars
        costs.append((with_interval(numbers, f"table1.{name}.{condition}.increase"), f"{loss / own[host] - 1:+.1%}"))
    up, down = costs
    where = link(page_of(name, "stitching", "What it does to prediction"), "stitching")
    caption = [
        f"<b>Going on from the other model's stream changes the cross-entropy by {up[0]} in B and by {down[0]} in A. "
        f"The strongest null changes it by {up[1]} and {down[1]}.</b>",
        f"{html.escape(title_of(name) or name)}, {numbers[f'table1.{name}.documents']} held-out documents ({where}).",
        "Bars: next-token cross-entropy over the host's own. Brackets and small frames: 95% intervals over documents.",
        "Dashed: the papers' pairs. A null knows no pairing of tokens.",
        *(f"The run has no bigram model of {side}." for side in without),
    ]
    return relative_bars(panels, caption=" ".join(caption))


def findings(pair: str = "tiny") -> HTML:
    """List `FINDINGS`: each with the numbers of the recorded pairs, of `pair` and of the papers, and the verdicts."""
    book = published()
    claims = {claim.id: claim for claim in book.claims}
    names = [*_recorded(), pair]
    judged = {name: {one.id: one for one in verdicts(name, book=book)} for name in names}
    items = [_item(one, claims[one.claim], {name: judged[name][one.claim] for name in names}) for one in FINDINGS]
    return HTML(f'<ol class="findings">{"".join(items)}</ol>')


def _item(finding: Finding, claim: Claim, of: Mapping[str, Verdict]) -> str:
    """Write one finding: a sentence on the first pair that has its numbers, and beneath what the others say."""
    known = {name: values for name in of if (values := _values(finding, read_results(name).numbers, name))}
    first = next(iter(known), "")
    where = {name: title_of(name) or name for name in of}
    links = {name: link(page_of(name, claim.chapter, claim.heading), where[name]) for name in of}
    lines = []
    if first:
        says = html.escape(finding.says).format(*(f"<b>{value}</b>" for value in known[first]))
        lines.append(f"{says} ({links[first]}).")
    for name in of:
        if name not in known:
            command = html.escape(command_for(name, claim.chapter))
            lines.append(f"{html.escape(where[name])}, not run: <code>{command}</code>.")
        elif name != first:
            lines.append(f"{links[name]}: {' and '.join(known[name])}.")
    papers, numbers = published().pairs, published().numbers
    theirs = [f"{name} {' and '.join(values)}" for name in papers if (values := _values(finding, numbers, name))]
    lines.append(f"Published: {'; '.join(theirs)}." if theirs else "The papers print no such number.")
    decided = [
        f"{html.escape(where[name])}: <b>{of[name].verdict}</b>" for name in known if of[name].verdict != "not run"
    ]
    verdict = "; ".join(decided) or "no run has all the numbers that decide it"
    lines.append(f"The claim: {html.escape(claim.text)} {verdict}.")
    sentence, *rest = lines
    return f"<li>{sentence}{''.join(f'<small>{line}</small>' for line in rest)}</li>"


def _values(finding: Finding, numbers: Mapping[str, object], pair: str) -> list[str]:
    """Write the finding's numbers with their intervals, or none if one of them is missing."""
    values = [with_interval(numbers, id.replace("{pair}", pair)) for id in finding.numbers]
    return values if all(values) else []


def _recorded() -> list[str]:
    """Name the pairs that are recorded and whose numbers count."""
    recorded = {page.parent.name for page in recorded_pages(project_root())}
    return [name for name in pairs_with_results() if name in recorded]


def _ran(id: str, pair: str) -> list[str]:
    """Name those of the recorded pairs and `pair` that have the number."""
    return [name for name in (*_recorded(), pair) if id.replace("{pair}", name) in read_results(name).numbers]


def _stitched(numbers: Mapping, pair: str, condition: str, host: str) -> Bar:
    id = f"table1.{pair}.{condition}"
    low, high = (1 + numbers[f"{id}.increase{end}"] for end in (".low", ".high"))
    said = f"{numbers[id]:.2f} nats, {with_interval(numbers, f'{id}.increase')}"
    return Bar("stitched", 1 + numbers[f"{id}.increase"], said, f"of-{host}", (low, high))


def _arrow(condition: str) -> str:
    return condition.replace("_to_", " → ").upper()


def _strongest_null(numbers: Mapping, pair: str, condition: str, host: str) -> tuple[str, float]:
    """Return the null with the lowest loss, of those that the run has: its name and loss."""
    ids = {null: f"table1.{pair}.{id.format(host=host, condition=condition)}" for null, id in NULLS.items()}
    found = {null: float(numbers[id]) for null, id in ids.items() if id in numbers}
    return min(found.items(), key=lambda one: one[1])


def _bigram(numbers: Mapping, pair: str, condition: str, host: str) -> float | None:
    """Return the loss of the bigram model of the host's tokens; A's follows from the stitched loss relative to it."""
    if host == "b":
        return numbers.get(f"table1.{pair}.bigram")
    relative = numbers.get(f"table1.{pair}.{condition}.over_bigram.increase")
    return None if relative is None else numbers[f"table1.{pair}.{condition}"] / (1 + relative)


def _beside(name: str, loss: float, own: float, kind: str = "null") -> Bar:
    return Bar(name, loss / own, f"{loss:.2f} nats, {loss / own - 1:+.1%}", kind)


def _of_papers(condition: str, host: str) -> list[Bar]:
    """Return the published increases: relative to the host's own loss, they compare across texts and tokens."""
    book = published()
    ids = {name: f"table1.{name}.{condition}.increase" for name in book.pairs}
    kind = f"of-{host} published"
    return [
        Bar(f"published, {name}", 1 + book.numbers[id], with_interval(book.numbers, id), kind)
        for name, id in ids.items()
        if id in book.numbers
    ]
