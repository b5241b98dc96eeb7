"""The explorer of features, opened in a browser from a book that was built with the book's own extension."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from browser import needs_chromium, opened

from stitch_utils.explorer import FeaturePoint, explorer

ROOT = Path(__file__).parents[1]
COLOURS = {"structural": "#123456", "semantic": "#abcdef"}
CONTEXT = [("the", 0.0), (" <b>dog</b>", 4.0), (" & </script>", 1.0)]
POINTS = [
    FeaturePoint(7, 0.125, 0.75, "structural", {"A": [CONTEXT], "B": []}),
    FeaturePoint(9, 0.001, -0.5, "semantic", {"A": [[("chat", 2.0)]], "B": [[("cat", 3.0), (" sat", 0.0)]]}),
]


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "no features"),
        ([POINTS[0]._replace(kind="dead")], "feature 7 is 'dead', which has no colour: structural, semantic"),
        ([POINTS[0]._replace(rate=0.0)], "feature 7 has rate 0.0"),
        ([POINTS[0]._replace(correlation=math.nan)], "feature 7 has rate 0.125 and correlation nan"),
    ],
)
def test_what_cannot_be_drawn_is_named(points, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        explorer(points, colours=COLOURS)


def test_the_data_are_in_the_page():
    page = explorer(POINTS, colours=COLOURS).data
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)[1])
    structural, semantic = data["groups"]
    assert (structural["kind"], structural["colour"], structural["features"]) == ("structural", "#123456", [7])
    assert structural["contexts"] == [{"A": [[["the", 0], [" <b>dog</b>", 1.0], [" & </script>", 0.25]]], "B": []}]
    assert (semantic["rates"], semantic["correlations"]) == ([0.001], [-0.5])


# Reads what the page shows, after pointing at a feature as a mouse does; errors of any kind are written down.
WATCH = """<script>
window.seen = {errors: []};
addEventListener("error", e => seen.errors.push(String(e.message || e.target.src)), true);
const logged = console.error; console.error = (...all) => { seen.errors.push(all.join(" ")); logged(...all); };
const watch = () => {
  const root = document.querySelector(".feature-explorer");
  if (!root?.dataset.drawn) return setTimeout(watch, 100);
  const cloud = root.querySelector(".feature-cloud"), panel = root.querySelector(".feature-contexts");
  seen.points = root.querySelectorAll(".scatterlayer .point").length;
  seen.before = panel.textContent;
  const point = number => {
    const marker = root.querySelectorAll(".scatterlayer .trace")[number].querySelector(".point");
    const box = marker.getBoundingClientRect(), drag = cloud.querySelector(".nsewdrag");
    const at = {clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true, view: window};
    for (const type of ["mouseover", "mousemove"]) drag.dispatchEvent(new MouseEvent(type, at));
  };
  point(0);
  setTimeout(() => {
    seen.first = panel.textContent;
    seen.marks = panel.querySelectorAll("span[style*=background]").length;
    seen.injected = panel.querySelectorAll("b, script").length;
    point(1);
    setTimeout(() => {
      seen.second = panel.textContent;
      fetch("@REPORT@", {method: "POST", mode: "no-cors", body: JSON.stringify(seen)});
    }, 300);
  }, 300);
};
watch();
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A book of one page, two folders deep, with the explorer of `POINTS`."""
    root = tmp_path_factory.mktemp("book")
    settings = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    context = settings["sphinx"]["config"]["html_context"]
    extension = {"scripts": str(ROOT / settings["sphinx"]["local_extensions"]["scripts"])}
    config = {"title": "One page", "execute": {"execute_notebooks": "off"}, "only_build_toc_files": True,
              "sphinx": {"local_extensions": extension, "config": {"html_context": context}}}  # fmt: skip
    (root / "_config.yml").write_text(yaml.safe_dump(config))
    (root / "_toc.yml").write_text(yaml.safe_dump({"format": "jb-book", "root": "runs/tiny/page"}))
    output = nbformat.v4.new_output("execute_result", {"text/html": explorer(POINTS, colours=COLOURS).data})
    cells = [nbformat.v4.new_markdown_cell("# A page"), nbformat.v4.new_code_cell("1", outputs=[output])]
    notebook = root / "runs" / "tiny" / "page.ipynb"
    notebook.parent.mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), notebook)
    build = "from jupyter_book.cli.main import main; main()"
    subprocess.run([sys.executable, "-c", build, "build", "-q", str(root)], check=True, capture_output=True)
    return root / "_build" / "html" / "runs" / "tiny" / "page.html"


@needs_chromium
def test_the_explorer_draws_and_answers_the_mouse(page):
    seen = opened(page, WATCH)
    assert seen["errors"] == []
    assert seen["points"] == len(POINTS)
    assert "Point at a feature" in seen["before"]
    assert "Feature 7, structural: attribution correlation 0.75, fires at 13% of tokens" in seen["first"]
    assert "the <b>dog</b> & </script>" in seen["first"] and "never active here" in seen["first"]
    assert (seen["marks"], seen["injected"]) == (2, 0)
    assert "Feature 9, semantic" in seen["second"] and "chat" in seen["second"] and "cat sat" in seen["second"]


@needs_chromium
def test_a_book_without_plotly_says_so(page, tmp_path):
    library = page.parents[2] / "_static" / "plotly.min.js"
    kept = library.rename(tmp_path / "plotly.min.js")
    look = """<script>
const look = () => {
  const shown = document.querySelector(".feature-contexts")?.textContent ?? "Point at";
  if (shown.includes("Point at")) return setTimeout(look, 100);
  fetch("@REPORT@", {method: "POST", mode: "no-cors", body: JSON.stringify({shown})});
};
look();
</script>"""
    try:
        assert "The features cannot be drawn" in opened(page, look)["shown"]
    finally:
        kept.rename(library)
