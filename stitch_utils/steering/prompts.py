"""What steering experiments read: parallel sentences, and prompts that ask for no language.

Section 4, App. F: vectors come from the first pairs of sentences of EuroParl, responses from 163 prompts of IFEval with
their instructions taken out (those that Stolfo et al. published). Where a pair's file names no such data, the embedded
world has its own. A strength is chosen on prompts that are not evaluated, so prompts come in two parts that share none.

Offers `languages`, `parallel_pairs`, `steering_prompts`, `training_frequencies`, `named_rows`.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import constants

from ..data.embedded.grammar import LANGUAGES
from ..data.embedded.world import parallel_sentences, requests
from ..data.hub import HubError, dataset_rows, remembered
from ..data.pairs import DatasetRef, ModelPair, blaming
from ..data.text import read_documents
from ..models.harvest import of_activations
from ..utils.cache import artifact, kept
from .vectors import language_frequencies

# Of EuroParl, each with English: the rows of Tables 5 and 6.
EUROPARL = (
    "bg",
    "cs",
    "da",
    "de",
    "el",
    "es",
    "et",
    "fi",
    "fr",
    "hu",
    "it",
    "lt",
    "lv",
    "nl",
    "pl",
    "pt",
    "ro",
    "sk",
    "sl",
    "sv",
)
PROMPT_COLUMN = "prompt_without_instruction"
SPLITS = ("chosen", "evaluated", "all")
CHOSEN_SHARE = 4  # one prompt in so many is for choosing a strength
WORLD_PROMPTS = 4000  # drawn from the world at most: it has a few hundred that differ


def languages(pair: ModelPair) -> tuple[str, ...]:
    """The languages that the pair can be steered towards from English, by langdetect's codes."""
    return EUROPARL if "parallel" in pair.datasets else tuple(code for code in LANGUAGES if code != "en")


def parallel_pairs(pair: ModelPair, language: str, count: int) -> list[tuple[str, str]]:
    """The first `count` (English, `language`) sentences, from the world or the pair's data set `parallel`.

    A data set is one whose configurations are named by two codes in alphabetical order, with a column `translation`
    such as {"en": ..., "fr": ...}. ValueError if it has no rows for the language; HubError if it cannot be had.
    """
    if "parallel" not in pair.datasets:
        if language not in languages(pair):
            known = ", ".join(languages(pair))
            raise ValueError(f"the embedded world has no sentences in 'en' and {language!r}: it has {known}")
        return parallel_sentences("steering", count, language)
    data = pair.datasets["parallel"]
    with blaming(pair, "datasets: parallel"):
        found = [tuple(both) for both in itertools.islice(_translations(data, language), count)]
        if not found:
            raise ValueError(f"dataset {data.name!r} has no rows in 'en' and {language!r}")
    return found


def _translations(data: DatasetRef, language: str) -> Iterator[list[str]]:
    config = "-".join(sorted(("en", language)))

    def pick(row: dict) -> list[str] | None:
        said = row.get("translation")
        if not isinstance(said, dict) or not {"en", language} <= set(said):
            raise ValueError(f"dataset {data.name!r}, {config!r}: expected translations {{'en': .., {language!r}: ..}}")
        both = [said["en"], said[language]]
        return both if all(text and text.strip() for text in both) else None

    rows = dataset_rows(data.name, pick, picked="translation", config=config, split=data.split, revision=data.revision)
    try:
        yield from rows
    except ValueError as error:  # `datasets` names the configuration that it does not find
        if isinstance(error, HubError) or "BuilderConfig" not in str(error):
            raise
        raise ValueError(f"dataset {data.name!r} has no rows in 'en' and {language!r}, no {config!r}") from error


def training_frequencies(pair: ModelPair, count: int, *, scale: str) -> dict[str, int]:
    """Sentences of each language in the first `count` documents of the training text, counted once (Fig. 11)."""
    with blaming(pair, "text"):
        made_of = {"text": of_activations(pair, (0, 0), scale=scale)["texts"][0], "documents": count}
        return kept(
            artifact(pair.name, "languages", made_of, sources=(language_frequencies, read_documents), suffix=".json"),
            lambda: language_frequencies(itertools.islice(read_documents(pair.train), count)),
            lambda found, path: path.write_text(json.dumps(found), encoding="utf-8"),
            lambda path: json.loads(path.read_text(encoding="utf-8")),
        )


