"""A map that descends its host's cross-entropy: losses against those without gradients, gradients against differences,
and what tuning changes and what it leaves alone."""

import pytest
import torch

from stitch_utils.data.pairs import TextRef
from stitch_utils.data.text import PairedBatch, TokenBatch, token_batches
from stitch_utils.models.gradients import edited_cross_entropy
from stitch_utils.models.harvest import NormLimits
from stitch_utils.stitching.evaluation import measure_fidelity, splice
from stitch_utils.stitching.fit import fit_exact
from stitch_utils.stitching.moments import harvest_moments
from stitch_utils.stitching.stitch import Stitch, stitch_loss
from stitch_utils.stitching.tuned import tune_on_loss

LAYERS = (1, 2)


@pytest.fixture(scope="module")
def batches(random_models):
    text = TextRef("world", "tuning")
    tokenizer = random_models[0].tokenizer
    return list(token_batches(text, tokenizer, context=24, batch_size=4, rows="packed", n_documents=8))


@pytest.fixture(scope="module")
def moments(random_models, batches):
    return harvest_moments(*random_models, batches, [LAYERS])[LAYERS]


@pytest.fixture(scope="module")
def stitch(moments):
    return fit_exact(moments, alpha=0, ridge=0.01)


def tune(models, stitch, batches, **options):
    return tune_on_loss(*models, *LAYERS, stitch, batches, **{"n_steps": 3, "lr": 1e-3} | options)


def spliced(models, stitch, batch):
    """What A->B puts in the place of B's stream, and the host's own."""
    x, y = (model.residuals(batch.tokens, [layer])[layer] for model, layer in zip(models, LAYERS))
    return stitch.up(x)[batch.mask], y


# ---- losses with gradients ----------------------------------------------------------------------------------------


