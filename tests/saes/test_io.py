"""SAEs from folders, against the arithmetic of those who wrote them; and what is said of folders that hold none."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_saes import D_A, LATENTS, K, make_sae, make_training_sae, normal

from stitch_utils.data.pairs import SAERef
from stitch_utils.saes.io import load_sae


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
    ],
)
def test_sparse_coders_of_another_kind_are_refused(sparsify, changes, message):
    folder, write = sparsify
    write(**changes)
    with pytest.raises(ValueError, match=message):
        load_sae(str(folder))


def test_what_is_wrong_with_a_sparsify_folder_is_said(sparsify):
    folder, write = sparsify
    stored = load_file(folder / "sae.safetensors")
    write({"W_dec": stored["W_dec"]})
    with pytest.raises(
        ValueError, match=r"holds the tensors W_dec: expected W_dec, b_dec, encoder\.bias, encoder\.wei"
    ):
        load_sae(str(folder))
    write({**stored, "W_dec": stored["W_dec"].T.contiguous()})
    with pytest.raises(ValueError, match=r"W_dec of .* has shape \(12, 64\): expected \(64, 12\)"):
        load_sae(str(folder))
    (folder / "cfg.json").write_text('{"d_in": 12}')
    with pytest.raises(ValueError, match=r"has no entry k: it has d_in"):
        load_sae(str(folder))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_folder_of_sae_lens(dtype, tmp_path):
    sae = make_sae("jumprelu", dtype=dtype)
    sae.save_model(tmp_path)
    found, x = load_sae(str(tmp_path)), normal(30, D_A)
    assert found.cfg.dtype == dtype and torch.equal(found(x), sae(x))


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
    for name in ("nowhere", "sparsify:owner/name", "sae_lens:release", "sae_lens:owner/name", "sparsify:o//n/h"):
        with pytest.raises(ValueError, match=r"is no folder and no reference to an SAE: expected sae_lens:RELEASE/ID"):
            load_sae(name)
    with pytest.raises(ValueError, match="unknown SAE format 'x': expected sae_lens or sparsify"):
        load_sae(SAERef("x", "y", "z"))
