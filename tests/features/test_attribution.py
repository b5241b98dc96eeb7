"""Eq. 10 in one pass against numpy on stored activations, for each architecture, and on resamples of documents."""

import copy

import numpy as np
import pytest
import torch
from toy_saes import LATENTS, make_sae, normal

from stitch_utils.data.pairs import TextRef, load_pair
from stitch_utils.data.text import token_batches
from stitch_utils.features import attribution
from stitch_utils.features.attribution import (
    AttributionCorrelation,
    BlockSums,
    Twins,
    attribution_correlations,
    carried,
    drawn,
)
from stitch_utils.models.language_model import load_model
from stitch_utils.saes.transfer import transfer_sae
from stitch_utils.stitching.nulls import component_stitches
from stitch_utils.stitching.pair import StitchedPair
from stitch_utils.stitching.stitch import Stitch, random_stitch
from stitch_utils.utils.stats import resampled_counts

FAMILIES = {
    "gpt_neox": ("EleutherAI/pythia-70m-deduped", "EleutherAI/pythia-160m-deduped"),
    "gpt2": ("openai-community/gpt2", "openai-community/gpt2-medium"),
    "gemma": ("google/gemma-2-2b", "google/gemma-2-9b"),
}
LAYERS = (1, 2)
SILENT, MUTE, SILENT_TWIN = 5, 6, 7


def stitched(models, layers=LAYERS):
    return StitchedPair(load_pair("tiny"), models, layers, "smoke")


def batches_of(models, batch_size=4, rows="document"):
    """A few tokens in the middle of texts are left out as special ones are."""
    text = TextRef("world", "attribution tests")
    tokenizer = models[0].tokenizer
    for batch in token_batches(text, tokenizer, context=30, batch_size=batch_size, rows=rows, n_documents=12):
        yield batch._replace(mask=batch.mask & (batch.tokens % 9 > 0))


def sae_of(models, side, kind="topk"):
    """An SAE of one of the models whose features all have a chance to fire."""
    model, layer = models[side], LAYERS[side]
    sae = make_sae(kind, model.d_model, dtype="float32", apply_b_dec_to_input=False)
    streams = [model.residuals(batch.tokens, [layer])[layer][batch.mask] for batch in batches_of(models)]
    with torch.no_grad():
        sae.b_enc.copy_(-torch.cat(streams).mean(0) @ sae.W_enc)
    return sae


def saes_of(models):
    """For each direction an SAE and two twins; one feature never fires, one writes nothing, one has a silent twin."""
    saes, others = ([sae_of(models, side, kind) for side in (0, 1)] for kind in ("topk", "jumprelu"))
    with torch.no_grad():
        for sae in (*saes, *others):
            sae.b_enc[SILENT] = -1e6
            sae.b_enc[MUTE] = 1e4
            sae.W_dec[MUTE] = 0
        for other in others:
            other.b_enc[SILENT_TWIN] = -1e6
    return {
        "up": Twins(saes[0], {"one": saes[1], "two": others[1]}),
        "down": Twins(others[1], {"one": others[0]}),
    }


def naive(model, layer, sae, batches, *, centre=False):
    """Activations and attributions (tokens, features) of one model in float64, token by token."""
    norm = model.bridge.ln_final.original_component
    weight = norm.weight.detach().double()
    is_rms = "RMS" in type(norm).__name__
    rows = sae.W_dec.detach().double()
    rows = rows * (1 + weight) if is_rms else (rows - rows.mean(1, keepdim=True)) * weight
    logit_weights = rows @ model.bridge.original_model.get_output_embeddings().weight.detach().double().T
    if centre:
        logit_weights -= logit_weights.mean(1, keepdim=True)
    activations, attributions = [], []
    for batch in batches:
        stream = model.residuals(batch.tokens, [layer])[layer]
        with torch.no_grad():
            latents = sae.encode(stream).double()
        for row in range(len(batch.tokens)):
            for place in range(batch.tokens.shape[1] - 1):
                if not (batch.mask[row, place] and batch.mask[row, place + 1]):
                    continue
                fires = latents[row, place]
                activations.append(fires.numpy())
                attributions.append((fires * logit_weights[:, batch.tokens[row, place + 1]]).numpy())
    return np.array(activations), np.array(attributions)


