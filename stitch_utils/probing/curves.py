r"""The experiment on probes: how often they are right, once an SAE, or a probe itself, is carried to another model.

Section 4 and App. E (Figs. 3a, 9, 10). An SAE of A that is carried to B by Eq. 6 computes f(down(y)). So features and
probe found on A can be used on B as they are ("transferred"), or the probe alone be fitted anew there ("retrained").
Beside them are probes of an SAE of B ("native"), of random features of that SAE, dense ones, what the presence of a
single token tells, and nulls: features and probes of A that are carried by a stitch that knows no pairing
("components", as they are and retrained).

Offers `probe_curves` and `ProbeCurves`, and `SPARSE` and `DENSE`, the names of curves.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from sae_lens import SAE

from ..saes.transfer import transfer_sae
from ..stitching.pair import StitchedPair
from ..stitching.stitch import Stitch
from ..utils.progress import progress
from ..utils.stats import Estimate, from_resamples, resampled_counts
from .probes import CONTEXT, Encoder, LinearProbe, choose_features, fit_probe, mean_activations, transfer_probe
from .tasks import ProbingTask

SPARSE = ("original", "native", "transferred", "retrained", "random", "components", "components_retrained")
DENSE = ("dense.original", "dense.native", "dense.transferred", "dense.components")
# {curve: those from which it is subtracted, on the same texts}
COMPARED = {
    "transferred": ("random", "components"),
    "retrained": ("native", "random", "components_retrained"),
    "native": ("one_token",),
    "dense.transferred": ("dense.native", "dense.components"),
}
N_RANDOM = 3  # draws of random features
Curve = tuple[str, int | None]  # a curve's name and k, None where there is no k


class ProbeCurves(NamedTuple):
    """How often probes are right on texts they were not fitted on.

    Curves are named as in `SPARSE` and `DENSE`, and `one_token`, which shows the concepts that take no model at all.
    """

    tasks: tuple[ProbingTask, ...]
    ks: tuple[int, ...]
    correct: Mapping[Curve, tuple[np.ndarray, ...]]
    """By curve and by task: (runs, texts), whether each text is judged rightly."""
    draws: Mapping[Curve, Mapping[str, np.ndarray]]
    """By curve and by data set: mean accuracy of its tasks, then the same of each resample of its texts."""

    @property
    def datasets(self) -> tuple[str, ...]:
        """The data sets of the tasks, in their order."""
        return tuple(dict.fromkeys(task.dataset for task in self.tasks))

    @property
    def there(self) -> tuple[str, ...]:
        """The data sets that have something to transfer.

        In them the better of B's own probes, those on its SAE over all ks or the dense one, is right in more than half
        of the texts, by its 95% interval.
        """
        own = ("native", "dense.native")
        best = {name: max(self.accuracy(curve, datasets=[name]) for curve in own) for name in self.datasets}
        return tuple(name for name, accuracy in best.items() if accuracy.low > 0.5)

    def accuracy(self, curve: str, k: int | None = None, *, datasets: Sequence[str] = ()) -> Estimate:
        """Average over data sets (all, or those named) at one k, or over all ks; 95% over texts and random draws."""
        return from_resamples(self._drawn(curve, k, datasets))

    def difference(self, first: str, second: str, k: int | None = None, *, datasets: Sequence[str] = ()) -> Estimate:
        """Subtract the accuracy of the second curve from that of the first, on the same resamples."""
        return from_resamples(self._drawn(first, k, datasets) - self._drawn(second, k, datasets))

    def panel(self, datasets: Sequence[str] = ()) -> tuple[dict[str, dict[int, Estimate]], dict[str, Estimate]]:
        """Return what a figure shows: the sparse curves of B over k, and the dense probes of B."""
        sparse = {curve: {k: self.accuracy(curve, k, datasets=datasets) for k in self.ks} for curve in SPARSE[1:]}
        return sparse, {curve: self.accuracy(curve, datasets=datasets) for curve in DENSE[1:]}

    def numbers(self, pair: str) -> dict[str, float]:
        """Return the entries of a results file: Fig. 3a, the panels of Fig. 9, and what is lost without retraining.

        `<curve>.less_<other>` are the differences of `COMPARED`, on the same resamples, at one k and over all. A `gap`
        is B's own SAE minus a curve, over all ks; `other` are the sets that are neither code nor language, `less_other`
        is the gap of one of these two less theirs, and `gained` what retraining adds. `sets.there` is the share of the
        data sets that have something to transfer. The other `sets` are shares of those, if there are any. They count
        the sets where the whole 95% interval puts reused probes above random ones, and B's own above a single token.
        """
        numbers: dict[str, float] = {}
        panels = {f"figure3a.{pair}": self.datasets} | {f"figure9.{pair}.{name}": (name,) for name in self.datasets}
        for start, datasets in panels.items():
            named = {f"k_{k}.{curve}": (curve, k) for curve in SPARSE for k in self.ks}
            named |= {f"mean.{curve}": (curve, None) for curve in SPARSE}
            named |= {curve: (curve, None) for curve in (*DENSE, "one_token")}
            for name, at in named.items():
                numbers |= self.accuracy(*at, datasets=datasets).numbers(f"{start}.{name}")
        for first, others in COMPARED.items():
            ats = {f"mean.{first}": None} | {f"k_{k}.{first}": k for k in self.ks} if first in SPARSE else {first: None}
            for second in others:
                for name, k in ats.items():
                    less = self.difference(first, second, k)
                    numbers |= less.numbers(f"figure3a.{pair}.{name}.less_{second.removeprefix('dense.')}")
        groups: dict[str, list[str]] = {}
        for name in self.datasets:
            groups.setdefault(name if name in ("code", "language") else "other", []).append(name)
        for group, datasets in groups.items():
            start = f"figure9.{pair}.gap.{group}"
            gaps = {curve: self._gap(curve, datasets) for curve in ("transferred", "retrained")}
            gaps["gained"] = gaps["transferred"] - gaps["retrained"]
            if group != "other" and "other" in groups:
                gaps["transferred.less_other"] = gaps["transferred"] - self._gap("transferred", groups["other"])
            for name, draws in gaps.items():
                numbers |= from_resamples(draws).numbers(f"{start}.{name}")
        start, there = f"figure9.{pair}.sets", self.there
        numbers[f"{start}.there"] = len(there) / len(self.datasets)
        for name, first, second in (
            ("reused_beat_random", "transferred", "random"),
            ("native_beats_token", "native", "one_token"),
        ):
            if there:
                found = [self.difference(first, second, datasets=[dataset]).low > 0 for dataset in there]
                numbers[f"{start}.{name}"] = sum(found) / len(found)
        return numbers

    def _gap(self, curve: str, datasets: Sequence[str]) -> np.ndarray:
        return self._drawn("native", None, datasets) - self._drawn(curve, None, datasets)

    def _drawn(self, curve: str, k: int | None, datasets: Sequence[str]) -> np.ndarray:
        ks = [None] if curve not in SPARSE else self.ks if k is None else [k]
        return np.mean([self.draws[curve, k][name] for k in ks for name in datasets or self.datasets], axis=0)


def probe_curves(
    stitched: StitchedPair,
    saes: tuple[SAE, SAE],
    tasks: Sequence[ProbingTask],
    *,
    ks: Sequence[int],
    null: Stitch,
    absolute: bool = False,
    seed: int = 0,
) -> ProbeCurves:
    """Compute Figs. 3a and 9: probes of A's features on A and, by the stitch, on B; of B's own; dense ones.

    `null` is another stitch, which knows no pairing; features and probes of A are carried by it, too.
    Texts are cut at `CONTEXT` tokens, or at the pair's own context if that is shorter. Random features are drawn
    `N_RANDOM` times among those of B's SAE that fire on a training text. Each model reads each text of a data set once.
    """
    if not tasks or not ks:
        raise ValueError(f"expected tasks and ks: got {len(tasks)} and {len(ks)}")
    of_a = {"original": _encoder(saes[0]), "dense.original": lambda y: y}
    stitches = {"transferred": stitched.stitch, "components": null}
    of_b = {name: _encoder(transfer_sae(saes[0], stitch)) for name, stitch in stitches.items()}
    of_b |= {"native": _encoder(saes[1]), "dense.native": lambda y: y}
    context, batch_size = min(stitched.pair.context, CONTEXT), 2 * stitched.sizes.batch_size
    groups: dict[str, list[ProbingTask]] = {}
    for task in tasks:
        groups.setdefault(task.dataset, []).append(task)
    correct: dict[Curve, list[np.ndarray]] = {}
    draws: dict[Curve, dict[str, np.ndarray]] = {}
    for dataset, group in progress(groups.items(), "probes"):
        texts = list(dict.fromkeys(text for task in group for text in (*task.train_texts, *task.test_texts)))
        places = {text: place for place, text in enumerate(texts)}
        means: dict[str, np.ndarray] = {}
        for side, encoders in (("a", of_a), ("b", of_b)):
            means |= mean_activations(*stitched.side(side), texts, encoders, context=context, batch_size=batch_size)
        ids = stitched.models[1].tokenizer(texts, add_special_tokens=False)["input_ids"]
        tokens = [set(row[: context - 1]) for row in ids]
        tested = []
        for task in group:
            train, test = ([places[text] for text in part] for part in (task.train_texts, task.test_texts))
            tested.append(test)
            said = _answers(task, means, train, test, stitches, ks=ks, absolute=absolute, seed=seed)
            said["one_token", None] = _one_token(task, [tokens[place] for place in train + test])
            for curve, answers in said.items():
                correct.setdefault(curve, []).append(answers == np.array(task.test_labels))
        for curve, parts in correct.items():
            draws.setdefault(curve, {})[dataset] = _resample(parts[-len(group) :], tested, f"{seed}:{dataset}")
        del means  # before those of the next set: for 12,500 texts and 32k latents they take 5 GB
    ordered = tuple(task for group in groups.values() for task in group)
    return ProbeCurves(ordered, tuple(ks), {curve: tuple(parts) for curve, parts in correct.items()}, draws)


def _encoder(sae: SAE) -> Encoder:
    return lambda y: sae.encode(y.to(sae.W_enc))


def _answers(task, means, train, test, stitches, *, ks, absolute, seed) -> dict[Curve, np.ndarray]:
    """Fit every curve's probe on the rows `train` of `means`, and return what it says of `test`: (runs, texts)."""
    labels, native, wide = np.array(task.train_labels), means["native"], max(ks)
    of_a, of_b = (choose_features(means[of][train], labels, wide, absolute=absolute) for of in ("original", "native"))
    silent = ~(native[train] > 0).any(0)
    orders = [_rng(f"{seed}:{task.name}:{run}").permutation(len(silent)) for run in range(N_RANDOM)]
    drawn = [order[np.argsort(silent[order], kind="stable")] for order in orders]  # silent ones last

    def fitted(values: np.ndarray) -> tuple[LinearProbe, np.ndarray]:
        return fit_probe(values[train], labels, seed=seed), values

    said = {}
    for k in ks:
        probe, on_a = fitted(means["original"][:, of_a[:k]])
        said["original", k] = [(probe, on_a)]
        for name, retrained in (("transferred", "retrained"), ("components", "components_retrained")):
            on_b = means[name][:, of_a[:k]]
            said[name, k] = [(probe, on_b)]
            said[retrained, k] = [fitted(on_b)]
        said["native", k] = [fitted(native[:, of_b[:k]])]
        said["random", k] = [fitted(native[:, chosen[:k]]) for chosen in drawn]
    probe, on_a = fitted(means["dense.original"])
    said["dense.original", None] = [(probe, on_a)]
    for name, stitch in stitches.items():
        said[f"dense.{name}", None] = [(transfer_probe(probe, stitch), means["dense.native"])]
    said["dense.native", None] = [fitted(means["dense.native"])]
    return {curve: np.stack([probe.predict(on[test]) for probe, on in runs]) for curve, runs in said.items()}


