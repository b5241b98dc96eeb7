"""Read SAEs that others have stored into SAELens' classes, so that they compute what their authors' code computes.

Section 3: published TopK SAEs in EleutherAI's sparsify format for Pythia, JumpReLU ones (Gemma Scope) for Gemma.

Offers `load_sae`; `built`, which makes an SAE from a configuration and weights; for a user's own SAEs `read_sae`, which
checks them, `save_sae`, and `reads_elsewhere`, which finds an SAE of another layer.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from huggingface_hub import hf_hub_download
from sae_lens import SAE, SAEConfig, TopKSAEConfig
from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_LOADERS, get_conversion_loader_name
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.saes.sae import SAEMetadata
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..data.hub import embedded_folder, fetched
from ..data.pairs import SAERef, check_known
from ..utils.files import check_ours, write_whole

FORMATS = ("sae_lens", "sparsify")
# SAELens reads these formats with `torch.load`. They are pickles, which can run any program, so they are refused here.
PICKLED = {"connor_rob_hook_z", "deepseek_r1", "dictionary_learning_1", "goodfire", "qwen_scope"}


def load_sae(ref: str | SAERef, *, device: str = "cpu") -> SAE:
    """Load an SAE in float32, or in the dtype it was saved in if SAELens wrote it to a folder.

    `ref` is a folder that SAELens' `save_model` or EleutherAI's sparsify wrote, `embedded:NAME`,
    `sae_lens:RELEASE/ID`, `sparsify:OWNER/NAME/HOOKPOINT`, or an entry of a pair's file. HubError (a ValueError) for
    what the Hub does not give; ValueError for a folder, reference or kind of SAE that is none of these.
    """
    if isinstance(ref, str):
        shipped = ref.startswith("embedded:")
        folder = embedded_folder(ref, "SAE", "sae_weights.safetensors") if shipped else Path(ref).expanduser()
        if folder.is_dir():
            return _from_folder(folder, device)
        ref = _parsed(ref)
    check_known("SAE format", ref.format, FORMATS)
    if ref.format == "sae_lens":
        return _from_sae_lens(ref, device)
    files = []
    for name in ("cfg.json", "sae.safetensors"):
        download = functools.partial(hf_hub_download, ref.release, f"{ref.id}/{name}", revision=ref.revision)
        files.append(Path(fetched("model", ref.release, download, revision=ref.revision)))
    return _from_sparsify(files[0], files[1], ref.id, f"sparsify:{ref.release}/{ref.id}", device)


def _parsed(ref: str) -> SAERef:
    format, _, name = ref.partition(":")
    parts = name.split("/")
    # A release of SAELens has a name without a slash; whatever SAELens does not list is a repository, OWNER/NAME.
    words = 1 if format == "sae_lens" and parts[0] in get_pretrained_saes_directory() else 2
    if format not in FORMATS or len(parts) <= words or not all(parts):
        expected = "expected sae_lens:RELEASE/ID or sparsify:OWNER/NAME/HOOKPOINT"
        raise ValueError(f"{ref!r} is no folder and no reference to an SAE: {expected}")
    return SAERef(format, "/".join(parts[:words]), "/".join(parts[words:]))


def _from_folder(folder: Path, device: str) -> SAE:
    found, config = sorted(path.name for path in folder.iterdir()), folder / "cfg.json"
    if {"cfg.json", "sae.safetensors"} <= set(found):
        return _from_sparsify(config, folder / "sae.safetensors", folder.name, str(folder), device)
    if not {"cfg.json", "sae_weights.safetensors"} <= set(found):
        expected = "cfg.json and sae_weights.safetensors (SAELens) or cfg.json and sae.safetensors (sparsify)"
        raise ValueError(f"the folder {str(folder)!r} holds {', '.join(found) or 'nothing'}: expected {expected}")
    architecture = json.loads(config.read_text(encoding="utf-8")).get("architecture", "standard")
    if architecture not in SAE_CLASS_REGISTRY:
        kinds = ", ".join(sorted(SAE_CLASS_REGISTRY))
        expected = f"expected one for inference, as SAELens' save_inference_model writes it ({kinds})"
        raise ValueError(f"the SAE in {str(folder)!r} is of architecture {architecture!r}: {expected}")
    return SAE.load_from_disk(folder, device=device)


def _from_sae_lens(ref: SAERef, device: str) -> SAE:
    if ref.revision is not None:
        raise ValueError(f"SAELens reads the main branch alone: got revision {ref.revision!r} for {ref.release!r}")
    format = get_conversion_loader_name(ref.release)
    if format in PICKLED:
        raise ValueError(f"the SAEs of {ref.release!r} are pickles ({format}): expected safetensors or NumPy arrays")
    load = NAMED_PRETRAINED_SAE_LOADERS[format]

    def as_stored(**options):
        # SAELens infers the widths of Gemma Scope from the names of folders; the weights know better.
        config, tensors, sparsity = load(**options)
        if "W_enc" in tensors:
            config["d_in"], config["d_sae"] = tensors["W_enc"].shape
        return config, tensors, sparsity

    known, options = get_pretrained_saes_directory().get(ref.release), {"device": device, "converter": as_stored}
    repository = known.repo_id if known else ref.release
    with mock.patch("sae_lens.loading.pretrained_sae_loaders.get_safetensors_tensor_shapes", _shapes):
        return fetched("model", repository, functools.partial(SAE.from_pretrained, ref.release, ref.id, **options))


def _shapes(repository: str, name: str) -> dict[str, list[int]]:
    """Read the shapes of a file's tensors from the file, which is kept; SAELens asks the Hub for them each time."""
    with safe_open(hf_hub_download(repository, name), "pt") as file:
        names = file.keys()
        return {tensor: file.get_slice(tensor).get_shape() for tensor in names}


