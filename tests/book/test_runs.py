"""Runs on the toy book: which are planned, what is in their keys, and when a page is fresh."""

import json
import os

import pytest
import yaml
from toy_book import PACKAGE, runs

from stitch_utils.book.chapters import RequestError
from stitch_utils.book.runs import find_pair, is_fresh, key_of


def test_a_changed_source_is_in_the_key_of_its_chapter_only(book):
    before = {run.chapter: key_of(book, run) for run in runs(book).values()}
    with (book / "book" / "words.md").open("a") as source:
        source.write("\nMore prose.\n")
    after = {run.chapter: key_of(book, run) for run in runs(book).values()}
    assert [chapter for chapter in before if after[chapter] != before[chapter]] == ["words"]
    fresh = [run.chapter for run in runs(book).values() if is_fresh(book, run, after[run.chapter])]
    assert fresh == ["numbers", "claims"]


@pytest.mark.parametrize("name", ["requirements.lock", "book/published.yml", "book/findings.yml"])
def test_what_chapters_share_is_in_every_key(book, name):
    before = {run.chapter: key_of(book, run) for run in runs(book).values()}
    assert all(is_fresh(book, run, before[run.chapter]) for run in runs(book).values())
    with (book / name).open("a") as file:
        file.write("# changed\n")
    after = {run.chapter: key_of(book, run) for run in runs(book).values()}
    assert all(after[chapter] != before[chapter] for chapter in before)


SEEN = [
    "results/other/words.json",
    "book/runs/other/words.ipynb",
    "book/recorded/other/record.yml",
    "book/unclaimed.yml",
]


@pytest.mark.parametrize("name", SEEN)
def test_what_only_summaries_show_is_in_their_keys_only(book, name):
    before = {run.chapter: key_of(book, run) for run in runs(book).values()}
    (book / name).parent.mkdir(parents=True, exist_ok=True)
    (book / name).write_text("{}")
    after = {run.chapter: key_of(book, run) for run in runs(book).values()}
    assert [chapter for chapter in before if after[chapter] != before[chapter]] == ["claims"]


@pytest.mark.parametrize("name", ["words.ipynb", "results/words.json"])
def test_what_is_recorded_of_a_chapter_is_in_its_key_for_the_embedded_pair(book, name):
    """Since its page opens with the findings on recorded pairs."""
    before = {run.chapter: key_of(book, run) for run in runs(book).values()}
    file = book / "book" / "recorded" / "other" / name
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    after = {run.chapter: key_of(book, run) for run in runs(book).values()}
    assert [chapter for chapter in before if after[chapter] != before[chapter]] == ["words", "claims"]
    other = runs(book)["words"]._replace(pair="other")
    with_record = key_of(book, other)
    file.unlink()
    assert key_of(book, other) == with_record


def test_naming_a_default_is_not_a_change(book):
    plain = runs(book)["numbers"]
    named = runs(book, chapter="numbers", scale="default", given=[("alpha", "5e-1")])["numbers"]
    assert key_of(book, plain) == key_of(book, named)
    other = runs(book, chapter="numbers", given=[("alpha", "0.25")])["numbers"]
    assert key_of(book, plain) != key_of(book, other)


@pytest.mark.parametrize("spoil", ["error", "half"])
def test_a_page_with_an_error_or_half_a_page_is_not_fresh(book, spoil):
    run = runs(book)["words"]
    path = book / run.page
    page = json.loads(path.read_text())
    page["cells"][-1]["outputs"].append({"output_type": "error", "ename": "E", "evalue": "", "traceback": []})
    path.write_text(json.dumps(page) if spoil == "error" else path.read_text()[:-100])
    assert not is_fresh(book, run, key_of(book, run))


@pytest.mark.parametrize(
    ("choices", "names"),
    [
        ({"chapter": "nmbers"}, ["'nmbers'", "numbers, words, claims"]),
        ({"pair": "pythai"}, ["'pythai'", "tiny", ".yml"]),
        ({"scale": "huge"}, ["'huge'", "smoke, default, paper"]),
        ({"chapter": "words", "given": [("alpha", "1")]}, ["'alpha'", "'words'", "pair, scale, seed"]),
        ({"given": [("alpha", "1")]}, ["'alpha'", "'words'"]),
        ({"given": [("pair", "gpt2")]}, ["--pair"]),
        ({"chapter": "claims", "scale": "smoke"}, ["'scale'", "it has pair"]),
    ],
)
def test_requests_that_make_no_sense_name_what_there_is(bare_book, choices, names):
    with pytest.raises(RequestError) as error:
        runs(bare_book, **choices)
    assert all(name in str(error.value) for name in names)
    assert "\n" not in str(error.value)


def test_a_pair_file_is_a_pair_whose_content_counts(bare_book):
    description = yaml.safe_load((PACKAGE / "data" / "pairs" / "tiny.yml").read_text())
    path = bare_book / "mine.yml"
    path.write_text(yaml.safe_dump(description | {"name": "mine"}))
    run = runs(bare_book, pair=str(path), chapter="words")["words"]
    assert run.page.as_posix() == "book/runs/mine/words.ipynb"
    assert run.passed == {"pair": "mine.yml"}
    path.write_text(yaml.safe_dump(description | {"name": "mine", "title": "Another"}))
    assert key_of(bare_book, runs(bare_book, pair=str(path), chapter="words")["words"]) != key_of(bare_book, run)
    path.write_text(yaml.safe_dump(description))
    with pytest.raises(RequestError, match="'tiny'"):  # its pages would replace those of the embedded pair
        find_pair(bare_book, str(path))
    path.write_text(yaml.safe_dump(description | {"name": 160}))
    with pytest.raises(RequestError, match=r"mine\.yml: name is no text but 160"):
        find_pair(bare_book, str(path))
    path.write_text("name: mine\n")
    with pytest.raises(RequestError, match=r"mine\.yml"):
        find_pair(bare_book, str(path))


NAMED = ["models/a/model.safetensors", "texts/a.jsonl", "rows.jsonl", "sae/layer/sae_weights.safetensors"]


@pytest.mark.parametrize("name", NAMED)
def test_what_a_pair_file_names_on_this_disk_is_in_its_key(bare_book, name):
    description = yaml.safe_load((PACKAGE / "data" / "pairs" / "tiny.yml").read_text())
    for file in (*NAMED, "other.txt"):
        (bare_book / file).parent.mkdir(parents=True, exist_ok=True)
        (bare_book / file).write_text("1")
    own = {
        "name": "mine",
        "a": {"model": "models/a", "layer": 2},
        "text": "texts/*.jsonl",
        "saes": {"a": "sae"},
        "datasets": {"behaviours": {"name": "rows.jsonl"}},
    }
    (bare_book / "mine.yml").write_text(yaml.safe_dump(description | own))

    def key():
        return key_of(bare_book, runs(bare_book, pair=str(bare_book / "mine.yml"), chapter="words")["words"])

    before = key()
    (bare_book / "other.txt").write_text("22")
    assert key() == before
    (bare_book / name).write_text("22")
    larger = key()
    os.utime(bare_book / name, ns=(0, 0))
    assert len({before, larger, key()}) == 3
