"""Two related streams, their moments, and Eq. 3 written out."""

import torch

from stitch_utils.models.language_model import LanguageModel
from stitch_utils.stitching.moments import PairMoments


def gaussian_pair(seed, condition, d_a=96, d_b=160, n=4000, shared=70):
    """Correlated Gaussian streams whose covariances have about the given condition number: (x, y), float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    latent = normal(n, shared)

    def stream(d):
        rotation, _ = torch.linalg.qr(normal(d, d))
        scales = torch.logspace(0, -0.5 * torch.log10(torch.tensor(condition)).item(), d, dtype=torch.float64)
        mixed = latent @ normal(shared, d) / shared**0.5 + 0.5 * normal(n, d)
        return mixed * scales @ rotation.T

    return stream(d_a) + 1, stream(d_b) - 2


def moments_of(x, y):
    moments = PairMoments(x.shape[1], y.shape[1])
    moments.update(x, y)
    return moments


def naive_loss(p_up, b_up, p_down, b_down, x, y, alpha):
    """Eq. 3 as it stands, on the activations themselves."""
    mse = torch.nn.functional.mse_loss
    up, down = x @ p_up + b_up, y @ p_down + b_down
    cycle_a, cycle_b = mse(up @ p_down + b_down, x), mse(down @ p_up + b_up, y)
    return mse(up, y), mse(down, x), cycle_a, cycle_b, mse(up, y) + mse(down, x) + alpha * (cycle_a + cycle_b)


class Planted(LanguageModel):
    """A model whose stream before some layer has a huge value in one dimension at some tokens."""

    def __init__(self, model, dimension, planted, size):
        super().__init__(model.bridge, model.tokenizer, model.ref)
        self.dimension, self.planted, self.size = dimension, torch.tensor(planted), size

    def residuals(self, tokens, layers):
        found = {layer: stream.clone() for layer, stream in super().residuals(tokens, layers).items()}
        for stream in found.values():
            stream[..., self.dimension] += self.size * torch.isin(tokens, self.planted)
        return found
