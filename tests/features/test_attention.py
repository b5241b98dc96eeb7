"""Path ablation against the model's own hooks, and the search against a model with one feature that closes a head."""

import numpy as np
import pytest
import torch
from shaken import IDS, shaken
from toy_saes import make_sae
from transformers import GPTNeoXForCausalLM

from stitch_utils.data.pairs import TextRef
from stitch_utils.data.text import token_batches
from stitch_utils.features.attention import (
    Path,
    PathEffect,
    deactivation_search,
    head_roles,
    heuristic_scores,
    path_ablation,
)
from stitch_utils.features.entropy import decoder_rows, summarise_activations
from stitch_utils.models.heads import heads_of
from stitch_utils.models.language_model import load_model
from stitch_utils.saes.transfer import transfer_sae
from stitch_utils.stitching.stitch import Stitch

SAE_LAYER, EVERY = 1, 10**6
KINDS = dict(zip(IDS, ("topk", "rescaled topk", "jumprelu")))


def texts(tokenizer, n_documents, *, context=24, batch_size=3, name="deactivation"):
    return list(
        token_batches(
            TextRef("world", name), tokenizer, context=context, batch_size=batch_size, n_documents=n_documents
        )
    )


def often(model, sae, batches):
    """The two features that fire most."""
    return summarise_activations(model, SAE_LAYER, {"": sae}, batches)[""].fires.topk(2).indices.tolist()


@torch.no_grad()
def to_first(model, tokens, path, edit):
    """(batch, pos): the head's attention to the first token in a run of the model whose heads read an edited input."""
    start, kept = f"blocks.{path.layer}", []

    def keep(value, hook):
        kept.append(value[:, path.head, :, 0].clone())

    with model.bridge.hooks(fwd_hooks=[(f"{start}.ln1.hook_in", edit), (f"{start}.attn.hook_pattern", keep)]):
        model.bridge(tokens, return_type=None)
    return kept[0]


def by_hooks(model, tokens, path, removed):
    """The same, in a run for each position, where the input is without `removed` (batch, pos, d_model) at that position
    and as it was at all others."""
    found = []
    for position in range(tokens.shape[1]):

        def without(value, hook):
            value = value.clone()
            value[:, position] -= removed[:, position]  # noqa: B023
            return value

        found.append(to_first(model, tokens, path, without)[:, position])
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("id", KINDS)
def test_ablation_is_the_models_own_with_another_input_at_one_token(id, hub_root):
    """What removing a feature's part of the SAE's reconstruction from that head's input gives."""
    model = shaken(hub_root, id)
    sae = make_sae(KINDS[id], model.d_model, dtype="float32")
    batches = texts(model.tokenizer, 4)
    one, two = often(model, sae, batches)
    paths = [Path(one, 1, 0), Path(one, 2, 3), Path(two, 2, 1), Path(two, 4, 2)]
    found = path_ablation(model, SAE_LAYER, sae, paths, batches, max_tokens=EVERY)
    assert [effect.path for effect in found] == paths
    with torch.no_grad():
        window = {layer: heads_of(model, layer)[0].window for layer in (1, 2, 4)}
        for effect in found:
            path, attended, ablated, owners = effect.path, [], [], []
            for batch in batches:
                stream = model.residuals(batch.tokens, [SAE_LAYER])[SAE_LAYER]
                latents = sae.encode(stream)
                alone = torch.zeros_like(latents)
                alone[..., path.feature] = latents[..., path.feature]
                removed = sae.decode(alone) - sae.decode(torch.zeros_like(latents))
                fires = batch.mask & (latents[..., path.feature] > 0)
                fires[:, window[path.layer] or 99 :] = False
                attended.append(to_first(model, batch.tokens, path, lambda value, hook: value)[fires])
                ablated.append(by_hooks(model, batch.tokens, path, removed)[fires])
                owners.append(batch.documents[fires])
            np.testing.assert_allclose(effect.attended, torch.cat(attended), rtol=0, atol=1e-5)
            np.testing.assert_allclose(effect.ablated, torch.cat(ablated), rtol=0, atol=1e-5)
            np.testing.assert_array_equal(effect.documents, torch.cat(owners))
            assert np.abs(effect.ablated - effect.attended).max() > 1e-3, "nothing would be tested"


