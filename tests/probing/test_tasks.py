"""Tasks of the embedded world against its own words, and SAEBench's sets against the rows they were read from."""

import dataclasses
import json
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hub import Hub, child

from stitch_utils.data.documentation import DocString
from stitch_utils.data.pairs import DatasetRef, TextRef, load_pair
from stitch_utils.probing import docstring_sets
from stitch_utils.probing.docstring_sets import DOCUMENTATION, PACKAGES, opening
from stitch_utils.probing.tasks import WORLD, ProbingTask, _without_splits, probing_tasks
from stitch_utils.steering.verifiers import detect_language

SAEBENCH = ("bios_1", "bios_2", "bios_3", "amazon_category", "amazon_sentiment", "code", "ag_news", "language")
N = 40
CHILD = """
import dataclasses, json, sys
from stitch_utils.data.pairs import DatasetRef, load_pair
from stitch_utils.probing.tasks import probing_tasks

pair, found = load_pair("pythia"), {"errors": {}}
asked, refused = json.loads(sys.argv[1])
found["tasks"] = [dataclasses.asdict(task) for task in probing_tasks(pair, n_train=asked, n_test=asked, seed=0)]
for label, (changes, size) in refused.items():
    datasets = {key: DatasetRef(**ref) for key, ref in changes.items()}
    try:
        probing_tasks(dataclasses.replace(pair, datasets=datasets), n_train=size, n_test=size, seed=0)
    except ValueError as error:
        found["errors"][label] = str(error)
print(json.dumps(found))
"""
CODE, NEWS = "codeparrot/github-code", "fancyzhx/ag_news"
# What the pair's file is changed to, with a size; what is said.
REFUSED = {
    "unknown": (
        {"probing_x": {"name": "a/b"}},
        N,
        "datasets: unknown probing set 'probing_x': expected one of",
    ),
    "missing": ({"probing_bios": {"name": "no/body"}}, N, "dataset 'no/body' does not exist on"),
    "column": (
        {"probing_bios": {"name": NEWS}},
        N,
        "dataset 'fancyzhx/ag_news' has no column 'hard_text': its columns are text, label",
    ),
    "script": ({"probing_ag_news": {"name": CODE}}, N, "has a loading script, which `datasets` no longer runs"),
    "revision": ({"probing_code": {"name": CODE, "revision": "v9"}}, N, "has no revision 'v9'"),
    "rows": (
        {"probing_ag_news": {"name": NEWS}},
        400,
        "data set 'ag_news' has 30 different texts of class 0: expected 200",
    ),
}


@pytest.fixture(scope="module")
def tiny():
    return load_pair("tiny")


@pytest.fixture(scope="module")
def world(tiny):
    return probing_tasks(tiny, n_train=N, n_test=N, seed=0)


def checked(tasks, datasets):
    """What is true of all tasks: sizes, balance, names, and texts that are new when they are tested."""
    assert list(dict.fromkeys(task.dataset for task in tasks)) == list(datasets)
    assert len({task.name for task in tasks}) == len(tasks)
    trained = defaultdict(set)
    for task in tasks:
        assert len(task.train_texts) == len(task.test_texts) == N
        assert sum(task.train_labels) == sum(task.test_labels) == N // 2
        assert len({*task.train_texts, *task.test_texts}) == 2 * N
        trained[task.dataset].update(task.train_texts)
    for task in tasks:
        assert not trained[task.dataset] & set(task.test_texts)


def positives(tasks, name):
    (task,) = (task for task in tasks if task.name == name)
    parts = ((task.train_texts, task.train_labels), (task.test_texts, task.test_labels))
    return [text for texts, labels in parts for text, label in zip(texts, labels) if label]


def negatives(tasks, name):
    (task,) = (task for task in tasks if task.name == name)
    parts = ((task.train_texts, task.train_labels), (task.test_texts, task.test_labels))
    return [text for texts, labels in parts for text, label in zip(texts, labels) if not label]


def test_the_world_has_eight_sets_and_more(world, tiny):
    assert len(WORLD) >= 8
    checked(world, WORLD)
    assert probing_tasks(tiny, n_train=N, n_test=N, seed=0) == world
    other = probing_tasks(tiny, n_train=N, n_test=N, seed=1)
    assert [task.name for task in other] == [task.name for task in world]
    assert not {*other[0].train_texts} & {*world[0].train_texts}


