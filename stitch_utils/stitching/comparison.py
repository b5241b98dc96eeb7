"""Every map between two streams on the same pair: how each is fitted, what it costs, and what it does to prediction.

No section of the paper, whose stitch (Eq. 3) is one of them. Maps differ in what they may know. Most know all pairs of
tokens, through means and second moments. `contrasts` knows differences between texts. `tuned` descends the host's own
loss, from the stitch on. Those of `ANCHORED` know the pairs of a few anchor tokens, and two of them are what such maps
have to beat: least squares, and a scaled rotation, fitted to the anchors alone. `components` knows no pair at all.

Offers `ComparisonConfig`, `comparison_config`; `fit_maps` and `FittedMap`; `judged_batches`, `compare_maps`,
`comparison_numbers`; `TITLES`, and the names `ACROSS`, `ANCHORED` and `ANCHORS_ALONE`.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..data.pairs import ModelPair
from ..data.text import PairedBatch
from ..models.harvest import ActivationStream
from .evaluation import Fidelity, NgramModel, measure_fidelity
from .fit import choose_ridge
from .functional_maps import fit_functional
from .lrt_maps import MapErrors, Prediction, map_errors
from .maps import (
    MapPair,
    between_means,
    both_ways,
    fit_least_squares,
    fit_procrustes,
    fit_reduced_rank,
    fit_whitened_procrustes,
    swapped,
)
from .moments import PairMoments, total
from .nulls import component_stitch
from .pair import StitchedPair
from .relative import draw_anchors, fit_geodesic, fit_relative
from .relu_map import fit_relu
from .stitch import Stitch
from .tuned import tune_on_loss

TITLES = {
    "exact": "stitch (Eq. 3)",
    "least_squares": "least squares, one way",
    "ridge": "least squares, validated ridge",
    "procrustes": "Procrustes (a rotation)",
    "whitened": "whitened Procrustes",
    "contrasts": "fitted on contrasts of texts",
    "relu": "with a hidden layer of ReLUs",
    "tuned": "tuned on the host's loss",
    "relative": "relative (cosines to anchors)",
    "geodesic": "relative, along geodesics",
    "functional": "latent functional map",
    "anchors_least_squares": "least squares on the anchors",
    "anchors_procrustes": "scaled rotation on the anchors",
    "components": "principal components, no pairs",
}
ANCHORED = ("relative", "geodesic", "functional")
ANCHORS_ALONE = ("anchors_least_squares", "anchors_procrustes")
ACROSS = ("a_to_b", "b_to_a")
FOLDS, STEP_TOKENS = 5, 512  # of the text where a ridge is chosen, and of its parts; rows are cut, not documents


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """The sizes of the maps that are not fitted to the moments of all tokens."""

    sample: int
    """Tokens among which anchors are drawn, and of the graphs of neighbours, whose memory grows as the square."""
    anchors: int
    """Tokens whose pairs are known: more than either width, since fewer leave a rotation undetermined."""
    functions: int
    """The slowest eigenfunctions of each graph, for the functional map."""
    hidden: int
    """Units of the ReLU map."""
    relu_steps: int
    """Steps of AdamW, each of `STEP_TOKENS` tokens."""
    tuning_steps: int
    """Steps of AdamW on the host's loss, for each direction."""
    tuning_rows: int
    """Rows of text in such a step."""
    documents: int
    """Documents of the evaluation text that all maps are judged on, if the scale takes so many."""
    tuning_rate: float = 0.03
    """Its learning rate, as a share of the root mean square of the entries of the stitch."""
    ranks: tuple[int, ...] = (2, 8, 32)
    """Of the maps of reduced rank, where both streams are wider."""
    neighbours: int = 10
    seed: int = 0


def comparison_config(pair: ModelPair, scale: str, *, seed: int = 0) -> ComparisonConfig:
    """Take the sizes of a scale."""
    return ComparisonConfig(**pair.sizes_of("maps", scale), seed=seed)


class FittedMap(NamedTuple):
    """Maps to and fro, and what it took to fit them, once the text was read."""

    maps: Stitch | MapPair
    seconds: float
    flops: int | None
    """FLOPs of matrix products, as torch counts them, for both directions; None if they were not counted. Neither
    decompositions nor searches for neighbours are in them."""
    title: str

    @property
    def stitch(self) -> Stitch | None:
        """The maps if they are affine."""
        return self.maps if isinstance(self.maps, Stitch) else None


