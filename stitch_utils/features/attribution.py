r"""Attribution correlation: whether a feature that was carried to another model still speaks for the same next tokens.

Section 5, Eq. 10, and App. G (Fig. 14). A feature's attribution at a token is its activation times its logit weight
for the token that in fact comes next, and features are compared by Pearson's correlation over tokens,

    Corr_t ( f_i(h_A(t)) v_{i,t+1} ,  f'_i(h_B(t)) v'_{i,t+1} ),      v_i = n(W_d,i) W_U      (10)

each side with its own model's unembedding; a transferred SAE keeps the order of its features, so twins share an index.
A token counts where it and its successor are ordinary ones of the same row.

The paper does not say what becomes of the final norm. Here n takes the mean off the decoder row where the norm does so
(LayerNorm), multiplies it by the norm's learned scale, and leaves out the division by the size of the final stream.
That divisor belongs to the token and not to the feature, and two models are likely to agree on it, so it would
correlate features that have nothing else in common. A cap on the logits (Gemma) is left out too.
No prediction depends on the mean of v_i over the vocabulary; Eq. 10 as printed keeps it, and `centre` takes it off. One
pass adds everything up, around running means (Chan, Golub & LeVeque 1983) and in float64.

Offers `Twins`, `carried`, `attribution_correlations`, `AttributionCorrelation`, `summarise`, `CorrelationSummary`,
`against_random`, `AgainstRandom`, and `over_features`, which gives intervals over features.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from sae_lens import SAE
from torch import Tensor

from ..data.text import TokenBatch
from ..models.harvest import TOKENS_AT_ONCE, as_fits
from ..models.unembedding import LogitWeights
from ..saes.transfer import transfer_sae
from ..stitching.pair import StitchedPair
from ..stitching.stitch import random_stitch
from ..utils.progress import progress
from ..utils.stats import RESAMPLES, Estimate, from_draws

OfFeatures = Float[np.ndarray, " features"]
SIDES = {"up": "ab", "down": "ba"}  # the model that an SAE comes from, and the one that it is carried to
ENTRIES_AT_ONCE = 2**25  # bounds each float64 table of tokens x features to 0.25 GB
CONSTANT = 1e-20  # a sum of squared deviations below this share of the sum of squares is rounding
MIN_FIRES = 10


class Twins(NamedTuple):
    """An SAE of one model, and those of the other that it is compared with, feature by feature."""

    sae: SAE
    others: Mapping[str, SAE]


def carried(stitched: StitchedPair, sae: SAE, *, to: str = "b", seed: int = 0) -> Twins:
    """Transfer an SAE across the stitch, `transferred`, and across a random one of the same norms, `random`.

    The random stitch, too, carries the mean residuals of A and B into each other.
    """
    means = stitched.moments.mean_x, stitched.moments.mean_y
    stitches = {"transferred": stitched.stitch, "random": random_stitch(stitched.stitch, seed, means=means)}
    return Twins(sae, {name: transfer_sae(sae, maps, to=to) for name, maps in stitches.items()})


class AttributionCorrelation(NamedTuple):
    """Eq. 10 for every feature of an SAE and its twin; rates are over the tokens that count."""

    correlation: OfFeatures
    """NaN where one of the two attributions does not vary: where a feature never fires, say."""
    firing_rate: OfFeatures
    """The share of the tokens on which the feature fires in the model that it comes from."""
    twin_firing_rate: OfFeatures
    n_tokens: int

    def alive(self, min_fires: int = MIN_FIRES) -> Bool[np.ndarray, " features"]:
        """Mark features that fire on at least `min_fires` tokens in both models and have a correlation."""
        rate = np.minimum(self.firing_rate, self.twin_firing_rate)
        return (np.rint(rate * self.n_tokens) >= min_fires) & np.isfinite(self.correlation)


class _Sums(NamedTuple):
    """Sums over tokens for an SAE and its twin; each tensor but `products` is (2, features)."""

    tokens: int
    means: Tensor
    squares: Tensor
    """The sums of squared deviations."""
    products: Tensor
    """The sums of the products of deviations, (features,)."""
    fires: Tensor

    @classmethod
    def of(cls, *sides: tuple[Tensor, Tensor]) -> "_Sums":
        """Sum up both sides' attributions (n, features), with how often each feature fires."""
        values, fires = zip(*sides)
        means = torch.stack([some.mean(0) for some in values])
        ours, theirs = (some - mean for some, mean in zip(values, means))
        squares = torch.stack([ours.square().sum(0), theirs.square().sum(0)])
        return cls(len(ours), means, squares, (ours * theirs).sum(0), torch.stack(fires))

    def merged(self, other: "_Sums") -> "_Sums":
        count, step = self.tokens + other.tokens, other.means - self.means
        weight = self.tokens * other.tokens / count
        return _Sums(
            count,
            self.means + step * (other.tokens / count),
            self.squares + other.squares + step.square() * weight,
            self.products + other.products + step[0] * step[1] * weight,
            self.fires + other.fires,
        )

    def correlation(self) -> Tensor:
        varies = self.squares > CONSTANT * (self.squares + self.tokens * self.means.square())
        roots = self.squares.sqrt()
        found = self.products / (roots[0] * roots[1])
        return torch.where(varies.all(0), found.clamp(-1, 1), torch.nan)

    def result(self) -> AttributionCorrelation:
        columns = self.correlation(), *(self.fires / self.tokens)
        return AttributionCorrelation._make([*(column.double().cpu().numpy() for column in columns), self.tokens])


