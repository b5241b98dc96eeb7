"""Table 1's conditions against splices written out by hand, n-gram models against counting by hand, and intervals
against their definitions."""

import itertools
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from scipy.stats import binom

from stitch_utils.data.pairs import TextRef
from stitch_utils.data.text import TokenBatch, token_batches
from stitch_utils.stitching.evaluation import CONDITIONS, Fidelity, HostCounts, NgramModel, measure_fidelity
from stitch_utils.stitching.maps import MapPair
from stitch_utils.stitching.stitch import Stitch
from stitch_utils.utils.stats import clopper_pearson


@pytest.fixture
def batches(random_models):
    def make():
        return token_batches(
            TextRef("world", "fidelity"),
            random_models[0].tokenizer,
            context=40,
            batch_size=3,
            rows="packed",
            n_documents=6,
        )

    return make


def random_stitch(d_a, d_b, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((d_a, d_b), (d_b,), (d_b, d_a), (d_a,))
    return Stitch(*(torch.randn(shape, generator=generator) / 4 for shape in shapes))


def test_the_identity_stitch_gives_the_hosts_own_loss(random_models, batches):
    model = random_models[0]
    fidelity = measure_fidelity(model, model, 1, 1, {"identity": Stitch.identity(model.d_model)}, batches())
    own = fidelity.cross_entropy("own", "a").value
    for condition in CONDITIONS:
        assert fidelity.cross_entropy("identity", condition).value == pytest.approx(own, abs=1e-5)
        assert fidelity.increase("identity", condition).value == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_loss_that_is_not_finite_is_an_error(random_models, batches, condition):
    stitch = random_stitch(*(model.d_model for model in random_models))
    host, layer = ("a", 1) if condition.endswith("a") else ("b", 2)
    getattr(stitch, "P_up" if host == "b" else "P_down")[0, 0] = torch.inf
    said = rf"cross-entropy with another stream before layer {layer} of '.*{host}' holds values .* finite in float32: "
    with pytest.raises(ValueError, match=said):
        measure_fidelity(*random_models, 1, 2, {"bad": stitch}, batches(), conditions=[condition])


@pytest.mark.parametrize("host", ["a", "b"])
def test_so_is_a_models_own_loss(random_models, batches, host, monkeypatch):
    """As where logits overflow float16, which no stream shows."""
    model = random_models["ab".index(host)]
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda *given, **named: logits(*given, **named) / 0)
    with pytest.raises(ValueError, match=rf"cross-entropy of '.*{host}' holds values that are not finite in float32"):
        measure_fidelity(*random_models, 1, 2, {}, batches())


def test_every_condition_is_the_splice_that_its_name_says(random_models, batches):
    model_a, model_b = random_models
    stitch = random_stitch(model_a.d_model, model_b.d_model)
    means = torch.full((model_a.d_model,), 0.1), torch.full((model_b.d_model,), 0.2)
    fidelity = measure_fidelity(model_a, model_b, 1, 2, {"random": stitch}, batches(), means=means)
    names = {("random", condition) for condition in CONDITIONS} | {
        ("own", name) for name in ("a_without_layer", "b_without_layer")
    }
    expected = {name: {} for name in names}
    for batch in batches():
        x, y = model_a.residuals(batch.tokens, [1])[1], model_b.residuals(batch.tokens, [2])[2]
        up_x, down_y = x @ stitch.P_up + stitch.b_up, y @ stitch.P_down + stitch.b_down
        replacements = {
            ("random", "a_to_b"): (model_b, 2, up_x),
            ("random", "b_to_a"): (model_a, 1, down_y),
            ("random", "a_to_b_to_a"): (model_a, 1, up_x @ stitch.P_down + stitch.b_down),
            ("random", "b_to_a_to_b"): (model_b, 2, down_y @ stitch.P_up + stitch.b_up),
            ("own", "a_without_layer"): (model_a, 1, means[0].expand_as(x)),
            ("own", "b_without_layer"): (model_b, 2, means[1].expand_as(y)),
        }
        for name, (host, layer, replacement) in replacements.items():

            def put(residual, replacement=replacement, mask=batch.mask):
                out = residual.clone()
                out[mask] = replacement[mask]  # special tokens keep the host's own residual
                return out

            losses = host.cross_entropy(batch.tokens, layer=layer, edit=put)
            for row in range(len(losses)):
                for position in range(losses.shape[1]):
                    if batch.mask[row, position + 1]:
                        document = batch.documents[row, position + 1].item()
                        expected[name].setdefault(document, []).append(losses[row, position].item())
    for (stitch_name, condition), by_document in expected.items():
        sums = [sum(by_document[document]) for document in sorted(by_document)]
        np.testing.assert_allclose(fidelity.sums[stitch_name, condition], sums, rtol=1e-4)
        np.testing.assert_array_equal(
            fidelity.counts["b"].tokens, [len(by_document[document]) for document in sorted(by_document)]
        )
        total = sum(sums) / sum(len(values) for values in by_document.values())
        assert fidelity.cross_entropy(stitch_name, condition).value == pytest.approx(total, rel=1e-4)


