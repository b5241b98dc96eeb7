"""SAEs from folders against the arithmetic of those who wrote them, refused folders, and SAEs of a user's own."""

import json

import pytest
import safetensors.torch
import torch
from sae_lens import SAE, TopKSAE, TopKSAEConfig
from safetensors.torch import load_file, save_file
from toy_saes import D_A, LATENTS, K, make_sae, make_training_sae, normal

from stitch_utils.data.pairs import SAERef
from stitch_utils.saes.io import load_sae, reads_elsewhere, save_sae
from stitch_utils.utils.files import SCRATCH


@pytest.fixture
def sparsify(tmp_path):
    """A folder as sparsify writes it, and a way to write another: (folder, write)."""
    folder = tmp_path / "layers.3"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    shapes = {"encoder.weight": (LATENTS, D_A), "encoder.bias": (LATENTS,), "W_dec": (LATENTS, D_A), "b_dec": (D_A,)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    config = {"expansion_factor": 32, "normalize_decoder": True, "num_latents": LATENTS, "k": K, "d_in": D_A}

    def write(tensors=tensors, **changes):
        save_file(tensors, folder / "sae.safetensors")
        (folder / "cfg.json").write_text(json.dumps(config | changes))

    write()
    return folder, write


def test_a_sparsify_folder_computes_what_sparsify_does(sparsify):
    folder, _ = sparsify
    sae, x = load_sae(str(folder)), normal(30, D_A)
    stored = {name: tensor.double() for name, tensor in load_file(folder / "sae.safetensors").items()}
    expected = []
    for row in x:
        values = torch.stack([(row - stored["b_dec"]) @ w for w in stored["encoder.weight"]]) + stored["encoder.bias"]
        out = stored["b_dec"].clone()
        for index in sorted(range(LATENTS), key=lambda i: -values[i])[:K]:
            out += values[index].clamp(min=0) * stored["W_dec"][index]
        expected.append(out)
    assert sae.dtype == torch.float32
    torch.testing.assert_close(sae.to(dtype=torch.float64)(x), torch.stack(expected), rtol=1e-10, atol=1e-10)
    assert sae.cfg.apply_b_dec_to_input
    assert sae.cfg.metadata.hook_name == "blocks.3.hook_resid_post"


def test_a_negative_latent_is_never_used(sparsify):
    folder, write = sparsify
    stored = load_file(folder / "sae.safetensors")
    write({**stored, "encoder.bias": torch.full((LATENTS,), -1e3)})
    sae = load_sae(str(folder))
    assert not sae.encode(normal(5, D_A)).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transcode": True}, "has transcode=True: expected a TopK SAE, with transcode=False"),
        ({"activation": "groupmax"}, "has activation='groupmax': expected a TopK SAE"),
        ({"signed": True}, "has signed=True"),
        ({"skip_connection": True}, "has skip_connection=True"),
        ({"activation": "relu"}, "has activation='relu': expected a TopK SAE, with activation='topk'"),
        ({"n_targets": 3}, "has n_targets=3: expected a TopK SAE without n_targets"),
        ({"gram_lookup": True}, "has gram_lookup=True: expected a TopK SAE without gram_lookup"),
        ({"k": 0}, "has k=0: expected a whole number between 1 and its 64 latents"),
        ({"k": LATENTS + 1}, "has k=65: expected a whole number between 1 and its 64 latents"),
        ({"k": "5"}, "has k='5': expected a whole number"),
        ({"k": None}, "has k=None: expected a whole number"),
        ({"d_in": 16}, "says d_in=16 and has weights for 12 dimensions"),
        ({"num_latents": 32}, "says num_latents=32 and expansion_factor=32 and has weights for 64 latents"),
        ({"num_latents": 0}, "says num_latents=0 and expansion_factor=32 and has weights for 64 latents"),
    ],
)
def test_sparse_coders_of_another_kind_are_refused(sparsify, changes, message):
    folder, write = sparsify
    write(**changes)
    with pytest.raises(ValueError, match=message):
        load_sae(str(folder))


