"""The paper's pairs through the same chapters, by clients that think they talk to the Hub; and what is said when the
Hub does not give what a pair needs."""

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml
from hub import Hub
from hub.corpora import ifeval_rows
from huggingface_hub import constants
from renew_reference import REFERENCE, ROOT, copy_sources

from stitch_utils.data.pairs import PAIRS_FOLDER, load_pair
from stitch_utils.features.study import feature_study_config
from stitch_utils.models.language_model import load_tokenizer
from stitch_utils.steering.prompts import instruction_kinds, steering_prompts

PAIRS = ("pythia", "gpt2", "gemma", "gemma-it")
# Stitching on every pair, and every other chapter on one or two of the pairs on which the paper runs it, since each
# takes its time.
CHAPTERS = {
    "pythia": ("pairs", "stitching", "sae_transfer", "probing"),
    "gpt2": ("stitching", "sae_training", "feature_transfer", "functional_features"),
    "gemma": ("stitching", "sae_transfer", "steering", "lrt_maps", "lrt"),
    "gemma-it": ("stitching", "instruction_following"),
}


def stitch_book(root, environment, *arguments):
    """`stitch-book` in a process of its own: (exit code, stdout, stderr without the clients' log lines before it)."""
    done = subprocess.run(
        [sys.executable, "-m", "stitch_utils.book.cli", *arguments],
        cwd=ROOT,
        env={**environment, "STITCH_ROOT": str(root)},
        capture_output=True,
        text=True,
        timeout=1800,  # ends a run that hangs: bfloat16 takes a slow machine minutes a chapter
    )
    # from its own first line on: a chapter that fails has its traceback below that
    _, ours, below = done.stderr.rpartition("stitch-book: ")
    return done.returncode, done.stdout, (ours + below or done.stderr).rstrip()


@pytest.fixture(scope="module")
def book_root(tmp_path_factory):
    """A copy of the book with the embedded pair's pages of tests/reference."""
    root = tmp_path_factory.mktemp("book")
    copy_sources(root)
    shutil.copy(ROOT / "_config.yml", root)
    for page in REFERENCE.glob("*.ipynb"):
        (root / "book" / "runs" / "tiny").mkdir(parents=True, exist_ok=True)
        shutil.copy(page, root / "book" / "runs" / "tiny")
    shutil.copytree(REFERENCE / "results", root / "results")
    return root


@pytest.fixture(scope="module")
def fetched_prompts(home):
    """The file of prompts that the pairs of Gemma name by its URL, fetched before from a stand-in for its host."""
    rows = ifeval_rows(25)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HOME", str(home))
        answer = httpx.Response(200, text="\n".join(map(json.dumps, rows)), request=httpx.Request("GET", "https://x"))
        patch.setattr(httpx, "get", lambda url, **options: answer)
        for name in ("gemma", "gemma-it"):
            pair = load_pair(name)
            tokenizer = load_tokenizer("embedded:tiny-a")
            found = steering_prompts(pair, 1000, tokenizer=tokenizer, split="all")
            assert len(found) == len({row["prompt_without_instruction"] for row in rows})
        assert len(instruction_kinds(pair)) > 3


@pytest.fixture(scope="module")
def runs(hub, home, book_root, fetched_prompts, tmp_path_factory):
    """{pair: (exit code, stdout, stderr)} of all chapters at scale smoke; the pages are put into the book."""

    def run(pair):
        root = tmp_path_factory.mktemp(pair)  # a book of its own, since one book is for one run at a time
        copy_sources(root)
        contents = yaml.safe_load((root / "_toc.yml").read_text())
        wanted = {*CHAPTERS[pair], "instruction_following", "claims"}
        contents["chapters"] = [entry for entry in contents["chapters"] if Path(entry["file"]).name in wanted]
        (root / "_toc.yml").write_text(yaml.safe_dump(contents))
        outcome = stitch_book(root, hub.environment(home), "run", "--scale", "smoke", "--pair", pair)
        for folder in (Path("book", "runs", pair), Path("results", pair)):
            if (root / folder).is_dir():
                shutil.copytree(root / folder, book_root / folder)
        (book_root / "kept" / pair).mkdir(parents=True)
        for path in (root / "artifacts").rglob("augmented-*.jsonl"):
            shutil.copy(path, book_root / "kept" / pair)
        return outcome

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(PAIRS, pool.map(run, PAIRS)))


def written(pair):
    return yaml.safe_load((PAIRS_FOLDER / f"{pair}.yml").read_text())


@pytest.mark.parametrize("pair", PAIRS)
def test_the_chapter_runs_on_the_papers_pair(pair, runs, book_root):
    code, out, err = runs[pair]
    assert code == 0, err
    assert all(re.search(rf"^{chapter} \({pair}, smoke\): \d+ s$", out, re.M) for chapter in CHAPTERS[pair])
    without = f"since the tokenizer of {written(pair)['a']['model']!r} has no chat template"
    assert (f"instruction_following ({pair}, smoke): left out, {without}" in out) == (pair != "gemma-it")
    page = json.loads((book_root / "book" / "runs" / pair / "stitching.ipynb").read_text())
    text = "".join("".join(cell["source"]) for cell in page["cells"])
    assert text.startswith(f"# Stitching two language models: {pair}") and "Given the paper's full schedule" not in text
    shown = json.dumps(page["cells"])
    assert "untrained stand-ins" in shown
    results = json.loads((book_root / "results" / pair / "stitching.json").read_text())
    assert results["run.stand_in"] is True and results[f"figure6.{pair}.chosen_layer_b"] == written(pair)["b"]["layer"]
    assert results[f"table1.{pair}.a_to_b_to_a"] > 0
    assert results[f"table1.{pair}.documents"] == written(pair)["scales"]["smoke"]["eval_documents"]


