"""Sphinx extension: which scripts pages load. The feature explorer's plotly.js comes from the book's own files, so that
it needs no network; and thebe, which Jupyter Book adds for running code in the page, is left out: no page offers that,
and it is added twice, which browsers report as an error.
"""

from pathlib import Path

from plotly.offline import get_plotlyjs


def _write_plotly(app):
    if app.builder.format == "html":
        static = Path(app.outdir) / "_static"
        static.mkdir(parents=True, exist_ok=True)
        (static / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")


def _without_thebe(app, pagename, templatename, context, doctree):
    def is_thebe(script) -> bool:
        body = getattr(script, "attributes", {}).get("body") or ""
        return "thebe" in str(getattr(script, "filename", script)) or "THEBE_JS_URL" in body

    context["script_files"] = [script for script in context.get("script_files", []) if not is_thebe(script)]


def setup(app):
    app.connect("builder-inited", _write_plotly)
    app.connect("html-page-context", _without_thebe, priority=900)
    return {"parallel_read_safe": True}
