"""Whether TransformerBridge computes what transformers computes, and whether that is finite.

No section of the paper. TransformerBridge computes most families as transformers does, and some otherwise. So each
model answers a short row of tokens twice, as transformers loaded it and through the bridge, before anybody reads a
stream; the second text of the row differs in its last token alone, which no earlier stream of a causal model sees.

Offers `own_answers` and `compare`, which gives an `Agreement`; `is_finite` and `overflow`; `in_one_line` and
`first_line`, for errors of other libraries.
"""

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .half_precision import fast_products

ROW = 8  # tokens; a forward pass of so few takes no time beside the loading
WIDER = {"float16": "bfloat16 or float32", "bfloat16": "float32"}


class Agreement(NamedTuple):
    """How far TransformerBridge is from transformers, as shares of the norm of what transformers gives a token."""

    residuals: float
    """The largest difference of a residual stream before a layer."""
    logits: float
    """The largest difference of the logits around their mean."""
    allowed: float
    """What the data type allows: the root of the distance from 1 to its next number."""


class Answers(NamedTuple):
    """What transformers gives for `tokens`, (2, ROW), on the CPU in float32."""

    tokens: Tensor
    streams: list[Tensor]
    """The residual stream before each layer, (2, ROW, d_model)."""
    logits: Tensor


@torch.no_grad()
def own_answers(name: str, hf_model: Any, tokenizer: Any) -> Answers:
    """Answer a short row as transformers does, before TransformerBridge puts its modules into the model.

    ValueError where values are not finite, where a token changes the streams before it, and where there is no stream.
    """
    config, kind = hf_model.config.get_text_config(), hf_model.config.model_type
    tokens = _short_row(tokenizer, len(hf_model.get_input_embeddings().weight))
    with in_one_line(name, kind, "transformers"), fast_products(hf_model.device, hf_model.dtype):
        output = hf_model(input_ids=tokens.to(hf_model.device), output_hidden_states=True)
    streams = [stream.float().cpu() for stream in output.hidden_states or ()][: config.num_hidden_layers]
    if not streams:
        raise ValueError(f"{name!r} ({kind}) gives no residual streams in transformers")
    logits = output.logits.float().cpu()
    for layer, answer in enumerate((*streams, logits)):
        if not is_finite(answer):
            what = "logits" if layer == len(streams) else f"the residual stream before layer {layer}"
            raise ValueError(overflow(what, name, hf_model.dtype))
    for answer in (*streams, logits):
        if difference(answer[1, :-1], answer[0, :-1]) > allowed(hf_model.dtype):
            raise ValueError(f"{name!r} ({kind}) lets tokens see those after them: expected a causal language model")
    return Answers(tokens, streams, logits)


def _short_row(tokenizer: Any, size: int) -> Tensor:
    """Take ordinary tokens from all over a vocabulary; twice, with another at the end of the second."""
    spread = [n * size // (2 * ROW + 2) for n in range(1, 2 * ROW + 2)]
    special = set(tokenizer.all_special_ids)
    ordinary = [token for token in spread if token not in special]
    row = (ordinary if len(ordinary) > ROW else spread)[: ROW + 1]
    return torch.tensor([row[:ROW], [*row[: ROW - 1], row[ROW]]])


def compare(name: str, kind: str, model: Any, answers: Answers) -> Agreement:
    """Compare the streams and logits of a LanguageModel with transformers' own.

    ValueError names the layer before which they differ by more than the data type explains.
    """
    dtype, worst = model.hf_model.dtype, 0.0
    limit, named = allowed(dtype), str(dtype).removeprefix("torch.")

    def refuse(what: str, by: float) -> None:
        if not by <= limit:
            raise ValueError(
                f"{name!r}: TransformerBridge computes the family {kind!r} otherwise than transformers: {what} "
                f"differ by {by:.1g} of their norm, and {named} explains {limit:.1g}. Such a model is not stitched"
            )

    if model.n_layers != len(answers.streams):
        counts = f"{model.n_layers} layers, and transformers {len(answers.streams)}"
        raise ValueError(
            f"{name!r}: TransformerBridge gives the family {kind!r} {counts}. Such a model is not stitched"
        )
    with in_one_line(name, kind, "TransformerBridge"):
        found = model.residuals(answers.tokens, range(model.n_layers))
        logits = model.logits(answers.tokens).float().cpu()
    for layer, expected in enumerate(answers.streams):
        by = difference(found[layer].float().cpu(), expected)
        refuse(f"residual streams before layer {layer}", by)
        worst = max(worst, by)
    logits, expected = (each - each.mean(-1, keepdim=True) for each in (logits, answers.logits))
    by = difference(logits, expected)
    refuse("logits", by)
    return Agreement(worst, by, limit)


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest distance of a token's vectors as a share of the norm of the expected one; NaN stays NaN."""
    if found.shape != expected.shape:
        return float("inf")
    return ((found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-30)).max().item()


def allowed(dtype: torch.dtype) -> float:
    """Return the share by which two orders of the same sums may differ: half of the digits of a data type."""
    return torch.finfo(dtype).eps ** 0.5


def is_finite(values: Tensor) -> bool:
    """Tell whether all values are finite; unlike torch.isfinite, without a copy."""
    return not values.numel() or all(bool(torch.isfinite(end)) for end in values.aminmax())


def overflow(what: str, name: str, dtype: torch.dtype) -> str:
    """Say of what is not finite, such as the residual stream before a layer, in which model and data type it is so."""
    named = str(dtype).removeprefix("torch.")
    wider = WIDER.get(named)
    way_out = f"choose {wider} as dtype" if wider else "its weights, or what was put into its stream, are damaged"
    return f"{what} of {name!r} holds values that are not finite in {named}: {way_out}"


@contextlib.contextmanager
def in_one_line(name: str, kind: str, library: str):
    """Re-raise whatever a library says of a family that it cannot compute as one ValueError."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if "determine supported architecture" in str(error):
            raise ValueError(f"{name!r}: {library} does not know the family {kind!r}") from error
        said = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"{name!r}: {library} cannot compute the family {kind!r} ({said})") from error


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or a part of it."""
    said = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
    return said if len(said) <= 200 else f"{said[:200]}..."
