r"""Steering vectors: where they come from, how they are carried across a stitch, and how well they did.

Section 4 (Eqs. 8 and 9), App. F (Eq. 16, Fig. 11). A direction v of unit length stands for a language L: the mean of
the residual stream over tokens of L less its mean over tokens of English. To steer, the component of every residual
h along v is set to one value z,

    c = z - <h, v>      (8)        h' = h + c v      (9)

and nothing else is touched. With z the mean component of L's own tokens the model is put where it is on average when it
reads L; the strength s says how far on the way from English's mean component to L's, and beyond it, z lies. Carried
across, v becomes v P of unit length, and both mean components are taken anew in the other model. Means are linear, so
the mean streams of the two languages give the components along any direction: each text is read once a model.

Offers `SteeringVector`, `language_means`, `steering_vector`, `language_vector`, `clamp`, `add`,
`transfer_vector`, `random_direction`, `clipped_gap`, `language_frequencies`, `rank_correlation`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from ..data.text import TokenBatch, text_rows
from ..models.harvest import as_fits
from ..models.language_model import Edit, LanguageModel
from ..stitching.stitch import Stitch
from ..utils.progress import progress
from ..utils.stats import RESAMPLES, Estimate, from_draws
from .language import detect_language

# Where one sentence ends and the next begins; a list or a poem has one a line.
SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'»”)\]]*\s+|\n+")
FEWEST_PAIRS = 5  # that a bootstrap interval of a correlation is given for


class LanguageMeans(NamedTuple):
    """Mean residual streams over the ordinary tokens of parallel text."""

    source: Float[Tensor, " d_model"]
    """Of English."""
    target: Float[Tensor, " d_model"]
    """Of the other language."""


class SteeringVector(NamedTuple):
    """A direction, and where the tokens of the two languages lie along it."""

    direction: Float[Tensor, " d_model"]
    """Of unit length, float32."""
    source: float
    """Mean component of English tokens, z_en."""
    target: float
    """Mean component of the other language's tokens, z_L: the paper's z-bar."""

    def z(self, strength: float = 1.0) -> float:
        """z_en + s (z_L - z_en): at s = 1 what the paper clamps to, at s = 0 English."""
        return self.source + strength * (self.target - self.source)


def language_means(
    model: LanguageModel, layer: int, pairs: Sequence[tuple[str, str]], *, batch_size: int = 32
) -> LanguageMeans:
    """Mean residual streams before block `layer` over English and over the other language's tokens.

    `pairs` are (English, other) texts; those longer than the model reads are cut. ValueError for no pairs, or none with
    an ordinary token.
    """
    if not pairs:
        raise ValueError("no parallel texts given: expected at least one pair")
    return LanguageMeans(*(_mean_stream(model, layer, texts, batch_size) for texts in zip(*pairs)))


def _mean_stream(model: LanguageModel, layer: int, texts: Sequence[str], batch_size: int) -> Tensor:
    total, count = torch.zeros(model.d_model, dtype=torch.float64), 0

    def read(batch: TokenBatch) -> tuple[Tensor, int]:
        stream = model.residuals(batch.tokens, [layer])[layer]
        tokens = stream[batch.mask.to(stream.device)]
        return tokens.cpu().double().sum(0), len(tokens)

    longest = getattr(model.config, "max_position_embeddings", None)
    batches = text_rows(texts, model.tokenizer, context=longest, batch_size=batch_size)
    for part, tokens in as_fits(batches, read):
        total, count = total + part, count + tokens
    if not count:
        raise ValueError(
            f"{len(texts)} texts without an ordinary token, such as {texts[0]!r}: there is nothing to read"
        )
    return total / count


def steering_vector(means: LanguageMeans, direction: Float[Tensor, " d_model"] | None = None) -> SteeringVector:
    """The vector along `direction`, by default from English's mean to the other language's, with both components.

    ValueError if a direction is zero, or as wide as another model.
    """
    if direction is None:
        direction = _unit(means.target - means.source, "the difference of the two languages' means")
    if direction.shape != means.source.shape:
        raise ValueError(
            f"a direction of width {len(direction)} in a stream of width {len(means.source)}: transfer it first"
        )
    wide = direction.cpu().double()
    return SteeringVector(direction.float().cpu(), *((mean @ wide).item() for mean in means))


def language_vector(
    model: LanguageModel, layer: int, pairs: Sequence[tuple[str, str]], *, batch_size: int = 32
) -> SteeringVector:
    """The model's own vector from English to the language of `pairs` (section 4)."""
    return steering_vector(language_means(model, layer, pairs, batch_size=batch_size))


