"""The ReLU map against its arithmetic written out and against affine maps, and the loop that descends against Adam's
rule step by step."""

import math

import numpy as np
import pytest
import torch
from toy_streams import moments_of

from stitch_utils.stitching.descent import descend
from stitch_utils.stitching.maps import MapPair, fit_least_squares
from stitch_utils.stitching.relu_map import fit_relu


def bent(n=2000, seed=0):
    """A stream that depends on another by bends, off centre, in dimensions of very different size: (x, y), float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    mixed = x @ torch.randn(4, 3, generator=generator, dtype=torch.float64)
    y = mixed.abs() @ torch.randn(3, 6, generator=generator, dtype=torch.float64) + x @ torch.ones(4, 6).double()
    return x * torch.tensor([1, 100, 0.01, 1]) + torch.tensor([5, 1000, 0, 0]), 10 * y + 50


def in_batches(x, y, size=250):
    return list(zip(x.split(size), y.split(size)))


def share_of_variance(found, x, y):
    return ((found(x) - y).square().sum() / (y - y.mean(0)).square().sum()).item()


def fit(x, y, **options):
    options = {"hidden": 64, "n_steps": 600, "lr": 1e-2} | options
    return fit_relu(in_batches(x, y), moments_of(x, y), **options)


# ---- the map ------------------------------------------------------------------------------------------------------


def test_bends_are_followed_that_no_affine_map_follows():
    x, y = bent()
    affine, found = fit_least_squares(moments_of(x[:1500], y[:1500])), fit(x[:1500], y[:1500])
    held_out = x[1500:], y[1500:]
    assert share_of_variance(affine, *held_out) > 0.2
    assert share_of_variance(found, *held_out) < 0.03
    torch.testing.assert_close(found.P, affine.P)  # the affine part is not what got better


def test_before_it_learns_anything_it_is_least_squares():
    x, y = bent()
    affine, found = fit_least_squares(moments_of(x, y)), fit(x, y, n_steps=1, lr=1e-9)
    torch.testing.assert_close(found(x), affine(x), rtol=1e-4, atol=1e-3)


def test_where_an_affine_map_is_exact_nothing_is_spoilt():
    x, _ = bent()
    y = x @ torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert share_of_variance(fit(x, y, n_steps=50), x, y) < 1e-5


@pytest.mark.parametrize("width", range(1, 9))
def test_an_error_that_is_but_rounding_is_no_unit(width):
    """As a difference of two equal sums it may be negative."""
    x = torch.randn(50, width, generator=torch.Generator().manual_seed(width), dtype=torch.float64)
    assert fit_relu([(x, 3 * x)], moments_of(x, 3 * x), hidden=2, n_steps=1)(x).isfinite().all()


def test_it_computes_what_its_formula_says():
    x, y = bent()
    found = fit(x, y, n_steps=20)
    parts = {name: getattr(found, name).numpy() for name in ("P", "b", "W_in", "b_in", "W_out")}
    given = x.float().numpy()
    units = np.maximum(given @ parts["W_in"] + parts["b_in"], 0)
    expected = given @ parts["P"] + parts["b"] + units @ parts["W_out"]
    assert found.d_in == 4 and units.shape == (2000, 64)
    np.testing.assert_allclose(found(x.float()), expected, rtol=1e-4, atol=1e-3)
    answer = found(x.reshape(2, 1000, 4))
    assert answer.shape == (2, 1000, 6) and answer.dtype == torch.float64
    exact = found.to(torch.float64)
    assert exact.W_out.dtype == torch.float64
    torch.testing.assert_close(exact(x), found(x), rtol=1e-3, atol=1e-2)
    with pytest.raises(ValueError, match=r"given shape \(2, 5\): expected \(\.\.\., 4\)"):
        found(torch.zeros(2, 5))


def test_training_is_that_of_a_network_on_standardised_streams():
    """torch's own modules and loop, in the units in which the layer is trained."""
    x, y = bent()
    affine = fit_least_squares(moments_of(x, y), dtype=torch.float64)
    given = (x - x.mean(0)) / x.std(0, correction=0)
    unit = (affine(x) - y).square().mean().sqrt()
    target = (y - affine(x)) / unit
    torch.manual_seed(3)
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 6))
    torch.nn.init.zeros_(network[2].weight)
    torch.nn.init.zeros_(network[2].bias)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.02, weight_decay=0.3)
    for step in range(12):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 + math.cos(math.pi * step / 12)) / 2
        part = slice(250 * (step % 8), 250 * (step % 8 + 1))
        optimizer.zero_grad()
        (network(given[part].float()) - target[part].float()).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    expected = affine(x) + network(given.float()).double() * unit
    found = fit(x, y, hidden=8, n_steps=12, lr=0.02, weight_decay=0.3, seed=3)
    torch.testing.assert_close(found(x), expected.detach(), rtol=1e-3, atol=1e-2)


