"""The mean length of the error brought down by reweighting and by AdamW, against naive optimisation; and its
measurement token by token."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from stitch_utils.models.harvest import evaluation_batches
from stitch_utils.stitching.fit import fit_exact
from stitch_utils.stitching.lrt_maps import Prediction, fit_unsquared, fit_unsquared_adam, map_errors, moments_of
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


@pytest.mark.parametrize("size", [70, 300])
def test_reweighting_ends_at_the_minimum(size):
    x, y = data()
    fit = fit_unsquared(in_batches(x, y, size), tolerance=1e-12, max_passes=200, dtype=torch.float64)
    for name, given, wanted in (("up", x, y), ("down", y, x)):
        best, best_matrix, best_bias = naive(given, wanted)
        losses, (matrix, bias) = fit.lengths[name], (fit.maps[name].P, fit.maps[name].b)
        ours = (given @ matrix + bias - wanted).norm(dim=1).mean().item()
        assert ours == pytest.approx(best, rel=1e-7) and losses[-1] == pytest.approx(ours, rel=1e-9)
        torch.testing.assert_close(matrix, best_matrix, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(bias, best_bias, rtol=2e-3, atol=2e-3)
    assert fit.report.converged and fit.report.method == "unsquared"
    assert torch.equal(fit.stitch.P_up, fit.maps["up"].P) and torch.equal(fit.stitch.b_down, fit.maps["down"].b)
    assert fit.stitch.report == fit.report


def test_every_reweighting_lowers_the_mean_length():
    fit = fit_unsquared(in_batches(*data(seed=1)), tolerance=1e-9, max_passes=50)
    for losses in fit.lengths.values():
        assert len(losses) > 4 and losses[0] > losses[-1] * 1.001
        assert all(after <= before * (1 + 1e-9) for before, after in itertools.pairwise(losses))


def test_it_starts_from_least_squares_and_stops_when_told():
    x, y = data(seed=2)
    squares = fit_exact(moments_of(in_batches(x, y)), alpha=0, dtype=torch.float64)
    fit = fit_unsquared(in_batches(x, y), max_passes=1, dtype=torch.float64)
    assert fit.lengths["up"] == (pytest.approx((squares.up(x) - y).norm(dim=1).mean().item(), rel=1e-9),)
    assert not fit.report.converged and fit.report.sweeps == 1
    assert not torch.allclose(fit.maps["up"].P, squares.P_up, rtol=1e-3), "the maps are those after the pass"
    loose = fit_unsquared(in_batches(x, y), tolerance=1e-2)
    assert loose.report.converged and len(loose.lengths["up"]) < 6


def test_the_map_down_is_fitted_by_itself():
    x, y = data(seed=3)
    fit, swapped = fit_unsquared(in_batches(x, y), tolerance=1e-9), fit_unsquared(in_batches(y, x), tolerance=1e-9)
    torch.testing.assert_close(fit.maps["down"].P, swapped.maps["up"].P, rtol=1e-3, atol=1e-4)
    assert set(fit.maps) == set(fit.lengths) == {"up", "down"}
    squares = fit_exact(moments_of(in_batches(x, y)), alpha=0)
    assert not torch.allclose(fit.maps["down"].P, squares.P_down, rtol=1e-3)


def test_a_map_without_error_is_found():
    x, _ = data(seed=4)
    y = x @ torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double() + 3
    fit = fit_unsquared(in_batches(x, y), dtype=torch.float64)
    assert fit.lengths["up"][-1] < 1e-5
    torch.testing.assert_close(fit.maps["up"](x), y, rtol=1e-4, atol=1e-4)


def test_adamw_follows_its_update_rule():
    """Two epochs of three batches, with decoupled weight decay, written out."""
    x, y = (part.float() for part in data(seed=6, n=60))
    batches, lr, decay = in_batches(x, y, 20), 1e-2, 0.1
    start = fit_unsquared_adam(batches, d_a=4, d_b=6, epochs=1, lr=0.0).stitch
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
    fit = fit_unsquared_adam(batches, d_a=4, d_b=6, epochs=2, lr=lr, weight_decay=decay)
    assert fit.report.evaluations == 6 and not fit.lengths
    for name, expected in zip(("P_up", "b_up", "P_down", "b_down"), w):
        torch.testing.assert_close(getattr(fit.stitch, name), expected, rtol=1e-4, atol=1e-6)


def test_adamw_approaches_the_minimum_and_is_seeded():
    x, y = data(seed=7)
    best = fit_unsquared(in_batches(x, y), tolerance=1e-9)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fits = [
        fit_unsquared_adam(in_batches(x, y), d_a=4, d_b=6, epochs=300, lr=1e-2, weight_decay=0.0, seed=seed).maps["up"]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.rand(3), expected), "the global generator is left alone"
    ours = (fits[0](x) - y).norm(dim=1).mean().item()
    assert best.lengths["up"][-1] <= ours <= best.lengths["up"][-1] * 1.01
    assert torch.equal(fits[0].P, fits[1].P) and not torch.equal(fits[0].P, fits[2].P)
    options = {"d_a": 4, "d_b": 6, "epochs": 1}
    one, both = (fit_unsquared_adam(in_batches(x, y), up_alone=alone, **options) for alone in (True, False))
    assert set(one.maps) == {"up"}
    torch.testing.assert_close(one.maps["up"].P, both.maps["up"].P)


def test_what_cannot_be_fitted():
    x, y = data(n=20)
    with pytest.raises(ValueError, match="max_passes must be positive: got 0"):
        fit_unsquared([(x, y)], max_passes=0)
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
    batches = list(evaluation_batches(pair, sizes, models[0].tokenizer))
    mean_y = torch.linspace(-1, 1, models[1].d_model)
    found = map_errors(
        models,
        (1, 2),
        batches,
        {
            "up": Prediction("b", stitch.up),
            "down": Prediction("a", stitch.down),
            "mean": Prediction("b", lambda x, y: mean_y.expand_as(y)),
        },
    )
    xs, ys = [], []
    for batch in batches:
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
        map_errors(models, (1, 2), batches, {"x": Prediction("c", lambda x, y: x)})
    with pytest.raises(ValueError, match=r"prediction 'x' has shape .*expected .*, that of the stream of b"):
        map_errors(models, (1, 2), batches, {"x": Prediction("b", lambda x, y: x)})
    with pytest.raises(ValueError, match="hold no ordinary token"):
        map_errors(models, (1, 2), [], {"up": Prediction("b", stitch.up)})
