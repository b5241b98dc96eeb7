"""A stand-in for the Hugging Face Hub: an HTTP server on loopback with small checkpoints and data sets.

The clients (huggingface_hub, transformers, datasets, transformer_lens) run as they are, in processes of their own:

    subprocess.run([sys.executable, "-c", script], env=hub.environment(tmp_path / "home"), check=True)

They read `HF_ENDPOINT` when they are imported, so the test's own process cannot be turned to it. Offers `Hub` and the
fixtures `hub_root`, the folder with everything, and `hub`, which serves it openly. For other conditions a test serves
the same folder itself: `with Hub(hub_root, gated={"google/gemma-2-2b": {"good-token"}}) as gated: ...`.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from .server import Hub

__all__ = ["Hub", "child", "home", "hub", "hub_root"]


def child(environment: Mapping[str, str], *arguments: str) -> dict:
    """The JSON that a Python process with these arguments prints last; its clients are unmodified."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """An empty HF_HOME, to be filled."""
    return tmp_path_factory.mktemp("hf_home")


@pytest.fixture(scope="session")
def hub_root(tmp_path_factory) -> Path:
    """The folder of all models and data sets, which no test may change."""
    from .checkpoints import write_models  # slow to import
    from .corpora import write_datasets
    from .saes import write_saes

    root = tmp_path_factory.mktemp("hub")
    write_models(root)
    write_datasets(root)
    write_saes(root)
    return root


@pytest.fixture(scope="session")
def hub(hub_root: Path) -> Iterator[Hub]:
    """A server of all of it, none of it gated."""
    with Hub(hub_root) as server:
        yield server
