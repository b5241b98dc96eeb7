"""Both fitters against naive arithmetic, against each other and against long numerical optimisation."""

import pytest
import torch
from toy_streams import gaussian_pair, moments_of, naive_loss

from stitch_utils.stitching.fit import best_given_other, fit_adam, fit_exact
from stitch_utils.stitching.moments import PairMoments
from stitch_utils.stitching.stitch import stitch_loss


def best_by_long_lbfgs(x, y, alpha, starts):
    """The lowest Eq. 3 that L-BFGS finds from several starts, in an independent parametrisation (whitened by SVD of
    the data)."""
    xc, yc = x - x.mean(0), y - y.mean(0)
    n = len(x)
    ux, sx, vx = torch.linalg.svd(xc, full_matrices=False)
    uy, sy, vy = torch.linalg.svd(yc, full_matrices=False)
    sx, sy, cross = sx / n**0.5, sy / n**0.5, ux.T @ uy

    def descend(p_up, p_down):
        # P_up = Vx Sx^-1 M, P_down = Vy Sy^-1 N
        m = (sx[:, None] * (vx @ p_up)).clone().requires_grad_()
        w = (sy[:, None] * (vy @ p_down)).clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [m, w],
            max_iter=300,
            max_eval=400,
            history_size=30,
            line_search_fn="strong_wolfe",
            tolerance_grad=1e-12,
            tolerance_change=1e-14,
        )

        def loss():
            target_y, target_x = cross * sy @ vy, cross.T * sx @ vx  # E[u_x y], E[u_y x]
            up = (m**2).sum() - 2 * (m * target_y).sum() + (sy**2).sum()
            down = (w**2).sum() - 2 * (w * target_x).sum() + (sx**2).sum()
            # x = Ux Sx Vx: up(x) = Ux M, down(up(x)) = Ux M Vy' Sy^-1 N
            cycle_a = ((m @ vy.T / sy @ w - sx[:, None] * vx) ** 2).sum()
            cycle_b = ((w @ vx.T / sx @ m - sy[:, None] * vy) ** 2).sum()
            return (up + alpha * cycle_b) / y.shape[1] + (down + alpha * cycle_a) / x.shape[1]

        def closure():
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value

        optimizer.step(closure)
        return loss().item()

    return min(descend(*start) for start in starts)


@pytest.mark.parametrize("condition", [1e2, 1e6])
@pytest.mark.parametrize(("alpha", "within"), [(0, 1e-3), (0.1, 1e-3), (1, 1e-3), (10, 1e-2)])
def test_exact_fit_is_at_the_minimum(alpha, within, condition):
    x, y = gaussian_pair(seed=3, condition=condition, d_a=32, d_b=48, n=1500, shared=24)
    moments = moments_of(x, y)
    stitch = fit_exact(moments, alpha=alpha, dtype=torch.float64)
    least_squares = (
        torch.linalg.lstsq(x - x.mean(0), y - y.mean(0)).solution,
        torch.linalg.lstsq(y - y.mean(0), x - x.mean(0)).solution,
    )
    generator = torch.Generator().manual_seed(0)
    starts = [least_squares, (stitch.P_up, stitch.P_down)]
    starts.append(
        tuple(p + 0.3 * p.std() * torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in least_squares)
    )
    best = best_by_long_lbfgs(x, y, alpha, starts)
    ours = naive_loss(stitch.P_up, stitch.b_up, stitch.P_down, stitch.b_down, x, y, alpha)[-1].item()
    assert ours <= best * (1 + within), f"{ours} is more than {within:.0e} above {best}"
    assert stitch.report.converged and stitch.report.loss == pytest.approx(ours, rel=1e-5)


def test_one_map_given_the_other_is_stationary():
    x, y = gaussian_pair(seed=2, condition=1e2, d_a=6, d_b=9, n=400)
    x, y = x - x.mean(0), y - y.mean(0)
    p = torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    n = len(x)
    q = best_given_other(p, x.T @ x / n, x.T @ y / n, y.T @ y / n, 0.7).requires_grad_()
    naive_loss(p, torch.zeros(9).double(), q, torch.zeros(6).double(), x, y, 0.7)[-1].backward()
    assert q.grad.abs().max() < 1e-10


