"""Where features fire against a loop over sentences; classes of planted presence; classes at equal firing rates."""

import itertools

import numpy as np
import pytest
import torch
from toy_saes import LATENTS, make_sae

from stitch_utils.data.embedded.world import augmented_sentences
from stitch_utils.features import structure
from stitch_utils.features.structure import (
    FeatureClasses,
    classify,
    density_ratios,
    feature_presence,
    matched_rates,
    rate_ratio,
    unrelated,
)

LAYER = 1


@pytest.fixture
def model(random_models):
    return random_models[0]


@pytest.fixture
def sae(model):
    sae = make_sae("jumprelu", model.d_model, dtype="float32")
    with torch.no_grad():
        sae.b_enc[0], sae.b_enc[1] = -1e6, 1e6
    return sae


def test_presence_is_that_of_a_loop_over_sentences(model, sae, monkeypatch):
    groups = augmented_sentences("presence", 7, 2)
    groups[3][1] = f"{groups[3][1]}{model.tokenizer.eos_token}{groups[2][0]}"  # a special token counts nowhere
    context, threshold = 14, 0.3
    expected, strongest = np.zeros((7, 3, LATENTS), dtype=bool), []
    for group, sentences in enumerate(groups):
        for version, sentence in enumerate(sentences):
            ids = model.tokenizer(sentence, add_special_tokens=False)["input_ids"][: context - 1]
            tokens = torch.tensor([[model.tokenizer.bos_token_id, *ids]])
            with torch.no_grad():
                latents = sae.encode(model.residuals(tokens, [LAYER])[LAYER][0])
            latents = latents[[token not in model.tokenizer.all_special_ids for token in tokens[0].tolist()]]
            expected[group, version] = (latents > threshold).any(0)
            strongest.append(latents.amax(0))
    monkeypatch.setattr(structure, "CONTEXT", context)
    for at_once, batch_size in itertools.product((4096, 5), (2, 64)):
        monkeypatch.setattr(structure, "TOKENS_AT_ONCE", at_once)
        monkeypatch.setattr(structure, "BATCH_SIZE", batch_size)
        found = feature_presence(model, LAYER, sae, groups, threshold=threshold)
        assert np.array_equal(found, expected)
    assert 0.05 < expected.mean() < 0.95 and not found[..., 0].any() and found[..., 1].all()
    assert ((torch.stack(strongest) > 0) & (torch.stack(strongest) <= threshold)).any(), "the threshold must matter"


def test_groups_that_cannot_be_read(model, sae):
    with pytest.raises(ValueError, match="expected groups of one size: got no groups"):
        feature_presence(model, LAYER, sae, [])
    with pytest.raises(ValueError, match="expected groups of one size: got 2, 3"):
        feature_presence(model, LAYER, sae, [["One."] * 3, ["Two."] * 2])
    with pytest.raises(ValueError, match="the sentence '' has no ordinary token"):
        feature_presence(model, LAYER, sae, [["One.", ""]])
    with pytest.raises(ValueError, match="the SAE reads 12 dimensions: expected 32"):
        feature_presence(model, LAYER, make_sae("topk", dtype="float32"), [["One.", "Two."]])


def presence_of(*features):
    """(groups, versions, features) from one string a group, of ones and zeros, for each feature."""
    return np.array([[[int(x) for x in group] for group in groups] for groups in features], bool).transpose(1, 2, 0)


def test_features_that_fire_in_all_versions_are_structural():
    presence = presence_of(
        ["111", "111", "111", "000"],  # always in all
        ["111", "111", "010", "100"],  # in all versions of two groups of four
        ["111", "011", "010", "100"],  # of one of four
        ["111", "010", "010", "000"],  # of one of three, or of one of one where the original makes it fire
        ["111", "000", "000", "000"],  # too seldom
        ["000", "000", "000", "000"],
    )
    found = classify(presence, min_groups=2)
    np.testing.assert_allclose(found.consistency, [1, 0.5, 0.25, 1 / 3, 1, np.nan])
    assert found.structural.tolist() == [True, True, False, False, False, False]
    assert found.semantic.tolist() == [False, False, True, True, False, False]
    assert found.dead.tolist() == [False, False, False, False, True, True]
    assert classify(presence, min_groups=2, share=0.51).structural.tolist() == [True] + [False] * 5