def _from_sparsify(config_file: Path, weights_file: Path, hookpoint: str, source: str, device: str) -> SAE:
    """Read a sparsify SAE, TopK((x - b_dec) W_enc^T + b_enc) W_dec + b_dec.

    SAELens' own loader of this format transposes the decoder, rounds to bfloat16 and does not subtract b_dec.
    """
    config = json.loads(config_file.read_text(encoding="utf-8"))
    kind = {"activation": "topk", "signed": False, "transcode": False, "skip_connection": False}
    for entry, expected in kind.items():
        if config.get(entry, expected) != expected:
            raise ValueError(f"{source} has {entry}={config[entry]!r}: expected a TopK SAE, with {entry}={expected!r}")
    if "k" not in config:
        raise ValueError(f"cfg.json of {source} has no entry k: it has {', '.join(config)}")
    tensors = load_file(weights_file)
    found: dict[str, Any] = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    shape: Any = (*found.get("encoder.weight", ()), "d_sae", "d_in")[:2]
    d_sae, d_in = shape
    expected = {"W_dec": shape, "b_dec": (d_in,), "encoder.bias": (d_sae,), "encoder.weight": shape}
    if found != expected:
        raise ValueError(f"{source} holds tensors of other names or shapes, {found}: expected {expected}")
    layer = re.fullmatch(r"layers\.(\d+)", hookpoint)
    hook = {"hook_name": f"blocks.{layer[1]}.hook_resid_post"} if layer else {}
    metadata = SAEMetadata(source=source, sparsify_hookpoint=hookpoint, **hook)
    encoder = {"W_enc": tensors.pop("encoder.weight").T, "b_enc": tensors.pop("encoder.bias")}
    return built(TopKSAEConfig(d_in, d_sae, device=device, k=config["k"], metadata=metadata), encoder | tensors)


def built(config: SAEConfig, tensors: Mapping[str, Tensor]) -> SAE:
    """Build the SAE with these weights, in the configuration's dtype and on its device."""
    device, dtype = config.device, getattr(torch, config.dtype.removeprefix("torch."))
    kind: Any = SAE.get_sae_class_for_architecture(config.architecture())
    sae = kind(dataclasses.replace(config, device="meta"))  # on `meta`, weights cost no memory and no random numbers
    weights = {name: tensor.detach().to(device, dtype).contiguous() for name, tensor in tensors.items()}
    sae.load_state_dict(weights, assign=True)
    return sae.to(device=device, dtype=dtype)


def read_sae(ref: str) -> SAE:
    """Read what `load_sae` reads; ValueError also for damaged files and for weights that are not finite."""
    try:
        sae = load_sae(ref)
    except (SafetensorError, KeyError, TypeError, RuntimeError, OSError) as error:
        raise ValueError(f"the SAE {ref} cannot be read, as if its files were damaged ({error})") from error
    for name, tensor in sae.state_dict().items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} of the SAE {ref} holds values that are not finite (NaN or infinity)")
    return sae


def save_sae(sae: SAE, folder: str | Path) -> None:
    """Write a folder as SAELens reads it, or replace one as a whole; ValueError for one that holds something else."""
    check_ours(Path(folder), "cfg.json", "sae_weights.safetensors", "sparsity.safetensors")  # as SAELens writes
    write_whole(folder, sae.save_model, sealed=False)


def reads_elsewhere(sae: SAE, layer: int) -> str | None:
    """Return the hook point that an SAE names, if that is another than the residual stream before `layer`."""
    hook = sae.cfg.metadata.hook_name
    return None if hook in (None, f"blocks.{layer}.hook_resid_pre", f"blocks.{layer - 1}.hook_resid_post") else hook
