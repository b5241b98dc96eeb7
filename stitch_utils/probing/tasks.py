"""Labelled texts for probes: the sets of SAEBench, or what the embedded world or documentation says of its own texts.

Section 4 and App. E probe "8 SAEBench datasets"; each is a handful of classes, and each class a binary task against
the others. A text that is tested never occurs among those that are trained on, and both labels are equally frequent,
so that chance is one half. A pair whose file names no `probing_*` data sets takes the tasks of the embedded world, from
streams of documents that nothing else reads; a pair that is fitted on documentation takes those of `docstring_sets`,
whose texts may be among those that it was fitted on.

SAEBench's sets are read as its configuration has them, but rows from the beginning, where SAEBench draws some at
random. Its code set, codeparrot/github-code, has a loading script that `datasets` no longer runs; we read the parquet
files of the same repository, and the language off a file's ending, which is all that the script does.

Offers `ProbingTask` and `probing_tasks`, and `WORLD`, the sets of the embedded world.
"""

import itertools
import random
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..data.embedded.frames import TOPICS
from ..data.embedded.python_code import draw_function
from ..data.embedded.world import documents, labelled_sentences, requests
from ..data.hub import dataset_rows
from ..data.pairs import DatasetRef, ModelPair, blaming, check_known
from .docstring_sets import DOCUMENTATION

MAX_CHARACTERS = 4000  # of a text: more than 128 tokens
BIOS = {
    "bios_1": {0: "accountant", 1: "architect", 2: "attorney", 6: "dentist", 9: "filmmaker"},
    "bios_2": {11: "journalist", 13: "nurse", 14: "painter", 18: "photographer", 19: "physician"},
    "bios_3": {20: "poet", 21: "professor", 22: "psychologist", 25: "surgeon", 26: "teacher"},
}
CATEGORIES = {"amazon_category": {category: str(category) for category in (1, 2, 3, 5, 6)}}
RATINGS = {"amazon_sentiment": {1.0: "1", 5.0: "5"}}
NEWS = {"ag_news": dict(enumerate(("world", "sports", "business", "science")))}
EUROPARL = {"en": "en-fr", "fr": "fr-it", "de": "de-en", "es": "es-fr", "nl": "nl-pt"}
ENDINGS = {"C": (".c", ".h"), "Python": (".py",), "HTML": (".html",), "Java": (".java",)}
ENDINGS["PHP"] = (".php", ".php3", ".php4", ".php5", ".phps", ".phpt")
FILES = {"codeparrot/github-code": "data/train-*.parquet"}  # read where a repository's loading script is refused
# SAEBench skips the licence at the head of a source file, and files that are short.
SKIPPED_CODE, SHORTEST_CODE = 150, 535

Sizes = tuple[int, int]  # of the texts of a task: to train on and to test
Row = tuple[Hashable, str]  # a class with whatever it is balanced by, and a text of it
Stream = Callable[[str], Iterator[Row]]  # from a seed to rows without end


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
            positive, size, task = sum(labels), len(labels), f"task {self.name!r}"
            if len(texts) != size:
                raise ValueError(f"{task}: {len(texts)} texts to {part} and {size} labels")
            if not size or 2 * positive != size:
                raise ValueError(f"{task}: {positive} of {size} texts to {part} are positive: expected half")


def probing_tasks(pair: ModelPair, *, n_train: int, n_test: int, seed: int) -> list[ProbingTask]:
    """Make the tasks of a pair, by data set, each of so many texts.

    ValueError for sizes that cannot be halved twice, for an unknown `probing_*` data set in the pair's file, and where
    a data set lacks texts of a class; HubError where one cannot be had.
    """
    for name, size in (("n_train", n_train), ("n_test", n_test)):
        if size < 4 or size % 4:
            raise ValueError(f"{name} must be a positive multiple of 4, for sets balanced in two ways: got {size}")
    refs = {key: ref for key, ref in pair.datasets.items() if key.startswith("probing_")}
    sizes, tasks = (n_train, n_test), []
    if not refs:
        sets = DOCUMENTATION if pair.train.source == "documentation" else WORLD
        for dataset, (classes, stream) in sets.items():
            # Limited, so that a class that is too rare raises an error instead of being searched for without end.
            rows = itertools.islice(stream(f"probing:{seed}:{dataset}"), 200 * len(classes) * sum(sizes))
            tasks += _without_splits(dataset, [(classes, rows)], sizes, seed)
        return tasks
    with blaming(pair, "datasets"):
        for key in refs:
            check_known("probing set", key, HUB)
        return [task for key, read in HUB.items() if key in refs for task in read(refs[key], sizes, seed)]


