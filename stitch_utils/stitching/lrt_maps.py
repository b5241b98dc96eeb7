r"""The maps of the sister paper: affine ones that make the mean length of the error small, not its mean square.

Bello et al. (arXiv 2506.00653, "linear representation transferability") map the stream x of one model to the stream y
of another by

    A, p = argmin  E || x A + p - y ||_2

and descend by AdamW. The length of the error is convex in A and p, so its minimum can be found without a gradient. For
lengths r and s > 0, r <= (r^2 / s + s) / 2, with equality at r = s. So least squares in which every token counts with
the inverse of its present error can only lower the mean length; where it changes nothing is the minimum (Weiszfeld's
algorithm). Each direction is fitted by itself: no term ties them, as alpha does in Eq. 3.

Their text is 10M tokens of the Pile in rows of 512, a tenth of them for validation, and for instruction-tuned models a
third of chats (lmsys-chat-1m). A pair's file may name both, as the data sets `map_text` and `map_chats`; without them
it is the pair's own training text. Special tokens are masked out, of which that paper says nothing.

Offers `MapConfig`, `map_config`, `map_batches`, `map_stream`; `fit_unsquared`, `fit_unsquared_adam`, `moments_of`;
`map_errors`, `MapErrors`, `Prediction`.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import jinja2
import numpy as np
import torch
from torch import Tensor

from ..data.hub import dataset_rows
from ..data.pairs import DatasetRef, ModelPair, TextRef, blaming
from ..data.text import PairedBatch, TokenBatch, paired_batches, text_rows
from ..models.harvest import ActivationStream, NormLimits, as_fits, without_outliers
from ..models.language_model import LanguageModel
from ..utils.progress import progress
from ..utils.stats import DocumentSums, Estimate, from_resamples, resampled_totals
from .fit import Pairs, affine, fit_exact, last_tenth, linear_maps
from .maps import StreamMap
from .moments import PairMoments
from .pair import StitchedPair
from .stitch import FitReport, Stitch

VALIDATION = 10  # one row in ten is for validation
CHATS = 3  # one batch in three is of chats
KEPT_BYTES = 2**31  # activations up to this size are held in memory, so that each pass after the first is free
RIDGE = 1e-8
SMALLEST = 1e-3  # share of the mean error below which an error counts as if it were so long
TOLERANCE = 1e-5  # share of either loss that the last reweighting may still gain
PASSES = 20  # of reweighting, at most


@dataclass(frozen=True)
class MapConfig:
    """What the maps are fitted on, and how."""

    tokens: int
    """Positions of text, those for validation included."""
    step_tokens: int
    """Tokens in a step of AdamW: 32 rows of 512 in the sister paper."""
    lr: float
    """The learning rate: in that paper 1e-4 for base models and 1e-3 for instruction-tuned ones (`map_config`)."""
    epochs: int = 4
    context: int = 0
    """Positions of a row; 0 for the pair's own."""
    seed: int = 0
    """The seed of AdamW's initial weights."""

    def __post_init__(self):
        if min(self.tokens, self.step_tokens, self.epochs) < 1 or self.context < 0 or self.lr <= 0:
            raise ValueError(f"sizes and the learning rate must be positive: got {self}")


def map_config(pair: ModelPair, scale: str, *, lr: float = 0.0, seed: int = 0) -> MapConfig:
    """Take the sizes of a scale, and its learning rate unless another is given.

    Where the scale has a rate for instruction-tuned models, `chat_lr`, pairs whose maps are fitted on chats take that.
    """
    sizes = pair.sizes_of("map_text", scale)
    of_chats = sizes.pop("chat_lr", sizes["lr"])
    own = of_chats if "map_chats" in pair.datasets else sizes["lr"]
    return MapConfig(**sizes | {"lr": lr or own, "seed": seed})


