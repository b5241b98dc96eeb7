"""The explorer of features, opened in a browser from a book that was built with the book's own extension."""

import ast
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import yaml
from browser import needs_chromium, opened
from IPython.display import HTML
from toy_saes import LATENTS, make_sae

from stitch_utils.book.chapters import read_chapter
from stitch_utils.book.figures import explorer as explorers
from stitch_utils.book.figures import features as feature_plots
from stitch_utils.book.figures.explorer import MOST, explorer
from stitch_utils.data.pairs import TextRef, load_pair
from stitch_utils.data.text import token_batches
from stitch_utils.features.attribution import AttributionCorrelation
from stitch_utils.features.contexts import top_contexts
from stitch_utils.models.language_model import load_models

ROOT = Path(__file__).parents[3]
CLASSES = {"structural": [0], "semantic": [1]}
RATES, CORRELATIONS = np.array([0.125, 0.001]), np.array([0.75, -0.5])
DOG = (("the", 0.0), (" <b>dog</b>", 4.0), (" & </script>", 1.0))
CONTEXTS = {
    "A": {0: [DOG], 1: [(("chat", 2.0),)]},
    "B": {0: [], 1: [(("cat", 3.0), (" sat", 0.0))]},
}


@pytest.mark.parametrize(
    ("rates", "correlations", "message"),
    [
        (np.array([0.125, 0.0]), CORRELATIONS, "feature 1 has rate 0.0"),
        (RATES, np.array([math.nan, 0.0]), "feature 0 has rate 0.125 and correlation nan"),
    ],
)
def test_what_cannot_be_drawn_is_named(rates, correlations, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        explorer(CLASSES, rates, correlations, CONTEXTS)


def test_the_data_are_in_the_page():
    page = explorer(CLASSES, RATES, CORRELATIONS, CONTEXTS).data
    structural, semantic = data_of(page)["groups"]
    colour = feature_plots.OF_KIND["structural"]
    assert (structural["kind"], structural["colour"], structural["features"]) == ("structural", colour, [0])
    assert structural["contexts"] == [{"A": [["the", [" <b>dog</b>", 4.0], [" & </script>", 1.0]]], "B": []}]
    assert (semantic["rates"], semantic["correlations"]) == ([0.001], [-0.5])
    assert semantic["contexts"] == [{"A": [[["chat", 2.0]]], "B": [[["cat", 3.0], " sat"]]}]


def test_of_many_features_an_even_sample_is_shown():
    classes = {"structural": np.arange(10, 1010), "semantic": np.arange(1010, 10010), "mixed": np.array([10010])}
    colours = dict.fromkeys(classes, "grey")
    rates, contexts = np.full(10011, 0.5), {"A": {feature: [DOG] for feature in range(10011)}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explorers, "OF_KIND", colours)
        data = data_of(explorer(classes, rates, rates, contexts).data)
    shown = [group["features"] for group in data["groups"]]
    assert sum(map(len, shown)) <= MOST + len(classes) and data["total"] == 10001
    assert list(map(len, shown)) == [200, 1800, 1]
    assert shown[0] == list(range(10, 1010, 5)) and shown[1] == list(range(1010, 10010, 5)) and shown[2] == [10010]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explorers, "OF_KIND", colours)
        page = explorer(classes, rates, rates, contexts, most=10001).data
    assert [len(group["features"]) for group in data_of(page)["groups"]] == [1000, 9000, 1]


