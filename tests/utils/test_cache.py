"""What is kept: keyed by all that made it, whole or absent, and not believed once it has changed."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stitch_utils.models import harvest
from stitch_utils.models.generation import generate_texts
from stitch_utils.saes.pair import side_activations
from stitch_utils.steering.diagnostics import fit_template_stitches
from stitch_utils.stitching.moments import harvest_moments
from stitch_utils.utils import cache, files
from stitch_utils.utils.cache import artifact, kept
from stitch_utils.utils.files import (
    NotWritten,
    is_intact,
    is_sealed,
    remove_damaged,
    remove_if_damaged,
    remove_leftovers,
    tree_digest,
    write_whole,
)

PACKAGE = cache.PACKAGE


def write_json(value):
    return lambda path: path.write_text(json.dumps(value))


class Maker:
    """Makes 1, 2, 3, ... and keeps it as JSON."""

    def __init__(self, path):
        self.path, self.made = path, 0

    def make(self):
        self.made += 1
        return [self.made, 0.125]

    def kept(self, **options):
        return kept(
            self.path,
            self.make,
            lambda value, path: path.write_text(json.dumps(value)),
            lambda path: json.loads(path.read_text()),
            **options,
        )


@pytest.fixture
def maker(tmp_path):
    return Maker(tmp_path / "artifacts" / "mine" / "numbers-0.json")


def names(folder):
    """Of all files but locks, which stay."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_thing_is_made_once(maker):
    assert maker.kept() == maker.kept() == [1, 0.125]
    assert maker.kept(anew=True) == maker.kept() == [2, 0.125]
    assert names(maker.path.parent) == [".numbers-0.json.sha256", "numbers-0.json"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text(path.read_text().replace("0.125", "0.625")),  # one bit, and still JSON
        lambda path: path.write_text(path.read_text()[:-3]),
        lambda path: path.write_text(""),
        lambda path: files._seal_of(path).unlink(),
        lambda path: files._seal_of(path).write_bytes(b"\xff\x00"),
    ],
)
def test_what_is_damaged_is_made_again_and_said(maker, damage):
    maker.kept()
    damage(maker.path)
    with pytest.warns(UserWarning, match=r"numbers-0.json is not as it was written .*: it is made again"):
        assert maker.kept() == [2, 0.125]
    assert maker.kept() == [2, 0.125] and is_intact(maker.path)


def test_what_two_want_at_once_is_made_once(tmp_path):
    made = []

    def make():
        time.sleep(0.2)  # so that the other comes while this one works
        made.append(len(made))
        return str(made)

    def ask(_):
        return kept(tmp_path / "deep" / "text", make, lambda text, place: place.write_text(text), Path.read_text)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(ask, range(3))) == ["[0]"] * 3
    assert made == [0]


def test_a_folder_is_kept_and_checked_as_a_whole(tmp_path):
    def write(folder):
        folder.mkdir()
        (folder / "a").write_text("1")
        (folder / "b").write_text("2")

    folder = tmp_path / "sae"
    for _ in range(2):
        write_whole(folder, write)
        assert is_intact(folder) and names(tmp_path) == [".sae.sha256", "sae"]
    for change in ("a", "c"):
        (folder / change).write_text("3")
        assert not is_intact(folder)
        write_whole(folder, write)
    (folder / "b").unlink()
    with pytest.warns(UserWarning, match="sae is not as it was written"):
        assert remove_if_damaged(folder)
    assert not folder.exists() and not is_sealed(folder)


@pytest.mark.parametrize("sealed", [True, False])
def test_a_file_never_takes_the_place_of_a_folder(tmp_path, monkeypatch, sealed):
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine", "thesis.tex").write_text("years of work")
    for place in ("mine", tmp_path / "mine", "mine/.", ".", "mine/.."):
        with pytest.raises(NotWritten, match=r"could not be written\b.*folder") as raised:
            write_whole(place, write_json(1), sealed=sealed)
        assert "\n" not in str(raised.value)
    assert names(tmp_path) == ["mine"] and names(tmp_path / "mine") == ["thesis.tex"]


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    def write(folder):
        folder.mkdir()
        (folder / "new").write_text("2")

    folder, move = tmp_path / "sae", os.replace
    folder.mkdir()
    (folder / "old").write_text("1")

    def refuses(source, target):
        if (Path(source) / "new").exists():
            raise OSError(errno.EBUSY, "Device or resource busy")
        move(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "replace", refuses)
        with pytest.raises(NotWritten, match=r"sae could not be written \(Device or resource busy\)"):
            write_whole(folder, write, sealed=False)
    assert names(tmp_path) == ["sae"] and names(folder) == ["old"]
    write_whole(folder, write, sealed=False)
    assert names(tmp_path) == ["sae"] and names(folder) == ["new"]


