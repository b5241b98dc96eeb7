"""Probes and vectors by which maps are compared: against arithmetic on the texts' mean streams."""

import numpy as np
import pytest
import torch

from stitch_utils.probing.carried import ReadTexts, contrasts_of, judge_carrying, read_texts
from stitch_utils.probing.probes import mean_activations
from stitch_utils.probing.tasks import ProbingTask
from stitch_utils.stitching.pair import StitchedPair
from stitch_utils.stitching.stitch import Stitch

TEXTS = {True: ("the cat sees a dog", "a cat sleeps"), False: ("le chat voit un chien", "un chat dort")}


def task(name, dataset="set"):
    order = (True, False, False, True)  # not sorted by class
    texts = tuple(TEXTS[label][number // 2] for number, label in enumerate(order))
    return ProbingTask(name, dataset, texts, order, texts[::-1], order[::-1])


def random_texts(seed, d_a=6, d_b=4, n=80):
    """A question that one direction of A answers, with B a linear image of A: (texts, the matrix from B to A)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(2 * n) % 2 == 0
    y = rng.normal(size=(2 * n, d_b)) + 1.5 * np.where(labels, 1, -1)[:, None] * rng.normal(size=d_b)
    back = rng.normal(size=(d_b, d_a))
    of = {"a": (y @ back).astype(np.float32), "b": y.astype(np.float32)}
    half = tuple(map(str, range(n))), tuple(labels[:n].tolist())
    parts = ({side: rows[part] for side, rows in of.items()} for part in (slice(n), slice(n, None)))
    return ReadTexts(ProbingTask(f"{seed}", f"{seed}", *half, *half), *parts), back


def stitch_of(up, down):
    up, down = (torch.as_tensor(np.asarray(matrix), dtype=torch.float32) for matrix in (up, down))
    return Stitch(up, torch.zeros(up.shape[1]), down, torch.zeros(down.shape[1]))


def test_texts_are_read_in_their_order_and_by_both_models(pair, models):
    stitched = StitchedPair(pair, models, (1, 2), "smoke")
    (first, other) = read_texts(stitched, [task("one"), task("two"), task("three", "other")])
    assert (first.task.name, other.task.name) == ("one", "three"), "the first of each data set"
    for side, model, layer in zip("ab", models, (1, 2)):
        for part, texts in ((first.train, first.task.train_texts), (first.test, first.task.test_texts)):
            alone = [mean_activations(model, layer, [text], {"x": lambda x: x})["x"][0] for text in texts]
            np.testing.assert_allclose(part[side], alone, rtol=1e-3, atol=1e-4)
    x = first.train["a"]
    dx, dy = contrasts_of([first, other])
    np.testing.assert_allclose(dx[:2], [x[0] - x[1], x[3] - x[2]])
    assert dx.shape == (4, models[0].d_model) and dy.shape == (4, models[1].d_model)
    np.testing.assert_allclose(first.direction("a"), (x[0] + x[3] - x[1] - x[2]) / 2, atol=1e-5)


def test_a_map_that_undoes_the_models_difference_carries_all_and_another_does_not():
    one, back = random_texts(0)
    two, _ = random_texts(1)
    two = two._replace(
        **{part: {**getattr(two, part), "a": getattr(two, part)["b"] @ back} for part in ("train", "test")}
    )
    right, wrong = stitch_of(np.linalg.pinv(back), back), stitch_of(-np.linalg.pinv(back), -back)
    found = judge_carrying([one, two], {"right": right, "wrong": wrong})
    assert found["right"].accuracy.value > 0.9 and found["right"].difference == (0, 0, 0)
    assert found["wrong"].accuracy.value == pytest.approx(1 - found["right"].accuracy.value, abs=0.1)
    assert found["wrong"].difference.value == pytest.approx(
        found["wrong"].accuracy.value - found["right"].accuracy.value
    )
    assert found["wrong"].difference.high < 0
    assert found["right"].cosine == pytest.approx(1, abs=1e-4) and found["wrong"].cosine == pytest.approx(-1, abs=1e-4)


def test_the_probe_goes_by_the_map_down_and_the_vector_by_the_map_up():
    one, back = random_texts(0)
    mixed = stitch_of(-np.linalg.pinv(back), back)
    found = judge_carrying([one], {"mixed": mixed})["mixed"]
    assert found.accuracy.value > 0.9 and found.cosine == pytest.approx(-1, abs=1e-4)
