"""An SAE and what became of it, judged beside each other."""

import pytest
import torch
from sae_lens import TopKSAE, TopKSAEConfig

from stitch_utils.saes.evaluation import evaluate_saes, judge_sae
from stitch_utils.saes.transfer import transfer_sae
from stitch_utils.stitching.evaluation import measure_fidelity
from stitch_utils.stitching.fit import fit_exact
from stitch_utils.stitching.pair import StitchedPair


@pytest.mark.parametrize("to", ["a", "b"])
def test_an_sae_is_judged_beside_the_original(pair, models, to):
    stitched = StitchedPair(pair, models, (1, 2), "smoke")
    batches, stitch = list(stitched.evaluation_batches()), fit_exact(stitched.held_out_moments)
    source, target = (0, 1) if to == "b" else (1, 0)
    torch.manual_seed(0)
    sae = TopKSAE(TopKSAEConfig((32, 48)[source], 64, k=3))
    carried = transfer_sae(sae, stitch, to=to)
    trust = judge_sae(stitched, sae, carried, stitch=stitch, to=to)
    assert trust.original == evaluate_saes({"sae": sae}, models[source], (1, 2)[source], batches)["sae"]
    assert trust.carried == evaluate_saes({"sae": carried}, models[target], (1, 2)[target], batches)["sae"]
    losses = measure_fidelity(*models, 1, 2, {"it": stitch}, batches)
    assert trust.source_loss == losses.cross_entropy("own", "ab"[source]).value
    assert trust.target_loss == losses.cross_entropy("own", "ab"[target]).value
    round_trip = {"b": "b_to_a_to_b", "a": "a_to_b_to_a"}[to]
    assert trust.round_trip_loss == losses.cross_entropy("it", round_trip).value
    assert trust.tokens == sum(batch.mask.sum().item() for batch in batches)
    some = list(batches[0].split(4))[:1]
    trust = judge_sae(stitched, sae, carried, stitch=stitch, batches=iter(some), to=to)
    assert trust.carried == evaluate_saes({"sae": carried}, models[target], (1, 2)[target], some)["sae"]
