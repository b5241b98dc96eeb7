"""What stitching costs: next-token cross-entropy with one model's residual stream computed from the other's.

Section 2, "Downstream Performance": Table 1 and Fig. 7. In A->B the residual stream of B before its stitched layer is
replaced by up(x), and B finishes the computation; in A->B->A that of A is replaced by down(up(x)), and so on. The
host's own residual stays at special tokens, which no stitch has seen (App. A masks them), at tokens that are not met
where the two tokenizers differ, and at those that the pair leaves out as outliers. Losses of models with two tokenizers
are compared in bits per byte. Beside the models' own losses stands what counts of tokens, or of pairs of tokens,
already predict. Of a direction (section 4), the maps may leave less than of random ones, and the way back may not
return to it.

Offers `measure_fidelity`, `Fidelity`, `CONDITIONS`, `splice`; `NgramModel`; `survival`, `Survival`.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..data.pairs import check_known
from ..data.text import PairedBatch, TokenBatch
from ..models.agreement import is_finite, overflow
from ..models.harvest import NormLimits, as_fits, without_outliers
from ..models.language_model import Edit, LanguageModel
from ..utils.progress import progress
from ..utils.stats import DocumentSums, Estimate, from_resamples, resampled_totals
from .maps import MapPair
from .stitch import Stitch

# Condition -> the model that comes last.
CONDITIONS = {"a_to_b": "b", "b_to_a": "a", "a_to_b_to_a": "a", "b_to_a_to_b": "b"}
RANDOM_DIRECTIONS = 1000


class HostCounts(NamedTuple):
    """What the losses of one model are sums over, document by document."""

    tokens: np.ndarray
    """(documents,): tokens predicted."""
    met: np.ndarray
    """(documents,): those of them whose stream a stitch replaces."""
    n_bytes: np.ndarray
    """(documents,): bytes of text in them; NaN where the text is not known."""


@dataclass(frozen=True)
class Fidelity:
    """Cross-entropy of every condition, summed for each document, so that intervals resample documents."""

    counts: Mapping[str, HostCounts]
    """By the model that comes last, "a" or "b"."""
    sums: Mapping[tuple[str, str], np.ndarray]
    """(stitch, condition) -> (documents,), nats. The models' own losses are ("own", "a") and ("own", "b"); what counts
    predict of their tokens is ("unigram", "a") and so on."""
    seed: int = 0
    """The seed of the bootstrap."""

    def cross_entropy(self, stitch: str, condition: str) -> Estimate:
        """Average over the tokens of the model that comes last, in nats; the interval resamples documents."""
        return from_resamples(self._ratio(self.sums[stitch, condition], self.counts[_host(condition)].tokens))

    def increase(self, stitch: str, condition: str, *, over: tuple[str, str] | None = None) -> Estimate:
        """Compare with another loss on the same documents: 0.11 is a loss 11% higher.

        `over` is the stitch and condition of the other; by default the own loss of the model that comes last. Losses of
        two models with different tokens are compared by the byte of text.
        """
        return from_resamples(self.increases(stitch, condition, over=over))

    def increases(self, stitch: str, condition: str, *, over: tuple[str, str] | None = None) -> np.ndarray:
        """Return what `increase` is the estimate of, for the text and for each resample: (1 + resamples,)."""
        over = over or ("own", CONDITIONS[condition])
        one, other = (self.counts[_host(name)] for name in (condition, over[1]))
        per = "tokens" if np.array_equal(one.tokens, other.tokens) else "n_bytes"
        losses = self._ratio(self.sums[stitch, condition], getattr(one, per))
        return losses / self._ratio(self.sums[over], getattr(other, per)) - 1

    def gap(self) -> Estimate:
        """Subtract the own loss of B from that of A on the same documents, in nats for each token of B.

        Where tokens differ, what A's text costs by the byte is counted on the bytes of B's tokens.
        """
        of_b = self._ratio(self.sums["own", "b"], self.counts["b"].tokens)
        return from_resamples(of_b * self.increases("own", "a", over=("own", "b")))

    def difference(self, stitch: str, other: str, condition: str) -> Estimate:
        """Subtract the cross-entropy with `other` from that with `stitch`, on the same documents; in nats a token."""
        gap = self.sums[stitch, condition] - self.sums[other, condition]
        return from_resamples(self._ratio(gap, self.counts[_host(condition)].tokens))

    def saved(self, stitch: str, other: str, condition: str) -> Estimate:
        """Return what `stitch` saves of what `other` costs its host, on the same documents: 1 is all of it.

        It means little where `other` costs its host about nothing.
        """
        dear, own = self.sums[other, condition], self.sums["own", CONDITIONS[condition]]
        return from_resamples(self._ratio(dear - self.sums[stitch, condition], dear - own))

    def bits_per_byte(self, stitch: str, condition: str) -> Estimate:
        """Average over the bytes of text, in bits: what two models with different tokens can be compared in."""
        nats = self._ratio(self.sums[stitch, condition], self.counts[_host(condition)].n_bytes)
        return from_resamples(nats / math.log(2))

    def met(self, host: str) -> Estimate:
        """Return the share of a model's tokens whose stream a stitch replaces."""
        return from_resamples(self._ratio(self.counts[host].met, self.counts[host].tokens))

    def _ratio(self, above: np.ndarray, below: np.ndarray) -> np.ndarray:
        above, below = (resampled_totals(column, self.seed) for column in (above, below))
        return above / below