def clamp(direction: Float[Tensor, " d_model"], z: float) -> Edit:
    """Eqs. 8 and 9 as an edit of the residual stream: its component along `direction` becomes `z` at every position.

    Computed in float32 at least, and rounded once to the stream's own dtype. `direction` is taken at unit length.
    """
    direction = _unit(direction, "the direction")

    def edit(residual: Tensor) -> Tensor:
        wide = residual.to(torch.promote_types(residual.dtype, torch.float32))
        v = direction.to(wide)
        return (wide + (z - wide @ v)[..., None] * v).to(residual.dtype)

    return edit


def add(direction: Float[Tensor, " d_model"], length: float) -> Edit:
    """The sister paper's way to steer: a vector of `length` along `direction` is added at every position.

    ValueError for a direction of length zero.
    """
    shift = _unit(direction, "the direction") * length

    def edit(residual: Tensor) -> Tensor:
        wide = torch.promote_types(residual.dtype, torch.float32)  # rounded once, to the stream's own dtype
        return (residual.to(wide) + shift.to(residual.device, wide)).to(residual.dtype)

    return edit


def transfer_vector(
    vector: Float[Tensor, " d_from"],
    stitch: Stitch,
    *,
    to: str = "b",
    with_bias: bool = False,
    keep_norm: bool = False,
) -> Float[Tensor, " d_to"]:
    """Carry a direction across a stitch: v P at unit length. `to="b"` makes one of A one of B.

    `with_bias` adds the map's bias first, as Bello et al. do (arXiv 2506.00653): the image of v as if it were a point,
    which depends on how long v is. `keep_norm` leaves the image as long as the map makes it.
    ValueError for another `to`, a vector of another width, or one that the map takes to zero.
    """
    across = stitch.towards(to)
    if len(vector) != across.d_in:
        raise ValueError(f"a direction of width {len(vector)}: the map towards {to} takes {across.d_in}")
    image = vector.to(across.P) @ across.P + (across.b if with_bias else 0)
    unit = _unit(image, "the image of the direction")
    return image.detach().cpu().float() if keep_norm else unit


def random_direction(d: int, seed: int) -> Float[Tensor, " d_model"]:
    """A direction drawn evenly from the sphere in `d` dimensions."""
    return _unit(torch.randn(d, generator=torch.Generator().manual_seed(seed)), "the draw")


def _unit(vector: Tensor, what: str) -> Tensor:
    """At unit length, in float32, normalised in float64."""
    wide = vector.detach().cpu().double()
    norm = wide.norm()
    if not norm > 0 or not norm.isfinite():
        raise ValueError(f"{what} has length {norm.item():g}: expected a positive one")
    return (wide / norm).float()


def clipped_gap(transferred: float, native: float) -> float:
    """Eq. 16: how much of native steering's share transferred steering reaches, within [0, 1].

    0/0 is 0, anything positive over 0 is 1, and whatever is negative 0. So 1 can also mean that native steering failed.
    """
    if native == 0:
        return float(transferred > 0)
    return float(np.clip(transferred / native, 0, 1))


def language_frequencies(documents: Iterable[str]) -> dict[str, int]:
    """How many sentences of each language there are, as langdetect sees it, the most frequent language first.

    Fig. 11's measure: sentences are what ends in a full stop or the like, or a line; those without letters count for
    nothing.
    """
    counts: Counter[str] = Counter()
    for document in progress(documents, "languages"):
        counts.update(detect_language(sentence) for sentence in SENTENCE_END.split(document) if sentence)
    del counts["unknown"]
    return dict(counts.most_common())


def rank_correlation(x: Sequence[float], y: Sequence[float], *, seed: int = 0) -> Estimate:
    """Spearman's correlation of pairs (x, y), with a bootstrap interval over the pairs.

    Resamples in which all x or all y are the same have no order and are left out; if the data have none, the value is
    0. Its interval then, and that of fewer than five pairs, is [-1, 1]: resampling them says nothing. ValueError for
    lists of different lengths, or empty ones.
    """
    both = np.array([x, y], dtype=float) if len(x) == len(y) else np.empty((2, 0))
    if not both.size:
        raise ValueError(f"{len(x)} and {len(y)} values: expected as many of each, and at least one")
    value = _spearman(both[:, None])[0]
    if np.isnan(value) or len(x) < FEWEST_PAIRS:
        return Estimate(0.0 if np.isnan(value) else float(value), -1.0, 1.0)
    drawn = np.random.default_rng(seed).integers(both.shape[1], size=(RESAMPLES, both.shape[1]))
    draws = _spearman(both[:, drawn])
    return from_draws(value, draws[~np.isnan(draws)])


def _spearman(both: np.ndarray) -> np.ndarray:
    """Correlations of the ranks, (2, resamples, n) -> (resamples,); NaN where one side is constant."""
    ranks = rankdata(both, axis=-1)
    x, y = ranks - ranks.mean(-1, keepdims=True)
    norms = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    return np.divide((x * y).sum(-1), norms, out=np.full(len(norms), np.nan), where=norms > 0)
