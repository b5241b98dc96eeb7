"""Maps by every recipe: which data and which fit each is made of, and what is measured of them."""

import dataclasses

import numpy as np
import pytest
import torch

from stitch_utils.steering import map_recipes
from stitch_utils.steering.behaviours import Behaviour, Choice
from stitch_utils.steering.map_recipes import (
    RECIPES,
    error_numbers,
    fit_recipes,
    recipe_errors,
    steer_by_recipes,
    steering_numbers,
)
from stitch_utils.steering.multiple_choice import ChoiceConfig
from stitch_utils.steering.vectors import contrast_vectors, spread, transfer_vector
from stitch_utils.stitching.fit import fit_exact
from stitch_utils.stitching.lrt_maps import (
    MapConfig,
    fit_unsquared,
    fit_unsquared_adam,
    map_batches,
    map_stream,
    moments_of,
)
from stitch_utils.stitching.nulls import DRAWS, component_stitches
from stitch_utils.stitching.pair import StitchedPair

STITCHED = (1, 2)
CONFIG = MapConfig(tokens=2000, step_tokens=50, lr=1e-2)
PARTS = ("P_up", "b_up", "P_down", "b_down")
BEHAVIOURS = [
    Behaviour(
        name,
        (("A cook.", "Two cooks."), ("The cake", "The cakes")),
        (Choice("The cook sees", " the", " a"), Choice("No", ".", "?"), Choice("She", " x", " q")),
    )
    for name in "xy"
]


@pytest.fixture
def fitted(pair, models):
    return fit_recipes(StitchedPair(pair, models, STITCHED, "smoke"), CONFIG)


def test_every_recipe_is_its_own_fit_on_its_own_data(pair, models, fitted):
    assert fitted.layers == {False: (1, 2), True: (1, 1)}
    stitched = StitchedPair(pair, models, STITCHED, "smoke")
    streams = {same: list(map_stream(stitched, at, CONFIG)) for same, at in fitted.layers.items()}
    less = list(map_stream(stitched, STITCHED, dataclasses.replace(CONFIG, tokens=200)))
    options = {"d_a": 32, "d_b": 48, "lr": CONFIG.lr}
    expected = {
        "main": fit_exact(moments_of(streams[False])),
        "no_inversion": fit_exact(moments_of(streams[False]), alpha=0),
        "unsquared": fit_unsquared(streams[False]),
        "adam": fit_unsquared_adam(streams[False], **options),
        "bias": fit_exact(moments_of(streams[False])),
        "same_layers": fit_exact(moments_of(streams[True])),
        "less_text": fit_exact(moments_of(less)),
        "sister": fit_unsquared_adam(streams[True], **options),
    }
    assert expected.keys() == RECIPES.keys() == fitted.stitches.keys()
    for name, stitch in expected.items():
        for part in PARTS:
            torch.testing.assert_close(
                getattr(fitted.stitches[name], part), getattr(stitch, part), rtol=1e-4, atol=1e-5
            )
    assert len({tuple(fitted.stitches[name].P_up[0].tolist()) for name in RECIPES}) == len(RECIPES) - 1
    assert fitted.stitches["unsquared"].report.sweeps > 1


def test_each_recipe_differs_from_the_first_in_one_choice():
    first = RECIPES["main"]._asdict()
    changed = {
        name: {key for key, value in one._asdict().items() if value != first[key]} for name, one in RECIPES.items()
    }
    assert changed.pop("main") == set() and changed.pop("sister") == {"fit", "with_bias", "same_layers"}
    assert all(len(keys) == 1 for keys in changed.values()) and len(changed) == 6


def test_errors_are_those_of_the_held_out_tenth(pair, models, fitted):
    stitched = StitchedPair(pair, models, STITCHED, "smoke")
    errors = recipe_errors(stitched, fitted)
    xs, ys = {False: [], True: []}, {False: [], True: []}
    for batch in (both.a for both in map_batches(stitched, CONFIG, held_out=True)):
        for same, (a, b) in fitted.layers.items():
            xs[same].append(models[0].residuals(batch.tokens, [a])[a][batch.mask].double())
            ys[same].append(models[1].residuals(batch.tokens, [b])[b][batch.mask].double())
    for name, one in RECIPES.items():
        x, y = torch.cat(xs[one.same_layers]), torch.cat(ys[one.same_layers])
        stitch = fitted.stitches[name].to(torch.float64)
        assert errors[name, "b"].length.value == pytest.approx((stitch.up(x) - y).norm(dim=1).mean().item(), rel=1e-5)
        assert errors[name, "a"].length.value == pytest.approx((stitch.down(y) - x).norm(dim=1).mean().item(), rel=1e-5)
    for same, name in ((False, "mean"), (True, "same_layers_mean")):
        y = torch.cat(ys[same])
        expected = (y - fitted.moments[same].mean_y).norm(dim=1).mean().item()
        assert errors[name, "b"].length.value == pytest.approx(expected, rel=1e-5)
        assert errors[name, "b"].fuv.value == pytest.approx(1, abs=0.1)


