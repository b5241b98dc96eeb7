"""An interactive page of features: a cloud to point at, and the texts in which each of them is most active.

For section 5: how well a feature's effect carries over (Eq. 10) against how often it fires, coloured by its class
(section 5.1). Pointing at a feature shows its top contexts in both models; a click keeps them. The page,
`explorer.html` with its data put in, needs no server. plotly.js comes from the built book's own files
(`book/_ext/scripts.py`), so that the book works without a network; a notebook outside the book fetches it.

Offers `FeaturePoint`, `explorer`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from IPython.display import HTML
from plotly.offline import get_plotlyjs_version

# Tokens of a context with their activations.
Context = Sequence[tuple[str, float]]


class FeaturePoint(NamedTuple):
    """One feature of the cloud."""

    feature: int
    """Its number in the SAE."""
    rate: float
    """Share of tokens at which it fires."""
    correlation: float
    """Attribution correlation, Eq. 10."""
    kind: str
    """Its class; a key of `colours`."""
    contexts: Mapping[str, Sequence[Context]]
    """{title of a model: texts in which the feature is most active there}."""


def explorer(points: Sequence[FeaturePoint], *, colours: Mapping[str, str], name: str = "explorer") -> HTML:
    """Make the page. `colours`: {class: CSS colour}, in the order of the legend; `name`: unique on its page.

    ValueError without points, for a class without a colour, and for a rate or a correlation that cannot be drawn.
    """
    if not points:
        raise ValueError("no features to explore")
    for point in points:
        if point.kind not in colours:
            raise ValueError(f"feature {point.feature} is {point.kind!r}, which has no colour: {', '.join(colours)}")
        if not (math.isfinite(point.correlation) and 0 < point.rate <= 1):
            found = f"feature {point.feature} has rate {point.rate} and correlation {point.correlation}"
            raise ValueError(f"{found}: expected a rate in (0, 1] and a finite correlation")
    groups = []
    for kind, colour in colours.items():
        some = [point for point in points if point.kind == kind]
        group = {"kind": kind, "colour": colour, "features": [point.feature for point in some]}
        group["rates"] = [float(f"{point.rate:.4g}") for point in some]
        group["correlations"] = [float(f"{point.correlation:.4g}") for point in some]
        contexts = [point.contexts.items() for point in some]
        group["contexts"] = [{title: list(map(_shares, texts)) for title, texts in each} for each in contexts]
        groups.append(group)
    data = {"groups": groups, "plotly": f"https://cdn.plot.ly/plotly-{get_plotlyjs_version()}.min.js"}
    # "</" would end the script element.
    inside = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("</", "<\\/")
    page = Path(__file__).with_name("explorer.html").read_text(encoding="utf-8")
    return HTML(page.replace("@NAME@", name).replace("@DATA@", inside))


def _shares(context: Context) -> list[list]:
    """Return tokens with their activation as a share of the context's largest."""
    top = max((activation for _, activation in context), default=0.0)
    return [[token, round(max(activation, 0.0) / top, 2) if top > 0 else 0] for token, activation in context]
