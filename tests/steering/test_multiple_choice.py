"""Contrast vectors, addition and logit differences against naive ones, a text at a time; correlations against numpy."""

import dataclasses

import numpy as np
import pytest
import torch

from stitch_utils.steering.behaviours import Behaviour, Choice
from stitch_utils.steering.multiple_choice import (
    ChoiceConfig,
    ChoiceSweep,
    logit_differences,
    preference,
    questions,
    steer_choices,
)
from stitch_utils.steering.vectors import add, contrast_vectors, steering_directions
from stitch_utils.stitching.stitch import Stitch
from stitch_utils.utils.stats import clopper_pearson, correlations

LAYER = 2
PAIRS = [("The cook sees the cake.", "The cook saw the cake."), ("A cat", "A dog and a cat"), ("Yes", "No")]
CHOICES = [
    Choice("The cook sees", " the", " a", True),
    Choice("Yes, I am", " glad", " sad", False),
    Choice("No", ".", "?", True),
    Choice("The cook is", " beautiful", " defective", False),
    Choice("She", " x", " q"),
]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def toy_stitch(d_a=32, d_b=48):
    return Stitch(*(normal(*s, seed=i) / 4 for i, s in enumerate(((d_a, d_b), (d_b,), (d_b, d_a), (d_a,)))))


def ids_of(model, text):
    return [model.tokenizer.bos_token_id, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]


# ---- vectors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_a_vector_is_the_mean_difference_at_the_last_token(random_models, batch_size):
    model = random_models[1]
    last = [
        [model.residuals(torch.tensor([ids_of(model, text)]), [LAYER])[LAYER][0, -1].double() for text in both]
        for both in PAIRS
    ]
    expected = torch.stack([first - second for first, second in last]).mean(0)
    found = contrast_vectors(model, LAYER, {"x": PAIRS}, batch_size=batch_size)["x"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="no contrast pairs given for 'y'"):
        contrast_vectors(model, LAYER, {"x": PAIRS, "y": []})


def test_adding_moves_every_position_by_alpha(random_models):
    model = random_models[1]
    direction, tokens = 5 * normal(48), torch.tensor([ids_of(model, "The cook sees the cake.")])
    residual = model.residuals(tokens, [LAYER])[LAYER]
    moved = add(direction, -3.0)(residual)
    expected = residual - 3 * direction / direction.norm()
    torch.testing.assert_close(moved, expected)
    replaced = model.logits(tokens, layer=LAYER, edit=lambda _: expected)
    torch.testing.assert_close(model.logits(tokens, layer=LAYER, edit=add(direction, -3.0)), replaced)
    half = add(direction, 1e-3)(residual.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, (residual.bfloat16().float() + 1e-3 * direction / direction.norm()).bfloat16())
    with pytest.raises(ValueError, match="the direction has length 0: expected a positive one"):
        add(torch.zeros(4), 1.0)


# ---- answers ------------------------------------------------------------------------------------------------------


def naive_difference(model, choice, **edit):
    """By the first token in which prompt + answer differ."""
    first, second = (ids_of(model, choice.prompt + answer) for answer in (choice.matching, choice.other))
    at = 0
    while first[at] == second[at]:
        at += 1
    logits = model.logits(torch.tensor([first[:at]]), **edit)[0, -1]
    return (logits[first[at]] - logits[second[at]]).item()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_differences_are_read_where_the_answers_part(random_models, batch_size):
    model = random_models[0]
    edit = {"layer": 1, "edit": add(normal(32), 2.0)}
    for given in ({}, edit):
        found = logit_differences(model, questions(model, CHOICES), batch_size=batch_size, **given)
        np.testing.assert_allclose(found, [naive_difference(model, one, **given) for one in CHOICES], atol=1e-4)


def test_answers_of_several_tokens_share_their_beginning(random_models):
    model = random_models[0]
    asked = questions(model, [Choice("The", " pancake", " panther"), Choice("The", " zq", " zy")])
    for row, matching, other in asked:
        assert matching != other and row[0] == model.tokenizer.bos_token_id
    whole = [ids_of(model, f"The{answer}") for answer in (" zq", " zy")]
    row, *answers = asked[1]
    shared = len(row)
    assert whole[0][:shared] == whole[1][:shared] == row and len(whole[0]) > 3
    assert answers == [whole[0][shared], whole[1][shared]]
    for one in (Choice("The", " cook", " cook"), Choice("The", " cook", " cook sees")):
        with pytest.raises(ValueError, match="are one, or begin each other"):
            questions(model, [one])
    with pytest.raises(ValueError, match="no choices given"):
        questions(model, [])


def test_preference_is_the_share_that_the_prompts_call_for(random_models):
    model = random_models[0]
    right = sum((naive_difference(model, one) > 0) == one.called_for for one in CHOICES[:4])
    assert preference(model, CHOICES) == clopper_pearson(right, 4)
    turned = [one._replace(called_for=naive_difference(model, one) > 0) for one in CHOICES[:4]]
    assert preference(model, turned).value == 1
    with pytest.raises(ValueError, match="none of the prompts calls for an answer"):
        preference(model, CHOICES[4:])


