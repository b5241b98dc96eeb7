"""Prompts with and without instructions, their vectors, the template's tokens, and the sweep, against naive reference
arithmetic."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stitch_utils.data import pairs
from stitch_utils.data.embedded.world import ASSISTANT, END, USER
from stitch_utils.data.pairs import DatasetRef, TextRef, load_pair
from stitch_utils.data.text import TokenBatch
from stitch_utils.models.generation import Response, chat, generate_texts
from stitch_utils.models.harvest import evaluation_batches, training_batches
from stitch_utils.models.language_model import load_models
from stitch_utils.steering.instruction_sweep import (
    CARRIED,
    CONDITIONS,
    InstructionConfig,
    instruction_config,
    sweep_instructions,
)
from stitch_utils.steering.instructions import (
    SPLITS,
    family,
    instruction_kinds,
    instruction_prompts,
    instruction_vector,
    last_token_residuals,
)
from stitch_utils.steering.languages import chosen_strength
from stitch_utils.steering.template_tokens import (
    chat_batches,
    fit_template_stitches,
    template_tokens,
    with_template_tokens,
)
from stitch_utils.steering.verifiers import WORLD_INSTRUCTIONS
from stitch_utils.stitching.fit import fit_exact
from stitch_utils.stitching.moments import PairMoments

REAL = Path(__file__).parents[3] / "shared" / "data" / "ifeval" / "ifeval_single_instr_format.jsonl"
LAYERS = (1, 2)


@pytest.fixture
def context_40(small_pair):
    return load_pair(small_pair(context=40))


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


# ---- prompts ------------------------------------------------------------------------------------------------------


def test_the_worlds_prompts_differ_by_the_instruction_alone(pair):
    assert instruction_kinds(pair) == tuple(WORLD_INSTRUCTIONS)
    bare = {}
    for kind in instruction_kinds(pair):
        prompts = instruction_prompts(pair, kind, 20, "evaluate")
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
    found = {split: {p.without for p in instruction_prompts(pair, "json", 1000, split)} for split in SPLITS}
    more = {
        split: {p.without for p in instruction_prompts(pair, "json", 1000, split, choosing=False)} for split in SPLITS
    }
    assert more == found | {"fit": found["fit"] | found["choose"]}, "those for choosing go to the vector"
    assert min(map(len, found.values())) >= 64 and len(found["evaluate"]) >= 163
    assert len(set.union(*found.values())) == sum(map(len, found.values()))


def test_rows_of_a_file_with_their_own_keywords(pair, tmp_path):
    bullets = [
        ("detectable_format:number_bullet_lists", "Bullets.", {"num_bullets": i, "language": None}) for i in range(1, 6)
    ]
    spoken = [("language:response_language", "In French.", {"language": "fr"})] * 6
    ignored = [("startend:quotation", "Quote.", {})] * 4 + [("keywords:existence", "Say it.", {"keywords": ["x"]})] * 9
    ours = reading(pair, rows_file(tmp_path, *bullets, *spoken, *ignored))
    assert instruction_kinds(ours) == ("number_bullet_lists", "response_language_fr")
    parts = [p for split in SPLITS for p in instruction_prompts(ours, "number_bullet_lists", 99, split)]
    for_vectors = instruction_prompts(ours, "number_bullet_lists", 99, "fit", choosing=False)
    assert sorted([*for_vectors, *instruction_prompts(ours, "number_bullet_lists", 99, "evaluate")]) == sorted(parts)
    assert sorted(prompt.kwargs["num_bullets"] for prompt in parts) == [1, 2, 3, 4, 5]
    assert len({prompt.without for prompt in parts}) == 5
    for prompt in parts:
        count = prompt.kwargs["num_bullets"]
        assert prompt.is_followed("* a\n" * count) and not prompt.is_followed("* a\n" * (count + 1))
    assert len(instruction_prompts(ours, "response_language_fr", 2, "fit")) == 2


def test_data_that_is_of_no_use(pair, tmp_path):
    with pytest.raises(ValueError, match=r"unknown split 'test': expected fit, choose, evaluate"):
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
    with pytest.raises(ValueError, match=r"the file '.*none.jsonl' does not exist"):
        instruction_kinds(reading(pair, tmp_path / "none.jsonl"))


@pytest.mark.skipif(not REAL.is_file(), reason="the prompts of Stolfo et al. are not on this disk")
def test_the_163_prompts(pair):
    ours = reading(pair, REAL)
    kinds = instruction_kinds(ours)
    prompts = {kind: [p for s in SPLITS for p in instruction_prompts(ours, kind, 99, s)] for kind in kinds}
    assert len(kinds) == 12 and "title" in kinds and sum(map(len, prompts.values())) >= 140
    assert {family(found[0].instruction_id) for found in prompts.values()} >= {"casing", "format", "closing"}
    for found in prompts.values():
        assert all(prompt.is_followed("") is False for prompt in found)
        assert min(len(instruction_prompts(ours, kind, 99, split)) for kind in kinds for split in SPLITS) >= 1


def test_families():
    assert [family(WORLD_INSTRUCTIONS[kind]) for kind in ("upper", "lower", "no_commas", "language", "closing")] == [
        "casing",
        "casing",
        "punctuation",
        "language",
        "closing",
    ]
    assert {family(WORLD_INSTRUCTIONS[kind]) for kind in ("quotes", "bullets", "json")} == {"format"}


# ---- vectors ------------------------------------------------------------------------------------------------------


def test_prompts_are_put_into_the_template(random_models, monkeypatch):
    assert chat(random_models[0], ["Tell me."]) == [f"{USER}Tell me.{ASSISTANT}"]
    monkeypatch.setattr(random_models[0].tokenizer, "chat_template", None)
    with pytest.raises(ValueError, match=r"the tokenizer of '.*a' has no chat template"):
        chat(random_models[0], ["Tell me."])
    with pytest.raises(ValueError, match=r"the tokenizer of '.*a' has no chat template"):
        template_tokens(random_models[0])


def naive_last(model, layer, prompts):
    """One prompt at a time."""
    begin = model.tokenizer.bos_token_id
    rows = []
    for prompt in prompts:
        ids = [begin, *model.tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        rows.append(model.residuals(torch.tensor([ids]), [layer])[layer][0, -1])
    return torch.stack(rows)


def test_the_last_token_is_read_whatever_stands_beside_it(random_models):
    model = random_models[1]
    prompts = chat(model, ["Describe the boats.", "Go.", "What do you know about the old cheeses of the baker?"])
    found = last_token_residuals(model, 2, prompts, batch_size=2)
    torch.testing.assert_close(found, naive_last(model, 2, prompts), rtol=1e-4, atol=1e-4)
    assert model.tokenizer.convert_ids_to_tokens(model.tokenizer(prompts[0])["input_ids"])[-1] == ASSISTANT
    with pytest.raises(ValueError, match="no prompts given"):
        last_token_residuals(model, 2, [])
    with pytest.raises(ValueError, match="48 at most"):
        last_token_residuals(model, 2, ["boat " * 60])


def test_a_vector_is_the_unit_difference_of_means(random_models, pair):
    model = random_models[1]
    prompts = instruction_prompts(pair, "upper", 7, "fit")
    given, without = (chat(model, [getattr(p, side) for p in prompts]) for side in ("given", "without"))
    vector = instruction_vector(model, 2, given, without, batch_size=3)
    high, low = naive_last(model, 2, given).double(), naive_last(model, 2, without).double()
    difference = high.mean(0) - low.mean(0)
    torch.testing.assert_close(vector.direction.double(), difference / difference.norm(), rtol=1e-4, atol=1e-5)
    assert vector.target == pytest.approx((high @ vector.direction.double()).mean().item(), abs=1e-4)
    assert vector.source == pytest.approx((low @ vector.direction.double()).mean().item(), abs=1e-4)
    assert vector.target - vector.source == pytest.approx(difference.norm().item(), rel=1e-4)


# ---- template tokens ----------------------------------------------------------------------------------------------


def ids_of(tokenizer, *tokens):
    return [tokenizer.convert_tokens_to_ids(token) for token in tokens]


def test_the_templates_tokens_and_no_others(random_models):
    tokenizer = random_models[0].tokenizer
    assert template_tokens(random_models[0]) == sorted(ids_of(tokenizer, USER, ASSISTANT, END))


def test_masks_are_widened_to_the_templates_tokens():
    tokens = torch.tensor([[0, 7, 1, 8, 2], [0, 5, 6, 0, 0], [0, 1, 0, 0, 0]])
    mask = torch.tensor([[0, 1, 0, 1, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()
    batch = TokenBatch(tokens, mask, torch.arange(3)[:, None].expand(-1, 5))
    (wide,) = with_template_tokens([batch], [1, 2])
    assert wide.mask.int().tolist() == [[0, 1, 1, 1, 1], [0, 1, 1, 0, 0], [0, 1, 0, 0, 0]]
    (only,) = with_template_tokens([batch], [1, 2], only=True)
    assert only.mask.int().tolist() == [[0, 0, 1, 0, 1], [0, 1, 0, 0, 0]]
    assert only.tokens.tolist() == tokens[[0, 2]].tolist() and only.documents[:, 0].tolist() == [0, 2]
    assert not list(with_template_tokens([batch], [99], only=True))


def test_documents_become_chats(random_models):
    model, text = random_models[0], TextRef("world", "chats")
    batches = list(chat_batches(model, text, 5, context=40, batch_size=2))
    assert [len(batch.tokens) for batch in batches] == [2, 2, 1]
    user, assistant, *_ = ids_of(model.tokenizer, USER, ASSISTANT)
    for batch in batches:
        assert (batch.tokens[:, 0] == model.tokenizer.bos_token_id).all() and (batch.tokens[:, 1] == user).all()
        special = torch.isin(batch.tokens, torch.tensor(model.tokenizer.all_special_ids))
        assert not (batch.mask & special).any() and (batch.mask | special).all(), "padding is end-of-text"
        assert (batch.tokens == assistant).any(1).float().mean() > 0.5
    assert torch.cat([batch.documents[:, 0] for batch in batches]).tolist() == [0, 1, 2, 3, 4]


def naive_moments(models, batches, template):
    """Token by token, ordinary ones and the template's apart."""
    found = {"ordinary": ([], []), "template": ([], [])}
    for batch in batches:
        streams = [model.residuals(batch.tokens, [layer])[layer] for model, layer in zip(models, LAYERS)]
        for row in range(len(batch.tokens)):
            for position, token in enumerate(batch.tokens[row].tolist()):
                name = "template" if token in template else "ordinary" if batch.mask[row, position] else None
                for values, stream in zip(found.get(name, ()), streams):
                    values.append(stream[row, position])
    return {name: tuple(torch.stack(values) for values in both) for name, both in found.items()}


