"""The card's evidence: versions, settings, shared documents, effects written from results."""

import itertools
import json
from importlib import metadata
from pathlib import Path

import pytest
import torch
import yaml

from stitch_utils.book import reproducibility
from stitch_utils.book.chapters import chapter_names
from stitch_utils.book.reproducibility import departures, machine, open_points, settings, text_splits, versions
from stitch_utils.book.results import write_results
from stitch_utils.data.pairs import load_pair
from stitch_utils.data.text import read_documents
from stitch_utils.models.language_model import load_tokenizer
from stitch_utils.stitching.pair import RepeatedText, fit_pair
from stitch_utils.utils.files import locked

ROOT = Path(__file__).parents[2]
DEPARTURES = """
departures:
  - {chapter: words, paper: They count., here: We weigh.,
     effect: {text: "{ours:.1f} for {theirs:g}", needs: {ours: "w.{pair}.a", theirs: "w.{pair}.b"}}}
  - {chapter: words, paper: They add., here: We sum., because: "none: the same"}
open:
  - {chapter: words, what: "a < b?", taken: "yes", where: "`c` of a pair"}
"""


@pytest.fixture
def book(project):
    (project / "book" / "departures.yml").write_text(DEPARTURES)
    (project / "requirements.lock").write_text("torch==1.2.3\nA_b.c==4  # why\n\n")
    return project


def test_effects_are_written_from_the_results(book):
    assert departures("mine")["what that does"].tolist() == [
        "not run: .venv/bin/stitch-book run --pair mine.yml --chapter words",
        "not measured: none: the same",
    ]
    write_results("mine", "words", {"w.mine.a": 2.345, "w.mine.b": 7})
    found = departures("mine")
    assert found["what that does"][0] == "2.3 for 7" and found["here"].tolist() == ["We weigh.", "We sum."]
    points = open_points()
    assert points["open"].tolist() == ["a &lt; b?"] and points["to change it"].tolist() == ["<code>c</code> of a pair"]


def test_every_entry_is_of_a_chapter_and_needs_numbers_that_it_writes(monkeypatch):
    entries = yaml.safe_load((ROOT / "book" / "departures.yml").read_text(encoding="utf-8"))
    for entry in entries["departures"]:
        assert set(entry) in ({"chapter", "paper", "here", "effect"}, {"chapter", "paper", "here", "because"}), entry
    assert all(set(entry) == {"chapter", "what", "taken", "where"} for entry in entries["open"])
    assert {entry["chapter"] for kind in entries.values() for entry in kind} <= set(chapter_names(ROOT))
    monkeypatch.setenv("STITCH_ROOT", str(ROOT / "tests" / "reference"))
    monkeypatch.setattr(reproducibility, "_entries", entries.get)
    effects = departures("tiny")["what that does"]
    assert len(effects) > 10 and not [effect for effect in effects if effect.startswith("not run")]
    for entry in entries["departures"]:
        for id in entry.get("effect", {"needs": {}})["needs"].values():
            kept = json.loads((ROOT / "tests/reference/results/tiny" / f"{entry['chapter']}.json").read_text())
            assert id.replace("{pair}", "tiny") in kept, "of another chapter than the entry says"


def test_versions_are_those_of_the_lock_and_of_what_is_installed(book, monkeypatch):
    assert locked() == {"torch": "1.2.3", "a-b-c": "4"}
    monkeypatch.setattr(reproducibility, "NAMED", ("torch",))
    found = versions().values.tolist()
    *named, installed = found[0]
    assert named == ["torch", "1.2.3"]
    assert installed.split("+")[0] == torch.__version__.split("+")[0], "wheels need not say which build they are"
    assert found[1] == ["all 2", "", "0 as in the lock; not: torch, a-b-c"]
    (book / "requirements.lock").write_text(f"torch=={metadata.version('torch').split('+')[0]}\n")
    assert versions().values.tolist()[1] == ["all 1", "", "1 as in the lock"]
    (book / "requirements.lock").write_text("torch>=2\n")
    with pytest.raises(ValueError, match=r"requirements.lock: 'torch>=2': expected name==version"):
        versions()


def test_named_packages_are_in_the_lock():
    assert set(reproducibility.NAMED) <= set(locked(ROOT))


def test_settings_are_those_of_the_runs(project):
    (project / "_toc.yml").write_text("format: jb-book\nroot: book/claims\n")
    write_results(
        "mine", "words", {"w.mine.a": 1.0}, parameters={"scale": "smoke", "seed": 4, "alpha": 0.5, "stand_in": False}
    )
    write_results("mine", "more", {"m.mine.a": 1.0}, parameters={"scale": "paper", "seed": 0})
    found = settings("mine").set_index("chapter")
    assert found.loc["words"].tolist() == ["smoke", "4", "alpha 0.5"] and found.loc["more"].tolist() == [
        "paper",
        "0",
        "",
    ]
    assert settings("nobody").empty


def test_shared_documents_are_counted(small_pair, tmp_path):
    for name, texts in (("train", ["The cook.", "A cat.", "The dog."]), ("held", ["A cat.", "A bird.", "The cook."])):
        rows = [json.dumps({"text": text}) for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    path = small_pair(
        text={
            part: {"source": "files", "name": f"{name}.jsonl"}
            for part, name in (("train", "train"), ("evaluation", "held"))
        }
    )
    found = text_splits(load_pair(path), "smoke")
    assert found["documents"].tolist() == ["3", "3"] and found["documents also fitted on"].tolist() == ["", "2"]
    assert found["source"].tolist() == ["files: train.jsonl", "files: held.jsonl"]


@pytest.mark.parametrize("rows", ["document", "packed"])
def test_as_much_is_counted_as_a_stitch_is_fitted_on(small_pair, tmp_path, rows):
    """Documents of 1 to 16 words, which leave most of a row empty where each has its own."""
    texts = ["The cook sees a cat." + " The cat sees a dog." * (number % 4) for number in range(300)]
    (tmp_path / "text.txt").write_text("\n\n".join(texts))
    path = small_pair(text="text.txt", rows=rows, context=32)
    pair = load_pair(path)
    with pytest.warns(RepeatedText, match=r"9 of 9 held-out documents \(100.0%\) stand in the training text, too"):
        fitted = fit_pair(pair, scale="smoke")
    found = text_splits(pair, "smoke")
    assert found["tokens"][0] == f"{fitted.tokens:,}"
    # 1600 positions are 50 rows: of a document each, or of 31 tokens one after another, each document with its end
    tokenizer = load_tokenizer(pair.a.model)

    def ends(text):
        return list(itertools.accumulate(len(tokenizer(one)["input_ids"]) + 1 for one in read_documents(text)))

    held_out = ends(pair.evaluation)[:9]
    for number, last, every in ((0, 50 * 31, ends(pair.train)), (1, held_out[-1] // 31 * 31, held_out)):
        begun = 1 + sum(end < last for end in every)
        assert found["documents"][number] == (("50", "9")[number] if rows == "document" else str(begun))


def test_the_machine_is_described():
    rows = dict(machine().values.tolist())
    assert rows["processor"] and rows["Python"].count(".") == 2 and int(rows["processors"]) >= 1
    assert (rows["accelerator"] == "none") == (not torch.cuda.is_available())