# ---- two dose-responses -------------------------------------------------------------------------------------------


@pytest.fixture
def curves():
    """(alphas, questions): rising lines with noise, the second half as steep as the first."""
    rng, alphas = np.random.default_rng(0), np.linspace(-3, 3, 7)
    slopes = rng.normal(2, 0.3, size=40)
    native = np.outer(alphas, slopes) + rng.normal(size=(7, 40))
    return alphas.tolist(), native, np.outer(alphas, slopes / 2) + 5 + rng.normal(size=(7, 40))


def compared(native, other, alphas):
    """A sweep of one behaviour, with answers that are given."""
    answers = {("x", "native"): native, ("x", "other"): other}
    return ChoiceSweep(
        ChoiceConfig(1, 1, doses=tuple(alphas)), {"x": dict.fromkeys(("native", "other"), normal(48))}, answers
    )


def test_correlations_are_numpys(curves):
    alphas, native, other = curves
    sweep = compared(native, other, alphas)
    each = [np.corrcoef(native[:, i], other[:, i])[0, 1] for i in range(40)]
    np.testing.assert_allclose(correlations(native, other), each)
    found = sweep.correlation("x", "other")
    assert found.value == pytest.approx(np.mean(each))
    half = 1.96 * np.std(each) / 40**0.5
    assert found.high - found.low == pytest.approx(2 * half, rel=0.15)
    whole = sweep.curve_correlation("x", "other")
    assert whole == pytest.approx(np.corrcoef(native.mean(1), other.mean(1))[0, 1]) and whole > found.value
    assert compared(native, -other, alphas).correlation("x", "other").value == pytest.approx(-np.mean(each))


def many(native, *others, names=("x", "y"), directions=None):
    """A sweep of several behaviours with the same answers, by the conditions `other`, `components` and `random`."""
    conditions = ("native", "other", "components", "random")
    answers = {(name, which): of for name in names for which, of in zip(conditions, (native, *others))}
    same = dict.fromkeys(conditions, normal(48))
    config = ChoiceConfig(1, 1, doses=tuple(range(-3, 4)))
    return ChoiceSweep(config, directions or dict.fromkeys(names, same), answers)


def test_correlations_are_compared_question_by_question_with_the_better_null(curves):
    _, native, other = curves
    noise = np.random.default_rng(1).normal(size=(3, 7, 40))
    less, more = 0.2 * native + noise[0], 0.6 * native + noise[1]
    sweep = many(native, other, less, more)
    each = {name: correlations(native, sweep.responses["x", name]) for name in ("other", "components", "random")}
    assert each["random"].mean() > each["components"].mean()
    assert sweep.over_nulls("other").value == pytest.approx((each["other"] - each["random"]).mean())
    down = many(native, other, less, -more)
    assert down.over_nulls("other").value == pytest.approx(sweep.over_nulls("other").value), "up or down"
    lead = sweep.lead("other", "components")
    assert lead.value == pytest.approx((each["other"] - each["components"]).mean()) and lead.low > 0
    elsewhere = many(native + noise[2], less, less, less)
    expected = each["other"] - correlations(native + noise[2], less)
    assert sweep.lead("other", "other", elsewhere=elsewhere).value == pytest.approx(expected.mean())


def test_the_lowest_correlation_has_an_interval(curves):
    _, native, other = curves
    sweep = many(native, other, other, other)
    sweep.responses["y", "other"] = native + 6 * np.random.default_rng(2).normal(size=(7, 40))
    of_y = sweep.correlation("y", "other")
    assert of_y.high < sweep.correlation("x", "other").low
    assert sweep.lowest_correlation("other") == pytest.approx(of_y)


def test_the_size_of_mean_curves_correlations_is_taken_whichever_their_sign(curves):
    _, native, other = curves
    sweep = many(native, other, -other, 5 + np.random.default_rng(3).normal(size=(7, 40)))
    assert sweep.curve_correlation("x", "components") < -0.9
    assert sweep.curve_correlation_size("components") == pytest.approx(sweep.curve_correlation_size("other"))
    value, low, high = sweep.curve_correlation_size("random")
    assert value == pytest.approx(abs(sweep.curve_correlation("x", "random"))) and low < value < high < 1
    assert high - low > 0.2 > 0.05 > np.ptp(sweep.curve_correlation_size("other"))


def test_slopes_are_least_squares(curves):
    alphas, native, other = curves
    expected = np.polyfit(alphas, other.mean(1), 1)[0] / np.polyfit(alphas, native.mean(1), 1)[0]
    found = compared(native, other, alphas).slope("other")
    assert found.value == pytest.approx(expected) == pytest.approx(0.5, abs=0.05)
    assert found.low < expected < found.high < 0.7


