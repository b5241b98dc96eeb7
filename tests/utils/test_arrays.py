"""Arrays of a user's own from files: what is read, and that nothing in a file is run."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stitch_utils.utils.arrays import read_vectors


@pytest.mark.parametrize("shape", [(4,), (3, 4)])
@pytest.mark.parametrize("ending", ["npy", "safetensors"])
def test_vectors_that_are_read(tmp_path, shape, ending):
    vectors = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    path = tmp_path / f"v.{ending}"
    if ending == "npy":
        np.save(path, vectors)
    else:
        vectors = torch.from_numpy(vectors).to(torch.bfloat16)
        save_file({"any name": vectors}, path)
        vectors = vectors.double().numpy()
    found = read_vectors(str(path))
    assert found.dtype == np.float64 and found.shape == shape and (found == vectors).all()


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def write_bad(kind, path):
    rng = np.random.default_rng(0)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif kind == "objects":
        np.save(path, np.array([Bomb()], dtype=object), allow_pickle=True)
    elif kind == "column":
        np.save(path, np.array([1.0, 2.0], dtype=object), allow_pickle=True)
    elif kind == "named":
        np.save(path, {"layer 3": rng.normal(size=4)}, allow_pickle=True)
    elif kind == "cut":
        np.save(path, rng.normal(size=(4, 6)))
        path.write_bytes(path.read_bytes()[:-20])
    elif kind == "tensors":
        save_file({"x": torch.zeros(3), "y": torch.zeros(3)}, path)
    elif kind == "text":
        path.write_text("v = [1, 2, 3]")
    else:
        arrays = {
            "nan": np.array([1, np.nan]),
            "cube": np.ones((2, 2, 2)),
            "zero": np.array([[1.0, 0], [0, 0]]),
            "words": np.array(["a"]),
            "complex": np.array([1j]),
            "none": np.zeros((0, 3)),
        }
        np.save(path, arrays[kind])


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("pickle", "v.npy", "v.npy cannot be read .*pickle"),
        ("pickle", "v.pt", "v.pt is not of a kind that is read: expected a .npy or .safetensors file .*pickles"),
        ("objects", "v.npy", r"v\.npy cannot be read, .* a pickle: save it with \.astype\(float\)"),
        ("column", "v.npy", r"v\.npy cannot be read, .* a pickle: save it with \.astype\(float\)"),
        ("named", "v.npy", r"v\.npy cannot be read, .* a pickle: save it with \.astype\(float\)"),
        (
            "pickle",
            "v.pkl",
            r"v\.pkl is not of a kind .* such as np\.save\(file, vector\) writes \(pickles are not read",
        ),
        ("text", "v.txt", r"v\.txt is not of a kind that is read"),
        ("text", "v.npy", r"v\.npy cannot be read"),
        ("cut", "v.npy", "v.npy cannot be read"),
        ("text", "v.safetensors", "v.safetensors cannot be read"),
        ("tensors", "v.safetensors", "holds x, y: expected a single tensor"),
        ("nan", "v.npy", "holds values that are not finite"),
        ("cube", "v.npy", r"has shape \(2, 2, 2\): expected a vector \(d,\) or rows"),
        ("none", "v.npy", r"has shape \(0, 3\): expected"),
        ("zero", "v.npy", "row 1 of .* is zero"),
        ("words", "v.npy", "is of type <U1: expected numbers"),
        ("complex", "v.npy", "is of type complex128: expected numbers"),
    ],
)
def test_vectors_that_are_not_read(tmp_path, monkeypatch, kind, name, message):
    monkeypatch.chdir(tmp_path)
    write_bad(kind, tmp_path / name)
    with pytest.raises(ValueError, match=message) as raised:
        read_vectors(tmp_path / name)
    assert "\n" not in str(raised.value) and not (tmp_path / "exploded").exists()


def test_files_that_are_not_what_their_names_say(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        read_vectors(tmp_path / "v.npy")
    np.savez(tmp_path / "p.npz", coef_=np.ones((1, 3)), intercept_=np.ones(1))
    (tmp_path / "p.npz").rename(tmp_path / "p.npy")
    with pytest.raises(ValueError, match="another kind of file than its name says"):
        read_vectors(tmp_path / "p.npy")