# Reads what the page shows while it points at two features and clicks as a mouse does. Of each class the feature that
# stands most alone is taken, so that no other is under the pointer. Errors of any kind are written down.
WATCH = """<script>
window.seen = {errors: []};
addEventListener("error", e => seen.errors.push(String(e.message || e.target.src)), true);
addEventListener("unhandledrejection", e => seen.errors.push(String(e.reason)));
const logged = console.error; console.error = (...all) => { seen.errors.push(all.join(" ")); logged(...all); };
const wait = time => new Promise(resolve => setTimeout(resolve, time));
const watch = async () => {
  let root;
  while (!(root = document.querySelector(".feature-explorer"))?.dataset.drawn) await wait(100);
  const cloud = root.querySelector(".feature-cloud"), panel = root.querySelector(".feature-contexts");
  const drag = cloud.querySelector(".nsewdrag");
  const places = trace => [...trace.querySelectorAll(".point")].map(marker => {
    const box = marker.getBoundingClientRect();
    return {x: box.x + box.width / 2, y: box.y + box.height / 2};
  });
  const traces = () => [...root.querySelectorAll(".scatterlayer .trace")].map(places);
  const all = traces().flat(), far = (a, b) => (a.x - b.x) ** 2 + (a.y - b.y) ** 2;
  const alone = one => Math.min(...all.filter(other => other !== one).map(other => far(one, other)));
  seen.points = traces().map(some => some.length);
  let from = 0;
  seen.chosen = seen.points.map(count => {
    const gaps = all.slice(from, from += count).map(alone);
    return gaps.indexOf(Math.max(...gaps));
  });
  const send = (target, type, number) => {
    const {x, y} = traces()[number][seen.chosen[number]];
    target.dispatchEvent(new MouseEvent(type, {clientX: x, clientY: y, bubbles: true, view: window}));
  };
  const point = async number => { for (const type of ["mouseover", "mousemove"]) send(drag, type, number);
                                  await wait(400); return panel.textContent; };
  const click = number => { send(drag, "mousedown", number); send(document, "mouseup", number); };
  seen.before = panel.textContent;
  seen.first = await point(0);
  seen.marks = panel.querySelectorAll("span[style*=background]").length;
  seen.injected = panel.querySelectorAll("b, script").length;
  seen.second = await point(1);
  click(1);
  await wait(600);
  seen.kept = await point(0);
  click(0); click(0);
  await wait(600);
  await point(0);
  seen.free = await point(1);
  const search = root.querySelector(".feature-search"), found = root.querySelector(".feature-found");
  const seek = async asked => { search.value = asked; search.dispatchEvent(new Event("input")); await wait(100);
    return {found: [...found.querySelectorAll("button")].map(button => button.textContent), shown: panel.textContent,
            count: root.querySelector(".feature-count").textContent}; };
  seen.search = {};
  for (const asked of ["1", "CAT", "at s", "nothing of it", ""]) seen.search[asked] = await seek(asked);
  await seek("dog");
  found.querySelector("button")?.click();
  seen.clicked = panel.textContent;
  fetch("@REPORT@", {method: "POST", mode: "no-cors", body: JSON.stringify(seen)});
};
watch();
</script>"""


# The page is made so high that it must be scrolled to the explorer.
ADDRESSES = """<script>
const wait = time => new Promise(resolve => setTimeout(resolve, time));
const watch = async () => {
  let root;
  while (!(root = document.querySelector(".feature-explorer"))) await wait(1);
  root.style.margin = "3000px 0";
  while (!root.dataset.drawn) await wait(50);
  const panel = root.querySelector(".feature-contexts"), seen = {}, entries = history.length;
  const told = () => ({shown: panel.textContent, hash: location.hash, entries: history.length - entries,
                       top: root.getBoundingClientRect().top});
  const places = [...panel.querySelectorAll(":scope > div p")].map(title => title.getBoundingClientRect());
  seen.columns = places.map(({x, y}) => [Math.round(x), Math.round(y)]);
  seen.tips = [...panel.querySelectorAll("[title]")].map(token => token.title);
  seen.opened = told();
  const search = root.querySelector(".feature-search");
  search.value = "dog";
  search.dispatchEvent(new Event("input"));
  root.querySelector(".feature-found button").click();
  seen.chosen = told();
  const go = async move => { scrollTo(0, 0); move(); await wait(500); return told(); };
  seen.changed = await go(() => { location.hash = "#feature-1"; });
  seen.unknown = await go(() => { location.hash = "#feature-99"; });
  seen.back = await go(() => history.go(-2));
  seen.forward = await go(() => history.forward());
  fetch("@REPORT@", {method: "POST", mode: "no-cors", body: JSON.stringify(seen)});
};
watch();
</script>"""


def data_of(page):
    """What the explorer of a page was given."""
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)[1])


