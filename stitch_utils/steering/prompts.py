"""What steering experiments read: parallel sentences, prompts that ask for no language, and instructions.

Section 4, App. F: vectors come from the first pairs of sentences of EuroParl, responses from 163 prompts of IFEval with
their instructions taken out, as Stolfo et al. published them. App. F.2 takes the same prompts with and without. Where a
pair's file names no such data, the embedded world has its own. Vectors, the choice of a strength and the evaluation
have prompts of their own, so prompts come in parts that share none. A data set has few prompts for an instruction:
they are split in folds, each of which is evaluated once, with vectors and strengths from the others.

Offers `languages`, `parallel_pairs`, `steering_prompts`, `as_turn`; `InstructionPrompt`, `instruction_kinds`,
`instruction_folds`, `instruction_prompts`; and to read any of these data sets `named_rows`, `text_columns`.
"""

import functools
import hashlib
import itertools
import json
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from huggingface_hub import constants

from ..data.embedded.grammar import LANGUAGES, load_lexicon
from ..data.embedded.world import parallel_sentences, requests
from ..data.hub import HubError, dataset_rows, remembered
from ..data.pairs import DatasetRef, ModelPair, blaming, check_known
from .verifiers import RULES, WORLD_INSTRUCTIONS, verify

# The languages of EuroParl beside English: the rows of Tables 5 and 6.
EUROPARL = ("bg", "cs", "da", "de", "el", "es", "et", "fi", "fr", "hu")
EUROPARL += ("it", "lt", "lv", "nl", "pl", "pt", "ro", "sk", "sl", "sv")
PROMPT_COLUMN = "prompt_without_instruction"
SPLITS = ("chosen", "evaluated", "all")
CHOSEN_SHARE = 4  # one prompt in so many is for choosing a strength
WORLD_PROMPTS = 4000  # drawn from the world at most: it has several hundred that differ
INSTRUCTION_SPLITS = ("fit", "chosen", "evaluated")
# Which of eight parts of the world's prompts, and which folds of the prompts for one instruction of a data set, counted
# from the one that is evaluated, go where.
WORLD_PARTS = ("fit", "fit", "chosen", *["evaluated"] * 5)
FOLD_PARTS = ("evaluated", "chosen", "fit", "fit", "fit")
COLUMNS = ("prompt", PROMPT_COLUMN, "instruction_id_list", "kwargs")
WORLD_LANGUAGE = "fr"  # asked for by the world's instruction `language`: the most frequent one that is not English


def languages(pair: ModelPair) -> tuple[str, ...]:
    """List the languages that the pair can be steered towards from English, by langdetect's codes."""
    return EUROPARL if "parallel" in pair.datasets else tuple(code for code in LANGUAGES if code != "en")


def parallel_pairs(pair: ModelPair, language: str, count: int) -> list[tuple[str, str]]:
    """Read the first `count` (English, `language`) sentences, from the world or the pair's data set `parallel`.

    A data set is one whose configurations are named by two codes in alphabetical order, with a column `translation`
    such as {"en": ..., "fr": ...}. ValueError if it has no rows for the language; HubError if it cannot be had.
    """
    if "parallel" not in pair.datasets:
        check_known("language of the embedded world", language, languages(pair))
        return parallel_sentences("steering", count, language)
    data, config = pair.datasets["parallel"], "-".join(sorted(("en", language)))

    def pick(row: dict) -> list[str] | None:
        said = row.get("translation")
        if not isinstance(said, dict) or not {"en", language} <= set(said):
            raise ValueError(f"dataset {data.name!r}, {config!r}: expected translations {{'en': .., {language!r}: ..}}")
        both = [said["en"], said[language]]
        return both if all(text and text.strip() for text in both) else None

    with blaming(pair, "datasets: parallel"):
        nothing = f"dataset {data.name!r} has no rows in 'en' and {language!r}"
        try:
            source = {"config": config, "split": data.split, "revision": data.revision}
            rows = dataset_rows(data.name, pick, picked="translation", **source)
            found = [(english, other) for english, other in itertools.islice(rows, count)]
        except ValueError as error:  # `datasets` names the configuration that it does not find
            if isinstance(error, HubError) or "BuilderConfig" not in str(error):
                raise
            raise ValueError(f"{nothing}, no {config!r}") from error
        if not found:
            raise ValueError(nothing)
    return found


