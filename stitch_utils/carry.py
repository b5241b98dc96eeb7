r"""SAEs, vectors and probes of one's own: read from files, carried across a stitch, and how far to trust the result.

Eq. 6 (SAEs), section 4 (probes w.x + b and directions v), for files of one's own. An SAE between the stitch's maps is
an SAE of the other model; a direction that is added to the stream goes the way of the stream, v P; a probe, which reads
the stream, goes the other way: on down(y) it is the probe w P_down^T, b + b_down . w of y. None of this asks whether
the stitch knows what it is asked to carry. So there are measures of what is left of a direction, beside what is left of
a random one, and measures on text that the stitch has not seen. Files hold arrays and nothing else: pickles, which can
run code when they are opened, are not read.

Offers `read_vectors`, `carry_vectors`, `read_probe`, `save_probe`, `carry_probe`, `LinearProbe`, `survival`,
`Survival`, `judge_probe`, `ProbeTrust`, `read_sae`, `save_sae`, `judge_sae`, `SAETrust`, `reads_elsewhere`,
`write_whole`.
"""

from __future__ import annotations

import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from sae_lens import SAE
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .fidelity import measure_fidelity
from .harvest import paired_residuals
from .models import Model
from .probing import carried_weights
from .saes import SAEMetrics, evaluate_saes, load_sae
from .steering import transfer_direction
from .stitch import Stitch
from .text import TokenBatch

RANDOM_DIRECTIONS = 1000


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


class Survival(NamedTuple):
    """What a stitch leaves of a direction."""

    kept: float
    """Its length after the map, as a share of its length before."""
    kept_random: float
    """The same for random directions: root mean square over all of them."""
    round_trip: float
    """Cosine between the direction and what comes back of it by both maps."""
    round_trip_random: float
    """The same for random directions: median of a thousand."""


class ProbeTrust(NamedTuple):
    """How a probe does on tokens of held-out text."""

    tokens: int
    check: float
    """Share of the other model's tokens on which the carried probe says what the original says of the stitched stream.
    The two are one function, so this is 1 but for rounding."""
    agreement: float
    """Share of tokens on which it says what the original says of the same token in its own model."""
    constant: float
    """The same for the best answer that is always the same."""
    explained: tuple[float, ...]
    """R^2 of each row: the original's score in its own model, by its score on the stitched stream."""


class SAETrust(NamedTuple):
    """How an SAE and what became of it do on held-out text; `source` is its own model, `target` the other one."""

    tokens: int
    source_loss: float
    """Cross-entropy of the model itself, nats a token."""
    target_loss: float
    round_trip_loss: float
    """Of `target`, its stream carried to `source` and back without an SAE: what a perfect SAE would be left with."""
    original: SAEMetrics
    carried: SAEMetrics


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


def carry_vectors(vectors: np.ndarray, stitch: Stitch, *, towards: str = "b", keep_norm: bool = False) -> np.ndarray:
    """v P for a vector or for each row, of unit length, or with `keep_norm` as long as P makes it; float32.

    ValueError for another width, and for a row that the map takes to zero.
    """
    carried = []
    for index, row in enumerate(np.atleast_2d(vectors)):
        try:
            carried.append(transfer_direction(torch.from_numpy(row), stitch, towards=towards, keep_norm=keep_norm))
        except ValueError as error:
            raise ValueError(f"row {index}: {error}") from error
    return torch.stack(carried).numpy().reshape(*vectors.shape[:-1], -1)


