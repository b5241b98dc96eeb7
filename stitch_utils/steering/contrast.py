r"""Contrastive activation addition: the sister paper's way to steer, with vectors of its own and of another model.

Bello et al. (arXiv 2506.00653). With pairs of texts that have a behaviour and lack it, and h(t) the residual stream at
the last token of t,

    v = mean over pairs of  h(t+) - h(t-),        h' = h + alpha v / ||v||  at every position,

and v of the small model becomes one of the large model as v A + p, bias included. The main paper clamps instead of
adding (`steering.clamp`) and carries v over without the bias: the difference of two images has none,
(x A + p) - (x' A + p) = (x - x') A. With it, the vector is pulled towards p, more so the shorter v is, and vectors of
different behaviours become alike. Both come from `steering.transfer_vector`.

Whether the large model does the same under both vectors is asked as that paper's Table 1 does: over a range of alpha,
the difference of the logits of two answers under native and under mapped steering, and their correlation. Two curves
that rise will correlate, however little one of them rises, so beside it stands the ratio of their slopes, and a random
direction.

Offers `contrast_vector`, `Questions`, `questions`, `logit_differences`, `preference`, `dose_responses`,
`each_correlation`, `correlation`, `curve_correlation`, `relative_slope`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..data.text import TokenBatch, begin_and_end, padded_rows
from ..models.generation import encoded
from ..models.harvest import as_fits
from ..models.language_model import Edit, LanguageModel
from ..utils.progress import progress
from ..utils.stats import Estimate, clopper_pearson, from_draws, resampled_counts
from .behaviours import Choice
from .instructions import instruction_means
from .vectors import add

ANSWER = 1  # room for an answer, where prompts are only read


def contrast_vector(
    model: LanguageModel, layer: int, pairs: Sequence[tuple[str, str]], *, batch_size: int = 64
) -> Float[Tensor, " d_model"]:
    """Mean difference of the stream before block `layer` at the last token of (with, without) texts; float64, on the
    CPU, at its own length. ValueError for no pairs."""
    if not pairs:
        raise ValueError("no contrast pairs given: expected at least one")
    means = instruction_means(model, layer, *zip(*pairs), batch_size=batch_size)
    return means.target - means.source


class Questions(NamedTuple):
    """Choices as tokens: what comes before the two answers part, and the tokens with which they do."""

    rows: tuple[tuple[int, ...], ...]
    matching: tuple[int, ...]
    other: tuple[int, ...]


def questions(model: LanguageModel, choices: Sequence[Choice]) -> Questions:
    """Prompt and answer are tokenised together, so an answer of several tokens is judged where it parts from the other.

    ValueError for no choices, and for two answers that part nowhere.
    """
    if not choices:
        raise ValueError("no choices given: expected at least one")
    found = []
    for choice in choices:
        first, second = (encoded(model, choice.prompt + answer, ANSWER) for answer in (choice.matching, choice.other))
        at = next((i for i, both in enumerate(zip(first, second)) if both[0] != both[1]), None)
        if at is None:
            raise ValueError(f"the answers {choice.matching!r} and {choice.other!r} are one, or begin each other")
        found.append((tuple(first[:at]), first[at], second[at]))
    return Questions(*zip(*found))


def logit_differences(
    model: LanguageModel, asked: Questions, *, layer: int | None = None, edit: Edit | None = None, batch_size: int = 64
) -> Float[np.ndarray, " questions"]:
    """Logit of the matching answer less that of the other, at the last token of each prompt."""
    matching, other = (torch.tensor(ids) for ids in asked[1:])
    found = np.zeros(len(asked.rows))

    def read(batch: TokenBatch) -> tuple[Tensor, np.ndarray]:
        owners, last = batch.documents[:, 0], batch.mask.sum(1) - 1
        rows = torch.arange(len(last))
        logits = model.logits(batch.tokens, layer=layer, edit=edit)[rows, last].float().cpu()
        return owners, (logits[rows, matching[owners]] - logits[rows, other[owners]]).numpy()

    for owners, values in as_fits(
        padded_rows(asked.rows, begin_and_end(model.tokenizer)[1], batch_size=batch_size), read
    ):
        found[owners.numpy()] = values
    return found


def preference(model: LanguageModel, choices: Sequence[Choice], *, batch_size: int = 64) -> Estimate:
    """Share of the choices in which the model, not steered, prefers the answer that the prompt calls for.

    Clopper and Pearson's interval; 0.5 is chance. ValueError where no prompt calls for one.
    """
    asked = [choice for choice in choices if choice.called_for is not None]
    if not asked:
        raise ValueError("none of the prompts calls for an answer: expected choices with `called_for`")
    differences = logit_differences(model, questions(model, asked), batch_size=batch_size)
    right = (differences > 0) == np.array([choice.called_for for choice in asked])
    return clopper_pearson(int(right.sum()), len(right))


def dose_responses(
    model: LanguageModel,
    layer: int,
    asked: Questions,
    directions: Mapping[str, Float[Tensor, " d_model"]],
    alphas: Sequence[float],
    *,
    batch_size: int = 64,
) -> dict[str, Float[np.ndarray, "alphas questions"]]:
    """`logit_differences` with each direction added at each length; without any, at alpha = 0, once for all."""
    own = logit_differences(model, asked, batch_size=batch_size) if 0 in alphas else None
    found = {}
    for name, direction in progress(directions.items(), "doses"):
        found[name] = np.stack(
            [
                own
                if alpha == 0
                else logit_differences(model, asked, layer=layer, edit=add(direction, alpha), batch_size=batch_size)
                for alpha in alphas
            ]
        )
    return found


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Along the first axis; 0 where one side does not vary."""
    x, y = x - x.mean(0), y - y.mean(0)
    norms = np.sqrt((x**2).sum(0) * (y**2).sum(0))
    return np.divide((x * y).sum(0), norms, out=np.zeros_like(norms), where=norms > 1e-12)


