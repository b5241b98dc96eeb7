"""The two ways to install are one: conda's file installs from the lock and pins nothing of its own."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


def lock():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return dict(line.lower().replace("_", "-").split("==") for line in lines if line and not line.startswith("#"))


def test_every_version_is_pinned():
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9_.\-]+==[A-Za-z0-9_.]+", line), line


def test_conda_installs_the_same_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}
    assert [entry.split("=")[0] for entry in conda] == ["python", "pip"], "every package must come from the lock"
    assert conda[0] == "python=3.11"


def test_what_the_package_needs_is_in_the_lock():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.split(r"[\[<>=]", entry)[0].lower().replace("_", "-") for entry in wanted}
    assert not names - set(lock())
    assert lock()["torch"] == "2.13.0" and lock()["jupyter-book"] == "1.0.4.post1"