def test_the_stitches_are_those_of_the_tokens_that_they_name(context_40):
    models = load_models(context_40)
    sizes, tokenizer = context_40.scale("smoke"), models[0].tokenizer
    template = template_tokens(models[0])
    prompts = chat(models[0], ["Describe the boats.", "Tell me something about the old cheese.", "Go."])
    fit = fit_template_stitches(context_40, models, LAYERS, scale="smoke", prompts=prompts)
    data = naive_moments(models, training_batches(context_40, sizes, tokenizer, sizes.train_tokens), template)
    counts = {name: len(x) for name, (x, _) in data.items()}
    assert fit.tokens == counts and counts["template"] > 0 and fit.chats == 0
    assert set(fit.names) == {USER, ASSISTANT, END}
    assert fit.repeats * counts["template"] / (fit.repeats * counts["template"] + counts["ordinary"]) == pytest.approx(
        0.1, rel=0.1
    )
    for name, times in (("without", 0), ("with", 1), ("often", fit.repeats)):
        moments = PairMoments(models[0].d_model, models[1].d_model)
        moments.update(*data["ordinary"])
        for _ in range(times):
            moments.update(*data["template"])
        expected = fit_exact(moments)
        torch.testing.assert_close(fit.stitches[name].P_up, expected.P_up, rtol=1e-2, atol=1e-3)
    assert not torch.allclose(fit.stitches["with"].P_up, fit.stitches["without"].P_up, atol=1e-4)
    held_out = naive_moments(models, evaluation_batches(context_40, sizes, tokenizer), template)
    held_out["last"] = tuple(naive_last(model, layer, prompts) for model, layer in zip(models, LAYERS))
    held_out["last_centred"] = held_out["last"]
    for (name, group, towards), value in fit.unexplained.items():
        x, y = held_out[group]
        image, target = (fit.stitches[name].up(x), y) if towards == "b" else (fit.stitches[name].down(y), x)
        if group == "last_centred":
            image = image - image.mean(0) + target.mean(0)
        share = ((image - target) ** 2).sum() / ((target - target.mean(0)) ** 2).sum()
        assert value == pytest.approx(share.item(), rel=1e-3), (name, group, towards)
    assert len(fit.unexplained) == 24
    again = fit_template_stitches(context_40, models, LAYERS, scale="smoke", prompts=prompts)
    assert again.unexplained == pytest.approx(fit.unexplained)