def _collect(dataset: str, rows: Iterable[Row], wanted: Mapping[Any, int], known: set[str]) -> dict[Any, list[str]]:
    """Take the first texts of each class, each text once, those of `known` not at all; ValueError for too few."""
    found: dict[Any, list[str]] = {key: [] for key in wanted}
    for key, text in rows:
        if key in wanted and len(found[key]) < wanted[key] and text not in known and text.strip():
            known.add(text)
            found[key].append(text)
            if all(len(found[each]) == count for each, count in wanted.items()):
                return found
    key = next(key for key in wanted if len(found[key]) < wanted[key])
    name, other = key if isinstance(key, tuple) else (key, None)
    which = f"class {name!r}" + (f" balanced by {other!r}" if other is not None else "")
    raise ValueError(f"data set {dataset!r} has {len(found[key])} different texts of {which}: expected {wanted[key]}")


def _tasks(dataset: str, train: dict, test: dict, seed: int, names: Mapping | None = None) -> list[ProbingTask]:
    """Make one task a class: its texts against as many of the others', drawn at random."""
    tasks, names = [], names or {}
    for name in train:
        columns = []  # texts and labels to train on, then those to test on
        for part in (train, test):
            others = [text for other, texts in part.items() if other != name for text in texts]
            size = len(part[name])
            drawn = random.Random(f"{seed}:{dataset}:{name}").sample(others, size)
            columns += [(*part[name], *drawn), (True,) * size + (False,) * size]
        tasks.append(ProbingTask(f"{dataset}.{names.get(name, name)}", dataset, *columns))
    return tasks


