"""Texts that are fetched once: what is written down, taken up again after an interruption, and never fetched twice."""

import errno
import json

import pyarrow as pa
import pytest
from filelock import FileLock
from hub import Hub, child
from hub.corpora import write_datasets, write_parquet
from hub.repository import COMMITS

from stitch_utils.data import documents, hub
from stitch_utils.data.hub import HubError, dataset_rows, reaching, remembered
from stitch_utils.data.pairs import TextRef, known_pairs, load_pair
from stitch_utils.data.text import read_documents
from stitch_utils.data.text_files import file_rows
from stitch_utils.utils import files
from stitch_utils.utils.files import NotWritten

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


def values(path):
    return [json.loads(line.partition(" ")[2]) for line in path.read_text().splitlines()]


def test_a_line_that_was_cut_off_is_fetched_again(tmp_path):
    path, source = tmp_path / "x.jsonl", Source()
    first(path, Source(), 2)
    path.write_bytes(path.read_bytes()[:-4])
    assert list(remembered(path, source)) == TEXTS and source.taken == TEXTS[1:]
    assert values(path) == [*TEXTS, None]


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [lines[0], lines[1].replace("zwei", "zwej"), *lines[2:]],  # one bit, and still JSON
        lambda lines: [lines[0], *lines[2:]],
        lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
        lambda lines: [lines[0], "\0" * 40, *lines[2:]],  # blocks that never reached the disk
        lambda lines: [lines[0], lines[1].partition(" ")[2], *lines[2:]],
    ],
)
def test_from_a_damaged_line_on_texts_are_fetched_again(tmp_path, damage):
    path, source = tmp_path / "x.jsonl", Source()
    assert list(remembered(path, Source())) == TEXTS
    path.write_text("".join(damage(path.read_text().splitlines(keepends=True))))
    assert list(remembered(path, source)) == TEXTS and source.taken == TEXTS[1:]
    assert list(remembered(path, source)) == TEXTS and source.taken == TEXTS[1:]


def test_a_full_disk_is_one_line_and_keeps_what_came_before(tmp_path, monkeypatch):
    path, write = tmp_path / "x.jsonl", hub.os.pwrite

    def full(number, content, offset):
        if offset > 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(number, content[:9], offset)

    with monkeypatch.context() as patched:
        patched.setattr(hub.os, "pwrite", full)
        with pytest.raises(NotWritten, match=r"x.jsonl could not be written \(No space left on device\): what it"):
            list(remembered(path, Source()))
    source = Source()
    assert list(remembered(path, source)) == TEXTS and source.taken == TEXTS[1:]


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


def unwritable_below_a_file(path, monkeypatch):
    path.parent.parent.write_text("a file")


def unwritable_disk(path, monkeypatch):
    def refuses(*given, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuses)


def unwritable_file(path, monkeypatch):
    path.parent.mkdir(parents=True)
    path.mkdir()


@pytest.mark.parametrize("refusal", [unwritable_below_a_file, unwritable_disk, unwritable_file])
def test_where_nothing_can_be_written_texts_are_streamed_with_one_warning(tmp_path, monkeypatch, refusal):
    path = tmp_path / "home" / "stitch_utils" / "x.jsonl"
    refusal(path, monkeypatch)
    with pytest.warns(UserWarning) as said:
        assert list(remembered(path, Source())) == list(remembered(path, Source())) == TEXTS
    (one,) = said
    assert "nothing is remembered" in str(one.message) and "cannot be written" in str(one.message)


def test_what_was_remembered_is_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    path, source = tmp_path / "x.jsonl", Source()
    first(path, Source(), 2)
    before = path.read_bytes()
    unwritable_disk(path, monkeypatch)
    with pytest.warns(UserWarning, match=r"Read-only file system\): make it writable, or let STITCH_ROOT name"):
        assert list(remembered(path, source)) == TEXTS
    assert source.taken == TEXTS[2:] and path.read_bytes() == before


READS = """
import itertools, json, warnings
from stitch_utils.data.documents import read_documents
from stitch_utils.data.pairs import TextRef, known_pairs, load_pair

with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    found = [list(itertools.islice(read_documents(TextRef("hub", "Skylion007/openwebtext")), 3)) for _ in range(2)]
ours = [str(one.message) for one in said if "remembered" in str(one.message)]
print(json.dumps({"texts": found, "said": ours}))
"""


def test_a_data_set_is_streamed_where_no_cache_can_be_written(hub):
    found = child(hub.environment("/proc/nowhere"), "-c", READS)  # where nobody can make a folder
    assert found["texts"][0] == found["texts"][1] and len(found["texts"][0]) == 3
    (said,) = found["said"]
    assert said.endswith("make it writable, or let HF_HOME name a folder that is")


