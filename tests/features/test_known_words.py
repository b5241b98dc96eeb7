"""Activation on content words, token by token; classes against planted features whose words are known."""

import collections
import itertools
import re

import numpy as np
import pytest
import torch
from sae_lens import SAE, StandardSAEConfig
from sklearn.metrics import roc_auc_score
from toy_saes import LATENTS, make_sae

from stitch_utils.data.embedded.marked import marked_groups
from stitch_utils.features import structure
from stitch_utils.features.structure import KnownWords, classify, feature_presence, known_words, recovery

OPTIONS = {"share": 0.5, "min_groups": 5, "min_fires": 10, "seed": 0}
GRAMMAR = re.findall(
    r"\w+", "the and who so because that says do does did not will am is are was were be i we she he in at on"
)


@pytest.fixture
def model(random_models):
    return random_models[0]


@pytest.fixture(scope="module")
def groups():
    return marked_groups("known words", 60, 5)


def naive(model, layer, sae, sentences):
    """Shares and fires: each token's characters found by writing out what comes before it."""
    mass, content, fires = np.zeros(sae.cfg.d_sae), np.zeros(sae.cfg.d_sae), 0
    for sentence in sentences:
        ids = model.tokenizer(sentence.text, add_special_tokens=False)["input_ids"]
        stream = model.residuals(torch.tensor([[model.tokenizer.bos_token_id, *ids]]), [layer])[layer][0]
        with torch.no_grad():
            latents = sae.encode(stream)[1:].double().numpy()
        for place, activations in enumerate(latents):
            start, end = (len(model.tokenizer.decode(ids[:stop])) for stop in (place, place + 1))
            is_content = any(a < end and start < b for a, b in sentence.content)
            mass += activations
            content += activations * is_content
            fires = fires + (activations > 0)
    return np.where(mass > 0, content / np.where(mass > 0, mass, 1), np.nan), fires


def test_shares_are_those_of_a_loop_over_tokens(model, groups, monkeypatch):
    sae = make_sae("jumprelu", model.d_model, dtype="float32")
    with torch.no_grad():
        sae.b_enc[3] = -1e6
    sentences = [sentence for group in groups[:6] for sentence in group]
    expected = naive(model, 1, sae, sentences)
    for batch_size, at_once in ((4, 4096), (64, 5)):
        monkeypatch.setattr(structure, "TOKENS_AT_ONCE", at_once)
        monkeypatch.setattr(structure, "BATCH_SIZE", batch_size)
        found = known_words(model, 1, sae, sentences)
        np.testing.assert_allclose(found.share, expected[0], rtol=1e-5)
        assert np.array_equal(found.fires, expected[1])
    assert np.isnan(found.share[3]) and found.fires[3] == 0


def detector(model, tokens):
    """An SAE of the embeddings with a feature for each of these tokens."""
    rows = model.bridge.original_model.get_input_embeddings().weight.detach()[torch.tensor(tokens)]
    config = StandardSAEConfig(model.d_model, len(tokens), apply_b_dec_to_input=False)
    sae = SAE.get_sae_class_for_architecture("standard")(config)
    with torch.no_grad():
        sae.W_enc.copy_((rows / rows.square().sum(1, keepdim=True)).T)
        sae.b_enc.fill_(-0.95)
        sae.W_dec.copy_(rows)
    return sae


