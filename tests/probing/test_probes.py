"""Means of encoders against a loop over texts, Eq. 7 against its sums, probes against scikit-learn and the stitch."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from toy_probes import as_file, fitted_probe, random_stitch, rebuilt, residual_of

from stitch_utils.data.embedded.world import documents
from stitch_utils.probing.probes import (
    LinearProbe,
    choose_features,
    fit_probe,
    judge_probe,
    mean_activations,
    read_probe,
    save_probe,
    transfer_probe,
)
from stitch_utils.stitching.fit import fit_exact
from stitch_utils.stitching.nulls import component_stitches
from stitch_utils.stitching.pair import StitchedPair
from stitch_utils.utils.stats import resampled_counts

CONTEXT = 24
D_A, D_B = 6, 9
PROBE = {"coef_": np.ones((1, 3)), "intercept_": np.array([0.25])}
SCALER = PROBE | {"mean_": np.zeros(3), "scale_": np.ones(3)}


@pytest.fixture(scope="module")
def texts():
    found = [document.text for document in documents("probing test", stop=60, language="en")]
    return [text[: 30 + 9 * index % 170] for index, text in enumerate(found)]


def test_means_are_those_of_a_loop_over_texts(random_models, texts):
    model = random_models[0]
    matrix = torch.randn(model.d_model, 7, generator=torch.Generator().manual_seed(0))
    texts = [*texts, f"{texts[0]}{model.tokenizer.eos_token}{texts[1]}"]  # a special token counts nowhere
    encoders = {"itself": lambda y: y, "relu": lambda y: (y @ matrix).relu()}
    found = mean_activations(model, 1, texts, encoders, context=CONTEXT, batch_size=8)
    residuals = [residual_of(model, 1, text, CONTEXT) for text in texts]
    assert max(map(len, residuals)) == CONTEXT - 1 and len(residuals[-1]) < CONTEXT - 1
    for name, encoder in encoders.items():
        expected = torch.stack([encoder(residual).mean(0) for residual in residuals]).numpy()
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], expected, rtol=1e-3, atol=1e-4)


def test_each_text_is_read_once_for_all_encoders(random_models, texts, monkeypatch):
    model, rows = random_models[0], []
    read = model.residuals
    monkeypatch.setattr(model, "residuals", lambda tokens, layers: rows.append(len(tokens)) or read(tokens, layers))
    mean_activations(model, 1, texts, {name: lambda y: y for name in "abc"}, context=CONTEXT, batch_size=8)
    assert sum(rows) == len(texts)


def test_a_text_without_an_ordinary_token(random_models):
    with pytest.raises(ValueError, match=r"the text '<\|endoftext\|>' has no ordinary token"):
        mean_activations(random_models[0], 1, ["Some words.", "<|endoftext|>"], {"itself": lambda y: y})


@pytest.mark.parametrize("absolute", [False, True])
def test_features_are_ranked_by_the_difference_of_class_means(absolute):
    rng = np.random.default_rng(0)
    activations, labels = rng.exponential(size=(40, 12)).astype(np.float32), rng.random(40) < 0.4
    scores = []
    for feature in range(12):
        positive = [activations[row, feature] for row in range(40) if labels[row]]
        negative = [activations[row, feature] for row in range(40) if not labels[row]]
        score = sum(positive) / len(positive) - sum(negative) / len(negative)
        scores.append(abs(score) if absolute else score)
    expected = sorted(range(12), key=lambda feature: -scores[feature])
    assert choose_features(activations, labels, 12, absolute=absolute).tolist() == expected
    assert choose_features(activations, labels, 5, absolute=absolute).tolist() == expected[:5]
    assert min(scores) < 0 or absolute, "the test would not tell the two rules apart"


def test_choices_that_cannot_be_made():
    activations, labels = np.zeros((4, 3), np.float32), np.array([True, False, True, False])
    assert choose_features(activations, labels, 2).tolist() == [0, 1]
    with pytest.raises(ValueError, match="k must lie between 1 and the 3 features: got 4"):
        choose_features(activations, labels, 4)
    for fit in (lambda y: choose_features(activations, y, 1), lambda y: fit_probe(activations, y)):
        with pytest.raises(ValueError, match="all 4 texts are of one class: expected two"):
            fit(np.ones(4, bool))


def test_a_probe_is_scikit_learns_regression_on_standardised_activations():
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(80, 5)) * [1, 10, 0.01, 3, 0] + 7).astype(np.float32)
    labels = x[:, 0] + 30 * x[:, 2] + rng.normal(size=80) > np.median(x[:, 0]) + 210
    probe = fit_probe(x, labels)
    reference = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x.astype(np.float64), labels)
    (scores,) = (probe.coef @ x.astype(np.float64).T) + probe.intercept
    np.testing.assert_allclose(scores, reference.decision_function(x.astype(np.float64)), rtol=1e-6, atol=1e-8)
    assert (probe.predict(x) == (scores > 0)).all() and 0.6 < (probe.predict(x) == labels).mean() < 1
    np.testing.assert_allclose(probe.scores(x)[:, 0], scores, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("labels", [None, ("no", "yes"), ("en", "fr", "de")])
def test_a_probe_predicts_as_scikit_learn_does(labels):
    fitted = fitted_probe(len(labels or (0, 1)), D_A, labels)
    probe = LinearProbe(fitted.coef_, fitted.intercept_, labels and fitted.classes_)
    x = np.random.default_rng(0).normal(size=(200, D_A))
    found, expected = probe.predict(x), fitted.predict(x)
    assert (found == expected).all() and len(set(found)) == len(labels or (0, 1))
    assert found.dtype == (bool if labels is None else expected.dtype)
    numbered = LinearProbe(np.eye(3), np.zeros(3)).predict(np.eye(3)[[2, 0, 1]])
    assert numbered.tolist() == [2, 0, 1]


def test_a_carried_probe_says_of_y_what_it_said_of_the_stitched_stream():
    stitch, rng = random_stitch(D_A, D_B, scale=1 / 4), np.random.default_rng(2)
    probe = LinearProbe(rng.normal(size=(1, D_A)), np.array([0.3]))
    y = torch.randn(50, D_B, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    carried = transfer_probe(probe, stitch)
    expected = stitch.down(y).numpy() @ probe.coef[0] + 0.3
    np.testing.assert_allclose(carried.scores(y.numpy())[:, 0], expected, rtol=1e-10, atol=1e-10)
    assert 0 < probe.predict(stitch.down(y).numpy()).mean() < 1


def test_probes_that_cannot_be_carried():
    stitch, probe = random_stitch(D_A, D_B), LinearProbe(np.ones((2, D_A)), np.zeros(2))
    with pytest.raises(ValueError, match="reads 6 dimensions: expected 9, the width of model b"):
        transfer_probe(probe, stitch, to="a")
    with pytest.raises(ValueError, match="reads 9 dimensions: expected 6, the width of model a"):
        transfer_probe(transfer_probe(probe, stitch), stitch)
    with pytest.raises(ValueError, match="to='c': expected 'a' or 'b'"):
        transfer_probe(probe, stitch, to="c")


@pytest.mark.parametrize("to", ["a", "b"])
@pytest.mark.parametrize("labels", [("no", "yes"), ("en", "fr", "de")])
def test_scikit_learn_says_of_the_other_stream_what_it_said_of_the_stitched_one(tmp_path, to, labels):
    stitch = random_stitch(D_A, D_B)
    home, away, d = (D_A, D_B, stitch.down) if to == "b" else (D_B, D_A, stitch.up)
    original = fitted_probe(len(labels), home, labels)
    probe = read_probe(as_file(original, tmp_path / "p.npz"))
    save_probe(transfer_probe(probe, stitch, to=to), tmp_path / "q.npz")
    carried = rebuilt(tmp_path / "q.npz")
    y = torch.randn(200, away, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    stitched = d(y).numpy()
    assert (carried.predict(y.numpy()) == original.predict(stitched)).all()
    assert set(carried.predict(y.numpy())) == set(labels)
    np.testing.assert_allclose(
        carried.predict_proba(y.numpy()), original.predict_proba(stitched), rtol=1e-8, atol=1e-12
    )


def test_a_probe_in_safetensors_and_of_one_dimension(tmp_path):
    save_file(
        {"coef_": torch.ones(4, dtype=torch.bfloat16), "intercept_": torch.tensor(0.5)}, tmp_path / "p.safetensors"
    )
    probe = read_probe(tmp_path / "p.safetensors")
    assert (probe.coef.shape, probe.intercept.tolist(), probe.classes.tolist()) == ((1, 4), [0.5], [0, 1])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"weight": np.ones(3)}, "lacks coef_ and intercept_: expected coef_ and intercept_, it holds weight"),
        ({"coef_": np.ones((2, 3)), "intercept_": np.ones(3)}, r"shape \(2, 3\) and intercept_ \(3,\): expected"),
        ({"coef_": np.full((1, 3), np.inf), "intercept_": np.ones(1)}, "coef_ of .* not finite"),
        ({"coef_": np.zeros((1, 3)), "intercept_": np.ones(1)}, "coef_ of .* is zero"),
        ({"coef_": np.ones((1, 3)), "intercept_": np.ones(1), "classes_": np.arange(3)}, r"classes_ .* \(3,\): expec"),
        (
            {"coef_": np.ones((1, 3))},
            r"lacks intercept_: expected .* it holds coef_ \(write it with np\.savez\(file, coef_=",
        ),
        ({"coef_": np.ones((3, 1)), "intercept_": np.ones(1)}, r"shape \(3, 1\) and intercept_ \(1,\): expected"),
        ({"coef_": np.ones((3, 2)), "intercept_": np.ones(1)}, r"shape \(3, 2\) and intercept_ \(1,\): expected"),
        ({"coef_": np.ones((2, 2, 3)), "intercept_": np.ones(2)}, r"shape \(2, 2, 3\) and"),
        (
            {"coef_": np.ones((1, 3)), "intercept_": np.ones(1), "classes_": np.array(["n", "n"])},
            r"a label twice \(n, n\)",
        ),
        ({"coef_": np.array([["1", "2"]]), "intercept_": np.ones(1)}, "coef_ of .* is of type <U1: expected numbers"),
        (
            SCALER,
            r"p\.npz holds mean_ and scale_ of what stands before the probe: .* coef_ / scale_ and intercept_ - coef",
        ),
        (PROBE | {"components_": np.eye(3)}, "holds components_ of what stands before the probe"),
        (
            PROBE | {"classes_": np.array(["no", "yes"], object)},
            r"p\.npz cannot be read, .*: save .* classes_\.astype\(str\)",
        ),
        (
            PROBE | {"classes_": np.array([0, 1], object)},
            r"classes_ of .*p\.npz .*: save it as text, classes_\.astype\(str\)",
        ),
        (PROBE | {"coef_": np.ones((1, 3)).astype(object)}, r"coef_ of .*: save it with \.astype\(float\)"),
        ({"probe": np.array({"coef_": [1, 2]})}, "lacks coef_ and intercept_: .* it holds probe"),
    ],
)
def test_probes_that_are_not_read(tmp_path, arrays, message):
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(ValueError, match=message) as raised:
        read_probe(tmp_path / "p.npz")
    assert "\n" not in str(raised.value) and "p.npz" in str(raised.value)


def test_a_probe_fitted_on_a_table(tmp_path):
    """Its labels are Python objects: they are saved as text, and others of its arrays may stay objects."""
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)), columns=["x", "y", "z"])
    labels = pd.Series(np.where(table.x > 0, "yes", "no"), dtype=object)
    probe = LogisticRegression().fit(table, labels)
    assert probe.classes_.dtype == object
    with pytest.raises(ValueError, match=r"classes_\.astype\(str\)"):
        read_probe(as_file(probe, tmp_path / "p.npz"))
    given = {name: getattr(probe, name) for name in ("coef_", "intercept_", "feature_names_in_", "n_iter_")}
    np.savez(tmp_path / "p.npz", classes_=probe.classes_.astype(str), **given)
    found = read_probe(tmp_path / "p.npz")
    assert (found.predict(table.to_numpy()) == probe.predict(table)).all() and set(found.labels) == {"no", "yes"}
    save_probe(LinearProbe(probe.coef_, probe.intercept_, probe.classes_), tmp_path / "q.npz")
    assert (rebuilt(tmp_path / "q.npz").predict(table.to_numpy()) == probe.predict(table)).all()
    mixed = LinearProbe(probe.coef_, probe.intercept_, np.array([1, "one"], object))
    with pytest.raises(ValueError, match=r"labels of the probe are 1, 'one': expected all to be text, or numbers"):
        save_probe(mixed, tmp_path / "r.npz")
    assert not (tmp_path / "r.npz").exists()


@pytest.mark.parametrize(
    ("arrays", "intercept", "labels"),
    [
        ({"intercept_": np.float64(0.5)}, [0.5], [0, 1]),
        ({"coef_": np.array([1, 2, 3]), "intercept_": np.array(2)}, [2], [0, 1]),
        ({"coef_": np.eye(3), "intercept_": 0.0}, [0, 0, 0], [0, 1, 2]),
        ({"coef_": np.ones((1, 3), np.float16), "classes_": np.array([b"no", b"yes"])}, [0.25], [b"no", b"yes"]),
        ({"coef_": np.eye(4)[:, :3], "intercept_": np.zeros((4, 1))}, [0, 0, 0, 0], [0, 1, 2, 3]),
        ({"classes_": np.array([False, True])}, [0.25], [False, True]),
    ],
)
def test_probes_of_every_legitimate_shape(tmp_path, arrays, intercept, labels):
    np.savez(tmp_path / "P.NPZ", **(PROBE | arrays))
    (tmp_path / "P.NPZ.npz").rename(tmp_path / "P.NPZ")
    probe = read_probe(tmp_path / "P.NPZ")
    assert probe.coef.dtype == np.float64 and probe.intercept.tolist() == intercept and probe.labels.tolist() == labels


@pytest.mark.parametrize("name", ["p.joblib", "p.pkl", "p.pickle", "p.pt", "p.json", "p"])
def test_probes_of_another_kind_of_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04N.")
    with pytest.raises(
        ValueError, match=rf"{name} is not of a kind .* np\.savez\(file, coef_=.* \(pickles are not read, si"
    ):
        read_probe(tmp_path / name)


def test_a_pickle_under_the_name_of_a_probe(tmp_path):
    (tmp_path / "p.npz").write_bytes(b"\x80\x04N.")
    with pytest.raises(ValueError, match=r"p\.npz cannot be read .*np\.savez"):
        read_probe(tmp_path / "p.npz")
    torch.save({"coef_": torch.ones(3)}, tmp_path / "p.npz")  # an archive, too
    with pytest.raises(ValueError, match=r"p\.npz (lacks coef_ and intercept_|cannot be read)") as raised:
        read_probe(tmp_path / "p.npz")
    assert "\n" not in str(raised.value)


def test_a_damaged_probe(tmp_path):
    rng = np.random.default_rng(0)
    np.savez_compressed(tmp_path / "p.npz", coef_=rng.normal(size=(4, 600)), intercept_=np.zeros(4))
    content = bytearray((tmp_path / "p.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "p.npz").write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"p.npz cannot be read"):
        read_probe(tmp_path / "p.npz")


def test_a_file_that_is_no_probe_of_its_name(tmp_path):
    np.save(tmp_path / "v.npy", np.ones(3))
    (tmp_path / "v.npy").rename(tmp_path / "v.npz")
    with pytest.raises(ValueError, match="another kind of file than its name says"):
        read_probe(tmp_path / "v.npz")


@pytest.mark.parametrize("to", ["a", "b"])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_probe_is_judged_token_by_token(pair, models, to, classes, tmp_path):
    stitched = StitchedPair(pair, models, (1, 2), "smoke")
    batches, stitch = list(stitched.evaluation_rows("b")), fit_exact(stitched.held_out_moments)
    residuals = [
        torch.cat([model.residuals(batch.tokens, [layer])[layer][batch.mask] for batch in batches]).double()
        for model, layer in zip(models, (1, 2))
    ]
    own, other = residuals if to == "b" else residuals[::-1]
    fitted = fitted_probe(classes, own.shape[1])
    scores = own.numpy() @ fitted.coef_.T
    fitted.intercept_ = 0.3 * scores.std(0) - scores.mean(0)  # so that each answer is given, and no mean is zero
    probe = read_probe(as_file(fitted, tmp_path / "p.npz"))
    carried = transfer_probe(probe, stitch, to=to)
    trust = judge_probe(stitched, probe, carried, stitch=stitch, to=to)
    wide = stitch.to(torch.float64)
    mapped = (wide.down if to == "b" else wide.up)(other).numpy()
    here, there = fitted.predict(own.numpy()), fitted.predict(mapped)
    assert trust.tokens == len(own) and trust.check == 1
    assert trust.agreement == pytest.approx((here == there).mean()) and trust.agreement < 1
    assert trust.constant == pytest.approx(max((here == answer).mean() for answer in set(here)))
    nulls = component_stitches(stitched.held_out_moments)
    others = [(here == transfer_probe(probe, null, to=to).predict(other.numpy())).mean() for null in nulls]
    assert (trust.over_null.mean, trust.over_null.best) == pytest.approx((np.mean(others), max(others)), abs=1e-3)
    owners = torch.cat([batch.documents[batch.mask] for batch in batches]).numpy()
    assert trust.documents == len(set(owners))
    same, most = here == there, here == max(set(here), key=here.tolist().count)
    sums = np.array([[(owners == n).sum(), *(hits[owners == n].sum() for hits in (same, most))] for n in set(owners)])
    draws = resampled_counts(len(sums), 0) @ sums
    low, high = np.quantile((draws[:, 1] - draws[:, 2]) / draws[:, 0], (0.025, 0.975))
    assert tuple(trust.over_constant.more) == pytest.approx(((same * 1 - most).mean(), low, high))
    for index, explained in enumerate(trust.explained):
        truth, guess = own.numpy() @ fitted.coef_[index], mapped @ fitted.coef_[index]
        assert explained == pytest.approx(1 - ((truth - guess) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())
    assert len(trust.explained) == len(fitted.coef_)
    wrong = probe._replace(coef=-carried.coef, intercept=-carried.intercept)
    some = list(batches[0].split(4))[:1]
    trust = judge_probe(stitched, probe, wrong, stitch=stitch, batches=some, to=to)
    assert trust.check < 0.5 and trust.tokens == some[0].mask.sum()
