"""What a pair at a scale takes, in positions read and in FLOPs (no section of its own; App. D counts FLOPs alike).

FLOPs are those of matrix products: of passes through the models (`models.costs`), and of SAEs. They follow from
configurations alone, so nothing is loaded but, where documents share rows, the tokenizers. Lengths of texts are not
known before they are read: `Lengths` says what they are taken to be.

Offers `Sizes`, `sizes_of`; `Workload`; `Lengths`.
"""

import dataclasses
import json
import math
import re
from typing import NamedTuple

import torch

from ..data.hub import HubError, embedded_folder
from ..data.pairs import ModelPair, SAERef, Scale
from ..data.text import paired_batches
from ..models.costs import Architecture, architecture_of, forward_flops
from ..models.language_model import load_tokenizer
from ..saes.training import training_flops
from ..stitching.nulls import COMPARED_ROWS, DRAWS


class Lengths(NamedTuple):
    """Tokens that texts are taken to have: the world's on average, others by assumption."""

    sentence: int = 32
    prompt: int = 64
    text: int = 128
    """Of a text that a probe reads, which is cut there."""


WORLD = Lengths(sentence=15, prompt=11, text=75)


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is computed. NaN where the costs of a family of models are not known."""

    tokens: float = 0
    """Positions that a model reads, those of both models added."""
    flops: float = 0
    device: float = 0
    """Bytes beside the models: of SAEs in training, with gradients and Adam's moments, or of logits of responses."""
    host: float = 0
    """Bytes of activations, and of SAEs on their way to a file, that are kept in memory."""
    disk: float = 0
    """Bytes that stay in `artifacts/`."""
    double: float = 0
    """Of the FLOPs, those of second moments and of SVCCA, in float64, which many cards compute slowly."""
    written: float = 0
    """Bytes of all checkpoints together, of which the last stays."""

    def __add__(self, other: "Workload") -> "Workload":
        """Do one after the other: what is held is let go, and what is written stays."""
        most = _most(self.device, other.device), _most(self.host, other.host)
        numbers = ("disk", "double", "written")
        sums = {name: getattr(self, name) + getattr(other, name) for name in numbers}
        return Workload(self.tokens + other.tokens, self.flops + other.flops, *most, **sums)


def _most(x: float, y: float) -> float:
    """Return the larger number, or NaN if one is not known."""
    return x + y if math.isnan(x + y) else max(x, y)


