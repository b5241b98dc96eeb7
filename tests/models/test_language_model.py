"""The adapter against transformers itself, and the identities that splicing must keep."""

import contextlib
import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModelForCausalLM, GPTNeoXForCausalLM

from stitch_utils.data.hub import resolve
from stitch_utils.data.pairs import load_pair
from stitch_utils.models import language_model
from stitch_utils.models.language_model import (
    LanguageModel,
    count_parameters,
    forget_models,
    load_model,
    load_models,
)

TOKENS = torch.tensor([[0, 17, 30, 44, 102, 7, 9, 250], [0, 5, 80, 81, 82, 83, 84, 85]])


@pytest.fixture(scope="module")
def reference(random_folders):
    return GPTNeoXForCausalLM.from_pretrained(random_folders / "b", dtype=torch.float32, attn_implementation="eager")


def test_logits_and_residuals_equal_transformers(random_models, reference):
    model = random_models[1]
    with torch.no_grad():
        expected = reference(TOKENS, output_hidden_states=True)
    torch.testing.assert_close(model.logits(TOKENS), expected.logits, rtol=0, atol=1e-5)
    for layers in ([0, 1, 2, 3], [2], [3, 0]):
        residuals = model.residuals(TOKENS, layers)
        assert sorted(residuals) == sorted(layers)
        for layer, residual in residuals.items():
            torch.testing.assert_close(residual, expected.hidden_states[layer], rtol=0, atol=1e-5)


def test_a_truncated_forward_does_not_run_the_blocks_behind(random_models):
    model = random_models[1]
    ran = []
    with watched(model, ran):
        model.residuals(TOKENS, [1])
    assert ran == [0], "reading before block 1 needs block 0 alone"


@contextlib.contextmanager
def watched(model, ran):
    """Adds to `ran` the number of each block whose MLP runs."""
    blocks = enumerate(model.bridge.blocks)
    handles = [block.mlp.register_forward_hook(lambda *_, index=index: ran.append(index)) for index, block in blocks]
    yield
    for handle in handles:
        handle.remove()


def test_a_known_stream_begins_at_its_block(random_models):
    model, ran = random_models[1], []
    whole, stream = model.logits(TOKENS), model.residuals(TOKENS, [2])[2]
    model.logits(TOKENS, layer=2, stream=stream)  # looks once at what blocks return
    with watched(model, ran):
        begun = model.logits(TOKENS, layer=2, stream=stream)
        moved = model.cross_entropy(TOKENS, layer=2, stream=stream, edit=lambda residual: residual + 1)
    assert ran == [2, 3, 2, 3]
    assert torch.equal(begun, whole), "the same blocks on the same stream give the same bits"
    assert torch.equal(moved, model.cross_entropy(TOKENS, layer=2, edit=lambda residual: residual + 1))
    assert torch.equal(model.logits(TOKENS), whole), "all blocks run again afterwards"


# In transformers some families' blocks return the stream, others a tuple.
@pytest.mark.parametrize("kind", ["gpt2", "gptj", "gpt_neo", "llama", "bloom"])
def test_other_families_begin_at_a_block_too(kind, random_models, tmp_path):
    sizes = {"vocab_size": 500, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    sizes |= {"gpt_neo": {"attention_types": [[["global", "local"], 2]]}, "gptj": {"rotary_dim": 4}}.get(kind, {})
    config = AutoConfig.for_model(kind, **sizes, eos_token_id=0, bos_token_id=0)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    random_models[0].tokenizer.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), "cpu")
    assert (model.n_layers, model.d_model) == (4, 32)
    for layer in (0, 1, 3):
        stream = model.residuals(TOKENS, [layer])[layer]
        assert stream.shape == (*TOKENS.shape, 32)
        assert torch.equal(model.logits(TOKENS, layer=layer, stream=stream), model.logits(TOKENS))
        edited = model.logits(TOKENS, layer=layer, stream=stream, edit=lambda residual: 2 * residual)
        assert torch.equal(edited, model.logits(TOKENS, layer=layer, edit=lambda residual: 2 * residual))
        assert not torch.equal(edited, model.logits(TOKENS))


def test_a_stream_needs_its_layer_and_the_shape_of_its_tokens(random_models):
    stream = random_models[0].residuals(TOKENS, [1])[1]
    for given, layer, message in (
        (stream, None, "not the layer that it stands before"),
        (stream, 9, "layer 9 of .* does not exist"),
        (stream[..., :5], 1, r"shape \(2, 8, 5\): expected \(2, 8, 32\)"),
    ):
        with pytest.raises(ValueError, match=message):
            random_models[0].logits(TOKENS, layer=layer, stream=given)
    assert torch.equal(random_models[0].logits(TOKENS, layer=1, stream=stream), random_models[0].logits(TOKENS))