def test_text_without_chats_gets_some(small_pair, tmp_path, monkeypatch):
    monkeypatch.setitem(pairs._sizes()["smoke"], "template_tokens", {"chats": 6})
    words = "the old boat and the sea of the cook who bakes a cake in the kitchen"
    text = "\n\n".join(f"{n} {words} {n}. {words}" for n in range(120))
    (tmp_path / "text.txt").write_text(text)
    pair = load_pair(small_pair(context=40, text=str(tmp_path / "text.txt")))
    models = load_models(pair)
    fit = fit_template_stitches(pair, models, LAYERS, scale="smoke")
    assert fit.chats == 6 and 6 * 2 <= fit.tokens["template"] <= 6 * 3
    assert {group for _, group, _ in fit.unexplained} == {"ordinary", "template"}
    assert fit.unexplained["often", "template", "b"] < fit.unexplained["without", "template", "b"]


# ---- sweep --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config():
    return InstructionConfig(
        ("upper", "no_commas"),
        prompts=5,
        choosing_prompts=3,
        fit_prompts=6,
        strengths=(1.0, 4.0),
        carried_strengths=(1.0, 6.0),
        max_new_tokens=4,
        batch_size=3,
    )


@pytest.fixture
def swept(context_40, config):
    models = load_models(context_40)
    fit = fit_template_stitches(context_40, models, LAYERS, scale="smoke")
    run = lambda: sweep_instructions(context_40, models, LAYERS, fit.stitches, config, scale="smoke")  # noqa: E731
    return models, fit, run(), run