def test_what_does_not_move_correlates_with_nothing(curves):
    alphas, native, other = curves
    still = other.copy()
    still[:, ::2] = 1.0
    each = correlations(native, still)
    assert not each[::2].any() and each[1::2].all()
    with pytest.raises(ValueError, match="native steering does not move the answers"):
        compared(np.zeros_like(native), other, alphas).slope("other")


# ---- the sweeps ---------------------------------------------------------------------------------------------------


def test_maps_with_and_without_the_bias(random_models):
    stitch = toy_stitch()
    native, other = {"x": normal(48, seed=3).double()}, {"x": normal(32, seed=4).double()}
    found = steering_directions(native, other, {"with": (stitch, True), "without": (stitch, False)}, seed=2)["x"]
    image = other["x"].float() @ stitch.P_up
    torch.testing.assert_close(found["without"], image / image.norm())
    image = image + stitch.b_up
    torch.testing.assert_close(found["with"], image / image.norm())
    torch.testing.assert_close(found["native"], (native["x"] / native["x"].norm()).float())
    assert list(found) == ["native", "with", "without", "random"]
    assert found["random"].norm().item() == pytest.approx(1)
    again = steering_directions(native, other, {}, seed=3)["x"]["random"]
    assert not torch.equal(again, found["random"])


@pytest.fixture
def sweep(random_models):
    config = ChoiceConfig(contrasts=3, choices=5, doses=(-2.0, 0.0, 2.0))
    some = [Behaviour("x", tuple(PAIRS), tuple(CHOICES)), Behaviour("y", tuple(PAIRS[:2]), tuple(CHOICES[:3]))]
    contrasts = {one.name: one.contrasts for one in some}
    vectors = [contrast_vectors(model, layer, contrasts) for model, layer in zip(random_models, (1, LAYER))]
    maps = {"with": (toy_stitch(), True), "without": (toy_stitch(), False)}
    directions = steering_directions(vectors[1], vectors[0], maps)
    return steer_choices(random_models[1], LAYER, some, directions, config, unit=1.5), directions


def test_a_sweep_is_all_of_it(sweep, random_models):
    found, directions = sweep
    assert found.behaviours == ("x", "y")
    for name, choices in (("x", CHOICES), ("y", CHOICES[:3])):
        for condition, direction in directions[name].items():
            expected = [
                [
                    naive_difference(random_models[1], one, layer=LAYER, edit=add(direction, dose * 1.5))
                    for one in choices
                ]
                for dose in found.config.doses
            ]
            np.testing.assert_allclose(found.responses[name, condition], expected, atol=2e-4)
            assert np.ptp(found.responses[name, condition], axis=0).min() > 0.01
            np.testing.assert_array_equal(found.responses[name, condition][1], found.responses[name, "native"][1])
    own = found.responses["x", "native"]
    assert found.correlation("x", "native").value == pytest.approx(1) == found.slope("native", ["x"]).value
    each = [found.correlation(name, "with").value for name in "xy"]
    assert found.mean_correlation("with").value == pytest.approx(np.mean(each))
    np.testing.assert_allclose(found.mean_response("x", "native"), own.mean(1))
    slopes = [
        sum(np.polyfit(found.config.doses, found.responses[name, condition][:, :3].mean(1), 1)[0] for name in "xy")
        for condition in ("with", "native")
    ]
    assert found.slope("with").value == pytest.approx(slopes[0] / slopes[1])


def test_how_alike_the_directions_are(sweep):
    found, directions = sweep
    cosines = {name: (directions[name]["native"] @ directions[name]["with"]).item() for name in "xy"}
    of_x = dataclasses.replace(found, directions={"x": directions["x"]})
    assert of_x.mean_cosine("with") == pytest.approx(cosines["x"], abs=1e-6)
    assert found.mean_cosine("with") == pytest.approx(sum(cosines.values()) / 2, abs=1e-6)
    between = torch.dot(directions["x"]["with"].double(), directions["y"]["with"].double()).item()
    assert found.likeness("with") == pytest.approx(between, abs=1e-6)
    less = found.likeness("without")
    assert found.likeness_gain("with", "without") == pytest.approx((between - less, -2, 2)), "two are too few"


def test_likeness_is_gained_over_behaviours(curves):
    _, native, other = curves
    names, common = tuple("vwxyz"), normal(48, seed=9)
    alone = {name: normal(48, seed=seed) for seed, name in enumerate(names)}
    directions = {name: {"alone": own, "pulled": own + 2 * common} for name, own in alone.items()}
    sweep = many(native, other, other, other, names=names, directions=directions)
    gain = sweep.likeness_gain("pulled", "alone")
    assert gain.value == pytest.approx(sweep.likeness("pulled") - sweep.likeness("alone"))
    assert 0.3 < gain.low < gain.value < gain.high < 1.1


def test_settings_that_make_no_sense():
    with pytest.raises(ValueError, match="needs three at least"):
        ChoiceConfig(1, 1, doses=(0.0, 1.0))
