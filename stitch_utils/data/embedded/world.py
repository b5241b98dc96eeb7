"""The embedded world: an endless, seeded supply of short documents about a few hundred people and things.

No section of the paper. A document is a run of frames about one topic in one language: a story, a review, facts about
a person, questions with answers, a list, a record, a conversation in quotation marks, a request with its answer, or a
Python function. Languages have fixed shares, falling from English to Hungarian. Facts about people and cities hold in
every document, so that they can be learned; names recur and pronouns agree within a document, so that attention has
work.

Offers `Document`, `documents`, `SHARES`, `FORMATS`, `INSTRUCTIONS`, `respond`, and what the experiments ask for
beside plain text: `parallel_sentences`, `augmented_sentences`, `requests`.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from .frames import TENSES, TOPICS, draw_action, draw_frame, draw_noun, labels_of, named, relexicalise, speaker
from .grammar import LANGUAGES, Fact, Frame, Named, Noun, load_concepts, load_lexicon, person_of, realise, realise_fact
from .python_code import draw_function

# Share of the documents, falling steadily; `code` is Python.
SHARES = dict(zip((*LANGUAGES, "code"), (0.38, 0.12, 0.10, 0.08, 0.065, 0.055, 0.045, 0.04, 0.03, 0.025, 0.02, 0.04)))
FORMATS = {"story": 38, "review": 10, "facts": 13, "questions": 8, "request": 18}
FORMATS |= {"list": 3, "record": 2, "quotes": 3, "bilingual": 5}
# What a request may ask of its answer; None asks for nothing.
INSTRUCTIONS: dict[str | None, int] = {None: 40, "upper": 9, "lower": 7, "quotes": 8, "bullets": 8}
INSTRUCTIONS |= {"json": 6, "no_commas": 4, "closing": 8, "language": 10}
# Share of the requests without an instruction that are answered in another language, as people do who know several.
DRAWN = "drawn"  # an instruction that `draw_request` draws by itself
ELSEWHERE = 0.2
USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
N_PEOPLE = 240
FACT_KINDS = ("works", "lives", "colour", "friend", "age")


@dataclass(frozen=True)
class Document:
    """A text and what is true of it."""

    text: str
    language: str
    """One of `LANGUAGES`, or `code`; of an answer in another language, that one; of two that take turns, the first."""
    format: str
    """A key of `FORMATS`, or `code`."""
    labels: dict[str, str] = field(default_factory=dict)
    """Topic, and tense and sentiment where the whole document shares one; the instruction of a request."""


@dataclass(frozen=True)
class Request:
    """A prompt with its instruction kept apart, and one answer that follows it."""

    prompt: str
    instruction: str | None
    instruction_text: str
    answer: str
    language: str
    """Of the prompt."""
    answer_language: str
    topic: str


@functools.cache
def people() -> dict[str, dict[str, Fact]]:
    """Return everybody in the world, with the facts about them: {name: {kind: Fact}}."""
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
    """Return the one fact about each city: {name: Fact}."""
    rng = random.Random("cities")
    return {city: Fact("city", city=city, number=rng.randrange(2, 100)) for city in load_concepts()["cities"]}


def documents(
    seed: int | str, *, start: int = 0, stop: int | None = None, language: str | None = None, format: str | None = None
) -> Iterator[Document]:
    """Documents number `start` to `stop` of the stream that `seed` names; each depends on the seed and its number
    alone.

    `language` and `format` fix what is otherwise drawn. Streams of different seeds share the world's words and facts.
    """
    index = start
    while stop is None or index < stop:
        rng = random.Random(f"{seed}:{index}")
        where = rng.choices(list(SHARES), list(SHARES.values()))[0]
        kind = rng.choices(list(FORMATS), list(FORMATS.values()))[0]
        yield draw_document(rng, language or where, format or kind)
        index += 1


def draw_document(rng: random.Random, language: str, format: str) -> Document:
    """One document in one language and format."""
    topic = rng.choice(TOPICS)
    if language == "code":
        count = rng.choice((1, 1, 2))
        return Document("\n\n".join(draw_function(rng, topic) for _ in range(count)), "code", "code", {"topic": topic})
    if format == "request":
        request = draw_request(rng, language, topic, elsewhere=ELSEWHERE)
        prompt = f"{request.prompt} {request.instruction_text}".strip()
        if rng.random() < 0.7:
            text = f"{USER}{prompt}{ASSISTANT}{request.answer}{END}"
        else:
            text = f"{prompt}\n{request.answer}"
        labels = {"topic": topic, "instruction": request.instruction or "none"}
        return Document(text, request.answer_language, format, labels)
    writer = {
        "story": _story,
        "review": _review,
        "facts": _facts,
        "questions": _questions,
        "list": _list,
        "record": _record,
        "quotes": _quotes,
        "bilingual": _bilingual,
    }[format]
    text, labels = writer(rng, language, topic)
    return Document(text, language, format, {"topic": topic} | labels)


def story_frames(rng: random.Random, topic: str, *, count: int, tense: str | None = None) -> list[Frame]:
    """Frames that share a cast and a few things: names come first, pronouns and repetitions after."""
    tense = tense or rng.choice(TENSES)
    cast = rng.sample(list(people()), 2)
    things = rng.sample(load_concepts()["topics"][topic]["objects"], 4)
    frames: list[Frame] = []
    for _ in range(count):
        previous = frames[-1].subject if frames else None
        subject: Named | None = None
        draw = rng.random()
        if isinstance(previous, Named) and previous.person == 3 and draw < 0.45:
            subject = Named(previous.names, previous.gender, previous.number, as_pronoun=True)
        elif not frames or draw < 0.7:
            subject = named(*(cast if rng.random() < 0.2 else [rng.choice(cast)]))
        elif draw < 0.78:
            subject = speaker(rng)
        about = rng.choice(things) if rng.random() < 0.7 else None
        frames.append(draw_frame(rng, topic, tense=tense, subject=subject, about=about, names=tuple(cast)))
    return frames


def _shared_tense(frames: list[Frame]) -> dict[str, str]:
    """The label of a text all in one tense; a reason is never given in the future, so some texts have none."""
    tenses = {frame.tense for frame in frames}
    return {"tense": tenses.pop()} if len(tenses) == 1 else {}


def _story(rng, language, topic):
    frames = story_frames(rng, topic, count=rng.randrange(6, 14))
    return " ".join(realise(frame, language) for frame in frames), _shared_tense(frames)


def _review(rng, language, topic):
    """One thing, praised or panned throughout."""
    mood, tense = rng.choice((1, -1)), rng.choice(("pres", "past"))
    thing = Noun(rng.choice(load_concepts()["topics"][topic]["objects"]), rng.choice(("sg", "sg", "pl")))
    frames, draw = [], functools.partial(draw_frame, rng, topic, tense=tense, mood=mood)
    for _ in range(rng.randrange(4, 8)):
        if rng.random() < 0.5:
            construction = rng.choice(("predicate", "exclaim"))
            frames.append(draw(construction=construction, subject=thing))
        else:
            construction = rng.choice(("plain", "fronted", "because"))
            frames.append(draw(construction=construction, subject=speaker(rng), about=thing.concept))
    sentiment = "positive" if mood > 0 else "negative"
    return " ".join(realise(frame, language) for frame in frames), {"tense": tense, "sentiment": sentiment}


def _facts(rng, language, topic):
    chosen = []
    for name in rng.sample(list(people()), rng.randrange(2, 5)):
        kinds = rng.sample(FACT_KINDS, rng.randrange(2, len(FACT_KINDS) + 1))
        chosen += [people()[name][kind] for kind in kinds]
        if "lives" in kinds and rng.random() < 0.5:
            chosen.append(cities()[people()[name]["lives"].city])
    return " ".join(realise_fact(fact, language) for fact in chosen), {}


def _questions(rng, language, topic):
    """Questions with their answers: about facts, and about a sentence that comes first."""
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
    return "\n".join(lines), {}


def _list(rng, language, topic):
    frames = story_frames(rng, topic, count=rng.randrange(4, 8))
    return "\n".join(f"- {realise(frame, language)}" for frame in frames), _shared_tense(frames)


def _record(rng, language, topic):
    return "\n".join(record(rng, language, topic) for _ in range(rng.randrange(2, 5))), {}


def _quotes(rng, language, topic):
    frames = story_frames(rng, topic, count=rng.randrange(4, 8))
    return "\n".join(f'"{realise(frame, language)}"' for frame in frames), _shared_tense(frames)


def _bilingual(rng, language, topic):
    """Sentence by sentence in two languages, as in phrasebooks."""
    other = another_language(rng, language)
    frames = story_frames(rng, topic, count=rng.randrange(3, 7))
    lines = (realise(frame, spoken) for frame in frames for spoken in (language, other))
    return "\n".join(lines), _shared_tense(frames)


def another_language(rng: random.Random, language: str) -> str:
    """Draw any language but the one given."""
    return rng.choice([other for other in LANGUAGES if other != language])


def record(rng: random.Random, language: str, topic: str, about: str | None = None) -> str:
    """Write who does what, as a line of JSON."""
    lex = load_lexicon(language)
    subject = named(rng.choice(list(people())))
    verb, thing = draw_action(rng, topic, about=about)
    finite, rest = lex.verb_parts(lex.verbs[verb], rng.choice(TENSES), person_of(subject))
    action = lex.action.format(fin=finite, nonfin=rest)
    phrase = lex.noun_phrase(draw_noun(rng, thing, of_person=False), "obj")
    values = {
        "who": subject.names[0],
        "does": lex.finish(action, capital=False),
        "what": lex.finish(phrase, capital=False),
    }
    return json.dumps({lex.json_keys[key]: value for key, value in values.items()}, ensure_ascii=False)


def respond(rng: random.Random, language: str, topic: str, about: str, instruction: str | None) -> str:
    """Write three to six sentences about a thing, in the form that `instruction` asks for."""
    if instruction == "json":
        return record(rng, language, topic, about)
    tense = rng.choice(TENSES)
    frames = [
        draw_frame(
            rng,
            topic,
            tense=tense,
            about=about,
            construction=rng.choice(("plain", "plain", "fronted", "negated", "predicate", "exclaim", "count")),
        )
        for _ in range(rng.randrange(3, 7))
    ]
    sentences = [realise(frame, language) for frame in frames]
    if instruction == "bullets":
        return "\n".join(f"- {sentence}" for sentence in sentences)
    text = " ".join(sentences)
    lex = load_lexicon(language)
    match instruction:
        case "upper":
            return text.upper()
        case "lower":
            return text.lower()
        case "quotes":
            return f'"{text}"'
        case "no_commas":
            return text.replace(",", "")
        case "closing":
            return f"{text} {lex.closing}"
    return text


def draw_request(
    rng: random.Random,
    language: str,
    topic: str,
    *,
    instruction: str | None = DRAWN,
    elsewhere: float = 0.0,
) -> Request:
    """Draw a request about a thing of the topic, with `instruction` (drawn if not given) and an answer.

    `elsewhere`: how probable it is that an answer without instruction is in another language.
    """
    lex = load_lexicon(language)
    if instruction == DRAWN:
        instruction = rng.choices(list(INSTRUCTIONS), list(INSTRUCTIONS.values()))[0]
    about = rng.choice(load_concepts()["topics"][topic]["objects"])
    noun = Noun(about, rng.choice(("sg", "pl")))
    roles = {slot: lex.noun_phrase(noun, role) for slot, role in (("S", "subj"), ("O", "obj"), ("NO", "negobj"))}
    prompt = lex.finish(rng.choice(lex.prompts).format(**roles))
    answer_language = language
    if instruction == "language" or (instruction is None and rng.random() < elsewhere):
        answer_language = another_language(rng, language)
    text = ""
    if instruction:
        text = lex.instructions[instruction].format(closing=lex.closing, L=lex.language_names[answer_language])
    answer = respond(rng, answer_language, topic, about, instruction)
    return Request(prompt, instruction, text, answer, language, answer_language, topic)


def requests(seed: int | str, count: int, *, language: str = "en", instruction: str | None = None) -> list[Request]:
    """Draw requests with one instruction (None: without), for steering and instruction following."""
    return [
        draw_request(
            random.Random(f"{seed}:request:{index}"), language, TOPICS[index % len(TOPICS)], instruction=instruction
        )
        for index in range(count)
    ]


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
    """Draw sentences and say each in English and in `language` (EuroParl's role)."""
    return [(realise(frame, "en"), realise(frame, language)) for frame in sentence_frames(seed, count)]


def augmented_frames(seed: int | str, count: int, k: int, *, language: str = "en") -> list[list[Frame]]:
    """Draw frames, each followed by `k` re-lexicalised ones from `k` other topics."""
    groups = []
    for index, frame in enumerate(sentence_frames(seed, count)):
        rng = random.Random(f"{seed}:augmented:{index}")
        topics = rng.sample([topic for topic in TOPICS if topic != frame.topic], k)
        groups.append([frame] + [relexicalise(frame, rng, language, topic=topic) for topic in topics])
    return groups


def augmented_sentences(seed: int | str, count: int, k: int, *, language: str = "en") -> list[list[str]]:
    """Draw sentences, each followed by `k` re-lexicalised versions of it from `k` other topics (App. H)."""
    groups = augmented_frames(seed, count, k, language=language)
    return [[realise(frame, language) for frame in group] for group in groups]


def labelled_sentences(seed: int | str, count: int, language: str = "en") -> list[tuple[str, dict[str, str]]]:
    """Draw sentences with their labels (SAEBench's role)."""
    return [(realise(frame, language), labels_of(frame)) for frame in sentence_frames(seed, count)]
