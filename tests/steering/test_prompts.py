"""Parallel sentences and prompts, from the world and from data in the published schemas."""

import dataclasses
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hub import child

from stitch_utils.data.embedded.world import parallel_sentences
from stitch_utils.data.pairs import DatasetRef, load_pair
from stitch_utils.models.language_model import load_tokenizer
from stitch_utils.steering import prompts as steering_data
from stitch_utils.steering.verifiers import detect_language
from stitch_utils.steering.prompts import EUROPARL, languages, parallel_pairs, steering_prompts

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
    with pytest.raises(ValueError, match="no sentences in 'en' and 'xx': it has fr, de"):
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
    with pytest.raises(ValueError, match=r"unknown split 'test': expected chosen, evaluated, all"):
        steering_prompts(tiny, 3, tokenizer=plain, split="test")
    with pytest.raises(ValueError, match=where + "the file '.*none.jsonl' does not exist"):
        ask(tmp_path / "none.jsonl")
    with pytest.raises(
        ValueError, match="has no text column 'prompt_without_instruction': its columns are key, prompt"
    ):
        ask(write(tmp_path / "a.jsonl", column="text"))
    (tmp_path / "b.jsonl").write_text("not JSON\n")
    with pytest.raises(ValueError, match="'not JSON': expected one JSON object a line"):
        ask(tmp_path / "b.jsonl")
    with pytest.raises(ValueError, match="no prompts for split 'all' among 1"):
        ask(write(tmp_path / "c.jsonl", ["  "]))
