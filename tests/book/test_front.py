"""The front page: its figure, with all numbers, with some, and with none; its schematic."""

import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from stitch_utils.book.front import headline
from stitch_utils.book.results import write_results

ROOT = Path(__file__).resolve().parents[2]
LOSSES = {
    "a": 2.0,
    "b": 1.0,
    "documents": 7,
    "a_to_b": 1.5,
    "a_to_b.increase": 0.5,
    "a_to_b.increase.low": 0.4,
    "a_to_b.increase.high": 0.6,
    "b_to_a": 2.2,
    "b_to_a.increase": 0.1,
    "b_to_a.increase.low": 0.05,
    "b_to_a.increase.high": 0.15,
    "a_without_layer": 6.0,
    "b_without_layer": 5.0,
    "bigram": 3.0,
}


@pytest.fixture
def papers(project):
    """A project with the papers' numbers and claims, and no results."""
    shutil.copy(ROOT / "book" / "published.yml", project / "book" / "published.yml")
    return project


def losses(pair, **others):
    return {f"table1.{pair}.{name}": value for name, value in (LOSSES | others).items()}


def plain(table):
    return re.sub(r"<[^>]*>", "", table.data)


def bars(figure):
    """{(panel, name): (width in percent, what is written)}."""
    panels = re.split('<p class="bars-title">', figure.data)[1:]
    row = r'<span>([^<]*)</span><span class="bar-track".*?width: ([\d.]+)%.*?</span></span><span>([^<]*)</span></div>'
    return {(panel[:5], name): (float(width), said) for panel in panels for name, width, said in re.findall(row, panel)}


def test_the_headline_sets_both_directions_beside_nulls_bigrams_and_papers(papers):
    write_results("tiny", "stitching", losses("tiny"))
    figure = headline("tiny")
    found = bars(figure)
    assert found["A → B", "stitched"] == (30.0, "1.50 nats, +50% [+40%, +60%]")
    assert found["A → B", "the mean of the stream"] == (100.0, "5.00 nats, +400.0%")
    assert found["A → B", "bigram model"] == (60.0, "3.00 nats, +200.0%")
    assert found["B → A", "A itself"] == (20.0, "2.00 nats")
    assert found["B → A", "the mean of the stream"] == (60.0, "6.00 nats, +200.0%")
    assert found["A → B", "published, gpt2"] == (22.2, "+11.0%") and found["B → A", "published, gpt2"][1] == "+9.1%"
    assert ("B → A", "bigram model") not in found and "The run has no bigram model of A." in plain(figure)
    caption = figure.data.partition("<figcaption>")[2]
    assert caption.startswith("<b>Going on from the other model's stream changes the cross-entropy by +50% [+40%")
    assert "The strongest null changes it by +400.0% and +200.0%.</b>" in caption and "7 held-out documents" in caption


def test_the_strongest_null_is_shown_and_the_bigram_model_of_the_small_model(papers):
    more = {"a_to_b.components": 4.0, "a_to_b.shuffled": 4.5, "b_to_a.components": 7.0}
    write_results("tiny", "stitching", losses("tiny", **more, **{"b_to_a.over_bigram.increase": -0.45}))
    found = bars(headline("tiny"))
    assert found["A → B", "principal components alone"][1] == "4.00 nats, +300.0%"
    assert found["B → A", "the mean of the stream"][1] == "6.00 nats, +200.0%"
    assert [name for panel, name in found if panel == "A → B"][-2:] == ["bigram model", "principal components alone"]
    assert found["B → A", "bigram model"][1] == "4.00 nats, +100.0%"


def test_a_recorded_pair_leads_and_what_was_not_run_says_so(papers):
    assert plain(headline("tiny")) == "Not run: .venv/bin/stitch-book run --pair tiny --chapter stitching."
    write_results("tiny", "stitching", losses("tiny"))
    write_results("mine", "stitching", losses("mine", **{"a_to_b.increase": 0.3}))
    (papers / "book" / "recorded" / "mine").mkdir(parents=True)
    (papers / "results" / "mine").rename(papers / "book" / "recorded" / "mine" / "results")
    (papers / "book" / "recorded" / "mine" / "stitching.ipynb").write_text('"## What it does to prediction"')
    assert bars(headline("tiny"))["A → B", "stitched"][1] == "1.50 nats, +30% [+40%, +60%]"


def test_the_schematic_says_what_it_shows_and_has_no_loose_ends():
    svg = ElementTree.parse(ROOT / "book" / "_static" / "schematic.svg").getroot()
    ids = {part.get("id") for part in svg.iter() if part.get("id")}
    assert svg.get("role") == "img" and set(svg.get("aria-labelledby").split()) <= ids
    ends = {part.get("marker-end") for part in svg.iter()} - {None}
    assert ends and {end.removeprefix("url(#").removesuffix(")") for end in ends} <= ids
    style = (ROOT / "book" / "_static" / "book.css").read_text("utf-8")
    classes = {name for part in svg.iter() for name in part.get("class", "").split()}
    assert {name for name in classes if f".{name} " not in style} <= {"s-text"}
