"""Marked content words against the sentences they stand in, and against what re-lexicalising leaves."""

import random
import re

import pytest

from stitch_utils.data.embedded.frames import relexicalise
from stitch_utils.data.embedded.grammar import LANGUAGES, Frame, Named, Noun, load_lexicon, realise
from stitch_utils.data.embedded.marked import MarkedSentence, augmented_frames, mark, marked_groups
from stitch_utils.data.embedded.world import augmented_sentences, sentence_frames

# All that the English templates and tables write of their own, and the words that places share.
ENGLISH = set(
    "the and who so because that says do does did not will am is are was were be i we she he they in at on".split()  # noqa: SIM905
)
HER = Named(("Mira Feneda",), "f")
EXAMPLES = (
    (
        Frame(
            "plain",
            "kitchen",
            "past",
            Noun("cook", "sg", "happy"),
            "bake",
            Noun("cake", "pl"),
            place="in_kitchen",
            time="last_week",
            manner="slowly",
        ),
        "The [happy] [cook] [baked] the [cakes] [slowly] in the [kitchen] [last] [week].",
    ),
    (
        Frame("negated", "sea", "pres", Named(HER.names, "f", as_pronoun=True), "pull", Noun("rope")),
        "She does not [pull] the [rope].",
    ),
    (
        Frame("says", "farm", "fut", Noun("farmer"), "feed", Noun("cow"), speaker="Brino Bozeka"),
        "[Brino] [Bozeka] says that the [farmer] will [feed] the [cow].",
    ),
    (Frame("who", "farm", "past", Noun("farmer"), "feed", Noun("pig")), "Who [fed] the [pig]?"),
    (
        Frame("count", "art", "pres", HER, "hang", Noun("picture", "pl"), numeral="two"),
        "[Mira] [Feneda] [hangs] [up] [two] [pictures].",
    ),
    (
        Frame("because", "market", "pres", HER, "sew", Noun("coat"), predicate="tired"),
        "[Mira] [Feneda] [sews] the [coat] because she is [tired].",
    ),
)


def bracketed(sentence):
    text = sentence.text
    for start, end in reversed(sentence.content):
        text = f"{text[:start]}[{text[start:end]}]{text[end:]}"
    return text


@pytest.mark.parametrize(("frame", "marked"), EXAMPLES, ids=[frame.construction for frame, _ in EXAMPLES])
def test_content_words_are_marked(frame, marked):
    assert bracketed(mark(frame)) == marked


def test_what_is_not_marked_is_grammar():
    seen = set()
    for frame in sentence_frames("marked", 400):
        sentence = mark(frame)
        assert sentence.text == realise(frame, "en")
        for word in re.finditer(r"\w+", sentence.text):
            assert sentence.is_content(*word.span()) == (word.group().lower() not in ENGLISH), bracketed(sentence)
        seen |= {word.lower() for word in re.findall(r"\w+", re.sub(r"\[[^]]*\]", "", bracketed(sentence)))}
    assert seen >= ENGLISH - {"they"}, "nobody is spoken of in the plural here"


def test_marked_words_change_and_the_others_stay():
    """In sentences without phrases, whose own words may stay the same."""
    for index, frame in enumerate(sentence_frames("marked", 200)):
        if frame.place or frame.time or frame.manner or "hang" in (frame.verb, frame.verb2):
            continue
        fresh = relexicalise(frame, random.Random(index), "en")
        if "hang" in (fresh.verb, fresh.verb2):  # "hangs up" is two words
            continue
        old, new = (bracketed(mark(version)) for version in (frame, fresh))
        assert re.sub(r"\[[^]]*\]", "[]", old) == re.sub(r"\[[^]]*\]", "[]", new)
        assert all(a != b for a, b in zip(re.findall(r"\[[^]]*\]", old), re.findall(r"\[[^]]*\]", new)))


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_can_be_marked(language):
    """Every word of a frame is found, however a language inflects and joins it, and the grammar's are left."""
    groups = marked_groups("marked", 60, 2, language=language)
    assert [[one.text for one in group] for group in groups] == augmented_sentences("marked", 60, 2, language=language)
    sentences = [sentence for group in groups for sentence in group]
    words = [(sentence, word) for sentence in sentences for word in re.finditer(r"\w+", sentence.text)]
    share = sum(sentence.is_content(*word.span()) for sentence, word in words) / len(words)
    assert 0.4 < share < 0.9
    lex = load_lexicon(language)
    told = next(mark(frame, language) for frame in sentence_frames("told", 300) if frame.construction == "says")
    assert lex.templates["says"].split()[1].strip(",") in re.sub(r"\[[^]]*\]", "", bracketed(told))


def test_versions_are_of_other_topics():
    for group in augmented_frames("marked", 30, 5):
        assert len(group) == 6 and len({frame.topic for frame in group}) == 6
        assert len({frame.construction for frame in group}) == 1


def test_a_part_of_a_word_is_content():
    sentence = MarkedSentence("The cook bakes.", ((4, 8), (9, 14)))
    assert [sentence.is_content(*span) for span in ((0, 3), (3, 8), (6, 8), (8, 9), (9, 15), (14, 15))] == [
        False,
        True,
        True,
        False,
        True,
        False,
    ]


def test_a_word_that_is_missing_is_told(monkeypatch):
    frame = next(frame for frame in sentence_frames("marked", 20) if frame.construction == "plain")
    monkeypatch.setattr("stitch_utils.data.embedded.marked.realise", lambda frame, language: "Something else.")
    with pytest.raises(
        ValueError, match=r"'Something else\.' holds none of the forms of a word that its frame names \("
    ):
        mark(frame)
