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

Documents are dealt out to blocks, and intervals resample the blocks: all features and twins in the same resamples.

Offers `Twins`, `carried` and `drawn`, `attribution_correlations`, `AttributionCorrelation`, `BlockSums`.
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
from ..stitching.nulls import DRAWS, component_stitches
from ..stitching.pair import StitchedPair
from ..stitching.stitch import Stitch, random_stitch
from ..utils.progress import progress
from ..utils.stats import resampled_totals

OfFeatures = Float[np.ndarray, " features"]
Resampled = Float[np.ndarray, "rows features"]
SIDES = {"up": "ab", "down": "ba"}  # the model that an SAE comes from, and the one that it is carried to
NULLS = ("random", "components")
ENTRIES_AT_ONCE = 2**25  # bounds each table of tokens x features to 0.25 GB in float64
FEATURES_AT_ONCE = 2048  # bounds the resampled sums to 0.15 GB
CONSTANT = 1e-12  # a sum of squared deviations below this share of the sum of squares is rounding
BLOCKS = 40  # of documents
MIN_FIRES = 10


class Twins(NamedTuple):
    """An SAE of one model, and those of the other that it is compared with, feature by feature."""

    sae: SAE
    others: Mapping[str, SAE | Stitch]
    """A stitch stands for the SAE that it would carry across (Eq. 6), which then need not be built."""


def drawn(null: str) -> list[str]:
    """Name the draws of a null, one of `NULLS`, among the twins."""
    return [f"{null} {draw}" for draw in range(DRAWS)]


def carried(stitched: StitchedPair, sae: SAE, *, to: str = "b", seed: int = 0) -> Twins:
    """Transfer an SAE across the stitch, `transferred`, and set `DRAWS` draws of each null beside it.

    `random` stitches are Gaussian maps of the same norms that carry the mean residuals of A and B into each other;
    `components` match principal components by rank, with random signs (see `stitching.nulls`).
    """
    means = stitched.moments.mean_x, stitched.moments.mean_y
    random = (random_stitch(stitched.stitch, seed + draw, means=means) for draw in range(DRAWS))
    nulls = dict(zip(drawn("random"), random)) | dict(
        zip(drawn("components"), component_stitches(stitched.moments, seed=seed))
    )
    return Twins(sae, {"transferred": transfer_sae(sae, stitched.stitch, to=to), **nulls})


class BlockSums(NamedTuple):
    """Sums over the tokens of blocks of documents, from which Eq. 10 is computed for any resample of the blocks."""

    tokens: Float[np.ndarray, " blocks"]
    own: Float[np.ndarray, "blocks 4 features"]
    """Of the SAE: how often a feature fires, its attributions, their squares, and the attributions with the mean of the
    logit weights over the vocabulary taken off."""
    twin: Float[np.ndarray, "blocks 4 features"]
    """Of the twin: how often it fires, its attributions, their squares, and the products of both sides'."""

    def correlations(self, seed: int) -> tuple[Resampled, Resampled]:
        """Compute Eq. 10 and the SAE's firing rates, of the text and of its resamples: (1 + resamples, features) each.

        A feature that has no correlation in a resample keeps that of the text.
        """
        parts = []
        for own, twin in zip(*(self._chunks(table) for table in (self.own, self.twin))):
            rows = [resampled_totals(table, seed) for table in (self.tokens, own, twin)]
            parts.append((_correlate(*rows), rows[1][:, 0] / rows[0][:, None]))
        found, rates = (np.concatenate(some, axis=1) for some in zip(*parts))
        return np.where(np.isnan(found), found[:1], found), rates

    def spoken(self, seed: int) -> Resampled:
        """Average the SAE's centred attributions over tokens, of the text and of its resamples.

        Above zero the feature makes the tokens likelier that in fact come next.
        """
        tokens = resampled_totals(self.tokens, seed)[:, None]
        parts = [resampled_totals(table[:, 3], seed) / tokens for table in self._chunks(self.own)]
        return np.concatenate(parts, axis=1)

    @staticmethod
    def _chunks(table: np.ndarray) -> list[np.ndarray]:
        return np.split(table, range(FEATURES_AT_ONCE, table.shape[-1], FEATURES_AT_ONCE), axis=-1)