def test_features_are_classed_by_versions_that_a_model_wrote(runs, book_root):
    results = book_root / "results" / "gpt2"
    assert {"feature_transfer.json", "functional_features.json"} <= {path.name for path in results.iterdir()}
    asked = feature_study_config(load_pair("gpt2"), "smoke")
    found = json.loads((results / "feature_transfer.json").read_text())
    assert found["table7.gpt2.versions"] == asked.sentences * asked.versions
    (kept,) = (book_root / "kept" / "gpt2").iterdir()
    groups = [json.loads(line.split(" ", 1)[1]) for line in kept.read_text().splitlines()]
    assert len(groups) >= asked.sentences and {len(group) for group in groups} == {1 + asked.versions}


def test_the_pages_stand_in_the_book_and_count_for_nothing(runs, book_root, hub, home):
    environment = hub.environment(home)
    code, _, err = stitch_book(book_root, environment, "run", "--chapter", "claims")
    assert code == 0, err
    code, _, err = stitch_book(book_root, environment, "build")
    assert code == 0, err
    html = book_root / "_build" / "html"
    for pair in PAIRS:
        assert "Random weights" in (html / "book" / "runs" / pair / "stitching.html").read_text()
    listed = (html / "book" / "runs" / "tiny" / "claims.html").read_text()
    assert f'href="../{PAIRS[0]}/stitching.html"' in listed and "(random weights: no results)" in listed
    code, out, _ = stitch_book(book_root, environment, "claims", "--pair", "gemma", "--json")
    assert code == 0 and {verdict["verdict"] for verdict in json.loads(out)} == {"not run"}


def test_what_was_fetched_once_needs_no_network(runs, book_root, home, hub):
    asked = len(hub.requests)
    environment = hub.environment(home, HF_HUB_OFFLINE="1")
    code, out, err = stitch_book(book_root, environment, "fit", "--pair", "gemma", "--scale", "smoke")
    assert code == 0, err
    assert "the stitch is in" in out and len(hub.requests) == asked


def test_a_gated_model_without_and_with_a_token(hub_root, book_root, tmp_path):
    id, command = "google/gemma-2-9b", ["fit", "--scale", "smoke", "--pair", "gemma"]
    with Hub(hub_root, gated={id: {"good-token"}}) as gated:
        for token in ({}, {"HF_TOKEN": "another-token"}):
            code, _, err = stitch_book(book_root, gated.environment(tmp_path, **token), *command)
            assert code == 2 and err.count("\n") == 0
            where = r"pair 'gemma' \(stitch_utils/data/pairs/gemma\.yml\), model b: model 'google/gemma-2-9b' is gated"
            assert re.search(where, err) and f"{gated.url}/{id}" in err and "hf auth login" in err
        code, out, err = stitch_book(book_root, gated.environment(tmp_path, HF_TOKEN="good-token"), *command)
    assert code == 0, err
    assert "These are random weights" in out and "before layer 33" in out


# What is changed in the file of Pythia, and in the environment; what is said.
REFUSED = {
    "model": (
        ("EleutherAI/pythia-70m-deduped", "EleutherAI/pythia-70b"),
        {},
        "model a: model 'EleutherAI/pythia-70b' does not exist on .*: check the name",
    ),
    "revision": (("revision: main    #", "revision: step9    #"), {}, "model a: .* has no revision 'step9'"),
    "dataset": (("Skylion007/openwebtext", "nobody/nothing"), {}, "text: dataset 'nobody/nothing' does not exist on"),
    "column": (
        (", take: 180_000}", ", column: body, take: 180_000}"),
        {},
        "text: dataset 'Skylion007/openwebtext' has no text column 'body': its columns are text",
    ),
    "rows": (("skip: 180_000", "skip: 999_000"), {}, "text: no documents in hub source .* after skipping 999000"),
    "network": (("", ""), {"HF_ENDPOINT": "http://127.0.0.1:9"}, "model a: .* cannot be reached: check the network"),
    "cache": (("", ""), {"HF_HUB_OFFLINE": "1"}, "model a: .* is not in .*: unset HF_HUB_OFFLINE once to fetch it"),
}


@pytest.fixture(scope="module")
def refusals(hub, book_root, tmp_path_factory):
    """{case: (exit code, stdout, stderr)}; together, since the clients wait and ask again where there is no network."""

    def fit(case):
        change, settings, _ = REFUSED[case]
        folder, text = tmp_path_factory.mktemp(case), (PAIRS_FOLDER / "pythia.yml").read_text()
        assert change[0] in text
        (folder / "mine.yml").write_text(text.replace(*change, 1).replace("name: pythia", "name: mine"))
        environment = hub.environment(folder / "home", **settings)
        return stitch_book(book_root, environment, "fit", "--scale", "smoke", "--pair", str(folder / "mine.yml"))

    with ThreadPoolExecutor(3) as pool:
        return dict(zip(REFUSED, pool.map(fit, REFUSED)))


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_hub_does_not_give_is_one_line(case, refusals):
    code, _, err = refusals[case]
    assert code == 2 and err.count("\n") == 0, err
    assert re.search(rf"pair 'mine' \(.*mine\.yml\), {REFUSED[case][2]}", err), err
