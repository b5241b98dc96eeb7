"""The forecast of a run: against the FLOPs that torch counts in chapters, and what it refuses."""

import math

import pytest
import torch
from renew_reference import ROOT
from torch.utils.flop_counter import FlopCounterMode

from stitch_utils.book import forecast as forecasts
from stitch_utils.book.chapter_costs import CHAPTERS, _responses
from stitch_utils.book.chapters import RequestError, read_chapter
from stitch_utils.book.cli import main
from stitch_utils.book.forecast import CARDS, card_of, forecast
from stitch_utils.book.runs import WorkError
from stitch_utils.book.workloads import sizes_of
from stitch_utils.data.pairs import load_pair


def _given(chapter):
    return read_chapter(ROOT, chapter)[1]


@pytest.mark.parametrize("chapter", ["pairs", "stitching", "sae_training"])
def test_flops_are_nearly_those_that_torch_counts(chapter, tmp_path, monkeypatch):
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
                    names["scale"] = "smoke"
    told = forecast(sizes_of(load_pair("tiny"), "smoke"), chapter, parameters)
    assert 1 / 1.25 < told.flops / counter.get_total_flops() < 1.25


def test_what_earlier_chapters_made_is_not_counted_again():
    sizes, given = sizes_of(load_pair("tiny"), "smoke"), _given("probing")
    alone, after = (forecast(sizes, "probing", given, kept=kept) for kept in ((), ("stitch",)))
    assert alone.flops - after.flops == sizes.harvest(sizes.scale.train_tokens).flops
    assert alone.disk > after.disk == 0 and after.notes == ("stitch: made before",)


def test_responses_are_written_in_stages_to_their_limit():
    sizes = sizes_of(load_pair("tiny"), "smoke")
    prompt, found = sizes.lengths.prompt, _responses(sizes, "b", 10, 100)
    assert found.tokens == 10 * ((prompt + 48) + (prompt + 96) + (prompt + 100) + (prompt + 2 * 100))
    assert found.flops == found.tokens * sizes.whole("b", prompt + 100)


def test_a_chapter_without_a_formula_is_not_counted():
    found = forecast(sizes_of(load_pair("tiny"), "smoke"), "lrt", {})
    assert found.tokens is None and found.flops is None and found.device > 0


def test_a_family_whose_costs_are_not_known_leaves_cells_open():
    sizes = sizes_of(load_pair("qwen3"), "default")
    for chapter in set(CHAPTERS) - {"instruction_following"}:
        found = forecast(sizes, chapter, _given(chapter), memory=1e9)
        assert found.tokens > 0 and math.isnan(found.flops) and math.isnan(found.device), chapter
        assert math.isnan(found.host) == (chapter not in ("pairs", "steering"))


def test_a_pair_that_cannot_fit_is_refused_with_what_would(monkeypatch, capsys):
    sizes = sizes_of(load_pair("gemma"), "smoke", on_gpu=True)
    with pytest.raises(WorkError, match=r"stitching \(gemma, smoke\) does not fit 20 GB: weights of 23\.\d GB and one"):
        forecast(sizes, "stitching", _given("stitching"), memory=20e9)
    monkeypatch.setattr(forecasts, "sizes_of", lambda *_, **__: sizes)
    assert main(["plan", "--pair", "gemma", "--scale", "smoke", "--gpu", "20GB"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("stitch-book: ") and err.count("\n") == 1 and "expected a card of " in err


def test_batches_are_halved_where_a_card_is_small():
    sizes, given = sizes_of(load_pair("gemma"), "paper", on_gpu=True), _given("stitching")
    large, small = (forecast(sizes, "stitching", given, memory=memory) for memory in (80e9, 26e9))
    assert large.device > 26e9 > small.device and "rows, not 128" in small.notes[0] and not large.notes


def test_the_card_gives_memory_and_rate(monkeypatch, capsys):
    assert card_of("24GB") == (24e9, None) and card_of("RTX 4090") == (24e9, CARDS["rtx4090"])
    with pytest.raises(RequestError, match="--gpu much: expected a size such as 24GB, or one of a100"):
        card_of("much")
    monkeypatch.setattr(torch, "randn", lambda *size: pytest.fail("a named card is not measured"))
    assert main(["plan", "--pair", "pythia", "--scale", "paper", "--gpu", "a100"]) == 0
    assert capsys.readouterr().out.startswith("1.95e+13 FLOP/s, by the data sheet")
