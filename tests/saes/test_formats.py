"""SAEs as older tools have saved them, against the arithmetic of those tools; and what is refused."""

import json

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import save_file
from toy_saes import D_A, LATENTS, K, make_sae, make_training_sae, normal

from stitch_utils.saes.formats import layer_read
from stitch_utils.saes.io import load_sae, reads_elsewhere, save_sae
from stitch_utils.saes.transfer import transfer_sae
from stitch_utils.stitching.stitch import Stitch

SHAPES = {"W_enc": (D_A, LATENTS), "b_enc": (LATENTS,), "W_dec": (LATENTS, D_A), "b_dec": (D_A,)}
GATES = dict.fromkeys(("b_gate", "b_mag", "r_mag"), (LATENTS,))
# What SAELens 3 wrote, but for what a test is about
WRITTEN = {
    "architecture": "standard",
    "d_in": D_A,
    "d_sae": LATENTS,
    "activation_fn_str": "relu",
    "apply_b_dec_to_input": True,
    "finetuning_scaling_factor": False,
    "context_size": 128,
    "model_name": "gpt2-small",
    "hook_name": "blocks.3.hook_resid_pre",
    "hook_layer": 3,
    "hook_head_index": None,
    "prepend_bos": True,
    "dataset_path": "somebody/text",
    "normalize_activations": "none",
    "dtype": "float32",
    "device": "cuda:1",
    "sae_lens_training_version": "3.13.0",
    "activation_fn_kwargs": {},
}
MISSING = object()


def drawn(shapes=SHAPES, **more):
    tensors = {name: normal(*shape, seed=seed).float() for seed, (name, shape) in enumerate(shapes.items())}
    return tensors | more


