"""The bars of the front page: one scale, widths, intervals, text that is escaped."""

import re

from stitch_utils.book.figures.front import Bar, relative_bars


def test_bars_share_a_scale_and_intervals_lie_where_they_belong():
    panels = {
        "up": [Bar("B", 1.0, "2 nats", "of-b"), Bar("s <", 1.5, "3 & more", "of-b", (1.25, 2.0))],
        "down": [Bar("n", 1.0, "")],
    }
    drawn = relative_bars(panels, caption="<b>found</b>").data
    rows = re.findall(r'<div class="bar-row (.*?)">.*?class="bar" style="width: ([\d.]+)%"', drawn)
    assert rows == [("of-b", "50.0"), ("of-b", "75.0"), ("null", "50.0")]  # of the longest, the end of the interval
    assert re.findall(r'"bar-interval" style="(.*?)"', drawn) == ["left: 62.5%; width: 37.5%"]
    assert re.findall('<p class="bars-title">(.*?)</p>', drawn) == ["up", "down"]
    assert "<span>s &lt;</span>" in drawn and "<span>3 &amp; more</span>" in drawn
    assert drawn.endswith("<figcaption><b>found</b></figcaption></figure>")