def fit_maps(
    stitched: StitchedPair, config: ComparisonConfig, contrasts: tuple[Float[Tensor, "n d_a"], Float[Tensor, "n d_b"]]
) -> dict[str, FittedMap]:
    """Fit all maps of a pair by name, as in `TITLES`, the stitch first; those of a rank r are named `rank_r`.

    `contrasts` are differences between the mean streams of two texts, of the same texts in both models. ValueError for
    fewer tokens than the sample takes, and as the fits.
    """
    moments, stitch, models = stitched.moments, stitched.stitch, stitched.models
    stream = ActivationStream(
        *models,
        *stitched.layers,
        stitched.training_batches,
        step_tokens=STEP_TOKENS,
        keep=stitched.scale != "paper",
        limits=stitched.limits,
    )
    folds = [PairMoments(moments.d_a, moments.d_b) for _ in range(FOLDS)]
    head: list[tuple[Tensor, Tensor]] = []
    for number, (x, y) in enumerate(stream):
        folds[number % FOLDS].update(x, y)
        if number * STEP_TOKENS < stitched.sizes.svcca_tokens:
            head.append((x.cpu(), y.cpu()))
    x, y = (torch.cat(part) for part in zip(*head))
    drawn = draw_anchors(len(x), config.sample, seed=config.seed)  # tokens of a text in turn are much alike
    x, y = x[drawn], y[drawn]
    anchors = draw_anchors(config.sample, config.anchors, seed=config.seed)
    device, few = models[1].device, (x[anchors], y[anchors])
    graphs = {"neighbours": config.neighbours, "functions": config.functions}
    bent = {"hidden": config.hidden, "n_steps": config.relu_steps, "seed": config.seed, "device": device}

    def whole(fit: Callable, *given) -> Callable[[], Stitch]:
        return lambda: both_ways(fit, moments, *given)

    def relu() -> MapPair:
        turned = _Turned(stream)
        return MapPair(fit_relu(stream, moments, **bent), fit_relu(turned, swapped(moments), **bent))

    fits: dict[str, Callable[[], Stitch | MapPair]] = {
        "least_squares": whole(fit_least_squares),
        "ridge": lambda: both_ways(fit_least_squares, moments, ridge=choose_ridge(folds, alpha=0).ridge),
        "procrustes": whole(fit_procrustes),
        "whitened": whole(fit_whitened_procrustes),
    }
    fits |= {f"rank_{r}": whole(fit_reduced_rank, r) for r in config.ranks if r < min(moments.d_a, moments.d_b)}
    fits |= {
        "contrasts": lambda: fit_contrasts(*contrasts, moments),
        "relu": relu,
        "tuned": lambda: _tuned(stitched, config),
        "relative": lambda: Stitch.of(fit_relative(x, y, anchors), fit_relative(y, x, anchors)),
        "geodesic": lambda: MapPair(
            *(fit_geodesic(*way, anchors, neighbours=config.neighbours) for way in ((x, y), (y, x)))
        ),
        "functional": lambda: Stitch.of(
            *(fit_functional(*way, anchors, fit=fit_least_squares, **graphs) for way in ((x, y), (y, x)))
        ),
        "anchors_least_squares": lambda: fit_validated(_in_folds(*few)),
        "anchors_procrustes": lambda: both_ways(fit_procrustes, total(_in_folds(*few)), scaled=True),
        "components": lambda: component_stitch(moments, config.seed),
    }
    assert stitch.report is not None  # every fit reports
    found = {"exact": FittedMap(stitch, stitch.report.seconds, None, TITLES["exact"])}
    for name, fit in fits.items():
        counter, began = FlopCounterMode(display=False), time.perf_counter()
        with counter:
            maps = fit()
        seconds, title = time.perf_counter() - began, TITLES.get(name, f"least squares of {name.replace('_', ' ')}")
        found[name] = FittedMap(maps, seconds, counter.get_total_flops(), title)
    return found


def fit_validated(folds: list[PairMoments]) -> Stitch:
    """Fit least squares both ways to all folds, with the ridge that loses least on the one left out."""
    return both_ways(fit_least_squares, total(folds), ridge=choose_ridge(folds, alpha=0).ridge)


def fit_contrasts(x: Float[Tensor, "n d_a"], y: Float[Tensor, "n d_b"], moments: PairMoments) -> Stitch:
    """Fit the matrices by validated least squares to differences about zero, and the biases to the streams' means.

    What is added to a stream is a difference, and so are probes' contrasts: no mean enters them.
    """
    fitted = fit_validated(_in_folds(x, y, both_signs=True))
    ways = ((fitted.P_up, moments), (fitted.P_down, swapped(moments)))
    return Stitch.of(*(between_means(P.to(of.mean), of, P.dtype) for P, of in ways))


def _in_folds(x: Tensor, y: Tensor, *, both_signs: bool = False) -> list[PairMoments]:
    """Gather moments by folds, with `both_signs` about zero: a difference may be taken either way."""
    folds = [PairMoments(x.shape[1], y.shape[1]) for _ in range(FOLDS)]
    for number, fold in enumerate(folds):
        for sign in (1, -1) if both_signs else (1,):
            fold.update(sign * x[number::FOLDS], sign * y[number::FOLDS])
    return folds


