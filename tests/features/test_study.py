"""The study of section 5 as a whole: what its numbers are numbers of, and that the claims find theirs."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from toy_saes import make_sae

from stitch_utils.book.figures import features as feature_plots
from stitch_utils.data.embedded.world import augmented_sentences
from stitch_utils.data.pairs import load_pair
from stitch_utils.features import attribution, structure
from stitch_utils.features import study as feature_study
from stitch_utils.features.rewriting import augmented_groups, broken_rules
from stitch_utils.features.structure import KnownWords, classify, feature_presence, recovery
from stitch_utils.features.study import FeatureStudy, FeatureStudyConfig, feature_study_config, study_features
from stitch_utils.models.harvest import evaluation_batches
from stitch_utils.models.language_model import load_models
from stitch_utils.stitching.pair import StitchedPair

LAYERS = (1, 2)
CONFIG = FeatureStudyConfig(
    sentences=40,
    versions=3,
    share=0.3,
    min_groups=2,
    threshold=7.0,
    min_fires=12,
    contexts=2,
    context_documents=6,
    null_documents=25,
    seed=3,
)
ROOT = Path(__file__).parents[2]


class Run:
    def __init__(self, path):
        self.pair = load_pair(path)
        self.models = load_models(self.pair)
        self.stitched = StitchedPair(self.pair, self.models, LAYERS, "smoke")
        self.saes = tuple(make_sae("topk", model.d_model, dtype="float32") for model in self.models)
        with torch.no_grad():  # centred, so that many features fire
            for sae, mean in zip(self.saes, (self.stitched.moments.mean_x, self.stitched.moments.mean_y)):
                sae.b_enc.copy_(-mean.float() @ sae.W_enc)
        self.study = study_features(self.stitched, self.saes, CONFIG)
        self.numbers = self.study.numbers("mine")


@pytest.fixture
def run(small_pair):
    return Run(small_pair(sizes={"eval_documents": 40}))


def test_the_numbers_are_those_of_the_classes(run):
    groups = augmented_sentences("augmentation:3", 40, 3)
    assert run.study.groups.groups == groups
    for number, direction in enumerate(("up", "down")):
        model, layer, sae = run.models[number], LAYERS[number], run.saes[number]
        presence = feature_presence(model, layer, sae, groups, threshold=7)
        assert (presence != feature_presence(model, layer, sae, groups)).any()
        classes = classify(presence, share=0.3, min_groups=2)
        result = run.study.correlations[direction]["transferred"]
        fires = np.minimum(result.firing_rate, result.twin_firing_rate) * result.n_tokens
        alive = (fires > 11.5) & np.isfinite(result.correlation)
        start = f"figure4b.mine.{direction}"
        for kind in ("structural", "semantic"):
            some = getattr(classes, kind) & alive
            assert some.sum() == run.numbers[f"{start}.{kind}.features"] > 0
            assert run.numbers[f"{start}.{kind}.mean"] == pytest.approx(result.correlation[some].mean())
            assert run.numbers[f"{start}.{kind}.spread"] == pytest.approx(result.correlation[some].std())
            assert run.numbers[f"{start}.{kind}.rate"] == pytest.approx(np.median(result.firing_rate[some]))
            means = result.sums.correlations(3)[0][1:, some].mean(1)  # documents are resampled, features are not
            for bound, expected in zip(("low", "high"), np.quantile(means, (0.025, 0.975))):
                assert run.numbers[f"{start}.{kind}.mean.{bound}"] == pytest.approx(expected)
        difference = run.numbers[f"{start}.structural.mean"] - run.numbers[f"{start}.semantic.mean"]
        assert run.numbers[f"{start}.all.mean"] == pytest.approx(difference)
        start = f"figure14.mine.{direction}"
        assert run.numbers[f"{start}.features"] == alive.sum()
        assert run.numbers[f"{start}.left_out"] == len(alive) - alive.sum() > 0
        assert run.numbers[f"{start}.transferred.median"] == pytest.approx(np.median(result.correlation[alive]))
        few = evaluation_batches(
            run.pair, dataclasses.replace(run.stitched.sizes, eval_documents=25), (run.models[0].tokenizer,) * 2
        )
        carried = attribution.carried(run.stitched, sae, to="ba"[number], seed=3)
        there = attribution.attribution_correlations(run.stitched, {direction: carried}, few)[direction]
        fitted = there["transferred"]
        fires = np.minimum(fitted.firing_rate, fitted.twin_firing_rate) * fitted.n_tokens
        some = alive & (fires > 11.5) & np.isfinite(fitted.correlation)
        assert 0 < run.numbers[f"{start}.compared"] == some.sum() <= alive.sum()
        of_null = {
            null: np.stack([there[name].correlation[some] for name in attribution.drawn(null)])
            for null in ("random", "components")
        }
        for null, values in of_null.items():
            assert run.numbers[f"{start}.{null}.mean"] == pytest.approx(np.nan_to_num(values).mean())
            better = fitted.correlation[some] > np.nan_to_num(values).max(0)
            assert run.numbers[f"{start}.better_than.{null}"] == pytest.approx(better.mean())
        random = of_null["random"][np.isfinite(of_null["random"])]
        assert run.study.band(direction, "random") == pytest.approx(np.percentile(random, (5, 95)))
        best = np.nan_to_num(np.concatenate(list(of_null.values()))).max(0)
        assert run.numbers[f"{start}.better_than.both"] == pytest.approx((fitted.correlation[some] > best).mean())


def test_words_are_recovered_from_all_groups_and_from_those_that_keep_the_structure(random_models, monkeypatch):
    groups = augmented_groups(load_pair("tiny"), 40, 3, seed=3)
    whole = [not any(broken_rules(group[0], version) for version in group[1:]) for group in groups.groups]
    assert 5 < sum(whole) < 40
    generator = np.random.default_rng(0)
    presence = {way: generator.random((40, 4, 64)) < generator.uniform(0.5, 1, 64) for way in ("up", "down")}
    known, options = KnownWords(generator.random(64), np.full(64, 20)), {"share": 0.3, "min_groups": 2}
    stitched = StitchedPair(load_pair("tiny"), random_models, LAYERS, "smoke")
    of_model = dict(zip(random_models, presence.values()))
    monkeypatch.setattr(structure, "feature_presence", lambda model, *_, threshold: of_model[model])
    monkeypatch.setattr(structure, "known_words", lambda *_: known)
    monkeypatch.setattr(attribution, "carried", lambda _, sae, **__: attribution.Twins(sae, {"transferred": sae}))
    monkeypatch.setattr(attribution, "attribution_correlations", lambda _, twins, *__: {way: {} for way in twins})
    monkeypatch.setattr(feature_study, "top_contexts", lambda *_, **__: {})
    monkeypatch.setattr(FeatureStudy, "_figure14", lambda *_: {})
    monkeypatch.setattr(FeatureStudy, "_figure4b", lambda *_: {})
    saes = (make_sae("topk"),) * 2
    few = dataclasses.replace(CONFIG, min_fires=21)  # than any word is known to make a feature fire
    assert study_features(stitched, saes, few).recovered == {"up": [], "down": []}
    numbers = study_features(stitched, saes, CONFIG).numbers("mine")
    assert (numbers["recovery.mine.groups"], numbers["recovery.mine.kept_groups"]) == (40, sum(whole))
    for way, name in itertools.product(("up", "down"), ("k", "kept")):
        some = presence[way] if name == "k" else np.stack([one for one, good in zip(presence[way], whole) if good])
        expected, start = recovery(some, known, seed=3, min_fires=12, **options), f"recovery.mine.{way}"
        assert [one.k for one in expected] == [1, 2, 3]
        assert numbers[f"{start}.{'features' if name == 'k' else 'kept_features'}"] == 64
        for one, measure in itertools.product(expected, ("auc", "balanced", "accuracy", "gain.more")):
            assert one.scores[measure].numbers(f"{start}.{name}_{one.k}.{measure}").items() <= numbers.items()
    assert numbers["recovery.mine.up.k_3.auc"] != numbers["recovery.mine.up.kept_3.auc"]


def test_contexts_are_of_the_model_that_they_are_named_after(run):
    every = evaluation_batches(run.pair, run.pair.scale("smoke"), (run.models[0].tokenizer,) * 2)
    batches = [batch.a for batch in every if batch.a.documents.min() < CONFIG.context_documents]
    for direction, (source, target) in {"up": "ab", "down": "ba"}.items():
        assert set(run.study.contexts[direction]) == {source, target}
        side = "ab".index(source)
        largest = max(
            run.saes[side].encode(run.models[side].residuals(b.tokens, [LAYERS[side]])[LAYERS[side]])[b.mask].max()
            for b in batches
        )
        shown = [text for texts in run.study.contexts[direction][source].values() for text in texts]
        assert max(a for text in shown for _, a in text) == pytest.approx(largest.item(), rel=1e-4)


def test_every_number_that_a_claim_needs_is_there(run):
    claims = yaml.safe_load((ROOT / "book" / "published.yml").read_text(encoding="utf-8"))["claims"]
    ours = [claim for claim in claims if claim["chapter"] == "feature_transfer"]
    needed = {id.replace("{pair}", "mine") for claim in ours for id in claim["needs"].values()}
    # three versions and a random model: the number after five, what needs features of both kinds, and what needs some
    # that speak for the next token may be missing; and its SAE is not that of Table 8
    absent = ("recovery.", "figure4b.mine.up.matched", "figure14.mine.up.lost", "table8.")
    assert {id for id in needed if not id.startswith(absent)} <= set(run.numbers)
    assert all(isinstance(value, int | float) and np.isfinite(value) for value in run.numbers.values())


def test_stitches_across_which_nothing_fires(run):
    """They carry nothing, so a feature need only correlate to be better."""
    silent = {direction: dict(twins) for direction, twins in run.study.beside_nulls.items()}
    for twins in silent.values():
        for name in attribution.drawn("random"):
            sums = twins[name].sums._replace(twin=0 * twins[name].sums.twin)
            twins[name] = attribution.AttributionCorrelation.of(sums)
            assert np.isnan(twins[name].correlation).all()
    study = dataclasses.replace(run.study, beside_nulls=silent)
    numbers = study.numbers("mine")
    assert set(numbers) == set(run.numbers) and numbers["figure14.mine.up.random.mean"] == 0
    few = study.beside_nulls["up"]["transferred"].correlation[study.compared("up")]
    positive = (few > 0).mean()
    assert numbers["figure14.mine.up.better_than.random"] == pytest.approx(positive)
    band = study.band("up", "random")
    assert np.isnan(band).all()
    feature_plots.class_densities(
        {"up": {"structural": np.array([0.5, 0.6])}}, bands={"up": {"random": band}}
    ).canvas.draw()


def test_features_of_the_published_sae_stand_beside_their_published_classes(run, monkeypatch):
    """A small SAE, some of whose features have published classes, under the name of the one of Table 8."""
    assert run.study.named == {} and not any(id.startswith("table8.") for id in run.numbers)
    pythia, classes = load_pair("pythia"), run.study.classes["up"]
    structural, semantic = (int(np.flatnonzero(some)[0]) for some in (classes.structural, classes.semantic))
    dead = int(np.flatnonzero(classes.dead)[0])
    named = {structural: "structural", semantic: "structural", dead: "semantic"}
    monkeypatch.setattr(feature_study, "TABLE_8", named)
    sources = {"model": pythia.a.model, "layer": pythia.a.layer}
    theirs = dataclasses.replace(run.pair, a=dataclasses.replace(run.pair.a, **sources), saes=pythia.saes)
    assert feature_study.named_features(theirs, run.saes[0]) == named
    small = make_sae("topk")
    small.cfg.d_sae = max(named)  # one too few
    for pair, sae in ((run.pair, run.saes[0]), (dataclasses.replace(theirs, saes={}), run.saes[0]), (theirs, small)):
        assert feature_study.named_features(pair, sae) == {}
    study = dataclasses.replace(run.study, named=named)
    assert study.table8()["class here"].tolist() == ["structural", "semantic", "dead"]
    numbers = study.numbers("mine")
    assert (numbers["table8.mine.named"], numbers["table8.mine.agree"]) == (3, 1)


def test_the_figures_show_what_they_are_given():
    values = {"structural": np.array([0.52, 0.55, 0.95]), "semantic": np.array([-0.45, 0.15])}
    figure = feature_plots.class_densities(
        {"up": values}, bands={"up": {"random": (-0.02, 0.03), "other": (-0.1, 0.1)}}
    )
    below = figure.axes[1]
    assert [text.get_text() for text in below.get_legend().get_texts()] == [
        "structural (3)",
        "semantic (2)",
        "random",
        "other",
    ]
    shares = [patch for patch in figure.axes[0].patches if patch.get_height() > 0]
    at = {(round(patch.get_x(), 2), round(patch.get_height(), 2)) for patch in shares}
    assert {(-0.5, 1.0), (0.5, 1.0), (0.1, 1.0)} <= at
    numbers = {(round(text.get_position()[0], 2), text.get_text()) for text in figure.axes[0].texts}
    assert numbers == {(-0.45, "1"), (0.15, "1"), (0.55, "2"), (0.95, "1")}
    figure = feature_plots.recovery_by_versions({"up": {"AUC": [(0.6, 0.5, 0.7), (0.8, 0.7, 0.9)]}})
    line = figure.axes[0].containers[0][0]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2], [0.6, 0.8])
    four = {title: [(value, value, value)] for title, value in zip("abcd", (0.6, 0.7, 0.8, 0.9))}
    lines = [container[0] for container in feature_plots.recovery_by_versions({"up": four}).axes[0].containers]
    assert [line.get_linestyle() for line in lines] == ["-", "-", "--", "--"]
    assert [line.get_color() for line in lines[:2]] == [line.get_color() for line in lines[2:]]
    assert [line.get_ydata()[0] for line in lines] == [0.6, 0.7, 0.8, 0.9]


def test_sizes():
    pair = load_pair("tiny")
    assert feature_study_config(pair, "default", seed=2, share=0.7) == FeatureStudyConfig(400, share=0.7, seed=2)
    assert feature_study_config(pair, "smoke").sentences == 40
    assert feature_study_config(pair, "smoke", min_groups=None, min_fires=3).min_groups == 2
    assert feature_study_config(pair, "smoke", min_groups=4, threshold=0.5).min_groups == 4
    for wrong in ({"share": 0.0}, {"share": 1.1}, {"threshold": -0.1}):
        with pytest.raises(ValueError, match=r"expected a share in \(0, 1\] and threshold >= 0: got"):
            dataclasses.replace(CONFIG, **wrong)
    for name in ("sentences", "versions", "min_groups", "min_fires", "contexts", "context_documents", "null_documents"):
        with pytest.raises(ValueError, match=f"{name} must be 1 or more: got 0"):
            dataclasses.replace(CONFIG, **{name: 0})
    assert feature_study_config(load_pair("gpt2"), "smoke").sentences == 4
    with pytest.raises(ValueError, match="unknown scale 'huge'"):
        feature_study_config(pair, "huge")
