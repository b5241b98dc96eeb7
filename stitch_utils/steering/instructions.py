"""Instruction vectors: prompts with and without an instruction, and the direction between them.

App. F.2, after Stolfo et al. 2025. An instruction is a direction in the residual stream at the last token of the
prompt, after the chat template's own tokens, where the model has read everything and written nothing: the mean over
prompts that carry the instruction less the mean over the same prompts without it, at unit length. To steer, the
component along it is clamped (`steering.clamp`, Eqs. 8 and 9) at every position, by the paper to its mean over the
prompts with the instruction, while the prompt itself asks for nothing; `verifiers` then says whether the response
follows.

Prompts come in three parts that share none: one for the vector, one on which a strength is chosen, which also goes to
the vector where none is to be chosen, and one that is evaluated.

Offers `InstructionPrompt`, `instruction_kinds`, `instruction_prompts`, `chat`, `last_token_residuals`,
`instruction_means`, `means_of`, `instruction_vector`.
"""

from __future__ import annotations

import functools
import random
import zlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.embedded.grammar import load_lexicon
from ..data.embedded.world import requests
from ..data.pairs import DatasetRef, ModelPair, blaming
from ..data.text import TokenBatch, begin_and_end, padded_rows
from ..models.generation import encoded
from ..models.harvest import as_fits
from ..models.language_model import LanguageModel
from .prompts import named_rows
from .vectors import LanguageMeans, SteeringVector, steering_vector
from .verifiers import RULES, WORLD_INSTRUCTIONS, verify

SPLITS = ("fit", "choose", "evaluate")
WORLD_LANGUAGE = "fr"  # asked for by the world's instruction `language`: the most frequent one that is not English
WORLD_PROMPTS = 4000  # drawn from the world at most: it has several hundred that differ
# Of eight parts of the world's prompts, and of five of the prompts for one instruction of a data set, which go where.
WORLD_PARTS = ("fit", "fit", "choose", *["evaluate"] * 5)
ROW_PARTS = ("fit", "evaluate", "choose", "fit", "evaluate")
COLUMNS = ("prompt", "prompt_without_instruction", "instruction_id_list", "kwargs")
FAMILIES = {
    "change_case": "casing",
    "punctuation": "punctuation",
    "language": "language",
    "startend:end_checker": "closing",
}
REPLY = 1  # room for a reply, where prompts are only read


class InstructionPrompt(NamedTuple):
    """One request, without and with an instruction; neither has the chat template's tokens yet."""

    without: str
    given: str
    """The same with the instruction in words."""
    instruction_id: str
    """Of its rule in `verifiers`."""
    kwargs: Mapping[str, object] = MappingProxyType({})
    """What the rule needs."""

    def is_followed(self, response: str) -> bool:
        """Whether a response does what the instruction asks for, whichever prompt it answers."""
        return verify(self.instruction_id, response, **self.kwargs)


def instruction_kinds(pair: ModelPair) -> tuple[str, ...]:
    """The instructions that there are prompts for: the world's, or those with enough rows in the data set
    `instructions`."""
    if "instructions" not in pair.datasets:
        return tuple(WORLD_INSTRUCTIONS)
    with blaming(pair, "datasets: instructions"):
        found = _by_kind(pair.datasets["instructions"])
        usable = tuple(sorted(kind for kind, prompts in found.items() if len(prompts) >= len(ROW_PARTS)))
        if not usable:
            name = pair.datasets["instructions"].name
            raise ValueError(f"dataset {name!r}: no instruction has {len(ROW_PARTS)} prompts that can be verified")
    return usable


def family(instruction_id: str) -> str:
    """What sort of instruction it is: casing, punctuation, language, closing, or format."""
    return FAMILIES.get(instruction_id, FAMILIES.get(instruction_id.split(":")[0], "format"))