def test_features_of_single_tokens_are_told_apart(model, groups):
    """Tokens that begin words, and no word of the grammar, against the most frequent words of the grammar."""
    tokenizer = model.tokenizer
    sentences = [sentence for group in groups for sentence in group]
    written = tokenizer([sentence.text for sentence in sentences])["input_ids"]
    counts = collections.Counter(token for ids in written for token in set(ids))
    of_grammar = set(itertools.chain(*tokenizer([f" {word}" for word in GRAMMAR] + list(GRAMMAR))["input_ids"]))
    starts = [token for token in counts if re.fullmatch(r" [a-z]{2,}", tokenizer.decode([token]))]
    content = sorted(token for token in starts if token not in of_grammar and counts[token] >= 8)[:12]
    grammar = [tokenizer.convert_tokens_to_ids(token) for token in ("Ġthe", ".")]
    assert len(content) == 12
    sae = detector(model, content + grammar)
    found = known_words(model, 0, sae, sentences)
    assert (found.fires >= [counts[token] for token in content + grammar]).all()
    np.testing.assert_allclose(found.share, [1] * len(content) + [0] * len(grammar), atol=0.1)  # a few are alike
    presence = feature_presence(model, 0, sae, [[sentence.text for sentence in group] for group in groups])
    assert classify(presence).structural.tolist() == [False] * len(content) + [True] * len(grammar)
    results = recovery(presence, found, **{**OPTIONS, "min_fires": 1})
    assert [result.k for result in results] == [1, 2, 3, 4, 5]
    enough = ~classify(presence[:, :2]).dead
    assert 4 < enough[:-2].sum() < len(content)
    for result in results:
        assert (result.content, result.others) == (enough[:-2].sum(), 2)
        assert [result.scores[name].value for name in ("accuracy", "balanced", "auc", "gain")] == [1, 1, 1, 0]
        assert result.scores["auc"].high == 1 and result.scores["accuracy"].low > 0.8


def test_scores_are_scikit_learns(monkeypatch):
    generator = np.random.default_rng(0)
    consistent = generator.uniform(0.2, 0.95, LATENTS)
    whole = generator.random((40, 1, LATENTS)) < consistent
    presence = whole | (generator.random((40, 4, LATENTS)) < 0.4)
    share = np.clip(generator.normal(1 - consistent, 0.2), 0, 1)
    fires = np.full(LATENTS, 20)
    fires[:4] = 9
    share[4] = np.nan
    fires[4] = 0
    presence[..., 5] = False
    used = np.arange(LATENTS) >= 6
    truth = share[used] > 0.5
    found = recovery(presence, KnownWords(share, fires), **{**OPTIONS, "share": 0.6})
    assert [result.k for result in found] == [1, 2, 3]
    for result in found:
        classes = classify(presence[:, : result.k + 1], share=0.6)
        semantic = classes.semantic[used]
        balanced = (semantic[truth].mean() + (~semantic[~truth]).mean()) / 2
        assert result.scores["accuracy"].value == pytest.approx((semantic == truth).mean())
        assert result.scores["balanced"].value == pytest.approx(balanced)
        assert result.scores["auc"].value == pytest.approx(roc_auc_score(truth, -classes.consistency[used]))
        assert (result.content, result.others) == (truth.sum(), (~truth).sum())
        for name in ("accuracy", "balanced", "auc"):
            low, high = result.scores[name][1:]
            assert low < high and high - low < 0.5
        gain = result.scores["auc"].value - found[0].scores["auc"].value
        assert result.scores["gain"].value == pytest.approx(gain)
    assert recovery(presence, KnownWords(np.zeros(LATENTS), fires), **OPTIONS) == [], "all features are of one kind"


@pytest.mark.parametrize("helps", [True, False])
def test_a_gain_from_more_versions_is_told_from_chance(helps):
    """Features of content words fire in a version less often than others do, or just as often."""
    generator, content = np.random.default_rng(1), np.arange(200) < 120
    chance = np.where(content & helps, 0.85, 0.95)
    whole = generator.random((40, 1, 200)) < 0.5
    presence = whole & (generator.random((40, 6, 200)) < chance)
    presence[:, :1] = whole
    known = KnownWords(content.astype(float), np.full(200, 20))
    found = recovery(presence, known, **OPTIONS)
    assert (found[-1].scores["gain.more"].low > 0) == helps and (found[-1].scores["auc"].low > 0.7) == helps
    longer = recovery(np.concatenate([presence] * 4), known, **OPTIONS)
    widths = [np.diff(one[0].scores["auc"][1:])[0] for one in (found, longer)]
    assert 1.5 < widths[0] / widths[1] < 2.7, "intervals resample the groups, of which there are four times as many"