def chapters_explorer():
    """The page of `book/feature_transfer.md`, made by its own cell, of real texts and features drawn at random.

    The reference notebook does not keep it for its length.
    """
    (cell,) = (cell for cell in read_chapter(ROOT, "feature_transfer")[0].cells if "explorer(living" in cell.source)
    pair = load_pair("tiny")
    models = load_models(pair)
    generator, contexts = np.random.default_rng(0), {}
    for side, model in zip("ab", models):
        sae = make_sae("topk", model.d_model, dtype="float32")
        batches = token_batches(
            TextRef("world", "explorer"), model.tokenizer, context=64, n_tokens=64 * 20, batch_size=4
        )
        contexts[side] = top_contexts(model, getattr(pair, side).layer, sae, batches, n=2)
    rates, correlations = 10 ** generator.uniform(-3, 0, LATENTS), generator.uniform(-1, 1, LATENTS)
    found = AttributionCorrelation(correlations, rates, rates, 1000, None)
    names = {
        "living": {"up": {"structural": np.arange(20), "semantic": np.arange(20, LATENTS)}},
        "across": {"up": found},
        "study": SimpleNamespace(contexts={"up": contexts}),
        "explorer": explorer,
        "HTML": HTML,
    }
    *before, last = ast.parse(cell.source).body
    exec(compile(ast.Module(before, []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names).data


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A book of two pages, two folders deep: `page` with the explorer of `CLASSES`, `feature_transfer` with what the
    reference notebook of that chapter shows and the chapter's explorer."""
    root = tmp_path_factory.mktemp("book")
    settings = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    context = settings["sphinx"]["config"]["html_context"]
    extension = {"scripts": str(ROOT / settings["sphinx"]["local_extensions"]["scripts"])}
    config = {
        "title": "Two pages",
        "execute": {"execute_notebooks": "off"},
        "only_build_toc_files": True,
        "sphinx": {"local_extensions": extension, "config": {"html_context": context}},
    }
    (root / "_config.yml").write_text(yaml.safe_dump(config))
    contents = {"format": "jb-book", "root": "runs/tiny/page", "chapters": [{"file": "runs/tiny/feature_transfer"}]}
    (root / "_toc.yml").write_text(yaml.safe_dump(contents))
    reference = nbformat.read(ROOT / "tests" / "reference" / "feature_transfer.ipynb", 4)
    shown = [
        output.data["text/html"]
        for cell in reference.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "text/html" in output.get("data", {})
    ]
    shown = [text for text in shown if "feature-explorer" not in text]
    pages = {
        "page": [explorer(CLASSES, RATES, CORRELATIONS, CONTEXTS).data],
        "feature_transfer": [*shown, chapters_explorer()],
    }
    (root / "runs" / "tiny").mkdir(parents=True)
    for name, texts in pages.items():
        cells = [nbformat.v4.new_markdown_cell("# A page")]
        for text in texts:
            output = nbformat.v4.new_output("execute_result", {"text/html": text})
            cells.append(nbformat.v4.new_code_cell("1", outputs=[output]))
        nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "runs" / "tiny" / f"{name}.ipynb")
    build = "from jupyter_book.cli.main import main; main()"
    subprocess.run([sys.executable, "-c", build, "build", "-q", str(root)], check=True, capture_output=True)
    return root / "_build" / "html" / "runs" / "tiny"


@pytest.fixture(scope="module")
def page(book):
    return book / "page.html"


@needs_chromium
@pytest.mark.parametrize("name", ["page", "feature_transfer"])
def test_the_explorer_draws_and_answers_the_mouse(name, book):
    page = book / f"{name}.html"
    groups = data_of(page.read_text(encoding="utf-8"))["groups"]
    seen = opened(page, WATCH)
    assert seen["errors"] == []
    assert seen["points"] == [len(group["features"]) for group in groups] and min(seen["points"]) > 0
    titles = [
        f"Feature {group['features'][i]}, {group['kind']}: attribution correlation {group['correlations'][i]:.2f}"
        for group, i in zip(groups, seen["chosen"])
    ]
    texts = [
        [
            "".join(piece if isinstance(piece, str) else piece[0] for piece in text)
            for some in group["contexts"][i].values()
            for text in some
        ]
        for group, i in zip(groups, seen["chosen"])
    ]
    assert "Point at a feature" in seen["before"]
    for number, told in ((0, "first"), (1, "second"), (1, "kept"), (1, "free")):
        assert seen[told].startswith(titles[number]), told
        assert all(text in seen[told] for text in texts[number]) and texts[number], told
    assert seen["marks"] > 0 and seen["injected"] == 0
    if name == "page":
        assert "attribution correlation 0.75, fires at 13% of tokens" in seen["first"] and seen["marks"] == 2
        assert "the <b>dog</b> & </script>" in seen["first"] and "never active here" in seen["first"]
        assert "chat" in seen["second"] and "cat sat" in seen["second"]
        found = {asked: told["found"] for asked, told in seen["search"].items()}
        assert found == {"1": ["1"], "CAT": ["1"], "at s": ["1"], "nothing of it": [], "": []}
        assert "Feature 1, semantic" in seen["search"]["CAT"]["shown"]
        assert [seen["search"][asked]["count"] for asked in ("", "1")] == ["2 features", "1 found in 2 features"]
        assert seen["clicked"].startswith("Feature 0, structural")


@needs_chromium
def test_a_feature_has_an_address(page):
    seen = opened(page, ADDRESSES, place="#feature-1")
    (left, first), (right, second) = seen.pop("columns")
    assert right > left + 100 and first == second, "the contexts of A and B stand side by side"
    assert seen.pop("tips") == ['"chat": activation 2', '"cat": activation 3']
    for name, told in seen.items():
        feature = {"opened": 1, "chosen": 0, "changed": 1, "unknown": 99, "back": 0, "forward": 1}[name]
        assert told["shown"].startswith(f"Feature {feature}") and told["hash"] == f"#feature-{feature}", name
        assert 0 <= told["top"] < 200, name
    assert seen["unknown"]["shown"] == "Feature 99 is not among the features shown here."
    assert seen["chosen"]["entries"] == 0, "choosing leaves nothing to go back through"


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
