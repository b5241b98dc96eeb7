"""Stitches that have seen the chat template, against sums token by token; vectors from two sets of prompts, checked
against noise whose size is known and against sums that are written out."""

import copy
import dataclasses
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_prompts import naive_last

from stitch_utils.book.claims import verdicts
from stitch_utils.book.results import write_results
from stitch_utils.data import pairs
from stitch_utils.data.embedded.world import ASSISTANT, END, USER
from stitch_utils.data.pairs import TextRef, load_pair
from stitch_utils.data.text import TokenBatch
from stitch_utils.models.generation import chat
from stitch_utils.models.harvest import evaluation_batches, training_batches
from stitch_utils.models.language_model import load_models
from stitch_utils.steering.diagnostics import (
    chat_batches,
    fit_template_stitches,
    plain_rows,
    template_places,
    template_rows,
    template_tokens,
    vector_noise,
)
from stitch_utils.stitching.fit import fit_exact
from stitch_utils.stitching.moments import PairMoments
from stitch_utils.stitching.pair import StitchedPair
from stitch_utils.stitching.stitch import Stitch

LAYERS = (1, 2)

# ---- the chat template's tokens -------------------------------------------------------------------------------------


@pytest.fixture
def context_40(small_pair):
    return load_pair(small_pair(context=40))


def test_prompts_are_put_into_the_template(random_models, monkeypatch):
    assert chat(random_models[0], ["Tell me."]) == [f"{USER}Tell me.{ASSISTANT}"]
    monkeypatch.setattr(random_models[0].tokenizer, "chat_template", None)
    with pytest.raises(ValueError, match=r"the tokenizer of '.*a' has no chat template"):
        chat(random_models[0], ["Tell me."])
    with pytest.raises(ValueError, match=r"the tokenizer of '.*a' has no chat template"):
        template_tokens(random_models[0])


def ids_of(tokenizer, *tokens):
    return [tokenizer.convert_tokens_to_ids(token) for token in tokens]


def test_the_templates_tokens_and_no_others(random_models):
    tokenizer = random_models[0].tokenizer
    assert template_tokens(random_models[0]) == sorted(ids_of(tokenizer, USER, ASSISTANT, END))


# As Gemma's, whose prompts end in a line break; with words instead of special tokens; and with none around the answer.
LINES = (
    "{% for m in messages %}" + USER + "{{ m.role }}\n{{ m.content }}" + END + "\n{% endfor %}" + ASSISTANT + "model\n"
)
WORDS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}the boat: "
BARE = "{% for m in messages %}{% if m.role == 'user' %}" + USER + "{% endif %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize("template", [LINES, WORDS, BARE])
def test_the_templates_tokens_are_known_by_their_places(random_models, template):
    tokenizer = copy.deepcopy(random_models[0].tokenizer)
    tokenizer.chat_template = template
    contents = ("One\nold boat.", "The été\n, the sea")
    turns = [{"role": role, "content": said} for role, said in zip(("user", "assistant"), contents)]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    ids, own = template_places(tokenizer, text, contents)
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    left = text.replace(contents[0], "", 1).replace(contents[1], "", 1)
    said = tokenizer.decode([id for id, is_own in zip(ids, own) if is_own])
    assert said.replace(" ", "") == left.replace(" ", "")
    line_break = ids[[tokenizer.decode([id]) for id in ids].index("\n")]
    places = {is_own for id, is_own in zip(ids, own) if id == line_break}
    assert places == ({True, False} if "\n" in template else {False}), "one id, in the template and in what is said"


