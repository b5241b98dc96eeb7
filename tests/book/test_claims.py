"""Claims: what predicates decide, which files are refused, how our numbers and the papers' are compared."""

import json

import numpy as np
import pytest

from stitch_utils.book import claims
from stitch_utils.book.claims import (
    Claim,
    Published,
    named,
    published,
    said_of_turns,
    verdicts,
)
from stitch_utils.book.cli import main
from stitch_utils.book.results import write_results


def _claim(predicate, names="abc", partly=""):
    needs = {name: f"t.{{pair}}.{name}" for name in names}
    return Claim("c", "text", "source", "chapter", needs, predicate, partly)


def _decided(predicate, *values):
    """What `verdicts` says of values under a predicate."""
    claim = _claim(predicate, names="abc"[: len(values)])
    numbers = {f"t.tiny.{name}": value for name, value in zip("abc", values, strict=False)}
    book = Published(numbers, (claim,), ())
    return verdicts("tiny", book=book)[0].published_verdict == "holds"


@pytest.mark.parametrize(
    ("predicate", "reference"),
    [
        ("a < b", lambda a, b, c: a < b),
        ("a <= b < c", lambda a, b, c: a <= b < c),
        ("a + b * c - 1 > 0", lambda a, b, c: a + b * c - 1 > 0),
        ("-a / 2 <= b ** 2", lambda a, b, c: -a / 2 <= b**2),
        ("max(a, b, c) - min(a, b) >= abs(c)", lambda a, b, c: max(a, b, c) - min(a, b) >= abs(c)),
        ("a == b or not (b > c and a != c)", lambda a, b, c: a == b or not (b > c and a != c)),
        ("(a < b) + (b < c) + (a < c) >= 2", lambda a, b, c: (a < b) + (b < c) + (a < c) >= 2),
        ("not a >= b", lambda a, b, c: not a >= b),
        ("2e-1 < a and b < 1 or c > 1", lambda a, b, c: (a > 0.2 and b < 1) or c > 1),
    ],
)
def test_predicates_agree_with_python(project, predicate, reference):
    grid = (-1.5, 0.0, 1.0, 2.5)
    answers = set()
    for a in grid:
        for b in grid:
            for c in grid:
                answers.add(reference(a, b, c))
                assert _decided(predicate, a, b, c) == reference(a, b, c), (a, b, c)
    assert answers == {True, False}


@pytest.mark.parametrize(
    "predicate",
    [
        "",
        "a <",
        "a",
        "a + b",
        "abs(a)",
        "d > 1",
        "min(a) > 1",
        "abs(a, b) > 1",
        "max(a, b, key=c) > 1",
        "__import__('os') == a",
        "a.real > 1",
        "a[0] > 1",
        "a if b else c",
        "a in b",
        "a is b",
        "'x' == a",
        "True == a",
        "(lambda: a)() > 1",
        "a // b > 1",
        "a % b > 1",
        "[a] == b",
        "(a := b) > 1",
        "min > 1",
        "round(a) > 1",
        "~a > 1",
        "a > 1; b",
        "a > 1j",
    ],
)
def test_other_python_is_not_a_predicate(predicate):
    with pytest.raises(ValueError, match="claim 'c'"):
        _claim(predicate)
    with pytest.raises(ValueError, match="claim 'c'"):
        _claim("a < b", partly=predicate or "a <")


@pytest.mark.parametrize("name", ["min", "a-b", "2a"])
def test_short_names_must_be_usable(name):
    with pytest.raises(ValueError, match="not a usable name"):
        Claim("c", "t", "s", "c", {name: "t.{pair}.a"}, "1 < 2")


def test_needed_ids_must_name_the_pair():
    with pytest.raises(ValueError, match=r"claim 'c': a needs 't\.a'"):
        Claim("c", "t", "s", "c", {"a": "t.a"}, "a > 1")


