"""Sphinx extension: mend what pandas, Sphinx and the theme write that is hard to use without a mouse or eyes.

The empty corner of a table is no header. An entry of the bibliography is an item of its list. In the browser, a toggle
of the table of contents is named by its page, and an equation wider than the window can be scrolled by keys.
"""

import re

SCRIPT = """
addEventListener("load", () => {
  for (const toggle of document.querySelectorAll(".bd-links summary"))
    toggle.setAttribute("aria-label", `Pages below ${toggle.closest("li").querySelector("a").textContent.trim()}`);
  const reach = () => {
    for (const one of document.querySelectorAll("div.math")) one.tabIndex = one.scrollWidth > one.clientWidth ? 0 : -1;
  };
  reach();
  addEventListener("resize", reach);
});
"""


def mended(body: str) -> str:
    """Write a page's HTML with cells in place of empty headers, and its bibliography as a list."""
    body = re.sub(r"<th\b([^>]*)>((?:&nbsp;|\s|</?p>)*)</th>", r"<td\1>\2</td>", body)
    return body.replace('role="doc-biblioentry"', 'role="listitem"')


def _mend_page(app, pagename, templatename, context, doctree):
    if "body" in context:
        context["body"] = mended(context["body"])


def setup(app):
    app.add_js_file(None, body=SCRIPT)
    app.connect("html-page-context", _mend_page)
    return {"parallel_read_safe": True}
