r"""An ablation of the map that carries steering vectors over: every step from the main paper's to the sister paper's.

The main paper (arXiv 2506.06609) minimises Eq. 3, with inversion terms, between layers that SVCCA picks, and carries a
vector over without the bias. The sister paper (arXiv 2506.00653) minimises the unsquared error by AdamW, between layers
of the same number, and adds the bias. A recipe is one way to make a map and to carry vectors over by it. Each changes
one choice of the main paper's, and the last has all of the sister paper's; text and sizes are the same for all
(`stitching.lrt_maps`), but for the recipe that is about them.

Maps are kept in `artifacts/`, since a chapter is about the maps themselves and another steers by them.

Offers `Recipe`, `RECIPES`, `fit_recipes`, `FittedRecipes`, `recipe_errors`, `error_numbers`, `null_carriers`,
`steer_by_recipes`, `steering_numbers`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..models.harvest import ActivationStream
from ..stitching.fit import fit_exact
from ..stitching.lrt_maps import (
    MapConfig,
    MapErrors,
    Prediction,
    fit_unsquared,
    fit_unsquared_adam,
    map_batches,
    map_errors,
    map_stream,
    moments_of,
)
from ..stitching.moments import PairMoments
from ..stitching.nulls import component_stitches
from ..stitching.pair import StitchedPair
from ..stitching.stitch import Stitch
from ..utils.cache import kept
from ..utils.progress import progress
from .behaviours import Behaviour
from .multiple_choice import NULLS, ChoiceConfig, ChoiceSweep, steer_choices
from .vectors import Carrier, contrast_vectors, spread, steering_directions


class Recipe(NamedTuple):
    """How to make a map, and how to carry vectors over by it."""

    fit: str = "exact"
    """`exact`: Eq. 3; `unsquared`: the minimum of the unsquared error; `adam`: the same error by AdamW."""
    alpha: float = 1.0
    """Weight of the inversion terms of `exact`."""
    with_bias: bool = False
    same_layers: bool = False
    """Between layers of the same number, and not those that the pair is stitched at."""
    less_text: bool = False
    """A tenth of it."""


RECIPES = {
    "main": Recipe(),
    "no_inversion": Recipe(alpha=0.0),
    "unsquared": Recipe("unsquared"),
    "adam": Recipe("adam"),
    "bias": Recipe(with_bias=True),
    "same_layers": Recipe(same_layers=True),
    "less_text": Recipe(less_text=True),
    "sister": Recipe("adam", with_bias=True, same_layers=True),
}


@dataclass(frozen=True)
class FittedRecipes:
    """Maps of a pair by every recipe, with what they were fitted on."""

    config: MapConfig
    layers: Mapping[bool, tuple[int, int]]
    """The layers of both models, by `same_layers`, as are the next two."""
    streams: Mapping[bool, ActivationStream]
    """The activations fitted on."""
    moments: Mapping[bool, PairMoments]
    """Their moments."""
    stitches: Mapping[str, Stitch]
    """The maps, by recipe."""


def fit_recipes(stitched: StitchedPair, config: MapConfig) -> FittedRecipes:
    """Fit the maps of all `RECIPES`, each once, or read what was kept: recipes that differ in the bias alone share one.

    ValueError, naming the pair, for text that cannot be had.
    """
    models, layer = stitched.models, stitched.layers[0]
    layers = {False: stitched.layers, True: (layer, min(layer, models[1].n_layers - 1))}  # 20 and 20 for Gemma 2
    streams = {same: map_stream(stitched, at, config) for same, at in layers.items()}
    if layers[True] == layers[False]:
        streams[True] = streams[False]
    tenth = dataclasses.replace(config, tokens=max(config.tokens // 10, config.step_tokens * 2))
    options = {"d_a": models[0].d_model, "d_b": models[1].d_model, "lr": config.lr, "epochs": config.epochs}
    texts = {name: vars(of) for name, of in stitched.pair.datasets.items() if name.startswith("map_")}
    made_of = {"config": vars(config), "layers": layers, "datasets": texts}

    def file(kind: str, of: object) -> Path:
        return stitched.artifact(kind, made_of | {"of": of}, sources=(fit_recipes,), suffix=".safetensors")

    def gathered(same: bool) -> PairMoments:
        path = file("lrt-moments", same)
        return kept(path, lambda: moments_of(streams[same]), PairMoments.save, PairMoments.load)

    moments = {same: gathered(same) for same in layers}

    def fit(recipe: Recipe) -> Stitch:
        if recipe.fit == "unsquared":
            return fit_unsquared(streams[False])
        if recipe.fit == "adam":
            return fit_unsquared_adam(streams[recipe.same_layers], **options, seed=config.seed, device=models[1].device)
        less = recipe.less_text
        return fit_exact(
            moments_of(map_stream(stitched, stitched.layers, tenth)) if less else moments[recipe.same_layers],
            alpha=recipe.alpha,
        )

    @functools.cache
    def fitted(recipe: Recipe) -> Stitch:
        return kept(file("lrt-map", recipe._asdict()), lambda: fit(recipe), Stitch.save, Stitch.load)

    stitches = {name: fitted(one._replace(with_bias=False)) for name, one in progress(RECIPES.items(), "maps")}
    return FittedRecipes(config, layers, streams, moments, stitches)


def _between(same: bool) -> dict[str, Recipe]:
    """List the recipes whose map leads between layers of the same number, or between the stitched layers."""
    return {name: one for name, one in RECIPES.items() if one.same_layers == same}


def recipe_errors(stitched: StitchedPair, fitted: FittedRecipes, *, seed: int = 0) -> dict[tuple[str, str], MapErrors]:
    """Measure errors on the validation text, by recipe and the model that the map leads to, `b` or `a`.

    `mean` and `same_layers_mean` are the errors of the mean, which any map should beat.
    """
    found: dict[tuple[str, str], MapErrors] = {}
    for same, layers in fitted.layers.items():
        predictions: dict[tuple[str, str], Prediction] = {}
        for name in _between(same):
            predictions |= {(name, to): (to, fitted.stitches[name].towards(to)) for to in "ba"}
        for side, mean in (("b", fitted.moments[same].mean_y.float()), ("a", fitted.moments[same].mean_x.float())):
            always = (side, lambda x, y, mean=mean: mean.to(x).expand(len(x), -1))
            predictions["same_layers_mean" if same else "mean", side] = always
        batches = map_batches(stitched, fitted.config, held_out=True)
        found |= map_errors(stitched.models, layers, batches, predictions, seed=seed)
    return found


def steer_by_recipes(
    stitched: StitchedPair, fitted: FittedRecipes, some: Sequence[Behaviour], config: ChoiceConfig
) -> dict[bool, ChoiceSweep]:
    """Steer B by A's vectors through every map, at the layers of either kind; conditions are named by recipe.

    At the layers of each kind B is also steered by its own vectors (`native`), by `random` ones, and by A's through the
    closest of several maps that know of no pairs (`components`), with or without the bias.
    """
    model_a, model_b = stitched.models
    contrasts = {one.name: one.contrasts for one in some}
    other = contrast_vectors(model_a, stitched.layers[0], contrasts, batch_size=config.batch_size)
    sweeps = {}
    for same, (_, layer) in fitted.layers.items():
        native = contrast_vectors(model_b, layer, contrasts, batch_size=config.batch_size)
        maps = {name: (fitted.stitches[name], one.with_bias) for name, one in _between(same).items()}
        nulls = null_carriers(fitted.moments[same], seed=config.seed)
        directions = steering_directions(native, other, maps, seed=config.seed, nulls=nulls)
        sweeps[same] = steer_choices(model_b, layer, some, directions, config, unit=spread(fitted.moments[same]))
    return sweeps


def null_carriers(moments: PairMoments, *, seed: int = 0) -> list[Carrier]:
    """List maps that know of no pairs, without and with their bias (`stitching.nulls`)."""
    return [*itertools.product(component_stitches(moments, seed=seed), (False, True))]


def error_numbers(pair: str, fitted: FittedRecipes, errors: Mapping[tuple[str, str], MapErrors]) -> dict[str, float]:
    """List the entries of a results file for the errors of each recipe.

    Those of the sister paper's own recipe stand under the ids of its published numbers too.
    """
    start, numbers = f"lrt.{pair}", {}
    for (name, side), found in errors.items():
        numbers |= found.length.numbers(f"{start}.maps.{name}.length.to_{side}")
        numbers |= found.fuv.numbers(f"{start}.maps.{name}.fuv.to_{side}")
    numbers |= errors["sister", "b"].length.numbers(f"{start}.validation_loss")
    of_mean = errors["same_layers_mean", "b"]
    numbers[f"{start}.validation_loss_of_mean"] = of_mean.length.value
    numbers |= errors["sister", "b"].increase(of_mean).numbers(f"{start}.validation_loss.over_mean.increase")
    reweighting = fitted.stitches["unsquared"].report
    assert reweighting is not None  # every fit reports
    for side in "ba":
        squared, unsquared, adam = (errors[name, side] for name in ("no_inversion", "unsquared", "adam"))
        numbers |= unsquared.increase(squared).numbers(f"{start}.unsquared.to_{side}.increase")
        numbers |= adam.increase(unsquared).numbers(f"{start}.unsquared.adam.to_{side}.increase")
        numbers[f"{start}.unsquared.passes.to_{side}"] = reweighting.sweeps
    return numbers


def steering_numbers(pair: str, sweeps: Mapping[bool, ChoiceSweep]) -> dict[str, float]:
    """List the entries of a results file for steering by each recipe.

    Those of the sister paper's own recipe stand under the ids of its published numbers too.
    """
    start, numbers = f"lrt.{pair}", {}
    for same, sweep in sweeps.items():
        for condition in (*_between(same), *NULLS):
            name = f"same_layers_{condition}" if same and condition in NULLS else condition
            numbers |= sweep.mean_correlation(condition).numbers(f"{start}.steered.{name}.correlation")
            numbers |= sweep.slope(condition).numbers(f"{start}.steered.{name}.slope")
            numbers[f"{start}.steered.{name}.cosine"] = sweep.mean_cosine(condition)
            numbers[f"{start}.steered.{name}.likeness"] = sweep.likeness(condition)
            curves = {one: sweep.curve_correlation(one, condition) for one in sweep.behaviours}
            for one, curve in curves.items():
                id = f"{start}.steered.{name}.{one}"
                numbers |= sweep.correlation(one, condition).numbers(f"{id}.correlation")
                numbers |= sweep.slope(condition, [one]).numbers(f"{id}.slope") | {f"{id}.curve_correlation": curve}
            numbers |= sweep.curve_correlation_size(condition).numbers(f"{start}.steered.{name}.curve_correlation_size")
            if condition not in NULLS:
                numbers |= sweep.over_nulls(condition).numbers(f"{start}.steered.{name}.over_null")
    main = f"{start}.steered.main"
    numbers |= sweeps[False].lead("main", "bias").numbers(f"{main}.over_bias")
    numbers |= sweeps[False].lead("main", "same_layers", elsewhere=sweeps[True]).numbers(f"{main}.over_same_layers")
    numbers |= sweeps[False].likeness_gain("bias", "main").numbers(f"{start}.steered.bias.likeness_gain")
    for one in sweeps[True].behaviours:
        numbers |= sweeps[True].correlation(one, "sister").numbers(f"{start}.correlation.{one}")
    summary = f"{start}.correlation_summary"
    numbers |= sweeps[True].mean_correlation("sister").numbers(f"{summary}.mean")
    numbers |= sweeps[True].lowest_correlation("sister").numbers(f"{summary}.lowest")
    return numbers
