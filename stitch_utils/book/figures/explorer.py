"""An interactive page of features: a cloud to point at, and the texts in which each of them is most active.

For section 5: how well a feature's effect carries over (Eq. 10) against how often it fires, coloured by its class
(section 5.1); pointing at a feature shows its top contexts in both models, clicking keeps them. The page is HTML with
its data inside and needs no server. plotly.js comes from the built book's own files (`book/_ext/scripts.py`), so that
the book works without a network; a notebook outside the book fetches it.

Offers `FeaturePoint`, `explorer`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
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
    """The page. `colours`: {class: CSS colour}, in the order of the legend; `name`: unique on its page.

    ValueError without points, for a class without a colour, and for a rate or a correlation that cannot be drawn.
    """
    if not points:
        raise ValueError("no features to explore")
    for point in points:
        if point.kind not in colours:
            raise ValueError(f"feature {point.feature} is {point.kind!r}, which has no colour: {', '.join(colours)}")
        if not (math.isfinite(point.correlation) and 0 < point.rate <= 1):
            raise ValueError(
                f"feature {point.feature} has rate {point.rate} and correlation {point.correlation}: expected a rate "
                "in (0, 1] and a finite correlation"
            )
    groups = []
    for kind, colour in colours.items():
        some = [point for point in points if point.kind == kind]
        groups.append(
            {
                "kind": kind,
                "colour": colour,
                "features": [point.feature for point in some],
                "rates": [_short(point.rate) for point in some],
                "correlations": [_short(point.correlation) for point in some],
                "contexts": [
                    {title: [_shares(context) for context in texts] for title, texts in point.contexts.items()}
                    for point in some
                ],
            }
        )
    data = {"groups": groups, "plotly": f"https://cdn.plot.ly/plotly-{get_plotlyjs_version()}.min.js"}
    # "</" would end the script element.
    inside = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("</", "<\\/")
    return HTML(_PAGE.replace("@NAME@", name).replace("@DATA@", inside))


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _shares(context: Context) -> list[list]:
    """Tokens with their activation as a share of the context's largest."""
    top = max((activation for _, activation in context), default=0.0)
    return [[token, round(max(activation, 0.0) / top, 2) if top > 0 else 0] for token, activation in context]


_PAGE = """
<div id="@NAME@" class="feature-explorer">
<div class="feature-cloud" style="width:100%;height:380px"></div>
<div class="feature-contexts" style="min-height:15em;font-size:.85em" aria-live="polite">Point at a feature to see the
texts in which it is most active; click to keep them.</div>
<script type="application/json">@DATA@</script>
<script>
(() => {
  const root = document.getElementById("@NAME@");
  const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  const panel = root.querySelector(".feature-contexts"), cloud = root.querySelector(".feature-cloud");
  let kept = false, freed = false;
  const element = (tag, text, style) => {
    const made = document.createElement(tag);
    if (text) made.textContent = text;
    if (style) made.style.cssText = style;
    return made;
  };
  const show = ({curveNumber, pointNumber}) => {
    const group = data.groups[curveNumber], i = pointNumber;
    panel.replaceChildren(element("p", `Feature ${group.features[i]}, ${group.kind}: attribution correlation ` +
      `${group.correlations[i].toFixed(2)}, fires at ${(100 * group.rates[i]).toPrecision(2)}% of tokens`,
      "font-weight:bold;margin:.3em 0"));
    for (const [title, texts] of Object.entries(group.contexts[i])) {
      panel.append(element("p", title, "margin:.4em 0 .1em"));
      for (const text of texts) {
        const line = element("div", "", "white-space:pre-wrap;overflow-wrap:anywhere;padding-left:1em");
        for (const [token, share] of text)
          line.append(element("span", token, share ? `background:rgba(226,135,40,${share})` : ""));
        panel.append(line);
      }
      if (!texts.length) panel.append(element("div", "never active here", "padding-left:1em"));
    }
  };
  const draw = () => {
    const traces = data.groups.map(group => ({
      type: "scatter", mode: "markers", name: group.kind, x: group.rates, y: group.correlations,
      customdata: group.features, marker: {color: group.colour, size: 6, opacity: 0.6},
      hovertemplate: "feature %{customdata}<br>correlation %{y:.2f}<extra></extra>",
    }));
    const layout = {
      margin: {l: 60, r: 10, t: 10, b: 50}, hovermode: "closest", paper_bgcolor: "white", plot_bgcolor: "white",
      xaxis: {title: {text: "share of tokens at which the feature fires"}, type: "log", gridcolor: "#e5e5e5"},
      yaxis: {title: {text: "attribution correlation"}, gridcolor: "#e5e5e5", zerolinecolor: "#999999"},
      legend: {orientation: "h", y: 1.08},
    };
    Plotly.newPlot(cloud, traces, layout, {responsive: true, displaylogo: false}).then(() => {
      cloud.on("plotly_hover", event => { if (!kept) show(event.points[0]); });
      cloud.on("plotly_click", event => { if (!freed) { kept = true; show(event.points[0]); } });
      // On a feature its second click is told once more as a click, behind it in the same turn.
      cloud.on("plotly_doubleclick", () => { kept = false; freed = true; setTimeout(() => { freed = false; }); });
      root.dataset.drawn = "yes";
    });
  };
  const load = () => {
    if (window.Plotly) return draw();
    const script = document.createElement("script"), book = document.documentElement.dataset.content_root;
    script.src = book === undefined ? data.plotly : `${book}_static/plotly.min.js`;
    script.onload = draw;
    script.onerror = () => { panel.textContent = `The features cannot be drawn: ${script.src} was not found.`; };
    document.head.append(script);
  };
  document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", load) : load();
})();
</script>
</div>
"""
