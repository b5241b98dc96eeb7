"""Why instruction vectors transfer badly: stitches that have seen the chat template, and vectors from few prompts.

App. F.2 has two explanations. The first: vectors are taken at the last token of a chat prompt, and the stitch was
fitted on text without tokens such as <start_of_turn>. Here one stitch is fitted on plain text alone, and one on chats
as well, with the template's tokens let in (never the first of a row or padding, whose norms would drown the rest).
Which tokens are the template's is told by their places: Gemma's prompts end in a line break like any other. Moments add
up, so each stitch costs one pass over what it adds. A third stitch counts each of the template's tokens as often as
makes them a tenth of all: if even that changes nothing, their number was not the reason.

The second: vectors from few pairs of prompts, about ten, are noisy, and carrying them across compounds it. Two vectors
from n pairs each that share no prompt have a cosine of 1 where there is no noise, and of 0 where there is nothing else.
The cosine of the same two carried across as v P shows what the stitch makes of it.

Offers `template_places`, `template_tokens`, `template_rows`, `plain_rows`, `chat_batches`, `fit_template_stitches`,
`TemplateFit`; `vector_noise`, `VectorNoise`.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..data.alignment import encode
from ..data.documents import read_documents
from ..data.pairs import TextRef
from ..data.text import TokenBatch
from ..data.tokenizer import begin_and_end, special_ids
from ..models.language_model import LanguageModel
from ..stitching.fit import fit_exact
from ..stitching.moments import PairMoments
from ..stitching.pair import StitchedPair
from ..stitching.stitch import Stitch, stitch_loss
from ..utils.cache import kept
from ..utils.stats import Estimate, from_draws
from .vectors import last_token_residuals

STITCHES = ("without", "with", "often")
OFTEN = 0.1  # share of the template's tokens in what the third stitch is fitted on
GROUPS = ("ordinary", "template", "last", "last_centred")


class TemplateFit(NamedTuple):
    """Three stitches of one text, and the shares of held-out streams that each leaves unexplained."""

    stitches: Mapping[str, Stitch]
    """By what it was fitted on: `without` chats, `with` them and their template's tokens, `often`, with each of these
    counted several times."""
    unexplained: Mapping[tuple[str, str, str], float]
    """Share of the variance, by stitch, group of tokens, and the model `b` or `a` that the map leads to; the mean has
    1. `last` are the last tokens of the prompts given; `last_centred` leaves out their mean error, which no difference
    of means sees. A group that held-out text has too little of is left out."""
    tokens: Mapping[str, int | float]
    """Numbers of tokens fitted on: `plain` by all, `chats`, the ordinary ones there, and `template` by all but the
    first."""
    repeats: int
    """How often the third stitch counts a template token."""
    names: tuple[str, ...]
    """The template's tokens."""
    chats: int
    """Number of chats made of documents and added to the text; 0 where the text holds chats already."""

    def numbers(self, pair: str) -> dict[str, float]:
        """List the entries of a results file."""
        found = {f"{name}.{group}.to_{to}": share for (name, group, to), share in self.unexplained.items()}
        found |= {f"tokens.{name}": count for name, count in self.tokens.items()}
        found |= {"repeats": self.repeats, "chats": self.chats}
        return {f"template.{pair}.{name}": value for name, value in found.items()}


def template_places(tokenizer, text: str, contents: Sequence[str]) -> tuple[list[int], list[bool]]:
    """Tokenize a chat, and say of each token whether all of its characters are the template's.

    `contents` are what stands in the turns, in order. ValueError for a tokenizer that cannot say where its tokens lie.
    """
    (coded,) = encode(tokenizer, [text])
    written, place = np.ones(len(text) + 1, dtype=int), 0
    for content in contents:
        place = text.index(content, place)
        written[place : place + len(content)] = 0
        place += len(content)
    starts = np.maximum.accumulate([0, *coded.ends])[:-1]
    ends = np.maximum(coded.ends, starts + 1)  # what ends inside a character is of this character
    before = np.cumsum([0, *written])
    return coded.ids.tolist(), (before[ends] - before[starts] == ends - starts).tolist()


def template_tokens(model: LanguageModel) -> list[int]:
    """List the tokens that the chat template writes, but for one that begins a text.

    ValueError, naming the model, for a tokenizer without a template, or one whose template writes no token.
    """
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(f"the tokenizer of {model.ref!r} has no chat template: expected an instruction-tuned model")
    contents = ("One.", "Two.")
    row = template_places(tokenizer, _chat(tokenizer, *contents), contents)
    if not (found := sorted({id for id, own in zip(*row) if own} - {begin_and_end(tokenizer)[0]})):
        raise ValueError(f"the chat template of {model.ref!r} writes no tokens of its own")
    return found


