"""Labelled texts for sparse probes: the sets of SAEBench, or what the embedded world knows of its own texts.

Section 4 and App. E probe "8 SAEBench datasets"; each is a handful of classes, and each class a binary task against
the others. A text that is tested never occurs among those that are trained on, and both labels are equally frequent,
so that chance is one half. A pair whose file names no `probing_*` data sets takes the tasks of the embedded world, from
streams of documents that nothing else reads.

SAEBench's sets, as its configuration has them: professions of biographies (three sets of five, balanced by gender),
categories of product reviews (balanced by rating) and their ratings, programming languages, subjects of news, and five
languages of EuroParl. Rows are taken from the beginning of a set, where SAEBench draws some at random. Its code set,
codeparrot/github-code, has a loading script that `datasets` no longer runs; we read the parquet files of the same
repository, and the language off a file's ending, which is all that the script does.

Offers `ProbingTask`, `probing_tasks`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from ..data.embedded.frames import TOPICS
from ..data.embedded.python_code import draw_function
from ..data.embedded.world import documents, labelled_sentences, requests
from ..data.hub import dataset_rows
from ..data.pairs import DatasetRef, ModelPair, blaming

# Of a text, more than 128 tokens.
MAX_CHARACTERS = 4000
PREFIX = "probing_"

BIOS = {
    "bios_1": {0: "accountant", 1: "architect", 2: "attorney", 6: "dentist", 9: "filmmaker"},
    "bios_2": {11: "journalist", 13: "nurse", 14: "painter", 18: "photographer", 19: "physician"},
    "bios_3": {20: "poet", 21: "professor", 22: "psychologist", 25: "surgeon", 26: "teacher"},
}
AMAZON_CATEGORIES = (1, 2, 3, 5, 6)
AG_NEWS = ("world", "sports", "business", "science")
EUROPARL = {"en": "en-fr", "fr": "fr-it", "de": "de-en", "es": "es-fr", "nl": "nl-pt"}
ENDINGS = {
    ".c": "C",
    ".h": "C",
    ".py": "Python",
    ".html": "HTML",
    ".java": "Java",
    ".php": "PHP",
    ".php3": "PHP",
    ".php4": "PHP",
    ".php5": "PHP",
    ".phps": "PHP",
    ".phpt": "PHP",
}
# What is read of a repository whose loading script is refused.
FILES = {"codeparrot/github-code": "data/train-*.parquet"}
# SAEBench skips the licence at the head of a source file, and files that are short.
SKIPPED_CODE, SHORTEST_CODE = 150, 535

# A class with whatever it is balanced by, and a text of it.
Row = tuple[Hashable, str]


@dataclass(frozen=True)
class ProbingTask:
    """A binary concept: one class of a data set against its others."""

    name: str
    """Unique: the data set and the class."""
    dataset: str
    """The data set that it belongs to; accuracies are averaged over the tasks of each, then over the data sets."""
    train_texts: tuple[str, ...]
    train_labels: tuple[bool, ...]
    test_texts: tuple[str, ...]
    test_labels: tuple[bool, ...]

    def __post_init__(self):
        for part in ("train", "test"):
            texts, labels = getattr(self, f"{part}_texts"), getattr(self, f"{part}_labels")
            if len(texts) != len(labels):
                raise ValueError(f"task {self.name!r}: {len(texts)} texts to {part} and {len(labels)} labels")
            positive = sum(labels)
            if not 0 < positive < len(labels):
                raise ValueError(f"task {self.name!r} has texts of one class alone to {part}: expected two classes")
            if 2 * positive != len(labels):
                raise ValueError(
                    f"task {self.name!r}: {positive} of {len(labels)} texts to {part} are positive: expected half"
                )


def probing_tasks(pair: ModelPair, *, n_train: int, n_test: int, seed: int) -> list[ProbingTask]:
    """The tasks of a pair, by data set, each of so many texts.

    ValueError for sizes that cannot be halved twice, for an unknown `probing_*` data set in the pair's file, and where
    a data set lacks texts of a class; HubError where one cannot be had.
    """
    for name, size in (("n_train", n_train), ("n_test", n_test)):
        if size < 4 or size % 4:
            raise ValueError(f"{name} must be a positive multiple of 4, for sets balanced in two ways: got {size}")
    refs = {key.removeprefix(PREFIX): ref for key, ref in pair.datasets.items() if key.startswith(PREFIX)}
    sizes = n_train, n_test
    if not refs:
        sets = (_world_set(dataset, rows, sizes, seed) for dataset, rows in WORLD.items())
        return [task for tasks in sets for task in tasks]
    with blaming(pair, "datasets"):
        if unknown := sorted(set(refs) - set(HUB)):
            expected = ", ".join(PREFIX + name for name in HUB)
            raise ValueError(f"unknown probing set {PREFIX}{unknown[0]}: expected {expected}")
        return [task for name, read in HUB.items() if name in refs for task in read(refs[name], sizes, seed)]


def _collect(dataset: str, rows: Iterable[Row], wanted: Mapping[Hashable, int], known: set[str]) -> dict:
    """The first texts of each class, each text once, those of `known` not at all; ValueError if there are too few."""
    found: dict[Hashable, list[str]] = {key: [] for key in wanted}
    missing = sum(wanted.values())
    for key, text in rows:
        if key in found and len(found[key]) < wanted[key] and text not in known and text.strip():
            known.add(text)
            found[key].append(text)
            missing -= 1
            if not missing:
                return found
    key = next(key for key, texts in found.items() if len(texts) < wanted[key])
    name, other = key if isinstance(key, tuple) else (key, None)
    which = f"class {name!r}" + (f" balanced by {other!r}" if other is not None else "")
    raise ValueError(f"data set {dataset!r} has {len(found[key])} different texts of {which}: expected {wanted[key]}")


def _tasks(dataset: str, train: dict, test: dict, seed: int, names: Mapping | None = None) -> list[ProbingTask]:
    """One task a class: its texts against as many of the others', drawn at random."""
    tasks, names = [], names or {}
    for name in train:
        columns = []
        for part in (train, test):
            rng = random.Random(f"{seed}:{dataset}:{name}")
            others = [text for other, texts in part.items() if other != name for text in texts]
            labelled = [(text, True) for text in part[name]]
            labelled += [(text, False) for text in rng.sample(others, len(part[name]))]
            columns += zip(*labelled)
        tasks.append(ProbingTask(f"{dataset}.{names.get(name, name)}", dataset, *columns))
    return tasks


