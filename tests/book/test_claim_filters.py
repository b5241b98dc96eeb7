"""The filters of the claims, in a browser, on a page that is opened as a file."""

import pytest
from browser import needs_chromium, opened

from stitch_utils.book.results import write_results
from stitch_utils.book.tables import claims_table

MORE = """
  - {id: low, text: C is low, source: "LRT, Fig. 2", chapter: second, needs: {c: "map.{pair}.loss"}, holds: c < 1}
  - {id: high, text: C is high, source: this package, chapter: second, needs: {c: "map.{pair}.loss"}, holds: c > 1}
"""
# Chooses as a reader does and writes down which claims are seen and what the form says.
CHOOSE = """<script>
addEventListener("load", async () => {
  const form = document.querySelector(".claims-filter"), seen = {hidden: form.hidden, shown: {}};
  const look = () => [form.querySelector("output").textContent,
    ...[...document.querySelectorAll(".claim")].filter(row => row.getClientRects().length)
      .map(row => row.querySelector(".claim-says").firstChild.textContent.trim())];
  const choose = (name, value) => {
    form.elements[name].value = value;
    form.elements[name].dispatchEvent(new Event("change", {bubbles: true}));
  };
  seen.shown.all = look();
  for (const choice of @CHOICES@) {
    for (const [name, value] of Object.entries(choice)) choose(name, value);
    seen.shown[Object.values(choice).join()] = look();
    form.querySelector("button").click();
    await new Promise(resolve => setTimeout(resolve, 50));
  }
  seen.shown.again = look();
  const reached = one => { one.focus(); return document.activeElement === one; };
  seen.reached = [...form.querySelectorAll("select, button")].every(reached);
  fetch("@REPORT@", {method: "POST", mode: "no-cors", body: JSON.stringify(seen)});
});
</script>"""
CHOICES = """[{verdict: "holds"}, {verdict: "does not hold"}, {pair: "other"}, {verdict: "holds", pair: "other"},
  {verdict: "does not hold", pair: "big, published"}, {chapter: "second"}, {source: "sister paper"},
  {verdict: "not testable"}]"""


@pytest.fixture
def page(project):
    """A page of four claims: tiny has run the first chapter, another pair the second."""
    with (project / "book" / "published.yml").open("a", encoding="utf-8") as file:
        file.write(MORE)
    write_results("tiny", "first", {"table1.tiny.a": 1.0, "table1.tiny.b": 1.5})
    write_results("other", "second", {"map.other.loss": 2.0})
    path = project / "claims.html"
    path.write_text(f"<html><head></head><body>{claims_table().data}</body></html>", encoding="utf-8")
    return path


@needs_chromium
def test_filters_show_the_claims_that_are_asked_for(page):
    seen = opened(page, CHOOSE.replace("@CHOICES@", CHOICES))
    every = ["A is < B", "B is twice A", "C is low", "C is high"]

    def counted(*claims):
        return [f"{len(claims)} of 4 claims", *claims]

    assert not seen["hidden"] and seen["reached"]
    assert seen["shown"] == {
        "all": counted(*every),
        "holds": counted("A is < B", "C is high"),
        "does not hold": counted(*every[:3]),  # the first by the papers' own numbers
        "other": counted("C is low", "C is high"),
        "holds,other": counted("C is high"),
        "does not hold,big, published": counted("A is < B", "B is twice A"),
        "second": counted("C is low", "C is high"),
        "sister paper": counted("C is low"),
        "not testable": counted(),
        "again": counted(*every),
    }