def instruction_prompts(
    pair: ModelPair, kind: str, count: int, split: str, *, choosing: bool = True
) -> list[InstructionPrompt]:
    """At most `count` different prompts for one instruction, of the part that `split` names: fit, choose or evaluate.
    Unless `choosing`, those of choose belong to fit.

    From the world, whose prompts are the same for every instruction; or from the data set `instructions` of the pair's
    file, a Hub id or the path or URL of a .jsonl file, with the columns of Stolfo et al.'s
    `ifeval_single_instr_format.jsonl`: IFEval's own, and `prompt_without_instruction`. ValueError for another split, a
    kind that has no prompts, or a data set without these columns.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected {', '.join(SPLITS)}")
    if kind not in (known := instruction_kinds(pair)):
        raise ValueError(f"unknown instruction {kind!r} for pair {pair.name!r}: known are {', '.join(known)}")
    parts = (split, "choose") if split == "fit" and not choosing else (split,)
    if "instructions" not in pair.datasets:
        return [prompt for prompt in _of_world(kind) if _part_of(prompt.without) in parts][:count]
    with blaming(pair, "datasets: instructions"):
        rows = _by_kind(pair.datasets["instructions"])[kind]
    return [prompt for index, prompt in enumerate(rows) if ROW_PARTS[index % len(ROW_PARTS)] in parts][:count]


def _part_of(prompt: str) -> str:
    """By the text alone, so that a prompt is in one part for every instruction and however many are drawn."""
    return WORLD_PARTS[zlib.crc32(prompt.encode()) % len(WORLD_PARTS)]


@functools.cache
def _of_world(kind: str) -> tuple[InstructionPrompt, ...]:
    lexicon = load_lexicon("en")
    kwargs = {"language": {"language": WORLD_LANGUAGE}, "closing": {"end_phrase": lexicon.closing}}.get(kind, {})
    words = lexicon.instructions[kind].format(closing=lexicon.closing, L=lexicon.language_names[WORLD_LANGUAGE])
    bare = dict.fromkeys(request.prompt for request in requests("instructions", WORLD_PROMPTS, instruction=kind))
    return tuple(InstructionPrompt(text, f"{text} {words}", WORLD_INSTRUCTIONS[kind], kwargs) for text in bare)


@functools.cache
def _by_kind(data: DatasetRef) -> dict[str, list[InstructionPrompt]]:
    """Prompts with one instruction that has a rule, by the instruction's name, in an order that their texts give."""

    def pick(row: dict) -> list:
        """What makes a prompt; nothing where there is no rule, or more than one instruction."""
        if missing := [column for column in COLUMNS if column not in row]:
            raise ValueError(
                f"{data.name!r} has no column {missing[0]!r}: its columns are {', '.join(row)}, expected those of "
                f"Stolfo et al.'s ifeval_single_instr_format.jsonl, {', '.join(COLUMNS)} among them"
            )
        if len(ids := row["instruction_id_list"]) != 1 or ids[0] not in RULES:
            return []
        kwargs = {name: value for name, value in ((row["kwargs"] or [{}])[0] or {}).items() if value is not None}
        return [row["prompt_without_instruction"].strip(), row["prompt"].strip(), ids[0], kwargs]

    found: dict[str, dict[str, InstructionPrompt]] = {}
    for row in filter(None, named_rows(data, pick, picked="instructions")):
        prompt = InstructionPrompt(*row)
        name = prompt.instruction_id.split(":")[1]
        if "language" in prompt.kwargs:  # an instruction for each language: one direction cannot ask for several
            name += f"_{prompt.kwargs['language']}"
        found.setdefault(name, {}).setdefault(prompt.without, prompt)
    return {name: _shuffled(prompts.values()) for name, prompts in found.items()}


def _shuffled(prompts) -> list[InstructionPrompt]:
    ordered = sorted(prompts, key=lambda prompt: prompt.without)
    random.Random("instructions").shuffle(ordered)
    return ordered


def last_token_residuals(
    model: LanguageModel, layer: int, prompts: Sequence[str], *, batch_size: int = 32
) -> Float[Tensor, "prompts d_model"]:
    """The residual stream before block `layer` at the last token of each prompt, on the CPU.

    Tokens such as those of a chat template are read as what they are. ValueError for no prompts, or one that is longer
    than what the model reads.
    """
    if not prompts:
        raise ValueError("no prompts given: expected at least one")
    rows = [encoded(model, prompt, REPLY) for prompt in prompts]

    found = torch.empty(len(rows), model.d_model)

    def read(batch: TokenBatch) -> None:
        last = batch.mask.sum(1) - 1
        residual = model.residuals(batch.tokens, [layer])[layer][torch.arange(len(last)), last]
        found[batch.documents[:, 0]] = residual.float().cpu()

    for _ in as_fits(padded_rows(rows, begin_and_end(model.tokenizer)[1], batch_size=batch_size), read):
        pass
    return found


def instruction_means(
    model: LanguageModel, layer: int, given: Sequence[str], without: Sequence[str], *, batch_size: int = 32
) -> LanguageMeans:
    """Mean streams at the last token of prompts without (`source`) and with (`target`) the instruction, which give the
    components along any direction."""
    return means_of(*(last_token_residuals(model, layer, texts, batch_size=batch_size) for texts in (without, given)))


def means_of(without: Float[Tensor, "prompts d_model"], given: Float[Tensor, "prompts d_model"]) -> LanguageMeans:
    """The means of `instruction_means`, of streams that have been read."""
    return LanguageMeans(*(stream.double().mean(0) for stream in (without, given)))


def instruction_vector(
    model: LanguageModel, layer: int, given: Sequence[str], without: Sequence[str], *, batch_size: int = 32
) -> SteeringVector:
    """The model's own vector for an instruction: unit difference of means at the last token of the prompts.

    Its `target`, the paper's z-bar, is the mean component at the last token of the prompts with the instruction.
    """
    return steering_vector(instruction_means(model, layer, given, without, batch_size=batch_size))
