r"""What a stitch leaves of a direction, beside what it leaves of random ones (section 4).

A direction v that is added to the stream becomes v P. The weights w of a linear probe read the stream, so they go by
the other map: to w P_down^T in B. The maps may shorten a direction, and the way back may not return to it.

Offers `survival` and `Survival`.
"""

from typing import NamedTuple

import numpy as np

from .stitch import Stitch

RANDOM_DIRECTIONS = 1000


class Survival(NamedTuple):
    """What a stitch leaves of one direction."""

    kept: float
    """Its length after the map, as a share of its length before."""
    kept_random: float
    """The root mean square of that share over all random directions."""
    round_trip: float
    """Cosine between the direction and what comes back of it by both maps."""
    round_trip_random: float
    """The median of that cosine over a thousand random directions."""


def survival(directions: np.ndarray, stitch: Stitch, *, to: str = "b", reads: bool = False) -> list[Survival]:
    """Measure what is left of each direction, (d,) or (n, d), on the way to model `to`.

    With `reads` the directions are weights of probes, which go by the other map. ValueError for another `to`.
    """
    maps = stitch.towards(to), stitch.towards("a" if to == "b" else "b")
    there, back = (each.P.detach().cpu().double().numpy() for each in maps)
    if reads:
        there, back = back.T, there.T

    def lengths_and_cosines(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        image = rows @ there
        returned = image @ back
        norms = np.linalg.norm(returned, axis=1)
        cosines = np.divide((rows * returned).sum(1), norms, out=np.zeros(len(rows)), where=norms > 0)
        return np.linalg.norm(image, axis=1), cosines

    drawn = np.random.default_rng(0).standard_normal((RANDOM_DIRECTIONS, len(there)))
    typical = float(np.linalg.norm(there) / len(there) ** 0.5), float(np.median(lengths_and_cosines(drawn)[1]))
    kept, cosines = lengths_and_cosines(np.atleast_2d(directions))
    return [Survival(float(k), typical[0], float(c), typical[1]) for k, c in zip(kept, cosines)]
