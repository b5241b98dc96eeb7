"""The cross-entropy of a model whose residual stream is edited, with the gradient that the edit receives.

Section 2, Table 1, where `LanguageModel.cross_entropy` measures the same losses without a gradient. Here autograd
follows the edit through the blocks behind it, so that what the edit is made of can descend the model's own loss. The
blocks before it do not run where the stream is known, and the model's weights are left as they are.

Offers `edited_cross_entropy`.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from .language_model import Edit, LanguageModel, Tokens


def edited_cross_entropy(
    model: LanguageModel, tokens: Tokens, *, layer: int, edit: Edit, stream: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos-1"]:
    """Compute the loss in nats of each token from the second on, `edit` applied to the `stream` before `layer`.

    Take gradients by `torch.autograd.grad` of the tensors that the edit holds: `backward` would gather those of the
    model's weights, too. ValueError for a layer that does not exist, or an edit of another shape.
    """
    with model._edited(layer, edit, stream), model._fast():
        logits = model.bridge(model._placed(tokens), return_type="logits").float()
    following = tokens.to(model.device)[:, 1:]
    return cross_entropy(logits[:, :-1].transpose(1, 2), following, reduction="none")
