"""Checkpoints under the names, in the formats and of the architectures of the pairs, small and random.

Stands in for the weights of Pythia, GPT-2, Gemma 2 and 3, SmolLM2 and Qwen3. Depths, contexts, data types and
everything that makes an architecture special are the real ones; widths and vocabularies are small. `stand_in` in each
configuration says so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .vocabularies import (
    TURNS,
    gemma_tokenizer,
    gpt2_tokenizer,
    pythia_tokenizer,
    qwen_tokenizer,
    smollm_tokenizer,
)

# Initial weights are so small that every prediction is uniform and no logit comes near a cap. By part of the name.
FACTORS = {"lm_head": 15, "wte": 15, "embed_tokens": 50, "self_attn.q_proj": 20, "self_attn.k_proj": 20}
OTHER_FACTOR = 4
SHARD = "200KB"


@dataclass(frozen=True)
class Checkpoint:
    """One model: how to make it and how it is stored."""

    config: Callable[[PreTrainedTokenizerBase], PretrainedConfig]
    tokenizer: Callable[[], PreTrainedTokenizerBase]
    dtype: torch.dtype
    seed: int
    shard: str = "1GB"
    """Size at which the weights are split into files."""


def pythia_config(tokenizer, *, width: int, heads: int, layers: int) -> GPTNeoXConfig:
    return GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=2048,
        rotary_pct=0.25,
        use_parallel_residual=True,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        stand_in=True,
    )


def gpt2_config(tokenizer, *, width: int, layers: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=width,
        n_layer=layers,
        n_head=4,
        n_positions=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        stand_in=True,
    )


def rotary_config(tokenizer, *, kind: str, width: int, layers: int, **special) -> PretrainedConfig:
    """Of Llama and those that came after it: rotated queries, grouped keys, a gated MLP, a tied embedding."""
    given = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        stand_in=True,
        **given | special,
    )


def _pythia(seed: int, width: int, heads: int, layers: int) -> Checkpoint:
    config = functools.partial(pythia_config, width=width, heads=heads, layers=layers)
    return Checkpoint(config, pythia_tokenizer, torch.float16, seed)


def _gpt2(seed: int, width: int, layers: int) -> Checkpoint:
    return Checkpoint(functools.partial(gpt2_config, width=width, layers=layers), gpt2_tokenizer, torch.float32, seed)


def _rotary(tokenizer, seed: int, width: int, layers: int, *, shard: str = "1GB", **special) -> Checkpoint:
    config = functools.partial(rotary_config, width=width, layers=layers, **special)
    return Checkpoint(config, tokenizer, torch.bfloat16, seed, shard)


# The scale of Gemma's queries is not the width of a head and its window is short, so that ignoring them shows.
GEMMA = {"query_pre_attn_scalar": 16, "sliding_window": 16}
CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
gemma_chat, smollm_chat = (functools.partial(kind, chat=True) for kind in (gemma_tokenizer, smollm_tokenizer))
_gemma2 = functools.partial(_rotary, kind="gemma2", max_position_embeddings=8192, shard=SHARD, **GEMMA, **CAPS)
_gemma3 = functools.partial(_rotary, kind="gemma3_text", max_position_embeddings=32768, **GEMMA)
_smollm2 = functools.partial(_rotary, kind="llama", max_position_embeddings=8192)
_qwen3 = functools.partial(_rotary, qwen_tokenizer, kind="qwen3", max_position_embeddings=32768)
CHECKPOINTS = {
    "EleutherAI/pythia-70m-deduped": _pythia(1, 32, 4, 6),
    "EleutherAI/pythia-160m-deduped": _pythia(2, 48, 6, 12),
    "openai-community/gpt2": _gpt2(3, 32, 12),
    "openai-community/gpt2-medium": _gpt2(4, 40, 24),
    "google/gemma-2-2b": _gemma2(gemma_tokenizer, 5, 32, 26),
    "google/gemma-2-9b": _gemma2(gemma_tokenizer, 6, 40, 42),
    "google/gemma-2-2b-it": _gemma2(gemma_chat, 7, 32, 26),
    "google/gemma-2-9b-it": _gemma2(gemma_chat, 8, 40, 42),
    "google/gemma-3-270m": _gemma3(gemma_tokenizer, 9, 16, 18),
    "google/gemma-3-1b-pt": _gemma3(gemma_tokenizer, 10, 24, 26),
    "HuggingFaceTB/SmolLM2-135M": _smollm2(smollm_tokenizer, 11, 16, 30),
    "HuggingFaceTB/SmolLM2-360M": _smollm2(smollm_tokenizer, 12, 24, 32),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _smollm2(smollm_chat, 13, 16, 30),
    "Qwen/Qwen3-0.6B-Base": _qwen3(14, 16, 28),
    "Qwen/Qwen3-1.7B-Base": _qwen3(15, 24, 28),
}


@torch.no_grad()
def build(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model with random weights, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(checkpoint.seed)
        model = AutoModelForCausalLM.from_config(checkpoint.config(tokenizer), attn_implementation="eager")
    for name, weight in model.named_parameters():  # tied weights come once
        if weight.dim() > 1:
            weight.mul_(next((factor for part, factor in FACTORS.items() if part in name), OTHER_FACTOR))
    return model.to(checkpoint.dtype).eval()


def write_models(root: Path, names: Sequence[str] = tuple(CHECKPOINTS)) -> None:
    """The checkpoints, each at `root/models/<owner>/<name>`."""
    for name in names:
        checkpoint, folder = CHECKPOINTS[name], Path(root) / "models" / name
        tokenizer = checkpoint.tokenizer()
        model = build(checkpoint, tokenizer)
        if tokenizer.chat_template:  # an answer ends with its turn
            ends, vocabulary = (tokenizer.eos_token, TURNS[1]), tokenizer.get_vocab()
            model.generation_config.eos_token_id = [vocabulary[end] for end in ends if end in vocabulary]
        model.save_pretrained(folder, max_shard_size=checkpoint.shard)
        tokenizer.save_pretrained(folder)
