r"""Sparse probes, and what becomes of them when an SAE, or a probe itself, is carried to another model.

Section 4 and App. E (Figs. 3a, 9, 10). The features that a probe may look at are those whose mean activation differs
most between the texts that have a property and those that do not,

    F_k = argTopK_i ( E_{x in D+} f_i(x) - E_{x in D-} f_i(x) )      (7)

with activations averaged over a text's ordinary tokens, and the probe is a logistic regression on these k numbers. An
SAE of A that is carried to B by Eq. 6 computes f(down(y)), so features and probe found on A can be used on B as they
are ("transferred"), or the probe alone be fitted anew there ("retrained"). A dense probe w, b of A needs no SAE: on
down(y) it is the probe w P_down^T, b + b_down . w of y, and since all of it is affine, so it is on means.

Offers `mean_activations`, `choose_features`, `Probe`, `fit_probe`, `transfer_probe`, `carried_weights`,
`probe_curves`, `ProbeCurves`, `probe_numbers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ..data.text import TokenBatch, text_rows
from ..models.harvest import TOKENS_AT_ONCE, as_fits
from ..models.language_model import LanguageModel
from ..saes.transfer import transfer_sae
from ..stitching.stitch import Stitch
from ..utils.progress import progress
from ..utils.stats import Estimate, from_draws, resampled_counts
from .tasks import ProbingTask

KS = (1, 2, 5, 10, 20, 50)
CONTEXT = 128  # SAEBench's
MAX_ITERATIONS = 1000
SPARSE = ("original", "native", "transferred", "retrained", "random")
DENSE = ("dense.original", "dense.native", "dense.transferred")

# (n, d_model) -> (n, m), of single tokens.
Encoder = Callable[[Tensor], Tensor]


def mean_activations(
    model: LanguageModel,
    layer: int,
    texts: Sequence[str],
    encoders: Mapping[str, Encoder],
    *,
    context: int = CONTEXT,
    batch_size: int = 64,
) -> dict[str, Float[np.ndarray, "texts _"]]:
    """Each encoder's output for the residual stream before `layer`, averaged over the ordinary tokens of each text.

    Texts are cut at `context` tokens, the beginning-of-text token included, and every one is read once for all
    encoders. Nothing is kept of single tokens. ValueError for a text without an ordinary token.
    """

    @torch.no_grad()
    def read(batch: TokenBatch) -> tuple[list[int], dict[str, np.ndarray]]:
        mask = batch.mask.to(model.device)
        if not mask.any(1).all():
            text = texts[batch.documents[int((~mask.any(1)).nonzero()[0, 0]), 0]]
            raise ValueError(f"the text {text[:40]!r} has no ordinary token: expected at least one")
        y = model.residuals(batch.tokens, [layer])[layer][mask].float()  # (n, d_model)
        rows = mask.nonzero()[:, 0]
        counts = mask.sum(1, keepdim=True)
        means = {}
        for name, encoder in encoders.items():
            total: Tensor | None = None
            for part, owner in zip(y.split(TOKENS_AT_ONCE), rows.split(TOKENS_AT_ONCE)):
                values = encoder(part)
                if total is None:
                    total = values.new_zeros(len(mask), values.shape[1])
                total.index_add_(0, owner.to(values.device), values)
            means[name] = (total / counts.to(total)).float().cpu().numpy()
        return batch.documents[:, 0].tolist(), means

    batches = text_rows(texts, model.tokenizer, context=context, batch_size=batch_size)
    found: dict[str, np.ndarray] = {}
    for owners, means in as_fits(batches, read):
        for name, values in means.items():
            found.setdefault(name, np.zeros((len(texts), values.shape[1]), np.float32))[owners] = values
    return found


def choose_features(
    activations: Float[np.ndarray, "texts features"],
    labels: Bool[np.ndarray, " texts"],
    k: int,
    *,
    absolute: bool = False,
) -> Int[np.ndarray, " k"]:
    """Eq. 7: the `k` features with the largest difference of class means, the largest first; of equals, the first.

    `absolute` ranks by its size, as SAEBench does, so that features of the other class count too. ValueError for more
    features than there are, and for one class alone.
    """
    if not 1 <= k <= activations.shape[1]:
        raise ValueError(f"k must lie between 1 and the {activations.shape[1]} features: got {k}")
    _check_classes(labels)
    difference = activations[labels].mean(0, dtype=np.float64) - activations[~labels].mean(0, dtype=np.float64)
    return np.argsort(-np.abs(difference) if absolute else -difference, kind="stable")[:k]


def _check_classes(labels: np.ndarray) -> None:
    if labels.all() or not labels.any():
        raise ValueError(f"all {len(labels)} texts are of one class: expected two")


class Probe(NamedTuple):
    """Says yes where activations @ weight + bias > 0."""

    weight: Float[np.ndarray, " features"]
    bias: float

    def predict(self, activations: Float[np.ndarray, "texts features"]) -> Bool[np.ndarray, " texts"]:
        return activations @ self.weight + self.bias > 0


def fit_probe(
    activations: Float[np.ndarray, "texts features"], labels: Bool[np.ndarray, " texts"], *, seed: int = 0
) -> Probe:
    """A logistic regression of activations as they are, with scikit-learn's defaults (L2, C = 1) and 1000 iterations.

    They are standardised for the fit, so that the penalty treats all alike, and the scales then written into the
    weights. ValueError for one class alone.
    """
    _check_classes(labels)
    x = activations.astype(np.float64)
    centre, scale = x.mean(0), x.std(0)
    scale[np.ptp(x, axis=0) == 0] = 1  # of a feature that says nothing
    fitted = LogisticRegression(max_iter=MAX_ITERATIONS, random_state=seed).fit((x - centre) / scale, labels)
    weight = fitted.coef_[0] / scale
    return Probe(weight, float(fitted.intercept_[0] - centre @ weight))


def transfer_probe(weight: Float[np.ndarray, " d_a"], bias: float, stitch: Stitch) -> Probe:
    """The probe of y that says what this probe of A says of down(y); ValueError for another width."""
    moved, intercept = carried_weights(weight, bias, stitch)
    return Probe(moved, float(intercept))


def carried_weights(
    weight: Float[np.ndarray, "*classes d_from"],
    bias: Float[np.ndarray, "*classes"] | float,
    stitch: Stitch,
    *,
    towards: str = "b",
) -> tuple[Float[np.ndarray, "*classes d_to"], Float[np.ndarray, "*classes"] | float]:
    """Weights and biases on y (`towards="b"`; on x, `"a"`) of linear probes of the other model, in float64: what they
    say of the stitched stream.

    ValueError for another `towards` or width.
    """
    if towards not in ("a", "b"):
        raise ValueError(f"towards={towards!r}: expected 'a' or 'b', the model in which the probe is wanted")
    maps = (stitch.P_down, stitch.b_down) if towards == "b" else (stitch.P_up, stitch.b_up)
    matrix, offset = (part.detach().cpu().double().numpy() for part in maps)
    if weight.shape[-1] != len(offset):
        source = "a" if towards == "b" else "b"
        raise ValueError(
            f"the probe reads {weight.shape[-1]} dimensions: expected {len(offset)}, the width of model {source}"
        )
    return weight @ matrix.T, bias + weight @ offset


class ProbeCurves(NamedTuple):
    """How often probes are right on texts they were not fitted on.

    Curves are named as in `SPARSE` and `DENSE`, and `one_token`: what the presence of a single token tells, so that
    it shows which concepts take no model at all.
    """

    tasks: tuple[ProbingTask, ...]
    ks: tuple[int, ...]
    correct: Mapping[tuple[str, int | None], tuple[np.ndarray, ...]]
    """By curve and k (None where there is none) and by task: (runs, texts), whether each text is judged rightly."""
    draws: Mapping[tuple[str, int | None], Mapping[str, np.ndarray]]
    """Mean accuracy of a data set's tasks, and the same of each resample of its texts."""

    @property
    def datasets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(task.dataset for task in self.tasks))

    @property
    def there(self) -> tuple[str, ...]:
        """The data sets that have something to transfer: the better of B's own probes, those on its SAE over all ks or
        the dense one, is right in more than half of the texts, by its 95% interval."""

        def best(name: str) -> Estimate:
            return max(self.accuracy(curve, datasets=[name]) for curve in ("native", "dense.native"))

        return tuple(name for name in self.datasets if best(name).low > 0.5)

    def accuracy(self, curve: str, k: int | None = None, *, datasets: Sequence[str] = ()) -> Estimate:
        """Mean over data sets (all, or those named) at one k; without k, over all ks. 95% over texts, and seeds."""
        return _estimate(self._drawn(curve, k, datasets))

    def difference(self, first: str, second: str, k: int | None = None, *, datasets: Sequence[str] = ()) -> Estimate:
        """Accuracy of one curve minus that of another, on the same resamples."""
        return _estimate(self._drawn(first, k, datasets) - self._drawn(second, k, datasets))

    def panel(self, datasets: Sequence[str] = ()) -> tuple[dict[str, dict[int, Estimate]], dict[str, Estimate]]:
        """What a figure shows: the sparse curves of B over k, and the dense probes of B."""
        shown = [curve for curve in SPARSE if curve != "original"]
        sparse = {curve: {k: self.accuracy(curve, k, datasets=datasets) for k in self.ks} for curve in shown}
        return sparse, {curve: self.accuracy(curve, datasets=datasets) for curve in DENSE if curve != "dense.original"}

    def _drawn(self, curve: str, k: int | None, datasets: Sequence[str]) -> np.ndarray:
        if unknown := sorted(set(datasets) - set(self.datasets)):
            raise ValueError(f"unknown data set {unknown[0]!r}: known are {', '.join(self.datasets)}")
        ks = [k] if k is not None or curve not in SPARSE else self.ks
        if missing := [k for k in ks if (curve, k) not in self.draws]:
            raise ValueError(f"there is no curve {curve!r} at k={missing[0]}")
        return np.mean([self.draws[curve, k][name] for k in ks for name in datasets or self.datasets], axis=0)


