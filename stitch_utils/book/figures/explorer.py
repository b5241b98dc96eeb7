"""An interactive page of features: a cloud to point at, and the texts in which each of them is most active.

For section 5: how well a feature's effect carries over (Eq. 10) against how often it fires, coloured by its class
(section 5.1). Pointing at a feature shows its top contexts in both models; a click keeps them. A box finds features by
number, by a token on which they fire, and by text. An SAE of many latents would make a page of many megabytes, so an
even sample is shown. A feature has an address: `#feature-` and its number behind that of the page. The page,
`explorer.html` with its data put in, needs no server. plotly.js comes from the built book's own files
(`book/_ext/scripts.py`), so that the book works without a network; a notebook outside the book fetches it.

Offers `explorer` and `MOST`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from IPython.display import HTML
from plotly.offline import get_plotlyjs_version

from ...features.contexts import Context
from .features import OF_KIND

MOST = 2000  # features of a page


def explorer(
    classes: Mapping[str, Sequence[int]],
    rates: np.ndarray,
    correlations: np.ndarray,
    contexts: Mapping[str, Mapping[int, Sequence[Context]]],
    *,
    most: int = MOST,
) -> HTML:
    """Make the page of the features of {class: their numbers}.

    `rates` and `correlations` are of all features: the share of tokens at which each fires, and Eq. 10. `contexts` are
    {title of a model: {feature: texts in which it is most active there}}. Of more than `most` features each class shows
    its share, rounded up, evenly spread over its numbers. ValueError for what cannot be drawn.
    """
    groups, total = [], sum(map(len, classes.values()))
    for kind, features in classes.items():
        shown = len(features) if total <= most else -(-len(features) * most // total)
        features = [features[i * len(features) // shown] for i in range(shown)]
        group = {"kind": kind, "colour": OF_KIND[kind], "features": list(map(int, features))}
        group |= {"rates": [], "correlations": [], "contexts": []}
        for feature in map(int, features):
            rate, correlation = rates[feature], correlations[feature]
            if not (np.isfinite(correlation) and 0 < rate <= 1):
                found = f"feature {feature} has rate {rate} and correlation {correlation}"
                raise ValueError(f"{found}: expected a rate in (0, 1] and a finite correlation")
            group["rates"].append(float(f"{rate:.4g}"))
            group["correlations"].append(float(f"{correlation:.4g}"))
            group["contexts"].append({title: list(map(_pieces, texts[feature])) for title, texts in contexts.items()})
        groups.append(group)
    data = {"groups": groups, "total": total, "plotly": f"https://cdn.plot.ly/plotly-{get_plotlyjs_version()}.min.js"}
    # "</" would end the script element.
    inside = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("</", "<\\/")
    page = Path(__file__).with_name("explorer.html").read_text(encoding="utf-8")
    return HTML(page.replace("@DATA@", inside))


def _pieces(context: Context) -> list[str | list]:
    """Return active tokens with their activation, and the text between them.

    A token that has less than half a percent of the context's largest activation counts as text.
    """
    top = max((activation for _, activation in context), default=0.0)
    pieces: list[str | list] = []
    for token, activation in context:
        if activation > 0 and activation >= 0.005 * top:
            pieces.append([token, float(f"{activation:.3g}")])
        elif pieces and isinstance(pieces[-1], str):
            pieces[-1] += token
        else:
            pieces.append(token)
    return pieces
