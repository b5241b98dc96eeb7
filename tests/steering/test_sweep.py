"""The engine of all sweeps: which strength is chosen, and which settings are refused."""

import pytest

from stitch_utils.models.generation import Response
from stitch_utils.steering import sweep as engine
from stitch_utils.steering.sweep import Answers, Cell, Sweep, SweepConfig, chosen_strength
from stitch_utils.utils.stats import clopper_pearson


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
        ({"nll_ceiling": 0.0}, "nll_ceiling=0.0: expected more than 0 nats a token"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        SweepConfig(**{"prompts": 1, "choosing_prompts": 1, "strengths": (1.0,), "max_new_tokens": 1} | changes)


class Steered(Sweep):
    """A sweep at one strength."""

    def chosen_for(self, side, condition, of, fold):
        return 2.0


@pytest.mark.parametrize(
    ("cells", "groups"),
    [
        ([("a", 1.0, 200), ("a", 2.0, 100), ("a", 3.0, 1), ("b", 1.0, 9)], [2, 1, 1]),
        ([("a", 0.0, 9), ("a", 0.0, 9), ("a", 1.0, 9), ("a", 2.0, 9)], [1, 1, 2]),
        ([("a", 1.0, 300), ("a", 2.0, 9), ("b", 1.0, 9), ("b", 2.0, 9)], [1, 1, 2]),
        ([], []),
    ],
)
def test_steered_cells_of_a_model_share_batches(cells, groups):
    named = [(Cell("evaluated", side, "native" if s else "none", str(i), s), n) for i, (side, s, n) in enumerate(cells)]
    found = engine._groups(named)
    assert [len(group) for group in found] == groups
    assert [cell for group in found for cell in group] == [cell for cell, _ in named]
    assert all(len({cell.side for cell in group}) == 1 for group in found)


def responses(*nll):
    return tuple(Response("", one, 2 * one, 3, cut=one > 8) for one in nll)


@pytest.mark.parametrize(
    ("ceiling", "followed", "chosen"),
    [(1.0, 2, 1.0), (0.4, 1, 1.0), (9.5, 3, 2.0), (float("inf"), 3, 2.0)],
)
def test_what_costs_too_much_does_not_count(ceiling, followed, chosen):
    """Three responses are done, at rises of 0.5, -1 and, as of word salad, 9; one costs little and is not done."""
    own, steered, done = responses(1, 2, 1, 1), responses(1.5, 1, 10, 1.2), (True, True, True, False)
    cells = {}
    for split in ("evaluated", "chosen"):
        cells[Cell(split, "a", "none", "fr")] = Answers(own, (), (True, False, False, False))
        cells[Cell(split, "a", "native", "fr", 2.0)] = Answers(steered, (), done)
    # A weaker push does two of four, at no cost.
    cells[Cell("chosen", "a", "native", "fr", 1.0)] = Answers(own, (), (True, True, False, False))
    config = SweepConfig(prompts=4, choosing_prompts=4, strengths=(1.0, 2.0), max_new_tokens=3, nll_ceiling=ceiling)
    sweep = Steered(config=config, cells=cells)
    assert sweep.share("a", "native", "fr") == clopper_pearson(followed, 4)
    assert sweep.share("a", "native", "fr", ceiling=float("inf")) == clopper_pearson(3, 4)
    assert sweep.share("a", "none", "fr") == clopper_pearson(1, 4), "its own responses cost what they cost"
    assert sweep.mean_share("a", "native").value == followed / 4
    assert sweep.mean_share("a", "native", ceiling=9.0).value == 3 / 4
    assert sweep.advantage("a", "native", "none").value == pytest.approx((followed - 1) / 4)
    assert sweep.choose("a", "native", ["fr"], (1.0, 2.0)) == chosen
    assert (sweep.cut("a", "native", "fr"), sweep.cut("a", "none", "fr")) == (0.25, 0.0)
