"""Read a user's arrays from files, without running anything that they hold (no section of its own).

A file that is damaged, or holds something unexpected such as a pickle, raises a ValueError of one line with its name.

Offers `read_arrays`, `NOT_READ`, `numbers_of`, `read_vectors`, and `save_arrays`, which writes a file whole or not at
all.
"""

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file

from .files import write_whole

NOT_READ = np.empty(0, object)  # in the place of Python objects, which NumPy stores as a pickle
DAMAGE = (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, SafetensorError)


def read_arrays(path: str | Path, endings: tuple[str, ...], made_by: str) -> dict[str, np.ndarray]:
    """Read the arrays of a file by their names; the array of a .npy file is called `it`.

    An array of Python objects comes as `NOT_READ`, since others of the file may be all that is wanted. Raise ValueError
    if the name has none of these `endings`, or the file is missing or damaged; it says how such a file is `made_by`.
    """
    path = Path(path).expanduser()
    expected = f"expected a {' or '.join(endings)} file of numbers, such as {made_by} writes"
    expected += " (pickles are not read, since they can run code)"
    if path.suffix.lower() not in endings:
        raise ValueError(f"{path} is not of a kind that is read: {expected}")
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        if path.suffix.lower() == ".safetensors":
            tensors = load_file(path).items()
            return {name: (x.double() if x.is_floating_point() else x).numpy() for name, x in tensors}  # for bfloat16
        with open(path, "rb") as file:
            held = _read(np.load, file, allow_pickle=False)
            single = isinstance(held, np.ndarray)
            found = {"it": held} if single else {name: _read(held.__getitem__, name) for name in held.files}
    except DAMAGE as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read ({said}): {expected}") from error
    if single != (path.suffix.lower() == ".npy"):
        raise ValueError(f"{path} holds another kind of file than its name says: {expected}")
    return found


def _read(load: Callable[..., Any], *given, **options) -> Any:
    """Return what `load` returns, or NOT_READ for Python objects, and for what is no array in an archive."""
    try:
        held = load(*given, **options)
    except ValueError as error:
        if not str(error).startswith("Object arrays"):
            raise
        return NOT_READ
    return NOT_READ if isinstance(held, bytes) else held


def numbers_of(path: str | Path, name: str, array: np.ndarray) -> np.ndarray:
    """Return the array in float64; raise ValueError, with its name and file, unless its numbers are finite and real."""
    if array.dtype == object:
        found = f"{name} of {path} cannot be read, since it holds Python objects, that is, a pickle"
        raise ValueError(f"{found}: save it with .astype(float)")
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} of {path} is of type {array.dtype}: expected numbers")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} of {path} holds values that are not finite (NaN or infinity)")
    return array.astype(np.float64)


def read_vectors(path: str | Path) -> np.ndarray:
    """Read the vector (d,) or rows (n, d) of a .npy file, or of a .safetensors file with one tensor, in float64.

    Raise ValueError for another file or shape, a value that is not finite, or a row of zeros.
    """
    arrays = read_arrays(path, (".npy", ".safetensors"), "np.save(file, vector)")
    if len(arrays) != 1:
        raise ValueError(f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}: expected a single tensor")
    ((name, vectors),) = arrays.items()
    vectors = numbers_of(path, name, vectors)
    if vectors.ndim not in (1, 2) or not vectors.size:
        raise ValueError(f"{path} has shape {vectors.shape}: expected a vector (d,) or rows (n, d)")
    if (zero := ~np.atleast_2d(vectors).any(1)).any():
        raise ValueError(f"row {int(zero.argmax())} of {path} is zero: it has no direction")
    return vectors


def save_arrays(path: str | Path, *array: np.ndarray, **named: np.ndarray) -> None:
    """Write one array to a .npy file, or arrays by their names to a .npz file."""

    def write(scratch: Path) -> None:
        with open(scratch, "wb") as file:  # given a name, NumPy would add an ending to it
            save = np.savez if named else np.save
            save(file, *array, allow_pickle=False, **named)

    write_whole(path, write, sealed=False)