@pytest.fixture(scope="module", params=FAMILIES)
def models(request, hub_root):
    """Two models of a family, each with a final norm whose scale matters."""
    pair = [load_model(str(hub_root / "models" / name)) for name in FAMILIES[request.param]]
    weights = [model.bridge.ln_final.original_component.weight for model in pair]
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for seed, weight in enumerate(weights):
            weight += normal(len(weight), seed=seed).to(weight) / 2
    yield tuple(pair)
    with torch.no_grad():
        for weight, old in zip(weights, before):
            weight.copy_(old)


@pytest.mark.parametrize("options", [{}, {"centre": True}], ids=["plain", "centred"])
def test_one_pass_gives_what_numpy_gives_on_stored_activations(models, options):
    directions = saes_of(models)
    found = attribution_correlations(stitched(models), directions, batches_of(models), **options)
    assert {key: list(some) for key, some in found.items()} == {"up": ["one", "two"], "down": ["one"]}
    for direction, (source, target) in {"up": (0, 1), "down": (1, 0)}.items():
        twins = directions[direction]
        own, values = naive(models[source], LAYERS[source], twins.sae, batches_of(models), **options)
        for name, other in twins.others.items():
            theirs, twin = naive(models[target], LAYERS[target], other, batches_of(models), **options)
            result = found[direction][name]
            assert result.n_tokens == len(values) > 100
            np.testing.assert_allclose(result.firing_rate, (own > 0).mean(0), atol=1e-12)
            np.testing.assert_allclose(result.twin_firing_rate, (theirs > 0).mean(0), atol=1e-12)
            for feature in range(LATENTS):
                if values[:, feature].std() == 0 or twin[:, feature].std() == 0:
                    assert np.isnan(result.correlation[feature])
                else:
                    expected = np.corrcoef(values[:, feature], twin[:, feature])[0, 1]
                    assert result.correlation[feature] == pytest.approx(expected, abs=1e-6)
            assert np.isnan(result.correlation[[SILENT, MUTE]]).all() and own[:, MUTE].any()
            assert np.isfinite(result.correlation).sum() > LATENTS / 2
    assert np.isnan(found["up"]["two"].correlation[SILENT_TWIN]) and found["up"]["one"].firing_rate[SILENT_TWIN] > 0


def as_rows(found):
    return [np.array(list(result[:3])) for twins in found.values() for result in twins.values()]


@pytest.mark.parametrize("rows", ["document", "packed"])
def test_it_does_not_matter_how_the_text_is_cut_into_batches(random_models, rows, monkeypatch):
    directions = saes_of(random_models)

    def run(batch_size):
        return attribution_correlations(
            stitched(random_models), directions, batches_of(random_models, batch_size, rows)
        )

    expected, ones = run(64), run(1)
    monkeypatch.setattr(attribution, "ENTRIES_AT_ONCE", 7 * LATENTS)
    residuals = random_models[1].residuals

    def small(tokens, layers):
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("no room")
        return residuals(tokens, layers)

    monkeypatch.setattr(random_models[1], "residuals", small)
    for other in (ones, run(5)):
        for before, after in zip(as_rows(expected), as_rows(other), strict=True):
            np.testing.assert_allclose(before, after, rtol=1e-6, atol=1e-7)


def test_a_twin_is_compared_feature_by_feature(random_models):
    """One model on both sides: an SAE agrees with itself, and in another order it does not."""
    model, sae = random_models[0], sae_of(random_models, 0)
    order = torch.arange(LATENTS).roll(1)
    permuted = copy.deepcopy(sae)
    with torch.no_grad():
        permuted.W_enc.copy_(sae.W_enc[:, order])
        permuted.b_enc.copy_(sae.b_enc[order])
        permuted.W_dec.copy_(sae.W_dec[order])
    twins = Twins(sae, {"itself": sae, "permuted": permuted})
    found = attribution_correlations(stitched((model, model), (1, 1)), {"up": twins}, batches_of(random_models))["up"]
    usual = found["itself"].alive(min_fires=3)
    assert usual.sum() > LATENTS / 2
    np.testing.assert_allclose(found["itself"].correlation[usual], 1)
    assert abs(np.nanmean(found["permuted"].correlation[usual])) < 0.2
    _, values = naive(model, 1, sae, batches_of(random_models))
    expected = [np.corrcoef(values[:, i], values[:, order[i]])[0, 1] for i in np.flatnonzero(usual)]
    np.testing.assert_allclose(found["permuted"].correlation[usual], expected, atol=1e-6, equal_nan=True)