def _host(condition: str) -> str:
    """Name the model that comes last in a condition, `a`, or `a_without_layer`."""
    return CONDITIONS.get(condition, condition[0])


def splice(replacement: Float[Tensor, "n d_model"], mask: Bool[Tensor, "batch pos"]) -> Edit:
    """Make an edit that puts `replacement` at the `n` tokens of the mask and keeps the host's residual elsewhere."""

    def edit(residual: Tensor) -> Tensor:
        changed = residual.clone()
        changed[mask.to(residual.device)] = replacement.to(residual)
        return changed

    return edit


def measure_fidelity(
    model_a: LanguageModel,
    model_b: LanguageModel,
    layer_a: int,
    layer_b: int,
    stitches: Mapping[str, Stitch | MapPair],
    batches: Iterable[PairedBatch | TokenBatch],
    *,
    means: tuple[Tensor, Tensor] | None = None,
    ngrams: Mapping[str, "NgramModel"] | None = None,
    limits: NormLimits | None = None,
    conditions: Collection[str] = tuple(CONDITIONS),
    seed: int = 0,
) -> Fidelity:
    """Measure the cross-entropy of both models and of some of the four `conditions` of several stitches, in one pass.

    Of a stitch the maps are called and nothing else, so that a `MapPair` may stand in its place.

    With `means`, (d_a,) and (d_b,), ("own", "a_without_layer") and ("own", "b_without_layer") are the losses with the
    stream replaced by its mean; with `ngrams`, {host: counts of its tokens}, ("unigram", "a") and so on are what these
    predict. Tokens of a norm beyond `limits` keep the host's stream. ValueError for an unknown
    condition, for a loss that is not finite, and if the batches predict no ordinary token.
    """
    hosts = {"a": (model_a, layer_a), "b": (model_b, layer_b)}
    stitches = {name: stitch.to(model_b.device) for name, stitch in stitches.items()}
    for condition in conditions:
        check_known("condition", condition, CONDITIONS)
    measured: list[tuple[str, str]] = []

    def read(batch: PairedBatch) -> DocumentSums:
        """Sum counts and losses by document: (6 + conditions,)."""
        rows = {"a": batch.a, "b": batch.b}
        streams = {host: model.residuals(rows[host].tokens, [layer])[layer] for host, (model, layer) in hosts.items()}
        x, y = streams["a"], streams["b"]
        batch = without_outliers(batch, x, y, limits)
        met = {"a": batch.met_a, "b": batch.met_b}
        scored = {host: row.mask[:, 1:] for host, row in rows.items()}

        def own(host: str, replacement: Tensor | None = None) -> Tensor:
            model, layer = hosts[host]
            edit = None if replacement is None else splice(replacement, met[host])
            losses = model.cross_entropy(rows[host].tokens, layer=layer, edit=edit, stream=streams[host])
            losses = losses.cpu()[scored[host]]
            if not is_finite(losses):
                what = "cross-entropy" if edit is None else f"cross-entropy with another stream before layer {layer}"
                raise ValueError(overflow(what, model.ref, streams[host].dtype))
            return losses

        def at(stream: Tensor, side: str) -> Tensor:
            return stream[met[side].to(stream.device)]

        found = {("own", host): own(host) for host in hosts}
        for (host, stream), mean in zip(streams.items(), means or ()):
            found["own", f"{host}_without_layer"] = own(host, at(mean.to(stream).expand_as(stream), host))
        for host, counted in (ngrams or {}).items():
            found |= {(name, host): losses for name, losses in counted.losses(rows[host]).items()}
        for name, stitch in stitches.items():
            up_x, down_y = stitch.up(x.to(y.device)), stitch.down(y)
            spliced = at(up_x, "a"), at(down_y, "b"), at(stitch.down(up_x), "a"), at(stitch.up(down_y), "b")
            for (condition, host), stream in zip(CONDITIONS.items(), spliced):
                if condition in conditions:
                    found[name, condition] = own(host, stream)
        measured[:] = found
        owners, values = [], []
        for host, row in rows.items():
            n_bytes = torch.full(row.tokens.shape, torch.nan) if row.n_bytes is None else row.n_bytes
            count = int(scored[host].sum())
            columns = {f"{host} {name}": torch.zeros(count) for host in hosts for name in HostCounts._fields}
            of_host = (torch.ones(count), *(part[:, 1:][scored[host]] for part in (met[host], n_bytes)))
            columns |= dict(zip([f"{host} {name}" for name in HostCounts._fields], of_host))
            columns |= {key: losses if _host(key[1]) == host else torch.zeros(count) for key, losses in found.items()}
            owners.append(row.documents[:, 1:][scored[host]])
            values.append(torch.stack([column.double() for column in columns.values()], dim=1))
        return DocumentSums.of(torch.cat(owners), torch.cat(values))

    sums = DocumentSums()
    for part in progress(as_fits(map(PairedBatch.of, batches), read), "cross-entropy"):
        sums.add(part)
    columns = list(map(np.ascontiguousarray, sums.table().T))
    size = len(HostCounts._fields)
    counts = {host: HostCounts(*columns[n * size : (n + 1) * size]) for n, host in enumerate(hosts)}
    return Fidelity(counts, dict(zip(measured, columns[len(hosts) * size :])), seed)


