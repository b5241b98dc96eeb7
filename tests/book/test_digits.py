"""Numbers with intervals: in how many digits they are written, from the smallest to the largest."""

import math

import pytest

from stitch_utils.book.digits import parts, percent, saving, with_interval
from stitch_utils.utils.stats import Estimate


@pytest.mark.parametrize(
    ("value", "low", "high", "said"),
    [
        (0.86912, 0.7871, 0.9402, "0.869 [0.787, 0.940]"),  # half the width is .077
        (0.84, 0.83331, 0.84881, "0.8400 [0.8333, 0.8488]"),
        (0.57, 0.55, 0.59, "0.57 [0.55, 0.59]"),  # as a paper prints it
        (2.0, 1.9, 2.1, "2.0 [1.9, 2.1]"),
        (6976.7, 6833.2, 7121.9, "6980 [6830, 7120]"),
        (70.77, 69.33, 72.22, "70.8 [69.3, 72.2]"),
        (2.34567, 2.34521, 2.34613, "2.34567 [2.34521, 2.34613]"),
        (2.3456789, 2.3456788, 2.345679, "2.34568 [2.34568, 2.34568]"),
        (4.37e-5, 4.29e-5, 4.44e-5, "4.37e-05 [4.29e-05, 4.44e-05]"),
        (8.2e16, 7.11e16, 9.34e16, "8.2e+16 [7.1e+16, 9.3e+16]"),
        (1e-9, -3e-5, 3e-5, "0 [-3e-05, 3e-05]"),
        (0.12345678, 0.12345678, 0.12345678, "0.1235 [0.1235, 0.1235]"),
        (0.0, 0.0, 0.03622, "0 [0, 0.036]"),
        (-0.0001, -0.0213, 0.0312, "0.000 [-0.021, 0.031]"),
        (0.01, -0.0004, 0.03, "0.01 [0.00, 0.03]"),
        (-0.2, -0.3, -0.1, "-0.2 [-0.3, -0.1]"),
        (1.0, 0.9004, 1.0996, "1.0 [0.9, 1.1]"),  # .0996 is .10
        (-0.0, -0.0, -0.0, "0 [0, 0]"),
        (0.5, 0.4, math.inf, "0.5 [0.4, inf]"),
        (math.nan, math.nan, math.nan, "nan [nan, nan]"),
    ],
)
def test_an_interval_says_how_many_digits_are_worth_printing(value, low, high, said):
    assert with_interval({"x": value, "x.low": low, "x.high": high}, "x") == said


@pytest.mark.parametrize(
    ("value", "low", "high", "said"),
    [
        (-0.0003, -0.02, 0.0171, "+0.0% [-2.0%, +1.7%]"),  # and never minus zero
        (0.00012, -0.00018, 0.00042, "+0.01% [-0.02%, +0.04%]"),
        (0.4512, 0.3033, 0.6121, "+45% [+30%, +61%]"),
        (-69.77, -71.22, -68.33, "-6980% [-7120%, -6830%]"),
        (2.45432, 2.45432, 2.45432, "+245.4% [+245.4%, +245.4%]"),
    ],
)
def test_an_increase_is_a_percentage(value, low, high, said):
    assert with_interval({"increase": value, "increase.low": low, "increase.high": high}, "increase") == said
    assert percent(Estimate(value, low, high)) == said
    assert percent(Estimate(value, low, high), sign="") == said.replace("+", "")


def test_what_is_not_there_is_not_written():
    assert with_interval({"x": 0.123456}, "x") == "0.1235"
    assert with_interval({"x.low": 0.3, "x.high": 0.5}, "x") == "[0.3, 0.5]"  # a paper's range
    assert with_interval({"up.increase": 0.12345}, "up.increase") == "+12.3%"
    assert with_interval({"x": "<1%"}, "x") == "<1%"
    assert with_interval({}, "x") == ""
    assert parts({"x": 1.0, "x.low": 0.9, "x.high": 1.2}, "x") == {"": "1.0", ".low": "0.9", ".high": "1.2"}


@pytest.mark.parametrize(
    ("value", "low", "high", "said"),
    [
        (-69.77, -71.22, -68.33, "70.8 times the cost [69.3, 72.2]"),
        (-70.0, -90.0, -50.0, "71 times the cost [51, 91]"),
        (-1.5, -2.5, -0.5, "2.5 times the cost [1.5, 3.5]"),
        (-2790.0, -2790.0, -2790.0, "2791 times the cost [2791, 2791]"),
        (-0.38, -0.45, -0.31, "-38% [-45%, -31%]"),
        (0.23, 0.05, 0.41, "+23% [+5%, +41%]"),
    ],
)
def test_a_saving_that_is_none_is_told_as_a_multiple_of_the_cost(value, low, high, said):
    assert saving(Estimate(value, low, high)) == said
