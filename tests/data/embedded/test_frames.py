"""Frames: drawing, re-lexicalising, labelling."""

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from toy_frames import FRAMES, HER, me

from stitch_utils.data.embedded.frames import (
    CONSTRUCTIONS,
    TENSES,
    TOPICS,
    draw_frame,
    labels_of,
    relexicalise,
)
from stitch_utils.data.embedded.grammar import (
    Frame,
    Named,
    Noun,
    load_concepts,
    load_lexicon,
    realise,
)
from stitch_utils.data.embedded.world import sentence_frames

# --- drawing ---------------------------------------------------------------------------------------------------------


def test_drawn_frames_keep_what_is_given():
    names = ("Mira Feneda", "Brino Bozeka")
    for seed in range(300):
        rng = random.Random(seed)
        topic, tense = rng.choice(TOPICS), rng.choice(TENSES)
        words = load_concepts()["topics"][topic]
        about, mood = rng.choice(words["objects"]), rng.choice((1, -1))
        subject = rng.choice((None, HER))
        frame = draw_frame(rng, topic, tense=tense, subject=subject, about=about, mood=mood, names=names)
        assert frame.topic == topic and frame.construction in CONSTRUCTIONS
        # What causes something has not happened yet in the future: those sentences are told in another tense.
        assert frame.tense == tense or (frame.construction == "because" and tense == "fut")
        things = [noun for noun in (frame.object, frame.subject) if isinstance(noun, Noun)]
        if frame.construction not in ("predicate", "exclaim") or not isinstance(frame.subject, Named):
            assert about in [thing.concept for thing in things], frame
        adjectives = [frame.predicate] + [noun.adjective for noun in (*things, frame.object2) if isinstance(noun, Noun)]
        sign, kinds = "positive" if mood > 0 else "negative", load_concepts()["adjectives"]
        assert set(adjectives) <= {None, *kinds[f"thing_{sign}"], *kinds[f"person_{sign}"]}
        spoken = set(frame.subject.names) if isinstance(frame.subject, Named) else set()
        assert (spoken | {frame.speaker}) - {None} <= set(names)
        assert frame.time is None or frame.time in load_concepts()["times"][frame.tense]
        assert frame.place is None or frame.place in words["places"]


def test_verbs_of_a_topic_get_things_that_they_can_be_done_to():
    topics = load_concepts()["topics"]
    allowed = {verb: set(things) for topic in topics.values() for verb, things in topic["verbs"].items()}
    checked = 0
    for frame in sentence_frames("drawn", 400):
        for verb, thing in ((frame.verb, frame.object), (frame.verb2, frame.object2)):
            if verb in allowed:
                assert thing.concept in allowed[verb]
                checked += 1
            elif verb:
                assert verb in load_concepts()["general_verbs"]
                assert thing.concept in topics[frame.topic]["objects"]
    assert checked > 150


def test_the_same_seed_draws_the_same_frame_and_all_constructions_come_up():
    first, again, other = sentence_frames("a", 300), sentence_frames("a", 300), sentence_frames("b", 300)
    assert first == again != other
    assert {frame.construction for frame in first} == set(CONSTRUCTIONS)
    assert {frame.tense for frame in first} == set(TENSES)
    assert {frame.topic for frame in first} == set(TOPICS)


# --- re-lexicalising -------------------------------------------------------------------------------------------------

FUNCTION_WORDS = re.compile(
    "the|do|does|did|not|will|who|so|because|and|says|that|am|is|are|was|were|be|i|we|she|he|they"
)


def english_words(frame):
    """Words and punctuation of the English sentence, without its place, time and manner; particle verbs as one word."""
    text = realise(frame, "en", capital=False)
    for phrase in (frame.place, frame.time, frame.manner):
        if phrase:
            before = text
            text = text.replace(load_lexicon("en").phrases[phrase], "", 1)
            assert text != before
    text = re.sub(r"\b(hangs?|hung) up\b", r"\1_up", text)
    return re.findall(r"\w+|[^\w\s]", text.lower())


def is_content(word):
    return word[0].isalpha() and not FUNCTION_WORDS.fullmatch(word)


def pairs():
    """Frames of every construction beside their re-lexicalised versions."""
    for index, frame in enumerate(sentence_frames("relexicalise", 400)):
        yield frame, relexicalise(frame, random.Random(index), "en")


def test_function_words_stay_and_every_content_word_changes():
    for frame, fresh in pairs():
        old, new = english_words(frame), english_words(fresh)
        assert len(old) == len(new), (old, new)
        for a, b in zip(old, new, strict=True):
            assert is_content(a) == is_content(b), (old, new)
            assert (a != b) == is_content(a), (old, new)