def steering_prompts(pair: ModelPair, count: int, *, tokenizer, split: str = "evaluated") -> list[str]:
    """List at most `count` different prompts, as the model should read them: in its chat template if there is one.

    `split` is `chosen` for those on which a strength is chosen, `evaluated` for the others, `all` for both. They come
    from the column `prompt_without_instruction` of the data set `prompts` of the pair's file, else from the world.
    ValueError for another split, and for data without prompts.
    """
    check_known("split", split, SPLITS)
    with blaming(pair, "datasets: prompts"):
        texts = _of_world("steering")
        if data := pair.datasets.get("prompts"):
            rows = named_rows(data, lambda row: text_columns(row, [PROMPT_COLUMN], data.name)[0], picked=PROMPT_COLUMN)
            texts = dict.fromkeys(map(str.strip, rows))  # each once, in order
        # by the text alone, so that a prompt is in one part however many are drawn
        parts = {text: "evaluated" if zlib.crc32(text.encode()) % CHOSEN_SHARE else "chosen" for text in texts if text}
        part = [text for text in parts if split in ("all", parts[text])]
        if not part:
            raise ValueError(f"no prompts for split {split!r} among {len(texts)}")
    return [as_turn(tokenizer, text) for text in part[:count]]


def as_turn(tokenizer, text: str, *, cue: str = "") -> str:
    """Put a text as a user's turn in the chat template where there is one, else before a cue."""
    if not tokenizer.chat_template:
        return text + cue
    turn = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)


@functools.cache
def _of_world(seed: str, instruction: str | None = None) -> tuple[str, ...]:
    """Draw requests of the world, each once."""
    return tuple(dict.fromkeys(one.prompt for one in requests(seed, WORLD_PROMPTS, instruction=instruction)))


class InstructionPrompt(NamedTuple):
    """One request, without and with an instruction; neither has the chat template's tokens yet."""

    without: str
    given: str
    """The request with the instruction in words."""
    instruction_id: str
    """The id of its rule in `verifiers`."""
    kwargs: Mapping[str, object]
    """What the rule needs."""

    def is_followed(self, response: str) -> bool:
        """Whether a response does what the instruction asks for, whichever prompt it answers."""
        return verify(self.instruction_id, response, **self.kwargs)


def instruction_kinds(pair: ModelPair) -> tuple[str, ...]:
    """List the instructions with prompts: the world's, or those with enough rows in the data set `instructions`."""
    if "instructions" not in pair.datasets:
        return tuple(WORLD_INSTRUCTIONS)
    with blaming(pair, "datasets: instructions"):
        data = pair.datasets["instructions"]
        usable = tuple(sorted(kind for kind, found in _by_kind(data).items() if len(found) >= len(FOLD_PARTS)))
        if not usable:
            raise ValueError(
                f"dataset {data.name!r}: no instruction has {len(FOLD_PARTS)} prompts that can be verified"
            )
    return usable


def instruction_folds(pair: ModelPair) -> int:
    """Count the folds of the prompts for an instruction: one of the world's, of which there is no end."""
    return len(FOLD_PARTS) if "instructions" in pair.datasets else 1


def instruction_prompts(
    pair: ModelPair, kind: str, count: int, split: str, *, choosing: bool = True, fold: int = 0
) -> list[InstructionPrompt]:
    """List at most `count` different prompts for one instruction, of a split: fit, chosen or evaluated.

    Each is evaluated in one `fold`. Where no strength is chosen (`choosing=False`), the prompts of the split `chosen`
    belong to `fit`. From the world, whose prompts are the same for every instruction; or from the data set
    `instructions` of the pair's file, with the columns of Stolfo et al.'s `ifeval_single_instr_format.jsonl`.
    ValueError for another split or fold, a kind that has no prompts, or a data set without these columns.
    """
    check_known("split", split, INSTRUCTION_SPLITS)
    if kind not in (known := instruction_kinds(pair)):
        raise ValueError(f"unknown instruction {kind!r} for pair {pair.name!r}: known are {', '.join(known)}")
    if fold not in range(folds := instruction_folds(pair)):
        raise ValueError(f"fold {fold} of the prompts of pair {pair.name!r}: expected one of {folds}, from 0")
    wanted = (split, "chosen") if split == "fit" and not choosing else (split,)
    if "instructions" in pair.datasets:
        prompts = _by_kind(pair.datasets["instructions"])[kind]
        parts = (FOLD_PARTS[(number - fold) % len(FOLD_PARTS)] for number in range(len(prompts)))
    else:  # by the text alone, so that a prompt is in one part for all instructions
        prompts = _instructions_of_world(kind)
        parts = (WORLD_PARTS[zlib.crc32(prompt.without.encode()) % len(WORLD_PARTS)] for prompt in prompts)
    return [prompt for prompt, part in zip(prompts, parts) if part in wanted][:count]


