r"""The sister paper's multiple-choice experiment: the large model steered by its own vectors and by the small one's.

Bello et al. (arXiv 2506.00653), Table 1. As there, the difference of the logits of two answers under native steering
is correlated with that under mapped steering, over a range of lengths alpha, in units of `vectors.spread`. Two curves
that rise will correlate, however little one of them rises, so beside it stands the ratio of their slopes, and two
controls: a random direction, and the small model's vector through maps that know of no pairs (`stitching.nulls`). The
vectors are `vectors.contrast_vectors`, the questions those of `behaviours`.

Offers `ChoiceConfig`, `steer_choices`, `ChoiceSweep`; `Questions`, `questions`, `logit_differences`, `preference`.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from ..models.generation import encoded
from ..models.language_model import Edit, LanguageModel
from ..utils.progress import progress
from ..utils.stats import Estimate, clopper_pearson, correlations, from_draws, resampled_counts, stratified_mean
from .behaviours import Behaviour, Choice
from .vectors import Directions, add, at_last_tokens

NULLS = ("components", "random")

# Of each question: what comes before its two answers part, and the two tokens with which they do.
Questions = list[tuple[list[int], int, int]]


def questions(model: LanguageModel, choices: Sequence[Choice]) -> Questions:
    """Tokenise prompts with their answers, to judge an answer where it parts from the other.

    ValueError for no choices, and for two answers that part nowhere.
    """
    if not choices:
        raise ValueError("no choices given: expected at least one")
    found = []
    for choice in choices:
        first, second = (encoded(model, choice.prompt + answer, 1) for answer in (choice.matching, choice.other))
        at = next((i for i, (one, other) in enumerate(zip(first, second)) if one != other), None)
        if at is None:
            raise ValueError(f"the answers {choice.matching!r} and {choice.other!r} are one, or begin each other")
        found.append((first[:at], first[at], second[at]))
    return found


def logit_differences(
    model: LanguageModel, asked: Questions, *, layer: int | None = None, edit: Edit | None = None, batch_size: int = 64
) -> Float[np.ndarray, " questions"]:
    """Subtract the logit of the other answer from that of the matching one, at the last token of each prompt."""
    rows, *answers = zip(*asked)
    logits = at_last_tokens(model, rows, functools.partial(model.logits, layer=layer, edit=edit), batch_size=batch_size)
    matching, other = (logits[torch.arange(len(rows)), torch.tensor(answer)] for answer in answers)
    return (matching - other).double().numpy()


def preference(model: LanguageModel, choices: Sequence[Choice], *, batch_size: int = 64) -> Estimate:
    """Measure the share of the choices in which the unsteered model prefers the answer that the prompt calls for.

    Clopper and Pearson's interval; 0.5 is chance. ValueError where no prompt calls for one.
    """
    asked = [choice for choice in choices if choice.called_for is not None]
    if not asked:
        raise ValueError("none of the prompts calls for an answer: expected choices with `called_for`")
    differences = logit_differences(model, questions(model, asked), batch_size=batch_size)
    right = (differences > 0) == np.array([choice.called_for for choice in asked])
    return clopper_pearson(int(right.sum()), len(right))


@dataclass(frozen=True)
class ChoiceConfig:
    """What is run."""

    contrasts: int
    """Pairs of texts that a vector comes from."""
    choices: int
    """Questions of each behaviour."""
    behaviours: int = 0
    """Number of behaviours; 0 for all."""
    doses: tuple[float, ...] = (-0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6)
    """Lengths of what is added, in units of the stream's spread (`vectors.spread`)."""
    batch_size: int = 64
    seed: int = 0
    """Seed of the behaviours' texts, of the random directions and of the bootstrap."""

    def __post_init__(self):
        if len(set(self.doses)) < 3:
            raise ValueError(f"a correlation over doses needs three at least: got {self.doses}")


