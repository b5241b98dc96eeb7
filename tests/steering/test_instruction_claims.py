"""What the claims about App. F.2 make of numbers: each verdict, from numbers that call for it."""

import shutil
from pathlib import Path

import pytest

from stitch_utils.book.claims import verdicts
from stitch_utils.book.results import write_results


def of_figures(**numbers):
    return {f"{figure}.tiny.{id}": value for figure in ("figure12", "figure13") for id, value in numbers.items()}


def around(id, value, half):
    return {id: value, f"{id}.low": value - half, f"{id}.high": value + half}


@pytest.mark.parametrize(
    ("claim", "numbers", "verdict"),
    [
        ("instruction-transfer-never-wins", of_figures(won_at_1=0, could_win_at_1=3), "holds"),
        ("instruction-transfer-never-wins", of_figures(won_at_1=1, could_win_at_1=3), "does not hold"),
        ("instruction-transfer-never-wins", of_figures(won_at_1=0, could_win_at_1=0), "not testable"),
        ("instruction-transfer-matches-sometimes", of_figures(matched=0, steered=0), "not testable"),
        ("instruction-transfer-matches-sometimes", of_figures(matched=0, steered=3), "does not hold"),
        ("casing-transfers-best", (1, 1, 0.5, 0.2), "holds"),
        ("casing-transfers-best", (1, 1, 0.1, 0.2), "inconclusive"),
        ("casing-transfers-best", (1, 1, -0.5, 0.2), "does not hold"),
        ("casing-transfers-best", (0, 1, 0.0, 1.0), "not testable"),
        ("small-to-big-misses-the-subspace", (0.5, -0.01, 0.03), "holds"),
        ("small-to-big-misses-the-subspace", (0.5, 0.04, 0.03), "inconclusive"),
        ("small-to-big-misses-the-subspace", (0.5, 0.3, 0.1), "does not hold"),
        ("small-to-big-misses-the-subspace", (0.05, 0.0, 0.01), "not testable"),
        ("instruction-responses-end", of_figures(cut=0.04), "holds"),
        ("instruction-responses-end", of_figures(cut=0.04) | {"figure13.tiny.cut": 0.3}, "does not hold"),
        ("instruction-random-does-nothing", around("figure12.tiny.random_gain", 0.0, 0.04), "holds"),
        ("instruction-random-does-nothing", around("figure12.tiny.random_gain", 0.03, 0.04), "inconclusive"),
        ("instruction-random-does-nothing", around("figure12.tiny.random_gain", 0.3, 0.04), "does not hold"),
    ],
)
def test_what_the_claims_make_of_the_numbers(project, claim, numbers, verdict):
    shutil.copy(Path(__file__).parents[2] / "book" / "published.yml", project / "book" / "published.yml")
    if claim == "casing-transfers-best":
        casing, other, lead, half = numbers
        numbers = of_figures(**{"casing.able": casing, "other.able": other}) | around(
            "figure12.tiny.casing.lead", lead, half
        )
    elif claim == "small-to-big-misses-the-subspace":
        native, over, half = numbers
        numbers = around("figure13.tiny.native_gain", native, 0.2) | around("figure13.tiny.over_random", over, half)
    elif claim == "instruction-random-does-nothing":
        numbers = numbers | around("figure13.tiny.random_gain", 0.0, 0.01)
    write_results("tiny", "instruction_following", numbers)
    (said,) = (said for said in verdicts("tiny") if said.id == claim)
    assert said.verdict == verdict
