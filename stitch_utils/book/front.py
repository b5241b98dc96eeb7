"""The figure of the front page: what it costs to go on from the other model's stream (Table 1).

The numbers of a recorded pair of real models come first, else those of the embedded pair, beside the papers'.

Offers `headline`, in HTML.
"""

import html
from collections.abc import Mapping

from IPython.display import HTML

from .chapters import command_for, page_of
from .claims import published
from .digits import with_interval
from .figures.front import Bar, relative_bars
from .findings import pairs_recorded
from .markup import link
from .results import read_results
from .tables import title_of

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


def _ran(id: str, pair: str) -> list[str]:
    """Name those of the recorded pairs and `pair` that have the number."""
    return [name for name in (*pairs_recorded(), pair) if id.replace("{pair}", name) in read_results(name).numbers]


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
