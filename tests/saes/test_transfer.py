"""SAEs carried across a stitch against the stitch and the SAE applied one after another."""

import dataclasses

import pytest
import torch
from sae_lens import SAE, GatedSAEConfig, TranscoderConfig
from sae_lens.saes.sae import SAEMetadata
from toy_saes import D_A, D_B, KINDS, LATENTS, TRAINED, make_sae, make_training_sae, normal

from stitch_utils.saes.transfer import sae_ranks, transfer_sae
from stitch_utils.stitching.stitch import Stitch, random_stitch


@pytest.fixture
def stitch():
    about = {"a": "small", "layer_a": 3, "b": "large", "layer_b": 4}
    shapes = ((D_A, D_B), (D_B,), (D_B, D_A), (D_A,))
    return Stitch(*(normal(*shape, seed=seed) / 3 for seed, shape in enumerate(shapes)), about=about)


def reloaded(sae, folder):
    sae.save_model(folder)
    return SAE.load_from_disk(folder)


@pytest.mark.parametrize("to", ["b", "a"])
@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_transferred_sae_is_the_sae_between_the_two_maps(kind, subtracts, to, stitch, tmp_path):
    width, other = (D_A, D_B) if to == "b" else (D_B, D_A)
    sae = make_sae(kind, width, apply_b_dec_to_input=subtracts)
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    moved = transfer_sae(sae, stitch, to=to)
    y = 2 * normal(200, other, seed=9)
    inward, outward = (stitch.down, stitch.up) if to == "b" else (stitch.up, stitch.down)
    for result in (moved, reloaded(moved, tmp_path)):
        assert type(result) is type(sae) and result.dtype == torch.float64
        torch.testing.assert_close(result(y), outward(sae(inward(y))), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(result.encode(y), sae.encode(inward(y)), rtol=1e-10, atol=1e-10)
    assert (moved.encode(y) > 0).any(1).all(), "the test would be empty if nothing fired"
    assert not moved.cfg.apply_b_dec_to_input and sae.cfg.apply_b_dec_to_input == subtracts
    assert all(torch.equal(tensor, before[name]) for name, tensor in sae.state_dict().items())


@pytest.mark.parametrize("kind", TRAINED)
def test_an_sae_in_training_is_carried_over_as_it_would_be_saved(kind, stitch, tmp_path):
    sae = make_training_sae(kind)
    sae.save_inference_model(tmp_path / "inference")
    expected = SAE.load_from_disk(tmp_path / "inference")
    y = 2 * normal(200, D_B, seed=9)
    before = sae(y @ stitch.P_down)
    moved = reloaded(transfer_sae(sae, stitch), tmp_path / "moved")
    torch.testing.assert_close(moved(y), stitch.up(expected(stitch.down(y))), rtol=1e-10, atol=1e-10)
    assert torch.equal(sae(y @ stitch.P_down), before)


def test_a_transferred_sae_says_where_it_came_from(stitch, tmp_path):
    sae = make_sae("topk")
    sae.cfg.metadata = SAEMetadata(model_name="small", hook_name="blocks.2.hook_resid_post", neuronpedia_id="x/y")
    up = reloaded(transfer_sae(sae, stitch), tmp_path).cfg.metadata
    assert (up.model_name, up.hook_name, up.to) == ("large", "blocks.4.hook_resid_pre", "b")
    assert up.stitch == stitch.about and up.neuronpedia_id is None
    assert up.transferred_from["hook_name"] == "blocks.2.hook_resid_post"
    down = transfer_sae(make_sae("topk", D_B), stitch, to="a").cfg.metadata
    assert (down.model_name, down.hook_name) == ("small", "blocks.3.hook_resid_pre")
    unknown = transfer_sae(sae, dataclasses.replace(stitch, about={})).cfg.metadata
    assert unknown.hook_name is None and unknown.model_name is None


def test_products_are_rounded_once(stitch):
    sae = make_sae("jumprelu", dtype="float32")
    moved = transfer_sae(sae, stitch.to(torch.float32))
    assert moved.dtype == torch.float32 and moved.cfg.dtype == "float32"
    exact = stitch.to(torch.float32).P_down.double() @ sae.W_enc.double()
    assert torch.equal(moved.W_enc, exact.float())


@pytest.mark.parametrize("option", [{"normalize_activations": "layer_norm"}, {"reshape_activations": "hook_z"}])
def test_saes_of_something_else_than_the_stream_are_refused(option, stitch):
    ((entry, value),) = option.items()
    with pytest.raises(ValueError, match=f"{entry}='{value}': Eq. 6 holds for SAEs of the residual stream as it is"):
        transfer_sae(make_sae("topk", **option), stitch)


@pytest.mark.parametrize("config", [GatedSAEConfig, TranscoderConfig])
def test_other_architectures_are_refused(config, stitch):
    config = config(D_A, LATENTS, apply_b_dec_to_input=False)
    sae = SAE.get_sae_class_for_architecture(config.architecture())(config)
    with pytest.raises(ValueError, match=r"of architecture '(gated|transcoder)': expected topk, jumprelu, standard"):
        transfer_sae(sae, stitch)


def test_directions_and_widths_that_do_not_fit(stitch):
    with pytest.raises(ValueError, match="to='sideways': expected 'a' or 'b'"):
        transfer_sae(make_sae("topk"), stitch, to="sideways")
    with pytest.raises(
        ValueError, match="reads 12 dimensions: expected 20, the width of model b, to be transferred to a"
    ):
        transfer_sae(make_sae("topk"), stitch, to="a")


def test_a_decoder_row_of_zeros_stays_one(stitch):
    """SAELens divides by its norm, so it is set beside a row that is nearly zero."""
    sae, nearly, y = make_sae("rescaled topk"), make_sae("rescaled topk"), 2 * normal(50, D_B, seed=9)
    with torch.no_grad():
        sae.W_dec[7], nearly.W_dec[7] = 0, 1e-9
    moved = transfer_sae(sae, stitch)
    assert not moved.W_dec[7].any() and not moved.encode(y)[:, 7].any()
    torch.testing.assert_close(moved(y), stitch.up(nearly(stitch.down(y))), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_a_transferred_sae_spans_no_more_than_the_small_model(dtype, stitch):
    sae = make_sae("topk", dtype=dtype)
    assert sae_ranks(sae) == (D_A, D_A)
    assert sae_ranks(transfer_sae(sae, stitch)) == (D_A, D_A)
    assert sae_ranks(make_sae("topk", D_B, dtype=dtype)) == (D_B, D_B)


def test_a_random_stitch_keeps_norms_and_means(stitch):
    means = normal(D_A, seed=5), normal(D_B, seed=6)
    state = torch.random.get_rng_state()
    drawn = random_stitch(stitch, 1, means=means)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name in ("P_up", "P_down"):
        ours, fitted = getattr(drawn, name), getattr(stitch, name)
        torch.testing.assert_close(ours.norm(dim=0), fitted.norm(dim=0))
        cosine = torch.nn.functional.cosine_similarity(ours.flatten(), fitted.flatten(), dim=0)
        assert abs(cosine) < 0.2
    torch.testing.assert_close(drawn.up(means[0]), means[1])
    torch.testing.assert_close(drawn.down(means[1]), means[0])
    again, other = (random_stitch(stitch, seed, means=means) for seed in (1, 2))
    assert torch.equal(again.P_up, drawn.P_up) and not torch.equal(other.P_up, drawn.P_up)
    assert random_stitch(stitch.to(torch.float32), 1, means=means).P_up.dtype == torch.float32