def test_division_by_zero_names_the_claim(project):
    with pytest.raises(ValueError, match=r"claim 'c': 'a / b > 1' with .*'b': 0"):
        _decided("a / b > 1", 1.0, 0.0)
    assert not _decided("b != 0 and a / b > 1", 1.0, 0.0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("id: ratio", "id: order", "claim 'order' is given twice"),
        ("holds: a < b", "hold: a < b", "claim 'order': .* unexpected keyword argument 'hold'"),
        ("    source: Table 1\n    chapter: first\n", "    chapter: first\n", "claim 'order': .* missing .* 'source'"),
        ("holds: a < b", "holds: a < d", "claim 'order': predicate 'a < d': d is not among its needs: a, b"),
        ("holds: a < b", "holds: a <", "claim 'order': predicate 'a <'"),
        (', prefix: ""', "", "figure 'f2': .* missing .* 'prefix'"),
        ("table1.big.a: 3.0", "table1.big.a: high", "table1.big.a: high"),
        ("table1.big.a: 3.0", "table1.a: 3.0", "table1.a: 3.0"),
        ("table1.big.a: 3.0", "table1.big.a: [1.0, 2.0]", r"table1.big.a: \[1.0, 2.0\]"),
        ("table1.big.a: 3.0", "table1.big.b: 3.0", "given twice: numbers.table1.big.b"),
        ("table1.big.gain.low", "table1.big.b.low", "number 'table1.big.b.low' is given twice"),
        ("figures:", "drawings:", "expected numbers, figures and claims"),
    ],
)
def test_mistakes_in_the_file_are_named(project, old, new, message):
    path = project / "book" / "published.yml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        published()


def test_verdicts_carry_our_numbers_with_their_intervals(project):
    write_results("tiny", "first", {"table1.tiny.a": 2.05, "table1.tiny.b": 2.0, "table1.tiny.b.low": 1.9})
    order, ratio = verdicts("tiny")
    assert order.verdict == "partly" and ratio.verdict == "does not hold"
    assert order.ours == {"a": 2.05, "b": 2.0, "b.low": 1.9}
    assert order.published == {} and order.published_verdict == ""
    assert (order.text, order.source, order.chapter) == ("A is < B", "Table 1", "first")


def test_a_claim_that_lacks_a_number_is_not_run(project):
    write_results("tiny", "first", {"table1.tiny.a": 2.0})
    order = verdicts("tiny")[0]
    assert order.verdict == "not run" and order.ours == {"a": 2.0}


def test_published_numbers_answer_the_same_predicate(project):
    order, ratio = verdicts("big")
    assert (order.verdict, order.published_verdict) == ("not run", "does not hold")
    assert order.published == {"a": 3.0, "b": 2.0, "b.low": 1.9, "b.high": 2.1}
    assert ratio.ours == {}


def test_a_label_where_a_number_is_needed_is_an_error(project):
    write_results("tiny", "first", {"table1.tiny.a": "three", "table1.tiny.b": 1.0})
    with pytest.raises(ValueError, match=r"claim 'order' needs 'table1\.tiny\.a', which is 'three'"):
        verdicts("tiny")


def _turned(project, predicate, partly="", **numbers):
    """What `verdicts` says of the claim that is `predicate` over numbers `a`, `b`, ...: its verdict, and its turns."""
    names = [name for name in numbers if "_" not in name]
    book = Published({}, (_claim(predicate, names, partly),), ())
    write_results("tiny", "chapter", {f"t.tiny.{name.replace('_', '.')}": value for name, value in numbers.items()})
    verdict = verdicts("tiny", book=book)[0]
    return verdict.verdict, verdict.turns


AROUND_1 = {"a_low": 0.8, "a_high": 1.1}


