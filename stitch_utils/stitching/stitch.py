r"""The stitch: two affine maps between residual streams, its loss, and its file.

Section 2, Eqs. 1-3. With row vectors x of model A and y of model B,

    up(x) = x P_up + b_up      (1)        down(y) = y P_down + b_down      (2)
    L = MSE(up(x), y) + MSE(down(y), x) + alpha MSE(down(up(x)), x) + alpha MSE(up(down(y)), y)      (3)

All four terms are squared errors of affine maps, so L follows from the means and second moments of (x, y).

Offers `AffineMap`, `Stitch`, `FitReport`, `StitchLoss`, `stitch_loss`, `random_stitch`, and the names `TENSORS`.
"""

import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .moments import PairMoments

TENSORS = ("P_up", "b_up", "P_down", "b_down")


class FitReport(NamedTuple):
    """How a stitch was fitted."""

    method: str
    """`exact` or `adam`; `unsquared` or `unsquared adam` for those of `lrt_maps`."""
    alpha: float
    """Weight of the inversion terms."""
    loss: float
    """The loss where the fit ended: on its moments (exact), or mean over the last tenth of the steps (adam)."""
    converged: bool
    """Whether the last steps of `exact` lowered the loss by less than the tolerance; False for `adam`."""
    sweeps: int
    """The number of alternating solutions (exact)."""
    evaluations: int
    """The number of evaluations by L-BFGS (exact), or of steps (adam)."""
    ridge: float
    """What was added to the diagonals of the covariances, as a share of their mean eigenvalue."""
    seconds: float


class StitchLoss(NamedTuple):
    """Eq. 3 term by term: mean squared errors over tokens and dimensions, before alpha."""

    up: float
    down: float
    cycle_a: float
    """down(up(x)) against x."""
    cycle_b: float
    """up(down(y)) against y."""
    total: float
    """up + down + alpha (cycle_a + cycle_b)."""


