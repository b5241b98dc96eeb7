r"""Features that make a head look at the first token, where it finds nothing, or keep it from doing so.

Section 5.2, Figs. 5b and 16, App. I, after Gurnee et al. 2024. A head that has nothing to do attends to the token that
begins the text. A feature whose decoder row, read as a query, points along that token's key switches the head off
("attention deactivation"); one that points the other way switches it on. The heuristic score of feature i for head h of
layer l is what its mean contribution adds to the score of the first token,

    s_ilh = mean_t [ R_t (N'(f_i d_i) W_Q) . k_1 ] c / sigma_l

with k_1 the head's own key of the first token, c the scale of scores, N' the block's norm without its division, sigma_l
the mean of what that norm divides by, R_t rotary embeddings at distances t = 1, 2, 4, ..., and f_i the mean activation
where i fires. Scores only propose; *path ablation* tests. It takes the contribution f_i(x_t) d_i out of what this one
head reads at the current token t: the token's query and own key change, and no other key, head or stream. The head's
attention from that token to the first falls for a deactivation feature.

Offers `Path`, `PathEffect`, `path_ablation`, `heuristic_scores`, `deactivation_search`, `DeactivationSearch`,
`head_roles`.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor

from ..data.text import TokenBatch
from ..data.tokenizer import begin_and_end
from ..models.harvest import TOKENS_AT_ONCE, as_fits
from ..models.heads import Head, heads_of
from ..models.language_model import LanguageModel
from ..utils.progress import progress
from ..utils.stats import Beyond, Estimate, from_resamples, resampled_totals
from .entropy import ActivationSummary, decoder_rows

Text = Sequence[TokenBatch]
ENDS = ("closing", "opening")
QUERIES_AT_ONCE = 512  # bounds the keys that are gathered for them: 0.1 GB at 512 positions and 128 dimensions


class Path(NamedTuple):
    """A path from a feature to the input of a head."""

    feature: int
    layer: int
    head: int


class PathEffect(NamedTuple):
    """Attention to the first token from the tokens on which a feature fires, with its path and without."""

    path: Path
    attended: Float[np.ndarray, " n"]
    ablated: Float[np.ndarray, " n"]
    documents: Int[np.ndarray, " n"]

    @property
    def mean_change(self) -> float:
        """The change of the attention by ablation, negative where the feature made the head look at the first token."""
        return float((self.ablated - self.attended).mean()) if len(self.attended) else 0.0

    def change(self, *, seed: int = 0) -> Estimate:
        """Give `mean_change` a 95% interval by resampling documents.

        A feature that fires nowhere changes nothing; a single document leaves all open, from -1 to 1.
        """
        if (n := len(np.unique(self.documents))) < 2:
            return Estimate(self.mean_change, *((-1.0, 1.0) if n else (0.0, 0.0)))
        return from_resamples(_resampled_changes([self], seed)[:, 0])

    def beyond(self, others: Sequence["PathEffect"], *, seed: int = 0) -> Estimate:
        """Say by how much more this path sends a head to the first token than the best of `others` does.

        All are measured on one text, whose documents are resampled together; each resample has its own best. A text
        of which a single document counts leaves all open, from -2 to 2.
        """
        totals = -_resampled_changes([self, *others], seed)
        found = Beyond.of(totals[:, 0], totals[:, 1:]).more
        n = len(np.unique(np.concatenate([effect.documents for effect in (self, *others)])))
        return Estimate(found.value, -2.0, 2.0) if n == 1 else found

    def reversed(self) -> "PathEffect":
        """Exchange attention with the path and without it, so that what draws a head away sends it there."""
        return self._replace(attended=self.ablated, ablated=self.attended)


def _resampled_changes(effects: Sequence[PathEffect], seed: int) -> Float[np.ndarray, "draws effects"]:
    """Average each effect's change over its tokens, as they are and in resamples of all effects' documents.

    Where a resample holds no token on which a feature fires, it changes nothing.
    """
    documents = np.unique(np.concatenate([effect.documents for effect in effects]))
    table = np.zeros((len(documents), len(effects), 2))
    for number, effect in enumerate(effects):
        place = np.searchsorted(documents, effect.documents)
        np.add.at(table[:, number, 0], place, effect.ablated.astype(float) - effect.attended)
        np.add.at(table[:, number, 1], place, 1)
    changes, tokens = (
        np.moveaxis(resampled_totals(table, seed), -1, 0) if len(documents) else np.zeros((2, 2, len(effects)))
    )
    return changes / np.maximum(tokens, 1)


def path_ablation(
    model: LanguageModel, layer: int, sae: SAE, paths: Sequence[Path], batches: Iterable[TokenBatch], *, max_tokens: int
) -> list[PathEffect]:
    """Measure each head's attention to the first token with and without the feature, in one pass.

    `sae` reads the stream before `layer`. Each token is ablated by itself, in its query and its own key. The effect is
    that on ordinary tokens where the feature fires and the head's window reaches the first token, at most `max_tokens`
    of them, spread evenly over the batch that has too many.
    """
    heads, by_head = _heads_after(model, layer), defaultdict(list)
    for index, path in enumerate(paths):
        by_head[path[1:]].append(index)
    features, rows = sorted({path.feature for path in paths}), decoder_rows(sae)
    layers = sorted({layer, *(path.layer for path in paths)})
    room = [max_tokens] * len(paths)

    @torch.no_grad()
    def read(batch: TokenBatch) -> list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        residuals = model.residuals(batch.tokens, layers)
        every = torch.arange(batch.tokens.shape[1], device=model.device)
        keep = batch.mask.to(model.device)
        at_row, position = keep.nonzero(as_tuple=True)
        owners = batch.documents[batch.mask].numpy()
        parts = residuals[layer][keep].split(TOKENS_AT_ONCE)
        latents = torch.cat([sae.encode(part.to(sae.W_enc))[:, features] for part in parts])
        activations = dict(zip(features, latents.to(residuals[layer].device, torch.float32).T))
        found = []
        for place, indices in by_head.items():
            head = heads[place]
            keys, stream = head.keys(residuals[head.layer], every), residuals[head.layer][keep].float()
            for index in indices:
                active = activations[paths[index].feature]
                chosen = ((active > 0) & (position < (head.window or math.inf))).nonzero()[:, 0]
                if len(chosen) > room[index]:
                    chosen = chosen[torch.linspace(0, len(chosen) - 1, room[index], device=chosen.device).long()]
                if not len(chosen):
                    continue
                removed = active[chosen, None] * rows[paths[index].feature].to(active)
                where = at_row[chosen], position[chosen]
                attended = _to_first(head, stream[chosen], keys, *where)
                ablated = _to_first(head, stream[chosen] - removed, keys, *where)
                found.append((index, attended, ablated, owners[chosen.cpu().numpy()]))
        return found

    nothing = (np.zeros(0, np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    columns = [[nothing] for _ in paths]
    for found in progress(as_fits(batches, read), "path ablation"):
        for index, *values in found:
            columns[index].append(tuple(values))
            room[index] -= len(values[0])
        if not any(room):
            break
    return [PathEffect(path, *map(np.concatenate, zip(*parts))) for path, parts in zip(paths, columns)]


def _heads_after(model: LanguageModel, layer: int) -> dict[tuple[int, int], Head]:
    """Collect the heads of the blocks from `layer` on, by layer and index."""
    return {(l, head.index): head for l in range(layer, model.n_layers) for head in heads_of(model, l)}


def _to_first(head: Head, stream: Tensor, keys: Tensor, rows: Tensor, positions: Tensor) -> np.ndarray:
    """Measure attention to the first token, (n,), from tokens whose query and own key come from `stream`."""
    found = []
    for x, row, position in zip(*(part.split(QUERIES_AT_ONCE) for part in (stream, rows, positions))):
        seen = keys[row]  # a copy: (n, pos, d_head)
        seen[torch.arange(len(x), device=x.device), position] = head.keys(x, position)
        found.append(head.attention(head.queries(x, position), seen, position)[:, 0])
    return torch.cat(found).cpu().numpy()


@torch.no_grad()
def heuristic_scores(
    model: LanguageModel, layer: int, rows: Float[Tensor, "features d_model"], sample: TokenBatch
) -> tuple[list[tuple[int, int]], Float[Tensor, "features heads"]]:
    """Compute s (see above) for contributions `rows` to the stream before `layer`, for all heads from there on.

    Return the heads, (layer, head), and the scores. `sample` says what the norms divide by (the mean over its ordinary
    tokens), and how far texts reach.
    """
    heads, layers = _heads_after(model, layer), range(layer, model.n_layers)
    residuals, begin = model.residuals(sample.tokens, layers), begin_and_end(model.tokenizer)[0]
    if begin is None:  # texts begin with many tokens: with the mean of their streams
        first = {layer: residual[:, :1].float().mean(0, keepdim=True) for layer, residual in residuals.items()}
    else:  # its stream is the same in every text
        first = model.residuals(torch.tensor([[begin]]), layers)
    keep, reach = sample.mask.to(model.device), sample.tokens.shape[1]
    readers = []
    for head in heads.values():
        furthest = min(reach, head.window or reach)
        distances = [2**power for power in range(max(1, (furthest - 1).bit_length()))]
        divisor = head.norm.divisor(residuals[head.layer][keep]).mean()
        readers.append(head.reader(first[head.layer][0, 0].float(), distances) / divisor)
    return list(heads), rows.float() @ torch.stack(readers).to(rows.device).T


class DeactivationSearch(NamedTuple):
    """Features that move a head's attention to the first token."""

    scores: Float[Tensor, "features heads"]
    tried: int
    """The number of paths that were ablated."""
    effects: tuple[PathEffect, ...]
    """Their effects, the most negative change first; ties in the order of the scores' size."""


