"""Write and read what a chapter measured, in `results/<pair>/<chapter>.json` (no section of its own).

A chapter measures and never decides. It writes flat numbers under ids like `table1.tiny.a_to_b`, which begin with the
table or figure and name the pair; `claims.py` compares them with the published ones. A file is replaced whole, so a run
that was killed leaves the earlier numbers; a file that changed later is refused. The numbers of a chapter that was not
run in this checkout come from its record, if there is one, `book/recorded/<pair>/results/<chapter>.json`.

Offers `write_results`, `read_results`, which returns `Results`, and `pairs_with_results`.
"""

import json
import math
import numbers as number_types
import re
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple

from ..utils.files import is_intact, is_sealed, project_root, write_whole
from .chapters import RECORDED, command_for, is_replaced


class Results(NamedTuple):
    """What all chapters wrote for one pair: numbers and labels by their ids, and what each was last run with.

    Among the latter, `recorded` is the date of the run if the numbers come from a record.
    """

    numbers: dict[str, float | int | str]
    runs: dict[str, dict[str, object]]


def write_results(
    pair: str, chapter: str, numbers: Mapping[str, float | int | str], *, parameters: Mapping[str, object] | None = None
) -> Path:
    """Write `results/<pair>/<chapter>.json` in one step, and return its path.

    `numbers` are finite, or strings for labels, under ids that contain the pair between dots; floats keep six
    significant digits. `parameters` are JSON scalars, stored as `run.<name>`. ValueError names the id that is wrong.
    """
    for kind, name in (("pair", pair), ("chapter", chapter)):
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"{kind} {name!r} is not a file name: expected letters, digits, '.', '_' and '-'")
    rows = {}
    for id, value in numbers.items():
        if f".{pair}." not in f".{id}." or id.startswith("run."):
            raise ValueError(f"result id '{id}' does not contain the pair: expected something like 'table1.{pair}.a'")
        rows[id] = _storable(f"result '{id}'", value, number_types.Real | str, "a number")
    for name, value in (parameters or {}).items():
        rows[f"run.{name}"] = _storable(f"parameter '{name}'", value, number_types.Real | str | None, "a JSON scalar")
    path = project_root() / "results" / pair / f"{chapter}.json"
    text = json.dumps(rows, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    write_whole(path, lambda place: place.write_text(text, encoding="utf-8"))
    return path


def read_results(pair: str, *, stand_ins: bool = False) -> Results:
    """Read all that chapters wrote for the pair; runs on random weights (parameter `stand_in`) with `stand_ins` only.

    Where two chapters hold the same id, the file written last counts, since a number may have moved between chapters.
    ValueError if a file is not what `write_results` writes, or no longer what it wrote; a file without a seal, which
    somebody else put there, is read. Records of chapters that were not run here come before all that was written here.
    """
    root, found = project_root(), Results({}, {})
    recorded = sorted((root / RECORDED / pair / "results").glob("[!.]*.json"))
    written = (root / "results" / pair).glob("[!.]*.json")
    for path in (
        *(file for file in recorded if not is_replaced(root, pair, file.stem)),
        *sorted(written, key=lambda file: (file.stat().st_mtime_ns, file.name)),
    ):
        if is_sealed(path) and not is_intact(path):
            again = command_for(pair, path.stem)
            raise ValueError(f"{path} is not as its run wrote it: make it again with `{again}`")
        try:
            rows = dict(json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} does not hold a flat JSON object: {error}") from None
        if rows.get("run.stand_in") and not stand_ins:
            continue
        found.numbers.update({id: value for id, value in rows.items() if not id.startswith("run.")})
        if parameters := {id[4:]: value for id, value in rows.items() if id.startswith("run.")}:
            found.runs[path.stem] = parameters
    return found


def pairs_with_results() -> list[str]:
    """Name the pairs with results of a chapter, written here or recorded, that are not of stand-ins, sorted."""
    names = {path.parent.name for path in (project_root() / "results").glob("*/[!.]*.json")}
    names |= {path.parents[1].name for path in (project_root() / RECORDED).glob("[!.]*/results/[!.]*.json")}
    return sorted(name for name in names if any(read_results(name)))


def _storable(what: str, value: Any, kinds: UnionType, expected: str) -> object:
    """Return a value as JSON keeps it: finite, and floats to six significant digits."""
    if not isinstance(value, kinds):
        raise ValueError(f"{what} is of type {type(value).__name__}: expected {expected}")
    if isinstance(value, bool | str | None):
        return value
    if isinstance(value, number_types.Integral):
        return int(value)
    if not math.isfinite(value):
        raise ValueError(f"{what} is {value}: expected a finite number")
    return float(f"{value:.6g}")
