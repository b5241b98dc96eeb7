"""The judge: right on plain text, on capitals, on nothing, and the same every time."""

import pytest

from stitch_utils.steering.verifiers import detect_language

SENTENCES = {
    "en": "The baker opens the window because the kitchen is too warm.",
    "de": "Der Bäcker öffnet das Fenster, weil die Küche zu warm ist.",
    "fr": "Le boulanger ouvre la fenêtre parce que la cuisine est trop chaude.",
    "fi": "Leipuri avaa ikkunan, koska keittiössä on liian kuuma.",
    "hu": "A pék kinyitja az ablakot, mert a konyhában túl meleg van.",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_sentences_in_lower_case_and_in_capitals(language):
    assert detect_language(SENTENCES[language]) == language
    assert detect_language(SENTENCES[language].upper()) == language


def test_the_same_every_time():
    ambiguous = "Lina Varo, Tomo Resta, 34, 12"
    assert len({detect_language(ambiguous) for _ in range(20)}) == 1


@pytest.mark.parametrize("text", ["", "   ", "12 + 34 = 46", "?!"])
def test_text_without_letters(text):
    assert detect_language(text) == "unknown"
