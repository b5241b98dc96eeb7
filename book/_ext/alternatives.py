"""Sphinx extension: a figure's caption is also the text that stands for its image where the image is not seen.

Sphinx otherwise takes the name of the file, which for the output of a cell is a number. An image that is in no figure
is named by its section. An image with a text of its own keeps it.
"""

from docutils import nodes


def describe(document: nodes.document) -> None:
    """Give each image without a text its figure's caption, or the title of its section."""
    for image in document.findall(nodes.image):
        if image.get("alt"):
            continue
        node = image
        while node is not None:
            kind = nodes.caption if isinstance(node, nodes.figure) else nodes.title
            said = next((part for part in node.children if isinstance(part, kind)), None)
            if said is not None:
                image["alt"] = " ".join(said.astext().split())
                break
            node = node.parent


def setup(app):
    app.connect("doctree-resolved", lambda app, document, docname: describe(document))
    return {"parallel_read_safe": True}