@dataclass(frozen=True)
class ChoiceSweep:
    """All answers, and what follows from them; intervals are bootstraps over questions."""

    config: ChoiceConfig
    directions: Directions
    """Unit vectors by behaviour and condition."""
    responses: Mapping[tuple[str, str], np.ndarray]
    """Logit differences, (doses, questions), by behaviour and condition."""

    @property
    def behaviours(self) -> tuple[str, ...]:
        return tuple(self.directions)

    def mean_response(self, behaviour: str, condition: str) -> np.ndarray:
        """Average the answers over the questions: (doses,)."""
        return self.responses[behaviour, condition].mean(1)

    def correlation(self, behaviour: str, condition: str) -> Estimate:
        """Correlate the answers to each question with those under native steering, and average over the questions."""
        each = self._each(behaviour, condition)
        return from_draws(each.mean(), self._drawn(len(each)) @ each)

    def lowest_correlation(self, condition: str) -> Estimate:
        """Take the lowest of the behaviours' correlations; each resample of the questions has its own lowest."""
        rows = [self._each(name, condition) for name in self.behaviours]
        draws = np.min([self._drawn(len(each)) @ each for each in rows], axis=0)
        return from_draws(min(each.mean() for each in rows), draws)

    def curve_correlation(self, behaviour: str, condition: str) -> float:
        """Correlate the mean answers with those under native steering."""
        native, other = (self.mean_response(behaviour, which) for which in ("native", condition))
        return float(correlations(native, other))

    def curve_correlation_size(self, condition: str) -> Estimate:
        """Average the size of `curve_correlation` over the behaviours, whichever its sign; questions are drawn anew."""

        def sizes(name: str, weights: np.ndarray) -> np.ndarray:
            return np.abs(correlations(*(weights @ answers.T for answers in self._both(name, condition)), axis=1))

        counts = {name: self._both(name, condition)[0].shape[1] for name in self.behaviours}
        value = float(np.mean([sizes(name, np.full((1, n), 1 / n)) for name, n in counts.items()]))
        return from_draws(value, np.mean([sizes(name, self._drawn(n)) for name, n in counts.items()], axis=0))

    def mean_correlation(self, condition: str) -> Estimate:
        """Average the correlations of all behaviours, with a bootstrap interval over the questions of each."""
        return stratified_mean([self._each(name, condition) for name in self.behaviours], self.config.seed)

    def lead(self, condition: str, over: str, *, elsewhere: "ChoiceSweep | None" = None) -> Estimate:
        """Subtract the correlation of the condition `over` from that of another, question by question.

        `over` may be of a sweep `elsewhere`, with the same questions at another layer.
        """
        pairs = ((self._each(name, condition), (elsewhere or self)._each(name, over)) for name in self.behaviours)
        return stratified_mean([one - other for one, other in pairs], self.config.seed)

    def over_nulls(self, condition: str) -> Estimate:
        """Subtract the correlation of the strongest null from that of a condition, question by question.

        The strongest is taken for each behaviour from `NULLS`, each up or down, by the same questions, in its favour.
        """
        rows = []
        for name in self.behaviours:
            nulls = [sign * self._each(name, null) for null in NULLS for sign in (1, -1)]
            rows.append(self._each(name, condition) - max(nulls, key=np.mean))
        return stratified_mean(rows, self.config.seed)

    def _each(self, behaviour: str, condition: str) -> np.ndarray:
        """Correlate the answers to each question over the doses with those under native steering: (questions,)."""
        return correlations(*self._both(behaviour, condition))

    def slope(self, condition: str, behaviours: Sequence[str] = ()) -> Estimate:
        """Divide the least-squares slope of the mean answers over the doses by that under native steering.

        The mean is over some behaviours, by default all: one that native steering hardly moves counts little. Resamples
        whose native slope is zero are left out. ValueError where it is zero for the questions themselves.
        """
        pairs = [self._both(name, condition) for name in behaviours or self.behaviours]
        fewest = min(native.shape[1] for native, _ in pairs)
        means = (np.mean([answers[:, :fewest] for answers in side], axis=0) for side in zip(*pairs))
        weights = np.asarray(self.config.doses, dtype=float) - np.mean(self.config.doses)
        native, other = (weights @ mean for mean in means)  # up to one factor for both
        if native.mean() == 0:
            raise ValueError("native steering does not move the answers at all: there is nothing to compare with")
        below, above = (self._drawn(fewest) @ slopes for slopes in (native, other))
        return from_draws(other.mean() / native.mean(), above[below != 0] / below[below != 0])

    def _both(self, behaviour: str, condition: str) -> tuple[np.ndarray, np.ndarray]:
        return self.responses[behaviour, "native"], self.responses[behaviour, condition]

    def _drawn(self, questions: int) -> np.ndarray:
        """Draw questions anew: how often each is drawn, as shares, (resamples, questions)."""
        return resampled_counts(questions, self.config.seed) / questions

    def mean_cosine(self, condition: str) -> float:
        """Average, over the behaviours, the cosine between the direction and the native one."""
        both = ((found["native"].double(), found[condition].double()) for found in self.directions.values())
        return float(np.mean([torch.cosine_similarity(own, other, dim=0).item() for own, other in both]))

    def likeness(self, condition: str) -> float:
        """Average the cosine between the directions of two behaviours: near 1 where all have become one direction."""
        between, n = self._between(condition), len(self.behaviours)
        return float(between.sum() / max(1, n * (n - 1)))

    def likeness_gain(self, condition: str, over: str) -> Estimate:
        """Subtract the `likeness` of the condition `over` from that of another; behaviours are drawn anew.

        Two of one behaviour are no pair, and resamples without a pair are left out. Fewer than three behaviours say
        nothing: the interval is then as wide as it can be.
        """
        more, n = self._between(condition) - self._between(over), len(self.behaviours)
        value = float(more.sum() / max(1, n * (n - 1)))
        if n < 3:
            return Estimate(value, -2.0, 2.0)
        counts = resampled_counts(n, self.config.seed)
        pairs = n**2 - (counts**2).sum(1)
        sums = ((counts @ more) * counts).sum(1)
        return from_draws(value, sums[pairs > 0] / pairs[pairs > 0])

    def _between(self, condition: str) -> np.ndarray:
        """Compute the cosines between the directions of each two behaviours, with zeros on the diagonal."""
        rows = torch.stack([found[condition].double() for found in self.directions.values()])
        rows = rows / rows.norm(dim=1, keepdim=True)
        return (rows @ rows.T).fill_diagonal_(0).numpy()


def steer_choices(
    model: LanguageModel,
    layer: int,
    some: Sequence[Behaviour],
    directions: Directions,
    config: ChoiceConfig,
    *,
    unit: float,
) -> ChoiceSweep:
    """Measure the answers to each behaviour's questions under each of its directions at each dose; `unit` is dose 1."""
    responses = {}
    for one in progress(some, "behaviours"):
        asked = questions(model, one.choices)
        measure = functools.partial(logit_differences, model, asked, batch_size=config.batch_size)
        unsteered = measure()
        for condition, direction in progress(directions[one.name].items(), "doses"):
            edits = [add(direction, dose * unit) if dose else None for dose in config.doses]
            rows = [measure(layer=layer, edit=edit) if edit else unsteered for edit in edits]
            responses[one.name, condition] = np.stack(rows)
    return ChoiceSweep(config, {one.name: directions[one.name] for one in some}, responses)