def test_ordinary_tokens_can_be_the_templates(random_models, monkeypatch):
    model = random_models[0]
    assert set(ids_of(model.tokenizer, USER, ASSISTANT, END)) == set(template_tokens(model))
    monkeypatch.setattr(model.tokenizer, "chat_template", LINES)
    found = {model.tokenizer.decode([id]) for id in template_tokens(model)}
    assert {USER, ASSISTANT, END, "\n"} < found
    monkeypatch.setattr(model.tokenizer, "chat_template", "{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(ValueError, match=r"the chat template of '.*a' writes no tokens of its own"):
        template_tokens(model)


def test_documents_with_the_templates_tokens_are_no_plain_text():
    tokens = torch.tensor([[0, 7, 1, 8, 5], [0, 5, 6, 7, 2], [0, 9, 9, 0, 0]])
    mask = torch.tensor([[0, 1, 0, 1, 1], [0, 1, 1, 1, 0], [0, 1, 1, 0, 0]]).bool()
    documents = torch.tensor([[0, 0, 0, 0, 1], [1, 1, 2, 2, 2], [3, 3, 3, 3, 3]])
    (plain,) = plain_rows([TokenBatch(tokens, mask, documents)], [1, 2])
    assert plain.mask.int().tolist() == [[0, 0, 0, 0, 1], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0]]
    (every,) = plain_rows([TokenBatch(tokens, mask, documents)], [99])
    assert (every.mask == mask).all()


