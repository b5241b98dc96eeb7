"""Tokens of two tokenizers meet where both have read the same characters: any text, three kinds of tokenizers."""

import itertools
import json
import re
from functools import cache

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from stitch_utils.data.alignment import encode, meeting, reader_of_both
from stitch_utils.data.pairs import TextRef
from stitch_utils.data.text import paired_batches, token_batches
from stitch_utils.models.language_model import load_tokenizer

CORPUS = [
    "The cat sat on the mat, and the cat ate the rat.\n\nThen it slept.",
    "def read(path):\n    return path.read_text()  # all of it",
    "Größe, naïve, Ærø: żółć. Ὀδυσσεύς. Война и мир. 東京 東京都。 👩‍👩‍👧 é ﬁ ½ ℌ",
]
WORDS = ["the", "cat", " ", "  ", "\n\n", "\t", ".", ".\n", "<end>", "A", "ß", "İ", "é", "e\u0301"]
WORDS += ["ﬁ", "ℌ", "½", "€", "𝄞", "👩‍👩‍👧", "東京", "\u200d", "\x00"]
TEXTS = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(WORDS), max_size=20).map("".join))


def wrapped(tokenizer):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<end>", eos_token="<end>", unk_token="<unk>")


@cache
def byte_level(size=400, trims=True):
    """As GPT-2 and Llama 3: no character is unknown, and many take several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=trims)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=["<end>", "<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trims)
    return wrapped(tokenizer)


@cache
def sentence_piece(size=120):
    """As Gemma: spaces become visible, and what is unknown is written in bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    bytes_of = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=size + 258, special_tokens=["<end>", "<unk>", *bytes_of], show_progress=False
    )
    # `limit_alphabet` breaks ties between rare characters by chance; so the text itself lacks those that are unknown.
    known = sorted(set("".join(CORPUS)))[:60]
    tokenizer.train_from_iterator(["".join(filter(known.__contains__, text)) for text in CORPUS] * 3, trainer)
    said = json.loads(tokenizer.to_str())
    said["added_tokens"] = said["added_tokens"][:2]
    return wrapped(Tokenizer.from_str(json.dumps(said)))


@cache
def word_piece(size=200):
    """As BERT: lower case, no accents, no white space, unknown words."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.BertNormalizer()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=["<end>", "<unk>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return wrapped(tokenizer)


KINDS = {
    "bytes": byte_level,
    "bytes, short": lambda: byte_level(300),
    "bytes, lines": lambda: byte_level(500, trims=False),
    "sentence piece": sentence_piece,
    "word piece": word_piece,
}
BOTH = list(itertools.combinations(KINDS, 2))


@pytest.mark.parametrize("kinds", BOTH, ids=" with ".join)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
@example("a\u0301 .\n\n  ﬁ€𝄞 x")
def test_pairs_end_at_one_character_grow_and_are_complete(kinds, text):
    a, b = (encode(KINDS[kind](), [text])[0] for kind in kinds)
    pairs, ends_a, ends_b = meeting(a, b).tolist(), a.ends.tolist(), b.ends.tolist()
    assert all(ends_a[i] == ends_b[j] > 0 for i, j in pairs)
    assert all(one[0] < other[0] and one[1] < other[1] for one, other in itertools.pairwise(pairs))
    for i, j in pairs:  # no later token reads more of the same character
        assert ends_a[i] not in ends_a[i + 1 :] and ends_b[j] not in ends_b[j + 1 :]
    assert {ends_a[i] for i, _ in pairs} == (set(ends_a) & set(ends_b)) - {0}


def bytes_of(tokenizer, ids):
    """The bytes that tokens stand for, by the alphabet of GPT-2 or by SentencePiece's fallback, written out."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    alphabet = {chr(byte): byte for byte in shown} | {chr(256 + n): byte for n, byte in enumerate(hidden)}
    found = b""
    for token in tokenizer.convert_ids_to_tokens(ids):
        if token == "<end>":
            found += token.encode()
        elif tokenizer.backend_tokenizer.normalizer is None:
            found += bytes(alphabet[letter] for letter in token)
        else:
            byte = re.fullmatch("<0x(..)>", token)
            found += bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()
    return found


