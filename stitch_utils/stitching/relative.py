r"""Maps through a space that both models share: how similar a token is to the same few anchor tokens.

Relative representations (Moschella et al., arXiv 2209.15430) describe a token by its cosines to anchors, and rotations
of the space do not change them. "Inverse relative projection" (Maiorca et al., arXiv 2406.15057) leads back: what is
relative to the anchors of A is read as if it were relative to those of B. With x and y centred and the anchors of both
models scaled to length one, as rows of A_x and A_y,

    r = x A_x'      y = s r A_y (A_y' A_y + ridge)^-1

which is the least-squares solution y of y A_y' = r. Cosines do not know lengths, so each token keeps that of x, and s
gives the mapped sample the spread of y (`maps.rescaled` gives it the least error). This makes the map affine. Its P is
the transpose of the matrix that regresses the anchors of A on those of B: it reads of x what can be told of it from y.

Relative geodesic representations (Yu et al., arXiv 2506.01599) have distances along the data in the place of cosines.
Theirs follow a metric that is pulled back from the model's output. Here they are the ways along a graph of neighbours
(Isomap, Tenenbaum et al. 2000), and a token that is not in the sample enters the graph by its own neighbours. Squared
distances to anchors, centred by token, are inner products with the anchors, as far as the space is flat (landmark MDS,
de Silva & Tenenbaum 2004). So least squares from them to y, within B alone, decode them.

Pairs of tokens are known at the anchors alone. Offers `draw_anchors`, `relative`, `fit_relative`; `fit_geodesic`,
`GeodesicMap`; `check_sample`.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..models.harvest import ROWS_AT_ONCE
from .maps import fit_least_squares
from .moments import PairMoments
from .neighbours import graph_distances, neighbour_graph
from .stitch import AffineMap

Anchors = Int[Tensor, " k"]  # which tokens of the sample are anchors


def draw_anchors(n_tokens: int, count: int, *, seed: int = 0) -> Anchors:
    """Draw the places of `count` different tokens of a sample at random; ValueError if it has fewer."""
    if not 2 <= count <= n_tokens:
        raise ValueError(f"anchors must number from 2 to {n_tokens}, the tokens of the sample: got {count}")
    return torch.randperm(n_tokens, generator=torch.Generator().manual_seed(seed))[:count]


def relative(x: Float[Tensor, "n d"], anchors: Float[Tensor, "k d"]) -> Float[Tensor, "n k"]:
    """Compute the cosine of each row to each anchor; 0 for a row of zeros. Centre both, for angles about the mean."""
    return torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(anchors, dim=1).T


def check_sample(x: Tensor, y: Tensor, anchors: Tensor) -> None:
    """Raise ValueError unless x (n, d_a) and y (n, d_b) are finite, vary, and hold two different anchors or more."""
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y):
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"expected samples x of shape (n, d_a) and y of shape (n, d_b): got {shapes}")
    for name, part in (("x", x), ("y", y)):
        if not part.isfinite().all():
            raise ValueError(f"the sample {name} holds values that are not finite")
        if (part == part[:1]).all():
            raise ValueError(f"the sample {name} does not vary over {len(part)} tokens: there is nothing to fit")
    if len(anchors) < 2 or len(anchors.unique()) < len(anchors) or anchors.min() < 0 or anchors.max() >= len(x):
        raise ValueError(f"expected two or more different anchors, each a place from 0 to {len(x) - 1} in the sample")


def fit_relative(
    x: Float[Tensor, "n d_a"],
    y: Float[Tensor, "n d_b"],
    anchors: Anchors,
    *,
    ridge: float = 1e-2,
    dtype: torch.dtype = torch.float32,
) -> AffineMap:
    """Map by cosines to the anchors and their least-squares inverse in B, about the means of the sample.

    `ridge` times the mean eigenvalue of A_y' A_y is added to its diagonal, without which fewer anchors than dimensions,
    or hardly more, make the inverse write noise. ValueError for a negative ridge, and as `check_sample`.
    """
    if ridge < 0:
        raise ValueError(f"ridge must not be negative: got {ridge}")
    check_sample(x, y, anchors)
    (x, mean_x), (y, mean_y), anchors = _centred(x), _centred(y), anchors.cpu()
    rows_x, rows_y = (torch.nn.functional.normalize(part[anchors], dim=1) for part in (x, y))
    gram = rows_y.T @ rows_y
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp_min(0)
    kept = values > 1e-12 * values[-1]  # without a ridge, the pseudo-inverse
    inverses = torch.where(kept, 1 / (values + ridge * values.mean()).where(kept, 1), 0)
    P = rows_x.T @ rows_y @ (vectors * inverses) @ vectors.T
    P = P * (y.square().sum() / (x @ P).square().sum()).sqrt()
    return AffineMap(P, mean_y - mean_x @ P).to(dtype)


@dataclass(frozen=True)
class GeodesicMap:
    """From a stream to its distances along a graph of neighbours, and from them to the other stream; not affine."""

    points: Float[Tensor, "n d_in"]
    """The sample of the stream that the map reads."""
    distances: Float[Tensor, "n k"]
    """Along the graph, from each point of the sample to each anchor."""
    neighbours: int
    """How many points a token enters the graph by."""
    P: Float[Tensor, "k d_out"]
    b: Float[Tensor, " d_out"]

    @property
    def d_in(self) -> int:
        return self.points.shape[1]

    def relative(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n k"]:
        """Measure the distance of each token to each anchor, by way of the neighbour that makes it shortest."""
        near = torch.cdist(x, self.points).topk(self.neighbours, largest=False)
        return (near.values[..., None] + self.distances[near.indices]).amin(1)

    def __call__(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        """Map a stream in the dtype of `P`, and answer in that of `x`, on its device; ValueError for another width."""
        if x.shape[-1] != self.d_in:
            raise ValueError(f"the map was given shape {tuple(x.shape)}: expected (..., {self.d_in})")
        here = self.to(x.device)
        rows = x.to(here.P.dtype).reshape(-1, self.d_in)
        parts = [_inner(here.relative(part)) @ here.P + here.b for part in rows.split(ROWS_AT_ONCE // 4)]
        return torch.cat(parts).reshape(*x.shape[:-1], len(here.b)).to(x.dtype)

    def to(self, *args, **kwargs) -> "GeodesicMap":
        """Copy the map to another device or dtype."""
        tensors = {name: getattr(self, name).to(*args, **kwargs) for name in ("points", "distances", "P", "b")}
        return replace(self, **tensors)


def fit_geodesic(
    x: Float[Tensor, "n d_a"],
    y: Float[Tensor, "n d_b"],
    anchors: Anchors,
    *,
    neighbours: int = 10,
    ridge: float = 0.1,
    dtype: torch.dtype = torch.float64,
) -> GeodesicMap:
    """Map by distances to the anchors along a graph of the sample, decoded by least squares in B.

    Distances in A are scaled so that the anchors lie as far apart as in B, in the root mean square. `ridge` is that of
    the decoding, as a share of the mean variance of what it reads; it is large, since the decoding is learnt on the
    distances of B and reads those of A, which agree but roughly. Memory grows as n^2. ValueError for a negative
    ridge, neighbours that the sample does not have, and as `check_sample`.
    """
    check_sample(x, y, anchors)
    points, targets = x.double().cpu(), y.double().cpu()
    to_anchors = [graph_distances(neighbour_graph(part, neighbours), anchors.cpu()) for part in (points, targets)]
    apart_x, apart_y = (distances[anchors].square().mean() for distances in to_anchors)
    moments = PairMoments(len(anchors), y.shape[1])
    moments.update(_inner(to_anchors[1]), targets)
    P = fit_least_squares(moments, ridge=ridge, dtype=torch.float64).P * (apart_y / apart_x)
    b = targets.mean(0) - _inner(to_anchors[0]).mean(0) @ P  # so that the mean over the sample is that of y
    return GeodesicMap(points, to_anchors[0], neighbours, P, b).to(dtype)


def _inner(distances: Tensor) -> Tensor:
    """Turn distances to anchors into inner products with the anchors about their mean, but for a constant of each."""
    squares = distances.square()
    return (squares.mean(-1, keepdim=True) - squares) / 2


def _centred(sample: Tensor) -> tuple[Tensor, Tensor]:
    """Take the mean of the sample from it, in float64 on the CPU; give both."""
    sample = sample.double().cpu()
    mean = sample.mean(0)
    return sample - mean, mean