def block_sums(values, twin, blocks):
    """`BlockSums` of attributions (tokens, features) of both sides, whose tokens belong to `blocks`."""
    fires, products = (values != 0).astype(float), values * twin
    own, other = ([fires, values, values**2, values - 1], [(twin != 0).astype(float), twin, twin**2, products])
    tables = (np.stack([np.stack(side)[:, blocks == one].sum(1) for one in np.unique(blocks)]) for side in (own, other))
    return BlockSums(np.bincount(blocks).astype(float), *tables)


def test_a_large_mean_costs_few_digits_and_constants_have_no_correlation():
    values, twin = 1e3 + normal(600, 3, seed=1).numpy(), -1e3 + normal(600, 3, seed=2).numpy()
    values[:, 1], twin[:, 2] = 0.1, 1e-30
    found = AttributionCorrelation.of(block_sums(values, twin, np.arange(600) % 7)).correlation
    expected = np.corrcoef(values[:, 0], twin[:, 0])[0, 1]
    assert found[0] == pytest.approx(expected, abs=1e-6) and abs(expected) > 1e-3
    assert np.isnan(found[1:]).all()


def test_resamples_are_of_blocks_and_the_same_for_all(monkeypatch):
    monkeypatch.setattr(attribution, "FEATURES_AT_ONCE", 3)
    generator, blocks = np.random.default_rng(0), np.repeat(np.arange(6), [3, 9, 20, 4, 11, 8])
    values = generator.normal(size=(len(blocks), 8)) * (generator.random((len(blocks), 8)) < 0.6)
    twin = values + generator.normal(size=values.shape)
    values[:, 5] = np.where(blocks == 2, values[:, 5], 0)  # one that fires in a block that a resample may lack
    sums = block_sums(values, twin, blocks)
    correlations, rates = sums.correlations(seed=4)
    spoken, counts = sums.spoken(seed=4), resampled_counts(6, 4)
    assert correlations.shape == rates.shape == spoken.shape == (1 + len(counts), 8)
    of_text = [np.corrcoef(values[:, i], twin[:, i])[0, 1] for i in range(8)]
    np.testing.assert_allclose(correlations[0], of_text)
    lacking = int(np.flatnonzero(counts[:, 2] == 0)[0])
    for draw in (0, 1, lacking):
        tokens = np.repeat(np.arange(len(blocks)), counts[draw][blocks])
        np.testing.assert_allclose(rates[1 + draw], (values[tokens] != 0).mean(0))
        np.testing.assert_allclose(spoken[1 + draw], (values[tokens] - 1).mean(0))
        for feature in range(8):
            if feature == 5 and draw == lacking:
                assert correlations[1 + draw, feature] == correlations[0, feature]
            else:
                expected = np.corrcoef(values[tokens, feature], twin[tokens, feature])[0, 1]
                assert correlations[1 + draw, feature] == pytest.approx(expected)


def test_documents_are_dealt_out_to_blocks(random_models, monkeypatch):
    monkeypatch.setattr(attribution, "BLOCKS", 5)
    monkeypatch.setattr(attribution, "ENTRIES_AT_ONCE", 7 * LATENTS)
    batches, directions = list(batches_of(random_models)), saes_of(random_models)
    sums = attribution_correlations(stitched(random_models), directions, batches)["up"]["one"].sums
    goes_on = [batch.mask[:, :-1] & batch.mask[:, 1:] for batch in batches]
    owners = torch.cat([batch.documents[:, :-1][some] for batch, some in zip(batches, goes_on)])
    blocks = (owners % 5).numpy()
    assert sums.tokens.tolist() == np.bincount(blocks).tolist() and len(set(owners.tolist())) == 12
    own, values = naive(random_models[0], 1, directions["up"].sae, batches)
    _, twin = naive(random_models[1], 2, directions["up"].others["one"], batches)
    _, centred = naive(random_models[0], 1, directions["up"].sae, batches, centre=True)
    columns = {0: (own > 0), 1: values, 2: values**2, 3: centred}
    for place, expected in columns.items():
        found = np.stack([expected[blocks == block].sum(0) for block in range(5)])
        np.testing.assert_allclose(sums.own[:, place], found, rtol=1e-4, atol=1e-4)
    products = np.stack([(values * twin)[blocks == block].sum(0) for block in range(5)])
    np.testing.assert_allclose(sums.twin[:, 3], products, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"centre": True}], ids=["plain", "centred"])
