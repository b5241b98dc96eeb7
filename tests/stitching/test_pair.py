"""A pair file to a stitch file: by the library, by the command, and what is said when something is wrong with it."""

import functools
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from toy_book import call_here, project_root_at

from stitch_utils.data.pairs import load_pair
from stitch_utils.models.harvest import evaluation_batches, sample_residuals, training_batches
from stitch_utils.models.language_model import load_models
from stitch_utils.stitching import pair as fitting
from stitch_utils.stitching.fit import fit_exact
from stitch_utils.stitching.moments import harvest_folds, harvest_moments
from stitch_utils.stitching.pair import RepeatedText, StitchedPair, fit_pair, preflight
from stitch_utils.stitching.stitch import Stitch, stitch_loss
from stitch_utils.stitching.svcca import svcca_table


@pytest.fixture
def file(small_pair, tmp_path, random_folders):
    """A file of a pair without a layer for B, on a text of 120 documents."""
    documents = [f"The cook bakes {number} cakes in the kitchen. She sees the big fish." for number in range(120)]
    (tmp_path / "text.txt").write_text("\n\n".join(documents))
    return small_pair(b={"model": str(random_folders / "b")}, text="text.txt")


def test_the_layer_of_b_is_the_one_most_like_that_of_a(file, random_models):
    pair = load_pair(file)
    scale = pair.scale("smoke")
    xs, ys = sample_residuals(*random_models, training_batches(pair, scale, (random_models[0].tokenizer,) * 2, 1600))
    scores = [svcca_table({0: xs[1]}, {0: ys[layer]}).item() for layer in range(4)]
    assert StitchedPair.open(pair, "smoke").layers == (1, scores.index(max(scores)))


def test_the_stitch_of_a_pair(file):
    pair = load_pair(file)
    fitted = fit_pair(pair, scale="smoke", alpha=0.5, ridge=1e-8)
    models, scale = load_models(pair), pair.scale("smoke")
    tokenizer = models[0].tokenizer
    batches = (training_batches(pair, scale, (tokenizer,) * 2, 1600), evaluation_batches(pair, scale, (tokenizer,) * 2))
    moments, held_out = (harvest_moments(*models, part, [fitted.layers])[fitted.layers] for part in batches)
    expected = fit_exact(moments, alpha=0.5)
    torch.testing.assert_close(fitted.stitch.P_up, expected.P_up)
    assert fitted.held_out == stitch_loss(expected, held_out, alpha=0.5) and fitted.tokens == moments.count
    y = held_out.cyy.diagonal().sum().item() / models[1].d_model
    assert fitted.unexplained[0] == pytest.approx(fitted.held_out.up / y)


def test_a_pass_is_made_once_and_again_when_something_changes(file, bare_book, monkeypatch):
    passes = []

    for harvest in (harvest_moments, harvest_folds):

        @functools.wraps(harvest)
        def counted(*given, harvest=harvest, **options):
            passes.append(1)
            return harvest(*given, **options)

        monkeypatch.setattr(fitting, harvest.__name__, counted)
    with project_root_at(bare_book):
        first = fit_pair(load_pair(file), scale="smoke").stitch
        assert len(passes) == 2, "one for the training text, one for the evaluation text"
        again = fit_pair(load_pair(file), scale="smoke").stitch
        assert len(passes) == 3 and torch.equal(first.P_up, again.P_up)
        text = file.parent / "text.txt"
        text.write_text(text.read_text().replace("cakes", "shoes"))
        other = fit_pair(load_pair(file), scale="smoke").stitch
        assert len(passes) == 5 and not torch.equal(first.P_up, other.P_up)
    assert len(list((bare_book / "artifacts" / "mine").glob("moments-*"))) == 2


def test_opening_a_pair_sets_its_threads_and_keeps_its_models(small_pair, monkeypatch):
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    opened = [StitchedPair.open(load_pair(small_pair(threads=2)), "smoke") for _ in range(2)]
    assert threads == [2, 2] and all(first is again for first, again in zip(opened[0].models, opened[1].models))
    StitchedPair.open(load_pair(small_pair()), "smoke")
    assert threads == [2, 2], "a pair that fixes none leaves them alone"
    assert opened[0].side("b") == (opened[0].models[1], 2)
    for other in ("", "ab", "up"):
        with pytest.raises(ValueError, match=f"unknown side '{other}': expected one of a, b"):
            opened[0].side(other)


def test_the_command_ends_in_a_file_and_prints_its_losses(file, bare_book):
    code, lines, err = call_here(bare_book, "fit", "--pair", str(file), "--scale", "smoke", "--alpha", "0.5")
    assert code == 0, err
    path = bare_book / "artifacts" / "mine" / "stitch.safetensors"
    stitch, fitted = Stitch.load(path), fit_pair(load_pair(file), scale="smoke", alpha=0.5)
    torch.testing.assert_close(stitch.P_down, fitted.stitch.P_down)
    assert (stitch.about["layer_a"], stitch.about["layer_b"]) == fitted.layers and stitch.report.alpha == 0.5
    assert any(line.endswith(", by SVCCA") for line in lines)
    printed = {line[:16].strip(): line[16:].split() for line in lines}
    assert printed["held-out text"] == [f"{value:.4g}" for value in fitted.held_out]
    assert lines[-1].endswith(path.as_posix())


