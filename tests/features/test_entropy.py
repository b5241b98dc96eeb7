"""Null-space shares against numpy's decomposition, and entropy features against their definition."""

import dataclasses

import numpy as np
import pytest
import torch
from shaken import IDS, shaken
from toy_saes import KINDS, make_sae

from stitch_utils.data.pairs import TextRef, load_pair
from stitch_utils.data.text import token_batches
from stitch_utils.features.entropy import (
    ActivationSummary,
    _overlap,
    decoder_rows,
    entropy_features,
    null_space,
    summarise_activations,
    unembedding,
)
from stitch_utils.features.functional import FunctionalConfig, functional_config, functional_texts
from stitch_utils.stitching.pair import StitchedPair


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def spread(d, vocab, seed=0):
    """A matrix with singular values from 10 to 0.01."""
    left, _, right = torch.linalg.svd(normal(d, vocab, seed=seed).double(), full_matrices=False)
    return (left * torch.logspace(1, -2, d, dtype=torch.float64) @ right).float()


@pytest.mark.parametrize("centred", [False, True])
def test_shares_are_those_of_numpys_singular_vectors(centred, monkeypatch):
    monkeypatch.setattr("stitch_utils.features.entropy.COLUMNS_AT_ONCE", 70)
    W_U, rows = spread(24, 300), normal(50, 24, seed=1)
    rows[3] = 0
    share = null_space(W_U, centred, bottom=0.2).share(rows)
    matrix, inner = W_U.double().numpy(), rows.double().numpy()
    if centred:
        matrix, inner = matrix - matrix.mean(0), inner - inner.mean(1, keepdims=True)
    left, values, _ = np.linalg.svd(matrix)
    if centred:  # the direction of equal entries has singular value 0
        assert values[-1] < 1e-6 < values[-2] and np.ptp(left[:, -1]) < 1e-6
        left = left[:, :-1]
    bottom = left[:, -5:]  # a fifth of 24, or of 23, is more than 4
    for row, found in zip(inner, share):
        expected = sum((row @ direction) ** 2 for direction in bottom.T) / (row @ row) if row.any() else 0
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("d", "n"), [(8, 1), (50, 1), (64, 2), (768, 16), (1024, 21)])
def test_two_percent_are_rounded_up(d, n):
    assert null_space(normal(d, 30 if d > 64 else 200)).directions.shape == (d, n)


@pytest.mark.parametrize("bottom", [0.0, 1.0, 2.0])
def test_the_bottom_is_a_share(bottom):
    with pytest.raises(ValueError, match=f"between 0 and 1: got {bottom}"):
        null_space(normal(8, 20), bottom=bottom)


def test_what_lies_in_the_null_space_and_what_does_not():
    W_U = spread(32, 200)
    space = null_space(W_U, bottom=0.1)
    directions = space.directions.float()
    assert directions.shape[1] == 4
    outside = torch.linalg.qr(torch.cat([directions, normal(32, 5)], dim=1))[0][:, 4:]
    share = space.share(torch.cat([3 * directions.T, outside.T]))
    torch.testing.assert_close(share, torch.tensor([1.0] * 4 + [0.0] * 5), atol=1e-5, rtol=0)


def test_chance_is_what_random_directions_have():
    for centred, n in ((False, 40), (True, 39)):
        space = null_space(spread(40, 100), centred, bottom=3 / 40)
        value, low, high = space.chance
        drawn = space.share(normal(20_000, 40)).numpy()
        assert value == pytest.approx(3 / n) and drawn.mean() == pytest.approx(value, rel=0.02)
        np.testing.assert_allclose(np.quantile(drawn, (0.025, 0.975)), (low, high), rtol=0.06)


@pytest.mark.parametrize("kind", KINDS)
def test_decoder_rows_are_what_one_unit_of_a_latent_adds(kind):
    sae = make_sae(kind)
    n = sae.cfg.d_sae
    expected = sae.decode(torch.eye(n, dtype=sae.dtype)) - sae.decode(torch.zeros(n, n, dtype=sae.dtype))
    torch.testing.assert_close(decoder_rows(sae), expected.detach())


