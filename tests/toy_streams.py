"""Two related streams, their moments, and Eq. 3 written out."""

import torch

from stitch_utils.data.text import TokenBatch
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


class ArrayModel(LanguageModel):
    """A stand-in whose stream before layer 1 is row i of an array at token i, and whose loss is what edits change.

    The loss at a token is 1, plus the squared distance of its edited stream from its own, over the mean of that from
    the stream's mean.
    """

    def __init__(self, rows, ref):
        self.rows, self.ref = rows.float(), ref
        self.spread = (self.rows - self.rows.mean(0)).square().sum(1).mean()

    d_model = property(lambda self: self.rows.shape[1])
    device = property(lambda self: torch.device("cpu"))

    def residuals(self, tokens, layers):
        return {layer: self.rows[tokens] for layer in layers}

    def cross_entropy(self, tokens, *, layer=None, edit=None, stream=None):
        own = self.rows[tokens]
        distance = torch.zeros(tokens.shape) if edit is None else (edit(own) - own).square().sum(-1)
        return (1 + distance / self.spread)[:, 1:]


def rows_of(start, documents, length):
    """One batch, a document a row, whose tokens are numbered from `start`; the first of each row is special."""
    tokens = torch.arange(start, start + documents * length).reshape(documents, length)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, 0] = False
    return TokenBatch(tokens, mask, (tokens // length))


class Twin(LanguageModel):
    """A model whose stream before `layer` is an affine image of another's, in `d` dimensions, plus noise.

    From there on it computes as the other does with what the image came from. With `unrelated`, a mean and a
    covariance, the image is of noise with these, so that the two streams share no more than spectra.
    """

    def __init__(self, model, layer, d, *, noise, seed=0, unrelated=None):
        super().__init__(model.bridge, model.tokenizer, model.ref)
        generator = torch.Generator().manual_seed(seed)
        self.of, self.layer, self.noise, self.seed, self.unrelated = model, layer, noise, seed, unrelated
        self.matrix = torch.randn(model.d_model, d, generator=generator)
        self.offset, self.d_model = torch.randn(d, generator=generator), d

    def residuals(self, tokens, layers):
        x = self.of.residuals(tokens, [self.layer])[self.layer]
        generator = torch.Generator().manual_seed(int(tokens.sum()) + self.seed)
        if self.unrelated is not None:
            mean, covariance = self.unrelated
            values, vectors = torch.linalg.eigh(covariance)
            root = (vectors * values.clamp_min(0).sqrt()).to(x)
            x = torch.randn(x.shape, generator=generator) @ root.T + mean.to(x)
        y = x @ self.matrix + self.offset
        y = y + self.noise * y.std() * torch.randn(y.shape, generator=generator)
        return dict.fromkeys(layers, y)

    def logits(self, tokens, *, mask=None, layer=None, edit=None, stream=None):
        y = self.residuals(tokens, [0])[0] if stream is None else stream
        y = y if edit is None else edit(y)
        return self.of.logits(tokens, layer=self.layer, stream=(y - self.offset) @ torch.linalg.pinv(self.matrix))
