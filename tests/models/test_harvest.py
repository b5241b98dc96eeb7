"""Streams of paired activations: the same tokens on both sides, nothing special among them, any number of layers."""

import pytest
import torch

from stitch_utils.data.pairs import TextRef
from stitch_utils.data.text import token_batches
from stitch_utils.models.harvest import ActivationStream, ModelStream, as_fits, paired_residuals, sample_residuals
from stitch_utils.models.language_model import LanguageModel
from stitch_utils.stitching.moments import harvest_moments


@pytest.fixture
def batches(random_models):
    def make():
        return token_batches(
            TextRef("world", "harvest"),
            random_models[0].tokenizer,
            context=32,
            batch_size=4,
            rows="packed",
            n_tokens=320,
        )

    return make


def naive(random_models, batches, layer_a, layer_b):
    """Row by row, token by token, from full forward passes."""
    xs, ys = [], []
    for batch in batches():
        for row, keep in zip(batch.tokens, batch.mask):
            x = random_models[0].bridge.run_with_cache(row[None])[1][f"blocks.{layer_a}.hook_resid_pre"][0]
            y = random_models[1].bridge.run_with_cache(row[None])[1][f"blocks.{layer_b}.hook_resid_pre"][0]
            for position in range(len(row)):
                if keep[position]:
                    xs.append(x[position])
                    ys.append(y[position])
    return torch.stack(xs), torch.stack(ys)


def test_moments_of_several_layer_pairs_in_one_pass(random_models, batches):
    moments = harvest_moments(*random_models, batches(), [(1, 2), (2, 2), (1, 0)])
    for (layer_a, layer_b), found in moments.items():
        x, y = naive(random_models, batches, layer_a, layer_b)
        both = torch.cat([x, y], dim=1).double()
        assert found.count == len(x)
        torch.testing.assert_close(found.mean, both.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.covariance, both.T.cov(correction=0), rtol=1e-4, atol=1e-4)


def test_special_tokens_are_left_out(random_models, batches):
    kept = sum(len(xs[0]) for xs, _ in paired_residuals(*random_models, batches(), [0], [0]))
    assert kept == sum(batch.mask.sum().item() for batch in batches())
    assert kept < sum(batch.tokens.numel() for batch in batches())


def test_a_sample_of_every_layer(random_models, batches):
    xs, ys = sample_residuals(*random_models, batches())
    assert sorted(xs) == [0, 1, 2] and sorted(ys) == [0, 1, 2, 3]
    x, y = naive(random_models, batches, 2, 3)
    torch.testing.assert_close(xs[2], x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ys[3], y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keep", [True, False])
def test_steps_are_of_one_size_and_repeat(random_models, batches, keep):
    stream = ActivationStream(*random_models, 1, 2, batches, step_tokens=50, keep=keep)
    x, y = naive(random_models, batches, 1, 2)
    for _ in range(2):
        steps = list(stream)
        assert {len(step) for pair in steps for step in pair} == {50} and len(steps) == len(x) // 50
        torch.testing.assert_close(torch.cat([a for a, _ in steps]), x[: 50 * len(steps)], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.cat([b for _, b in steps]), y[: 50 * len(steps)], rtol=1e-4, atol=1e-5)


class Spy(LanguageModel):
    """A model that notes how many rows of tokens it reads at once, and has no room for more than `room` of them."""

    def __init__(self, model, room=100):
        vars(self).update(vars(model))
        self.room, self.rows = room, []

    def residuals(self, tokens, layers):
        self.rows.append(len(tokens))
        if len(tokens) > self.room:
            raise torch.OutOfMemoryError("no room")
        return super().residuals(tokens, layers)


@pytest.mark.parametrize("keep", [True, False])
def test_the_stream_of_one_model_is_that_of_the_pair_and_skips_unread(random_models, batches, keep):
    both = list(paired_residuals(*random_models, batches(), [1], [2]))
    for model, layer, parts in zip(random_models, (1, 2), zip(*both)):
        expected = torch.cat([part[layer] for part in parts])
        lengths = [len(part[layer]) for part in parts]
        spy = Spy(model)
        stream = ModelStream(spy, layer, batches, keep=keep)
        assert stream.count() == len(expected) and not spy.rows
        for skip in (0, 5, lengths[0], lengths[0] + 7, len(expected) - 1):
            assert torch.equal(torch.cat(list(stream.after(skip))), expected[skip:])
        assert len(spy.rows) == (3 if keep else 3 + 3 + 2 + 2 + 1)
        late = ModelStream(spy, layer, batches, keep=keep)
        spy.rows.clear()
        assert torch.equal(torch.cat(list(late.after(lengths[0]))), expected[lengths[0] :]) and len(spy.rows) == 2
        assert torch.equal(torch.cat(list(late)), expected), "what was skipped is read when it is wanted"
        assert len(spy.rows) == (3 if keep else 5)


def test_the_stream_of_one_model_keeps_the_size_that_fits(random_models, batches):
    spy = Spy(random_models[0], room=2)
    found = torch.cat(list(ModelStream(spy, 1, batches)))
    torch.testing.assert_close(found, naive(random_models, batches, 1, 2)[0], rtol=1e-4, atol=1e-5)
    assert [rows for rows in spy.rows if rows > 2] == [4], "one attempt was enough"


def test_layers_that_do_not_exist(random_models, batches):
    with pytest.raises(ValueError, match=r"layer 7 of .* does not exist: it has 4 layers"):
        harvest_moments(*random_models, batches(), [(0, 7)])


def test_batches_that_do_not_fit_are_halved_until_they_do(batches):
    seen, done = [], []

    def work(batch):
        seen.append(len(batch.tokens))
        if len(batch.tokens) > 1:
            raise torch.OutOfMemoryError("no room")
        return batch

    done = list(as_fits(batches(), work))
    whole = [torch.cat(part) for part in zip(*batches())]
    assert all(torch.equal(torch.cat(part), expected) for part, expected in zip(zip(*done), whole)), (
        "no row lost, none twice"
    )
    assert seen[:3] == [4, 2, 1] and set(seen[3:]) == {1}, "the size that fitted is kept"


def test_a_row_that_does_not_fit(batches):
    def work(batch):
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(ValueError, match=r"one row of 32 tokens does not fit into memory: choose .* \(no room\)"):
        list(as_fits(batches(), work))


def test_halved_batches_give_the_same_moments(random_models, batches, monkeypatch):
    model = random_models[1]
    residuals = model.residuals

    def small(tokens, layers):
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("no room")
        return residuals(tokens, layers)

    expected = harvest_moments(*random_models, batches(), [(1, 2)])[1, 2]
    monkeypatch.setattr(model, "residuals", small)
    found = harvest_moments(*random_models, batches(), [(1, 2)])[1, 2]
    assert found.count == expected.count
    torch.testing.assert_close(found.covariance, expected.covariance, rtol=1e-6, atol=1e-6)
