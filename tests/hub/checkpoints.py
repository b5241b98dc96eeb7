"""Checkpoints under the names, in the formats and of the architectures of the pairs, small and random.

Stands in for the weights of Pythia, GPT-2 and Gemma 2. Depths, contexts, data types and everything that makes an
architecture special are the real ones; widths and vocabularies are small. `stand_in` in each configuration says so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .vocabularies import TURNS, gemma_tokenizer, gpt2_tokenizer, pythia_tokenizer

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


def gemma_config(tokenizer, *, width: int, layers: int) -> Gemma2Config:
    # The scale of the queries is not the width of a head and the window is short, so that ignoring them shows.
    return Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        query_pre_attn_scalar=16,
        sliding_window=16,
        max_position_embeddings=8192,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        stand_in=True,
    )


def _pythia(seed: int, width: int, heads: int, layers: int) -> Checkpoint:
    config = functools.partial(pythia_config, width=width, heads=heads, layers=layers)
    return Checkpoint(config, pythia_tokenizer, torch.float16, seed)


def _gpt2(seed: int, width: int, layers: int) -> Checkpoint:
    return Checkpoint(functools.partial(gpt2_config, width=width, layers=layers), gpt2_tokenizer, torch.float32, seed)


def _gemma(seed: int, width: int, layers: int, *, chat: bool = False) -> Checkpoint:
    config = functools.partial(gemma_config, width=width, layers=layers)
    return Checkpoint(config, functools.partial(gemma_tokenizer, chat=chat), torch.bfloat16, seed, SHARD)


CHECKPOINTS = {
    "EleutherAI/pythia-70m-deduped": _pythia(1, 32, 4, 6),
    "EleutherAI/pythia-160m-deduped": _pythia(2, 48, 6, 12),
    "openai-community/gpt2": _gpt2(3, 32, 12),
    "openai-community/gpt2-medium": _gpt2(4, 40, 24),
    "google/gemma-2-2b": _gemma(5, 32, 26),
    "google/gemma-2-9b": _gemma(6, 40, 42),
    "google/gemma-2-2b-it": _gemma(7, 32, 26, chat=True),
    "google/gemma-2-9b-it": _gemma(8, 40, 42, chat=True),
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
            model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(TURNS[1])]
        model.save_pretrained(folder, max_shard_size=checkpoint.shard)
        tokenizer.save_pretrained(folder)
