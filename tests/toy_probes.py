"""Probes of random points, as files and back: what a user of scikit-learn has and makes of ours."""

import numpy as np
from sklearn.linear_model import LogisticRegression


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
