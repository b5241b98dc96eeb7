"""Opens every page of a built book in headless Chromium, at the widths of a desktop and of a phone, and says what is
broken: errors on the console, images that do not load, an explorer of features that is not drawn, a page wider than its
window, links inside the book to files or sections that do not exist, and what axe-core finds inaccessible by day or by
night (WCAG 2, levels A and AA, and good practice) with all that a page can unfold unfolded.

    python tests/check_book.py [_build/html]
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import axe_playwright_python
from browser import CHROMIUM, opened

WIDTHS = {"desktop": 1400, "phone": 390}
THEMES = ["light", "dark"]
PATIENCE = 20  # seconds until an explorer must be drawn
AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
# Rules of axe-core that the theme breaks in every page, each with the reason.
EXCEPTIONS = {"region": "the theme's sidebar holds its logo outside of every landmark"}
LOOK = """<style>* { transition: none !important; animation: none !important; }</style>
<script src="@AXE@"></script><script>
window.seen = {errors: []};
addEventListener("error", e => seen.errors.push(String(e.message || e.target.src || e.target.href)), true);
addEventListener("unhandledrejection", e => seen.errors.push(String(e.reason)));
const logged = console.error; console.error = (...all) => { seen.errors.push(all.join(" ")); logged(...all); };
addEventListener("load", () => setTimeout(async () => {
  for (const image of document.images) image.loading = "eager";
  const late = new Promise(resolve => setTimeout(resolve, 10000));
  await Promise.race([late, Promise.allSettled([...document.images].map(image => image.decode()))]);
  seen.broken = [...document.images].filter(image => !image.naturalWidth).map(image => image.getAttribute("src"));
  seen.images = document.images.length;
  const undrawn = () => [...document.querySelectorAll(".feature-explorer")].filter(one => !one.dataset.drawn).length;
  const start = Date.now();
  while (undrawn() && Date.now() - start < 1000 * @PATIENCE@) await new Promise(resolve => setTimeout(resolve, 50));
  seen.undrawn = undrawn();
  seen.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  for (const one of document.querySelectorAll("details")) one.open = true;
  seen.faults = [];
  const off = Object.fromEntries([...@EXCEPTIONS@, ...CONTRAST].map(rule => [rule, {enabled: false}]));
  await judge("light", {runOnly: ["wcag2a", "wcag2aa", "best-practice"], rules: off});
  for (const theme of @THEMES@) {
    document.documentElement.dataset.theme = theme;
    await new Promise(resolve => setTimeout(resolve, 100));
    const repeated = repeats();
    for (const one of repeated) one.style.visibility = "hidden";
    await judge(theme, {runOnly: CONTRAST});
    for (const one of repeated) one.style.visibility = "";
  }
  fetch("@REPORT@", {method: "POST", mode: "no-cors", body: JSON.stringify(seen)});
}, 500));
const CONTRAST = ["color-contrast", "link-in-text-block"];
const judge = async (theme, options) => {
  const found = await axe.run(document, {...options, resultTypes: ["violations"], iframes: false});
  for (const {id, nodes} of found.violations) for (const node of nodes)
    seen.faults.push(`${id} (${theme}): ${node.target.join(" ")}`);
};
// Contrast is slow to measure: of elements that have one look, letters and all grounds below them, one is measured.
const repeats = () => {
  const grounds = new Map([[null, ""]]), looks = new Set();
  const ground = one => {
    if (!grounds.has(one)) {
      const {backgroundColor, opacity} = getComputedStyle(one);
      grounds.set(one, `${ground(one.parentElement)} ${backgroundColor} ${opacity}`);
    }
    return grounds.get(one);
  };
  return [...document.body.querySelectorAll(":not(:has(*), a)")].filter(one => {
    const {color, fontSize, fontWeight, visibility} = getComputedStyle(one);
    if (visibility === "hidden" || !one.getClientRects().length) return false;
    const look = [color, fontSize, fontWeight, ground(one)].join();
    return looks.has(look) || !looks.add(look);
  });
};
</script>"""


class _Targets(HTMLParser):
    """The links of a page, and the names that a link can point to in it."""

    def __init__(self):
        super().__init__()
        self.links, self.names = [], {"", "top"}

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.names |= {found[key] for key in ("id", "name") if found.get(key)}
        self.links += [found[key] for key in ("href", "src") if found.get(key) and tag != "base"]


def _pages(root: Path) -> list[Path]:
    """Without the theme's templates, and without what a look that was cut off has left (`browser.opened`)."""
    pages = (page for page in sorted(root.rglob("*.html")) if "_static" not in page.relative_to(root).parts)
    return [page for page in pages if not page.name.startswith(("watched-", "frame-"))]


def broken_links(root: Path) -> list[str]:
    """Links inside the book that lead nowhere, a line each."""
    pages = {}
    for page in _pages(root):
        pages[page.resolve()] = targets = _Targets()
        targets.feed(page.read_text(encoding="utf-8"))
    found = []
    for page, targets in pages.items():
        for link in dict.fromkeys(targets.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not target.exists():
                found.append(f"{page.relative_to(root.resolve())}: {link}: no such file")
            elif target in pages and unquote(parts.fragment) not in pages[target].names:
                found.append(f"{page.relative_to(root.resolve())}: {link}: no such section")
    return found


def broken_pages(root: Path) -> list[str]:
    """What goes wrong when a page is opened, a line each; two pages are open at a time."""
    pages = [page for page in _pages(root) if 'http-equiv="refresh"' not in page.read_text(encoding="utf-8").lower()]
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(_faults, pages)
        return [f"{page.relative_to(root)} {line}" for page, lines in zip(pages, found) for line in lines]


def _faults(page: Path) -> list[str]:
    script = LOOK.replace("@PATIENCE@", str(PATIENCE)).replace("@AXE@", AXE.as_uri())
    script = script.replace("@EXCEPTIONS@", json.dumps(list(EXCEPTIONS))).replace("@THEMES@", json.dumps(THEMES))
    found = []
    for device, width in WIDTHS.items():
        seen = opened(page, script, width=width)
        said = [f"console: {error}" for error in seen["errors"]]
        said += [f"image does not load: {source[:100]}" for source in seen["broken"]]
        said += [f"{seen['undrawn']} explorer of features not drawn"] if seen["undrawn"] else []
        said += [f"{seen['overflow']} pixels wider than its window"] if seen["overflow"] > 1 else []
        found += [f"({device}): {line}" for line in said + seen["faults"]]
    return found


def main(root: Path) -> int:
    root = root.resolve()
    if not (root / "index.html").is_file():
        print(f"{root} holds no index.html: expected a built book (make report)", file=sys.stderr)
        return 2
    found = broken_links(root)
    if CHROMIUM is None:
        print("\n".join(found) if found else "every link inside the book resolves")
        print("pages are not opened: there is no Chromium", file=sys.stderr)
        return bool(found)
    found += broken_pages(root)
    print("\n".join(found) if found else "every page opens, every image and link inside the book resolves")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "_build/html")))