@pytest.mark.parametrize(
    ("partly", "numbers", "verdict", "turns"),
    [
        ("", {"a": 0.9}, "holds", {}),
        ("", {"a": 0.9, "a_low": 0.8, "a_high": 0.99}, "holds", {}),
        ("", {"a": 0.9, **AROUND_1}, "inconclusive", {"a.high": "does not hold"}),
        ("", {"a": 1.05, **AROUND_1}, "inconclusive", {"a.low": "holds"}),
        ("", {"a": 1.2, "a_low": 1.1, "a_high": 1.3}, "does not hold", {}),
        # Partly is true beyond doubt here, whether or not more is.
        ("a < 2", {"a": 0.9, **AROUND_1}, "partly", {"a.high": "partly"}),
        ("a < 2", {"a": 1.05, **AROUND_1}, "partly", {"a.low": "holds"}),
        ("a < 2", {"a": 1.5, "a_low": 1.2, "a_high": 1.7}, "partly", {}),
        ("a < 2", {"a": 1.5, "a_low": 1.2, "a_high": 2.5}, "inconclusive", {"a.high": "does not hold"}),
        (
            "a < 2",
            {"a": 1.5, "a_low": 0.5, "a_high": 2.5},
            "inconclusive",
            {"a.low": "holds", "a.high": "does not hold"},
        ),
        ("a < 2", {"a": 2.5, "a_low": 2.1, "a_high": 2.6}, "does not hold", {}),
    ],
)
def test_a_verdict_is_what_both_ends_of_an_interval_share(project, partly, numbers, verdict, turns):
    assert _turned(project, "a < 1", partly, **numbers) == (verdict, turns)


def test_numbers_go_to_their_ends_one_at_a_time(project):
    """Intervals that overlap, but neither of which holds the other estimate: only both at once would turn it."""
    apart = {"a": 1.0, "a_low": 0.5, "a_high": 1.6, "b": 2.0, "b_low": 1.4, "b_high": 2.5}
    assert _turned(project, "a < b", **apart) == ("holds", {})
    assert _turned(project, "a < b", **{**apart, "a_high": 2.1}) == ("inconclusive", {"a.high": "does not hold"})


@pytest.mark.parametrize(
    ("numbers", "verdict"),
    [
        ({"a": 0.5, "b": 0.8}, "holds"),
        ({"a": 1.5, "b": 0.8}, "does not hold"),
        ({"a": 0.5, "b": 0.79}, "not testable"),
        ({"a": 1.5, "b": 0.79}, "not testable"),
        ({"a": 0.9, **AROUND_1, "b": 0.79}, "not testable"),
        ({"a": 0.5, "b": 0.85, "b_low": 0.7, "b_high": 0.9}, "holds"),  # the estimates alone say what can be tested
        ({"b": 0.5}, "not run"),
    ],
)
def test_a_claim_can_ask_something_of_the_run(project, numbers, verdict):
    claim = Claim("c", "t", "s", "chapter", {n: f"t.{{pair}}.{n}" for n in "ab"}, "a < 1", testable="b >= 0.8")
    write_results("tiny", "chapter", {f"t.tiny.{name.replace('_', '.')}": value for name, value in numbers.items()})
    found = verdicts("tiny", book=Published({}, (claim,), ()))[0]
    assert found.verdict == verdict
    assert verdict != "not testable" or (found.turns == {} and not found.command)


def test_a_condition_on_the_run_is_a_predicate():
    with pytest.raises(ValueError, match="claim 'c': predicate 'd > 1': d is not among its needs: a"):
        Claim("c", "t", "s", "c", {"a": "t.{pair}.a"}, "a > 1", testable="d > 1")


@pytest.mark.parametrize("end", ["low", "high"])
def test_ends_of_intervals_are_not_needed(end):
    with pytest.raises(ValueError, match=rf"claim 'c': a needs 't.{{pair}}.a.{end}': expected the number itself"):
        Claim("c", "t", "s", "c", {"a": f"t.{{pair}}.a.{end}"}, "a > 1")


@pytest.mark.parametrize(("truth", "at_most"), [(0.0, 0.035), (-0.1, 0.005)])
def test_a_difference_that_is_not_there_rarely_holds(truth, at_most):
    """Losses on the same 40 documents, of which one is not higher on the mean: how often is a claim that it is true?"""
    claim, said = _claim("a > 0", "a"), []
    for seed in range(2000):
        rng = np.random.default_rng(seed)
        document = rng.normal(3, 1, size=40)  # how hard it is, for both
        one, other = (document + rng.normal(shift, 0.3, size=40) for shift in (truth, 0))
        mean, half = np.mean(one - other), 2.02 * np.std(one - other, ddof=1) / 40**0.5
        said.append(claims._decide(claim, {"a": mean, "a.low": mean - half, "a.high": mean + half})[0])
    assert said.count("holds") / 2000 <= at_most
    assert truth or said.count("inconclusive") / 2000 > 0.93