def test_cross_entropy_is_the_loss_of_transformers(random_models, reference):
    ours = random_models[1].cross_entropy(TOKENS)
    assert ours.shape == (2, 7)
    with torch.no_grad():
        assert ours.mean().item() == pytest.approx(reference(TOKENS, labels=TOKENS).loss.item(), abs=1e-5)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_replacing_a_residual_by_itself_changes_nothing(random_models, layer):
    model = random_models[0]
    residual = model.residuals(TOKENS, [layer])[layer]
    spliced = model.cross_entropy(TOKENS, layer=layer, edit=lambda _: residual)
    torch.testing.assert_close(spliced, model.cross_entropy(TOKENS), rtol=0, atol=1e-5)


def test_replacing_a_residual_replaces_all_that_follows_from_it(random_models):
    model = random_models[0]
    other = model.residuals(TOKENS.flip(0), [2])[2]
    spliced = model.logits(TOKENS, layer=2, edit=lambda _: other)
    torch.testing.assert_close(spliced, model.logits(TOKENS.flip(0)), rtol=0, atol=1e-5)


def test_an_edit_of_another_shape_is_refused(random_models):
    with pytest.raises(ValueError, match=r"edit at layer 1 .* has shape \(2, 8, 31\): expected \(2, 8, 32\)"):
        random_models[0].logits(TOKENS, layer=1, edit=lambda residual: residual[..., :-1])


def test_hooks_are_gone_after_an_edit(random_models):
    model = random_models[0]
    before = model.logits(TOKENS)
    model.logits(TOKENS, layer=1, edit=torch.zeros_like)
    assert torch.equal(model.logits(TOKENS), before)


