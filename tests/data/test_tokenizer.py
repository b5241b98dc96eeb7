"""Tokenizers that people bring: texts are read as the model saw them in training, or one line says what is missing."""

import copy
import json

import pytest
import torch
from hub.vocabularies import CHATML
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from toy_families import qwen_tokenizer, save_family
from transformers import AutoConfig, PreTrainedTokenizerFast

from stitch_utils.data import tokenizer as tokenizers
from stitch_utils.data.text import text_rows
from stitch_utils.data.tokenizer import as_trained, begin_and_end, explaining, special_ids
from stitch_utils.models.generation import encoded, generate_texts
from stitch_utils.models.language_model import LanguageModel, load_model, load_tokenizer

TEXT = "Well... the cook waits. He pays 3.50, and more.\nGo! The end."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    save_family("llama", folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load_model(str(folder), "cpu")


def ids_of(tokenizer, text=TEXT):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def with_roles(**roles):
    tokenizer = qwen_tokenizer("<|endoftext|>")
    for role, token in roles.items():
        setattr(tokenizer, role, token)
    return tokenizer


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "qwen2", "gpt_neox", "mistral"])
@pytest.mark.parametrize("beside", [{}, {"eos_token": "<|end|>", "pad_token": "<|pad|>"}])
def test_a_folder_without_a_tokenizer(tmp_path, kind, beside):
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    if beside:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(beside))
    with pytest.raises(
        ValueError, match=r"has no tokenizer.*: expected tokenizer\.json, or .*tokenizer\.model"
    ) as error:
        load_tokenizer(str(tmp_path))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_vocabulary_without_its_merges(tmp_path):
    AutoConfig.for_model("gpt2").save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}))
    with pytest.raises(ValueError, match=r"vocab\.json and no merges\.txt"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("installed", "raised", "message"),
    [
        (("google.protobuf", "tiktoken"), ValueError("(1) a file\n(2) sentencepiece or tiktoken"), "sentencepiece"),
        (("sentencepiece", "google.protobuf"), ImportError("`tiktoken` is required\nto read a file"), "tiktoken"),
        (
            ("sentencepiece", "tiktoken"),
            ImportError("SentencePieceExtractor requires the protobuf library"),
            "protobuf",
        ),
    ],
)
def test_a_package_that_is_missing(tmp_path, monkeypatch, installed, raised, message):
    (tmp_path / "tokenizer.model").write_bytes(b"pieces")
    monkeypatch.setattr(tokenizers, "_is_installed", lambda module: module in installed)
    expected = (
        rf"\(tokenizer\.model\) cannot be read without the package {message}: install it \(`pip install {message}"
    )
    with pytest.raises(ValueError, match=expected) as error, explaining("mine", str(tmp_path)):
        raise raised
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_a_tokenizer_that_cannot_be_read(folder, tmp_path, name):
    AutoConfig.for_model("llama").save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(b'{"model": 3}')
    with pytest.raises(ValueError, match=r"the tokenizer of .* cannot be (read|loaded)") as error:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_neither_begin_nor_end(model):
    bare = with_roles(bos_token=None, eos_token=None)
    with pytest.raises(ValueError, match="no token for the beginning or the end of a text: expected eos_token or bos_"):
        begin_and_end(bare)
    with pytest.raises(ValueError, match="no token for the beginning or the end of a text"):
        generate_texts(LanguageModel(model.bridge, bare, "bare"), ["Go."], max_new_tokens=2)


def test_no_end_is_no_hindrance(model):
    begun = with_roles(eos_token=None)
    assert begin_and_end(begun) == (0, 0)
    found = generate_texts(LanguageModel(model.bridge, begun, "begun"), ["Go.", "The cook bakes."], max_new_tokens=3)
    assert len(found) == 2 and all(response.nll > 0 for response in found)


@pytest.mark.parametrize(
    "roles", [{"pad_token": "."}, {"pad_token": "!"}, {"eos_token": "e"}, {"unk_token": ",", "pad_token": "o"}, {}]
)
def test_ordinary_tokens_stay_ordinary(folder, tmp_path, roles):
    plain, changed = qwen_tokenizer("<|endoftext|>"), with_roles(**roles)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    changed.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert ids_of(loaded) == ids_of(plain)
    assert loaded.decode(ids_of(loaded), skip_special_tokens=True) == TEXT
    named = {"<|endoftext|>", "<|im_start|>"} | ({"<|im_end|>"} if "eos_token" not in roles else set())
    for tokenizer in (loaded, changed):
        assert special_ids(tokenizer) == sorted(plain.convert_tokens_to_ids([*named]))
    (batch,) = text_rows([TEXT], loaded, context=None, batch_size=1)
    assert batch.mask.tolist() == [[False, *[True] * len(ids_of(plain))]]


def test_a_word_list_with_tokens_of_both_kinds():
    words = {word: id for id, word in enumerate(["<pad>", "[UNK]", ".", "the", "cook"])}
    backend = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="[UNK]", eos_token=".")
    assert special_ids(tokenizer) == [0, 1]
    assert ids_of(as_trained(tokenizer), "the cook .") == [3, 4, 2]


@pytest.mark.parametrize(
    ("begin", "template", "expected"),
    [
        ("<|im_end|>", CHATML, None),
        ("<|im_end|>", None, "<|im_end|>"),
        ("<|im_start|>", CHATML, "<|im_start|>"),
        ("<|endoftext|>", CHATML, "<|endoftext|>"),
        ("<|im_end|>", "{{ messages[0]['content'] }}{{ eos_token }}", "<|im_end|>"),
        ("<|im_end|>", "{{ raise_exception('no') }}", "<|im_end|>"),
    ],
)
def test_a_token_that_ends_turns_begins_no_text(model, begin, template, expected):
    tokenizer = with_roles(bos_token=begin)
    tokenizer.chat_template = template
    found = begin_and_end(tokenizer)[0]
    assert found == (None if expected is None else tokenizer.convert_tokens_to_ids(expected))
    if template == CHATML:
        turn = "<|im_start|>user\nGo.<|im_end|>\n<|im_start|>assistant\n"
        in_front = ids_of(tokenizer, "<|endoftext|>") if begin == "<|endoftext|>" else []
        assert encoded(LanguageModel(model.bridge, tokenizer, "chat"), turn, 1) == in_front + ids_of(tokenizer, turn)


def test_tokens_without_an_embedding(model):
    more = qwen_tokenizer("<|endoftext|>")
    more.add_tokens(["gateau"])
    with pytest.raises(
        ValueError, match=r"the tokenizer of 'mine' has tokens up to 384 \('gateau'\), and its model embed"
    ):
        LanguageModel(model.bridge, more, "mine")
    with pytest.raises(ValueError, match=r"tokens up to 399 .* embeddings for 384: expected the tokenizer that"):
        LanguageModel(model.bridge, qwen_tokenizer("<|endoftext|>", size=400), "mine")


def test_a_special_token_without_an_embedding_matters_where_text_holds_it(model):
    more = copy.deepcopy(model.tokenizer)
    more.add_special_tokens({"pad_token": "[PAD]"})
    mine = LanguageModel(model.bridge, more, "mine")
    rows = [torch.tensor([ids_of(more, text)]) for text in ("Go. The end.", "Go. [PAD] The end.")]
    assert mine.cross_entropy(rows[0]).isfinite().all()
    for read in (mine.logits, mine.cross_entropy, lambda row: mine.residuals(row, [1])):
        with pytest.raises(
            ValueError, match=r"the text holds the token 384 \('\[PAD\]'\), and 'mine' has embeddings for 384"
        ):
            read(rows[1])