def probe_numbers(curves: ProbeCurves, pair: str) -> dict[str, float]:
    """The entries of a results file: Fig. 3a, each panel of Fig. 9, and how far the sets fall short without retraining.

    `reused_over_random` is what carried probes are ahead of random features at one k, on the same resamples.
    A gap is B's own SAE minus a curve, over all ks; `other` are the sets that are neither code nor language. `sets` are
    shares of the data sets that have something to transfer: where reused probes are better than random ones beyond
    doubt, where retrained ones come within .03 of B's own, and where B's own are better than a single token beyond
    doubt; of all sets, `there` is the share that has. A set without says nothing of the transfer, and its retrained
    probes would be as near as can be; where none has anything, there are no shares.
    """
    numbers: dict[str, float] = {}
    panels: dict[str, list[str]] = {f"figure3a.{pair}": []}
    panels |= {f"figure9.{pair}.{name}": [name] for name in curves.datasets}
    for start, datasets in panels.items():
        for curve in SPARSE:
            for k in curves.ks:
                numbers |= curves.accuracy(curve, k, datasets=datasets).numbers(f"{start}.k_{k}.{curve}")
            numbers |= curves.accuracy(curve, datasets=datasets).numbers(f"{start}.mean.{curve}")
        for curve in (*DENSE, "one_token"):
            numbers |= curves.accuracy(curve, datasets=datasets).numbers(f"{start}.{curve}")
    for k in curves.ks:
        ahead = curves.difference("transferred", "random", k)
        numbers |= ahead.numbers(f"figure3a.{pair}.k_{k}.reused_over_random")
    hard = [name for name in ("code", "language") if name in curves.datasets]
    groups = {name: [name] for name in hard} | {"other": [name for name in curves.datasets if name not in hard]}
    for group, datasets in groups.items():
        for curve in ("transferred", "retrained") if datasets else ():
            gap = curves.difference("native", curve, datasets=datasets)
            numbers |= gap.numbers(f"figure9.{pair}.gap.{group}.{curve}")
    there = curves.there
    numbers[f"figure9.{pair}.sets.there"] = len(there) / len(curves.datasets)

    def ahead_of(first: str, second: str) -> list[bool]:
        return [curves.difference(first, second, datasets=[name]).low > 0 for name in there]

    counted = {
        "reused_beat_random": ahead_of("transferred", "random"),
        "retrained_recover": [
            curves.difference("native", "retrained", datasets=[name]).value <= 0.03 for name in there
        ],
        "native_beats_token": ahead_of("native", "one_token"),
    }
    numbers |= {
        f"figure9.{pair}.sets.{quantity}": sum(found) / len(found) for quantity, found in counted.items() if found
    }
    return numbers