def test_what_cannot_be_classified():
    for options in ({"share": 0.0}, {"share": 50.0}, {"min_groups": 0}):
        with pytest.raises(ValueError, match=r"expected a share in \(0, 1\] and min_groups >= 1"):
            classify(np.ones((4, 2, 2), dtype=bool), **options)
    with pytest.raises(ValueError, match="groups of 1 sentences: expected an original and at least one version"):
        classify(np.ones((4, 1, 2), dtype=bool))


def test_unrelated_sentences_keep_how_often_features_fire():
    """One feature fires in all versions of a third of the groups, one in every sentence."""
    presence = np.zeros((300, 4, 2), dtype=bool)
    presence[:100, :, 0], presence[..., 1] = True, True
    dealt = unrelated(presence, seed=3)
    assert np.array_equal(dealt.sum(axis=0), presence.sum(axis=0))
    assert classify(presence).consistency.tolist() == [1, 1]
    left = classify(dealt).consistency
    chance = (1 / 3) ** 4 / (1 - (2 / 3) ** 4)
    assert left[0] == pytest.approx(chance, abs=0.03) and left[1] == 1
    assert np.array_equal(dealt, unrelated(presence, seed=3)) and not np.array_equal(dealt, unrelated(presence, seed=4))
    assert presence[:100, :, 0].all(), "what was given stays"


def planted(*, gain, count=2000, seed=0):
    """Features whose correlation follows their rate; structural ones fire more, and have `gain` beside that."""
    generator = np.random.default_rng(seed)
    structural = np.arange(count) < count // 3
    log_rate = generator.normal(np.where(structural, -2.0, -2.7), 0.5)
    correlation = 0.8 + 0.2 * log_rate + gain * structural + generator.normal(0, 0.05, count)
    classes = FeatureClasses(structural, ~structural, np.zeros(count))
    return resampled(correlation), 10**log_rate, classes


def resampled(values, noise=0.02):
    """Values of the text, and of resamples that scatter around them."""
    return np.vstack([values, values + np.random.default_rng(9).normal(0, noise, (100, len(values)))])


@pytest.mark.parametrize("gain", [0.0, 0.1])
def test_a_difference_that_comes_from_the_rates_goes_where_they_are_matched(gain, monkeypatch):
    monkeypatch.setattr(structure, "BINS_A_DECADE", 10)
    correlation, rate, classes = planted(gain=gain)
    found, _ = matched_rates(correlation, rate, classes)
    assert found["all.mean"].value == pytest.approx(0.14 + gain, abs=0.03)
    assert found["matched.mean"].value == pytest.approx(gain, abs=0.015)
    assert (found["matched.mean.more"].low > 0) == (gain > 0)
    assert found["all.mean.more"].low > 0.08 and found["all.mean.more"].value < found["all.mean"].value
    assert found == matched_rates(correlation, rate, classes)[0] != matched_rates(correlation, rate, classes, seed=1)[0]


def test_classes_of_one_mean_differ_in_spread():
    generator, structural = np.random.default_rng(0), np.arange(1000) < 400
    values = resampled(generator.normal(0.4, np.where(structural, 0.05, 0.2)))
    classes, rate = FeatureClasses(structural, ~structural, np.zeros(1000)), generator.uniform(0.01, 0.1, 1000)
    found, _ = matched_rates(values, rate, classes)
    for which in ("all", "matched"):
        assert found[f"{which}.spread"].value == pytest.approx(-0.15, abs=0.02)
        assert found[f"{which}.spread.less"].high < -0.1 and found[f"{which}.mean.more"].low < 0