def test_every_cell_is_what_its_name_says(swept, context_40, config, monkeypatch):
    models, fit, sweep, run = swept
    for side, model, other, layer in (("a", *models, LAYERS[0]), ("b", *models[::-1], LAYERS[1])):
        for kind in config.kinds:
            fitted, asked = (instruction_prompts(context_40, kind, n, s) for n, s in ((6, "fit"), (5, "evaluate")))
            both = [[getattr(p, part) for p in fitted] for part in ("given", "without")]
            own = instruction_vector(model, layer, *(chat(model, texts) for texts in both))
            theirs = instruction_vector(other, LAYERS[side == "a"], *(chat(other, texts) for texts in both))
            given, without = (naive_last(model, layer, chat(model, texts)) for texts in both)
            torch.testing.assert_close(sweep.shifts[side, kind], given - without, rtol=1e-4, atol=1e-4)
            high, low = given.mean(0), without.mean(0)
            for condition in CONDITIONS[:-1]:
                direction = own.direction
                strength = sweep.chosen[side, kind, "transferred" if condition in CARRIED else "native"]
                assert strength in (config.carried_strengths if condition in CARRIED else config.strengths)
                if condition in CARRIED:
                    stitch = fit.stitches[CARRIED[condition]]
                    image = theirs.direction @ (stitch.P_down if side == "a" else stitch.P_up)
                    direction = image / image.norm()
                z = (low + strength * (high - low)) @ direction

                def put(stream, v=direction, z=z):
                    return stream + (z - stream @ v)[..., None] * v

                texts = [p.given if condition == "instructed" else p.without for p in asked]
                steered = {} if condition in ("none", "instructed") else {"layer": layer, "edit": put}
                expected = generate_texts(model, chat(model, texts), max_new_tokens=4, batch_size=3, **steered)
                found = sweep.responses[sweep.key(side, condition, kind)]
                assert [r.text for r in found] == [r.text for r in expected], (side, kind, condition)
                followed = [p.is_followed(r.text) for p, r in zip(asked, expected)]
                share = sweep.share(side, condition, kind)
                assert share.value == np.mean(followed) and share.low <= share.value <= share.high
    monkeypatch.setattr("stitch_utils.steering.responses.generate_texts", None)  # what was made once is kept
    assert run().responses == sweep.responses