def _estimate(draws: np.ndarray) -> Estimate:
    return from_draws(draws[0], draws[1:])


def probe_curves(
    models: tuple[LanguageModel, LanguageModel],
    layers: tuple[int, int],
    saes: tuple[SAE, SAE],
    stitch: Stitch,
    tasks: Sequence[ProbingTask],
    *,
    ks: Sequence[int] = KS,
    absolute: bool = False,
    context: int = CONTEXT,
    batch_size: int = 64,
    n_random: int = 3,
    seed: int = 0,
) -> ProbeCurves:
    """Figs. 3a and 9 for all tasks: probes of A's features on A and, by the stitch, on B; of B's own; dense ones.

    Random features are drawn `n_random` times among those of B's SAE that fire on a training text. Each model reads
    each text of a data set once.
    """
    if not tasks or n_random < 1 or not ks:
        raise ValueError(f"expected tasks, ks and random draws: got {len(tasks)}, {len(ks)} and {n_random}")
    (model_a, model_b), (sae_a, sae_b) = models, saes
    of_a = {"sae": _encoder(sae_a), "dense": _itself}
    of_b = {"native": _encoder(sae_b), "transferred": _encoder(transfer_sae(sae_a, stitch)), "dense": _itself}
    groups: dict[str, list[ProbingTask]] = {}
    for task in tasks:
        groups.setdefault(task.dataset, []).append(task)
    correct: dict[tuple[str, int | None], list[np.ndarray]] = {}
    draws: dict[tuple[str, int | None], dict[str, np.ndarray]] = {}
    for dataset, group in progress(groups.items(), "probes"):
        texts = list(dict.fromkeys(text for task in group for text in (*task.train_texts, *task.test_texts)))
        places = {text: place for place, text in enumerate(texts)}
        read = {"context": context, "batch_size": batch_size}
        a = mean_activations(model_a, layers[0], texts, of_a, **read)
        b = mean_activations(model_b, layers[1], texts, of_b, **read)
        tokens = [set(row[: context - 1]) for row in model_b.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        tested = []
        for task in group:
            train, test = ([places[text] for text in part] for part in (task.train_texts, task.test_texts))
            tested.append(test)
            options = {"ks": ks, "absolute": absolute, "n_random": n_random, "seed": seed}
            said = _task(task, a, b, train, test, stitch, **options)
            said["one_token", None] = _one_token(task, [tokens[place] for place in train + test])
            for curve, answers in said.items():
                correct.setdefault(curve, []).append(answers == np.array(task.test_labels))
        for curve, parts in correct.items():
            some = parts[-len(group) :]
            draws.setdefault(curve, {})[dataset] = _resample(some, tested, f"{seed}:{dataset}")
        del a, b  # before those of the next set: for 12,500 texts and 32k latents they take 5 GB
    ordered = tuple(task for group in groups.values() for task in group)
    return ProbeCurves(ordered, tuple(ks), {curve: tuple(parts) for curve, parts in correct.items()}, draws)


def _encoder(sae: SAE) -> Encoder:
    return lambda y: sae.encode(y.to(sae.W_enc))


def _itself(y: Tensor) -> Tensor:
    return y


def _task(task, a, b, train, test, stitch, *, ks, absolute, n_random, seed) -> dict[tuple[str, int | None], np.ndarray]:
    """What every curve's probe says of the texts to test: (runs, texts)."""
    labels = np.array(task.train_labels)
    largest = max(ks)
    of_a = choose_features(a["sae"][train], labels, largest, absolute=absolute)
    trained = b["native"][train]
    of_b, fires = choose_features(trained, labels, largest, absolute=absolute), (trained > 0).any(0)
    drawn = []
    for run in range(n_random):
        order = np.random.default_rng(_number(f"{seed}:{task.name}:{run}")).permutation(len(fires))
        drawn.append(order[np.argsort(~fires[order], kind="stable")][:largest])  # silent ones last
    said = {}

    def fit(values: np.ndarray) -> Probe:
        return fit_probe(values[train], labels, seed=seed)

    for k in ks:
        x, y = a["sae"][:, of_a[:k]], b["transferred"][:, of_a[:k]]
        probe = fit(x)
        said["original", k] = probe.predict(x[test])[None]
        said["transferred", k] = probe.predict(y[test])[None]
        said["retrained", k] = fit(y).predict(y[test])[None]
        native = b["native"][:, of_b[:k]]
        said["native", k] = fit(native).predict(native[test])[None]
        others = [b["native"][:, chosen[:k]] for chosen in drawn]
        said["random", k] = np.stack([fit(values).predict(values[test]) for values in others])
    probe = fit(a["dense"])
    said["dense.original", None] = probe.predict(a["dense"][test])[None]
    said["dense.transferred", None] = transfer_probe(*probe, stitch).predict(b["dense"][test])[None]
    said["dense.native", None] = fit(b["dense"]).predict(b["dense"][test])[None]
    return said


def _one_token(task: ProbingTask, tokens: list[set[int]]) -> np.ndarray:
    """Whether a text holds the token, or lacks it, that best tells the training texts apart: (1, texts)."""
    balance: dict[int, int] = {}
    for found, label in zip(tokens, task.train_labels):
        for token in found:
            balance[token] = balance.get(token, 0) + (1 if label else -1)
    best = max(sorted(balance), key=lambda token: abs(balance[token]))
    return np.array([[(best in found) == (balance[best] > 0) for found in tokens[len(task.train_labels) :]]])


def _resample(correct: Sequence[np.ndarray], places: Sequence[Sequence[int]], seed: str) -> np.ndarray:
    """Mean accuracy over the tasks of a data set, as it is and in resamples of its texts: (1 + resamples,).

    Tasks of one data set share texts, so its texts are drawn once for all of them, and for all curves alike. Where a
    curve has several runs, those are drawn too.
    """
    known = sorted({place for task in places for place in task})
    rng = np.random.default_rng(_number(seed))
    weights = resampled_counts(len(known), rng)
    weights = np.concatenate([np.ones((1, len(known)), int), weights])
    of_tasks = []
    for answers, task in zip(correct, places):
        own = weights[:, np.searchsorted(known, task)]  # (1 + resamples, texts)
        drawn = own.sum(1, keepdims=True)
        # Of very few texts a resample may hold none: then all of them count.
        shares = np.where(drawn, own @ answers.T / np.maximum(drawn, 1), answers.mean(1))  # (1 + resamples, runs)
        runs = resampled_counts(len(answers), rng)
        runs = np.concatenate([np.ones((1, len(answers)), int), runs])
        of_tasks.append((shares * runs).sum(1) / len(answers))
    return np.mean(of_tasks, axis=0)


def _number(seed: str) -> list[int]:
    """A seed that a text makes, the same in every process."""
    return list(seed.encode())
