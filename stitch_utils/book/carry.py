r"""SAEs, vectors and probes of one's own: read from files, carried across a stitch, and how far to trust the result.

Eq. 6 (SAEs), section 4 (probes w.x + b and directions v), for files of one's own. An SAE between the stitch's maps is
an SAE of the other model; a direction that is added to the stream goes the way of the stream, v P; a probe, which reads
the stream, goes the other way: on down(y) it is the probe w P_down^T, b + b_down . w of y. None of this asks whether
the stitch knows what it is asked to carry. So there are measures of what is left of a direction, beside what is left of
a random one, and measures on text that the stitch has not seen.

Offers `carry_vectors`, `carry_probe`, `survival`, `Survival`, `judge_probe`, `ProbeTrust`, `judge_sae`, `SAETrust`,
`reads_elsewhere`, and from `carry_files` what reads and writes; `saes.transfer_sae` carries SAEs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from sae_lens import SAE
from torch import Tensor

from ..data.text import TokenBatch
from ..models.harvest import paired_residuals
from ..models.language_model import LanguageModel
from ..probing.probes import carried_weights
from ..saes.evaluation import SAEMetrics, evaluate_saes
from ..steering.vectors import transfer_vector
from ..stitching.evaluation import measure_fidelity
from ..stitching.stitch import Stitch
from .carry_files import LinearProbe, read_probe, read_sae, read_vectors, save_probe, save_sae

__all__ = [
    "LinearProbe",
    "ProbeTrust",
    "SAETrust",
    "Survival",
    "carry_probe",
    "carry_vectors",
    "judge_probe",
    "judge_sae",
    "read_probe",
    "read_sae",
    "read_vectors",
    "reads_elsewhere",
    "save_probe",
    "save_sae",
    "survival",
]
RANDOM_DIRECTIONS = 1000


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


def carry_vectors(vectors: np.ndarray, stitch: Stitch, *, towards: str = "b", keep_norm: bool = False) -> np.ndarray:
    """v P for a vector or for each row, of unit length, or with `keep_norm` as long as P makes it; float32.

    ValueError for another width, and for a row that the map takes to zero.
    """
    carried = []
    for index, row in enumerate(np.atleast_2d(vectors)):
        try:
            carried.append(transfer_vector(torch.from_numpy(row), stitch, to=towards, keep_norm=keep_norm))
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


def carry_probe(probe: LinearProbe, stitch: Stitch, *, towards: str = "b") -> LinearProbe:
    """The probe of the other model's stream that says what `probe` says of the stitched stream; ValueError for another
    width."""
    coef, intercept = carried_weights(probe.coef, probe.intercept, stitch, towards=towards)
    return probe._replace(coef=coef, intercept=intercept)


@torch.no_grad()
def judge_probe(
    probe: LinearProbe,
    carried: LinearProbe,
    stitch: Stitch,
    models: tuple[LanguageModel, LanguageModel],
    layers: tuple[int, int],
    batches: Iterable[TokenBatch],
    *,
    towards: str = "b",
) -> ProbeTrust:
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
        len(said),
        _share(found == expected),
        _share(found == said),
        said.bincount().max().item() / len(said),
        tuple((1 - unexplained)[torch.from_numpy(varies)].tolist()),
    )


def _answers(scores: Tensor) -> Tensor:
    return (scores[:, 0] > 0).long() if scores.shape[1] == 1 else scores.argmax(1)


def _share(equal: Tensor) -> float:
    return equal.double().mean().item()


def judge_sae(
    sae: SAE,
    carried: SAE,
    stitch: Stitch,
    models: tuple[LanguageModel, LanguageModel],
    layers: tuple[int, int],
    batches: Sequence[TokenBatch],
    *,
    towards: str = "b",
) -> SAETrust:
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


def reads_elsewhere(sae: SAE, layer: int) -> str | None:
    """The hook point that an SAE names, if that is not the residual stream before `layer`."""
    hook = sae.cfg.metadata.hook_name
    found = re.fullmatch(r"blocks\.(\d+)\.hook_resid_(pre|post)", hook or "")
    if not hook or (found and int(found[1]) + (found[2] == "post") == layer):
        return None
    return hook
