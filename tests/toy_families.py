"""Random models of the families that people bring, as folders and as GGUF files, with tokenizers of their kinds."""

import json

import numpy as np
import pytest
import torch
from gguf import GGUFWriter, TokenType
from hub.vocabularies import CHATML, CHATML_TURNS, END_OF_TEXT
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from stitch_utils.data.embedded.world import documents
from stitch_utils.models.language_model import load_model

TOKENS = torch.randint(3, 384, (2, 24), generator=torch.Generator().manual_seed(0))  # longer than the windows
SPECIAL = [END_OF_TEXT, *CHATML_TURNS]
SIZES = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# A window shorter than the texts, and both kinds of attention.
GEMMA3 = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
GEMMA3 |= {"tie_word_embeddings": True, "query_pre_attn_scalar": 8}
CAPS = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 5.0}  # so low that they matter
VISION = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}
MIXTURE = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
FAMILIES = {
    "gpt2": {"num_key_value_heads": 4},
    "gpt_neox": {"num_key_value_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1], [["global"], 1]], "window_size": 6, "num_layers": 3},
    "gptj": {"rotary_dim": 4},
    "opt": {"ffn_dim": 56, "word_embed_proj_dim": 32},
    "phi": {},
    "phi3": {},
    "stablelm": {},
    "starcoder2": {"sliding_window": 6},
    "granite": {"residual_multiplier": 0.5, "embedding_multiplier": 2.0, "logits_scaling": 2.0},
    "olmo2": {},
    "olmo3": {"sliding_window": 6},
    "glm4": {},
    "mixtral": MIXTURE,
    "qwen3_moe": MIXTURE,
    "llama4_text": {"num_local_experts": 4, "intermediate_size_mlp": 40},
    "gemma": {},
    "gemma2": {"sliding_window": 6, "query_pre_attn_scalar": 8, "tie_word_embeddings": True, **CAPS},
    "llama": {},
    "mistral": {"sliding_window": 6},
    "qwen2": {},
    "qwen3": {},
    "smollm3": {"no_rope_layers": [1, 1, 0]},
    "gemma3_text": GEMMA3,
    "gemma3": {"text_config": SIZES | GEMMA3, "vision_config": VISION, "mm_tokens_per_image": 4},
}


def qwen_tokenizer(begin=None, *, size=384):
    """A byte-level tokenizer of that many tokens that has no token for the beginning of a text, unless one is given."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([document.text for document in documents("tiny families", stop=100)], trainer)
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"} | ({"bos_token": begin} if begin else {})
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=CHATML, additional_special_tokens=["<|im_start|>"], **names
    )


def save_family(kind, folder, **changes):
    """Save a random model of a family with that tokenizer; its weights are so large that every part of it matters."""
    given = FAMILIES[kind]
    config = AutoConfig.for_model(kind, **(given if "text_config" in given else SIZES | given) | changes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.1 if "norm" in name or name.endswith("bias") else 0.2))
            if "norm" in name and "gemma" not in kind:
                parameter.add_(1)
    model.save_pretrained(folder)
    qwen_tokenizer(None if kind.startswith("qwen") else "<|endoftext|>").save_pretrained(folder)
    return model


# The names of llama.cpp for those of transformers.
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
}
NORMS = {"post_attention_layernorm": "ffn_norm"}
GEMMA_NORMS = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
GEMMA_NORMS |= {"pre_feedforward_layernorm": "ffn_norm"}


def write_gguf(model, tokenizer, path, *, leave_out=(), add=(), split="gpt-2"):
    """Write a model as llama.cpp does: queries and keys of Llama in its order, norms of Gemma with the 1 added.

    `add` holds (key, value) of further texts; tensors are of 32 bits, matrices of layer 1 of 16.
    """
    config = model.config
    kind = config.model_type.removesuffix("_text")
    writer = GGUFWriter(path, kind)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    ropes = config.rope_parameters
    writer.add_rope_freq_base(ropes.get("full_attention", ropes)["rope_theta"])
    if kind == "gemma3":
        writer.add_sliding_window(config.sliding_window)
    else:
        writer.add_rope_dimension_count(head_dim)
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    control = set(tokenizer.all_special_tokens)
    writer.add_token_types([TokenType.CONTROL if token in control else TokenType.NORMAL for token in tokens])
    merges = tokenizer.backend_tokenizer.model.__getstate__()
    writer.add_token_merges([" ".join(merge) for merge in json.loads(merges)["merges"]])
    writer.add_bos_token_id(0)  # also for Qwen, as llama.cpp does, with the flag that it is not put before texts
    writer.add_add_bos_token(not kind.startswith("qwen"))
    writer.add_eos_token_id(2)
    writer.add_chat_template(tokenizer.chat_template)
    for key, value in add:
        writer.add_string(key, value)
    for name, weight in model.state_dict().items():
        for theirs, ours in (NAMES | (GEMMA_NORMS if kind == "gemma3" else NORMS)).items():
            name = name.replace(theirs, ours)
        if name in leave_out or (config.tie_word_embeddings and name == "output.weight"):
            continue
        value = weight.numpy()
        if kind == "llama" and (".attn_q." in name or ".attn_k." in name):
            # transformers keeps a head's halves apart, llama.cpp interleaves them
            heads = len(value) // head_dim
            value = value.reshape(heads, 2, head_dim // 2, -1).swapaxes(1, 2).reshape(value.shape)
        if kind == "gemma3" and "norm" in name:
            value = value + 1
        half = name.startswith("blk.1.") and value.ndim > 1
        writer.add_tensor(name, np.ascontiguousarray(value.astype(np.float16 if half else np.float32)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def halved(model):
    """Round the matrices of layer 1 as `write_gguf` does."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layers.1." in name and parameter.ndim > 1:
                parameter.copy_(parameter.half().float())
    return model


def rewrite(folder, change):
    """Save the weights that `change` makes of those of a folder."""
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def reconfigure(folder, **changes):
    """Change entries of a folder's config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def refused(folder, message, **options):
    """Expect one line that matches `message` when the folder is loaded."""
    with pytest.raises(ValueError, match=message) as said:
        load_model(str(folder), "cpu", **options)
    assert "\n" not in str(said.value) and len(str(said.value)) < 600
    return str(said.value)
