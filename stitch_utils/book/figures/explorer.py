"""An interactive page of features: a cloud to point at, and the texts in which each of them is most active.

For section 5: how well a feature's effect carries over (Eq. 10) against how often it fires, coloured by its class
(section 5.1). Pointing at a feature shows its top contexts in both models; a click keeps them. The page,
`explorer.html` with its data put in, needs no server. plotly.js comes from the built book's own files
(`book/_ext/scripts.py`), so that the book works without a network; a notebook outside the book fetches it.

Offers `explorer`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from IPython.display import HTML
from plotly.offline import get_plotlyjs_version

from ...features.contexts import Context
from .features import OF_KIND


def explorer(
    classes: Mapping[str, Sequence[int]],
    rates: np.ndarray,
    correlations: np.ndarray,
    contexts: Mapping[str, Mapping[int, Sequence[Context]]],
) -> HTML:
    """Make the page of the features of {class: their numbers}.

    `rates` and `correlations` are of all features: the share of tokens at which each fires, and Eq. 10. `contexts` are
    {title of a model: {feature: texts in which it is most active there}}. ValueError for what cannot be drawn.
    """
    groups = []
    for kind, features in classes.items():
        group = {"kind": kind, "colour": OF_KIND[kind], "features": list(map(int, features))}
        group |= {"rates": [], "correlations": [], "contexts": []}
        for feature in map(int, features):
            rate, correlation = rates[feature], correlations[feature]
            if not (np.isfinite(correlation) and 0 < rate <= 1):
                found = f"feature {feature} has rate {rate} and correlation {correlation}"
                raise ValueError(f"{found}: expected a rate in (0, 1] and a finite correlation")
            group["rates"].append(float(f"{rate:.4g}"))
            group["correlations"].append(float(f"{correlation:.4g}"))
            group["contexts"].append({title: list(map(_shares, texts[feature])) for title, texts in contexts.items()})
        groups.append(group)
    data = {"groups": groups, "plotly": f"https://cdn.plot.ly/plotly-{get_plotlyjs_version()}.min.js"}
    # "</" would end the script element.
    inside = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("</", "<\\/")
    page = Path(__file__).with_name("explorer.html").read_text(encoding="utf-8")
    return HTML(page.replace("@DATA@", inside))


def _shares(context: Context) -> list[list]:
    """Return tokens with their activation as a share of the context's largest."""
    top = max((activation for _, activation in context), default=0.0)
    return [[token, round(max(activation, 0.0) / top, 2) if top > 0 else 0] for token, activation in context]
