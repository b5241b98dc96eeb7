"""Models that are not what their files say: weights, shapes, shards, code of their own, families."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from toy_families import SIZES, TOKENS, halved, qwen_tokenizer, reconfigure, refused, rewrite, save_family, write_gguf
from transformers import AutoConfig, AutoModelForCausalLM, dynamic_module_utils
from transformers.models.llama import modeling_llama

from stitch_utils.data.pairs import ModelRef, load_pair
from stitch_utils.models.costs import architecture_of
from stitch_utils.models.language_model import check_pair, count_parameters, load_config, load_model, load_models

# Weights


@pytest.mark.parametrize(
    ("rename", "meaning"),
    [
        (lambda name: f"_orig_mod.{name}", "'_orig_mod' in the names: torch.compile"),
        (lambda name: f"module.{name}", "'module' in the names: DataParallel"),
        (lambda name: f"base_model.model.{name}", "'base_model.model' in the names: PEFT"),
        (lambda name: f"_fsdp_wrapped_module.{name}", "'_fsdp_wrapped_module' in the names: FSDP"),
        (lambda name: name.replace(".mlp.", "._checkpoint_wrapped_module.mlp."), "'_checkpoint_wrapped_module' in"),
        (lambda name: f"student.{name}", r"the names begin with 'student\.': take it away"),
    ],
)
def test_names_with_a_prefix_are_explained(llama, rename, meaning):
    rewrite(llama, lambda weights: {rename(name): weight for name, weight in weights.items()})
    assert "no weights for" in refused(llama, meaning)


@pytest.mark.parametrize(("says", "has"), [(6, 3), (4, 3), (2, 3), (1, 3)])
def test_a_configuration_of_other_layers(llama, says, has):
    reconfigure(llama, num_hidden_layers=says, layer_types=None)
    refused(llama, rf"config\.json says {says} layers, and the weights have {has}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {n: t for n, t in w.items() if ".1." not in n}, r"no weights for model\.layers\.1\.\S+ and 8 more"),
        (lambda w: {n: t for n, t in w.items() if n != "model.norm.weight"}, r"no weights for model\.norm\.weight:"),
        (lambda w: {n: t for n, t in w.items() if n != "lm_head.weight"}, "must say `tie_word_embeddings: true`"),
        (
            lambda w: w | {"model.layers.1.self_attn.q_proj.bias": torch.ones(32)},
            r"has weights for model\.layers\.1\.self_attn\.q_proj\.bias, which has no place",
        ),
        (lambda w: w | {"lm_head.bias": torch.ones(384)}, r"has weights for lm_head\.bias, which has no place"),
        (lambda w: w | {"score.weight": torch.ones(2, 32)}, r"has weights for score\.weight"),
        (
            lambda w: w | {"model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(4, 32)},
            "belongs to an adapter of PEFT",
        ),
        (
            lambda w: {n.replace("up_proj.weight", "up_proj.qweight"): t for n, t in w.items()},
            "these are quantised weights",
        ),
    ],
    ids=["a layer", "a norm", "the unembedding", "a bias", "its bias", "a classifier", "an adapter", "quantised"],
)
def test_weights_that_are_missing_or_left_over(llama, change, message):
    rewrite(llama, change)
    refused(llama, message)


def test_ties_and_what_no_next_token_depends_on_are_no_missing_keys(llama, tmp_path):
    expected = load_model(str(llama), "cpu").logits(TOKENS)
    idle = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "v_head.summary.weight": torch.ones(1, 32)}
    idle |= {"vision_tower.patch.weight": torch.ones(3), "model.layers.2.attention.bias": torch.ones(1, 1, 8, 8)}
    rewrite(llama, lambda weights: weights | idle)
    assert torch.equal(load_model(str(llama), "cpu").logits(TOKENS), expected)
    save_family("llama", tmp_path / "tied", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    tied = load_model(str(tmp_path / "tied"), "cpu").hf_model
    assert torch.equal(tied.get_output_embeddings().weight, tied.get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("changes", "says", "message"),
    [
        ({}, 2, r"has weights for blk\.2\.\S+ and 8 more, .* says 2 layers, and the weights have 3"),
        ({}, 5, r"no weights for model\.layers\.3\.\S+ and 17 more: .* says 5 layers, and the weights have 3"),
        ({"attention_bias": True}, 3, r"has weights for blk\.0\.attn_k\.bias and 11 more"),
    ],
    ids=["fewer", "more", "biases"],
)
def test_gguf_files_too(changes, says, message, tmp_path):
    model = halved(save_family("llama", tmp_path, **changes))
    model.config.num_hidden_layers = says
    write_gguf(model, qwen_tokenizer("<|endoftext|>"), tmp_path / "odd.gguf")
    refused(tmp_path / "odd.gguf", message)


# Shapes, shards, broken files


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 390}, r"lm_head\.weight of shape \(384, 32\) and 1 more, .* makes it \(390, 32\): expected"),
        ({"vocab_size": 100}, r"lm_head\.weight of shape \(384, 32\) and 1 more, .* makes it \(100, 32\): expected"),
        ({"intermediate_size": 60}, r"layers\.0\.mlp\.down_proj\.weight of shape \(32, 56\) and 8 more"),
        ({"num_key_value_heads": 4}, r"layers\.0\.self_attn\.k_proj\.weight of shape \(16, 32\) and 5 more"),
    ],
)
def test_weights_of_other_shapes(llama, changes, message):
    reconfigure(llama, **changes)
    refused(llama, message)


def test_a_part_that_is_missing(llama, made):
    AutoModelForCausalLM.from_pretrained(made).save_pretrained(llama, max_shard_size="40KB")
    (llama / "model.safetensors").unlink(missing_ok=True)
    parts = sorted(llama.glob("model-*.safetensors"))
    assert len(parts) > 2
    load_model(str(llama), "cpu")
    parts[1].unlink()
    refused(llama, rf"lacks {parts[1].name}, which model\.safetensors\.index\.json names: put it there again")
    parts[0].unlink()
    refused(llama, rf"lacks {parts[0].name} and 1 more")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["{", "", "\xff"], ids=["cut", "empty", "other bytes"])
def test_files_that_are_no_json(llama, name, content):
    """A broken generation_config.json is passed over by transformers, and responses would end elsewhere."""
    (llama / name).write_bytes(content.encode("latin-1"))
    refused(llama, rf"llama': {name} is no valid JSON \(.*\): put it there again")


@pytest.mark.parametrize("content", ["{", "", "\xff"], ids=["cut", "empty", "other bytes"])
def test_a_file_of_the_hub_that_is_no_json_is_named_offline_too(llama, tmp_path, monkeypatch, content):
    commit = "0" * 40
    kept = tmp_path / "models--lab--broken"
    shutil.copytree(llama, kept / "snapshots" / commit)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    load_model("lab/broken", "cpu")
    (kept / "snapshots" / commit / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"lab/broken': config.json is no valid JSON \(.*\): put it there again"):
        load_model("lab/broken", "cpu")


@pytest.mark.parametrize(
    "method",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "awq", "bits": 4, "group_size": 32},
        {"quant_method": "hqq", "quant_config": {}},
        {"quant_method": "torchao", "quant_type": "int8"},
    ],
    ids=lambda method: method["quant_method"],
)
def test_a_quantised_checkpoint_without_its_library(llama, method):
    reconfigure(llama, quantization_config=method)
    refused(llama, rf"is quantised by {method['quant_method']}, and cannot be read here \(.+\): take weights that are")


def test_a_token_that_has_no_embedding(llama):
    model = load_model(str(llama), "cpu")
    for ask in (model.logits, lambda tokens: model.residuals(tokens, [1])):
        with pytest.raises(
            ValueError, match=r"the text holds the token 384 \(None\), and .* has embeddings for 384: take"
        ):
            ask(torch.tensor([[3, 384]]))


# Code


CONFIGURATION = """
from pathlib import Path
from transformers import LlamaConfig
Path(__file__).with_name("ran").touch()
class MyConfig(LlamaConfig):
    model_type = "my-llama"
