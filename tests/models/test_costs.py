"""Costs from a configuration, against transformers' own modules, torch's FLOP counter, and live tensors."""

import contextlib

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    SmolLM3Config,
)

from stitch_utils.data.pairs import ModelRef, known_pairs, load_pair
from stitch_utils.data.text import TokenBatch
from stitch_utils.models import costs as flops
from stitch_utils.models import language_model
from stitch_utils.models.costs import (
    activation_bytes,
    architecture_of,
    forward_flops,
    harvest_cost,
    measure,
    power_of_ten,
    stitch_adam_flops,
)
from stitch_utils.models.language_model import count_parameters, load_model
from stitch_utils.stitching import moments
from stitch_utils.stitching.fit import fit_adam
from stitch_utils.stitching.moments import PairMoments, harvest_moments

# No two sizes alike, so that none can stand in for another; and each switch on and off.
NEOX = {
    "vocab_size": 500,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "intermediate_size": 200,
}
LLAMA = NEOX | {"num_key_value_heads": 2}
SMALL = {
    "gpt_neox": GPTNeoXConfig(**NEOX, max_position_embeddings=64),
    "gpt_neox without attention biases, tied": GPTNeoXConfig(**NEOX, attention_bias=False, tie_word_embeddings=True),
    "gpt2": GPT2Config(vocab_size=500, n_embd=48, n_layer=4, n_head=6, n_inner=200, n_positions=64),
    "gpt2 of the usual MLP": GPT2Config(vocab_size=500, n_embd=48, n_layer=2, n_head=3, n_positions=77),
    "gemma2": Gemma2Config(**LLAMA, head_dim=20, sliding_window=16, max_position_embeddings=64),
    "llama": LlamaConfig(**LLAMA, max_position_embeddings=64),
    "llama with biases, tied": LlamaConfig(
        **NEOX, head_dim=20, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "mistral": MistralConfig(**LLAMA, max_position_embeddings=64),
    "qwen2": Qwen2Config(**LLAMA, max_position_embeddings=64),
    "smollm3": SmolLM3Config(**LLAMA, pad_token_id=0, max_position_embeddings=64),
}
PYTHIA = {"vocab_size": 50304, "rotary_pct": 0.25}
PUBLISHED = {
    "pythia-70m-deduped": (
        70_426_624,
        GPTNeoXConfig(**PYTHIA, hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=2048),
    ),
    "pythia-160m-deduped": (
        162_322_944,
        GPTNeoXConfig(**PYTHIA, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072),
    ),
    "gpt2": (124_439_808, GPT2Config()),
    "gpt2-medium": (354_823_168, GPT2Config(n_embd=1024, n_layer=24, n_head=16)),
    "gemma-2-2b": (2_614_341_888, Gemma2Config()),
    "gemma-2-9b": (
        9_241_705_984,
        Gemma2Config(
            hidden_size=3584,
            num_hidden_layers=42,
            num_attention_heads=16,
            num_key_value_heads=8,
            intermediate_size=14336,
        ),
    ),
}
# Layer, batch and context: many positions, so that attention is the worst point; few, so that the MLP is.
PASSES = [(3, 2, 60), (2, 64, 3), (1, 16, 8)]


def sizes_of(config):
    """The architecture that a pair's file states."""
    return architecture_of(ModelRef("no/model", config=config.to_dict()))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_published(name):
    published, config = PUBLISHED[name]
    assert sizes_of(config).n_parameters == published


@pytest.mark.parametrize("name", SMALL)
def test_flops_of_a_forward_pass_are_those_that_torch_counts(name):
    model = AutoModelForCausalLM.from_config(SMALL[name], attn_implementation="eager").eval()
    tokens = torch.zeros(3, 32, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens)
    a = sizes_of(SMALL[name])
    a_token = forward_flops(a, 32, a.n_layers) + 2 * a.d_model * a.vocab  # and the unembedding
    assert tokens.numel() * a_token == counter.get_total_flops()


# SmolLM2, Qwen3 and Gemma 3 tie the unembedding to the embedding.
OWN_PAIRS = {
    "smollm2": (134_515_008, 361_821_120),
    "qwen3": (596_049_920, 1_720_574_976),
    "gemma3": (268_098_176, 999_885_952),
    "smollm2-gemma3": (134_515_008, 268_098_176),
}


@pytest.mark.parametrize("name", OWN_PAIRS)
def test_the_sizes_in_a_pairs_file_are_those_published(name):
    pair = load_pair(name)
    counts = [count_parameters(AutoConfig.for_model(**ref.config)) for ref in (pair.a, pair.b)]
    assert tuple(counts) == OWN_PAIRS[name]


def test_costs_of_the_packages_pairs_need_no_network(monkeypatch):
    monkeypatch.setattr(flops, "load_config", lambda ref, revision: pytest.fail(f"{ref} has no sizes in its file"))
    known = [pair for pair in map(load_pair, known_pairs()) if not pair.a.model.startswith("embedded:")]
    assert len(known) > 5
    for pair in known:
        told = [architecture_of(ref) is not None for ref in (pair.a, pair.b)]
        assert all(told) == (pair.name not in ("qwen3", "gemma3", "smollm2-gemma3"))


def test_what_cannot_be_told():
    assert sizes_of(BloomConfig()) is None, "costs of other families are not known, which ends no run"
    assert architecture_of(ModelRef("nobody/nothing")) is None, "nor are those of what the Hub does not give"
    with pytest.raises(ValueError, match="no folder with a Hugging Face model"):
        architecture_of(ModelRef("./nothing"))
    a = sizes_of(SMALL["gpt2"])
    with pytest.raises(ValueError, match="5 blocks were asked for: the model has 4"):
        forward_flops(a, 32, 5)


def test_live_bytes_of_a_run_that_can_be_told_by_hand():
    before = torch.zeros(1000)
    left, right = torch.ones(20, 30), torch.ones(30, 40)

    def run():
        first = before + 1  # 4000
        first[:10].mul_(2)  # a view, in place: nothing new
        second = first.double()  # 12000
        del first  # 8000
        third = second.view(10, 100).T.contiguous()  # 16000
        beside = before.view(10, 100)  # a view of what was there: nothing new
        del second, beside
        return left @ right, third.sum()  # 8000, 3200 and 8

    assert measure(run) == (2 * 20 * 30 * 40, 16_000)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module", params=[name for name in SMALL if " " not in name])
def small_model(request, dtype, random_models, tmp_path_factory):
    """A random model as the package loads it, on a CPU that multiplies bfloat16 as an accelerator does."""
    folder = tmp_path_factory.mktemp(request.param)
    AutoModelForCausalLM.from_config(SMALL[request.param]).save_pretrained(folder)
    random_models[0].tokenizer.save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model, "fast_products", lambda device, dtype: contextlib.nullcontext())
        yield load_model(str(folder), "cpu", dtype=dtype)