def test_tokens_are_limited_and_batches_do_not_matter(random_models):
    model = random_models[0]
    sae = make_sae("topk", model.d_model, dtype="float32")
    one, two = often(model, sae, texts(model.tokenizer, 6))
    paths = [Path(one, 2, 0), Path(two, 1, 3)]
    whole = path_ablation(model, 1, sae, paths, texts(model.tokenizer, 6), max_tokens=EVERY)
    alone = path_ablation(model, 1, sae, paths, texts(model.tokenizer, 6, batch_size=1), max_tokens=EVERY)
    first = int((whole[0].documents < 2).sum())  # tokens of the first batch of two
    few = path_ablation(model, 1, sae, paths, texts(model.tokenizer, 6, batch_size=2), max_tokens=first + 7)
    for effect, other in zip(whole, alone):
        np.testing.assert_allclose(effect.ablated, other.ablated, atol=1e-5)
    assert len(few[0].attended) == first + 7 < len(whole[0].attended)
    np.testing.assert_allclose(few[0].ablated[:first], whole[0].ablated[:first], atol=1e-5)
    second = np.flatnonzero((whole[0].documents >= 2) & (whole[0].documents < 4))
    spread = second[np.linspace(0, len(second) - 1, 7).astype(int)]
    np.testing.assert_allclose(few[0].ablated[first:], whole[0].ablated[spread], atol=1e-5)
    assert set(few[0].documents) == {0, 1, 2, 3}
    assert 5 < len(few[1].attended) <= first + 7 and len(whole[1].attended) > 5


@pytest.mark.parametrize("path", [Path(0, 0, 1), Path(0, 3, 1), Path(0, 2, 4)])
def test_heads_that_cannot_read_the_sae(path, random_models):
    sae = make_sae("topk", random_models[0].d_model, dtype="float32")
    with pytest.raises((KeyError, ValueError)):
        path_ablation(random_models[0], 1, sae, [path], texts(random_models[0].tokenizer, 1), max_tokens=EVERY)


def test_the_interval_is_over_documents():
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(300), 4)
    change = np.repeat(rng.normal(-0.1, 0.2, size=300), 4)  # tokens of a document say the same
    effect = PathEffect(Path(0, 1, 1), np.full(1200, 0.5), 0.5 + change, documents)
    value, low, high = effect.change(seed=1)
    half = 1.96 * change[::4].std() / 300**0.5
    assert value == pytest.approx(change.mean()) == effect.mean_change
    assert value - low == pytest.approx(half, rel=0.1) and high - value == pytest.approx(half, rel=0.1)
    assert effect.change(seed=1) == (value, low, high) != effect.change(seed=2)
    alone = PathEffect(Path(0, 1, 1), np.array([0.5, 0.6]), np.array([0.4, 0.5]), np.array([3, 3]))
    assert alone.change() == pytest.approx((-0.1, -1, 1))
    nothing = PathEffect(Path(0, 1, 1), np.zeros(0), np.zeros(0), np.zeros(0, int))
    assert nothing.change() == (0, 0, 0)


