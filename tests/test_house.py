"""The house: nine rooms, arrows that go one way, no long file, and a package that is imported in no time."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import stitch_utils

PACKAGE = Path(stitch_utils.__file__).parent
ROOMS = {"utils", "data", "models", "stitching", "saes", "probing", "steering", "features", "book"}
HEAVY = {"torch", "numpy", "transformers", "transformer_lens", "sae_lens", "pandas", "matplotlib", "sklearn"}
SOURCES = sorted(path for path in PACKAGE.rglob("*.py"))


def test_nine_rooms_and_nothing_beside_them():
    beside = {path.name for path in PACKAGE.iterdir() if not path.name.startswith((".", "__pycache__"))}
    assert beside - {"__init__.py", "__main__.py", "py.typed"} == ROOMS


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_says_what_lives_there_and_does_nothing_else(room):
    body = ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8")).body
    assert len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_file_is_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_rooms_know_only_the_rooms_below_them():
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", command, "--no-cache"], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "1 kept, 0 broken" in done.stdout, done.stdout + done.stderr


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, stitch_utils; print(sorted({HEAVY!r} & set(sys.modules)), dir(stitch_utils))"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("[] [")
    (line,) = [line for line in done.stderr.splitlines() if line.endswith("| stitch_utils")]
    assert int(line.split("|")[1]) < 300_000, "microseconds"


def test_every_public_name_is_what_it_says():
    assert dir(stitch_utils) == sorted(stitch_utils.__all__) == sorted(stitch_utils._WHERE)
    for name in stitch_utils.__all__:
        found = getattr(stitch_utils, name)
        assert found.__name__ == name and found.__module__ == f"stitch_utils.{stitch_utils._WHERE[name]}"
    with pytest.raises(AttributeError, match="module 'stitch_utils' has no attribute 'transfer_saes'"):
        _ = stitch_utils.transfer_saes


def test_type_checkers_see_the_same_names():
    (block,) = [node for node in ast.parse((PACKAGE / "__init__.py").read_text()).body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == stitch_utils._WHERE
    assert (PACKAGE / "py.typed").is_file()
