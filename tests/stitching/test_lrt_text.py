"""The text of the sister paper's maps: its tenth for validation, the length of its rows, and its third of chats."""

import dataclasses

import pytest
import torch

from stitch_utils.data.pairs import DatasetRef, load_pair
from stitch_utils.data.text import PairedBatch, token_batches
from stitch_utils.stitching import lrt_maps
from stitch_utils.stitching.lrt_maps import CHATS, VALIDATION, MapConfig, map_batches, map_config, map_stream
from stitch_utils.stitching.pair import StitchedPair

CONFIG = MapConfig(tokens=2000, step_tokens=100, lr=1e-3)


@pytest.fixture
def stitched(pair, models):
    return StitchedPair(pair, models, (1, 2), "smoke")


def rows_of(batches):
    return [tuple(row.tolist()) for batch in batches for row in PairedBatch.of(batch).a.tokens]


def test_a_tenth_of_the_rows_is_kept_for_validation(stitched, pair, models):
    fitted = rows_of(map_batches(stitched, CONFIG, held_out=False))
    validated = rows_of(map_batches(stitched, CONFIG, held_out=True))
    sizes = {"context": pair.context, "batch_size": 16, "n_tokens": CONFIG.tokens}
    everything = rows_of(token_batches(pair.train, models[0].tokenizer, rows=pair.rows, **sizes))
    assert len(everything) == CONFIG.tokens // pair.context
    assert validated == everything[VALIDATION - 1 :: VALIDATION] and len(fitted) + len(validated) == len(everything)
    assert fitted == [row for number, row in enumerate(everything, 1) if number % VALIDATION]
    less = rows_of(map_batches(stitched, dataclasses.replace(CONFIG, tokens=400), held_out=False))
    assert less == fitted[: len(less)] and len(less) == 18
    stream = map_stream(stitched, (1, 2), CONFIG)
    shapes = {(len(x), x.shape[1], y.shape[1]) for x, y in stream}
    assert shapes == {(CONFIG.step_tokens, models[0].d_model, models[1].d_model)} and stream.keep


def test_rows_of_another_length_as_long_as_both_models_read(stitched):
    for context, expected in ((30, 30), (512, 48)):
        config = dataclasses.replace(CONFIG, context=context)
        batch = next(map_batches(stitched, config, held_out=False))
        assert batch.a.tokens.shape[1] == expected


def test_a_third_of_chats_where_the_pair_names_some(stitched, pair, models, monkeypatch):
    conversations = [
        [{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": f"It is {i}."}] for i in range(900)
    ]

    def dataset_rows(name, pick, **options):
        assert (name, options["picked"]) == ("talk", "conversation")
        yield from (pick({"conversation": turns}) for turns in conversations)

    monkeypatch.setattr(lrt_maps, "dataset_rows", dataset_rows)
    tokenizer = models[0].tokenizer  # some templates write the beginning of the text, which every row has anyway
    monkeypatch.setattr(tokenizer, "chat_template", "{{ bos_token }}" + tokenizer.chat_template)
    talking = dataclasses.replace(stitched, pair=dataclasses.replace(pair, datasets={"map_chats": DatasetRef("talk")}))
    batches = [batch.a for batch in map_batches(talking, CONFIG, held_out=False)]
    spoken = [batch for batch in batches if (batch.documents < 0).any()]
    assert [batch is spoken[0] for batch in batches].index(True) == CHATS - 1
    share = sum(batch.tokens.numel() for batch in spoken) / sum(batch.tokens.numel() for batch in batches)
    assert share == pytest.approx(1 / CHATS, abs=0.1)
    text = tokenizer.decode(spoken[0].tokens[0])
    assert "<|user|>Say " in text and "<|assistant|>It is " in text
    assert tokenizer.bos_token_id == spoken[0].tokens[0, 0] != spoken[0].tokens[0, 1]
    owners = torch.cat([batch.documents[:, 0] for batch in spoken])
    assert len(owners.unique()) == len(owners)
    monkeypatch.setattr(lrt_maps, "dataset_rows", lambda name, pick, **options: iter([pick({"text": "x"})]))
    with pytest.raises(ValueError, match=r"pair 'mine' .*datasets: dataset 'talk' has no column 'conversation'"):
        list(map_batches(talking, CONFIG, held_out=False))


def test_sizes(pair):
    paper = map_config(load_pair("gemma"), "paper")
    assert (paper.tokens, paper.step_tokens, paper.epochs, paper.lr) == (10_000_000, 16_384, 4, 1e-4)
    assert map_config(load_pair("gemma-it"), "paper", seed=4) == dataclasses.replace(paper, lr=1e-3, seed=4), "tuned"
    assert map_config(load_pair("gemma-it"), "paper", lr=1e-2).lr == 1e-2
    assert map_config(load_pair("gemma-it"), "default").lr == map_config(load_pair("gemma"), "default").lr
    assert map_config(pair, "smoke").tokens < map_config(pair, "default").tokens
    with pytest.raises(ValueError, match="unknown scale 'huge'"):
        map_config(pair, "huge")
    with pytest.raises(ValueError, match="must be positive"):
        dataclasses.replace(CONFIG, lr=0.0)