def test_how_far_an_effect_goes_beyond_others_is_measured_on_the_same_documents():
    """What all features do together in a document is nothing between them; each resample has its own best."""
    rng = np.random.default_rng(0)
    shared, documents = rng.normal(size=400), np.arange(400)

    def effect(change, of=documents):
        return PathEffect(Path(0, 1, 1), np.full(len(of), 0.5), 0.5 + change, of)

    own, others = effect(shared - 0.3), [effect(shared - 0.1), effect(shared + 0.4)]
    assert own.beyond(others, seed=1) == pytest.approx((0.2, 0.2, 0.2), abs=1e-6)
    assert own.change(seed=1).high - own.change(seed=1).low > 0.1
    noisy = [effect(shared - 0.1 + 0.2 * rng.normal(size=400)) for _ in range(3)]
    value, low, high = own.beyond(noisy, seed=1)
    assert value == pytest.approx(min(one.mean_change for one in noisy) - own.mean_change) and low < value < high
    assert own.beyond([*noisy, effect(np.zeros(0), documents[:0])], seed=1) == pytest.approx((value, low, high))
    away = own.reversed()
    assert away.mean_change == pytest.approx(-own.mean_change)
    assert away.beyond([one.reversed() for one in others], seed=1).value == pytest.approx(-0.7, abs=1e-6)
    single = effect(np.array([-0.2]), documents[:1])
    assert single.beyond([effect(np.array([0.1]), documents[:1])]) == pytest.approx((0.3, -2, 2))
    nothing = effect(np.zeros(0), documents[:0])
    assert nothing.beyond([nothing]) == (0, 0, 0)


def test_scores_are_those_of_every_feature_and_head_by_itself(random_models):
    model = random_models[0]
    sample, rows = texts(model.tokenizer, 3)[0], torch.randn(5, model.d_model)
    heads, scores = heuristic_scores(model, 1, rows, sample)
    assert heads == [(layer, head) for layer in (1, 2) for head in range(4)]
    streams = model.residuals(sample.tokens, [1, 2])  # every row begins with one token
    for column, (layer, index) in enumerate(heads):
        head = heads_of(model, layer)[index]
        divisor = torch.stack([y.std(correction=0) for y in streams[layer][sample.mask]]).mean()
        reach = sample.tokens.shape[1]
        distances = [step for step in (1, 2, 4, 8, 16) if step < reach]
        for feature, row in enumerate(rows):
            expected = (row @ head.reader(streams[layer][0, 0], distances) / divisor).item()
            assert scores[feature, column].item() == pytest.approx(expected, rel=1e-3, abs=1e-5)


FEATURE, LAYER, CLOSED, OPENED = 17, 2, 1, 2
QUERY, KEY = 3.0, 3.0


@pytest.fixture(scope="module")
def planted(random_folders, tmp_path_factory):
    """A model in which one direction, and nothing else, closes one head and opens another; and an SAE that has it.

    The first token alone has the direction z, every seventh token alone has u, and no block writes along either. The
    keys of the two heads read z and the query of the one u: with it all attention goes to the first token, without it
    all scores are zero. The query of the other is what sends all there, less u: with it none goes there.
    """
    model = GPTNeoXForCausalLM.from_pretrained(random_folders / "a", dtype=torch.float32)
    width, n_heads = model.config.hidden_size, model.config.num_attention_heads
    u, z = torch.zeros(width), torch.zeros(width)
    u[0], u[1], z[2], z[3] = 0.5**0.5, -(0.5**0.5), 0.5**0.5, -(0.5**0.5)  # no norm takes anything from them
    d_head = width // n_heads
    axis = torch.zeros(d_head)
    axis[-1] = 1  # not among the rotary dimensions
    with torch.no_grad():
        for direction in (u, z):
            embedded = model.gpt_neox.embed_in.weight
            embedded.sub_(embedded @ direction[:, None] * direction)
            for block in model.gpt_neox.layers:
                for part in (block.attention.dense, block.mlp.dense_4h_to_h):
                    part.weight.sub_(direction[:, None] * (direction @ part.weight))
                    part.bias.sub_(direction * (direction @ part.bias))
        embedded[3::7] += 20 * u
        embedded[0] += 20 * z
        attention = model.gpt_neox.layers[LAYER].attention.query_key_value
        for head, sign, always in ((CLOSED, 1.0, 0.0), (OPENED, -1.0, 5.0)):
            start = head * 3 * d_head
            attention.bias[start : start + 2 * d_head] = 0
            attention.bias[start : start + d_head] = always * axis
            attention.weight[start : start + d_head] = sign * QUERY * axis[:, None] * u
            attention.weight[start + d_head : start + 2 * d_head] = KEY * axis[:, None] * z
    folder = tmp_path_factory.mktemp("planted")
    model.save_pretrained(folder)
    for file in random_folders.joinpath("a").glob("tokenizer*"):
        folder.joinpath(file.name).write_bytes(file.read_bytes())
    sae = make_sae("jumprelu", width, dtype="float32", apply_b_dec_to_input=False)
    with torch.no_grad():
        sae.W_dec.sub_(sae.W_dec @ u[:, None] * u).mul_(0.3)
        sae.W_dec[FEATURE], sae.W_enc[:, FEATURE], sae.b_enc[FEATURE], sae.threshold[FEATURE] = u, u, 0, 1
    return load_model(str(folder)), sae


