"""Rows of tokens from every source; special tokens; what happens to text that is missing or too short."""

import json

import pandas as pd
import pytest
import torch

from stitch_utils.data.pairs import TextRef
from stitch_utils.data.text import read_documents, token_batches


@pytest.fixture(scope="module")
def tokenizer(random_models):
    return random_models[0].tokenizer


def rows_of(text, tokenizer, **options):
    batches = list(token_batches(text, tokenizer, **{"context": 16, "batch_size": 3} | options))
    return [torch.cat(part) for part in list(zip(*batches))[:3]]


def test_packed_rows_hold_the_text_in_order(tokenizer):
    text = TextRef("world", "packing", take=5)
    tokens, _, owners = rows_of(text, tokenizer, rows="packed")
    expected, whose = [], []
    for index, document in enumerate(read_documents(text)):
        ids = [*tokenizer.encode(document, add_special_tokens=False), tokenizer.eos_token_id]
        expected += ids
        whose += [index] * len(ids)
    length = tokens[:, 1:].numel()
    assert (tokens[:, 0] == tokenizer.bos_token_id).all()
    assert tokens[:, 1:].flatten().tolist() == expected[:length] and len(expected) - length < 15
    assert owners[:, 1:].flatten().tolist() == whose[:length]


def test_document_rows_are_cut_or_padded(tokenizer, tmp_path):
    (tmp_path / "two.txt").write_text("cake\n\n" + "the cook bakes the cake " * 20)
    tokens, mask, owners = rows_of(TextRef("files", str(tmp_path / "two.txt")), tokenizer)
    short = tokenizer.encode("cake", add_special_tokens=False)
    assert tokens.shape == (2, 16) and tokens[0].tolist() == [0, *short] + [0] * (15 - len(short))
    assert mask[0].sum() == len(short) and mask[1].sum() == 15
    assert owners[:, 5].tolist() == [0, 1]


def test_special_tokens_are_masked_wherever_they_stand(tokenizer, tmp_path):
    (tmp_path / "chat.txt").write_text("<|user|>Describe the cake.<|assistant|>The cake is big.<|end|>")
    tokens, mask, _ = rows_of(TextRef("files", str(tmp_path / "chat.txt")), tokenizer, context=40)
    special = [tokenizer.convert_tokens_to_ids(t) for t in ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>")]
    assert not mask[torch.isin(tokens, torch.tensor(special))].any()
    assert mask.sum() == len(tokenizer.encode("Describe the cake.The cake is big.", add_special_tokens=False))


def test_limits(tokenizer):
    text = TextRef("world", "limits")
    assert len(rows_of(text, tokenizer, rows="packed", n_tokens=100)[0]) == 7  # 7 rows of 16 are the first to hold 100
    assert len(rows_of(text, tokenizer, n_documents=4)[0]) == 4


def test_skip_and_take_cut_out_a_part_of_the_stream():
    whole = list(read_documents(TextRef("world", "cut", take=10)))
    assert list(read_documents(TextRef("world", "cut", skip=3, take=4))) == whole[3:7]


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_files_of_every_kind(kind, tmp_path):
    path = tmp_path / f"text.{kind}"
    documents = ["The cook bakes the cake.", "Sie sieht den Fisch.", "Ça va très bien."]
    if kind == "txt":
        path.write_text("\n\n".join(documents), encoding="utf-8")
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps({"body": text, "n": 1}) for text in documents), encoding="utf-8")
    else:
        pd.DataFrame({"body": documents, "n": 1}).to_parquet(path)
    assert list(read_documents(TextRef("files", str(path), column="body"))) == documents


def test_missing_empty_and_unreadable_text(tmp_path):
    def read(name, **options):
        return list(read_documents(TextRef("files", str(tmp_path / name), **options)))

    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text("\n\n  \n\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "some.jsonl").write_text('{"body": "text"}\n')
    (tmp_path / "some.docx").write_text("hello")
    for name in ("empty.txt", "blank.txt", "empty.jsonl"):
        with pytest.raises(ValueError, match=f"no documents in files source .*{name}.*expected at least one"):
            read(name)
    with pytest.raises(ValueError, match=r"none\.txt' does not exist"):
        read("none.txt")
    with pytest.raises(ValueError, match=r"some\.docx' is not of a known kind: expected \.txt, \.md, .* or \.parquet"):
        read("some.docx")
    with pytest.raises(ValueError, match="no text column 'text': its columns are body"):
        read("some.jsonl")
    with pytest.raises(ValueError, match="after skipping 9"):
        read("some.jsonl", column="body", skip=9)
    with pytest.raises(ValueError, match="unknown text source 'web'"):
        TextRef("web", "x")


@pytest.mark.parametrize("lines", ["{'text': 'of Python'}\n", "no JSON at all\n"])
def test_a_file_that_is_not_of_its_kind(tmp_path, lines):
    (tmp_path / "odd.jsonl").write_text(lines)
    with pytest.raises(ValueError, match=r"odd\.jsonl' cannot be read .*: expected one object such as .* a line"):
        list(read_documents(TextRef("files", str(tmp_path / "odd.jsonl"))))


def test_text_shorter_than_one_context(tokenizer, tmp_path):
    (tmp_path / "short.txt").write_text("The cook.")
    with pytest.raises(ValueError, match=r"short\.txt' is shorter than one context: \d+ tokens, expected at least 15"):
        rows_of(TextRef("files", str(tmp_path / "short.txt")), tokenizer, rows="packed")
    with pytest.raises(ValueError, match="n_tokens=10 is less than one context of 16"):
        rows_of(TextRef("world", "x"), tokenizer, n_tokens=10)
