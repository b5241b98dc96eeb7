"""The experiment of App. F.2 against naive reference arithmetic: which cells there are, and what is counted of them."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from toy_prompts import naive_last

from stitch_utils.data.pairs import DatasetRef, load_pair
from stitch_utils.models.generation import Response, chat, generate_texts
from stitch_utils.models.language_model import load_models
from stitch_utils.steering import sweep as engine
from stitch_utils.steering.diagnostics import fit_template_stitches
from stitch_utils.steering.instructions import (
    ANY_COST,
    CARRIED,
    CONDITIONS,
    InstructionConfig,
    InstructionSweep,
    evaluated_chats,
    instruction_config,
    sweep_instructions,
)
from stitch_utils.steering.prompts import InstructionPrompt, instruction_kinds, instruction_prompts
from stitch_utils.steering.sweep import Answers, chosen_strength
from stitch_utils.steering.vectors import MeanStreams, SteeringVector, last_token_residuals, steering_vector
from stitch_utils.stitching.pair import StitchedPair

LAYERS = (1, 2)
seen_moves = {}  # by cell, of the sweep that was made last


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
        random_directions=3,
        random_prompts=2,
        max_new_tokens=4,
        batch_size=3,
    )


@pytest.fixture
def swept(context_40, config):
    models = load_models(context_40)
    stitched = StitchedPair(context_40, models, LAYERS, "smoke")
    fit = fit_template_stitches(stitched, evaluated_chats(stitched, config))
    answer = engine.Sweep._answer

    def seen(sweep, stitched, group, prompts, moves, judge):
        seen_moves.update(zip(group, moves))
        return answer(sweep, stitched, group, prompts, moves, judge)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.Sweep, "_answer", seen)
        sweep = sweep_instructions(stitched, fit.stitches, config)
    return stitched, fit, sweep


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
                strength = sweep.chosen[side, kind, "transferred" if condition in CARRIED else "native", 0]
                assert strength in config.strengths
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
                share = sweep.share(side, condition, kind, ceiling=ANY_COST)
                assert share.value == np.mean(followed) and share.low <= share.value <= share.high
                bare = generate_texts(model, chat(model, [p.without for p in asked]), max_new_tokens=4, batch_size=3)
                cheap = [r.nll - o.nll <= 1 + 1e-9 for r, o in zip(expected, bare)]
                assert sweep.share(side, condition, kind).value == np.mean(np.array(followed) & cheap)
            _check_random(
                sweep,
                model,
                layer,
                side,
                kind,
                asked[:2],
                low,
                high,
                own_direction=own_vector(model, layer, both).direction,
            )
    never = lambda *args, **more: pytest.fail("what was made once is kept")  # noqa: E731
    never.__module__ = generate_texts.__module__  # which is in the key
    monkeypatch.setattr(engine, "generate_texts", never)
    assert sweep_instructions(stitched, fit.stitches, config).cells == sweep.cells


def _check_random(sweep, model, layer, side, kind, asked, low, high, own_direction):
    """Each direction answers the same few prompts, moved as far as the own vector moves them."""
    found = sweep.answers(side, "random", kind)
    cell = sweep.cell(side, "random", kind)
    moved, z = seen_moves[cell].args
    assert len(found.responses) == 3 * 2 == len(moved)
    assert (moved[::2] == moved[1::2]).all() and len({tuple(row.tolist()) for row in moved}) == 3
    for number, response in enumerate(found.responses):
        direction, prompt = moved[number], asked[number % 2]
        assert direction.norm() == pytest.approx(1, abs=1e-5) and abs(direction @ own_direction) < 0.6
        expected_z = low @ direction + cell.strength * (high - low) @ own_direction
        assert z[number] == pytest.approx(expected_z.item(), abs=1e-3)

        def put(stream, v=direction, z=z[number]):
            return stream + (z - stream @ v)[..., None] * v

        (expected,) = generate_texts(model, chat(model, [prompt.without]), max_new_tokens=4, layer=layer, edit=put)
        assert response.text == expected.text
        assert found.done[number] == prompt.is_followed(expected.text)


def test_what_is_carried_across_has_a_strength_of_its_own(swept, config):
    _, _, sweep = swept
    for (side, kind, condition, fold), chosen in sweep.chosen.items():
        strengths = (1.0, 4.0)  # the same for both, so that neither fails for want of strength
        assert fold == 0
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
        for ceiling, end in ((None, ""), (ANY_COST, ".any_cost")):
            shares = {
                c: [sweep.share(side, c, kind, ceiling=ceiling).value for kind in config.kinds] for c in CONDITIONS
            }
            for condition in CONDITIONS[1:]:
                assert numbers[f"{figure}.mine.mean.{condition}{end}"] == pytest.approx(np.mean(shares[condition]))
                assert numbers[f"{figure}.mine.upper.{condition}{end}"] == shares[condition][0]
        assert numbers[f"{figure}.mine.mean.none"] == pytest.approx(np.mean(shares["none"]))
        cut = {
            c: [np.mean([r.cut for r in sweep.answers(side, c, kind).responses]) for kind in config.kinds]
            for c in CONDITIONS
        }
        for condition in CONDITIONS:
            assert numbers[f"{figure}.mine.cut.{condition}"] == pytest.approx(np.mean(cut[condition]))
            assert numbers[f"{figure}.mine.cut.{condition}.most"] == max(cut[condition])
            assert numbers[f"{figure}.mine.upper.{condition}.cut"] == cut[condition][0]
        assert numbers[f"{figure}.mine.cut"] >= max(map(max, cut.values())) > 0.05
        assert (side, "upper", "native") in sweep.cut_short() or cut["native"][0] <= 0.05
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


@pytest.fixture
def planned(config):
    """Makes a sweep without models from {(condition, kind): done of B's 20 prompts}; what is not said is not done."""
    rules = {"upper": "change_case:english_capital", "no_commas": "punctuation:no_comma"}
    prompts = {("evaluated", kind, 0): [InstructionPrompt("Go.", "Go.", id, {})] * 20 for kind, id in rules.items()}
    vectors = {(s, (k, 0)): dict.fromkeys(CONDITIONS, SteeringVector(torch.ones(1), 0, 1)) for s in "ab" for k in rules}
    chosen = {(side, kind, on, 0): 4.0 for side in "ab" for kind in rules for on in ("native", "transferred")}

    def make(done, nll=()):
        sweep = InstructionSweep(config=config, prompts=prompts, vectors=vectors, shifts={}, chosen=chosen)
        for side, kind, condition in itertools.product("ab", rules, CONDITIONS):
            said = [False] * (3 * 2 if condition == "random" else 20)
            if side == "b":
                said = done.get((condition, kind), said)
            responses = (Response("", dict(nll).get(condition, 0.0), 0.0, 0),) * len(said)
            for strength in (None, 1.0):
                sweep.cells[sweep.cell(side, condition, kind, strength)] = Answers(responses, done=tuple(said))
        return sweep

    return make


def first(count, of=20):
    return [place < count for place in range(of)]


@pytest.mark.parametrize(
    ("native", "transferred", "counted"),
    [
        (first(20), first(20), {"steered", "improved", "matched"}),
        (first(20), first(16), {"steered", "improved"}),
        (first(16), first(20), {"steered", "improved", "matched"}),  # better on four prompts, which may be chance
        (first(8), first(20), {"steered", "improved", "matched", "won_at_1", "could_win_at_1"}),
        (first(0), first(20), {"improved", "won_at_1", "could_win_at_1"}),
        (first(10), first(10)[::-1], {"steered", "improved", "matched", "could_win_at_1"}),
        (first(0), first(5), {"could_win_at_1"}),
        (first(0), first(0), {"could_win_at_1"}),
    ],
)
def test_instructions_are_counted_by_the_same_prompts(planned, native, transferred, counted):
    numbers = planned({("native", "upper"): native, ("transferred", "upper"): transferred}).numbers("mine")
    for quantity in ("steered", "won_at_1", "improved", "matched"):
        assert numbers[f"figure13.mine.{quantity}"] == (quantity in counted), quantity
        assert numbers[f"figure12.mine.{quantity}"] == 0
    assert numbers["figure13.mine.could_win_at_1"] == 1 + ("could_win_at_1" in counted), "at the other one, too"


def test_pairing_decides_what_intervals_leave_open(planned):
    """On 8 of 20 prompts transferred steering does what native does, and on 12 more, of which shares apart say less."""
    numbers = planned({("native", "upper"): first(8), ("transferred", "upper"): first(17)}).numbers("mine")
    low, high = numbers["figure13.mine.upper.transferred.low"], numbers["figure13.mine.upper.native.high"]
    assert low < high and numbers["figure13.mine.won_at_1"] == 1


@pytest.mark.parametrize(
    ("upper", "commas", "lead"),
    [
        ((20, 20), (20, 5), (0.75, True)),  # (native, transferred) at each: gains of 1 and of 1/4
        ((20, 5), (20, 20), (-0.75, True)),
        ((20, 12), (20, 11), (0.05, True)),
        ((20, 20), (3, 0), (0.0, False)),  # native steering cannot do the other, so there is nothing to carry across
        ((0, 20), (20, 5), (0.0, False)),
    ],
)
def test_letter_case_is_compared_where_native_steering_works(planned, upper, commas, lead):
    done = {}
    for kind, (native, transferred) in (("upper", upper), ("no_commas", commas)):
        done |= {("native", kind): first(native), ("transferred", kind): first(transferred)}
    numbers = planned(done).numbers("mine")
    value, low, high = (numbers[f"figure13.mine.casing.lead{end}"] for end in ("", ".low", ".high"))
    able = [numbers[f"figure13.mine.{which}.able"] for which in ("casing", "other")]
    expected, testable = lead
    assert value == pytest.approx(expected) and low <= value <= high and (min(able) == 1) == testable
    assert (low > 0) == (expected > 0.1) and (high < 0) == (expected < -0.1)
    assert numbers["figure12.mine.casing.able"] == 0 and numbers["figure12.mine.casing.lead.high"] == 1


def test_random_directions_are_paired_with_the_prompts_that_they_answer(planned):
    """One of three directions does what is asked, which is a third of the responses and no proof for directions."""
    done = {("random", "upper"): [True, True, False, False, False, False], ("transferred", "upper"): first(1)}
    sweep = planned(done)
    numbers = sweep.numbers("mine")
    assert numbers["figure13.mine.upper.random"] == pytest.approx(1 / 3)
    assert numbers["figure13.mine.upper.random.low"] == 0 and numbers["figure13.mine.upper.random.high"] >= 2 / 3
    assert numbers["figure13.mine.random_gain"] == pytest.approx(1 / 6)
    assert numbers["figure13.mine.over_random"] == pytest.approx((0.5 - 1 / 3) / 2), "of two prompts one is followed"
    costly = planned(done, nll={"random": 3.0}).numbers("mine")
    assert costly["figure13.mine.upper.random"] == 0
    assert costly["figure13.mine.upper.random.any_cost"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("rows", [5, 7])
def test_each_row_of_a_data_set_is_answered_once_by_what_the_others_gave(context_40, config, tmp_path, rows, strength):
    said = [
        {
            "prompt": f"Say {i}. Quote.",
            "prompt_without_instruction": f"Say {i}.",
            "instruction_id_list": ["startend:quotation"],
            "kwargs": [{}],
        }
        for i in range(rows)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, said)))
    pair = dataclasses.replace(context_40, datasets={"instructions": DatasetRef(str(tmp_path / "rows.jsonl"))})
    models = load_models(pair)
    stitched = StitchedPair(pair, models, LAYERS, "smoke")
    small = dataclasses.replace(config, kinds=("quotation",), prompts=99, folds=5, strength=strength)
    assert dataclasses.replace(small, prompts=rows) == dataclasses.replace(
        instruction_config(pair, "smoke", strength=strength),
        **{name: getattr(small, name) for name in ("fit_prompts", "choosing_prompts", "strengths", "batch_size")},
        prompts=rows,
        max_new_tokens=4,
    )
    stitches = fit_template_stitches(stitched, evaluated_chats(stitched, small)).stitches
    sweep = sweep_instructions(stitched, stitches, small)
    assert sorted(prompt.without for prompt in sweep.evaluated("quotation")) == [f"Say {i}." for i in range(rows)]
    assert len(sweep.answers("a", "native", "quotation").responses) == rows
    for fold in range(5):
        answered = {p.without for p in sweep.prompts["evaluated", "quotation", fold]}
        fitted = sweep.prompts["fit", "quotation", fold]
        assert not answered & {p.without for p in fitted} and len(fitted) >= 2
        both = [[getattr(p, part) for p in fitted] for part in ("given", "without")]
        own = own_vector(models[0], LAYERS[0], both)
        torch.testing.assert_close(
            sweep.vectors["a", ("quotation", fold)]["native"].direction, own.direction, rtol=1e-4, atol=1e-5
        )
        if not strength:
            used = {p.without for p in sweep.prompts["chosen", "quotation", fold]}
            assert used and not used & answered and not used & {p.without for p in fitted}
    assert len(sweep.shifts["a", "quotation"]) == rows, "every row is in the vectors of some folds"
    random = sweep.answers("a", "random", "quotation").responses
    assert len(random) == 3 * 5, "a prompt of each fold, since two prompts are fewer than five folds"
    numbers = sweep.numbers("mine")
    assert all(np.isfinite(value) for value in numbers.values())
    strengths = [sweep.chosen["a", "quotation", "native", fold] for fold in range(5)]
    assert numbers["figure12.mine.quotation.strength.native"] == pytest.approx(np.mean(strengths))


