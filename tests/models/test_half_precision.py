"""Half-precision products on a CPU that is slow at them: rounded once, and only there."""

import contextlib

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stitch_utils.models import half_precision, language_model
from stitch_utils.models.half_precision import fast_products
from stitch_utils.models.language_model import load_model

CPU = torch.device("cpu")
HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture
def without_instructions(monkeypatch):
    """A CPU that has none for either half precision, whatever this one has."""
    monkeypatch.setattr(half_precision, "_SUPPORTED", dict.fromkeys(HALVES, lambda: False))


def matrices(dtype, *shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", HALVES)
def test_products_are_those_in_float32_rounded_once(dtype, without_instructions):
    x, weight, bias = matrices(dtype, (2, 7, 200), (30, 200), (30,))
    q, k = matrices(dtype, (3, 5, 64), (3, 64, 9))
    with fast_products(CPU, dtype):
        linear = torch.nn.functional.linear
        found = [linear(x, weight), linear(x, weight, bias=bias), q @ k, torch.addmm(bias, x[0], weight.T)]
    x, weight, bias, q, k = (each.float() for each in (x, weight, bias, q, k))
    expected = [x @ weight.T, x @ weight.T + bias, q @ k, x[0] @ weight.T + bias]
    for one, other in zip(found, expected):
        assert one.dtype == dtype
        assert (one == other.to(dtype)).float().mean() > 0.999, "sums in another order may round apart at ties"


def test_nothing_changes_where_it_need_not(monkeypatch):
    monkeypatch.setattr(half_precision, "_SUPPORTED", dict.fromkeys(HALVES, lambda: True))
    for device, dtype in [(CPU, torch.bfloat16), (CPU, torch.float16), (CPU, torch.float32)]:
        assert isinstance(fast_products(device, dtype), contextlib.nullcontext)
    monkeypatch.setattr(half_precision, "_SUPPORTED", dict.fromkeys(HALVES, lambda: False))
    assert isinstance(fast_products(torch.device("cuda"), torch.bfloat16), contextlib.nullcontext)
    assert isinstance(fast_products(CPU, torch.float32), contextlib.nullcontext)


def test_other_operations_keep_their_precision_and_products_are_counted_once(without_instructions):
    a, b = matrices(torch.bfloat16, (8, 16), (16, 4))
    with FlopCounterMode(display=False) as counter, fast_products(CPU, torch.bfloat16):
        found = a @ b + 1
    assert torch.equal(found, (a.float() @ b.float()).bfloat16() + 1)
    assert counter.get_total_flops() == 2 * 8 * 16 * 4


def test_every_pass_of_a_model_goes_through_it(monkeypatch):
    model = load_model("embedded:tiny-a", "cpu", dtype="bfloat16")
    exact = load_model("embedded:tiny-a", "cpu").logits(tokens := torch.arange(2, 34)[None])
    entered = []

    def counted(device, dtype):
        entered.append((device.type, dtype))
        return half_precision._InFloat32()

    native = model.logits(tokens)
    monkeypatch.setattr(language_model, "fast_products", counted)
    found = model.logits(tokens)
    model.residuals(tokens, [1])
    model.generate(tokens, 2)
    assert entered == [("cpu", torch.bfloat16)] * 3
    error, usual = ((logits.float() - exact).abs().mean() for logits in (found, native))
    assert found.dtype == torch.bfloat16 and 0 < error < 1.2 * usual
