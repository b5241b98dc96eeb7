"""Products of bfloat16 or float16 matrices on a CPU without instructions for them (no section of its own).

Gemma's weights are stored in bfloat16 (App. A does not say in what the models ran). A CPU that lacks its instructions
multiplies such matrices entry by entry, ten to seventy times slower than in float32. So they are multiplied in float32,
and the product is rounded: no less exact, since the CPU's own kernels add up in float32, too.

Offers `fast_products`.
"""

import contextlib

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

_PRODUCTS = {torch.nn.functional.linear, torch.matmul, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum}
_PRODUCTS |= {Tensor.matmul, Tensor.__matmul__, Tensor.bmm}
_HALVES = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
# Where PyTorch was built without oneDNN, nobody knows.
_SUPPORTED = {dtype: getattr(torch.ops.mkldnn, name, lambda: True) for dtype, name in _HALVES.items()}


class _InFloat32(TorchFunctionMode):
    """Multiply half-precision matrices in float32, and round the product to their dtype."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        given, halves = (args, kwargs or {}), []
        if func in _PRODUCTS:
            halves = [part.dtype for part in tree_leaves(given) if getattr(part, "dtype", None) in _HALVES]
        args, kwargs = tree_map_only(Tensor, Tensor.float, given) if halves else given
        found = func(*args, **kwargs)
        return found.to(halves[0]) if halves else found


def fast_products(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Return a context for the passes of a model: it changes nothing but half precision on a CPU that lacks it."""
    slow = device.type == "cpu" and dtype in _HALVES and not _SUPPORTED[dtype]()
    return _InFloat32() if slow else contextlib.nullcontext()