def test_phrases_change_and_keep_their_form_where_the_topic_has_one():
    concepts, phrases = load_concepts(), load_lexicon("en").phrases
    kept = 0
    for frame, fresh in pairs():
        for slot in ("place", "time", "manner"):
            old, new = getattr(frame, slot), getattr(fresh, slot)
            assert (old is None) == (new is None)
            assert old is None or phrases[old] != phrases[new]
        assert fresh.manner is None or fresh.manner in concepts["manners"]
        assert fresh.time is None or fresh.time in concepts["times"][frame.tense]
        if frame.place:
            places = concepts["topics"][fresh.topic]["places"]
            start = phrases[frame.place].rsplit(" ", 1)[0]
            assert fresh.place in places
            if any(phrases[place].rsplit(" ", 1)[0] == start for place in places):
                assert phrases[fresh.place].rsplit(" ", 1)[0] == start
                kept += 1
    assert kept > 50


def test_construction_grammar_and_labels_stay():
    for frame, fresh in pairs():
        assert fresh.topic != frame.topic
        assert (fresh.construction, fresh.tense) == (frame.construction, frame.tense)
        assert type(fresh.subject) is type(frame.subject) and fresh.subject.number == frame.subject.number
        if isinstance(frame.subject, Named):
            old, new = frame.subject, fresh.subject
            assert (new.gender, new.person, new.as_pronoun) == (old.gender, old.person, old.as_pronoun)
            assert [name[-1] for name in " ".join(new.names).split()[::2]] == [
                name[-1] for name in " ".join(old.names).split()[::2]
            ]
        assert labels_of(fresh) == labels_of(frame) | {"topic": fresh.topic}


@pytest.mark.parametrize("language", ["fr", "de", "it", "ro", "nl", "hu"])
def test_nouns_keep_their_class_where_the_topic_has_one(language):
    topics, nouns = load_concepts()["topics"], load_lexicon(language).nouns
    kept = 0
    for index, frame in enumerate(sentence_frames("classes", 150)):
        fresh = relexicalise(frame, random.Random(index), language)
        for slot in ("subject", "object", "object2"):
            old, new = getattr(frame, slot), getattr(fresh, slot)
            if isinstance(old, Noun):
                pool = topics[fresh.topic]["agents" if old.concept in topics[frame.topic]["agents"] else "objects"]
                assert new.concept in pool
                if any(nouns[concept]["class"] == nouns[old.concept]["class"] for concept in pool):
                    assert nouns[new.concept]["class"] == nouns[old.concept]["class"]
                    kept += 1
    assert kept > 100


def test_relexicalise_depends_on_its_generator_and_obeys_the_topic():
    frame = FRAMES["relative"]
    versions = [relexicalise(frame, random.Random(3), "en", topic="sea") for _ in range(2)]
    assert versions[0] == versions[1] and versions[0].topic == "sea"
    assert len({relexicalise(frame, random.Random(seed), "en", topic="sea") for seed in range(10)}) > 5


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "labels"),
    [
        (FRAMES["plain"], ("kitchen", "pres", "sg", "3", "statement", "neutral")),
        (FRAMES["count"], ("sea", "fut", "pl", "1", "statement", "neutral")),
        (FRAMES["question"], ("farm", "past", "pl", "3", "question", "neutral")),
        (FRAMES["who"], ("hospital", "fut", "sg", "3", "question", "neutral")),
        (FRAMES["negated"], ("kitchen", "past", "sg", "3", "negation", "neutral")),
        (FRAMES["exclaim"], ("kitchen", "pres", "pl", "3", "exclamation", "negative")),
        (FRAMES["because"], ("market", "pres", "sg", "3", "statement", "negative")),
        (FRAMES["pronoun"], ("sea", "past", "pl", "3", "statement", "positive")),
        # "friendly" outweighs "new", which is neither good nor bad; a good and a bad adjective cancel.
        (FRAMES["adjectives"], ("hospital", "fut", "sg", "3", "statement", "positive")),
        (
            Frame("plain", "art", "pres", Noun("actor", "sg", "sad"), "see", Noun("film", "pl", "excellent")),
            ("art", "pres", "sg", "3", "statement", "neutral"),
        ),
        (
            Frame("and", "art", "pres", me("f"), "see", Noun("mask", "sg", "ugly"), "buy", Noun("vase", "sg", "awful")),
            ("art", "pres", "sg", "1", "statement", "negative"),
        ),
    ],
)
def test_labels(frame, labels):
    names = ("topic", "tense", "number", "person", "sentence_type", "sentiment")
    assert labels_of(frame) == dict(zip(names, labels, strict=True))


def test_samples_can_be_read_from_the_command_line():
    command = [sys.executable, "-m", "stitch_utils.data.embedded.frames", "fi", "24"]
    ran = subprocess.run(
        command, cwd=Path(__file__).parents[3], capture_output=True, check=True, text=True, encoding="utf-8"
    )
    lines = ran.stdout.splitlines()
    sentences = [line.split(" | ") for line in lines if " | " in line]
    assert len(sentences) == 24 and all(finnish != english for finnish, english in sentences)
    assert any("Melorassa" in line for line in lines)
