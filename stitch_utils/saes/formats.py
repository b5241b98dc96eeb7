"""Understand the files of SAEs, old ones too, as their authors' code does, or refuse them (no section of the paper).

SAELens 6 passes over entries of older configurations that change what an SAE computes: an activation other than ReLU, a
k, a factor by which latents are scaled before they are decoded. Here each such entry is carried over or refused.

Offers `read_parts`, `of_sae_lens`, `of_sparsify`, `check_shapes`, `blank`, and `layer_read`, which understands hook
points.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import sae_lens
import torch
from sae_lens import SAE, SAEConfig, TopKSAEConfig
from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.saes.sae import SAEMetadata
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

Tensors = dict[str, Tensor]
Refuse = Callable[[str, str], NoReturn]  # of what was found, and what was expected

# What SAELens called its entries before version 6
RENAMED = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
ACTIVATIONS = {"standard": "relu", "gated": "relu", "jumprelu": "relu", "topk": "topk"}
SWITCHES = ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm", "finetuning_scaling_factor")
DTYPES = ("float16", "bfloat16", "float32", "float64")

# Entries of sparsify: those that make another SAE, with the value of a plain one, and those that only train it
PLAIN = {"activation": "topk", "signed": False, "transcode": False, "skip_connection": False}
OF_TRAINING = {"normalize_decoder", "multi_topk", "expansion_factor", "num_latents", "d_in", "k", "lookup_max_order"}


def read_parts(config_file: Path, weights_file: Path) -> tuple[dict[str, Any], Tensors]:
    """Read a configuration in JSON and weights in safetensors, in float32 at least; ValueError for damaged files."""
    try:
        config = json.loads(config_file.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{config_file} cannot be read ({error}): expected a configuration in JSON") from error
    if not isinstance(config, dict):
        raise ValueError(f"{config_file} holds a {type(config).__name__}: expected a configuration, {{...}}")
    try:
        tensors = load_file(weights_file)
    except (SafetensorError, OSError) as error:
        said = f"{weights_file} cannot be read, as if it were damaged ({error})"
        raise ValueError(f"{said}: fetch it or save it again") from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} in {weights_file} is of {tensor.dtype}: expected weights that are not quantised")
        tensors[name] = tensor if tensor.dtype == torch.float64 else tensor.float()
    return config, tensors


def of_sae_lens(config: Mapping[str, Any], tensors: Tensors, source: str) -> tuple[SAEConfig, Tensors]:
    """Understand what any version of SAELens has saved, as version 6 writes it; half precision becomes float32.

    ValueError, which names `source`, for what version 6 does not compute, and for weights of other names or shapes.
    """
    config, tensors, refuse = dict(config), dict(tensors), _refusing(source)
    for old, new in RENAMED.items():
        if old in config and config.setdefault(new, config[old]) != config.pop(old):
            refuse(f"has both {old} and {new}, and they differ", "one of them")
    if metadata := config.pop("metadata", None):  # version 6 has them, whichever version trained the SAE
        if not isinstance(metadata, dict):
            refuse(f"has metadata={metadata!r}", "a mapping")
        config = {name: value for name, value in config.items() if name != "sae_lens_version"}
        config["metadata"] = metadata | {"sae_lens_version": sae_lens.__version__}
    for entry in SWITCHES:
        if not isinstance(config.get(entry, False), bool):
            refuse(f"has {entry}={config[entry]!r}", "true or false")
    dtype = str(config.get("dtype") or "float32").removeprefix("torch.")
    if dtype not in DTYPES:
        refuse(f"has dtype={config['dtype']!r}", f"one of {', '.join(DTYPES)}")
    config["dtype"] = "float64" if dtype == "float64" else "float32"
    if (hook := config.pop("hook_name", None)) is not None:  # the first versions left a place for the layer in it
        config["hook_name"] = str(hook).replace("{layer}", str(config.get("hook_layer", "{layer}")))
    config["architecture"] = _architecture(config, refuse)
    if config["architecture"] in ACTIVATIONS:
        _check_widths(config, tensors, refuse)
    if config["architecture"] == "jumprelu" and "log_threshold" in tensors:  # of a checkpoint in training
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    _fold_scaling(config, tensors, refuse)
    try:
        found = SAEConfig.from_dict(handle_config_defaulting(config))
        expected = blank(found).state_dict()
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"the configuration of the SAE {source} cannot be read: {error}") from error
    found.metadata.sae_lens_version = sae_lens.__version__  # else SAELens would take it for an old one again
    check_shapes(source, tensors, expected)
    return found, tensors


def _refusing(source: str) -> Refuse:
    def refuse(found: str, expected: str) -> NoReturn:
        raise ValueError(f"the SAE {source} {found}: expected {expected}")

    return refuse


def _architecture(config: dict[str, Any], refuse: Refuse) -> str:
    """Return what version 6 calls the architecture; of TopK SAEs, put k where it looks for it."""
    architecture, activation = str(config.get("architecture") or "standard"), config.pop("activation_fn", None)
    options = config.pop("activation_fn_kwargs", None) or {}
    if architecture == "standard" and activation == "topk":
        architecture = "topk"
    if architecture not in SAE_CLASS_REGISTRY:
        kinds = ", ".join(sorted(SAE_CLASS_REGISTRY))
        expected = f"one for inference, as SAELens' save_inference_model writes it ({kinds})"
        refuse(f"is of architecture {architecture!r}", expected)
    computed = ACTIVATIONS.get(architecture)
    if activation is not None and activation != (computed or activation):
        refuse(f"has activation_fn={activation!r}", f"{computed}, which SAELens computes for {architecture!r}")
    if computed == "relu" and config.get("k") is not None:
        refuse(f"has k={config['k']!r} and no activation_fn='topk'", "both or none")
    if architecture == "topk":
        if not isinstance(options, dict) or options.keys() - {"k", "use_sparse_activations"}:
            refuse(f"has activation_fn_kwargs={options!r}", "k alone")
        ks = [k for k in (config.get("k"), options.get("k")) if k is not None]
        if not ks or any(k != ks[0] for k in ks):
            refuse(f"has {' and '.join(f'k={k!r}' for k in ks) or 'no k'}", "the number of latents that fire, once")
        config["k"] = ks[0]
    return architecture


def _check_widths(config: dict[str, Any], tensors: Tensors, refuse: Refuse) -> None:
    """Compare the widths that a configuration says with those of the weights, which it lacks if it says none."""
    shape = tensors["W_enc"].shape if "W_enc" in tensors else ()
    if len(shape) != 2:
        refuse(f"holds {', '.join(sorted(tensors)) or 'nothing'}", "a matrix W_enc (d_in, d_sae), and others")
    for entry, size in zip(("d_in", "d_sae"), shape):
        if config.setdefault(entry, size) != size:
            refuse(f"says {entry}={config[entry]!r} and has W_enc of shape {tuple(shape)}", "(d_in, d_sae)")
    if config["architecture"] == "topk":
        _check_k(config["k"], config["d_sae"], refuse)


def _check_k(k: Any, d_sae: Any, refuse: Refuse) -> None:
    if type(k) is not int or not 1 <= k <= d_sae:
        refuse(f"has k={k!r}", f"a whole number between 1 and its {d_sae} latents")


def _fold_scaling(config: dict[str, Any], tensors: Tensors, refuse: Refuse) -> None:
    """Multiply the decoder's rows by the factors of a fine-tuned SAE, by which its latents are scaled at decoding."""
    scales = [tensors.pop(name) for name in ("scaling_factor", "finetuning_scaling_factor") if name in tensors]
    used = config.pop("finetuning_scaling_factor", False)
    for scale in scales:
        if not used and (scale != 1).any():
            refuse("holds a scaling factor, and says finetuning_scaling_factor=false", "true, or a factor of 1")
        if used and "W_dec" in tensors:
            if scale.shape != tensors["W_dec"].shape[:1]:
                refuse(f"holds a scaling factor of shape {tuple(scale.shape)}", "one number a latent")
            tensors["W_dec"] = scale[:, None] * tensors["W_dec"]


