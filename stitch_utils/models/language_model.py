"""One small interface to a language model's residual stream: read it, replace it, edit it while generating.

Section 2 and Table 1. Layer l is the residual stream *before* block l, `blocks.{l}.hook_resid_pre`. TransformerBridge
keeps the raw numerics of Hugging Face (no folded norms, no centred weights), so these are the paper's streams.

Offers `LanguageModel` and `Edit`; `load_model`, `load_tokenizer` and `load_config` for one model reference;
`count_parameters`; for a pair `load_models`, `forget_models`, `set_threads`, and `check_pair`, which loads no weights.
"""

import contextlib
import copy
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from huggingface_hub import hf_hub_download
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from ..data.hub import HubError, fetched, resolve
from ..data.pairs import DTYPES, ModelPair, blaming, check_known
from ..data.tokenizer import as_trained, begin_and_end, check_ids, check_tokenizer, check_vocabulary, explaining
from ..utils import ranks
from .agreement import Agreement, compare, in_one_line, own_answers
from .checks import (
    check_causal,
    check_code,
    check_json,
    check_weights,
    explained,
    is_causal,
    is_of_repository,
    loader_of,
)
from .gguf_files import gguf_config, gguf_model, gguf_tokenizer
from .half_precision import fast_products

Tokens = Int[Tensor, "batch pos"]
Mask = Bool[Tensor, "batch pos"]
Edit = Callable[[Tensor], Tensor]  # of the residual stream at one layer, (batch, pos, d_model)


class _Enough(Exception):
    """Ends a forward pass that has read all the layers asked for."""