def test_generation_is_the_models_own_greedy_output(random_models, reference):
    with torch.no_grad():
        expected = TOKENS
        for _ in range(6):  # no cache: the naive way
            expected = torch.cat([expected, reference(expected).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(random_models[1].generate(TOKENS, 6), expected[:, 8:])


def test_edited_generation_equals_editing_every_full_forward(random_models):
    model = random_models[1]
    push = 3 * torch.linspace(-1, 1, model.d_model)
    expected = TOKENS
    for _ in range(6):
        logits = model.logits(expected, layer=2, edit=lambda residual: residual + push)
        expected = torch.cat([expected, logits[:, -1:].argmax(-1)], dim=1)
    edited = model.generate(TOKENS, 6, layer=2, edit=lambda residual: residual + push)
    assert torch.equal(edited, expected[:, 8:])
    assert not torch.equal(edited, model.generate(TOKENS, 6)), "the edit must matter for this test to say anything"


def test_sampling_is_seeded(random_models):
    model = random_models[0]
    draws = [model.generate(TOKENS, 8, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("layer", [3, -1, True])
def test_a_layer_that_does_not_exist(random_models, layer):
    with pytest.raises(ValueError, match=r"does not exist: it has 3 layers \(0-2\)"):
        random_models[0].hook_name(layer)


def test_wrong_dtype_and_wrong_places(random_folders, tmp_path):
    with pytest.raises(ValueError, match="unknown dtype 'int8': expected one of float32, bfloat16, float16"):
        load_model(str(random_folders / "a"), dtype="int8")
    with pytest.raises(ValueError, match="no embedded model 'tiny-c'"):
        resolve("embedded:tiny-c")
    with pytest.raises(ValueError, match=r"config\.json is not in it"):
        resolve(str(tmp_path))


def test_bfloat16_models_keep_their_precision(random_folders):
    model = load_model(str(random_folders / "a"), dtype="bfloat16")
    assert model.residuals(TOKENS, [1])[1].dtype == torch.bfloat16
    assert model.cross_entropy(TOKENS).dtype == torch.float32


@pytest.mark.parametrize("id", ["EleutherAI/pythia-160m-deduped", "openai-community/gpt2", "google/gemma-2-2b"])
def test_every_architecture_of_the_paper_equals_transformers(hub_root, id):
    folder = hub_root / "models" / id
    model = load_model(str(folder))
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    tokens = torch.randint(10, 200, (2, 24), generator=torch.Generator().manual_seed(0))  # longer than Gemma's window
    with torch.no_grad():
        expected = reference(tokens, output_hidden_states=True)
    torch.testing.assert_close(model.logits(tokens), expected.logits, rtol=0, atol=1e-4)
    layers = range(model.n_layers)
    for layer, residual in model.residuals(tokens, layers).items():
        torch.testing.assert_close(residual, expected.hidden_states[layer], rtol=1e-5, atol=1e-4)
    if "gemma" in id:  # the caps must matter, or their absence would not show
        reference.config.final_logit_softcapping = None
        with torch.no_grad():
            assert (reference(tokens).logits - expected.logits).abs().max() > 0.1


def test_a_model_that_is_loaded_already(random_folders, random_models):
    """A bridge of one's own gives the same streams, and is known by the name in its configuration."""
    folder, expected = random_folders / "b", random_models[1]
    hf_model = GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    parameters = sum(parameter.numel() for parameter in hf_model.parameters())
    bridge = TransformerBridge.boot_transformers(str(folder), hf_model=hf_model, tokenizer=expected.tokenizer)
    model = LanguageModel.from_bridge(bridge, expected.tokenizer)
    layers = range(expected.n_layers)
    for layer, residual in model.residuals(TOKENS, layers).items():
        assert torch.equal(residual, expected.residuals(TOKENS, layers)[layer])
    assert torch.equal(model.generate(TOKENS, 4), expected.generate(TOKENS, 4))
    assert (model.ref, model.config) == (str(folder), hf_model.config) == (expected.ref, model.config)
    assert count_parameters(model.config) == parameters < sum(p.numel() for p in bridge.parameters())
    assert (model.n_layers, model.d_model, model.device) == (4, 48, torch.device("cpu"))


def test_models_of_a_pair_stay_in_memory_until_they_are_forgotten(pair, random_folders):
    first = load_models(pair)
    assert all(again is model for again, model in zip(load_models(pair), first))
    halved = load_models(dataclasses.replace(pair, dtype="bfloat16"))
    assert load_models(pair)[0] is first[0] and halved[0] is not first[0]
    load_models(dataclasses.replace(pair, dtype="float16"))
    assert load_models(pair)[0] is first[0], "four are kept: those used last"
    assert load_models(dataclasses.replace(pair, dtype="bfloat16"))[0] is not halved[0]
    forget_models()
    assert load_models(pair)[0] is not first[0]
    assert load_model(pair.a.model) is not load_model(pair.a.model)


@pytest.mark.parametrize("placed", ["auto", {"": "cpu"}], ids=["auto", "by modules"])
def test_a_model_that_transformers_places(small_pair, random_folders, random_models, placed, monkeypatch):
    """On one device, as here, it computes what it would without; where there are GPUs, `auto` takes them."""
    pair = load_pair(small_pair(b={"model": str(random_folders / "b"), "layer": 2, "device_map": placed}))
    forget_models()
    given, load = [], language_model._from_anywhere

    def spied(kind, *ref, **options):
        given.append(options.get("device_map"))
        return load(kind, *ref, **options)

    monkeypatch.setattr(language_model, "_from_anywhere", spied)
    (_, model), expected = load_models(pair), random_models[1]
    assert load_models(pair)[1] is model and [one for one in given if one] == [placed]
    found, streams = (one.residuals(TOKENS, range(4)) for one in (model, expected))
    for layer, stream in found.items():
        torch.testing.assert_close(stream.cpu(), streams[layer].cpu())
    torch.testing.assert_close(model.cross_entropy(TOKENS).cpu(), expected.cross_entropy(TOKENS).cpu())
    with pytest.raises(ValueError, match=r"has a device_map: expected no device, and one process"):
        load_models(pair, "cpu")


THREADED = """
import torch
from stitch_utils.data.pairs import load_pair
from stitch_utils.models.language_model import set_threads

set_threads(load_pair("tiny"))
generator = torch.Generator().manual_seed(0)
x, w = (torch.randn(*shape, generator=generator) for shape in ((1024, 96), (96, 1024)))
for _ in range(50):
    w -= 1e-6 * x.T @ (x @ w)
print(torch.get_num_threads(), w.double().sum().item().hex())
"""


def test_the_embedded_pair_is_rounded_alike_whatever_the_threads():
    said = [
        subprocess.run(
            [sys.executable, "-c", THREADED],
            env=os.environ | {"OMP_NUM_THREADS": threads},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for threads in ("1", "3")
    ]
    assert said[0] == said[1] and said[0].startswith("1 ")
