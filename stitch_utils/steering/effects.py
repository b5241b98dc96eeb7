r"""Judge a carried vector by what it does: does it change B's predictions as the original changes A's?

No section of the papers. Cosines say little here: what comes back through both maps is close to what went in for random
directions, too. So v is added to the stream of its own model and v P to that of the other, on held-out text, each at
`STRENGTH` medians of the norm of the stream that it is added to, which is the same dose in both. At every token that
the models have both read up to, the next-token logits change by a vector over the vocabulary. With p the mean of both
models' own predictions, the measure is the correlation of the two changes,

    sum_tv p_tv d_tv e_tv / sqrt( sum_tv p_tv d_tv^2  sum_tv p_tv e_tv^2 ),

each centred at each token t (sum_v p_tv d_tv = 0), since softmax does not see a shift of all logits, and weighted by p,
since a change that no prediction feels counts for nothing: sum_v p d^2 is, to second order, twice the KL divergence.
Two models with different tokenizers predict different tokens. There the log-likelihood of the text from one token that
meets to the next is compared, one number for each such span, and the correlation is Pearson's over the spans.

Any vector disturbs a model in some common way, so the correlation of a useless vector is not zero. It is compared with
that of the same vector through stitches that know nothing of pairs (`component_stitches`), and with that of random
directions drawn with the covariance of the stream. A fit to noise, too, leads to directions along which the stream
varies most, and these disturb a model most.

Offers `judge_vectors`, `VectorTrust` and `STRENGTH`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..data.alignment import reader_of_both
from ..data.text import PairedBatch, TokenBatch
from ..models.harvest import as_fits, norm_limits
from ..models.language_model import LanguageModel
from ..stitching.nulls import DRAWS, component_stitches
from ..stitching.pair import StitchedPair
from ..stitching.stitch import Stitch
from ..utils.progress import progress
from ..utils.stats import Beyond, DocumentSums, resampled_totals
from .vectors import add, random_direction, transfer_vector

STRENGTH = 0.5  # of the median norm of the stream: clearly felt, and still smaller than what is there
POSITIONS_AT_ONCE = 512  # bounds the logits, of which a few are held at a time


class VectorTrust(NamedTuple):
    """How far a carried vector changes the other model's predictions as the original changes those of its own."""

    tokens: int
    """Tokens of held-out text after which predictions were compared."""
    documents: int
    """Documents of that text, which the intervals resample."""
    over_null: Beyond
    """Correlation of the two changes, beside that of the same vector carried by stitches that know of no pairs."""
    over_random: Beyond
    """The same correlation, beside that of random directions in which the stream varies, added at the same length."""

    @property
    def is_told(self) -> bool:
        """Whether the correlation exceeds those of the nulls and of random directions."""
        return self.over_null.is_told and self.over_random.is_told


@torch.no_grad()
def judge_vectors(
    stitched: StitchedPair,
    vectors: Sequence[Float[Tensor, " d_from"]],
    *,
    stitch: Stitch,
    to: str = "b",
    batches: Iterable[PairedBatch | TokenBatch] | None = None,
    seed: int = 0,
) -> list[VectorTrust]:
    """Measure, for each vector of one model, what it does there and what its image under `stitch` does in model `to`.

    `batches` are by default those of the pair's evaluation text. All of them give the nulls their moments; predictions
    are compared on the first of them, as many tokens as `sizes.yml` says (`vector_effects`). ValueError if none meet.
    """
    source, d = ("a" if to == "b" else "b"), stitched.side(to)[0].d_model
    batches = [PairedBatch.of(batch) for batch in (stitched.evaluation_batches() if batches is None else batches)]
    some = list(_first(batches, **stitched.sizes_of("vector_effects")))
    lengths = norm_limits(stitched.models, stitched.layers, some, beyond=STRENGTH)._asdict()
    moments = stitched.gather(batches)
    stitches = [stitch, *component_stitches(moments, seed=seed)]
    variances, axes = torch.linalg.eigh(moments.cyy if to == "b" else moments.cxx)
    scales = variances.clamp(min=0).sqrt().float()
    random = [axes.float() @ (scales * random_direction(d, 1000 * seed + number)) for number in range(DRAWS)]
    directions = [[*(transfer_vector(vector, each, to=to) for each in stitches), *random] for vector in vectors]
    changes = _in_vocabulary if reader_of_both(*stitched.tokenizers) is not None else _in_likelihood

    def read(batch: PairedBatch) -> DocumentSums:
        """Sum by document what the correlations are made of: (vectors, 3 + 3 directions)."""
        hosts = {side: _host(stitched, side, batch, lengths[side]) for side in "ab"}
        owners, change, is_centred = changes(hosts, batch)

        def totals(of: Tensor) -> list[Tensor]:
            return [of.new_zeros(len(of)) if is_centred else of.sum(1), of.square().sum(1)]

        values = []
        for vector, carried in zip(vectors, directions):
            own = change(source, vector)
            columns = [own.new_ones(len(own)), *totals(own)]
            for direction in carried:
                found = change(to, direction).to(own.device)
                columns += [*totals(found), (own * found).sum(1)]
            values.append(torch.stack(columns, dim=1))
        return DocumentSums.of(owners, torch.stack(values, dim=1).cpu())

    sums = DocumentSums()
    for part in progress(as_fits(some, read), "vectors"):
        sums.add(part)
    table = sums.table()
    found = _correlations(resampled_totals(table, seed))  # (1 + resamples, vectors, directions)
    tokens = int(table[:, 0, 0].sum())
    trusts = []
    for of_vector in np.moveaxis(found, 1, 0):
        own, *draws = np.split(of_vector, [1, 1 + DRAWS], axis=1)
        trusts.append(VectorTrust(tokens, len(table), *(Beyond.of(own[:, 0], each) for each in draws)))
    return trusts


