"""What a sweep of SAEs leaves in its folder: the state from which it goes on, its curves, the trained SAEs (App. D).

Tensors and facts of a state are in one safetensors file, replaced whole, so that a process which dies while it writes
leaves the state before; states and SAEs that are not as they were written are not read.

Offers `read_state`, `write_state`, `sae_folder`, `load_trained`, `CHECKPOINT`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from sae_lens import SAE
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..utils.files import is_intact, remove_if_damaged, write_whole
from .initialisation import SAETrainingConfig

CHECKPOINT = "sweep.safetensors"


def read_state(path: Path, digest: str) -> tuple[dict[str, Tensor], dict] | None:
    """What `write_state` left there, if it belongs to the sweep of this digest and is as it was written."""
    if not path.exists() or remove_if_damaged(path):
        return None
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
    return (load_file(path), facts) if facts["digest"] == digest else None


def write_state(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, object]) -> None:
    """Tensors, and facts that JSON holds, among them the `digest` of the sweep."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_whole(path, lambda place: save_file(plain, place, metadata={"facts": json.dumps(facts)}))


def sae_folder(folder: Path, name: str) -> Path:
    """Where the trained SAE of a run of this name lies."""
    return folder / "saes" / name


def load_trained(folder: str | Path, config: SAETrainingConfig, device: str = "cpu") -> SAE:
    """The inference SAE that a finished sweep has left; ValueError if there is none, or none that can be trusted."""
    path = sae_folder(Path(folder), config.name)
    if not path.is_dir():
        raise ValueError(f"{folder} holds no trained SAE {config.name!r}: expected a finished sweep with this run")
    if not is_intact(path):
        raise ValueError(f"{path} is not as it was written: train the sweep again, which makes it anew")
    return SAE.load_from_disk(path, device=device)
