"""SAEs, vectors and probes from files across a stitch: against scikit-learn, SAELens and arithmetic in loops."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from sae_lens import SAE, TopKSAE, TopKSAEConfig
from safetensors.torch import save_file
from toy_probes import as_file, fitted_probe, rebuilt

from stitch_utils.book.carry import (
    LinearProbe,
    carry_probe,
    carry_vectors,
    judge_probe,
    judge_sae,
    read_probe,
    read_sae,
    read_vectors,
    reads_elsewhere,
    save_probe,
    save_sae,
    survival,
)
from stitch_utils.models.harvest import evaluation_batches
from stitch_utils.models.language_model import load_models
from stitch_utils.saes.evaluation import evaluate_saes
from stitch_utils.saes.transfer import transfer_sae
from stitch_utils.steering.vectors import transfer_vector
from stitch_utils.stitching.evaluation import measure_fidelity
from stitch_utils.stitching.fit import fit_exact
from stitch_utils.stitching.moments import harvest_moments
from stitch_utils.stitching.stitch import Stitch
from stitch_utils.utils.files import SCRATCH

D_A, D_B = 6, 9


@pytest.fixture
def stitch():
    generator = torch.Generator().manual_seed(0)
    shapes = ((D_A, D_B), (D_B,), (D_B, D_A), (D_A,))
    return Stitch(*(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes))


@pytest.mark.parametrize("towards", ["a", "b"])
@pytest.mark.parametrize("labels", [("no", "yes"), ("en", "fr", "de")])
def test_scikit_learn_says_of_the_other_stream_what_it_said_of_the_stitched_one(stitch, tmp_path, towards, labels):
    home, away, d = (D_A, D_B, stitch.down) if towards == "b" else (D_B, D_A, stitch.up)
    original = fitted_probe(len(labels), home, labels)
    probe = read_probe(as_file(original, tmp_path / "p.npz"))
    save_probe(carry_probe(probe, stitch, towards=towards), tmp_path / "q.npz")
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


@pytest.mark.parametrize("keep_norm", [False, True])
@pytest.mark.parametrize("towards", ["a", "b"])
def test_vectors_go_the_way_of_the_stream_without_the_bias(stitch, tmp_path, towards, keep_norm):
    rows = np.random.default_rng(0).normal(size=(3, D_A if towards == "b" else D_B))
    np.save(tmp_path / "v.npy", rows)
    given = read_vectors(tmp_path / "v.npy")
    carried = carry_vectors(given, stitch, towards=towards, keep_norm=keep_norm)
    for row, found in zip(rows, carried):
        ends = [
            stitch.up(torch.from_numpy(x)) if towards == "b" else stitch.down(torch.from_numpy(x))
            for x in (row, 0 * row)
        ]
        shift = (ends[0] - ends[1]).numpy()
        np.testing.assert_allclose(found, shift if keep_norm else shift / np.sqrt((shift**2).sum()), rtol=1e-5)
        if not keep_norm:
            expected = transfer_vector(torch.from_numpy(row), stitch, to=towards)
            np.testing.assert_array_equal(found, expected.numpy())
    one = carry_vectors(rows[0], stitch, towards=towards, keep_norm=keep_norm)
    assert one.shape == carried.shape[1:] and (one == carried[0]).all()


@pytest.mark.parametrize("reads", [False, True])
def test_what_survives_of_a_direction(stitch, reads):
    """Of what is added, the path is x -> x P_up; of what reads, w -> P_down w."""
    up, down = stitch.P_up.numpy(), stitch.P_down.numpy()
    rng = np.random.default_rng(3)
    v = rng.normal(size=D_A)
    there = down @ v if reads else v @ up
    back = up @ there if reads else there @ down
    (found,) = survival(v, stitch, reads=reads)
    assert found.kept == pytest.approx(np.sqrt((there**2).sum() / (v**2).sum()))
    assert found.round_trip == pytest.approx((v @ back) / np.sqrt((v @ v) * (back @ back)))
    drawn = rng.normal(size=(20_000, D_A))
    images = [down @ row if reads else row @ up for row in drawn]
    shares = [(image @ image) / (row @ row) for image, row in zip(images, drawn)]
    assert found.kept_random == pytest.approx(np.mean(shares) ** 0.5, rel=0.02)
    returned = [up @ image if reads else image @ down for image in images]
    cosines = [row @ b / np.sqrt((row @ row) * (b @ b)) for row, b in zip(drawn, returned)]
    assert found.round_trip_random == pytest.approx(np.median(cosines), abs=0.05)
    (backwards,) = survival(rng.normal(size=D_B), stitch, towards="a", reads=reads)
    assert backwards.kept_random == pytest.approx(np.linalg.norm(up if reads else down) / D_B**0.5)
    (whole,) = survival(v, Stitch.identity(D_A))
    assert tuple(whole) == pytest.approx((1, 1, 1, 1))


@pytest.fixture
def small(pair):
    """(pair, models, its exact stitch, held-out batches)"""
    models = load_models(pair)
    batches = list(evaluation_batches(pair, pair.scale("smoke"), models[0].tokenizer))
    return models, fit_exact(harvest_moments(*models, batches, [(1, 2)])[1, 2]), batches


@pytest.mark.parametrize("towards", ["a", "b"])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_probe_is_judged_token_by_token(small, towards, classes, tmp_path):
    models, stitch, batches = small
    residuals = [
        torch.cat([model.residuals(batch.tokens, [layer])[layer][batch.mask] for batch in batches]).double()
        for model, layer in zip(models, (1, 2))
    ]
    own, other = residuals if towards == "b" else residuals[::-1]
    fitted = fitted_probe(classes, own.shape[1])
    scores = own.numpy() @ fitted.coef_.T
    fitted.intercept_ = 0.3 * scores.std(0) - scores.mean(0)  # so that each answer is given, and no mean is zero
    probe = read_probe(as_file(fitted, tmp_path / "p.npz"))
    carried = carry_probe(probe, stitch, towards=towards)
    trust = judge_probe(probe, carried, stitch, models, (1, 2), batches, towards=towards)
    wide = stitch.to(torch.float64)
    stitched = (wide.down if towards == "b" else wide.up)(other).numpy()
    here, there = fitted.predict(own.numpy()), fitted.predict(stitched)
    assert trust.tokens == len(own) and trust.check == 1
    assert trust.agreement == pytest.approx((here == there).mean()) and trust.agreement < 1
    assert trust.constant == pytest.approx(max((here == answer).mean() for answer in set(here)))
    for index, explained in enumerate(trust.explained):
        truth, guess = own.numpy() @ fitted.coef_[index], stitched @ fitted.coef_[index]
        assert explained == pytest.approx(1 - ((truth - guess) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())
    assert len(trust.explained) == len(fitted.coef_)
    wrong = judge_probe(
        probe,
        probe._replace(coef=-carried.coef, intercept=-carried.intercept),
        stitch,
        models,
        (1, 2),
        batches,
        towards=towards,
    )
    assert wrong.check < 0.5


@pytest.mark.parametrize("towards", ["a", "b"])
def test_an_sae_is_judged_beside_the_original(small, towards):
    models, stitch, batches = small
    source, target = (0, 1) if towards == "b" else (1, 0)
    torch.manual_seed(0)
    sae = TopKSAE(TopKSAEConfig((32, 48)[source], 64, k=3))
    carried = transfer_sae(sae, stitch, to=towards)
    trust = judge_sae(sae, carried, stitch, models, (1, 2), batches, towards=towards)
    assert trust.original == evaluate_saes({"sae": sae}, models[source], (1, 2)[source], batches)["sae"]
    assert trust.carried == evaluate_saes({"sae": carried}, models[target], (1, 2)[target], batches)["sae"]
    losses = measure_fidelity(*models, 1, 2, {"it": stitch}, batches)
    assert trust.source_loss == losses.cross_entropy("own", "ab"[source]).value
    assert trust.target_loss == losses.cross_entropy("own", "ab"[target]).value
    round_trip = {"b": "b_to_a_to_b", "a": "a_to_b_to_a"}[towards]
    assert trust.round_trip_loss == losses.cross_entropy("it", round_trip).value
    assert trust.tokens == sum(batch.mask.sum().item() for batch in batches)


def test_an_sae_that_reads_another_layer_is_noticed():
    sae = TopKSAE(TopKSAEConfig(4, 8, k=2))
    for hook, layer in ((None, 3), ("blocks.3.hook_resid_pre", 3), ("blocks.2.hook_resid_post", 3)):
        sae.cfg.metadata.hook_name = hook
        assert reads_elsewhere(sae, layer) is None
    for hook in ("blocks.3.hook_resid_post", "blocks.3.hook_mlp_out"):
        sae.cfg.metadata.hook_name = hook
        assert reads_elsewhere(sae, 3) == hook


def test_folders_that_hold_something_else_are_left_alone(tmp_path):
    sae = TopKSAE(TopKSAEConfig(4, 8, k=2))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"mine is there and holds thesis\.tex: expected"):
        save_sae(sae, tmp_path / "mine")
    for foreign in (("cfg.json", "sae.safetensors"), ("sae_weights.safetensors", "cfg.json", "notes"), (".git",)):
        folder = tmp_path / foreign[-1]
        folder.mkdir()
        for name in foreign:
            (folder / name).write_text("{}")
        with pytest.raises(ValueError, match=f"is there and holds .*{foreign[-1]}.*: expected a new folder, an empty"):
            save_sae(sae, folder)
        assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(foreign, "{}")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is there and is no folder"):
        save_sae(sae, tmp_path / "file")
    for _ in range(2):
        save_sae(sae, tmp_path / "new" / "sae")
        assert torch.equal(SAE.load_from_disk(tmp_path / "new" / "sae").W_enc, sae.W_enc)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sae"]


def test_an_sae_takes_the_place_of_another_as_a_whole(tmp_path, monkeypatch):
    """Of what was there nothing stays that the new one would be read with, and a kill leaves no mixture."""
    first, second = (TopKSAE(TopKSAEConfig(4, 8, k=2)) for _ in range(2))
    folder = tmp_path / "sae"
    save_sae(first, folder)
    save_file({"sparsity": torch.zeros(8)}, folder / "sparsity.safetensors")
    save_sae(second, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["cfg.json", "sae_weights.safetensors"]

    def killed(*given):
        raise KeyboardInterrupt

    save_file({"sparsity": torch.zeros(8)}, folder / "sparsity.safetensors")
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", killed)
        patched.setattr("shutil.rmtree", lambda *given, **options: None)
        with pytest.raises(KeyboardInterrupt):
            save_sae(first, folder)
    assert sorted(path.name for path in folder.iterdir())[-1] == "sparsity.safetensors"
    assert torch.equal(SAE.load_from_disk(folder).W_enc, second.W_enc)
    (scratch,) = (path.name for path in tmp_path.iterdir() if path != folder)
    assert SCRATCH.fullmatch(scratch)


def test_saes_that_are_damaged(tmp_path):
    TopKSAE(TopKSAEConfig(4, 8, k=2)).save_model(tmp_path)
    weights = tmp_path / "sae_weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"the SAE .* cannot be read, as if its files were damaged"):
        read_sae(str(tmp_path))
    tensors = safetensors.torch.load(whole)
    save_file(tensors | {"b_dec": torch.full((4,), torch.nan)}, weights)
    with pytest.raises(ValueError, match=r"b_dec of the SAE .* holds values that are not finite"):
        read_sae(str(tmp_path))
    save_file(tensors | {"b_dec": torch.zeros(5)}, weights)
    with pytest.raises(ValueError, match="cannot be read"):
        read_sae(str(tmp_path))


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def write_bad(kind, path):
    rng = np.random.default_rng(0)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif kind == "objects":
        np.save(path, np.array([Bomb()], dtype=object), allow_pickle=True)
    elif kind == "cut":
        np.save(path, rng.normal(size=(4, 6)))
        path.write_bytes(path.read_bytes()[:-20])
    elif kind == "flipped":
        np.savez_compressed(path, coef_=rng.normal(size=(4, 600)), intercept_=np.zeros(4))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
    elif kind == "tensors":
        save_file({"x": torch.zeros(3), "y": torch.zeros(3)}, path)
    elif kind == "text":
        path.write_text("v = [1, 2, 3]")
    else:
        arrays = {
            "nan": np.array([1, np.nan]),
            "cube": np.ones((2, 2, 2)),
            "zero": np.array([[1.0, 0], [0, 0]]),
            "words": np.array(["a"]),
            "complex": np.array([1j]),
            "none": np.zeros((0, 3)),
        }
        np.save(path, arrays[kind])


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("pickle", "v.npy", "v.npy cannot be read .*pickle"),
        ("pickle", "v.pt", "v.pt is not of a kind that is read: expected a .npy or .safetensors file .*pickles"),
        ("objects", "v.npy", "v.npy cannot be read .*pickle"),
        ("cut", "v.npy", "v.npy cannot be read"),
        ("text", "v.safetensors", "v.safetensors cannot be read"),
        ("tensors", "v.safetensors", "holds x, y: expected a single tensor"),
        ("nan", "v.npy", "holds values that are not finite"),
        ("cube", "v.npy", r"has shape \(2, 2, 2\): expected a vector \(d,\) or rows"),
        ("none", "v.npy", r"has shape \(0, 3\): expected"),
        ("zero", "v.npy", "row 1 of .* is zero"),
        ("words", "v.npy", "is of type <U1: expected numbers"),
        ("complex", "v.npy", "is of type complex128: expected numbers"),
    ],
)
def test_vectors_that_are_not_read(tmp_path, monkeypatch, kind, name, message):
    monkeypatch.chdir(tmp_path)
    write_bad(kind, tmp_path / name)
    with pytest.raises(ValueError, match=message) as raised:
        read_vectors(tmp_path / name)
    assert "\n" not in str(raised.value) and not (tmp_path / "exploded").exists()


def test_files_that_are_not_what_their_names_say(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        read_vectors(tmp_path / "v.npy")
    np.savez(tmp_path / "p.npz", coef_=np.ones((1, 3)), intercept_=np.ones(1))
    (tmp_path / "p.npz").rename(tmp_path / "p.npy")
    with pytest.raises(ValueError, match="another kind of file than its name says"):
        read_vectors(tmp_path / "p.npy")
    np.save(tmp_path / "v.npy", np.ones(3))
    (tmp_path / "v.npy").rename(tmp_path / "v.npz")
    with pytest.raises(ValueError, match="another kind of file than its name says"):
        read_probe(tmp_path / "v.npz")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"weight": np.ones(3)}, "lacks coef_ and intercept_: expected coef_ and intercept_, it holds weight"),
        ({"coef_": np.ones((2, 3)), "intercept_": np.ones(3)}, r"shape \(2, 3\) and intercept_ \(3,\): expected"),
        ({"coef_": np.full((1, 3), np.inf), "intercept_": np.ones(1)}, "coef_ of .* not finite"),
        ({"coef_": np.zeros((1, 3)), "intercept_": np.ones(1)}, "coef_ of .* is zero"),
        ({"coef_": np.ones((1, 3)), "intercept_": np.ones(1), "classes_": np.arange(3)}, r"classes_ .* \(3,\): expec"),
    ],
)
def test_probes_that_are_not_read(tmp_path, arrays, message):
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_probe(tmp_path / "p.npz")


def test_a_damaged_probe(tmp_path):
    write_bad("flipped", tmp_path / "p.npz")
    with pytest.raises(ValueError, match=r"p.npz cannot be read"):
        read_probe(tmp_path / "p.npz")


def test_widths_that_do_not_match(stitch):
    with pytest.raises(ValueError, match="row 0: a direction of width 9: the map towards b takes 6"):
        carry_vectors(np.ones((2, D_B)), stitch)
    probe = probe_of(np.ones((2, D_A)))
    with pytest.raises(ValueError, match="reads 6 dimensions: expected 9, the width of model b"):
        carry_probe(probe, stitch, towards="a")
    with pytest.raises(ValueError, match="towards='c': expected 'a' or 'b'"):
        carry_probe(probe, stitch, towards="c")


def probe_of(coef):
    return LinearProbe(coef, np.zeros(len(coef)), np.arange(max(2, len(coef))))
