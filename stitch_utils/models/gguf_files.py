"""Read a model from a GGUF file, the format of llama.cpp (no section of its own).

transformers turns such a file into its own modules, with weights in floating point. It passes over some of what a file
says, and then computes something else without a word. This module sets what it passes over, and refuses the rest.

Offers `gguf_config`, `gguf_tokenizer`, `gguf_model` and the names of the `ARCHITECTURES` that they read.
"""

import contextlib
import copy
import functools
import re
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from ..data.pairs import check_known

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")
# Byte-level tokenizers that split text as GPT-2 does, or each digit too, which no merge of theirs joins.
SPLIT_AS_GPT2 = ("gpt-2", "smollm", "starcoder", "command-r", "olmo")


def gguf_config(path: str) -> Any:
    """Read the Hugging Face configuration of a GGUF file; ValueError for a file that is not read as it was meant."""
    return copy.deepcopy(_config(path, *_status(path)))


@functools.lru_cache(maxsize=4)  # to read one takes seconds, and a run asks for it several times
def _config(path: str, changed: int, size: int) -> Any:
    config, says = _load(AutoConfig, path), _says(path)
    kind = says("general.architecture")
    if head := says(f"{kind}.attention.key_length"):
        config.head_dim = head
    if kind == "gemma3":  # llama.cpp divides by the root of the heads' width, but for 27B
        widest = config.num_hidden_layers == 62
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if widest else config.head_dim
    return config


def gguf_tokenizer(path: str) -> Any:
    """Read the tokenizer of a GGUF file; Qwen's has no token for the beginning of a text, though the file names one."""
    return copy.deepcopy(_tokenizer(path, *_status(path)))


@functools.lru_cache(maxsize=4)
def _tokenizer(path: str, changed: int, size: int) -> Any:
    tokenizer = _load(AutoTokenizer, path)
    if str(_says(path)("general.architecture")).startswith("qwen"):
        tokenizer.bos_token = None
    return tokenizer


def gguf_model(path: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Load the model in a GGUF file, in floating point; give `output_loading_info=True` for its keys, too."""
    settings = {"config": gguf_config(path), "quantization_config": GgufConfig(dequantize=True)}
    with mock.patch("transformers.modeling_gguf_pytorch_utils.tqdm", lambda steps, **_: steps):
        model, keys = _load(AutoModelForCausalLM, path, **settings, **options)
    model.config.architectures = [type(model).__name__]  # by which TransformerBridge knows a family
    keys["unexpected_keys"] = set(keys["unexpected_keys"]) | _left_over(path, model)
    return model, keys


def _left_over(path: str, model: Any) -> set[str]:
    """Name the tensors that transformers passes over without a word: of blocks too many, and biases."""
    names = {tensor.name for tensor in _reader(path).tensors}
    blocks = {name: int(found[1]) for name in names if (found := re.match(r"blk\.(\d+)\.", name))}
    if beyond := {name for name, block in blocks.items() if block >= model.config.num_hidden_layers}:
        return beyond
    if len(names) <= len(list(model.parameters())):  # a tensor each; tied ones count once
        return set()
    return {name for name in names if name.endswith(".bias")} or names


def _load(kind: Any, path: str, **options: Any) -> Any:
    """Load with the file read once, since that takes up to half a minute, and with nothing of what lies beside it."""
    reader = _reader(path)
    _check(path)
    with tempfile.TemporaryDirectory() as alone, mock.patch("gguf.GGUFReader", lambda _: reader), _damaged(path):
        Path(alone, "model.gguf").symlink_to(Path(path).absolute())
        return kind.from_pretrained(alone, gguf_file="model.gguf", **options)


def _status(path: str) -> tuple[int, int]:
    """Return when a file was changed, and its size."""
    status = Path(path).stat()
    return status.st_mtime_ns, status.st_size


def _reader(path: str) -> Any:
    return _read_once(path, *_status(path))


@functools.lru_cache(maxsize=2)  # a pair's two files
def _read_once(path: str, changed: int, size: int) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ValueError(f"{path!r} needs the package `gguf`, which is not installed: pip install gguf") from error
    with _damaged(path):
        return gguf.GGUFReader(path)


@contextlib.contextmanager
def _damaged(path: str):
    """Re-raise whatever a reader makes of bytes that it does not expect, in many classes, as one ValueError."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path!r} is no GGUF file, or a damaged one ({said}): put it there again") from error


def _says(path: str):
    """Return a function that gives the value of a key of the file; None for a key that the file lacks."""
    fields = _reader(path).fields
    return lambda key: fields[key].contents() if key in fields else None


def _check(path: str) -> None:
    """Raise ValueError for a file of which transformers would read too little to compute what its authors meant."""
    says, advice = _says(path), "take the model as a Hugging Face folder"
    check_known(f"architecture in {path!r}:", kind := says("general.architecture"), ARCHITECTURES)
    names = {tensor.name for tensor in _reader(path).tensors}
    scaled = says(f"{kind}.rope.scaling.type") not in (None, "none") or "rope_freqs.weight" in names
    if scaled or says(f"{kind}.rope.scaling.factor"):
        raise ValueError(f"{path!r} scales its rotary frequencies, which transformers does not read: {advice}")
    if (says("split.count") or 1) > 1:
        raise ValueError(f"{path!r} is one of {says('split.count')} parts of a model: expected a model in one file")
    if says("tokenizer.ggml.model") is None:
        raise ValueError(f"{path!r} has no tokenizer: {advice}")
    split = says("tokenizer.ggml.pre")
    if says("tokenizer.ggml.model") == "gpt2" and split not in (*GGUF_PRE_TOKENIZER_SPLITS, *SPLIT_AS_GPT2):
        raise ValueError(f"{path!r} splits text in a way {split!r}, which transformers does not know: {advice}")
