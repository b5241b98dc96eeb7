"""Stitches that have and have not seen the chat template's tokens.

App. F.2 explains why instruction vectors transfer badly: they are taken at the last token of a chat prompt, and the
stitch was fitted on text without chats, and so without tokens such as <start_of_turn>. That can be tested. Special
tokens are masked out when a stitch is fitted (`text`); here one stitch is fitted as ever, and one with the template's
tokens let in (never beginning-of-text or padding, whose norms would drown the rest), on the same text. Moments add up,
so the second costs one pass over the rows that hold such tokens, and nothing else differs between the two. As these
tokens are few, a third stitch counts each of them as often as makes them a tenth of all: if even that changes nothing,
their number was not the reason.

Offers `template_tokens`, `with_template_tokens`, `chat_batches`, `fit_template_stitches`, `TemplateFit`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from ..data.pairs import ModelPair, TextRef
from ..data.text import TokenBatch, read_documents
from ..models.generation import encoded
from ..models.harvest import evaluation_batches, of_activations, training_batches
from ..models.language_model import LanguageModel
from ..stitching.fit import fit_exact
from ..stitching.moments import PairMoments, harvest_moments
from ..stitching.stitch import Stitch, stitch_loss
from ..utils.cache import artifact, kept
from .instructions import last_token_residuals

STITCHES = ("without", "with", "often")
OFTEN = 0.1  # share of the template's tokens in what the third stitch is fitted on
GROUPS = ("ordinary", "template", "last", "last_centred")
TURN_WORDS = 40


class TemplateFit(NamedTuple):
    """Three stitches of one text, and what each leaves unexplained of held-out streams."""

    stitches: Mapping[str, Stitch]
    """`without` and `with` template tokens, and `often`, with each of them counted several times."""
    unexplained: Mapping[tuple[str, str, str], float]
    """Share of the variance, by stitch, group of tokens (`ordinary`, `template`, and `last` of the prompts given) and
    the model `b` or `a` that the map leads to; `last_centred` leaves out the mean error at `last` tokens, which no
    difference of means sees. A group that held-out text has too little of is left out."""
    tokens: Mapping[str, int]
    """Fitted on: `ordinary` by all, `template` by all but the first."""
    repeats: int
    """How often the third stitch counts a template token."""
    names: tuple[str, ...]
    """The template's tokens."""
    chats: int
    """Made of documents and added to the text, for all; 0 where the text holds chats already."""

    def numbers(self, pair: str) -> dict[str, float]:
        """Everything that goes into a results file."""
        found = {
            f"template.{pair}.{name}.{group}.to_{towards}": value
            for (name, group, towards), value in self.unexplained.items()
        }
        found |= {f"template.{pair}.tokens.{name}": count for name, count in self.tokens.items()}
        return found | {f"template.{pair}.repeats": self.repeats, f"template.{pair}.chats": self.chats}