def test_its_labels_are_true_of_its_texts(world):
    assert all(text.startswith("class ") for text in positives(world, "code.class"))
    assert not any("def " in text for text in positives(world, "code.prose"))
    assert all(text.endswith("?") for text in positives(world, "sentence_type.question"))
    assert all(" not " in f" {text}" for text in positives(world, "sentence_type.negation"))
    assert not any(text.endswith("?") for text in positives(world, "sentence_type.statement"))
    assert all(text.startswith("- ") for text in positives(world, "format.list"))
    assert all(json.loads(line) for text in positives(world, "format.record") for line in text.splitlines())
    assert all(text.split("\n", 1)[1].isupper() for text in positives(world, "instruction.upper"))
    for language in ("en", "fr", "de", "es", "nl"):
        found = [detect_language(text) for text in positives(world, f"language.{language}")]
        assert found.count(language) >= 0.95 * len(found)
        assert language not in {detect_language(text) for text in negatives(world, f"language.{language}")}


def test_the_others_are_of_every_other_class(world):
    texts = {name: set(positives(world, f"topic.{name}")) for name in WORLD["topic"][0]}
    others = set(negatives(world, "topic.kitchen"))
    assert not others & texts["kitchen"] and all(others & found for name, found in texts.items() if name != "kitchen")


def test_every_scale_has_sizes_that_can_be_balanced():
    pairs = load_pair("tiny"), load_pair(Path(__file__).parents[2] / "tools" / "real.yml")
    sizes = [pair.sizes_of("probing", scale) for pair in pairs for scale in pair.scales]
    assert [*pairs[1].scales] == ["smoke", "real"] and len({tuple(of_scale.values()) for of_scale in sizes}) == 4
    assert sizes[2] == {"n_train": 4000, "n_test": 1000}
    assert all(size % 4 == 0 for of_scale in sizes for size in of_scale.values())


@pytest.mark.parametrize("size", [0, 2, 6, -4])
def test_sizes_that_cannot_be_balanced(tiny, size):
    with pytest.raises(ValueError, match=f"n_test must be a positive multiple of 4, .*: got {size}"):
        probing_tasks(tiny, n_train=4, n_test=size, seed=0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((True, True), "task 'x': 2 of 2 texts to test are positive: expected half"),
        ((False, False), "task 'x': 0 of 2 texts to test are positive: expected half"),
        ((True, True, False), "task 'x': 2 of 3 texts to test are positive: expected half"),
        ((True,), "task 'x': 2 texts to test and 1 labels"),
    ],
)
def test_tasks_that_are_none(labels, message):
    texts = ("a", "b", "c")[: max(2, len(labels))]
    with pytest.raises(ValueError, match=message):
        ProbingTask("x", "set", ("a", "b"), (True, False), texts, labels)


def test_a_class_that_is_too_rare():
    rows = [("a", f"text {index}") for index in range(40)] + [("b", "the same")] * 40
    with pytest.raises(ValueError, match="data set 'set' has 1 different texts of class 'b': expected 4"):
        _without_splits("set", [(("a", "b"), rows)], (4, 4), 0)


# ---- documentation -----------------------------------------------------------------------------------------------

FILLER = "It has a sentence that goes on for so long that no reader could say that eighty characters are not reached."


@pytest.fixture(scope="module")
def docstrings():
    """Docstrings whose texts say what they are; only scipy has as many classes as functions, and all that raise."""
    made = []
    for number, package in enumerate((*PACKAGES, "numpy")):
        for index in range(200):
            kind = "class" if index % 2 and package in ("scipy", "sympy") else "function"
            raises, about = (
                kind == "function" and index % 4 == 0,
                f"{package} {kind} {1000 * number + index} of Py{package.title()}_x",
            )
            text = f"{about}. {FILLER}\n\nReturns\n-------\nWhat is asked for.\n\nRaises\n------\nValueError"
            text = f"{text}\n\n>>> 1" if index % 3 == 0 else text
            code = f"code({index!r}, {package!r})  # {FILLER}" if kind == "function" and index % 5 else ""
            made.append(DocString(text, package, kind, about, raises, code))
    return made


