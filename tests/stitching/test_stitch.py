"""The maps: their loss against naive arithmetic, their file bit by bit, and what they answer."""

import hashlib

import pytest
import torch
from jaxtyping import config
from safetensors.torch import save_file
from toy_streams import gaussian_pair, moments_of, naive_loss

from stitch_utils.stitching.fit import fit_exact
from stitch_utils.stitching.stitch import TENSORS, AffineMap, FitReport, Stitch, stitch_loss


def test_loss_from_moments_is_the_loss_on_the_data():
    x, y = gaussian_pair(seed=1, condition=1e3, d_a=7, d_b=11, n=300)
    moments = moments_of(x, y)
    generator = torch.Generator().manual_seed(0)
    stitch = Stitch(
        *(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((7, 11), (11,), (11, 7), (7,)))
    )
    expected = naive_loss(stitch.P_up, stitch.b_up, stitch.P_down, stitch.b_down, x, y, 0.3)
    for ours, naive in zip(stitch_loss(stitch, moments, alpha=0.3), expected):
        assert ours == pytest.approx(naive.item(), rel=1e-10)


@pytest.mark.parametrize("shape", [(1,), (4,), (3, 6), ()])
def test_a_bias_that_would_be_broadcast_is_no_bias(shape):
    config.update("jaxtyping_disable", True)  # as it is outside the tests
    try:
        with pytest.raises(ValueError, match=r"P has shape \(4, 6\) and b .* expected \(d_in"):
            AffineMap(torch.zeros(4, 6), torch.zeros(shape))
    finally:
        config.update("jaxtyping_disable", False)


def test_save_and_load(tmp_path):
    x, y = gaussian_pair(seed=9, condition=10, d_a=4, d_b=6, n=100)
    stitch = fit_exact(moments_of(x, y), alpha=0.5)
    stitch.save(tmp_path / "stitch.safetensors")
    loaded = Stitch.load(tmp_path / "stitch.safetensors")
    assert torch.equal(loaded.P_down, stitch.P_down) and torch.equal(loaded.b_up, stitch.b_up)
    assert loaded.report == stitch.report


@pytest.fixture
def saved(tmp_path):
    """A stitch with a report and losses, and its file."""
    maps = (torch.arange(6.0).reshape(2, 3), torch.ones(3), torch.ones(3, 2), torch.zeros(2))
    report = FitReport("exact", 0.5, 0.125, True, 3, 40, 1e-8, 2.5)
    stitch = Stitch(*maps, report=report, about={"a": "lab/small", "layer_a": 1, "loss_held_out": {"up": 0.25}})
    stitch.save(tmp_path / "stitch.safetensors")
    return stitch, tmp_path / "stitch.safetensors"


def test_no_bit_of_a_file_can_turn_over_unseen(saved):
    """In any byte, the header's with the report and the losses in it too; what is read all the same is as it was."""
    stitch, path = saved
    whole = path.read_bytes()
    unseen = []
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 7
        path.write_bytes(bytes(flipped))
        try:
            loaded = Stitch.load(path)
        except ValueError as error:
            assert "\n" not in str(error)
            continue
        same = all(torch.equal(getattr(loaded, name), getattr(stitch, name)) for name in TENSORS)
        if not same or (loaded.report, loaded.about) != (stitch.report, stitch.about):
            unseen.append((at, bytes(flipped[at - 20 : at + 20])))
    assert not unseen
    path.write_bytes(whole)
    assert Stitch.load(path).about == stitch.about


def test_files_from_before_the_digest_had_the_report_in_it(saved):
    stitch, path = saved
    tensors = {name: getattr(stitch, name) for name in TENSORS}
    raw = b"".join(tensors[name].numpy().tobytes() for name in TENSORS)
    meta = {"kind": "Stitch", "report": "null", "about": '{"layer_a": 2}'}
    save_file(tensors, path, metadata=meta | {"sha256": hashlib.sha256(raw).hexdigest()})
    assert Stitch.load(path).about == {"layer_a": 2}
    for digest in ({"sha256": hashlib.sha256(raw[1:]).hexdigest()}, {}):
        save_file(tensors, path, metadata=meta | digest)
        with pytest.raises(ValueError, match="is damaged"):
            Stitch.load(path)


@pytest.fixture
def small():
    """A stitch of widths 3 and 5, in float32."""
    generator = torch.Generator().manual_seed(0)
    return Stitch(*(torch.randn(shape, generator=generator) for shape in ((3, 5), (5,), (5, 3), (3,))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_maps_answer_in_the_dtype_of_their_argument(small, dtype):
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    y = small.up(x)
    assert y.dtype == small.down(y).dtype == dtype and y.shape == (2, 4, 5) and small.down(y).shape == x.shape
    assert torch.equal(y, (x.float() @ small.P_up + small.b_up).to(dtype)), "computed in the dtype of the maps"
    assert torch.equal(small.to(torch.float64).up(x), (x.double() @ small.P_up.double() + small.b_up).to(dtype))
    same = torch.randn(2, 3, 4).to(dtype)
    assert torch.equal(Stitch.identity(4).down(Stitch.identity(4).up(same)), same)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_maps_answer_on_the_device_of_their_argument(small):
    x = torch.randn(2, 3)
    assert small.up(x.cuda()).device.type == "cuda" and small.to("cuda").up(x).device.type == "cpu"
    torch.testing.assert_close(small.up(x.cuda()).cpu(), small.up(x))


def test_the_map_towards_a_model(small):
    for to, expected in (("b", small.up), ("a", small.down)):
        assert small.towards(to).P is expected.P and small.towards(to).b is expected.b
    assert (small.towards("b").d_in, small.towards("a").d_in) == (3, 5)
    for other in ("up", "down", "A", "", "ab"):
        with pytest.raises(ValueError, match=rf"to='{other}': expected 'a' or 'b'"):
            small.towards(other)


def test_two_maps_make_a_stitch(small):
    again = Stitch.of(small.up, small.down)
    assert all(torch.equal(getattr(again, name), getattr(small, name)) for name in TENSORS)


def test_activations_of_another_width():
    stitch = Stitch(torch.zeros(3, 5), torch.zeros(5), torch.zeros(5, 3), torch.zeros(3))
    with pytest.raises(ValueError, match=r"the map was given shape \(2, 5\): expected \(\.\.\., 3\)"):
        stitch.up(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"the map was given shape \(3,\): expected \(\.\.\., 5\)"):
        stitch.down(torch.zeros(3))


def test_maps_of_other_shapes():
    config.update("jaxtyping_disable", True)  # as it is outside the tests
    try:
        with pytest.raises(ValueError, match=r"b_up has shape \(4,\): expected \(6,\)"):
            Stitch(torch.zeros(4, 6), torch.zeros(4), torch.zeros(6, 4), torch.zeros(4))
    finally:
        config.update("jaxtyping_disable", False)
