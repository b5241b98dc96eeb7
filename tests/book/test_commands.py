"""The commands that carry SAEs, vectors and probes across: what they write, what they say, and what they refuse."""

import json
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sae_lens import SAE, TopKSAE, TopKSAEConfig
from sklearn.linear_model import LogisticRegression
from toy_book import call_here
from toy_probes import as_file, fitted_probe, random_stitch, rebuilt

from stitch_utils.data.pairs import load_pair
from stitch_utils.models.language_model import load_models
from stitch_utils.probing.probes import judge_probe, read_probe, save_probe, transfer_probe
from stitch_utils.saes.evaluation import judge_sae
from stitch_utils.saes.transfer import transfer_sae
from stitch_utils.steering.effects import judge_vectors
from stitch_utils.stitching.evaluation import survival
from stitch_utils.stitching.pair import StitchedPair, fit_pair, stitch_file
from stitch_utils.stitching.stitch import Stitch


@pytest.fixture
def fitted(small_pair, bare_book):
    """The pair's file; its stitch is where `fit` puts it."""
    file = small_pair()
    code, _, err = call_here(bare_book, "fit", "--pair", str(file), "--scale", "smoke")
    assert code == 0, err
    return file


def test_the_commands_write_what_others_load(fitted, bare_book):
    stitch = Stitch.load(stitch_file("mine"))
    across = ("--pair", str(fitted), "--out")
    torch.manual_seed(0)
    stitched = StitchedPair.open(fitted, "smoke")
    # The second is the flag's older name.
    for side, d, flag in (("b", 32, "--to"), ("a", 48, "--towards")):
        sae = TopKSAE(TopKSAEConfig(d, 24, k=3))
        sae.save_model(bare_book / f"sae-{side}")
        given = ("transfer-sae", str(bare_book / f"sae-{side}"), *across, str(bare_book / f"carried-{side}"))
        code, lines, err = call_here(bare_book, *given, flag, side, "--scale", "smoke")
        assert (code, err) == (0, "")
        found, expected = load_from_disk(bare_book / f"carried-{side}"), transfer_sae(sae, stitch, to=side)
        x = torch.randn(9, 80 - d)
        torch.testing.assert_close(found(x), expected(x))
        trust = judge_sae(stitched, sae, expected, stitch=stitch, to=side)
        best, mean = (f"{found.best:.1%}" for found in (trust.over_null, trust.over_mean))
        assert lines[1].startswith("of the latents that fire on a token") and f"that reaches {mean})" in lines[2]
        assert lines[3].startswith("  more than the best of 19 null maps' SAEs") and f"that reaches {best}," in lines[3]
        assert ("Beware" in lines[4]) != trust.is_told
        (row,) = (line for line in lines if line.startswith("  with the carried SAE"))
        ours = trust.carried
        numbers = [float(word) for word in re.findall(r"[-+]?\d+\.\d+", row)]
        loss = trust.target_loss + ours.delta_loss.value
        assert numbers == pytest.approx([ours.l0.value, ours.fuv.value, loss, *ours.delta_loss], abs=0.051)
        assert numbers[1:] == pytest.approx([ours.fuv.value, loss, *ours.delta_loss], abs=6e-5)

    rows = np.random.default_rng(0).normal(size=(2, 32))
    np.save(bare_book / "v.npy", rows)
    code, lines, err = call_here(
        bare_book,
        "transfer-vector",
        str(bare_book / "v.npy"),
        *across,
        str(bare_book / "out" / "w.npy"),
        "--keep-norm",
        "--scale",
        "smoke",
    )
    assert (code, err) == (0, "")
    np.testing.assert_allclose(np.load(bare_book / "out" / "w.npy"), rows @ stitch.P_up.numpy(), rtol=1e-4, atol=1e-6)
    for number, trust in enumerate(judge_vectors(stitched, list(torch.from_numpy(rows)), stitch=stitch)):
        (said,) = (line for line in lines if line.startswith(f"row {number}: correlation"))
        value, low, high = (f"{part:.3f}" for part in trust.over_null.value)
        assert said.endswith(f"in A: {value} [{low}, {high}]")
        below = [line for line in lines if line.startswith(f"row {number}: more than the best of 19 ")]
        assert [f"{found.more.value:+.3f} [" in line for found, line in zip(trust[2:], below)] == [True, True]
        assert any(f"Beware: row {number}: on this text" in line for line in lines) != trust.is_told
    kept = [each.kept for each in survival(rows, stitch)]
    assert any(f"stitch keeps: {min(kept):.3f} to {max(kept):.3f}" in line for line in lines)

    as_file(fitted_probe(3, 32), bare_book / "p.npz")
    code, lines, err = call_here(
        bare_book, "transfer-probe", str(bare_book / "p.npz"), *across, str(bare_book / "q.npz"), "--scale", "smoke"
    )
    assert (code, err) == (0, "")
    expected = transfer_probe(read_probe(bare_book / "p.npz"), stitch)
    np.testing.assert_allclose(rebuilt(bare_book / "q.npz").coef_, expected.coef)
    trust = judge_probe(stitched, read_probe(bare_book / "p.npz"), expected, stitch=stitch)
    agreement, constant = f"same token in A: {trust.agreement:.1%} [", f"(that reaches {trust.constant:.1%})"
    assert agreement in lines[2] and constant in lines[3] and f"that reaches {trust.over_null.best:.1%}," in lines[4]
    assert ("Beware" in lines[5]) != trust.is_told and "cosine" in lines[-1]
    assert any("100.00% (a check" in line for line in lines)
    hidden = [path for path in bare_book.rglob(".*") if path.suffix != ".lock" != path.name]
    assert all("artifacts" in path.parts and path.suffix == ".sha256" for path in hidden), "nothing but seals"


