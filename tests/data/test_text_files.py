"""Texts as people have them: each kind of file, what a name means, what is left out, and what is refused."""

import gzip
import itertools
import json
import os
import subprocess
import sys
import warnings

import pandas as pd
import pyarrow
import pytest
import yaml

from stitch_utils.data import text_formats
from stitch_utils.data.documents import read_documents
from stitch_utils.data.pairs import TextRef, load_pair
from stitch_utils.data.text_files import file_rows, file_texts, names_files, text_files, text_files_key
from stitch_utils.models.harvest import text_key

TEXTS = ["The cook bakes.", "Ça va très bien.\nOui.", "她喜欢蛋糕。"]
LINES = "".join(json.dumps({"n": n, "text": text}, ensure_ascii=False) + "\n" for n, text in enumerate(TEXTS))


def zstd(content):
    return pyarrow.Codec("zstd").compress(content, asbytes=True)


@pytest.fixture
def put(tmp_path):
    """Writes a file below a folder of its own; its path."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def texts(name, column="text", **options):
    return list(file_texts(str(name), column, **options))


# ---- kinds ----------------------------------------------------------------------------------------------------------

SAME = {
    "a.txt": "\n\n".join(TEXTS),
    "a.md": "\n\n".join(TEXTS) + "\n",
    "windows.txt": "\r\n \t\r\n".join(TEXTS).replace("\nOui", "\r\nOui") + "\r\n",
    "mac.txt": "\r\r".join(TEXTS).replace("\nOui", "\rOui"),
    "pages.txt": "\f".join(TEXTS),
    "spaces.txt": "\n  \n\n\t \n".join(["\ufeff", *TEXTS]).removeprefix("\n"),
    "mark.txt": "\ufeff" + "\n\n".join(TEXTS),
    "LOUD.TXT": "\n\n".join(TEXTS),
    "a.jsonl": LINES,
    "a.ndjson": "\n" + LINES + "\n\n",
    "mark.jsonl": "\ufeff" + LINES,
    "list.jsonl": json.dumps([{"text": text} for text in TEXTS]),
    "lines.json": LINES,
    "list.json": json.dumps([{"text": text, "more": [{}]} for text in TEXTS], indent=2),
    "strings.json": json.dumps(TEXTS),
    "pretty.json": "".join(json.dumps({"text": text}, indent=1) for text in TEXTS),
    "a.csv": pd.DataFrame({"n": range(3), "text": TEXTS}).to_csv(),
    "excel.csv": "\ufeff" + pd.DataFrame({"n": range(3), "text": TEXTS}).to_csv(sep=";", lineterminator="\r\n"),
    "A.Tsv": pd.DataFrame({"text": TEXTS, "n": '"'}).to_csv(sep="\t"),
}


@pytest.mark.parametrize("packing", ["", ".gz", ".zst", ".GZ"])
@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("block", [3, 1 << 20])
def test_all_kinds_hold_the_same(put, monkeypatch, name, packing, block):
    monkeypatch.setattr(text_formats, "BLOCK", block)
    content = SAME[name].encode()
    packed = {"": content, ".gz": gzip.compress(content), ".zst": zstd(content)}[packing.lower()]
    assert texts(put(name + packing, packed)) == TEXTS


def test_a_file_of_several_compressed_parts_is_read_to_its_end(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(zstd(b'{"text": "%d"}\n' % number) for number in range(3)))
    assert list(file_texts(str(path), "text")) == ["0", "1", "2"]


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_a_parquet_file_gives_one_column(tmp_path, packing):
    path = tmp_path / "a.parquet"
    pd.DataFrame({"text": [*TEXTS, None], "n": 1, "other": [[1], [2], [3], []]}).to_parquet(path)
    packed = {"": bytes, ".gz": gzip.compress, ".zst": zstd}[packing](path.read_bytes())
    path = tmp_path / f"b.parquet{packing}"
    path.write_bytes(packed)
    with pytest.warns(UserWarning, match="1 of 4 rows have no text in column 'text'"):
        assert texts(path) == TEXTS
    with pytest.raises(ValueError, match=r"has no text column 'body': its columns are text, n, other"):
        texts(path, "body")


def test_a_long_file_is_read_as_far_as_it_is_wanted(put, monkeypatch):
    monkeypatch.setattr(text_formats, "BLOCK", 1000)
    for name, content in {
        "a.txt": "One.\n\n" * 999,
        "a.jsonl": '{"text": "One."}\n' * 999,
        "a.json": '[{"text": "One."}' + ', {"text": "One."}' * 999,
        "a.csv": "text\n" + "One.\n" * 999,
    }.items():
        path = put(name, content.encode() + b"\xff" * 9)  # what would be refused is at its end
        assert list(itertools.islice(file_texts(path, "text"), 50)) == ["One."] * 50
        assert texts(path, skip=3, take=9) == ["One."] * 9
        with pytest.raises(ValueError, match="UTF-8"):
            texts(path)


# ---- rows that vary -------------------------------------------------------------------------------------------------


def test_only_the_column_of_text_is_looked_at(put):
    rows = [{"text": "a", "n": 1}, {"n": "one", "text": "b"}, {"text": "c", "n": None, "late": [1]}, {"text": "d"}]
    assert texts(put("a.jsonl", "\n".join(map(json.dumps, rows)))) == ["a", "b", "c", "d"]
    assert texts(put("a.json", json.dumps([*rows, "e"]))) == ["a", "b", "c", "d", "e"]
    late = '{"n": 1}\n' * 40 + '{"text": "at last"}\n'
    with pytest.warns(UserWarning, match="40 of 41 rows"):
        assert texts(put("late.jsonl", late)) == ["at last"]


@pytest.mark.parametrize("nothing", ["null", '""', '" \\n"', '"\\ud83d"'])
def test_rows_without_text_are_left_out_and_counted_once(put, nothing):
    path = put("a.jsonl", (f'{{"text": {nothing}, "n": 1}}\n' + '{"text": "a"}\n') * 3 + '{"n": 4}\nnull\n')
    with pytest.warns(UserWarning) as said:
        assert texts(path) == texts(path) == ["a"] * 3
    (one,) = said
    assert str(one.message) == f"text file {path!r}: 5 of 8 rows have no text in column 'text', and are left out"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert texts(path, skip=2, take=2) == ["a"], "rows are counted, and not texts"


def test_a_read_that_ends_early_says_what_it_left_out(put):
    path = put("a.jsonl", '{"text": null}\n' + '{"text": "a"}\n' * 9)
    stream = file_texts(path, "text")
    assert next(stream) == "a"
    with pytest.warns(UserWarning, match="1 of the first 2 rows have no text"):
        stream.close()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"text": "a"}\n\n{"text": \n', r"a\.jsonl' cannot be read \(line 3: '\{\"text\":' is no JSON\)"),
        ("a.jsonl", '{"text": "a"}\n{"text": 5}\n', r"a\.jsonl', line 2 holds 5 in column 'text': expected text"),
        ("a.jsonl", '{"text": ["a"]}\n', r"line 1 holds \['a'\] in column 'text': expected text"),
        ("a.jsonl", '{"text": "a"}\n7\n', r"line 2 holds 7 in the place of an object: expected text"),
        ("a.jsonl", '{"a": 1}\n{"b": 2}\n', r"has no text column 'text': its columns are a, b"),
        ("a.json", '{"rows": [{"text": "a"}]}', r"has no text column 'text': its columns are rows"),
        ("a.json", '[{"text": "a"},\n{"text": "b"}\n', r"a\.json' cannot be read \(line 3: not one whole list\)"),
        ("a.json", '[{"text": "a"}]\n[]', r"\(line 2: not one whole list\)"),
        ("a.json", '[{"text": "a"},\n{"text" "b"}]', r"\(line 2: '\{\"text\" \"b\"\}\]' is no JSON\)"),
        ("a.json", '{"text": "a"}\n]', r"\(line 2: '\]' is no JSON\)"),
        ("a.csv", "body,n\na,1\n", r"has no text column 'text': its columns are body, n"),
        ("a.csv", "text,n\nHello, you,1\n", r"\(line 2 has 3 columns, and the first line 2\): put texts that hold ','"),
        ("a.csv", 'text,n\n"open,1\nb,2\n', r"a\.csv' cannot be read \(line 3: unexpected end of data\)"),
        ("a.tsv", 'text\tn\n"He" said\t1\n', r"a\.tsv' cannot be read \(line 2: .*\): expected quotation marks around"),
        ("a.parquet", "text", r"a\.parquet' cannot be read \(.*\): expected a whole file"),
        ("a.txt.gz", "text", r"a\.txt\.gz' cannot be read \(Not a gzipped file"),
        (
            "a.txt.gz",
            gzip.compress(b"text", mtime=0)[:-5],
            r"a\.txt\.gz' cannot be read \(Compressed file ended before",
        ),
        ("a.txt.zst", zstd(b"text" * 99)[:-5], r"a\.txt\.zst' cannot be read \("),
    ],
)
def test_broken_rows_are_named(put, name, content, said):
    with pytest.raises(ValueError, match=said) as error:
        texts(put(name, content))
    assert "\n" not in str(error.value) and str(error.value).startswith("text file '/")


# ---- encodings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.json.gz"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text é".encode("utf-16"), r"is in UTF-16: expected UTF-8, as `iconv -f UTF-16 -t UTF-8 OLD > NEW`"),
        ("text é".encode("utf-16-le"), "is in UTF-16LE: expected UTF-8"),
        ("text é".encode("utf-16-be"), "is in UTF-16BE: expected UTF-8"),
        ("text é".encode("utf-32"), "is in UTF-32: expected UTF-8"),
        (
            '"text"\n\n"é"'.encode("latin-1"),
            r"is not in UTF-8 \(line 3, byte 0xe9\), perhaps in Latin-1 or W",
        ),
        ('"text"\r\n"“”"'.encode("cp1252"), r"is not in UTF-8 \(line 2, byte 0x93\)"),
        ('"это"'.encode("koi8-r"), r"is not in UTF-8 \(line 1, byte 0x"),
        (bytes(range(256)), r"is binary \(it holds zeros\): expected text in UTF-8"),
        (gzip.compress(b"text", mtime=0), r"is compressed by gzip: expected \.gz at the end of its name"),
        (zstd(b"text"), r"is compressed by zstd: expected \.zst"),
        (b"PK\x03\x04....", "is a zip file: expected it unpacked"),
        (b"version https://git-lfs.github.com/spec/v1\n", r"is a pointer of Git LFS, .*`git lfs pull`"),
    ],
)
def test_what_is_not_in_utf_8_is_named(put, name, content, said):
    path = put(name, gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(ValueError, match=said) as error:
        texts(path)
    assert str(error.value).startswith(f"text file {path!r} is") and "\n" not in str(error.value)


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "run[12].jsonl",
        "[2024] corpora/a.jsonl",
        "a::b.jsonl",
        "zip:/a::b.jsonl",
        "语料 库/文.jsonl",
        "what?.jsonl",
        "*.jsonl",
    ],
)
def test_a_path_that_is_there_is_no_pattern(put, name):
    put("run1.jsonl", '{"text": "another"}')
    assert texts(put(name, LINES)) == TEXTS


def test_patterns(put, tmp_path):
    for number in (10, 2, 1):
        put(f"[2024] corpora/run{number}.jsonl", f'{{"text": "{number}"}}')
    put("[2024] corpora/deep/er/run3.jsonl.gz", gzip.compress(b'{"text": "3"}'))
    put("[2024] corpora/run.log", "no text")
    folder = tmp_path / "[2024] corpora"
    assert texts(folder / "run*") == ["1", "10", "2"], "in alphabetical order"
    assert texts(folder / "run[12].jsonl") == ["1", "2"] and texts(folder / "run?.jsonl") == ["1", "2"]
    assert texts(folder / "**" / "*.jsonl*") == ["3", "1", "10", "2"]
    assert texts(tmp_path / "*" / "run1.jsonl") == ["1"]
    for none in ("run[89].jsonl", "*.log", "nowhere/*.jsonl"):
        with pytest.raises(ValueError, match=r"does not exist, and as a pattern it matches none: expected \.txt"):
            texts(folder / none)


def test_a_folder_means_all_its_texts(put, tmp_path):
    put("all/b.jsonl", '{"text": "b"}')
    put("all/a.TXT", "a1\n\na2")
    put("all/deep/c.csv.gz", gzip.compress(b"text\nc\n"))
    for aside in ("all/README.md", "all/LICENSE.txt", "all/.hidden.txt", "all/.git/x.txt", "all/model.bin"):
        put(aside, "aside")
    put("elsewhere/d.md", "d")
    (tmp_path / "all" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "all" / "round").symlink_to(tmp_path / "all")
    assert texts(tmp_path / "all") == ["a1", "a2", "b", "c", "d"] == texts(f"{tmp_path}/all/")
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match=r"text folder '.*bare' holds no text files: expected \.txt"):
        texts(tmp_path / "bare")


@pytest.mark.parametrize("name", ["a.jsonl", "B.JSON", "c.ndjson.gz"])
def test_a_link_has_its_own_ending(put, tmp_path, name):
    put("blobs/0123abcd", gzip.compress(LINES.encode()) if name.endswith("gz") else LINES)
    (tmp_path / name).symlink_to(tmp_path / "blobs" / "0123abcd")
    assert texts(tmp_path / name) == TEXTS
    (tmp_path / "blobs" / "0123abcd").unlink()
    with pytest.raises(ValueError, match=r"leads to '.*0123abcd', which is not there: `git annex get` or `git"):
        texts(tmp_path / name)


def test_which_names_mean_files(put, tmp_path):
    put("there/x", "")
    for name in ("a.jsonl", "a.CSV.GZ", "x/*", "./a", "~/a", "/a", "my texts", "a/b/c", "a::b", "there", "there/x"):
        assert names_files(name, tmp_path), name
    for name in ("wikitext", "Salesforce/wikitext", "a.b/c-d"):
        assert not names_files(name, tmp_path), name


@pytest.mark.parametrize(
    "name", ["文/a.jsonl", "[1] x", "文/*.jsonl", "run[12].jsonl", "A.TXT", "a b.csv", "{source: files, name: '[1] x'}"]
)
def test_a_pair_file_finds_texts_beside_itself(put, tmp_path, monkeypatch, name):
    for file, content in {
        "文/a.jsonl": LINES,
        "[1] x/b.json": json.dumps(TEXTS),
        "run[12].jsonl": LINES,
        "A.TXT": "\n\n".join(TEXTS),
        "a b.csv": pd.DataFrame({"text": TEXTS}).to_csv(),
        "run1.jsonl": '{"text": "another"}',
    }.items():
        put(f"[a] b/{file}", content)
    given = yaml.safe_load(name) if name.startswith("{") else name
    data = {"name": "mine", "a": {"model": "x/a", "layer": 1}, "b": {"model": "x/b"}, "text": given}
    path = put("[a] b/mine.yml", yaml.safe_dump(data))
    monkeypatch.chdir("/")
    pair = load_pair(path)
    assert pair.train.source == "files" and os.path.isabs(pair.train.name)
    assert texts(pair.train.name) == TEXTS
    with pytest.raises(ValueError, match="3 documents that are not empty: every tenth"):
        list(read_documents(pair.evaluation))


def test_data_sets_of_a_pair_file_may_be_files(put, monkeypatch):
    data = {"name": "mine", "a": {"model": "x/a", "layer": 1}, "b": {"model": "x/b"}, "text": "x/y"}
    names = {"one": "rows.json.gz", "two": "rows/*.jsonl", "three": "rows", "four": "x/y", "five": "http://a/b?.jsonl"}
    put("rows/1.jsonl", LINES)
    put("rows.json.gz", gzip.compress(LINES.encode()))
    path = put("mine.yml", yaml.safe_dump(data | {"datasets": {key: {"name": name} for key, name in names.items()}}))
    found = {key: ref.name for key, ref in load_pair(path).datasets.items()}
    assert (found["four"], found["five"]) == (names["four"], names["five"])
    for key in ("one", "two", "three"):
        assert [row["text"] for row in file_rows(found[key])] == TEXTS
    with pytest.raises(ValueError, match=r"s\.json', line 1 holds 'a': expected an object with columns"):
        list(file_rows(put("s.json", '["a"]')))


def test_in_a_plain_locale(put, tmp_path):
    put("[文] x/语料.jsonl", LINES)
    code = "import sys; from stitch_utils.data.text_files import *; print(ascii([*file_texts(sys.argv[1], 'text')]))"
    for name in ("[文] x/语料.jsonl", "[文] x", "[文] x/*.jsonl"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / name)],
            env={"LC_ALL": "C", "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == ascii(TEXTS)


def test_files_need_no_place_to_write(put):
    """What lies on this disk is read where no cache can be."""
    code = "import sys; from stitch_utils.data.documents import *; from stitch_utils.data.pairs import TextRef\n"
    code += "print(len([*read_documents(TextRef('files', sys.argv[1]))]))"
    nowhere = put("file", "no folder") + "/x"
    homes = dict.fromkeys(("HOME", "HF_HOME", "XDG_CACHE_HOME", "HF_DATASETS_CACHE"), nowhere)
    environment = {**os.environ, **homes, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for path in (put("a.jsonl", LINES), put("b.csv", pd.DataFrame({"text": TEXTS}).to_csv()), put("c.json", LINES)):
        done = subprocess.run(
            [sys.executable, "-c", code, path], env=environment, capture_output=True, text=True, check=False
        )
        assert (done.stdout, done.stderr) == ("3\n", "")


# ---- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["all", "all/*.jsonl", "all/a.jsonl", "linked.jsonl"])
def test_a_key_notices_what_changes(put, tmp_path, name):
    put("all/a.jsonl", LINES)
    (tmp_path / "linked.jsonl").symlink_to(tmp_path / "all" / "a.jsonl")
    text = TextRef("files", str(tmp_path / name))
    keys = [text_key(text)]
    put("all/a.jsonl", LINES + LINES)
    keys.append(text_key(text))
    os.utime(tmp_path / "all" / "a.jsonl", ns=(0, 0))
    keys.append(text_key(text))
    put("aside.jsonl", LINES)
    put("all/.hidden.jsonl", LINES)
    put("all/model.bin", LINES)
    assert text_key(text) == keys[-1]
    if "a.jsonl" not in name and "linked" not in name:
        put("all/b.jsonl", LINES)
        keys.append(text_key(text))
        (tmp_path / "all" / "b.jsonl").rename(tmp_path / "all" / "c.jsonl")
        keys.append(text_key(text))
    assert len({json.dumps(key) for key in keys}) == len(keys)
    assert text_files_key(str(tmp_path / "none")) == [] == text_files(str(tmp_path / "none*"))
