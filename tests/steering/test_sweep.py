"""The engine of all sweeps: which strength is chosen, and which settings are refused."""

import pytest

from stitch_utils.steering.sweep import SweepConfig, chosen_strength


@pytest.mark.parametrize(
    ("shares", "rises", "chosen"),
    [
        ([0.1, 0.7, 0.9], [0.0, 0.4, 0.8], 1.5),
        ([0.1, 0.69, 0.9], [0.0, 0.4, 0.8], 2.0),
        ([0.8, 0.9, 0.9], [0.5, 0.3, 0.3], 1.5),
        ([0.1, 0.5, 0.5], [0.0, 0.4, 0.1], 1.5),
        ([0.1, 0.1, 0.1], [0.0, 0.0, 0.0], 1.0),
        ([0.0, 0.0, 0.0], [0.0, 0.4, 0.8], 2.0),
    ],
)
def test_the_cheapest_of_the_strengths_that_do_is_chosen(shares, rises, chosen):
    strengths = (1.0, 1.5, 2.0)
    assert chosen_strength(dict(zip(strengths, shares)), dict(zip(strengths, rises))) == chosen


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": 0}, "prompts=0: a sweep needs at least one"),
        ({"choosing_prompts": 0}, "choosing_prompts=0: a sweep needs at least one"),
        ({"strengths": ()}, "strengths must be positive"),
        ({"strengths": (1.0, -1.0)}, "strengths must be positive"),
        ({"strength": -1.0}, "strengths must be positive"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        SweepConfig(**{"prompts": 1, "choosing_prompts": 1, "strengths": (1.0,), "max_new_tokens": 1} | changes)