def test_an_end_where_the_predicate_is_undefined_is_no_error(project):
    found = _turned(project, "a / b > 1", a=2.0, b=1.0, b_low=0.0, b_high=1.5)
    assert found == ("inconclusive", {"b.low": "undefined"})


def test_what_an_interval_could_turn_is_said_in_its_digits(project):
    numbers = {"a": 1.0, "a.low": 0.91, "a.high": 1.1, "b": 1.05, "b.low": 0.98, "b.high": 1.2, "c": 3}
    write_results("tiny", "first", {f"t.tiny.{name}": value for name, value in numbers.items()})
    book = Published({}, (_claim("a < b"),), ())
    verdict = verdicts("tiny", book=book)[0]
    assert said_of_turns(verdict) == ["holds by the estimates", "does not hold if a were 1.10 or b were 0.98"]
    assert named(verdict.ours) == ["a = 1.00 [0.91, 1.10]", "b = 1.05 [0.98, 1.20]", "c = 3"]


def test_a_verdict_leads_to_its_section_or_to_the_command(project):
    path = project / "book" / "published.yml"
    path.write_text(path.read_text().replace("    holds: a < b\n", "    holds: a < b\n    heading: What it is\n"))
    order, ratio = verdicts("tiny")
    assert (order.page, order.command) == ("", ".venv/bin/stitch-book run --pair tiny --chapter first")
    assert (order.missing, order.scale) == ((), "")
    write_results("tiny", "first", {"table1.tiny.a": 1.0, "table1.tiny.b": 2.0})
    assert verdicts("tiny")[0].page == ""  # no page
    (project / "book" / "runs" / "tiny").mkdir(parents=True)
    (project / "book" / "runs" / "tiny" / "first.ipynb").touch()
    order, ratio = verdicts("tiny")
    assert (order.page, order.command) == ("book/runs/tiny/first.html#what-it-is", "")
    assert ratio.page == "book/runs/tiny/first.html"


def test_the_command_says_what_the_page_says(project, capsys):
    numbers = {"table1.tiny.a": 1.0, "table1.tiny.b": 2.0, "table1.tiny.b.low": 0.95, "table1.tiny.b.high": 3.0}
    write_results("tiny", "first", numbers)
    (project / "book" / "runs" / "tiny").mkdir(parents=True)
    (project / "book" / "runs" / "tiny" / "first.ipynb").touch()
    assert main(["claims"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == ["order  partly         first: Table 1", "A is < B"]
    said = ["ours: a = 1, b = 2.0 [0.9, 3.0]", "holds by the estimates", "partly if b were 0.9"]
    assert lines[2:6] == [*said, "_build/html/book/runs/tiny/first.html"]
    assert main(["claims", "--pair", "gpt2"]) == 0
    assert capsys.readouterr().out.splitlines()[2] == "    .venv/bin/stitch-book run --pair gpt2 --chapter first"
    assert main(["claims", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {**verdict._asdict(), "missing": list(verdict.missing)} for verdict in verdicts("tiny")
    ]


@pytest.mark.parametrize(("scale", "another_run_may_help"), [("smoke", True), ("default", False)])
def test_a_run_that_left_a_number_out_says_which(project, scale, another_run_may_help):
    write_results("tiny", "first", {"table1.tiny.a": 1.0}, parameters={"scale": scale})
    order = verdicts("tiny")[0]
    assert (order.verdict, order.missing, order.scale) == ("not run", ("table1.tiny.b",), scale)
    assert bool(order.command) == another_run_may_help


def test_the_papers_numbers_are_parsed_once_until_the_file_changes(project, monkeypatch):
    parsed, load = [], claims.parse_yaml
    monkeypatch.setattr(claims, "parse_yaml", lambda text: parsed.append(text) or load(text))
    path = project / "book" / "published.yml"
    path.write_text(path.read_text() + "# a file that no other test has read\n")
    assert published() is published() and len(verdicts("tiny")) == 2 and len(parsed) == 1
    path.write_text(path.read_text().replace("3.0", "4.0"))
    assert published().numbers["table1.big.a"] == 4.0 and len(parsed) == 2
