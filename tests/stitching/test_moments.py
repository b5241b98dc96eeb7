"""Streamed moments against numpy on the whole data, in any order of shards."""

import numpy as np
import pytest
import torch

from stitch_utils.stitching.fit import fit_exact
from stitch_utils.stitching.moments import PairMoments


def data(n=700, d_a=5, d_b=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d_a, generator=generator) + 100  # a mean that is large beside the spread
    return x, x @ torch.randn(d_a, d_b, generator=generator) + torch.randn(n, d_b, generator=generator)


def moments_of(x, y, splits):
    moments = PairMoments(x.shape[1], y.shape[1])
    for part_x, part_y in zip(x.split(splits), y.split(splits)):
        moments.update(part_x, part_y)
    return moments


@pytest.mark.parametrize("splits", [700, 64, 1])
def test_moments_equal_numpy(splits):
    x, y = data()
    moments = moments_of(x, y, splits)
    both = np.concatenate([x.numpy().astype(np.float64), y.numpy().astype(np.float64)], axis=1)
    expected = np.cov(both, rowvar=False, bias=True)
    np.testing.assert_allclose(moments.covariance.numpy(), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(moments.mean.numpy(), both.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.cxy.numpy(), expected[:5, 5:], rtol=1e-9, atol=1e-9)
    assert moments.count == 700


def test_shards_in_any_order_give_the_same_stitch():
    x, y = data()
    shards = [moments_of(a, b, 50) for a, b in zip(x.split(130), y.split(130))]
    stitches = []
    for order in ([0, 1, 2, 3, 4, 5], [5, 2, 0, 4, 1, 3]):
        total = PairMoments(5, 8)
        for index in order:
            total = total + shards[index]
        stitches.append(fit_exact(total))
    whole = fit_exact(moments_of(x, y, 700))
    for stitch in stitches:
        torch.testing.assert_close(stitch.P_up, whole.P_up, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(stitch.b_down, whole.b_down, rtol=1e-4, atol=1e-3)


def test_addition_leaves_its_parts_alone():
    x, y = data()
    first, second = moments_of(x[:300], y[:300], 300), moments_of(x[300:], y[300:], 400)
    before = first.scatter.clone()
    _ = first + second
    assert first.count == 300 and torch.equal(first.scatter, before)


def test_low_precision_input_is_accumulated_in_float64():
    x, y = (part.bfloat16() for part in data(n=5000))
    moments = moments_of(x, y, 100)
    expected = np.cov(x.double().numpy(), rowvar=False, bias=True)
    np.testing.assert_allclose(moments.cxx.numpy(), expected, rtol=1e-9)
    assert moments.cxx.dtype == torch.float64


def test_save_and_load(tmp_path):
    moments = moments_of(*data(), 100)
    moments.save(tmp_path / "moments.safetensors")
    loaded = PairMoments.load(tmp_path / "moments.safetensors")
    assert loaded.count == moments.count and (loaded.d_a, loaded.d_b) == (5, 8)
    assert torch.equal(loaded.scatter, moments.scatter) and torch.equal(loaded.mean, moments.mean)


def test_errors(tmp_path):
    moments = PairMoments(5, 8)
    x, y = data()
    with pytest.raises(ValueError, match=r"expected x of shape \(n, 5\).*got \(700, 8\)"):
        moments.update(y, x)
    with pytest.raises(ValueError, match=r"got \(700, 5\) and \(699, 8\)"):
        moments.update(x, y[1:])
    moments.update(x, y)
    broken = x.clone()
    broken[3, 2] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        moments.update(broken, y)
    assert moments.count == 700 and torch.isfinite(moments.scatter).all(), "a refused update must change nothing"
    with pytest.raises(ValueError, match="widths differ"):
        moments + PairMoments(4, 8)
    with pytest.raises(ValueError, match="moments of 0 tokens"):
        _ = PairMoments(5, 8).cxx
    fit_exact(moments).save(tmp_path / "stitch.safetensors")
    with pytest.raises(ValueError, match="holds Stitch data: expected PairMoments"):
        PairMoments.load(tmp_path / "stitch.safetensors")


def test_weights_count_as_repetitions(tmp_path):
    x, y = data(n=50)
    times = torch.arange(50) % 4 + 1
    weighted = PairMoments(5, 8)
    for part in torch.arange(50).split(17):
        weighted.update(x[part], y[part], times[part].double() / 2)
    repeated = moments_of(x.repeat_interleave(times, 0), y.repeat_interleave(times, 0), 50)
    assert weighted.count == repeated.count / 2 == times.sum() / 2
    torch.testing.assert_close(weighted.mean, repeated.mean)
    torch.testing.assert_close(weighted.covariance, repeated.covariance)
    weighted.save(tmp_path / "moments.safetensors")
    assert PairMoments.load(tmp_path / "moments.safetensors").count == weighted.count
    with pytest.raises(ValueError, match="expected positive weights"):
        weighted.update(x[:2], y[:2], torch.tensor([1.0, 0.0]))