@pytest.fixture
def batches(random_models):
    def make(batch_size=3, n_documents=6):
        tokenizer = random_models[0].tokenizer
        return token_batches(
            TextRef("world", "functional"), tokenizer, context=30, batch_size=batch_size, n_documents=n_documents
        )

    return make


def test_summaries_are_those_of_a_loop_over_tokens(random_models, batches, monkeypatch):
    model = random_models[0]
    saes = {kind: make_sae(kind, model.d_model, dtype="float32") for kind in ("topk", "jumprelu")}
    monkeypatch.setattr("stitch_utils.features.entropy.TOKENS_AT_ONCE", 7)
    found = summarise_activations(model, 1, saes, batches())
    other = summarise_activations(model, 1, saes, batches(batch_size=6))
    for name, sae in saes.items():
        rows = []
        for batch in batches(batch_size=1):
            stream = model.residuals(batch.tokens, [1])[1]
            rows += [sae.encode(y[None])[0] for y, keep in zip(stream[0], batch.mask[0]) if keep]
        latents = torch.stack(rows).detach().numpy()
        summary = found[name]
        assert summary.tokens == len(latents) > 50
        np.testing.assert_array_equal(summary.fires, (latents > 0).sum(0))
        np.testing.assert_allclose(summary.largest, latents.max(0), rtol=1e-3, atol=1e-4)
        for index in range(sae.cfg.d_sae):
            active = latents[latents[:, index] > 0, index]
            assert summary.mean[index] == pytest.approx(active.mean() if len(active) else 0, rel=1e-3)
        for one, two in zip(summary, other[name]):
            torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(two), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="no ordinary token"):
        summarise_activations(model, 1, saes, [])