@pytest.mark.parametrize("moment", ["before the seal", "after the seal"])
def test_who_dies_while_writing_leaves_what_was_there(tmp_path, monkeypatch, moment):
    """The process is gone at once: nothing is cleaned up, as after SIGKILL."""
    path = tmp_path / "x.json"
    write_whole(path, write_json(1))

    class Killed(BaseException):
        pass

    move, moves = files._move, []

    def dies(*given, **more):
        moves.append(1)
        if moment == "before the seal" or len(moves) == 2:
            raise Killed
        move(*given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(files, "_move", dies)
        patched.setattr(files, "_remove", lambda path: None)
        with pytest.raises(Killed):
            write_whole(path, write_json(2))
    assert json.loads(path.read_text()) == 1 and is_intact(path)
    assert [name for name in names(tmp_path) if ".new." in name]
    monkeypatch.setattr(files, "_runs", lambda pid: False)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".x.json.sha256", "x.json"]


def test_of_two_that_write_at_once_either_may_be_last(tmp_path, monkeypatch):
    """The other process writes all of its file between our seal and our move."""
    path, move = tmp_path / "x.json", files._move

    def between(scratch, target, **more):
        if target == path:
            monkeypatch.setattr(files, "_move", move)
            monkeypatch.setattr(files.os, "getpid", lambda: 1)
            write_whole(path, write_json("other"))
        move(scratch, target, **more)

    monkeypatch.setattr(files, "_move", between)
    write_whole(path, write_json("ours"))
    assert json.loads(path.read_text()) == "ours" and is_intact(path)


def test_scratch_of_the_living_and_files_of_others_stay(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f".{os.getpid()}.new.x.json", f".{ended.pid}.new.x.json", ".mine.new.x.json", "x.new.json"):
        (tmp_path / name).touch()
    (tmp_path / f".{ended.pid}.new.sae").mkdir()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted([f".{os.getpid()}.new.x.json", ".mine.new.x.json", "x.new.json"])


