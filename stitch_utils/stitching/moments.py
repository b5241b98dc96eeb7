"""Everything that Eq. 3 needs to know of two residual streams: counts, means and second moments.

Section 2, Eq. 3. Each term of the loss is a mean squared error between affine maps of x and y, so the loss depends on
the means and the second moments of (x, y) alone. One pass over the text gathers them, in memory that does not grow with
the number of tokens. The moments of two shards add up, so a text that is harvested in folds by documents gives the sum
over any of them, and what one fold says of a fit to the others.

Offers `PairMoments`, `harvest_moments`; in folds `harvest_folds`, `total`, `save_folds`, `load_folds`; and
`owned_residuals`, both streams with the numbers of their documents.
"""

import functools
import itertools
import json
import operator
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..data.text import PairedBatch, TokenBatch
from ..models.harvest import ROWS_AT_ONCE, NormLimits, Residuals, paired_residuals, usual
from ..models.language_model import LanguageModel
from ..utils import ranks
from ..utils.progress import progress


class PairMoments:
    """Count, means and centred second moments of paired activations x (n, d_a) and y (n, d_b), in float64.

    Sums of products are taken around the running mean (Chan, Golub & LeVeque 1983), so that a mean that is large beside
    the spread costs no digits. The tensors live on the device of the last update. `left_out` counts the tokens that
    were left out as outliers.
    """

    def __init__(self, d_a: int, d_b: int):
        self.d_a, self.d_b, self.count, self.left_out = d_a, d_b, 0, 0
        self.mean = torch.zeros(d_a + d_b, dtype=torch.float64)
        self.scatter = torch.zeros(d_a + d_b, d_a + d_b, dtype=torch.float64)

    def update(
        self, x: Float[Tensor, "n d_a"], y: Float[Tensor, "_ d_b"], weights: Float[Tensor, " n"] | None = None
    ) -> None:
        """Add `n` tokens, of any float dtype and on any device; each counts as often as its weight says.

        ValueError for shapes that do not fit, values that are not finite, and weights that are not positive.
        """
        if x.dim() != 2 or x.shape[1] != self.d_a or y.shape != (len(x), self.d_b):
            expected = f"expected x of shape (n, {self.d_a}) and y of shape (n, {self.d_b})"
            raise ValueError(f"{expected}: got {tuple(x.shape)} and {tuple(y.shape)}")
        if not len(x):
            return
        if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
            raise ValueError("activations hold values that are not finite; moments are unchanged")
        if weights is not None and not (weights > 0).all():
            raise ValueError("expected positive weights; moments are unchanged")
        parts = itertools.repeat(None) if weights is None else weights.split(ROWS_AT_ONCE)
        for part_x, part_y, part in zip(x.split(ROWS_AT_ONCE), y.split(ROWS_AT_ONCE), parts):
            both = torch.cat([part_x.double(), part_y.double()], dim=1)  # (rows, d_a + d_b)
            if part is None:
                count, mean = len(both), both.mean(dim=0)
            else:
                part = part.to(both)
                count = part.sum().item()
                mean = part @ both / count
            both -= mean
            weighted = both if part is None else both * part[:, None]
            self._merge(count, mean, weighted.T @ both)

    def _merge(self, count: float, mean: Tensor, scatter: Tensor | float) -> None:
        self.mean, self.scatter = self.mean.to(mean.device), self.scatter.to(mean.device)
        total = self.count + count
        shift = mean - self.mean
        self.scatter = self.scatter + scatter + torch.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def __add__(self, other: "PairMoments") -> "PairMoments":
        """Add up the moments of two shards."""
        if (self.d_a, self.d_b) != (other.d_a, other.d_b):
            raise ValueError(f"widths differ: {self.d_a}, {self.d_b} and {other.d_a}, {other.d_b}")
        result = PairMoments(self.d_a, self.d_b)
        result.left_out = self.left_out + other.left_out
        for part in (self, other):
            if part.count:
                result._merge(part.count, part.mean, part.scatter)
        return result

    def over_ranks(self) -> "PairMoments":
        """Add up the moments of all processes of a group, by one all-reduce; each process gets the sum."""
        if ranks.count() == 1:
            return self
        # Each process has a row of its own, zeros to the others, so that the sum keeps the means apart.
        rows = torch.zeros(ranks.count(), 2 + len(self.mean), dtype=torch.float64, device=self.mean.device)
        rows[ranks.number(), :2] = torch.tensor([self.count, self.left_out])
        rows[ranks.number(), 2:] = self.mean
        found = ranks.summed(torch.cat([rows.flatten(), self.scatter.flatten()]))
        rows, scatter = found[: rows.numel()].view_as(rows), found[rows.numel() :].view_as(self.scatter)
        result = PairMoments(self.d_a, self.d_b)
        for (count, left_out), mean in zip(rows[:, :2].tolist(), rows[:, 2:]):
            result.left_out += int(left_out)
            if count:
                result._merge(int(count) if count.is_integer() else count, mean, 0.0)
        result.scatter = result.scatter + scatter
        return result

    @property
    def mean_x(self) -> Float[Tensor, " d_a"]:
        return self.mean[: self.d_a]

    @property
    def mean_y(self) -> Float[Tensor, " d_b"]:
        return self.mean[self.d_a :]

    @property
    def covariance(self) -> Float[Tensor, "both both"]:
        """The centred second moments of (x, y), divided by the count."""
        if not self.count:
            raise ValueError("moments of 0 tokens: at least one is needed")
        return self.scatter / self.count

    @property
    def cxx(self) -> Float[Tensor, "d_a d_a"]:
        return self.covariance[: self.d_a, : self.d_a]

    @property
    def cxy(self) -> Float[Tensor, "d_a d_b"]:
        return self.covariance[: self.d_a, self.d_a :]

    @property
    def cyy(self) -> Float[Tensor, "d_b d_b"]:
        return self.covariance[self.d_a :, self.d_a :]

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        tensors = {"mean": self.mean.cpu(), "scatter": self.scatter.cpu()}
        meta = {"kind": "PairMoments", "d_a": str(self.d_a), "d_b": str(self.d_b), "count": str(self.count)}
        meta["left_out"] = str(self.left_out)
        save_file(tensors, str(path), metadata=meta)

    @classmethod
    def load(cls, path: str | Path) -> "PairMoments":
        """Read what `save` wrote; ValueError for another file."""
        with safe_open(str(path), framework="pt") as file:
            meta = file.metadata() or {}
            if meta.get("kind") != "PairMoments":
                raise ValueError(f"{path} holds {meta.get('kind', 'no')} data: expected PairMoments")
            moments = cls(int(meta["d_a"]), int(meta["d_b"]))
            moments.count = json.loads(meta["count"])  # the sum of weights need not be whole
            moments.left_out = int(meta["left_out"])
            moments.mean, moments.scatter = file.get_tensor("mean"), file.get_tensor("scatter")
        return moments


