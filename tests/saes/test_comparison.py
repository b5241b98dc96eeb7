"""Maps from an SAE's code against naive ridge regression; chance levels of a decoder regression against simulation."""

import math

import numpy as np
import pytest
import torch
from toy_saes import D_A, D_B, LATENTS, make_sae, normal

from stitch_utils.book.claims import published
from stitch_utils.saes.comparison import decoder_regression, fit_code_map, match_latents, reconstructions
from stitch_utils.saes.transfer import transfer_sae
from stitch_utils.stitching.stitch import Stitch


def streams(n=900, seed=0):
    """x, and a y that follows from it up to noise."""
    x = normal(n, D_A, seed=seed)
    return x, torch.tanh(x @ normal(D_A, D_B, seed=7)) + 0.3 * normal(n, D_B, seed=seed + 1) + 1


def in_batches(x, y, size=200):
    return list(zip(x.split(size), y.split(size)))


def naive_ridge(code, y, ridge):
    """Centred least squares with `ridge` times the mean variance of a latent on the diagonal."""
    code, y = (part.numpy() for part in (code, y))
    centred, wanted = code - code.mean(0), y - y.mean(0)
    covariance = centred.T @ centred / len(code)
    covariance += ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    matrix = np.linalg.solve(covariance, centred.T @ wanted / len(code))
    return matrix, y.mean(0) - code.mean(0) @ matrix


# ---- from a code to a stream --------------------------------------------------------------------------------------


def set_ridges(monkeypatch, *ridges):
    monkeypatch.setattr("stitch_utils.saes.comparison.RIDGES", ridges)


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_the_map_is_ridge_regression_with_the_ridge_that_validates_best(kind, monkeypatch):
    sae = make_sae(kind)
    x, y = streams()
    held_x, held_y = streams(300, seed=3)
    ridges = (1e-6, 1e-3, 1e-1, 1.0)
    set_ridges(monkeypatch, *ridges)
    found = fit_code_map(sae, in_batches(x, y), in_batches(held_x, held_y))
    with torch.no_grad():
        code, held_code = sae.encode(x), sae.encode(held_x)
    errors = {}
    for ridge in ridges:
        matrix, bias = naive_ridge(code, y, ridge)
        errors[ridge] = np.square(held_code.numpy() @ matrix + bias - held_y.numpy()).mean()
    best = min(errors, key=errors.get)
    assert found.ridge == best and found.method == "exact" and len({round(e, 6) for e in errors.values()}) == 4
    matrix, bias = naive_ridge(code, y, best)
    torch.testing.assert_close(found.decoder.P, torch.tensor(matrix), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        found.predict(held_x), held_code @ torch.tensor(matrix) + torch.tensor(bias), rtol=1e-3, atol=1e-4
    )


def test_a_stream_that_is_made_of_the_code_is_read_off(monkeypatch):
    set_ridges(monkeypatch, 1e-10)
    sae = make_sae("topk")
    x, _ = streams()
    with torch.no_grad():
        y = sae.encode(x) @ normal(LATENTS, D_B, seed=5) - 2
    found = fit_code_map(sae, in_batches(x, y), in_batches(x, y))
    assert found.flops == 2 * LATENTS * (D_A + D_B)
    torch.testing.assert_close(found.predict(x), y, rtol=1e-3, atol=1e-3)


def test_a_transferred_sae_decodes_no_better_than_its_code_allows(monkeypatch):
    """The decoder that Eq. 6 composes is one of the affine maps of the same code."""
    set_ridges(monkeypatch, 1e-8)
    shapes = ((D_A, D_B), (D_B,), (D_B, D_A), (D_A,))
    stitch = Stitch(*(normal(*shape, seed=8 + i) / 4 for i, shape in enumerate(shapes)))
    moved = transfer_sae(make_sae("topk"), stitch)
    _, y = streams()
    x, _ = streams(seed=4)
    fitted = fit_code_map(moved, in_batches(x, y), in_batches(x, y), reads=1)
    with torch.no_grad():
        composed = (moved(y) - y).square().mean()
    assert (fitted.predict(y) - y).square().mean() < 0.9 * composed


def test_b_is_reconstructed_in_four_ways(monkeypatch):
    """Two codes, of x and of down(y), and for each the decoder of Eq. 6 and one fitted to y."""
    set_ridges(monkeypatch, 1e-3)
    shapes = ((D_A, D_B), (D_B,), (D_B, D_A), (D_A,))
    stitch = Stitch(*(normal(*shape, seed=8 + i) / 4 for i, shape in enumerate(shapes)))
    sae, (x, y), held_out = make_sae("topk"), streams(), streams(200, seed=3)
    found, maps = reconstructions(sae, stitch, in_batches(x, y), [held_out])
    assert {side for side, _ in found.values()} == {"b"}
    with torch.no_grad():
        codes = {"a": sae.encode(x), "b": sae.encode(y @ stitch.P_down + stitch.b_down)}
        for side, code in codes.items():
            composed = (code @ sae.W_dec + sae.b_dec) @ stitch.P_up + stitch.b_up
            torch.testing.assert_close(found[f"{side}_composed"][1](x, y), composed, rtol=1e-6, atol=1e-6)
            matrix, bias = (torch.tensor(part) for part in naive_ridge(code, y, 1e-3))
            torch.testing.assert_close(found[f"{side}_fitted"][1](x, y), code @ matrix + bias, rtol=1e-3, atol=1e-3)
            assert maps[side].ridge == 1e-3


