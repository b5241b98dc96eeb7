"""What goes wrong around a run: each ends in one clear line or a run that goes on, and never in a wrong number."""

import hashlib
import json
import signal
import time
from collections import Counter

import kill_report
import psutil
import pytest
import torch
from filelock import FileLock
from hub import Hub, child
from hub.server import Cut
from safetensors.torch import load_file
from toy_book import PACKAGE, call, call_here, chapter, outcomes, runs, start, write_toy

from stitch_utils.book import runs as runs_module
from stitch_utils.book.runs import is_fresh, key_of
from stitch_utils.utils import files

# The Hub

FETCH = """
import hashlib, json, sys, time
time.sleep = lambda seconds: None  # between attempts, ours and those of the Hub's client
from huggingface_hub import hf_hub_download
from stitch_utils.data.hub import fetched
try:
    path = fetched("model", "a/b", lambda: hf_hub_download("a/b", "model.safetensors"))
    said = ["fetched", hashlib.sha256(open(path, "rb").read()).hexdigest()]
except ValueError as error:
    said = [type(error).__name__, str(error)]
print(json.dumps(said))
"""


def first(count, trouble, method="GET"):
    """The trouble at the first `count` requests of each path."""
    asked = Counter()

    def at(given, path):
        asked[given, path] += given == method
        return trouble if given == method and asked[given, path] <= count else None

    return at


@pytest.fixture
def repository(tmp_path):
    """The folder of a Hub with one model of 300 kB of weights, their digest, and an environment for `FETCH`."""
    folder = tmp_path / "hub" / "models" / "a" / "b"
    folder.mkdir(parents=True)
    content = torch.randn(75_000, generator=torch.Generator().manual_seed(0)).numpy().tobytes()
    (folder / "model.safetensors").write_bytes(content)
    return tmp_path / "hub", hashlib.sha256(content).hexdigest()


def fetch(server, home):
    return child(server.environment(home, PYTHONPATH=str(PACKAGE.parent)), "-c", FETCH)


@pytest.mark.parametrize(
    "trouble",
    [first(2, 503), first(2, 503, "HEAD"), first(1, 429), first(2, Cut(100_000)), first(2, Cut(100_000, reset=True))],
    ids=["503 for a file", "503 for its size", "too many requests", "a cut in the middle", "a reset in the middle"],
)
def test_what_passes_is_waited_for(repository, tmp_path, trouble):
    root, digest = repository
    with Hub(root, trouble=trouble) as server:
        assert fetch(server, tmp_path / "home") == ["fetched", digest]
    assert max(Counter(request[:2] for request in server.requests).values()) > 1, "there was trouble"


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (first(999, 503), "is busy (status 503). Nothing is lost: try again later"),
        (first(999, 503, "HEAD"), "is busy (status 503)"),
        (first(999, Cut(0)), "cannot be reached: check the network"),
        (first(999, Cut(200_000)), "cannot be reached: check the network"),
    ],
    ids=["503 for a file", "503 for its size", "cut at once", "cut in the middle"],
)
def test_what_does_not_pass_is_one_line_and_the_next_run_works(repository, tmp_path, trouble, words):
    root, digest = repository
    with Hub(root, trouble=trouble) as server:
        kind, said = fetch(server, tmp_path / "home")
        assert kind in ("HubError", "HubBusy") and said.startswith("model 'a/b' ") and words in said
        assert "\n" not in said
        server.trouble = first(0, 503)
        assert fetch(server, tmp_path / "home") == ["fetched", digest]


LOAD = """
import json, time
time.sleep = lambda seconds: None
from stitch_utils.models.language_model import load_model
model = load_model("EleutherAI/pythia-70m-deduped")
print(json.dumps(model.bridge.original_model.gpt_neox.embed_in.weight.double().sum().item()))
"""


def test_a_model_is_loaded_through_all_of_it(hub_root, tmp_path):
    trouble, cut = first(1, 503), first(2, Cut(1000))

    def both(method, path):
        return trouble(method, path) or (cut(method, path) if path.endswith(".safetensors") else None)

    with Hub(hub_root, trouble=both) as server:
        found = child(server.environment(tmp_path, PYTHONPATH=str(PACKAGE.parent)), "-c", LOAD)
    stored = load_file(hub_root / "models" / "EleutherAI" / "pythia-70m-deduped" / "model.safetensors")
    assert found == stored["gpt_neox.embed_in.weight"].double().sum().item()


