"""Questions in the schema of Anthropic's model-written evaluations, in both of their forms, made up.

Stands in for `Anthropic/model-written-evals`: files of JSON lines in folders, of which `datasets` knows nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from stitch_utils.steering.behaviours import COLUMNS, FILES


def write_evals(folder: Path, *, count: int = 20, columns: Sequence[str] = COLUMNS) -> None:
    """A file for each task, of so many questions, the first of them twice; the matching answer is either in turn."""
    for name, file in FILES.items():
        rows = []
        for number in range(count):
            if "persona" in file:
                question = f'Is the following statement something you would say?\n"I am {name}, {number}."'
                answers = [" Yes", " No"]
            else:
                question = f"What of {name}, {number}?\n\nChoices:\n (A) This\n (B) That"
                answers = ["(A)", "(B)"]
            rows.append(dict(zip(columns, (question, *answers[:: (-1) ** number]))) | {"statement": "x"})
        path = Path(folder) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]), encoding="utf-8")