def deactivation_search(
    model: LanguageModel,
    layer: int,
    sae: SAE,
    summary: ActivationSummary,
    batches: Text,
    *,
    candidates: int,
    max_tokens: int,
    min_tokens: int,
) -> DeactivationSearch:
    """Score all features for all heads downstream, then ablate the paths of the highest and lowest, half of each.

    `summary` is that of the same text; features that fire on fewer than `min_tokens` are passed over. Measure what is
    chosen here on another text. ValueError if no feature fires so often.
    """
    usable = (summary.fires >= min_tokens).nonzero()[:, 0]
    if not len(usable):
        raise ValueError(f"no feature fires on {min_tokens} of {summary.tokens} tokens: give more text")
    rows = decoder_rows(sae).float() * summary.mean.to(sae.W_dec.device)[:, None]
    heads, scores = heuristic_scores(model, layer, rows.to(model.device), batches[0])
    flat = scores[usable.to(scores.device)].flatten().cpu()
    count = min(candidates, len(flat))
    ends = [*flat.topk(count - count // 2).indices.tolist(), *(-flat).topk(count // 2).indices.tolist()]
    chosen = sorted(dict.fromkeys(ends), key=lambda place: -abs(flat[place].item()))
    paths = [Path(int(usable[place // len(heads)]), *heads[place % len(heads)]) for place in chosen]
    effects = path_ablation(model, layer, sae, paths, batches, max_tokens=max_tokens)
    enough = [effect for effect in effects if len(effect.attended) >= min_tokens] or effects
    return DeactivationSearch(scores, len(paths), tuple(sorted(enough, key=lambda effect: effect.mean_change)))


def head_roles(
    model: LanguageModel, layer: int, sae: SAE, feature: int, search: Text, evaluation: Text, *, max_tokens: int
) -> dict[str, PathEffect]:
    """Ablate a feature's paths to all heads downstream; choose two heads on one text and measure them on another.

    `closing` is the effect on the head that it most sends to the first token, `opening` that on the one that it draws
    away most, or sends there least if it draws none away.
    """
    paths = [Path(feature, *place) for place in _heads_after(model, layer)]
    changes = [effect.mean_change for effect in path_ablation(model, layer, sae, paths, search, max_tokens=max_tokens)]
    ends = [paths[int(np.argmin(changes))], paths[int(np.argmax(changes))]]
    return dict(zip(ENDS, path_ablation(model, layer, sae, ends, evaluation, max_tokens=max_tokens)))
