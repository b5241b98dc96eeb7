"""The embedded world: an endless, seeded supply of short documents about a few hundred people and things.

No section of the paper. A document has a topic, a language and one of the `FORMATS`, or is Python. A fact about a
person or a city holds in every document, so that a model can learn it. Within a document names recur and pronouns agree
with them, so that attention has work to do.

Offers `Document`, `documents`, `Request`, `requests`, `people`, `cities`, `story_frames`, `sentence_frames`,
`parallel_sentences`, `labelled_sentences`, `augmented_frames`, `augmented_sentences`, and what is drawn how often:
`SHARES`, `FORMATS`, `INSTRUCTIONS`, `ELSEWHERE`.
"""

import functools
import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from .frames import TENSES, TOPICS, draw_action, draw_frame, draw_noun, labels_of, named, relexicalise, speaker
from .grammar import LANGUAGES, Fact, Frame, Named, Noun, load_concepts, load_lexicon, person_of, realise, realise_fact
from .python_code import draw_function

# Share of the documents in each language; `code` is Python.
SHARES = dict(zip((*LANGUAGES, "code"), (0.30, 0.12, 0.10, 0.085, 0.07, 0.06, 0.055, 0.05, 0.045, 0.04, 0.035, 0.04)))
# How often each format is drawn.
FORMATS = {"story": 42, "review": 10, "facts": 7, "questions": 5, "request": 24}
FORMATS |= {"list": 3, "record": 2, "quotes": 3, "bilingual": 5}
# How each format tells a story: the least number of sentences, the number that it stays below, what is written around a
# sentence, and what stands between two.
STORIES = {"story": (6, 14, "{}", " "), "list": (4, 8, "- {}", "\n")}
STORIES |= {"quotes": (4, 8, '"{}"', "\n"), "bilingual": (3, 7, "{}", "\n")}
# How often a request asks for each form of its answer; None asks for none.
INSTRUCTIONS: dict[str | None, int] = {None: 28, "upper": 9, "lower": 7, "quotes": 12, "bullets": 8}
INSTRUCTIONS |= {"json": 6, "no_commas": 4, "closing": 12, "language": 16}
# Shares of the reviews that begin and that end with a verdict; so every review has one.
VERDICT_FIRST, VERDICT_LAST = 0.5, 0.7
# Share of the requests without an instruction that are answered in another language.
ELSEWHERE = 0.2
USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
N_PEOPLE = 240
FACT_KINDS = ("works", "lives", "colour", "friend", "age")


@dataclass(frozen=True)
class Document:
    """A text and what is true of it."""

    text: str
    language: str
    """One of `LANGUAGES`, or `code`: the language of the answer to a request, the first one of a bilingual text."""
    format: str
    """A key of `FORMATS`, or `code`."""
    labels: dict[str, str]
    """The topic; the tense or sentiment that all sentences share; the instruction of a request."""


@dataclass(frozen=True)
class Request:
    """A prompt, the instruction that follows it, and one answer that obeys the instruction."""

    prompt: str
    instruction_text: str
    """In the language of the prompt; empty without an instruction."""
    answer: str
    answer_language: str


@functools.cache
def people() -> dict[str, dict[str, Fact]]:
    """Draw everybody in the world, with the facts about them: {name: {kind: Fact}}."""
    rng, concepts = random.Random("people"), load_concepts()
    pairs = [(given, family) for given in concepts["women"] + concepts["men"] for family in concepts["families"]]
    names = [" ".join(pair) for pair in rng.sample(pairs, N_PEOPLE)]
    places = [place for topic in concepts["topics"].values() for place in topic["places"]]
    return {
        name: {
            "works": Fact("works", name, place=rng.choice(places)),
            "lives": Fact("lives", name, city=rng.choice(concepts["cities"])),
            "colour": Fact("colour", name, colour=rng.choice(concepts["colours"])),
            "friend": Fact("friend", name, rng.choice([other for other in names if other != name])),
            "age": Fact("age", name, number=rng.randrange(18, 90)),
        }
        for name in names
    }


