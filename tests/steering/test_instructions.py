"""The experiment of App. F.2 against naive reference arithmetic: which cells there are, and what is counted of them."""

import dataclasses

import numpy as np
import pytest
import torch
from toy_prompts import naive_last

from stitch_utils.data.pairs import load_pair
from stitch_utils.models.generation import Response, chat, generate_texts
from stitch_utils.models.language_model import load_models
from stitch_utils.steering import sweep as engine
from stitch_utils.steering.diagnostics import fit_template_stitches
from stitch_utils.steering.instructions import (
    CARRIED,
    CONDITIONS,
    InstructionConfig,
    evaluated_chats,
    instruction_config,
    sweep_instructions,
)
from stitch_utils.steering.prompts import instruction_kinds, instruction_prompts
from stitch_utils.steering.sweep import Answers, chosen_strength
from stitch_utils.steering.vectors import MeanStreams, last_token_residuals, steering_vector
from stitch_utils.stitching.pair import StitchedPair

LAYERS = (1, 2)


@pytest.fixture
def context_40(small_pair):
    return load_pair(small_pair(context=40))


def own_vector(model, layer, both):
    """From prompts with the instruction and without."""
    given, without = (last_token_residuals(model, layer, chat(model, texts)).double().mean(0) for texts in both)
    return steering_vector(MeanStreams(without, given))


@pytest.fixture(scope="module")
def config():
    return InstructionConfig(
        kinds=("upper", "no_commas"),
        prompts=5,
        choosing_prompts=3,
        fit_prompts=6,
        strengths=(1.0, 4.0),
        carried_strengths=(1.0, 6.0),
        max_new_tokens=4,
        batch_size=3,
    )


@pytest.fixture
def swept(context_40, config):
    models = load_models(context_40)
    stitched = StitchedPair(context_40, models, LAYERS, "smoke")
    fit = fit_template_stitches(stitched, evaluated_chats(stitched, config))
    return stitched, fit, sweep_instructions(stitched, fit.stitches, config)


def test_every_cell_is_what_its_name_says(swept, context_40, config, monkeypatch):
    stitched, fit, sweep = swept
    models = stitched.models
    for side, model, other, layer in (("a", *models, LAYERS[0]), ("b", *models[::-1], LAYERS[1])):
        for kind in config.kinds:
            fitted, asked = (instruction_prompts(context_40, kind, n, s) for n, s in ((6, "fit"), (5, "evaluated")))
            both = [[getattr(p, part) for p in fitted] for part in ("given", "without")]
            own = own_vector(model, layer, both)
            theirs = own_vector(other, LAYERS[side == "a"], both)
            given, without = (naive_last(model, layer, chat(model, texts)) for texts in both)
            torch.testing.assert_close(sweep.shifts[side, kind], given - without, rtol=1e-4, atol=1e-4)
            high, low = given.mean(0), without.mean(0)
            for condition in CONDITIONS[:-1]:
                direction = own.direction
                strength = sweep.chosen[side, kind, "transferred" if condition in CARRIED else "native"]
                assert strength in (config.carried_strengths if condition in CARRIED else config.strengths)
                if condition in CARRIED:
                    stitch = fit.stitches[CARRIED[condition]]
                    image = theirs.direction @ (stitch.P_down if side == "a" else stitch.P_up)
                    direction = image / image.norm()
                z = (low + strength * (high - low)) @ direction

                def put(stream, v=direction, z=z):
                    return stream + (z - stream @ v)[..., None] * v

                texts = [p.given if condition == "instructed" else p.without for p in asked]
                steered = {} if condition in ("none", "instructed") else {"layer": layer, "edit": put}
                expected = generate_texts(model, chat(model, texts), max_new_tokens=4, batch_size=3, **steered)
                found = sweep.answers(side, condition, kind)
                assert [r.text for r in found.responses] == [r.text for r in expected], (side, kind, condition)
                followed = [p.is_followed(r.text) for p, r in zip(asked, expected)]
                share = sweep.share(side, condition, kind)
                assert share.value == np.mean(followed) and share.low <= share.value <= share.high
    never = lambda *args, **more: pytest.fail("what was made once is kept")  # noqa: E731
    never.__module__ = generate_texts.__module__  # which is in the key
    monkeypatch.setattr(engine, "generate_texts", never)
    assert sweep_instructions(stitched, fit.stitches, config).cells == sweep.cells


def test_what_is_carried_across_has_a_strength_of_its_own(swept, config):
    _, _, sweep = swept
    for (side, kind, condition), chosen in sweep.chosen.items():
        strengths = (1.0, 4.0) if condition == "native" else (1.0, 6.0)
        shares = {s: sweep.share(side, condition, kind, s, "chosen").value for s in strengths}
        losses = {
            s: np.mean([r.nll for r in sweep.answers(side, condition, kind, s, "chosen").responses]) for s in strengths
        }
        assert chosen == chosen_strength(shares, losses)
        carried = {sweep.cell(side, c, kind).strength for c in CARRIED}
        assert carried == {chosen} or condition == "native"
    assert {key[2] for key in sweep.chosen} == {"native", "transferred"}


