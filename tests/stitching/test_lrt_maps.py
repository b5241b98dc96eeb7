"""The mean length of the error brought down by reweighting and by AdamW, against naive optimisation; and its
measurement token by token."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from stitch_utils.models.harvest import NormLimits, evaluation_batches, within
from stitch_utils.stitching import lrt_maps
from stitch_utils.stitching.fit import fit_exact
from stitch_utils.stitching.lrt_maps import MapErrors, fit_unsquared, fit_unsquared_adam, map_errors, moments_of
from stitch_utils.stitching.relu_map import ReluMap
from stitch_utils.stitching.stitch import Stitch


def data(seed=0, d_a=4, d_b=6, n=300):
    """Streams related up to noise with heavy tails, off centre: (x, y), float64."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d_a)) + 1
    y = x @ rng.normal(size=(d_a, d_b)) + rng.standard_t(2, size=(n, d_b)) - 2
    return torch.tensor(x), torch.tensor(y)


def in_batches(x, y, size=70):
    return list(zip(x.split(size), y.split(size)))


def naive(x, y):
    """The minimum of the mean length of x P + b - y by scipy's L-BFGS, from zero: value, P, b."""
    ones = torch.cat([x, torch.ones(len(x), 1).double()], 1)
    shape = (x.shape[1] + 1, y.shape[1])

    def value_and_gradient(flat):
        maps = torch.tensor(flat.reshape(shape), requires_grad=True)
        loss = (ones @ maps - y).norm(dim=1).mean()
        loss.backward()
        return loss.item(), maps.grad.numpy().ravel()

    options = {"maxiter": 10_000, "maxfun": 20_000, "ftol": 1e-15, "gtol": 1e-10}
    found = minimize(value_and_gradient, np.zeros(np.prod(shape)), jac=True, method="L-BFGS-B", options=options)
    return found.fun, torch.tensor(found.x.reshape(shape)[:-1]), torch.tensor(found.x.reshape(shape)[-1])


# ---- the fits -----------------------------------------------------------------------------------------------------


def fit_until(monkeypatch, batches, *, tolerance=1e-9, passes=200):
    monkeypatch.setattr(lrt_maps, "TOLERANCE", tolerance)
    monkeypatch.setattr(lrt_maps, "PASSES", passes)
    return fit_unsquared(batches)


def lengths(stitch, x, y):
    """The mean lengths of the errors of both maps."""
    maps = stitch.to(torch.float64)
    return [(maps.up(x) - y).norm(dim=1).mean().item(), (maps.down(y) - x).norm(dim=1).mean().item()]