def harvest_moments(
    model_a: LanguageModel,
    model_b: LanguageModel,
    batches: Iterable[PairedBatch | TokenBatch],
    layers: Sequence[tuple[int, int]],
    *,
    limits: NormLimits | None = None,
) -> dict[tuple[int, int], PairMoments]:
    """Gather the moments of each pair (layer of A, layer of B) in one pass, without tokens beyond `limits`.

    The processes of a group share the work, as in `harvest_folds`.
    """
    return harvest_folds(model_a, model_b, batches, layers, folds=1, limits=limits)[0]


def harvest_folds(
    model_a: LanguageModel,
    model_b: LanguageModel,
    batches: Iterable[PairedBatch | TokenBatch],
    layers: Sequence[tuple[int, int]],
    *,
    folds: int,
    limits: NormLimits | None = None,
) -> list[dict[tuple[int, int], PairMoments]]:
    """Gather the moments of each pair of layers in one pass, `folds` times: document i goes to fold i modulo `folds`.

    No document is in two folds, however its tokens lie in rows and batches. With fewer documents than folds, the last
    folds hold no tokens.

    The processes of a group (`utils.ranks`) share the work, and each gets all moments, so all have to call. Each reads
    and cuts the whole text, which keeps rows and batches as they are in one process, and runs the models on every
    `count()`-th batch: the models' share of the time is divided, and the text's is not.
    """
    found = [{pair: PairMoments(model_a.d_model, model_b.d_model) for pair in layers} for _ in range(folds)]
    layers_a, layers_b = (sorted(set(side)) for side in zip(*layers))

    def read() -> None:
        streams = owned_residuals(model_a, model_b, ranks.share(batches), layers_a, layers_b)
        for documents, xs, ys in progress(streams, "harvest"):
            for number, moments in enumerate(found):
                for (layer_a, layer_b), accumulator in moments.items():
                    x, y = xs[layer_a], ys[layer_b].to(xs[layer_a].device)
                    if folds > 1:
                        chosen = (documents % folds == number).to(x.device)
                        x, y = x[chosen], y[chosen]
                    if limits is not None:
                        met = len(x)
                        x, y = usual(x, y, limits)
                        accumulator.left_out += met - len(x)
                    accumulator.update(x, y)

    ranks.together(read)
    return [{pair: moments.over_ranks() for pair, moments in fold.items()} for fold in found]


