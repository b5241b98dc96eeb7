"""Steering vectors of every kind: where they come from, how they are carried across a stitch, and how they steer.

Section 4 (Eqs. 8 and 9), App. F. A direction v of unit length stands for a language L: the mean of the residual stream
over tokens of L less its mean over tokens of English. To steer, the component of every residual h along v is set to one
value z,

    c = z - <h, v>      (8)        h' = h + c v      (9)

and nothing else is touched. The strength s says how far on the way from English's mean component to L's, and beyond it,
z lies: at s = 1 the model is put where it is on average when it reads L. Carried across, v becomes v P of unit length,
and both mean components are taken anew in the other model. Means are linear, so the mean streams of the two languages
give the components along any direction: each text is read once a model.

App. F.2, after Stolfo et al. 2025. The direction of an instruction is read at the last token of the prompt, after the
chat template's own tokens: the mean over prompts that carry the instruction less the mean over those without it.

The sister paper (Bello et al., arXiv 2506.00653) adds such a difference for texts with a behaviour and without it, at a
length alpha of its own, h' = h + alpha v / ||v||, at every position. It carries v over as v A + p, bias included. The
difference of two images has none, (x A + p) - (x' A + p) = (x - x') A: with it, the vector is pulled towards p, more so
the shorter v is, and those of different behaviours become alike.

Offers `MeanStreams`, `language_means`, `last_token_residuals`, `at_last_tokens`, `spread`; `SteeringVector`,
`steering_vector`, `condition_vectors`; `contrast_vectors`, `steering_directions`, `condition_directions`;
`transfer_vector`, `random_direction`, `moved_as_far`; and the edits `clamp` and `add`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.text import TokenBatch, padded_rows, text_rows
from ..data.tokenizer import begin_and_end
from ..models.generation import encoded
from ..models.harvest import as_fits
from ..models.language_model import Edit, LanguageModel
from ..stitching.moments import PairMoments
from ..stitching.stitch import Stitch
from ..utils.progress import progress

W = TypeVar("W")  # what is steered towards
Carrier = tuple[Stitch, bool]  # a stitch, and whether its bias is added
Maps = Mapping[str, Carrier]  # by condition
Directions = Mapping[str, Mapping[str, Float[Tensor, " d_model"]]]  # by name of what is steered towards, and condition


class MeanStreams(NamedTuple):
    """Mean residual streams of two kinds of text, which give the mean components along any direction."""

    source: Float[Tensor, " d_model"]
    """Of English, or of prompts without the instruction."""
    target: Float[Tensor, " d_model"]
    """Of the other language, or of prompts with the instruction."""


def language_means(
    model: LanguageModel, layer: int, pairs: Sequence[tuple[str, str]], *, batch_size: int = 32
) -> MeanStreams:
    """Average the residual streams before block `layer` over the tokens of (English, other) texts.

    Texts longer than the model reads are cut. ValueError for no pairs, or none with an ordinary token.
    """
    if not pairs:
        raise ValueError("no parallel texts given: expected at least one pair")
    longest = getattr(model.config, "max_position_embeddings", None)

    def read(batch: TokenBatch) -> tuple[Tensor, int]:
        stream = model.residuals(batch.tokens, [layer])[layer]
        tokens = stream[batch.mask.to(stream.device)]
        return tokens.cpu().double().sum(0), len(tokens)

    def mean(texts: Sequence[str]) -> Tensor:
        batches = text_rows(texts, model.tokenizer, context=longest, batch_size=batch_size)
        sums, counts = zip(*as_fits(batches, read))
        if not sum(counts):
            raise ValueError(f"{len(texts)} texts without an ordinary token, such as {texts[0]!r}")
        return sum(sums, torch.zeros(model.d_model, dtype=torch.float64)) / sum(counts)

    return MeanStreams(*map(mean, zip(*pairs)))


def at_last_tokens(
    model: LanguageModel, rows: Sequence[Sequence[int]], read: Callable[[Tensor], Tensor], *, batch_size: int
) -> Float[Tensor, "rows _"]:
    """Apply `read`, (batch, pos) -> (batch, pos, width), to rows of tokens, and take what it gives at each row's last
    token; float32 on the CPU."""

    def last(batch: TokenBatch) -> tuple[Tensor, Tensor]:
        ends = batch.mask.sum(1) - 1
        return batch.documents[:, 0], read(batch.tokens)[torch.arange(len(ends)), ends].float().cpu()

    batches = padded_rows(rows, begin_and_end(model.tokenizer)[1], batch_size=batch_size)
    owners, values = map(torch.cat, zip(*as_fits(batches, last)))
    return values[owners.argsort()]


def last_token_residuals(
    model: LanguageModel, layer: int, prompts: Sequence[str], *, batch_size: int = 32
) -> Float[Tensor, "prompts d_model"]:
    """Read the residual stream before block `layer` at the last token of each prompt; it ends on the CPU.

    ValueError for no prompts, or one that leaves no room for a reply of one token.
    """
    if not prompts:
        raise ValueError("no prompts given: expected at least one")
    rows = [encoded(model, prompt, 1) for prompt in prompts]
    return at_last_tokens(model, rows, lambda tokens: model.residuals(tokens, [layer])[layer], batch_size=batch_size)


def spread(moments: PairMoments) -> float:
    """Measure how far B's stream is from its mean on an ordinary token: the root of the mean squared distance."""
    return moments.cyy.trace().sqrt().item()


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


