"""What a stitch loses where a few massive tokens own the fit, and gains when they are left out.

No section of the papers. `streams` counts the tokens of a huge norm at the stitched layers; other layers may hold
worse. Here the layer whose massive tokens hold most of the variance is found and stitched twice, with and without them.

Offers `heaviest_layer`, `Heaviest`, `fit_with_and_without`, `Refitted`.
"""

from collections.abc import Mapping
from typing import NamedTuple

from ..models.harvest import Residuals, norm_limits
from .evaluation import Fidelity, measure_fidelity
from .fit import fit_exact
from .moments import harvest_moments
from .pair import StitchedPair
from .stitch import stitch_loss
from .streams import BEYOND, massive_share


class Heaviest(NamedTuple):
    """The layer whose massive tokens hold the largest share of the variance."""

    side: str
    """Of model `a` or `b`."""
    layer: int
    tokens: int
    """The number of its tokens beyond `BEYOND` medians."""
    held: float
    """The share of the variance that they hold."""


def heaviest_layer(residuals: Mapping[str, Residuals]) -> Heaviest:
    """Find that layer among streams (n, d) by side and layer; the first of them where no token is massive."""
    found = (Heaviest(side, n, *massive_share(x)) for side, layers in residuals.items() for n, x in layers.items())
    return max(found, key=lambda one: one.held)


class Refitted(NamedTuple):
    """A stitch between two layers by least squares, and how good it is."""

    tokens: int
    """The number of tokens that it was fitted on."""
    unexplained: dict[str, float]
    """The share of the variance of the stream of `a` and `b` that the map to it leaves, on the text fitted on."""
    fidelity: Fidelity
    """Cross-entropy on the evaluation text; the stitch is `fitted`."""


def fit_with_and_without(stitched: StitchedPair, layers: tuple[int, int], *, seed: int = 0) -> dict[str, Refitted]:
    """Stitch two layers by least squares with `all` tokens, and `without` those beyond `BEYOND` medians of either norm.

    A third of the training text is read. Tokens that are left out of the fit keep the host's stream.
    """
    models, sizes = stitched.models, stitched.sizes
    beyond = norm_limits(models, layers, stitched.training_batches(sizes.svcca_tokens), beyond=BEYOND)
    found = {}
    for name, limits in (("all", None), ("without", beyond)):
        batches = stitched.training_batches(max(stitched.pair.context, sizes.train_tokens // 3))
        moments = harvest_moments(*models, batches, [layers], limits=limits)[layers]
        stitch = fit_exact(moments, alpha=0, ridge=stitched.ridge_used)
        loss = stitch_loss(stitch, moments, alpha=0)
        shares = (loss.down, moments.cxx), (loss.up, moments.cyy)
        unexplained = {side: left / c.diagonal().mean().item() for side, (left, c) in zip("ab", shares)}
        text = stitched.evaluation_batches()
        options: dict = {"limits": limits, "conditions": ("a_to_b", "b_to_a"), "seed": seed}
        fidelity = measure_fidelity(*models, *layers, {"fitted": stitch}, text, **options)
        found[name] = Refitted(int(moments.count), unexplained, fidelity)
    return found
