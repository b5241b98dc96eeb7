"""Responses to prompts of many lengths are those that each prompt gets by itself, with the loss that is theirs."""

import pytest
import torch
from transformers import AutoModelForCausalLM

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