def _check(native: np.ndarray, other: np.ndarray) -> None:
    if native.shape != other.shape or native.ndim != 2 or len(native) < 3:
        raise ValueError(
            f"dose-responses of shapes {native.shape} and {other.shape}: expected the same questions at the same three "
            "or more strengths"
        )


def _drawn(n: int, seed: int) -> np.ndarray:
    """(resamples, n): how often each question is drawn, as shares."""
    return resampled_counts(n, seed) / n


def each_correlation(
    native: Float[np.ndarray, "alphas questions"], other: Float[np.ndarray, "_ _"]
) -> Float[np.ndarray, " questions"]:
    """Pearson's correlation over alpha of the two responses to each question; 0 where one of them does not move.

    ValueError for responses to different questions, or fewer than three strengths.
    """
    _check(native, other)
    return _pearson(native, other)


def correlation(
    native: Float[np.ndarray, "alphas questions"], other: Float[np.ndarray, "_ _"], *, seed: int = 0
) -> Estimate:
    """Mean of `each_correlation`, with a bootstrap interval over questions."""
    each = each_correlation(native, other)
    return from_draws(each.mean(), _drawn(len(each), seed) @ each)


def curve_correlation(
    native: Float[np.ndarray, "alphas questions"], other: Float[np.ndarray, "_ _"], *, seed: int = 0
) -> Estimate:
    """Pearson's correlation over alpha of the two curves of means, with an interval as in `correlation`."""
    _check(native, other)
    drawn = _drawn(native.shape[1], seed)
    value = _pearson(native.mean(1), other.mean(1))
    return from_draws(float(value), _pearson(native @ drawn.T, other @ drawn.T))


def relative_slope(
    native: Float[np.ndarray, "alphas questions"],
    other: Float[np.ndarray, "_ _"],
    alphas: Sequence[float],
    *,
    seed: int = 0,
) -> Estimate:
    """Least-squares slope of the mean response over alpha, other over native: 1 where it steers as far a step.

    Interval as in `correlation`; resamples in which the native slope is zero are left out. ValueError where it is zero
    for the questions themselves.
    """
    _check(native, other)
    weights = np.asarray(alphas, dtype=float) - np.mean(alphas)
    slopes = [weights @ responses for responses in (native, other)]  # (questions,), up to one factor for both
    if slopes[0].mean() == 0:
        raise ValueError("native steering does not move the answers at all: there is nothing to compare with")
    drawn = _drawn(native.shape[1], seed)
    below, above = drawn @ slopes[0], drawn @ slopes[1]
    return from_draws(slopes[1].mean() / slopes[0].mean(), above[below != 0] / below[below != 0])
