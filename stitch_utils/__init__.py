"""Carry SAEs, probes and steering vectors from one language model to another by affine stitches.

    import stitch_utils as su

    stitch = su.fit_pair("tiny").stitch
    su.transfer_sae(su.load_sae("embedded:tiny-a-sae"), stitch).save_model("sae-in-b")

A room of this package is a folder; each builds on those before it: `utils`, `data`, `models`, `stitching`, `saes`,
`probing`, `steering`, `features`, `book`. The names below are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .data.pairs import ModelPair, load_pair
    from .features.attribution import attribution_correlations
    from .models.language_model import LanguageModel, load_models
    from .probing.probes import LinearProbe, transfer_probe
    from .saes.evaluation import evaluate_saes
    from .saes.io import load_sae
    from .saes.transfer import transfer_sae
    from .steering.vectors import SteeringVector, clamp, transfer_vector
    from .stitching.evaluation import measure_fidelity
    from .stitching.fit import fit_adam, fit_exact
    from .stitching.moments import PairMoments, harvest_moments
    from .stitching.pair import StitchedPair, fit_pair
    from .stitching.stitch import AffineMap, Stitch, stitch_loss

_NAMES = {
    "data.pairs": ("ModelPair", "load_pair"),
    "models.language_model": ("LanguageModel", "load_models"),
    "stitching.moments": ("PairMoments", "harvest_moments"),
    "stitching.stitch": ("AffineMap", "Stitch", "stitch_loss"),
    "stitching.fit": ("fit_adam", "fit_exact"),
    "stitching.pair": ("StitchedPair", "fit_pair"),
    "stitching.evaluation": ("measure_fidelity",),
    "saes.io": ("load_sae",),
    "saes.transfer": ("transfer_sae",),
    "saes.evaluation": ("evaluate_saes",),
    "probing.probes": ("LinearProbe", "transfer_probe"),
    "steering.vectors": ("SteeringVector", "clamp", "transfer_vector"),
    "features.attribution": ("attribution_correlations",),
}
_WHERE = {name: module for module, names in _NAMES.items() for name in names}

__all__ = ["AffineMap", "LanguageModel", "LinearProbe", "ModelPair", "PairMoments", "SteeringVector", "Stitch"]
__all__ += ["StitchedPair", "attribution_correlations", "clamp", "evaluate_saes", "fit_adam", "fit_exact", "fit_pair"]
__all__ += ["harvest_moments", "load_models", "load_pair", "load_sae", "measure_fidelity", "stitch_loss"]
__all__ += ["transfer_probe", "transfer_sae", "transfer_vector"]


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
