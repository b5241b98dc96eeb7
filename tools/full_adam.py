"""Record the paper's fitter at its full length on the embedded pair, for which a chapter has no time.

App. A: 36 thousand steps of Adam; a chapter at its default scale takes two thousand. Both fitters see the activations
of the stitching chapter's default scale and are judged by Eq. 3 on its held-out text.

Run `python -m tools.full_adam` (minutes on two cores). It writes `stitch_utils/data/embedded/full_adam.json`, with the
seconds that both took, which the chapter shows.
"""

import argparse
import json
from pathlib import Path

from stitch_utils.data.hub import EMBEDDED
from stitch_utils.data.pairs import load_pair
from stitch_utils.models.harvest import ActivationStream
from stitch_utils.stitching.fit import trace_adam
from stitch_utils.stitching.pair import StitchedPair
from stitch_utils.stitching.stitch import stitch_loss

RECORD = EMBEDDED / "full_adam.json"


def compare(n_steps: int, *, scale: str = "default", seed: int = 0) -> dict[str, float]:
    """Eq. 3 (alpha = 1) on held-out text, and seconds after the pass, of `n_steps` of Adam and of the exact fit."""
    stitched = StitchedPair.open("tiny", scale)
    held_out, exact = stitched.held_out_moments, stitched.stitch
    stream = ActivationStream(*stitched.models, *stitched.layers, stitched.training_batches, keep=True)
    next(iter(stream))  # the pass over the text is paid before the clock starts
    adam = trace_adam(stream, held_out, n_steps=n_steps, seed=seed)
    return {
        "steps": n_steps,
        "exact_loss": round(stitch_loss(exact, held_out).total, 4),
        "adam_loss": round(stitch_loss(adam.stitch, held_out).total, 4),
        "exact_seconds": round(exact.report.seconds, 3),
        "adam_seconds": round(adam.seconds[-1], 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Adam at the paper's full length beside the exact fit.")
    parser.add_argument("--steps", type=int, default=load_pair("tiny").scale("paper").adam_steps)
    parser.add_argument("--out", type=Path, default=RECORD)
    arguments = parser.parse_args()
    arguments.out.write_text(json.dumps(compare(arguments.steps), indent=1) + "\n", encoding="utf-8")
