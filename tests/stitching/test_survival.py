"""What a stitch leaves of directions, against arithmetic with its matrices."""

import numpy as np
import pytest
from toy_probes import random_stitch

from stitch_utils.stitching.evaluation import survival
from stitch_utils.stitching.stitch import Stitch

D_A, D_B = 6, 9


@pytest.mark.parametrize("reads", [False, True])
def test_what_survives_of_a_direction(reads):
    """Of what is added, the path is x -> x P_up; of what reads, w -> P_down w."""
    stitch = random_stitch(D_A, D_B)
    up, down = stitch.P_up.numpy(), stitch.P_down.numpy()
    rng = np.random.default_rng(3)
    v = rng.normal(size=D_A)
    there = down @ v if reads else v @ up
    back = up @ there if reads else there @ down
    (found,) = survival(v, stitch, reads=reads)
    assert found.kept == pytest.approx(np.sqrt((there**2).sum() / (v**2).sum()))
    assert found.round_trip == pytest.approx((v @ back) / np.sqrt((v @ v) * (back @ back)))
    drawn = rng.normal(size=(20_000, D_A))
    images = [down @ row if reads else row @ up for row in drawn]
    shares = [(image @ image) / (row @ row) for image, row in zip(images, drawn)]
    assert found.kept_random == pytest.approx(np.mean(shares) ** 0.5, rel=0.02)
    returned = [up @ image if reads else image @ down for image in images]
    cosines = [row @ b / np.sqrt((row @ row) * (b @ b)) for row, b in zip(drawn, returned)]
    assert found.round_trip_random == pytest.approx(np.median(cosines), abs=0.05)
    (backwards,) = survival(rng.normal(size=D_B), stitch, to="a", reads=reads)
    assert backwards.kept_random == pytest.approx(np.linalg.norm(up if reads else down) / D_B**0.5)
    (whole,) = survival(v, Stitch.identity(D_A))
    assert tuple(whole) == pytest.approx((1, 1, 1, 1))
    with pytest.raises(ValueError, match="to='c': expected 'a' or 'b'"):
        survival(v, stitch, to="c")