def _one_token(task: ProbingTask, tokens: list[set[int]]) -> np.ndarray:
    """Ask whether a text holds the token, or lacks it, that best tells the training texts apart: (1, texts)."""
    balance: dict[int, int] = {}
    for found, label in zip(tokens, task.train_labels):
        for token in found:
            balance[token] = balance.get(token, 0) + (1 if label else -1)
    best = max(sorted(balance), key=lambda token: abs(balance[token]))
    return np.array([[(best in found) == (balance[best] > 0) for found in tokens[len(task.train_labels) :]]])


def _resample(correct: Sequence[np.ndarray], places: Sequence[Sequence[int]], seed: str) -> np.ndarray:
    """Average accuracy over the tasks of a data set, as it is and in resamples of its texts: (1 + resamples,).

    Tasks of one data set share texts, so its texts are drawn once for all of them, and for all curves alike. Where a
    curve has several runs, those are drawn too.
    """
    known = sorted({place for task in places for place in task})
    rng = _rng(seed)
    weights = np.vstack([np.ones(len(known), int), resampled_counts(len(known), rng)])
    of_tasks = []
    for answers, task in zip(correct, places):
        own = weights[:, np.searchsorted(known, task)]  # (1 + resamples, texts)
        drawn = own.sum(1, keepdims=True)
        # Of very few texts a resample may hold none: then all of them count.
        shares = np.where(drawn, own @ answers.T / np.maximum(drawn, 1), answers.mean(1))  # (1 + resamples, runs)
        runs = np.vstack([np.ones(len(answers), int), resampled_counts(len(answers), rng)])
        of_tasks.append((shares * runs).sum(1) / len(answers))
    return np.mean(of_tasks, axis=0)


def _rng(seed: str) -> np.random.Generator:
    """Seed a generator with a text, which gives the same draws in every process."""
    return np.random.default_rng(list(seed.encode()))