def _split(dataset: str, found: Mapping[str, list[str]], n_train: int, seed: int) -> list[ProbingTask]:
    """Tasks of a set without splits: the first texts of a class are trained on, the others tested."""
    parts = ({name: texts[part] for name, texts in found.items()} for part in (slice(n_train), slice(n_train, None)))
    return _tasks(dataset, *parts, seed)


def _one_stream(dataset: str, rows: Iterable[Row], classes: Iterable[str], sizes: tuple[int, int], seed: int):
    n_train, n_test = (size // 2 for size in sizes)
    return _split(dataset, _collect(dataset, rows, dict.fromkeys(classes, n_train + n_test), set()), n_train, seed)


def _two_splits(datasets: Mapping[str, Mapping], read: Callable[[str], Iterable[Row]], balance: tuple, sizes, seed):
    """Tasks of sets with splits, {data set: {class: name}}, whose rows `read(split)` gives as ((class, other), text).

    With `balance`, the values of `other`, a class has as many texts of each.
    """
    classes = [name for names in datasets.values() for name in names]
    other = balance or (None,)
    known: set[str] = set()
    parts = []
    for split, size in zip(("train", "test"), sizes):
        wanted = dict.fromkeys(itertools.product(classes, other), size // 2 // len(other))
        found = _collect("/".join(datasets), read(split), wanted, known)
        parts.append({name: [text for value in other for text in found[name, value]] for name in classes})
    for dataset, names in datasets.items():
        yield from _tasks(dataset, *({name: part[name] for name in names} for part in parts), seed, names)


# ---- SAEBench, from the Hub --------------------------------------------------------------------------------------


def _rows(ref: DatasetRef, columns: tuple[str, ...], *, split: str) -> Iterator[list]:
    """Some columns of a data set, the first of them text, cut."""

    def pick(row: dict) -> list:
        if missing := [column for column in columns if column not in row]:
            raise ValueError(f"dataset {ref.name!r} has no column {missing[0]!r}: its columns are {', '.join(row)}")
        text, *rest = (row[column] for column in columns)
        return [text[:MAX_CHARACTERS], *rest]

    return dataset_rows(ref.name, pick, picked="+".join(columns), config=ref.config, split=split, revision=ref.revision)


def _bios(ref: DatasetRef, sizes, seed) -> Iterator[ProbingTask]:
    def read(split: str) -> Iterator[Row]:
        columns = ("hard_text", "profession", "gender")
        return (((profession, gender), text) for text, profession, gender in _rows(ref, columns, split=split))

    return _two_splits(BIOS, read, (0, 1), sizes, seed)


def _amazon(ref: DatasetRef, sizes, seed) -> Iterator[ProbingTask]:
    def read(split: str) -> Iterator[list]:
        return _rows(ref, ("text", "category", "rating"), split=split)

    def by_category(split: str) -> Iterator[Row]:
        return (((category, rating), text) for text, category, rating in read(split))

    def by_rating(split: str) -> Iterator[Row]:
        return (((rating, None), text) for text, _, rating in read(split))

    categories = {"amazon_category": {category: str(category) for category in AMAZON_CATEGORIES}}
    yield from _two_splits(categories, by_category, (1.0, 5.0), sizes, seed)
    yield from _two_splits({"amazon_sentiment": {1.0: "1", 5.0: "5"}}, by_rating, (), sizes, seed)


def _ag_news(ref: DatasetRef, sizes, seed) -> Iterator[ProbingTask]:
    def read(split: str) -> Iterator[Row]:
        return (((label, None), text) for text, label in _rows(ref, ("text", "label"), split=split))

    return _two_splits({"ag_news": dict(enumerate(AG_NEWS))}, read, (), sizes, seed)


def _code(ref: DatasetRef, sizes, seed) -> list[ProbingTask]:
    def pick(row: dict) -> list | None:
        text, path = row.get("content"), row.get("path")
        if not isinstance(text, str) or not isinstance(path, str):
            raise ValueError(
                f"dataset {ref.name!r} has no text columns 'content' and 'path': its columns are {', '.join(row)}"
            )
        language = next((language for ending, language in ENDINGS.items() if path.endswith(ending)), None)
        if language is None or len(text) < SHORTEST_CODE:
            return None
        return [language, text[SKIPPED_CODE : SKIPPED_CODE + MAX_CHARACTERS]]

    rows = dataset_rows(
        ref.name,
        pick,
        picked="code",
        config=ref.config,
        split=ref.split,
        revision=ref.revision,
        files=FILES.get(ref.name),
    )
    return _one_stream("code", map(tuple, rows), dict.fromkeys(ENDINGS.values()), sizes, seed)


def _europarl(ref: DatasetRef, sizes, seed) -> list[ProbingTask]:
    def sentences(language: str, config: str) -> Iterator[Row]:
        def pick(row: dict) -> str:
            if not isinstance(row.get("translation", {}).get(language), str):
                raise ValueError(f"dataset {ref.name!r} has no translation into {language!r} in {config!r}")
            return row["translation"][language][:MAX_CHARACTERS]

        rows = dataset_rows(
            ref.name, pick, picked=f"translation.{language}", config=config, split=ref.split, revision=ref.revision
        )
        return ((language, text) for text in rows)

    n_train, n_test = (size // 2 for size in sizes)
    found: dict[str, list[str]] = {}
    known: set[str] = set()
    for language, config in EUROPARL.items():  # one after another: none is read further than needed
        found |= _collect("language", sentences(language, config), {language: n_train + n_test}, known)
    return _split("language", found, n_train, seed)


HUB: dict[str, Callable] = {
    "bios": _bios,
    "amazon": _amazon,
    "code": _code,
    "ag_news": _ag_news,
    "europarl": _europarl,
}


# ---- the embedded world ------------------------------------------------------------------------------------------


def _labels(label: str, format: str) -> Callable[[str], Iterator[Row]]:
    """English documents of a format with one of their labels."""
    return lambda seed: (
        (document.labels.get(label), document.text) for document in documents(seed, language="en", format=format)
    )


def _sentences(label: str) -> Callable[[str], Iterator[Row]]:
    def rows(seed: str) -> Iterator[Row]:
        for part in itertools.count():
            yield from ((labels[label], text) for text, labels in labelled_sentences(f"{seed}:{part}", 200))

    return rows


def _in_turn(classes: tuple[str, ...], draw: Callable[[str, str], Iterator[str]]) -> Callable[[str], Iterator[Row]]:
    """Texts of each class in turn, from the streams `draw(seed, class)`."""

    def rows(seed: str) -> Iterator[Row]:
        streams = [draw(seed, name) for name in classes]
        for texts in zip(*streams):
            yield from zip(classes, texts)

    return rows


def _python(seed: str) -> Iterator[Row]:
    """Python by its construction, and English beside it."""
    for index, story in enumerate(documents(seed, language="en", format="story")):
        rng = random.Random(f"{seed}:{index}")
        text = draw_function(rng, rng.choice(TOPICS))
        kind = "class" if text.startswith("class ") else "loop" if " = {" in text else None
        yield kind or ("documented" if '"""' in text else "plain"), text
        yield "prose", story.text


def _stories(seed: str, language: str) -> Iterator[str]:
    return (document.text for document in documents(seed, language=language, format="story"))


def _formats(seed: str, format: str) -> Iterator[str]:
    return (document.text for document in documents(seed, language="en", format=format))


def _conversations(seed: str, instruction: str) -> Iterator[str]:
    for part in itertools.count():
        for request in requests(f"{seed}:{part}", 50, instruction=instruction):
            yield f"{request.prompt} {request.instruction_text}\n{request.answer}"


LANGUAGES = tuple(EUROPARL)
LAYOUTS = ("story", "list", "quotes", "record", "questions")
INSTRUCTIONS = ("upper", "quotes", "bullets", "json", "closing")
# Classes of each set, and its rows given a seed. Code, layout, instruction and the kind of a sentence can nearly be
# told from one token; they are here all the same, and `probing` measures how far that goes for each set.
WORLD: dict[str, tuple[tuple[str, ...], Callable[[str], Iterator[Row]]]] = {
    "topic": (TOPICS[:5], _labels("topic", "story")),
    "sentiment": (("positive", "negative"), _labels("sentiment", "review")),
    "language": (LANGUAGES, _in_turn(LANGUAGES, _stories)),
    "code": (("prose", "class", "loop", "documented", "plain"), _python),
    "tense": (("pres", "past", "fut"), _labels("tense", "story")),
    "number": (("sg", "pl"), _sentences("number")),
    "person": (("1", "3"), _sentences("person")),
    "sentence_type": (("statement", "negation", "question"), _sentences("sentence_type")),
    "format": (LAYOUTS, _in_turn(LAYOUTS, _formats)),
    "instruction": (INSTRUCTIONS, _in_turn(INSTRUCTIONS, _conversations)),
}


def _world_set(dataset: str, rows: tuple, sizes: tuple[int, int], seed: int) -> list[ProbingTask]:
    classes, stream = rows
    # The streams have no end: where a class is too rare, that is better said than waited for.
    limited = itertools.islice(stream(f"probing:{seed}:{dataset}"), 200 * len(classes) * sum(sizes))
    return _one_stream(dataset, limited, classes, sizes, seed)
