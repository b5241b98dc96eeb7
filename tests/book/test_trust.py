"""Planted pairs: what tells a good stitch from a bad one does so where there is something to tell, and only there."""

import pytest
import torch
from toy_probes import as_file, fitted_probe
from toy_saes import make_sae
from toy_streams import Twin, moments_of

from stitch_utils.data.pairs import load_pair
from stitch_utils.models.harvest import sample_residuals
from stitch_utils.models.language_model import load_models
from stitch_utils.probing.probes import judge_probe, read_probe, transfer_probe
from stitch_utils.saes.evaluation import judge_sae
from stitch_utils.saes.transfer import transfer_sae
from stitch_utils.steering.effects import judge_vectors
from stitch_utils.steering.vectors import random_direction
from stitch_utils.stitching.fit import fit_exact
from stitch_utils.stitching.nulls import component_stitch
from stitch_utils.stitching.pair import StitchedPair

LAYER = 1


def judged(pair, tmp_path, d, noise, to, seed, *, unrelated):
    """What each measure tells from its nulls: {(thing, stitch)}."""
    model = load_models(pair)[0]

    def opened(other):
        return StitchedPair(pair, (model, other), (LAYER, LAYER), "smoke")

    spectrum = None
    if unrelated:
        moments = opened(model).held_out_moments
        spectrum = moments.mean_x, moments.cxx
    stitched = opened(Twin(model, LAYER, d, noise=noise, seed=seed, unrelated=spectrum))
    layers = {"layers_a": [LAYER], "layers_b": [LAYER]}
    x, y = (side[LAYER] for side in sample_residuals(*stitched.models, stitched.training_batches(), **layers))
    anyhow = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    stitches = {
        "fitted": fit_exact(moments_of(x, y)),
        "shuffled": fit_exact(moments_of(x, y[anyhow])),
        "null": component_stitch(moments_of(x, y), seed=100 + seed),
    }
    own = x if to == "b" else y
    fitted = fitted_probe(2, own.shape[1])
    fitted.intercept_ = 0.1 - (own.double().numpy() @ fitted.coef_.T).mean(0)  # so that both answers are given
    probe = read_probe(as_file(fitted, tmp_path / "p.npz"))
    sae, vector = make_sae("topk", own.shape[1], dtype="float32"), random_direction(own.shape[1], seed)
    told = set()
    for name, stitch in stitches.items():
        trusts = {
            "probe": judge_probe(stitched, probe, transfer_probe(probe, stitch, to=to), stitch=stitch, to=to),
            "sae": judge_sae(stitched, sae, transfer_sae(sae, stitch, to=to), stitch=stitch, to=to),
            "vector": judge_vectors(stitched, [vector], stitch=stitch, to=to)[0],
        }
        told |= {(thing, name) for thing, trust in trusts.items() if trust.is_told}
    return told


# The best of 19 draws of a null is beaten by chance once in twenty times: with seed 1 the second pair shows it.
@pytest.mark.parametrize(("d", "noise", "to", "seed"), [(32, 0.1, "b", 0), (48, 0.3, "b", 3), (40, 0.3, "a", 2)])
@pytest.mark.parametrize("unrelated", [False, True])
def test_a_fitted_stitch_is_told_from_the_nulls_where_streams_are_related(
    small_pair, tmp_path, d, noise, to, seed, unrelated
):
    """B's stream is an affine image of A's plus noise; or of noise with the mean and the covariance of A's."""
    pair = load_pair(small_pair(sizes={"train_tokens": 4000, "eval_documents": 40}))
    expected = set() if unrelated else {(thing, "fitted") for thing in ("probe", "sae", "vector")}
    assert judged(pair, tmp_path, d, noise, to, seed, unrelated=unrelated) == expected
