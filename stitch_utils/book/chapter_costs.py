"""What each chapter computes, from the sizes of a pair at a scale (no section of its own; App. D counts FLOPs alike).

Each function stands for one chapter and follows its cells. Counted are passes through the models, fits by gradient
descent, and SAEs. Left out are decompositions, searches for neighbours, and the fits of scikit-learn. A response counts
as if it ran to its limit of tokens.

Offers `CHAPTERS`, of `Chapter`, and `SHARED`, what several chapters take from `artifacts/`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from ..data.embedded.grammar import LANGUAGES
from ..data.pairs import ModelPair
from ..features.study import feature_study_config
from ..models.costs import stitch_adam_flops
from ..models.generation import FIRST_STAGE
from ..models.harvest import ActivationStream
from ..probing import tasks
from ..saes.comparison import LARGEST_EXACT
from ..saes.initialisation import INITIALS
from ..saes.pair import CHECKPOINT_EVERY, COUNTED_TOKENS, EVALUATIONS, JUDGED_TOKENS
from ..steering.instructions import instruction_config
from ..steering.languages import RUNS, language_config
from ..stitching import comparison, lrt_maps
from ..stitching.nulls import DRAWS
from .portrait import GIVEN_TOKENS, NEW_TOKENS, SAMPLES
from .workloads import Sizes, Workload

ADAM_TOKENS = ActivationStream.step_tokens  # of a step of the paper's fitter
PUBLISHED_SETS = {  # classes of the data sets that a pair's file names
    "probing_bios": [*map(len, tasks.BIOS.values())],
    "probing_amazon": [*map(len, (tasks.CATEGORIES | tasks.RATINGS).values())],
    "probing_code": [len(tasks.ENDINGS)],
    "probing_ag_news": [*map(len, tasks.NEWS.values())],
    "probing_europarl": [len(tasks.EUROPARL)],
}


def _pairs(sizes: Sizes, given: Mapping[str, Any]) -> Workload:
    scale, context = sizes.scale, sizes.pair.context
    work = sizes.fidelity(sizes.held_out, 1) + sizes.harvest(2 * scale.batch_size * context)
    if sizes.pair.name != "tiny":
        return work
    length = GIVEN_TOKENS + NEW_TOKENS
    tokens = 2 * len(LANGUAGES) * SAMPLES[sizes.name] * length  # continuations at two temperatures
    return work + Workload(tokens, tokens * sizes.whole("b", length))


def _stitching(sizes: Sizes, given: Mapping[str, Any]) -> Workload:
    """Leave out the refit of a layer of massive activations, which few models need.

    In memory the sample of SVCCA counts with its main directions, in float64, as if these were as many as dimensions.
    """
    scale, held_out, (d_a, d_b) = sizes.scale, sizes.held_out, sizes.widths
    alphas, sample = len({*given["alphas"], given["alpha"]}), scale.svcca_tokens
    work = _stitch(sizes) + sizes.kept() + sizes.harvest(held_out + scale.train_tokens // 4)
    work += sizes.strongest(given["draws"])
    work += sizes.fidelity(held_out, 2 + 2 * (2 + alphas))
    last = {side: max(0, sizes.depth(side) - 1) for side in "ab"}
    work += Workload(2 * sample, sample * sum(sizes.prefix(side, layer) for side, layer in last.items()))
    blocks = {side: min(sizes.depth(side), scale.svcca_layers or sizes.depth(side)) for side in "ab"}
    products = sample * 2 * d_a * d_b * (blocks["a"] * blocks["b"] + 2 * given["draws"])
    numbers = sample * (blocks["a"] * d_a + blocks["b"] * d_b)
    kept = numbers * (getattr(torch, sizes.pair.dtype).itemsize + 8)
    work += Workload(flops=products, double=products, host=kept)
    work += Workload(flops=sample * 2 * (d_a + d_b) ** 2 * blocks["b"])
    few = sizes.part(100)
    for layer in range(0, sizes.depth("b"), max(1, sizes.depth("b") // max(1, blocks["b"]))):  # each, stitched
        work += Workload(2 * few, few * (sizes.whole("a") + sizes.whole("b") + sizes.rest("b", layer)))
    steps = given["adam_steps"] or scale.adam_steps
    rounds = 1 if sizes.keeps else -(-steps * ADAM_TOKENS // scale.train_tokens)
    work += sizes.read(rounds * scale.train_tokens) + Workload(
        flops=stitch_adam_flops(1, 1, steps * ADAM_TOKENS) * d_a * d_b
    )
    work += sizes.read(held_out) + sizes.fidelity(held_out, 3)
    work += sizes.read(held_out, "b") + sizes.splice(held_out, b=1 + alphas)
    return work + Workload(flops=held_out * alphas * 4 * d_b * sizes.sae("a"))


def _sae_transfer(sizes: Sizes, given: Mapping[str, Any]) -> Workload:
    held_out, a, b = sizes.held_out, sizes.sae("a"), sizes.sae("b")
    d_a, d_b = sizes.widths
    anew = [side for side in "ab" if str(sizes.pair.saes.get(side)).startswith("embedded:")]
    work = sum((sizes.trained(side) for side in anew), Workload())
    work += sizes.read(sizes.first, "b") + Workload(flops=sizes.first * 2 * given["draws"] * 4 * d_b * a)
    work += sizes.read(held_out) + sizes.splice(held_out, a=3, b=6)
    return work + Workload(flops=held_out * 4 * (d_b * (3 * a + b) + d_a * (a + b)))


def _sae_training(sizes: Sizes, given: Mapping[str, Any]) -> Workload:
    """Count the sweep: all runs of a side read the same batches."""
    scale, recipe = sizes.scale, sizes.pair.sae_recipe
    widths, steps = sorted(given["widths"]) or scale.sweep_widths, scale.sae_sweep_steps
    tokens = steps * recipe.batch_tokens
    rounds = 1 if sizes.keeps else -(-tokens // scale.train_tokens)
    of_b = [*widths * len(INITIALS), max(widths), max(widths), min(widths), min(widths)]
    encoded = (1 + min(steps, EVALUATIONS)) * min(JUDGED_TOKENS, sizes.held_out)
    encoded += min(COUNTED_TOKENS, scale.train_tokens)
    work = Workload()
    for side, runs in (("a", widths), ("b", of_b)):
        d, runs = sizes.width(side), runs * given["seeds"]
        flops = sum(tokens * sizes.step(side, width) + 2 * encoded * d * width for width in runs)
        weights = sum(4 * (2 * d * width + width + d) for width in runs)
        state = 3 * weights  # with Adam's moments; copied to memory before it is written
        work += sizes.read(rounds * scale.train_tokens + sizes.held_out, side)
        work += Workload(
            flops=flops,
            device=4 * weights,
            host=sizes.kept(side).host + state,
            disk=state + weights,
            written=state * ((steps - 1) // CHECKPOINT_EVERY),
        )
    return work


def _probing(sizes: Sizes, given: Mapping[str, Any]) -> Workload:
    texts = sizes.pair.sizes_of("probing", sizes.name)
    tokens = sum(_classes(sizes.pair)) * (texts["n_train"] + texts["n_test"]) // 2 * sizes.lengths.text
    d_a, d_b = sizes.widths
    encoders = 2 * (d_a * sizes.sae("a") + d_b * (2 * sizes.sae("a") + sizes.sae("b")))
    return sizes.strongest() + sizes.read(tokens) + Workload(flops=tokens * encoders)


def _classes(pair: ModelPair) -> list[int]:
    """Count the classes of each data set of the probes."""
    if refs := [name for name in pair.datasets if name.startswith("probing_")]:
        return [count for name in refs for count in PUBLISHED_SETS.get(name, ())]
    sets = tasks.DOCUMENTATION if pair.train.source == "documentation" else tasks.WORLD
    return [len(classes) for classes, _ in sets.values()]


def _responses(sizes: Sizes, side: str, count: float, new: int, *, at_once: int) -> Workload:
    """Write responses of `new` tokens, in stages that each read what came before, and take their losses twice.

    A batch of `at_once` is not halved where its logits do not fit.
    """
    read, stage = sizes.lengths.prompt + 2 * new, 0
    while stage < new:
        stage = min(2 * stage or FIRST_STAGE, new)
        read += sizes.lengths.prompt + stage
    length = sizes.lengths.prompt + new
    logits = sizes.logits(side, at_once * length)
    return Workload(count * read, count * read * sizes.whole(side, length), device=logits)


def _steering(sizes: Sizes, given: Mapping[str, Any]) -> Workload:
    config = language_config(sizes.pair, sizes.name, strength=given["strength"])
    steered = len({(name, strength or config.strength) for name, strength, _ in RUNS if name != "none"})
    chosen = 1 + len(config.choosing_languages) * 2 * len(config.strengths)
    count = config.choosing_prompts * chosen + config.prompts * (1 + len(config.languages) * steered)
    work = sizes.read(len(config.languages) * 2 * config.pairs * sizes.lengths.sentence)
    given = {"at_once": min(config.batch_size, config.prompts)}
    return sum((_responses(sizes, side, count, config.max_new_tokens, **given) for side in "ab"), work)


def _instruction_following(sizes: Sizes, given: Mapping[str, Any]) -> Workload:
    """HubError for prompts that are not to be had."""
    config, scale = instruction_config(sizes.pair, sizes.name, strength=given["strength"]), sizes.scale
    steered = 6 if config.strength == 1 else 8  # conditions but for `random`, and two more at the paper's strength
    chosen = 0 if config.strength else config.choosing_prompts * (1 + 2 * len(config.strengths))
    count = config.folds * chosen + config.prompts * steered + config.random_prompts * config.random_directions
    prompts = 2 * len(config.kinds) * (config.fit_prompts + config.prompts)
    work = sizes.read(prompts * sizes.lengths.prompt)
    chats = sizes.pair.sizes_of("template_tokens", sizes.name)["chats"] * sizes.pair.context
    work += sizes.harvest(2 * scale.train_tokens if sizes.pair.train.source == "world" else 2 * chats)
    work += sizes.harvest(2 * sizes.held_out)
    count, given = len(config.kinds) * count, {"at_once": min(config.batch_size, config.prompts)}
    return sum((_responses(sizes, side, count, config.max_new_tokens, **given) for side in "ab"), work)


def _feature_transfer(sizes: Sizes, given: Mapping[str, Any]) -> Workload:
    """Leave out what a model that writes versions takes."""
    config, (d_a, d_b) = feature_study_config(sizes.pair, sizes.name), sizes.widths
    some, looked = sizes.part(config.null_documents), sizes.part(config.context_documents)
    work = sizes.read(sizes.held_out + some + 2 * looked)
    kinds = 2 if sizes.pair.augmenter is None else 1  # the world's sentences are read again for their known words
    sentences = kinds * config.sentences * (1 + config.versions) * sizes.lengths.sentence
    for source, target in ("ab", "ba"):
        own, other, latents = sizes.width(source), sizes.width(target), sizes.sae(source)
        work += Workload(flops=(sizes.held_out + some) * 4 * latents * (own + other))  # the code, and logit weights
        work += Workload(flops=some * 2 * DRAWS * 4 * (latents * own + d_a * d_b))
        work += Workload(flops=looked * 2 * latents * (own + other))
        work += sizes.read(sentences, source) + Workload(flops=sentences * 2 * latents * own)
    return work


def _maps(sizes: Sizes, given: Mapping[str, Any]) -> Workload:
    """Leave out the graphs of neighbours, which are searched."""
    config, (d_a, d_b) = comparison.comparison_config(sizes.pair, sizes.name), sizes.widths
    texts, scale = sizes.pair.sizes_of("maps_texts", sizes.name), sizes.scale
    work = sizes.read(len(_classes(sizes.pair)) * (texts["n_train"] + texts["n_test"]) * sizes.lengths.text)
    work += sizes.harvest(scale.train_tokens) + sizes.kept()
    stepped = config.relu_steps * comparison.STEP_TOKENS
    work += Workload(flops=stepped * (10 * config.hidden * (d_a + d_b) + 4 * d_a * d_b))  # both ways
    work += Workload() if sizes.keeps else sizes.read(2 * stepped)
    tuned = config.tuning_steps * config.tuning_rows * sizes.pair.context
    work += sizes.read(2 * tuned) + sizes.splice(tuned, 2, 2) + Workload(flops=tuned * 8 * d_a * d_b)
    work += Workload(flops=config.sample * config.anchors * 4 * (d_a + d_b))
    count = len(comparison.TITLES) + len(config.ranks)
    carried = len(comparison.TITLES) - len(comparison.ANCHORS_ALONE) - 2  # two maps bend
    judged = sizes.part(config.documents)
    work += sizes.fidelity(judged, 2 + count) + sizes.read(judged) + Workload(flops=judged * count * 8 * d_a * d_b)
    work += sizes.read(judged, "b") + sizes.splice(judged, b=1 + carried)
    return work + Workload(flops=judged * carried * 4 * d_b * sizes.sae("a"))


def _lrt_maps(sizes: Sizes, given: Mapping[str, Any]) -> Workload:
    """Count as many passes of reweighting as there may be."""
    config, (d_a, d_b) = lrt_maps.map_config(sizes.pair, sizes.name, lr=given["lr"]), sizes.widths
    a, b, both = sizes.sae("a"), sizes.sae("b"), d_a * d_b
    held_out = config.tokens / lrt_maps.VALIDATION
    fitted, layer = config.tokens - held_out, min(sizes.layers["a"], max(0, sizes.depth("b") - 1))
    same = sizes._replace(layers={"a": sizes.layers["a"], "b": layer})
    stored = 4 * fitted * (d_a + d_b)  # of each two layers
    passes = 1 if stored <= lrt_maps.KEPT_BYTES else lrt_maps.PASSES + config.epochs
    work = sizes.read(passes * fitted + 2 * held_out) + same.read(passes * fitted + 2 * held_out)
    work += Workload(host=2 * stored if passes == 1 else 0)
    work += sizes.harvest(int(max(fitted // 10, 2 * config.step_tokens)))
    reweighted = lrt_maps.PASSES * (4 * both + 4 * (d_a + d_b) ** 2)
    work += Workload(flops=fitted * (4 * (d_a + d_b) ** 2 + reweighted + 2 * config.epochs * 8 * both))
    fits = [(d_a, a), (d_b, a), (d_a, a)]  # from A's code, from the transferred SAE's, and at layers of one number
    for d, latents in fits:
        exact = 2 * (latents + d_b) ** 2 if latents <= LARGEST_EXACT else config.epochs * 4 * latents * d_b
        work += Workload(flops=(fitted + held_out) * (2 * d * latents + exact))
    work += Workload(flops=held_out * 2 * (16 * both + 3 * a * (d_a + 2 * d_b) + 2 * b * d_b))
    return work + Workload(flops=fitted * 2 * (a * d_a + b * d_b + a * b))


def _stitch(sizes: Sizes) -> Workload:
    d_a, d_b = sizes.widths
    return sizes.harvest(sizes.scale.train_tokens) + Workload(disk=8 * (d_a + d_b) ** 2 + 8 * d_a * d_b)


# What a chapter takes from `artifacts/`, made by the first that needs it, by name.
SHARED: dict[str, Callable[[Sizes], Workload]] = {
    "stitch": _stitch,
    "SAE of A": lambda sizes: Workload() if "a" in sizes.pair.saes else sizes.trained("a"),
    "SAE of B": lambda sizes: Workload() if "b" in sizes.pair.saes else sizes.trained("b"),
}


class Chapter(NamedTuple):
    """What a chapter computes and what it shares with others."""

    takes: tuple[str, ...] = ("stitch",)
    """Of `SHARED`."""
    own: Callable[[Sizes, Mapping[str, Any]], Workload] | None = None
    """By its parameters; None for what is not counted."""
    makes: str = ""
    """What of `SHARED` it makes anew."""
    holds: str = ""
    """What it holds on the device beside the models."""
    lighter: str = ""
    """What makes that less."""


RESPONSES = "the logits of a batch of responses"
CHAPTERS = {
    "pairs": Chapter((), _pairs),
    "stitching": Chapter(("SAE of A",), _stitching, makes="stitch"),
    "sae_transfer": Chapter(tuple(SHARED), _sae_transfer),
    "sae_training": Chapter(
        ("stitch",), _sae_training, holds="the SAEs of its sweep", lighter="fewer sae_sweep_widths in the pair's file"
    ),
    "probing": Chapter(tuple(SHARED), _probing),
    "steering": Chapter(
        ("stitch",), _steering, holds=RESPONSES, lighter="a smaller batch_size of languages in data/sizes.yml"
    ),
    "instruction_following": Chapter(
        ("stitch",),
        _instruction_following,
        holds=RESPONSES,
        lighter="a smaller batch_size of instructions in data/sizes.yml",
    ),
    "feature_transfer": Chapter(tuple(SHARED), _feature_transfer),
    "maps": Chapter(("stitch", "SAE of A"), _maps),
    "lrt_maps": Chapter(tuple(SHARED), _lrt_maps),
}