def test_rows_are_masked_but_for_the_templates_tokens():
    tokens = torch.tensor([[0, 7, 1, 8, 2], [0, 5, 6, 0, 0], [0, 1, 0, 0, 0]])
    mask = torch.tensor([[0, 1, 0, 1, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()
    batch = TokenBatch(tokens, mask, torch.arange(3)[:, None].expand(-1, 5))
    (only,) = template_rows([batch], [1, 2])
    assert only.mask.int().tolist() == [[0, 0, 1, 0, 1], [0, 1, 0, 0, 0]]
    assert only.tokens.tolist() == tokens[[0, 2]].tolist() and only.documents[:, 0].tolist() == [0, 2]
    assert not list(template_rows([batch], [99]))


def test_documents_become_chats(random_models, context_40):
    model, text, scales = random_models[0], TextRef("world", "chats"), {"smoke": context_40.scale("smoke")}
    scales["smoke"] = dataclasses.replace(scales["smoke"], batch_size=2)
    pair = dataclasses.replace(context_40, scales=scales)
    stitched = StitchedPair(pair, random_models, LAYERS, "smoke")
    batches = list(chat_batches(stitched, text, 5))
    assert [len(batch.tokens) for batch in batches] == [2, 2, 1]
    user, assistant, *_ = ids_of(model.tokenizer, USER, ASSISTANT)
    for batch, other in zip(batches, chat_batches(stitched, text, 5, template=True), strict=True):
        assert (batch.tokens == other.tokens).all() and not (batch.mask & other.mask).any()
        assert set(batch.tokens[other.mask].tolist()) <= set(template_tokens(model)) and other.mask.any(1).all()
        assert (batch.tokens[:, 0] == model.tokenizer.bos_token_id).all() and (batch.tokens[:, 1] == user).all()
        special = torch.isin(batch.tokens, torch.tensor(model.tokenizer.all_special_ids))
        assert not (batch.mask & special).any() and (batch.mask | special).all(), "padding is end-of-text"
        assert (batch.tokens == assistant).any(1).float().mean() > 0.5
    assert torch.cat([batch.documents[:, 0] for batch in batches]).tolist() == [0, 1, 2, 3, 4]


def naive_moments(models, batches, template):
    """Token by token, ordinary ones and the template's apart."""
    found = {"ordinary": ([], []), "template": ([], []), "plain": ([], [])}
    for batch in (both.a for both in batches):
        streams = [model.residuals(batch.tokens, [layer])[layer] for model, layer in zip(models, LAYERS)]
        owners = batch.documents.tolist()
        chats = {
            owner
            for row, of in zip(batch.tokens.tolist(), owners)
            for token, owner in zip(row, of)
            if token in template
        }
        for row in range(len(batch.tokens)):
            for position, token in enumerate(batch.tokens[row].tolist()):
                names = ["template"] if token in template else ["ordinary"] if batch.mask[row, position] else []
                if names == ["ordinary"] and owners[row][position] not in chats:
                    names.append("plain")
                for name, (values, stream) in itertools.product(names, zip((0, 1), streams)):
                    found[name][values].append(stream[row, position])
    return {name: tuple(torch.stack(values) for values in both) for name, both in found.items()}


def test_the_stitches_are_those_of_the_tokens_that_they_name(context_40):
    models = load_models(context_40)
    sizes, tokenizer = context_40.scale("smoke"), models[0].tokenizer
    template = template_tokens(models[0])
    prompts = chat(models[0], ["Describe the boats.", "Tell me something about the old cheese.", "Go."])
    stitched = StitchedPair(context_40, models, LAYERS, "smoke")
    fit = fit_template_stitches(stitched, prompts=prompts)
    data = naive_moments(models, training_batches(context_40, sizes, (tokenizer,) * 2, sizes.train_tokens), template)
    counts = {name: len(x) for name, (x, _) in data.items()}
    counts["chats"] = counts["ordinary"] - counts["plain"]
    assert fit.tokens == {name: counts[name] for name in ("plain", "chats", "template")}
    assert min(counts.values()) > 0 and fit.chats == 0
    assert set(fit.names) == {USER, ASSISTANT, END}
    assert fit.repeats * counts["template"] / (fit.repeats * counts["template"] + counts["ordinary"]) == pytest.approx(
        0.1, rel=0.1
    )
    for name, times in (("without", 0), ("with", 1), ("often", fit.repeats)):
        moments = PairMoments(models[0].d_model, models[1].d_model)
        moments.update(*data["ordinary" if times else "plain"])
        for _ in range(times):
            moments.update(*data["template"])
        expected = fit_exact(moments)
        torch.testing.assert_close(fit.stitches[name].P_up, expected.P_up, rtol=1e-2, atol=1e-3)
    assert not torch.allclose(fit.stitches["with"].P_up, fit.stitches["without"].P_up, atol=1e-4)
    held_out = naive_moments(models, evaluation_batches(context_40, sizes, (tokenizer,) * 2), template)
    held_out["last"] = tuple(naive_last(model, layer, prompts) for model, layer in zip(models, LAYERS))
    held_out["last_centred"] = held_out["last"]
    for (name, group, to), value in fit.unexplained.items():
        x, y = held_out[group]
        image, target = (fit.stitches[name].up(x), y) if to == "b" else (fit.stitches[name].down(y), x)
        if group == "last_centred":
            image = image - image.mean(0) + target.mean(0)
        share = ((image - target) ** 2).sum() / ((target - target.mean(0)) ** 2).sum()
        assert value == pytest.approx(share.item(), rel=1e-3), (name, group, to)
    assert len(fit.unexplained) == 24
    again = fit_template_stitches(stitched, prompts=prompts)
    assert again.unexplained == pytest.approx(fit.unexplained)


def test_text_without_chats_gets_some(small_pair, tmp_path, monkeypatch):
    monkeypatch.setitem(pairs._sizes()["smoke"], "template_tokens", {"chats": 6})
    words = "the old boat and the sea of the cook who bakes a cake in the kitchen"
    text = "\n\n".join(f"{n} {words} {n}. {words}" for n in range(120))
    (tmp_path / "text.txt").write_text(text)
    pair = load_pair(small_pair(context=40, text=str(tmp_path / "text.txt")))
    models = load_models(pair)
    fit = fit_template_stitches(StitchedPair(pair, models, LAYERS, "smoke"), chat(models[0], ["Go.", "Tell me."]))
    assert fit.chats == 6 and 6 * 2 <= fit.tokens["template"] <= 6 * 3
    stitched = StitchedPair(pair, models, LAYERS, "smoke")
    assert fit.tokens["plain"] == stitched.moments.count and fit.tokens["chats"] > 0
    torch.testing.assert_close(fit.stitches["without"].P_up, stitched.stitch.P_up, rtol=1e-4, atol=1e-5)
    assert {group for _, group, _ in fit.unexplained} == {"ordinary", "template", "last", "last_centred"}
    assert fit.unexplained["often", "template", "b"] < fit.unexplained["without", "template", "b"]


# ---- vectors from few prompts ---------------------------------------------------------------------------------------


D_A, D_B = 16, 24


def between(up: torch.Tensor, down: torch.Tensor) -> Stitch:
    return Stitch(up, torch.ones(D_B), down, torch.ones(D_A))


@pytest.fixture
def stitch():
    torch.manual_seed(0)
    return between(torch.randn(D_A, D_B), torch.randn(D_B, D_A))


def noisy(pairs: int, noise: float, seed: int, d: int = D_A) -> torch.Tensor:
    """A unit direction, with noise of length `noise` on the whole in every row."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(d, generator=generator)
    return direction / direction.norm() + noise * torch.randn(pairs, d, generator=generator) / d**0.5


def test_what_the_noise_leaves_is_what_its_size_says(stitch):
    pairs, noise = 4000, 4.0
    shifts = {("a", kind): noisy(pairs, noise, seed) for seed, kind in enumerate(("upper", "lower"))}
    found = vector_noise(shifts, stitch, counts=(5, 10, 50))
    for count in (5, 10, 50):  # the noise of a mean has the squared length noise^2 / count, the signal 1
        assert found.cosines["a", count, "native"].value == pytest.approx(1 / (1 + noise**2 / count), abs=0.03)


def test_the_mean_is_over_all_ways_to_split(stitch):
    shift = noisy(4, 1.0, seed=3)
    expected = {"native": [], "carried": []}
    for order in itertools.permutations(range(4)):
        one, two = shift[order[0]] + shift[order[1]], shift[order[2]] + shift[order[3]]
        for way, (v, w) in (("native", (one, two)), ("carried", (one @ stitch.P_up, two @ stitch.P_up))):
            v, w = v.double().numpy(), w.double().numpy()
            expected[way].append(v @ w / np.sqrt(v @ v) / np.sqrt(w @ w))
    found = vector_noise({("a", "upper"): shift}, stitch, counts=(2,), draws=3000)
    for way, values in expected.items():
        estimate = found.cosines["a", 2, way]
        assert estimate.value == pytest.approx(np.mean(values), abs=0.01)
        assert estimate.low >= min(values) - 1e-6 and estimate.high <= max(values) + 1e-6


def test_a_map_that_drops_the_noise_takes_it_from_the_carried_vectors():
    shift = noisy(40, 1.0, seed=1)
    shift[:, 0] += 5 - shift[:, 0]  # alike in every row
    only_first = torch.zeros(D_A, D_B)
    only_first[0, 0] = 1.0
    found = vector_noise({("a", "upper"): shift}, between(only_first, torch.zeros(D_B, D_A)), counts=(10,))
    assert found.cosines["a", 10, "carried"].value == pytest.approx(1.0)
    assert found.cosines["a", 10, "native"].value < 1 - 1e-4


def test_each_model_is_carried_by_its_own_map(stitch):
    shifts = {("a", "upper"): noisy(20, 1.0, 0), ("b", "upper"): noisy(20, 1.0, 1, D_B)}
    found = vector_noise(shifts, stitch)
    assert {key[:2] for key in found.cosines} == {(side, count) for side in "ab" for count in (2, 3, 5, 10)}
    assert [*found.instructions] == [*itertools.product("ab", (2, 3, 5, 10))]  # there are not 40 pairs
    numbers = found.numbers("tiny")
    assert len(numbers) == 2 * 4 * (3 * 3 + 1) and numbers["noise.tiny.a.pairs_3.instructions"] == 1
    assert {"noise.tiny.b.pairs_10.carried.low", "noise.tiny.b.pairs_10.lost.high"} < set(numbers)


def test_each_instruction_gives_what_it_has_prompts_for(stitch):
    """At each number of pairs the mean is over the instructions that have as many twice, and no others."""
    many, some, few = (noisy(pairs, 1.0, seed) for seed, pairs in enumerate((41, 19, 4)))
    shifts = {("a", "upper"): many, ("a", "lower"): some, ("a", "quotes"): few}
    found = vector_noise(shifts, stitch, draws=400)
    assert found.instructions == {("a", 2): 3, ("a", 3): 2, ("a", 5): 2, ("a", 10): 1, ("a", 20): 1}
    for count, kinds in ((2, "upper lower quotes"), (5, "upper lower"), (10, "upper")):
        alone = [vector_noise({("a", kind): shifts["a", kind]}, stitch, draws=400) for kind in kinds.split()]
        for way in ("native", "carried"):
            expected = np.mean([one.cosines["a", count, way].value for one in alone])
            assert found.cosines["a", count, way].value == pytest.approx(expected, abs=0.02)
    assert not vector_noise({("a", "upper"): noisy(3, 1.0, 0)}, stitch).instructions


def test_what_is_lost_is_taken_draw_by_draw(stitch):
    shifts = {("a", "upper"): noisy(24, 1.0, 0), ("a", "lower"): noisy(24, 1.0, 1)}
    found = vector_noise(shifts, stitch, counts=(10,))
    native, carried, lost = (
        found.cosines["a", 10, "native"],
        found.cosines["a", 10, "carried"],
        found.cosines["a", 10, "lost"],
    )
    assert lost.value == pytest.approx(native.value - carried.value) and lost.low < lost.value < lost.high
    # What a rotation leaves as it is differs between the draws, though not within one.
    q = torch.linalg.qr(torch.randn(D_A, D_A, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    turned = Stitch(q, torch.zeros(D_A), q.T, torch.zeros(D_A))
    found = vector_noise(shifts, turned, counts=(10,))
    assert found.cosines["a", 10, "lost"] == pytest.approx((0, 0, 0), abs=1e-12)
    assert found.cosines["a", 10, "native"].high - found.cosines["a", 10, "native"].low > 0.01


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "holds"),
        ({"b.pairs_10.lost.low": -0.01}, "inconclusive"),
        ({f"a.pairs_10.lost{end}": -0.01 for end in ("", ".low", ".high")}, "does not hold"),
    ],
)
def test_the_claim_asks_for_the_interval_of_what_is_lost(project, change, verdict):
    shutil.copy(Path(__file__).parents[2] / "book" / "published.yml", project / "book" / "published.yml")
    # Noise alone lies in the direction that the map to the other model enlarges.
    shift = torch.zeros(20, 2)
    shift[:, 0], shift[:, 1] = 1, torch.randn(20, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    larger = torch.diag(torch.tensor([1.0, 5.0]))
    found = vector_noise(
        {(side, "upper"): shift for side in "ab"}, Stitch(larger, torch.ones(2), larger, torch.ones(2))
    )
    changed = {f"noise.tiny.{key}": value for key, value in change.items()}
    write_results("tiny", "instruction_following", found.numbers("tiny") | changed)
    (said,) = (said for said in verdicts("tiny") if said.id == "transfer-compounds-the-noise")
    assert said.verdict == verdict


def test_no_draws_are_an_error(stitch):
    with pytest.raises(ValueError, match="draws=0: expected at least one"):
        vector_noise({("a", "upper"): noisy(20, 1.0, 0)}, stitch, draws=0)


@pytest.mark.parametrize(
    ("last", "verdict"), [((0.9, 0.8), "holds"), ((0.9, 0.1), "does not hold"), ((0.2, 0.1), "does not hold")]
)
def test_the_claim_on_the_last_token_is_of_both_directions(project, last, verdict):
    shutil.copy(Path(__file__).parents[2] / "book" / "published.yml", project / "book" / "published.yml")
    up, down = last
    numbers = {"last_centred.to_b": up, "last_centred.to_a": down, "ordinary.to_b": 0.3, "ordinary.to_a": 0.2}
    found = {f"template.tiny.without.{id}": value for id, value in numbers.items()}
    write_results("tiny", "instruction_following", found)
    (said,) = (said for said in verdicts("tiny") if said.id == "last-template-token-is-lost")
    assert said.verdict == verdict
