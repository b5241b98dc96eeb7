"""The numbers that the notebooks of this folder have just written, against those kept beside them.

Runs after the notebooks (its name sorts last). Tolerances: cross-entropies, losses and correlations 1% (another processor rounds
otherwise, and Adam and sampling carry that on), shares of a handful of samples 0.5, seconds and speeds none at all.
"""

import json
import os
from pathlib import Path

import pytest

KEPT = sorted((Path(__file__).parent / "results").glob("*/*.json"))
UNCHECKED = ("seconds", "speedup")


def tolerance(id: str, value: float) -> float:
    if ".recognised." in id:
        return 0.5
    if "increase" in id:  # a difference of two numbers that may each move by 1%
        return 0.02
    return 0.01 * abs(value) + 1e-9


@pytest.mark.parametrize("kept", KEPT, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_numbers_have_not_moved(kept):
    fresh = Path(os.environ["STITCH_ROOT"], "results", kept.parent.name, kept.name)
    assert fresh.is_file(), f"no notebook has written {kept.parent.name}/{kept.name}"
    expected, found = json.loads(kept.read_text()), json.loads(fresh.read_text())
    assert found.keys() == expected.keys()
    moved = {}
    for id, value in expected.items():
        if id.startswith("run.") or isinstance(value, str):
            assert found[id] == value
        elif not any(word in id for word in UNCHECKED) and abs(found[id] - value) > tolerance(id, value):
            moved[id] = (value, found[id])
    assert not moved, f"numbers moved (kept, found): {moved}"


def test_there_is_something_to_compare():
    assert {path.stem for path in KEPT} >= {"pairs", "stitching"}
