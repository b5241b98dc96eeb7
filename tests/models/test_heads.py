"""Heads worked out by hand against the model's own attention, in each architecture."""

import dataclasses

import pytest
import torch
from shaken import IDS, shaken

from stitch_utils.models.heads import heads_of

TOKENS = torch.randint(10, 200, (2, 24), generator=torch.Generator().manual_seed(0))  # longer than Gemma's window


@pytest.fixture(params=IDS)
def model(request, hub_root):
    return shaken(hub_root, request.param)


@torch.no_grad()
def cached(model, tokens, *names):
    hooks = {name: None for name in names}

    def keep(value, hook):
        hooks[hook.name] = value.clone()

    with model.bridge.hooks(fwd_hooks=[(name, keep) for name in names]):
        model.bridge(tokens, return_type=None)
    return [hooks[name] for name in names]


def pattern(head, residual):
    """What every position attends to, (batch, pos, pos)."""
    positions = torch.arange(residual.shape[1])
    keys = head.keys(residual, positions)
    rows = [
        head.attention(head.queries(x, positions), k.expand(len(positions), -1, -1), positions)
        for x, k in zip(residual, keys)
    ]
    return torch.stack(rows)


def test_patterns_are_the_models_own(model):
    layers = (0, 1, 5)
    residuals = model.residuals(TOKENS, layers)
    patterns = cached(model, TOKENS, *(f"blocks.{layer}.attn.hook_pattern" for layer in layers))
    largest = 0.0
    for layer, expected in zip(layers, patterns):
        heads = heads_of(model, layer)
        assert len(heads) == expected.shape[1] and [head.index for head in heads] == list(range(len(heads)))
        for head in heads:
            found = pattern(head, residuals[layer])
            torch.testing.assert_close(found, expected[:, head.index], rtol=0, atol=1e-5)
            # What makes an architecture special must matter here, or its absence would not show.
            for part in ("window", "cap", "angles"):
                if getattr(head, part) is not None:
                    other = pattern(dataclasses.replace(head, **{part: None}), residuals[layer])
                    largest = max(largest, (other - expected[:, head.index]).abs().max().item())
    assert largest > 1e-3 or model.config.model_type == "gpt2"


def test_a_reader_is_the_derivative_of_the_score_of_the_first_token(model):
    """Scores of the first key, summed over the distances, when a direction is added after the division."""
    tokens = torch.cat([torch.full((1, 1), model.tokenizer.bos_token_id or 0), TOKENS[:1]], dim=1)
    residual = model.residuals(tokens, [3])[3]
    first = residual[0, 0]
    direction = torch.randn(model.d_model, generator=torch.Generator().manual_seed(1))
    norm = model.bridge.blocks[3].ln1.original_component
    spread = direction.square().mean() if model.config.model_type == "gemma2" else direction.var(correction=0)
    with torch.no_grad():
        undivided = (norm(direction) - norm(0 * direction)) * spread.sqrt()
    for head in heads_of(model, 3):
        key = head.keys(residual[:, :1], torch.tensor([0]))[0, 0]
        for distances in ((1, 2, 4), (7,)):
            score = 0.0
            for distance in distances:
                query = undivided @ head.W_Q
                score += head._rotate(query[None], torch.tensor([distance]))[0] @ key * head.scale / len(distances)
            assert (direction @ head.reader(first, distances)).item() == pytest.approx(score.item(), rel=1e-3, abs=1e-4)


def test_norms_are_the_models_own(model):
    inner, out = cached(model, TOKENS, "blocks.2.ln1.hook_in", "blocks.2.ln1.hook_out")
    torch.testing.assert_close(heads_of(model, 2)[0].norm(inner), out, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_read(random_models, monkeypatch):
    with pytest.raises(ValueError, match=r"layer 3 of .* does not exist: it has 3 layers"):
        heads_of(random_models[0], 3)
    monkeypatch.setattr(random_models[0].config, "model_type", "opt")
    with pytest.raises(ValueError, match=r"heads in .*: 'opt': expected one of gpt_neox, gpt2, gemma2"):
        heads_of(random_models[0], 0)