def _correlate(tokens: np.ndarray, own: np.ndarray, twin: np.ndarray) -> np.ndarray:
    """Correlate from counts (rows,) and sums (rows, 4, features); NaN where an attribution does not vary."""
    count, products = tokens[:, None], twin[:, 3]
    spreads = []
    for _, total, squares, _ in (own.swapaxes(0, 1), twin.swapaxes(0, 1)):
        spread = squares - total**2 / count
        spreads.append(np.where(spread > CONSTANT * squares, spread, np.nan))
    return np.clip((products - own[:, 1] * twin[:, 1] / count) / np.sqrt(spreads[0] * spreads[1]), -1, 1)


class AttributionCorrelation(NamedTuple):
    """Eq. 10 for every feature of an SAE and its twin; rates are over the tokens that count."""

    correlation: OfFeatures
    """NaN where one of the two attributions does not vary: where a feature never fires, say."""
    firing_rate: OfFeatures
    """The share of the tokens on which the feature fires in the model that it comes from."""
    twin_firing_rate: OfFeatures
    n_tokens: int
    sums: BlockSums

    @classmethod
    def of(cls, sums: BlockSums) -> "AttributionCorrelation":
        tokens, own, twin = (table.sum(0, keepdims=True) for table in sums)
        rates = (table[0, 0] / tokens[0] for table in (own, twin))
        return cls(_correlate(tokens, own, twin)[0], *rates, n_tokens=int(tokens[0]), sums=sums)

    def alive(self, min_fires: int = MIN_FIRES) -> Bool[np.ndarray, " features"]:
        """Mark features that fire on at least `min_fires` tokens in both models and have a correlation."""
        rate = np.minimum(self.firing_rate, self.twin_firing_rate)
        return (np.rint(rate * self.n_tokens) >= min_fires) & np.isfinite(self.correlation)


class _Fires(NamedTuple):
    """Where features fire, (n,) each: token, feature, activation and attribution, as is and centred."""

    token: Tensor
    feature: Tensor
    value: Tensor
    centred: Tensor