def _first(batches: Iterable[PairedBatch], tokens: int) -> Iterator[PairedBatch]:
    """Give a few rows at a time, until at least so many `tokens` have met."""
    seen = 0
    for batch in batches:
        for part in batch.split(max(1, POSITIONS_AT_ONCE // batch.a.tokens.shape[1])):
            yield part
            seen += int(part.met_a.sum())
            if seen >= tokens:
                return


class _Host(NamedTuple):
    """A model that reads a batch, with or without a vector of a given length at every position."""

    model: LanguageModel
    tokens: Tensor
    met: Tensor
    stream: dict[str, Any]
    """The layer, and the stream before it, which spares the blocks before."""
    length: float

    def logits(self, vector: Tensor | None = None) -> Float[Tensor, "met vocab"]:
        found = self.model.logits(self.tokens, **self._options(vector))
        return found[self.met.to(found.device)].float()

    def likelihoods(self, vector: Tensor | None = None) -> Float[Tensor, " met"]:
        """Sum the log-likelihoods of each row's tokens up to each that is met."""
        losses = self.model.cross_entropy(self.tokens, **self._options(vector)).double()
        return torch.nn.functional.pad(-losses, (1, 0)).cumsum(1)[self.met.to(losses.device)]

    def _options(self, vector: Tensor | None) -> dict[str, Any]:
        return self.stream | {"edit": None if vector is None else add(vector, self.length)}


def _host(stitched: StitchedPair, side: str, batch: PairedBatch, length: float) -> _Host:
    (model, layer), rows = stitched.side(side), getattr(batch, side)
    stream = {"layer": layer, "stream": model.residuals(rows.tokens, [layer])[layer]}
    return _Host(model, rows.tokens, getattr(batch, f"met_{side}"), stream, length)


# (side, vector) -> how the predictions of that model change at each place: (places, numbers).
Change = Callable[[str, Tensor], Tensor]


def _in_vocabulary(hosts: Mapping[str, _Host], batch: PairedBatch) -> tuple[Tensor, Change, bool]:
    """Compare the logits of the next token: the documents of the places, the change, and whether it is centred."""
    clean = {side: host.logits() for side, host in hosts.items()}
    shared = min(logits.shape[1] for logits in clean.values())  # rows beyond the tokenizer's differ
    p = torch.stack([logits[:, :shared].softmax(1).cpu() for logits in clean.values()]).mean(0)

    def change(side: str, vector: Tensor) -> Tensor:
        moved = (hosts[side].logits(vector) - clean[side])[:, :shared]
        here = p.to(moved)
        return (moved - (here * moved).sum(1, keepdim=True)) * here.sqrt()

    return batch.a.documents[batch.met_a], change, True


def _in_likelihood(hosts: Mapping[str, _Host], batch: PairedBatch) -> tuple[Tensor, Change, bool]:
    """Compare the log-likelihood of the text from one token that meets to the next in its row, likewise."""
    clean = {side: host.likelihoods() for side, host in hosts.items()}
    rows = batch.met_a.nonzero()[:, 0]
    is_span = rows[1:] == rows[:-1]

    def change(side: str, vector: Tensor) -> Tensor:
        moved = (hosts[side].likelihoods(vector) - clean[side]).diff()
        return moved[is_span.to(moved.device), None]

    return batch.a.documents[batch.met_a][1:][is_span], change, False


def _correlations(sums: Float[np.ndarray, "... columns"]) -> Float[np.ndarray, "... directions"]:
    """Correlate from counts, sums, squares and products; 0 where nothing changes."""
    n, own, own_squares = (sums[..., column, None] for column in range(3))
    found, squares, products = (sums[..., column::3] for column in range(3, 6))
    norms = np.sqrt((own_squares - own**2 / n) * (squares - found**2 / n))
    return np.divide(products - own * found / n, norms, out=np.zeros_like(norms), where=norms > 0)
