"""The recorded comparison at the paper's full length, and the script that records it, on a few steps."""

import pytest

from stitch_utils.book.portrait import recorded
from stitch_utils.data.pairs import load_pair
from tools.full_adam import compare


def test_the_record_is_of_the_papers_length_and_the_exact_fit_is_no_worse():
    record = recorded("full_adam")
    assert record["steps"] == load_pair("tiny").scale("paper").adam_steps
    assert record["exact_loss"] <= record["adam_loss"] and record["adam_seconds"] >= 10 * record["exact_seconds"]


def test_a_few_steps_are_recorded_alike():
    found = compare(3, scale="smoke")
    assert set(found) == set(recorded("full_adam")) and found["steps"] == 3
    assert found["adam_loss"] > found["exact_loss"] > 0
    assert compare(3, scale="smoke")["adam_loss"] == pytest.approx(found["adam_loss"], abs=1e-4)