@pytest.mark.parametrize("kinds", [both for both in BOTH if "word piece" not in both], ids=" with ".join)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS.map(lambda text: text.replace("▁", "")))
@example("€𝄞 a.\n\n  x👩‍👩‍👧")
def test_both_have_read_the_same_bytes_and_no_such_place_is_missing(kinds, text):
    tokenizers = [KINDS[kind]() for kind in kinds]
    a, b = (encode(tokenizer, [text])[0] for tokenizer in tokenizers)
    pairs, ids_a, ids_b = meeting(a, b).tolist(), a.ids.tolist(), b.ids.tolist()
    ends_a = a.ends
    for i, j in pairs:
        read = text[: ends_a[i]].encode()
        assert bytes_of(tokenizers[0], ids_a[: i + 1]) == bytes_of(tokenizers[1], ids_b[: j + 1]) == read
    after_a, after_b = (
        {len(bytes_of(tokenizer, ids[: n + 1])) for n in range(len(ids))}
        for tokenizer, ids in zip(tokenizers, (ids_a, ids_b))
    )
    for one in (a, b):  # a token that ends inside a character may count its bytes sooner or later than it reads them
        assert one.n_bytes.sum() == len(text.encode()) if len(one.ids) else not text
        assert all(one.n_bytes[: n + 1].sum() == len(text[:end].encode()) for n, end in enumerate(one.ends) if end)
    characters = {len(text[:n].encode()) for n in range(1, len(text) + 1)}
    assert {len(text[: ends_a[i]].encode()) for i, _ in pairs} == after_a & after_b & characters


def saved(texts, path):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return TextRef("files", str(path))


def flat(batches):
    return [torch.cat(parts) for parts in zip(*batches)]


@pytest.mark.parametrize("rows", ["document", "packed"])
def test_one_tokenizer_gives_what_it_gave_alone(rows, tmp_path):
    text, tokenizer = saved(CORPUS * 4, tmp_path / "t.jsonl"), load_tokenizer("embedded:tiny-a")
    chat = load_tokenizer("embedded:tiny-a")
    chat.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    sizes = {"context": 16, "batch_size": 5, "rows": rows, "n_tokens": 100}
    alone = flat(token_batches(text, tokenizer, **sizes))
    assert reader_of_both(tokenizer, chat) is reader_of_both(chat, tokenizer) is tokenizer
    assert reader_of_both(tokenizer, byte_level()) is None
    for other in (tokenizer, load_tokenizer("embedded:tiny-b"), chat):
        batches = list(paired_batches(text, (tokenizer, other), **sizes))
        for side in "ab":
            assert all(map(torch.equal, flat(getattr(batch, side) for batch in batches), alone))
            assert all(torch.equal(getattr(batch, f"met_{side}"), getattr(batch, side).mask) for batch in batches)


def own_text(tokenizer, tokens):
    """What a row says after its begin-of-text, without padding."""
    return bytes_of(tokenizer, [id for id in tokens[1:].tolist() if id != tokenizer.eos_token_id])


