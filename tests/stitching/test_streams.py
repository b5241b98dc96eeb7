"""What is said of two streams: norms and variances token by token, against loops, and a planted massive activation."""

import numpy as np
import pytest
import torch
from toy_streams import Planted

from stitch_utils.data.pairs import TextRef
from stitch_utils.data.text import token_batches
from stitch_utils.models.harvest import NormLimits, norm_limits
from stitch_utils.stitching.evaluation import measure_fidelity
from stitch_utils.stitching.fit import fit_exact
from stitch_utils.stitching.moments import PairMoments, harvest_moments
from stitch_utils.stitching.streams import describe_streams

LAYERS = (1, 2)


@pytest.fixture(scope="module")
def batches(random_models):
    text = TextRef("world", "streams", take=60)
    return list(token_batches(text, random_models[0].tokenizer, context=64, batch_size=4, rows="packed"))


def rare(batches, share=0.002):
    """Ordinary tokens that make up about this share of the text."""
    tokens = torch.cat([batch.tokens[batch.mask] for batch in batches])
    ids, counts = tokens.unique(return_counts=True)
    chosen = (counts.sort().values.cumsum(0) <= share * len(tokens)).sum()
    return ids[counts.argsort()[: max(2, chosen)]].tolist()


def test_the_report_is_that_of_loops_over_tokens(random_models, batches):
    planted = Planted(random_models[0], 3, rare(batches), 60.0), random_models[1]
    stitch = any_stitch(random_models)
    means = torch.linspace(-1, 1, random_models[0].d_model), torch.linspace(0, 1, random_models[1].d_model)
    found = describe_streams(planted, LAYERS, batches, stitch, means=means)
    streams = [[], []]
    for batch in batches:
        both = [model.residuals(batch.tokens, [layer])[layer] for model, layer in zip(planted, LAYERS)]
        for row, place in batch.mask.nonzero().tolist():
            for side in (0, 1):
                streams[side].append(both[side][row, place].double().numpy())
    up, down = ([part.double().numpy() for part in (each.P, each.b)] for each in (stitch.up, stitch.down))
    for side, name, (P, b) in ((0, "a", down), (1, "b", up)):
        x, other, mean = np.array(streams[side]), np.array(streams[1 - side]), means[side].double().numpy()
        norms = [float(np.sqrt((row**2).sum())) for row in x]
        median = sorted(norms)[(len(norms) - 1) // 2]
        massive = [norm > 10 * median for norm in norms]
        deviations = [float(((row - mean) ** 2).sum()) for row in x]
        shares = [float(((row - (y @ P + b)) ** 2).sum()) / d for row, y, d in zip(x, other, deviations)]
        assert found[name].tokens == len(norms) and found[name].beyond == sum(massive)
        assert found[name].median_norm == pytest.approx(median, rel=1e-5)
        assert found[name].largest == pytest.approx(max(norms) / median, rel=1e-5)
        held = sum(d for d, is_massive in zip(deviations, massive) if is_massive) / sum(deviations)
        assert found[name].held == pytest.approx(held, rel=1e-5)
        by_dimension = [sum((row[n] - mean[n]) ** 2 for row in x) for n in range(x.shape[1])]
        assert found[name].widest == pytest.approx(max(by_dimension) / sum(by_dimension), rel=1e-5)
        assert found[name].unexplained == pytest.approx(sorted(shares)[(len(shares) - 1) // 2], rel=1e-4)
    assert found["a"].beyond > 0 and found["b"].beyond == 0 and found["a"].held > 0.3 > found["b"].held


def any_stitch(models):
    generator = torch.Generator().manual_seed(0)
    d_a, d_b = (model.d_model for model in models)
    moments = PairMoments(d_a, d_b)
    moments.update(torch.randn(200, d_a, generator=generator), torch.randn(200, d_b, generator=generator))
    return fit_exact(moments)


def test_planted_outliers_move_the_maps_only_where_they_are_kept(random_models, batches):
    """One token in a few hundred has a hundred times the norm; with limits the fit is that of the other tokens."""
    tokens = rare(batches)
    clean = [batch._replace(mask=batch.mask & ~torch.isin(batch.tokens, torch.tensor(tokens))) for batch in batches]
    expected = fit_exact(harvest_moments(*random_models, clean, [LAYERS])[LAYERS])
    median = norm_limits(random_models, LAYERS, batches, beyond=1.0).a
    planted = Planted(random_models[0], 3, tokens, 100 * median), random_models[1]
    limits = norm_limits(planted, LAYERS, batches, beyond=10.0)
    assert limits.a == pytest.approx(10 * median, rel=0.02)
    fits = {}
    for name, given in (("kept", None), ("left out", limits)):
        moments = harvest_moments(*planted, batches, [LAYERS], limits=given)[LAYERS]
        fits[name] = moments, fit_exact(moments)
    count = sum(int((batch.mask & torch.isin(batch.tokens, torch.tensor(tokens))).sum()) for batch in batches)
    assert fits["left out"][0].left_out == count > 0 == fits["kept"][0].left_out
    x = torch.cat([random_models[0].residuals(b.tokens, [1])[1][b.mask] for b in clean])
    y = expected.up(x)
    moved = {name: ((stitch.up(x) - y).norm() / (y - y.mean(0)).norm()).item() for name, (_, stitch) in fits.items()}
    assert moved["left out"] < 0.01 < moved["kept"]


def test_outliers_keep_the_hosts_stream(random_models, batches):
    tokens, stitch = rare(batches), any_stitch(random_models)
    clean = [batch._replace(mask=batch.mask) for batch in batches]
    planted = Planted(random_models[0], 3, tokens, 1e4), random_models[1]
    limits = NormLimits(1e3, float("inf"))
    found = measure_fidelity(*planted, *LAYERS, {"it": stitch}, clean, limits=limits)
    total, kept = 0.0, 0
    for batch in batches:
        x = planted[0].residuals(batch.tokens, [1])[1]
        replaced = batch.mask & ~torch.isin(batch.tokens, torch.tensor(tokens))

        def put(y, x=x, replaced=replaced):
            y = y.clone()
            for row, place in replaced.nonzero().tolist():
                y[row, place] = stitch.up(x[row, place])
            return y

        losses = random_models[1].cross_entropy(batch.tokens, layer=2, edit=put)
        total += losses[batch.mask[:, 1:]].double().sum().item()
        kept += int((replaced[:, 1:] & batch.mask[:, 1:]).sum())
    assert found.sums["it", "a_to_b"].sum() == pytest.approx(total, rel=1e-4)
    assert found.met("b").value == pytest.approx(kept / found.counts["b"].tokens.sum())


def test_a_text_without_tokens_is_refused(random_models, batches):
    nothing = [batch._replace(mask=torch.zeros_like(batch.mask)) for batch in batches[:1]]
    with pytest.raises(ValueError, match="no token at which the models meet"):
        norm_limits(random_models, LAYERS, nothing, beyond=10.0)
    means = tuple(torch.zeros(model.d_model) for model in random_models)
    with pytest.raises(ValueError, match="no token at which the models meet"):
        describe_streams(random_models, LAYERS, nothing, any_stitch(random_models), means=means)
