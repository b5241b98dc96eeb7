"""The layer that massive tokens weigh on most, and its stitch with and without them, against sums over tokens."""

import numpy as np
import pytest
import torch
from toy_streams import Planted

from stitch_utils.models.harvest import norm_limits
from stitch_utils.stitching.outliers import fit_with_and_without, heaviest_layer
from stitch_utils.stitching.pair import StitchedPair

LAYERS = (1, 2)


def test_the_heaviest_layer_is_the_one_whose_massive_tokens_hold_most():
    rng = np.random.default_rng(0)
    calm, light, heavy = (rng.normal(size=(300, 4)).astype(np.float32) for _ in range(3))
    light[7, 0], heavy[[3, 9], 1] = 40, (90, -80)
    streams = {"a": {0: calm, 4: light}, "b": {2: heavy, 5: calm}}
    found = heaviest_layer({side: {n: torch.tensor(x) for n, x in of.items()} for side, of in streams.items()})
    squares = [float(((row - heavy.mean(0)) ** 2).sum()) for row in heavy]
    assert found[:3] == ("b", 2, 2)
    assert found.held == pytest.approx((squares[3] + squares[9]) / sum(squares), rel=1e-4)
    nothing = heaviest_layer({"a": {0: torch.tensor(calm)}, "b": {1: torch.tensor(calm)}})
    assert (nothing.tokens, nothing.held) == (0, 0)


def test_both_fits_are_least_squares_on_their_own_tokens(pair, models):
    """One token of the text is made large in A, so that it is left out of one of the fits."""
    stitched = StitchedPair(pair, models, LAYERS, "smoke", ridge=1e-12)
    batches = list(stitched.training_batches(max(pair.context, stitched.sizes.train_tokens // 3)))
    ids = torch.cat([batch.a.tokens[batch.met_a] for batch in batches])
    values, counts = ids.unique(return_counts=True)
    rare = int(values[counts.argsort()[len(values) // 2]])
    planted = StitchedPair(pair, (Planted(models[0], 3, [rare], 500.0), models[1]), LAYERS, "smoke", ridge=1e-12)
    found = fit_with_and_without(planted, LAYERS)
    assert found["all"].tokens == len(ids)
    assert found["without"].tokens == len(ids) - int((ids == rare).sum()) < len(ids)
    limits = norm_limits(planted.models, LAYERS, planted.training_batches(planted.sizes.svcca_tokens), beyond=10)
    x, y = [], []
    for batch in batches:
        x.append(planted.models[0].residuals(batch.a.tokens, [1])[1][batch.met_a].double())
        y.append(planted.models[1].residuals(batch.b.tokens, [2])[2][batch.met_b].double())
    x, y = torch.cat(x).numpy(), torch.cat(y).numpy()
    usual = np.linalg.norm(x, axis=1) <= limits.a
    for name, kept in (("all", slice(None)), ("without", usual)):
        for side, given, wanted in (("b", x[kept], y[kept]), ("a", y[kept], x[kept])):
            inputs = np.hstack([given, np.ones((len(given), 1))])
            left = wanted - inputs @ np.linalg.lstsq(inputs, wanted, rcond=None)[0]
            share = (left**2).sum() / ((wanted - wanted.mean(0)) ** 2).sum()
            assert found[name].unexplained[side] == pytest.approx(share, rel=1e-3, abs=1e-6)
    measured = {condition for stitch, condition in found["all"].fidelity.sums if stitch == "fitted"}
    assert measured == {"a_to_b", "b_to_a"}
    assert found["without"].fidelity.met("a").value < found["all"].fidelity.met("a").value == 1
