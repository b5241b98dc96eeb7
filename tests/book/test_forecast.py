"""The forecast of a run: against the FLOPs that torch counts in chapters, and what it refuses."""

import copy
import dataclasses
import math
import os
import shutil
import types

import pytest
import torch
from renew_reference import ROOT
from torch.utils.flop_counter import FlopCounterMode

from stitch_utils.book import forecast as forecasts
from stitch_utils.book.chapter_costs import CHAPTERS, _responses
from stitch_utils.book.chapters import RequestError, read_chapter
from stitch_utils.book.cli import main
from stitch_utils.book.forecast import CARDS, forecast, machine_of
from stitch_utils.book.workloads import sizes_of
from stitch_utils.data import pairs
from stitch_utils.data.pairs import load_pair


def _given(chapter):
    return read_chapter(ROOT, chapter)[1]


def _flops(pair, chapter):
    return forecast(sizes_of(pair, "smoke"), chapter, _given(chapter)).work.flops


@pytest.mark.parametrize(("chapter", "given"), [("pairs", {}), ("stitching", {}), ("sae_training", {"seeds": 2})])
def test_flops_are_nearly_those_that_torch_counts(chapter, given, tmp_path, monkeypatch):
    notebook, parameters, _ = read_chapter(ROOT, chapter)
    monkeypatch.setenv("STITCH_ROOT", str(tmp_path))
    names, counter = {}, FlopCounterMode(display=False)
    for folder in ("book", "_toc.yml"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    with counter:
        for cell in notebook.cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, chapter, "exec"), names)
                if "parameters" in cell.metadata.get("tags", ()):
                    names |= {"scale": "smoke"} | given
    told = forecast(sizes_of(load_pair("tiny"), "smoke"), chapter, parameters | given).work
    assert 1 / 1.25 < told.flops / counter.get_total_flops() < 1.25


@pytest.mark.parametrize(
    "chapter, experiment, size",
    [
        ("probing", "probing", "n_train"),
        ("steering", "languages", "prompts"),
        ("steering", "languages", "max_new_tokens"),
        ("instruction_following", "instructions", "prompts"),
        ("instruction_following", "instructions", "max_new_tokens"),
        ("feature_transfer", "feature_study", "sentences"),
        ("maps", "maps", "relu_steps"),
        ("lrt_maps", "map_text", "tokens"),
    ],
)
def test_a_chapter_is_counted_by_its_own_sizes(chapter, experiment, size, monkeypatch):
    pair, changed = load_pair("tiny"), copy.deepcopy(pairs._sizes())
    before = _flops(pair, chapter)
    changed["smoke"][experiment][size] *= 2
    monkeypatch.setattr(pairs, "_sizes", lambda: changed)
    assert _flops(pair, chapter) > before


@pytest.mark.parametrize(
    "chapter, size",
    [
        ("pairs", "eval_documents"),
        ("stitching", "train_tokens"),
        ("stitching", "svcca_tokens"),
        ("stitching", "adam_steps"),
        ("sae_transfer", "sae_steps"),
        ("sae_training", "sae_sweep_steps"),
        ("sae_training", "sae_latents"),
    ],
)
def test_a_chapter_is_counted_by_the_sizes_of_its_pair(chapter, size):
    pair = load_pair("tiny")
    scale = pair.scale("smoke")
    more = dataclasses.replace(scale, **{size: 2 * getattr(scale, size)})
    assert _flops(dataclasses.replace(pair, scales={"smoke": more}), chapter) > _flops(pair, chapter)


def test_what_earlier_chapters_made_is_not_counted_again():
    sizes, given = sizes_of(load_pair("tiny"), "smoke"), _given("probing")
    alone, after = (forecast(sizes, "probing", given, kept=kept) for kept in ((), ("stitch",)))
    assert alone.work.flops - after.work.flops == sizes.harvest(sizes.scale.train_tokens).flops
    assert alone.work.disk > after.work.disk == 0 and after.notes == ("stitch: made before",)


def test_responses_are_written_in_stages_to_their_limit():
    sizes = sizes_of(load_pair("tiny"), "smoke")
    prompt, found = sizes.lengths.prompt, _responses(sizes, "b", 10, 100, at_once=8)
    assert found.tokens == 10 * ((prompt + 48) + (prompt + 96) + (prompt + 100) + (prompt + 2 * 100))
    assert found.flops == found.tokens * sizes.whole("b", prompt + 100)
    assert found.device == 8 * (prompt + 100) * sizes.models["b"].vocab * 8  # logits and log-probabilities in float32


def test_a_chapter_without_a_formula_is_not_counted():
    found = forecast(sizes_of(load_pair("tiny"), "smoke"), "lrt", {})
    assert not found.is_counted and found.work.device > 0


def test_a_family_whose_costs_are_not_known_leaves_cells_open():
    sizes = sizes_of(load_pair("qwen3"), "default")
    for chapter in set(CHAPTERS) - {"instruction_following"}:
        found = forecast(sizes, chapter, _given(chapter), memory=1e9)
        assert found.work.tokens > 0 and math.isnan(found.work.flops) and math.isnan(found.work.device), chapter
        assert math.isnan(found.work.host) == (chapter not in ("pairs", "steering"))