@pytest.fixture
def documented(tiny, docstrings, monkeypatch):
    monkeypatch.setattr(docstring_sets, "docstrings", lambda: iter(docstrings))
    return dataclasses.replace(tiny, train=TextRef("documentation", "all"))


def test_documentation_has_four_sets(documented, tiny):
    found = probing_tasks(documented, n_train=N, n_test=N, seed=0)
    checked(found, DOCUMENTATION)
    assert probing_tasks(documented, n_train=N, n_test=N, seed=0) == found
    assert probing_tasks(documented, n_train=N, n_test=N, seed=1) != found
    own = dataclasses.replace(documented, train=tiny.train)
    assert {task.dataset for task in probing_tasks(own, n_train=N, n_test=N, seed=0)} == {*WORLD}


def test_labels_of_documentation_are_true_and_no_word_gives_them_away(documented, docstrings):
    found = probing_tasks(documented, n_train=N, n_test=N, seed=0)
    read = {opening(one.text): one for one in docstrings}
    hidden = {docstring_sets.NAMES.sub("package", one.text): one for one in docstrings if one.package in PACKAGES}
    for package in PACKAGES:
        assert {hidden[text].package for text in positives(found, f"package.{package}")} == {package}
    for task in found:
        texts = (*task.train_texts, *task.test_texts)
        if task.dataset == "package":
            assert not any(package in text.lower() for text in texts for package in PACKAGES)
        if task.dataset in ("definition", "raises"):
            assert not any("Returns" in text or "Raises" in text for text in texts)
    assert {read[text].kind for text in positives(found, "definition.class")} == {"class"}
    assert {read[text].kind for text in negatives(found, "definition.class")} == {"function"}
    assert {read[text].raises for text in positives(found, "raises.raises")} == {True}
    assert {(read[text].kind, read[text].raises) for text in negatives(found, "raises.raises")} == {("function", False)}
    code, prose = positives(found, "code.code"), positives(found, "code.prose")
    assert {*code} <= {one.code for one in docstrings}
    assert {*prose} <= {one.text for one in docstrings if one.code and ">>>" not in one.text}


@pytest.mark.parametrize(("name", "where"), [("definition.class", ("scipy", "sympy")), ("raises.raises", PACKAGES)])
def test_a_package_has_as_many_texts_of_both_classes(documented, docstrings, name, where):
    found = probing_tasks(documented, n_train=N, n_test=N, seed=0)
    read = {opening(one.text): one.package for one in docstrings}
    yes, no = (sorted(read[text] for text in side(found, name)) for side in (positives, negatives))
    # The last text of each part may lack its match of the other class.
    assert {*yes} >= {*where} and sum(abs(yes.count(each) - no.count(each)) for each in {*yes, *no}) <= 4


@pytest.mark.parametrize(
    "section",
    [
        "Returns\n-------\nint",
        "Raises:\n    ValueError",
        "    Raises: ValueError",
        ":raises ValueError: if",
        ":rtype: int",
        "@return: it",
        "## Returns",
        "**Raises**:",
        "See Also\n--------",
        "Attributes:\n    x",
        "Example:",
        "Yields: one",
    ],
)
def test_an_opening_ends_before_what_is_returned_or_raised(section):
    kept = "Do it.\n\nIt raises a flag, and returns: nothing.\n\nParameters\n----------\nx\n    Returns it."
    assert opening(f"{kept}\n\n{section}\nmore") == kept
    assert opening(kept) == kept


# ---- SAEBench's sets ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    from hub.corpora import DATASETS, write_datasets

    root = tmp_path_factory.mktemp("sets")
    write_datasets(root, [name for name in DATASETS if "openwebtext" not in name])
    return root


@pytest.fixture(scope="module")
def read(stored, home):
    """What two processes read: one from the Hub, one without a network, and how often the second asked."""
    with Hub(stored) as hub:
        refused = {label: (changes, size) for label, (changes, size, _) in REFUSED.items()}
        first = child(hub.environment(home), "-c", CHILD, json.dumps([N, refused]))
        asked = len(hub.requests)
        second = child(hub.environment(home, HF_HUB_OFFLINE="1"), "-c", CHILD, json.dumps([N, {}]))
        return first, second, len(hub.requests) - asked


