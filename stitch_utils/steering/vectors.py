"""Steering vectors: where they come from, how they are carried across a stitch, and how they steer.

Section 4 (Eqs. 8 and 9), App. F. A direction v of unit length stands for a language L: the mean of the residual stream
over tokens of L less its mean over tokens of English. To steer, the component of every residual h along v is set to one
value z,

    c = z - <h, v>      (8)        h' = h + c v      (9)

and nothing else is touched. With z the mean component of L's own tokens the model is put where it is on average when it
reads L; the strength s says how far on the way from English's mean component to L's, and beyond it, z lies. Carried
across, v becomes v P of unit length, and both mean components are taken anew in the other model. Means are linear, so
the mean streams of the two languages give the components along any direction: each text is read once a model.

App. F.2, after Stolfo et al. 2025. The direction of an instruction is read at the last token of the prompt, after the
chat template's own tokens, where the model has read everything and written nothing: the mean over prompts that carry
the instruction less the mean over the same prompts without it.

Offers `MeanStreams`, `language_means`, `last_token_residuals`; `SteeringVector`, `steering_vector`,
`condition_vectors`, `transfer_vector`, `random_direction`; and the edits `clamp` and `add`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.text import TokenBatch, begin_and_end, padded_rows, text_rows
from ..models.generation import encoded
from ..models.harvest import as_fits
from ..models.language_model import Edit, LanguageModel
from ..stitching.stitch import Stitch

REPLY = 1  # room for a reply, where prompts are only read


class MeanStreams(NamedTuple):
    """Mean residual streams of two kinds of text, which give the mean components along any direction."""

    source: Float[Tensor, " d_model"]
    """Of English, or of prompts without the instruction."""
    target: Float[Tensor, " d_model"]
    """Of the other language, or of prompts with the instruction."""


class SteeringVector(NamedTuple):
    """A direction, and where the two kinds of text lie along it."""

    direction: Float[Tensor, " d_model"]
    """Of unit length, float32."""
    source: float
    """Mean component of what is steered away from, such as z_en."""
    target: float
    """Mean component of what is steered towards, such as z_L: the paper's z-bar."""

    def z(self, strength: float = 1.0) -> float:
        """z_en + s (z_L - z_en): at s = 1 what the paper clamps to, at s = 0 English."""
        return self.source + strength * (self.target - self.source)


def language_means(
    model: LanguageModel, layer: int, pairs: Sequence[tuple[str, str]], *, batch_size: int = 32
) -> MeanStreams:
    """Average the residual streams before block `layer` over English and over the other language's tokens.

    `pairs` are (English, other) texts; those longer than the model reads are cut. ValueError for no pairs, or none with
    an ordinary token.
    """
    if not pairs:
        raise ValueError("no parallel texts given: expected at least one pair")
    return MeanStreams(*(_mean_stream(model, layer, texts, batch_size) for texts in zip(*pairs)))


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


def last_token_residuals(
    model: LanguageModel, layer: int, prompts: Sequence[str], *, batch_size: int = 32
) -> Float[Tensor, "prompts d_model"]:
    """Read the residual stream before block `layer` at the last token of each prompt; it ends on the CPU.

    Tokens such as those of a chat template are read as what they are. ValueError for no prompts, or one that is longer
    than what the model reads.
    """
    if not prompts:
        raise ValueError("no prompts given: expected at least one")
    rows = [encoded(model, prompt, REPLY) for prompt in prompts]
    found = torch.empty(len(rows), model.d_model)

    def read(batch: TokenBatch) -> None:
        last = batch.mask.sum(1) - 1
        residual = model.residuals(batch.tokens, [layer])[layer][torch.arange(len(last)), last]
        found[batch.documents[:, 0]] = residual.float().cpu()

    for _ in as_fits(padded_rows(rows, begin_and_end(model.tokenizer)[1], batch_size=batch_size), read):
        pass
    return found


def steering_vector(means: MeanStreams, direction: Float[Tensor, " d_model"] | None = None) -> SteeringVector:
    """Make the vector along `direction`, by default from the one mean to the other, with both mean components.

    ValueError if a direction is zero, or as wide as another model.
    """
    if direction is None:
        direction = _unit(means.target - means.source, "the difference of the two means")
    if direction.shape != means.source.shape:
        raise ValueError(
            f"a direction of width {len(direction)} in a stream of width {len(means.source)}: transfer it first"
        )
    wide = direction.cpu().double()
    return SteeringVector(direction.float().cpu(), *((mean @ wide).item() for mean in means))


def condition_vectors(
    means: Mapping[tuple[str, str], MeanStreams],
    carried: Mapping[str, Callable[[MeanStreams, str], Float[Tensor, " d_to"]]],
    seed: int,
) -> dict[tuple[str, str], dict[str, SteeringVector]]:
    """Make the vectors of all conditions from `means[side, what]`, with components taken in the steered model.

    `native` is the model's own, `random` a random direction along which the stream is moved as far as the native vector
    moves it, and those `carried` are what each function makes of the other model's means and the steered side.
    """
    vectors = {}
    for number, ((side, what), own_means) in enumerate(means.items()):
        own, other = steering_vector(own_means), means["ab".replace(side, ""), what]
        drawn = steering_vector(own_means, random_direction(len(own.direction), seed=1000 * seed + number))
        across = {name: steering_vector(own_means, carry(other, side)) for name, carry in carried.items()}
        same_way = drawn._replace(target=drawn.source + own.target - own.source)
        vectors[side, what] = {"native": own, **across, "random": same_way}
    return vectors


def clamp(direction: Float[Tensor, " d_model"], z: float) -> Edit:
    """Set the stream's component along `direction` to `z` at every position (Eqs. 8 and 9).

    The edit computes in float32 at least, and rounds once to the stream's own dtype. `direction` is taken at unit
    length.
    """
    direction = _unit(direction, "the direction")

    def edit(residual: Tensor) -> Tensor:
        wide = residual.to(torch.promote_types(residual.dtype, torch.float32))
        v = direction.to(wide)
        return (wide + (z - wide @ v)[..., None] * v).to(residual.dtype)

    return edit


def add(direction: Float[Tensor, " d_model"], length: float) -> Edit:
    """Add a vector of `length` along `direction` at every position, as the sister paper steers.

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
    """Draw a direction evenly from the sphere in `d` dimensions."""
    return _unit(torch.randn(d, generator=torch.Generator().manual_seed(seed)), "the draw")


def _unit(vector: Tensor, what: str) -> Tensor:
    """Scale to unit length, in float64, and return it in float32."""
    wide = vector.detach().cpu().double()
    norm = wide.norm()
    if not norm > 0 or not norm.isfinite():
        raise ValueError(f"{what} has length {norm.item():g}: expected a positive one")
    return (wide / norm).float()
