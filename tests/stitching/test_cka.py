"""Debiased CKA against its definition, sum by sum, and what unpaired tokens give."""

import itertools

import numpy as np
import pytest
import torch

from stitch_utils.stitching.cka import debiased_cka, permuted_cka


def streams(n=40, d_a=5, d_b=7, shared=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(n, shared, generator=generator)
    x, y = (
        latent @ torch.randn(shared, d, generator=generator) + torch.randn(n, d, generator=generator)
        for d in (d_a, d_b)
    )
    return x + 5, y - 3


def naive_hsic(x, y):
    """The U-statistic that Song et al. define: the mean over all quadruples of different tokens, uncentred kernels."""
    k, m = x @ x.T, y @ y.T
    terms = [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in itertools.permutations(range(len(x)), 4)]
    return np.mean(terms)


def test_against_the_sum_over_quadruples():
    x, y = streams(n=9)
    a, b = x.double().numpy(), y.double().numpy()
    expected = naive_hsic(a, b) / np.sqrt(naive_hsic(a, a) * naive_hsic(b, b))
    assert debiased_cka(x, y) == pytest.approx(expected, rel=1e-9)


def test_a_rotation_a_scale_and_a_shift_do_not_matter():
    x, y = streams()
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))[0]
    assert debiased_cka(x, 3 * x @ rotation + 1) == pytest.approx(1, abs=1e-5)
    assert debiased_cka(2 * x @ rotation - 4, y) == pytest.approx(debiased_cka(x, y), abs=1e-5)


def test_unrelated_streams_score_nothing_on_the_mean():
    """With as many dimensions as tokens, where the biased estimate is near 1/2."""
    found = []
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        x, y = (torch.randn(30, 30, generator=generator) for _ in range(2))
        found.append(debiased_cka(x, y))
    assert abs(np.mean(found)) < 3 * np.std(found) / 60**0.5 < 0.05


def test_streams_that_share_only_their_spectra_are_no_more_alike_than_permuted_ones():
    spread, ranks = torch.logspace(0, -2, 12), []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        x, y = (torch.randn(50, 12, generator=generator) * spread for _ in range(2))
        ranks.append(debiased_cka(x, y) > permuted_cka(x, y, draws=19, seed=seed).max())
    assert np.mean(ranks) == pytest.approx(0.05, abs=0.04)  # a binomial of 200 is within .03 of .05, nineteen in twenty
    x, y = streams(n=400)
    assert debiased_cka(x, y) > 3 * permuted_cka(x, y).max()


def test_draws_follow_the_seed():
    x, y = streams()
    first, again, other = (permuted_cka(x, y, draws=4, seed=seed) for seed in (0, 0, 1))
    assert first.shape == (4,) and (first == again).all() and not np.allclose(first, other)


def test_errors():
    x, y = streams()
    with pytest.raises(ValueError, match="CKA of 3 tokens: at least 4"):
        debiased_cka(x[:3], y[:3])
    with pytest.raises(ValueError, match="do not vary"):
        debiased_cka(torch.ones(40, 5), y)
    with pytest.raises(ValueError, match="do not vary"):
        permuted_cka(x, torch.ones(40, 5))