def _chat(tokenizer, question: str, answer: str) -> str:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return tokenizer.apply_chat_template(turns, tokenize=False)


def template_rows(batches: Iterable[TokenBatch], template: Sequence[int]) -> Iterator[TokenBatch]:
    """Yield the rows that hold `template` tokens, with these alone unmasked."""
    for batch in batches:
        mask = torch.isin(batch.tokens, torch.tensor(template))
        if (rows := mask.any(1)).any():
            yield TokenBatch(batch.tokens[rows], mask[rows], batch.documents[rows])


def plain_rows(batches: Iterable[TokenBatch], template: Sequence[int]) -> Iterator[TokenBatch]:
    """Mask the documents that hold `template` tokens, from the first to the last of each."""
    for batch in batches:
        chats = batch.documents[torch.isin(batch.tokens, torch.tensor(template))]
        yield batch._replace(mask=batch.mask & ~torch.isin(batch.documents, chats))


def chat_batches(stitched: StitchedPair, text: TextRef, count: int, *, template: bool = False) -> Iterator[TokenBatch]:
    """Make chats of one question and one answer of the first words of `count` documents, each in a row of its own.

    Their ordinary tokens are unmasked, or those of the `template`.
    """
    tokenizer, context = stitched.tokenizer, stitched.pair.context
    begin, end = begin_and_end(tokenizer)
    special = {*special_ids(tokenizer), end}
    turn = min(40, max(1, context // 8))  # words; two turns should fit, whatever a word takes

    def row(words: Sequence[str]) -> tuple[list[int], list[bool]]:
        contents = (" ".join(words[:turn]), " ".join(words[turn : 2 * turn]))
        ids, own = template_places(tokenizer, _chat(tokenizer, *contents), contents)
        shown = own if template else [not written and id not in special for id, written in zip(ids, own)]
        if begin not in (None, ids[0]):
            ids, shown = [begin, *ids], [False, *shown]
        pads = [end] * (context - len(ids))
        return (ids + pads)[:context], ([False, *shown[1:]] + [False] * len(pads))[:context]

    words = (document.split() for document in read_documents(text))
    enough = itertools.islice((found for found in words if len(found) > turn), count)
    rows = enumerate(map(row, enough))
    while chunk := list(itertools.islice(rows, stitched.sizes.batch_size)):
        tokens, shown = (torch.tensor(part) for part in zip(*(found for _, found in chunk)))
        yield TokenBatch(tokens, shown, torch.tensor([[owner] * context for owner, _ in chunk]))


def fit_template_stitches(stitched: StitchedPair, prompts: Sequence[str]) -> TemplateFit:
    """Fit the three stitches of a pair, and measure their errors on held-out text and at the last token of `prompts`.

    The world's text holds chats, whose template's tokens stand nowhere else. Other text is plain: as many chats as
    `sizes.yml` says are made of its first documents.
    """
    pair, models = stitched.pair, stitched.models
    template, in_text = template_tokens(models[0]), pair.train.source == "world"
    added = 0 if in_text else stitched.sizes_of("template_tokens")["chats"]

    def gathered(kind: str, batches: Callable[[], Iterator[TokenBatch]]) -> PairMoments:
        made_of, sources = {"template": template, "chats": added}, (fit_template_stitches,)
        path = stitched.artifact(f"{kind}-moments", made_of, sources=sources, suffix=".safetensors")
        return kept(path, lambda: stitched.gather(batches()), PairMoments.save, PairMoments.load)

    if in_text:
        rows, ordinary = functools.partial(stitched.training_rows, "a"), stitched.moments
        plain = gathered("plain", lambda: plain_rows(rows(), template))
        of_template = gathered("template", lambda: template_rows(rows(), template))
        held_out_template = template_rows(stitched.evaluation_rows("a"), template)
    else:
        chats = functools.partial(chat_batches, stitched, pair.train, added)
        plain, of_template = stitched.moments, gathered("template", lambda: chats(template=True))
        ordinary = plain + gathered("chat", chats)
        held_out_template = chat_batches(stitched, pair.evaluation, max(added // 10, 4), template=True)
    repeats = max(1, round(OFTEN / (1 - OFTEN) * ordinary.count / max(of_template.count, 1)))
    data = (plain, ordinary + of_template, ordinary + _repeated(of_template, repeats))
    fit = functools.partial(fit_exact, alpha=stitched.alpha, ridge=stitched.ridge_used)
    stitches = {name: fit(moments) for name, moments in zip(STITCHES, data)}
    held_out = {
        "ordinary": stitched.held_out_moments,
        "template": stitched.gather(held_out_template),
        "last": PairMoments(models[0].d_model, models[1].d_model),
    }
    held_out["last"].update(*(last_token_residuals(*stitched.side(side), prompts) for side in "ab"))
    unexplained = {}
    for name, stitch in stitches.items():
        tried = [(group, stitch, moments) for group, moments in held_out.items() if moments.count > 1]
        tried.append(("last_centred", _centred(stitch, held_out["last"]), held_out["last"]))
        for group, one, moments in tried:
            loss = stitch_loss(one, moments)
            unexplained[name, group, "b"] = loss.up / moments.cyy.diagonal().mean().item()
            unexplained[name, group, "a"] = loss.down / moments.cxx.diagonal().mean().item()
    tokens = {"plain": plain.count, "chats": ordinary.count - plain.count, "template": of_template.count}
    names = tuple(stitched.tokenizer.convert_ids_to_tokens(template))
    return TemplateFit(stitches, unexplained, tokens, repeats, names, added)


def _centred(stitch: Stitch, moments: PairMoments) -> Stitch:
    """Keep the matrices, and take the biases that suit these tokens best."""
    up, down = (matrix.to(moments.mean) for matrix in (stitch.P_up, stitch.P_down))
    x, y = moments.mean_x, moments.mean_y
    return Stitch(up, y - x @ up, down, x - y @ down)


def _repeated(moments: PairMoments, times: int) -> PairMoments:
    """Count each token so many times."""
    total = PairMoments(moments.d_a, moments.d_b)
    while times:  # by doubling
        total = total + moments if times % 2 else total
        moments, times = moments + moments, times // 2
    return total


@dataclass(frozen=True)
class VectorNoise:
    """Mean cosines of two vectors of an instruction that come from different prompts.

    Means are over the draws and over the instructions that have prompts enough for that many pairs, which for more
    pairs may be fewer instructions. Intervals are the middle 95% of the draws.
    """

    cosines: Mapping[tuple[str, int, str], Estimate]
    """By model, `a` or `b`, and pairs of prompts behind each vector: `native`; `carried` to the other model; and
    `lost`, native less carried on the same draws."""
    instructions: Mapping[tuple[str, int], int]
    """By model and pairs of prompts: how many instructions the means are over."""

    def numbers(self, pair: str) -> dict[str, float]:
        """List the entries of a results file."""
        found: dict[str, float] = {}
        for (side, count, quantity), estimate in self.cosines.items():
            found |= estimate.numbers(f"noise.{pair}.{side}.pairs_{count}.{quantity}")
        for (side, count), instructions in self.instructions.items():
            found[f"noise.{pair}.{side}.pairs_{count}.instructions"] = instructions
        return found


def vector_noise(
    shifts: Mapping[tuple[str, str], Float[Tensor, "pairs d_model"]],
    stitch: Stitch,
    *,
    counts: tuple[int, ...] = (2, 3, 5, 10, 20, 50),
    draws: int = 200,
    seed: int = 0,
) -> VectorNoise:
    """Compare vectors from prompts drawn apart, at each of `counts` pairs of prompts that some instruction has twice.

    `shifts[side, kind]` is what an instruction adds to the stream of a model, prompt by prompt. ValueError without
    draws.
    """
    if draws < 1:
        raise ValueError(f"draws={draws}: expected at least one")
    cosines, instructions = {}, {}
    maps = {"a": stitch.P_up.cpu().double(), "b": stitch.P_down.cpu().double()}
    for (side, matrix), count in itertools.product(maps.items(), counts):
        own = [found.double() for (of, _), found in shifts.items() if of == side and len(found) >= 2 * count]
        if not own:
            continue
        generator = torch.Generator().manual_seed(seed)
        native, carried = np.zeros(draws), np.zeros(draws)
        for draw, shift in itertools.product(range(draws), own):
            order = torch.randperm(len(shift), generator=generator)
            both = torch.stack([shift[order[:count]].mean(0), shift[order[count : 2 * count]].mean(0)])
            native[draw] += torch.cosine_similarity(*both, dim=0).item() / len(own)
            carried[draw] += torch.cosine_similarity(*(both @ matrix), dim=0).item() / len(own)
        for quantity, drawn in (("native", native), ("carried", carried), ("lost", native - carried)):
            cosines[side, count, quantity] = from_draws(drawn.mean(), drawn)
        instructions[side, count] = len(own)
    return VectorNoise(cosines, instructions)
