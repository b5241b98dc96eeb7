"""The pair that is shipped: weights, text and training report belong together; what the book shows of it."""

from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest

import stitch_utils.data.embedded
from stitch_utils.book import portrait
from stitch_utils.data.embedded.world import documents
from stitch_utils.data.pairs import load_pair
from stitch_utils.models.language_model import load_model
from tools.train_pair import HELD_OUT_DOCUMENTS, PAIR, TRAINING_DOCUMENTS, VOCABULARY, held_out_loss, pack

FOLDER = Path(stitch_utils.data.embedded.__file__).parent


@pytest.fixture(scope="module")
def report():
    return portrait.recorded("training")


@pytest.mark.parametrize("config", PAIR, ids=lambda config: config.name)
def test_the_shipped_weights_reach_the_recorded_loss(config, report):
    """Fails when weights, tokenizer or world are changed without the others."""
    model = load_model(f"embedded:{config.name}")
    texts = [document.text for document in documents(f"held-out:{report['seed']}", stop=HELD_OUT_DOCUMENTS)]
    rows = pack(model.tokenizer, texts, config.context)
    found = held_out_loss(model.bridge.original_model, rows)
    assert found == pytest.approx(report["models"][config.name]["held_out_loss"], abs=2e-3)


def test_b_is_better_than_a_by_a_tenth_of_a_nat(report):
    a, b = (report["models"][config.name]["held_out_loss"] for config in PAIR)
    assert a - b >= 0.1


def test_weights_take_two_bytes_a_parameter_and_all_of_the_pair_is_small_for_a_repository(report):
    for config in PAIR:
        weights = (FOLDER / config.name / "model.safetensors").stat().st_size
        assert weights == pytest.approx(2 * report["models"][config.name]["parameters"], rel=0.01)
    assert sum(path.stat().st_size for path in FOLDER.glob("tiny-*/*")) < 20e6


def test_the_report_is_of_the_configuration_that_is_in_the_code(report):
    sizes = {"vocabulary": VOCABULARY, "documents": TRAINING_DOCUMENTS, "held_out_documents": HELD_OUT_DOCUMENTS}
    assert sizes.items() <= report.items() and set(report["models"]) == {config.name for config in PAIR}
    for config in PAIR:
        recorded = report["models"][config.name]
        assert asdict(config).items() <= recorded.items() and recorded["steps"] == config.steps
    assert PAIR[0].seed != PAIR[1].seed


def test_the_pairs_file_names_these_models_and_the_context_of_their_training():
    tiny = load_pair("tiny")
    assert [tiny.a.model, tiny.b.model] == [f"embedded:{config.name}" for config in PAIR]
    assert {config.context for config in PAIR} == {tiny.context}


def test_continuations_are_of_the_beginning_alone_and_repeat():
    model = load_model("embedded:tiny-a")
    samples = portrait.sample_continuations(model, per_language=2, seed=3)
    assert samples.equals(portrait.sample_continuations(model, per_language=2, seed=3))
    assert len(samples) == 2 * len(portrait.LANGUAGES) == 2 * len(portrait.one_of_each(samples))
    stories = documents("portrait:3", stop=2, language="fr", format="story")
    for given, story in zip(samples[samples["language"] == "fr"]["given"], stories):
        assert story.text.startswith(given) and len(given) < len(story.text)


def test_recognised_shares_count_what_is_long_enough():
    english, french = (
        "The baker opens the window of the kitchen every day.",
        "Le boulanger ouvre la fenêtre de la cuisine.",
    )
    samples = [("en", "", text) for text in (english, english, french, "Too short.")]
    samples += [(language, "", french) for language in portrait.LANGUAGES if language != "en"]
    samples = pd.DataFrame(samples, columns=["language", "given", "continued"])
    shares = portrait.recognised_shares(samples)
    assert shares["en"].value == pytest.approx(2 / 3)
    assert shares["fr"].value == 1 and shares["de"].value == 0
    assert portrait.recognised_shares(samples[:0]) == {}