def survival(directions: np.ndarray, stitch: Stitch, *, towards: str = "b", reads: bool = False) -> list[Survival]:
    """What is left of each direction, (d,) or (n, d); with `reads`, of probes' weights, which go by the other map."""
    up, down = (matrix.detach().cpu().double().numpy() for matrix in (stitch.P_up, stitch.P_down))
    there, back = (up, down) if towards == "b" else (down, up)
    if reads:
        there, back = back.T, there.T

    def lengths_and_cosines(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        image = rows @ there
        returned = image @ back
        norms = np.linalg.norm(returned, axis=1)
        cosines = np.divide((rows * returned).sum(1), norms, out=np.zeros(len(rows)), where=norms > 0)
        return np.linalg.norm(image, axis=1), cosines

    drawn = np.random.default_rng(0).standard_normal((RANDOM_DIRECTIONS, len(there)))
    typical = float(np.linalg.norm(there) / len(there) ** 0.5), float(np.median(lengths_and_cosines(drawn)[1]))
    kept, cosines = lengths_and_cosines(np.atleast_2d(directions))
    return [Survival(float(k), typical[0], float(c), typical[1]) for k, c in zip(kept, cosines)]


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


def carry_probe(probe: LinearProbe, stitch: Stitch, *, towards: str = "b") -> LinearProbe:
    """The probe of the other model's stream that says what `probe` says of the stitched stream; ValueError for another
    width."""
    coef, intercept = carried_weights(probe.coef, probe.intercept, stitch, towards=towards)
    return probe._replace(coef=coef, intercept=intercept)


def save_probe(probe: LinearProbe, path: str | Path) -> None:
    """A .npz file of `coef_`, `intercept_` and `classes_`."""

    def write(scratch: Path) -> None:
        with open(scratch, "wb") as file:  # given a name, NumPy would add an ending to it
            np.savez(file, allow_pickle=False, coef_=probe.coef, intercept_=probe.intercept, classes_=probe.classes)

    write_whole(path, write)


@torch.no_grad()
def judge_probe(
    probe: LinearProbe, carried: LinearProbe, stitch: Stitch, models: tuple[Model, Model], layers: tuple[int, int],
    batches: Iterable[TokenBatch], *, towards: str = "b",
) -> ProbeTrust:  # fmt: skip
    """Both probes on every ordinary token of `batches`; ValueError if there is none."""
    wide = stitch.to("cpu", torch.float64)
    own, stitched, transferred = [], [], []
    for xs, ys in paired_residuals(*models, batches, [layers[0]], [layers[1]]):
        x, y = xs[layers[0]].cpu().double(), ys[layers[1]].cpu().double()
        source, target, home = (x, y, wide.down) if towards == "b" else (y, x, wide.up)
        own.append(probe.scores(source))
        stitched.append(probe.scores(home(target)))
        transferred.append(carried.scores(target))
    if not sum(map(len, own)):
        raise ValueError("the held-out text holds no ordinary token: expected at least one")
    scores, on_stitched, on_target = (torch.cat(part) for part in (own, stitched, transferred))  # (tokens, classes)
    said, expected, found = (_answers(part) for part in (scores, on_stitched, on_target))
    varies = probe.coef.any(1)  # a class whose weights are all zero has nothing to explain
    unexplained = (scores - on_stitched).square().sum(0) / (scores - scores.mean(0)).square().sum(0)
    return ProbeTrust(
        len(said), _share(found == expected), _share(found == said),
        said.bincount().max().item() / len(said), tuple((1 - unexplained)[torch.from_numpy(varies)].tolist()),
    )  # fmt: skip


def _answers(scores: Tensor) -> Tensor:
    return (scores[:, 0] > 0).long() if scores.shape[1] == 1 else scores.argmax(1)


def _share(equal: Tensor) -> float:
    return equal.double().mean().item()


def judge_sae(
    sae: SAE, carried: SAE, stitch: Stitch, models: tuple[Model, Model], layers: tuple[int, int],
    batches: Sequence[TokenBatch], *, towards: str = "b",
) -> SAETrust:  # fmt: skip
    """Both SAEs, each spliced into its own model, and what the stitch costs without an SAE (Tables 1 and 2)."""
    target = "ab".index(towards)
    source = 1 - target
    losses = measure_fidelity(*models, *layers, {"stitch": stitch}, batches)
    name = "ab"[source]
    return SAETrust(
        sum(int(batch.mask.sum()) for batch in batches),
        losses.cross_entropy("own", name).value,
        losses.cross_entropy("own", towards).value,
        losses.cross_entropy("stitch", f"{towards}_to_{name}_to_{towards}").value,
        evaluate_saes({"original": sae}, models[source], layers[source], batches)["original"],
        evaluate_saes({"carried": carried}, models[target], layers[target], batches)["carried"],
    )


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


def reads_elsewhere(sae: SAE, layer: int) -> str | None:
    """The hook point that an SAE names, if that is not the residual stream before `layer`."""
    hook = sae.cfg.metadata.hook_name
    found = re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|post)", hook or "")
    if not hook or (found and int(found[1]) + (found[2] == "post") == layer):
        return None
    return hook


def save_sae(sae: SAE, folder: str | Path) -> None:
    """A folder as SAELens writes and reads it; ValueError if there is one that holds something else."""
    folder = Path(folder)
    if folder.exists() and not (folder / "cfg.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there and holds no SAE: expected a new folder, an empty one, or an SAE's")
    scratch = folder.with_name(f".{os.getpid()}.{folder.name}")
    try:
        scratch.mkdir(parents=True)
        sae.save_model(scratch)
        folder.mkdir(exist_ok=True)
        for file in scratch.iterdir():
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_whole(path: str | Path, write: Callable[[Path], None]) -> None:
    """Calls `write` with a file beside `path`, which takes its place once it is whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(scratch)
        os.replace(scratch, path)
    except SafetensorError as error:  # its name for a disk that is full
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        scratch.unlink(missing_ok=True)


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
