"""The keys of artifacts: all that made them, and nothing else."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from stitch_utils.models import harvest
from stitch_utils.models.generation import generate_texts
from stitch_utils.saes.pair import side_activations
from stitch_utils.steering.diagnostics import fit_template_stitches
from stitch_utils.stitching.moments import harvest_moments
from stitch_utils.utils import cache, files
from stitch_utils.utils.cache import artifact
from stitch_utils.utils.files import (
    tree_digest,
)

PACKAGE = cache.PACKAGE


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
    assert {"models/generation.py", "models/language_model.py", "data/tokenizer.py", "data/hub.py"} <= code.keys()
    assert code["models/language_model.py"] == files.digest(PACKAGE / "models" / "language_model.py")


@pytest.mark.parametrize("source", [harvest_moments, side_activations, fit_template_stitches])
def test_the_book_is_in_no_key_and_the_harvest_in_all_that_hang_on_activations(source):
    code = cache._made_with((source.__module__,))["code"]
    assert not [name for name in code if name.startswith("book/")]
    assert {"models/harvest.py", "data/embedded/world.py", "data/embedded/lexicons/de.yml"} <= code.keys()


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
