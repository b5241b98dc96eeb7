"""A small llama in a folder, and copies of it that may be changed."""

import shutil

import pytest
from toy_families import save_family


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    save_family("llama", folder)
    return folder


@pytest.fixture
def llama(made, tmp_path):
    """A copy of a model's folder, which may be changed."""
    return shutil.copytree(made, tmp_path / "llama")