def steering_prompts(pair: ModelPair, count: int, *, tokenizer, split: str = "evaluated") -> list[str]:
    """At most `count` different prompts, as the model should read them: with chat tokens if there is a template.

    `split` is `chosen` for those on which a strength is chosen, `evaluated` for the others, `all` for both. From the
    data set `prompts` of the pair's file, whose name is a Hub id or the path or URL of a .jsonl file, with a column
    `prompt_without_instruction`; else from the world. ValueError for another split, and for data without prompts.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected {', '.join(SPLITS)}")
    with blaming(pair, "datasets: prompts"):
        source = _published(pair.datasets["prompts"]) if "prompts" in pair.datasets else _of_world()
        texts = dict.fromkeys(text.strip() for text in source)  # each once, in order
        part = [text for text in texts if text and (split == "all" or (split == "chosen") == _is_for_choosing(text))]
        if not part:
            raise ValueError(f"no prompts for split {split!r} among {len(texts)}")
    if tokenizer.chat_template is None:
        return part[:count]
    messages = ([{"role": "user", "content": text}] for text in part[:count])
    return [tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True) for one in messages]


@functools.cache
def _of_world() -> tuple[str, ...]:
    return tuple(request.prompt for request in requests("steering", WORLD_PROMPTS))


def _is_for_choosing(text: str) -> bool:
    """By the text alone, so that a prompt is in one part however many are drawn."""
    return zlib.crc32(text.encode()) % CHOSEN_SHARE == 0


def _published(data: DatasetRef) -> Iterator[str]:
    def pick(row: dict) -> str:
        if not isinstance(row.get(PROMPT_COLUMN), str):
            raise ValueError(f"{data.name!r} has no text column {PROMPT_COLUMN!r}: its columns are {', '.join(row)}")
        return row[PROMPT_COLUMN]

    return named_rows(data, pick, picked=PROMPT_COLUMN)


def named_rows(data: DatasetRef, pick: Callable[[dict], Any], *, picked: str) -> Iterator[Any]:
    """What `pick` takes of each row of a data set of the Hub, or of a .jsonl file named by its path or its URL.

    What comes from elsewhere is fetched once and remembered under the name `picked`, as in `hub.dataset_rows`.
    ValueError for a file that does not exist or is no .jsonl; HubError for what cannot be fetched.
    """
    if not data.name.endswith(".jsonl"):
        return dataset_rows(
            data.name, pick, picked=picked, config=data.config, split=data.split, revision=data.revision
        )
    if "://" not in data.name:
        return map(pick, _parsed(data.name, 0))
    digest = hashlib.sha256(json.dumps([data.name, picked]).encode()).hexdigest()[:12]
    path = Path(constants.HF_HOME, "stitch_utils", f"{Path(data.name).stem}-{digest}.jsonl")
    return remembered(path, lambda start: map(pick, _parsed(data.name, start)))


def _parsed(name: str, start: int) -> Iterator[dict]:
    for line in filter(str.strip, _lines(name)[start:]):
        try:
            yield json.loads(line)
        except ValueError:
            raise ValueError(f"{name!r} holds {line[:40]!r}: expected one JSON object a line") from None


def _lines(name: str) -> list[str]:
    """Of a file on this disk, or behind a URL."""
    if "://" not in name:
        path = Path(name).expanduser()
        if not path.is_file():
            raise ValueError(f"the file {name!r} does not exist")
        return path.read_text(encoding="utf-8").split("\n")
    try:
        return httpx.get(name, follow_redirects=True).raise_for_status().text.split("\n")
    except httpx.HTTPError as error:
        raise HubError(f"{name!r} cannot be fetched: {str(error).splitlines()[0]}") from error