def test_what_is_carried_across_has_a_strength_of_its_own(swept, config):
    _, _, sweep, _ = swept
    for (side, kind, condition), chosen in sweep.chosen.items():
        strengths = (1.0, 4.0) if condition == "native" else (1.0, 6.0)
        shares = {s: sweep.share(side, condition, kind, s, "choose").value for s in strengths}
        losses = {
            s: np.mean([r.nll for r in sweep.responses[sweep.key(side, condition, kind, s, "choose")]])
            for s in strengths
        }
        assert chosen == chosen_strength(shares, losses, config.wanted_share)
        carried = {sweep.key(side, c, kind)[-1] for c in CARRIED}
        assert carried == {chosen} or condition == "native"
    assert {key[2] for key in sweep.chosen} == {"native", "transferred"}


def test_numbers_are_means_over_the_instructions(swept, config):
    _, _, sweep, _ = swept
    numbers = sweep.numbers("mine")
    for side, figure in (("a", "figure12"), ("b", "figure13")):
        shares = {c: [sweep.share(side, c, kind).value for kind in config.kinds] for c in CONDITIONS}
        for condition in CONDITIONS:
            assert numbers[f"{figure}.mine.mean.{condition}"] == pytest.approx(np.mean(shares[condition]))
        gains = np.subtract(shares["transferred"], shares["none"])
        assert numbers[f"{figure}.mine.casing.gain"] == pytest.approx(gains[0])
        assert numbers[f"{figure}.mine.other.gain"] == pytest.approx(gains[1])
        losses = {
            c: np.mean([r.nll for k in config.kinds for r in sweep.responses[sweep.key(side, c, k)]])
            for c in ("none", "native")
        }
        of_kind = [numbers[f"{figure}.mine.{kind}.native.nll_rise"] for kind in config.kinds]
        assert numbers[f"{figure}.mine.nll_rise.native"] == pytest.approx(np.mean(of_kind))
        at_1 = [r.nll for k in config.kinds for r in sweep.responses[sweep.key(side, "native", k, 1.0)]]
        rise_at_1 = numbers[f"{figure}.mine.nll_rise.native_at_1"]
        assert rise_at_1 == pytest.approx(np.mean(at_1) - losses["none"], abs=1e-6)
        rise = numbers[f"{figure}.mine.nll_rise.native"]
        assert rise == pytest.approx(losses["native"] - losses["none"], abs=1e-6)
        assert f"{figure}.mine.nll_rise.none" not in numbers
    assert all(isinstance(value, int | float) and np.isfinite(value) for value in numbers.values())