def test_responses_are_no_longer_than_the_models_have_room_for(swept, config):
    stitched, fit, _ = swept
    sweep = sweep_instructions(
        stitched, fit.stitches, dataclasses.replace(config, max_new_tokens=500, kinds=("upper",))
    )
    longest = max(
        len(model.tokenizer(text)["input_ids"])
        for model in stitched.models
        for prompts in sweep.prompts.values()
        for text in chat(model, [p.given for p in prompts])
    )
    room = stitched.models[0].config.max_position_embeddings - sweep.config.max_new_tokens
    assert 0 <= room - longest <= 1, "beginning-of-text may be written by the template or not"


def test_sizes(pair):
    with pytest.raises(ValueError, match="unknown scale 'huge'"):
        instruction_config(pair, "huge")
    assert instruction_config(pair, "smoke").kinds == ("upper", "closing")
    assert instruction_config(pair, "default").kinds == instruction_kinds(pair)
    with pytest.raises(ValueError, match=r"kinds=\(\): a sweep needs at least one"):
        InstructionConfig(kinds=(), prompts=1, choosing_prompts=1)
    with pytest.raises(ValueError, match="strengths must be positive"):
        InstructionConfig(kinds=("upper",), prompts=1, choosing_prompts=1, strengths=(0.0,))
    for name in ("random_directions", "random_prompts", "folds"):
        with pytest.raises(ValueError, match=f"{name}=0: a sweep needs at least one"):
            InstructionConfig(kinds=("upper",), prompts=1, choosing_prompts=1, **{name: 0})
    sizes = instruction_config(pair, "default")
    assert sizes.random_directions >= 20 and sizes.max_new_tokens >= 200 and sizes.nll_ceiling == 1
    assert instruction_config(pair, "smoke").strength == 0
    assert instruction_config(dataclasses.replace(pair, strength=1.0), "smoke").strength == 1
    assert instruction_config(dataclasses.replace(pair, strength=1.0), "smoke", strength=2.0).strength == 2
