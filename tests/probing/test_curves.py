"""Curves of probes against a loop over texts and latents, their averages and intervals, and the claims made of them."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sae_lens import SAE
from toy_probes import random_stitch, residual_of, stitched_by
from toy_saes import make_sae

from stitch_utils.book.claims import verdicts
from stitch_utils.book.results import write_results
from stitch_utils.data.embedded.world import documents
from stitch_utils.probing.curves import COMPARED, DENSE, SPARSE, ProbeCurves, _resample, probe_curves
from stitch_utils.probing.probes import choose_features, fit_probe
from stitch_utils.probing.tasks import ProbingTask
from stitch_utils.stitching.stitch import Stitch

CONTEXT = 20  # of the small pair
LAYERS = (1, 2)


@pytest.fixture(scope="module")
def texts():
    found = [document.text for document in documents("probing test", stop=60, language="en")]
    return [text[: 30 + 9 * index % 170] for index, text in enumerate(found)]


def make_task(name, texts, dataset="set"):
    """Whether a text is long; some texts belong to several tasks."""
    labels = [index % 2 == 0 for index in range(len(texts))]
    half = len(texts) // 2
    return ProbingTask(
        name, dataset, tuple(texts[:half]), tuple(labels[:half]), tuple(texts[half:]), tuple(labels[half:])
    )


@pytest.fixture(scope="module")
def tasks(texts):
    groups = {"one": texts[:24], "two": texts[8:32], "three": texts[32:56]}
    return [make_task(name, some, "other" if name == "three" else "set") for name, some in groups.items()]


def answers(curves, curve, k, index):
    """What the probe said, from whether it was right."""
    right = curves.correct[curve, k][index]
    return right == np.array(curves.tasks[index].test_labels)


def test_a_model_that_is_stitched_to_itself_loses_nothing(pair, random_models, tasks):
    model, sae = random_models[0], make_sae("topk", random_models[0].d_model, dtype="float32")
    identity = Stitch.identity(model.d_model)
    curves = probe_curves(
        stitched_by(identity, pair, (model, model), (1, 1)), (sae, sae), tasks, ks=(1, 5), null=identity
    )
    for k in (1, 5):
        for index in range(3):
            for curve in sorted({*SPARSE} - {"original", "random"}):
                np.testing.assert_array_equal(curves.correct[curve, k][index], curves.correct["original", k][index])
    for curve in DENSE:
        assert curves.accuracy(curve) == curves.accuracy("dense.original")
    assert curves.difference("native", "transferred") == (0, 0, 0)


@pytest.mark.parametrize("absolute", [False, True])
def test_every_curve_is_what_its_name_says(pair, random_models, tasks, absolute):
    """Text by text and latent by latent, with the SAE of A behind each stitch instead of a transferred one."""
    (model_a, model_b), (layer_a, layer_b) = random_models, LAYERS
    sae_a, sae_b = (make_sae("jumprelu", model.d_model, dtype="float32") for model in random_models)
    stitch = random_stitch(model_a.d_model, model_b.d_model, scale=1 / 4).to(torch.float32)
    null = dataclasses.replace(stitch, P_down=-stitch.P_down)
    stitched = stitched_by(stitch, pair, random_models, LAYERS)
    curves = probe_curves(stitched, (sae_a, sae_b), tasks, ks=(3,), null=null, absolute=absolute)
    assert curves.datasets == ("set", "other")
    for index, task in enumerate(curves.tasks):
        labels, split = np.array(task.train_labels), len(task.train_texts)
        on = {"a": [], "b": [], "down": [], "null": [], "x": [], "y": []}
        for text in (*task.train_texts, *task.test_texts):
            x, y = (residual_of(*of, text, CONTEXT) for of in ((model_a, layer_a), (model_b, layer_b)))
            streams = {"a": sae_a.encode(x), "b": sae_b.encode(y), "x": x, "y": y}
            streams |= {name: sae_a.encode(through.down(y)) for name, through in (("down", stitch), ("null", null))}
            for name, values in streams.items():
                on[name].append(values.detach().mean(0).numpy())
        on = {name: np.array(values) for name, values in on.items()}
        of_a = choose_features(on["a"][:split], labels, 3, absolute=absolute)
        of_b = choose_features(on["b"][:split], labels, 3, absolute=absolute)
        probe_a, dense_a = fit_probe(on["a"][:split, of_a], labels), fit_probe(on["x"][:split], labels)
        down, apart = (np.array([through.down(torch.tensor(y)).numpy() for y in on["y"]]) for through in (stitch, null))
        expected = {
            ("original", 3): probe_a.predict(on["a"][split:, of_a]),
            ("transferred", 3): probe_a.predict(on["down"][split:, of_a]),
            ("retrained", 3): fit_probe(on["down"][:split, of_a], labels).predict(on["down"][split:, of_a]),
            ("components", 3): probe_a.predict(on["null"][split:, of_a]),
            ("components_retrained", 3): fit_probe(on["null"][:split, of_a], labels).predict(on["null"][split:, of_a]),
            ("native", 3): fit_probe(on["b"][:split, of_b], labels).predict(on["b"][split:, of_b]),
            ("dense.original", None): dense_a.predict(on["x"][split:]),
            ("dense.native", None): fit_probe(on["y"][:split], labels).predict(on["y"][split:]),
            ("dense.transferred", None): dense_a.predict(down[split:]),
            ("dense.components", None): dense_a.predict(apart[split:]),
        }
        for curve, said in expected.items():
            np.testing.assert_array_equal(answers(curves, *curve, index)[0], said, err_msg=str(curve))
        assert curves.correct["random", 3][index].shape == (3, len(task.test_texts))


def test_accuracies_are_means_over_tasks_then_sets_then_ks(pair, random_models, tasks):
    saes = tuple(make_sae("topk", model.d_model, dtype="float32") for model in random_models)
    stitch = random_stitch(*(model.d_model for model in random_models), scale=1 / 4).to(torch.float32)
    stitched = stitched_by(stitch, pair, random_models, LAYERS)
    curves, again = (probe_curves(stitched, saes, tasks, ks=(1, 4), null=stitch) for _ in range(2))
    for curve in SPARSE:
        by_k = []
        for k in (1, 4):
            one, two, three = (right.mean() for right in curves.correct[curve, k])
            by_k.append(((one + two) / 2 + three) / 2)
            estimate = curves.accuracy(curve, k)
            assert estimate.value == pytest.approx(by_k[-1]) and estimate.low <= estimate.value <= estimate.high
            assert curves.accuracy(curve, k, datasets=["other"]).value == pytest.approx(three)
            assert again.accuracy(curve, k) == estimate
        assert curves.accuracy(curve).value == pytest.approx(np.mean(by_k))
    gap = curves.difference("native", "random", 4)
    assert gap.value == pytest.approx(curves.accuracy("native", 4).value - curves.accuracy("random", 4).value)
    for k, dataset in ((1, "none"), (2, "other")):
        with pytest.raises(KeyError, match=f"{dataset if k == 1 else k}"):
            curves.accuracy("native", k, datasets=[dataset])


VALUES = {
    "transferred": (0.8, 0.7, 0.5),
    "random": (0.6, 0.6, 0.6),
    "native": (0.9, 0.9, 0.9),
    "retrained": (0.88, 0.95, 0.8),
}


def made_up(values, spreads=(), ks=(1, 2), names=()):
    """Curves of such accuracies in as many data sets, .5 where none are given; `spreads`, by curve and data set, are
    what resamples add."""
    names = names or [f"set {index}" for index in range(len(next(iter(values.values()))))]
    tasks = tuple(make_task(name, ["! day", "? day"] * 20, name) for name in names)

    def drawn(curve, name):
        value = values.get(curve, (0.5,) * len(names))[names.index(name)]
        return np.array([value, *(value + np.array(dict(spreads).get((curve, name), (0, 0))))])

    keys = [(curve, k) for curve in SPARSE for k in ks] + [(curve, None) for curve in (*DENSE, "one_token")]
    return ProbeCurves(tasks, ks, {}, {key: {name: drawn(key[0], name) for name in names} for key in keys})


def test_data_sets_are_counted_in_which_carried_probes_do_well():
    """Three sets: the reused probe is better than random beyond doubt in the first, perhaps in the second, and worse in
    the third."""
    values = VALUES | {"one_token": (0.95, 0.9, 0.85)}
    numbers = made_up(values, {("transferred", "set 1"): (-0.15, 0.15)}).numbers("mine")
    assert numbers["figure9.mine.sets.there"] == 1
    assert numbers["figure9.mine.sets.reused_beat_random"] == pytest.approx(1 / 3)
    assert numbers["figure9.mine.sets.native_beats_token"] == pytest.approx(1 / 3)


def test_differences_are_taken_on_the_same_texts():
    """What two curves gain or lose together in a resample is nothing between them."""
    values = VALUES | {"one_token": (0.8, 0.8, 0.8), "dense.transferred": (0.7, 0.8, 0.9)}
    spreads = {(curve, f"set {index}"): (-0.1, 0.1) for curve in (*SPARSE, *DENSE, "one_token") for index in range(3)}
    curves = made_up(values, spreads)
    numbers = curves.numbers("mine")
    for first, others in COMPARED.items():
        for second in others:
            expected = np.mean(values.get(first, 0.5)) - np.mean(values.get(second, 0.5))
            for start in ("mean.", "k_2.") if first in SPARSE else ("",):
                id = f"figure3a.mine.{start}{first}.less_{second.removeprefix('dense.')}"
                for end in ("", ".low", ".high"):
                    assert numbers[id + end] == pytest.approx(expected), id
    assert curves.accuracy("random", 2).low < curves.accuracy("random", 2).value


def test_what_code_and_language_lose_is_compared_with_the_other_sets():
    names = ("code", "topic", "language", "tense")
    values = {"native": (0.9, 0.9, 0.8, 0.8), "transferred": (0.5, 0.8, 0.75, 0.6), "retrained": (0.88, 0.9, 0.7, 0.8)}
    numbers = made_up(values, {("transferred", "topic"): (-0.1, 0.1)}, names=names).numbers("mine")

    def found(id):
        return [numbers[f"figure9.mine.gap.{id}{end}"] for end in ("", ".low", ".high")]

    assert found("code.transferred.less_other") == pytest.approx([0.25, 0.2025, 0.2975])
    assert found("language.transferred.less_other") == pytest.approx([-0.1, -0.1475, -0.0525])
    assert found("code.gained") == pytest.approx([0.38] * 3) and found("language.gained") == pytest.approx([-0.05] * 3)
    assert found("other.gained") == pytest.approx([0.15, 0.1025, 0.1975])


def at(id, value, *ends):
    """A number of this pair, with an interval that ends there, or with none to speak of."""
    return {f"{id}{end}": number for end, number in zip(("", ".low", ".high"), (value, *(ends or (value, value))))}


REUSED, BEFORE = "figure3a.tiny.k_{}.transferred.less_random", "figure9.tiny.gap.{}.transferred"


@pytest.mark.parametrize(
    ("id", "change", "verdict"),
    [
        ("probes-beat-random", {}, "holds"),
        ("probes-beat-random", at("figure3a.tiny.mean.transferred.less_random", 0.1, -0.1, 0.3), "inconclusive"),
        ("probes-beat-random", at("figure3a.tiny.mean.transferred.less_components", -0.1), "does not hold"),
        ("probes-beat-random-at-every-k", {}, "holds"),
        ("probes-beat-random-at-every-k", at(REUSED.format(20), 0.1, -0.01, 0.2), "inconclusive"),
        ("probes-beat-random-at-every-k", at(REUSED.format(50), -0.01), "does not hold"),
        ("retrained-probes-recover", {}, "holds"),
        ("retrained-probes-recover", at("figure3a.tiny.mean.retrained.less_native", -0.02, -0.04, 0), "inconclusive"),
        ("retrained-probes-recover", at("figure3a.tiny.mean.retrained.less_random", 0), "does not hold"),
        (
            "retrained-probes-recover",
            at("figure3a.tiny.mean.retrained.less_components_retrained", 0.01, -0.01, 0.03),
            "inconclusive",
        ),
        ("retrained-probes-recover-at-every-k", at("figure3a.tiny.k_5.retrained.less_native", -0.04), "does not hold"),
        ("dense-probes-transfer", {}, "holds"),
        ("dense-probes-transfer", at("figure3a.tiny.dense.transferred.less_native", -0.06), "partly"),
        ("dense-probes-transfer", at("figure3a.tiny.dense.transferred.less_components", 0), "does not hold"),
        ("probes-tell-more-than-a-token", {}, "holds"),
        ("probes-tell-more-than-a-token", {"figure9.tiny.sets.native_beats_token": 0.5}, "partly"),
        ("probes-tell-more-than-a-token", at("figure3a.tiny.mean.native.less_one_token", 0, -0.1, 0.1), "inconclusive"),
        ("probes-tell-more-than-a-token", at("figure3a.tiny.mean.native.less_one_token", -0.1), "does not hold"),
        ("reused-probes-beat-random-mostly", {}, "holds"),
        ("reused-probes-beat-random-mostly", {"figure9.tiny.sets.reused_beat_random": 0.5}, "does not hold"),
        ("code-and-language-are-hard", {}, "holds"),
        ("code-and-language-are-hard", at(f"{BEFORE.format('code')}.less_other", 0.1, -0.1, 0.2), "inconclusive"),
        ("code-and-language-are-hard", at(f"{BEFORE.format('language')}.less_other", -0.1), "does not hold"),
        ("retraining-fixes-code-and-language", {}, "holds"),
        ("retraining-fixes-code-and-language", at("figure9.tiny.gap.code.retrained", 0.06), "does not hold"),
        ("retraining-fixes-code-and-language", at("figure9.tiny.gap.language.gained", 0), "does not hold"),
        (
            "retraining-fixes-code-and-language",
            at("figure9.tiny.gap.language.gained", 0) | at(BEFORE.format("language"), 0.04),
            "holds",
        ),
        (
            "retraining-fixes-code-and-language",
            at(BEFORE.format("language"), 0.04) | at(BEFORE.format("code"), 0.05),
            "not testable",
        ),
    ],
)
def test_claims_are_decided_by_what_is_written(project, id, change, verdict):
    shutil.copy(Path(__file__).parents[2] / "book" / "published.yml", project / "book" / "published.yml")
    values = VALUES | {"transferred": (0.78, 0.72, 0.65), "retrained": (0.89, 0.9, 0.89)}
    values |= {"dense.transferred": (0.7, 0.7, 0.7), "dense.native": (0.72, 0.72, 0.7)}
    curves = made_up(values, ks=(1, 2, 5, 10, 20, 50), names=("other", "code", "language"))
    numbers = curves.numbers("tiny")
    assert set(change) <= set(numbers)
    write_results("tiny", "probing", numbers | change)
    (found,) = (found for found in verdicts("tiny") if found.id == id)
    assert found.verdict == verdict


def test_data_sets_that_b_does_not_show_are_not_counted():
    """In the second set neither of B's probes is beyond doubt above chance, in the third the dense one is."""
    values = VALUES | {"native": (0.9, 0.52, 0.48), "dense.native": (0.4, 0.5, 0.56), "retrained": (0.7, 0.52, 0.48)}
    spreads = {("native", "set 1"): (-0.04, 0.04), ("dense.native", "set 2"): (-0.05, 0.05)}
    curves = made_up(values, spreads)
    assert curves.there == ("set 0", "set 2")
    numbers = curves.numbers("mine")
    assert numbers["figure9.mine.sets.there"] == pytest.approx(2 / 3)
    assert numbers["figure9.mine.sets.reused_beat_random"] == 0.5
    assert numbers["figure3a.mine.mean.native"] == pytest.approx(np.mean(values["native"])), "the averages are over all"