@pytest.mark.parametrize("id", IDS)
def test_the_unembedding_gives_the_models_own_logits_up_to_a_factor(id, hub_root):
    model = shaken(hub_root, id)
    tokens = torch.randint(10, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    streams = []
    with model.bridge.hooks(fwd_hooks=[("ln_final.hook_in", lambda stream, hook: streams.append(stream))]):
        logits = model.logits(tokens).double()
    gemma = "gemma" in id
    if gemma:  # undo the cap
        cap = model.config.final_logit_softcapping
        logits = torch.atanh((logits / cap).clamp(-1 + 1e-9, 1 - 1e-9)) * cap
    matrix, centred = unembedding(model)
    assert matrix.shape == (model.d_model, logits.shape[-1]) and centred != gemma
    with torch.no_grad():  # the norm's own shift is the same for all
        shift = model.bridge.unembed.original_component(model.bridge.ln_final.original_component(0 * streams[0]))
    expected = logits - shift
    expected = expected - expected.mean(-1, keepdim=True)
    stream = streams[0].double()
    found = (stream - stream.mean(-1, keepdim=True) * centred) @ matrix.double()
    cosine = torch.nn.functional.cosine_similarity(found, expected, dim=-1)
    assert cosine.min() > 1 - 1e-4


def features_of(sae, space, largest, *, quantile=0.95):
    fires = (largest > 0).long()
    summary = ActivationSummary(100, fires, largest / 2, largest)
    return entropy_features(sae, summary, space, quantile=quantile)


@pytest.mark.parametrize("centred", [False, True])
def test_a_large_feature_in_the_null_space_is_found_and_others_are_not(centred):
    sae, matrix = make_sae("relu", 32, dtype="float32"), spread(32, 200)
    space = null_space(matrix, centred, bottom=0.1)
    inside = space.directions[:, 0].float()
    largest = torch.rand(64, generator=torch.Generator().manual_seed(0)) + 0.5
    largest[[5, 9]] = torch.tensor([20.0, 0.0])
    with torch.no_grad():
        sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
        # Both large and within; large but elsewhere; within but small; within but dead.
        sae.W_dec[5], sae.W_dec[7], sae.W_dec[9] = inside, 0.1 * inside, inside
        sae.W_dec[6] *= 20
        if centred:  # what the norm takes away changes nothing
            sae.W_dec[5] += 3
    found = features_of(sae, space, largest)
    assert found.candidates == (5,) and found.closest == 5
    assert found.share[5] == pytest.approx(1, abs=1e-4) and not found.alive[9]
    alive = [index for index in range(64) if index != 9]
    large = [index for index in alive if found.size_rank[index] >= 0.95]
    inside = [i for i in alive if found.share_rank[i] >= 0.95 and found.share[i] > space.chance.high]
    assert found.by_chance.value == pytest.approx(len(large) * len(inside) / 63) and len(large) == 4
    size = largest * sae.W_dec.detach().norm(dim=1)
    torch.testing.assert_close(found.size, size)
    for values, ranks in ((found.share, found.share_rank), (size, found.size_rank)):
        for index in range(64):
            others = [values[j] for j in range(64) if j not in (9, index)]
            if index != 9:
                assert ranks[index] == pytest.approx(sum(v.item() < values[index].item() for v in others) / 62)
    assert features_of(sae, space, largest, quantile=0.999).candidates == ()
    silent = features_of(sae, space, torch.zeros(64))
    assert silent.candidates == () and not silent.alive.any() and silent.size_rank.max() == 0
    assert silent.by_chance == (0, 0, 0)


def test_chance_deals_sizes_out_anew():
    rng, marked = np.random.default_rng(0), np.arange(200) < 30
    drawn = [int((rng.permutation(200) < 40)[marked].sum()) for _ in range(4000)]
    expected = np.mean(drawn), *np.quantile(drawn, (0.025, 0.975))
    assert _overlap(200, 40, 30) == pytest.approx(expected, abs=0.1)


def test_a_share_that_chance_gives_makes_no_candidate():
    """Of 64 features some reach both quantiles in any case; they must also lie above most random directions."""
    sae, space = make_sae("relu", 32, dtype="float32"), null_space(spread(32, 200), bottom=0.1)
    outside = torch.linalg.qr(torch.cat([space.directions.float(), normal(32, 28)], dim=1))[0][:, 4:]
    with torch.no_grad():
        sae.W_dec.copy_(normal(64, 28) @ outside.T)
    found = features_of(sae, space, found_sizes := torch.ones(64), quantile=0.001)
    assert len(found_sizes) == 64 and found.candidates == () and 0 <= found.closest < 64


def test_every_row_holds_one_document(random_models):
    pair = dataclasses.replace(load_pair("tiny"), context=40)
    config = functional_config(
        load_pair("tiny"), "smoke", search_documents=8, evaluation_documents=6, entropy_documents=2
    )
    tokenizer = random_models[0].tokenizer
    texts = functional_texts(StitchedPair(pair, random_models, (1, 2), "smoke"), config)
    search, evaluation, few = texts["a"]
    assert [sum(len(batch.tokens) for batch in text) for text in (search, evaluation, few)] == [8, 6, 2]
    for batch in (*search, *evaluation):
        assert batch.tokens.shape == batch.mask.shape and batch.mask[:, -1].any()
        assert (batch.tokens[:, 0] == tokenizer.bos_token_id).all()
        assert not (batch.tokens[:, 1:][batch.mask[:, 1:]] == tokenizer.bos_token_id).any()
        assert (batch.documents == batch.documents[:, :1]).all()
    assert torch.equal(few[0].tokens[:, :9], evaluation[0].tokens[:2, :9])


def test_settings_that_make_no_sense():
    assert functional_config(load_pair("tiny"), "paper", quantile=0.5).quantile == 0.5
    with pytest.raises(ValueError, match="candidates must be 1 or more: got 0"):
        functional_config(load_pair("tiny"), "smoke", candidates=0)
    with pytest.raises(ValueError, match=r"lie between 0 and 1: got 1\.5 and 0\.02"):
        FunctionalConfig(1, 1, 2, 1, 1, quantile=1.5)
    for bottom in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"lie between 0 and 1: got 0.95 and {bottom}"):
            FunctionalConfig(1, 1, 2, 1, 1, bottom=bottom)
