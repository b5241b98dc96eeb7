"""Steering vectors against their definitions, token by token; clamping exact wherever the model reads or writes."""

import math

import pytest
import torch
from toy_prompts import naive_last

from stitch_utils.data.embedded.world import ASSISTANT, parallel_sentences
from stitch_utils.models.generation import chat, generate_texts
from stitch_utils.steering.prompts import instruction_prompts
from stitch_utils.steering.vectors import (
    MeanStreams,
    SteeringVector,
    clamp,
    language_means,
    last_token_residuals,
    random_direction,
    steering_vector,
    transfer_vector,
)
from stitch_utils.stitching.stitch import Stitch

LAYER = 2


@pytest.fixture(scope="module")
def pairs():
    return parallel_sentences("steering tests", 7, "fr")


def own_vector(model, layer, pairs, **options):
    return steering_vector(language_means(model, layer, pairs, **options))


def naive_mean(model, layer, texts):
    """Mean over the tokens after the beginning-of-text one, a text at a time."""
    rows = []
    for text in texts:
        ids = [model.tokenizer.bos_token_id, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
        rows.append(model.residuals(torch.tensor([ids]), [layer])[layer][0, 1:].double())
    return torch.cat(rows).mean(0)


def toy_stitch(d_a=5, d_b=7):
    generator = torch.Generator().manual_seed(0)
    shapes = ((d_a, d_b), (d_b,), (d_b, d_a), (d_a,))
    return Stitch(*(torch.randn(shape, generator=generator) for shape in shapes))


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_a_vector_is_the_unit_difference_of_the_token_means(random_models, pairs, batch_size):
    model = random_models[1]
    english, french = (naive_mean(model, LAYER, texts) for texts in zip(*pairs))
    difference = french - english
    vector = own_vector(model, LAYER, pairs, batch_size=batch_size)
    torch.testing.assert_close(vector.direction, (difference / difference.norm()).float(), rtol=1e-4, atol=1e-6)
    assert vector.direction.norm().item() == pytest.approx(1, abs=1e-6)
    assert vector.source == pytest.approx((english @ difference / difference.norm()).item(), abs=1e-5)
    assert vector.target == pytest.approx((french @ difference / difference.norm()).item(), abs=1e-5)
    assert vector.target - vector.source == pytest.approx(difference.norm().item(), abs=1e-5)


def test_components_along_another_direction_are_means_over_tokens(random_models, pairs):
    """The mean of <h, v> over tokens is <mean of h, v>: nothing has to be read again for another direction."""
    model, direction = random_models[0], random_direction(32, seed=3)
    vector = steering_vector(language_means(model, 1, pairs), direction)
    components = [(naive_mean(model, 1, texts) @ direction.double()).item() for texts in zip(*pairs)]
    assert [vector.source, vector.target] == pytest.approx(components, abs=1e-5)
    assert torch.equal(vector.direction, direction)


def test_special_tokens_within_a_text_count_for_nothing(random_models):
    model = random_models[1]
    text = "The cook<|endoftext|> bakes a cake."
    ids = [0, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
    stream = model.residuals(torch.tensor([ids]), [LAYER])[LAYER][0]
    ordinary = [i for i, token in enumerate(ids) if token not in model.tokenizer.all_special_ids]
    assert len(ordinary) == len(ids) - 2
    torch.testing.assert_close(
        language_means(model, LAYER, [(text, "Le chef.")]).source,
        stream[ordinary].double().mean(0),
        rtol=1e-5,
        atol=1e-6,
    )


def test_texts_longer_than_the_model_reads_are_cut(random_models):
    model = random_models[0]
    text = "The cook bakes a cake in the kitchen. " * 30
    ids = [0, *model.tokenizer(text, add_special_tokens=False)["input_ids"]][: model.config.max_position_embeddings]
    stream = model.residuals(torch.tensor([ids]), [1])[1][0, 1:].double()
    found = language_means(model, 1, [(text, "Le chef.")])
    torch.testing.assert_close(found.source, stream.mean(0), rtol=1e-5, atol=1e-6)


def test_the_strength_goes_from_english_to_the_language_and_beyond():
    vector = SteeringVector(torch.ones(1), source=-1.0, target=3.0)
    assert [vector.z(s) for s in (0, 0.5, 1, 2)] == [-1.0, 1.0, 3.0, 7.0]
    assert vector.z() == 3.0


@pytest.mark.parametrize("z", [0.0, -3.7, 25.0])
def test_clamping_sets_one_component_and_leaves_the_rest(z):
    h = 4 * torch.randn(3, 11, 48, generator=torch.Generator().manual_seed(1))
    v = random_direction(48, seed=2)
    steered = clamp(v, z)(h)
    torch.testing.assert_close(steered @ v, torch.full((3, 11), z), rtol=0, atol=1e-5)
    across = torch.eye(48) - v[:, None] * v
    torch.testing.assert_close(steered @ across, h @ across, rtol=0, atol=1e-5)
    torch.testing.assert_close(clamp(5 * v, z)(h), steered, rtol=0, atol=1e-5)
    each, at = torch.stack([v, 3 * random_direction(48, seed=3), -v]), torch.tensor([z, 1.5, -2.0])
    rows = clamp(each, at)(h)
    for row, direction, component in zip(range(3), each, at.tolist()):
        torch.testing.assert_close(rows[row], clamp(direction, component)(h[row]), rtol=0, atol=1e-5)


def test_a_bfloat16_stream_is_rounded_once():
    h = (30 * torch.randn(4, 9, 64, generator=torch.Generator().manual_seed(1))).bfloat16()
    v = random_direction(64, seed=2)
    exact = h.double() + (7.0 - h.double() @ v.double())[..., None] * v.double()
    steered = clamp(v, 7.0)(h)
    assert steered.dtype == torch.bfloat16
    assert (steered == exact.bfloat16()).float().mean() > 0.995, "float32 and float64 round alike but for ties"
    assert ((steered.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all()


def test_clamping_is_exact_at_every_position_of_prompt_and_response(random_models):
    model = random_models[1]
    v, z, seen = random_direction(48, seed=5), 2.5, []

    def recorded(residual):
        steered = clamp(v, z)(residual)
        seen.append((residual.clone(), steered.clone()))
        return steered

    prompts = ["The cook", "The cook bakes a cake in the kitchen."]
    responses = generate_texts(model, prompts, max_new_tokens=6, layer=LAYER, edit=recorded)
    assert [len(after) for _, after in seen] == [2] * len(seen)
    assert len(seen) >= 6 and sum(after.shape[1] for _, after in seen) >= 6 + 5, "the prompt, and each new token"
    across = torch.eye(48) - v[:, None] * v
    for before, after in seen:
        torch.testing.assert_close(after @ v, torch.full(after.shape[:2], z), rtol=0, atol=1e-5)
        torch.testing.assert_close(after @ across, before @ across, rtol=0, atol=1e-5)
    # What the blocks after it got is the steered stream: full passes with the edit choose the same tokens.
    for prompt, response in zip(prompts, responses):
        ids = torch.tensor([[0, *model.tokenizer(prompt, add_special_tokens=False)["input_ids"]]])
        start = ids.shape[1]
        for _ in range(6):
            logits = model.logits(ids, layer=LAYER, edit=clamp(v, z))[:, -1:]
            ids = torch.cat([ids, logits.argmax(-1)], 1)
        assert response.text == model.tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip()


@pytest.mark.parametrize(("towards", "width"), [("b", 5), ("a", 7)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_direction_is_carried_by_the_matrix_and_made_unit(towards, width, with_bias):
    stitch = toy_stitch()
    v = torch.randn(width, generator=torch.Generator().manual_seed(4))
    matrix, bias = (stitch.P_up, stitch.b_up) if towards == "b" else (stitch.P_down, stitch.b_down)
    v_list, rows, shift = v.tolist(), matrix.tolist(), bias.tolist()
    image = [sum(v_list[i] * rows[i][j] for i in range(width)) + with_bias * shift[j] for j in range(len(shift))]
    length = math.sqrt(sum(x * x for x in image))
    moved = transfer_vector(v, stitch, to=towards, with_bias=with_bias)
    assert moved.tolist() == pytest.approx([x / length for x in image], abs=1e-6)
    longer = transfer_vector(3 * v, stitch, to=towards, with_bias=with_bias)
    assert torch.allclose(longer, moved, atol=1e-6) != with_bias, "its length matters only beside a bias"


def test_random_directions_are_unit_and_differ_by_seed():
    first, again, other = (random_direction(400, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and first.norm().item() == pytest.approx(1, abs=1e-6)
    assert abs((first @ other).item()) < 0.2


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


def test_an_instructions_vector_is_the_unit_difference_of_means(random_models, pair):
    model = random_models[1]
    prompts = instruction_prompts(pair, "upper", 7, "fit")
    given, without = (chat(model, [getattr(p, side) for p in prompts]) for side in ("given", "without"))
    streams = (last_token_residuals(model, 2, texts, batch_size=3) for texts in (without, given))
    vector = steering_vector(MeanStreams(*(stream.double().mean(0) for stream in streams)))
    high, low = naive_last(model, 2, given).double(), naive_last(model, 2, without).double()
    difference = high.mean(0) - low.mean(0)
    torch.testing.assert_close(vector.direction.double(), difference / difference.norm(), rtol=1e-4, atol=1e-5)
    assert vector.target == pytest.approx((high @ vector.direction.double()).mean().item(), abs=1e-4)
    assert vector.source == pytest.approx((low @ vector.direction.double()).mean().item(), abs=1e-4)
    assert vector.target - vector.source == pytest.approx(difference.norm().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: language_means(m, 1, []), "no parallel texts given: expected at least one pair"),
        (lambda m: language_means(m, 1, [("", "x")]), "1 texts without an ordinary token, such as ''"),
        (lambda m: language_means(m, 9, [("a", "x")]), r"layer 9 of .* does not exist: it has 3 layers \(0-2\)"),
        (lambda m: own_vector(m, 1, [("a b", "a b")]), "difference of the two means has length 0"),
        (lambda m: steering_vector(MeanStreams(torch.zeros(4), torch.ones(4)), torch.ones(3)), "width 3 .* width 4"),
        (lambda m: transfer_vector(torch.ones(5), toy_stitch(), to="up"), "'up': expected 'a' or 'b'"),
        (lambda m: transfer_vector(torch.ones(5), toy_stitch(), to="a"), "width 5: the map towards a takes 7"),
        (
            lambda m: transfer_vector(torch.zeros(5), toy_stitch(), to="b"),
            "image of the direction has length 0",
        ),
        (lambda m: clamp(torch.eye(3)[:, :2], torch.ones(3)), "the direction has length 0: expected a positive one"),
        (lambda m: clamp(torch.full((3,), torch.nan), 1.0), "the direction has length nan: expected a positive one"),
    ],
)
def test_what_makes_no_sense_is_refused(random_models, call, message):
    with pytest.raises(ValueError, match=message):
        call(random_models[0])