def _tuned(stitched: StitchedPair, config: ComparisonConfig) -> Stitch:
    """Tune each map of the stitch on the loss of the model that it leads to."""
    parts = (part for batch in stitched.training_batches() for part in batch.split(config.tuning_rows))
    batches = list(itertools.islice(parts, config.tuning_steps))

    def towards(to: str) -> Stitch:
        rate = config.tuning_rate * stitched.stitch.towards(to).P.square().mean().sqrt().item()
        options = {"to": to, "n_steps": config.tuning_steps, "lr": rate, "limits": stitched.limits}
        return tune_on_loss(*stitched.models, *stitched.layers, stitched.stitch, batches, **options).stitch

    return Stitch.of(towards("b").up, towards("a").down)


class _Turned:
    """A stream of pairs (x, y) as one of (y, x), iterated as often as that one."""

    def __init__(self, stream: ActivationStream):
        self.stream = stream

    def __iter__(self):
        return ((y, x) for x, y in self.stream)


def judged_batches(stitched: StitchedPair, config: ComparisonConfig) -> Iterator[PairedBatch]:
    """Give the first documents of the evaluation text, on which all maps are judged."""
    return stitched.evaluation_batches(config.documents)


def compare_maps(
    stitched: StitchedPair, config: ComparisonConfig, fitted: Mapping[str, FittedMap]
) -> tuple[Fidelity, dict[tuple[str, str], MapErrors]]:
    """Measure, on `judged_batches`, both hosts' losses with each map and with their streams' means, what counts of
    tokens predict, and the errors of each map, by name and the model that it leads to."""
    moments, options = stitched.moments, {"limits": stitched.limits, "seed": config.seed}
    maps, means = {name: one.maps for name, one in fitted.items()}, (moments.mean_x, moments.mean_y)
    where = (*stitched.models, *stitched.layers)
    sides = zip("ab", stitched.models)
    ngrams = {side: NgramModel(stitched.training_rows(side), len(model.tokenizer)) for side, model in sides}
    measured = {"means": means, "ngrams": ngrams, "conditions": ACROSS, **options}
    fidelity = measure_fidelity(*where, maps, judged_batches(stitched, config), **measured)
    predictions: dict[tuple[str, str], Prediction] = {(name, "b"): ("b", pair.up) for name, pair in maps.items()}
    predictions |= {(name, "a"): ("a", pair.down) for name, pair in maps.items()}
    errors = map_errors(stitched.models, stitched.layers, judged_batches(stitched, config), predictions, **options)
    return fidelity, errors


def comparison_numbers(
    pair: str, fitted: Mapping[str, FittedMap], fidelity: Fidelity, errors: Mapping[tuple[str, str], MapErrors]
) -> dict[str, float]:
    """List the entries of a results file for each map, under maps.{pair}.{map}.

    `.a_to_b` and `.b_to_a` are losses in nats, `.difference` below them what is lost beside the stitch, on the same
    documents, and `.saved` that, with its sign turned, as a share of what the stitch costs its host. `.anchors` is what
    is lost beside the better of the two fits to the anchors alone, and `.bends` what the ReLU map saves of what least
    squares, its affine part, cost. `.fuv.a` and `.fuv.b` are shares of variance, and `.explained.a` and `.explained.b`
    what the ReLU map explains of the variance that its affine part leaves.
    """
    numbers: dict[str, float] = {}
    for own in ("a", "b", "a_without_layer", "b_without_layer"):
        numbers |= fidelity.cross_entropy("own", own).numbers(f"maps.{pair}.own.{own}")
    for way in ACROSS:
        alone = min(ANCHORS_ALONE, key=lambda name: fidelity.cross_entropy(name, way).value)
        for name in fitted:
            id = f"maps.{pair}.{name}.{way}"
            numbers |= fidelity.cross_entropy(name, way).numbers(id)
            if name != "exact":
                numbers |= fidelity.difference(name, "exact", way).numbers(f"{id}.difference")
                numbers |= fidelity.saved(name, "exact", way).numbers(f"{id}.saved")
            if name in ANCHORED:
                numbers |= fidelity.difference(name, alone, way).numbers(f"{id}.anchors")
        numbers |= fidelity.saved("relu", "least_squares", way).numbers(f"maps.{pair}.relu.{way}.bends")
    for name, one in fitted.items():
        for side in "ab":
            numbers |= errors[name, side].fuv.numbers(f"maps.{pair}.{name}.fuv.{side}")
        numbers[f"maps.{pair}.{name}.seconds"] = one.seconds
        if one.flops is not None:
            numbers[f"maps.{pair}.{name}.flops"] = one.flops
    for side in "ab":
        bent, affine = (errors[name, side].fuv.value for name in ("relu", "least_squares"))
        numbers[f"maps.{pair}.relu.explained.{side}"] = 1 - bent / affine
    return numbers