@functools.cache
def _instructions_of_world(kind: str) -> tuple[InstructionPrompt, ...]:
    lexicon = load_lexicon("en")
    kwargs = {"language": {"language": WORLD_LANGUAGE}, "closing": {"end_phrase": lexicon.closing}}.get(kind, {})
    words = lexicon.instructions[kind].format(closing=lexicon.closing, L=lexicon.language_names[WORLD_LANGUAGE])
    texts = _of_world("instructions", kind)
    return tuple(InstructionPrompt(text, f"{text} {words}", WORLD_INSTRUCTIONS[kind], kwargs) for text in texts)


@functools.cache
def _by_kind(data: DatasetRef) -> dict[str, list[InstructionPrompt]]:
    """Sort the prompts with one instruction that has a rule by its name, in an order that their texts give."""

    def pick(row: dict) -> list:
        """Take what makes a prompt; nothing where there is no rule, or more than one instruction."""
        if missing := [column for column in COLUMNS if column not in row]:
            expected = f"those of Stolfo et al.'s ifeval_single_instr_format.jsonl, {', '.join(COLUMNS)} among them"
            columns = f"its columns are {', '.join(row)}, expected {expected}"
            raise ValueError(f"{data.name!r} has no column {missing[0]!r}: {columns}")
        if len(ids := row["instruction_id_list"]) != 1 or ids[0] not in RULES:
            return []
        kwargs = {name: value for name, value in ((row["kwargs"] or [{}])[0] or {}).items() if value is not None}
        return [row[PROMPT_COLUMN].strip(), row["prompt"].strip(), ids[0], kwargs]

    found: dict[str, dict[str, InstructionPrompt]] = {}
    for row in filter(None, named_rows(data, pick, picked="instructions")):
        prompt = InstructionPrompt(*row)
        name = prompt.instruction_id.split(":")[1]
        if "language" in prompt.kwargs:  # an instruction for each language: one direction cannot ask for several
            name += f"_{prompt.kwargs['language']}"
        found.setdefault(name, {}).setdefault(prompt.without, prompt)
    ordered = {name: [prompts[text] for text in sorted(prompts)] for name, prompts in found.items()}
    for prompts in ordered.values():
        random.Random("instructions").shuffle(prompts)
    return ordered


def named_rows(data: DatasetRef, pick: Callable[[dict], Any], *, picked: str) -> Iterator[Any]:
    """Yield what `pick` takes of each row of a data set, as `hub.dataset_rows` does, or of a URL of JSON lines.

    What comes from elsewhere is fetched once and remembered under the name `picked`.
    ValueError for a file that does not exist or holds no JSON; HubError for what cannot be fetched.
    """
    name = data.name
    if "://" in name:
        digest = hashlib.sha256(json.dumps([name, picked]).encode()).hexdigest()[:12]
        path = Path(constants.HF_HOME, "stitch_utils", f"{Path(name).stem}-{digest}.jsonl")
        return remembered(path, lambda start: map(pick, itertools.islice(_behind(name), start, None)))
    return dataset_rows(name, pick, picked=picked, config=data.config, split=data.split, revision=data.revision)


def text_columns(row: dict, columns: Sequence[str], name: str) -> list[str]:
    """Take the text in these columns of a row of `name`; ValueError, naming the columns there are, without one."""
    if missing := [column for column in columns if not isinstance(row.get(column), str)]:
        raise ValueError(f"{name!r} has no text column {missing[0]!r}: its columns are {', '.join(row)}")
    return [row[column].strip() for column in columns]


def _behind(address: str) -> Iterator[dict]:
    """Fetch JSON lines from a URL and parse them."""
    try:
        text = httpx.get(address, follow_redirects=True).raise_for_status().text
    except httpx.HTTPError as error:
        raise HubError(f"{address!r} cannot be fetched: {str(error).splitlines()[0]}") from error
    for line in filter(str.strip, text.split("\n")):
        try:
            yield json.loads(line)
        except ValueError:
            raise ValueError(f"{address!r} holds {line[:40]!r}: expected one JSON object a line") from None