def test_a_strength_that_is_given_needs_no_prompts_for_choosing(swept, context_40, config):
    models, fit, _, _ = swept
    given = dataclasses.replace(config, strength=2.0, kinds=("upper",))
    sweep = sweep_instructions(context_40, models, LAYERS, fit.stitches, given, scale="smoke")
    assert set(sweep.chosen.values()) == {2.0} and {key[0] for key in sweep.responses} == {"evaluate"}
    expected = instruction_prompts(context_40, "upper", 6, "fit", choosing=False)
    given, without = ([getattr(p, part) for p in expected] for part in ("given", "without"))
    both = [naive_last(models[0], LAYERS[0], chat(models[0], texts)) for texts in (given, without)]
    torch.testing.assert_close(sweep.shifts["a", "upper"], both[0] - both[1], rtol=1e-4, atol=1e-4)


def test_instructions_that_bare_prompts_follow_anyway(swept, config):
    _, _, sweep, _ = swept
    for always, expected in ((("no_commas",), ["no_commas"]), ((), [])):
        followed = {
            sweep.key(side, "none", kind): np.array([True, kind in always]) for side in "ab" for kind in config.kinds
        }
        assert dataclasses.replace(sweep, followed=followed).followed_anyway() == expected
    followed[sweep.key("a", "none", "upper")] = np.array([True, True])
    assert dataclasses.replace(sweep, followed=followed).followed_anyway() == [], "in one model alone"


def test_instructions_are_counted_where_intervals_do_not_overlap(swept, config):
    _, _, sweep, _ = swept
    planned = dataclasses.replace(sweep, chosen=dict.fromkeys(sweep.chosen, 4.0))
    keys = [
        planned.key(side, condition, kind, strength)
        for side in "ab"
        for condition in CONDITIONS
        for kind in config.kinds
        for strength in (None, 1.0)
    ]
    responses = dict.fromkeys(keys, [Response("", 0.0, 0.0, 0)] * 20)
    for native, transferred, counted in (
        (20, 20, {"improved", "matched"}),
        (20, 16, {"improved"}),
        (16, 20, {"improved", "matched"}),
        (0, 20, {"improved", "won"}),
        (0, 1, set()),
        (0, 0, set()),
    ):
        followed = {key: np.zeros(20, dtype=bool) for key in keys}
        followed[planned.key("b", "native", "upper")][:native] = True
        followed[planned.key("b", "transferred", "upper")][:transferred] = True
        numbers = dataclasses.replace(planned, followed=followed, responses=responses).numbers("mine")
        for quantity in ("won", "won_at_1", "improved", "matched"):
            assert numbers[f"figure13.mine.{quantity}"] == (quantity in counted), (quantity, native, transferred)
            assert numbers[f"figure12.mine.{quantity}"] == 0


def test_sizes(pair):
    with pytest.raises(ValueError, match="unknown scale 'huge'"):
        instruction_config(pair, "huge")
    assert instruction_config(pair, "smoke").kinds == ("upper", "closing")
    assert instruction_config(pair, "default").kinds == instruction_kinds(pair)
    with pytest.raises(ValueError, match="at least one instruction and one prompt"):
        InstructionConfig((), 1, 1)
    for wrong in ("strengths", "carried_strengths"):
        with pytest.raises(ValueError, match="strengths must be positive"):
            InstructionConfig(("upper",), 1, 1, **{wrong: (0.0,)})
    assert instruction_config(pair, "smoke").strength == 0
    assert instruction_config(dataclasses.replace(pair, strength=1.0), "smoke").strength == 1
    assert instruction_config(dataclasses.replace(pair, strength=1.0), "smoke", strength=2.0).strength == 2
