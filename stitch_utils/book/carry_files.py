"""Vectors, probes and SAEs of one's own in files, read so that nothing in them is run and written whole or not at all.

No section of the papers. Files hold arrays and nothing else: .npy and .npz without pickles, which can run code when
they are opened, and safetensors. What is damaged, or is not what was expected, is said in one line that names the file.

Offers `read_vectors`, `read_probe`, `save_probe`, `LinearProbe`, `read_sae`, `save_sae`.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from sae_lens import SAE
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..saes.io import load_sae
from ..utils.files import check_ours, write_whole

SAE_FILES = ("cfg.json", "sae_weights.safetensors", "sparsity.safetensors")  # those of SAELens, the first in any


class LinearProbe(NamedTuple):
    """What a fitted LogisticRegression of scikit-learn holds."""

    coef: Float[np.ndarray, "classes d"]
    """One row for two classes."""
    intercept: Float[np.ndarray, " classes"]
    classes: np.ndarray
    """The labels: two for one row of `coef`."""

    def scores(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        """x coef^T + intercept, in float64."""
        return x.double() @ torch.from_numpy(self.coef).T + torch.from_numpy(self.intercept)


def read_vectors(path: str | Path) -> np.ndarray:
    """The vector (d,) or rows (n, d) of a .npy file, or of the only tensor of a .safetensors file; float64.

    ValueError for other files and shapes, values that are not finite, and rows of zeros.
    """
    arrays = _arrays(path, (".npy", ".safetensors"))
    if len(arrays) != 1:
        raise ValueError(f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}: expected a single tensor")
    ((name, vectors),) = arrays.items()
    vectors = _numbers(path, name, vectors)
    if vectors.ndim not in (1, 2) or not vectors.size:
        raise ValueError(f"{path} has shape {vectors.shape}: expected a vector (d,) or rows (n, d)")
    if (zero := ~np.atleast_2d(vectors).any(1)).any():
        raise ValueError(f"row {int(zero.argmax())} of {path} is zero: it has no direction")
    return vectors


def read_probe(path: str | Path) -> LinearProbe:
    """`coef_` (classes or 1, d), `intercept_` and, where there are any, `classes_` of a .npz or .safetensors file.

    Without `classes_` the labels are 0, 1, ... ValueError for other files and shapes, and values that are not finite.
    """
    arrays = _arrays(path, (".npz", ".safetensors"))
    if missing := [name for name in ("coef_", "intercept_") if name not in arrays]:
        held = ", ".join(sorted(arrays)) or "nothing"
        raise ValueError(f"{path} lacks {' and '.join(missing)}: expected coef_ and intercept_, it holds {held}")
    coef, intercept = (_numbers(path, name, arrays[name]) for name in ("coef_", "intercept_"))
    coef, intercept = np.atleast_2d(coef), intercept.reshape(-1)
    if coef.ndim != 2 or len(intercept) != len(coef) or not coef.size:
        raise ValueError(
            f"{path}: coef_ has shape {arrays['coef_'].shape} and intercept_ {arrays['intercept_'].shape}: expected "
            "(classes or 1, d) and one intercept for each row"
        )
    if not coef.any():
        raise ValueError(f"coef_ of {path} is zero: this probe reads nothing")
    n_classes = max(2, len(coef))
    classes = arrays.get("classes_", np.arange(n_classes))
    if classes.shape != (n_classes,):
        raise ValueError(f"classes_ of {path} has shape {classes.shape}: expected {n_classes} labels")
    return LinearProbe(coef, intercept, classes)


def save_probe(probe: LinearProbe, path: str | Path) -> None:
    """A .npz file of `coef_`, `intercept_` and `classes_`."""

    def write(scratch: Path) -> None:
        with open(scratch, "wb") as file:  # given a name, NumPy would add an ending to it
            np.savez(file, allow_pickle=False, coef_=probe.coef, intercept_=probe.intercept, classes_=probe.classes)

    write_whole(path, write, sealed=False)


def read_sae(ref: str) -> SAE:
    """What `load_sae` reads; ValueError also for a folder whose files are damaged, and weights that are not finite."""
    try:
        sae = load_sae(ref)
    except (SafetensorError, KeyError, TypeError, RuntimeError, OSError) as error:
        raise ValueError(f"the SAE {ref} cannot be read, as if its files were damaged ({error})") from error
    for name, tensor in sae.state_dict().items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} of the SAE {ref} holds values that are not finite (NaN or infinity)")
    return sae


def save_sae(sae: SAE, folder: str | Path) -> None:
    """A folder as SAELens writes and reads it, replaced as a whole; ValueError if there is one that holds something
    else, such as weights in another format, which would be read in place of these."""
    check_ours(Path(folder), *SAE_FILES)
    write_whole(folder, sae.save_model, sealed=False)


def _arrays(path: str | Path, kinds: tuple[str, str]) -> dict[str, np.ndarray]:
    """The arrays of a file by their names; ValueError if it is not of these kinds, or damaged."""
    path = Path(path).expanduser()
    expected = f"expected a {' or '.join(kinds)} file of numbers (pickles are not read, since they can run code)"
    if path.suffix not in kinds:
        raise ValueError(f"{path} is not of a kind that is read: {expected}")
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path).items()
            return {name: (x.double() if x.is_floating_point() else x).numpy() for name, x in tensors}  # for bfloat16
        with open(path, "rb") as file:
            held = np.load(file, allow_pickle=False)
            found = {"it": held} if isinstance(held, np.ndarray) else dict(held)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, SafetensorError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read ({said}): {expected}") from error
    if ("it" in found and len(found) == 1) != (path.suffix == ".npy"):
        raise ValueError(f"{path} holds another kind of file than its name says: {expected}")
    return found


def _numbers(path: str | Path, name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} of {path} is of type {array.dtype}: expected numbers")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} of {path} holds values that are not finite (NaN or infinity)")
    return array.astype(np.float64)