def owned_residuals(
    model_a: LanguageModel,
    model_b: LanguageModel,
    batches: Iterable[PairedBatch | TokenBatch],
    layers_a: Sequence[int],
    layers_b: Sequence[int],
) -> Iterator[tuple[Tensor, Residuals, Residuals]]:
    """Give both streams where the models meet, as `paired_residuals` does, after the document of each token, (n,)."""
    waiting = torch.empty(0, dtype=torch.long)  # of the tokens whose activations are still to come, in order

    def noted() -> Iterator[PairedBatch]:
        nonlocal waiting
        for batch in map(PairedBatch.of, batches):
            waiting = torch.cat([waiting, batch.a.documents[batch.met_a].cpu()])
            yield batch

    for xs, ys in paired_residuals(model_a, model_b, noted(), layers_a, layers_b):
        count = len(xs[layers_a[0]])
        documents, waiting = waiting[:count], waiting[count:]
        yield documents, xs, ys


def total(folds: Sequence[PairMoments]) -> PairMoments:
    """Add up folds; one fold is its own total, to the last bit."""
    return functools.reduce(operator.add, folds)


def save_folds(folds: Sequence[PairMoments], path: str | Path) -> None:
    """Write a safetensors file: of one fold as `PairMoments.save` does, of several with an axis of folds before all."""
    if len(folds) == 1:
        return folds[0].save(path)
    tensors = {name: torch.stack([getattr(fold, name).cpu() for fold in folds]) for name in ("mean", "scatter")}
    meta = {"kind": "folds of PairMoments", "d_a": str(folds[0].d_a), "d_b": str(folds[0].d_b)}
    save_file(
        tensors, str(path), metadata=meta | {"counts": json.dumps([[fold.count, fold.left_out] for fold in folds])}
    )


def load_folds(path: str | Path) -> list[PairMoments]:
    """Read what `save_folds` wrote; ValueError for another file."""
    with safe_open(str(path), framework="pt") as file:
        meta = file.metadata() or {}
        if meta.get("kind") != "folds of PairMoments":
            return [PairMoments.load(path)]
        folds = []
        for number, (count, left_out) in enumerate(json.loads(meta["counts"])):
            fold = PairMoments(int(meta["d_a"]), int(meta["d_b"]))
            fold.count, fold.left_out = count, left_out
            fold.mean, fold.scatter = (file.get_tensor(name)[number].clone() for name in ("mean", "scatter"))
            folds.append(fold)
    return folds
