"""Sliders and maps to click on: what stands in the page, and what a browser shows of it."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from browser import needs_chromium, opened

from stitch_utils.book.figures.probes_and_steering import DOSES, strength_slider
from stitch_utils.book.figures.saes import variance_slider
from stitch_utils.book.figures.sliders import Board, Panel, slider
from stitch_utils.book.figures.stitching import LOSS, alpha_slider, layer_map
from stitch_utils.book.figures.style import MODEL_A, MODEL_B, NULL, STITCHED, YARDSTICK
from stitch_utils.stitching.evaluation import CONDITIONS

ROWS = {"<b>one</b>": [(1.0, 0.5, 1.5), (2.0, 1.5, 3.0), (-1.0, -1.0, -1.0)], "two": [0.25, "not </script> run", 3]}
PANEL = Panel("a & b", ROWS)
COLOURS = {"<b>one</b>": MODEL_A, "two": YARDSTICK}
SCORES = np.array([[0.25, 0.5, 0.75], [0.125, 0.375, 0.625]])

# Moves the slider to each of its positions, or presses each cell of the map, and reads what is shown.
WATCH = """<script>
window.seen = {errors: [], shown: [], said: []};
addEventListener("error", e => seen.errors.push(String(e.message || e.target.src)), true);
for (const kind of ["error", "warn", "log"]) console[kind] = (...all) => seen.errors.push(all.join(" "));
addEventListener("load", () => {
  const root = document.querySelector(".figure-slider"), range = root.querySelector("input");
  const rows = () => [...root.querySelectorAll(".slider-row")].map(row =>
    [...row.querySelectorAll("span")].map(span => span.textContent));
  const bars = () => [...root.querySelectorAll("svg")].map(svg => svg.querySelectorAll("rect, line").length);
  const look = said => { seen.shown.push(rows()); seen.said.push(said); };
  seen.drawn = root.dataset.drawn;
  seen.start = Number(root.dataset.position);
  seen.injected = root.querySelectorAll(".slider-row b, .slider-row script").length;
  seen.titles = [...root.querySelectorAll(".slider-shown > div > div:first-child")].map(one => one.textContent);
  seen.bars = bars();
  if (range) {
    for (let place = 0; place <= Number(range.max); place++) {
      range.value = place;
      range.dispatchEvent(new Event("input", {bubbles: true}));
      look(range.getAttribute("aria-valuetext"));
    }
    seen.label = range.labels[0].firstChild.textContent;
  } else {
    const cells = [...root.querySelectorAll("button")], held = () => cells.indexOf(document.activeElement);
    cells.forEach(cell => { cell.click(); look(cell.getAttribute("aria-label")); });
    seen.pressed = cells.map(cell => cell.getAttribute("aria-pressed"));
    cells.at(-1).focus();
    seen.path = ["ArrowLeft", "ArrowUp", "ArrowUp", "ArrowRight"].map(key => {
      document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
      return held();
    });
    seen.marked = cells.filter(cell => cell.style.borderColor !== "transparent").length;
  }
  seen.live = root.querySelector("[aria-live]").textContent;
  seen.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  fetch("@REPORT@", {method: "POST", mode: "no-cors", body: JSON.stringify(seen)});
});
</script>"""


def data_of(page):
    """What the figure was given."""
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', page.data, re.DOTALL)[1])


def rows_of(page):
    """{(panel, row): the texts of its positions}."""
    return {
        (panel["title"], row["name"]): [entry["text"] for entry in row["entries"]]
        for panel in data_of(page)["panels"]
        for row in panel["rows"]
    }


def look(page, folder, width=390):
    place = folder / "page.html"
    head = '<!doctype html><html><head><meta charset="utf-8"></head>'
    place.write_text(f'{head}<body style="margin:0">{page.data}</body></html>', encoding="utf-8")
    return opened(place, WATCH, width=width)


def test_numbers_are_written_in_the_digits_of_their_intervals_and_placed_on_one_scale():
    page = slider("x", ["p", "q", "r"], [PANEL, Panel("c", {"two": [(0.5, 0.25, 1.0)] * 3}, True)], colours=COLOURS)
    first, second = data_of(page)["panels"]
    assert first["zero"] == 25 and second["zero"] == 0
    one, two = first["rows"]
    assert [entry["text"] for entry in one["entries"]] == ["1.0 [0.5, 1.5]", "2.0 [1.5, 3.0]", "-1 [-1, -1]"]
    assert [entry["at"] for entry in one["entries"]] == [[50, 37.5, 62.5], [75, 62.5, 100], [0, 0, 0]]
    assert two["entries"] == [
        {"text": "0.25", "at": [31.25]},
        {"text": "not </script> run"},
        {"text": "3", "at": [100]},
    ]
    assert [row["colour"] for row in first["rows"]] == [f"var(--model-a, {MODEL_A})", YARDSTICK]
    assert [entry["text"] for entry in second["rows"][0]["entries"]] == ["+50% [+25%, +100%]"] * 3


def test_a_row_has_an_entry_for_each_position():
    with pytest.raises(ValueError, match="a & b, <b>one</b>: 3 entries for 2 positions"):
        slider("x", ["p", "q"], [PANEL], colours=COLOURS)


def test_a_panel_of_zeros_is_drawn():
    page = slider("x", ["p"], [Panel("zeros", {"two": [0.0]})], colours=COLOURS)
    assert data_of(page)["panels"][0]["rows"][0]["entries"] == [{"text": "0", "at": [0.0]}]


@needs_chromium
@pytest.mark.parametrize("width", [390, 1400])
def test_the_slider_shows_the_numbers_of_its_position(tmp_path, width):
    seen = look(slider("x", ["p", "q", "r"], [PANEL], colours=COLOURS, start=2), tmp_path, width)
    assert seen["errors"] == [] and seen["drawn"] == "yes" and seen["overflow"] <= 0 and seen["injected"] == 0
    assert (
        seen["start"] == 2
        and seen["label"] == "x: "
        and seen["said"] == ["p", "q", "r"]
        and seen["titles"] == ["a & b"]
    )
    texts = rows_of(slider("x", ["p", "q", "r"], [PANEL], colours=COLOURS))
    assert seen["shown"] == [[[name, row[at]] for (_, name), row in texts.items()] for at in range(3)]
    assert seen["bars"] == [2, 2], "at r: bar and zero, and no interval"
    assert "-1 [-1, -1]" in seen["live"] and "a & b" in seen["live"]


@needs_chromium
def test_a_press_on_a_cell_shows_its_numbers(tmp_path):
    names = [f"{a}-{b}" for a in (1, 4) for b in (0, 2, 5)]
    panel = Panel("score", {"two": list(map(float, SCORES.ravel()))})
    board = Board(SCORES, [1, 4], [0, 2, 5], marked=4)
    seen = look(slider("x", names, [panel], colours=COLOURS, start=4, board=board), tmp_path)
    assert seen["errors"] == [] and seen["drawn"] == "yes" and seen["overflow"] <= 0 and seen["start"] == 4
    assert seen["said"] == names and seen["marked"] == 3
    assert seen["shown"] == [[["two", f"{score:.4g}"]] for score in SCORES.ravel()]
    assert seen["pressed"] == ["false"] * 5 + ["true"] and seen["path"] == [4, 1, 1, 2]


def test_the_slider_over_alpha():
    losses = {name: [(2.0 + i, 1.9 + i, 2.1 + i), (3.0 + i, 2.9 + i, 3.1 + i)] for i, name in enumerate(CONDITIONS)}
    rises = {name: [(0.125, 0.0625, 0.1875), (0.25, 0.125, 0.375)] for name in CONDITIONS}
    page = alpha_slider([0, 0.1], losses, rises, start=0.1)
    assert data_of(page)["positions"] == ["0", "0.1"] and data_of(page)["start"] == 1
    assert data_of(alpha_slider([0, 0.1], losses, rises, start=1))["start"] == 0
    found = rows_of(page)
    assert found[LOSS, "B → A"] == ["3.0 [2.9, 3.1]", "4.0 [3.9, 4.1]"]
    assert found["rise over the host's own", "A → B → A"] == ["+12.5% [+6.2%, +18.8%]", "+25% [+12%, +38%]"]
    colours = {row["name"]: row["colour"] for row in data_of(page)["panels"][0]["rows"]}
    ours = {"A → B": MODEL_B, "B → A": MODEL_A, "A → B → A": MODEL_A, "B → A → B": MODEL_B}
    assert {name: colour[-8:-1] for name, colour in colours.items()} == ours


def test_the_map_of_layers_has_losses_in_the_row_of_the_stitched_layer_alone():
    page = layer_map(SCORES, {0: 4.0, 2: 3.0, 5: 3.5}, chosen=(4, 2), grid=([1, 4], [0, 2, 5]))
    data, found = data_of(page), rows_of(page)
    assert data["positions"][data["start"]] == "layer 4 of A, layer 2 of B" and data["board"]["marked"] == 4
    assert found["mean SVCCA correlation", "score"] == ["0.25", "0.5", "0.75", "0.125", "0.375", "0.625"]
    assert found[LOSS, "A → B"] == ["no stitch was fitted between these layers"] * 3 + ["4", "3", "3.5"]
    assert len(set(data["board"]["colours"])) == 6


def test_the_slider_over_strengths():
    doses = {
        (side, condition): [((0.5, 0.25, 0.75), (1.0 + i, 0.5, 3.5)), ((1.0, 0.5, 1.0), (2.0, 1.0, 3.0))]
        for side in "ab"
        for i, condition in enumerate(("native", "transferred"))
    }
    page = strength_slider([1.0, 1.5], doses, chosen={"a": 1.5, "b": 1.5})
    assert data_of(page)["positions"] == ["1", "1.5 (chosen for A and B)"] and data_of(page)["start"] == 1
    found = rows_of(page)
    assert found[DOSES[0], "B, own vectors"] == ["0.50 [0.25, 0.75]", "1.0 [0.5, 1.0]"]
    assert found[DOSES[1], "A, transferred"] == ["2.0 [0.5, 3.5]", "2 [1, 3]"]
    apart = data_of(strength_slider([1.0, 1.5], doses, chosen={"a": 1.0, "b": 7.0}))
    assert apart["positions"] == ["1 (chosen for A)", "1.5"] and apart["start"] == 0


def test_the_slider_over_training_leaves_out_the_evaluation_before_it():
    curve = SimpleNamespace(steps=np.array([0, 250, 500]), tokens=np.array([0, 1_024_000, 2_048_000]))
    values = {start: [(0.5, 0.25, 0.75), (0.75, 0.5, 1.0)] for start in ("scratch", "stitch", "rotation")}
    leads = {"stitch": [(0.25, -0.25, 0.75), (0.5, 0.25, 0.75)], "rotation": [(0.0, -0.5, 0.5)] * 2}
    page = variance_slider(curve, values, leads)
    assert (
        data_of(page)["positions"] == ["1,024,000 (step 250)", "2,048,000 (step 500)"] and data_of(page)["start"] == 1
    )
    found = rows_of(page)
    assert found["explained variance", "stitch"] == ["0.50 [0.25, 0.75]", "0.75 [0.50, 1.00]"]
    assert found["lead over scratch", "stitch"] == ["0.25 [-0.25, 0.75]", "0.50 [0.25, 0.75]"]
    colours = {row["name"]: row["colour"] for panel in data_of(page)["panels"] for row in panel["rows"]}
    assert STITCHED in colours["stitch"]
    assert MODEL_B in colours["scratch"] and NULL in colours["rotation"]