def test_a_stitch_stands_for_the_sae_that_it_carries(models, options):
    d_a, d_b = (model.d_model for model in models)
    parts = normal(d_a, d_b, seed=1), normal(d_b, seed=2), normal(d_b, d_a, seed=3), normal(d_a, seed=4)
    stitch = Stitch(*(part.float() / 4 for part in parts))
    saes = [sae_of(models, side) for side in (0, 1)]
    directions = {
        way: Twins(sae, {"built": transfer_sae(sae, stitch, to=to), "stitch": stitch})
        for way, sae, to in zip(("up", "down"), saes, "ba")
    }
    for twins in attribution_correlations(stitched(models), directions, batches_of(models), **options).values():
        built, named = twins["built"], twins["stitch"]
        np.testing.assert_allclose(named.twin_firing_rate, built.twin_firing_rate, atol=2 / built.n_tokens)
        alive = built.alive(5)
        assert alive.sum() > LATENTS / 4
        np.testing.assert_allclose(named.correlation[alive], built.correlation[alive], atol=1e-3)


def test_features_that_fire_in_both_models_are_alive():
    rate, twin = np.array([0.1, 0.01, 0.1, 0.1]), np.array([0.1, 0.1, 0.01, 0.1])
    result = AttributionCorrelation(np.array([0.5, 0.5, 0.5, np.nan]), rate, twin, 300, None)
    assert result.alive(10).tolist() == [True, False, False, False]
    assert result.alive(3).tolist() == [True, True, True, False]


def test_an_sae_is_carried_across_the_stitch_and_draws_of_both_nulls(pair, random_models):
    opened = StitchedPair(pair, random_models, LAYERS, "smoke", alpha=0.5)
    means = opened.moments.mean_x, opened.moments.mean_y
    components = list(component_stitches(opened.moments, seed=3))
    for side, to in enumerate("ba"):
        sae = make_sae("topk", random_models[side].d_model, dtype="float32")
        twins = carried(opened, sae, to=to, seed=3)
        assert twins.sae is sae and len(twins.others) == 1 + 2 * 19
        assert torch.equal(twins.others["transferred"].W_enc, transfer_sae(sae, opened.stitch, to=to).W_enc)
        for draw, (random, matched) in enumerate(zip(drawn("random"), drawn("components"), strict=True)):
            expected = random_stitch(opened.stitch, 3 + draw, means=means)
            assert torch.equal(twins.others[random].P_up, expected.P_up)
            assert torch.equal(twins.others[matched].P_down, components[draw].P_down)


def test_what_cannot_be_compared(random_models):
    sae_a, sae_b = (make_sae("topk", model.d_model, dtype="float32") for model in random_models)
    batches = list(batches_of(random_models))

    def run(batches=batches, **directions):
        return attribution_correlations(stitched(random_models), directions, batches)

    with pytest.raises(ValueError, match="nothing to compare"):
        run(up=Twins(sae_a, {}))
    with pytest.raises(ValueError, match="unknown direction 'sideways': expected one of up, down"):
        run(sideways=Twins(sae_a, {"one": sae_b}))
    with pytest.raises(ValueError, match="down: the SAE reads 32 dimensions: expected 48"):
        run(down=Twins(sae_a, {"one": sae_a}))
    with pytest.raises(ValueError, match="up: twin 'one' reads 32 dimensions: expected 48"):
        run(up=Twins(sae_a, {"one": sae_a}))
    short = make_sae("topk", random_models[1].d_model, dtype="float32")
    short.cfg.d_sae = 63
    with pytest.raises(ValueError, match="up: twin 'one' has 63 features: expected 64"):
        run(up=Twins(sae_a, {"one": short}))
    back = Stitch(normal(48, 32, seed=1), normal(32, seed=2), normal(32, 48, seed=3), normal(48, seed=4))
    with pytest.raises(
        ValueError, match="up: the stitch of twin 'one' leads from 48 to 32 dimensions: expected 32 to 48"
    ):
        run(up=Twins(sae_a, {"one": back}))
    every_second = [batch._replace(mask=batch.mask & (torch.arange(30) % 2 == 0)) for batch in batches]
    with pytest.raises(ValueError, match="no two ordinary tokens in a row"):
        run(every_second, up=Twins(sae_a, {"one": sae_b}))