@pytest.mark.parametrize("context", [8, 12, 40])
def test_rows_of_both_models_read_the_same_characters(context, tmp_path):
    text, tokenizers = saved(CORPUS, tmp_path / "t.jsonl"), (byte_level(), sentence_piece())
    found = [*paired_batches(text, tokenizers, context=context, batch_size=2)]
    longest = [*paired_batches(text, tokenizers, context=1000, batch_size=2)]
    a, b = flat(batch.a for batch in found), flat(batch.b for batch in found)
    assert a[0].shape == b[0].shape == (3, context) and a[2][:, 0].tolist() == [0, 1, 2]
    for number, whole in enumerate(CORPUS):
        read = own_text(tokenizers[0], a[0][number])
        assert read == own_text(tokenizers[1], b[0][number]) and whole.encode().startswith(read) and read
    met = [flat((getattr(batch, name),) for batch in found)[0] for name in ("met_a", "met_b")]
    assert torch.equal(met[0].sum(1), met[1].sum(1)) and (met[0] <= a[1]).all() and (met[1] <= b[1]).all()
    # What is met in a row that is cut is what is met first in one that is not.
    for number in range(3):
        all_met = flat((batch.met_a,) for batch in longest)[0][number].nonzero()[:, 0].tolist()
        here = met[0][number].nonzero()[:, 0].tolist()
        assert here == all_met[: len(here)] and len(here) >= 2


def test_packed_rows_are_the_whole_text_cut_where_both_may_be(tmp_path):
    text, tokenizers = saved(CORPUS * 3, tmp_path / "t.jsonl"), (byte_level(), word_piece())
    batches = [*paired_batches(text, tokenizers, context=24, batch_size=3, rows="packed")]
    a = flat(batch.a for batch in batches)
    read = b"".join(bytes_of(tokenizers[0], row[mask].tolist()) for row, mask in zip(a[0], a[1]))
    assert "".join(CORPUS * 3).encode().startswith(read) and len(read) > 300
    assert (a[0][:, 0] == tokenizers[0].bos_token_id).all() and (a[2].diff(dim=1) >= 0).all() and a[2].max() > 3
    for batch in batches:
        assert torch.equal(batch.met_a.sum(1), batch.met_b.sum(1)) and batch.met_a.sum(1).min() > 0
        parts = [*batch.split(2)]
        assert [len(part.a.tokens) for part in parts] == [
            min(2, len(batch.a.tokens) - 2 * n) for n in range(len(parts))
        ]


def test_tokens_that_are_special_to_one_side_are_not_met(tmp_path):
    text, tokenizers = saved(["the cat <end> sat"], tmp_path / "t.jsonl"), (byte_level(), sentence_piece())
    (batch,) = paired_batches(text, tokenizers, context=30, batch_size=1)
    special = batch.a.tokens[0] == tokenizers[0].eos_token_id
    assert special[1:14].any() and not batch.met_a[0][special].any() and not batch.a.mask[0][special].any()


def test_what_cannot_be_aligned_is_refused(tmp_path, monkeypatch):
    text = saved(CORPUS, tmp_path / "t.jsonl")

    class Slow:
        is_fast, name_or_path = False, "mine/slow"

        def __len__(self):
            return 1

    with pytest.raises(ValueError, match="the tokenizer of 'mine/slow' does not say where its tokens lie"):
        encode(Slow(), ["a"])

    class Wrong:
        def __getattr__(self, name):
            return lambda *given, **named: [type("Coded", (), {"ids": [1, 2], "offsets": [(0, 3), (1, 2)]})]

    monkeypatch.setattr("stitch_utils.data.alignment.Tokenizer", type("T", (), {"from_str": lambda said: Wrong()}))
    with pytest.raises(ValueError, match="says wrongly where its tokens lie in 'abc'"):
        encode(byte_level.__wrapped__(), ["abc"])
    monkeypatch.undo()
    tokenizers = byte_level(), word_piece()
    with pytest.raises(ValueError, match="n_tokens=5 is less than one context of 10 tokens"):
        next(paired_batches(text, tokenizers, context=10, batch_size=1, n_tokens=5))
    with pytest.raises(ValueError, match=r"is shorter than one context: \d+ tokens, expected at least 9999"):
        next(paired_batches(text, tokenizers, context=10_000, batch_size=1, rows="packed"))
    far = saved(["a" + " " * 300 + "b"], tmp_path / "far.jsonl")
    with pytest.raises(ValueError, match="no two tokens meet within 9 tokens"):
        list(paired_batches(far, tokenizers, context=10, batch_size=1, rows="packed"))