def test_vectors_go_through_every_map_and_numbers_have_their_ids(pair, models, fitted):
    config = ChoiceConfig(contrasts=2, choices=3, doses=(-1.0, 0.0, 1.0))
    sweeps = steer_by_recipes(StitchedPair(pair, models, STITCHED, "smoke"), fitted, BEHAVIOURS, config)
    other = contrast_vectors(models[0], 1, {"x": BEHAVIOURS[0].contrasts})["x"]
    for name, one in RECIPES.items():
        sweep = sweeps[one.same_layers]
        expected = transfer_vector(other, fitted.stitches[name], to="b", with_bias=one.with_bias)
        torch.testing.assert_close(sweep.directions["x"][name], expected)
        assert name not in sweeps[not one.same_layers].directions["x"]
    for same, sweep in sweeps.items():
        layer = fitted.layers[same][1]
        again = map_recipes.steer_choices(
            models[1], layer, BEHAVIOURS[:1], sweep.directions, config, unit=spread(fitted.moments[same])
        )
        np.testing.assert_allclose(again.responses["x", "random"], sweep.responses["x", "random"])
    errors = recipe_errors(StitchedPair(pair, models, STITCHED, "smoke"), fitted)
    numbers = error_numbers("mine", fitted, errors) | steering_numbers("mine", sweeps)
    assert numbers["lrt.mine.validation_loss"] == errors["sister", "b"].length.value
    assert numbers["lrt.mine.validation_loss_of_mean"] == errors["same_layers_mean", "b"].length.value
    own = [sweeps[True].correlation(name, "sister").value for name in "xy"]
    assert [numbers[f"lrt.mine.correlation.{name}"] for name in "xy"] == own
    assert numbers["lrt.mine.correlation_summary.lowest"] == min(own)
    assert numbers["lrt.mine.correlation_summary.mean"] == pytest.approx(np.mean(own))
    lengths = [errors[name, "b"].length.value for name in ("no_inversion", "unsquared", "adam")]
    assert numbers["lrt.mine.unsquared.to_b.increase"] == pytest.approx(lengths[1] / lengths[0] - 1)
    assert numbers["lrt.mine.unsquared.adam.to_b.increase"] == pytest.approx(lengths[2] / lengths[1] - 1)
    of_mean = errors["sister", "b"].length.value / errors["same_layers_mean", "b"].length.value - 1
    assert numbers["lrt.mine.validation_loss.over_mean.increase"] == pytest.approx(of_mean)
    passes = {numbers[f"lrt.mine.unsquared.passes.to_{side}"] for side in "ab"}
    assert passes == {fitted.stitches["unsquared"].report.sweeps}
    assert numbers["lrt.mine.steered.bias.likeness"] == sweeps[False].likeness("bias")
    assert numbers["lrt.mine.steered.main.over_bias"] == sweeps[False].lead("main", "bias").value
    layers = sweeps[False].mean_correlation("main").value - sweeps[True].mean_correlation("same_layers").value
    assert numbers["lrt.mine.steered.main.over_same_layers"] == pytest.approx(layers)
    assert numbers["lrt.mine.steered.sister.over_null"] == sweeps[True].over_nulls("sister").value
    nulls = ("components", "random", "same_layers_components", "same_layers_random")
    assert {f"lrt.mine.steered.{name}.correlation.low" for name in (*RECIPES, *nulls)} <= {*numbers}


def test_of_maps_without_a_pairing_the_one_most_like_the_native_vector_is_taken(pair, models, fitted):
    config = ChoiceConfig(contrasts=2, choices=3, doses=(-1.0, 0.0, 1.0))
    sweeps = steer_by_recipes(StitchedPair(pair, models, STITCHED, "smoke"), fitted, BEHAVIOURS[:1], config)
    other = contrast_vectors(models[0], 1, {"x": BEHAVIOURS[0].contrasts})["x"]
    for same, sweep in sweeps.items():
        found, images = sweep.directions["x"], []
        for stitch in component_stitches(fitted.moments[same], seed=config.seed):
            images += [transfer_vector(other, stitch, to="b", with_bias=bias) for bias in (False, True)]
        assert len(images) == 2 * DRAWS
        cosines = [(image @ found["native"]).item() for image in images]
        torch.testing.assert_close(found["components"], images[int(np.argmax(cosines))])


def test_where_both_papers_take_the_same_layers_the_text_is_read_once(pair, models, monkeypatch):
    asked = []
    real = map_recipes.map_stream
    monkeypatch.setattr(map_recipes, "map_stream", lambda *args, **options: asked.append(1) or real(*args, **options))
    found = fit_recipes(StitchedPair(pair, models, (1, 1), "smoke"), CONFIG)
    assert found.streams[True] is found.streams[False] and found.layers[True] == (1, 1)


def test_a_layer_that_the_other_model_lacks_gives_way_to_its_last(pair, models):
    assert models[0].n_layers == 3 < models[1].n_layers
    found = fit_recipes(StitchedPair(pair, models[::-1], (3, 0), "smoke"), CONFIG)
    assert found.layers == {False: (3, 0), True: (3, 2)}