def test_tidying_gives_what_is_damaged_and_leaves_what_is_not_ours(tmp_path):
    folder = tmp_path / "artifacts" / "mine"
    for name in ("a.json", "b.json", "gone.json"):
        write_whole(folder / name, write_json(name))
    (folder / "stitch.safetensors").write_text("a user's")
    (folder / "b.json").write_text('"b!json"')
    (folder / "gone.json").unlink()
    assert list(remove_damaged(tmp_path)) == [folder / "b.json"]
    assert names(folder) == [".a.json.sha256", "a.json", "stitch.safetensors"]
    assert list(remove_damaged(tmp_path)) == []


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_whole(path, write_json(1))

    def full(path):
        path.write_text("[1, 2")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(NotWritten, match=r"x.json could not be written \(No space left on device\): what was finished"):
        write_whole(path, full)
    monkeypatch.setattr(files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(NotWritten, match=r"x.json could not be written \(No space left\)"):
        write_whole(path, write_json(2))  # some disks only say so when they must
    assert json.loads(path.read_text()) == 1 and is_intact(path)
    assert names(tmp_path) == [".x.json.sha256", "x.json"]


LIMITED = """
import resource, sys, torch
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
from pathlib import Path
from stitch_utils.utils.cache import kept
from stitch_utils.stitching.moments import PairMoments
try:
    kept(Path(sys.argv[1]), lambda: PairMoments(40, 40), PairMoments.save, PairMoments.load)
except OSError as error:
    print(type(error).__name__, error)
"""


def test_a_disk_that_takes_no_more_of_a_safetensors_file(tmp_path):
    """The limit on a file's size is the system's own; safetensors says it in an error of its own."""
    path = tmp_path / "artifacts" / "moments-0.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"NotWritten {path} could not be written (") and "File too large" in done.stdout
    assert names(path.parent) == []


# Keys


@pytest.fixture
def package(tmp_path):
    """A small package: a imports b, which imports c of a room, which imports d and names data files; e is alone."""
    root = tmp_path / "package"
    (root / "room" / "words").mkdir(parents=True)
    (root / "a.py").write_text("from .b import x\n")
    (root / "b.py").write_text("def f():\n    from .room import c, unknown\n")
    (root / "room" / "c.py").write_text('from ..d import z\nDATA_FILES = "words/*.yml"\n')
    (root / "room" / "words" / "fr.yml").write_text("le: la\n")
    (root / "d.py").write_text("import os\nimport package.f\n")
    (root / "e.py").write_text("from . import a\n")
    (root / "f.py").write_text("z = 1\n")
    (root / "__init__.py").write_text("")
    return root


@pytest.mark.parametrize("name", ["a.py", "b.py", "room/c.py", "room/words/fr.yml", "d.py", "f.py", "e.py"])
def test_what_is_imported_is_in_the_key(package, name):
    def code():
        return cache.Code(package).closure(["package.a"])

    before = code()
    assert code() == before
    (package / name).write_text((package / name).read_text() + "# changed\n")
    assert (code() == before) == (name == "e.py")


@pytest.mark.parametrize("module", ["package.gone", "package", "package.room", "os"])
def test_a_source_that_is_no_module_of_the_package_is_an_error(package, module):
    with pytest.raises(ValueError, match=f"'{module}' is no module of package"):
        cache.Code(package).closure([module])


def test_data_files_that_match_nothing_are_an_error(package):
    (package / "room" / "words" / "fr.yml").unlink()
    with pytest.raises(ValueError, match=r"package\.room\.c names the data files 'room/words/\*\.yml'"):
        cache.Code(package).closure(["package.a"])


@pytest.mark.parametrize("sources", [(), (json.dumps,), (os,)])
def test_an_artifact_needs_sources_of_this_package(sources):
    with pytest.raises(ValueError, match=r"source|no module of stitch_utils"):
        artifact("mine", "x", {}, sources=sources, suffix="")


def test_the_closure_of_this_package_has_what_computes():
    code = cache._made_with((generate_texts.__module__,))["code"]
    assert {"models/generation.py", "models/language_model.py", "data/text.py", "data/embedded/world.py"} <= code.keys()
    assert "data/embedded/lexicons/de.yml" in code
    assert code["models/language_model.py"] == files.digest(PACKAGE / "models" / "language_model.py")


@pytest.mark.parametrize("source", [harvest_moments, side_activations, fit_template_stitches])
def test_the_book_is_in_no_key_and_the_harvest_in_all_that_hang_on_activations(source):
    code = cache._made_with((source.__module__,))["code"]
    assert not [name for name in code if name.startswith("book/")]
    assert "models/harvest.py" in code


def test_files_that_are_edited_while_a_process_runs_are_not_in_its_keys(tmp_path):
    """Their code is not what it computes with, and another process would read what it left as made by the new code."""
    copy = shutil.copytree(PACKAGE, tmp_path / "stitch_utils", ignore=shutil.ignore_patterns("__pycache__", "tiny-*"))
    script = """
import sys, pathlib
from stitch_utils.utils.cache import artifact
edited = pathlib.Path(sys.argv[1])
if edited.name != "none":
    edited.write_text(edited.read_text() + "# changed")
from stitch_utils.stitching.moments import harvest_moments
print(artifact("mine", "x", {}, sources=(harvest_moments,), suffix=""))
"""

    def key(edited):
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "STITCH_ROOT": str(tmp_path)}
        command = [sys.executable, "-c", script, str(edited)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = key("none")
    assert key(copy / "stitching" / "moments.py") == first  # the edit comes after the snapshot
    second = key("none")
    assert second != first
    (copy / "book" / "tables.py").write_text((copy / "book" / "tables.py").read_text() + "# changed")
    assert key("none") == second
    (copy / "models" / "harvest.py").write_text((copy / "models" / "harvest.py").read_text() + "# changed")
    assert key("none") != second


def test_versions_of_libraries_are_in_the_key(monkeypatch):
    def key():
        cache._made_with.cache_clear()
        return artifact("mine", "x", {"a": 1}, sources=(harvest_moments,), suffix=".json")

    first, version = key(), cache.importlib.metadata.version
    for name in ("torch", "numpy", "transformers"):
        with monkeypatch.context() as patched:
            patched.setattr(
                cache.importlib.metadata, "version", lambda asked, name=name: version(asked) + "1" * (asked == name)
            )
            assert key() != first
    assert key() == first


def test_a_branch_of_the_hub_that_moves_is_another_model(tmp_path, monkeypatch):
    from huggingface_hub import constants

    from stitch_utils.data.pairs import ModelRef

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    repository = tmp_path / "models--a--b"
    (repository / "refs").mkdir(parents=True)
    found = [harvest.weights_digest(ModelRef("a/b"))]
    for commit in ("1" * 40, "2" * 40):
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").write_text("{}")
        (repository / "refs" / "main").write_text(commit)
        found.append(harvest.weights_digest(ModelRef("a/b")))
    assert found == ["a/b@main", f"a/b@{'1' * 40}", f"a/b@{'2' * 40}"]


@pytest.mark.parametrize("name", ["model.safetensors", "merges.txt", "tokenizer.json"])
def test_every_file_of_a_local_model_is_in_its_key(tmp_path, name):
    from stitch_utils.data.pairs import ModelRef

    for file in ("config.json", "model.safetensors", "merges.txt", "tokenizer.json"):
        (tmp_path / file).write_text("1")
    before = harvest.weights_digest(ModelRef(str(tmp_path)))
    (tmp_path / name).write_text("2")
    assert harvest.weights_digest(ModelRef(str(tmp_path))) != before


def test_digests_of_folders_leave_hidden_files_out(tmp_path):
    (tmp_path / "a").write_text("1")
    before = tree_digest(tmp_path, "**/*")
    (tmp_path / ".seal").write_text("1")
    assert tree_digest(tmp_path, "**/*") == before
    (tmp_path / "b").write_text("1")
    assert tree_digest(tmp_path, "**/*") != before
