"""Pair files: what comes with the package is sound, and what is wrong with a user's file is said."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import yaml

from stitch_utils.data.hub import HubBusy, HubError
from stitch_utils.data.pairs import PAIRS_FOLDER, SCALES, AugmenterRef, blaming, load_pair
from stitch_utils.data.text import read_documents
from stitch_utils.features.functional import FunctionalConfig
from stitch_utils.models.language_model import check_pair, load_models
from stitch_utils.steering.multiple_choice import ChoiceConfig
from stitch_utils.steering.sweep import SweepConfig
from stitch_utils.stitching.lrt_maps import MapConfig


def tiny():
    return yaml.safe_load((PAIRS_FOLDER / "tiny.yml").read_text())


MINIMAL = """
name: mine
a: {model: models/a, layer: 1}
b: {model: models/b}
text: story.txt
"""


def write(tmp_path, data):
    path = tmp_path / "mine.yml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.mark.parametrize("path", sorted(PAIRS_FOLDER.glob("*.yml")), ids=lambda path: path.stem)
def test_every_pair_of_the_package(path):
    pair = load_pair(path.stem)
    papers = path.stem in ("tiny", "pythia", "gpt2", "gemma", "gemma-it")
    assert pair.name == path.stem and pair.ridge == (1e-8 if papers else "auto")
    sizes = [pair.scale(scale) for scale in SCALES]
    assert sizes[0].train_tokens <= sizes[1].train_tokens <= sizes[2].train_tokens


def test_a_file_of_ones_own(tmp_path, random_folders):
    data = tiny() | {
        "name": "mine",
        "a": {"model": str(random_folders / "a"), "layer": 1},
        "b": {"model": str(random_folders / "b"), "layer": 2},
        "context": 32,
    }
    pair = load_pair(write(tmp_path, data))
    model_a, model_b = load_models(pair)
    assert pair.name == "mine" and (model_a.n_layers, model_b.n_layers) == (3, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "int4"}, "unknown dtype 'int4': expected one of float32"),
        ({"rows": "loose"}, "unknown rows 'loose': expected one of document, packed"),
        ({"threads": -1}, "threads must be 0 or more: got -1"),
        ({"strength": -1}, "strength must be a positive number, or 0 to choose one: got -1"),
        ({"strength": "mean"}, "strength: expected a number, got 'mean'"),
        ({"ridge": -1}, "ridge must be a number of 0 or more, or auto: got -1"),
        ({"ridge": "least"}, "ridge must be a number of 0 or more, or auto: got 'least'"),
        ({"ridge": True}, "ridge: expected a number or a text, got True"),
        ({"ridge": float("nan")}, "ridge must be a number of 0 or more, or auto: got nan"),
        ({"name": 160}, "name is no text but 160: put it in quotation marks"),
        ({"context": 1}, "context must be 2 or more: got 1"),
        ({"colour": "red"}, "unknown colour; expected name, title"),
        (
            {"text": {"train": {"source": "world", "name": "x"}}, "txt": 1},
            "unknown txt; expected name, title, a, b, context, .*, text",
        ),
        ({"a": {"layer": 1}}, "missing a.model; expected model, layer, revision"),
        ({"a": {"model": "x"}}, "model a has no layer: expected the number of the block"),
        ({"a": "x"}, "a: expected a mapping, got 'x'"),
        (
            {"augmenter": {"model": "x", "dtype": "int8"}},
            "unknown dtype 'int8': expected one of float32",
        ),
        ({"augmenter": {"id": "x"}}, "unknown augmenter.id; missing augmenter.model; expected model, revision, dtype"),
        ({"saes": {"c": {"format": "sparsify", "release": "x", "id": "y"}}}, "saes of unknown side c: expected a or b"),
        ({"scales": {}}, "scales is empty: expected at least one, of smoke, default, paper"),
        ({"scales": {"smoke": {"train_tokens": 0}}}, "missing scales.smoke.adam_steps, scales.smoke.batch_size"),
        ({"text": {"train": {"source": "world", "name": "x"}}}, "missing text.evaluation; expected train, evaluation"),
        ({"sae_recipe": {"lr": 0}}, "sae_recipe: lr must be a number above 0: got 0"),
        ({"sae_recipe": {"k": 0}}, "sae_recipe: k must be 1 or more: got 0"),
        ({"strength": float("nan")}, "strength must be a positive number, or 0 to choose one: got nan"),
        ({"outliers": {"beyond": 1}}, "outliers: beyond must be a number above 1, of medians: got 1"),
        ({"file": "x"}, "unknown file; expected name"),
        ({"train": {"source": "world", "name": "x"}}, "unknown train; expected name"),
        ({"text": {key: {"source": "world", "name": "x"} for key in ("train", "evaluation")}}, "text are the same"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as error:
        load_pair(write(tmp_path, tiny() | change))
    assert str(error.value).startswith("mine.yml: ")


@pytest.fixture
def own(tmp_path, random_folders):
    """A minimal file with relative paths, beside two models and a text of 25 documents."""
    shutil.copytree(random_folders, tmp_path / "models")
    sentences = [f"The cook bakes cake number {number}, and the fish is big." for number in range(25)]
    (tmp_path / "story.txt").write_text("\n\n".join(sentences))
    (tmp_path / "mine.yml").write_text(MINIMAL)
    return tmp_path / "mine.yml"


def test_the_least_that_a_file_must_say(own, monkeypatch):
    monkeypatch.chdir(own.parent.parent)  # paths count from the file, wherever the command is given
    pair = load_pair(own)
    assert (pair.title, pair.b.layer, pair.dtype, pair.rows) == ("mine", None, "float32", "document")
    assert pair.ridge == "auto"
    assert [pair.a.model, pair.b.model] == [str(own.parent / "models" / side) for side in "ab"]
    assert set(pair.scales) == set(SCALES)
    train, evaluation = (list(read_documents(text)) for text in (pair.train, pair.evaluation))
    assert [text.split()[5] for text in evaluation] == ["9,", "19,"], "every tenth document is kept for evaluation"
    assert len(train) == 23 and not set(train) & set(evaluation)


@pytest.mark.parametrize("written", ["1e-4", "1.0e-4", "0.0001"])
def test_a_ridge_is_a_number_however_it_is_written(own, written):
    own.write_text(MINIMAL + f"ridge: {written}\n")  # YAML 1.1 reads the first as a text
    assert load_pair(own).ridge == 1e-4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("layer: 1}", "layer: '1'}", "a.layer: expected a whole number, got '1': write 1"),
        ("layer: 1}", "layer: 1, revision: 0012345}", "a.revision: 0012345 is .* put it in quotation marks"),
        ("layer: 1}", "layer: 1, revision: 4930.}", "a.revision is no text but 4930.0: put it in quotation"),
        ("models/b}", "models/b, revision: 1234567e12}", "b.revision is no text but 1.234567e"),
        ("models/b}", "models/b, revision: 2024-01-31}", "b.revision is no text but 2024-01-31: put it in"),
        ("models/b}", "42}", "b.model is no text but 42: put it in quotation marks"),
        ("models/b}", "models/b, layer: yes}", "b.layer: expected a whole number, got True"),
        ("story.txt", "2024", "text: expected a mapping, got 2024"),
        ("story.txt", "{source: hub, name: c4, config: no}", "text.config is no text but False: put it in"),
        ("story.txt", "{source: files, name: [a.txt]}", r"text.name: expected a text, got \['a.txt'\]"),
        ("story.txt", "{source: files, name: a.txt, take: 1e6}", "text.take: expected a whole number.*: write 1000000"),
        ("story.txt", "story.txt\ncontext: 128.0", "context: expected a whole number, got 128.0: write 128"),
        ("story.txt", "story.txt\ncontext: 32\ncontext: 64", "line 7: given twice: context"),
        ("story.txt", "story.txt\nsaes:", "saes: expected a mapping, got None"),
        (
            "story.txt",
            "story.txt\nsaes: {a: {format: sparsify, release: x, id: 3}}",
            "saes.a.id is no text but 3",
        ),
        ("story.txt", "story.txt\ndatasets: {on: {name: x}}", "datasets.on is no text for a name to YAML"),
        ("story.txt", "story.txt\nsae_recipe: {lr: fast}", "sae_recipe.lr: expected a number, got 'fast'"),
        ("story.txt", "story.txt\noutliers: 10", "outliers: expected a mapping, got 10"),
        ("story.txt", "story.txt\nthreads: true", "threads: expected a whole number, got True"),
    ],
)
def test_what_yaml_takes_for_something_else_is_refused(own, old, new, message):
    assert old in MINIMAL
    own.write_text(MINIMAL.replace(old, new))
    with pytest.raises(ValueError, match=f"^mine.yml: .*{message}") as error:
        load_pair(own)
    assert "\n" not in str(error.value)


def test_texts_in_quotation_marks_and_numbers_however_they_are_written(own):
    own.write_text(
        MINIMAL.replace("layer: 1}", "layer: 1, revision: '0012345'}").replace(
            "story.txt", "{source: hub, name: c4, config: 'no', revision: '1234567e12', take: 1_000}"
        )
        + "sae_recipe: {lr: 1e-4}\nstrength: 1\n"
    )
    pair = load_pair(own)
    assert (pair.a.revision, pair.train.config, pair.train.revision) == ("0012345", "no", "1234567e12")
    assert (pair.train.take, pair.sae_recipe.lr, pair.strength) == (1000, 1e-4, 1)


def test_a_file_in_another_encoding(own):
    own.write_bytes(MINIMAL.encode("utf-16"))
    with pytest.raises(ValueError, match=r"^mine\.yml: is not in UTF-8 .*: save it as UTF-8$"):
        load_pair(own)


def test_a_hub_dataset_by_its_name_alone(own):
    own.write_text(MINIMAL.replace("story.txt", "someone/stories"))
    pair = load_pair(own)
    assert (pair.train.source, pair.train.name, pair.train.held_out) == ("hub", "someone/stories", False)


def test_a_file_of_another_kind_is_not_sought_on_the_hub(own):
    (own.parent / "story.docx").write_text("Once upon a time.")
    own.write_text(MINIMAL.replace("story.txt", "story.docx"))
    with pytest.raises(ValueError, match=r"story\.docx' is not of a known kind: expected \.txt, \.md, .* or \.parquet"):
        list(read_documents(load_pair(own).train))


def test_text_of_too_few_documents(own):
    (own.parent / "story.txt").write_text("One.\n\nTwo.")
    with pytest.raises(ValueError, match="has 2 documents that are not empty: every tenth is kept for evaluation"):
        list(read_documents(load_pair(own).evaluation))


def test_what_a_model_lacks_names_the_pair_and_its_file(own):
    with pytest.raises(ValueError, match=r"pair 'mine' \(.*mine\.yml\), model a: .*reads 48 tokens at most"):
        check_pair(load_pair(own))
    own.write_text(MINIMAL.replace("models/b", "models/nowhere/c") + "context: 32\n")
    with pytest.raises(ValueError, match=r"pair 'mine' .*, model b: 'models/nowhere/c' is no folder .* and no Hub id"):
        check_pair(load_pair(own))


@pytest.mark.parametrize("kind", [HubError, HubBusy])
def test_what_the_hub_does_not_give_is_told_with_the_pair_and_stays_of_its_kind(kind):
    with pytest.raises(ValueError) as error, blaming(load_pair("gpt2"), "text"):
        raise kind("dataset 'a/b' could not be had")
    assert type(error.value) is kind
    assert str(error.value) == "pair 'gpt2' (stitch_utils/data/pairs/gpt2.yml), text: dataset 'a/b' could not be had"


def test_an_augmenter_is_a_model_beside_the_file_or_on_the_hub(own):
    own.write_text(MINIMAL + "augmenter: {model: google/gemma-2-9b-it}\n")
    assert load_pair(own).augmenter == AugmenterRef("google/gemma-2-9b-it", None, "bfloat16")
    own.write_text(MINIMAL + "augmenter: {model: models/a, revision: v1, dtype: float32}\n")
    assert load_pair(own).augmenter == AugmenterRef(str(own.parent / "models" / "a"), "v1", "float32")
    assert load_pair("gpt2").augmenter.model == "google/gemma-2-9b-it" and load_pair("tiny").augmenter is None


def test_the_pairs_of_the_paper():
    """Table 1 and App. A, written out."""
    said = {
        "pythia": ("EleutherAI/pythia-70m-deduped", 3, "EleutherAI/pythia-160m-deduped", 4, 512),
        "gpt2": ("openai-community/gpt2", 6, "openai-community/gpt2-medium", 10, 512),
        "gemma": ("google/gemma-2-2b", 20, "google/gemma-2-9b", 33, 128),
        "gemma-it": ("google/gemma-2-2b-it", 20, "google/gemma-2-9b-it", 33, 128),
    }
    for name, expected in said.items():
        pair = load_pair(name)
        assert (pair.a.model, pair.a.layer, pair.b.model, pair.b.layer, pair.context) == expected
        assert pair.scale("paper").train_tokens == 180_000 * pair.context
        assert (pair.train.take, pair.evaluation.skip, pair.evaluation.take) == (180_000, 180_000, 1_000)
        assert pair.file == f"stitch_utils/data/pairs/{name}.yml"


def test_unknown_names(tmp_path):
    with pytest.raises(ValueError, match=r"unknown pair 'gpt5': known are .*tiny"):
        load_pair("gpt5")
    with pytest.raises(ValueError, match=r"unknown pair .*: there is no file '.*none\.yml'"):
        load_pair(tmp_path / "none.yml")
    with pytest.raises(ValueError, match="unknown scale 'huge' for pair 'tiny': known are smoke, default, paper"):
        load_pair("tiny").scale("huge")


def test_a_layer_that_a_model_does_not_have(tmp_path, random_folders):
    data = tiny() | {
        "a": {"model": str(random_folders / "a"), "layer": 3},
        "b": {"model": str(random_folders / "b"), "layer": 2},
    }
    with pytest.raises(ValueError, match=r"layer 3 of .* does not exist: it has 3 layers \(0-2\)"):
        load_models(load_pair(write(tmp_path, data)))


def test_models_of_different_tokenizers_are_a_pair(tmp_path, random_folders):
    from tools.train_pair import TrainingConfig, build_model, save_model, train_tokenizer

    tokenizer = train_tokenizer(["entirely different text, and no more of it"] * 3, 300)
    save_model(
        build_model(TrainingConfig("c", 1, 16, 2, 2, 1e-3, 100, context=16), tokenizer), tokenizer, tmp_path / "c"
    )
    data = tiny() | {
        "context": 16,
        "a": {"model": str(random_folders / "a"), "layer": 1},
        "b": {"model": str(tmp_path / "c"), "layer": 1},
    }
    a, b = load_models(load_pair(write(tmp_path, data)))
    assert a.tokenizer.get_vocab() != b.tokenizer.get_vocab()


def test_sizes_of_an_experiment_at_a_scale():
    pair = load_pair("tiny")
    assert pair.sizes_of("languages", "smoke")["strengths"] == (1.0, 2.0)
    mine = dataclasses.replace(pair, scales={"mine": pair.scale("smoke")})
    assert mine.sizes_of("languages", "mine") == pair.sizes_of("languages", "default")
    with pytest.raises(ValueError, match="unknown scale 'huge' for pair 'tiny': known are smoke, default, paper"):
        pair.sizes_of("languages", "huge")


@pytest.mark.parametrize(
    "experiment, kind",
    [("map_text", MapConfig), ("choices", ChoiceConfig), ("free_tasks", SweepConfig), ("entropy", FunctionalConfig)],
)
def test_every_size_is_a_field_of_its_configuration(experiment, kind):
    fields = {entry.name for entry in dataclasses.fields(kind)}
    for pair in (load_pair("tiny"), load_pair(Path(__file__).parents[2] / "tools" / "real.yml")):
        for scale in pair.scales:
            assert set(pair.sizes_of(experiment, scale)) - {"chat_lr"} <= fields  # the rate for pairs that chat