@pytest.mark.parametrize("out", [".", "folder", "folder/..", "none/.."])
def test_a_folder_is_no_place_for_a_stitch_and_that_is_said_before_the_work(file, bare_book, monkeypatch, out):
    monkeypatch.setattr(fitting, "fit_pair", lambda *given, **options: pytest.fail("the work began"))
    monkeypatch.setenv("HOME", str(bare_book))
    monkeypatch.chdir(bare_book)
    (bare_book / "folder").mkdir()
    (bare_book / "folder" / "thesis.tex").write_text("years of work")
    for given in (out, f"~/{out}"):
        code, lines, err = call_here(bare_book, "fit", "--pair", str(file), "--scale", "smoke", "--out", given)
        assert (code, lines, err.count("\n")) == (2, [], 1) and f"--out {given}: expected the name of a file" in err
    assert (bare_book / "folder" / "thesis.tex").read_text() == "years of work"


def test_a_name_of_the_package_is_not_for_others(file, bare_book):
    file.write_text(file.read_text().replace("name: mine", "name: tiny"))
    code, _, err = call_here(bare_book, "fit", "--pair", str(file), "--scale", "smoke")
    assert code == 2 and "the name 'tiny' must be fit for a folder and not one of tiny" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "none.txt"}, r"pair 'mine' .*mine.yml., text: text file 'none.txt' does not exist"),
        ({"b": {"model": "./nothing"}}, "model b: './nothing' is no folder with a Hugging Face model"),
        ({"context": 64}, "reads 48 tokens at most: choose a context below 64"),
    ],
)
def test_what_is_wrong_is_one_line(file, bare_book, change, message):
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | change))
    code, lines, err = call_here(bare_book, "fit", "--pair", str(file), "--scale", "smoke")
    assert code == 2 and not lines
    assert err.count("\n") == 1
    assert re.search(message, err), err


def test_what_is_checked_before_a_run_needs_no_scale_of_a_certain_name(small_pair):
    scales = yaml.safe_load(small_pair().read_text())["scales"]
    preflight(load_pair(small_pair(scales={"default": scales["default"]})))


SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs a real model and stories that are not in the repository")
def test_a_real_model_that_nobody_made_for_this(tmp_path, project):
    """Two layers of a Llama trained on TinyStories: the next layer is nearly a linear image of the one before."""
    stories = json.loads((SHARED / "tinystories_1000" / "tinystories_1000.json").read_text())
    (tmp_path / "stories.jsonl").write_text("\n".join(json.dumps({"text": story}) for story in stories))
    model = {"model": str(SHARED / "stories260K")}
    data = {"name": "stories", "a": model | {"layer": 2}, "b": model | {"layer": 3}, "text": "stories.jsonl"}
    (tmp_path / "stories.yml").write_text(yaml.safe_dump(data))
    fitted = fit_pair(load_pair(tmp_path / "stories.yml"), scale="smoke")
    assert fitted.layers == (2, 3) and max(fitted.unexplained) < 0.25


REPEATED = [f"The cook number {number} bakes a cake for the baker's daughter, and it is big." for number in range(60)]


@pytest.mark.parametrize(
    ("rows", "held_out", "said"),
    [
        (
            "document",
            [REPEATED[4], "Never before."],
            r"1 of 2 held-out documents \(50\.0%\) stand in the training text",
        ),
        ("packed", [*REPEATED[:3], *REPEATED[:3]], r"6 of 6 held-out documents \(100\.0%\) stand in the training text"),
        ("document", ["Never before.", "Nor after."], ""),
    ],
)
def test_held_out_text_that_repeats_the_training_text(small_pair, tmp_path, bare_book, rows, held_out, said):
    for name, documents in {"train": REPEATED, "held": held_out}.items():
        (tmp_path / f"{name}.txt").write_text("\n\n".join(documents))
    text = {
        part: {"source": "files", "name": f"{name}.txt"}
        for part, name in {"train": "train", "evaluation": "held"}.items()
    }
    file = small_pair(text=text, rows=rows, sizes={"train_tokens": 800}, ridge=0.01)
    opened = StitchedPair.open(file, "smoke")
    if said:
        with pytest.warns(RepeatedText, match=said):
            _ = opened.stitch
    else:
        assert opened.repeats == "" and opened.stitch
    code, lines, err = call_here(bare_book, "fit", "--pair", str(file), "--scale", "smoke")
    found = [line for line in lines if line.startswith("Beware: ") and "held-out documents" in line]
    assert (code, err, len(found)) == (0, "", bool(said)) and all(re.search(said, line) for line in found)
