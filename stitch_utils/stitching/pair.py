"""A stitched pair in one object, and a pair's stitch in one call.

Section 2 and App. A: two models, the layers at which their streams are stitched, one pass over the training text, and
the exact minimum of Eq. 3. Moments are saved in `artifacts/`, so that another chapter or alpha needs no further pass.

Offers `StitchedPair`, which the experiments take; `fit_pair` and `FittedPair`, for those who want the maps alone;
`SHOWN_LOSSES`; `stitch_file`, the path of a pair's stitch; `preflight`, which finds mistakes before anything heavy is
loaded; and the warnings `ScarceTokens` and `RepeatedText`, each a `DoubtfulFit`.
"""

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ..data.alignment import reader_of_both
from ..data.hub import HubError
from ..data.pairs import ModelPair, Scale, blaming, check_known, check_ridge, load_pair
from ..data.repeats import count_repeats
from ..data.text import PairedBatch, TokenBatch
from ..models.harvest import (
    NormLimits,
    evaluation_batches,
    norm_limits,
    of_activations,
    sample_residuals,
    training_batches,
)
from ..models.language_model import LanguageModel, check_pair, load_models, load_tokenizer, set_threads
from ..utils import ranks
from ..utils.cache import artifact, kept
from ..utils.files import project_root
from .evaluation import CONDITIONS, Fidelity, measure_fidelity
from .fit import RidgeChoice, choose_ridge, fit_exact, scarcity
from .moments import PairMoments, harvest_folds, harvest_moments, load_folds, save_folds, total
from .stitch import Stitch, StitchLoss, stitch_loss
from .streams import StreamShape, describe_streams
from .svcca import svcca_table

# What `fit` says of cross-entropy: {name: (stitch, condition)} of a Fidelity.
SHOWN_LOSSES = {side: ("own", side) for side in "ab"} | {name: ("fitted", name) for name in CONDITIONS}
BYTES_A_TOKEN = 8  # at most, of text as a whole
REPEATED = 0.01  # share of the held-out documents that may stand in the training text by chance
FOLDS = 5  # of the training text, where the ridge is chosen


class DoubtfulFit(UserWarning):
    """What a stitch is fitted or judged on is not enough to trust its losses."""


class ScarceTokens(DoubtfulFit):
    """A stitch is fitted on so few tokens that its maps follow the text."""


class RepeatedText(DoubtfulFit):
    """A stitch is judged on documents that it was fitted on."""


