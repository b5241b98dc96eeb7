r"""Linear probes: fit them on SAE features or on the stream itself, carry them across a stitch, and judge them.

Section 4 and App. E. The features that a sparse probe may look at are those whose mean activation differs most between
the texts that have a property and those that do not,

    F_k = argTopK_i ( E_{x in D+} f_i(x) - E_{x in D-} f_i(x) )      (7)

with activations averaged over a text's ordinary tokens, and the probe is a logistic regression on these k numbers. A
dense probe w, b of A needs no SAE: on down(y) it is the probe w P_down^T, b + b_down . w of y, and, being affine, also
on means. `judge_probe` measures whether the stitch keeps what the probe reads, on text that it has not seen: beyond an
answer that never changes, and beyond stitches that know nothing of which tokens belong together.

Offers `mean_activations`, `choose_features`, `LinearProbe`, `fit_probe`, `transfer_probe`, `read_probe`, `save_probe`,
`judge_probe`, `ProbeTrust`, and `CONTEXT`, the tokens of a text that are read.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ..data.text import PairedBatch, TokenBatch, text_rows
from ..models.harvest import TOKENS_AT_ONCE, as_fits, paired_residuals
from ..models.language_model import LanguageModel
from ..stitching.nulls import component_stitches
from ..stitching.pair import StitchedPair
from ..stitching.stitch import Stitch
from ..utils.arrays import numbers_of, read_arrays, save_arrays
from ..utils.stats import Beyond, DocumentSums, resampled_totals

CONTEXT = 128  # SAEBench's
SAVING = "np.savez(file, coef_=probe.coef_, intercept_=probe.intercept_, classes_=probe.classes_.astype(str))"
SCALED = "save coef = coef_ / scale_ and intercept_ - coef @ mean_"
BEFORE = {"mean_", "scale_", "var_", "components_"}  # of a scaler or a PCA of scikit-learn

Encoder = Callable[[Tensor], Tensor]  # (n, d_model) -> (n, m), of single tokens
Activations = Float[np.ndarray, "texts features"]
Labels = Bool[np.ndarray, " texts"]


def mean_activations(
    model: LanguageModel,
    layer: int,
    texts: Sequence[str],
    encoders: Mapping[str, Encoder],
    *,
    context: int = CONTEXT,
    batch_size: int = 64,
) -> dict[str, Float[np.ndarray, "texts _"]]:
    """Average each encoder's output for the residual stream before `layer` over the ordinary tokens of each text.

    Texts are cut at `context` tokens, the beginning-of-text token included, and each is read once for all encoders.
    ValueError for a text without an ordinary token.
    """

    @torch.no_grad()
    def read(batch: TokenBatch) -> tuple[list[int], dict[str, np.ndarray]]:
        mask = batch.mask.to(model.device)
        if not mask.any(1).all():
            text = texts[int(batch.documents[int((~mask.any(1)).nonzero()[0, 0]), 0])]
            raise ValueError(f"the text {text[:40]!r} has no ordinary token: expected at least one")
        y = model.residuals(batch.tokens, [layer])[layer][mask].float()  # (n, d_model)
        rows, counts, means = mask.nonzero()[:, 0], mask.sum(1, keepdim=True), {}
        for name, encoder in encoders.items():
            total = torch.zeros(0)
            for part, owner in zip(y.split(TOKENS_AT_ONCE), rows.split(TOKENS_AT_ONCE)):
                values = encoder(part)
                total = total if len(total) else values.new_zeros(len(mask), values.shape[1])
                total.index_add_(0, owner.to(values.device), values)
            means[name] = (total / counts.to(total)).float().cpu().numpy()
        return batch.documents[:, 0].tolist(), means

    batches = text_rows(texts, model.tokenizer, context=context, batch_size=batch_size)
    found: dict[str, np.ndarray] = {}
    for owners, means in as_fits(batches, read):
        for name, values in means.items():
            found.setdefault(name, np.zeros((len(texts), values.shape[1]), np.float32))[owners] = values
    return found


def choose_features(activations: Activations, labels: Labels, k: int, *, absolute: bool = False) -> np.ndarray:
    """Choose the `k` features, (k,), with the largest difference of class means (Eq. 7); of equals, the first.

    `absolute` ranks by the size of the difference, as SAEBench does, so that features of the other class count too.
    ValueError for more features than there are, and for one class alone.
    """
    if not 1 <= k <= activations.shape[1]:
        raise ValueError(f"k must lie between 1 and the {activations.shape[1]} features: got {k}")
    _check_classes(labels)
    difference = activations[labels].mean(0, dtype=np.float64) - activations[~labels].mean(0, dtype=np.float64)
    return np.argsort(-np.abs(difference) if absolute else -difference, kind="stable")[:k]


def _check_classes(labels: np.ndarray) -> None:
    if labels.all() or not labels.any():
        raise ValueError(f"all {len(labels)} texts are of one class: expected two")


class LinearProbe(NamedTuple):
    """Scores x . w + b, and the labels that they stand for, as a LogisticRegression of scikit-learn holds them."""

    coef: Float[np.ndarray, "rows d"]
    """Weights: one row for two classes, else one a class."""
    intercept: Float[np.ndarray, " rows"]
    classes: Shaped[np.ndarray, " classes"] | None = None
    """The labels, two for one row. Without any they are False and True for one row, else the rows' numbers."""

    @property
    def labels(self) -> np.ndarray:
        """The labels, also where no classes were given."""
        numbers = np.array([False, True]) if len(self.coef) == 1 else np.arange(len(self.coef))
        return numbers if self.classes is None else self.classes

    def scores(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n rows"]:
        """Score each row of x: x coef^T + intercept, in float64."""
        return np.asarray(x, np.float64) @ self.coef.T + self.intercept

    def predict(self, x: Float[np.ndarray, "n d"]) -> Shaped[np.ndarray, " n"]:
        """Label each row of x: by the largest score, or by the sign of a single one, positive for the second label."""
        return self.labels[_answers(self.scores(x))]


def _answers(scores: Float[np.ndarray, "n rows"]) -> Int[np.ndarray, " n"]:
    """Return the number of the label that each row of scores stands for."""
    return (scores[:, 0] > 0).astype(int) if scores.shape[1] == 1 else scores.argmax(1)


def fit_probe(activations: Activations, labels: Labels, *, seed: int = 0) -> LinearProbe:
    """Fit a logistic regression on activations, with scikit-learn's defaults (L2, C = 1) and 1000 iterations.

    Activations are standardised for the fit, so that the penalty treats all alike; the probe reads them as they are.
    ValueError for one class alone.
    """
    _check_classes(labels)
    x = activations.astype(np.float64)
    centre, scale = x.mean(0), x.std(0)
    scale[np.ptp(x, axis=0) == 0] = 1  # of a feature that says nothing
    fitted = LogisticRegression(max_iter=1000, random_state=seed).fit((x - centre) / scale, labels)
    coef = fitted.coef_ / scale
    return LinearProbe(coef, fitted.intercept_ - centre @ coef[0])


def transfer_probe(probe: LinearProbe, stitch: Stitch, *, to: str = "b") -> LinearProbe:
    """Carry a probe across a stitch: `to="b"` makes one of A one of B, which says of y what `probe` says of down(y).

    Computed in float64. ValueError for another `to`, and for a probe of another width.
    """
    source = "a" if to == "b" else "b"
    outward, inward = stitch.towards(to), stitch.towards(source)
    if (width := probe.coef.shape[1]) != outward.d_in:
        raise ValueError(f"the probe reads {width} dimensions: expected {outward.d_in}, the width of model {source}")
    matrix, offset = (part.detach().cpu().double().numpy() for part in (inward.P, inward.b))
    return probe._replace(coef=probe.coef @ matrix.T, intercept=probe.intercept + probe.coef @ offset)


def read_probe(path: str | Path) -> LinearProbe:
    """Read `coef_` (classes or 1, d), `intercept_` and, if it is there, `classes_` of a .npz or .safetensors file.

    Without `classes_` the labels are 0, 1, ... ValueError for other files and shapes, values that are not finite, and a
    probe that is stored with the scaler before it.
    """
    arrays, needed = read_arrays(path, (".npz", ".safetensors"), SAVING), ("coef_", "intercept_")
    if missing := [name for name in needed if name not in arrays]:
        held = ", ".join(sorted(arrays)) or "nothing"
        expected = f"expected coef_ and intercept_, it holds {held} (write it with {SAVING})"
        raise ValueError(f"{path} lacks {' and '.join(missing)}: {expected}")
    if before := sorted(BEFORE.intersection(arrays)):
        found = f"{path} holds {' and '.join(before)} of what stands before the probe"
        raise ValueError(f"{found}: expected the probe of the stream alone; of a StandardScaler, {SCALED}")
    coef, intercept = (numbers_of(path, name, arrays[name]) for name in needed)
    found = f"coef_ has shape {coef.shape} and intercept_ {intercept.shape}"
    coef = np.atleast_2d(coef)
    intercept = intercept.reshape(-1) if intercept.ndim else np.full(len(coef), intercept)  # 0.0 of one without any
    if coef.ndim != 2 or len(intercept) != len(coef) or not coef.size:
        raise ValueError(f"{path}: {found}: expected (classes or 1, d) and one intercept for each row")
    if not coef.any():
        raise ValueError(f"coef_ of {path} is zero: this probe reads nothing")
    n_classes = max(2, len(coef))
    classes = arrays.get("classes_", np.arange(n_classes))
    if classes.dtype == object:
        found = f"classes_ of {path} cannot be read, since it holds Python objects, that is, a pickle"
        raise ValueError(f"{found}: save it as text, classes_.astype(str)")
    if classes.shape != (n_classes,):
        raise ValueError(f"classes_ of {path} has shape {classes.shape}: expected {n_classes} labels")
    if len(np.unique(classes)) < n_classes:
        raise ValueError(f"classes_ of {path} holds a label twice ({', '.join(map(str, classes))}): expected each once")
    return LinearProbe(coef, intercept, classes)


def save_probe(probe: LinearProbe, path: str | Path) -> None:
    """Write a .npz file of `coef_`, `intercept_` and `classes_`, the names of scikit-learn.

    Labels that a probe took from a table, Python objects, are written as the text or numbers that they are. ValueError
    for labels that are neither.
    """
    labels = probe.labels
    if labels.dtype == object:
        plain = np.array(labels.tolist())
        if plain.dtype == object or plain.tolist() != labels.tolist():
            expected = "expected all to be text, or numbers, such as classes_.astype(str)"
            raise ValueError(f"the labels of the probe are {', '.join(map(repr, labels))}: {expected}")
        labels = plain
    save_arrays(path, coef_=probe.coef, intercept_=probe.intercept, classes_=labels)


class ProbeTrust(NamedTuple):
    """How the probe that was carried to the other model does on tokens of held-out text, beside the original."""

    tokens: int
    """Ordinary tokens of the text."""
    documents: int
    """Documents of the text, which the intervals resample."""
    over_constant: Beyond
    """Share of the tokens on which it says what the original says of the same token in its own model, beside what the
    original's most frequent answer, always given, would reach."""
    over_null: Beyond
    """The same share, beside those of probes carried by stitches that know nothing of pairs (`component_stitches`)."""
    explained: tuple[float, ...]
    """R^2 of each row of weights: the original's score in its own model, by its score on the stitched stream."""
    check: float
    """Share of the tokens on which it says what the original says of the stitched stream: 1 but for rounding."""

    @property
    def agreement(self) -> float:
        return self.over_null.value.value

    @property
    def constant(self) -> float:
        return self.over_constant.best

    @property
    def is_told(self) -> bool:
        """Whether the agreement exceeds those of the constant answer and of the nulls."""
        return self.over_constant.is_told and self.over_null.is_told


@torch.no_grad()
def judge_probe(
    stitched: StitchedPair,
    probe: LinearProbe,
    carried: LinearProbe,
    *,
    stitch: Stitch,
    batches: Iterable[PairedBatch | TokenBatch] | None = None,
    to: str = "b",
    seed: int = 0,
) -> ProbeTrust:
    """Compare a probe and the one that `stitch` carried to model `to` on every ordinary token; ValueError if none.

    Models of two tokenizers are compared on the tokens that meet. `batches` are by default those of the pair's
    evaluation text; they give the nulls their moments, too, so that a stitch needs none of its own.
    """
    home = stitch.to("cpu", torch.float64).towards("a" if to == "b" else "b")
    batches = [PairedBatch.of(batch) for batch in (stitched.evaluation_batches() if batches is None else batches)]
    if not any(batch.met_a.any() for batch in batches):
        raise ValueError("the held-out text holds no ordinary token: expected at least one")
    nulls = [transfer_probe(probe, null, to=to) for null in component_stitches(stitched.gather(batches), seed=seed)]
    parts = []
    layer_a, layer_b = stitched.layers
    for xs, ys in paired_residuals(*stitched.models, batches, [layer_a], [layer_b]):
        streams = xs[layer_a].cpu().double(), ys[layer_b].cpu().double()
        source, target = (stream.numpy() for stream in (streams if to == "b" else streams[::-1]))
        answers = np.stack([_answers(each.scores(target)) for each in (carried, *nulls)], axis=1)
        parts.append((probe.scores(source), probe.scores(home(torch.from_numpy(target)).numpy()), answers))
    scores, guesses, answers = (np.concatenate(part) for part in zip(*parts))  # (tokens, rows), and (tokens, probes)
    said = _answers(scores)
    columns = [np.ones(len(said)), said == np.bincount(said).argmax(), *(answers == said[:, None]).T]
    owners = torch.cat([batch.a.documents[batch.met_a] for batch in batches])
    table = DocumentSums.of(owners, torch.from_numpy(np.stack(columns, axis=1).astype(float))).table()
    sums = resampled_totals(table, seed)
    constant, agreement, *others = (sums[:, 1:] / sums[:, :1]).T
    varies = probe.coef.any(1)  # a class whose weights are all zero has nothing to explain
    errors, spread = (scores - guesses)[:, varies], (scores - scores.mean(0))[:, varies]
    return ProbeTrust(
        len(said),
        len(table),
        Beyond.of(agreement, constant[:, None]),
        Beyond.of(agreement, np.stack(others, axis=1)),
        tuple((1 - (errors**2).sum(0) / (spread**2).sum(0)).tolist()),
        float((answers[:, 0] == _answers(guesses)).mean()),
    )
