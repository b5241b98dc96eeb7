"""The script that tries embedded pairs, on tiny ones."""

import json
from dataclasses import replace

import pytest

import tools.pair_trials
from stitch_utils.data.hub import EMBEDDED
from stitch_utils.stitching.evaluation import CONDITIONS
from tools.pair_trials import ANSWERED, GAP, TRIALS, WRITTEN, Trial, chosen, judge, run, try_tasks
from tools.train_pair import PAIR, VOCABULARY, TrainingConfig

MICRO = [
    TrainingConfig(name, seed, 16, 2, 2, learning_rate=1e-2, tokens=12 * 8 * 256, batch_size=8, warmup_steps=3)
    for name, seed in (("a", 1), ("b", 2))
]
SIZES = {"TRAINING_DOCUMENTS": 300, "TOKENIZER_DOCUMENTS": 100, "FIT_TOKENS": 3000, "CHOICE_DOCUMENTS": 4}
SIZES |= {"JUDGED_DOCUMENTS": 6, "CONTINUATIONS": 1, "REQUESTS": 2}


@pytest.fixture
def small(monkeypatch):
    for name, size in SIZES.items():
        monkeypatch.setattr(tools.pair_trials, name, size)
    trials = {
        "first": Trial("whether it runs", *MICRO, vocabulary=400),
        "second": Trial("wider", MICRO[0], replace(MICRO[1], hidden_size=24), vocabulary=400),
    }
    monkeypatch.setattr(tools.pair_trials, "TRIALS", trials)


def test_trials_are_kept_and_a_model_of_two_is_trained_once(small, tmp_path, monkeypatch):
    trained, train_one = [], tools.pair_trials.train_one
    monkeypatch.setattr(tools.pair_trials, "train_one", lambda *given: (trained.append(given[0]), train_one(*given))[1])
    kept = tmp_path / "trials.json"
    found = [run(name, tmp_path, kept) for name in ("first", "second")]
    assert json.loads(kept.read_text()) == json.loads(json.dumps(dict(zip(("first", "second"), found))))
    assert trained == [*MICRO, replace(MICRO[1], hidden_size=24)]
    for trial in found:
        assert trial["layers"] == (1, 1) and set(trial["by_layers"]) == {"1-1"}
        assert trial["gap"] == pytest.approx(trial["own"]["a"] - trial["own"]["b"], abs=2e-4)
        rises = {each: trial["fitted"][each] / trial["own"][host] - 1 for each, host in CONDITIONS.items()}
        assert trial["rises"] == pytest.approx(rises, abs=1e-3)
        assert 0 <= trial["written"] < WRITTEN and trial["answered"] == 0, "it has seen next to nothing"
        assert trial["worse_rise"] == max(trial["rises"]["a_to_b"], trial["rises"]["b_to_a"])


def test_a_pair_of_one_model_costs_nothing(small, tmp_path):
    folder, _ = tools.pair_trials.train(MICRO[0], 400, tmp_path)
    found = judge(folder, folder)
    assert found["worse_rise"] == pytest.approx(0, abs=2e-3) and found["gap"] == 0


def test_the_pair_that_is_shipped_is_the_one_that_the_criterion_chooses():
    trial = TRIALS[chosen(json.loads(tools.pair_trials.KEPT.read_text()))]
    assert trial.vocabulary == VOCABULARY
    for side, shipped in zip((trial.a, trial.b), PAIR):
        assert replace(side, name=shipped.name) == shipped


def test_the_shipped_b_writes_its_languages_and_answers_in_the_one_that_is_asked_for():
    found = try_tasks(EMBEDDED / "tiny-b")
    assert found["written"] >= WRITTEN and found["answered"] >= ANSWERED
    trials = json.loads(tools.pair_trials.KEPT.read_text())
    assert found == pytest.approx({key: trials[chosen(trials)][key] for key in found}, abs=0.05)


def test_the_criterion_takes_the_least_rise_among_pairs_whose_b_is_better_and_does_its_tasks():
    able = {"gap": GAP, "written": WRITTEN, "answered": ANSWERED}
    trials = {
        "no gap": able | {"worse_rise": 0.1, "gap": GAP - 0.001},
        "writes badly": able | {"worse_rise": 0.1, "written": WRITTEN - 0.01},
        "does not listen": able | {"worse_rise": 0.1, "answered": ANSWERED - 0.01},
        "not tried": {"worse_rise": 0.1, "gap": GAP},
        "higher": able | {"worse_rise": 0.3, "gap": 1.0},
        "best": able | {"worse_rise": 0.2},
    }
    assert chosen(trials) == "best" and chosen({}) is None
    assert not any(chosen({name: trials[name]}) for name in list(trials)[:4])


def test_every_trial_that_was_made_is_recorded_and_asked_something():
    for name, trial in json.loads(tools.pair_trials.KEPT.read_text()).items():
        assert TRIALS[name].question == trial["question"]
        assert (
            trial["a"]["hidden_size"] == TRIALS[name].a.hidden_size and trial["vocabulary"] == TRIALS[name].vocabulary
        )
