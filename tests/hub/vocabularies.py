"""One small tokenizer for each family, of the family's class and with its special tokens at their places.

Stands in for the tokenizers of Pythia, GPT-2, Gemma 2 and 3, SmolLM2 and Qwen3. All are trained on English text of the
embedded world: Gemma's writes spaces as `▁` and falls back to bytes, since its class rebuilds just that; the others are
byte-level, and the last two split numbers into digits.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import GemmaTokenizer, GPT2Tokenizer, GPTNeoXTokenizer, PreTrainedTokenizerBase, Qwen2Tokenizer

from stitch_utils.data.embedded.world import documents

END_OF_TEXT = "<|endoftext|>"
CHATML_TURNS = ("<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n{{ turn['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = ("<start_of_turn>", "<end_of_turn>")
GEMMA_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *TURNS)
GEMMA_CHAT = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)


@functools.cache
def training_texts() -> list[str]:
    return [document.text for document in documents("vocabulary", stop=300, language="en", format="story")]


def _trained(tokenizer: Tokenizer, size: int, alphabet: Iterable[str] = ()) -> tuple[dict[str, int], list]:
    """Vocabulary and merges; characters of the alphabet, which the texts may lack, included."""
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=list(alphabet), show_progress=False)
    tokenizer.train_from_iterator(training_texts(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def _byte_level(size: int, split: pre_tokenizers.PreTokenizer | None = None) -> tuple[dict[str, int], list]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split or pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _trained(tokenizer, size, pre_tokenizers.ByteLevel.alphabet())


def _after(first: Iterable[str], vocabulary: dict[str, int]) -> dict[str, int]:
    """The vocabulary with these tokens in front."""
    first = list(first)
    return {token: index for index, token in enumerate(first)} | {
        token: index + len(first) for token, index in vocabulary.items()
    }


@functools.cache
def pythia_tokenizer() -> PreTrainedTokenizerBase:
    """End of text is 0 and padding 1."""
    vocabulary, merges = _byte_level(500)
    return GPTNeoXTokenizer(vocab=_after([END_OF_TEXT, "<|padding|>"], vocabulary), merges=merges)


@functools.cache
def gpt2_tokenizer() -> PreTrainedTokenizerBase:
    """End of text is the last token."""
    vocabulary, merges = _byte_level(500)
    return GPT2Tokenizer(vocab=vocabulary | {END_OF_TEXT: len(vocabulary)}, merges=merges)


@functools.cache
def gemma_tokenizer(*, chat: bool = False) -> PreTrainedTokenizerBase:
    """Puts `<bos>` in front of every text by itself; with the template of the instruction-tuned models if `chat`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    # The finished tokenizer splits nowhere; here a word is a word, or merges would run across them.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    vocabulary, merges = _trained(tokenizer, 350)
    in_front = [*GEMMA_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    gemma = GemmaTokenizer(
        vocab=_after(in_front, vocabulary), merges=merges, add_bos_token=True, extra_special_tokens=list(TURNS)
    )
    if chat:
        gemma.chat_template = GEMMA_CHAT
    return gemma


@functools.cache
def smollm_tokenizer(*, chat: bool = False) -> PreTrainedTokenizerBase:
    """End of text is 0, and begins and ends a text; if `chat`, the tokens around a turn do, and there is a template."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    split = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    vocabulary, merges = _byte_level(500, split)
    begin, end = CHATML_TURNS if chat else (END_OF_TEXT, END_OF_TEXT)
    named = {"bos_token": begin, "eos_token": end} | ({"pad_token": end} if chat else {})
    vocabulary = _after([END_OF_TEXT, *CHATML_TURNS], vocabulary)
    smollm = GPT2Tokenizer(vocab=vocabulary, merges=merges, extra_special_tokens=list(CHATML_TURNS), **named)
    if chat:
        smollm.chat_template = CHATML
    return smollm


@functools.cache
def qwen_tokenizer() -> PreTrainedTokenizerBase:
    """No token begins a text; end of text and the tokens around a turn come last."""
    vocabulary, merges = _byte_level(450, Qwen2Tokenizer().backend_tokenizer.pre_tokenizer)
    last = {token: len(vocabulary) + place for place, token in enumerate((END_OF_TEXT, *CHATML_TURNS))}
    return Qwen2Tokenizer(vocab=vocabulary | last, merges=merges, extra_special_tokens=list(CHATML_TURNS))