@pytest.mark.parametrize("size", [70, 300])
def test_reweighting_ends_at_the_minimum(size, monkeypatch):
    x, y = data()
    stitch = fit_until(monkeypatch, in_batches(x, y, size), tolerance=1e-12)
    ours = lengths(stitch, x, y)
    for length, fitted, given, wanted in zip(ours, (stitch.up, stitch.down), (x, y), (y, x)):
        best, best_matrix, best_bias = naive(given, wanted)
        assert length == pytest.approx(best, rel=1e-7)
        torch.testing.assert_close(fitted.P.double(), best_matrix, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(fitted.b.double(), best_bias, rtol=2e-3, atol=2e-3)
    assert stitch.report.converged and stitch.report.method == "unsquared"
    assert stitch.report.loss == pytest.approx(sum(ours), rel=1e-7)


def test_every_reweighting_lowers_the_mean_length(monkeypatch):
    x, y = data(seed=1)
    stitches = [fit_exact(moments_of(in_batches(x, y)), alpha=0)]
    stitches += [fit_until(monkeypatch, in_batches(x, y), passes=passes) for passes in range(1, 12)]
    for losses in zip(*(lengths(stitch, x, y) for stitch in stitches)):
        assert losses[0] > losses[-1] * 1.001
        assert all(after <= before * (1 + 1e-7) for before, after in itertools.pairwise(losses))
    # The loss of each report is that before its last reweighting.
    for before, after in itertools.pairwise(stitches):
        assert after.report.loss == pytest.approx(sum(lengths(before, x, y)), rel=1e-6)


def test_it_starts_from_least_squares_and_stops_when_told(monkeypatch):
    x, y = data(seed=2)
    squares = fit_exact(moments_of(in_batches(x, y)), alpha=0, dtype=torch.float64)
    stitch = fit_until(monkeypatch, in_batches(x, y), passes=1)
    assert stitch.report.loss == pytest.approx(sum(lengths(squares, x, y)), rel=1e-9)
    assert not stitch.report.converged and stitch.report.sweeps == 1
    assert not torch.allclose(stitch.P_up.double(), squares.P_up, rtol=1e-3), "the maps are those after the pass"
    loose = fit_until(monkeypatch, in_batches(x, y), tolerance=1e-2)
    assert loose.report.converged and loose.report.sweeps < 6


def test_the_map_down_is_fitted_by_itself(monkeypatch):
    x, y = data(seed=3)
    stitch, swapped = (fit_until(monkeypatch, in_batches(*streams)) for streams in ((x, y), (y, x)))
    torch.testing.assert_close(stitch.P_down, swapped.P_up, rtol=1e-3, atol=1e-4)
    squares = fit_exact(moments_of(in_batches(x, y)), alpha=0)
    assert not torch.allclose(stitch.P_down, squares.P_down, rtol=1e-3)


def test_a_map_without_error_is_found():
    x, _ = data(seed=4)
    y = x @ torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double() + 3
    stitch = fit_unsquared(in_batches(x, y))
    assert lengths(stitch, x, y)[0] < 1e-5
    torch.testing.assert_close(stitch.up(x), y, rtol=1e-4, atol=1e-4)


def test_adamw_follows_its_update_rule():
    """Two epochs of three batches, with decoupled weight decay, written out."""
    x, y = (part.float() for part in data(seed=6, n=60))
    batches, lr, decay = in_batches(x, y, 20), 1e-2, 0.01
    start = fit_unsquared_adam(batches, d_a=4, d_b=6, epochs=1, lr=0.0)
    w = [start.P_up, start.b_up, start.P_down, start.b_down]
    first, second = [torch.zeros_like(t) for t in w], [torch.zeros_like(t) for t in w]
    for step, (bx, by) in enumerate(batches * 2, 1):
        leaves = [t.clone().requires_grad_() for t in w]
        ups = (bx @ leaves[0] + leaves[1] - by).square().sum(1).sqrt()
        downs = (by @ leaves[2] + leaves[3] - bx).square().sum(1).sqrt()
        (ups.mean() + downs.mean()).backward()
        for i, leaf in enumerate(leaves):
            first[i] = 0.9 * first[i] + 0.1 * leaf.grad
            second[i] = 0.999 * second[i] + 0.001 * leaf.grad**2
            unbiased = first[i] / (1 - 0.9**step), second[i] / (1 - 0.999**step)
            w[i] = w[i] * (1 - lr * decay) - lr * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
    stitch = fit_unsquared_adam(batches, d_a=4, d_b=6, epochs=2, lr=lr)
    assert stitch.report.evaluations == 6
    for name, expected in zip(("P_up", "b_up", "P_down", "b_down"), w):
        torch.testing.assert_close(getattr(stitch, name), expected, rtol=1e-5, atol=1e-6)


def test_adamw_approaches_the_minimum_and_is_seeded(monkeypatch):
    x, y = data(seed=7)
    best = lengths(fit_until(monkeypatch, in_batches(x, y)), x, y)[0]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fits = [fit_unsquared_adam(in_batches(x, y), d_a=4, d_b=6, epochs=300, lr=1e-2, seed=seed).up for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(3), expected), "the global generator is left alone"
    ours = (fits[0](x) - y).norm(dim=1).mean().item()
    assert best <= ours <= best * 1.01
    assert torch.equal(fits[0].P, fits[1].P) and not torch.equal(fits[0].P, fits[2].P)
    options = {"d_a": 4, "d_b": 6, "epochs": 1}
    one, both = (fit_unsquared_adam(in_batches(x, y), up_alone=alone, **options) for alone in (True, False))
    assert torch.equal(one.P_up, both.P_up) and torch.equal(one.b_up, both.b_up)
    assert one.P_down.isnan().all(), "nobody takes a map for fitted that is not"


def test_what_cannot_be_fitted():
    x, y = data(n=20)
    with pytest.raises(ValueError, match="no batches given"):
        fit_unsquared([])
    with pytest.raises(ValueError, match="batches gave 20 tokens, then 0: expected the same each time"):
        fit_unsquared(iter([(x, y)]))
    with pytest.raises(ValueError, match="epochs must be positive: got 0"):
        fit_unsquared_adam([(x, y)], d_a=4, d_b=6, epochs=0)
    with pytest.raises(ValueError, match="batches gave nothing in epoch 2"):
        fit_unsquared_adam(iter([(x, y)]), d_a=4, d_b=6)


# ---- its measurement ----------------------------------------------------------------------------------------------


def random_stitch(d_a, d_b):
    generator = torch.Generator().manual_seed(0)
    return Stitch(*(torch.randn(s, generator=generator) / 4 for s in ((d_a, d_b), (d_b,), (d_b, d_a), (d_a,))))


def test_errors_are_those_of_every_token(pair, models):
    stitch, sizes = random_stitch(models[0].d_model, models[1].d_model), pair.scale("smoke")
    batches = list(evaluation_batches(pair, sizes, (models[0].tokenizer,) * 2))
    mean_y = torch.linspace(-1, 1, models[1].d_model)
    found = map_errors(
        models,
        (1, 2),
        batches,
        {
            "up": ("b", stitch.up),
            "down": ("a", stitch.down),
            "mean": ("b", lambda x, y: mean_y.expand_as(y)),
        },
    )
    xs, ys = [], []
    for batch in (both.a for both in batches):
        x, y = models[0].residuals(batch.tokens, [1])[1], models[1].residuals(batch.tokens, [2])[2]
        for row in range(len(batch.tokens)):
            for position in range(batch.tokens.shape[1]):
                if batch.mask[row, position]:
                    xs.append(x[row, position].double().numpy())
                    ys.append(y[row, position].double().numpy())
    x, y = np.array(xs), np.array(ys)
    parts = [part.double().numpy() for part in (stitch.P_up, stitch.b_up, stitch.P_down, stitch.b_down)]
    for name, error, target in (
        ("up", x @ parts[0] + parts[1] - y, y),
        ("down", y @ parts[2] + parts[3] - x, x),
        ("mean", mean_y.double().numpy() - y, y),
    ):
        lengths = np.linalg.norm(error, axis=1)
        assert found[name].length.value == pytest.approx(lengths.mean(), rel=1e-5)
        expected = (lengths**2).sum() / ((target - target.mean(0)) ** 2).sum()
        assert found[name].fuv.value == pytest.approx(expected, rel=1e-4)
        assert found[name].length.low < found[name].length.value < found[name].length.high
    with pytest.raises(ValueError, match="unknown target 'c': expected a or b"):
        map_errors(models, (1, 2), batches, {"x": ("c", lambda x, y: x)})
    with pytest.raises(ValueError, match=r"prediction 'x' has shape .*expected .*, that of the stream of b"):
        map_errors(models, (1, 2), batches, {"x": ("b", lambda x, y: x)})
    with pytest.raises(ValueError, match="hold no ordinary token"):
        map_errors(models, (1, 2), [], {"up": ("b", stitch.up)})


def test_errors_on_the_same_documents_are_compared_document_by_document():
    rng = np.random.default_rng(0)
    hard = rng.uniform(1, 9, size=1001)  # of the text and its resamples: they differ far more than two maps do
    one, other = (MapErrors(hard * factor, hard / 10 * factor) for factor in (0.9, 1.0))
    assert one.increase(other) == pytest.approx((-0.1, -0.1, -0.1)) and one.length.high > other.length.low
    less = other.fuv_less(one)
    assert less == pytest.approx(tuple(np.array(other.fuv) / 10)) and less.low > 0
    assert one.length.value == one.lengths[0] and one.fuv.value == one.fuvs[0]


def test_tokens_beyond_the_limits_are_left_out_for_maps_that_bend_too(pair, models):
    batches = [both.a for both in evaluation_batches(pair, pair.scale("smoke"), (models[0].tokenizer,) * 2)]
    x, y = (
        torch.cat([model.residuals(batch.tokens, [layer])[layer][batch.mask] for batch in batches])
        for model, layer in zip(models, (1, 2))
    )
    limits = NormLimits(x.norm(dim=1).quantile(0.7).item(), y.norm(dim=1).quantile(0.8).item())
    stitch, generator = random_stitch(32, 48), torch.Generator().manual_seed(1)
    hidden = (torch.randn(shape, generator=generator) for shape in ((32, 5), (5,), (5, 48)))
    bent = ReluMap(stitch.P_up, stitch.b_up, *hidden)
    found = map_errors(models, (1, 2), batches, {"bent": ("b", bent)}, limits=limits)["bent"]
    keep = within(x, y, limits)
    assert 0.4 < keep.float().mean() < 0.8
    kept, target = x[keep].double(), y[keep].double()
    mapped = (
        kept @ bent.P.double() + bent.b + (kept @ bent.W_in.double() + bent.b_in).clamp_min(0) @ bent.W_out.double()
    )
    expected = (mapped - target).square().sum() / (target - target.mean(0)).square().sum()
    assert found.fuv.value == pytest.approx(expected.item(), rel=1e-4)