"""
MODEL = """
from transformers import LlamaForCausalLM as Llama
from .configuration_my import MyConfig
class LlamaForCausalLM(Llama):
    config_class = MyConfig
"""
OWN = {"AutoConfig": "configuration_my.MyConfig", "AutoModelForCausalLM": "modeling_my.LlamaForCausalLM"}


@pytest.fixture
def own_code(llama, tmp_path, monkeypatch):
    """A model that cannot be loaded without code of its folder; nobody is asked."""
    (llama / "configuration_my.py").write_text(CONFIGURATION)
    (llama / "modeling_my.py").write_text(MODEL)
    reconfigure(llama, model_type="my-llama", auto_map=OWN)
    monkeypatch.setattr("builtins.input", lambda *said: pytest.fail("a question was asked"))
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return llama


def has_run(folder):
    return any(folder.parent.rglob("ran"))


def test_code_of_a_repository_does_not_run(own_code):
    refused(own_code, r"brings code of its own \(auto_map .* `trust_remote_code: true` beside")
    assert not has_run(own_code)


def test_code_runs_where_the_pairs_file_says_so(own_code, made, tmp_path):
    given = f"name: mine\na: {{model: {made}, layer: 1}}\nb: {{model: {own_code}}}\ntext: my.txt\ncontext: 20\n"
    (tmp_path / "mine.yml").write_text(given)
    with pytest.raises(ValueError, match=r"pair 'mine' .*, model b: .*llama' brings code of its own"):
        check_pair(load_pair(tmp_path / "mine.yml"))
    assert not has_run(own_code)
    (tmp_path / "mine.yml").write_text(given.replace("}\ntext", ", trust_remote_code: true}\ntext"))
    model = load_models(load_pair(tmp_path / "mine.yml"))[1]
    assert has_run(own_code) and model.config.model_type == "my-llama"
    assert torch.equal(model.logits(TOKENS), load_model(str(made), "cpu").logits(TOKENS))
    assert count_parameters(model.config) == sum(
        each.numel() for each in load_file(made / "model.safetensors").values()
    )


def test_code_for_a_known_family_is_not_passed_over(llama):
    """transformers would load its own class of that family, which may compute something else."""
    reconfigure(llama, auto_map=OWN)
    load_model(str(llama), "cpu")  # its class has the same name
    reconfigure(llama, auto_map=OWN, architectures=["LlamaWithMemoryForCausalLM"])
    refused(llama, "brings code of its own")


# Families


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("bert", "an encoder, whose"),
        ("roberta", "an encoder, whose"),
        ("modernbert", "an encoder, whose"),
        ("t5", "an encoder with a decoder"),
        ("bart", "an encoder with a decoder"),
        ("whisper", "an encoder with a decoder"),
        ("vit", "of which transformers has no language model"),
        ("clip", "of which transformers has no language model"),
    ],
)
def test_other_kinds_of_models_are_refused_by_name(llama, kind, what):
    AutoConfig.for_model(kind).save_pretrained(llama)
    said = refused(llama, rf"of the family '{kind}', {what}.*: expected a causal language model")
    with pytest.raises(ValueError) as again:
        load_config(str(llama))
    assert str(again.value) == said


def test_families_that_nobody_knows(llama):
    reconfigure(llama, model_type="newer-than-this")
    refused(llama, "cannot be loaded .*`newer-than-this` but Transformers does not recognize")
    config = json.loads((llama / "config.json").read_text())
    del config["model_type"]
    (llama / "config.json").write_text(json.dumps(config))
    refused(llama, "cannot be loaded .*model_type")


def test_a_model_whose_tokens_see_those_after_them(llama, monkeypatch):
    """A llama without its mask, as families that write texts by diffusion are."""
    monkeypatch.setattr(modeling_llama, "create_causal_mask", lambda **given: None)
    refused(llama, r"\(llama\) lets tokens see those after them: expected a causal language model")


def test_costs_that_are_not_known_end_nothing(tmp_path):
    for kind in ("cohere", "stablelm", "olmo2", "made-up"):
        assert architecture_of(ModelRef("no/model", config={"model_type": kind})) is None
    text = SIZES | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
    nested = AutoConfig.for_model("qwen2_5_vl", text_config=text).get_text_config()
    alone = AutoConfig.for_model("qwen2", **SIZES)
    assert count_parameters(nested) == count_parameters(alone), "the text part is Qwen2"


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"preprocessor_config.json": {"image_processor_type": "Gemma3ImageProcessorFast"}},
        {"processor_config.json": {"processor_class": "NoSuchProcessor"}},
    ],
    ids=["no processor", "one that needs torchvision", "an unknown one"],
)
def test_nothing_is_installed_for_the_images_of_a_model_that_reads_them_too(tmp_path, monkeypatch, files):
    """TransformerBridge has pip install torchvision where it cannot load a processor."""
    save_family("gemma3", tmp_path / "gemma3")
    for name, content in files.items():
        (tmp_path / "gemma3" / name).write_text(json.dumps(content))
    called = []
    for name in ("check_call", "run", "Popen"):
        monkeypatch.setattr(subprocess, name, lambda *given, **options: called.append(given))
    assert load_model(str(tmp_path / "gemma3"), "cpu").n_layers == 3
    assert called == []