@pytest.fixture
def write(tmp_path):
    """Write a folder as SAELens 3 did, but for some entries (MISSING leaves one out), and give its name."""

    def written(tensors=None, **entries):
        config = {name: value for name, value in (WRITTEN | entries).items() if value is not MISSING}
        (tmp_path / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
        save_file(drawn() if tensors is None else tensors, tmp_path / "sae_weights.safetensors")
        return str(tmp_path)

    return written


def naive(tensors, x, *, kind="relu", k=LATENTS, subtract=True, normalise="none"):
    """What SAELens 3 computed, one latent after the other."""
    stored = {name: tensor.double() for name, tensor in tensors.items()}
    rows = []
    for given in x:
        row, scale, shift = given, 1.0, 0.0
        if normalise == "layer_norm":
            shift = given.mean()
            scale = (((given - shift) ** 2).sum() / (len(given) - 1)) ** 0.5
            row = (given - shift) / (scale + 1e-5)
        elif normalise == "constant_norm_rescale":
            scale = (given**2).sum() ** 0.5 / len(given) ** 0.5
            row = given / scale
        row = row - stored["b_dec"] * subtract
        latents = []
        for index in range(LATENTS):
            value = row @ stored["W_enc"][:, index]
            if kind == "gated":
                magnitude = value * stored["r_mag"][index].exp() + stored["b_mag"][index]
                latents.append(max(magnitude.item(), 0) * (value + stored["b_gate"][index] > 0).item())
                continue
            value = (value + stored["b_enc"][index]).item()
            fires = value > stored["threshold"][index] if kind == "jumprelu" else True
            latents.append(max(value, 0) * fires)
        kept = sorted(range(LATENTS), key=lambda index: -latents[index])[:k]
        factors = stored.get("scaling_factor", torch.ones(LATENTS))
        out = sum((latents[index] * factors[index] * stored["W_dec"][index] for index in kept), stored["b_dec"])
        rows.append(out * scale + shift)
    return torch.stack(rows)


TOPK = {"kind": "topk", "k": K}
JUMPS = drawn(threshold=normal(LATENTS, seed=9).abs().float())
SCALED = drawn(scaling_factor=normal(LATENTS, seed=9).exp().float())
GATED = drawn({name: shape for name, shape in SHAPES.items() if name != "b_enc"} | GATES)
KNOWN = {
    "relu": ({}, {}, None),
    "topk, k among the options": ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}, TOPK, None),
    "topk, k beside": ({"activation_fn_str": "topk", "k": K}, TOPK, None),
    "topk, older name": ({"activation_fn_str": MISSING, "activation_fn": "topk", "k": K}, TOPK, None),
    "topk, no options": ({"activation_fn_str": "topk", "activation_fn_kwargs": None, "k": K}, TOPK, None),
    "topk, as an architecture": (
        {"architecture": "topk", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
        TOPK,
        None,
    ),
    "topk, of a later version": (
        {"activation_fn_str": "topk", "k": K, "metadata": {"sae_lens_version": "6.1.0"}},
        TOPK,
        None,
    ),
    "all of k": ({"activation_fn_str": "topk", "k": LATENTS}, {}, None),
    "b_dec stays": ({"apply_b_dec_to_input": False}, {"subtract": False}, None),
    "layer norm": ({"normalize_activations": "layer_norm"}, {"normalise": "layer_norm"}, None),
    "norm": ({"normalize_activations": "constant_norm_rescale"}, {"normalise": "constant_norm_rescale"}, None),
    "no norm": ({"normalize_activations": False}, {}, None),
    "jumprelu": ({"architecture": "jumprelu"}, {"kind": "jumprelu"}, JUMPS),
    "jumprelu in training": (
        {"architecture": "jumprelu", "jumprelu_bandwidth": 0.001},
        {"kind": "jumprelu"},
        {name: tensor for name, tensor in JUMPS.items() if name != "threshold"}
        | {"log_threshold": JUMPS["threshold"].log()},
    ),
    "gated": ({"architecture": "gated"}, {"kind": "gated"}, GATED),
    "fine-tuned": ({"finetuning_scaling_factor": True}, {}, SCALED),
    "fine-tuned topk": (
        {"finetuning_scaling_factor": True, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
        TOPK,
        SCALED,
    ),
    "a factor of 1": ({}, {}, drawn(scaling_factor=torch.ones(LATENTS))),
    "few entries": (dict.fromkeys(WRITTEN, MISSING), {}, None),
}


@pytest.mark.parametrize("name", KNOWN)
def test_an_old_sae_computes_what_it_computed(name, write):
    entries, options, tensors = KNOWN[name]
    sae = load_sae(write(tensors, **entries))
    x = 2 * normal(20, D_A, seed=5)
    assert sae.dtype == torch.float32 and sae.W_enc.device.type == "cpu"
    computed = JUMPS if name.startswith("jumprelu") else drawn() if tensors is None else tensors
    torch.testing.assert_close(sae.to(dtype=torch.float64)(x), naive(computed, x, **options), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"activation_fn_str": "tanh-relu"},
            "activation_fn='tanh-relu': expected relu, which SAELens computes for",
        ),
        ({"activation_fn_str": "gelu"}, "activation_fn='gelu': expected relu"),
        ({"activation_fn_str": "topk"}, "has no k: expected the number of latents that fire"),
        ({"activation_fn_str": "topk", "k": 0}, "has k=0: expected a whole number between 1 and its 64 latents"),
        ({"activation_fn_str": "topk", "k": LATENTS + 1}, "has k=65: expected a whole number"),
        ({"activation_fn_str": "topk", "k": 4.5}, r"has k=4\.5: expected a whole number"),
        ({"activation_fn_str": "topk", "k": True}, "has k=True: expected a whole number"),
        ({"activation_fn_str": "topk", "k": 3, "activation_fn_kwargs": {"k": 4}}, "has k=3 and k=4: expected"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3, "postact_fn": "tanh"}}, "postact_fn"),
        ({"k": 3}, "has k=3 and no activation_fn='topk': expected both or none"),
        ({"architecture": "topk"}, "has activation_fn='relu': expected topk"),
        ({"architecture": "topk", "activation_fn_str": MISSING}, "has no k"),
        ({"architecture": "gated", "activation_fn_str": "topk", "k": 3}, "'topk': expected relu, .* for 'gated'"),
        ({"activation_fn": "topk", "k": 3}, "has both activation_fn_str and activation_fn, and they differ"),
        ({"architecture": "vanilla"}, "is of architecture 'vanilla': expected one for inference"),
        ({"architecture": "jumprelu"}, r"other names or shapes, .* expected .*'threshold': \(64,\)"),
        (
            {"normalize_activations": "expected_average_only_in"},
            "normalize_activations='expected_average_only_in'",
        ),
        ({"normalize_activations": True}, "normalize_activations='expected_average_only_in'"),
        ({"normalize_activations": "tanh"}, "cannot be read: normalize_activations must be"),
        ({"apply_b_dec_to_input": "false"}, "has apply_b_dec_to_input='false': expected true or false"),
        ({"apply_b_dec_to_input": None}, "has apply_b_dec_to_input=None: expected true or false"),
        ({"dtype": "int8"}, "has dtype='int8': expected one of float16"),
        ({"d_in": 768}, r"says d_in=768 and has W_enc of shape \(12, 64\)"),
        ({"d_sae": "64"}, "says d_sae='64' and has W_enc of shape"),
        ({"metadata": "gpt2"}, "has metadata='gpt2': expected a mapping"),
        ({"sae_lens_version": "main"}, "cannot be read: Invalid version: 'main'"),
    ],
)
def test_old_saes_that_are_refused(entries, message, write):
    with pytest.raises(ValueError, match=message) as raised:
        load_sae(folder := write(**entries))
    assert "\n" not in str(raised.value) and folder in str(raised.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (SCALED, "holds a scaling factor, and says finetuning_scaling_factor=false"),
        ({}, "holds nothing: expected a matrix W_enc"),
        ({"encoder.weight": torch.zeros(3, 4)}, r"holds encoder\.weight: expected a matrix W_enc"),
        (drawn(b_dec=torch.zeros(D_A + 1)), r"other names or shapes, .*'b_dec': \(13,\).* expected .*'b_dec': \(12,\)"),
        (drawn(W_dec=torch.zeros(D_A, LATENTS)), r"'W_dec': \(12, 64\).* expected .*'W_dec': \(64, 12\)"),
        (drawn(b_enc=torch.full((LATENTS,), torch.inf)), "b_enc of the SAE .* holds values that are not finite"),
        (drawn(W_dec=torch.full((LATENTS, D_A), torch.nan).half()), "W_dec of the SAE .* values that are not finite"),
        (
            drawn(W_enc=torch.zeros(D_A, LATENTS, dtype=torch.int8)),
            "W_enc in .* is of torch.int8: expected weights",
        ),
    ],
)
def test_weights_that_are_refused(tensors, message, write):
    with pytest.raises(ValueError, match=message) as raised:
        load_sae(folder := write(tensors))
    assert "\n" not in str(raised.value) and folder in str(raised.value)


