"""Responses to prompts of any length, and what they cost in fluency.

Sections 4 and F generate under steering and judge the text. A steered response can be word salad, so each comes with
its own model's loss on it, after its prompt and by itself: a change of language after the prompt raises only the first.
Few responses are long. Greedy ones are made in stages, each twice as long as the one before, and those that have ended
leave: a batch runs on for its longest response alone, not for all.

Offers `generate_texts` and `Response`; `encoded`, the tokens of a prompt, and `chat`, prompts in the chat template.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.tokenizer import begin_and_end
from ..utils.progress import progress
from .language_model import Edit, LanguageModel

FIRST_STAGE = 48  # tokens, after which rows that have ended leave their batch
RowEdits = Callable[[Sequence[int]], Edit]  # by the numbers of the prompts in a batch, in its order


class Response(NamedTuple):
    """A model's answer to a prompt."""

    text: str
    """The answer without special tokens."""
    nll: float
    """The unsteered model's loss on the response after its prompt, stop token included: nats a token."""
    nll_alone: float
    """The unsteered model's loss on the response after the beginning-of-text token alone.

    Without such a token, the loss on all but its first token; NaN for a response of one token."""
    tokens: int
    """The number of tokens, stop token included."""
    cut: bool = False
    """Whether the limit of tokens came before a stop token."""


def generate_texts(
    model: LanguageModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    layer: int | None = None,
    edit: Edit | None = None,
    edits: RowEdits | None = None,
    batch_size: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    losses: bool = True,
    title: str = "responses",
) -> list[Response]:
    """Generate responses to `prompts`, in their order; special tokens in a prompt are read as such.

    `edit` is applied before block `layer` at every position of prompt and response; where each prompt has its own,
    `edits` makes that of a batch. Prompts of similar length share a batch. The losses take two more passes, and are NaN
    if `losses` is False. ValueError for no prompts, or one that leaves no room for a response.
    """
    if not prompts:
        raise ValueError("no prompts given: expected at least one")
    ids = [encoded(model, prompt, max_new_tokens) for prompt in prompts]
    new: list[list[int]] = [[] for _ in ids]
    waiting, stage = [*range(len(ids))], max_new_tokens if temperature else min(max_new_tokens, FIRST_STAGE)
    while waiting:
        batches = _batches(waiting, [len(row) + len(more) for row, more in zip(ids, new)], batch_size)
        for start, batch in progress(batches, title):
            tokens, mask = _padded(model, [ids[index] + new[index] for index in batch])
            steered = edits(batch) if edits else edit
            options = {"layer": layer, "edit": steered, "temperature": temperature, "seed": seed + start}
            missing = stage - len(new[batch[0]])  # as many as for the others of the batch
            found = model.generate(tokens, missing, mask=mask, **options).tolist()
            for index, row in zip(batch, found):
                new[index] += _until_stop(row, model.stop_tokens)
        waiting = [i for i in waiting if stage < max_new_tokens and new[i][-1] not in model.stop_tokens]
        stage = min(2 * stage, max_new_tokens)
    answers: dict[int, Response] = {}
    for _, batch in _batches(range(len(ids)), [*map(len, ids)], batch_size):
        tokens, mask = _padded(model, [ids[index] for index in batch])
        after, _ = _padded(model, [new[index] for index in batch], left=False)
        answers |= zip(batch, _responses(model, tokens, mask, after, losses))
    return [answers[index] for index in range(len(ids))]


def _batches(numbers: Iterable[int], lengths: Sequence[int], size: int) -> list[tuple[int, list[int]]]:
    """Put prompts of similar length into batches of at most `size`, each with the place of its first in the order."""
    order = sorted(numbers, key=lambda number: lengths[number])
    return [(start, order[start : start + size]) for start in range(0, len(order), size)]


def _padded(model: LanguageModel, rows: Sequence[list[int]], *, left: bool = True) -> tuple[Tensor, Tensor]:
    """Pad rows with end-of-text, on the left as generation needs it or on the right; the mask tells what is not pad."""
    length, end = max(map(len, rows)), begin_and_end(model.tokenizer)[1]
    pads = [length - len(row) for row in rows]
    padded = [[end] * pad + row if left else row + [end] * pad for pad, row in zip(pads, rows)]
    places, pads = torch.arange(length), torch.tensor(pads)[:, None]
    return torch.tensor(padded), places >= pads if left else places < length - pads


def _until_stop(row: list[int], stops: Sequence[int]) -> list[int]:
    """Cut a row after the first token that ends a response."""
    return row[: next((place for place, token in enumerate(row) if token in stops), len(row)) + 1]


def encoded(model: LanguageModel, prompt: str, max_new_tokens: int) -> list[int]:
    """Tokenize a prompt after beginning-of-text, if there is such a token.

    ValueError for a prompt without tokens, or one that leaves no room for `max_new_tokens`.
    """
    tokenizer = model.tokenizer
    begin, _ = begin_and_end(tokenizer)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if begin is not None and ids[:1] != [begin]:  # some chat templates write it themselves
        ids = [begin, *ids]
    if not ids:
        raise ValueError(f"the prompt {prompt!r} has no tokens, and {model.ref!r} has none that begins a text")
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and len(ids) + max_new_tokens > longest:
        given = f"a prompt of {len(ids)} tokens ({prompt[:40]!r}...) and {max_new_tokens} new ones"
        raise ValueError(f"{given}: {model.ref!r} reads {longest} at most")
    return ids


def _responses(model: LanguageModel, tokens: Tensor, mask: Tensor, new: Tensor, losses: bool) -> list[Response]:
    """Cut new tokens after the first that ends a response, and compute their losses under the unsteered model."""
    stops = torch.isin(new, torch.tensor(model.stop_tokens))
    own = stops.cumsum(1) - stops.int() == 0  # no stop token stands before them
    lengths = own.sum(1)

    def mean_losses(before: Tensor, shown: Tensor) -> Tensor:
        found = model.cross_entropy(torch.cat([before, new], 1), mask=torch.cat([shown, own], 1)).cpu()
        found = found[:, -own.shape[1] :]
        predicted = own[:, own.shape[1] - found.shape[1] :]
        return (found * predicted).sum(1) / predicted.sum(1)

    after = alone = torch.full((len(new),), torch.nan)
    if losses:
        first = begin_and_end(model.tokenizer)[0]
        begin = torch.full((len(new), 0 if first is None else 1), first or 0)
        after, alone = mean_losses(tokens, mask), mean_losses(begin, begin == begin)
    texts = [model.tokenizer.decode(row[keep], skip_special_tokens=True).strip() for row, keep in zip(new, own)]
    columns = (after, alone, lengths, ~stops.any(1))
    return [Response(*row) for row in zip(texts, *(column.tolist() for column in columns))]


def chat(model: LanguageModel, prompts: Sequence[str]) -> list[str]:
    """Write each prompt as a user's turn in the chat template, and begin the model's; ValueError without a template."""
    if not getattr(model.tokenizer, "chat_template", None):
        raise ValueError(f"the tokenizer of {model.ref!r} has no chat template: expected an instruction-tuned model")
    turns = ([{"role": "user", "content": prompt}] for prompt in prompts)
    return [model.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns]
