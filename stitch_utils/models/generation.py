"""Responses to prompts of any length, and what they cost in fluency.

Sections 4 and F generate under steering and judge the text. A steered response can be word salad, so each comes with
its own model's loss on it, after its prompt and by itself: a change of language after the prompt raises only the first.

Offers `generate_texts` and `Response`; `encoded`, the tokens of a prompt, and `chat`, prompts in the chat template.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.tokenizer import begin_and_end
from ..utils.progress import progress
from .language_model import Edit, LanguageModel


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


def generate_texts(
    model: LanguageModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    layer: int | None = None,
    edit: Edit | None = None,
    batch_size: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    losses: bool = True,
    title: str = "responses",
) -> list[Response]:
    """Generate responses to `prompts`, in their order; special tokens in a prompt are read as such.

    `edit` is applied before block `layer` at every position of prompt and response. Prompts of similar length share a
    batch. The losses take two more passes, and are NaN if `losses` is False. ValueError for no prompts, or one that
    leaves no room for a response.
    """
    if not prompts:
        raise ValueError("no prompts given: expected at least one")
    ids = [encoded(model, prompt, max_new_tokens) for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    found: list[Response] = []
    for start in progress(range(0, len(order), batch_size), title):
        rows, end = [ids[index] for index in order[start : start + batch_size]], begin_and_end(model.tokenizer)[1]
        length = max(map(len, rows))  # padded on the left, as generation needs it
        tokens = torch.tensor([[end] * (length - len(row)) + row for row in rows])
        mask = torch.tensor([[False] * (length - len(row)) + [True] * len(row) for row in rows])
        options = {"layer": layer, "edit": edit, "temperature": temperature, "seed": seed + start}
        new = model.generate(tokens, max_new_tokens, mask=mask, **options).cpu()
        found += _responses(model, tokens, mask, new, losses)
    return [response for _, response in sorted(zip(order, found), key=lambda pair: pair[0])]


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
    return [Response(*row) for row in zip(texts, after.tolist(), alone.tolist(), lengths.tolist())]


def chat(model: LanguageModel, prompts: Sequence[str]) -> list[str]:
    """Write each prompt as a user's turn in the chat template, and begin the model's; ValueError without a template."""
    if not getattr(model.tokenizer, "chat_template", None):
        raise ValueError(f"the tokenizer of {model.ref!r} has no chat template: expected an instruction-tuned model")
    turns = ([{"role": "user", "content": prompt}] for prompt in prompts)
    return [model.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns]
