"""Products of bfloat16 or float16 matrices on a CPU without instructions for them (no section of its own).

Gemma's weights are stored in bfloat16 (App. A does not say in what the models ran). A CPU that lacks its instructions
multiplies such matrices entry by entry, ten to seventy times slower than in float32. So they are multiplied in float32,
and the product is rounded: no less exact, since the CPU's own kernels add up in float32, too.

Offers `fast_products`.
"""

import contextlib

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = {getattr(torch.ops.aten, name).default for name in ("mm", "addmm", "bmm", "baddbmm")}
_HALVES = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
# Where PyTorch was built without oneDNN, nobody knows.
_SUPPORTED = {dtype: getattr(torch.ops.mkldnn, name, lambda: True) for dtype, name in _HALVES.items()}


class _InFloat32(TorchDispatchMode):
    """Multiply half-precision matrices in float32, and round the product to their dtype."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in _PRODUCTS and args[0].dtype in _SUPPORTED:
            wide = (arg.float() if isinstance(arg, Tensor) else arg for arg in args)
            return func(*wide, **(kwargs or {})).to(args[0].dtype)
        return func(*args, **(kwargs or {}))


def fast_products(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Return a context for the passes of a model: it changes nothing but half precision on a CPU that lacks it."""
    slow = device.type == "cpu" and dtype in _SUPPORTED and not _SUPPORTED[dtype]()
    return _InFloat32() if slow else contextlib.nullcontext()