def test_increases_are_relative_to_the_model_that_comes_last():
    sums = {("own", "a"): np.array([20.0, 40.0]), ("own", "b"): np.array([10.0, 30.0])}
    sums |= {("s", name): np.array([30.0, 30.0]) for name in CONDITIONS}
    fidelity = Fidelity(dict.fromkeys("ab", HostCounts(np.array([10.0, 20.0]), None, None)), sums)
    assert fidelity.cross_entropy("s", "a_to_b").value == pytest.approx(2.0)
    assert fidelity.increase("s", "a_to_b").value == pytest.approx(0.5)
    assert fidelity.increase("s", "b_to_a").value == pytest.approx(0.0)
    assert fidelity.increase("s", "a_to_b", over=("own", "a")).value == pytest.approx(0.0)
    assert fidelity.increase("s", "b_to_a", over=("own", "b")).value == pytest.approx(0.5)
    assert fidelity.increases("s", "a_to_b").shape == (1001,)


def test_models_with_other_tokens_are_compared_by_the_byte():
    """B has half as many tokens for the same bytes: twice its nats a token are A's nats a byte."""
    n_bytes = np.array([40.0, 80.0])
    counts = {
        "a": HostCounts(np.array([20.0, 40.0]), None, n_bytes),
        "b": HostCounts(np.array([10.0, 20.0]), None, n_bytes),
    }
    sums = {
        ("own", "a"): np.array([30.0, 60.0]),
        ("own", "b"): np.array([20.0, 40.0]),
        ("s", "a_to_b"): np.array([30.0, 60.0]),
    }
    fidelity = Fidelity(counts, sums)
    assert fidelity.increase("s", "a_to_b", over=("own", "a")).value == pytest.approx(0.0)
    assert fidelity.increase("s", "a_to_b").value == pytest.approx(0.5)


def test_the_gap_of_the_models_is_in_nats_for_each_token_of_b():
    rng = np.random.default_rng(0)
    hard = rng.gamma(1, 40, size=60)
    sums = {("own", "a"): hard + 3 + rng.normal(size=60), ("own", "b"): hard}
    count = HostCounts(np.full(60, 10.0), None, np.full(60, 40.0))
    gap = (sums["own", "a"] - hard).mean() / 10
    found = Fidelity(dict.fromkeys("ab", count), sums).gap()
    assert found.value == pytest.approx(gap) and 0.25 < found.low < gap < found.high < 0.35
    longer = HostCounts(np.full(60, 20.0), None, np.full(60, 40.0))  # A has two tokens for each of B
    assert Fidelity({"a": longer, "b": count}, sums).gap() == pytest.approx(found)
    twice = HostCounts(np.full(60, 20.0), None, np.full(60, 80.0))  # A has read twice the text
    sums["own", "a"] = 2 * sums["own", "a"]
    assert Fidelity({"a": twice, "b": count}, sums).gap() == pytest.approx(found)


def test_losses_on_the_same_documents_are_compared_document_by_document():
    """Documents differ far more than two losses on one of them do, which an unpaired interval would not see."""
    rng = np.random.default_rng(0)
    hard = rng.uniform(1, 9, size=60)
    sums = {("own", "b"): hard, ("s", "a_to_b"): hard * rng.normal(1.1, 0.02, size=60)}
    fidelity = Fidelity({"b": HostCounts(np.ones(60), None, None)}, sums, seed=1)
    found = fidelity.increase("s", "a_to_b")
    draws = np.random.default_rng(1).multinomial(60, np.full(60, 1 / 60), size=1000)
    ratios = [sums["s", "a_to_b"].repeat(draw).sum() / hard.repeat(draw).sum() - 1 for draw in draws]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(ratios, (0.025, 0.975))))
    own, stitched = (fidelity.cross_entropy(*key) for key in sums)
    assert stitched.low < own.value < stitched.high and 0.08 < found.low < found.high < 0.12


def test_what_counts_predict_is_measured_on_the_same_tokens(random_models, batches):
    counted = NgramModel([batch for batch in batches()], len(random_models[0].tokenizer))
    fidelity = measure_fidelity(*random_models, 1, 2, {}, batches(), ngrams={"a": counted})
    losses = torch.cat([counted.losses(batch)["bigram"] for batch in batches()])
    assert fidelity.cross_entropy("bigram", "a").value == pytest.approx(losses.mean().item())
    assert fidelity.counts["a"].tokens.sum() == len(losses) and ("bigram", "b") not in fidelity.sums


