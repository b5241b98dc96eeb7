r"""What an attention head looks at, worked out by hand from the residual stream before its block.

Section 5.2 asks what one head would look at if one SAE feature did not reach it at one token. Hooks would need a run
for every token, so the one head is computed anew. With x_t the residual stream before block l, N the block's first
norm, R_t the rotation of position t (none in GPT-2), the head's attention from t to s <= t is

    q_t = R_t (N(x_t) W_Q + b_Q)      k_s = R_s (N(x_s) W_K + b_K)      a_ts = softmax_s cap(c q_t . k_s)

with the architecture's scale c and, in Gemma 2, its soft cap and, in every other layer, a window behind which nothing
is seen. Weights are read from the model as it is (no norm folded into them), so the arithmetic equals the model's own.

Offers `Norm`, `Head`, `heads_of`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.pairs import check_known
from .language_model import LanguageModel

# By model_type: whether the norms subtract the mean (LayerNorm, and not RMSNorm), and what a norm's weight is short of.
ARCHITECTURES = {"gpt_neox": (True, 0.0), "gpt2": (True, 0.0), "gemma2": (False, 1.0)}


class Norm(NamedTuple):
    """LayerNorm or RMSNorm, in float32."""

    weight: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"] | None
    eps: float
    centred: bool
    """Whether the mean is subtracted."""

    def __call__(self, x: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n d_model"]:
        normed = self.centre(x.float()) / self.divisor(x)[..., None] * self.weight
        return normed if self.bias is None else normed + self.bias

    def divisor(self, x: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n"]:
        """Compute what a stream is divided by: its standard deviation, or its root mean square."""
        return (self.centre(x.float()).square().mean(-1) + self.eps).sqrt()

    def centre(self, x: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n d_model"]:
        """Subtract the mean, where the norm does."""
        return x - x.mean(-1, keepdim=True) if self.centred else x


@dataclass(frozen=True)
class Head:
    """One attention head. Positions count from the first of a row."""

    layer: int
    index: int
    norm: Norm
    """The norm of the stream before the block."""
    W_Q: Float[Tensor, "d_model d_head"]
    b_Q: Float[Tensor, " d_head"]
    W_K: Float[Tensor, "d_model d_head"]
    b_K: Float[Tensor, " d_head"]
    scale: float
    """The factor of the scores."""
    cap: float | None
    """Where scores level off, softly; None if they do not."""
    window: int | None
    """How many positions a query sees, its own included; None for all before it."""
    angles: Callable[[Tensor], tuple[Tensor, Tensor]] | None
    """Gives cosines and sines (n, rotary) of positions (n,); None without rotary embeddings."""

    def queries(self, x: Float[Tensor, "n d_model"], positions: Int[Tensor, " n"]) -> Float[Tensor, "n d_head"]:
        """Compute the queries of residual streams at these positions."""
        return self._rotate(self.norm(x) @ self.W_Q + self.b_Q, positions)

    def keys(self, x: Float[Tensor, "*row n d_model"], positions: Int[Tensor, " n"]) -> Float[Tensor, "*row n d_head"]:
        """Compute the keys of residual streams at these positions, of several rows at once or of one."""
        return self._rotate(self.norm(x) @ self.W_K + self.b_K, positions)

    def attention(
        self, queries: Float[Tensor, "n d_head"], keys: Float[Tensor, "n pos d_head"], positions: Int[Tensor, " n"]
    ) -> Float[Tensor, "n pos"]:
        """Compute how much each query, at its position, attends to each key of its row."""
        scores = torch.einsum("nd,npd->np", queries, keys) * self.scale
        if self.cap is not None:
            scores = self.cap * torch.tanh(scores / self.cap)
        behind = positions[:, None] - torch.arange(keys.shape[1], device=keys.device)
        hidden = (behind < 0) | (behind >= (self.window or math.inf))
        return scores.masked_fill(hidden, -math.inf).softmax(-1)

    def reader(self, first: Float[Tensor, " d_model"], distances: Sequence[int]) -> Float[Tensor, " d_model"]:
        """Find v such that a direction d at a later position adds d . v / N's divisor to the score of the first one.

        `first` is the stream at the first position; the mean is over positions `distances` after it, which matter with
        rotary embeddings alone. The cap is left out.
        """
        steps = torch.tensor(list(distances), device=first.device)
        key = self.norm(first) @ self.W_K + self.b_K  # position 0 is not rotated; (R_t q) . k = q . (R_-t k)
        turned = self._rotate(key.expand(len(steps), -1), steps, back=True).mean(0)
        return self.norm.centre(self.W_Q @ turned * self.scale * self.norm.weight)

    def _rotate(self, x: Tensor, positions: Tensor, *, back: bool = False) -> Tensor:
        """Turn the halves of the rotary dimensions into each other; leave the dimensions after them."""
        if self.angles is None:
            return x
        cos, sin = self.angles(positions)
        turning, staying = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
        left, right = turning.chunk(2, dim=-1)
        crossed = torch.cat([-right, left], dim=-1) * (-sin if back else sin)
        return torch.cat([turning * cos + crossed, staying], dim=-1)


def heads_of(model: LanguageModel, layer: int) -> list[Head]:
    """Read the heads of a layer; ValueError for a layer that does not exist, and for an unknown architecture."""
    model.hook_name(layer)  # checks the layer
    kind = getattr(model.config, "model_type", "")
    check_known(f"architecture of heads in {model.ref!r}:", kind, ARCHITECTURES)
    centred, offset = ARCHITECTURES[kind]
    block = model.bridge.blocks[layer]
    attention, norm = block.attn.original_component, block.ln1.original_component
    n_heads, _, d_head = block.attn.W_Q.shape

    def of_heads(name: str) -> Tensor:
        """Read a weight (heads, ...), repeated where heads share it; a bias that does not exist is zero."""
        found = getattr(block.attn, name, None)
        if found is None:
            return torch.zeros(n_heads, d_head, device=model.device)
        return found.detach().float().repeat_interleave(n_heads // len(found), dim=0)

    bias = norm.bias.detach().float() if getattr(norm, "bias", None) is not None else None
    before = Norm(norm.weight.detach().float() + offset, bias, norm.eps, centred)
    rotary: Any = getattr(model.bridge, "rotary_emb", None)

    def angles(positions: Tensor) -> tuple[Tensor, Tensor]:
        like = torch.zeros(1, device=positions.device)
        return tuple(part[0] for part in rotary.original_component(like, positions[None]))

    weights = zip(*(of_heads(name) for name in ("W_Q", "b_Q", "W_K", "b_K")))
    cap, window = (getattr(attention, name, None) for name in ("attn_logit_softcapping", "sliding_window"))
    shared: tuple[Any, ...] = float(attention.scaling), cap, window, angles if rotary is not None else None
    return [Head(layer, index, before, *of_head, *shared) for index, of_head in enumerate(weights)]
