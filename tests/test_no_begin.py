"""A tokenizer that has no token for the beginning of a text, as Qwen's: what reads texts puts none before them."""

import copy

import pytest
import torch
from toy_families import qwen_tokenizer, save_family
from transformers import AutoModelForCausalLM

from stitch_utils.data.documents import read_documents
from stitch_utils.data.pairs import TextRef
from stitch_utils.data.text import paired_batches, text_rows, token_batches
from stitch_utils.features.attention import heuristic_scores
from stitch_utils.models.heads import heads_of
from stitch_utils.models.language_model import LanguageModel, load_model
from stitch_utils.steering.vectors import language_means, last_token_residuals

TEXTS = ["The cook bakes a cake.", "", "No.", "<|im_start|>user The old baker sells bread and cheese.", "Go <|im_end|>"]
FRENCH = ["Le cuisinier fait un gâteau.", "Rien.", "Non.", "Le vieux boulanger vend du pain.", "Va."]
WORLD = TextRef("world", "no begin")
LAYER = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    save_family("qwen2", folder)
    return folder


@pytest.fixture(scope="module")
def qwen(folder):
    return load_model(str(folder), "cpu")


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("context", [5, None])
def test_a_text_is_a_row_of_its_own_tokens(qwen, context):
    tokenizer, seen = qwen.tokenizer, []
    for batch in text_rows(TEXTS, tokenizer, context=context, batch_size=2):
        for row, mask, owners in zip(*(part.tolist() for part in batch[:3])):
            expected = ids_of(tokenizer, TEXTS[owners[0]])[:context] or [tokenizer.eos_token_id]
            counts = [place > 0 and id not in tokenizer.all_special_ids for place, id in enumerate(expected)]
            padding = len(row) - len(expected)
            assert row == [*expected, *[tokenizer.eos_token_id] * padding]
            assert mask == [*counts, *[False] * padding]
            seen.append(owners[0])
    assert sorted(seen) == list(range(len(TEXTS)))


def test_rows_of_documents_fill_the_context(qwen):
    tokenizer, documents = qwen.tokenizer, read_documents(WORLD)
    for batch in token_batches(WORLD, tokenizer, context=24, batch_size=4, n_documents=8):
        for row, mask, n_bytes, document in zip(*(part.tolist() for part in batch[:2]), batch.n_bytes, documents):
            expected = ids_of(tokenizer, document)[:24]
            assert row == expected + [tokenizer.eos_token_id] * (24 - len(expected))
            assert not mask[0] and mask[1]
            assert n_bytes.sum() == len(tokenizer.decode(expected).encode())


def test_packed_rows_are_the_documents_and_their_ends_alone(qwen):
    tokenizer, joined = qwen.tokenizer, []
    for document in read_documents(TextRef("world", "no begin", take=8)):
        joined += [*ids_of(tokenizer, document), tokenizer.eos_token_id]
    sizes = {"context": 24, "batch_size": 4, "rows": "packed", "n_documents": 8}
    rows = torch.cat([batch.tokens for batch in token_batches(WORLD, tokenizer, **sizes)])
    assert rows.flatten().tolist() == joined[: len(joined) // 24 * 24]


def test_beside_a_tokenizer_that_has_one(qwen):
    """The same tokens with and without one: the first of a row meets none, and all others one place on."""
    other = qwen_tokenizer("<|endoftext|>")
    for batch in paired_batches(WORLD, (qwen.tokenizer, other), context=24, batch_size=4, n_documents=8):
        assert (batch.b.tokens[:, 0] == other.bos_token_id).all()
        assert torch.equal(batch.a.tokens[:, :23], batch.b.tokens[:, 1:])
        assert torch.equal(batch.met_a[:, :23], batch.met_b[:, 1:])
        assert not batch.met_a[:, 0].any() and batch.met_a[:, 1:20].float().mean() > 0.5


def test_scores_of_features_take_the_mean_of_the_first_tokens(random_models):
    tokenizer = copy.deepcopy(random_models[0].tokenizer)
    tokenizer.bos_token = None
    model = LanguageModel(random_models[0].bridge, tokenizer, "no begin")
    sample = next(token_batches(WORLD, tokenizer, context=24, batch_size=5))
    assert len(set(sample.tokens[:, 0].tolist())) > 1
    rows = torch.randn(3, model.d_model, generator=torch.Generator().manual_seed(0))
    heads, scores = heuristic_scores(model, 1, rows, sample)
    streams = model.residuals(sample.tokens, [1, 2])
    for column, (layer, index) in enumerate(heads):
        first = sum(stream[0] for stream in streams[layer]) / len(streams[layer])
        divisor = torch.stack([y.std(correction=0) for y in streams[layer][sample.mask]]).mean()
        expected = rows @ heads_of(model, layer)[index].reader(first, [1, 2, 4, 8, 16]) / divisor
        torch.testing.assert_close(scores[:, column], expected, rtol=1e-3, atol=1e-5)


def test_vectors_are_of_the_texts_own_tokens(qwen, folder):
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")

    def streams(text):
        with torch.no_grad():
            states = reference(torch.tensor([ids_of(qwen.tokenizer, text)]), output_hidden_states=True).hidden_states
        return states[LAYER][0]

    def mean(texts):
        special = qwen.tokenizer.all_special_ids
        rows = [
            stream
            for text in filter(None, texts)
            for place, (id, stream) in enumerate(zip(ids_of(qwen.tokenizer, text), streams(text)))
            if place and id not in special
        ]
        return torch.stack(rows).double().mean(0)

    found = language_means(qwen, LAYER, list(zip(TEXTS, FRENCH)), batch_size=2)
    torch.testing.assert_close(found.source, mean(TEXTS), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.target, mean(FRENCH), rtol=1e-4, atol=1e-5)
    last = last_token_residuals(qwen, LAYER, FRENCH, batch_size=2)
    torch.testing.assert_close(last, torch.stack([streams(text)[-1] for text in FRENCH]), rtol=1e-4, atol=1e-5)
