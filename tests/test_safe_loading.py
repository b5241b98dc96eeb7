"""Weights that are damaged, and files that could run code: neither is loaded."""

import ast
import inspect
import shutil
from pathlib import Path

import jupytext
import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from toy_book import PACKAGE

from stitch_utils.book import chapters
from stitch_utils.data.hub import HubError, reaching
from stitch_utils.data.pairs import SAERef
from stitch_utils.models.language_model import load_model
from stitch_utils.saes import io as sae_loading
from stitch_utils.utils import yaml_files


def test_damaged_weights_in_the_cache_are_named():
    with (
        pytest.raises(HubError, match=r"model 'a/b' has weights that are damaged \(short\): remove .*models--a--b and"),
        reaching("model", "a/b"),
    ):
        raise SafetensorError("short")


# Weights of one's own, and pickles


@pytest.fixture
def weights(random_folders, tmp_path):
    """The weights of a model in a folder of its own."""
    return Path(shutil.copytree(random_folders / "a", tmp_path / "model")) / "model.safetensors"


@pytest.mark.parametrize("left", [0, 20, 5000])
def test_truncated_weights_are_one_line(weights, left):
    weights.write_bytes(weights.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"the weights in '.*model' are damaged \(Error while deserializing header"):
        load_model(str(weights.parent))


def test_pickled_weights_are_not_loaded(weights):
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(ValueError, match=r"'.*model' has no model.safetensors: pickled weights are not loaded"):
        load_model(str(weights.parent))


def test_pickled_saes_are_not_loaded():
    release = "dictionary-learning-1-that-is-known"
    reader = pytest.MonkeyPatch()
    with reader.context() as patched:
        patched.setattr(sae_loading, "get_conversion_loader_name", lambda name: "dictionary_learning_1")
        with pytest.raises(ValueError, match=r"are pickles \(dictionary_learning_1\): expected safetensors or NumPy"):
            sae_loading.load_sae(SAERef("sae_lens", release, "x"))


def test_the_formats_that_saelens_reads_as_pickles_are_known():
    loaders = sae_loading.NAMED_PRETRAINED_SAE_LOADERS
    assert {name for name, load in loaders.items() if "torch.load(" in inspect.getsource(load)} == sae_loading.PICKLED


PASSED_ON = {"False", "trust_remote_code", "trust_remote_code is True"}  # what a user says, by its own name
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def unsafe(source):
    """What in a source could run what somebody else has written."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [name for name in names if name.split(".")[0] in PICKLES]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in ("torch.load", "torch.hub.load", "yaml.unsafe_load", "yaml.full_load", "pd.read_pickle"):
            found.append(called)
        if called in ("yaml.load", "yaml.load_all"):
            loader = ast.unparse(node.args[1]) if len(node.args) > 1 else ""
            if "SafeLoader" not in loader and loader != "_PlainYAML":
                found.append(f"{called}({loader})")
        for keyword in node.keywords:
            if keyword.arg in ("allow_pickle", "trust_remote_code") and ast.unparse(keyword.value) not in PASSED_ON:
                found.append(keyword.arg)
            if keyword.arg == "use_safetensors" and ast.unparse(keyword.value) != "True":
                found.append(keyword.arg)
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path, weights_only=True)",
        "np.load(p, allow_pickle=x)",
        "yaml.load(text)",
        "yaml.load(text, yaml.Loader)",
        "f(trust_remote_code=True)",
        "f(allow_pickle=trust_remote_code or x)",
        "f(use_safetensors=None)",
    ],
)
def test_unsafe_calls_are_seen(source):
    assert unsafe(source)


def test_nothing_is_loaded_that_could_run():
    modules = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    for path in (PACKAGE.parent / "book").glob("*.md"):
        modules[path] = "\n".join(cell.source for cell in jupytext.read(path).cells if cell.cell_type == "code")
    assert len(modules) > 60
    assert {path.name: found for path, source in modules.items() if (found := unsafe(source))} == {}
    safe = (yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    assert issubclass(yaml_files._Loader, safe) and issubclass(chapters._PlainYAML, safe)


# Runs
