"""From a pair to its stitch in one call, for those who want the maps and not the chapter.

Section 2 and App. A, as the chapter on stitching does it: one pass over the training text, the exact minimum of Eq. 3,
its loss on text that it was not fitted on. The moments of a pass are kept in `artifacts/`, so that other chapters, and
other values of alpha, do without another.

Offers `pair_moments`, `fit_pair`, `FittedPair`, `stitch_file`, where a pair's stitch lies, and `preflight`, which finds
what would stop them before anything heavy is loaded.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..data.pairs import ModelPair
from ..models.harvest import evaluation_batches, of_activations, training_batches
from ..models.language_model import LanguageModel, check_pair, load_models, load_tokenizer
from ..utils.cache import artifact, kept
from ..utils.files import project_root
from .moments import PairMoments, harvest_moments
from .stitch import Stitch, StitchLoss, fit_exact, stitch_loss
from .svcca import stitched_layers


class FittedPair(NamedTuple):
    """A stitch and what is known of it."""

    stitch: Stitch
    layers: tuple[int, int]
    """Of A and of B."""
    tokens: int
    """Fitted on."""
    fitted: StitchLoss
    """Eq. 3 on the text that it was fitted on."""
    held_out: StitchLoss
    """Eq. 3 on the evaluation text."""
    unexplained: tuple[float, float]
    """Share of the variance of y, and of x, that the maps leave unexplained on the evaluation text."""
    is_stand_in: bool
    """Whether a model has random weights under another's name."""


def stitch_file(pair: str) -> Path:
    """Where `stitch-book fit` puts the stitch of the pair of this name, and other commands look for it."""
    return project_root() / "artifacts" / pair / "stitch.safetensors"


def preflight(pair: ModelPair) -> None:
    """Fetches configurations, tokenizers and the first texts; ValueError names the pair, its file and what to do."""
    check_pair(pair)
    # any scale will do: no more than the first batch of its texts is read
    sizes, tokenizer = next(iter(pair.scales.values())), load_tokenizer(pair.a.model, revision=pair.a.revision)
    for batches in (training_batches(pair, sizes, tokenizer, pair.context), evaluation_batches(pair, sizes, tokenizer)):
        next(batches)


def pair_moments(
    pair: ModelPair,
    models: tuple[LanguageModel, LanguageModel],
    layers: tuple[int, int],
    *,
    scale: str,
    anew: bool = False,
) -> PairMoments:
    """Moments of the training text at the stitched layers, from `artifacts/` if they were harvested before.

    `anew` harvests in any case, for whoever wants to time it, and keeps the result.
    """
    sizes = pair.scale(scale)
    made_of = of_activations(pair, layers, scale=scale)
    return kept(
        artifact(pair.name, "moments", made_of, sources=(harvest_moments,), suffix=".safetensors"),
        lambda: harvest_moments(
            *models, training_batches(pair, sizes, models[0].tokenizer, sizes.train_tokens), [layers]
        )[layers],
        PairMoments.save,
        PairMoments.load,
        anew=anew,
    )


def fit_pair(pair: ModelPair, *, scale: str = "default", alpha: float = 1.0, ridge: float = 1e-8) -> FittedPair:
    """The exact stitch of a pair (Eq. 3) at one of its scales; ValueError for what the pair's file has wrong."""
    sizes = pair.scale(scale)
    models = load_models(pair)
    layers = stitched_layers(pair, *models, sizes)
    moments = pair_moments(pair, models, layers, scale=scale)
    held_out = harvest_moments(*models, evaluation_batches(pair, sizes, models[0].tokenizer), [layers])[layers]
    stitch = fit_exact(moments, alpha=alpha, ridge=ridge)
    losses = [stitch_loss(stitch, part, alpha=alpha) for part in (moments, held_out)]
    variances = [covariance.diagonal().mean().item() for covariance in (held_out.cyy, held_out.cxx)]
    unexplained = losses[1].up / variances[0], losses[1].down / variances[1]
    is_stand_in = any(model.is_stand_in for model in models)
    # What a stitch file says of itself, so that whoever is handed it need not ask.
    about = {
        "pair": pair.name,
        "a": pair.a.model,
        "layer_a": layers[0],
        "b": pair.b.model,
        "layer_b": layers[1],
        "text": pair.train.name,
        "text_source": pair.train.source,
        "held_out_text": pair.evaluation.name,
        "tokens": moments.count,
        "loss_fitted": losses[0]._asdict(),
        "loss_held_out": losses[1]._asdict(),
        "unexplained": unexplained,
        "is_stand_in": is_stand_in,
    }
    revisions = {"revision_a": pair.a.revision, "revision_b": pair.b.revision, "text_revision": pair.train.revision}
    about |= {name: revision for name, revision in revisions.items() if revision}
    return FittedPair(replace(stitch, about=about), layers, moments.count, *losses, unexplained, is_stand_in)
