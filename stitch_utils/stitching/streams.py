"""What the two streams are like where they are stitched, and how much the maps explain of a typical token.

No section of the papers. Models write a few tokens of a huge norm, nearly all of it in one dimension (massive
activations). Since Eq. 3 is a mean of squares, such tokens can own the fit, and the share of variance that it explains
then says nothing of the others. So the report counts them, and gives the median over tokens of the share unexplained.

Offers `describe_streams`, `StreamShape`, `massive_share`, and the numbers `BEYOND` and `WEIGHTY`.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.text import PairedBatch, TokenBatch
from ..models.harvest import paired_residuals
from ..models.language_model import LanguageModel
from .stitch import Stitch

BEYOND = 10  # medians: a token of a larger norm counts as massive
WEIGHTY = 0.1  # massive tokens that hold more of the variance than this weigh in a fit


class StreamShape(NamedTuple):
    """One stream at the tokens that meet."""

    tokens: int
    median_norm: float
    largest: float
    """The largest norm, in medians."""
    beyond: int
    """The number of tokens of more than `BEYOND` medians."""
    held: float
    """The share of the variance that those tokens hold."""
    widest: float
    """The share of the variance in the dimension that holds most."""
    unexplained: float
    """The median over tokens of the share that the map to this stream leaves unexplained."""


def describe_streams(
    models: tuple[LanguageModel, LanguageModel],
    layers: tuple[int, int],
    batches: Iterable[PairedBatch | TokenBatch],
    stitch: Stitch,
    *,
    means: tuple[Float[Tensor, " d_a"], Float[Tensor, " d_b"]],
) -> dict[str, StreamShape]:
    """Describe the streams of `a` and `b` in one pass over a text, with the tokens that a pair leaves out as outliers.

    Deviations, and so variances, are from `means`, those of the text that the stitch was fitted on. ValueError for a
    text in which no tokens meet.
    """
    columns: dict[str, list[Tensor]] = {"a": [], "b": []}
    dimensions: dict[str, Tensor] = {}
    for xs, ys in paired_residuals(*models, batches, *([layer] for layer in layers)):
        streams = {"a": xs[layers[0]].float(), "b": ys[layers[1]].float()}
        images = {"a": stitch.down(streams["b"]), "b": stitch.up(streams["a"])}
        for (side, stream), mean in zip(streams.items(), means):
            squares = (stream.double() - mean.to(stream.device)).square()
            errors = (stream - images[side].to(stream)).double().square().sum(1)
            columns[side].append(torch.stack([stream.double().norm(dim=1), squares.sum(1), errors], dim=1).cpu())
            dimensions[side] = dimensions.get(side, 0) + squares.sum(0).cpu()
    if not sum(map(len, columns["a"])):
        raise ValueError("the text holds no token at which the models meet: there is no stream to describe")
    return {side: _shape(torch.cat(columns[side]), dimensions[side]) for side in columns}


def massive_share(x: Float[Tensor, "n d"]) -> tuple[int, float]:
    """Count the tokens of a norm beyond `BEYOND` medians; return with it the share of the variance that they hold."""
    norms, deviations = x.double().norm(dim=1), (x.double() - x.double().mean(0)).square().sum(1)
    massive = norms > BEYOND * norms.median()
    return int(massive.sum()), (deviations[massive].sum() / deviations.sum()).item()


def _shape(columns: Float[Tensor, "n 3"], dimensions: Float[Tensor, " d"]) -> StreamShape:
    norms, deviations, errors = columns.T
    median, total = norms.median().item(), deviations.sum().item()
    massive = norms > BEYOND * median
    return StreamShape(
        tokens=len(norms),
        median_norm=median,
        largest=norms.max().item() / median,
        beyond=int(massive.sum()),
        held=deviations[massive].sum().item() / total,
        widest=dimensions.max().item() / total,
        unexplained=(errors / deviations).median().item(),
    )