@pytest.fixture(scope="module")
def tasks(read):
    made = []
    for task in read[0]["tasks"]:
        made.append(ProbingTask(**{key: tuple(value) if type(value) is list else value for key, value in task.items()}))
    return made


def rows_of(stored, name, pattern):
    """All rows of a repository's parquet files."""
    return [
        row for path in sorted((stored / "datasets" / name).glob(pattern)) for row in pq.read_table(path).to_pylist()
    ]


def test_the_hub_has_saebenchs_36_tasks(tasks):
    checked(tasks, SAEBENCH)
    assert len(tasks) == 36


def test_what_was_read_once_needs_no_network(read):
    first, second, asked = read
    assert second["tasks"] == first["tasks"] and asked == 0


def test_professions_are_balanced_by_gender(tasks, stored):
    for name, profession in (("bios_1.attorney", 2), ("bios_2.nurse", 13), ("bios_3.teacher", 26)):
        (task,) = (task for task in tasks if task.name == name)
        for split, texts, labels in (
            ("train", task.train_texts, task.train_labels),
            ("test", task.test_texts, task.test_labels),
        ):
            rows = rows_of(stored, "LabHC/bias_in_bios", f"data/{split}-*")
            known = {row["hard_text"]: (row["profession"], row["gender"]) for row in reversed(rows)}
            chosen = [known[text] for text, label in zip(texts, labels) if label]
            assert {profession for profession, _ in chosen} == {profession}
            assert sum(gender for _, gender in chosen) == N // 4
            others = {known[text][0] for text, label in zip(texts, labels) if not label}
            assert profession not in others and len(others) == 4


def test_categories_are_balanced_by_rating_and_ratings_are_a_set(tasks, stored):
    rows = rows_of(stored, "canrager/amazon_reviews_mcauley_1and5", "data/*")
    known = {row["text"]: (row["category"], row["rating"]) for row in reversed(rows)}
    chosen = [known[text] for text in positives(tasks, "amazon_category.5")]
    assert {category for category, _ in chosen} == {5}
    assert sorted(rating for _, rating in chosen) == [1.0] * (N // 2) + [5.0] * (N // 2)
    assert {known[text][0] for text in negatives(tasks, "amazon_category.5")} == {1, 2, 3, 6}
    assert {known[text][1] for text in positives(tasks, "amazon_sentiment.5")} == {5.0}
    assert {known[text][1] for text in negatives(tasks, "amazon_sentiment.5")} == {1.0}


def test_code_is_read_after_its_head_and_named_by_its_ending(tasks, stored):
    rows = rows_of(stored, CODE, "data/*")
    known = {row["content"][150:4150]: row for row in rows}
    endings = {"C": ".c", "Python": ".py", "HTML": ".html", "Java": ".java", "PHP": ".php"}
    assert [task.name for task in tasks if task.dataset == "code"] == [f"code.{language}" for language in endings]
    for language, ending in endings.items():
        chosen = [known[text] for text in positives(tasks, f"code.{language}")]
        assert all(row["path"].endswith(ending) and len(row["content"]) > 534 for row in chosen)
    assert any(len(row["content"]) < 535 for row in rows), "the test would not see short files"


def test_news_and_speeches(tasks, stored):
    known = {row["text"]: row["label"] for row in rows_of(stored, NEWS, "data/*")}
    assert {known[text] for text in positives(tasks, "ag_news.sports")} == {1}
    for language, config in (("en", "en-fr"), ("de", "de-en"), ("nl", "nl-pt")):
        rows = rows_of(stored, "Helsinki-NLP/europarl", f"{config}/*")
        assert set(positives(tasks, f"language.{language}")) <= {row["translation"][language] for row in rows}


@pytest.mark.parametrize("label", REFUSED)
def test_what_the_hub_does_not_give(read, label):
    said = read[0]["errors"][label]
    assert REFUSED[label][2] in said and "\n" not in said
    assert said.startswith("pair 'pythia' (stitch_utils/data/pairs/pythia.yml), datasets: ")


def test_a_pair_without_such_sets_takes_the_worlds(tiny, world):
    own = dataclasses.replace(tiny, datasets={"parallel": DatasetRef("Helsinki-NLP/europarl")})
    assert probing_tasks(own, n_train=N, n_test=N, seed=0) == world
