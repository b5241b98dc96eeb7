"""The forecast of a run: against the FLOPs that torch counts in chapters, and what it refuses."""

import pytest
import torch
from renew_reference import ROOT
from torch.utils.flop_counter import FlopCounterMode

from stitch_utils.book.chapters import RequestError, read_chapter
from stitch_utils.book.cli import main
from stitch_utils.book.forecast import CARDS, card_of, forecast
from stitch_utils.book.runs import WorkError
from stitch_utils.data.pairs import load_pair


@pytest.mark.parametrize("chapter", ["stitching", "sae_training"])
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
    told = forecast(load_pair("tiny"), "smoke", chapter, parameters)
    assert 1 / 1.5 < told.flops / counter.get_total_flops() < 1.5


def test_a_pair_that_cannot_fit_is_refused_with_what_would(capsys):
    with pytest.raises(WorkError, match=r"stitching \(gemma, smoke\) does not fit 24 GB: weights of 23\.\d GB and one"):
        forecast(load_pair("gemma"), "smoke", "stitching", read_chapter(ROOT, "stitching")[1], memory=24e9)
    assert main(["plan", "--pair", "gemma", "--scale", "smoke", "--gpu", "24GB"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("stitch-book: ") and err.count("\n") == 1 and "expected a card of " in err


def test_batches_are_halved_where_a_card_is_small():
    parameters, pair = read_chapter(ROOT, "stitching")[1], load_pair("gemma")
    large, small = (forecast(pair, "paper", "stitching", parameters, memory=memory) for memory in (80e9, 26e9))
    assert large.device > 26e9 > small.device and "rows, not 128" in small.notes[0] and not large.notes


def test_the_card_gives_memory_and_rate(monkeypatch, capsys):
    assert card_of("24GB") == (24e9, None) and card_of("RTX 4090") == (24e9, CARDS["rtx4090"])
    with pytest.raises(RequestError, match="--gpu much: expected a size such as 24GB, or one of a100"):
        card_of("much")
    monkeypatch.setattr(torch, "randn", lambda *size: pytest.fail("a named card is not measured"))
    assert main(["plan", "--pair", "pythia", "--scale", "paper", "--gpu", "a100"]) == 0
    assert capsys.readouterr().out.startswith("1.95e+13 FLOP/s, by the data sheet")
