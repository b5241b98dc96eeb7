"""Top contexts in one pass against a search through all activations."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from toy_saes import LATENTS, make_sae
from transformers.convert_slow_tokenizer import bytes_to_unicode

from stitch_utils.data.pairs import TextRef
from stitch_utils.data.text import TokenBatch, token_batches
from stitch_utils.features import contexts
from stitch_utils.features.contexts import highlighted, top_contexts

LAYER = 2


@pytest.fixture
def model(random_models):
    return random_models[1]


@pytest.fixture
def sae(model):
    sae = make_sae("topk", model.d_model, dtype="float32", apply_b_dec_to_input=False)
    with torch.no_grad():
        sae.b_enc[5] = -1e6
        sae.b_enc[6:40] += 20  # random streams have a large mean, so that few features would fire
    return sae


def batches_of(model, batch_size, rows="packed"):
    """Rows that begin in the middle, documents with no token between them, some tokens in their middle special."""
    sizes = {"context": 26, "n_tokens": 26 * (40 if rows == "packed" else 20)}
    for batch in token_batches(
        TextRef("world", "contexts tests"), model.tokenizer, batch_size=batch_size, rows=rows, **sizes
    ):
        tokens, mask, documents = (part[:, 1:] for part in batch[:3])
        yield TokenBatch(tokens, mask & (tokens % 19 > 0), 2 * documents + (torch.arange(25) // 5 == 2))


def naive(model, sae, batches, n, before, after):
    """{feature: [(tokens, activations)]}, from all activations of all documents."""
    found = {feature: {} for feature in range(LATENTS)}
    for batch in batches:
        with torch.no_grad():
            latents = sae.encode(model.residuals(batch.tokens, [LAYER])[LAYER])
        for row, place, feature in itertools.product(*map(range, latents.shape)):
            value, document = latents[row, place, feature].item(), batch.documents[row, place].item()
            if not batch.mask[row, place] or value <= found[feature].get(document, (0,))[0]:
                continue

            def belongs(other, row=row, document=document, batch=batch):
                inside = 0 <= other < batch.tokens.shape[1]
                return inside and bool(batch.mask[row, other]) and batch.documents[row, other].item() == document

            start, end = place, place
            while start > place - before and belongs(start - 1):
                start -= 1
            while end < place + after and belongs(end + 1):
                end += 1
            stretch = slice(start, end + 1)
            ids, activations = batch.tokens[row, stretch].tolist(), latents[row, stretch, feature].tolist()
            found[feature][document] = (value, *in_characters(model.tokenizer, ids, activations))
    lists = {}
    for feature, documents in found.items():
        order = sorted(documents, key=lambda document: (-documents[document][0], document))[:n]
        lists[feature] = [documents[document][1:] for document in order]
    return lists


def in_characters(tokenizer, ids, activations):
    """Texts and largest activations of tokens that are joined wherever a character goes on."""
    bytes_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    written = [bytes(bytes_of[letter] for letter in token) for token in tokenizer.convert_ids_to_tokens(ids)]
    pieces, start = [], 0
    while start < len(ids):
        end = start + 1
        while True:  # the shortest run that is UTF-8; where there is none, one token
            try:
                text = b"".join(written[start:end]).decode()
                break
            except UnicodeDecodeError:
                end += 1
                if end > len(ids):
                    end, text = start + 1, tokenizer.decode([ids[start]])
                    break
        pieces.append((text, max(activations[start:end])))
        start = end
    texts, largest = map(list, zip(*pieces))
    return texts, largest


def same(found, expected):
    assert found.keys() == expected.keys()
    for feature, ours in found.items():
        for context, (tokens, activations) in zip(ours, expected[feature], strict=True):
            assert [token for token, _ in context] == tokens
            assert [value for _, value in context] == pytest.approx(activations, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("rows", ["packed", "document"])
def test_the_contexts_of_one_pass_are_those_of_a_full_search(model, sae, rows, monkeypatch):
    expected = naive(model, sae, batches_of(model, 64, rows), 3, 4, 2)
    lengths = [len(contexts) for contexts in expected.values()]
    assert (
        lengths.count(3) > 20 and 0 in lengths and {len(one[0]) for some in expected.values() for one in some} > {3, 7}
    )
    monkeypatch.setattr(contexts, "BEFORE", 4)
    monkeypatch.setattr(contexts, "AFTER", 2)
    same(top_contexts(model, LAYER, sae, batches_of(model, 64, rows), n=3), expected)
    monkeypatch.setattr(contexts, "TOKENS_AT_ONCE", 50)
    found = top_contexts(model, LAYER, sae, batches_of(model, 3, rows), n=3)
    same(found, expected)
    assert found[5] == []


def test_a_context_is_of_the_tokens_as_they_are_written(model, sae, monkeypatch):
    monkeypatch.setattr(contexts, "BEFORE", 30)
    monkeypatch.setattr(contexts, "AFTER", 0)
    found = top_contexts(model, LAYER, sae, batches_of(model, 4, "document"), n=2)
    assert len(found[10]) == 2 and found[10][0][-1][1] >= found[10][1][-1][1] > 0
    for context in found[10]:
        assert context[-1][1] == max(value for _, value in context)


def test_the_bytes_of_a_character_are_one_piece(model, monkeypatch):
    """Whole and cut at either end, alone and beside others; the peak may be any of its tokens."""
    tokenizer = model.tokenizer
    ids = tokenizer("a TÜLMÜ €€ 東京 é", add_special_tokens=False)["input_ids"]
    broken = ["\ufffd" in tokenizer.decode([token]) for token in ids]
    assert sum(broken) > 8 and not all(broken)
    for start, peak in itertools.product((0, broken.index(True) + 1), range(3)):
        some = ids[start:] if start else ids
        place = min(len(some) - 1, broken[start:].index(True) + peak)
        activations = np.random.default_rng(peak).random(len(some)).astype(np.float32)
        activations[place] = 2
        width, before = 2 * len(some) + 1, len(some)
        tokens, values = np.full((1, width), contexts.NOTHING), np.zeros((1, width), np.float32)
        where = slice(before - place, before - place + len(some))
        tokens[0, where], values[0, where] = some, activations
        monkeypatch.setattr(contexts, "BEFORE", before)
        row = {"feature": 7, "tokens": tokens[0], "activations": values[0]}
        ((_, context),) = contexts._contexts(pd.DataFrame([row]), tokenizer)
        texts, largest = in_characters(tokenizer, some, activations.tolist())
        assert [text for text, _ in context] == texts
        assert [value for _, value in context] == largest and max(largest) == 2
        assert ("\ufffd" in "".join(texts)) == (start > 0)
        assert start or "".join(texts) == tokenizer.decode(ids)


def test_highlights_are_as_strong_as_activations():
    shown = highlighted(((" <b>", 0.5), (" a", 0.0), ("\n", 2.0)), rgb="1, 2, 3")
    assert '<span style="background: rgba(1, 2, 3, 0.25)"> &lt;b&gt;</span> a<span' in shown
    assert 'rgba(1, 2, 3, 1.00)">↵</span>' in shown and shown.count("background") == 2


def test_what_has_no_contexts(model, sae, random_models):
    batches = list(batches_of(model, 8))
    with pytest.raises(ValueError, match="the SAE reads 48 dimensions: expected 32"):
        top_contexts(random_models[0], 1, sae, batches, n=1)
    with pytest.raises(ValueError, match="n must be positive: got 0"):
        top_contexts(random_models[1], 1, sae, batches, n=0)
    nothing = [batch._replace(mask=torch.zeros_like(batch.mask)) for batch in batches]
    assert top_contexts(model, LAYER, sae, nothing, n=1) == {feature: [] for feature in range(LATENTS)}