def test_entries_that_only_train_a_sparse_coder(sparsify):
    folder, write = sparsify
    before = load_sae(str(folder))
    write(multi_topk=True, normalize_decoder=False, n_targets=0, lookup_max_order=4, gram_table_hash=None)
    assert torch.equal(load_sae(str(folder))(normal(9, D_A)), before(normal(9, D_A)))
    config = json.loads((folder / "cfg.json").read_text())
    for name in ("expansion_factor", "num_latents", "d_in"):  # the weights say them too
        config.pop(name)
        (folder / "cfg.json").write_text(json.dumps(config))
        assert load_sae(str(folder)).cfg.d_sae == LATENTS


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_sparse_coder_in_half_precision(dtype, sparsify):
    folder, write = sparsify
    before = load_sae(str(folder))
    write({name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(folder / "sae.safetensors").items()})
    sae, x = load_sae(str(folder)), normal(30, D_A).float()
    assert sae.dtype == torch.float32 and sae(x).dtype == torch.float32
    torch.testing.assert_close(sae.W_dec, before.W_dec, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("layers.3", "blocks.3.hook_resid_post"),
        ("transformer.h.2", "blocks.2.hook_resid_post"),
        ("layers.3.mlp", "layers.3.mlp"),
        ("gpt_neox.layers.3.attention", "gpt_neox.layers.3.attention"),
        ("embed_in", "embed_in"),
        ("my-sae", None),
        ("sae.v2", None),
    ],
)
def test_a_hookpoint_is_told_from_the_name_of_a_folder(name, hook, sparsify, tmp_path):
    folder, _ = sparsify
    (tmp_path / "of").mkdir()
    sae = load_sae(str(folder.rename(tmp_path / "of" / name)))
    assert sae.cfg.metadata.hook_name == hook
    assert reads_elsewhere(sae, 4) == (None if hook in (None, "blocks.3.hook_resid_post") else hook)


def test_what_is_wrong_with_a_sparsify_folder_is_said(sparsify):
    folder, write = sparsify
    stored = load_file(folder / "sae.safetensors")
    write({"W_dec": stored["W_dec"]})
    with pytest.raises(ValueError, match=r"other names or shapes, {'W_dec': \(64, 12\)}: expected .*encoder\.weight"):
        load_sae(str(folder))
    write({**stored, "W_dec": stored["W_dec"].T.contiguous()})
    with pytest.raises(ValueError, match=r"'W_dec': \(12, 64\).*: expected .*'W_dec': \(64, 12\)"):
        load_sae(str(folder))
    (folder / "cfg.json").write_text('{"d_in": 12}')
    with pytest.raises(ValueError, match=r"has no entry k: it has d_in"):
        load_sae(str(folder))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_folder_of_sae_lens(dtype, tmp_path):
    sae = make_sae("jumprelu", dtype=dtype)
    sae.save_model(tmp_path)
    found, x = load_sae(str(tmp_path)), normal(30, D_A)
    wide = "float64" if dtype == "float64" else "float32"
    assert found.cfg.dtype == wide and torch.equal(found(x), sae.to(dtype=getattr(torch, wide))(x))


def test_folders_and_names_that_are_no_sae(tmp_path):
    with pytest.raises(ValueError, match=r"holds nothing: expected cfg\.json and sae_weights\.safetensors \(SAELens\)"):
        load_sae(str(tmp_path))
    (tmp_path / "cfg.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"holds cfg\.json: expected .* or cfg\.json and sae\.safetensors \(sparsify\)"
    ):
        load_sae(str(tmp_path))
    make_training_sae("batchtopk").save_model(tmp_path)
    with pytest.raises(ValueError, match=r"architecture 'batchtopk': expected one for inference"):
        load_sae(str(tmp_path))
    (tmp_path / "cfg.json").unlink()
    (tmp_path / "ae.pt").touch()
    with pytest.raises(ValueError, match=r"holds ae\.pt, sae_weights\.safetensors: .*; pickles are not read, since"):
        load_sae(str(tmp_path))
    for name in ("nowhere", "sparsify:owner/name", "sae_lens:release", "sae_lens:owner/name", "sparsify:o//n/h"):
        with pytest.raises(ValueError, match=r"is no folder and no reference to an SAE: expected sae_lens:RELEASE/ID"):
            load_sae(name)
    with pytest.raises(ValueError, match="unknown SAE format 'x': expected one of sae_lens, sparsify"):
        load_sae(SAERef("x", "y", "z"))


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
    with pytest.raises(ValueError, match=r"sae_weights\.safetensors cannot be read, as if it were damaged"):
        load_sae(str(tmp_path))
    tensors = safetensors.torch.load(whole)
    save_file(tensors | {"b_dec": torch.full((4,), torch.nan)}, weights)
    with pytest.raises(ValueError, match=r"b_dec of the SAE .* holds values that are not finite"):
        load_sae(str(tmp_path))
    save_file(tensors | {"b_dec": torch.zeros(5)}, weights)
    with pytest.raises(ValueError, match=r"the SAE .* holds tensors of other names or shapes, {.*'b_dec': \(5,\)"):
        load_sae(str(tmp_path))