def load_from_disk(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return SAE.load_from_disk(folder)


@pytest.mark.parametrize("to", ["a", "b"])
@pytest.mark.parametrize("options", [(), ("--keep-norm",)])
def test_vectors_go_the_way_of_the_stream_without_the_bias(small_pair, bare_book, to, options):
    stitch = random_stitch(6, 9, about={"layer_a": 1, "layer_b": 2})
    stitch.save(bare_book / "s.safetensors")
    across = ("--pair", str(small_pair()), "--stitch", str(bare_book / "s.safetensors"), "--to", to)
    rows = np.random.default_rng(0).normal(size=(3, 6 if to == "b" else 9))
    zero = stitch.towards(to)(torch.zeros(rows.shape[1], dtype=torch.float64))
    shifts = (stitch.towards(to)(torch.from_numpy(rows)) - zero).numpy()
    expected = shifts if options else shifts / np.linalg.norm(shifts, axis=1, keepdims=True)
    for given, wanted in ((rows, expected), (rows[1], expected[1])):
        np.save(bare_book / "v.npy", given)
        files = (str(bare_book / "v.npy"), "--out", str(bare_book / "w.npy"))
        code, lines, err = call_here(bare_book, "transfer-vector", *files, *across, *options)
        assert (code, err) == (0, "") and any(f"of shape {wanted.shape}, are in" in line for line in lines)
        assert "not measured, since the stitch connects streams of widths (6, 9): expected (32, 48)" in lines[1]
        found = np.load(bare_book / "w.npy")
        assert found.dtype == np.float32 and found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_stitch_by_name_of_its_file(fitted, bare_book):
    stitch_file("mine").rename(bare_book / "other.safetensors")
    np.save(bare_book / "v.npy", np.ones(32))
    given = ("transfer-vector", str(bare_book / "v.npy"), "--pair", str(fitted), "--out", str(bare_book / "w.npy"))
    code, _, err = call_here(bare_book, *given)
    assert code == 2 and "no stitch of the pair 'mine' yet" in err and f"`stitch-book fit --pair {fitted}`" in err
    assert err.count("\n") == 1 and not (bare_book / "w.npy").exists()
    code, _, _ = call_here(bare_book, *given, "--stitch", str(bare_book / "other.safetensors"))
    assert code == 0 and np.load(bare_book / "w.npy").shape == (48,)


@pytest.mark.parametrize(
    ("command", "given", "out", "message"),
    [
        ("transfer-vector", "v.npy", "v.npy", "it would be lost"),
        ("transfer-vector", "v.npy", "w.npz", "expected a name that ends in .npy"),
        ("transfer-vector", "wide.npy", "w.npy", "row 0: a direction of width 48: the map towards b takes 32"),
        ("transfer-probe", "v.npy", "w.npz", "is not of a kind that is read: expected a .npz or .safetensors"),
        ("transfer-sae", "nowhere", "w", "is no folder and no reference to an SAE"),
        ("transfer-sae", "wide", "w", "the SAE reads 48 dimensions: expected 32, the width of model a"),
        ("transfer-sae", "wide", "wide/../wide", "it would be lost"),
    ],
)
def test_requests_that_make_no_sense(fitted, bare_book, command, given, out, message):
    np.save(bare_book / "v.npy", np.ones(32))
    np.save(bare_book / "wide.npy", np.ones(48))
    TopKSAE(TopKSAEConfig(48, 24, k=3)).save_model(bare_book / "wide")
    before = sorted(bare_book.iterdir())
    code, lines, err = call_here(
        bare_book, command, str(bare_book / given), "--pair", str(fitted), "--out", str(bare_book / out)
    )
    assert (code, lines, err.count("\n")) == (2, [], 1) and message in err
    assert sorted(bare_book.iterdir()) == before


def test_a_stitch_of_other_layers_or_damaged(fitted, bare_book):
    np.save(bare_book / "v.npy", np.ones(32))
    given = ("transfer-vector", str(bare_book / "v.npy"), "--pair", str(fitted), "--out", str(bare_book / "w.npy"))
    text = fitted.read_text()
    fitted.write_text(text.replace("layer: 2", "layer: 3"))
    code, _, err = call_here(bare_book, *given)
    assert code == 2 and "is for b before layer 2, and the pair 'mine' says 3: fit it again" in err
    fitted.write_text(text)
    content = bytearray(stitch_file("mine").read_bytes())
    content[-3] ^= 1
    for damaged, message in ((bytes(content), "is damaged"), (bytes(content[:-9]), "is no whole stitch file")):
        stitch_file("mine").write_bytes(damaged)
        code, _, err = call_here(bare_book, *given)
        assert code == 2 and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ({}, {}, None),
        ({"revision": "main"}, {"revision": "v1"}, None),
        ({"revision": "step9"}, {}, "is for a at revision 'main', and the pair 'mine' says 'step9'"),
        ({}, {"revision": None}, "is for b at revision 'v1', and the pair 'mine' says 'main'"),
        ({"model": "/elsewhere/a"}, {}, "is for a of '{models}/a', and the pair 'mine' says '/elsewhere/a'"),
        ({}, {"model": "lab/other"}, "is for b of 'lab/large', and the pair 'mine' says 'lab/other'"),
        ({"layer": 0}, {}, "is for a before layer 1, and the pair 'mine' says 0"),
    ],
)
def test_a_stitch_of_another_model_or_revision_is_not_taken_for_the_pairs(
    small_pair, random_folders, bare_book, a, b, said
):
    """Of the name that `fit` gives a stitch: one that is named by --stitch is whoever names it's own choice."""
    generator = torch.Generator().manual_seed(0)
    about = {"a": str(random_folders / "a"), "layer_a": 1, "b": "lab/large", "layer_b": 2, "revision_b": "v1"}
    made = Stitch(*(torch.randn(shape, generator=generator) for shape in ((6, 9), (9,), (9, 6), (6,))), about=about)
    stitch_file("mine").parent.mkdir(parents=True)
    made.save(stitch_file("mine"))
    pair = small_pair(
        a={"model": about["a"], "layer": 1} | a, b={"model": "lab/large", "layer": 2, "revision": "v1"} | b
    )
    np.save(bare_book / "v.npy", np.ones(6))
    given = ("transfer-vector", str(bare_book / "v.npy"), "--pair", str(pair), "--out", str(bare_book / "w.npy"))
    code, lines, err = call_here(bare_book, *given)
    assert code == (2 if said else 0) and (bare_book / "w.npy").exists() == (said is None)
    if said is None:
        assert err == "" and not any("Note" in line for line in lines)
        assert any(line.startswith("effect on predictions: not measured, since ") for line in lines)
    else:
        again = f"{said.format(models=random_folders)}: fit it again with `stitch-book fit --pair {pair}`"
        assert err.count("\n") == 1 and again in err
        code, lines, _ = call_here(bare_book, *given, "--stitch", str(stitch_file("mine")))
        assert code == (2 if "layer" in said else 0)
        told = any(line.startswith("Note: the stitch") for line in lines)
        assert told == ("revision" in said or "lab/other" in said), "folders move"