def test_no_shares_of_no_data_sets():
    numbers = made_up({"native": (0.5,)}).numbers("mine")
    assert {id for id in numbers if ".sets." in id} == {"figure9.mine.sets.there"}


def test_a_single_token_tells_some_concepts(pair, random_models, tasks):
    model, sae = random_models[0], make_sae("topk", random_models[0].d_model, dtype="float32")
    marked = make_task("marked", [f"{'?' if index % 2 else '!'} day {index}" for index in range(40)])
    # Present in the texts that are not meant, so its absence must count.
    negative = ProbingTask(
        "negative",
        "set 2",
        marked.train_texts,
        tuple(not label for label in marked.train_labels),
        marked.test_texts,
        tuple(not label for label in marked.test_labels),
    )
    stitched = stitched_by(Stitch.identity(model.d_model), pair, (model, model), (1, 1))
    found = probe_curves(stitched, (sae, sae), [marked, negative, tasks[2]], ks=(1,), null=stitched.stitch)
    accuracies = [found.accuracy("one_token", datasets=[name]).value for name in ("set", "set 2", "other")]
    assert accuracies[:2] == [1, 1] and accuracies[2] < 1


def test_the_bootstrap_has_the_width_that_theory_gives():
    rng = np.random.default_rng(0)
    correct = rng.random((1, 400)) < 0.8
    draws = _resample([correct], [range(400)], "seed")
    assert draws[0] == correct.mean()
    assert draws[1:].std() == pytest.approx((correct.mean() * (1 - correct.mean()) / 400) ** 0.5, rel=0.1)
    twice = _resample([correct, correct], [range(400), range(400)], "seed")
    assert twice[1:].std() == pytest.approx(draws[1:].std(), rel=0.1), "the same texts say nothing new"
    other = _resample([correct, correct], [range(400), range(400, 800)], "seed")
    assert other[1:].std() == pytest.approx(draws[1:].std() / 2**0.5, rel=0.1)


def test_the_bootstrap_draws_runs_too():
    runs = np.stack([np.arange(2000) % 10 < share for share in (2, 5, 8)])
    draws = _resample([runs], [range(2000)], "seed")
    assert draws[0] == pytest.approx(0.5)
    assert draws[1:].std() == pytest.approx((0.06 / 3) ** 0.5, rel=0.1)


def test_more_features_than_there_are(pair, random_models, tasks):
    model, sae = random_models[0], make_sae("topk", random_models[0].d_model, dtype="float32")
    assert isinstance(sae, SAE)
    stitched = stitched_by(Stitch.identity(model.d_model), pair, (model, model), (1, 1))
    with pytest.raises(ValueError, match="k must lie between 1 and the 64 features: got 65"):
        probe_curves(stitched, (sae, sae), tasks, ks=(65,), null=stitched.stitch)
    with pytest.raises(ValueError, match="expected tasks and ks: got 0 and 1"):
        probe_curves(stitched, (sae, sae), [], ks=(1,), null=stitched.stitch)