def test_wide_codes_are_fitted_by_adamw(monkeypatch):
    sae = make_sae("topk", dtype="float32")
    x, y = (part.float() for part in streams())
    exact = fit_code_map(sae, in_batches(x, y), in_batches(x, y))
    monkeypatch.setattr("stitch_utils.saes.comparison.LARGEST_EXACT", LATENTS - 1)
    adam = fit_code_map(sae, in_batches(x, y, 100), [], lr=1e-2, epochs=60)
    assert (adam.method, adam.ridge) == ("adam", 0)
    errors = [(fit.predict(x) - y).norm(dim=1).mean().item() for fit in (exact, adam)]
    assert errors[1] == pytest.approx(errors[0], rel=0.05)
    mean = (y - y.mean(0)).norm(dim=1).mean().item()
    assert errors[1] < 0.95 * mean


# ---- one decoder on another ---------------------------------------------------------------------------------------


def chance_norm(n, d, squares=None):
    return math.sqrt((n if squares is None else squares) * max(0, 1 - d / n))


@pytest.mark.parametrize(("n", "d_from", "d_to"), [(512, 160, 64), (600, 40, 90), (300, 200, 30)])
def test_the_chance_level_is_what_unrelated_rows_leave(n, d_from, d_to):
    rng = np.random.default_rng(n)
    left = []
    for _ in range(20):
        given, wanted = rng.normal(size=(n, d_from)), rng.normal(size=(n, d_to))
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        left.append(np.linalg.norm(wanted - given @ np.linalg.lstsq(given, wanted, rcond=None)[0]))
    assert chance_norm(n, d_from) == pytest.approx(np.mean(left), rel=0.01)
    found = decoder_regression(torch.tensor(given), torch.tensor(wanted))
    assert found.simulated.value == pytest.approx(found.chance, rel=0.01)
    assert found.chance == pytest.approx(chance_norm(n, d_from))
    assert found.residual == pytest.approx(left[-1], rel=1e-9)


def test_the_papers_figure_is_at_the_chance_level():
    """16384 latents of width 3584: the paper reports about 114."""
    assert published().numbers["lrt.gemma.decoder_residual.chance"] == pytest.approx(chance_norm(16384, 3584), abs=0.05)


def test_as_many_regressors_as_rows_leave_nothing():
    for d_from in (20, 30):
        found = decoder_regression(normal(20, d_from, seed=1), normal(20, 4, seed=2))
        assert found.chance == 0 and found.residual == pytest.approx(0, abs=1e-9)


def test_the_residual_is_that_of_least_squares():
    given, wanted = normal(80, 9, seed=1), normal(80, 6, seed=2) + 0.5
    given = torch.cat([given, given[:, :2]], dim=1)  # of lower rank than it is wide
    naive = wanted.numpy() - given.numpy() @ np.linalg.lstsq(given.numpy(), wanted.numpy(), rcond=None)[0]
    found = decoder_regression(given, wanted)
    assert found.residual == pytest.approx(np.linalg.norm(naive), rel=1e-9)
    assert found.chance == pytest.approx(chance_norm(80, 11, squares=wanted.square().sum().item()))


def test_a_linear_image_leaves_nothing_and_in_another_order_what_chance_leaves():
    given = normal(400, 30, seed=3)
    wanted = given @ normal(30, 20, seed=4)
    found = decoder_regression(given, wanted)
    assert found.residual < 1e-9 * wanted.norm()
    assert found.shuffled.value == pytest.approx(found.chance, rel=0.02)
    assert found.shuffled.low <= found.shuffled.value <= found.shuffled.high


def test_rows_with_a_common_direction_show_what_shuffling_is_for():
    """What all rows share can be predicted from what all regressors share, in any order."""
    given, wanted = normal(400, 30, seed=5) + 1, normal(400, 20, seed=6) + 2
    found = decoder_regression(given, wanted)
    assert found.shuffled.value < 0.8 * found.chance
    assert found.residual == pytest.approx(found.shuffled.value, rel=0.02)


def test_decoders_of_different_lengths():
    with pytest.raises(ValueError, match="decoders of 8 and 9 latents: expected as many of both"):
        decoder_regression(normal(8, 3), normal(9, 3))


def test_latents_are_matched_by_how_they_fire():
    first = make_sae("jumprelu")
    second = make_sae("jumprelu")
    order = torch.randperm(LATENTS, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # the same SAE with its latents in another order, at another scale
        for name in ("W_enc", "b_enc", "W_dec", "threshold"):
            tensor = getattr(first, name)
            moved = tensor[..., order] if name == "W_enc" else tensor[order]
            getattr(second, name).copy_(moved * (1.0 if name == "W_dec" else 2.0))
        first.b_enc[3] = second.b_enc[order.tolist().index(3)] = -1e6  # one that never fires
    x, _ = streams(2000)
    found = match_latents((first, second), in_batches(x, x))
    assert 3 not in found.latents and len(found.latents) >= LATENTS - 8
    assert torch.equal(order[found.partners], found.latents)
    assert found.correlations.min() > 0.999
    with torch.no_grad():
        codes = first.encode(x).numpy(), second.encode(x + 0.2).numpy()
    noisy = match_latents((first, second), [(x, x + 0.2)])
    for latent, partner, correlation in zip(*(part.tolist() for part in noisy)):
        others = [
            np.corrcoef(codes[0][:, latent], codes[1][:, j])[0, 1] for j in range(LATENTS) if codes[1][:, j].std()
        ]
        assert correlation == pytest.approx(max(others), abs=1e-5)
        assert correlation == pytest.approx(np.corrcoef(codes[0][:, latent], codes[1][:, partner])[0, 1], abs=1e-5)
    with torch.no_grad():
        second.b_enc.fill_(-1e6)
    with pytest.raises(ValueError, match="an SAE fires on no token"):
        match_latents((first, second), [(x, x)])