def test_an_sae_of_another_layer_is_carried_with_a_warning(fitted, bare_book):
    sae = TopKSAE(TopKSAEConfig(32, 24, k=3))
    sae.cfg.metadata.hook_name, sae.cfg.metadata.model_name = "blocks.1.hook_resid_post", "lab/other"
    sae.save_model(bare_book / "sae")
    code, lines, _ = call_here(
        bare_book,
        "transfer-sae",
        str(bare_book / "sae"),
        "--pair",
        str(fitted),
        "--out",
        str(bare_book / "carried"),
        "--scale",
        "smoke",
    )
    assert code == 0
    assert any("Beware: the SAE says that it reads blocks.1.hook_resid_post" in line for line in lines)
    assert any("Beware: the SAE says that it is of 'lab/other', and the pair has" in line for line in lines)
    assert not any("loaded with" in line for line in lines)


def test_an_sae_of_a_model_that_was_loaded_in_another_way_is_carried_with_one_warning(fitted, bare_book):
    sae = TopKSAE(TopKSAEConfig(32, 24, k=3))
    sae.cfg.metadata.model_from_pretrained_kwargs = {"center_writing_weights": True}
    sae.save_model(bare_book / "sae")
    folders = ("--pair", str(fitted), "--out", str(bare_book / "carried"), "--scale", "smoke")
    code, lines, err = call_here(bare_book, "transfer-sae", str(bare_book / "sae"), *folders)
    assert (code, err) == (0, "")
    said = "Beware: the SAE says that its model was loaded with {'center_writing_weights': True}"
    assert [line for line in lines if "loaded with" in line] == [f"{said}; the stitch reads the model as it is."]


SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs a real model and stories that are not in the repository")
def test_a_probe_of_a_real_model_keeps_its_meaning(tmp_path, bare_book):
    """Whether a token begins a word: read off one layer of a Llama, carried to the next."""
    stories = json.loads((SHARED / "tinystories_1000" / "tinystories_1000.json").read_text())
    (tmp_path / "stories.jsonl").write_text("\n".join(json.dumps({"text": story}) for story in stories))
    model = f"model: {SHARED / 'stories260K'}"
    (tmp_path / "s.yml").write_text(f"name: s\na: {{{model}, layer: 2}}\nb: {{{model}, layer: 3}}\ntext: stories.jsonl")
    pair = load_pair(tmp_path / "s.yml")
    models, stitch = load_models(pair), fit_pair(pair, scale="smoke").stitch
    stitched = StitchedPair(pair, models, (2, 3), "smoke")
    batches = list(stitched.evaluation_rows("b"))
    tokens = torch.cat([batch.tokens[batch.mask] for batch in batches])
    x, y = (torch.cat([models[0].residuals(b.tokens, [layer])[layer][b.mask] for b in batches]) for layer in (2, 3))
    begins = np.array([piece.startswith("▁") for piece in models[0].tokenizer.convert_ids_to_tokens(tokens.tolist())])
    half = len(begins) // 2
    as_file(LogisticRegression(max_iter=3000).fit(x[:half], begins[:half]), tmp_path / "p.npz")
    probe = read_probe(tmp_path / "p.npz")
    carried = transfer_probe(probe, stitch)
    save_probe(carried, tmp_path / "q.npz")
    right = (rebuilt(tmp_path / "q.npz").predict(y[half:].numpy()) == begins[half:]).mean()
    assert right > 0.85 > max(begins.mean(), 1 - begins.mean())
    trust = judge_probe(stitched, probe, carried, stitch=stitch)
    assert trust.check == 1 and trust.agreement > 0.85 and trust.explained[0] > 0.5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_check_says_what_a_model_is_and_that_the_bridge_agrees(bare_book, dtype):
    code, lines, err = call_here(bare_book, "check", "embedded:tiny-a", "--dtype", dtype)
    assert (code, err, len(lines)) == (0, "", 4)
    model = load_models(load_pair("tiny"))[0]
    assert lines[0] == f"embedded:tiny-a: family {model.config.model_type}"
    assert lines[1].startswith(f"{model.n_layers} layers of width {model.d_model}, ")
    assert lines[2].startswith("tokenizer: ") and "before a text" in lines[2]
    agreement = (
        r"agrees with transformers: residual streams to (\S+) of their norm, logits to (\S+) \((\S+) explains (\S+)\)"
    )
    residuals, logits, named, explained = re.search(agreement, lines[3]).groups()
    assert named == dtype and max(float(residuals), float(logits)) <= float(explained)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "is of the family 'bert', an encoder"),
        ({"num_hidden_layers": 9}, "config.json says 9 layers, and the weights have 3"),
        ({"vocab_size": 20}, "and its configuration makes it (20, 32)"),
    ],
)
def test_check_refuses_in_a_line(bare_book, random_folders, changes, message):
    folder = shutil.copytree(random_folders / "a", bare_book / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    code, lines, err = call_here(bare_book, "check", str(folder))
    assert (code, lines, err.count("\n")) == (2, [], 1) and message in err
    for nowhere in ("./nothing", "no/such/model", "none.gguf"):
        assert call_here(bare_book, "check", nowhere)[0] == 2
