"""Open-ended tasks: texts that are so and that are not, and responses under every vector."""

import dataclasses

import numpy as np
import pytest
import torch

from stitch_utils.data.pairs import DatasetRef, load_pair
from stitch_utils.models.generation import generate_texts
from stitch_utils.steering import free_tasks
from stitch_utils.steering.behaviours import world_behaviour
from stitch_utils.steering.free_tasks import FreeTask, sweep_free_tasks
from stitch_utils.steering.prompts import steering_prompts
from stitch_utils.steering.sweep import Cell, SweepConfig
from stitch_utils.steering.vectors import add
from stitch_utils.stitching.pair import StitchedPair
from stitch_utils.utils.stats import clopper_pearson

LAYERS = (1, 2)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_free_tasks_of_the_world_and_of_english(small_pair, monkeypatch):
    pair = load_pair(small_pair())
    tasks = {task.name: task for task in free_tasks.free_tasks(pair, 3)}
    assert list(tasks) == ["capitals", "sea", "french"]
    assert tasks["sea"].contrasts == world_behaviour("sea", contrasts=3, choices=1).contrasts
    assert tasks["sea"].is_done("The Lighthouses are old.") and not tasks["sea"].is_done("The boaters see a horse.")
    assert tasks["capitals"].is_done("THE COOK BAKES THE CAKE.") and not tasks["capitals"].is_done("The cook BAKES.")
    french = "Le boulanger goûte le fromage à la maison."
    assert tasks["french"].is_done(french) and not tasks["french"].is_done("The cook sees it.")
    for task in tasks.values():
        assert len(task.contrasts) == 3 and not task.is_done("")
    spoken = dataclasses.replace(pair, datasets={"parallel": DatasetRef("x")})
    monkeypatch.setattr(
        free_tasks, "parallel_pairs", lambda pair, language, n: [(f"It {i}", f"Ce {i}") for i in range(n)]
    )
    tasks = {task.name: task for task in free_tasks.free_tasks(spoken, 15)}
    assert list(tasks) == ["capitals", "dogs", "french"]
    assert tasks["capitals"].contrasts[2] == ("IT 2", "It 2") and tasks["french"].contrasts[2] == ("Ce 2", "It 2")
    assert len(set(tasks["dogs"].contrasts)) == 15
    assert all("dog" in first and first.replace("dog", "x") != second for first, second in tasks["dogs"].contrasts)
    assert all(
        tasks["dogs"].is_done(first) and not tasks["dogs"].is_done(second) for first, second in tasks["dogs"].contrasts
    )
    assert tasks["dogs"].is_done("Two PUPPIES.") and not tasks["dogs"].is_done("Hot dogma.")


def test_responses_under_every_vector(small_pair, models):
    pair, model = load_pair(small_pair(context=40)), models[1]
    config = SweepConfig(prompts=3, choosing_prompts=2, strengths=(1.0, 4.0), max_new_tokens=5, batch_size=2)
    tasks = [FreeTask("long", (), lambda text: len(text) > 12), FreeTask("never", (), lambda text: False)]
    directions = {
        task.name: {
            "native": 2 * normal(48, seed=i),
            "transferred": normal(48, seed=i + 5),
            "random": normal(48, seed=9),
        }
        for i, task in enumerate(tasks)
    }
    found = sweep_free_tasks(StitchedPair(pair, models, LAYERS, "smoke"), tasks, directions, config, unit=2.0)
    prompts = steering_prompts(pair, 3, tokenizer=model.tokenizer, split="evaluated")
    for task in tasks:
        at = found.chosen[task.name]
        keys = {("none", 0.0), ("random", at), *((c, s) for c in ("native", "transferred") for s in config.strengths)}
        cells = {(c.condition, c.strength) for c in found.cells if c.split == "evaluated" and c.of == task.name}
        assert cells == keys
        edit = add(directions[task.name]["transferred"], 8.0)
        expected = generate_texts(model, prompts, max_new_tokens=5, batch_size=2, layer=LAYERS[1], edit=edit)
        for one, other in zip(
            found.cells[Cell("evaluated", "b", "transferred", task.name, 4.0)].responses, expected, strict=True
        ):
            assert (one.text, one.tokens) == (other.text, other.tokens)
            assert one.nll == pytest.approx(other.nll, abs=1e-4)
        done = [task.is_done(response.text) for response in expected]
        assert found.share("b", "transferred", task.name, 4.0) == clopper_pearson(sum(done), 3)
    assert found.chosen["never"] == 4.0, "what fails does not fail for want of strength"
    numbers = found.numbers("mine")
    means = {one: found.mean_share("b", one).value for one in ("none", "native", "transferred", "random")}
    assert numbers["lrt.mine.steering.gain"] == pytest.approx(means["transferred"] - means["none"])
    assert numbers["lrt.mine.steering.over_random"] == pytest.approx(means["transferred"] - means["random"])
    assert "lrt.mine.steering.over_components" not in numbers, "such vectors were not given"
    shares = [found.share("b", "native", task.name).value for task in tasks]
    assert found.mean_share("b", "native").value == pytest.approx(np.mean(shares))
    losses = {
        condition: np.mean([r.nll for task in tasks for r in found.answers("b", condition, task.name).responses])
        for condition in ("none", "native")
    }
    assert found.nll_rise("b", "native").value == pytest.approx(losses["native"] - losses["none"], abs=1e-5)
    assert found.nll_rise("b", "none").value == 0
