"""What the Hub sends back: contents, parts of them, and errors that it explains in its headers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Refusal(Exception):
    """An error that the Hub explains in its headers."""

    def __init__(self, status: int, code: str | None, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}

    def answer(self) -> Answer:
        named = {"X-Error-Code": self.code} if self.code else {}
        return as_json({"error": self.message}, self.status, {**named, "X-Error-Message": self.message, **self.headers})


def as_json(content, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    kind = {"Content-Type": "application/json; charset=utf-8"}
    return Answer(status, {**kind, **(headers or {})}, json.dumps(content).encode())


def is_true(values: Mapping[str, list[str]], name: str) -> bool:
    return values.get(name, [""])[-1].lower() in ("true", "1")


def byte_range(header: str | None, size: int) -> range | None:
    """The bytes that a Range header asks for; None for the whole file, which also answers several ranges at once."""
    found = RANGE.fullmatch(header or "")
    if not found or not any(found.groups()):
        return None
    first, last = found.groups()
    if first:
        start, stop = int(first), min(int(last) + 1, size) if last else size
    else:
        start, stop = max(size - int(last), 0), size
    if start >= stop:
        raise Refusal(416, None, "Requested range not satisfiable", {"Content-Range": f"bytes */{size}"})
    return range(start, stop)