@pytest.mark.parametrize(
    "content", ["", "{'k': 3}", "[1, 2]", '"cfg"', "{\x00", "version https://git-lfs.github.com/spec"]
)
@pytest.mark.parametrize("broken", ["cfg.json", "sae_weights.safetensors"])
def test_files_that_are_broken(broken, content, write, tmp_path):
    write()
    (tmp_path / broken).write_text(content)
    with pytest.raises(ValueError, match=f"{broken} (cannot be read|holds a)") as raised:
        load_sae(str(tmp_path))
    assert "\n" not in str(raised.value)


def test_a_configuration_in_utf_16_and_one_with_a_mark(write, tmp_path):
    folder = write(dataset_path="Übung")
    text = (tmp_path / "cfg.json").read_text(encoding="utf-8")
    (tmp_path / "cfg.json").write_text(text, encoding="utf-8-sig")
    assert load_sae(folder).cfg.metadata.dataset_path == "Übung"
    (tmp_path / "cfg.json").write_text(text, encoding="utf-16")
    with pytest.raises(ValueError, match=r"cfg\.json cannot be read .*expected a configuration in JSON"):
        load_sae(folder)


@pytest.mark.parametrize("dtype", ["float16", "torch.bfloat16", "torch.float16"])
def test_half_precision_is_computed_in_float32(dtype, write):
    half = getattr(torch, dtype.removeprefix("torch."))
    tensors = {name: tensor.to(half) for name, tensor in drawn().items()}
    sae = load_sae(write(tensors, dtype=dtype, activation_fn_str="topk", k=K))
    x = 2 * normal(20, D_A, seed=5)
    assert sae.dtype == torch.float32 and sae.cfg.dtype == "float32"
    torch.testing.assert_close(sae(x.float()).double(), naive(tensors, x, **TOPK), rtol=1e-4, atol=1e-4)
    turn = torch.linalg.qr(normal(D_A, D_A, seed=7)).Q.float()
    carried = transfer_sae(sae, Stitch(turn, torch.zeros(D_A), turn.T.contiguous(), torch.zeros(D_A)))
    torch.testing.assert_close(carried(x.float() @ turn), sae(x.float()) @ turn, rtol=1e-3, atol=1e-3)