def template_tokens(model: LanguageModel) -> list[int]:
    """The special tokens that the chat template writes, but for those that begin, end or fill up a text.

    ValueError, naming the model, for a tokenizer without a template, or one whose template writes no such token.
    """
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(f"the tokenizer of {model.ref!r} has no chat template: expected an instruction-tuned model")
    ids = tokenizer(_chat(tokenizer, "One.", "Two."), add_special_tokens=False)["input_ids"]
    added = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = added | {*tokenizer.all_special_ids}
    special -= {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    if not (found := sorted(special & set(ids))):
        raise ValueError(f"the chat template of {model.ref!r} writes no special tokens of its own")
    return found


def _chat(tokenizer, question: str, answer: str) -> str:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return tokenizer.apply_chat_template(turns, tokenize=False)


def with_template_tokens(
    batches: Iterable[TokenBatch], template: Sequence[int], *, only: bool = False
) -> Iterator[TokenBatch]:
    """The batches with `template` tokens unmasked beside the ordinary ones.

    With `only` they alone are unmasked, and rows that have none are left out.
    """
    for batch in batches:
        is_template = torch.isin(batch.tokens, torch.tensor(list(template)))
        if not only:
            yield batch._replace(mask=batch.mask | is_template)
        elif (rows := is_template.any(1)).any():
            yield TokenBatch(batch.tokens[rows], is_template[rows], batch.documents[rows])


def chat_batches(
    model: LanguageModel, text: TextRef, count: int, *, context: int, batch_size: int
) -> Iterator[TokenBatch]:
    """Chats of one question and one answer, of the first words of `count` documents each, in rows of their own."""
    tokenizer, begin = model.tokenizer, encoded(model, "", 0)[0]
    special = torch.tensor(sorted({*tokenizer.all_special_ids, begin}))
    turn = min(TURN_WORDS, max(1, context // 8))  # two turns should fit, whatever a word takes

    def make_rows() -> Iterator[list[int]]:
        words = (document.split() for document in read_documents(text))
        for found in itertools.islice((w for w in words if len(w) > turn), count):
            chat = _chat(tokenizer, " ".join(found[:turn]), " ".join(found[turn : 2 * turn]))
            ids = tokenizer(chat, add_special_tokens=False)["input_ids"]
            yield (ids if ids[:1] == [begin] else [begin, *ids])[:context]

    rows = make_rows()
    start = 0
    while chunk := list(itertools.islice(rows, batch_size)):
        tokens = torch.tensor([row + [tokenizer.eos_token_id] * (context - len(row)) for row in chunk])
        filled = torch.tensor([len(row) for row in chunk])[:, None] > torch.arange(context)
        owners = torch.arange(start, start + len(chunk))[:, None].expand(-1, context)
        yield TokenBatch(tokens, ~torch.isin(tokens, special) & filled, owners)
        start += len(chunk)


def fit_template_stitches(
    pair: ModelPair,
    models: tuple[LanguageModel, LanguageModel],
    layers: tuple[int, int],
    *,
    scale: str,
    alpha: float = 1.0,
    ridge: float = 1e-8,
    prompts: Sequence[str] = (),
) -> TemplateFit:
    """The three stitches of a pair, and their errors on held-out text and at the last token of `prompts`.

    The world's text holds chats. To other text as many as `sizes.yml` says
    are added, for all stitches, made of the first
    documents; the ordinary tokens in them count for all.
    """
    template = template_tokens(models[0])
    added = 0 if pair.train.source == "world" else pair.sizes_of("template_tokens", scale)["chats"]
    sizes, tokenizer = pair.scale(scale), models[0].tokenizer

    def harvest(batches: Iterable[TokenBatch]) -> PairMoments:
        return harvest_moments(*models, batches, [layers])[layers]

    def chats(text: TextRef, count: int) -> Iterator[TokenBatch]:
        return chat_batches(models[0], text, count, context=pair.context, batch_size=sizes.batch_size)

    def template_of(text: TextRef, count: int) -> PairMoments:
        if added:
            return harvest(with_template_tokens(chats(text, count), template, only=True))
        source = training_batches(pair, sizes, tokenizer, sizes.train_tokens)
        if text is pair.evaluation:
            source = evaluation_batches(pair, sizes, tokenizer)
        return harvest(with_template_tokens(source, template, only=True))

    made_of = of_activations(pair, layers, scale=scale) | {"template": template, "chats": added}
    in_template = kept(
        artifact(pair.name, "template-moments", made_of, sources=(fit_template_stitches,), suffix=".safetensors"),
        lambda: template_of(pair.train, added),
        PairMoments.save,
        PairMoments.load,
    )
    ordinary = StitchedPair(pair, models, layers, scale).moments
    if added:
        ordinary = ordinary + harvest(chats(pair.train, added))
    repeats = max(1, round(OFTEN / (1 - OFTEN) * ordinary.count / max(in_template.count, 1)))
    data = (ordinary, ordinary + in_template, ordinary + _repeated(in_template, repeats))
    stitches = {name: fit_exact(moments, alpha=alpha, ridge=ridge) for name, moments in zip(STITCHES, data)}
    held_out = {
        "ordinary": harvest(evaluation_batches(pair, sizes, tokenizer)),
        "template": template_of(pair.evaluation, max(added // 10, 4)),
    }
    if prompts:
        held_out["last"] = PairMoments(models[0].d_model, models[1].d_model)
        x, y = (last_token_residuals(model, layer, prompts) for model, layer in zip(models, layers))
        held_out["last"].update(x, y)
    found = {
        (name, group): unexplained_variance(stitch, moments)
        for name, stitch in stitches.items()
        for group, moments in held_out.items()
        if moments.count > 1
    }
    if prompts:
        for name, stitch in stitches.items():
            found[name, "last_centred"] = unexplained_variance(_centred(stitch, held_out["last"]), held_out["last"])
    unexplained = {(*key, towards): value for key, both in found.items() for towards, value in zip("ba", both)}
    tokens = {"ordinary": ordinary.count, "template": in_template.count}
    names = tuple(tokenizer.convert_ids_to_tokens(template))
    return TemplateFit(stitches, unexplained, tokens, repeats, names, added)


def _centred(stitch: Stitch, moments: PairMoments) -> Stitch:
    """The same matrices with the biases that suit these tokens best."""
    up, down = (matrix.to(moments.mean) for matrix in (stitch.P_up, stitch.P_down))
    x, y = moments.mean_x, moments.mean_y
    return Stitch(up, y - x @ up, down, x - y @ down)


def _repeated(moments: PairMoments, times: int) -> PairMoments:
    """Those of the same tokens, each counted so many times."""
    total = PairMoments(moments.d_a, moments.d_b)
    while times:  # by doubling
        total = total + moments if times % 2 else total
        moments, times = moments + moments, times // 2
    return total


def unexplained_variance(stitch: Stitch, moments: PairMoments) -> tuple[float, float]:
    """Shares of the variance of y that `up`, and of x that `down`, leave unexplained; the mean leaves 1."""
    loss = stitch_loss(stitch, moments)
    variances = [covariance.diagonal().mean().item() for covariance in (moments.cyy, moments.cxx)]
    return loss.up / variances[0], loss.down / variances[1]
