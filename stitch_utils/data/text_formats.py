"""Read the rows of one file of texts, of whichever kind, compressed or not.

No section of the paper. A file is read from beginning to end and one row at a time, so it may be larger than memory. A
row is an object, or a text where a file holds nothing else. What would be read wrongly is refused instead, by its line:
other encodings than UTF-8, binary files, broken rows.

Offers `rows_of`, `kind_of`, `KNOWN`, and `listed` for messages.
"""

import codecs
import contextlib
import csv
import functools
import gzip
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

KNOWN = ".txt, .md, .jsonl, .ndjson, .json, .csv, .tsv or .parquet, each also with .gz or .zst after it"
ENDING = re.compile(r"(\.(?:txt|md|jsonl|ndjson|json|csv|tsv|parquet))(\.gz|\.zst)?\Z", re.IGNORECASE)
BLOCK = 1 << 20  # bytes that are decoded at once
BETWEEN, DECODER = re.compile(r"[\s,]*"), json.JSONDecoder()
LONGEST_TOKEN = 12  # of JSON, strings aside: so far before the end of a part an error may come from the cut
BEGINNINGS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "compressed by gzip: expected .gz at the end of its name",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: expected .zst at the end of its name",
    b"\xfd7zXZ": "compressed by xz: expected it unpacked, or .gz or .zst",
    b"PK\x03\x04": "a zip file: expected it unpacked",
    b"%PDF-": "a PDF: expected its text",
    b"PAR1": "a parquet file: expected .parquet at the end of its name",
    b"version https://git-lfs": "a pointer of Git LFS, and not the text: fetch it with `git lfs pull`",
}
Stream = Any  # an open file of bytes, or what unpacks one
Row = tuple[int, Any]  # the number of its line, or in a parquet file of its row; and what it holds


class _Refused(ValueError):
    """What is wrong with a file, without its name."""


def rows_of(file: Path, column: str | None) -> Iterator[Row]:
    """Yield the rows of one file, of a parquet file only `column` if it is given; raise ValueError, which names it."""
    kind = kind_of(file.name)
    try:
        if not file.exists():
            lost = "which is not there: `git annex get` or `git lfs pull` fetches it"
            raise _Refused(f"leads to {os.readlink(file)!r}, {lost}" if file.is_symlink() else "does not exist")
        if kind is None:
            raise _Refused(f"is not of a known kind: expected {KNOWN}")
        with open(file, "rb") as raw, _unpacked(raw, kind[1]) as stream:
            yield from READERS[kind[0]](stream, column)
    except _Refused as error:
        raise ValueError(f"text file {str(file)!r} {error}") from None
    except Exception as error:  # the readers of each kind raise classes of their own, pyarrow's among them
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"text file {str(file)!r} cannot be read ({reason}): expected a whole file") from error


def kind_of(name: str) -> tuple[str, str] | None:
    """Return the endings for the kind of a file and its compression, in small letters; None for an unknown kind."""
    found = ENDING.search(name)
    return (found[1].lower(), (found[2] or "").lower()) if found else None


def listed(columns: dict[str, None]) -> str:
    """Join names of columns, shortened where they are texts themselves."""
    return ", ".join(name if len(name) <= 40 else f"{name[:40]}..." for name in columns)


