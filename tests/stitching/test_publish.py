"""Stitches published on the Hub and read from it, by the client that thinks it talks to the Hub."""

import errno
import itertools
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from hub import Hub, child
from hub.repository import front_matter
from toy_book import call_here

from stitch_utils.data.hub import HubBusy, HubError
from stitch_utils.data.pairs import load_pair
from stitch_utils.stitching.pair import fit_pair
from stitch_utils.stitching.publish import load_stitch, model_card, push_stitch, write_repository
from stitch_utils.stitching.stitch import Stitch
from stitch_utils.utils.files import NotWritten

HELD_OUT = Path("private", "held-out.jsonl")
CHILD = """
import json, os, sys
from pathlib import Path
import torch
from huggingface_hub import hf_hub_download
from stitch_utils.stitching.stitch import TENSORS, Stitch
from stitch_utils.stitching.publish import load_stitch, push_stitch

stitch, found = Stitch.load(sys.argv[1]), {"errors": {}}

def refused(label, act):
    try:
        act()
    except ValueError as error:
        found["errors"][label] = [type(error).__name__, str(error)]

refused("without a token", lambda: push_stitch(stitch, "me/mine"))
os.environ["HF_TOKEN"] = "hf_reader"
refused("a token that reads", lambda: push_stitch(stitch, "me/mine"))
os.environ["HF_TOKEN"] = "hf_writer"
refused("a bad name", lambda: push_stitch(stitch, "mine"))
refused("no such licence", lambda: push_stitch(stitch, "me/mine", licence="mine alone"))
found["first"] = push_stitch(stitch, "me/mine", licence="mit")
loaded = load_stitch("me/mine")
found["same"] = all(torch.equal(getattr(loaded, name), getattr(stitch, name)) for name in TENSORS)
found["card"] = Path(hf_hub_download("me/mine", "README.md")).read_text()
found["about"] = dict(loaded.about)
changed = Stitch(stitch.P_up + 1, stitch.b_up, stitch.P_down, stitch.b_down)
found["second"] = push_stitch(changed, "me/mine")
found["changed"] = torch.equal(load_stitch("me/mine").P_up, changed.P_up)
refused("no repository", lambda: load_stitch("me/none"))
refused("no revision", lambda: load_stitch("me/mine@v9"))
refused("no stitch", lambda: load_stitch("lab/small"))
refused("damaged", lambda: load_stitch("me/damaged"))
found["third"] = stitch.push_to_hub("me/other", license="mit")
other = Stitch.from_pretrained("me/other")
found["methods"] = all(torch.equal(getattr(other, name), getattr(stitch, name)) for name in TENSORS)
found["licence"] = "license: mit" in Path(hf_hub_download("me/other", "README.md")).read_text()
pinned = Stitch.from_pretrained("me/mine", revision=found["second"].rsplit("/", 1)[1])
found["pinned"] = torch.equal(pinned.P_up, changed.P_up)
refused("a method, no revision", lambda: Stitch.from_pretrained("me/other", revision="v9"))
refused("a method, a bad name", lambda: stitch.push_to_hub("mine", private=True))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def stitch():
    generator = torch.Generator().manual_seed(0)
    tensors = (torch.randn(shape, generator=generator) for shape in ((4, 6), (6,), (6, 4), (4,)))
    losses = {"up": 0.1, "down": 0.2, "cycle_a": 0.01, "cycle_b": 0.02, "total": 0.33}
    about = {
        "pair": "mine",
        "a": "lab/small",
        "layer_a": 1,
        "b": "lab/large",
        "layer_b": 2,
        "text": "lab/web",
        "text_source": "hub",
        "held_out_text": str(HELD_OUT.absolute()),
        "tokens": 123_456,
        "loss_fitted": losses,
        "loss_held_out": losses | {"total": 0.44},
        "unexplained": [0.25, 0.125],
        "revision_a": "step1000",
    }
    return Stitch(*tensors, about=about)


@pytest.fixture(scope="module")
def published(stitch, tmp_path_factory):
    """A stitch pushed and read by another process, and the folder of the server that it was pushed to."""
    root, scratch = tmp_path_factory.mktemp("writable hub"), tmp_path_factory.mktemp("pushed")
    for kind, name, licence in (
        ("models", "small", "apache-2.0"),
        ("models", "large", ["mit", "other"]),
        ("datasets", "web", "cc0-1.0"),
    ):
        (root / kind / "lab" / name).mkdir(parents=True)
        (root / kind / "lab" / name / "README.md").write_text(f"---\n{yaml.safe_dump({'license': licence})}---\n")
    (root / "models" / "me" / "damaged").mkdir(parents=True)
    stitch.save(scratch / "s.safetensors")
    content = bytearray((scratch / "s.safetensors").read_bytes())
    content[-2] ^= 1
    (root / "models" / "me" / "damaged" / "stitch.safetensors").write_bytes(bytes(content))
    with Hub(root, writers={"hf_writer"}) as server:
        environment = server.environment(scratch / "home", HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
        found = child(environment, "-c", CHILD, str(scratch / "s.safetensors"))
        return SimpleNamespace(**found, folder=root / "models" / "me" / "mine", log=server.requests, url=server.url)


def test_what_is_pushed_is_what_is_read(published, stitch):
    assert published.same and published.changed
    assert published.first != published.second
    assert published.first.startswith(f"{published.url}/me/mine/commit/")
    assert sorted(path.name for path in published.folder.iterdir()) == ["README.md", "stitch.safetensors"]
    assert published.about == json.loads(json.dumps(stitch.about)) | {"held_out_text": HELD_OUT.name}


def test_a_stitch_pushes_and_loads_itself(published):
    assert published.methods and published.licence and published.pinned
    assert published.third.startswith(f"{published.url}/me/other/commit/")


REFUSALS = {
    "without a token": ("HubError", "'me/mine' cannot be written: log in with `hf auth login`"),
    "a token that reads": ("HubError", "with a token that may write there"),
    "no such licence": (
        "HubError",
        'cannot be written: Invalid metadata in README.md. - "license" must be',
    ),
    "a bad name": ("ValueError", "'mine' is no name of a repository: expected owner/name"),
    "no repository": ("HubError", "'me/none' does not exist on"),
    "no revision": ("HubError", "has no revision 'v9'"),
    "no stitch": ("HubError", "lacks a file that is needed"),
    "damaged": ("ValueError", "is damaged"),
    "a method, no revision": ("HubError", "has no revision 'v9'"),
    "a method, a bad name": ("ValueError", "'mine' is no name of a repository: expected owner/name"),
}


@pytest.mark.parametrize("label", REFUSALS)
def test_what_is_refused_is_said_in_one_line(published, label):
    kind, words = REFUSALS[label]
    found = published.errors[label]
    assert found[0] == kind and words in found[1] and "\n" not in found[1]


def test_only_the_two_files_are_sent(published):
    asked = itertools.groupby(published.log, lambda request: request[:2])  # a client asks again at once if it must
    sent = [path.split("/")[1] for (method, path), group in asked if method == "PUT" and [*group][-1][2] == 200]
    assert sent == ["lfs"] * 3, "the stitch goes by LFS, once for each of its versions"


@pytest.fixture(scope="module")
def card(stitch):
    return model_card(stitch, "me/mine", licence="mit", licences={"a": "apache-2.0", "b": "mit, other", "text": "cc0"})


def test_the_card_has_the_metadata_that_the_hub_reads(card):
    assert front_matter(card) == {
        "library_name": "stitch_utils",
        "tags": ["model-stitching", "residual-stream", "interpretability", "arxiv:2506.06609"],
        "license": "mit",
        "base_model": ["lab/small", "lab/large"],
        "datasets": ["lab/web"],
    }


def test_the_card_says_pair_layers_data_losses_and_licences(card):
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line[:1] == "|"]
    for row in (
        ["model", "lab/small", "lab/large"],
        ["revision", "step1000", "main"],
        ["residual stream", "before layer 1", "before layer 2"],
        ["width", "4", "6"],
        ["text fitted on", "0.1", "0.2", "0.01", "0.02", "0.33"],
        ["held-out text", "0.1", "0.2", "0.01", "0.02", "0.44"],
        ["lab/small", "apache-2.0"],
        ["lab/large", "mit, other"],
        ["lab/web", "cc0"],
    ):
        assert row in rows
    assert "123,456 tokens of `lab/web` (licence: cc0)" in card and "up 75.0%, down 87.5%" in card


def test_the_cards_lines_load_the_stitch(small_pair, tmp_path):
    """The code of the card, run as it is."""
    pair = load_pair(small_pair())
    fitted = fit_pair(pair, scale="smoke").stitch
    write_repository(fitted, tmp_path / "repo", "me/mine")
    card = (tmp_path / "repo" / "README.md").read_text()
    assert "base_model" not in card and str(tmp_path) not in card and os.path.dirname(pair.a.model) not in card
    code = card.split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line]) == 5
    file = tmp_path / "repo" / "stitch.safetensors"
    names = {}
    exec(code.replace("path/of/model-a", pair.a.model).replace("me/mine", str(file)), names)
    assert torch.equal(names["y"], fitted.up(names["x"])) and names["x"].shape[-1] == 32
    assert load_stitch(file).about["a"] == "a"


@pytest.mark.parametrize("there", [["README.md"], ["README.md", "stitch.safetensors", "model.py"], ["notes.txt"]])
def test_a_folder_of_something_else_is_left_alone(stitch, tmp_path, there):
    for name in there:
        (tmp_path / name).write_text("years of work")
    with pytest.raises(ValueError, match=r"holds \S+: expected a new folder, an empty one, or one with") as told:
        write_repository(stitch, tmp_path, "me/mine")
    assert "\n" not in str(told.value)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(there, "years of work")
    with pytest.raises(ValueError, match=r"is no folder"):
        write_repository(stitch, tmp_path / there[0], "me/mine")


def test_a_repository_is_written_again_file_by_whole_file(stitch, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "new" / "one"):
        for licence in ("mit", "cc0-1.0"):
            write_repository(stitch, folder, "me/mine", licence=licence)
        assert sorted(os.listdir(folder)) == ["README.md", "stitch.safetensors"]
        assert front_matter((folder / "README.md").read_text())["license"] == "cc0-1.0"

    def full(path, text, **options):
        with open(path, "w") as file:
            file.write(text[:9])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(NotWritten, match=r"README.md could not be written \(No space left"):
        write_repository(stitch, folder, "me/mine")
    assert sorted(os.listdir(folder)) == ["README.md", "stitch.safetensors"]
    assert front_matter((folder / "README.md").read_text())["license"] == "cc0-1.0"


def test_licences_are_those_that_the_sources_state(published):
    for row in ("| lab/small | apache-2.0 |", "| lab/large | mit, other |", "| lab/web | cc0-1.0 |"):
        assert row in published.card.splitlines()
    assert front_matter(published.card)["license"] == "mit"
    second = (published.folder / "README.md").read_text()
    assert "lab/small" not in second and "| unknown | not stated |" in second, "it says nothing of what it is for"


def test_a_hub_that_is_busy_is_asked_again(stitch, tmp_path, monkeypatch):
    stitch.save(tmp_path / "stitch.safetensors")
    busy = [HubBusy("model 'me/mine' is busy"), HubBusy("and still")]

    def download(name, file, *, revision):
        if busy:
            raise busy.pop()
        return str(tmp_path / file)

    monkeypatch.setattr("stitch_utils.data.hub.WAITS", (0, 0))
    monkeypatch.setattr("stitch_utils.stitching.publish.hf_hub_download", download)
    assert torch.equal(load_stitch("me/mine").P_up, stitch.P_up) and not busy


def test_names_that_are_neither_file_nor_repository(tmp_path):
    for name in ("stitch.safetensors", "a/b/c", "folder/stitch.safetensors"):
        with pytest.raises(ValueError, match="is no file, and no repository of the Hub"):
            load_stitch(name)


def test_nothing_is_pushed_without_a_network(stitch):
    with pytest.raises(HubError, match="'me/mine' cannot be written: HF_HUB_OFFLINE is set"):
        push_stitch(replace(stitch, about={}), "me/mine")


def test_the_command_writes_a_repository(small_pair, bare_book):
    file = small_pair()
    call_here(bare_book, "fit", "--pair", str(file), "--scale", "smoke")
    out = bare_book / "repo"
    code, lines, err = call_here(
        bare_book, "push", "me/mine", "--pair", str(file), "--license", "cc0-1.0", "--folder", str(out)
    )
    assert (code, err) == (0, "") and f"`hf upload me/mine {out}`" in lines[-1]
    assert front_matter((out / "README.md").read_text())["license"] == "cc0-1.0"
    assert load_stitch(out / "stitch.safetensors").about["pair"] == "mine"
    code, _, err = call_here(bare_book, "push", "me/mine", "--pair", str(file))
    assert code == 2 and "cannot be written: HF_HUB_OFFLINE is set" in err and err.count("\n") == 1
