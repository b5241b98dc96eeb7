"""Parallel sentences, prompts and instructions, from the world and from data in the published schemas."""

import dataclasses
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from hub import child

from stitch_utils.data.embedded.world import parallel_sentences
from stitch_utils.data.pairs import DatasetRef, load_pair
from stitch_utils.models.language_model import load_tokenizer
from stitch_utils.steering import prompts as steering_data
from stitch_utils.steering.prompts import (
    EUROPARL,
    INSTRUCTION_SPLITS,
    instruction_folds,
    instruction_kinds,
    instruction_prompts,
    languages,
    parallel_pairs,
    steering_prompts,
)
from stitch_utils.steering.verifiers import WORLD_INSTRUCTIONS, detect_language

IFEVAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "ifeval" / "ifeval_single_instr_format.jsonl"
TEXTS = [f"Write about the number {number}." for number in range(60)]
CHILD = """
import json, sys
from stitch_utils.data.pairs import load_pair
from stitch_utils.steering.prompts import parallel_pairs

pair, found = load_pair("gemma"), {"errors": {}}
for language in ("fr", "bg"):
    found[language] = parallel_pairs(pair, language, 7)
for language in ("xx", "en") if sys.argv[1:] else ():
    try:
        parallel_pairs(pair, language, 7)
    except ValueError as error:
        found["errors"][language] = str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def tiny():
    return load_pair("tiny")


@pytest.fixture(scope="module")
def tokenizer(random_folders):
    return load_tokenizer(str(random_folders / "a"))


@pytest.fixture
def plain(tokenizer):
    """The tokenizer of a model that does not chat."""
    template, tokenizer.chat_template = tokenizer.chat_template, None
    yield tokenizer
    tokenizer.chat_template = template


def with_prompts(name):
    return dataclasses.replace(load_pair("tiny"), datasets={"prompts": DatasetRef(str(name))})


def write(path, texts=TEXTS, column="prompt_without_instruction"):
    rows = [{"key": index, "prompt": "with all", column: text} for index, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_worlds_sentences_say_the_same_twice(tiny):
    pairs = parallel_pairs(tiny, "fr", 12)
    assert len(pairs) == 12 and pairs[:5] == parallel_pairs(tiny, "fr", 5)
    assert [english for english, _ in pairs] == [english for english, _ in parallel_pairs(tiny, "hu", 12)]
    for side, language in enumerate(("en", "fr")):
        assert detect_language(" ".join(pair[side] for pair in pairs)) == language
    assert pairs != parallel_sentences("another stream", 12, "fr")
    assert "en" not in languages(tiny) and languages(tiny)[0] == "fr"


def test_the_paper_steers_towards_twenty_languages():
    assert languages(load_pair("gemma")) == EUROPARL and len(set(EUROPARL)) == 20


def test_a_language_that_the_world_does_not_speak(tiny):
    with pytest.raises(ValueError, match="unknown language of the embedded world 'xx': expected one of fr, de"):
        parallel_pairs(tiny, "xx", 3)


def test_europarl_comes_from_the_hub_once(hub, home):
    found = child(hub.environment(home), "-c", CHILD, "errors too")
    for language, first in (("fr", "en-fr"), ("bg", "bg-en")):
        assert len(found[language]) == 7 and all(len(set(both)) == 2 for both in found[language])
        assert any(f"/{first}/" in path for _, path, _ in hub.requests)
    assert [english for english, _ in found["fr"]] == [english for english, _ in found["bg"]]
    assert detect_language(" ".join(other for _, other in found["fr"])) == "fr"
    where = "pair 'gemma' (stitch_utils/data/pairs/gemma.yml), datasets: parallel: dataset 'Helsinki-NLP/europarl'"
    for language in ("xx", "en"):
        said = found["errors"][language]
        assert said.startswith(f"{where} has no rows in 'en' and {language!r}") and "\n" not in said
    asked = len(hub.requests)
    again = child(hub.environment(home, HF_HUB_OFFLINE="1"), "-c", CHILD)
    assert {language: again[language] for language in ("fr", "bg")} == {key: found[key] for key in ("fr", "bg")}
    assert len(hub.requests) == asked


@pytest.mark.parametrize("source", ["world", "file"])
def test_the_parts_share_no_prompt_and_none_comes_twice(source, tiny, plain, tmp_path):
    pair = tiny if source == "world" else with_prompts(write(tmp_path / "prompts.jsonl", [*TEXTS, *TEXTS]))
    parts = {split: steering_prompts(pair, 9999, tokenizer=plain, split=split) for split in steering_data.SPLITS}
    chosen, evaluated, both = (parts[split] for split in ("chosen", "evaluated", "all"))
    assert not set(chosen) & set(evaluated) and set(chosen) | set(evaluated) == set(both)
    assert all(len(set(part)) == len(part) for part in parts.values())
    assert 0.1 < len(chosen) / len(both) < 0.4
    assert steering_prompts(pair, 5, tokenizer=plain, split="chosen") == chosen[:5]
    if source == "world":
        assert len(evaluated) >= 163 and all(detect_language(" ".join(part[:20])) == "en" for part in parts.values())
    else:
        assert both == TEXTS


@pytest.mark.parametrize("kind", ["json", "csv", "ndjson.gz", "parquet", "folder", "pattern", "link"])
def test_prompts_in_files_of_any_kind(kind, tiny, plain, tmp_path):
    frame = pd.DataFrame({"key": range(len(TEXTS)), "prompt_without_instruction": TEXTS})
    path = tmp_path / f"prompts.{kind}"
    if kind == "csv":
        frame.to_csv(path)
    elif kind == "parquet":
        frame.to_parquet(path)
    elif kind in ("json", "ndjson.gz"):
        frame.to_json(path, orient="records", lines=kind != "json")
    else:
        (tmp_path / "[1] a").mkdir()
        blob = write(tmp_path / "[1] a" / ("blob" if kind == "link" else "b.jsonl"))
        path = {"folder": blob.parent, "pattern": blob.parent / "*.jsonl", "link": tmp_path / "l.jsonl"}[kind]
        if kind == "link":
            path.symlink_to(blob)
    assert steering_prompts(with_prompts(path), 9999, tokenizer=plain, split="all") == TEXTS


def test_prompts_are_chat_turns_where_the_model_chats(tiny, tokenizer):
    (chat,) = steering_prompts(tiny, 1, tokenizer=tokenizer)
    assert re.fullmatch(r"<\|user\|>[^<]+<\|assistant\|>", chat)
    ids = tokenizer(chat, add_special_tokens=False)["input_ids"]
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|user|>")
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<|assistant|>")


@pytest.mark.skipif(not IFEVAL.is_file(), reason="the published prompts are not here")
def test_the_published_prompts(plain):
    pair = with_prompts(IFEVAL)
    assert len(steering_prompts(pair, 9999, tokenizer=plain, split="all")) == 163
    chosen = steering_prompts(pair, 9999, tokenizer=plain, split="chosen")
    assert 25 <= len(chosen) <= 55


class Served(BaseHTTPRequestHandler):
    """One file of prompts, and nothing else."""

    asked = 0

    def do_GET(self):
        type(self).asked += 1
        good = self.path.endswith("prompts.jsonl")
        self.send_response(200 if good else 404)
        self.end_headers()
        if good:
            row = {"prompt_without_instruction": "Écris quelque chose."}
            self.wfile.write((json.dumps(row, ensure_ascii=False) + "\n").encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Served)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_prompts_behind_a_url_are_fetched_once(address, plain, tmp_path, monkeypatch):
    monkeypatch.setattr(steering_data.constants, "HF_HOME", str(tmp_path))
    Served.asked = 0
    for _ in range(2):
        found = steering_prompts(with_prompts(f"{address}/prompts.jsonl"), 3, tokenizer=plain, split="all")
        assert found == ["Écris quelque chose."] and Served.asked == 1
    with pytest.raises(ValueError, match=r"datasets: prompts: '.*none\.jsonl' cannot be fetched: .*404") as error:
        steering_prompts(with_prompts(f"{address}/none.jsonl"), 3, tokenizer=plain)
    assert "\n" not in str(error.value)


def test_what_is_wrong_with_prompts_is_said(tiny, plain, tmp_path):
    def ask(path, split="all"):
        return steering_prompts(with_prompts(path), 3, tokenizer=plain, split=split)

    where = r"pair 'tiny' \(stitch_utils/data/pairs/tiny\.yml\), datasets: prompts: "
    with pytest.raises(ValueError, match=r"unknown split 'test': expected one of chosen, evaluated, all"):
        steering_prompts(tiny, 3, tokenizer=plain, split="test")
    with pytest.raises(ValueError, match=where + "text file '.*none.jsonl' does not exist"):
        ask(tmp_path / "none.jsonl")
    with pytest.raises(
        ValueError, match="has no text column 'prompt_without_instruction': its columns are key, prompt"
    ):
        ask(write(tmp_path / "a.jsonl", column="text"))
    (tmp_path / "b.jsonl").write_text("not JSON\n")
    with pytest.raises(ValueError, match=r"b\.jsonl' cannot be read \(line 1: 'not JSON' is no JSON\)"):
        ask(tmp_path / "b.jsonl")
    with pytest.raises(ValueError, match="no prompts for split 'all' among 1"):
        ask(write(tmp_path / "c.jsonl", ["  "]))


# ---- instructions ---------------------------------------------------------------------------------------------------


def rows_file(folder, *rows, **changes):
    """A .jsonl file in the schema of the public data."""
    path = folder / "rows.jsonl"
    full = [
        {
            "key": i,
            "prompt": f"Say {i}. {words}",
            "prompt_without_instruction": f"Say {i}.",
            "instruction_id_list": [id],
            "kwargs": [kwargs],
        }
        | changes
        for i, (id, words, kwargs) in enumerate(rows)
    ]
    path.write_text("\n".join(json.dumps(row) for row in full) + "\n\n")
    return path


def reading(pair, path):
    return dataclasses.replace(pair, datasets={"instructions": DatasetRef(str(path))})


def test_the_worlds_prompts_differ_by_the_instruction_alone(pair):
    assert instruction_kinds(pair) == tuple(WORLD_INSTRUCTIONS)
    bare = {}
    for kind in instruction_kinds(pair):
        prompts = instruction_prompts(pair, kind, 20, "evaluated")
        words = {prompt.given.removeprefix(prompt.without) for prompt in prompts}
        assert len(prompts) == 20 and len(words) == 1, "one instruction, in the same words"
        assert words.pop().strip() and prompts[0].instruction_id == WORLD_INSTRUCTIONS[kind]
        bare[kind] = [prompt.without for prompt in prompts]
    assert len({tuple(texts) for texts in bare.values()}) == 1, "the same requests for every instruction"
    assert not instruction_prompts(pair, "upper", 1, "fit")[0].is_followed("Small letters.")
    assert instruction_prompts(pair, "language", 1, "fit")[0].is_followed("Le boulanger goûte le fromage à la maison.")
    closing = instruction_prompts(pair, "closing", 1, "fit")[0]
    assert closing.given.endswith(closing.kwargs["end_phrase"]) and closing.is_followed(closing.given)


def test_the_three_parts_of_the_prompts_share_none(pair):
    found = {split: {p.without for p in instruction_prompts(pair, "json", 1000, split)} for split in INSTRUCTION_SPLITS}
    more = {
        split: {p.without for p in instruction_prompts(pair, "json", 1000, split, choosing=False)}
        for split in INSTRUCTION_SPLITS
    }
    assert more == found | {"fit": found["fit"] | found["chosen"]}, "those for choosing go to the vector"
    assert min(map(len, found.values())) >= 64 and len(found["evaluated"]) >= 163
    assert len(set.union(*found.values())) == sum(map(len, found.values()))


@pytest.mark.parametrize("rows", [5, 9, 33])
def test_each_row_of_a_file_is_evaluated_once_and_apart_from_its_fold(pair, tmp_path, rows):
    ours = reading(pair, rows_file(tmp_path, *[("startend:quotation", "Quote.", {})] * rows))
    folds = range(instruction_folds(ours))
    assert len(folds) == 5 and instruction_folds(pair) == 1

    def texts(split, fold, **more):
        return [p.without for p in instruction_prompts(ours, "quotation", 99, split, fold=fold, **more)]

    evaluated = [text for fold in folds for text in texts("evaluated", fold)]
    assert len(evaluated) == len(set(evaluated)) == rows
    for fold in folds:
        parts = {split: set(texts(split, fold)) for split in INSTRUCTION_SPLITS}
        assert set.union(*parts.values()) == set(evaluated) and sum(map(len, parts.values())) == rows
        assert min(map(len, parts.values())) >= 1 and len(parts["fit"]) >= rows // 2
        assert set(texts("fit", fold, choosing=False)) == parts["fit"] | parts["chosen"]
    with pytest.raises(ValueError, match=r"fold 5 of the prompts of pair .*: expected one of 5, from 0"):
        texts("fit", 5)
    with pytest.raises(ValueError, match=r"fold 1 of the prompts of pair .*: expected one of 1, from 0"):
        instruction_prompts(pair, "json", 1, "fit", fold=1)


def test_rows_of_a_file_with_their_own_keywords(pair, tmp_path):
    bullets = [
        ("detectable_format:number_bullet_lists", "Bullets.", {"num_bullets": i, "language": None}) for i in range(1, 6)
    ]
    spoken = [("language:response_language", "In French.", {"language": "fr"})] * 6
    ignored = [("startend:quotation", "Quote.", {})] * 4 + [("keywords:existence", "Say it.", {"keywords": ["x"]})] * 9
    ours = reading(pair, rows_file(tmp_path, *bullets, *spoken, *ignored))
    assert instruction_kinds(ours) == ("number_bullet_lists", "response_language_fr")
    parts = [p for split in INSTRUCTION_SPLITS for p in instruction_prompts(ours, "number_bullet_lists", 99, split)]
    for_vectors = instruction_prompts(ours, "number_bullet_lists", 99, "fit", choosing=False)
    assert sorted([*for_vectors, *instruction_prompts(ours, "number_bullet_lists", 99, "evaluated")]) == sorted(parts)
    assert sorted(prompt.kwargs["num_bullets"] for prompt in parts) == [1, 2, 3, 4, 5]
    assert len({prompt.without for prompt in parts}) == 5
    for prompt in parts:
        count = prompt.kwargs["num_bullets"]
        assert prompt.is_followed("* a\n" * count) and not prompt.is_followed("* a\n" * (count + 1))
    assert len(instruction_prompts(ours, "response_language_fr", 2, "fit")) == 2


def test_data_that_is_of_no_use(pair, tmp_path):
    with pytest.raises(ValueError, match=r"unknown split 'test': expected one of fit, chosen, evaluated"):
        instruction_prompts(pair, "upper", 1, "test")
    with pytest.raises(ValueError, match=r"unknown instruction 'shout' for pair 'mine': known are upper, lower"):
        instruction_prompts(pair, "shout", 1, "fit")
    path = tmp_path / "plain.jsonl"
    path.write_text(json.dumps({"key": 1, "prompt": "x", "instruction_id_list": [], "kwargs": []}) + "\n")
    with pytest.raises(ValueError, match=r"pair 'mine' .*plain.jsonl' has no column 'prompt_without_instruction': its"):
        instruction_kinds(reading(pair, path))
    few = rows_file(tmp_path, *[("startend:quotation", "Quote.", {})] * 4)
    with pytest.raises(ValueError, match=r"no instruction has 5 prompts that can be verified"):
        instruction_kinds(reading(pair, few))
    with pytest.raises(ValueError, match=r"text file '.*none.jsonl' does not exist"):
        instruction_kinds(reading(pair, tmp_path / "none.jsonl"))


@pytest.mark.skipif(not IFEVAL.is_file(), reason="the prompts of Stolfo et al. are not on this disk")
def test_the_163_prompts(pair):
    ours = reading(pair, IFEVAL)
    kinds = instruction_kinds(ours)
    prompts = {kind: [p for s in INSTRUCTION_SPLITS for p in instruction_prompts(ours, kind, 99, s)] for kind in kinds}
    assert len(kinds) == 12 and "title" in kinds and sum(map(len, prompts.values())) >= 140
    ids = {found[0].instruction_id.split(":")[0] for found in prompts.values()}
    assert ids >= {"change_case", "detectable_format", "startend"}
    for found in prompts.values():
        assert all(prompt.is_followed("") is False for prompt in found)
        assert (
            min(len(instruction_prompts(ours, kind, 99, split)) for kind in kinds for split in INSTRUCTION_SPLITS) >= 1
        )
