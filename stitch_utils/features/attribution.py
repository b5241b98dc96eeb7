r"""Attribution correlation: whether a feature that was carried to another model still speaks for the same next tokens.

Section 5, Eq. 10, and App. G (Fig. 14). A feature's attribution at a token is its activation times its logit weight
for the token that in fact comes next, and features are compared by Pearson's correlation over tokens,

    Corr_t ( f_i(h_A(t)) v_{i,t+1} ,  f'_i(h_B(t)) v'_{i,t+1} ),      v_i = n(W_d,i) W_U      (10)

each side with its own model's unembedding; a transferred SAE keeps the order of its features, so twins share an index.
A token counts where it and its successor are ordinary ones of the same row.

The paper does not say what becomes of the final norm. Here n takes the mean off the decoder row where the norm does so
(LayerNorm), multiplies it by the norm's learned scale, and leaves out the division by the size of the final stream.
That divisor belongs to the token, and two models are likely to agree on it, so it would correlate features that have
nothing else in common. A cap on the logits (Gemma) is left out too. No prediction depends on the mean of v_i over the
vocabulary; Eq. 10 as printed keeps it, and `centre` takes it off.

Offers `Twins`, `carried`, `attribution_correlations`, `AttributionCorrelation`, `summarise`, `against_random`, and
`over_features`, which gives intervals over features.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from sae_lens import SAE
from torch import Tensor

from ..data.pairs import check_known
from ..data.text import PairedBatch, TokenBatch
from ..models.harvest import TOKENS_AT_ONCE, as_fits
from ..models.unembedding import LogitWeights
from ..saes.evaluation import check_width
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
    """Sums over tokens, around running means (Chan, Golub & LeVeque 1983); each but `products` is (2, features)."""

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

    def result(self) -> AttributionCorrelation:
        varies = self.squares > CONSTANT * (self.squares + self.tokens * self.means.square())
        ours, theirs = self.squares.sqrt()
        correlation = torch.where(varies.all(0), (self.products / (ours * theirs)).clamp(-1, 1), torch.nan)
        columns = correlation, *(self.fires / self.tokens)
        return AttributionCorrelation(*(column.double().cpu().numpy() for column in columns), n_tokens=self.tokens)


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
    batches: Iterable[PairedBatch | TokenBatch] | None = None,
    *,
    centre: bool = False,
) -> dict[str, dict[str, AttributionCorrelation]]:
    """Compute Eq. 10, by direction and name of a twin, in one pass over the text and one run of each model.

    The text is by default the evaluation text of the pair. Models of two tokenizers are compared at the tokens that
    meet and go on in an ordinary token in both models, each by the logit weights of its own next token. A direction is
    `up`, an SAE of A with twins that read B, or `down`, the converse. `centre` takes the mean off the logit weights.
    ValueError for another direction, an SAE of another width than its model, a twin of another number of features, and
    no two ordinary tokens in a row.
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
    def read(batch: PairedBatch) -> dict[tuple[str, str], _Sums]:
        sides = {"a": (batch.a, batch.met_a), "b": (batch.b, batch.met_b)}
        goes_on = [row.mask.roll(-1, 1).index_fill(1, torch.tensor(-1), False)[met] for row, met in sides.values()]
        counted = goes_on[0] & goes_on[1]  # of the tokens that meet
        following, streams = {}, {}
        for side, (row, met) in sides.items():
            model, layer = stitched.side(side)
            following[side] = row.tokens.roll(-1, 1)[met][counted]  # (n,)
            chosen = met.masked_scatter(met, counted).to(model.device)
            streams[side] = model.residuals(row.tokens, [layer])[layer][chosen]
        found: dict[tuple[str, str], _Sums] = {}
        for start in range(0, int(counted.sum()), rows_at_once):
            part = slice(start, start + rows_at_once)
            columns = {
                side: readout.columns(following[side][part], centre=centre) for side, readout in readouts.items()
            }
            for direction, (own, others) in readers.items():
                source, target = ((streams[side][part], columns[side]) for side in SIDES[direction])
                ours = own(*source)
                for name, other in others.items():
                    theirs = tuple(column.to(ours[0].device) for column in other(*target))
                    _merge(found, (direction, name), _Sums.of(ours, theirs))
        return found

    total: dict[tuple[str, str], _Sums] = {}
    batches = stitched.evaluation_batches() if batches is None else batches
    for found in progress(as_fits(map(PairedBatch.of, batches), read), "attributions"):
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
        check_known("direction", direction, SIDES)
        own, other = (stitched.side(side)[0] for side in SIDES[direction])
        features = twins.sae.cfg.d_sae
        check_width(twins.sae, own, f"{direction}: the SAE")
        for name, sae in twins.others.items():
            check_width(sae, other, f"{direction}: twin {name!r}")
            if sae.cfg.d_sae != features:
                expected = f"expected {features}, one for each of the SAE that it is compared with"
                raise ValueError(f"{direction}: twin {name!r} has {sae.cfg.d_sae} features: {expected}")


def over_features(
    statistics: Callable[..., Mapping[str, float]], *groups: np.ndarray, seed: int
) -> dict[str, Estimate]:
    """Estimate each of the `statistics`, which take groups of features, with intervals by resampling within each group.

    Which features an SAE has is chance. A draw may lack some statistics. ValueError for a group without features.
    """
    if not all(map(len, groups)):
        raise ValueError(f"groups of {' and '.join(map(str, map(len, groups)))} features: expected some in each")
    generator = np.random.default_rng(seed)
    draws = [statistics(*(generator.choice(group, len(group)) for group in groups)) for _ in range(RESAMPLES)]
    return {
        name: from_draws(value, np.array([draw[name] for draw in draws if name in draw]))
        for name, value in statistics(*groups).items()
    }


def summarise(correlations: OfFeatures, *, seed: int = 0) -> dict[str, Estimate]:
    """Summarise the correlations that are numbers, with intervals over features; ValueError if there is none.

    Give `mean`, `median` and `spread`, the standard deviation; `above_half` (0.5) and `below_zero` are shares of them.
    """

    def statistics(chosen: np.ndarray) -> dict[str, float]:
        shares = {"above_half": (chosen > 0.5).mean(), "below_zero": (chosen < 0).mean()}
        return {"mean": chosen.mean(), "median": np.median(chosen), "spread": chosen.std()} | shares

    return over_features(statistics, correlations[np.isfinite(correlations)], seed=seed)


def against_random(
    correlations: OfFeatures, random: Float[np.ndarray, " others"], *, seed: int = 0
) -> dict[str, Estimate]:
    """Compare the correlations that are numbers with those under a random stitch (App. G).

    `better` is the share above the 95th percentile of the random ones, and `negative` the share below their 5th:
    features that were flipped. Intervals resample the features of both. ValueError if either side has no number.
    """

    def shares(values: np.ndarray, baseline: np.ndarray) -> dict[str, float]:
        low, high = np.quantile(baseline, (0.05, 0.95))
        return {"better": (values > high).mean(), "negative": (values < low).mean()}

    return over_features(shares, *(some[np.isfinite(some)] for some in (correlations, random)), seed=seed)
