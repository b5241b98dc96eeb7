"""The world's requests and their answers, and the sentences that the experiments read."""

import collections
import functools
import json
import re

import numpy as np
import pytest
from langdetect import DetectorFactory, detect

from stitch_utils.data.embedded.frames import TOPICS, labels_of
from stitch_utils.data.embedded.grammar import LANGUAGES, load_concepts, load_lexicon, realise
from stitch_utils.data.embedded.world import (
    ASSISTANT,
    END,
    INSTRUCTIONS,
    USER,
    augmented_sentences,
    documents,
    labelled_sentences,
    parallel_sentences,
    people,
    requests,
    sentence_frames,
)

DetectorFactory.seed = 0
in_every_language = pytest.mark.parametrize("language", LANGUAGES)


@functools.cache
def stream():
    """The first 3000 documents of one seed."""
    return tuple(documents("test", stop=3000))


# --- requests --------------------------------------------------------------------------------------------------------


@in_every_language
@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_answers_follow_their_instruction(language, instruction):
    lex = load_lexicon(language)
    for request in requests("asked", 24, language=language, instruction=instruction):
        answer = request.answer
        assert request.prompt[0] != " " and request.prompt[-1] in ".?"
        assert not re.search(r"[{}]|  ", request.prompt + request.instruction_text)
        assert (request.answer_language == language) == (instruction != "language")
        match instruction:
            case None:
                assert request.instruction_text == ""
                assert re.fullmatch(r"([¿¡]?[A-ZÀ-ÖØ-ÞȘȚ][^.!?]*[.!?]( |$)){3,6}", answer), answer
            case "upper":
                assert not any(letter.islower() for letter in answer) and any(letter.isupper() for letter in answer)
            case "lower":
                assert not any(letter.isupper() for letter in answer) and any(letter.islower() for letter in answer)
            case "quotes":
                assert re.fullmatch(r'"[^"]+[.!?]"', answer)
            case "bullets":
                lines = answer.split("\n")
                assert 3 <= len(lines) <= 6 and all(re.fullmatch(r"- [^.!?]+[.!?]", line) for line in lines)
            case "json":
                record = json.loads(answer)
                assert list(record) == [lex.json_keys[key] for key in ("who", "does", "what")]
                assert record[lex.json_keys["who"]] in people() and all(record.values())
            case "no_commas":
                assert "," not in answer and answer[-1] in ".!?"
            case "closing":
                assert answer.endswith(f" {lex.closing}") and request.instruction_text.endswith(lex.closing)
            case "language":
                assert lex.language_names[request.answer_language] in request.instruction_text
                assert load_lexicon(language).closing not in answer


def test_answers_in_another_language_are_in_it():
    right = []
    for language in ("en", "de", "fi"):
        answers = requests("foreign", 60, language=language, instruction="language")
        right += [detect(request.answer) == request.answer_language for request in answers]
        assert {request.answer_language for request in answers} == set(LANGUAGES) - {language}
    assert np.mean(right) >= 0.95


def test_answers_are_about_what_was_asked():
    """A form of the thing stands in the prompt and in the answer."""
    nouns, found = load_lexicon("en").nouns, 0
    for index, request in enumerate(requests("about", 100, language="en")):
        things = [
            thing
            for thing in load_concepts()["topics"][TOPICS[index % len(TOPICS)]]["objects"]
            if re.search(rf"\b({nouns[thing]['sg']}|{nouns[thing]['pl']})\b", request.prompt)
        ]
        assert len(things) == 1
        found += bool(re.search(rf"\b({nouns[things[0]]['sg']}|{nouns[things[0]]['pl']})\b", request.answer))
    assert found == 100


def test_requests_among_the_documents_are_chats_or_plain():
    chats = 0
    asked = [document for document in stream() if document.format == "request"]
    counts = collections.Counter(document.labels["instruction"] for document in asked)
    assert set(counts) == {kind or "none" for kind in INSTRUCTIONS}
    for document in asked:
        if document.text.startswith(USER):
            prompt, answer = document.text.removeprefix(USER).removesuffix(END).split(ASSISTANT)
            assert document.text.endswith(END) and prompt and answer
            chats += 1
        else:
            assert "<|" not in document.text and "\n" in document.text
    assert 0.6 < chats / len(asked) < 0.8


# --- sentences for the experiments -----------------------------------------------------------------------------------


@in_every_language
def test_parallel_sentences_say_the_same(language):
    pairs, frames = parallel_sentences("parallel", 60, language), sentence_frames("parallel", 60)
    whose, lex = re.compile("|".join(people())), load_lexicon(language)
    for (english, other), frame in zip(pairs, frames, strict=True):
        assert (english, other) == (realise(frame, "en"), realise(frame, language))
        assert whose.findall(other) == whose.findall(english)
        assert other[-1] == english[-1]
        assert (other == english) == (language == "en")
        for noun in (frame.object, frame.object2):
            if noun:
                forms = [form for key, form in lex.nouns[noun.concept].items() if key != "class"]
                assert any(form.lower() in other.lower() for form in forms), (other, noun)
        for phrase in (frame.place, frame.time, frame.manner):
            assert phrase is None or lex.phrases[phrase].lower() in other.lower()


def test_parallel_sentences_have_one_english_side():
    sides = {tuple(english for english, _ in parallel_sentences("one", 30, language)) for language in LANGUAGES}
    assert len(sides) == 1
    assert len(set(*sides)) >= 29


def test_augmented_sentences_come_in_groups_of_other_topics():
    groups = augmented_sentences("groups", 30, 4)
    frames = sentence_frames("groups", 30)
    assert groups == augmented_sentences("groups", 30, 4)
    for group, frame in zip(groups, frames, strict=True):
        assert len(group) == 5 and group[0] == realise(frame, "en")
        assert group[0] not in group[1:]
        assert {sentence[-1] for sentence in group} == {group[0][-1]}
    # The original is the same however many versions follow it.
    assert [group[0] for group in augmented_sentences("groups", 30, 1, language="en")] == [group[0] for group in groups]


def test_labelled_sentences_carry_the_labels_of_their_frame():
    frames = sentence_frames("labels", 40)
    for (sentence, labels), frame in zip(labelled_sentences("labels", 40, "sv"), frames, strict=True):
        assert sentence == realise(frame, "sv") and labels == labels_of(frame)
