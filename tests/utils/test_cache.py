"""What is kept: keyed by all that made it, whole or absent, and not believed once it has changed."""

import errno
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stitch_utils.utils import cache, files
from stitch_utils.utils.cache import kept
from stitch_utils.utils.files import (
    NotWritten,
    is_intact,
    is_sealed,
    remove_damaged,
    remove_if_damaged,
    remove_leftovers,
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


def below_a_file(root, monkeypatch):
    (root / "artifacts").write_text("a file")


def instead_of_a_folder(root, monkeypatch):
    (root / "artifacts").mkdir()
    (root / "artifacts" / "mine").symlink_to("nowhere/at/all")


def read_only(root, monkeypatch):
    def refuses(*given, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuses)


@pytest.mark.parametrize("refusal", [below_a_file, instead_of_a_folder, read_only])
def test_where_nothing_can_be_kept_it_is_made_with_one_warning(maker, tmp_path, monkeypatch, refusal):
    refusal(tmp_path, monkeypatch)
    with pytest.warns(UserWarning) as said:
        assert [maker.kept(), maker.kept()] == [[1, 0.125], [2, 0.125]]
    (one,) = said
    assert str(one.message).startswith(f"{maker.path.parent} cannot be written (") and "STITCH_ROOT" in str(one.message)


def test_what_was_kept_is_read_where_nothing_can_be_written(maker, tmp_path, monkeypatch):
    maker.kept()
    read_only(tmp_path, monkeypatch)
    assert maker.kept() == [1, 0.125]


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
