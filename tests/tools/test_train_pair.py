"""The script that trained the embedded pair, on a tiny scale."""

import functools
import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import tools.train_pair
from stitch_utils.data.embedded.world import (
    ASSISTANT,
    END,
    USER,
    documents,
)
from tools.train_pair import TrainingConfig, pack, train_model, train_pair, train_tokenizer


@functools.cache
def stream():
    """The first 3000 documents of one seed."""
    return tuple(documents("test", stop=3000))


MICRO = tuple(
    TrainingConfig(
        name,
        seed=seed,
        hidden_size=16,
        n_layers=2,
        n_heads=2,
        learning_rate=1e-2,
        tokens=15 * 8 * 64,
        context=64,
        batch_size=8,
        warmup_steps=3,
        dropout=0.1,
    )
    for name, seed in (("micro-a", 1), ("micro-b", 2))
)
SCALE = {"n_documents": 240, "n_held_out": 20, "vocabulary": 512}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs of the same training: (folder, report) of each."""
    folders = [tmp_path_factory.mktemp(f"run{run}") for run in range(2)]
    return [(folder, train_pair(folder, MICRO, **SCALE)) for folder in folders]


@pytest.fixture(scope="module")
def tokenizer(trained):
    return AutoTokenizer.from_pretrained(trained[0][0] / "micro-a")


def test_training_twice_gives_the_same_models(trained):
    (first, report), (second, again) = trained
    for config in MICRO:
        ours, theirs = report["models"][config.name], again["models"][config.name]
        assert ours["held_out_loss"] == pytest.approx(theirs["held_out_loss"], abs=5e-4)
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=5e-4)
        weights, repeated = (load_file(folder / config.name / "model.safetensors") for folder in (first, second))
        assert weights.keys() == repeated.keys()
        assert all(torch.allclose(weights[key], repeated[key], atol=1e-3) for key in weights)
        assert {weight.dtype for weight in weights.values()} == {torch.float16}
    a, b = (load_file(first / config.name / "model.safetensors")["gpt_neox.embed_in.weight"] for config in MICRO)
    assert not torch.allclose(a, b, atol=1e-2)


def test_training_reports_what_it_did(trained):
    folder, report = trained[0]
    assert json.loads((folder / "training.json").read_text()) == report
    assert report["documents"] == 240 and report["vocabulary"] == 512
    assert set(report["models"]) == {"micro-a", "micro-b"}
    for config in MICRO:
        model = report["models"][config.name]
        assert model["steps"] == config.steps == 15
        assert model["seed"] == config.seed and model["hidden_size"] == 16
        assert model["held_out_loss"] < math.log(512) - 0.3  # learnt more than the size of the vocabulary
        assert model["text_tokens"] % 63 == 0


def test_saved_models_load_and_have_the_reported_loss(trained, tokenizer):
    folder, report = trained[0]
    held_out = [document.text for document in documents("held-out:0", stop=20)]
    rows = torch.from_numpy(pack(tokenizer, held_out, 64).astype(np.int64))
    for config in MICRO:
        model = AutoModelForCausalLM.from_pretrained(folder / config.name, dtype=torch.float32).eval()
        assert model.config.model_type == "gpt_neox" and model.config.num_hidden_layers == 2
        assert sum(p.numel() for p in model.parameters()) == report["models"][config.name]["parameters"]
        with torch.no_grad():
            log_probabilities = model(rows).logits[:, :-1].log_softmax(-1)
        surprise = -log_probabilities.gather(-1, rows[:, 1:, None])
        assert surprise.mean().item() == pytest.approx(report["models"][config.name]["held_out_loss"], abs=2e-4)


@pytest.mark.parametrize("stopped_at", [3, 10, 15])
def test_a_training_that_was_interrupted_is_taken_up(trained, tmp_path, monkeypatch, stopped_at):
    monkeypatch.setattr(tools.train_pair, "CHECKPOINT", 4)
    calls, clip = itertools.count(1), torch.nn.utils.clip_grad_norm_

    def interrupted(*arguments):
        if next(calls) == stopped_at:
            raise KeyboardInterrupt
        return clip(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch.nn.utils, "clip_grad_norm_", interrupted)
        train_pair(tmp_path, MICRO[:1], **SCALE)
    checkpoint = tmp_path / "micro-a.checkpoint.pt"
    assert checkpoint.exists() == (stopped_at > 4)
    done = len(torch.load(checkpoint)["losses"]) if checkpoint.exists() else 0
    assert done == (stopped_at - 1) // 4 * 4
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *arguments: (next(calls), clip(*arguments))[1])
    report = train_pair(tmp_path, MICRO[:1], **SCALE)
    assert next(calls) == stopped_at + 1 + 15 - done, "what was done is not done again"
    whole = trained[0][1]["models"]["micro-a"] | {"seconds": report["models"]["micro-a"]["seconds"]}
    assert report["models"]["micro-a"] == whole
    assert not checkpoint.exists()


def test_a_checkpoint_of_another_training_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tools.train_pair, "CHECKPOINT", 4)
    texts, checkpoint = [document.text for document in stream()[:60]], tmp_path / "one.pt"
    tokenizer = train_tokenizer(texts, 300)
    rows = pack(tokenizer, texts, 64)
    short = replace(MICRO[0], tokens=4 * 8 * 64)
    train_model(short, tokenizer, rows, checkpoint)
    with pytest.raises(
        ValueError, match=r"one.pt is of another training: .*'learning_rate': 0.01.* remove it to begin anew"
    ):
        train_model(replace(short, learning_rate=1e-3), tokenizer, rows, checkpoint)


def test_tied_embeddings_are_one_matrix(tmp_path):
    report = train_pair(tmp_path, (replace(MICRO[0], tied=True, tokens=2 * 8 * 64),), **SCALE)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "micro-a")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert report["models"]["micro-a"]["parameters"] == sum(p.numel() for p in model.parameters())


def test_the_chat_template_renders_turns(tokenizer):
    turns = [
        {"role": "user", "content": "Describe the boat."},
        {"role": "assistant", "content": "The boat is old."},
        {"role": "user", "content": "And the sail?"},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == f"{USER}Describe the boat.{ASSISTANT}The boat is old.{END}{USER}And the sail?"
    prompt = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == f"{USER}Describe the boat.{ASSISTANT}"


def test_the_tokenizer_keeps_every_text_and_its_special_tokens_whole(tokenizer):
    for document in stream()[:200]:
        assert tokenizer.decode(tokenizer(document.text)["input_ids"]) == document.text
    for token in ("<|endoftext|>", USER, ASSISTANT, END):
        assert len(tokenizer(token)["input_ids"]) == 1
    assert tokenizer.bos_token == tokenizer.eos_token == "<|endoftext|>"
    assert len(tokenizer) == 512


def test_packed_rows_begin_with_end_of_text_and_lose_less_than_a_row():
    texts = [document.text for document in stream()[:60]]
    tokenizer = train_tokenizer(texts, 300)
    end = tokenizer.eos_token_id
    expected = [token for text in texts for token in [*tokenizer.encode(text, add_special_tokens=False), end]]
    for context in (16, 50, 256):
        rows = pack(tokenizer, texts, context)
        assert rows.shape[1] == context and rows.dtype == np.uint16
        assert (rows[:, 0] == end).all()
        kept = rows[:, 1:].reshape(-1).tolist()
        assert kept == expected[: len(kept)]
        assert 0 <= len(expected) - len(kept) < context - 1


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="hidden_size 10 is not a multiple of n_heads 4"):
        TrainingConfig("odd", seed=0, hidden_size=10, n_layers=1, n_heads=4, learning_rate=1e-3, tokens=1000)
