r"""The text that the sister paper's maps are fitted on, and the tenth of it that they are validated on.

Bello et al. (arXiv 2506.00653): 10M tokens in rows of 512, a tenth of them for validation, from the Pile; for the
instruction-tuned models a third of chats (lmsys-chat-1m) and two thirds of the Pile. A pair's file may name both, as
the data sets `map_text` and `map_chats`; without them the maps are fitted on the pair's own training text. Special
tokens are masked out, of which that paper says nothing.

Offers `MapConfig`, `map_config`, `map_batches`, `map_stream`, `same_layers`.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import jinja2
import torch

from ..data.hub import dataset_rows
from ..data.pairs import DatasetRef, ModelPair, TextRef, blaming
from ..data.text import TokenBatch, text_rows, token_batches
from ..models.harvest import ActivationStream
from .pair import StitchedPair

VALIDATION = 10  # one row in ten is for validation
CHATS = 3  # one batch in three is of chats
KEPT_BYTES = 2**31  # activations up to this size are held in memory, so that each pass after the first is free


@dataclass(frozen=True)
class MapConfig:
    """What the maps are fitted on, and how."""

    tokens: int
    """Positions of text, those for validation included."""
    step_tokens: int
    """Tokens in a step of AdamW: 32 rows of 512 in the sister paper."""
    lr: float
    """The learning rate: in that paper 1e-4 for base models and 1e-3 for instruction-tuned ones."""
    epochs: int = 4
    context: int = 0
    """Positions of a row; 0 for the pair's own."""
    seed: int = 0
    """The seed of AdamW's initial weights."""

    def __post_init__(self):
        if min(self.tokens, self.step_tokens, self.epochs) < 1 or self.context < 0 or self.lr <= 0:
            raise ValueError(f"sizes and the learning rate must be positive: got {self}")


def map_config(pair: ModelPair, scale: str, *, lr: float = 0.0, seed: int = 0) -> MapConfig:
    """Look up the sizes of a scale, and replace the learning rate if one is given."""
    config = MapConfig(**pair.sizes_of("map_text", scale), seed=seed)
    return replace(config, lr=lr) if lr else config


def same_layers(stitched: StitchedPair) -> tuple[int, int]:
    """Give the sister paper's layers: before the block of the same number in both models (20 and 20 for Gemma 2)."""
    return stitched.layers[0], min(stitched.layers[0], stitched.models[1].n_layers - 1)


def map_batches(stitched: StitchedPair, config: MapConfig, *, held_out: bool) -> Iterator[TokenBatch]:
    """Give nine rows of ten of the text, or with `held_out` the others.

    Rows are divided, not documents: where documents share rows, the border may cut one. ValueError, naming the pair,
    for text that cannot be read.
    """
    number = 0
    for batch in _all_batches(stitched, config):
        rows = torch.arange(number, number + len(batch.tokens))
        number += len(batch.tokens)
        chosen = (rows % VALIDATION == VALIDATION - 1) == held_out
        if chosen.any():
            yield TokenBatch(*(part[chosen] for part in batch))


def _all_batches(stitched: StitchedPair, config: MapConfig) -> Iterator[TokenBatch]:
    """Give batches of plain text and of chats in turn, `CHATS` - 1 to one, and at the end those left over."""
    pair, tokenizer, batch_size = stitched.pair, stitched.tokenizer, stitched.sizes.batch_size
    longest = [getattr(model.config, "max_position_embeddings", None) for model in stitched.models]
    context = min([config.context or pair.context, *filter(None, longest)])
    sizes = {"context": context, "batch_size": batch_size}
    data, chats = pair.datasets.get("map_text"), pair.datasets.get("map_chats")
    text = TextRef("hub", **vars(data)) if data else pair.train
    share = config.tokens // CHATS if chats else 0
    plain = token_batches(text, tokenizer, rows=pair.rows, n_tokens=max(config.tokens - share, context), **sizes)
    plain = _blamed(pair, "datasets: map_text" if data else "text", plain)
    spoken = _blamed(pair, "datasets: map_chats", _chats(chats, tokenizer, n_tokens=share, **sizes) if chats else ())
    while batches := [*itertools.islice(plain, CHATS - 1), *itertools.islice(spoken, 1)]:
        yield from batches


def _blamed(pair: ModelPair, part: str, batches: Iterable[TokenBatch]) -> Iterator[TokenBatch]:
    with blaming(pair, part):
        yield from batches


def _chats(data: DatasetRef, tokenizer, *, context: int, batch_size: int, n_tokens: int) -> Iterator[TokenBatch]:
    """Give conversations in the chat template, each as a row; pass over those that the template refuses."""

    def pick(row: dict) -> list | None:
        if not isinstance(row.get("conversation"), list):
            raise ValueError(f"dataset {data.name!r} has no column 'conversation': its columns are {', '.join(row)}")
        return [[turn["role"], turn["content"]] for turn in row["conversation"]]

    def texts() -> Iterator[str]:
        source = {"config": data.config, "split": data.split, "revision": data.revision}
        for turns in dataset_rows(data.name, pick, picked="conversation", **source):
            messages = [{"role": role, "content": content} for role, content in turns]
            try:
                text = tokenizer.apply_chat_template(messages, tokenize=False)
            except jinja2.TemplateError:  # such as two turns of one speaker
                continue
            yield text.removeprefix(tokenizer.bos_token or "")

    source, read, first = texts(), 0, 0
    while read < n_tokens and (some := list(itertools.islice(source, batch_size))):
        for batch in text_rows(some, tokenizer, context=context, batch_size=batch_size):
            # Negative numbers, so that no chat counts as part of a document.
            yield batch._replace(documents=-1 - first - batch.documents)
            read += batch.tokens.numel()
        first += len(some)


def map_stream(
    stitched: StitchedPair, layers: tuple[int, int], config: MapConfig, *, held_out: bool = False
) -> ActivationStream:
    """Stream the activations of `map_batches` in steps of the config's size; hold up to two gigabytes in memory."""
    share = 1 / VALIDATION if held_out else 1 - 1 / VALIDATION
    size = 4 * config.tokens * share * sum(model.d_model for model in stitched.models)
    step_tokens = min(config.step_tokens, 256) if held_out else config.step_tokens
    batches = functools.partial(map_batches, stitched, config, held_out=held_out)
    return ActivationStream(*stitched.models, *layers, batches, step_tokens=step_tokens, keep=size <= KEPT_BYTES)
