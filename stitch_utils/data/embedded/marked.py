"""Sentences of the embedded world with their content words marked.

Section 5.1 tells classes of features from activations alone. Here we know which words of a sentence came from the slots
that re-lexicalising fills, and which belong to the grammar. A word is marked if it is a form of one of the words that
its frame names; in a phrase such as "in the kitchen", the words that several phrases share belong to the grammar. In
English no word is ever both; in other languages a few short words are.

Offers `MarkedSentence`, `mark`, `marked_groups`.
"""

import collections
import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

from .grammar import Frame, Named, Noun, load_lexicon, realise
from .world import augmented_frames

WORD = re.compile(r"\w+")
SHARED_BY = 3  # a word of so many phrases belongs to the grammar
STEM = 3  # an ending may follow a form of so many letters, as in the French future


class MarkedSentence(NamedTuple):
    """A sentence and where its content words are."""

    text: str
    content: tuple[tuple[int, int], ...]
    """Beginning and end of each content word, as characters of the text; the other words are function words."""

    def is_content(self, start: int, end: int) -> bool:
        """Tell whether these characters overlap a content word."""
        return any(start < stop and begin < end for begin, stop in self.content)


def mark(frame: Frame, language: str = "en") -> MarkedSentence:
    """Mark the sentence that says `frame`; raise ValueError if one of the frame's words is not found in it."""
    text = realise(frame, language)
    words = [(match.span(), match.group().lower()) for match in WORD.finditer(text)]
    found = set()
    for said in _said(frame, language):
        stems = tuple(form for form in said if len(form) >= STEM)
        spans = {span for span, word in words if word in said or word.startswith(stems)}
        if said and not spans:
            forms = ", ".join(sorted(said, key=lambda form: (len(form), form))[:5])
            raise ValueError(f"{text!r} holds none of the forms of a word that its frame names ({forms}, ...)")
        found |= spans
    return MarkedSentence(text, tuple(sorted(found)))


def _said(frame: Frame, language: str) -> Iterator[set[str]]:
    """Yield the words that may fill each content slot of the frame."""
    lex = load_lexicon(language)
    subject = frame.subject if frame.construction != "who" else None  # asked for, so not said
    for noun in (subject, frame.object, frame.object2):
        if isinstance(noun, Noun):
            yield _forms(lex.nouns[noun.concept])
            yield _forms(lex.adjectives.get(noun.adjective, {}))
    for verb in (frame.verb, frame.verb2):
        yield _forms(lex.verbs.get(verb, {}))
    yield _forms(lex.adjectives.get(frame.predicate, {}))
    yield _forms(lex.numerals.get(frame.numeral, {}))
    names = subject.names if isinstance(subject, Named) and not subject.as_pronoun else ()
    for name in (*names, frame.speaker or ""):
        yield set(name.lower().split())
    for phrase in (frame.place, frame.time, frame.manner):
        yield set(WORD.findall(lex.phrases[phrase].lower())) - _of_the_grammar(language) if phrase else set()


def _forms(word: dict[str, str]) -> set[str]:
    """Return the words of a word's forms, and each two of them joined, as a prefix and its verb may be."""
    forms = [form.lower() for name, form in word.items() if name != "class"]
    single = {part for form in forms for part in WORD.findall(form)}
    return single | {first + second for first in single for second in single}


@functools.cache
def _of_the_grammar(language: str) -> frozenset[str]:
    phrases = load_lexicon(language).phrases.values()
    counts = collections.Counter(word for phrase in phrases for word in set(WORD.findall(phrase.lower())))
    return frozenset(word for word, count in counts.items() if count >= SHARED_BY)


def marked_groups(seed: int | str, count: int, k: int, *, language: str = "en") -> list[list[MarkedSentence]]:
    """Return `world.augmented_sentences` with their content words marked."""
    return [[mark(frame, language) for frame in group] for group in augmented_frames(seed, count, k, language=language)]