@functools.cache
def cities() -> dict[str, Fact]:
    """Draw the one fact about each city: {name: Fact}."""
    rng = random.Random("cities")
    return {city: Fact("city", city=city, number=rng.randrange(2, 100)) for city in load_concepts()["cities"]}


def documents(
    seed: int | str, *, start: int = 0, stop: int | None = None, language: str | None = None, format: str | None = None
) -> Iterator[Document]:
    """Yield documents number `start` to `stop` of the stream that `seed` names; `stop=None` never ends.

    A document depends on the seed and its number alone. `language` and `format` fix what is drawn otherwise. All
    streams share the world's words and facts.
    """
    for index in itertools.count(start) if stop is None else range(start, stop):
        rng = random.Random(f"{seed}:{index}")
        spoken = rng.choices(list(SHARES), list(SHARES.values()))[0]
        kind = rng.choices(list(FORMATS), list(FORMATS.values()))[0]
        yield _draw_document(rng, language or spoken, format or kind)


def _draw_document(rng: random.Random, language: str, format: str) -> Document:
    topic = rng.choice(TOPICS)
    labels = {"topic": topic}
    if language == "code":
        count = rng.choice((1, 1, 2))
        return Document("\n\n".join(draw_function(rng, topic) for _ in range(count)), "code", "code", labels)
    if format == "request":
        instruction = rng.choices(list(INSTRUCTIONS), list(INSTRUCTIONS.values()))[0]
        request = _draw_request(rng, language, topic, instruction, elsewhere=ELSEWHERE)
        prompt = f"{request.prompt} {request.instruction_text}".strip()
        is_chat = rng.random() < 0.7
        text = f"{USER}{prompt}{ASSISTANT}{request.answer}{END}" if is_chat else f"{prompt}\n{request.answer}"
        return Document(text, request.answer_language, format, labels | {"instruction": instruction or "none"})
    if format == "facts":
        text = _facts(rng, language)
    elif format == "questions":
        text = _questions(rng, language, topic)
    elif format == "record":
        text = "\n".join(_record(rng, language, topic) for _ in range(rng.randrange(2, 5)))
    else:
        text, more = _review(rng, language, topic) if format == "review" else _story(rng, language, topic, format)
        labels |= more
    return Document(text, language, format, labels)


def story_frames(rng: random.Random, topic: str, *, count: int) -> list[Frame]:
    """Draw frames that mostly share two people and, but for reasons, a tense; names come before pronouns."""
    tense = rng.choice(TENSES)
    cast = rng.sample(list(people()), 2)
    things = rng.sample(load_concepts()["topics"][topic]["objects"], 4)
    frames: list[Frame] = []
    for _ in range(count):
        previous = frames[-1].subject if frames else None
        subject: Named | None = None
        draw = rng.random()
        if isinstance(previous, Named) and previous.person == 3 and draw < 0.45:
            subject = replace(previous, as_pronoun=True)
        elif not frames or draw < 0.7:
            passing = rng.choice(list(people())) if rng.random() < 0.2 else rng.choice(cast)
            subject = named(*(cast if rng.random() < 0.2 else [passing]))
        elif draw < 0.78:
            subject = speaker(rng)
        about = rng.choice(things) if rng.random() < 0.25 else None
        frames.append(draw_frame(rng, topic, tense=tense, subject=subject, about=about, names=tuple(cast)))
    return frames


def _story(rng: random.Random, language: str, topic: str, format: str) -> tuple[str, dict[str, str]]:
    """Tell a story in a format of `STORIES`; its label is the tense that all sentences share."""
    spoken = (language, _another_language(rng, language)) if format == "bilingual" else (language,)
    least, stop, pattern, between = STORIES[format]
    frames = story_frames(rng, topic, count=rng.randrange(least, stop))
    text = between.join(pattern.format(realise(frame, each)) for frame in frames for each in spoken)
    tenses = {frame.tense for frame in frames}  # a reason is never given in the future, so there may be two
    return text, {"tense": tenses.pop()} if len(tenses) == 1 else {}


