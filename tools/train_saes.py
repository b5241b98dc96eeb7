"""Train the SAEs of the embedded pair that come with the package, for the chapters that only use them.

Section 3. They are what the chapter on transferred SAEs trains at default scale, and that chapter sets its own beside
them.

Run `python -m tools.train_saes` (minutes on two cores). It writes `tiny-a-sae/` and `tiny-b-sae/` below
`stitch_utils/data/embedded/`, folders that SAELens reads.
"""

import shutil
from pathlib import Path

from stitch_utils.data.hub import EMBEDDED
from stitch_utils.saes.pair import native_saes
from stitch_utils.stitching.pair import StitchedPair

FOLDER = EMBEDDED


def ship(scale: str = "default", folder: Path = FOLDER) -> list[Path]:
    """The folders written, A's first."""
    written = []
    for side, sae in zip("ab", native_saes(StitchedPair.open("tiny", scale), anew=True)):
        written.append(folder / f"tiny-{side}-sae")
        shutil.rmtree(written[-1], ignore_errors=True)
        sae.save_model(written[-1])
    return written


if __name__ == "__main__":
    ship()
