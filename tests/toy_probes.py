"""Probes of random points, as files and back: as a user of scikit-learn has them; and stitches to try them."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from stitch_utils.stitching.pair import StitchedPair
from stitch_utils.stitching.stitch import Stitch


def fitted_probe(classes, d, labels=None):
    """A LogisticRegression of random points of so many classes."""
    rng = np.random.default_rng(classes)
    numbers = np.arange(90) % classes
    x = rng.normal(size=(90, d)) + 2 * rng.normal(size=(classes, d))[numbers]
    return LogisticRegression(C=0.1).fit(x, numbers if labels is None else np.array(labels)[numbers])


def as_file(probe, path):
    np.savez(path, coef_=probe.coef_, intercept_=probe.intercept_, classes_=probe.classes_)
    return path


def rebuilt(path):
    """What a user of scikit-learn makes of our file."""
    probe = LogisticRegression()
    with np.load(path) as stored:
        probe.coef_, probe.intercept_, probe.classes_ = (stored[name] for name in ("coef_", "intercept_", "classes_"))
    return probe


def random_stitch(d_a, d_b, *, scale=1.0, about=None):
    """A stitch of Gaussian maps, in float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((d_a, d_b), (d_b,), (d_b, d_a), (d_a,))
    maps = (scale * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return Stitch(*maps, about=about or {})


def stitched_by(stitch, pair, models, layers):
    """A pair that is opened at scale smoke, with a stitch of the test's own."""
    stitched = StitchedPair(pair, models, layers, "smoke")
    vars(stitched)["stitch"] = stitch
    return stitched


def residual_of(model, layer, text, context):
    """The stream of the ordinary tokens of one text, cut at so many tokens."""
    tokenizer = model.tokenizer
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"][: context - 1]]
    residual = model.residuals(torch.tensor([ids]), [layer])[layer][0]
    ordinary = [place for place, id in enumerate(ids) if id not in tokenizer.all_special_ids]
    return residual[ordinary]
