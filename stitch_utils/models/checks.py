"""Whether a model's files are what they should be: weights that are whole, a causal family, no code of its own.

No section of the paper. transformers gives random numbers to weights that it does not find, runs code that a repository
brings once it is allowed to, and says what is wrong in many classes of errors and many lines.

Offers `check_causal`, `loader_of`, `is_causal` and `is_of_repository`, by a configuration; `check_json`, `check_code`
and `check_weights`, by what was loaded; and `explained`, for errors of transformers.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)

from .agreement import first_line

INDEX = "model.safetensors.index.json"
# Segments of names that a wrapper has added, and how weights are saved without them.
WRAPPERS = {
    "_orig_mod": "torch.compile adds it: save the weights of `model._orig_mod`",
    "base_model.model": "PEFT adds it to a model with an adapter: save what `merge_and_unload` gives",
    "lora_A": "it belongs to an adapter of PEFT: save what `merge_and_unload` gives",
    "_fsdp_wrapped_module": "FSDP adds it: save a full state dict",
    "_checkpoint_wrapped_module": "checkpointing of activations adds it: save the weights of the model within",
    "_forward_module": "a trainer adds it: save the weights of the model within",
    "module": "DataParallel, DDP and DeepSpeed add it: save the weights of `model.module`",
}
QUANTISED = ("qweight", "qzeros", "weight_packed", "weight_scale", "weight_scale_inv", "absmax", "SCB", "quant_map")
# What no next token depends on: buffers that are computed anew, heads for rewards, parts that see, hear or look ahead.
IDLE = re.compile(
    r"(^|\.)(inv_freq|masked_bias|position_ids|num_batches_tracked|attn\.bias|attention\.bias)$"
    r"|(^|\.)(v_head|value_head|mtp|visual|vision\w*|image\w*|audio\w*|speech\w*|multi_modal\w*|mm_projector)\."
)


def check_causal(name: str, config: Any) -> None:
    """Raise ValueError, by the full configuration, for a family that does not predict a text token by token."""
    is_named = f"{name!r} is of the family {config.model_type!r}"
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{is_named}, an encoder with a decoder: expected a causal language model")
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        raise ValueError(f"{is_named}, an encoder, whose tokens see those after them: expected a causal language model")
    if not (is_of_repository(config) or any(type(config) in known for known in _LOADERS.values())):
        raise ValueError(f"{is_named}, of which transformers has no language model: expected a causal language model")
    if getattr(config.get_text_config(), "num_hidden_layers", None) is None:
        raise ValueError(f"{is_named}, whose configuration has no number of layers (num_hidden_layers)")


def is_of_repository(config: Any) -> bool:
    """Tell whether a configuration's class is code of the model's repository, which was allowed to run."""
    return type(config).__module__.startswith("transformers_modules")


def is_causal(config: Any) -> bool:
    """Tell whether transformers has a causal language model of a configuration by itself."""
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING


_LOADERS = {
    AutoModelForCausalLM: MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForImageTextToText: MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
}


def loader_of(config: Any) -> Any:
    """Choose the class that loads a model: some that read images too are no causal models to transformers."""
    return next((kind for kind, known in _LOADERS.items() if type(config) in known), AutoModelForCausalLM)


def check_json(name: str, files: Iterable[Path]) -> None:
    """Raise ValueError for a file that is no JSON; transformers passes over some of them without a word."""
    for file in files:
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{name!r}: {file.name} is no valid JSON ({error}): put it there again") from error


def check_code(name: str, hf_model: Any) -> None:
    """Raise ValueError where the repository brings a class of its own, and transformers took one of the same family."""
    config = hf_model.config
    own = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    named = config.architectures or []
    if own and named and type(hf_model).__name__ not in named:
        raise ValueError(_brings_code(name))


def _brings_code(name: str) -> str:
    return (
        f"{name!r} brings code of its own (auto_map in its configuration), which is not run: "
        "read it, and if you trust it write `trust_remote_code: true` beside the model in the pair's file"
    )


def check_weights(name: str, keys: Mapping[str, Any], n_layers: int) -> None:
    """Raise ValueError unless weights and configuration fit, by what transformers says of the keys that it loaded.

    Missing weights would be random numbers; those left over say that their authors computed something else. Tied
    weights, and what no next token depends on, may be missing or left over.
    """
    if mismatched := sorted(keys["mismatched_keys"]):
        key, found, wanted = mismatched[0]
        raise ValueError(
            f"{name!r} has weights {key} of shape {tuple(found)}{_more(mismatched)}, and its configuration makes it "
            f"{tuple(wanted)}: expected the config.json of these weights"
        )
    missing, left_over = (
        sorted(key for key in keys[kind] if not IDLE.search(key)) for kind in ("missing_keys", "unexpected_keys")
    )
    if missing:
        said = f"has no weights for {missing[0]}{_more(missing)}: expected all that its configuration has"
        beside = f"; {left_over[0]}{_more(left_over)} has no place there" if left_over else ""
        raise ValueError(f"{name!r} {said}{beside}{_reason(missing, left_over, n_layers)}")
    if left_over:
        said = f"has weights for {left_over[0]}{_more(left_over)}, which has no place in its configuration"
        raise ValueError(f"{name!r} {said}{_reason(missing, left_over, n_layers)}")


def _more(names: Sequence) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _reason(missing: Collection[str], left_over: Collection[str], n_layers: int) -> str:
    """Say what the names of missing weights and of those left over mean, if that is known."""
    for part, meaning in WRAPPERS.items():
        if any(f".{part}." in f".{key}" for key in left_over):
            return f" ({part!r} in the names: {meaning})"
    if any(key.rsplit(".", 1)[-1] in QUANTISED for key in left_over):
        return " (these are quantised weights, and config.json has no quantization_config that transformers knows)"
    absent, beyond = _numbers(missing), _numbers(left_over)
    if absent and absent == set(range(min(absent), n_layers)):
        return f" (config.json says {n_layers} layers, and the weights have {min(absent)})"
    if beyond and min(beyond) >= n_layers:
        return f" (config.json says {n_layers} layers, and the weights have {max(beyond) + 1})"
    if list(missing) == ["lm_head.weight"] and not left_over:
        return " (if it is the embedding, config.json must say `tie_word_embeddings: true`)"
    for key in left_over:
        if prefix := next((key.removesuffix(name) for name in missing if key.endswith(f".{name}")), ""):
            return f" (the names begin with {prefix!r}: take it away)"
    return ""


def _numbers(names: Iterable[str]) -> set[int]:
    """Collect the numbers of layers in names; empty if one has none, since then it is not of the layers alone."""
    found = [re.search(r"\.(\d+)\.", name) for name in names]
    return {int(each[1]) for each in found if each} if all(found) else set()


def explained(name: str, folder: Path, error: Exception, what: str) -> str:
    """Say in one line why transformers could not load `what` from a folder, or from the Hub's files in one."""
    said = first_line(error)
    if "trust_remote_code" in str(error):
        return _brings_code(name)
    try:
        check_json(name, sorted(folder.glob("*.json")))
    except ValueError as broken:
        return str(broken)
    if isinstance(error, SafetensorError):
        return f"the weights in {name!r} are damaged ({error}): put them there again"
    if (index := folder / INDEX).is_file() and not (folder / "model.safetensors").is_file():
        parts = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        if absent := sorted(part for part in parts if not (folder / part).is_file()):
            return f"{name!r} lacks {absent[0]}{_more(absent)}, which {INDEX} names: put it there again"
    if isinstance(error, OSError) and "model.safetensors" in str(error):
        return f"{name!r} has no model.safetensors: pickled weights are not loaded"
    if method := _quantisation(folder):
        return f"{name!r} is quantised by {method}, and cannot be read here ({said}): take weights that are not"
    if isinstance(error, ImportError):
        return f"{name!r} needs a library that is not installed ({said})"
    return f"{what} of {name!r} cannot be loaded ({type(error).__name__}: {said})"


def _quantisation(folder: Path) -> str | None:
    """Read by what a checkpoint is quantised, if it is."""
    config = folder / "config.json"
    if not config.is_file() or not (found := json.loads(config.read_text(encoding="utf-8")).get("quantization_config")):
        return None
    return found.get("quant_method", "a method that it does not name")
