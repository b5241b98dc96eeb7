"""What a direction of the residual stream says about the next token, as far as that is linear.

Section 5 calls it the logit weights of a feature: its decoder row through the model's own unembedding. Between the two
stands the final norm, which multiplies by a learned scale and, if it is a LayerNorm, subtracts the mean; the caller
divides by the size of the stream, which is not linear. Applying the norm measures its scale, however it is stored.

Offers `LogitWeights`.
"""

import copy
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .language_model import LanguageModel


class LogitWeights:
    """The logit weights of directions v are `fold(v) @ columns(tokens).T`, in float32.

    The unembedding stays in the model; only the columns asked for are copied. Its bias, a cap on the logits, and the
    final norm's own shift are left out, since they are the same for every direction.
    """

    def __init__(self, model: LanguageModel):
        self.norm = copy.deepcopy(model.bridge.ln_final.original_component).float().requires_grad_(False)
        self.weight: Tensor = model.hf_model.get_output_embeddings().weight.detach()  # (vocab, d_model)
        ones = torch.ones(model.d_model, device=self.weight.device)
        self.shift: Tensor = self.norm(0 * ones)
        self.takes_mean = bool(torch.allclose(self.norm(ones), self.shift, atol=1e-4))
        signs = torch.arange(model.d_model, device=ones.device) % 2 - 0.5
        probe = 1000 * (signs - signs.mean())  # of mean zero and without a zero entry
        self.scale: Tensor = (self.norm(probe) - self.shift) * probe.square().mean().sqrt() / probe  # (d_model,)

    @cached_property
    def mean_column(self) -> Float[Tensor, " d_model"]:
        """The mean of the unembedding over the vocabulary."""
        return self.weight.mean(0, dtype=torch.float32)

    def fold(self, directions: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Pass directions through the final norm, without its division."""
        directions = directions.to(self.scale)
        if self.takes_mean:
            directions = directions - directions.mean(-1, keepdim=True)
        return directions * self.scale

    def columns(self, tokens: Int[Tensor, " n"], *, centre: bool = False) -> Float[Tensor, "n d_model"]:
        """Look up the unembedding of these tokens; with `centre`, subtract its mean over the vocabulary."""
        columns = self.weight[tokens.to(self.weight.device)].float()
        return columns - self.mean_column if centre else columns