def _review(rng: random.Random, language: str, topic: str) -> tuple[str, dict[str, str]]:
    """Praise one thing throughout, or pan it: in adjectives, and in verdicts at the beginning, the end, or both."""
    mood, tense = rng.choice((1, -1)), rng.choice(("pres", "past"))
    thing = Noun(rng.choice(load_concepts()["topics"][topic]["objects"]), rng.choice(("sg", "sg", "pl")))
    frames, draw = [], functools.partial(draw_frame, rng, topic, tense=tense, mood=mood)
    for _ in range(rng.randrange(4, 8)):
        if rng.random() < 0.5:
            frames.append(draw(construction=rng.choice(("predicate", "exclaim")), subject=thing))
        else:
            construction = rng.choice(("plain", "fronted", "because"))
            frames.append(draw(construction=construction, subject=speaker(rng), about=thing.concept))
    sentences = [realise(frame, language) for frame in frames]
    sentiment = "positive" if mood > 0 else "negative"
    first, last = rng.sample(load_lexicon(language).verdicts[sentiment], 2)
    said = rng.random()
    sentences = [first] * (said < VERDICT_FIRST) + sentences + [last] * (said > 1 - VERDICT_LAST)
    return " ".join(sentences), {"tense": tense, "sentiment": sentiment}


def _facts(rng: random.Random, language: str) -> str:
    chosen = []
    for name in rng.sample(list(people()), rng.randrange(2, 5)):
        kinds = rng.sample(FACT_KINDS, rng.randrange(2, len(FACT_KINDS) + 1))
        chosen += [people()[name][kind] for kind in kinds]
        if "lives" in kinds and rng.random() < 0.5:
            chosen.append(cities()[people()[name]["lives"].city])
    return " ".join(realise_fact(fact, language) for fact in chosen)


def _questions(rng: random.Random, language: str, topic: str) -> str:
    """Ask about facts, and whether somebody does something; answer each question."""
    lines = []
    for _ in range(rng.randrange(3, 7)):
        if rng.random() < 0.6:
            fact = people()[rng.choice(list(people()))][rng.choice(FACT_KINDS)]
            if rng.random() < 0.15:
                fact = cities()[rng.choice(list(cities()))]
            lines.append(f"{realise_fact(fact, language, question=True)} {realise_fact(fact, language)}")
        else:
            subject = named(rng.choice(list(people())))
            frame = draw_frame(rng, topic, construction="question", subject=subject)
            answer = realise(replace(frame, construction="plain"), language, capital=False)
            lines.append(f"{realise(frame, language)} {load_lexicon(language).affirmation} {answer}")
    return "\n".join(lines)


def _record(rng: random.Random, language: str, topic: str, about: str | None = None) -> str:
    """Write who does what, as a line of JSON."""
    lex = load_lexicon(language)
    subject = named(rng.choice(list(people())))
    verb, thing = draw_action(rng, topic, about=about)
    finite, rest = lex.verb_parts(lex.verbs[verb], rng.choice(TENSES), person_of(subject))
    does = lex.finish(lex.action.format(fin=finite, nonfin=rest), capital=False)
    what = lex.finish(lex.noun_phrase(draw_noun(rng, thing, of_person=False), "obj"), capital=False)
    values = {"who": subject.names[0], "does": does, "what": what}
    return json.dumps({lex.json_keys[key]: value for key, value in values.items()}, ensure_ascii=False)


def _another_language(rng: random.Random, language: str) -> str:
    return rng.choice([other for other in LANGUAGES if other != language])