def _json_row(line: str) -> Any:
    """Parse a line of JSON; ValueError, quoting it, if it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise _Refused(f"{line.strip()[:40]!r} is no JSON") from None


@contextlib.contextmanager
def _unpacked(raw: BinaryIO, packing: str) -> Iterator[Stream]:
    """Open what a file holds, behind its compression."""
    if packing == ".gz":
        with gzip.open(raw) as stream:
            yield stream
    elif packing == ".zst":
        import pyarrow  # slow to import; unlike zstandard it refuses a file that was cut off

        with pyarrow.CompressedInputStream(raw, "zstd") as stream:
            yield stream
    else:
        yield raw


def _decoded(stream: Stream) -> Iterator[str]:
    """Decode UTF-8, with or without a byte order mark, and end all lines by `\\n`."""
    block, line = stream.read(BLOCK), 1
    _check_beginning(block)
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    while True:
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            before = error.object[: error.start].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            where = f"line {line + before.count(10):,}, byte 0x{error.object[error.start]:02x}"
            raise _Refused(
                f"is not in UTF-8 ({where}), perhaps in Latin-1 or Windows-1252: {_converted('WINDOWS-1252')}"
            ) from None
        line += text.count("\n")
        yield text
        if not block:
            return
        block = stream.read(BLOCK)


def _check_beginning(block: bytes) -> None:
    """Refuse text in UTF-16 or UTF-32, and what is no text."""
    for mark, said in BEGINNINGS.items():
        if block.startswith(mark):
            raise _Refused(f"is in {said}: {_converted(said)}" if said.startswith("UTF") else f"is {said}")
    if b"\0" in (some := block[:8192]):
        # most letters of an alphabet are a zero and another byte in UTF-16
        first, second = some[::2].count(0), some[1::2].count(0)
        if max(first, second) > len(some) / 6 > 6 * min(first, second):
            encoding = "UTF-16LE" if second > first else "UTF-16BE"
            raise _Refused(f"is in {encoding}: {_converted(encoding)}")
        raise _Refused("is binary (it holds zeros): expected text in UTF-8")


def _converted(encoding: str) -> str:
    return f"expected UTF-8, as `iconv -f {encoding} -t UTF-8 OLD > NEW` writes it"


def _lines(chunks: Iterator[str]) -> Iterator[str]:
    """Yield the lines of a text that comes in pieces."""
    parts: list[str] = []
    for chunk in chunks:
        first, *more = chunk.split("\n")
        parts.append(first)
        if more:
            yield "".join(parts)
            yield from more[:-1]
            parts = more[-1:]
    if last := "".join(parts):
        yield last


def _paragraphs(stream: Stream, column: str | None) -> Iterator[Row]:
    """Yield the documents of plain text, which blank lines and form feeds separate."""
    lines: list[str] = []
    begun = 1
    for number, line in enumerate(_lines(_decoded(stream)), 1):
        for place, part in enumerate(line.split("\f")):
            if lines and (place or not part.strip()):
                yield begun, "\n".join(lines)
                lines = []
            if part.strip():
                begun = number if not lines else begun
                lines.append(part)
    if lines:
        yield begun, "\n".join(lines)


def _json(stream: Stream, column: str | None, *, by_line: bool) -> Iterator[Row]:
    """Yield the rows of JSON lines, or with `by_line=False` of a file of values; of a list in either."""
    chunks = _decoded(stream)
    first = next(filter(str.strip, chunks), "")
    chunks = itertools.chain([first], chunks)
    if not by_line or first.lstrip().startswith("["):
        yield from _json_values(chunks)
        return
    for number, line in enumerate(_lines(chunks), 1):
        if line.strip():
            try:
                yield number, _json_row(line)
            except _Refused as error:
                expected = f'expected one object such as {{"{column or "text"}": "..."}} a line'
                raise _Refused(f"cannot be read (line {number:,}: {error}): {expected}") from None


def _json_values(chunks: Iterator[str]) -> Iterator[Row]:
    """Yield the values of a list, or those that stand one after another; no more than one of them is in memory."""
    text = _Window(chunks)
    in_list = text.starts("[")
    while not (text.at_end() or (in_list and text.starts("]"))):
        yield text.value()
    if in_list != text.ended_list or not text.at_end():
        raise _Refused(f"cannot be read (line {text.line:,}: not one whole list): expected a list of objects or texts")


class _Window:
    """The part of a text that is being parsed."""

    def __init__(self, chunks: Iterator[str]):
        self.chunks, self.text, self.place, self.line, self.ended_list = chunks, "", 0, 1, False

    def at_end(self) -> bool:
        """Pass over blanks and commas; tell whether nothing is left."""
        while True:
            blank = BETWEEN.match(self.text, self.place)
            assert blank is not None
            self._pass(blank.end())
            if self.place < len(self.text):
                return False
            if not self._read(1):
                return True

    def starts(self, mark: str) -> bool:
        """Pass over a mark if it comes next; tell whether it did."""
        if self.at_end() or self.text[self.place] != mark:
            return False
        self._pass(self.place + 1)
        self.ended_list = self.ended_list or mark == "]"
        return True

    def value(self) -> Row:
        """Parse the value that comes next."""
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.place)
                is_cut = end == len(self.text)  # of a number, more may follow
            except (ValueError, RecursionError) as error:
                value, end = None, -1
                near = getattr(error, "pos", 0) > len(self.text) - LONGEST_TOKEN
                is_cut = near or str(error).startswith("Unterminated string")
            # as much again, so that a long value is not parsed too often
            if is_cut and self._read(len(self.text) - self.place):
                continue
            if end < 0:
                quoted = self.text[self.place : self.place + 40]
                expected = "expected a list of objects or texts, or one object a line"
                raise _Refused(f"cannot be read (line {self.line:,}: {quoted!r} is no JSON): {expected}")
            line = self.line
            self._pass(end)
            return line, value

    def _pass(self, place: int) -> None:
        self.line += self.text.count("\n", self.place, place)
        self.place = place

    def _read(self, wanted: int) -> bool:
        """Read on, by `wanted` characters or more, and forget what was passed; tell whether there was anything."""
        parts, size = [self.text[self.place :]], 0
        while size < wanted and (chunk := next(filter(None, self.chunks), None)):
            parts.append(chunk)
            size += len(chunk)
        self.text, self.place = "".join(parts), 0
        return size > 0


def _table(stream: Stream, column: str | None, *, delimiters: str) -> Iterator[Row]:
    """Yield the rows of a table whose first line names the columns."""
    csv.field_size_limit(2**31 - 1)
    lines = (f"{line}\n" for line in _lines(_decoded(stream)))
    first = next(filter(str.strip, lines), "")
    cells = {one: next(csv.reader([first], delimiter=one), []) for one in delimiters}
    delimiter = max(delimiters, key=lambda one: (column in cells[one], len(cells[one])))
    reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        for row in filter(None, reader):
            if any(row[len(header) :]):
                count = f"line {reader.line_num:,} has {len(row)} columns, and the first line {len(header)}"
                raise _Refused(f"cannot be read ({count}): put texts that hold {delimiter!r} in quotation marks")
            yield reader.line_num, dict(zip(header, row))
    except csv.Error as error:
        expected = "expected quotation marks around a text, and doubled ones in it"
        raise _Refused(f"cannot be read (line {reader.line_num:,}: {error}): {expected}") from None


def _parquet(stream: Stream, column: str | None) -> Iterator[Row]:
    from pyarrow.parquet import ParquetFile  # slow to import, and not needed by the other kinds

    file = ParquetFile(stream if isinstance(stream, io.BufferedReader) else io.BytesIO(stream.read()))
    if column is not None and column not in (names := file.schema_arrow.names):
        raise _Refused(f"has no text column {column!r}: its columns are {listed(dict.fromkeys(names))}")
    batches = file.iter_batches(batch_size=256, columns=None if column is None else [column])
    yield from enumerate(itertools.chain.from_iterable(batch.to_pylist() for batch in batches), 1)


READERS: dict[str, Callable[[Stream, str | None], Iterator[Row]]] = {
    ".txt": _paragraphs,
    ".md": _paragraphs,
    ".jsonl": functools.partial(_json, by_line=True),
    ".ndjson": functools.partial(_json, by_line=True),
    ".json": functools.partial(_json, by_line=False),
    ".csv": functools.partial(_table, delimiters=",;\t"),
    ".tsv": functools.partial(_table, delimiters="\t"),
    ".parquet": _parquet,
}
