"""Vectors from two sets of prompts, checked against noise whose size is known and against sums that are written out."""

import itertools

import numpy as np
import pytest
import torch

from stitch_utils.stitch import Stitch
from stitch_utils.vector_noise import vector_noise

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
    assert {key[:2] for key in found.cosines} == {("a", 5), ("a", 10), ("b", 5), ("b", 10)}
    assert found.counts == [5, 10]  # there are not 40 pairs
    assert len(found.numbers("tiny")) == 2 * 2 * 2 * 3
    assert "noise.tiny.b.pairs_10.carried.low" in found.numbers("tiny")


def test_the_instruction_with_the_fewest_prompts_counts(stitch):
    shifts = {("a", "upper"): noisy(100, 1.0, 0), ("a", "lower"): noisy(19, 1.0, 1)}
    assert vector_noise(shifts, stitch).counts == [5]


def test_no_draws_are_an_error(stitch):
    with pytest.raises(ValueError, match="draws=0: expected at least one"):
        vector_noise({("a", "upper"): noisy(20, 1.0, 0)}, stitch, draws=0)
