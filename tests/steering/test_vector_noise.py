"""Vectors from two sets of prompts, checked against noise whose size is known and against sums that are written out."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from stitch_utils.book.claims import verdicts
from stitch_utils.book.results import write_results
from stitch_utils.steering.vector_noise import vector_noise
from stitch_utils.stitching.stitch import Stitch

D_A, D_B = 16, 24


def between(up: torch.Tensor, down: torch.Tensor) -> Stitch:
    return Stitch(up, torch.ones(D_B), down, torch.ones(D_A))


@pytest.fixture
def stitch():
    torch.manual_seed(0)
    return between(torch.randn(D_A, D_B), torch.randn(D_B, D_A))


def noisy(pairs: int, noise: float, seed: int, d: int = D_A) -> torch.Tensor:
    """A unit direction, with noise of length `noise` on the whole in every row."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(d, generator=generator)
    return direction / direction.norm() + noise * torch.randn(pairs, d, generator=generator) / d**0.5


def test_what_the_noise_leaves_is_what_its_size_says(stitch):
    pairs, noise = 4000, 4.0
    shifts = {("a", kind): noisy(pairs, noise, seed) for seed, kind in enumerate(("upper", "lower"))}
    found = vector_noise(shifts, stitch, counts=(5, 10, 50))
    for count in (5, 10, 50):  # the noise of a mean has the squared length noise^2 / count, the signal 1
        assert found.cosines["a", count, "native"].value == pytest.approx(1 / (1 + noise**2 / count), abs=0.03)


def test_the_mean_is_over_all_ways_to_split(stitch):
    shift = noisy(4, 1.0, seed=3)
    expected = {"native": [], "carried": []}
    for order in itertools.permutations(range(4)):
        one, two = shift[order[0]] + shift[order[1]], shift[order[2]] + shift[order[3]]
        for way, (v, w) in (("native", (one, two)), ("carried", (one @ stitch.P_up, two @ stitch.P_up))):
            v, w = v.double().numpy(), w.double().numpy()
            expected[way].append(v @ w / np.sqrt(v @ v) / np.sqrt(w @ w))
    found = vector_noise({("a", "upper"): shift}, stitch, counts=(2,), draws=3000)
    for way, values in expected.items():
        estimate = found.cosines["a", 2, way]
        assert estimate.value == pytest.approx(np.mean(values), abs=0.01)
        assert estimate.low >= min(values) - 1e-6 and estimate.high <= max(values) + 1e-6


def test_a_map_that_drops_the_noise_takes_it_from_the_carried_vectors():
    shift = noisy(40, 1.0, seed=1)
    shift[:, 0] += 5 - shift[:, 0]  # alike in every row
    only_first = torch.zeros(D_A, D_B)
    only_first[0, 0] = 1.0
    found = vector_noise({("a", "upper"): shift}, between(only_first, torch.zeros(D_B, D_A)), counts=(10,))
    assert found.cosines["a", 10, "carried"].value == pytest.approx(1.0)
    assert found.cosines["a", 10, "native"].value < 1 - 1e-4


def test_each_model_is_carried_by_its_own_map(stitch):
    shifts = {("a", "upper"): noisy(20, 1.0, 0), ("b", "upper"): noisy(20, 1.0, 1, D_B)}
    found = vector_noise(shifts, stitch)
    assert {key[:2] for key in found.cosines} == {(side, count) for side in "ab" for count in (2, 3, 5, 10)}
    assert found.counts == [2, 3, 5, 10]  # there are not 40 pairs
    numbers = found.numbers("tiny")
    assert len(numbers) == 2 * 4 * (3 * 3 + 1) and numbers["noise.tiny.a.pairs_3.instructions"] == 1
    assert {"noise.tiny.b.pairs_10.carried.low", "noise.tiny.b.pairs_10.lost.high"} < set(numbers)


def test_each_instruction_gives_what_it_has_prompts_for(stitch):
    """At each number of pairs the mean is over the instructions that have as many twice, and no others."""
    many, some, few = (noisy(pairs, 1.0, seed) for seed, pairs in enumerate((41, 19, 4)))
    shifts = {("a", "upper"): many, ("a", "lower"): some, ("a", "quotes"): few}
    found = vector_noise(shifts, stitch, draws=400)
    assert found.counts == [2, 3, 5, 10, 20]
    assert found.instructions == {("a", 2): 3, ("a", 3): 2, ("a", 5): 2, ("a", 10): 1, ("a", 20): 1}
    for count, kinds in ((2, "upper lower quotes"), (5, "upper lower"), (10, "upper")):
        alone = [vector_noise({("a", kind): shifts["a", kind]}, stitch, draws=400) for kind in kinds.split()]
        for way in ("native", "carried"):
            expected = np.mean([one.cosines["a", count, way].value for one in alone])
            assert found.cosines["a", count, way].value == pytest.approx(expected, abs=0.02)
    assert vector_noise({("a", "upper"): noisy(3, 1.0, 0)}, stitch).counts == []


def test_what_is_lost_is_taken_draw_by_draw(stitch):
    shifts = {("a", "upper"): noisy(24, 1.0, 0), ("a", "lower"): noisy(24, 1.0, 1)}
    found = vector_noise(shifts, stitch, counts=(10,))
    native, carried, lost = (found.cosines["a", 10, "native"], found.cosines["a", 10, "carried"], found.lost["a", 10])
    assert lost.value == pytest.approx(native.value - carried.value) and lost.low < lost.value < lost.high
    # What a rotation leaves as it is differs between the draws, though not within one.
    q = torch.linalg.qr(torch.randn(D_A, D_A, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    turned = Stitch(q, torch.zeros(D_A), q.T, torch.zeros(D_A))
    found = vector_noise(shifts, turned, counts=(10,))
    assert found.lost["a", 10] == pytest.approx((0, 0, 0), abs=1e-12)
    assert found.cosines["a", 10, "native"].high - found.cosines["a", 10, "native"].low > 0.01


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "holds"),
        ({"b.pairs_10.lost.low": -0.01}, "partly"),
        ({"a.pairs_10.lost": -0.01, "a.pairs_10.lost.low": -0.02}, "does not hold"),
    ],
)
def test_the_claim_asks_for_the_interval_of_what_is_lost(project, change, verdict):
    shutil.copy(Path(__file__).parents[2] / "book" / "published.yml", project / "book" / "published.yml")
    # Noise alone lies in the direction that the map to the other model enlarges.
    shift = torch.zeros(20, 2)
    shift[:, 0], shift[:, 1] = 1, torch.randn(20, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    larger = torch.diag(torch.tensor([1.0, 5.0]))
    found = vector_noise(
        {(side, "upper"): shift for side in "ab"}, Stitch(larger, torch.ones(2), larger, torch.ones(2))
    )
    changed = {f"noise.tiny.{key}": value for key, value in change.items()}
    write_results("tiny", "instruction_following", found.numbers("tiny") | changed)
    (said,) = (said for said in verdicts("tiny") if said.id == "transfer-compounds-the-noise")
    assert said.verdict == verdict


def test_no_draws_are_an_error(stitch):
    with pytest.raises(ValueError, match="draws=0: expected at least one"):
        vector_noise({("a", "upper"): noisy(20, 1.0, 0)}, stitch, draws=0)
