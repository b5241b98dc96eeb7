"""Sphinx extension: leave the recorded page of a chapter out of the book where a run of this checkout takes its place.

Both pages have the same labels, so the book could not show them side by side.
"""

from pathlib import Path

from stitch_utils.book.chapters import recorded_pages


def _leave_out_replaced(app, config):
    pages = [page.as_posix() for page, is_replaced in recorded_pages(Path(app.srcdir)).items() if is_replaced]
    config["exclude_patterns"] = [*config["exclude_patterns"], *pages]


def setup(app):
    app.connect("config-inited", _leave_out_replaced)
    return {"parallel_read_safe": True}
