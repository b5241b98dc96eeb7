"""Samples of paired streams, and the same with other pairs."""

import torch
from toy_streams import gaussian_pair


def streams(d_a, d_b, n=150):
    """Correlated streams off centre: (x, y), float64."""
    return gaussian_pair(0, 10, d_a, d_b, n=n, shared=6)


def rotated(x, d, seed=1):
    """The same stream in other coordinates of width d, three times as large and off centre."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * x @ torch.linalg.qr(torch.randn(d, x.shape[1], generator=generator, dtype=torch.float64))[0].T + 5


def shuffled_but(y, anchors, seed=3):
    """The rows of y in another order, each anchor in its place."""
    others = torch.tensor([place for place in range(len(y)) if place not in set(anchors.tolist())])
    order = torch.arange(len(y))
    order[others] = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))]
    return y[order], order


def share_of_variance(found, y):
    return ((found - y).square().sum() / (y - y.mean(0)).square().sum()).item()
