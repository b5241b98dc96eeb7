"""Show a progress bar where somebody is watching. No section of the paper.

A terminal or an open notebook shows it. Logs and pipes get none of its control characters, and setting TQDM_DISABLE
hides it everywhere. Offers `progress`.
"""

import sys
from typing import Any

from tqdm import tqdm


def progress(items: Any, title: str, **options: Any) -> tqdm:
    """Wrap the items in a bar that disappears when they are done. `options` are tqdm's."""
    in_notebook = type(sys.stderr).__module__.startswith("ipykernel.")
    if not (in_notebook or sys.stderr.isatty()):
        options["disable"] = True
    options.setdefault("leave", False)
    return tqdm(items, desc=title, **options)