def test_two_maps_are_compared_on_the_same_documents():
    rng = np.random.default_rng(1)
    hard = rng.gamma(1, 40, size=60)  # documents differ far more than maps do
    sums = {("own", "b"): 20 + hard, ("s", "a_to_b"): 30 + hard, ("t", "a_to_b"): 28 + hard + rng.normal(size=60)}
    fidelity = Fidelity(dict.fromkeys("ab", HostCounts(np.full(60, 10.0), None, None)), sums)
    gap = fidelity.difference("t", "s", "a_to_b")
    gaps = sums["t", "a_to_b"] - sums["s", "a_to_b"]
    assert gap.value == pytest.approx(gaps.mean() / 10)
    assert gap.high - gap.low == pytest.approx(2 * 1.96 * gaps.std() / 60**0.5 / 10, rel=0.15)
    alone = fidelity.cross_entropy("t", "a_to_b")
    assert alone.high - alone.low > 10 * (gap.high - gap.low)
    saved = fidelity.saved("t", "s", "a_to_b")
    assert saved.value == pytest.approx(-gaps.mean() / 10) and saved.low < saved.value < saved.high < 0.25
    assert fidelity.saved("s", "s", "a_to_b").value == 0


def test_a_pair_of_maps_stands_in_the_place_of_a_stitch(random_models, batches):
    stitch = random_stitch(*(model.d_model for model in random_models))
    both = {"stitch": stitch, "maps": MapPair(stitch.up, stitch.down)}
    fidelity = measure_fidelity(*random_models, 1, 2, both, batches())
    for condition in CONDITIONS:
        np.testing.assert_allclose(*(fidelity.sums[name, condition] for name in both), rtol=1e-6)


def test_the_bootstrap_interval_has_the_width_that_theory_gives():
    losses = np.random.default_rng(0).normal(3, 1, size=400)
    # Of a thousand draws, a quantile at 2.5% is known to 4% of this half width: over 25 seeds, to 1%.
    counts, sums = {"a": HostCounts(np.ones(400), None, None)}, {("own", "a"): losses}
    found = [Fidelity(counts, sums, seed=n).cross_entropy("own", "a") for n in range(25)]
    value, low, high = np.mean(found, axis=0)
    half = 1.96 * losses.std() / 20
    assert value == pytest.approx(losses.mean())
    assert value - low == pytest.approx(half, rel=0.03) and high - value == pytest.approx(half, rel=0.03)


def test_a_text_without_predictions_is_refused(random_models):
    with pytest.raises(ValueError, match="no ordinary token to measure"):
        measure_fidelity(*random_models, 1, 2, {}, [])


@pytest.mark.parametrize(("successes", "trials"), [(0, 20), (7, 20), (20, 20), (131, 163)])
def test_clopper_pearson_bounds_are_where_the_tails_hold_a_fortieth(successes, trials):
    value, low, high = clopper_pearson(successes, trials)
    assert value == successes / trials
    if successes:
        assert binom.sf(successes - 1, trials, low) == pytest.approx(0.025, rel=1e-6)
    if successes < trials:
        assert binom.cdf(successes, trials, high) == pytest.approx(0.025, rel=1e-6)
    assert (low == 0) == (successes == 0) and (high == 1) == (successes == trials)


def test_clopper_pearson_agrees_with_the_papers_table_5():
    """Table 5: 0.81 (0.74, 0.87) of 163 prompts."""
    _, low, high = clopper_pearson(132, 163)
    assert (round(low, 2), round(high, 2)) == (0.74, 0.87)
    with pytest.raises(ValueError, match="at least one trial: got 0 of 0"):
        clopper_pearson(0, 0)


def batch_of(rows, special=0):
    tokens = torch.tensor(rows)
    return TokenBatch(tokens, tokens != special, torch.zeros_like(tokens))


def test_ngrams_against_counting_by_hand():
    vocabulary = 6
    training = [batch_of([[0, 1, 2, 1, 2, 3], [0, 2, 1, 2, 0, 3]]), batch_of([[0, 4, 4, 1, 2, 2]])]
    evaluation = [batch_of([[0, 1, 2, 5, 4, 4], [0, 3, 1, 0, 2, 2]])]
    counts, successors = Counter(), defaultdict(Counter)
    for part in training:
        for row in part.tokens.tolist():
            for before, token in itertools.pairwise(row):
                if token != 0:
                    counts[token] += 1
                    successors[before][token] += 1
    total = sum(counts.values()) + vocabulary
    losses = {"unigram": [], "bigram": []}
    for row in evaluation[0].tokens.tolist():
        for before, token in itertools.pairwise(row):
            if token == 0:
                continue
            unigram = (counts[token] + 1) / total
            seen, kinds = sum(successors[before].values()), len(successors[before])
            bigram = unigram
            if seen:
                bigram = seen / (seen + kinds) * successors[before][token] / seen + kinds / (seen + kinds) * unigram
            losses["unigram"].append(-math.log(unigram))
            losses["bigram"].append(-math.log(bigram))
    found = NgramModel(training, vocabulary).losses(evaluation[0])
    for name, values in losses.items():
        assert found[name].tolist() == pytest.approx(values, rel=1e-12)


def test_there_is_nothing_to_count_without_text():
    with pytest.raises(ValueError, match="no ordinary token after another"):
        NgramModel([batch_of([[0, 0, 0]])], 4)
