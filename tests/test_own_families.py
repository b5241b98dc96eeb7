"""The package's pairs of families beside the papers', through clients that think they talk to the Hub."""

import json
import math
import re

import pytest
import yaml
from hub import child
from renew_reference import copy_sources
from test_real_pairs import written

from stitch_utils.stitching.stitch import Stitch

WIDTHS = {"smollm2": (16, 24), "qwen3": (16, 24), "gemma3": (16, 24), "smollm2-gemma3": (16, 16)}
SIZES = {"train_tokens": 2560, "svcca_tokens": 1280, "eval_documents": 6, "adam_steps": 5, "batch_size": 40}
LOSSES = re.compile(r"^([AB](?: itself|->\S+)) +(\S+) +(\S+)", re.M)
# One process does all, since importing takes longer than most of it.
CHILD = """
import contextlib, io, json, sys
from stitch_utils.book.cli import main
from stitch_utils.data.documents import read_documents
from stitch_utils.data.pairs import load_pair
from stitch_utils.models.harvest import training_batches
from stitch_utils.models.language_model import load_tokenizer

def stitch_book(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main([*arguments, "--scale", "smoke"])
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}

found = {}
for name, file in json.loads(sys.argv[1]).items():
    pair = load_pair(file)
    tokenizers = tuple(load_tokenizer(ref.model) for ref in (pair.a, pair.b))
    document = next(read_documents(pair.train))
    batch = next(training_batches(pair, pair.scale("smoke"), tokenizers, pair.context))
    sides = [
        {
            "begin": tokenizer.bos_token_id,
            "text": tokenizer(document, add_special_tokens=False)["input_ids"],
            "row": rows.tokens[0].tolist(),
            "counts": rows.mask[0].tolist(),
        }
        for tokenizer, rows in zip(tokenizers, (batch.a, batch.b))
    ]
    found[name] = stitch_book("fit", "--pair", file) | {"sides": sides}
    if name == "gemma3":
        found["run"] = stitch_book("run", "--pair", file, "--chapter", "sae_transfer")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A project with the pairs' files at small sizes, and docstrings of one package in the place of all."""
    folder = tmp_path_factory.mktemp("own")
    copy_sources(folder)
    contents = yaml.safe_load((folder / "_toc.yml").read_text())
    contents["chapters"] = [{"file": "book/runs/tiny/sae_transfer"}]
    (folder / "_toc.yml").write_text(yaml.safe_dump(contents))
    for name in WIDTHS:
        small = written(name) | {"name": f"small-{name}", "context": 64, "scales": {"smoke": SIZES}}
        if small["text"].get("source") == "documentation":
            small["text"]["name"] = "tqdm"
        (folder / f"{name}.yml").write_text(yaml.safe_dump(small))
    return folder


@pytest.fixture(scope="module")
def done(hub, home, root):
    """{pair: what its fit printed, and its first row of text}, and under `run` what a chapter printed."""
    files = {name: str(root / f"{name}.yml") for name in WIDTHS}
    return child(hub.environment(home, STITCH_ROOT=str(root)), "-c", CHILD, json.dumps(files))


@pytest.mark.parametrize("name", WIDTHS)
def test_a_pair_is_fitted(name, done, root):
    found, data = done[name], written(name)
    assert found["code"] == 0, found["err"]
    assert "These are random weights under the names of real models" in found["out"]
    for side in "ab":
        assert f"{side.upper()}: {data[side]['model']}, before layer {data[side]['layer']}\n" in found["out"]
    assert not re.search(r"\b(nan|inf)\b", found["out"])
    losses = {label: (float(nats), float(bits)) for label, nats, bits in LOSSES.findall(found["out"])}
    assert set(losses) == {"A itself", "B itself", "A->B", "B->A", "A->B->A", "B->A->B"}
    assert all(0 < value < math.inf for pair in losses.values() for value in pair)
    stitch = Stitch.load(root / "artifacts" / f"small-{name}" / "stitch.safetensors")
    assert tuple(stitch.P_up.shape) == WIDTHS[name]


def test_tokens_of_two_tokenizers_meet_in_part(done):
    shares = {name: re.findall(r"([\d.]+)% of [AB]'s", done[name]["out"]) for name in WIDTHS}
    assert [name for name in WIDTHS if shares[name]] == ["smollm2-gemma3"]
    assert len(shares["smollm2-gemma3"]) == 2 and all(50 < float(share) < 100 for share in shares["smollm2-gemma3"])


@pytest.mark.parametrize("name", WIDTHS)
def test_rows_begin_as_each_tokenizer_would_begin_them(name, done):
    for side in done[name]["sides"]:
        begin = [] if side["begin"] is None else [side["begin"]]
        assert side["row"][:20] == [*begin, *side["text"]][:20]
        assert not side["counts"][0], "the first token of a row, whose stream is unlike all others, is left out"
    begins = [side["begin"] for side in done[name]["sides"]]
    assert begins == {"qwen3": [None, None], "smollm2-gemma3": [1, 2], "smollm2": [0, 0], "gemma3": [2, 2]}[name]


def test_saes_of_both_sides_are_carried_across(done, root):
    assert done["run"]["code"] == 0, done["run"]["err"]
    numbers = json.loads((root / "results" / "small-gemma3" / "sae_transfer.json").read_text())
    shown = [value for id, value in numbers.items() if id.startswith("table2.small-gemma3.")]
    assert len(shown) > 20 and all(map(math.isfinite, shown))
    assert numbers["eq6.small-gemma3.d_a"] == 16 and numbers["eq6.small-gemma3.encoder_rank"] == 16
    page = (root / "book" / "runs" / "small-gemma3" / "sae_transfer.ipynb").read_text()
    assert page.count("JumpReLUSAE, 64 latents") >= 2