def steering_vector(means: MeanStreams, direction: Float[Tensor, " d_model"] | None = None) -> SteeringVector:
    """Make the vector along `direction`, by default from the one mean to the other, with both mean components.

    ValueError for means that do not differ, and for a direction of another width.
    """
    if direction is not None and len(direction) != (width := len(means.source)):
        raise ValueError(f"a direction of width {len(direction)} in a stream of width {width}: transfer it first")
    if direction is None:
        direction = _unit(means.target - means.source, "the difference of the two means")
    wide = direction.cpu().double()
    return SteeringVector(direction.float().cpu(), *((mean @ wide).item() for mean in means))


def condition_vectors(
    means: Mapping[tuple[str, W], MeanStreams],
    maps: Maps,
    seed: int,
    *,
    at_unit_length: bool = False,
    nulls: Sequence[Carrier] = (),
) -> dict[tuple[str, W], dict[str, SteeringVector]]:
    """Make the vectors of all conditions (`condition_directions`) from `means[side, what]`, for the model of `side`.

    Along `random` the stream is moved as far as along `native`. The other model's vector keeps its length, which counts
    where a bias is added, or comes `at_unit_length`.
    """
    vectors = {}
    for number, ((side, what), own) in enumerate(means.items()):
        other = means["ab".replace(side, ""), what]
        carried = steering_vector(other).direction if at_unit_length else other.target - other.source
        native, number = own.target - own.source, 1000 * seed + number
        directions = condition_directions(native, carried, maps, to=side, seed=number, nulls=nulls)
        found = {condition: steering_vector(own, direction) for condition, direction in directions.items()}
        vectors[side, what] = found | {"random": moved_as_far(found["native"], own, directions["random"])}
    return vectors


def moved_as_far(vector: SteeringVector, means: MeanStreams, direction: Float[Tensor, " d_model"]) -> SteeringVector:
    """Make the vector along another `direction` that moves the stream as far as `vector` does."""
    other = steering_vector(means, direction)
    return other._replace(target=other.source + vector.target - vector.source)


def contrast_vectors(
    model: LanguageModel, layer: int, contrasts: Mapping[str, Sequence[tuple[str, str]]], *, batch_size: int = 64
) -> dict[str, Float[Tensor, " d_model"]]:
    """Average, for each name, the difference of the stream before block `layer` at the last token of (with, without)
    texts: float64 on the CPU, at its own length. ValueError for a name without pairs."""
    found = {}
    for name, pairs in progress(contrasts.items(), "vectors"):
        if not pairs:
            raise ValueError(f"no contrast pairs given for {name!r}: expected at least one")
        streams = [last_token_residuals(model, layer, texts, batch_size=batch_size) for texts in zip(*pairs)]
        found[name] = streams[0].double().mean(0) - streams[1].double().mean(0)
    return found


