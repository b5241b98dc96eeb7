"""Directions added to the stream, against logits computed token by token, and one that acts through the norm alone."""

import numpy as np
import pytest
import torch
from transformers import GPTNeoXForCausalLM

from stitch_utils.data.pairs import TextRef
from stitch_utils.data.text import token_batches
from stitch_utils.features.entropy import entropy_effects, entropy_tests
from stitch_utils.models.language_model import load_model


@pytest.fixture
def batches(random_models):
    def make(batch_size=2):
        tokenizer = random_models[0].tokenizer
        text = TextRef("world", "entropy")
        return list(token_batches(text, tokenizer, context=14, batch_size=batch_size, n_documents=4))

    return make


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_effects_are_those_of_a_loop_over_tokens(random_models, batches):
    model, layer = random_models[0], 1
    directions = 4 * normal(3, model.d_model)
    found = entropy_effects(model, layer, directions, batches())
    for index, direction in enumerate(directions):
        changes, sizes, ranks, owners = [], [], [], []
        for batch in batches(batch_size=1):
            stream = model.residuals(batch.tokens, [layer])[layer].clone()
            stream[0, batch.mask[0]] += direction  # special tokens keep theirs
            logits = model.logits(batch.tokens)[0], model.logits(batch.tokens, layer=layer, edit=lambda _: stream)[0]  # noqa: B023
            for position in range(batch.tokens.shape[1] - 1):
                if batch.mask[0, position] and batch.mask[0, position + 1]:
                    following = batch.tokens[0, position + 1].item()
                    entropies, logs = [], []
                    for row in logits:
                        entropies.append(torch.distributions.Categorical(logits=row[position]).entropy().item())
                        order = row[position].argsort(descending=True).tolist()
                        logs.append(torch.tensor(1.0 + order.index(following)).log().item())
                    owners.append(batch.documents[0, position].item())
                    changes.append(entropies[1] - entropies[0])
                    sizes.append(abs(changes[-1]))
                    ranks.append(abs(logs[1] - logs[0]))
        for column, (values, effect) in enumerate(
            [(changes, found.mean("entropy")), (sizes, found.mean("entropy size")), (ranks, found.mean("rank size"))]
        ):
            assert effect[index] == pytest.approx(sum(values) / len(values), rel=1e-3, abs=1e-4)
            for document in range(4):
                own = [value for value, owner in zip(values, owners) if owner == document]
                assert found.tokens[index, document] == len(own) > 0
                assert found.sums[index, document, column] == pytest.approx(sum(own), rel=1e-3, abs=1e-3)
    assert found.mean("rank size").min() > 0 and found.mean("entropy size").min() > 0
    torch.testing.assert_close(found.per_rank, found.mean("entropy size") / found.mean("rank size"))
    twice = entropy_effects(model, layer, directions, batches() + batches())  # a document may go on in another batch
    torch.testing.assert_close(twice.sums, 2 * found.sums)
    torch.testing.assert_close(twice.tokens, 2 * found.tokens)
    with pytest.raises(ValueError, match="needs two at least: got 1"):
        type(found)(found.sums[:, :1], found.tokens[:, :1]).resampled(0)
    with pytest.raises(ValueError, match="no ordinary token to measure"):
        entropy_effects(model, layer, directions, [])


@pytest.fixture
def through_the_norm(random_folders, tmp_path):
    """A model whose last block writes nothing and whose unembedding does not read one direction; both."""
    model = GPTNeoXForCausalLM.from_pretrained(random_folders / "a", dtype=torch.float32)
    direction = normal(model.config.hidden_size, seed=3)
    direction = (direction - direction.mean()) / (direction - direction.mean()).norm()
    with torch.no_grad():
        last = model.gpt_neox.layers[-1]
        for part in (last.attention.dense, last.mlp.dense_4h_to_h):
            part.weight.zero_()
            part.bias.zero_()
        model.lm_head.weight.sub_(model.lm_head.weight @ direction[:, None] * direction)
    model.save_pretrained(tmp_path / "edited")
    for file in (random_folders / "a").glob("tokenizer*"):
        (tmp_path / "edited" / file.name).write_bytes(file.read_bytes())
    return load_model(str(tmp_path / "edited")), direction


def test_a_direction_that_only_the_norm_sees_changes_the_entropy_and_no_rank(through_the_norm, batches):
    model, direction = through_the_norm
    directions = torch.stack([40 * direction, 40 * normal(32, seed=5) / 32**0.5, torch.zeros(32)])
    tests = entropy_tests(model, 2, directions, batches(), n_random=10, seed=1)
    size, rank = tests.mean("entropy size"), tests.mean("rank size")
    assert rank[0, 0] < 1e-3 and tests.mean("entropy")[0, 0] > 0.05
    assert tests.mean("entropy")[0, 0] == pytest.approx(size[0, 0].item())
    assert rank.shape == (3, 11) and rank[:2, 1:].min() > 0.05
    assert tests.exceeded[0] == 1 and tests.over_random[0] > 10 and tests.over_random[2] == 0
    ratios = size / rank.clamp_min(1e-6)
    expected = ratios[1, 0] / np.quantile(ratios[1, 1:].numpy(), 0.95)
    assert tests.over_random[1] == pytest.approx(expected.item(), rel=1e-4)
    beside = entropy_tests(model, 2, directions[1:2], batches(), n_random=10, seed=1)
    torch.testing.assert_close(beside.mean("entropy size")[0], size[1])
    shorter = entropy_tests(model, 2, directions[1:2] / 100, batches(), n_random=10, seed=1)
    assert shorter.mean("rank size").max() < beside.mean("rank size").min(), "random directions have the feature's norm"
