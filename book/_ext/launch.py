"""Sphinx extension: a link on each chapter's page that opens the chapter on Binder, ready to be run.

Where the repository lies is known only to whoever publishes the book: BOOK_REPOSITORY names it (https://github.com/...),
BOOK_REVISION a commit or branch of it. A book that is built without them has no such links, and none that are dead.
`.binder/postBuild` makes the notebooks that the links open.
"""

import os
import re
from pathlib import PurePosixPath

BINDER = "https://mybinder.org/v2/gh"


def launch_url(pagename: str, repository: str, revision: str) -> str | None:
    """Where a page's chapter can be run; None for a page that is no chapter. ValueError for another host's address."""
    found = re.fullmatch(r"https://github\.com/([\w.-]+)/([\w.-]+?)(\.git)?/?", repository)
    if not found:
        raise ValueError(f"BOOK_REPOSITORY is {repository!r}: expected https://github.com/<owner>/<name>")
    page = PurePosixPath(pagename)
    if page.parts[:2] != ("book", "runs"):
        return None
    return f"{BINDER}/{found[1]}/{found[2]}/{revision}?urlpath=lab/tree/{page.name}.ipynb"


def _add_button(app, pagename, templatename, context, doctree):
    repository = os.environ.get("BOOK_REPOSITORY")
    url = repository and launch_url(pagename, repository, os.environ.get("BOOK_REVISION") or "HEAD")
    if url and "header_buttons" in context:
        context["header_buttons"].append(
            {
                "type": "link",
                "url": url,
                "tooltip": "Run this chapter on Binder",
                "icon": "fas fa-rocket",
                "label": "launch-binder",
            }
        )


def setup(app):
    app.connect("html-page-context", _add_button, priority=900)
    return {"parallel_read_safe": True}
