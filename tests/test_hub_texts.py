"""Texts that are fetched once: what is written down, taken up again after an interruption, and never fetched twice."""

import json

import pytest
from filelock import FileLock

from stitch_utils.hub import remembered

TEXTS = ["one", "zwei\nlines", "", "ça va", "five"]


class Source:
    """Streams `TEXTS` and counts what was taken of it."""

    def __init__(self):
        self.taken = []

    def __call__(self, start):
        for text in TEXTS[start:]:
            self.taken.append(text)
            yield text


def first(path, source, count):
    stream = remembered(path, source)
    found = [next(stream) for _ in range(count)]
    stream.close()
    return found


def test_each_text_is_fetched_once(tmp_path):
    path, source = tmp_path / "cache" / "x.jsonl", Source()
    assert first(path, source, 2) == TEXTS[:2]
    assert first(path, source, 2) == TEXTS[:2] and source.taken == TEXTS[:2]
    assert list(remembered(path, source)) == TEXTS and source.taken == TEXTS
    assert list(remembered(path, source)) == TEXTS and source.taken == TEXTS, "the end is remembered too"


def test_a_line_that_was_cut_off_is_fetched_again(tmp_path):
    path, source = tmp_path / "x.jsonl", Source()
    path.write_text(json.dumps("one") + "\n" + '"zwei')
    assert list(remembered(path, source)) == TEXTS and source.taken == TEXTS[1:]
    assert [json.loads(line) for line in path.read_text().splitlines()] == [*TEXTS, None]


def test_a_stream_that_fails_leaves_what_it_gave(tmp_path):
    def failing(start):
        yield from TEXTS[start:2]
        raise ConnectionError("gone")

    path = tmp_path / "x.jsonl"
    with pytest.raises(ConnectionError):
        list(remembered(path, failing))
    source = Source()
    assert list(remembered(path, source)) == TEXTS and source.taken == TEXTS[2:]


def test_a_file_in_use_is_read_and_left_alone(tmp_path):
    path, source = tmp_path / "x.jsonl", Source()
    first(path, source, 2)
    before = path.read_bytes()
    with FileLock(f"{path}.lock"):
        assert list(remembered(path, source)) == TEXTS
    assert path.read_bytes() == before
