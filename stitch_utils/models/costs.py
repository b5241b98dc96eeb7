"""What a harvest costs, in FLOPs and in bytes, before anything is loaded.

App. D, Table 3, leaves out the passes through the two models and takes the activations of all tokens to be stored. We
store none: both models read each batch, truncated before the stitched layer, and only second moments stay. So the
device must hold the weights, the activations of one batch, and a matrix of (d_a + d_b)^2.

FLOPs are two for each multiply-add of a matrix product and none for anything else, as torch's FlopCounterMode has it.
Bytes are those of live tensors; a GPU needs some more, for its context, its workspaces and the gaps between blocks.
A CPU that lacks bfloat16 needs more for it, too (`half_precision`).

Offers `Architecture`, `architecture_of`, `forward_flops`, `activation_bytes`, `harvest_cost`, `HarvestCost`,
`stitch_adam_flops`; `measure`, what a run really takes; and `power_of_ten`.
"""

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING, AutoConfig

from ..data.hub import HubError
from ..data.pairs import ModelRef
from .harvest import ROWS_AT_ONCE
from .language_model import count_parameters, load_config


def power_of_ten(ratio: float) -> float:
    """Round to the nearest power of ten, and 0 to 0, as pages show times and rounding errors."""
    return 10.0 ** round(math.log10(ratio)) if ratio else 0.0


class _Family(NamedTuple):
    """What models of one model_type share; all but the first two as TransformerBridge runs the published models."""

    gated_mlp: bool
    learned_positions: bool
    """Whether embeddings of the positions are added; if not, queries and keys are rotated."""
    mlp_tensors: int
    """Tensors (batch, pos, d_mlp) alive at once: GPT-2 computes its activation function in several steps."""
    masks: int
    """Tensors (batch, 1, pos, pos) made once for all blocks: Gemma-2 has one more, for its sliding window."""
    joint_qkv: bool
    """The bridge splits one matrix into three, holds each block's attention pattern until the next pass, and computes
    the softmax in the model's dtype."""
    copies_qkv: bool
    """The split weights are copies."""


_LLAMA = _Family(True, False, mlp_tensors=3, masks=1, joint_qkv=False, copies_qkv=False)
_FAMILIES = {
    "gpt_neox": _Family(False, False, mlp_tensors=2, masks=1, joint_qkv=True, copies_qkv=True),
    "gpt2": _Family(False, True, mlp_tensors=4, masks=1, joint_qkv=True, copies_qkv=False),
    "gemma2": _Family(True, False, mlp_tensors=3, masks=2, joint_qkv=False, copies_qkv=False),
    **dict.fromkeys(("llama", "mistral", "qwen2", "smollm3"), _LLAMA),
}


@dataclass(frozen=True)
class Architecture:
    """The sizes of a language model, from which its FLOPs and memory follow."""

    family: _Family
    n_layers: int
    d_model: int
    d_mlp: int
    n_heads: int
    n_kv_heads: int
    """Heads of keys and values: fewer than `n_heads` in grouped-query attention."""
    d_head: int
    vocab: int
    """Rows of the embedding, padding included."""
    n_parameters: int
    """The number of parameters; tied matrices count once."""

    def weight_bytes(self, dtype: str) -> int:
        """Count the bytes of the whole model as `load_model` holds it, also of layers that no truncated pass reaches.

        TransformerBridge adds a bias to the unembedding and, to GPT-NeoX, copies of the weights that it splits.
        """
        copies = 3 * self.d_model * (self.d_model + 1) * self.n_layers if self.family.copies_qkv else 0
        return (self.n_parameters + copies + self.vocab) * getattr(torch, dtype).itemsize


def architecture_of(ref: ModelRef) -> Architecture | None:
    """Find the architecture of one side of a pair: in the pair's file, or else in the model's configuration.

    None for a family whose costs are not known, and for a model of the Hub whose configuration is not to be had: its
    costs are not known, either. Of a model that also reads images, only the text part counts.
    """
    if ref.config and ref.config.get("model_type") not in CONFIG_MAPPING:
        return None
    try:
        config = AutoConfig.for_model(**ref.config) if ref.config else load_config(ref.model, **ref.source)
    except HubError:
        return None
    config = config.get_text_config()
    if config.model_type not in _FAMILIES:
        return None
    d_model, n_heads = config.hidden_size, config.num_attention_heads
    return Architecture(
        _FAMILIES[config.model_type],
        config.num_hidden_layers,
        d_model,
        d_mlp=(config.n_inner or 4 * d_model) if config.model_type == "gpt2" else config.intermediate_size,
        n_heads=n_heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or n_heads,
        d_head=getattr(config, "head_dim", None) or d_model // n_heads,
        vocab=config.vocab_size,
        n_parameters=count_parameters(config),
    )


def forward_flops(a: Architecture, context: int, n_layers: int) -> int:
    """Count the FLOPs a token of a pass through the first `n_layers` blocks.

    Eager attention computes scores and values over the whole context: the causal mask saves nothing. ValueError if the
    model has fewer blocks.
    """
    if not 0 <= n_layers <= a.n_layers:
        raise ValueError(f"{n_layers} blocks were asked for: the model has {a.n_layers}")
    projections = 2 * a.d_model * a.d_head * (a.n_heads + a.n_kv_heads)
    mlp = a.d_model * a.d_mlp * (3 if a.family.gated_mlp else 2)
    return n_layers * (2 * (projections + mlp) + 4 * context * a.n_heads * a.d_head)