def of_sparsify(
    config: Mapping[str, Any], tensors: Tensors, hookpoint: str, source: str
) -> tuple[TopKSAEConfig, Tensors]:
    """Understand a sparsify SAE, TopK((x - b_dec) W_enc^T + b_enc) W_dec + b_dec; ValueError for any other.

    SAELens' own loader of this format transposes the decoder, rounds to bfloat16 and does not subtract b_dec.
    """
    refuse = _refusing(source)
    for entry, value in config.items():
        other = value != PLAIN[entry] if entry in PLAIN else value and not isinstance(value, str)
        if other and entry not in OF_TRAINING:
            plain = f", with {entry}={PLAIN[entry]!r}" if entry in PLAIN else f" without {entry}"
            refuse(f"has {entry}={value!r}", f"a TopK SAE{plain}")
    if "k" not in config:
        raise ValueError(f"cfg.json of {source} has no entry k: it has {', '.join(config) or 'none'}")
    found: dict[str, Any] = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    shape: Any = (*found.get("encoder.weight", ()), "d_sae", "d_in")[:2]
    d_sae, d_in = shape
    expected = {"W_dec": shape, "b_dec": (d_in,), "encoder.bias": (d_sae,), "encoder.weight": shape}
    if found != expected:
        raise ValueError(f"{source} holds tensors of other names or shapes, {found}: expected {expected}")
    if (width := config.get("d_in", d_in)) != d_in:
        refuse(f"says d_in={width!r} and has weights for {d_in} dimensions", "the same of both")
    latents, factor = config.get("num_latents"), config.get("expansion_factor")
    if latents not in (None, 0, d_sae) or (not latents and factor is not None and factor * d_in != d_sae):
        said = f"num_latents={latents!r} and expansion_factor={factor!r}"
        refuse(f"says {said} and has weights for {d_sae} latents", "the first, or else d_in times the second")
    _check_k(config["k"], d_sae, refuse)
    module = hookpoint.rpartition("/")[2]
    after = layer_read(module)
    if after is not None:
        module = f"blocks.{after - 1}.hook_resid_post"
    known = {"hook_name": module} if after is not None or re.search(r"\b(layers|h)\.\d+\.|embed", module) else {}
    metadata = SAEMetadata(source=source, sparsify_hookpoint=hookpoint, **known)
    encoder = {"W_enc": tensors["encoder.weight"].T, "b_enc": tensors["encoder.bias"]}
    decoder = {name: tensors[name] for name in ("W_dec", "b_dec")}
    return TopKSAEConfig(d_in, d_sae, k=config["k"], metadata=metadata), encoder | decoder


def check_shapes(source: str, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise ValueError, with `source`, unless the tensors have the names and shapes of those that are wanted."""
    found, expected = ({name: tuple(given[name].shape) for name in sorted(given)} for given in (tensors, wanted))
    if found != expected:
        raise ValueError(f"the SAE {source} holds tensors of other names or shapes, {found}: expected {expected}")


def blank(config: SAEConfig) -> SAE:
    """Make the SAE of a configuration on `meta`, where weights cost no memory and no random numbers."""
    kind: Any = SAE.get_sae_class_for_architecture(config.architecture())
    return kind(dataclasses.replace(config, device="meta"))


def layer_read(hook: str) -> int | None:
    """Return the layer before which a hook point reads the residual stream; None if it reads something else.

    Hook points are TransformerLens', or modules of a Hugging Face model, whose output is read.
    """
    if found := re.fullmatch(r"blocks\.(\d+)\.hook_(resid_pre|in|resid_post|out)", hook):
        return int(found[1]) + (found[2] in ("resid_post", "out"))
    found = re.fullmatch(r"(?:\w+\.)*(?:layers|h)\.(\d+)(?:\.output)?", hook)
    return int(found[1]) + 1 if found else None
