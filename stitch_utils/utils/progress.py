"""A progress bar, where somebody is watching. No section of the paper.

At a terminal or in an open notebook, that is; a log or a pipe gets none of its control characters, nor does anything
where the variable TQDM_DISABLE is set.
"""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress(items: Any, title: str, **options: Any) -> tqdm:
    """The items under a bar that goes when they are done. `options` are tqdm's."""
    in_notebook = type(sys.stderr).__module__.startswith("ipykernel.")
    if not (in_notebook or sys.stderr.isatty()):
        options["disable"] = True
    options.setdefault("leave", False)
    return tqdm(items, desc=title, **options)
