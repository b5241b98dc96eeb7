"""What the book's extension mends in a page, and what its script does in a browser."""

import pytest
from browser import needs_chromium, opened
from extensions import extension

accessible = extension("accessible")
LOOK = """<script>addEventListener("load", () => setTimeout(() => fetch("@REPORT@", {method: "POST", mode: "no-cors",
  body: JSON.stringify({toggle: document.querySelector("summary").getAttribute("aria-label"),
                        equations: [...document.querySelectorAll("div.math")].map(one => one.tabIndex)})}), 100));
</script>"""


@pytest.mark.parametrize(
    ("written", "mended"),
    [
        ('<tr><th></th><th>a</th></tr><th scope="row">b</th>', '<tr><td></td><th>a</th></tr><th scope="row">b</th>'),
        ('<th class="blank level0">&nbsp;</th>', '<td class="blank level0">&nbsp;</td>'),
        ('<th class="head"><p></p></th>\n<th><p>a</p></th>', '<td class="head"><p></p></td>\n<th><p>a</p></th>'),
        ("<thead></thead>", "<thead></thead>"),
        ('<div id="id7" role="doc-biblioentry">', '<div id="id7" role="listitem">'),
    ],
)
def test_what_is_mended(written, mended):
    assert accessible.mended(written) == mended


@needs_chromium
def test_toggles_have_names_and_wide_equations_the_focus(tmp_path):
    page = tmp_path / "page.html"
    contents = (
        '<nav class="bd-links"><ul><li><a href="#">Probes</a><details><summary></summary></details></li></ul></nav>'
    )
    wide = '<p style="width: 5000px">x</p>'
    equations = "".join(f'<div class="math" style="overflow-x: auto">{inside}</div>' for inside in (wide, "y"))
    page.write_text(f"<html><head></head><body>{contents}{equations}<script>{accessible.SCRIPT}</script></body></html>")
    assert opened(page, LOOK) == {"toggle": "Pages below Probes", "equations": [0, -1]}