def test_where_an_old_sae_reads(write, tmp_path):
    of_point = dict.fromkeys(("hook_name", "hook_layer"), MISSING)
    sae = load_sae(write(hook_point="blocks.{layer}.hook_resid_pre", hook_point_layer=7, **of_point))
    assert sae.cfg.metadata.hook_name == "blocks.7.hook_resid_pre" and reads_elsewhere(sae, 7) is None
    assert load_sae(write(hook_name=None)).cfg.metadata.hook_name is None
    sae = load_sae(write(sae_lens_version="3.13.0", hook_name="blocks.2.hook_mlp_out"))
    assert reads_elsewhere(sae, 2) == "blocks.2.hook_mlp_out"
    save_sae(sae, tmp_path / "again")
    assert SAE.load_from_disk(tmp_path / "again").cfg.metadata.hook_name == "blocks.2.hook_mlp_out"
    assert load_sae(str(tmp_path / "again")).cfg.metadata.model_name == "gpt2-small"


@pytest.mark.parametrize(
    ("hook", "layer"),
    [
        ("blocks.3.hook_resid_pre", 3),
        ("blocks.3.hook_resid_post", 4),
        ("blocks.3.hook_in", 3),
        ("blocks.3.hook_out", 4),
        ("layers.3", 4),
        ("transformer.h.3", 4),
        ("gpt_neox.layers.3", 4),
        ("model.layers.3.output", 4),
        ("model.layers.3.mlp", None),
        ("layers.3.attention", None),
        ("blocks.3.hook_resid_mid", None),
        ("blocks.3.attn.hook_z", None),
        ("embed_in", None),
    ],
)
def test_hook_points(hook, layer):
    assert layer_read(hook) == layer


def test_checkpoints_of_training(tmp_path):
    """A checkpoint is saved with its training configuration, of which inference reads a part."""
    sae = make_training_sae("topk")
    sae.save_model(tmp_path / "topk")
    x = normal(20, D_A, seed=5)
    torch.testing.assert_close(load_sae(str(tmp_path / "topk"))(x), sae(x))
    scaled = make_training_sae("plain topk", normalize_activations="expected_average_only_in")
    scaled.save_model(tmp_path / "scaled")
    with pytest.raises(ValueError, match="normalize_activations='expected_average_only_in': expected its statist"):
        load_sae(str(tmp_path / "scaled"))
    scaled.fold_activation_norm_scaling_factor(3.0)
    scaled.save_model(tmp_path / "scaled")
    torch.testing.assert_close(load_sae(str(tmp_path / "scaled"))(x), scaled(x))


def test_saes_of_this_version_are_read_as_before(tmp_path):
    for number, kind in enumerate(("topk", "rescaled topk", "jumprelu", "relu")):
        sae, x = make_sae(kind), normal(20, D_A, seed=5)
        sae.cfg.metadata.hook_name = "blocks.1.hook_resid_pre"
        sae.save_model(tmp_path / str(number))
        found = load_sae(str(tmp_path / str(number)))
        assert torch.equal(found(x), sae(x)) and found.cfg.metadata.hook_name == "blocks.1.hook_resid_pre"
