"""Eq. 10 in one pass against numpy on stored activations, for each architecture; its summaries."""

import copy
import functools

import numpy as np
import pytest
import torch
from toy_saes import LATENTS, make_sae, normal

from stitch_utils.data.pairs import TextRef, load_pair
from stitch_utils.data.text import token_batches
from stitch_utils.features import attribution
from stitch_utils.features.attribution import (
    AttributionCorrelation,
    Twins,
    _Sums,
    against_random,
    attribution_correlations,
    carried,
    over_features,
    summarise,
)
from stitch_utils.models.language_model import load_model
from stitch_utils.saes.transfer import transfer_sae
from stitch_utils.stitching.pair import StitchedPair
from stitch_utils.stitching.stitch import random_stitch

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
    return [np.array(list(result[:-1])) for twins in found.values() for result in twins.values()]


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


def test_a_large_mean_costs_no_digits_and_constants_have_no_correlation():
    values, twin = 1e7 + normal(600, 3, seed=1), -1e7 + normal(600, 3, seed=2)
    values[:, 1], twin[:, 2] = 0.1, 1e-30
    fires = torch.zeros(3)
    parts = [slice(100), slice(100, 101), slice(101, 437), slice(437, None)]
    first, *others = (_Sums.of((values[part], fires), (twin[part], fires)) for part in parts)
    found = functools.reduce(_Sums.merged, others, first).result().correlation
    expected = np.corrcoef(values[:, 0], twin[:, 0])[0, 1]
    assert found[0] == pytest.approx(expected, abs=1e-8) and abs(expected) > 1e-3
    assert np.isnan(found[1:]).all()


def test_features_that_fire_in_both_models_are_alive():
    rate, twin = np.array([0.1, 0.01, 0.1, 0.1]), np.array([0.1, 0.1, 0.01, 0.1])
    result = AttributionCorrelation(np.array([0.5, 0.5, 0.5, np.nan]), rate, twin, 300)
    assert result.alive(10).tolist() == [True, False, False, False]
    assert result.alive(3).tolist() == [True, True, True, False]


def test_an_sae_is_carried_across_the_stitch_and_a_random_one(pair, random_models):
    opened = StitchedPair(pair, random_models, LAYERS, "smoke", alpha=0.5)
    means = opened.moments.mean_x, opened.moments.mean_y
    for side, to in enumerate("ba"):
        sae = make_sae("topk", random_models[side].d_model, dtype="float32")
        twins = carried(opened, sae, to=to, seed=3)
        assert twins.sae is sae
        for name, maps in (("transferred", opened.stitch), ("random", random_stitch(opened.stitch, 3, means=means))):
            assert torch.equal(twins.others[name].W_enc, transfer_sae(sae, maps, to=to).W_enc)


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
    every_second = [batch._replace(mask=batch.mask & (torch.arange(30) % 2 == 0)) for batch in batches]
    with pytest.raises(ValueError, match="no two ordinary tokens in a row"):
        run(every_second, up=Twins(sae_a, {"one": sae_b}))


def test_summaries_count_features():
    values = np.array([0.9, 0.8, 0.7, 0.2, 0.1, -0.4, np.nan, -0.1, 0.6, 0.4])
    found = summarise(values, seed=1)
    known = values[np.isfinite(values)]
    expected = (known.mean(), np.median(known), known.std(), 4 / 9, 2 / 9)
    assert list(found) == ["mean", "median", "spread", "above_half", "below_zero"]
    assert [part.value for part in found.values()] == pytest.approx(expected)
    draws = np.random.default_rng(1)
    resampled = np.array([draws.choice(known, 9).mean() for _ in range(1000)])
    assert found["mean"][1:] == pytest.approx(tuple(np.quantile(resampled, (0.025, 0.975))))
    assert found == summarise(values, seed=1) != summarise(values, seed=2)
    with pytest.raises(ValueError, match="groups of 0 features: expected some"):
        summarise(np.full(2, np.nan))


def test_shares_beyond_the_random_correlations():
    random = np.r_[np.linspace(-1, 1, 101) / 10, np.nan]  # percentiles 5 and 95 are -0.09 and 0.09
    values = np.r_[np.full(70, 0.5), np.full(10, 0.07), np.full(20, -0.5), np.nan]
    found = against_random(values, random)
    better, negative = found["better"], found["negative"]
    assert (better.value, negative.value) == pytest.approx((0.7, 0.2))
    assert better.low < 0.7 < better.high and better.low > 0.5
    with pytest.raises(ValueError, match="groups of 100 and 0 features: expected some in each"):
        against_random(values, np.full(3, np.nan))


def test_groups_are_drawn_anew_one_after_the_other():
    groups = np.arange(30.0), np.arange(12.0) ** 2

    def statistics(first, second):
        some = {"some": 1.0} if first.max() > 28 else {}
        return {"mean": first.mean() - second.mean(), "spread": second.std()} | some

    found = over_features(statistics, *groups, seed=4)
    generator = np.random.default_rng(4)
    draws = [statistics(*(generator.choice(group, len(group)) for group in groups)) for _ in range(1000)]
    for name in ("mean", "spread"):
        bounds = np.quantile([draw[name] for draw in draws], (0.025, 0.975))
        assert found[name] == pytest.approx((statistics(*groups)[name], *bounds))
    assert not all("some" in draw for draw in draws) and found["some"] == (1, 1, 1)