def _reader(
    sae: SAE, readout: LogitWeights, *, through: Stitch | None = None, to: str = "b"
) -> Callable[[Tensor, Tensor], _Fires]:
    """Read a stream with the SAE, or with the one that the stitch `through` would carry to model `to` (Eq. 6)."""
    rows = sae.W_dec.detach()
    if through is None:
        folded, outward = readout.fold(rows), None
    else:  # as the norm is linear here, W_d' = W_d P is folded where P is
        folded, outward = rows.to(readout.scale), readout.fold(through.towards(to).P)
    mean = readout.mean_column if outward is None else readout.mean_column @ outward.T
    means = (folded @ mean).double()  # (features,)

    def read(stream: Tensor, columns: Tensor) -> _Fires:
        inner = stream if through is None else through.towards("a" if to == "b" else "b")(stream)
        latents = sae.encode(inner.to(sae.W_enc)).to(stream.device)
        token, feature = latents.nonzero().unbind(1)
        weights = (columns if outward is None else columns @ outward.T) @ folded.T  # (n, features)
        activation = latents[token, feature].double()
        value = activation * weights[token, feature]
        return _Fires(token, feature, value, value - activation * means[feature])

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
    ValueError for another direction, an SAE of another width than its model, a twin of another number of features or
    between other widths, and no two ordinary tokens in a row.
    """
    _check(stitched, directions)
    readouts = {side: LogitWeights(model) for side, model in zip("ab", stitched.models)}
    readers = {}
    for direction, twins in directions.items():
        source, target = SIDES[direction]
        others = {
            name: _reader(twins.sae, readouts[target], through=other, to=target)
            if isinstance(other, Stitch)
            else _reader(other, readouts[target])
            for name, other in twins.others.items()
        }
        readers[direction] = _reader(twins.sae, readouts[source]), others
    widths = {direction: twins.sae.cfg.d_sae for direction, twins in directions.items()}
    rows_at_once = min(TOKENS_AT_ONCE, max(1, ENTRIES_AT_ONCE // max(widths.values())))

    @torch.no_grad()
    def read(batch: PairedBatch) -> tuple[Tensor, dict[tuple[str, str], Tensor]]:
        """Sum by block: the tokens, and by direction and twin (or "", the SAE itself) a table of `BlockSums`."""
        sides = {"a": (batch.a, batch.met_a), "b": (batch.b, batch.met_b)}
        goes_on = [row.mask.roll(-1, 1).index_fill(1, torch.tensor(-1), False)[met] for row, met in sides.values()]
        counted = goes_on[0] & goes_on[1]  # of the tokens that meet
        block = batch.a.documents[batch.met_a][counted] % BLOCKS  # (n,)
        following, streams = {}, {}
        for side, (row, met) in sides.items():
            model, layer = stitched.side(side)
            following[side] = row.tokens.roll(-1, 1)[met][counted]  # (n,)
            chosen = met.masked_scatter(met, counted).to(model.device)
            streams[side] = model.residuals(row.tokens, [layer])[layer][chosen]
        found: dict[tuple[str, str], Tensor] = {}

        def add(direction: str, name: str, start: int, fires: _Fires, last: Tensor) -> None:
            """Add up what is known of the places where features fire; `last` is the fourth column."""
            width, device = widths[direction], fires.value.device
            if (direction, name) not in found:
                found[direction, name] = torch.zeros(4, BLOCKS * width, dtype=torch.float64, device=device)
            cell = block.to(device)[start + fires.token] * width + fires.feature
            columns = [torch.ones_like(fires.value), fires.value, fires.value.square(), last]
            found[direction, name].index_add_(1, cell, torch.stack(columns))

        for start in range(0, int(counted.sum()), rows_at_once):
            part = slice(start, start + rows_at_once)
            columns = {
                side: readout.columns(following[side][part], centre=centre) for side, readout in readouts.items()
            }
            for direction, (own, others) in readers.items():
                source, target = ((streams[side][part], columns[side]) for side in SIDES[direction])
                ours = own(*source)
                add(direction, "", start, ours, ours.value if centre else ours.centred)
                table = ours.value.new_zeros(len(source[0]), widths[direction])
                table[ours.token, ours.feature] = ours.value
                for name, other in others.items():
                    theirs = other(*target)
                    opposite = table[theirs.token.to(table.device), theirs.feature.to(table.device)]
                    add(direction, name, start, theirs, theirs.value * opposite.to(theirs.value))
        return torch.bincount(block, minlength=BLOCKS), {key: sums.cpu() for key, sums in found.items()}

    tokens, total = torch.zeros(BLOCKS), {}
    batches = stitched.evaluation_batches() if batches is None else batches
    for counts, found in progress(as_fits(map(PairedBatch.of, batches), read), "attributions"):
        tokens = tokens + counts
        for key, sums in found.items():
            total[key] = total[key].add_(sums) if key in total else sums
    if not total:
        raise ValueError("the batches hold no two ordinary tokens in a row: expected at least one pair")
    tables = {
        (direction, name): sums.view(4, BLOCKS, widths[direction])[:, tokens > 0].transpose(0, 1).numpy()
        for (direction, name), sums in total.items()
    }
    counts = tokens[tokens > 0].double().numpy()
    return {
        direction: {
            name: AttributionCorrelation.of(BlockSums(counts, tables[direction, ""], tables[direction, name]))
            for name in twins.others
        }
        for direction, twins in directions.items()
    }


def _check(stitched: StitchedPair, directions: Mapping[str, Twins]) -> None:
    if not directions or not all(twins.others for twins in directions.values()):
        raise ValueError("nothing to compare: expected at least one direction, each with at least one twin")
    for direction, twins in directions.items():
        check_known("direction", direction, SIDES)
        own, other = (stitched.side(side)[0] for side in SIDES[direction])
        features = twins.sae.cfg.d_sae
        check_width(twins.sae, own, f"{direction}: the SAE")
        for name, sae in twins.others.items():
            if isinstance(sae, Stitch):
                found, wanted = tuple(sae.towards(SIDES[direction][1]).P.shape), (own.d_model, other.d_model)
                if found != wanted:
                    leads = "the stitch of twin {!r} leads from {} to {} dimensions: expected {} to {}"
                    raise ValueError(f"{direction}: {leads.format(name, *found, *wanted)}")
                continue
            check_width(sae, other, f"{direction}: twin {name!r}")
            if sae.cfg.d_sae != features:
                expected = f"expected {features}, one for each of the SAE that it is compared with"
                raise ValueError(f"{direction}: twin {name!r} has {sae.cfg.d_sae} features: {expected}")