def _reader(sae: SAE, readout: LogitWeights) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    rows = readout.fold(sae.W_dec.detach())  # (features, d_model)

    def read(stream: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Compute f_i v_i,next for each token in float64, and how often each feature fires."""
        latents = sae.encode(stream.to(sae.W_enc)).to(stream.device)
        return latents.double() * (columns @ rows.T), (latents > 0).sum(0)

    return read


def attribution_correlations(
    stitched: StitchedPair,
    directions: Mapping[str, Twins],
    batches: Iterable[TokenBatch] | None = None,
    *,
    centre: bool = False,
) -> dict[str, dict[str, AttributionCorrelation]]:
    """Compute Eq. 10, by direction and name of a twin, in one pass over the text and one run of each model.

    The text is by default the evaluation text of the pair. A direction is `up`, an SAE of A with twins that read B, or
    `down`, the converse. `centre` takes the mean off the logit weights. ValueError for another direction, an SAE of
    another width than its model, a twin of another number of features, and no two ordinary tokens in a row.
    """
    _check(stitched, directions)
    readouts = {side: LogitWeights(model) for side, model in zip("ab", stitched.models)}
    readers = {}
    for direction, twins in directions.items():
        source, target = (readouts[side] for side in SIDES[direction])
        others = {name: _reader(sae, target) for name, sae in twins.others.items()}
        readers[direction] = _reader(twins.sae, source), others
    widest = max(twins.sae.cfg.d_sae for twins in directions.values())
    rows_at_once = min(TOKENS_AT_ONCE, max(1, ENTRIES_AT_ONCE // widest))

    @torch.no_grad()
    def read(batch: TokenBatch) -> dict[tuple[str, str], _Sums]:
        counts = batch.mask[:, :-1] & batch.mask[:, 1:]
        following = batch.tokens[:, 1:][counts]  # (n,)
        counted, streams = torch.nn.functional.pad(counts, (0, 1)), {}
        for side in readouts:
            model, layer = stitched.side(side)
            streams[side] = model.residuals(batch.tokens, [layer])[layer][counted.to(model.device)]
        found: dict[tuple[str, str], _Sums] = {}
        for start in range(0, len(following), rows_at_once):
            part = slice(start, start + rows_at_once)
            inputs = {
                side: (streams[side][part], readout.columns(following[part], centre=centre))
                for side, readout in readouts.items()
            }
            for direction, (own, others) in readers.items():
                source, target = (inputs[side] for side in SIDES[direction])
                ours = own(*source)
                for name, other in others.items():
                    theirs = tuple(column.to(ours[0].device) for column in other(*target))
                    _merge(found, (direction, name), _Sums.of(ours, theirs))
        return found

    total: dict[tuple[str, str], _Sums] = {}
    batches = stitched.evaluation_batches() if batches is None else batches
    for found in progress(as_fits(batches, read), "attributions"):
        for key, sums in found.items():
            _merge(total, key, sums)
    if not total:
        raise ValueError("the batches hold no two ordinary tokens in a row: expected at least one pair")
    return {
        direction: {name: total[direction, name].result() for name in twins.others}
        for direction, twins in directions.items()
    }


def _merge(found: dict[tuple[str, str], _Sums], key: tuple[str, str], sums: _Sums) -> None:
    found[key] = found[key].merged(sums) if key in found else sums


def _check(stitched: StitchedPair, directions: Mapping[str, Twins]) -> None:
    if not directions or not all(twins.others for twins in directions.values()):
        raise ValueError("nothing to compare: expected at least one direction, each with at least one twin")
    for direction, twins in directions.items():
        if direction not in SIDES:
            raise ValueError(f"unknown direction {direction!r}: expected up or down")
        own, other = (stitched.side(side)[0] for side in SIDES[direction])
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


def over_features(statistics: Callable[..., Sequence[float]], *groups: np.ndarray, seed: int) -> list[Estimate]:
    """Estimate each of the `statistics`, which take groups of features, with intervals by resampling within each group.

    Which features an SAE has is chance. Draws that give no number are left out; where the groups themselves give none,
    the estimate is NaN.
    """
    generator = np.random.default_rng(seed)
    draws = np.array([statistics(*(generator.choice(group, len(group)) for group in groups)) for _ in range(RESAMPLES)])
    return [
        from_draws(value, column[np.isfinite(column)]) if np.isfinite(value) else Estimate(np.nan, np.nan, np.nan)
        for value, column in zip(statistics(*groups), draws.T)
    ]


class CorrelationSummary(NamedTuple):
    """What a histogram of correlations shows; intervals by resampling features."""

    mean: Estimate
    median: Estimate
    spread: Estimate
    """The standard deviation over features."""
    above_half: Estimate
    """The share of features above 0.5."""
    below_zero: Estimate


def summarise(correlations: OfFeatures, *, seed: int = 0) -> CorrelationSummary:
    """Summarise the correlations that are numbers; ValueError if there is none."""
    values = _numbers(correlations, "correlations")

    def statistics(chosen: np.ndarray) -> tuple[float, ...]:
        return chosen.mean(), np.median(chosen), chosen.std(), (chosen > 0.5).mean(), (chosen < 0).mean()

    return CorrelationSummary(*over_features(statistics, values, seed=seed))


class AgainstRandom(NamedTuple):
    """Where the correlations lie beside those under a random stitch; intervals by resampling the features of both."""

    better: Estimate
    """The share above the 95th percentile of the random ones."""
    negative: Estimate
    """The share below their 5th percentile: features that were flipped."""


def against_random(correlations: OfFeatures, random: Float[np.ndarray, " others"], *, seed: int = 0) -> AgainstRandom:
    """Compare the correlations that are numbers (App. G); ValueError if either side has none."""
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
