"""Shared fixtures: shape checks, random models small enough to build in a second, a small project, a toy book."""

import os
import shutil
from pathlib import Path

# Before transformers is imported: nothing in the tests may reach for the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # several workers, each with as many threads as processors, are slow
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads = lambda threads: None  # nor shall a pair that fixes its own number raise it

from jaxtyping import install_import_hook

ROOMS = ("data.text", "models", "stitching", "saes", "probing", "steering", "features")
install_import_hook([f"stitch_utils.{room}" for room in ROOMS], "typechecker.check")

import pytest
import torch
import yaml
from hub import home, hub, hub_root  # noqa: F401 (fixtures)
from matplotlib import pyplot as plt
from toy_book import call, outcomes, project_root_at, write_toy

from stitch_utils.data.embedded.world import documents
from tools.train_pair import TrainingConfig, build_model, save_model, train_tokenizer

CONTEXT = 48
SMALL_PUBLISHED = """
numbers:
  table1.big.a: 3.0
  table1.big.b: [2.0, 1.9, 2.1]
  table1.big.gain.low: 0.3
figures:
  - {id: t1, title: "a < b & c", section: "2", chapter: first, prefix: table1.}
  - {id: f1, title: Map, section: "3", chapter: second, prefix: "map.{pair}.loss"}
  - {id: f2, title: Sketch, section: "1", chapter: first, prefix: ""}
claims:
  - id: order
    text: "A is < B"
    source: Table 1
    chapter: first
    needs: {a: "table1.{pair}.a", b: "table1.{pair}.b"}
    holds: a < b
    partly: a < 1.1 * b
  - id: ratio
    text: B is twice A
    source: Table 1
    chapter: first
    needs: {a: "table1.{pair}.a", b: "table1.{pair}.b"}
    holds: b / a >= 2
"""


LONGEST = ("test_real_pairs.py", "test_stitch.py")  # begun first, so that two workers end together


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def figures_closed():
    """Close what a test drew: pyplot warns where more than 20 figures are open, and warnings are errors."""
    yield
    plt.close("all")


@pytest.fixture(scope="session")
def random_folders(tmp_path_factory):
    """Two untrained GPT-NeoX folders with one tokenizer: a (3 layers, d 32) and b (4 layers, d 48)."""
    root = tmp_path_factory.mktemp("random")
    tokenizer = train_tokenizer([document.text for document in documents("tests", stop=200)], 500)
    for name, seed, width, layers in (("a", 1, 32, 3), ("b", 2, 48, 4)):
        config = TrainingConfig(name, seed, width, layers, 4, 1e-3, 10_000, context=CONTEXT)
        model = build_model(config, tokenizer)
        with torch.no_grad():  # the initial weights are so small that every prediction is uniform: make them matter
            for parameter in model.parameters():
                parameter.mul_(4 if parameter.dim() > 1 else 1)
        save_model(model, tokenizer, root / name)
    return root


@pytest.fixture(scope="session")
def random_models(random_folders):
    from stitch_utils.models.language_model import load_model

    return load_model(str(random_folders / "a")), load_model(str(random_folders / "b"))


@pytest.fixture
def small_pair(tmp_path, random_folders):
    """Writes a file of a pair of two random models in a project of its own, with what is given changed; its path."""

    def write(**changes):
        sizes = {"train_tokens": 1600, "svcca_tokens": 1600, "eval_documents": 9, "adam_steps": 5, "batch_size": 16}
        sizes |= changes.pop("sizes", {})
        data = {
            "name": "mine",
            "a": {"model": str(random_folders / "a"), "layer": 1},
            "b": {"model": str(random_folders / "b"), "layer": 2},
            "context": 20,
            "text": {"source": "world", "name": "small pair"},
            "scales": {"smoke": sizes, "default": sizes},
            "sae_recipe": {"k": 3, "batch_tokens": 400, "lr": 0.01},
        }
        (tmp_path / "mine.yml").write_text(yaml.safe_dump(data | changes))
        return tmp_path / "mine.yml"

    with project_root_at(tmp_path):
        yield write


@pytest.fixture
def pair(small_pair):
    """That pair as it is."""
    from stitch_utils.data.pairs import load_pair

    return load_pair(small_pair())


@pytest.fixture
def models(pair):
    """Its two models."""
    from stitch_utils.models.language_model import load_models

    return load_models(pair)


@pytest.fixture
def project(tmp_path):
    """A project without results, with the small `published.yml` above; `project_root()` is its folder."""
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "published.yml").write_text(SMALL_PUBLISHED, encoding="utf-8")
    with project_root_at(tmp_path):
        yield tmp_path


@pytest.fixture
def bare_book(tmp_path):
    """The toy book without pages."""
    write_toy(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def executed_book(tmp_path_factory):
    """The toy book with all its pages, which no test may change, and what making them printed."""
    root = tmp_path_factory.mktemp("executed")
    write_toy(root)
    code, lines, err = call(root, "run")
    assert (code, err) == (0, "")
    assert all(outcomes(lines).values())
    return root, lines


@pytest.fixture
def book(executed_book, tmp_path):
    """A copy of it, which may be changed."""
    return Path(shutil.copytree(executed_book[0], tmp_path / "a book {0}"))
