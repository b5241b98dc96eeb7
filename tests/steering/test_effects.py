"""What a carried vector does to predictions, against loops over tokens, vocabulary and spans of text."""

import numpy as np
import pytest
import torch

from stitch_utils.data.text import PairedBatch
from stitch_utils.steering.effects import STRENGTH, judge_vectors
from stitch_utils.steering.vectors import random_direction, transfer_vector
from stitch_utils.stitching.fit import fit_exact
from stitch_utils.stitching.nulls import DRAWS, component_stitches
from stitch_utils.stitching.pair import StitchedPair
from stitch_utils.stitching.stitch import Stitch


def naive(models, layers, batches, vectors):
    """The correlation of what two vectors do, each to one model, over tokens and vocabulary, with loops."""
    streams = [[m.residuals(b.tokens, [layer])[layer] for b in batches] for m, layer in zip(models, layers)]
    products = np.zeros(3)
    for batch in batches:
        logits = []
        for model, layer, vector, own in zip(models, layers, vectors, streams):
            norms = torch.cat([stream[b.mask].norm(dim=1) for stream, b in zip(own, batches)])
            step = STRENGTH * norms.median() * vector / vector.norm()
            moved = model.logits(batch.tokens, layer=layer, edit=lambda residual, step=step: residual + step)
            logits.append((model.logits(batch.tokens).double().numpy(), moved.double().numpy()))
        for row, place in batch.mask.nonzero().tolist():
            (a, a_moved), (b, b_moved) = ((clean[row, place], moved[row, place]) for clean, moved in logits)
            p = (np.exp(a) / np.exp(a).sum() + np.exp(b) / np.exp(b).sum()) / 2
            d, e = a_moved - a, b_moved - b
            d, e = d - (p * d).sum(), e - (p * e).sum()
            products += [(p * d * e).sum(), (p * d * d).sum(), (p * e * e).sum()]
    return products[0] / np.sqrt(products[1] * products[2])


@pytest.mark.parametrize("to", ["a", "b"])
def test_effects_are_correlated_over_tokens_and_vocabulary(pair, models, to):
    stitched = StitchedPair(pair, models, (1, 2), "smoke")
    batches, stitch = list(stitched.evaluation_rows("b")), fit_exact(stitched.held_out_moments)
    order = [0, 1] if to == "b" else [1, 0]
    vectors = [3 * random_direction((32, 48)[order[0]], seed) for seed in (70, 71)]
    found = judge_vectors(stitched, vectors, stitch=stitch, to=to)
    sides = [models[side] for side in order], [(1, 2)[side] for side in order], batches
    for vector, trust in zip(vectors, found):
        expected = naive(*sides, [vector, transfer_vector(vector, stitch, to=to)])
        assert trust.over_null.value.value == pytest.approx(expected, abs=1e-4)
        assert trust.over_null.value == trust.over_random.value
        assert trust.over_null.value.low < expected < trust.over_null.value.high
        assert trust.tokens == sum(int(batch.mask.sum()) for batch in batches) and trust.documents == 9
    nulls = [naive(*sides, [vector, transfer_vector(vector, null, to=to)]) for null in several(stitched, 3)]
    assert max(nulls) <= found[1].over_null.best + 1e-4
    randoms = [naive(*sides, [vector, random_direction((32, 48)[order[1]], seed)]) for seed in (0, DRAWS - 1)]
    assert max(randoms) <= found[1].over_random.best + 1e-4


def several(stitched, count):
    return list(component_stitches(stitched.held_out_moments))[:count]


def test_the_same_model_is_told_what_it_does_itself(pair, models):
    """A stitch that changes nothing, of a model with itself: the correlation is 1, whatever the length of v."""
    stitched = StitchedPair(pair, (models[0], models[0]), (1, 1), "smoke")
    (trust,) = judge_vectors(stitched, [5 * random_direction(32, 77)], stitch=Stitch.identity(32))
    assert trust.over_null.value.value == pytest.approx(1, abs=1e-5) and trust.is_told


def test_text_that_holds_nothing(pair, models):
    stitched = StitchedPair(pair, models, (1, 2), "smoke")
    batch = PairedBatch.of(next(stitched.evaluation_batches()))
    nothing = torch.zeros_like(batch.met_a)
    with pytest.raises(ValueError, match="holds no token at which the models meet"):
        judge_vectors(
            stitched,
            [random_direction(32, 0)],
            stitch=fit_exact(stitched.held_out_moments),
            batches=[batch._replace(met_a=nothing, met_b=nothing)],
        )