def map_batches(stitched: StitchedPair, config: MapConfig, *, held_out: bool) -> Iterator[PairedBatch]:
    """Give nine rows of ten of the text, or with `held_out` the others.

    Batches of plain text and of chats come in turn, `CHATS` - 1 to one, and at the end those left over. Rows are
    divided, not documents: where documents share rows, the border may cut one. ValueError, naming the pair, for text
    that cannot be read.
    """
    pair = stitched.pair
    longest = [getattr(model.config, "max_position_embeddings", None) for model in stitched.models]
    context = min([config.context or pair.context, *filter(None, longest)])
    sizes = {"context": context, "batch_size": stitched.sizes.batch_size}
    data, chats = pair.datasets.get("map_text"), pair.datasets.get("map_chats")
    text = TextRef("hub", **vars(data)) if data else pair.train
    share = config.tokens // CHATS if chats else 0
    numbers = itertools.count(1)
    with blaming(pair, "text or datasets"):
        n_tokens = max(config.tokens - share, context)
        plain = paired_batches(text, stitched.tokenizers, rows=pair.rows, n_tokens=n_tokens, **sizes)
        spoken = _chats(chats, stitched.tokenizer, n_tokens=share, **sizes) if chats else iter(())
        while batches := [*itertools.islice(plain, CHATS - 1), *itertools.islice(spoken, 1)]:
            for batch in map(PairedBatch.of, batches):
                chosen = torch.tensor([(next(numbers) % VALIDATION == 0) == held_out for _ in batch.a.tokens])
                if chosen.any():
                    a, b = (side.each(lambda part, chosen=chosen: part[chosen]) for side in (batch.a, batch.b))
                    yield PairedBatch(a, b, batch.met_a[chosen], batch.met_b[chosen])


def _chats(data: DatasetRef, tokenizer, *, context: int, batch_size: int, n_tokens: int) -> Iterator[TokenBatch]:
    """Give conversations in the chat template, each as a row; pass over those that the template refuses."""

    def pick(row: dict) -> list | None:
        if not isinstance(row.get("conversation"), list):
            raise ValueError(f"dataset {data.name!r} has no column 'conversation': its columns are {', '.join(row)}")
        return [[turn["role"], turn["content"]] for turn in row["conversation"]]

    def texts() -> Iterator[str]:
        for turns in dataset_rows(pick=pick, picked="conversation", **vars(data)):
            messages = [{"role": role, "content": content} for role, content in turns]
            try:
                text = tokenizer.apply_chat_template(messages, tokenize=False)
            except jinja2.TemplateError:  # such as two turns of one speaker
                continue
            yield text.removeprefix(tokenizer.bos_token or "")

    source, read, first = texts(), 0, 0
    while read < n_tokens and (some := list(itertools.islice(source, batch_size))):
        (batch,) = text_rows(some, tokenizer, context=context, batch_size=batch_size)
        # Negative numbers, so that no chat counts as part of a document.
        yield batch._replace(documents=-1 - first - batch.documents)
        read, first = read + batch.tokens.numel(), first + len(some)


def map_stream(
    stitched: StitchedPair, layers: tuple[int, int], config: MapConfig, *, held_out: bool = False
) -> ActivationStream:
    """Stream the activations of `map_batches` in steps of the config's size; hold up to two gigabytes in memory.

    At the stitched layers the pair's outliers are left out; of other layers no norms are known.
    """
    limits = stitched.limits if layers == stitched.layers else None
    share = 1 / VALIDATION if held_out else 1 - 1 / VALIDATION
    size = 4 * config.tokens * share * sum(model.d_model for model in stitched.models)
    step_tokens = min(config.step_tokens, 256) if held_out else config.step_tokens
    batches = functools.partial(map_batches, stitched, config, held_out=held_out)
    options = {"step_tokens": step_tokens, "keep": size <= KEPT_BYTES, "limits": limits}
    return ActivationStream(*stitched.models, *layers, batches, **options)