def wait_for(happened, process):
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)


def asleep(book):
    """A run whose first chapter is in the middle of a cell, and its kernel."""
    process = start(book, "run", "--chapter", "numbers", "-p", "wait", "600")
    wait_for((book / "asleep").exists, process)
    (kernel,) = psutil.Process(process.pid).children()
    return process, kernel


def test_a_kernel_that_is_killed_leaves_the_old_page(book):
    page = book / "book" / "runs" / "tiny" / "numbers.ipynb"
    before = page.read_bytes()
    process, kernel = asleep(book)
    kernel.kill()  # as the system does when memory runs out
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("stitch-book: numbers (tiny, default) failed in cell 3: import json") and "died" in err
    assert page.read_bytes() == before
    assert call_here(book, "run")[0] == 0


def test_a_killed_command_takes_its_kernel_along(book):
    """Else the kernel would go on, and write its numbers over those of a later run."""
    process, kernel = asleep(book)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=120)
    assert psutil.wait_procs([kernel], timeout=60)[1] == []


def test_two_runs_at_once_share_the_work(bare_book):
    processes = [start(bare_book, "run") for _ in range(2)]
    said = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    executed = [label for out, _ in said for label, done in outcomes(out.splitlines()).items() if done]
    assert sorted(executed) == ["claims (tiny)", "numbers (tiny, default)", "words (tiny, default)"]
    assert sorted("another run" in err for _, err in said) == [False, True]


def test_what_another_run_is_writing_is_not_rendered(book):
    with FileLock(book / "book" / "runs" / ".lock"):
        process = start(book, "build")
        try:
            said = process.stderr.readline()
            assert "another run" in said and process.poll() is None
        finally:
            process.kill()
            process.communicate()


def test_a_damaged_artifact_and_what_killed_runs_left_is_tidied_in_a_line(book):
    folder = book / "artifacts" / "tiny"
    for name in ("whole.json", "damaged.json"):
        files.write_whole(folder / name, lambda place: place.write_text("[0.125]"))
    (folder / "damaged.json").write_text("[0.625]")
    gone = 2**22 + 1  # no process has such an id
    leftovers = [
        folder / f".{gone}.new.x.json",
        book / "results" / "tiny" / f".{gone}.new.x.json",
        book / "book" / "runs" / "tiny" / f".{gone}.new.words.ipynb",
    ]
    for leftover in leftovers:
        leftover.touch()
    code, _, err = call(book, "run", "--chapter", "words", "--force")
    assert code == 0
    assert err == (
        "stitch-book: artifacts/tiny/damaged.json is not as it was written (truncated, or changed on the disk): it is "
        "made again\n"
    )
    assert sorted(path.name for path in folder.iterdir()) == [".whole.json.sha256", "whole.json"]
    assert not any(leftover.exists() for leftover in leftovers)


@pytest.mark.parametrize("what", ["page", "results"])
def test_one_changed_digit_in_a_page_or_its_results_makes_it_again(book, what):
    run = runs(book)["numbers"]
    path = book / (run.page if what == "page" else run.results)
    assert is_fresh(book, run, key_of(book, run))
    text = path.read_text()
    old, new = ("|0.5|", "|0.7|") if what == "page" else ("2.0", "3.0")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    assert not is_fresh(book, run, key_of(book, run))


def test_a_full_disk_is_one_line_and_leaves_the_old_page(book, monkeypatch):
    page = book / "book" / "runs" / "tiny" / "words.ipynb"
    before = page.read_bytes()

    def full(path, write, **options):
        raise files.NotWritten(f"{path} could not be written (No space left on device): what was finished is kept")

    monkeypatch.setattr(runs_module, "write_whole", full)
    code, lines, err = call_here(book, "run", "--chapter", "words", "--force")
    assert (code, lines) == (1, [])
    assert err.startswith("stitch-book: words (tiny, default) could not be kept: ") and err.count("\n") == 1
    assert page.read_bytes() == before
    assert [path.name for path in page.parent.glob(".*")] == []