def test_hours_take_float64_apart():
    sizes = sizes_of(load_pair("pythia"), "paper", on_gpu=True)
    moments = sizes.harvest(sizes.scale.train_tokens)
    assert moments.double == moments.flops - sizes.read(sizes.scale.train_tokens).flops > 0
    found, rates = forecasts.Forecast(moments), CARDS["rtx3090"].rates
    seconds = (moments.flops - moments.double) / rates["float32"] + moments.double / rates["float64"]
    assert found.hours(CARDS["rtx3090"], "float32") == pytest.approx(seconds / 3600)
    assert math.isnan(found.hours(machine_of("24GB", "float32"), "float32"))


def test_a_pair_that_cannot_fit_is_shown_and_refused_with_what_would(capsys):
    sizes = sizes_of(load_pair("gemma"), "smoke", on_gpu=True)
    found = forecast(sizes, "stitching", _given("stitching"), memory=20e9)
    assert found.problem.startswith("weights of 23.") and "one row of text" in found.problem
    assert main(["plan", "--pair", "gemma", "--scale", "smoke", "--gpu", "20GB"]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("stitch-book: gemma at scale smoke does not fit 20 GB; all chapters: weights of 23.")
    assert err.count("\n") == 1 and err.count("expected a card of ") == 1 and "device_map: auto" in err
    stitching = next(line for line in out.splitlines() if line.startswith("stitching"))
    assert "does not fit" in stitching and f"{found.work.flops:.2g}" in stitching


def test_what_a_chapter_holds_beside_the_models_may_not_fit():
    sizes = sizes_of(load_pair("pythia"), "paper", on_gpu=True)
    problem = {name: forecast(sizes, name, _given(name), memory=24e9).problem for name in ("sae_training", "probing")}
    assert "the SAEs of its sweep" in problem["sae_training"] and "fewer sae_sweep_widths" in problem["sae_training"]
    assert not problem["probing"]
    sizes = sizes_of(load_pair("gemma"), "paper", on_gpu=True)
    steering = forecast(sizes, "steering", _given("steering"), memory=40e9).problem
    assert "the logits of a batch of responses" in steering and "batch_size of languages" in steering


def test_batches_are_halved_where_a_card_is_small():
    sizes, given = sizes_of(load_pair("gemma"), "paper", on_gpu=True), _given("stitching")
    large, small = (forecast(sizes, "stitching", given, memory=memory) for memory in (80e9, 26e9))
    assert large.work.device > 26e9 > small.work.device and ", not 128" in small.notes[0] and not large.notes


def test_this_machine_is_asked_for_its_memory_and_disk(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(forecasts, "measured_rate", lambda *given, **options: 1e9)
    assert main(["plan", "--scale", "smoke"]) == 0
    assert capsys.readouterr().out.startswith("FLOP/s: 1e+09 in float32, 1e+09 in float64, measured on ")
    monkeypatch.setattr(os, "sysconf", lambda name: 10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda root: types.SimpleNamespace(free=0))
    assert main(["plan", "--scale", "smoke"]) == 1
    err = capsys.readouterr().err
    assert "expected memory of 1 GB or more" in err and "GB are free" in err and err.count("\n") == 1


def test_the_card_gives_memory_and_rate(monkeypatch, capsys):
    monkeypatch.setattr(torch, "randn", lambda *size, **options: pytest.fail("a named card is not measured"))
    for text in ("24GB", "24gb", "24 GB"):
        assert machine_of(text, "float32")[:2] == (24e9, {})
    assert machine_of("RTX 4090", "float32") == CARDS["rtx4090"]
    assert "--gpu l4 or rtx3090 or rtx4090 gives hours" in machine_of("24GB", "float32").source
    for text in ("abc", "-1GB", "0GB", "24", "24GB!", ""):
        with pytest.raises(RequestError, match="expected a size such as 24GB, or one of a100"):
            machine_of(text, "float32")
    assert main(["plan", "--pair", "pythia", "--scale", "paper", "--gpu", "a100"]) == 0
    assert capsys.readouterr().out.startswith("FLOP/s: 1.95e+13 in float32, 1.95e+13 in float64, by the data sheet")


@pytest.mark.parametrize("wrong", ["--pair=nope", "--scale=huge", "--gpu=abc", "--gpu=-1GB", "--gpu="])
def test_wrong_input_is_one_line(wrong, capsys):
    assert main(["plan", wrong]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("stitch-book: ") and err.count("\n") == 1
    assert "expected" in err or "known are" in err


def test_the_readme_shows_what_the_command_prints(capsys):
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Outgrowing one machine\n")[1]
    command = section.split("```bash\n")[1].split("```")[0].split()
    shown = section.split("```text\n")[1].split("```")[0].splitlines()
    assert command[0].endswith("stitch-book") and main(command[1:]) == 1
    out, err = capsys.readouterr()
    printed = [*out.splitlines(), *err.splitlines()]
    assert len(shown) > 5 and [line for line in shown if line != "..."] == [line for line in printed if line in shown]
