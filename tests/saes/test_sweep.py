"""The sweep of section 3.1: which runs there are, and that each starts where it says."""

import numpy as np
import pytest
import torch

from stitch_utils.data.pairs import load_pair
from stitch_utils.models.language_model import load_models
from stitch_utils.saes import sweep as sae_sweep
from stitch_utils.saes.transfer import transfer_sae
from stitch_utils.stitching.fit import fit_exact
from stitch_utils.stitching.pair import StitchedPair

RECIPE = {"k": 1, "batch_tokens": 400, "lr": 0.01, "dead_after": 1}


@pytest.fixture
def swept(small_pair, monkeypatch):
    """A sweep of two widths and two seeds on two random models: (sweep, stitch, what was given to B's training)."""
    given = []
    train = sae_sweep.train_saes
    monkeypatch.setattr(sae_sweep, "train_saes", lambda *args, **more: given.append(more) or train(*args, **more))
    pair = load_pair(small_pair(sizes={"sae_sweep_steps": 4}, sae_recipe=RECIPE))
    models = load_models(pair)
    stitch = fit_exact(StitchedPair(pair, models, (1, 2), "smoke").moments)
    sweep = sae_sweep.sweep_saes(pair, models, (1, 2), stitch, scale="smoke", widths=[16, 24], seeds=[0, 1])
    return sweep, stitch, given


def test_every_width_and_seed_begins_in_every_way(swept):
    sweep, _, _ = swept
    both = [(width, seed) for width in (16, 24) for seed in (0, 1)]
    assert sorted(sweep.a) == both
    assert sorted(sweep.b) == sorted((start, *key) for start in ("random", "rotation", "stitch") for key in both)
    for key, curve in sweep.b.items():
        assert curve.steps[-1] == 4 and curve.tokens[-1] == 1600 and len(curve.cosine) == key[1]
    assert sorted(sweep.auxiliary) == [(start, 24, seed) for start in ("random", "stitch") for seed in (0, 1)]
    begins = {start: sweep.b[start, 24, 0].mse[0] for start in ("random", "rotation", "stitch")}
    assert len(set(begins.values())) == 3, "three ways to begin are three beginnings"


def test_the_stitched_start_is_the_sae_of_a_carried_across(swept):
    sweep, stitch, given = swept
    of_a, of_b = given
    for seed in (0, 1):
        small = sae_sweep.load_trained(
            of_a["folder"],
            sae_sweep.SAETrainingConfig(
                16, 1, 4, seed=seed, lr=0.01, dead_after=1, batch_tokens=400, initial_bias="mean"
            ),
        )
        (name,) = [name for name in of_b["initial_saes"] if name.startswith(f"stitch-16-k1-seed{seed}")]
        torch.testing.assert_close(of_b["initial_saes"][name].W_dec, transfer_sae(small, stitch).W_dec)
        (name,) = [name for name in of_b["initial_saes"] if name.startswith(f"rotation-16-k1-seed{seed}")]
        assert torch.equal(of_b["initial_saes"][name].W_dec, small.W_dec)
    assert not np.array_equal(sweep.a[16, 0].mse, sweep.a[16, 1].mse), "each seed has an SAE of A of its own"


def test_the_auxiliary_loss_is_tried_on_the_same_start(swept):
    """One step without firing makes a latent dead here, so its help costs FLOPs and changes what becomes of the run."""
    sweep, _, given = swept
    costlier = []
    for key, helped in sweep.auxiliary.items():
        plain = sweep.b[key]
        assert helped.mse[0] == plain.mse[0], "one beginning"
        costlier.append(helped.flops[-1] > plain.flops[-1])
        assert costlier[-1] == (helped.mse[-1] != plain.mse[-1]), "where no latent is silent it changes nothing"
    assert any(costlier), "some latent must have been silent for this test to say anything"
    assert not any("auxiliary" in name for name in given[0]["initial_saes"] or ()), "A's have none"
