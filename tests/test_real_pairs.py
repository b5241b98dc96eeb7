"""The paper's pairs through the same chapters, by clients that think they talk to the Hub; and what is said when the
Hub does not give what a pair needs."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from hub import Hub
from renew_reference import REFERENCE, ROOT, copy_sources

from stitch_utils.pairs import PAIRS_FOLDER

PAIRS = ("pythia", "gpt2", "gemma", "gemma-it")


def stitch_book(root, environment, *arguments):
    """`stitch-book` in a process of its own: (exit code, stdout, stderr without the clients' own log lines)."""
    done = subprocess.run(
        [sys.executable, "-m", "stitch_utils.report", *arguments],
        cwd=ROOT, env={**environment, "STITCH_ROOT": str(root)}, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if line.startswith("stitch-book: ")]
    return done.returncode, done.stdout, "\n".join(ours) or done.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """An empty HF_HOME, to be filled."""
    return tmp_path_factory.mktemp("hf_home")


@pytest.fixture(scope="module")
def book_root(tmp_path_factory):
    """A copy of the book with the embedded pair's pages of tests/reference."""
    root = tmp_path_factory.mktemp("book")
    copy_sources(root)
    shutil.copy(ROOT / "_config.yml", root)
    (root / "book" / "runs" / "tiny").mkdir(parents=True)
    for page in REFERENCE.glob("*.ipynb"):
        shutil.copy(page, root / "book" / "runs" / "tiny")
    shutil.copytree(REFERENCE / "results", root / "results")
    return root


@pytest.fixture(scope="module")
def runs(hub, home, book_root):
    """{pair: (exit code, stdout, stderr)} of the chapter on stitching at scale smoke."""
    command = ["run", "--chapter", "stitching", "--scale", "smoke", "--pair"]
    return {pair: stitch_book(book_root, hub.environment(home), *command, pair) for pair in PAIRS}


def layers(pair):
    data = yaml.safe_load((PAIRS_FOLDER / f"{pair}.yml").read_text())
    return data["a"]["layer"], data["b"]["layer"]


@pytest.mark.parametrize("pair", PAIRS)
def test_the_chapter_runs_on_the_papers_pair(pair, runs, book_root):
    code, out, err = runs[pair]
    assert code == 0, err
    assert f"stitching ({pair}, smoke): " in out
    page = json.loads((book_root / "book" / "runs" / pair / "stitching.ipynb").read_text())
    text = "".join("".join(cell["source"]) for cell in page["cells"])
    assert text.startswith(f"# Stitching two language models: {pair}") and "Given the paper's full schedule" not in text
    shown = json.dumps(page["cells"])
    assert "untrained stand-ins" in shown
    results = json.loads((book_root / "results" / pair / "stitching.json").read_text())
    assert results["run.stand_in"] is True and results[f"figure6.{pair}.chosen_layer_b"] == layers(pair)[1]
    assert results[f"table1.{pair}.a_to_b_to_a"] > 0 and results[f"table1.{pair}.documents"] == 20


def test_the_pages_stand_in_the_book_and_count_for_nothing(runs, book_root, hub, home):
    environment = hub.environment(home)
    code, _, err = stitch_book(book_root, environment, "build")
    assert code == 0, err
    html = book_root / "_build" / "html"
    for pair in PAIRS:
        assert "Random weights" in (html / "book" / "runs" / pair / "stitching.html").read_text()
    front = (html / "book" / "runs" / "tiny" / "index.html").read_text()
    assert f'href="../{PAIRS[0]}/stitching.html"' in front and "(random weights: no results)" in front
    code, out, _ = stitch_book(book_root, environment, "claims", "--pair", "gemma", "--json")
    assert code == 0 and {verdict["verdict"] for verdict in json.loads(out)} == {"not run"}


def test_what_was_fetched_once_needs_no_network(runs, book_root, home, hub):
    closed = hub.environment(home, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    asked = len(hub.requests)
    command = ["run", "--chapter", "stitching", "--scale", "smoke", "--force", "--pair", "pythia"]
    code, out, err = stitch_book(book_root, closed, *command)
    assert code == 0, err
    assert "unchanged" not in out.splitlines()[0] and len(hub.requests) == asked


def test_a_gated_model_without_and_with_a_token(hub_root, book_root, tmp_path):
    id, command = "google/gemma-2-9b", ["fit", "--scale", "smoke", "--pair", "gemma"]
    with Hub(hub_root, gated={id: {"good-token"}}) as gated:
        for token in ({}, {"HF_TOKEN": "another-token"}):
            code, _, err = stitch_book(book_root, gated.environment(tmp_path, **token), *command)
            assert code == 2 and err.count("\n") == 0
            where = r"pair 'gemma' \(stitch_utils/pairs/gemma\.yml\), model b: model 'google/gemma-2-9b' is gated"
            assert re.search(where, err) and f"{gated.url}/{id}" in err and "hf auth login" in err
        code, out, err = stitch_book(book_root, gated.environment(tmp_path, HF_TOKEN="good-token"), *command)
    assert code == 0, err
    assert "These are random weights" in out and "before layer 33" in out


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (("EleutherAI/pythia-70m-deduped", "EleutherAI/pythia-70b"), {},
         "model a: model 'EleutherAI/pythia-70b' does not exist on .*: check the name"),
        (("revision: main    #", "revision: step9    #"), {}, "model a: .* has no revision 'step9'"),
        (("Skylion007/openwebtext", "nobody/nothing"), {}, "text: dataset 'nobody/nothing' does not exist on"),
        (("revision: main, take", "revision: main, column: body, take"), {},
         "text: dataset 'Skylion007/openwebtext' has no text column 'body': its columns are text"),
        (("skip: 180_000", "skip: 999_000"), {}, "text: no documents in hub source .* after skipping 999000"),
        (("", ""), {"HF_ENDPOINT": "http://127.0.0.1:9"}, "model a: .* cannot be reached: check the network"),
        (("", ""), {"HF_HUB_OFFLINE": "1"}, "model a: .* is not in .*: unset HF_HUB_OFFLINE once to fetch it"),
    ],
)  # fmt: skip
def test_what_the_hub_does_not_give_is_one_line(change, settings, message, hub, book_root, tmp_path):
    text = (PAIRS_FOLDER / "pythia.yml").read_text()
    assert change[0] in text
    file = tmp_path / "mine.yml"
    file.write_text(text.replace(*change, 1).replace("name: pythia", "name: mine"))
    environment = hub.environment(tmp_path / "home", **settings)
    code, _, err = stitch_book(book_root, environment, "fit", "--scale", "smoke", "--pair", str(file))
    assert code == 2 and err.count("\n") == 0, err
    assert re.search(rf"pair 'mine' \(.*mine\.yml\), {message}", err), err