@dataclass(frozen=True)
class AffineMap:
    """x -> x P + b, from one residual stream (row vectors) to another."""

    P: Float[Tensor, "d_in d_out"]
    b: Float[Tensor, " d_out"]

    def __post_init__(self):
        if self.P.dim() != 2 or self.b.shape != self.P.shape[1:]:
            given = f"P has shape {tuple(self.P.shape)} and b {tuple(self.b.shape)}"
            raise ValueError(f"{given}: expected (d_in, d_out) and (d_out,)")

    @property
    def d_in(self) -> int:
        return self.P.shape[0]

    def __call__(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        """Map a stream in the dtype of `P`, and answer in that of `x`, on its device; ValueError for another width."""
        if x.shape[-1] != self.d_in:
            raise ValueError(f"the map was given shape {tuple(x.shape)}: expected (..., {self.d_in})")
        here = self.to(x.device)
        return (x.to(here.P.dtype) @ here.P + here.b).to(x.dtype)

    def then(self, other: "AffineMap") -> "AffineMap":
        """Compose the two maps: first this one, then `other`; computed in float64, in the dtype of this one."""
        first, second = self.to(torch.float64), other.to(self.P.device, torch.float64)
        return AffineMap(first.P @ second.P, first.b @ second.P + second.b).to(self.P.dtype)

    def to(self, *args, **kwargs) -> "AffineMap":
        """Copy the map to another device or dtype."""
        return AffineMap(self.P.to(*args, **kwargs), self.b.to(*args, **kwargs))


@dataclass(frozen=True)
class Stitch:
    """Eqs. 1 and 2: an affine map from the residual stream of A to that of B, and one back."""

    P_up: Float[Tensor, "d_a d_b"]
    b_up: Float[Tensor, " d_b"]
    P_down: Float[Tensor, "d_b d_a"]
    b_down: Float[Tensor, " d_a"]
    report: FitReport | None = None
    """How it was fitted, if it was."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What it is for: names of the models, layers, text, losses; anything JSON holds. Saved, without effect."""

    def __post_init__(self):
        if self.P_up.dim() != 2:
            raise ValueError(f"P_up has shape {tuple(self.P_up.shape)}: expected (d_a, d_b)")
        d_a, d_b = self.P_up.shape
        for name, shape in (("b_up", (d_b,)), ("P_down", (d_b, d_a)), ("b_down", (d_a,))):
            if (found := tuple(getattr(self, name).shape)) != shape:
                raise ValueError(f"{name} has shape {found}: expected {shape}, since P_up has {(d_a, d_b)}")

    @property
    def up(self) -> AffineMap:
        """Eq. 1: `stitch.up(x)` maps A's stream to B's."""
        return AffineMap(self.P_up, self.b_up)

    @property
    def down(self) -> AffineMap:
        """Eq. 2: `stitch.down(y)` maps B's stream to A's."""
        return AffineMap(self.P_down, self.b_down)

    def towards(self, to: str) -> AffineMap:
        """Pick the map that leads to the stream of `to`, `"a"` or `"b"`; ValueError for anything else."""
        if to not in ("a", "b"):
            raise ValueError(f"to={to!r}: expected 'a' or 'b', the model that things are transferred to")
        return self.up if to == "b" else self.down

    def to(self, *args, **kwargs) -> "Stitch":
        """Copy the maps to another device or dtype."""
        return replace(self, **{name: getattr(self, name).to(*args, **kwargs) for name in TENSORS})

    @classmethod
    def of(cls, up: AffineMap, down: AffineMap, *, report: FitReport | None = None) -> "Stitch":
        """Join two maps that lead to and fro."""
        return cls(up.P, up.b, down.P, down.b, report=report)

    @classmethod
    def identity(cls, d: int) -> "Stitch":
        """Make maps that change nothing, between streams of one width."""
        return cls(torch.eye(d), torch.zeros(d), torch.eye(d), torch.zeros(d))

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whose header holds `report`, `about`, and a digest of them and of the maps."""
        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in TENSORS}
        said = [json.dumps(self.report and self.report._asdict()), json.dumps(dict(self.about))]
        meta = {"kind": "Stitch", "report": said[0], "about": said[1], "digest": _digest(tensors, *said)}
        save_file(tensors, str(path), metadata=meta)

    @classmethod
    def load(cls, path: str | Path) -> "Stitch":
        """Read what `save` wrote; ValueError for another file, or a damaged one."""
        try:
            with safe_open(str(path), framework="pt") as file:
                meta = file.metadata() or {}
                if meta.get("kind") != "Stitch":
                    raise ValueError(f"{path} holds {meta.get('kind', 'no')} data: expected a Stitch")
                tensors = {name: file.get_tensor(name) for name in TENSORS}
            said = [meta.get(name, "null") for name in ("report", "about")]
            report, about = map(json.loads, said)
            report = FitReport(**report) if report else None
        except (SafetensorError, json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path} is no whole stitch file, as `Stitch.save` writes it ({error})") from error
        # Older files have a digest of the maps alone.
        if meta.get("digest", meta.get("sha256")) != _digest(tensors, *(said if "digest" in meta else ())):
            raise ValueError(f"{path} is damaged: it does not hold what was saved. Fit or fetch it again.")
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise ValueError(f"{name} of {path} holds values that are not finite (NaN or infinity)")
        return cls(**tensors, report=report, about=about or {})

    @classmethod
    def from_pretrained(cls, name: str, *, revision: str | None = None) -> "Stitch":
        """Load a stitch from the Hub (`owner/name`) or from a file; see `publish.load_stitch`."""
        return _publish().load_stitch(name, revision=revision)

    def push_to_hub(self, repository: str, *, license: str | None = None, private: bool = False) -> str:
        """Publish this stitch as `owner/name` with a model card; see `publish.push_stitch`."""
        return _publish().push_stitch(self, repository, licence=license, private=private)


def _publish():
    """Import `publish`, by a name that the keys of artifacts do not follow: a model card's words change no number."""
    return importlib.import_module(".publish", __package__)


def _digest(tensors: Mapping[str, Tensor], *said: str) -> str:
    """Digest the bytes of the maps, in any dtype, and the words of their header."""
    raw = (tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for name in TENSORS)
    return hashlib.sha256(b"".join([*raw, "\0".join(said).encode()])).hexdigest()


def stitch_loss(stitch: Stitch, moments: PairMoments, *, alpha: float = 1.0) -> StitchLoss:
    """Compute Eq. 3, exactly, on the data that `moments` describe."""
    maps = stitch.to(moments.mean.device, torch.float64)
    cxx, cxy, cyy = moments.cxx, moments.cxy, moments.cyy
    mean_x, mean_y = moments.mean_x, moments.mean_y

    def mse(c_in, c_out, c_in_out, matrix, offset):
        # E|u M + b - v|^2 / d, with covariances c_in of u and c_out of v, and offset = E[u M + b - v]
        spread = (matrix * (c_in @ matrix)).sum() - 2 * (matrix * c_in_out).sum() + c_out.trace()
        return ((spread + offset @ offset) / len(c_out)).item()

    at_mean_x, at_mean_y = mean_x @ maps.P_up + maps.b_up, mean_y @ maps.P_down + maps.b_down
    terms = (
        mse(cxx, cyy, cxy, maps.P_up, at_mean_x - mean_y),
        mse(cyy, cxx, cxy.T, maps.P_down, at_mean_y - mean_x),
        mse(cxx, cxx, cxx, maps.P_up @ maps.P_down, at_mean_x @ maps.P_down + maps.b_down - mean_x),
        mse(cyy, cyy, cyy, maps.P_down @ maps.P_up, at_mean_y @ maps.P_up + maps.b_up - mean_y),
    )
    return StitchLoss(*terms, terms[0] + terms[1] + alpha * (terms[2] + terms[3]))


def random_stitch(stitch: Stitch, seed: int, *, means: tuple[Float[Tensor, " d_a"], Float[Tensor, " d_b"]]) -> Stitch:
    """Draw a stitch for comparison: Gaussian maps of the same shapes, whose columns have the same norms.

    The biases carry the mean residuals `means` of A and B into each other, as those of a fitted stitch do.
    """
    generator = torch.Generator().manual_seed(seed)
    maps = []
    for matrix in (stitch.P_up, stitch.P_down):
        drawn = torch.randn(matrix.shape, generator=generator, dtype=torch.float64)
        maps.append(drawn * (matrix.cpu().double().norm(dim=0) / drawn.norm(dim=0)))
    (up, down), (mean_x, mean_y) = maps, (mean.cpu().double() for mean in means)
    parts = (up, mean_y - mean_x @ up, down, mean_x - mean_y @ down)
    return Stitch(*(part.to(stitch.P_up) for part in parts), about={**stitch.about, "random_seed": seed})