def fit_unsquared(batches: Pairs) -> Stitch:
    """Find the maps with the smallest mean length of the error, by reweighted moments.

    `batches` is iterated once for the least squares that the fit starts from, then once for each reweighting, until one
    lowers no loss by more than `TOLERANCE` of it. The report counts these as sweeps, and its loss is the sum of both
    mean lengths. ValueError for no batches, and for batches that can be iterated only once.
    """
    began = time.perf_counter()
    moments = moments_of(batches)
    solve = functools.partial(fit_exact, alpha=0, ridge=RIDGE, dtype=torch.float64)
    stitch = solve(moments)
    losses: dict[str, list[float]] = {"up": [], "down": []}
    at = dict.fromkeys(losses, 0.0)  # the present mean length, which makes the weights about 1
    converged = False
    for _ in progress(range(PASSES), "reweighting"):
        gathered = {name: PairMoments(moments.d_a, moments.d_b) for name in losses}
        totals, count = dict.fromkeys(losses, 0.0), 0
        for x, y in batches:
            count += len(x)
            for name, fitted, given, wanted in (("up", stitch.up, x, y), ("down", stitch.down, y, x)):
                lengths = (fitted(given.double()) - wanted.double()).norm(dim=1)
                totals[name] += lengths.sum().item()
                at[name] = scale = at[name] or lengths.mean().item() or 1.0
                gathered[name].update(x, y, scale / lengths.clamp_min(SMALLEST * scale))
        if count != moments.count:
            raise ValueError(f"batches gave {moments.count} tokens, then {count}: expected the same each time")
        at = {name: total / count for name, total in totals.items()}
        losses = {name: [*found, at[name]] for name, found in losses.items()}
        converged = all(len(found) > 1 and found[-2] - found[-1] <= TOLERANCE * found[-2] for found in losses.values())
        if converged:
            break
        stitch = Stitch.of(solve(gathered["up"]).up, solve(gathered["down"]).down)
    seconds = time.perf_counter() - began
    report = FitReport("unsquared", 0.0, sum(at.values()), converged, len(losses["up"]), 0, RIDGE, seconds)
    return replace(stitch.to(torch.float32), report=report)


def moments_of(batches: Pairs) -> PairMoments:
    """Gather the moments of all pairs (x, y); ValueError for none."""
    moments = None
    for x, y in progress(batches, "moments"):
        moments = moments or PairMoments(x.shape[1], y.shape[1])
        moments.update(x, y)
    if moments is None:
        raise ValueError("no batches given: expected at least one")
    return moments