@dataclass(frozen=True, eq=False)
class StitchedPair:
    """A pair whose models are loaded, at one scale. Moments and stitch are computed when they are first asked for."""

    pair: ModelPair
    models: tuple[LanguageModel, LanguageModel]
    layers: tuple[int, int]
    """The block of each model before which its stream is stitched."""
    scale: str
    """The name of the scale: `smoke`, `default` or `paper`."""
    alpha: float = 1.0
    """The weight of the inversion terms of Eq. 3."""
    ridge: float | str | None = None
    """The ridge of `fit_exact`, or `auto` for one that `choose_ridge` finds; None takes what the pair's file says."""

    def __post_init__(self):
        if self.ridge is None:
            object.__setattr__(self, "ridge", self.pair.ridge)
        check_ridge(self.ridge)

    @classmethod
    def open(
        cls,
        pair: str | Path | ModelPair,
        scale: str = "default",
        *,
        alpha: float = 1.0,
        ridge: float | str | None = None,
        variance: float = 0.99,
        device: str | None = None,
    ) -> "StitchedPair":
        """Load the models of a pair (a name, a pair file, or a `ModelPair`) and find its layers.

        The threads that the pair's file fixes are set for the whole process; the models stay in memory for the next
        call. Where the pair names no layer of B, it is the one most like A's (App. A.1), by `svcca_table` with
        `variance`. ValueError for an unknown pair or scale, and for a mistake in the pair's file.
        """
        pair = pair if isinstance(pair, ModelPair) else load_pair(pair)
        sizes = pair.scale(scale)
        check_ridge(pair.ridge if ridge is None else ridge)
        set_threads(pair)
        models, layer_a, layer_b = load_models(pair, device), pair.a.layer, pair.b.layer
        assert layer_a is not None  # a ModelPair without one cannot be made
        if layer_b is None:
            layer_b = ranks.from_first(lambda: _most_alike(pair, sizes, models, layer_a, variance))
        return cls(pair, models, (layer_a, layer_b), scale, alpha, ridge)

    @property
    def name(self) -> str:
        return self.pair.name

    @property
    def sizes(self) -> Scale:
        """The sizes of harvests and SAE trainings at this scale."""
        return self.pair.scale(self.scale)

    def sizes_of(self, experiment: str) -> dict[str, Any]:
        """Look up the sizes of an experiment at this scale, by the names that its configuration gives them."""
        return self.pair.sizes_of(experiment, self.scale)

    @property
    def tokenizers(self) -> tuple:
        """The tokenizers of A and of B."""
        return self.models[0].tokenizer, self.models[1].tokenizer

    @property
    def tokenizer(self):
        """The tokenizer that reads for both models; ValueError where theirs split text in different ways."""
        if (both := reader_of_both(*self.tokenizers)) is None:
            raise ValueError(
                f"the models of pair {self.name!r} have different tokenizers: here both must read the same"
            )
        return both

    @property
    def is_stand_in(self) -> bool:
        """Whether a model has random weights under the name of a real one, as the tests' Hub serves them."""
        return any(getattr(model.config, "stand_in", False) for model in self.models)

    def side(self, name: str) -> tuple[LanguageModel, int]:
        """Give the model and the stitched layer of side `a` or `b`; ValueError for another."""
        sides = dict(zip("ab", zip(self.models, self.layers)))
        check_known("side", name, sides)
        return sides[name]

    def training_batches(self, n_tokens: int | None = None) -> Iterator[PairedBatch]:
        """Give the first `n_tokens` positions of the training text, by default as many as the scale takes."""
        return training_batches(self.pair, self.sizes, self.tokenizers, n_tokens or self.sizes.train_tokens)

    def evaluation_batches(self, documents: int | None = None) -> Iterator[PairedBatch]:
        """Give the documents of the evaluation text that the scale takes, or the first of them, so many at most."""
        taken = min(self.sizes.eval_documents, documents or self.sizes.eval_documents)
        return evaluation_batches(self.pair, replace(self.sizes, eval_documents=taken), self.tokenizers)

    def training_rows(self, side: str) -> Iterator[TokenBatch]:
        """Give the training text in the tokens of model `a` or `b`."""
        return (getattr(batch, side) for batch in self.training_batches())

    def evaluation_rows(self, side: str) -> Iterator[TokenBatch]:
        """Give the evaluation text in the tokens of model `a` or `b`."""
        return (getattr(batch, side) for batch in self.evaluation_batches())

    @functools.cached_property
    def limits(self) -> NormLimits | None:
        """The norms beyond which the pair's file has tokens left out, by the SVCCA sample of the training text."""
        if self.pair.outliers is None:
            return None
        batches = self.training_batches(self.sizes.svcca_tokens)
        beyond = self.pair.outliers.beyond
        return ranks.from_first(lambda: norm_limits(self.models, self.layers, batches, beyond=beyond))

    def limit(self, side: str) -> float:
        """Return the norm beyond which tokens of model `a` or `b` are left out; infinite if none are."""
        return math.inf if self.limits is None else getattr(self.limits, side)

    @functools.cached_property
    def moments(self) -> PairMoments:
        """The moments of the training text at the stitched layers."""
        return self.harvest()

    def harvest(self, *, anew: bool = False) -> PairMoments:
        """Read the moments from `artifacts/`, or harvest and save them; `anew` harvests in any case."""
        return total(self._folds(anew=anew))

    def _folds(self, *, anew: bool = False) -> list[PairMoments]:
        """Read or harvest the moments by folds of the documents: one where the ridge is a number."""
        count = self._n_folds
        made_of = {"folds": count} if count > 1 else {}
        path = self.artifact("moments", made_of, sources=(harvest_moments,), suffix=".safetensors")

        def make() -> list[PairMoments]:
            batches, limits = self.training_batches(), self.limits
            found = harvest_folds(*self.models, batches, [self.layers], folds=count, limits=limits)
            return [fold[self.layers] for fold in found]

        return kept(path, make, save_folds, load_folds, anew=anew)

    @functools.cached_property
    def held_out_moments(self) -> PairMoments:
        """The moments of the evaluation text at the stitched layers."""
        return self.gather(self.evaluation_batches())

    def gather(self, batches: Iterable[PairedBatch | TokenBatch]) -> PairMoments:
        """Gather the moments of any text at the stitched layers, without the pair's outliers."""
        return harvest_moments(*self.models, batches, [self.layers], limits=self.limits)[self.layers]

    @functools.cached_property
    def ridge_choice(self) -> RidgeChoice | None:
        """The choice of the ridge, where it is `auto`, on documents that are left out of the fit in turn."""
        if self.ridge != "auto":
            return None
        with blaming(self.pair, "ridge: auto"):
            return choose_ridge(self._folds(), alpha=self.alpha)

    @property
    def ridge_used(self) -> float:
        """The ridge that is given or chosen."""
        if self.ridge_choice is not None:
            return self.ridge_choice.ridge
        assert not isinstance(self.ridge, str | None)  # see __post_init__
        return self.ridge

    @functools.cached_property
    def stitch(self) -> Stitch:
        """The exact minimum of Eq. 3 on the training text.

        It warns with `ScarceTokens` where that is too short, and with `RepeatedText` where held-out text repeats it.
        """
        for said, kind in ((scarcity(self.moments), ScarceTokens), (self.repeats, RepeatedText)):
            if said:
                warnings.warn(said, kind, stacklevel=3)
        made_of = {"alpha": self.alpha, "ridge": self.ridge_used, "folds": self._n_folds}
        path = self.artifact("stitch", made_of, sources=(fit_exact, harvest_moments), suffix=".safetensors")
        fit = functools.partial(fit_exact, self.moments, alpha=self.alpha, ridge=self.ridge_used)
        return kept(path, lambda: ranks.from_first(fit), Stitch.save, Stitch.load)

    @functools.cached_property
    def repeats(self) -> str:
        """Say how many held-out documents stand in the training text, too; "" if hardly any do, or one cannot be read.

        The embedded world's are not counted: it has few words, and its short documents recur by chance.
        """
        pair, sizes = self.pair, self.sizes
        if pair.train.source == pair.evaluation.source == "world":
            return ""
        is_packed, tokens = pair.rows == "packed", sizes.train_tokens
        read = {"n_bytes": BYTES_A_TOKEN * tokens} if is_packed else {"n_train": -(-tokens // pair.context)}
        with contextlib.suppress(HubError), blaming(pair, "text"):
            repeated, held = count_repeats(pair.train, pair.evaluation, n_held_out=sizes.eval_documents, **read)
            if repeated > REPEATED * held:
                share = f"{repeated:,} of {held:,} held-out documents ({repeated / held:.1%})"
                return f"{share} stand in the training text, too, so that losses on them flatter the maps"
        return ""

    @property
    def _n_folds(self) -> int:
        return FOLDS if self.ridge == "auto" else 1

    def artifact(
        self, kind: str, ingredients: Mapping = {}, *, sources: Iterable[ModuleType | Callable], suffix: str
    ) -> Path:
        """Name the file of what is made from this pair's activations and `ingredients` (see `utils.cache.artifact`)."""
        made_of = of_activations(self.pair, self.layers, scale=self.scale) | dict(ingredients)
        return artifact(self.name, kind, made_of, sources=sources, suffix=suffix)


def _most_alike(pair: ModelPair, sizes: Scale, models: tuple[LanguageModel, LanguageModel], layer_a, variance) -> int:
    """Find the layer of B that is most like A's, by SVCCA on a sample of the training text (App. A.1)."""
    batches = training_batches(pair, sizes, tuple(model.tokenizer for model in models), sizes.svcca_tokens)
    xs, ys = sample_residuals(*models, batches, layers_a=[layer_a])
    return int(svcca_table(xs, ys, variance=variance)[0].argmax())


class FittedPair(NamedTuple):
    """A stitch, and how good it is."""

    stitch: Stitch
    layers: tuple[int, int]
    tokens: int
    """The number of tokens that it was fitted on."""
    fitted: StitchLoss
    """Eq. 3 on the text that it was fitted on."""
    held_out: StitchLoss
    """Eq. 3 on the evaluation text."""
    unexplained: tuple[float, float]
    """The shares of the variance of y and of x that the maps leave unexplained on the evaluation text."""
    streams: dict[str, StreamShape]
    """Both streams on the evaluation text: norms, massive activations, and what a typical token leaves unexplained."""
    left_out: int
    """The number of tokens that the fit left out as outliers."""
    fidelity: Fidelity
    """Cross-entropy on the evaluation text; the stitch is `fitted`."""
    is_stand_in: bool
    """Whether a model has random weights under the name of a real one."""
    ridge_choice: RidgeChoice | None
    """How the ridge was chosen, if it was."""
    scarcity: str
    """What `ScarceTokens` warns of; "" where tokens are enough."""
    repeats: str
    """What `RepeatedText` warns of; "" where hardly any held-out document stands in the training text."""


def stitch_file(pair: str) -> Path:
    """Name the file where `stitch-book fit` puts the stitch of this pair, and where other commands look for it."""
    return project_root() / "artifacts" / pair / "stitch.safetensors"


def preflight(pair: ModelPair) -> None:
    """Fetch configurations, tokenizers and the first texts; ValueError names the pair, its file and what to do."""
    check_pair(pair)
    # Only the first batch of a text is read, so any scale will do.
    sizes = next(iter(pair.scales.values()))
    with blaming(pair, "models"):
        tokenizers = tuple(load_tokenizer(ref.model, **ref.source) for ref in (pair.a, pair.b))
    for batches in (
        training_batches(pair, sizes, tokenizers, pair.context),
        evaluation_batches(pair, sizes, tokenizers),
    ):
        next(batches)


def fit_pair(
    pair: str | Path | ModelPair, *, scale: str = "default", alpha: float = 1.0, ridge: float | str | None = None
) -> FittedPair:
    """Fit the exact stitch of a pair (Eq. 3) at one of its scales; ValueError for a mistake in the pair's file.

    The processes of a group (`utils.ranks`) gather the moments together; the first alone solves and measures, and each
    gets what it found, so all have to call.
    """
    opened = StitchedPair.open(pair, scale, alpha=alpha, ridge=ridge)
    _ = opened.moments, opened.held_out_moments
    return ranks.from_first(lambda: _measured(opened))


def _measured(opened: StitchedPair) -> FittedPair:
    """Solve for the stitch and measure it on the evaluation text."""
    alpha = opened.alpha
    pair, layers, moments, held_out = opened.pair, opened.layers, opened.moments, opened.held_out_moments
    means, batches = (moments.mean_x, moments.mean_y), list(opened.evaluation_batches())
    streams = describe_streams(opened.models, layers, batches, opened.stitch, means=means)
    stitches, limits = {"fitted": opened.stitch}, opened.limits
    fidelity = measure_fidelity(*opened.models, *layers, stitches, batches, limits=limits)
    fitted, unseen = (stitch_loss(opened.stitch, part, alpha=alpha) for part in (moments, held_out))
    variance_a, variance_b = (covariance.diagonal().mean().item() for covariance in (held_out.cxx, held_out.cyy))
    unexplained = unseen.up / variance_b, unseen.down / variance_a
    # The stitch file carries these facts about itself.
    about = {"pair": pair.name, "a": pair.a.model, "layer_a": layers[0], "b": pair.b.model, "layer_b": layers[1]}
    about |= {"text": pair.train.name, "text_source": pair.train.source, "held_out_text": pair.evaluation.name}
    about |= {"tokens": moments.count, "loss_fitted": fitted._asdict(), "loss_held_out": unseen._asdict()}
    about |= {"unexplained": unexplained, "is_stand_in": opened.is_stand_in}
    about |= {"unexplained_of_the_median_token": [streams["b"].unexplained, streams["a"].unexplained]}
    about |= {"met": [fidelity.met(side).value for side in "ab"]}
    about |= {"cross_entropy": {name: fidelity.cross_entropy(*key).value for name, key in SHOWN_LOSSES.items()}}
    revisions = {"revision_a": pair.a.revision, "revision_b": pair.b.revision, "text_revision": pair.train.revision}
    about |= {name: revision for name, revision in revisions.items() if revision}
    stitch = replace(opened.stitch, about=about)
    said = (
        streams,
        moments.left_out,
        fidelity,
        opened.is_stand_in,
        opened.ridge_choice,
        scarcity(moments),
        opened.repeats,
    )
    return FittedPair(stitch, layers, int(moments.count), fitted, unseen, unexplained, *said)