def test_matched_features_are_weighted_bin_by_bin(monkeypatch):
    monkeypatch.setattr(structure, "BINS_A_DECADE", 1)
    correlation = np.array([0.1, 0.3, 0.8, 0.5, 0.2, 0.4, 0.6, 0.9, np.nan, 0.7])
    rate = np.array([1.5e-1, 1.6e-1, 1.5e-2, 1.5e-4, 1.5e-1, 1.5e-2, 1.6e-2, 1.5e-3, 1.5e-3, 0.0])
    structural = np.array([True] * 4 + [False] * 4 + [True, False])
    classes = FeatureClasses(structural, ~structural, np.zeros(10))
    found, counts = matched_rates(resampled(correlation), rate, classes)
    assert counts == {"all.structural": 4, "all.semantic": 4, "matched.structural": 3, "matched.semantic": 3}
    ours, theirs = np.array([0.1, 0.3, 0.8, 0.8, 0.8, 0.8]), np.array([0.2, 0.4, 0.6])  # half of 0.2's one, twice 0.4's
    assert found["matched.mean"].value == pytest.approx(ours.mean() - theirs.mean())
    assert found["matched.spread"].value == pytest.approx(ours.std() - theirs.std())
    assert found["all.mean"].value == pytest.approx(correlation[:4].mean() - correlation[4:8].mean())
    assert found["all.spread"].value == pytest.approx(correlation[:4].std() - correlation[4:8].std())
    # of three labellings of the middle bin and three of the upper one, none can differ more than the highest alone
    highest = np.array([0.3, 0.3, 0.8, 0.8, 0.8, 0.8]).mean() - np.array([0.1, 0.4, 0.6]).mean()
    more = found["matched.mean.more"].value
    assert found["matched.mean"].value - highest - 0.1 < more <= 0
    correlation[2] = np.nan
    _, without = matched_rates(resampled(correlation), rate, classes)
    assert without == {"all.structural": 3, "all.semantic": 4, "matched.structural": 2, "matched.semantic": 1}


def test_rates_that_never_meet():
    correlation, rate = np.linspace(-1, 1, 20), np.repeat([0.5, 0.005], 10)
    structural = np.arange(20) < 10
    classes = FeatureClasses(structural, ~structural, np.zeros(20))
    differences, counts = matched_rates(resampled(correlation), rate, classes)
    assert differences.keys() == {"all.mean", "all.mean.more", "all.spread", "all.spread.less"}
    assert counts.keys() == {"all.structural", "all.semantic"}
    with pytest.raises(ValueError, match="groups of 10 and 0 features"):
        matched_rates(resampled(np.where(structural, correlation, np.nan)), rate, classes)


def test_relative_density_at_both_ends():
    generator = np.random.default_rng(0)
    correlation = np.r_[generator.uniform(0.4, 0.6, 500), generator.uniform(0.36, 1, 500), np.nan]
    structural = np.arange(1001) < 500
    classes = FeatureClasses(structural, ~structural, np.zeros(1001))
    ordered = np.argsort(correlation[:1000])
    found = density_ratios(resampled(correlation), classes)
    for name, tenth in {"lowest_tenth": ordered[:100], "highest_tenth": ordered[-100:]}.items():
        end = found[name]
        ours, theirs = (structural[tenth].sum() + 0.5) / 501, ((~structural)[tenth].sum() + 0.5) / 501
        assert end.value == pytest.approx(theirs / ours)
    assert found["lowest_tenth"].value < 1 < found["highest_tenth"].low
    assert found["lowest_tenth.more"].value < 0 < found["highest_tenth.more"].low
    with pytest.raises(ValueError, match="groups of 0 and 501 features"):
        density_ratios(resampled(np.where(structural, np.nan, 0)), classes)


@pytest.mark.parametrize("factor", [1, 3])
def test_the_ratio_of_median_rates_is_told_from_chance(factor):
    generator, structural = np.random.default_rng(1), np.arange(600) < 150
    rate = generator.uniform(0.01, 0.03, 600) * np.where(structural, factor, 1)
    classes = FeatureClasses(structural, ~structural, np.zeros(600))
    usable = np.arange(600) % 5 > 0
    found = rate_ratio(resampled(rate, 0.0001), classes, usable)
    medians = [np.median(rate[usable & kind]) for kind in (structural, ~structural)]
    assert found["rate_ratio"].value == pytest.approx(medians[0] / medians[1]) == pytest.approx(factor, rel=0.15)
    assert (found["rate_ratio.more"].low > 0) == (factor > 1)
    with pytest.raises(ValueError, match="groups of 0 and 360 features"):
        rate_ratio(resampled(rate, 0.0001), classes, usable & ~structural)