@pytest.mark.parametrize("layer, batch_size, context", PASSES)
def test_a_truncated_pass_takes_what_the_formulas_say(small_model, dtype, layer, batch_size, context):
    """FLOPs exactly, bytes within 2%: rotations, position ids and the like are left out."""
    architecture = sizes_of(small_model.config)
    tokens = torch.arange(batch_size * context).reshape(batch_size, context) % 500
    small_model.logits(tokens[:1, :1])  # replaces what earlier passes left
    # Twice, since a pass of a harvest follows on another, which leaves something behind.
    counted, measured = measure(lambda: [small_model.residuals(tokens, [layer]) and None for _ in range(2)])
    assert counted // 2 == tokens.numel() * forward_flops(architecture, context, layer)
    peak, _ = activation_bytes(architecture, layer, batch_size=batch_size, context=context, dtype=dtype)
    assert peak == pytest.approx(measured, rel=0.02)


def test_weights_take_what_the_formula_says(small_model, dtype):
    parameters = small_model.bridge.parameters()
    storages = {storage._cdata: storage.nbytes() for storage in (p.untyped_storage() for p in parameters)}
    assert sizes_of(small_model.config).weight_bytes(dtype) == sum(storages.values())


# The last: so few tokens that the worst point is when the moments are taken in.
@pytest.mark.parametrize(
    "batch_size, context, worst", [(4, 48, "activations"), (16, 8, "activations"), (1, 24, "moments")]
)
def test_a_harvest_takes_what_the_formulas_say(random_models, batch_size, context, worst):
    """FLOPs exactly, bytes within 2%."""
    tokens = torch.arange(batch_size * context).reshape(batch_size, context) % 300
    batches = [TokenBatch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens))] * 3
    for model in random_models:
        model.logits(tokens[:1, :1])
    counted, measured = measure(lambda: harvest_moments(*random_models, batches, [(2, 3)]))
    a, b = (sizes_of(model.config) for model in random_models)
    cost = harvest_cost(
        a, b, (2, 3), tokens=3 * tokens.numel(), context=context, batch_size=batch_size, dtype="float32"
    )
    assert cost.flops == counted
    assert cost.peak - cost.weights == pytest.approx(measured, rel=0.02)
    assert (worst == "moments") == (cost.moments > cost.activations)
    assert cost.store == 4 * 3 * tokens.numel() * (32 + 48)