def steering_directions(
    native: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    maps: Maps,
    *,
    seed: int = 0,
    nulls: Sequence[Carrier] = (),
) -> Directions:
    """Make B's directions by name and condition, from vectors of B and of A by name (`condition_directions`)."""
    return {
        name: condition_directions(own, other[name], maps, to="b", seed=1000 * seed + number, nulls=nulls)
        for number, (name, own) in enumerate(native.items())
    }


def condition_directions(
    own: Tensor, other: Tensor, maps: Maps, *, to: str, seed: int, nulls: Sequence[Carrier] = ()
) -> dict[str, Tensor]:
    """Make directions of unit length by condition: `native`, along the model's `own` vector; the other model's through
    each of `maps`; `random`; and with `nulls`, maps that know of no pairs, `components`: through that of them whose
    image is most like the native direction, which makes it the hardest of them to beat and asks for no response."""
    carried = {name: transfer_vector(other, stitch, to=to, with_bias=bias) for name, (stitch, bias) in maps.items()}
    native = _unit(own, "the native vector")
    if nulls:
        images = [transfer_vector(other, stitch, to=to, with_bias=bias) for stitch, bias in nulls]
        carried["components"] = max(images, key=lambda image: (image @ native).item())
    return {"native": native, **carried, "random": random_direction(len(own), seed)}


def transfer_vector(
    vector: Float[Tensor, " d_from"], stitch: Stitch, *, to: str = "b", with_bias: bool = False, keep_norm: bool = False
) -> Float[Tensor, " d_to"]:
    """Carry a direction across a stitch: v P at unit length. `to="b"` makes one of A one of B.

    `with_bias` adds the map's bias first, as Bello et al. do (arXiv 2506.00653). `keep_norm` leaves the image as long
    as the map makes it. ValueError for another `to`, a vector of another width, or one that the map takes to zero.
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


def clamp(direction: Float[Tensor, "*rows d_model"], z: float | Float[Tensor, " rows"]) -> Edit:
    """Set the stream's component along `direction`, taken at unit length, to `z` at every position (Eqs. 8 and 9).

    There may be a direction and a `z` for each row of the batch. ValueError for a direction of length zero.
    """
    unit = _unit(direction, "the direction")
    if not isinstance(z, Tensor):
        return _edit(lambda h, v: h + (z - h @ v)[..., None] * v, unit)

    def each(h: Tensor, v: Tensor) -> Tensor:
        return h + (z.to(h)[:, None, None] - (h * v).sum(-1, keepdim=True)) * v

    return _edit(each, unit[:, None])


def add(direction: Float[Tensor, "*rows d_model"], length: float | Float[Tensor, " rows"]) -> Edit:
    """Add a vector of `length` along `direction` at every position; both may be given for each row of the batch.

    ValueError for a direction of length zero.
    """
    unit = _unit(direction, "the direction")
    return _edit(torch.add, unit[:, None] * length[:, None, None] if isinstance(length, Tensor) else unit * length)


def _edit(change: Callable[[Tensor, Tensor], Tensor], vector: Tensor) -> Edit:
    """Compute `change(stream, vector)` in float32 at least, and round once to the stream's own dtype."""

    def edit(residual: Tensor) -> Tensor:
        wide = residual.to(torch.promote_types(residual.dtype, torch.float32))
        return change(wide, vector.to(wide)).to(residual.dtype)

    return edit


def _unit(vector: Tensor, what: str) -> Tensor:
    """Scale a vector, or each row of several, to unit length, in float64, and return it in float32."""
    wide = vector.detach().cpu().double()
    norm = wide.norm(dim=-1, keepdim=True)
    if (wrong := norm[~(norm > 0) | ~norm.isfinite()]).numel():
        raise ValueError(f"{what} has length {wrong[0].item():g}: expected a positive one")
    return (wide / norm).float()