class NgramModel:
    """Counts of tokens and of pairs of tokens in a text, and what they predict of another.

    The unigram model adds one to each count; the bigram model is smoothed towards it by Witten and Bell's rule: weight
    c / (c + k) to the pair counts of a context seen c times with k different successors.
    """

    def __init__(self, training: Iterable[TokenBatch], vocabulary: int):
        """Count the ordinary tokens of `training`; ValueError if none follows another."""
        parts = [_targets_and_contexts(batch) for batch in training]
        if not sum(len(targets) for targets, _ in parts):
            raise ValueError("the text has no ordinary token after another: there is nothing to count")
        successors, contexts = (torch.cat(column) for column in zip(*parts))
        counts = torch.bincount(successors, minlength=vocabulary).double()
        self.vocabulary, self.unigram = vocabulary, (counts + 1) / (counts + 1).sum()
        self.pairs, self.pair_counts = torch.unique(contexts * vocabulary + successors, return_counts=True)
        self.context_counts = torch.bincount(contexts, minlength=vocabulary).double()
        self.kinds = torch.bincount(self.pairs // vocabulary, minlength=vocabulary).double()

    def losses(self, batch: TokenBatch) -> dict[str, Float[Tensor, " n"]]:
        """Compute -log p, in nats, of the n ordinary tokens after another: of "unigram" and of "bigram"."""
        targets, given = _targets_and_contexts(batch)
        wanted = given * self.vocabulary + targets
        place = torch.searchsorted(self.pairs, wanted).clamp(max=len(self.pairs) - 1)
        seen = torch.where(self.pairs[place] == wanted, self.pair_counts[place], 0).double()
        unigram, kinds = self.unigram[targets], self.kinds[given]
        total = self.context_counts[given] + kinds
        # A context never seen leaves all the weight to the unigram model.
        bigram = torch.where(total > 0, (seen + kinds * unigram) / total.clamp(min=1), unigram)
        return {"unigram": -unigram.log(), "bigram": -bigram.log()}


def _targets_and_contexts(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Pick the ordinary tokens of a batch, and the tokens before them."""
    mask = batch.mask[:, 1:]
    return batch.tokens[:, 1:][mask], batch.tokens[:, :-1][mask]


class Survival(NamedTuple):
    """What a stitch leaves of one direction."""

    kept: float
    """Its length after the map, as a share of its length before."""
    kept_random: float
    """The root mean square of that share over all random directions."""
    round_trip: float
    """Cosine between the direction and what comes back of it by both maps."""
    round_trip_random: float
    """The median of that cosine over a thousand random directions."""


def survival(directions: np.ndarray, stitch: Stitch, *, to: str = "b", reads: bool = False) -> list[Survival]:
    """Measure what is left of each direction, (d,) or (n, d), on the way to model `to`.

    A direction v that is added to the stream becomes v P. With `reads` the directions are weights w of linear probes,
    which read the stream and so go by the other map: to w P_down^T in B. ValueError for another `to`.
    """
    maps = stitch.towards(to), stitch.towards("a" if to == "b" else "b")
    there, back = (each.P.detach().cpu().double().numpy() for each in maps)
    if reads:
        there, back = back.T, there.T

    def lengths_and_cosines(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        image = rows @ there
        returned = image @ back
        norms = np.linalg.norm(returned, axis=1)
        cosines = np.divide((rows * returned).sum(1), norms, out=np.zeros(len(rows)), where=norms > 0)
        return np.linalg.norm(image, axis=1), cosines

    drawn = np.random.default_rng(0).standard_normal((RANDOM_DIRECTIONS, len(there)))
    typical = float(np.linalg.norm(there) / len(there) ** 0.5), float(np.median(lengths_and_cosines(drawn)[1]))
    kept, cosines = lengths_and_cosines(np.atleast_2d(directions))
    return [Survival(float(k), typical[0], float(c), typical[1]) for k, c in zip(kept, cosines)]