class Sizes(NamedTuple):
    """A pair at a scale, and where it runs."""

    pair: ModelPair
    scale: Scale
    name: str
    """Of the scale."""
    models: dict[str, Architecture | None]
    """By side; None for a family whose costs are not known."""
    layers: dict[str, int]
    held_out: int
    """Positions of the evaluation text, of one model."""
    on_gpu: bool
    lengths: Lengths

    @property
    def keeps(self) -> bool:
        """Whether activations stay in memory, as they do at all scales but `paper`."""
        return self.name != "paper"

    def width(self, side: str) -> float:
        """Return d_model."""
        return model.d_model if (model := self.models[side]) else math.nan

    @property
    def widths(self) -> tuple[float, float]:
        return self.width("a"), self.width("b")

    def depth(self, side: str) -> int:
        """Count the blocks; 0 if not known, where every product with a width is NaN anyway."""
        return model.n_layers if (model := self.models[side]) else 0

    def prefix(self, side: str, layer: int | None = None) -> float:
        """Count the FLOPs a token of a pass up to a layer, by default the stitched one."""
        layer = self.layers[side] if layer is None else layer
        return forward_flops(model, self.pair.context, layer) if (model := self.models[side]) else math.nan

    def whole(self, side: str, context: int | None = None) -> float:
        """Count the FLOPs a token of a pass to the logits, in rows of `context` tokens, by default the pair's."""
        if not (model := self.models[side]):
            return math.nan
        return forward_flops(model, context or self.pair.context, model.n_layers) + 2 * model.d_model * model.vocab

    def rest(self, side: str, layer: int | None = None) -> float:
        """Count the FLOPs a token from a layer to the logits."""
        return self.whole(side) - self.prefix(side, layer)

    def kept(self, sides: str = "ab") -> Workload:
        """Keep the activations of the training text, but for scale `paper`, where each pass runs the models anew."""
        return Workload(host=4 * sum(map(self.width, sides)) * self.scale.train_tokens if self.keeps else 0)

    def read(self, tokens: float, sides: str = "ab") -> Workload:
        """Run models over a text up to the stitched layers."""
        return Workload(len(sides) * tokens, tokens * sum(map(self.prefix, sides)))

    def splice(self, tokens: float, a: int = 0, b: int = 0) -> Workload:
        """Finish so many passes of a and of b from the stitched layer."""
        return Workload(flops=tokens * (a * self.rest("a") + b * self.rest("b")))

    def harvest(self, tokens: int) -> Workload:
        """Read a text and sum its second moments."""
        moments = tokens * 2 * sum(self.widths) ** 2
        return self.read(tokens) + Workload(flops=moments, double=moments)

    def logits(self, side: str, positions: float) -> float:
        """Count the bytes of logits, of their copies in float32, and of their log-probabilities."""
        size = getattr(torch, self.pair.dtype).itemsize
        a_logit = size + 4 + (4 if size < 4 else 0)
        return positions * model.vocab * a_logit if (model := self.models[side]) else math.nan

    def fidelity(self, tokens: float, losses: int) -> Workload:
        """Run `measure_fidelity` with so many losses of each model."""
        return self.read(tokens) + self.splice(tokens, losses, losses)

    def strongest(self, draws: int = DRAWS) -> Workload:
        """Find the strongest of some stitches on the first rows of held-out text."""
        rows = min(self.scale.batch_size, COMPARED_ROWS)
        return self.fidelity(min(self.held_out, rows * self.pair.context), 1 + draws)

    @property
    def first(self) -> int:
        """Positions of the first batch of held-out text."""
        return min(self.held_out, self.scale.batch_size * self.pair.context)

    def part(self, documents: int) -> float:
        """Positions of the first documents of the evaluation text."""
        return self.held_out * min(1, documents / self.scale.eval_documents)

    def step(self, side: str, width: int) -> float:
        """Count the FLOPs a token of a training step of an SAE.

        A CPU computes the encoder's product alone and gathers the few latents that fire (`saes.sparse_step`).
        """
        return training_flops(1, width) * self.width(side) if self.on_gpu else 2 * self.width(side) * width

    def sae(self, side: str) -> int:
        """Count the latents of the SAE of a side: of a published one as its name says, of others as the scale."""
        ref = self.pair.saes.get(side)
        if isinstance(ref, str) and ref.startswith("embedded:"):
            return json.loads((embedded_folder(ref, "SAE", "cfg.json") / "cfg.json").read_text())["d_sae"]
        known_by = f"{ref.release}/{ref.id}" if isinstance(ref, SAERef) else ""
        named = re.search(r"(\d+)k\b", known_by.replace("_", " "))
        return 1024 * int(named[1]) if named else self.scale.sae_latents

    def trained(self, side: str) -> Workload:
        """Train one SAE, as `native_saes` does where none is published."""
        steps, latents, width = self.scale.sae_steps, self.scale.sae_latents, self.width(side)
        tokens = steps * self.pair.sae_recipe.batch_tokens
        rounds = 1 if self.keeps else -(-tokens // self.scale.train_tokens)
        judged = (1 + steps // 100) * self.held_out * 2 * width * latents
        weights = 4 * (2 * width * latents + width + latents)
        passes = self.read(rounds * self.scale.train_tokens + self.held_out, side)
        flops = tokens * self.step(side, latents) + judged
        return passes + self.kept(side) + Workload(flops=flops, device=4 * weights, disk=weights)


def sizes_of(pair: ModelPair, scale: str, *, on_gpu: bool = False) -> Sizes:
    """Look up the sizes of a pair; ValueError for an unknown scale.

    Evaluation rows that hold several documents are counted with the tokenizers. Where the Hub does not give these, each
    document counts as a row.
    """
    sizes, refs = pair.scale(scale), {"a": pair.a, "b": pair.b}
    models = {side: architecture_of(ref) for side, ref in refs.items()}
    depth = models["b"].n_layers if models["b"] else 0
    layers = {"a": pair.a.layer or 0, "b": depth if pair.b.layer is None else pair.b.layer}  # at most
    held_out = sizes.eval_documents * pair.context  # a document is a row, cut or padded
    if pair.rows == "packed":
        try:
            tokenizers = tuple(load_tokenizer(ref.model, **ref.source) for ref in refs.values())
            options = {"context": pair.context, "batch_size": sizes.batch_size, "rows": pair.rows}
            found = paired_batches(pair.evaluation, tokenizers, n_documents=sizes.eval_documents, **options)
            held_out = sum(batch.a.tokens.numel() for batch in found)
        except HubError:
            pass
    lengths = WORLD if pair.train.source == "world" else Lengths()
    return Sizes(pair, sizes, scale, models, layers, held_out, on_gpu, lengths)
