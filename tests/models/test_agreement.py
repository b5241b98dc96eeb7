"""A bridge that computes something else than transformers, and values that are not finite: both are refused."""

import pytest
import torch
from toy_families import FAMILIES, TOKENS, reconfigure, refused, rewrite, save_family
from transformer_lens.model_bridge import TransformerBridge

from stitch_utils.data.text import PairedBatch, TokenBatch
from stitch_utils.models.agreement import is_finite
from stitch_utils.models.harvest import paired_residuals
from stitch_utils.models.language_model import load_model


def wrong(monkeypatch, change):
    """Let TransformerBridge compute something else: `change` alters the model after it was wrapped."""
    boot = TransformerBridge.boot_transformers

    def booted(*given, **named):
        bridge = boot(*given, **named)
        with torch.no_grad():
            change(bridge.original_model)
        return bridge

    monkeypatch.setattr(TransformerBridge, "boot_transformers", booted)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("part", "what"),
    [
        ("embed_tokens", "residual streams before layer 0"),
        ("layers.0.mlp.down_proj", "residual streams before layer 1"),
        ("layers.1.self_attn.o_proj", "residual streams before layer 2"),
        ("layers.2.mlp.up_proj", "logits"),
        ("lm_head", "logits"),
    ],
)
def test_a_bridge_that_computes_something_else_is_refused(made, monkeypatch, part, what, dtype):
    def change(model):
        for name, parameter in model.named_parameters():
            if all(segment in name.split(".") for segment in part.split(".")):
                parameter.mul_(1.5)

    wrong(monkeypatch, change)
    refused(
        made, rf"made[0-9]': TransformerBridge computes the family 'llama' otherwise .*: {what} differ by", dtype=dtype
    )


def test_a_small_difference_shows_in_float32(made, monkeypatch):
    def change(model):
        next(each for name, each in model.named_parameters() if "lm_head" in name and each.ndim > 1)[:, 3].mul_(1.05)

    wrong(monkeypatch, change)
    refused(made, r"logits differ by .* and float32 explains 0\.0003")
    load_model(str(made), "cpu", dtype="bfloat16")  # does not tell it from rounding


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("cohere", {"logit_scale": 0.5}),
        ("cohere2", {"logit_scale": 0.5, "sliding_window": 6}),
        ("hunyuan_v1_dense", {}),
        ("mamba", {}),
    ],
)
def test_families_that_the_bridge_computes_otherwise(kind, given, tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, kind, given)
    save_family(kind, tmp_path)
    refused(
        tmp_path, f"computes the family '{kind}' otherwise than transformers: residual streams before layer .* differ"
    )


def test_a_family_that_the_bridge_does_not_know(tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "helium", {})
    save_family("helium", tmp_path)
    refused(tmp_path, "TransformerBridge does not know the family 'helium'")


def test_the_check_leaves_nothing_behind(made):
    model, again = load_model(str(made), "cpu"), load_model(str(made), "cpu", dtype="bfloat16")
    assert model.agreement.residuals < 1e-5 and model.agreement.logits < 1e-5
    assert again.agreement.allowed == pytest.approx(2**-3.5)
    hooks = [point for module in model.bridge.modules() for point in getattr(module, "fwd_hooks", [])]
    assert not hooks


# Overflow


def test_weights_that_overflow_are_named_with_the_way_out(llama):
    """The MLP of block 1 gives values beyond 65504, so the stream before layer 2 is the first that overflows."""
    rewrite(
        llama, lambda w: w | {"model.layers.1.mlp.down_proj.weight": w["model.layers.1.mlp.down_proj.weight"] * 1e6}
    )
    message = "the residual stream before layer 2 of .* holds values that are not finite in float16: choose bfloat16 or"
    refused(llama, message, dtype="float16")
    assert load_model(str(llama), "cpu", dtype="bfloat16").logits(TOKENS).isfinite().all()
    rewrite(llama, lambda w: w | {"lm_head.weight": w["lm_head.weight"] * 1e6})
    reconfigure(llama, num_hidden_layers=3)
    assert load_model(str(llama), "cpu").logits(TOKENS).isfinite().all()
    rewrite(llama, lambda w: w | {"model.norm.weight": w["model.norm.weight"] * torch.nan})
    refused(llama, "logits of .* holds values that are not finite in float32: its weights, or")


@pytest.mark.parametrize("layers", [[3], [2, 3], [0, 3]])
def test_a_token_that_overflows_in_a_harvest(random_models, monkeypatch, layers):
    tokens = torch.arange(10, 26).reshape(2, 8)
    batch = PairedBatch.of(TokenBatch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens)))
    a, b = random_models
    read = type(b).residuals

    def overflowing(self, tokens, layers):
        found = read(self, tokens, layers)
        return {l: x.masked_fill((tokens == 14)[..., None], torch.inf) if l >= 2 else x for l, x in found.items()}

    next(iter(paired_residuals(a, b, [batch], [1], layers)))
    monkeypatch.setattr(type(b), "residuals", overflowing)
    with pytest.raises(ValueError, match=r"stream before layer 2 of '.*b' holds values that are not finite in float32"):
        next(iter(paired_residuals(a, b, [batch], [1], layers)))


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_what_is_finite(bad):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        values = torch.ones(3, 4, dtype=dtype)
        assert is_finite(values) and is_finite(values[:0])
        values[1, 2] = bad
        assert not is_finite(values)