def test_losses_are_those_of_the_model(random_models, batches, stitch):
    model, batch = random_models[1], batches[0]
    replacement, y = spliced(random_models, stitch, batch)
    options = {"layer": 2, "edit": splice(replacement, batch.mask), "stream": y}
    found = edited_cross_entropy(model, batch.tokens, **options)
    torch.testing.assert_close(found, model.cross_entropy(batch.tokens, **options), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(found, model.cross_entropy(batch.tokens), rtol=1e-2)


def test_the_gradient_is_that_of_differences(random_models, batches, stitch):
    model, batch = random_models[1], batches[0]
    x, y = (each.residuals(batch.tokens, [layer])[layer] for each, layer in zip(random_models, LAYERS))
    P = stitch.P_up.clone().requires_grad_()

    def loss(matrix):
        edit = splice((x @ matrix + stitch.b_up)[batch.mask], batch.mask)
        return edited_cross_entropy(model, batch.tokens, layer=2, edit=edit, stream=y)[batch.mask[:, 1:]].mean()

    (gradient,) = torch.autograd.grad(loss(P), P)
    direction = gradient / gradient.norm()
    step = 1e-2 / x.norm(dim=-1).mean()
    with torch.no_grad():
        difference = (loss(P + step * direction) - loss(P - step * direction)).item() / (2 * step)
    assert difference == pytest.approx(gradient.norm().item(), rel=2e-2)
    assert all(parameter.grad is None for parameter in model.hf_model.parameters())


def test_blocks_before_the_edit_do_not_run(random_models, batches):
    model, ran = random_models[1], []
    blocks = enumerate(model.bridge.blocks)
    handles = [block.mlp.register_forward_hook(lambda *_, index=index: ran.append(index)) for index, block in blocks]
    y = model.residuals(batches[0].tokens, [2])[2]
    ran.clear()
    edited_cross_entropy(model, batches[0].tokens, layer=2, edit=lambda stream: stream, stream=y)
    for handle in handles:
        handle.remove()
    assert ran == [2, 3]


# ---- tuning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("to", "condition"), [("b", "a_to_b"), ("a", "b_to_a")])
def test_tuning_lowers_what_table_1_measures(random_models, batches, stitch, moments, to, condition):
    weights = [parameter.clone() for model in random_models for parameter in model.hf_model.parameters()]
    found = tune(random_models, stitch, batches, to=to, n_steps=15, lr=1e-2)
    stitches = {"fitted": stitch, "tuned": found.stitch}
    fidelity = measure_fidelity(*random_models, *LAYERS, stitches, batches, conditions=[condition])
    before, after = (fidelity.cross_entropy(name, condition).value for name in stitches)
    assert after < before - 0.1
    errors = [getattr(stitch_loss(each, moments), "up" if to == "b" else "down") for each in stitches.values()]
    assert errors[1] > errors[0], "least squares has the least squared error"
    changed, kept = (("P_up", "b_up"), ("P_down", "b_down"))[:: 1 if to == "b" else -1]
    for name in kept:
        assert torch.equal(getattr(found.stitch, name), getattr(stitch, name))
    for name in changed:
        assert not torch.equal(getattr(found.stitch, name), getattr(stitch, name))
    assert found.stitch.report is None and stitch.report is not None
    now = [parameter for model in random_models for parameter in model.hf_model.parameters()]
    assert all(torch.equal(*each) for each in zip(weights, now)) and all(each.grad is None for each in now)


def test_the_losses_are_those_of_the_batches_as_they_are_met(random_models, batches, stitch):
    ordinary = torch.arange(24) % 5 > 0  # as if every fifth token were a special one
    batches = [batch._replace(mask=batch.mask & ordinary) for batch in batches[:2]]
    found = tune(random_models, stitch, batches, n_steps=5, lr=1e-12)
    expected = []
    for batch in batches:
        replacement, y = spliced(random_models, stitch, batch)
        edit = splice(replacement, batch.mask)
        losses = random_models[1].cross_entropy(batch.tokens, layer=2, edit=edit, stream=y)
        expected.append(losses[batch.mask[:, 1:]].mean().item())
    assert found.losses == pytest.approx([*expected, *expected, expected[0]], rel=1e-5)
    torch.testing.assert_close(found.stitch.P_up, stitch.P_up)


def test_of_two_tokenizers_the_tokens_that_meet_are_replaced(random_models, batches, stitch):
    """Rows of other tokens on either side, which meet at some tokens: in A at others than in B."""
    a, b = (batch.each(lambda part: part[:3]) for batch in batches[:2])
    met_a, met_b = a.mask & (torch.arange(24) % 3 == 1), b.mask & (torch.arange(24) % 3 == 2)
    assert met_a.sum() == met_b.sum() > 0
    x = random_models[0].residuals(a.tokens, [1])[1][met_a]
    edit = splice(stitch.up(x), met_b)
    expected = random_models[1].cross_entropy(b.tokens, layer=2, edit=edit)[b.mask[:, 1:]].mean().item()
    found = tune(random_models, stitch, [PairedBatch(a, b, met_a, met_b)], n_steps=1)
    assert found.losses == pytest.approx([expected], rel=1e-5)


def test_weight_decay_pulls_back_to_the_given_map(random_models, batches, stitch):
    def moved(**options):
        found = tune(random_models, stitch, batches, n_steps=6, **options).stitch
        return (found.P_up - stitch.P_up).norm().item(), found

    (free, one), (held, _) = moved(weight_decay=0.0), moved(weight_decay=500.0)
    assert 0 < held < 0.9 * free
    again = moved(weight_decay=0.0)[1]
    assert torch.equal(one.P_up, again.P_up) and torch.equal(one.b_up, again.b_up)


def test_outliers_keep_the_hosts_stream(random_models, batches, stitch):
    model, batch = random_models[1], batches[0]
    nothing_met = NormLimits(0.0, 0.0)
    found = tune(random_models, stitch, [batch], n_steps=1, limits=nothing_met)
    own = model.cross_entropy(batch.tokens)[batch.mask[:, 1:]].mean().item()
    assert found.losses == pytest.approx([own], rel=1e-5)
    assert torch.equal(found.stitch.P_up, stitch.P_up)


@torch.no_grad()
def test_a_caller_without_gradients_gets_a_stitch_of_the_same_dtype(random_models, batches, stitch):
    found = tune(random_models, stitch.to(torch.float64), batches, n_steps=1)
    assert not torch.allclose(found.stitch.P_up, stitch.P_up.double(), rtol=1e-4)
    assert found.stitch.P_up.dtype == torch.float64 and isinstance(found.stitch, Stitch)


def test_what_cannot_be_tuned(random_models, batches, stitch):
    with pytest.raises(ValueError, match="unknown to 'c': expected one of a, b"):
        tune(random_models, stitch, batches, to="c")
    empty = TokenBatch(batches[0].tokens, torch.zeros_like(batches[0].mask), batches[0].documents)
    with pytest.raises(ValueError, match="a batch holds no ordinary token after another"):
        tune(random_models, stitch, [empty])
    with pytest.raises(ValueError, match="batches ended after 1 of 3 steps"):
        tune(random_models, stitch, iter(batches[:1]))