def test_it_is_seeded_and_leaves_the_global_generator_alone():
    x, y = bent()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two, other = (fit(x, y, n_steps=3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one.W_in, two.W_in) and torch.equal(one.W_out, two.W_out)
    assert not torch.allclose(one.W_in, other.W_in)


def test_a_dead_dimension_is_no_division_by_zero():
    x, y = bent()
    x[:, 3] = 2
    found = fit(x, y, n_steps=5)
    assert found(x).isfinite().all()


def test_two_maps_in_the_place_of_a_stitch():
    x, y = bent()
    pair = MapPair(fit(x, y, n_steps=2), fit_least_squares(moments_of(y, x)))
    exact = pair.to(torch.float64)
    assert exact.up.P.dtype == exact.down.P.dtype == torch.float64
    assert exact.down(pair.up(x)).shape == x.shape
    with pytest.raises(ValueError, match="hidden must be positive: got 0"):
        fit(x, y, hidden=0)


# ---- the descent --------------------------------------------------------------------------------------------------


def test_descent_follows_adams_rule_with_decay_clipping_and_a_cosine():
    target, w = torch.tensor([4.0, -30.0]), torch.tensor([1.0, 2.0])
    batches, lr, decay, n_steps = [1.0, 0.5, 2.0], 0.1, 0.2, 5
    trained = w.clone().requires_grad_()
    losses = descend(
        [trained],
        batches,
        lambda scale: (scale * (trained - target)).square().sum(),
        n_steps=n_steps,
        lr=lr,
        weight_decay=decay,
    )
    first, second, expected = torch.zeros(2), torch.zeros(2), []
    for step in range(n_steps):
        scale = batches[step % 3]
        expected.append((scale * (w - target)).square().sum().item())
        gradient = 2 * scale**2 * (w - target)
        gradient = gradient / max(1, gradient.norm().item())
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        rate = lr * (1 + math.cos(math.pi * step / n_steps)) / 2
        unbiased = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        w = w * (1 - rate * decay) - rate * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
    torch.testing.assert_close(trained.detach(), w, rtol=1e-4, atol=1e-5)
    assert losses == pytest.approx(expected, rel=1e-4)


def test_gradients_of_other_tensors_are_not_gathered():
    trained, other = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    descend([trained], [1], lambda _: (trained * other).sum(), n_steps=2, lr=0.1)
    assert other.grad is None and torch.equal(other, torch.ones(2))


def test_what_cannot_be_descended():
    trained = torch.ones(2, requires_grad=True)

    def loss(scale):
        return (scale * trained).sum()

    for wrong in ({"n_steps": 0}, {"lr": 0.0}, {"weight_decay": -0.1}):
        options = {"n_steps": 1, "lr": 0.1, "weight_decay": 0.0} | wrong
        with pytest.raises(ValueError, match="must be positive, weight decay not negative: got n_steps="):
            descend([trained], [1], loss, **options)
    with pytest.raises(ValueError, match="batches ended after 2 of 3 steps and cannot be iterated again"):
        descend([trained], iter([1, 1]), loss, n_steps=3, lr=0.1)
    with pytest.raises(ValueError, match="the loss is nan at step 2: expected a finite number"):
        descend([trained], [1, torch.nan], loss, n_steps=3, lr=0.1)