@pytest.mark.parametrize("n, at_once", [(200, 200), (2000, 2000), (2000, 1000)])
def test_moments_take_what_the_formula_says(monkeypatch, n, at_once):
    """Few rows, of which the matrices take most; many; and many in two parts."""
    for module in (flops, moments):
        monkeypatch.setattr(module, "ROWS_AT_ONCE", at_once)
    x, y = torch.randn(n, 48), torch.randn(n, 48)
    counted, measured = measure(lambda: PairMoments(48, 48).update(x, y))
    a = sizes_of(SMALL["gpt2"])
    cost = harvest_cost(a, a, (1, 1), tokens=n, context=1, batch_size=n, dtype="float32")
    assert cost.flops - 2 * n * forward_flops(a, 1, 1) == counted
    assert cost.moments == pytest.approx(measured, rel=0.05)


def test_a_step_of_adam_takes_what_the_formula_says_and_table_3():
    batches = [(torch.randn(50, 12), torch.randn(50, 20)) for _ in range(3)]
    counted, _ = measure(lambda: fit_adam(batches, d_a=12, d_b=20, n_steps=3))
    assert counted == stitch_adam_flops(12, 20, 150)
    assert f"{stitch_adam_flops(512, 768, 36_000 * 10 * 512):.1e}" == "1.4e+15"


def test_the_gemma_pair_in_bfloat16_fits_a_gpu_of_80_gb_where_a_store_is_large():
    a, b = (sizes_of(PUBLISHED[name][1]) for name in ("gemma-2-2b", "gemma-2-9b"))
    cost = harvest_cost(a, b, (20, 33), tokens=23_040_000, context=128, batch_size=128, dtype="bfloat16")
    weights = 2 * (2_614_341_888 + 9_241_705_984)
    assert weights < cost.peak < 80e9
    assert cost.store == 2 * 23_040_000 * (2304 + 3584)
    # Two FLOPs a weight and token: the blocks before the layer, as shares of all that is not embedding.
    blocks = (2_614_341_888 - 256_000 * 2304) * 20 / 26 + (9_241_705_984 - 256_000 * 3584) * 33 / 42
    assert forward_flops(a, 128, 20) + forward_flops(b, 128, 33) == pytest.approx(2 * blocks, rel=0.02)


@pytest.mark.parametrize(("ratio", "said"), [(62.0, 100), (101, 100), (31, 10), (0.5, 1), (1, 1), (0.2, 0.1), (0, 0)])
def test_times_are_told_by_their_order_of_magnitude(ratio, said):
    assert power_of_ten(ratio) == pytest.approx(said)
