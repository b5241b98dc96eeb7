"""Show a progress bar in a terminal or an open notebook, and none in logs and pipes. No section of the paper.

Of several processes that work as one, the first alone shows it. Setting TQDM_DISABLE hides it everywhere. Offers
`progress`.
"""

import sys
from typing import Any

from tqdm import tqdm

from . import ranks


def progress(items: Any, title: str, **options: Any) -> tqdm:
    """Wrap the items in a bar that disappears when they are done. `options` are tqdm's."""
    in_notebook = type(sys.stderr).__module__.startswith("ipykernel.")
    if ranks.number() or not (in_notebook or sys.stderr.isatty()):
        options["disable"] = True
    return tqdm(items, desc=title, leave=False, **options)
