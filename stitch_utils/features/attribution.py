r"""Attribution correlation: whether a feature that was carried to another model still speaks for the same next tokens.

Section 5, Eq. 10, and App. G (Fig. 14). A feature's attribution at a token is its activation times its logit weight
for the token that in fact comes next, and features are compared by Pearson's correlation over tokens,

    Corr_t ( f_i(h_A(t)) v_{i,t+1} ,  f'_i(h_B(t)) v'_{i,t+1} ),      v_i = n(W_d,i) W_U      (10)

each side with its own model's unembedding; a transferred SAE keeps the order of its features, so twins share an index.
A token counts where it and its successor are ordinary ones of the same row: no special token is read or predicted.

The paper does not say what becomes of the final norm. Here n takes the mean off the decoder row where the norm does so
(LayerNorm), multiplies it by the norm's learned scale, and leaves out the division by the size of the final residual
stream. That divisor belongs to the token and not to the feature. A factor of each feature changes no correlation, but
one of each token, which two models are likely to agree on, would correlate features that have nothing else in common;
`divide` puts it back, to see what it does. A cap on the logits (Gemma) keeps their order and is left out too. No
prediction depends on the mean of v_i over the vocabulary; Eq. 10 as printed keeps it, and `centre` takes it off.

Everything is summed in one pass, around running means (Chan, Golub & LeVeque 1983) and in float64, so that memory
grows with the number of features alone.

Offers `Twins`, `carried`, `attribution_correlations`, `AttributionCorrelation`, `summarise`, `median`,
`against_random`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from sae_lens import SAE
from torch import Tensor

from ..data.text import TokenBatch
from ..models.harvest import TOKENS_AT_ONCE, as_fits
from ..models.language_model import LanguageModel
from ..models.unembedding import LogitWeights
from ..saes.transfer import transfer_sae
from ..stitching.pair import StitchedPair
from ..stitching.stitch import random_stitch
from ..utils.progress import progress
from ..utils.stats import Estimate
from .resampling import over_features

SIDES = {"up": (0, 1), "down": (1, 0)}  # of A and B, where an SAE comes from and where it is carried to
ENTRIES_AT_ONCE = 2**25  # tokens x features: bounds each float64 table to 0.25 GB
CONSTANT = 1e-20  # a sum of squared deviations below this share of the sum of squares is rounding
MIN_FIRES = 10


class Twins(NamedTuple):
    """An SAE of one model, and those of the other that it is compared with, feature by feature."""

    sae: SAE
    others: Mapping[str, SAE]


def carried(stitched: StitchedPair, sae: SAE, *, direction: str = "up", seed: int = 0) -> Twins:
    """Transfer an SAE across the stitch, `transferred`, and across a random one of the same norms, `random`.

    The random stitch, too, carries the mean residuals of A and B into each other.
    """
    moments, to = stitched.moments, "ab"[SIDES[direction][1]]
    random = random_stitch(stitched.stitch, seed, means=(moments.mean_x, moments.mean_y))
    stitches = {"transferred": stitched.stitch, "random": random}
    return Twins(sae, {name: transfer_sae(sae, maps, to=to) for name, maps in stitches.items()})


class AttributionCorrelation(NamedTuple):
    """Eq. 10 for every feature of an SAE and its twin; rates and maxima are over the tokens that count."""

    correlation: Float[np.ndarray, " features"]
    """NaN where one of the two attributions does not vary: where a feature never fires, say."""
    firing_rate: Float[np.ndarray, " features"]
    """Share of the tokens on which the feature fires in the model that it comes from."""
    twin_firing_rate: Float[np.ndarray, " features"]
    max_activation: Float[np.ndarray, " features"]
    twin_max_activation: Float[np.ndarray, " features"]
    n_tokens: int

    def alive(self, min_fires: int = MIN_FIRES) -> Bool[np.ndarray, " features"]:
        """Features that fire on so many tokens at least, in both models, and have a correlation."""
        rate = np.minimum(self.firing_rate, self.twin_firing_rate)
        return (np.rint(rate * self.n_tokens) >= min_fires) & np.isfinite(self.correlation)


class _Sums(NamedTuple):
    """Of two attributions (n, features): count, means, and sums of squared deviations and of their products."""

    tokens: int
    mean: Tensor
    twin_mean: Tensor
    squares: Tensor
    twin_squares: Tensor
    products: Tensor

    @classmethod
    def of(cls, values: Tensor, twin: Tensor) -> _Sums:
        mean, twin_mean = values.mean(0), twin.mean(0)
        values, twin = values - mean, twin - twin_mean
        return cls(len(values), mean, twin_mean, values.square().sum(0), twin.square().sum(0), (values * twin).sum(0))

    def merged(self, other: _Sums) -> _Sums:
        count = self.tokens + other.tokens
        step, twin_step = other.mean - self.mean, other.twin_mean - self.twin_mean
        share, weight = other.tokens / count, self.tokens * other.tokens / count
        return _Sums(
            count,
            self.mean + step * share,
            self.twin_mean + twin_step * share,
            self.squares + other.squares + step.square() * weight,
            self.twin_squares + other.twin_squares + twin_step.square() * weight,
            self.products + other.products + step * twin_step * weight,
        )

    def correlation(self) -> Tensor:
        varies = self.squares > CONSTANT * (self.squares + self.tokens * self.mean.square())
        varies &= self.twin_squares > CONSTANT * (self.twin_squares + self.tokens * self.twin_mean.square())
        found = self.products / (self.squares.sqrt() * self.twin_squares.sqrt())
        return torch.where(varies, found.clamp(-1, 1), torch.nan)


class _Activity(NamedTuple):
    """Tokens on which each feature fires, and the most that it does."""

    fires: Tensor
    largest: Tensor

    def merged(self, other: _Activity) -> _Activity:
        return _Activity(self.fires + other.fires, torch.maximum(self.largest, other.largest))


class _Attributions:
    """Reads attributions off residual streams: f_i v_i,next for each token, (n, features) in float64."""

    def __init__(self, sae: SAE, readout: LogitWeights):
        self.sae, self.rows = sae, readout.fold(sae.W_dec.detach())  # (features, d_model)

    def __call__(self, stream: Tensor, columns: Tensor, divisors: Tensor | None) -> tuple[Tensor, _Activity]:
        latents = self.sae.encode(stream.to(self.sae.W_enc)).to(stream.device)
        values = latents.double() * (columns @ self.rows.T)
        if divisors is not None:
            values /= divisors[:, None]
        return values, _Activity((latents > 0).sum(0), latents.amax(0).double())


def attribution_correlations(
    stitched: StitchedPair,
    directions: Mapping[str, Twins],
    batches: Iterable[TokenBatch] | None = None,
    *,
    centre: bool = False,
    divide: bool = False,
) -> dict[str, dict[str, AttributionCorrelation]]:
    """Compute Eq. 10, by direction and name of a twin, in one pass over the text and one run of each model.

    The text is by default the evaluation text of the pair. A direction is `up`, an SAE of A with twins that read B, or
    `down`, the converse. `centre` and `divide` are variants (see above); the latter runs the models to their ends.
    ValueError for another direction, an SAE of another width than its model, a twin of another number of features, and
    batches without two ordinary tokens in a row.
    """
    models, layers = stitched.models, stitched.layers
    _check(models, directions)
    readouts = [LogitWeights(model) for model in models]
    readers = {
        direction: (
            _Attributions(twins.sae, readouts[SIDES[direction][0]]),
            {name: _Attributions(sae, readouts[SIDES[direction][1]]) for name, sae in twins.others.items()},
        )
        for direction, twins in directions.items()
    }
    widest = max(twins.sae.cfg.d_sae for twins in directions.values())
    rows_at_once = min(TOKENS_AT_ONCE, max(1, ENTRIES_AT_ONCE // widest))

    @torch.no_grad()
    def read(batch: TokenBatch) -> dict[tuple[str, str], tuple]:
        counts = batch.mask[:, :-1] & batch.mask[:, 1:]
        following = batch.tokens[:, 1:][counts]  # (n,)
        sides = [
            _streams(model, layer, batch.tokens, counts, readout if divide else None)
            for model, layer, readout in zip(models, layers, readouts)
        ]
        found: dict[tuple[str, str], tuple] = {}
        for start in range(0, len(following), rows_at_once):
            part = slice(start, start + rows_at_once)
            inputs = [
                (
                    stream[part],
                    readout.columns(following[part], centre=centre),
                    None if divisors is None else divisors[part],
                )
                for (stream, divisors), readout in zip(sides, readouts)
            ]
            for direction, (own, others) in readers.items():
                source, target = (inputs[side] for side in SIDES[direction])
                values, activity = own(*source)
                for name, other in others.items():
                    twin, twin_activity = other(*target)
                    sums = _Sums.of(values, twin.to(values.device))
                    _merge(found, (direction, name), (sums, activity, twin_activity))
        return found

    total: dict[tuple[str, str], tuple] = {}
    batches = stitched.evaluation_batches() if batches is None else batches
    for found in progress(as_fits(batches, read), "attributions"):
        for key, parts in found.items():
            _merge(total, key, parts)
    if not total:
        raise ValueError("the batches hold no two ordinary tokens in a row: expected at least one pair")
    return {
        direction: {name: _result(*total[direction, name]) for name in twins.others}
        for direction, twins in directions.items()
    }


def _check(models: tuple[LanguageModel, LanguageModel], directions: Mapping[str, Twins]) -> None:
    if not directions or not all(twins.others for twins in directions.values()):
        raise ValueError("nothing to compare: expected at least one direction, each with at least one twin")
    for direction, twins in directions.items():
        if direction not in SIDES:
            raise ValueError(f"unknown direction {direction!r}: expected up or down")
        own, other = (models[side] for side in SIDES[direction])
        for name, sae, model in [("sae", twins.sae, own), *((name, sae, other) for name, sae in twins.others.items())]:
            if sae.cfg.d_in != model.d_model:
                raise ValueError(
                    f"{direction}: SAE {name!r} reads {sae.cfg.d_in} dimensions: expected {model.d_model}, the width "
                    f"of {model.ref!r}"
                )
            if sae.cfg.d_sae != twins.sae.cfg.d_sae:
                raise ValueError(
                    f"{direction}: twin {name!r} has {sae.cfg.d_sae} features: expected {twins.sae.cfg.d_sae}, one for "
                    "each of the SAE that it is compared with"
                )


def _streams(
    model: LanguageModel, layer: int, tokens: Tensor, counts: Tensor, readout: LogitWeights | None
) -> tuple[Tensor, Tensor | None]:
    """The residual stream before `layer` at the tokens that count (n, d), and what the final norm divides by (n,)."""
    counts = torch.nn.functional.pad(counts, (0, 1)).to(model.device)
    if readout is None:
        return model.residuals(tokens, [layer])[layer][counts], None
    found: dict[str, Tensor] = {}

    def keeper(part: str):
        def hook(value: Tensor, hook) -> None:
            found[part] = value[counts]

        return hook

    places = {"stream": model.hook_name(layer), "final": "ln_final.hook_in"}
    with model.bridge.hooks(fwd_hooks=[(name, keeper(part)) for part, name in places.items()]):
        model.bridge(tokens.to(model.device), return_type=None)
    return found["stream"], readout.divisors(found["final"]).double()


def _merge(found: dict, key: tuple[str, str], parts: tuple) -> None:
    found[key] = tuple(old.merged(new) for old, new in zip(found[key], parts)) if key in found else parts


def _result(sums: _Sums, activity: _Activity, twin_activity: _Activity) -> AttributionCorrelation:
    columns = [sums.correlation(), activity.fires / sums.tokens, twin_activity.fires / sums.tokens]
    columns += [activity.largest, twin_activity.largest]
    return AttributionCorrelation._make([*(column.double().cpu().numpy() for column in columns), sums.tokens])


class CorrelationSummary(NamedTuple):
    """What a histogram of correlations shows; intervals by resampling features."""

    mean: Estimate
    median: Estimate
    spread: Estimate
    """Standard deviation over features."""
    above_half: Estimate
    """Share of features above 0.5."""
    below_zero: Estimate
    features: int


def summarise(correlations: Float[np.ndarray, " features"], *, seed: int = 0) -> CorrelationSummary:
    """Summarise the correlations that are numbers; ValueError if there is none."""
    values = _numbers(correlations, "correlations")

    def statistics(chosen: np.ndarray) -> tuple[float, ...]:
        return chosen.mean(), np.median(chosen), chosen.std(), (chosen > 0.5).mean(), (chosen < 0).mean()

    return CorrelationSummary._make([*over_features(statistics, values, seed=seed), len(values)])


def median(values: Float[np.ndarray, " features"], *, seed: int = 0) -> Estimate:
    """Take the median over features; its interval resamples them. ValueError if none is a number."""
    return over_features(lambda chosen: [np.median(chosen)], _numbers(values, "values"), seed=seed)[0]


class AgainstRandom(NamedTuple):
    """Where the correlations lie beside those under a random stitch; intervals by resampling the features of both."""

    better: Estimate
    """Share above the 95th percentile of the random ones."""
    negative: Estimate
    """Share below their 5th percentile: features that were flipped."""


def against_random(
    correlations: Float[np.ndarray, " features"], random: Float[np.ndarray, " others"], *, seed: int = 0
) -> AgainstRandom:
    """App. G's comparison, over the correlations that are numbers; ValueError if either side has none."""
    values, baseline = _numbers(correlations, "correlations"), _numbers(random, "random correlations")

    def shares(values: np.ndarray, baseline: np.ndarray) -> tuple[float, float]:
        low, high = np.quantile(baseline, (0.05, 0.95))
        return (values > high).mean(), (values < low).mean()

    return AgainstRandom(*over_features(shares, values, baseline, seed=seed))


def _numbers(values: np.ndarray, what: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).any():
        raise ValueError(f"none of {len(values)} {what} is a number: expected at least one feature that is alive")
    return values[np.isfinite(values)]