WHOLE = """
import json, sys
from stitch_utils.data.documents import read_documents
from stitch_utils.data.pairs import TextRef

print(json.dumps({"texts": list(read_documents(TextRef("hub", sys.argv[1], revision=sys.argv[2])))}))
"""


def test_the_pile_streams_from_compressed_lines_of_json(tmp_path):
    name = "monology/pile-uncopyrighted"
    write_datasets(tmp_path, [name])
    with Hub(tmp_path) as server:
        found = child(server.environment(tmp_path / "home"), "-c", WHOLE, name, "main")["texts"]
    rows = [row["text"] for row in file_rows(str(tmp_path / "datasets" / name / "train" / "*.jsonl.zst"))]
    assert len(rows) == 400 and found == [text for text in rows if text.strip()]


def test_openwebtext_is_read_at_its_commit(tmp_path):
    pairs = (load_pair(name) for name in known_pairs())
    (asked,) = {
        (text.name, text.revision) for pair in pairs for text in (pair.train, pair.evaluation) if text.source == "hub"
    }
    write_parquet(tmp_path / "datasets" / asked[0], {"plain_text": {"train": pa.table({"text": ["one", "two"]})}})
    with Hub(tmp_path) as server:
        found = child(server.environment(tmp_path / "home"), "-c", WHOLE, *asked)["texts"]
    assert found == ["one", "two"]
    assert any(COMMITS[f"datasets/{asked[0]}"] in path and status == 200 for _, path, status in server.requests)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_cache_that_cannot_be_written_is_named(number):
    said = r"model 'a/b' cannot be kept, since /x/y cannot be written: let HF_HOME name a folder that can be"
    with pytest.raises(HubError, match=said), reaching("model", "a/b"):
        raise OSError(number, "refused", "/x/y")


@pytest.mark.parametrize("name", ["a.jsonl", "b.csv", "*.jsonl"])
def test_files_in_the_place_of_a_data_set_have_rows_and_no_splits(tmp_path, name):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(4)))
    (tmp_path / "b.csv").write_text("n\n0\n1\n2\n3\n")
    name = str(tmp_path / name)
    odd = list(dataset_rows(name, lambda row: int(row["n"]) if int(row["n"]) % 2 else None, picked="n", skip=1))
    assert odd == [1, 3]
    for asked, said in (({"split": "test"}, "no split 'test'"), ({"config": "en-fr"}, "no configuration 'en-fr'")):
        with pytest.raises(
            ValueError, match=f"names files, which have {said}: expected the id of a data set of the Hub"
        ):
            dataset_rows(name, dict, picked="n", **asked)


def test_rows_of_a_data_set_may_have_no_text(monkeypatch):
    rows = [{"text": None}, {"text": "a"}, {"text": ""}]
    monkeypatch.setattr(documents, "dataset_rows", lambda name, pick, **asked: map(pick, rows))
    assert list(read_documents(TextRef("hub", "a/b"))) == ["a"]


@pytest.fixture
def streamed(monkeypatch, tmp_path):
    """Rows 0 to 9 in the place of every data set; where each stream of them began."""
    begun = []

    class Stream:
        def skip(self, count):
            begun.append(count)
            return ({"number": number, "text": f"row {number}"} for number in range(count, 10))

    monkeypatch.setattr(hub.constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(hub, "_streamed", lambda *asked: Stream())
    return begun


def test_rows_that_are_passed_over_are_not_fetched_again(streamed):
    def odd(row):
        return [row["number"], row["text"]] if row["number"] % 2 else None

    def some(count):
        rows = dataset_rows("a/b", odd, picked="odd", skip=2)
        return [next(rows) for _ in range(count)]

    expected = [[number, f"row {number}"] for number in (3, 5, 7, 9)]
    assert some(2) == expected[:2] and streamed == [2]
    assert some(2) == expected[:2] and streamed == [2]
    assert some(4) == expected and streamed == [2, 6]
    assert list(dataset_rows("a/b", odd, picked="odd", skip=2)) == expected
    assert list(dataset_rows("a/b", odd, picked="odd", skip=2)) == expected and streamed == [2, 6, 10]


def test_what_is_picked_and_from_which_files_is_remembered_apart(streamed):
    numbers = list(dataset_rows("a/b", lambda row: row["number"], picked="number"))
    texts = list(read_documents(TextRef("hub", "a/b")))
    assert numbers == list(range(10)) and texts == [f"row {number}" for number in range(10)]
    again = list(dataset_rows("a/b", lambda row: -row["number"], picked="number", files="data/*.parquet"))
    assert again == [-number for number in range(10)]
    with pytest.raises(ValueError, match="dataset 'a/b' has no text column 'body': its columns are number, text"):
        next(read_documents(TextRef("hub", "a/b", column="body")))