class LanguageModel:
    """A causal language model with its tokenizer. `ref` says where from; `config` describes its text part.

    `agreement` says how far the bridge is from transformers, where `load_model` has compared them.
    """

    agreement: Agreement | None = None

    def __init__(self, bridge: TransformerBridge, tokenizer, ref: str):
        self.bridge, self.tokenizer, self.ref = bridge, tokenizer, ref
        self.hf_model: Any = bridge.original_model
        self.config = self.hf_model.config.get_text_config()
        self.n_layers: int = bridge.cfg.n_layers
        self.d_model: int = bridge.cfg.d_model
        check_vocabulary(tokenizer, self._n_embeddings, ref)

    @classmethod
    def from_bridge(cls, bridge: TransformerBridge, tokenizer) -> "LanguageModel":
        """Wrap a model that is loaded already, by the name in its configuration.

        Load it with eager attention and without folded norms, as `load_model` does, or its streams are others.
        """
        config: Any = bridge.original_model.config
        return cls(bridge, tokenizer, config.name_or_path or bridge.cfg.model_name)

    @property
    def device(self) -> torch.device:
        return next(self.hf_model.parameters()).device

    @cached_property
    def _n_embeddings(self) -> int:
        return len(self.hf_model.get_input_embeddings().weight)

    def _placed(self, tokens: Tokens) -> Tokens:
        """Move tokens to the model's device; ValueError for one without an embedding."""
        check_ids(tokens, self.tokenizer, self._n_embeddings, self.ref)
        return tokens.to(self.device)

    def _fast(self):
        return fast_products(self.device, self.hf_model.dtype)

    def hook_name(self, layer: int) -> str:
        """Name the hook point before block `layer`; ValueError if there is no such block."""
        _check_layer(self.ref, layer, self.n_layers)
        return f"blocks.{layer}.hook_resid_pre"

    @torch.no_grad()
    def residuals(self, tokens: Tokens, layers: Sequence[int]) -> dict[int, Float[Tensor, "batch pos d_model"]]:
        """Read the residual stream before each of `layers` in one forward pass, which ends at the last of them."""
        if not layers:
            raise ValueError("no layers given: expected at least one")
        found: dict[int, Tensor] = {}

        def read(residual: Tensor, hook, layer: int) -> None:
            found[layer] = residual
            if layer == max(layers):
                raise _Enough

        hooks = [(self.hook_name(layer), partial(read, layer=layer)) for layer in sorted(set(layers))]
        # run_with_cache(stop_at_layer=l) stops before it has read layer l, so it would run one block too many.
        with self.bridge.hooks(fwd_hooks=hooks), self._fast(), contextlib.suppress(_Enough):
            self.bridge(self._placed(tokens), return_type=None)
        return {layer: found[layer] for layer in layers}

    def _changed(self, what: str, layer: int, change: Edit):
        """Put what `change` makes of the residual stream before block `layer` in its place, within a context."""

        def hook(residual: Tensor, hook) -> Tensor:
            changed = change(residual)
            given, wanted = tuple(changed.shape), tuple(residual.shape)
            if given != wanted:
                raise ValueError(f"the {what} at layer {layer} of {self.ref!r} has shape {given}: expected {wanted}")
            return changed.to(residual)

        return self.bridge.hooks(fwd_hooks=[(self.hook_name(layer), hook)])

    @contextlib.contextmanager
    def _edited(self, layer: int | None, edit: Edit | None, stream: Tensor | None = None):
        """Within a context, begin at block `layer` with `stream` (the blocks before do nothing), and apply `edit`."""
        if layer is None:
            if stream is not None:
                raise ValueError("a residual stream was given, and not the layer that it stands before")
            yield
            return
        with contextlib.ExitStack() as stack:
            if stream is not None:
                in_tuples = self._gives_tuples  # asked before a block is replaced

                def nothing(hidden_states: Tensor, *given, **named):
                    return (hidden_states, None) if in_tuples else hidden_states

                for block in list(self.bridge.blocks)[:layer]:
                    stack.enter_context(mock.patch.dict(block.__dict__, forward=nothing))
                stack.enter_context(self._changed("stream", layer, lambda _: stream))
            if edit is not None:
                stack.enter_context(self._changed("edit", layer, edit))
            yield

    @cached_property
    def _gives_tuples(self) -> bool:
        """Whether blocks return the stream with other things in a tuple, as seen on one token."""
        block, found = self.bridge.blocks[0], []
        with block.register_forward_hook(lambda _, given, output: found.append(isinstance(output, tuple))):
            self.bridge(torch.zeros(1, 1, dtype=torch.long, device=self.device), return_type=None)
        return found[0]

    @torch.no_grad()
    def logits(
        self,
        tokens: Tokens,
        *,
        mask: Mask | None = None,
        layer: int | None = None,
        edit: Edit | None = None,
        stream: Float[Tensor, "batch pos d_model"] | None = None,
    ) -> Float[Tensor, "batch pos vocab"]:
        """Compute next-token logits, with `edit` applied to the residual stream before `layer` if both are given.

        `mask` is False at padding, on either side, to which no token attends; positions are counted without it. Where
        the residual stream before `layer` is known, as `stream`, the blocks before it are not computed.
        """
        shown = {} if mask is None else {"attention_mask": mask.to(self.device, torch.long)}
        with self._edited(layer, edit, stream), self._fast():
            return self.bridge(self._placed(tokens), return_type="logits", **shown)

    @torch.no_grad()
    def cross_entropy(self, tokens: Tokens, **options: Any) -> Float[Tensor, "batch pos-1"]:
        """Compute the loss in nats of each token from the second on; the options are those of `logits`."""
        logits = self.logits(tokens, **options).float()
        # Whole rows, since a slice would be copied: the last logits predict no token, and what they give is dropped.
        following = tokens.to(logits.device).roll(-1, dims=1)
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="none")
        return losses.view(tokens.shape)[:, :-1]

    @property
    def stop_tokens(self) -> list[int]:
        """The tokens that end a response: end-of-text, and those that the model's generation settings name."""
        named = getattr(self.hf_model.generation_config, "eos_token_id", None)
        named = named if isinstance(named, list) else [named]
        return sorted({begin_and_end(self.tokenizer)[1], *named} - {None})

    @torch.no_grad()
    def generate(
        self,
        tokens: Tokens,
        max_new_tokens: int,
        *,
        mask: Mask | None = None,
        layer: int | None = None,
        edit: Edit | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Int[Tensor, "batch new"]:
        """Generate new tokens after prompts, greedily at temperature 0; fill rows with end-of-text after a stop token.

        Prompts are padded on the left, where `mask` is False. `edit` is applied to each position once.
        """
        tokens, end = self._placed(tokens), begin_and_end(self.tokenizer)[1]
        mask = torch.ones_like(tokens) if mask is None else mask.to(self.device, torch.long)
        choice = {"temperature": temperature, "top_k": 0} if temperature > 0 else {}
        choice |= {"do_sample": temperature > 0, "eos_token_id": self.stop_tokens, "pad_token_id": end}
        settings = GenerationConfig(max_new_tokens=max_new_tokens, use_cache=True, **choice)
        devices = [self.device.index or 0] if self.device.type == "cuda" else []
        # The bridge's own `generate` knows no padding. Its hooks are in the modules that this one runs, too.
        with self._edited(layer, edit), self._fast(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            output = self.hf_model.generate(tokens, attention_mask=mask, generation_config=settings)
        return output[:, tokens.shape[1] :]


def _check_layer(ref: str, layer: int, n_layers: int) -> None:
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < n_layers:
        raise ValueError(f"layer {layer} of {ref!r} does not exist: it has {n_layers} layers (0-{n_layers - 1})")


PARTS: dict[Any, str] = {AutoConfig: "the configuration", AutoTokenizer: "the tokenizer"}
GGUF: dict[Any, Callable] = {AutoConfig: gguf_config, AutoTokenizer: gguf_tokenizer, AutoModelForCausalLM: gguf_model}


def _from_anywhere(kind, ref: str, revision: str | None, trust_remote_code: bool, **options):
    """Load a part of a model by transformers; HubError from the Hub, ValueError for what is bad in a folder or file."""
    path = resolve(ref)
    if Path(path).is_file():
        return GGUF[kind](path, **options)
    # Without a word on it transformers would ask, and nothing but True is a yes.
    load = partial(kind.from_pretrained, path, trust_remote_code=trust_remote_code is True, **options)
    folder = Path(path)
    try:
        if folder.is_dir():
            return load()
        config = fetched(
            "model", path, lambda: hf_hub_download(path, "config.json", revision=revision), revision=revision
        )
        folder = Path(config).parent
        return fetched("model", path, lambda: load(revision=revision), revision=revision)
    except (HubError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ValueError(explained(path, folder, error, PARTS.get(kind, "the model"))) from error


def count_parameters(config) -> int:
    """Count the parameters of the model that a Hugging Face configuration describes; tied matrices count once.

    Of a text part that is no model by itself, the modules and the unembedding. ValueError for an unknown family.
    """
    config = copy.deepcopy(config)
    trust_remote_code = is_of_repository(config)
    with torch.device("meta"):
        if trust_remote_code or is_causal(config):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
            return sum(parameter.numel() for parameter in model.parameters())
        model = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    unembedding = 0 if getattr(config, "tie_word_embeddings", False) else config.vocab_size * config.hidden_size
    return sum(parameter.numel() for parameter in model.parameters()) + unembedding


def load_config(ref: str, *, revision: str | None = None, trust_remote_code: bool = False):
    """Load the Hugging Face configuration of a model reference; of one that reads images too, the text part.

    ValueError for a model that is no causal language model.
    """
    config = _from_anywhere(AutoConfig, ref, revision, trust_remote_code)
    check_causal(ref, config)
    return config.get_text_config()


def load_tokenizer(ref: str, *, revision: str | None = None, trust_remote_code: bool = False):
    """Load the tokenizer of a model reference; ValueError where there is none, or none that reads as it was trained."""
    path = resolve(ref)
    with explaining(ref, path):
        tokenizer = _from_anywhere(AutoTokenizer, ref, revision, trust_remote_code)
    if not Path(path).is_file():  # as a GGUF file is
        check_tokenizer(tokenizer, ref, path)
    return as_trained(tokenizer)


def load_model(
    ref: str,
    device: str | None = None,
    *,
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
    device_map: str | Mapping[str, str | int] | None = None,
) -> LanguageModel:
    """Load a Hub id, a local folder, a GGUF file, or `embedded:NAME`; by default on the GPU if there is one.

    Code that a repository brings runs only with `trust_remote_code`. A `device_map`, `auto` or devices by the names of
    modules, spreads a model over devices, and a stream is then read on the device that it is on. ValueError for an
    unknown dtype, for weights that are not those of the configuration, and for a model that TransformerBridge computes
    otherwise than transformers; HubError (a ValueError) for what the Hub does not give.
    """
    check_known("dtype", dtype, DTYPES)
    if device_map is None:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    elif device or ranks.count() > 1:
        raise ValueError(f"{ref!r} has a device_map: expected no device, and one process")
    config = _from_anywhere(AutoConfig, ref, revision, trust_remote_code)
    check_causal(ref, config)
    tokenizer = load_tokenizer(ref, revision=revision, trust_remote_code=trust_remote_code)
    # The bridge's hooks see the patterns of eager attention; weights of other shapes are refused with their names.
    options = {"dtype": getattr(torch, dtype), "attn_implementation": "eager", "use_safetensors": True}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    if device_map is not None:
        options["device_map"] = device_map
    if (folder := Path(resolve(ref))).exists():  # is read in no time
        transformers_logging.disable_progress_bar()
        check_json(ref, folder.glob("generation_config.json"))
    try:
        loaded: Any = _from_anywhere(loader_of(config), ref, revision, trust_remote_code, **options)
    finally:
        transformers_logging.enable_progress_bar()
    hf_model, keys = loaded
    check_weights(ref, keys, hf_model.config.get_text_config().num_hidden_layers)
    if not trust_remote_code:
        check_code(ref, hf_model)
    check_vocabulary(tokenizer, len(hf_model.get_input_embeddings().weight), ref)
    hf_model, kind = (hf_model if device is None else hf_model.to(device)).eval(), config.model_type
    answers = own_answers(ref, hf_model, tokenizer)  # before the bridge puts its modules into the model
    # The bridge changes its tokenizer, which reads no text here: one without a begin-of-text token gets the end token
    # for it, and one that does not write it is loaded anew, which a GGUF file does not allow.
    of_bridge = copy.deepcopy(tokenizer)
    of_bridge.init_kwargs["add_bos_token"] = True
    # For a model that reads images, too, the bridge loads their processor. Where that fails it has pip install
    # torchvision, and with it another torch than the one that runs.
    without_processor = mock.patch.object(AutoProcessor, "from_pretrained", lambda *given, **options: None)
    with in_one_line(ref, kind, "TransformerBridge"), without_processor:
        bridge = TransformerBridge.boot_transformers(
            resolve(ref),
            hf_model=hf_model,
            tokenizer=of_bridge,
            device=device,
            dtype=options["dtype"],
        )
    model = LanguageModel(bridge.eval(), tokenizer, ref)
    model.agreement = compare(ref, kind, model, answers)
    return model


def check_pair(pair: ModelPair) -> None:
    """Check, without weights, that both models exist, have these layers and hold the context.

    ValueError names the pair, its file and what to do.
    """
    for side, ref in (("a", pair.a), ("b", pair.b)):
        with blaming(pair, f"model {side}"):
            config = load_config(ref.model, **ref.source)
            if ref.layer is not None:
                _check_layer(ref.model, ref.layer, config.num_hidden_layers)
            if pair.context > (longest := getattr(config, "max_position_embeddings", None) or pair.context):
                raise ValueError(f"{ref.model!r} reads {longest} tokens at most: choose a context below {pair.context}")


@lru_cache(maxsize=4)
def _load_once(ref: str, device: str | None, device_map: str, **options) -> LanguageModel:
    """Load a model; `device_map` is in JSON, which a cache can compare."""
    return load_model(ref, device, device_map=json.loads(device_map), **options)


def load_models(pair: ModelPair, device: str | None = None) -> tuple[LanguageModel, LanguageModel]:
    """Load models A and B of a pair, after `check_pair`. The four used last stay in memory until `forget_models`."""
    check_pair(pair)
    with blaming(pair, "models"):
        a, b = (
            _load_once(ref.model, device, json.dumps(ref.device_map), dtype=pair.dtype, **ref.source)
            for ref in (pair.a, pair.b)
        )
    return a, b


def forget_models() -> None:
    """Drop the models that `load_models` keeps in memory."""
    _load_once.cache_clear()


def set_threads(pair: ModelPair) -> None:
    """Give this process the CPU threads that the pair's file fixes, if it does: their number decides how sums round."""
    if pair.threads:
        torch.set_num_threads(pair.threads)