def test_alpha_zero_is_ordinary_least_squares():
    x, y = gaussian_pair(seed=4, condition=1e2, d_a=6, d_b=9, n=400)
    stitch = fit_exact(moments_of(x, y), alpha=0, dtype=torch.float64)
    ones = torch.ones(len(x), 1, dtype=torch.float64)
    solution = torch.linalg.lstsq(torch.cat([x, ones], 1), y).solution
    torch.testing.assert_close(stitch.P_up, solution[:-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stitch.b_up, solution[-1], rtol=1e-4, atol=1e-4)


def test_a_linear_relation_is_found_and_inverted():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 4, generator=generator)
    true = torch.randn(4, 6, generator=generator)
    y = x @ true + 3
    stitch = fit_exact(moments_of(x, y))
    torch.testing.assert_close(stitch.up(x), y, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(stitch.down(stitch.up(x)), x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("alpha", [0, 1])
def test_rank_deficient_and_badly_scaled_activations(alpha):
    x, y = gaussian_pair(seed=5, condition=1e2, d_a=8, d_b=12, n=600)
    x = torch.cat([x, x[:, :2], torch.zeros(600, 1).double()], dim=1)  # repeated and dead dimensions
    x, y = x * torch.logspace(-6, 4, x.shape[1]).double(), y * 1e5
    stitch = fit_exact(moments_of(x, y), alpha=alpha, dtype=torch.float64)
    assert all(torch.isfinite(getattr(stitch, name)).all() for name in ("P_up", "b_up", "P_down", "b_down"))
    ours = naive_loss(stitch.P_up, stitch.b_up, stitch.P_down, stitch.b_down, x, y, alpha)
    assert ours[-1] < (y.var(0, correction=0).mean() + x.var(0, correction=0).mean()) * (1 + 2 * alpha)
    assert stitch.report.converged and stitch.report.ridge > 0


def test_ridge_follows_the_scale_of_the_data():
    x, y = gaussian_pair(seed=6, condition=1e2, d_a=6, d_b=9, n=300)
    plain, scaled = (fit_exact(moments_of(x * s, y * s), ridge=1e-2, alpha=0, dtype=torch.float64) for s in (1, 1000))
    torch.testing.assert_close(plain.P_up, scaled.P_up, rtol=1e-6, atol=1e-8)


def test_adam_follows_the_recipe():
    """Five steps against the update rule written out."""
    x, y = (part.float() for part in gaussian_pair(seed=7, condition=1e2, d_a=3, d_b=5, n=40))
    batches = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 40, 8)]
    starts = []
    fit_adam(batches, d_a=3, d_b=5, n_steps=1, lr=1e-30, on_step=lambda step, stitch: starts.append(stitch))
    w = [starts[0].P_up.T.clone(), starts[0].b_up.clone(), starts[0].P_down.T.clone(), starts[0].b_down.clone()]
    assert max(w[1].abs().max(), w[3].abs().max()) < 1e-20, "biases start at 0"
    first, second = [torch.zeros_like(t) for t in w], [torch.zeros_like(t) for t in w]
    n_steps, lr = 5, 1e-2
    for step, (bx, by) in enumerate(batches, 1):
        leaves = [t.clone().requires_grad_() for t in w]
        naive_loss(leaves[0].T, leaves[1], leaves[2].T, leaves[3], bx, by, 1.0)[-1].backward()
        grads = [leaf.grad for leaf in leaves]
        norm = sum(g.square().sum() for g in grads).sqrt()
        grads = [g * min(1.0, 1.0 / (norm.item() + 1e-6)) for g in grads]
        rate = lr * 0.5 * (1 + torch.cos(torch.tensor((step - 1) / n_steps * torch.pi))).item()
        for i, g in enumerate(grads):
            first[i], second[i] = 0.9 * first[i] + 0.1 * g, 0.999 * second[i] + 0.001 * g * g
            unbiased = first[i] / (1 - 0.9**step), second[i] / (1 - 0.999**step)
            w[i] = w[i] - rate * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
    stitch = fit_adam(batches, d_a=3, d_b=5, n_steps=n_steps, lr=lr)
    torch.testing.assert_close(stitch.P_up, w[0].T, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(stitch.b_down, w[3], rtol=1e-4, atol=1e-6)
    assert stitch.report.method == "adam" and not stitch.report.converged


def test_adam_approaches_the_exact_minimum_and_is_seeded():
    x, y = (part.float() for part in gaussian_pair(seed=8, condition=10, d_a=4, d_b=6, n=512))
    moments, batches = moments_of(x, y), [(x, y)]
    exact = fit_exact(moments)
    fits = [fit_adam(batches, d_a=4, d_b=6, n_steps=1500, lr=1e-2, seed=seed) for seed in (0, 0, 1)]
    loss = stitch_loss(fits[0], moments).total
    assert (
        exact.report.loss <= loss <= exact.report.loss * 1.1
    )  # the problem is not convex: Adam may end in another valley
    assert torch.equal(fits[0].P_up, fits[1].P_up) and not torch.equal(fits[0].P_up, fits[2].P_up)


def test_adam_leaves_the_global_generator_alone():
    x, y = torch.randn(10, 2), torch.randn(10, 3)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit_adam([(x, y)], d_a=2, d_b=3, n_steps=2)
    assert torch.equal(torch.rand(3), expected)


def test_errors():
    x, y = gaussian_pair(seed=1, condition=10, d_a=4, d_b=6, n=50)
    moments = moments_of(x, y)
    with pytest.raises(ValueError, match="alpha=-1"):
        fit_exact(moments, alpha=-1)
    with pytest.raises(ValueError, match="moments of 0 tokens"):
        fit_exact(PairMoments(4, 6))
    with pytest.raises(ValueError, match="activations x do not vary"):
        fit_exact(moments_of(torch.ones(50, 4), y))
    with pytest.raises(ValueError, match="ended after 1 of 3 steps"):
        fit_adam(iter([(x, y)]), d_a=4, d_b=6, n_steps=3)
    with pytest.raises(ValueError, match=r"steps and learning rate must be positive, .*: got n_steps=0"):
        fit_adam([(x, y)], d_a=4, d_b=6, n_steps=0)
