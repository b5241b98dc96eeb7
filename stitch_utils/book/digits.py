"""Write numbers with their 95% intervals, in the digits that the intervals leave (no section of its own).

A number and both ends of its interval are rounded to two significant digits of half the interval's width: a bootstrap
knows no more. A number without an interval has four significant digits.

Offers `with_interval` and `parts`, for the numbers of a results file, and, for an `Estimate`, `percent` and `saving`.
"""

import math
from collections.abc import Callable, Mapping, Sequence

Interval = tuple[float, float, float]  # an `Estimate`, whose module takes seconds to import
ENDS = ("", ".low", ".high")
MOST = 6  # significant digits, for an interval that is next to nothing
PERCENT_DECIMALS = 2  # at most; one without an interval
SMALL, LARGE = 1e-3, 1e6  # beyond them, powers of ten


def with_interval(values: Mapping[str, object], name: str) -> str:
    """Write `value [low, high]`, from a number and its `.low` and `.high`; in percent where `name` ends in "increase".

    "" if there is no such number, and a text as it is.
    """
    middle, low, high = parts(values, name).values()
    return f"{middle} [{low}, {high}]".strip() if low or high else middle


def parts(values: Mapping[str, object], name: str) -> dict[str, str]:
    """Write a number, and both ends of its interval, under "", ".low" and ".high"; "" for what is not there."""
    found = {end: values.get(name + end) for end in ENDS}
    numbers = [number for number in found.values() if isinstance(number, int | float)]
    write = _percent(numbers) if name.endswith("increase") else _plain(numbers)
    return {
        end: write(number) if isinstance(number, int | float) else "" if number is None else str(number)
        for end, number in found.items()
    }


def percent(estimate: Interval, *, sign: str = "+") -> str:
    """Write a share or a relative change as `+12% [+9%, +15%]`; with `sign` "" only a negative number has a sign."""
    value, low, high = map(_percent(estimate, sign), estimate)
    return f"{value} [{low}, {high}]"


def saving(estimate: Interval) -> str:
    """Write the share of a cost that is saved, in percent; where the cost more than doubles, as its multiple.

    A share of -70 saved is `71 times the cost [69, 73]`.
    """
    if not estimate[0] < -1:
        return percent(estimate)
    value, high, low = (1 - share for share in estimate)
    value, low, high = map(_plain((value, low, high)), (value, low, high))
    return f"{value} times the cost [{low}, {high}]"


def _places(numbers: Sequence[float]) -> int | None:
    """Return the decimal place of the second significant digit of half an interval's width; None if there is no width.

    `numbers` are a value and the ends of its interval. Zeros that all three end in, as those of the papers, which print
    fewer digits, are left out.
    """
    half = (numbers[2] - numbers[1]) / 2 if len(numbers) == len(ENDS) else 0.0
    if not 0 < half < math.inf:
        return None
    places = min(1 - int(f"{half:.1e}".partition("e")[2]), MOST - 1 - math.floor(math.log10(max(map(abs, numbers)))))
    while places > 0 and all(_rounded(number, places) == _rounded(number, places - 1) for number in numbers):
        places -= 1
    return places


def _percent(numbers: Sequence[float], sign: str = "+") -> Callable[[float], str]:
    places = _places([100 * number for number in numbers])
    places = 1 if places is None else min(places, PERCENT_DECIMALS)
    return lambda number: f"{_rounded(100 * number, places):{sign}.{max(places, 0)}f}%"


def _plain(numbers: Sequence[float]) -> Callable[[float], str]:
    """Return what writes a value and the ends of its interval alike."""
    places = _places(numbers)
    if places is None:
        return lambda number: f"{number + 0.0:.4g}"
    largest = max(map(abs, numbers))

    def write(number: float) -> str:
        rounded = _rounded(number, places)
        if SMALL <= largest < LARGE:
            return f"{rounded:.{max(places, 0)}f}" if number else "0"
        if not rounded:
            return "0"
        return f"{rounded:.{max(places + math.floor(math.log10(abs(rounded))), 0)}e}"

    return write


def _rounded(number: float, places: int) -> float:
    return round(number, places) + 0.0  # + 0.0, since -0.0 would print its sign
