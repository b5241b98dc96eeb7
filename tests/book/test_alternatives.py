"""What is said of an image that is not seen."""

import pytest
from docutils import nodes
from docutils.utils import new_document
from extensions import extension


@pytest.fixture(scope="module")
def describe():
    return extension("alternatives").describe


def test_an_image_is_told_by_its_caption_or_its_section(describe):
    output = nodes.container("", nodes.image(uri="1.svg"), classes=["cell_output"])
    figure = nodes.figure("", output, nodes.caption("", "A finding.\nBars: intervals."))
    named = nodes.figure("", nodes.image(uri="2.svg", alt="mine"), nodes.caption("", "A caption."))
    bare = nodes.paragraph("", "", nodes.image(uri="3.svg"))
    document = new_document("page")
    document += nodes.section("", nodes.title("", "What it does"), figure, named, bare)
    document += nodes.paragraph("", "", nodes.image(uri="4.svg"))
    describe(document)
    told = [image.get("alt") for image in document.findall(nodes.image)]
    assert told == ["A finding. Bars: intervals.", "mine", "What it does", None]
