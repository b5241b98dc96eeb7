r"""How alike two streams are, with the bias of a finite sample taken out, beside what unpaired tokens give.

No section of the paper, whose measure is SVCCA. Centred kernel alignment (CKA, Kornblith et al. 2019) of linear kernels
divides how much two streams vary together by how much each varies with itself, all by Hilbert-Schmidt independence
criteria (HSIC). Of a finite sample their usual estimates are too high, the more so the more dimensions there are
(Murphy et al. 2024). Song et al. (2012) leave the diagonals out of both kernels, which takes the bias out of each
HSIC: unrelated streams score 0 on the mean. For centred x (n, d_a) and y (n, d_b) with linear kernels that is, in
n d_a d_b steps,

    n (n - 3) HSIC = |x' y|^2 - n / (n - 2) sum_i |x_i|^2 |y_i|^2 + sum_i |x_i|^2 sum_i |y_i|^2 / ((n - 1) (n - 2))

Offers `debiased_cka`, and `permuted_cka`, its null.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def debiased_cka(x: Float[Tensor, "n d_a"], y: Float[Tensor, "n d_b"]) -> float:
    """Compute CKA of linear kernels from unbiased HSICs, 1 for streams that are alike but for a rotation and a scale.

    It may fall below 0. ValueError for fewer than four tokens, and for a stream that does not vary.
    """
    x, y = _centred(x, y)
    return _hsic(x, y) / _scale(x, y)


def permuted_cka(x: Float[Tensor, "n d_a"], y: Float[Tensor, "n d_b"], *, draws: int = 19, seed: int = 0) -> np.ndarray:
    """Compute the same (draws,) times with the tokens of y in random order: what streams without pairing give.

    A score above all of 19 draws has a chance of one in twenty under the null.
    """
    x, y = _centred(x, y)
    scale, generator = _scale(x, y), torch.Generator().manual_seed(seed)
    orders = (torch.randperm(len(y), generator=generator) for _ in range(draws))
    return np.array([_hsic(x, y[order]) / scale for order in orders])


def _centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if len(x) < 4:
        raise ValueError(f"debiased CKA of {len(x)} tokens: at least 4 are needed")
    return x.double() - x.double().mean(0), y.double() - y.double().mean(0)


def _scale(x: Tensor, y: Tensor) -> float:
    """Compute what CKA divides by, which the order of tokens leaves alone."""
    of_x, of_y = _hsic(x, x), _hsic(y, y)
    if not (of_x > 0 and of_y > 0):
        raise ValueError("activations do not vary: CKA is not defined")
    return math.sqrt(of_x * of_y)


def _hsic(x: Tensor, y: Tensor) -> float:
    """Compute n (n - 3) times the unbiased HSIC of linear kernels."""
    n, of_x, of_y = len(x), x.square().sum(1), y.square().sum(1)
    alone = of_x.sum() * of_y.sum() / ((n - 1) * (n - 2))
    return ((x.T @ y).square().sum() - n / (n - 2) * of_x @ of_y + alone).item()
