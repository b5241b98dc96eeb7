"""Families that people bring, against transformers itself: folders, nested configurations, missing weights, no bos."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_families import FAMILIES, TOKENS, save_family
from transformers import AutoModelForCausalLM

from stitch_utils.data.pairs import ModelPair, ModelRef, Scale, TextRef
from stitch_utils.models.costs import architecture_of
from stitch_utils.models.generation import chat, encoded, generate_texts
from stitch_utils.models.language_model import check_pair, load_config, load_model


def agree(model, folder):
    """Compare residuals before each layer and logits with transformers' own."""
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        expected = reference(TOKENS, output_hidden_states=True)
    assert expected.logits.std() > 0.1, "the weights must matter for this test to say anything"
    torch.testing.assert_close(model.logits(TOKENS), expected.logits, rtol=1e-5, atol=1e-5)
    found = model.residuals(TOKENS, range(model.n_layers))
    for layer, residual in found.items():
        torch.testing.assert_close(residual, expected.hidden_states[layer], rtol=1e-5, atol=1e-5)
    assert len(found) == 3


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_equals_transformers(kind, tmp_path):
    save_family(kind, tmp_path)
    model = load_model(str(tmp_path), "cpu")
    agree(model, tmp_path)
    assert (model.n_layers, model.d_model, model.config.max_position_embeddings) == (3, 32, 64)
    assert max(model.agreement[:2]) < 1e-5, "as they were compared when it was loaded"


def test_the_readme_lists_the_families_that_agree():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    listed = readme.split("Families that load and agree, ")[1].split(":\n")[1].split(".\n")[0]
    assert re.findall(r"`(\w+)`", listed) == sorted(FAMILIES)


def test_a_configuration_that_nests_is_read_by_its_text_part(tmp_path):
    """A pair of such a model with itself: layers and context are checked against the text part."""
    save_family("gemma3", tmp_path)
    assert load_config(str(tmp_path)).num_hidden_layers == 3
    text = TextRef("world", "nested")

    def pair(layer, context):
        refs = {"a": ModelRef(str(tmp_path), layer), "b": ModelRef(str(tmp_path))}
        evaluation = TextRef("world", "other")
        scales = {"smoke": Scale(100, 100, 2, 2, 2)}
        return ModelPair(name="n", title="n", **refs, train=text, evaluation=evaluation, scales=scales, context=context)

    check_pair(pair(2, 64))
    with pytest.raises(ValueError, match=r"layer 3 of .* it has 3 layers"):
        check_pair(pair(3, 64))
    with pytest.raises(ValueError, match="reads 64 tokens at most"):
        check_pair(pair(2, 65))
    assert architecture_of(ModelRef(str(tmp_path))) is None, "its cost is not known, and ends nothing"


def test_weights_that_are_not_there_do_not_become_random_numbers(tmp_path):
    save_family("llama", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    left_out = [name for name in weights if name.startswith("model.layers.2.mlp")]
    kept = {name: weight for name, weight in weights.items() if name not in left_out}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"no weights for model\.layers\.2\.mlp\.down_proj\.weight and 2 more"):
        load_model(str(tmp_path), "cpu")
    config = json.loads((tmp_path / "config.json").read_text())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4, "layer_types": None}))
    with pytest.raises(ValueError, match=r"no weights for model\.layers\.3\.\S+ and \d+ more"):
        load_model(str(tmp_path), "cpu")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    save_family("qwen2", folder)
    return load_model(str(folder), "cpu")


def test_a_prompt_gets_no_token_that_was_not_written(qwen):
    assert qwen.tokenizer.bos_token_id is None
    (prompt,) = chat(qwen, ["Hello"])
    assert prompt == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert encoded(qwen, prompt, 1)[0] == qwen.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert encoded(qwen, "The cook", 1) == qwen.tokenizer("The cook", add_special_tokens=False)["input_ids"]
    with pytest.raises(ValueError, match="the prompt '' has no tokens"):
        encoded(qwen, "", 1)


def test_a_response_by_itself_begins_with_its_own_first_token(qwen):
    """Compared with transformers' loss on the response's tokens alone, which predicts all but the first."""
    (response,) = generate_texts(qwen, ["The cook bakes"], max_new_tokens=6)
    given = torch.tensor([encoded(qwen, "The cook bakes", 6)])
    new = qwen.generate(given, 6)[:, : response.tokens]
    reference = AutoModelForCausalLM.from_pretrained(qwen.ref, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        assert response.nll_alone == pytest.approx(reference(new, labels=new).loss.item(), abs=1e-4)
    assert response.nll_alone != pytest.approx(response.nll, abs=1e-3)
