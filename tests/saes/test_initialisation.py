"""Starts of a run against the SAEs that they start from."""

import pytest
import torch
from toy_sweep import D, M, activations, assert_same_outputs, config, transferred, winners, with_ranking_by_contribution

from stitch_utils.saes.initialisation import starting_sae


def test_a_random_start_has_unit_rows_and_the_encoder_transposed():
    first, again, other = (starting_sae(config(seed=seed), D) for seed in (0, 0, 1))
    torch.testing.assert_close(first.W_dec.norm(dim=1), torch.ones(M))
    assert torch.equal(first.W_enc, first.W_dec.T) and not first.b_enc.any() and not first.b_dec.any()
    assert torch.equal(first.W_dec, again.W_dec) and not torch.equal(first.W_dec, other.W_dec)


@pytest.mark.parametrize("subtract", [False, True])
def test_a_unit_start_is_the_transferred_sae_ranked_by_contribution(subtract):
    """Exactly, for every token; and the transferred SAE itself wherever the two rankings choose the same latents."""
    given, x = transferred(subtract=subtract), activations(2000)
    start = starting_sae(config(initial="stitch"), D, given)
    torch.testing.assert_close(start.W_dec.norm(dim=1), torch.ones(M))
    with torch.no_grad():
        assert_same_outputs(start(x), with_ranking_by_contribution(given)(x))
        same = (winners(start, x) == winners(given, x)).all(1)
        assert 20 < same.sum() < 1980, "the rankings differ on many tokens, not on all"
        assert_same_outputs(start(x)[same], given(x)[same])
        assert (start(x)[~same] - given(x)[~same]).norm(dim=1).min() > 1e-3


def test_rows_of_one_norm_leave_nothing_to_choose():
    given, x = transferred(uneven=False), activations(500)
    start = starting_sae(config(initial="stitch"), D, given)
    with torch.no_grad():
        assert_same_outputs(start(x), given(x))


def test_an_sae_that_ranks_by_contribution_is_folded_exactly():
    given, x = transferred(rescale=True), activations(500)
    start = starting_sae(config(initial="stitch"), D, given)
    with torch.no_grad():
        assert_same_outputs(start(x), given(x))


def test_a_rotation_keeps_the_angles_of_the_decoder_and_nothing_else():
    given = transferred(d_in=D - 5)
    start, other = (starting_sae(config(initial="rotation", seed=seed), D, given) for seed in (0, 1))
    rows = given.W_dec / given.W_dec.norm(dim=1, keepdim=True)
    torch.testing.assert_close(start.W_dec @ start.W_dec.T, rows @ rows.T, rtol=1e-4, atol=1e-5)
    assert torch.equal(start.W_enc, start.W_dec.T) and not start.b_enc.any() and not start.b_dec.any()
    assert not torch.allclose(start.W_dec, other.W_dec, atol=0.1)