def test_numbers_are_means_over_the_instructions(swept, config):
    _, _, sweep = swept
    numbers = sweep.numbers("mine")
    for side, figure in (("a", "figure12"), ("b", "figure13")):
        shares = {c: [sweep.share(side, c, kind).value for kind in config.kinds] for c in CONDITIONS}
        for condition in CONDITIONS:
            assert numbers[f"{figure}.mine.mean.{condition}"] == pytest.approx(np.mean(shares[condition]))
        gains = np.subtract(shares["transferred"], shares["none"])
        assert numbers[f"{figure}.mine.casing.gain"] == pytest.approx(gains[0])
        assert numbers[f"{figure}.mine.other.gain"] == pytest.approx(gains[1])
        losses = {
            c: np.mean([r.nll for k in config.kinds for r in sweep.answers(side, c, k).responses])
            for c in ("none", "native")
        }
        of_kind = [numbers[f"{figure}.mine.{kind}.native.nll_rise"] for kind in config.kinds]
        assert numbers[f"{figure}.mine.nll_rise.native"] == pytest.approx(np.mean(of_kind))
        at_1 = [r.nll for k in config.kinds for r in sweep.answers(side, "native", k, 1.0).responses]
        rise_at_1 = numbers[f"{figure}.mine.nll_rise.native_at_1"]
        assert rise_at_1 == pytest.approx(np.mean(at_1) - losses["none"], abs=1e-6)
        rise = numbers[f"{figure}.mine.nll_rise.native"]
        assert rise == pytest.approx(losses["native"] - losses["none"], abs=1e-6)
        assert f"{figure}.mine.nll_rise.none" not in numbers
    assert all(isinstance(value, int | float) and np.isfinite(value) for value in numbers.values())


def test_a_strength_that_is_given_needs_no_prompts_for_choosing(swept, context_40, config):
    stitched, fit, _ = swept
    models = stitched.models
    given = dataclasses.replace(config, strength=2.0, kinds=("upper",))
    sweep = sweep_instructions(stitched, fit.stitches, given)
    assert set(sweep.chosen.values()) == {2.0} and {cell.split for cell in sweep.cells} == {"evaluated"}
    expected = instruction_prompts(context_40, "upper", 6, "fit", choosing=False)
    given, without = ([getattr(p, part) for p in expected] for part in ("given", "without"))
    both = [naive_last(models[0], LAYERS[0], chat(models[0], texts)) for texts in (given, without)]
    torch.testing.assert_close(sweep.shifts["a", "upper"], both[0] - both[1], rtol=1e-4, atol=1e-4)


def test_instructions_that_bare_prompts_follow_anyway(swept, config):
    _, _, sweep = swept
    for always, expected in ((("no_commas",), ["no_commas"]), ((), [])):
        cells = {
            sweep.cell(side, "none", kind): Answers((), done=(True, kind in always))
            for side in "ab"
            for kind in config.kinds
        }
        assert dataclasses.replace(sweep, cells=cells).followed_anyway() == expected
    cells[sweep.cell("a", "none", "upper")] = Answers((), done=(True, True))
    assert dataclasses.replace(sweep, cells=cells).followed_anyway() == [], "in one model alone"


def test_instructions_are_counted_where_intervals_do_not_overlap(swept, config):
    _, _, sweep = swept
    planned = dataclasses.replace(sweep, chosen=dict.fromkeys(sweep.chosen, 4.0))
    keys = [
        planned.cell(side, condition, kind, strength)
        for side in "ab"
        for condition in CONDITIONS
        for kind in config.kinds
        for strength in (None, 1.0)
    ]
    responses = (Response("", 0.0, 0.0, 0),) * 20
    for native, transferred, counted in (
        (20, 20, {"improved", "matched"}),
        (20, 16, {"improved"}),
        (16, 20, {"improved", "matched"}),
        (0, 20, {"improved", "won"}),
        (0, 1, set()),
        (0, 0, set()),
    ):
        cells = dict.fromkeys(keys, Answers(responses, done=(False,) * 20))
        for condition, count in (("native", native), ("transferred", transferred)):
            done = (True,) * count + (False,) * (20 - count)
            cells[planned.cell("b", condition, "upper")] = Answers(responses, done=done)
        numbers = dataclasses.replace(planned, cells=cells).numbers("mine")
        for quantity in ("won", "won_at_1", "improved", "matched"):
            assert numbers[f"figure13.mine.{quantity}"] == (quantity in counted), (quantity, native, transferred)
            assert numbers[f"figure12.mine.{quantity}"] == 0


def test_sizes(pair):
    with pytest.raises(ValueError, match="unknown scale 'huge'"):
        instruction_config(pair, "huge")
    assert instruction_config(pair, "smoke").kinds == ("upper", "closing")
    assert instruction_config(pair, "default").kinds == instruction_kinds(pair)
    with pytest.raises(ValueError, match=r"kinds=\(\): a sweep needs at least one"):
        InstructionConfig(kinds=(), prompts=1, choosing_prompts=1)
    for wrong in ("strengths", "carried_strengths"):
        with pytest.raises(ValueError, match="strengths must be positive"):
            InstructionConfig(kinds=("upper",), prompts=1, choosing_prompts=1, **{wrong: (0.0,)})
    assert instruction_config(pair, "smoke").strength == 0
    assert instruction_config(dataclasses.replace(pair, strength=1.0), "smoke").strength == 1
    assert instruction_config(dataclasses.replace(pair, strength=1.0), "smoke", strength=2.0).strength == 2
