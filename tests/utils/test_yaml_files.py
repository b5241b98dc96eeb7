"""YAML that people write: what it takes for something else is refused by its full name."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from stitch_utils.utils.yaml_files import build, check_entries, parse_yaml


@dataclasses.dataclass
class Part:
    text: str
    note: str | None = None
    count: int | None = None
    rate: float = 0.5
    either: float | str = "auto"
    flag: bool | None = None
    names: tuple[str, ...] = ()
    others: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.rate < 0:
            raise ValueError(f"rate must not be negative: got {self.rate}")


def part(written):
    return build(Part, parse_yaml(f"text: x\n{written}\n"), "the.part")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("note: off", "the.part.note is no text but False: put it in quotation marks"),
        ("note: 2024-05-06", "the.part.note is no text but 2024-05-06: put it in quotation marks"),
        ("note: 1_000", "the.part.note is no text but 1000: put it in quotation marks"),
        ("note: .inf", "the.part.note is no text but inf: put it in quotation marks"),
        ("note: 12e34", r"the.part.note is no text but 1.2e\+35: put it in quotation marks"),
        ("note: 0x1F", "the.part.note is no text but 31: put it in quotation marks"),
        ("note: [a]", r"the.part.note: expected a text, got \['a'\]"),
        ("names: [a, yes]", "the.part.names.1 is no text but True: put it in quotation marks"),
        ("count: '12'", "the.part.count: expected a whole number, got '12': write 12"),
        ("count: 2e3", "the.part.count: expected a whole number, got 2000.0: write 2000"),
        ("count: 64.0", "the.part.count: expected a whole number, got 64.0: write 64"),
        ("count: 64.5", "the.part.count: expected a whole number, got 64.5$"),
        ("count: on", "the.part.count: expected a whole number, got True$"),
        ("rate: true", "the.part.rate: expected a number, got True"),
        ("rate: half", "the.part.rate: expected a number, got 'half'"),
        ("rate:", "the.part.rate is empty: expected a number"),
        ("rate: -1", "the.part: rate must not be negative: got -1"),
        ("flag: 1", "the.part.flag: expected true or false, got 1"),
        ("flag: 'no'", "the.part.flag: expected true or false, got 'no'"),
        ("names: a", "the.part.names: expected a list, got 'a'"),
        ("others: [1]", r"the.part.others: expected a mapping, got \[1\]"),
        ("shade: red\ntint: x", "unknown the.part.shade, the.part.tint; expected text, note"),
    ],
)
def test_entries_of_another_type(written, message):
    with pytest.raises(ValueError, match=message):
        part(written)


@pytest.mark.parametrize(
    ("written", "entry", "value"),
    [
        ("note: 'no'", "note", "no"),
        ('note: "0012"', "note", "0012"),
        ("note: !!str 12", "note", "12"),
        ("note: '12e34'", "note", "12e34"),
        ("note: 7e3a9c1", "note", "7e3a9c1"),
        ("note: ~", "note", None),
        ("count: 1_000", "count", 1000),
        ("count: 0", "count", 0),
        ("rate: 3", "rate", 3),
        ("rate: 1e-4", "rate", 1e-4),
        ("rate: 2.5E3", "rate", 2500.0),
        ("either: 1e-8", "either", 1e-8),
        ("either: least", "either", "least"),
        ("flag: no", "flag", False),
        ("names: [a, b]", "names", ("a", "b")),
        ("others: {n: 1, tied: yes}", "others", {"n": 1, "tied": True}),
        ("<<: {count: 3}\ncount: 4", "count", 4),
    ],
)
def test_entries_that_are_what_they_say(written, entry, value):
    found = getattr(part(written), entry)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("a: {b: 1, c: 2, b: 3}", "line 1: given twice: a.b"),
        ("a: 1\nc: 2\na: 3", "line 3: given twice: a"),
        ("a: [{}, {b: 0, b: 1}]", "given twice: a.1.b"),
        ("a: {no: 1}", "a.no is no text for a name to YAML: put it in quotation marks"),
        ("2024-05-06: x", "2024-05-06 is no text for a name"),
        ("? [x]\n: 1", r"\? is no text for a name"),
        ("a: 0012345", "a: 0012345 is a number in base 8 to YAML: if it is a text, put it in quotation marks"),
        ("a: {b: -017}", "a.b: -017 is a number in base 8"),
        ("a: {b: [1, 12:30]}", "a.b.1: 12:30 is a number in base 60"),
        ("a: 1:30.5", "a: 1:30.5 is a number in base 60"),
        ("a: &x [*x]", "a.0 is part of itself"),
    ],
)
def test_what_the_last_one_would_win_or_another_base_would_read(written, message):
    with pytest.raises(ValueError, match=message):
        parse_yaml(written)


@pytest.mark.parametrize("written", ["a: [1", "a: b: c", "--- 1\n--- 2", "a: !!python/object:os.system x"])
def test_what_is_no_yaml(written):
    with pytest.raises(yaml.YAMLError):
        parse_yaml(written)


def test_nothing_and_missing_entries():
    assert parse_yaml("# nothing\n") is None
    with pytest.raises(ValueError, match=r"^unknown x; missing a, b; expected a, b, c$"):
        check_entries({"x": 1, "c": 2}, "", ("a", "b", "c"), ("a", "b"))
    with pytest.raises(ValueError, match=r"^the.part: expected a mapping, got 3$"):
        build(Part, 3, "the.part")
    with pytest.raises(ValueError, match=r"^missing the.part.text; expected text"):
        build(Part, {}, "the.part")
