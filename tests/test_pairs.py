"""Pair files: what comes with the package is sound, and what is wrong with a user's file is said."""

import pytest
import yaml

from stitch_utils.models import load_models
from stitch_utils.pairs import PAIRS_FOLDER, SCALES, load_pair


def tiny():
    return yaml.safe_load((PAIRS_FOLDER / "tiny.yml").read_text())


def write(tmp_path, data):
    path = tmp_path / "mine.yml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.mark.parametrize("path", sorted(PAIRS_FOLDER.glob("*.yml")), ids=lambda path: path.stem)
def test_every_pair_of_the_package(path):
    pair = load_pair(path.stem)
    assert pair.name == path.stem
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
        ({"rows": "loose"}, "unknown rows 'loose': expected document or packed"),
        ({"context": 1}, "context must be at least 2: got 1"),
        ({"colour": "red"}, "ModelPair: unknown colour; expected name, title"),
        ({"a": {"model": "x"}}, "ModelRef: missing layer; expected model, layer, revision"),
        ({"scales": {"smoke": {"train_tokens": 0}}}, "missing adam_steps, batch_size"),
        ({"text": {"train": {"source": "world", "name": "x"}}}, "the entry 'evaluation' is missing"),
        ({"text": {key: {"source": "world", "name": "x"} for key in ("train", "evaluation")}}, "text are the same"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as error:
        load_pair(write(tmp_path, tiny() | change))
    assert str(error.value).startswith("mine.yml: ")


def test_unknown_names(tmp_path):
    with pytest.raises(ValueError, match=r"unknown pair 'gpt5': known are .*tiny"):
        load_pair("gpt5")
    with pytest.raises(ValueError, match="unknown pair"):
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


def test_tokenizers_that_differ(tmp_path, random_folders):
    from stitch_utils.embedded.train import TrainingConfig, build_model, save_model, train_tokenizer

    tokenizer = train_tokenizer(["entirely different text, and no more of it"] * 3, 300)
    save_model(
        build_model(TrainingConfig("c", 1, 16, 2, 2, 1e-3, 100, context=16), tokenizer), tokenizer, tmp_path / "c"
    )
    data = tiny() | {
        "a": {"model": str(random_folders / "a"), "layer": 1},
        "b": {"model": str(tmp_path / "c"), "layer": 1},
    }
    with pytest.raises(ValueError, match=r"tokenizers of .* differ: both models must read the same tokens"):
        load_models(load_pair(write(tmp_path, data)))
