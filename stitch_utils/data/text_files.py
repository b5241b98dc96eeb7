"""Find the text files that a name means, and read their documents or rows.

No section of the paper. A name is a file's, a folder's, or a pattern such as `texts/*.jsonl`. Rows need not agree with
each other: a text is sought in one column, and nothing else of a row is looked at.

Offers `file_texts`, `file_rows`, `text_files`, `text_files_key`, `names_files` and `is_pattern`.
"""

import glob
import itertools
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .text_formats import KNOWN, kind_of, listed, rows_of

HUB_ID = r"[\w.-]+(/[\w.-]+)?"
ASIDE = re.compile(r"\.|(readme|licen[cs]e)\b", re.IGNORECASE)  # what a folder holds beside its texts
COLUMNS = 30  # of those that rows have, so many are listed where the wanted one is missing
_SAID: set[tuple[str, str, bool]] = set()


def names_files(name: str, folder: Path | None = None) -> bool:
    """Tell whether a name means files: by its ending, since it can be no Hub id, or since it is there in `folder`."""
    is_there = folder is not None and os.path.lexists(folder / Path(name).expanduser())
    return is_there or kind_of(name) is not None or name[:1] in (".", "~") or not re.fullmatch(HUB_ID, name)


def is_pattern(name: str) -> bool:
    """Tell whether a name holds `*`, `?` or `[`; where it is there as it stands, it is no pattern all the same."""
    return re.search(r"[*?[]", name) is not None


def text_files(name: str) -> list[Path]:
    """List the files that a name means, in alphabetical order; none if there are none.

    An existing path is never taken for a pattern. A folder means all files of a known kind in it and in its subfolders,
    except hidden ones and those called README or LICENSE. In a pattern, `**` stands for any number of folders.
    """
    path = Path(name).expanduser()
    if os.path.isdir(path):
        return _within(path)
    if os.path.lexists(path) or not is_pattern(name):
        return [path] if os.path.isfile(path) else []
    base, rest = Path(path.anchor), list(path.parts[bool(path.anchor) :])
    while os.path.lexists(base / rest[0]):  # a folder that is there may have brackets in its name
        base /= rest.pop(0)
    found = [base / one for one in glob.glob(os.path.join(*rest), root_dir=base, recursive=True)]
    return sorted(file for file in found if kind_of(file.name) and not file.is_dir())


def text_files_key(name: str) -> list[tuple[str, int, int]]:
    """List place, time of change and size of all files that a name means, to key what is made from them."""
    path = Path(name).expanduser()
    found = [(os.path.relpath(file, path), file.stat()) for file in text_files(name) if file.exists()]
    return [(place, status.st_mtime_ns, status.st_size) for place, status in found]


def file_texts(name: str, column: str, *, skip: int = 0, take: int | None = None) -> Iterator[str]:
    """Yield the texts of files, after `skip` rows and of the next `take`; warn how many rows have none.

    Blank lines and form feeds separate the documents of plain text. Raise ValueError, naming file and line, for what
    cannot be read, and, naming the columns, if no row has the one that is wanted.
    """
    read = without = 0
    found, columns = False, dict[str, None]()
    rows = itertools.islice(_rows(name, column), None if take is None else skip + take)
    try:
        for read, (file, number, row) in enumerate(rows, start=1):
            text = row.get(column) if isinstance(row, dict) else row
            found = found or not isinstance(row, dict) or column in row
            if not found and len(columns) < COLUMNS:
                columns |= dict.fromkeys(row)
            if not isinstance(text, str | None):
                where = f"in column {column!r}" if isinstance(row, dict) else "in the place of an object"
                raise ValueError(f"{_place(file, number)} holds {text!r:.60} {where}: expected text")
            if not text or text.isspace() or re.search("[\ud800-\udfff]", text):  # half of a surrogate pair
                without += 1
            elif read > skip:
                yield text
    except GeneratorExit:
        if found:
            _say_without(name, column, without, read, ended=False)
        raise
    if columns and not found:
        raise ValueError(f"text file {name!r} has no text column {column!r}: its columns are {listed(columns)}")
    _say_without(name, column, without, read, ended=True)


def file_rows(name: str) -> Iterator[dict]:
    """Yield the rows of files of objects or tables; raise ValueError, naming file and line, for what is none."""
    for file, number, row in _rows(name, None):
        if not isinstance(row, dict):
            raise ValueError(f"{_place(file, number)} holds {row!r:.60}: expected an object with columns")
        yield row


def _rows(name: str, column: str | None) -> Iterator[tuple[Path, int, Any]]:
    """Yield file, number and content of each row; of a table only `column` if it is given."""
    files, path = text_files(name), Path(name).expanduser()
    if os.path.isdir(path) and not files:
        raise ValueError(f"text folder {name!r} holds no text files: expected {KNOWN}")
    if is_pattern(name) and not files and not os.path.lexists(path):
        raise ValueError(f"text file {name!r} does not exist, and as a pattern it matches none: expected {KNOWN}")
    for file in files or [path]:
        yield from ((file, number, row) for number, row in rows_of(file, column))


def _place(file: Path, number: int) -> str:
    return f"text file {str(file)!r}, {'row' if '.parquet' in file.name.lower() else 'line'} {number:,}"


def _say_without(name: str, column: str, without: int, read: int, *, ended: bool) -> None:
    """Warn once about the first rows of a file, and once about all that are read."""
    if without and not {(name, column, ended), (name, column, True)} & _SAID:
        _SAID.add((name, column, ended))
        rows = f"{read:,} rows" if ended else f"the first {read:,} rows"
        said = f"{without:,} of {rows} have no text in column {column!r}, and are left out"
        warnings.warn(f"text file {name!r}: {said}", stacklevel=3)


def _within(folder: Path) -> list[Path]:
    """List the text files in a folder and its subfolders, linked ones too, each folder once."""
    found, seen = [], set()
    for place, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in files if kind_of(name) and not ASIDE.match(name)]
    return sorted(found)