def fit_unsquared_adam(
    batches: Pairs,
    *,
    d_a: int,
    d_b: int,
    lr: float = 1e-4,
    epochs: int = 4,
    up_alone: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Stitch:
    """Fit by the sister paper's recipe: AdamW at a constant `lr` on the mean length of each batch's errors, in order.

    `batches` gives a pair a step, and is iterated `epochs` times. Weights start as torch's Linear does, from `seed`;
    betas and weight decay, which that paper does not give, are torch's. With `up_alone` the map down is not fitted and
    holds NaN. ValueError for no epochs, no batches, and batches that can be iterated only once.
    """
    began = time.perf_counter()
    if epochs < 1:
        raise ValueError(f"epochs must be positive: got {epochs}")
    up, down = linear_maps(d_a, d_b, seed, device)
    if up_alone:  # its random start is no map that anyone should use
        torch.nn.init.constant_(down.weight, torch.nan)
    optimizer = torch.optim.AdamW([*up.parameters(), *down.parameters()], lr=lr)
    losses: list[float] = []
    for epoch in progress(range(epochs), "AdamW"):
        before = len(losses)
        for x, y in batches:
            x, y = x.to(device, torch.float32), y.to(device, torch.float32)
            loss = (up(x) - y).norm(dim=1).mean()
            if not up_alone:
                loss = loss + (down(y) - x).norm(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if len(losses) == before:
            raise ValueError(f"batches gave nothing in epoch {epoch + 1}: expected some, the same in each")
    final, seconds = last_tenth(losses), time.perf_counter() - began
    report = FitReport("unsquared adam", 0.0, final, False, 0, len(losses), 0.0, seconds)
    return Stitch.of(affine(up), affine(down), report=report).to("cpu")


OfBoth = Callable[[Tensor, Tensor], Tensor]
# The side whose stream is predicted, and a map from the other's, or a function of both x (n, d_a) and y (n, d_b).
Prediction = tuple[str, StreamMap | OfBoth]


class MapErrors(NamedTuple):
    """Errors over the ordinary tokens of a text, and of each resample of its documents, (1 + resamples,)."""

    lengths: np.ndarray
    """Mean length of the error."""
    fuvs: np.ndarray
    """Sum of squared errors over the sum of squared deviations from the mean of the same tokens."""

    @property
    def length(self) -> Estimate:
        """The mean length of the error: the sister paper's validation loss."""
        return from_resamples(self.lengths)

    @property
    def fuv(self) -> Estimate:
        """The fraction of variance that is left unexplained."""
        return from_resamples(self.fuvs)

    def increase(self, other: "MapErrors") -> Estimate:
        """Compare the mean length with that of other errors on the same documents: 0.1 is 10% longer."""
        return from_resamples(self.lengths / other.lengths - 1)

    def fuv_less(self, other: "MapErrors") -> Estimate:
        """Subtract the fraction of variance that other errors on the same documents leave."""
        return from_resamples(self.fuvs - other.fuvs)


def map_errors(
    models: tuple[LanguageModel, LanguageModel],
    layers: tuple[int, int],
    batches: Iterable[PairedBatch | TokenBatch],
    predictions: Mapping[Any, Prediction],
    *,
    limits: NormLimits | None = None,
    seed: int = 0,
) -> dict[Any, MapErrors]:
    """Measure the errors of all predictions, by their names, in one pass over the text, at tokens within `limits`.

    ValueError for a prediction of another stream than a's or b's, or of another shape than its target's, and for
    batches without an ordinary token.
    """
    if unknown := sorted({side for side, _ in predictions.values()} - {"a", "b"}):
        raise ValueError(f"unknown target {unknown[0]!r}: expected a or b")

    @torch.no_grad()
    def read(batch: PairedBatch) -> DocumentSums:
        """Sum counts, squares, errors and streams by document: (3 + 2 predictions + d_a + d_b,)."""
        streams = [model.residuals(row.tokens, [layer])[layer] for model, layer, row in zip(models, layers, batch[:2])]
        batch = without_outliers(batch, streams[0], streams[1], limits)
        x, y = (stream[met.to(stream.device)].float() for stream, met in zip(streams, batch[2:]))
        y = y.to(x.device)
        columns = [torch.ones(len(x), 1), *(stream.double().square().sum(1, keepdim=True) for stream in (x, y))]
        for name, (side, of) in predictions.items():
            given, target = {"a": (y, x), "b": (x, y)}[side]
            found = of(given) if isinstance(of, StreamMap) else cast(OfBoth, of)(x, y)
            if found.shape != target.shape:
                shape, expected = tuple(found.shape), tuple(target.shape)
                raise ValueError(
                    f"prediction {name!r} has shape {shape}: expected {expected}, that of the stream of {side}"
                )
            squares = (found.to(target).double() - target.double()).square().sum(1, keepdim=True)
            columns += [squares.sqrt(), squares]
        values = torch.cat([column.double().cpu() for column in (*columns, x, y)], dim=1)
        return DocumentSums.of(batch.a.documents[batch.met_a], values)

    documents = DocumentSums()
    for part in progress(as_fits(map(PairedBatch.of, batches), read), "errors"):
        documents.add(part)
    table = documents.table()
    # The first row is of all documents, once; the others are draws: (1 + resamples, columns).
    totals = resampled_totals(table, seed)
    text, errors, sums_a, sums_b = np.split(totals, np.cumsum([3, 2 * len(predictions), models[0].d_model]), axis=1)
    count, squares_a, squares_b = text.T
    variation = {"a": squares_a - (sums_a**2).sum(1) / count, "b": squares_b - (sums_b**2).sum(1) / count}

    return {
        name: MapErrors(lengths / count, squares / variation[target])
        for (name, (target, _)), lengths, squares in zip(predictions.items(), errors.T[::2], errors.T[1::2])
    }
