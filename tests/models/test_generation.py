"""Responses to prompts of many lengths are those that each prompt gets by itself, with the loss that is theirs."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from stitch_utils.models import generation
from stitch_utils.models.generation import generate_texts
from stitch_utils.models.language_model import load_model

PROMPTS = ["The cook", "The cook bakes a cake in the kitchen.", "Yesterday", "The old boat and the sea"]
ARCHITECTURES = ["EleutherAI/pythia-160m-deduped", "openai-community/gpt2", "google/gemma-2-2b"]


def naive(model, prompt, count, stops=()):
    """Greedy tokens by full passes of transformers' own model, and their losses after the prompt and without it."""
    reference = AutoModelForCausalLM.from_pretrained(model.ref, dtype=torch.float32, attn_implementation="eager")
    begin = model.tokenizer.bos_token_id
    given = [begin, *model.tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    new = []
    with torch.no_grad():
        while len(new) < count and not set(new) & set(stops):
            new.append(reference(torch.tensor([given + new])).logits[0, -1].argmax().item())
        losses = []
        for before in (given, [begin]):
            logits = reference(torch.tensor([before + new])).logits[0].log_softmax(-1)
            said = [logits[len(before) - 1 + i, token].item() for i, token in enumerate(new)]
            losses.append(-sum(said) / len(said))
    return new, losses


@pytest.mark.parametrize("id", ARCHITECTURES)
def test_a_batch_gives_what_each_prompt_gives_alone(hub_root, id):
    model = load_model(str(hub_root / "models" / id))
    found = generate_texts(model, PROMPTS, max_new_tokens=6, batch_size=3)
    for prompt, response in zip(PROMPTS, found, strict=True):
        new, (after, alone) = naive(model, prompt, 6)
        assert response.text == model.tokenizer.decode(new, skip_special_tokens=True).strip()
        assert response.tokens == 6
        assert response.nll == pytest.approx(after, abs=1e-4)
        assert response.nll_alone == pytest.approx(alone, abs=1e-4)
        assert abs(after - alone) > 1e-3, "the prompt must matter for this test to say anything"


def test_a_response_ends_with_the_first_stop_token(random_models, monkeypatch):
    model = random_models[1]
    answers = {prompt: naive(model, prompt, 6)[0] for prompt in PROMPTS}
    prompt, stop = next(
        (prompt, new[i]) for prompt, new in answers.items() for i in range(1, 5) if new[i] not in new[:i]
    )  # a token that comes up in the middle of a response
    monkeypatch.setattr(model.bridge.original_model.generation_config, "eos_token_id", [stop])
    expected, (after, alone) = naive(model, prompt, 6, stops=[stop])
    assert 2 <= len(expected) < 6
    response = generate_texts(model, PROMPTS, max_new_tokens=6)[PROMPTS.index(prompt)]
    assert response.tokens == len(expected)
    assert response.text == model.tokenizer.decode(expected, skip_special_tokens=True).strip()
    assert (response.nll, response.nll_alone) == pytest.approx((after, alone), abs=1e-4)


@pytest.mark.parametrize("steered", [False, True])
@pytest.mark.parametrize("first", [1, 2, 5])
def test_rows_that_have_ended_leave_their_batch(random_models, monkeypatch, first, steered):
    """Responses in stages are those made at once, and no stage has a row that has ended."""
    model, made = random_models[1], []
    push = 3 * torch.linspace(-1, 1, model.d_model)
    options = {"layer": 2, "edit": lambda residual: residual + push} if steered else {}
    given = [[0, *model.tokenizer(prompt, add_special_tokens=False)["input_ids"]] for prompt in PROMPTS]
    whole = [model.generate(torch.tensor([ids]), 12, **options)[0].tolist() for ids in given]
    stop = next(token for row in whole for place, token in enumerate(row) if place > 1 and token not in row[:place])
    monkeypatch.setattr(model.bridge.original_model.generation_config, "eos_token_id", [stop])
    ended = generate_texts(model, PROMPTS, max_new_tokens=12, **options)
    monkeypatch.setattr(generation, "FIRST_STAGE", first)
    generate = model.generate

    def counted(rows, count, **more):
        made.append((len(rows), count))
        return generate(rows, count, **more)

    monkeypatch.setattr(model, "generate", counted)
    found = generate_texts(model, PROMPTS, max_new_tokens=12, **options)
    for one, other in zip(found, ended, strict=True):
        assert (one.text, one.tokens, one.cut) == (other.text, other.tokens, other.cut)
        assert (one.nll, one.nll_alone) == pytest.approx((other.nll, other.nll_alone), abs=1e-4)
    lengths = [one.tokens for one in ended]
    assert min(lengths) < 12, "some end"
    totals = [first]
    while totals[-1] < 12:
        totals.append(min(2 * totals[-1], 12))
    left = [(sum(length > before for length in lengths), now - before) for before, now in zip([0, *totals], totals)]
    assert made == [(rows, count) for rows, count in left if rows]
    made.clear()
    generate_texts(model, PROMPTS, max_new_tokens=12, temperature=1.0, **options)
    assert made == [(4, 12)], "a sample is drawn at once, so that its seed says what it is"


def test_a_batch_stops_when_all_of_its_rows_have_ended(random_models, monkeypatch):
    model, steps = random_models[1], []
    first = {prompt: naive(model, prompt, 3)[0] for prompt in PROMPTS}
    stops = [row[-1] for row in first.values()]
    monkeypatch.setattr(model.bridge.original_model.generation_config, "eos_token_id", stops)
    generate_texts(model, PROMPTS, max_new_tokens=12, layer=2, edit=lambda h: steps.append(h.shape[1]) or h)
    assert len(steps) <= 3


def test_a_response_is_cut_if_no_stop_token_came(random_models, monkeypatch):
    model, prompt = random_models[1], PROMPTS[0]
    new = naive(model, prompt, 6)[0]
    last = next(i for i in range(1, 6) if new[i] not in new[:i])
    monkeypatch.setattr(model.bridge.original_model.generation_config, "eos_token_id", [new[last]])
    for limit, cut in ((last, True), (last + 1, False), (last + 2, False)):
        (found,) = generate_texts(model, [prompt], max_new_tokens=limit)
        assert (found.cut, found.tokens) == (cut, min(limit, last + 1))


def test_each_prompt_can_have_an_edit_of_its_own(random_models, monkeypatch):
    model = random_models[1]
    pushes = torch.randn(4, 1, model.d_model, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(generation, "FIRST_STAGE", 2)
    expected = [
        generate_texts(model, [prompt], max_new_tokens=6, layer=2, edit=lambda h, push=push: h + 3 * push)[0]
        for prompt, push in zip(PROMPTS, pushes)
    ]
    for batch_size in (1, 3, 4):
        each = {"layer": 2, "edits": lambda numbers: lambda h: h + 3 * pushes[numbers], "batch_size": batch_size}
        assert [r.text for r in generate_texts(model, PROMPTS, max_new_tokens=6, **each)] == [r.text for r in expected]
    assert len({response.text for response in expected}) > 1


def test_an_edit_steers_the_text_and_not_its_losses(random_models):
    model = random_models[1]
    push = 3 * torch.linspace(-1, 1, model.d_model)
    plain = generate_texts(model, PROMPTS, max_new_tokens=6)
    quick = generate_texts(model, PROMPTS, max_new_tokens=6, losses=False)
    assert [one.text for one in quick] == [one.text for one in plain]
    assert all(one.nll != one.nll and one.nll_alone != one.nll_alone for one in quick), "not a number"
    steered = generate_texts(model, PROMPTS, max_new_tokens=6, layer=2, edit=lambda residual: residual + push)
    assert [r.text for r in steered] != [r.text for r in plain]
    for prompt, response in zip(PROMPTS, steered):
        ids = [model.tokenizer.bos_token_id, *model.tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        new = model.generate(torch.tensor([ids]), 6, layer=2, edit=lambda residual: residual + push)[0]
        losses = model.cross_entropy(torch.tensor([[*ids, *new.tolist()]]))[0, -len(new) :]
        assert response.nll == pytest.approx(losses.mean().item(), abs=1e-4), "judged by the model as it is"


def test_a_beginning_of_text_that_a_prompt_has_is_not_doubled(random_models):
    model = random_models[0]
    begun = [model.tokenizer.bos_token + prompt for prompt in PROMPTS]
    assert generate_texts(model, begun, max_new_tokens=4) == generate_texts(model, PROMPTS, max_new_tokens=4)


def test_prompts_that_cannot_be_answered(random_models):
    model = random_models[0]
    with pytest.raises(ValueError, match="no prompts given"):
        generate_texts(model, [], max_new_tokens=4)
    with pytest.raises(
        ValueError, match=r"a prompt of \d+ tokens \('The cook The cook .*'\.\.\.\) and 4 new ones: .* reads 48 at"
    ):
        generate_texts(model, ["The cook", "The cook " * 40], max_new_tokens=4)