def activation_bytes(a: Architecture, n_layers: int, *, batch_size: int, context: int, dtype: str) -> tuple[int, int]:
    """Count the bytes that `LanguageModel.residuals` holds while it runs the first `n_layers` blocks on a batch.

    Returns those at the worst point, with what the pass before has left, and those that stay from pass to pass. Keys
    and values of all blocks stay until the pass ends. The worst point is in the last block, at the softmax or after it,
    or in the MLP. The norms need less than the MLP if d_mlp >= 3 d_model.
    """
    size, learned_positions = getattr(torch, dtype).itemsize, a.family.learned_positions
    a_token = size * batch_size * context
    residual = a_token * a.d_model
    query = a_token * a.n_heads * a.d_head
    key_value = 2 * a_token * a.n_kv_heads * a.d_head
    scores = a_token * context * a.n_heads
    masks = a_token * context * a.family.masks
    if not n_layers:
        return (2 if learned_positions else 1) * residual + masks, 0

    if a.family.joint_qkv:  # queries as projected, rotated, as output and transposed; keys and values as projected
        kept, attention = n_layers * scores, 2 * scores + 4 * query + key_value
    else:  # queries rotated, keys and values repeated for all heads; before the output, the softmax in float32
        repeated = 2 * query if a.n_kv_heads < a.n_heads else 0
        softmax = scores + 2 * scores * 4 // size if size < 4 else 0
        kept, attention = 0, max(softmax, 2 * scores + 2 * query) + query + repeated
    mlp = a.family.mlp_tensors * a_token * a.d_mlp + (2 if learned_positions else 1) * residual  # output of attention
    mlp += 0 if kept else scores  # a pattern lives as long as its block at least
    # The embedded tokens, which in the first block are the stream unless positions were added; the stream; its norm.
    always = kept + n_layers * key_value + masks + (3 if n_layers > 1 or learned_positions else 2) * residual
    return always + max(attention, mlp), kept


class HarvestCost(NamedTuple):
    """What `harvest_moments` takes for one pair of layers: FLOPs of all tokens, bytes on the device."""

    flops: int
    """FLOPs of both models' passes and of the moments."""
    weights: int
    activations: int
    """Bytes of one batch, at the worst point of the two passes."""
    moments: int
    """Bytes of the second moments, and the most that `PairMoments.update` makes besides."""
    peak: int
    """The most bytes at once: less than the sum, since `activations` and `moments` are largest at different times."""
    store: int
    """Bytes of a store of all activations, which a harvest does not need; for comparison."""


def harvest_cost(
    a: Architecture, b: Architecture, layers: tuple[int, int], *, tokens: int, context: int, batch_size: int, dtype: str
) -> HarvestCost:
    """Compute the cost of one pass over `tokens` positions up to these layers, with both models on one device.

    Padding and special tokens count like all others, though the moments leave them out.
    """
    layer_a, layer_b = layers
    width, size, at_once = a.d_model + b.d_model, getattr(torch, dtype).itemsize, batch_size * context
    flops = forward_flops(a, context, layer_a) + forward_flops(b, context, layer_b) + 2 * width**2
    batch = {"batch_size": batch_size, "context": context, "dtype": dtype}
    (peak_a, kept_a), (peak_b, kept_b) = activation_bytes(a, layer_a, **batch), activation_bytes(b, layer_b, **batch)
    x, y = (at_once * model.d_model * size for model in (a, b))
    # The streams of the batch before are there until those of this one are; while B runs, A's of this one are too.
    activations = x + y + max(peak_a + kept_b, peak_b + kept_a + x)
    matrix = 8 * width**2
    rows = 8 * min(at_once, ROWS_AT_ONCE) * width
    before = rows if at_once > ROWS_AT_ONCE else 0
    # Either the rows in float64, apart and side by side; or the sums so far, those of the rows, and their merger.
    moments = max(matrix + 2 * rows + before, 5 * matrix + rows)
    weights = a.weight_bytes(dtype) + b.weight_bytes(dtype)
    peak = weights + max(matrix + activations, kept_a + kept_b + x + y + moments)
    return HarvestCost(tokens * flops, weights, activations, moments, peak, tokens * width * size)


def stitch_adam_flops(d_a: int, d_b: int, tokens: int) -> int:
    """Count the FLOPs of `fit_adam` on `tokens` activations: 20 d_a d_b a token, as in Table 3.

    Forwards, Eq. 3 takes four products of 2 d_a d_b. Backwards, each takes as many for its weights, and the second
    products of the two cycles take as many again for their inputs.
    """
    return 20 * d_a * d_b * tokens


class _LiveBytes(TorchDispatchMode):
    """Add up the storages that operations return, until they are freed."""

    def __init__(self):
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            key = storage._cdata
            if key not in given and key not in self.sizes:  # views and results in place are no news
                self.sizes[key] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, key)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return result


def _storages(tree) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def measure(run: Callable[[], object], device: torch.device | str = "cpu") -> tuple[int, int]:
    """Measure the FLOPs of `run()`, by torch's FlopCounterMode, and the most bytes at once of those that it allocates
    itself: in live tensors on a CPU, by torch's own count on a GPU."""
    counter, live = FlopCounterMode(display=False), _LiveBytes()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        with counter:
            run()
        return counter.get_total_flops(), torch.cuda.max_memory_allocated(device) - before
    with live, counter:
        run()
    return counter.get_total_flops(), live.peak