@pytest.mark.parametrize("error", ["data.hub.HubError", "utils.files.NotWritten"])
def test_what_a_message_explains_comes_without_a_traceback(book, error):
    module, name = error.rsplit(".", 1)
    source = f"from stitch_utils.{module} import {name}\nraise {name}('model x is gone: fetch it')"
    (book / "book" / "words.md").write_text(chapter('pair = "tiny"\nscale = "default"\nseed = 0', source))
    code, _, err = call(book, "run", "--chapter", "words")
    assert code == 1
    assert err == (
        f"stitch-book: words (tiny, default) failed in cell 3: from stitch_utils.{module} import {name}\n\n"
        f"{name}: model x is gone: fetch it\n\n"
        "The partial notebook is book/runs/tiny/.words.failed.ipynb\n"
    )


# The script that kills


def test_kills_leave_the_numbers_of_a_clean_run(tmp_path):
    said = []
    found = kill_report.compare(write_toy, tmp_path, [], kills=3, seed=1, delays=(1, 8), say=said.append)
    assert found.killed == 3 and found.numbers == 2 and found.different == {}
    assert sum(line.startswith("kill ") for line in said) == 3


def test_numbers_that_are_not_those_of_a_clean_run_are_told(tmp_path):
    """Here the second book has another parameter; in the real one, a file that was trusted half-written."""

    def prepare(root):
        write_toy(root)
        source = root / "book" / "numbers.md"
        if root.name == "killed":
            source.write_text(source.read_text().replace("alpha = 0.5", "alpha = 0.25"))

    found = kill_report.compare(prepare, tmp_path, [], kills=0)
    assert found.different == {"tiny/numbers numbers.tiny.inverse": (4.0, 2.0)}


def test_different_numbers_are_told_apart_and_timings_are_not(tmp_path):
    for name, value in (("a", 1.0), ("b", 1.0000001)):
        folder = tmp_path / name / "results" / "tiny"
        folder.mkdir(parents=True)
        rows = {"table1.tiny.a": value, "table1.tiny.seconds": value, "run.scale": "smoke"}
        (folder / "x.json").write_text(json.dumps(rows))
        (folder / ".x.json.sha256").touch()
    a, b = (kill_report.numbers(tmp_path / name) for name in "ab")
    assert kill_report.differences(a, a) == {} and len(a) == 2
    assert kill_report.differences(a, b) == {"tiny/x table1.tiny.a": (1.0, 1.0000001)}
    assert kill_report.differences({}, a).keys() == a.keys() and kill_report.differences(a, {}).keys() == a.keys()


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        (kill_report.Comparison(3, 5, {}), 0, ["after 3 kills all 5 numbers are those of a clean run"]),
        (
            kill_report.Comparison(3, 5, {"tiny/x a": (1, None)}),
            1,
            ["tiny/x a: 1 after kills, None in a clean run", "1 of 5 numbers differ after 3 kills"],
        ),
        (kill_report.Comparison(3, 0, {}), 1, ["0 of 0 numbers differ after 3 kills"]),
    ],
)
def test_the_script_says_in_its_exit_code_whether_they_are_equal(monkeypatch, capsys, found, code, said):
    asked = []
    monkeypatch.setattr(kill_report, "compare", lambda *given, **more: asked.append((given[2], more)) or found)
    assert kill_report.main(["--kills", "3", "--scale", "default", "--seed", "4", "--longest", "9"]) == code
    assert capsys.readouterr().out.splitlines() == said
    ((arguments, options),) = asked
    assert arguments == ["--scale", "default"] and (options["kills"], options["seed"]) == (3, 4)
    assert options["delays"] == (kill_report.SHORTEST, 9)


def test_a_run_that_fails_is_no_clean_one(tmp_path):
    root = tmp_path / "book"
    root.mkdir()
    write_toy(root)
    with pytest.raises(SystemExit, match="exit code 2:\nstitch-book: unknown chapter 'none'"):
        kill_report.finish(root, ["--chapter", "none"], tmp_path / "log")
