"""The numbers of a run: what is stored, what comes back, what is refused."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stitch_utils.book.claims import verdicts
from stitch_utils.book.results import pairs_with_results, read_results, write_results
from stitch_utils.utils import files


def test_written_numbers_come_back_rounded_and_with_parameters(project):
    numbers = {"table1.tiny.b": 2.0 / 3, "table1.tiny.a": np.float32(0.1), "table1.tiny.n": np.int64(7)}
    path = write_results("tiny", "first", numbers, parameters={"scale": "smoke", "alpha": 1 / 3, "sae": None})
    assert path == project / "results" / "tiny" / "first.json"
    rows = json.loads(path.read_text())
    assert list(rows) == sorted(rows)
    assert rows["table1.tiny.b"] == 0.666667 and rows["table1.tiny.a"] == 0.1
    found = read_results("tiny")
    assert found.numbers == {"table1.tiny.a": 0.1, "table1.tiny.b": 0.666667, "table1.tiny.n": 7}
    assert found.runs == {"first": {"scale": "smoke", "alpha": 0.333333, "sae": None}}
    assert isinstance(found.numbers["table1.tiny.n"], int)


def test_a_second_run_replaces_the_first_and_leaves_nothing_else(project):
    write_results("tiny", "first", {"table1.tiny.a": 1.0, "table1.tiny.old": 1.0})
    path = write_results("tiny", "first", {"table1.tiny.a": 2.0})
    assert read_results("tiny").numbers == {"table1.tiny.a": 2.0}
    assert sorted(file.name for file in path.parent.iterdir()) == [".first.json.sha256", "first.json"]


def test_a_run_that_was_killed_while_writing_is_ignored(project):
    path = write_results("tiny", "first", {"table1.tiny.a": 1.0})
    path.with_name(".second.123.tmp").write_text('{"table1.tiny')
    assert read_results("tiny").numbers == {"table1.tiny.a": 1.0}
    assert pairs_with_results() == ["tiny"]


@pytest.mark.parametrize(
    ("numbers", "parameters", "message"),
    [
        ({"table1.tiny.a": math.nan}, {}, r"'table1\.tiny\.a' is nan"),
        ({"table1.tiny.a": -math.inf}, {}, r"'table1\.tiny\.a' is -inf"),
        ({"table1.tiny.a": np.float32("nan")}, {}, r"'table1\.tiny\.a' is nan"),
        ({"table1.tiny.a": torch.tensor(1.0)}, {}, "is of type Tensor"),
        ({"table1.tiny.a": None}, {}, "is of type NoneType"),
        ({"table1.tinyish.a": 1.0}, {}, "does not contain the pair"),
        ({"run.tiny.a": 1.0}, {}, "does not contain the pair"),
        ({}, {"layers": [1, 2]}, "'layers' is of type list"),
        ({}, {"alpha": math.inf}, "'alpha' is inf"),
    ],
)
def test_what_cannot_be_compared_is_refused_and_the_old_file_stays(project, numbers, parameters, message):
    write_results("tiny", "first", {"table1.tiny.a": 5.0})
    with pytest.raises(ValueError, match=message):
        write_results("tiny", "first", numbers, parameters=parameters)
    assert read_results("tiny").numbers == {"table1.tiny.a": 5.0}


@pytest.mark.parametrize(("pair", "chapter"), [("../tiny", "first"), ("tiny", "a/b"), ("", "first"), ("tiny", ".x")])
def test_names_that_leave_the_folder_are_refused(project, pair, chapter):
    with pytest.raises(ValueError, match="is not a file name"):
        write_results(pair, chapter, {})


def test_a_number_that_moved_to_another_chapter_is_read_from_there(project):
    """A page of an older version may still be about; nothing is wrong with the newer one."""
    write_results("tiny", "third", {"table1.tiny.a": 1.0, "table1.tiny.c": 3.0})
    write_results("tiny", "first", {"table1.tiny.a": 2.0}, parameters={"scale": "smoke"})
    write_results("tiny", "second", {"table1.tiny.b": 1.0}, parameters={"scale": "paper"})
    found = read_results("tiny")
    assert found.runs == {"first": {"scale": "smoke"}, "second": {"scale": "paper"}}
    assert (found.numbers["table1.tiny.a"], found.numbers["table1.tiny.c"]) == (2.0, 3.0)
    os.utime(project / "results" / "tiny" / "third.json")
    assert read_results("tiny").numbers["table1.tiny.a"] == 1.0


def test_no_two_chapters_of_this_version_write_one_number():
    files = sorted((Path(__file__).parents[1] / "reference" / "results" / "tiny").glob("*.json"))
    ids = [id for file in files for id in json.loads(file.read_text()) if not id.startswith("run.")]
    assert len(files) > 3 and len(ids) == len(set(ids))


@pytest.mark.parametrize("text", ["[1, 2]", "{", "3"])
def test_a_broken_results_file_is_named(project, text):
    folder = project / "results" / "tiny"
    folder.mkdir(parents=True)
    (folder / "first.json").write_text(text)
    with pytest.raises(ValueError, match=r"first\.json does not hold a flat JSON object"):
        read_results("tiny")


@pytest.mark.parametrize("damage", [lambda text: text.replace("0.25", "0.35"), lambda text: text[:-20]])
def test_a_results_file_that_changed_since_its_run_is_refused(project, damage):
    path = write_results("tiny", "first", {"table1.tiny.a": 0.25})
    path.write_text(damage(path.read_text()))
    with pytest.raises(
        ValueError, match=r"not as its run wrote it: .* `.*stitch-book run --pair tiny --chapter first`"
    ):
        read_results("tiny")
    write_results("tiny", "first", {"table1.tiny.a": 0.5})
    assert read_results("tiny").numbers == {"table1.tiny.a": 0.5}


def test_how_to_make_results_of_an_own_pair_again_names_its_file(project):
    path = write_results("mine", "first", {"table1.mine.a": 0.25})
    path.write_text("{}")
    page = project / "book" / "runs" / "mine" / "first.ipynb"
    page.parent.mkdir(parents=True)
    page.write_text(json.dumps({"metadata": {"stitch_book": {"parameters": {"pair": "my pairs/mine.yml"}}}}))
    with pytest.raises(ValueError, match=r"again with `.*stitch-book run --pair 'my pairs/mine.yml' --chapter first`"):
        read_results("mine")


def test_the_root_is_the_checkout_or_else_the_current_folder(tmp_path):
    package = tmp_path / "checkout" / "stitch_utils"
    (package / "utils").mkdir(parents=True)
    for folder in (package, package / "utils"):
        (folder / "__init__.py").touch()
    shutil.copy(files.__file__, package / "utils")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "STITCH_ROOT"}
    environment["PYTHONPATH"] = str(package.parent)

    def root(**more):
        code = "from stitch_utils.utils.files import project_root; print(project_root())"
        command = [sys.executable, "-c", code]
        run = subprocess.run(command, cwd=elsewhere, env=environment | more, capture_output=True, text=True, check=True)
        return Path(run.stdout.strip())

    assert root() == elsewhere
    (package.parent / "_toc.yml").touch()
    assert root() == package.parent
    assert root(STITCH_ROOT="/srv/book") == Path("/srv/book")


def test_runs_on_stand_ins_are_no_results(project):
    write_results("tiny", "first", {"table1.tiny.a": 1.0}, parameters={"stand_in": False})
    write_results("big", "first", {"table1.big.a": 1.0, "table1.big.b": 2.0}, parameters={"stand_in": True})
    assert read_results("big") == ({}, {}) and pairs_with_results() == ["tiny"]
    assert {verdict.verdict for verdict in verdicts("big")} == {"not run"}
    assert read_results("big", stand_ins=True).numbers["table1.big.a"] == 1.0, "their own page still shows them"