def _without_splits(dataset: str, streams: Iterable[tuple], sizes: Sizes, seed: int) -> list[ProbingTask]:
    """Make the tasks of a set without splits: the first texts of a class are trained on, the others tested.

    `streams` are classes and the rows to find them in. They are read one after another, none further than needed.
    """
    found, known, n_train = {}, set(), sizes[0] // 2
    for classes, rows in streams:
        found |= _collect(dataset, rows, dict.fromkeys(classes, sum(sizes) // 2), known)
    train = {name: texts[:n_train] for name, texts in found.items()}
    test = {name: texts[n_train:] for name, texts in found.items()}
    return _tasks(dataset, train, test, seed)


# ---- SAEBench, from the Hub --------------------------------------------------------------------------------------


def _rows(ref: DatasetRef, pick: Callable[[dict], Any], picked: str, **other: Any) -> Iterator[Any]:
    """Read what `pick` takes of each row of the data set; `other` replaces its configuration or split."""
    options = {"config": ref.config, "split": ref.split, "revision": ref.revision} | other
    return dataset_rows(ref.name, pick, picked=picked, **options)


def _with_splits(
    columns: tuple[str, ...], groups: Sequence[tuple], ref: DatasetRef, sizes: Sizes, seed: int
) -> Iterator[ProbingTask]:
    """Make the tasks of a set with splits, of which `columns` are read, the text first.

    A group is {data set: {class: its name}}, the column of the class, and a column by which classes are balanced with
    its values: a class has as many texts of each. Without such a column they are None and (None,).
    """

    def pick(row: dict) -> list:
        if missing := [column for column in columns if column not in row]:
            raise ValueError(f"dataset {ref.name!r} has no column {missing[0]!r}: its columns are {', '.join(row)}")
        text, *rest = (row[column] for column in columns)
        return [text[:MAX_CHARACTERS], *rest]

    for datasets, column, other, values in groups:
        classes, known, parts = [name for names in datasets.values() for name in names], set(), []
        for split, size in zip(("train", "test"), sizes):
            read = (dict(zip(columns, row)) for row in _rows(ref, pick, "+".join(columns), split=split))
            rows = (((row[column], other and row[other]), row[columns[0]]) for row in read)
            wanted = dict.fromkeys(itertools.product(classes, values), size // 2 // len(values))
            found = _collect("/".join(datasets), rows, wanted, known)
            parts.append({name: [text for value in values for text in found[name, value]] for name in classes})
        for dataset, names in datasets.items():
            train, test = ({name: part[name] for name in names} for part in parts)
            yield from _tasks(dataset, train, test, seed, names)


def _code(ref: DatasetRef, sizes: Sizes, seed: int) -> list[ProbingTask]:
    def pick(row: dict) -> list | None:
        text, path = row.get("content"), row.get("path")
        if not isinstance(text, str) or not isinstance(path, str):
            lacks = "has no text columns 'content' and 'path'"
            raise ValueError(f"dataset {ref.name!r} {lacks}: its columns are {', '.join(row)}")
        of_file = [language for language, endings in ENDINGS.items() if path.endswith(endings)]
        code = text[SKIPPED_CODE : SKIPPED_CODE + MAX_CHARACTERS]
        return [of_file[0], code] if of_file and len(text) >= SHORTEST_CODE else None

    rows = _rows(ref, pick, "code", files=FILES.get(ref.name))
    return _without_splits("code", [(ENDINGS, map(tuple, rows))], sizes, seed)


def _europarl(ref: DatasetRef, sizes: Sizes, seed: int) -> list[ProbingTask]:
    def sentences(language: str, config: str) -> Iterator[Row]:
        def pick(row: dict) -> str:
            if not isinstance(row.get("translation", {}).get(language), str):
                raise ValueError(f"dataset {ref.name!r} has no translation into {language!r} in {config!r}")
            return row["translation"][language][:MAX_CHARACTERS]

        return ((language, text) for text in _rows(ref, pick, f"translation.{language}", config=config))

    streams = (([language], sentences(language, config)) for language, config in EUROPARL.items())
    return _without_splits("language", streams, sizes, seed)


LIVES = [(BIOS, "profession", "gender", (0, 1))]
REVIEWS = [(CATEGORIES, "category", "rating", (1.0, 5.0)), (RATINGS, "rating", None, (None,))]
HUB: dict[str, Callable[[DatasetRef, Sizes, int], Iterable[ProbingTask]]] = {
    "probing_bios": partial(_with_splits, ("hard_text", "profession", "gender"), LIVES),
    "probing_amazon": partial(_with_splits, ("text", "category", "rating"), REVIEWS),
    "probing_code": _code,
    "probing_ag_news": partial(_with_splits, ("text", "label"), [(NEWS, "label", None, (None,))]),
    "probing_europarl": _europarl,
}


# ---- the embedded world ------------------------------------------------------------------------------------------


def _texts(seed: str, language: str, format: str) -> Iterator[str]:
    return (document.text for document in documents(seed, language=language, format=format))


def _labels(label: str, format: str) -> Stream:
    """Read English documents of a format with one of their labels."""
    return lambda seed: ((one.labels.get(label), one.text) for one in documents(seed, language="en", format=format))


def _sentences(label: str) -> Stream:
    """Read English sentences with one of their labels."""
    return lambda seed: (
        (labels[label], text)
        for part in itertools.count()
        for text, labels in labelled_sentences(f"{seed}:{part}", 200)
    )


def _in_turn(classes: tuple[str, ...], draw: Callable[[str, str], Iterator[str]]) -> Stream:
    """Read a text of each class in turn, from the streams `draw(seed, class)`."""
    return lambda seed: (row for texts in zip(*[draw(seed, name) for name in classes]) for row in zip(classes, texts))


def _python(seed: str) -> Iterator[Row]:
    """Read Python by its construction, and English beside it."""
    for index, story in enumerate(_texts(seed, "en", "story")):
        rng = random.Random(f"{seed}:{index}")
        text = draw_function(rng, rng.choice(TOPICS))
        kind = "class" if text.startswith("class ") else "loop" if " = {" in text else None
        yield kind or ("documented" if '"""' in text else "plain"), text
        yield "prose", story


def _conversations(seed: str, instruction: str) -> Iterator[str]:
    for part in itertools.count():
        for request in requests(f"{seed}:{part}", 50, instruction=instruction):
            yield f"{request.prompt} {request.instruction_text}\n{request.answer}"


LANGUAGES = tuple(EUROPARL)
LAYOUTS = ("story", "list", "quotes", "record", "questions")
INSTRUCTIONS = ("upper", "quotes", "bullets", "json", "closing")
# Classes of each set, and its rows given a seed. Code, layout, instruction and the kind of a sentence can nearly be
# told from one token; they are here all the same, and the chapter measures how far that goes for each set.
WORLD: dict[str, tuple[tuple[str, ...], Stream]] = {
    "topic": (TOPICS[:5], _labels("topic", "story")),
    "sentiment": (("positive", "negative"), _labels("sentiment", "review")),
    "language": (LANGUAGES, _in_turn(LANGUAGES, lambda seed, language: _texts(seed, language, "story"))),
    "code": (("prose", "class", "loop", "documented", "plain"), _python),
    "tense": (("pres", "past", "fut"), _labels("tense", "story")),
    "number": (("sg", "pl"), _sentences("number")),
    "person": (("1", "3"), _sentences("person")),
    "sentence_type": (("statement", "negation", "question"), _sentences("sentence_type")),
    "format": (LAYOUTS, _in_turn(LAYOUTS, lambda seed, format: _texts(seed, "en", format))),
    "instruction": (INSTRUCTIONS, _in_turn(INSTRUCTIONS, _conversations)),
}
