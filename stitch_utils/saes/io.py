"""Read SAEs that others have stored into SAELens' classes, so that they compute what their authors' code computes.

Section 3: published TopK SAEs in EleutherAI's sparsify format for Pythia, JumpReLU ones (Gemma Scope) for Gemma. What
the files of each tool and age mean is in `formats`.

Offers `load_sae`; `built`, which makes an SAE from a configuration and weights; `save_sae`; and `reads_elsewhere`,
which finds an SAE of another layer.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from huggingface_hub import hf_hub_download
from sae_lens import SAE, SAEConfig
from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_LOADERS, get_conversion_loader_name
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from safetensors import safe_open
from torch import Tensor

from ..data.hub import embedded_folder, fetched
from ..data.pairs import SAERef, check_known
from ..utils.files import check_ours, write_whole
from .formats import blank, layer_read, of_sae_lens, of_sparsify, read_parts

FORMATS = ("sae_lens", "sparsify")
FILES = {"sae_lens": ("cfg.json", "sae_weights.safetensors"), "sparsify": ("cfg.json", "sae.safetensors")}
# SAELens reads these formats with `torch.load`. They are pickles, which can run any program, so they are refused here.
PICKLED = {"connor_rob_hook_z", "deepseek_r1", "dictionary_learning_1", "goodfire", "qwen_scope"}
PICKLES = {".pt", ".pth", ".pkl", ".bin", ".gz"}
# SAELens applies these in training alone, outside the SAE, with statistics that end up in its weights.
UNFOLDED = ("expected_average_only_in", "covariance_whitening")


def load_sae(ref: str | SAERef, *, device: str = "cpu") -> SAE:
    """Load an SAE in float32; in float64, if SAELens wrote it to a folder so.

    `ref` is a folder that SAELens' `save_model` or EleutherAI's sparsify wrote, `embedded:NAME`,
    `sae_lens:RELEASE/ID`, `sparsify:OWNER/NAME/HOOKPOINT`, or an entry of a pair's file. HubError (a ValueError) for
    what the Hub does not give; ValueError for a folder, reference or kind of SAE that is none of these, damaged files,
    weights that are not finite, and what SAELens cannot compute as its authors' code does.
    """
    if isinstance(ref, str):
        shipped = ref.startswith("embedded:")
        folder = embedded_folder(ref, "SAE", "sae_weights.safetensors") if shipped else Path(ref).expanduser()
        if folder.is_dir():
            return _checked(_from_folder(folder, device), str(folder))
        ref = _parsed(ref)
    check_known("SAE format", ref.format, FORMATS)
    source = f"{ref.format}:{ref.release}/{ref.id}"
    load = _from_sae_lens if ref.format == "sae_lens" else _from_sparsify
    return _checked(load(ref, source, device), source)


def _checked(sae: SAE, source: str) -> SAE:
    """Return the SAE; ValueError if it computes nothing of use for the residual stream as it is."""
    if (found := sae.cfg.normalize_activations) in UNFOLDED:
        expected = "expected its statistics in the weights, where SAELens puts them when training ends"
        remedy = "fold_activation_norm_scaling_factor does it for a known factor"
        raise ValueError(f"the SAE {source} has normalize_activations={found!r}: {expected} ({remedy})")
    if hasattr(sae.cfg, "d_out"):
        found = f"is a {sae.cfg.architecture()}, which writes another stream than it reads"
        raise ValueError(f"{source} {found}: expected an SAE")
    for name, tensor in sae.state_dict().items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} of the SAE {source} holds values that are not finite (NaN or infinity)")
    return sae


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
    found = sorted(path.name for path in folder.iterdir())
    for format in reversed(FORMATS):
        if set(FILES[format]) <= set(found):
            config, tensors = read_parts(*(folder / name for name in FILES[format]))
            source = str(folder)
            if format == "sparsify":
                return built(*of_sparsify(config, tensors, folder.name, source), device=device)
            return built(*of_sae_lens(config | {"device": device}, tensors, source))
    expected = "cfg.json and sae_weights.safetensors (SAELens) or cfg.json and sae.safetensors (sparsify)"
    if PICKLES.intersection(Path(name).suffix for name in found):
        expected += "; pickles are not read, since they can run code"
    raise ValueError(f"the folder {str(folder)!r} holds {', '.join(found) or 'nothing'}: expected {expected}")


def _from_sparsify(ref: SAERef, source: str, device: str) -> SAE:
    files = []
    for name in FILES["sparsify"]:
        download = functools.partial(hf_hub_download, ref.release, f"{ref.id}/{name}", revision=ref.revision)
        files.append(Path(fetched("model", ref.release, download, revision=ref.revision)))
    return built(*of_sparsify(*read_parts(*files), ref.id, source), device=device)


def _from_sae_lens(ref: SAERef, source: str, device: str) -> SAE:
    if ref.revision is not None:
        raise ValueError(f"SAELens reads the main branch alone: got revision {ref.revision!r} for {ref.release!r}")
    format = get_conversion_loader_name(ref.release)
    if format in PICKLED:
        raise ValueError(f"the SAEs of {ref.release!r} are pickles ({format}): expected safetensors or NumPy arrays")
    load = NAMED_PRETRAINED_SAE_LOADERS[format]

    def as_stored(**options):
        if format == "sae_lens":
            names = (f"{options['folder_name']}/{name}" for name in FILES[format])
            files = [Path(hf_hub_download(options["repo_id"], name)) for name in names]
            config, tensors = read_parts(*files)
            config, tensors = of_sae_lens(config | options["cfg_overrides"], tensors, source)
            return config.to_dict(), tensors, None
        # SAELens infers the widths of Gemma Scope from the names of folders; the weights know better.
        config, tensors, sparsity = load(**options)
        if "W_enc" in tensors:
            config["d_in"], config["d_sae"] = tensors["W_enc"].shape
        return config, tensors, sparsity

    known, options = get_pretrained_saes_directory().get(ref.release), {"device": device, "converter": as_stored}
    repository = known.repo_id if known else ref.release
    fetch = functools.partial(SAE.from_pretrained, ref.release, ref.id, **options)
    with mock.patch("sae_lens.loading.pretrained_sae_loaders.get_safetensors_tensor_shapes", _shapes):
        try:
            return fetched("model", repository, fetch)
        except (KeyError, TypeError, RuntimeError) as error:
            said = " ".join(str(error).split())
            raise ValueError(f"the SAE {source} cannot be read, as if its files were damaged ({said})") from error


def _shapes(repository: str, name: str) -> dict[str, list[int]]:
    """Read the shapes of a file's tensors from the file, which is kept; SAELens asks the Hub for them each time."""
    with safe_open(hf_hub_download(repository, name), "pt") as file:
        names = file.keys()
        return {tensor: file.get_slice(tensor).get_shape() for tensor in names}


def built(config: SAEConfig, tensors: Mapping[str, Tensor], *, device: str | None = None) -> SAE:
    """Build the SAE with these weights, in the configuration's dtype and on its device, or on `device`."""
    device, dtype = device or config.device, getattr(torch, config.dtype.removeprefix("torch."))
    sae: Any = blank(config)
    weights = {name: tensor.detach().to(device, dtype).contiguous() for name, tensor in tensors.items()}
    sae.load_state_dict(weights, assign=True)
    return sae.to(device=device, dtype=dtype)


def save_sae(sae: SAE, folder: str | Path) -> None:
    """Write a folder as SAELens reads it, or replace one as a whole; ValueError for one that holds something else."""
    check_ours(Path(folder), "cfg.json", "sae_weights.safetensors", "sparsity.safetensors")  # as SAELens writes
    write_whole(folder, sae.save_model, sealed=False)


def reads_elsewhere(sae: SAE, layer: int) -> str | None:
    """Return the hook point that an SAE names, if that is another than the residual stream before `layer`."""
    hook = sae.cfg.metadata.hook_name
    return None if hook is None or layer_read(str(hook)) == layer else hook