def check_roles(closing, opening, batches):
    """Without the feature the one looks at all tokens alike, and the other at the first."""
    positions = torch.cat([(batch.mask & (batch.tokens % 7 == 3)).nonzero()[:, 1] for batch in batches]).numpy()
    assert len(positions) > 20
    np.testing.assert_allclose(closing.ablated, 1 / (positions + 1), atol=1e-4)
    assert closing.attended.min() > 0.9 and opening.attended.max() < 0.1 and opening.ablated.min() > 0.9


def test_the_search_finds_the_feature_that_closes_a_head(planted):
    model, sae = planted
    batches = texts(model.tokenizer, 12, name="planted")
    summary = summarise_activations(model, SAE_LAYER, {"sae": sae}, batches)["sae"]
    found = deactivation_search(model, SAE_LAYER, sae, summary, batches, candidates=40, max_tokens=EVERY, min_tokens=10)
    assert found.tried == 40
    assert found.effects[0].path == Path(FEATURE, LAYER, CLOSED)
    assert found.effects[-1].path == Path(FEATURE, LAYER, OPENED)
    check_roles(found.effects[0], found.effects[-1], batches)
    changes = [effect.mean_change for effect in found.effects]
    assert changes == sorted(changes) and changes[0] < changes[1] - 0.1
    usable = summary.fires >= 10
    # The rows that it ranks are contributions: mean activation times decoder row.
    rows = decoder_rows(sae) * summary.mean[:, None]
    heads, scores = heuristic_scores(model, SAE_LAYER, rows, batches[0])
    torch.testing.assert_close(found.scores, scores)
    assert scores[:, heads.index((LAYER, CLOSED))].masked_fill(~usable, -1e9).argmax() == FEATURE
    with pytest.raises(ValueError, match=r"no feature fires on 100000 of \d+ tokens"):
        deactivation_search(model, SAE_LAYER, sae, summary, batches, candidates=40, max_tokens=40, min_tokens=100_000)


def test_a_twin_keeps_both_roles(planted):
    model, sae = planted
    rotation = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))[0]
    there = Stitch(rotation, torch.zeros(32), rotation.T.contiguous(), torch.zeros(32))
    back = Stitch(rotation.T.contiguous(), torch.zeros(32), rotation, torch.zeros(32))
    twin = transfer_sae(transfer_sae(sae, there), back)
    search, evaluation = (texts(model.tokenizer, 12, name=name) for name in ("planted", "elsewhere"))
    roles = head_roles(model, SAE_LAYER, twin, FEATURE, search, evaluation, max_tokens=400)
    assert roles["closing"].path == Path(FEATURE, LAYER, CLOSED) and roles["opening"].path == Path(
        FEATURE, LAYER, OPENED
    )
    check_roles(roles["closing"], roles["opening"], evaluation)
    assert roles["closing"].change().high < 0 < roles["opening"].change().low


def test_a_feature_that_never_fires_changes_nothing(planted):
    model, _ = planted
    with torch.no_grad():
        silent = make_sae("relu", 32, dtype="float32", apply_b_dec_to_input=False)
        silent.b_enc.fill_(-1e6)
    batches = texts(model.tokenizer, 3)
    roles = head_roles(model, SAE_LAYER, silent, 0, batches, batches, max_tokens=400)
    assert roles["closing"].change() == roles["opening"].change() == (0, 0, 0)