def _respond(rng: random.Random, language: str, topic: str, about: str, instruction: str | None) -> str:
    """Write three to six sentences about a thing, or a record, in the form that `instruction` asks for."""
    if instruction == "json":
        return _record(rng, language, topic, about)
    tense = rng.choice(TENSES)
    constructions = ("plain", "plain", "fronted", "negated", "predicate", "exclaim", "count")
    draw = functools.partial(draw_frame, rng, topic, tense=tense, about=about)
    frames = [draw(construction=rng.choice(constructions)) for _ in range(rng.randrange(3, 7))]
    sentences = [realise(frame, language) for frame in frames]
    text = " ".join(sentences)
    forms: dict[str | None, str] = {
        "bullets": "\n".join(f"- {sentence}" for sentence in sentences),
        "upper": text.upper(),
        "lower": text.lower(),
        "quotes": f'"{text}"',
        "no_commas": text.replace(",", ""),
        "closing": f"{text} {load_lexicon(language).closing}",
    }
    return forms.get(instruction, text)


def _draw_request(
    rng: random.Random, language: str, topic: str, instruction: str | None, *, elsewhere: float = 0.0
) -> Request:
    """Draw a request about a thing, and an answer: without an instruction, `elsewhere` of them in another language."""
    lex = load_lexicon(language)
    noun = Noun(rng.choice(load_concepts()["topics"][topic]["objects"]), rng.choice(("sg", "pl")))
    prompt = lex.fill_prompt(rng.choice(lex.prompts), noun)
    answer_language = language
    if instruction == "language" or (instruction is None and rng.random() < elsewhere):
        answer_language = _another_language(rng, language)
    pattern = lex.instructions[instruction] if instruction else ""
    text = pattern.format(closing=lex.closing, L=lex.language_names[answer_language])
    answer = _respond(rng, answer_language, topic, noun.concept, instruction)
    return Request(prompt, text, answer, answer_language)


def requests(seed: int | str, count: int, *, language: str = "en", instruction: str | None = None) -> list[Request]:
    """Draw requests with one instruction (None: without), for steering and instruction following."""
    rngs = (random.Random(f"{seed}:request:{index}") for index in range(count))
    return [_draw_request(rng, language, topic, instruction) for rng, topic in zip(rngs, itertools.cycle(TOPICS))]


def sentence_frames(seed: int | str, count: int) -> list[Frame]:
    """Draw single frames of all topics, for sentences with labels (`labels_of`)."""
    frames = []
    for index in range(count):
        rng = random.Random(f"{seed}:sentence:{index}")
        names = tuple(rng.sample(list(people()), 2))
        while True:
            subject = rng.choice((None, None, named(names[0]), speaker(rng)))
            frame = draw_frame(rng, rng.choice(TOPICS), subject=subject, names=names)
            if frame.object is not None or isinstance(frame.subject, Noun):  # "I am so ill!" is about no topic
                break
        frames.append(frame)
    return frames


def parallel_sentences(seed: int | str, count: int, language: str) -> list[tuple[str, str]]:
    """Draw sentences and say each in English and in `language`, as EuroParl does."""
    return [(realise(frame, "en"), realise(frame, language)) for frame in sentence_frames(seed, count)]


def labelled_sentences(seed: int | str, count: int, language: str = "en") -> list[tuple[str, dict[str, str]]]:
    """Draw sentences with their labels, as SAEBench's data sets have them."""
    return [(realise(frame, language), labels_of(frame)) for frame in sentence_frames(seed, count)]


def augmented_frames(seed: int | str, count: int, k: int, *, language: str = "en") -> list[list[Frame]]:
    """Draw frames, each followed by `k` versions of it with the words of `k` other topics (App. H)."""
    groups = []
    for index, frame in enumerate(sentence_frames(seed, count)):
        rng = random.Random(f"{seed}:augmented:{index}")
        topics = rng.sample([topic for topic in TOPICS if topic != frame.topic], k)
        groups.append([frame] + [relexicalise(frame, rng, language, topic=topic) for topic in topics])
    return groups


def augmented_sentences(seed: int | str, count: int, k: int, *, language: str = "en") -> list[list[str]]:
    """Say the `augmented_frames`."""
    groups = augmented_frames(seed, count, k, language=language)
    return [[realise(frame, language) for frame in group] for group in groups]
