"""Sphinx extension: equations as MathML, which browsers draw themselves, so that the built book needs no network.

Jupyter Book's own choice, MathJax, is fetched from a server whenever a page is opened.
"""

from docutils import nodes
from latex2mathml.converter import convert


def _inline(self, node):
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _display(self, node):
    number = ""
    if node.get("number"):
        number = f'<span class="eqno">({node["number"]})</span>'
    name = "".join(f' id="{one}"' for one in node.get("ids", ())[:1])
    self.body.append(f'<div class="math"{name}>{number}')
    self.body.append(convert(node.astext(), display="block") + "</div>")
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    return {"parallel_read_safe": True}
