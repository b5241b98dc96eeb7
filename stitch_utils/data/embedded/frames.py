"""Draw frames of the embedded world, change their words, and label them.

No section of the paper. `relexicalise` takes every content word from another topic, as App. H.1's prompted model does.
`labels_of` names the concepts that probes look for (section 4).

Offers `draw_frame`, `relexicalise`, `labels_of`, the smaller draws `draw_action` and `draw_noun`, and `named`,
`speaker`, `gender_of`.

`python -m stitch_utils.data.embedded.frames LANGUAGE [COUNT]` prints random sentences beside their English.
"""

import random
import sys
from dataclasses import replace

from .grammar import Fact, Frame, Named, Noun, load_concepts, load_lexicon, realise, realise_fact

TOPICS = tuple(load_concepts()["topics"])
TENSES = ("pres", "past", "fut")
# How often each construction is drawn.
CONSTRUCTIONS = {"plain": 10, "fronted": 5, "negated": 3, "question": 2, "who": 1, "predicate": 4}
CONSTRUCTIONS |= {"exclaim": 2, "relative": 3, "because": 3, "and": 3, "says": 2, "count": 3}
NEEDS_NOUN_SUBJECT = ("relative", "says")
MAY_SAY_WHEN = ("plain", "negated", "question", "who", "count")


def gender_of(name: str) -> str:
    """Return `f` for a name that ends in -a, as women's do, else `m`."""
    return "f" if name.split()[0].endswith("a") else "m"


def named(*names: str, as_pronoun: bool = False) -> Named:
    """Make a subject of one or two people by name."""
    gender = "f" if all(gender_of(name) == "f" for name in names) else "m"
    return Named(names, gender, "sg" if len(names) == 1 else "pl", as_pronoun=as_pronoun)


def speaker(rng: random.Random) -> Named:
    """Draw `I` or `we`."""
    return Named((), rng.choice("fm"), rng.choice(("sg", "pl")), person=1, as_pronoun=True)


def _draw_adjective(rng: random.Random, *, of_person: bool, mood: int = 0) -> str:
    """Draw an adjective: a positive one if `mood` is +1, a negative one if it is -1, any one if it is 0."""
    kinds = load_concepts()["adjectives"]
    sign = {1: "positive", -1: "negative"}.get(mood) or rng.choice(("positive", "negative"))
    if not of_person and mood == 0 and rng.random() < 0.6:
        return rng.choice(kinds["attribute"])
    return rng.choice(kinds[f"{'person' if of_person else 'thing'}_{sign}"])


def draw_action(rng: random.Random, topic: str, *, about: str | None = None) -> tuple[str, str]:
    """Draw a verb and an object that fits it; `about` fixes the object."""
    concepts = load_concepts()
    verbs = concepts["topics"][topic]["verbs"]
    fitting = [verb for verb, things in verbs.items() if about is None or about in things]
    if not fitting or rng.random() < 0.3:
        return rng.choice(concepts["general_verbs"]), about or rng.choice(concepts["topics"][topic]["objects"])
    verb = rng.choice(fitting)
    return verb, about or rng.choice(verbs[verb])


def draw_noun(rng: random.Random, concept: str, *, of_person: bool, mood: int = 0) -> Noun:
    """Draw singular or plural for a noun, and sometimes an adjective: more often where it says a mood."""
    described = rng.random() < (0.6 if mood else 0.35)
    adjective = _draw_adjective(rng, of_person=of_person, mood=mood) if described else None
    return Noun(concept, "sg" if rng.random() < 0.65 else "pl", adjective)


def draw_frame(
    rng: random.Random,
    topic: str,
    *,
    construction: str | None = None,
    tense: str | None = None,
    subject: Noun | Named | None = None,
    about: str | None = None,
    mood: int = 0,
    names: tuple[str, ...] = (),
) -> Frame:
    """Draw what is not given of a frame of `topic`.

    `about` fixes the object, `mood` the polarity of the adjectives. `names` are the people who may appear.
    """
    concepts = load_concepts()
    words = concepts["topics"][topic]
    tense = tense or rng.choice(TENSES)
    if construction is None:
        weights = dict(CONSTRUCTIONS)
        if isinstance(subject, Named):
            weights |= dict.fromkeys(NEEDS_NOUN_SUBJECT, 0)
        if not names:
            weights["says"] = 0
        construction = rng.choices(list(weights), list(weights.values()))[0]
    if construction == "because" and tense == "fut":
        tense = rng.choice(("pres", "past"))

    if construction in NEEDS_NOUN_SUBJECT or (subject is None and construction != "because"):
        if construction in ("predicate", "exclaim") and (about is not None or rng.random() < 0.5):
            subject = Noun(about or rng.choice(words["objects"]), "sg" if rng.random() < 0.65 else "pl")
        else:
            subject = draw_noun(rng, rng.choice(words["agents"]), of_person=True, mood=mood)
    elif subject is None or (construction == "because" and isinstance(subject, Noun)):
        subject = named(rng.choice(names)) if names else speaker(rng)

    time = rng.choice(concepts["times"][tense])
    extras = {"place": rng.choice(words["places"]) if rng.random() < 0.5 else None}
    if construction == "fronted" or (construction in MAY_SAY_WHEN and rng.random() < 0.3):
        extras["time"] = time
    if construction in ("plain", "fronted") and rng.random() < 0.3:
        extras["manner"] = rng.choice(concepts["manners"])

    if construction in ("predicate", "exclaim"):
        of_person = isinstance(subject, Named) or subject.concept in words["agents"]
        adjective = _draw_adjective(rng, of_person=of_person, mood=mood or rng.choice((1, -1)))
        if isinstance(subject, Noun):
            subject = replace(subject, adjective=None)
        time = time if construction == "predicate" and rng.random() < 0.3 else None
        return Frame(construction, topic, tense, subject, predicate=adjective, time=time)

    verb, thing = draw_action(rng, topic, about=about)
    target = draw_noun(rng, thing, of_person=False, mood=mood)
    if construction == "count":
        target, extras["numeral"] = Noun(thing, "pl"), rng.choice(concepts["numerals"])
    if construction in ("relative", "and"):
        verb2, thing2 = draw_action(rng, topic)
        extras |= {"verb2": verb2, "object2": draw_noun(rng, thing2, of_person=False, mood=mood)}
    if construction == "because":
        extras["predicate"] = _draw_adjective(rng, of_person=True, mood=mood or rng.choice((1, -1)))
    if construction == "says":
        extras["speaker"] = rng.choice(names)
    if construction == "who":
        subject = Noun(words["agents"][0])  # asked for, so not said; a person in the singular for the verb
    return Frame(construction, topic, tense, subject, verb, target, **extras)


def relexicalise(frame: Frame, rng: random.Random, language: str, *, topic: str | None = None) -> Frame:
    """Keep the construction of a frame, and take every content word from `topic`, or from a drawn one.

    Where the topic has such words, nouns keep their agreement class in `language`, and places all words but the last,
    so that articles and prepositions stay.
    """
    concepts, lex = load_concepts(), load_lexicon(language)
    topic = topic or rng.choice([other for other in TOPICS if other != frame.topic])
    words = concepts["topics"][topic]

    def like(options: list[str], old: str | None, key=lambda option: None):
        """Draw another option than `old`, and one whose key is the same if there is such."""
        if old is None:
            return None
        fresh = [option for option in options if option != old] or options
        return rng.choice([option for option in fresh if key(option) == key(old)] or fresh)

    def adjective(old):
        return like(next((group for group in concepts["adjectives"].values() if old in group), []), old)

    def noun(old, things):
        if old is None:
            return None
        concept = like(things, old.concept, lambda concept: lex.nouns[concept]["class"])
        return replace(old, concept=concept, adjective=adjective(old.adjective))

    def verb(old):
        return old and rng.choice([verb for verb in words["verbs"] if verb != old])

    def name(old):
        given, family = old.split()
        pool = concepts["women" if gender_of(old) == "f" else "men"]
        return f"{like(pool, given)} {like(concepts['families'], family)}"

    subject = frame.subject
    if isinstance(subject, Named):
        subject = replace(subject, names=tuple(name(old) for old in subject.names))
    else:
        people = concepts["topics"][frame.topic]["agents"]
        subject = noun(subject, words["agents" if subject.concept in people else "objects"])
    return replace(
        frame,
        topic=topic,
        subject=subject,
        place=like(words["places"], frame.place, lambda place: lex.phrases[place].split()[:-1]),
        time=like(concepts["times"][frame.tense], frame.time, lambda time: len(lex.phrases[time].split())),
        verb=verb(frame.verb),
        object=noun(frame.object, words["objects"]),
        verb2=verb(frame.verb2),
        object2=noun(frame.object2, words["objects"]),
        predicate=adjective(frame.predicate),
        numeral=like(concepts["numerals"], frame.numeral),
        speaker=frame.speaker and name(frame.speaker),
        manner=like(concepts["manners"], frame.manner),
    )


def labels_of(frame: Frame) -> dict[str, str]:
    """Return what is true of the sentence: topic, tense, number, person, sentence type, sentiment."""
    nouns = [noun for noun in (frame.subject, frame.object, frame.object2) if isinstance(noun, Noun)]
    said, kinds = [frame.predicate, *(noun.adjective for noun in nouns)], load_concepts()["adjectives"]
    good, bad = (
        sum(adjective in kinds[f"thing_{sign}"] + kinds[f"person_{sign}"] for adjective in said)
        for sign in ("positive", "negative")
    )
    kind = {"negated": "negation", "question": "question", "who": "question", "exclaim": "exclamation"}
    return {
        "topic": frame.topic,
        "tense": frame.tense,
        "number": frame.subject.number,
        "person": str(getattr(frame.subject, "person", 3)),
        "sentence_type": kind.get(frame.construction, "statement"),
        "sentiment": "positive" if good > bad else "negative" if bad > good else "neutral",
    }


def _print_samples(language: str, count: int) -> None:
    """Print sentences of every topic beside their English, then every fact, prompt and instruction."""
    rng, lex, names = random.Random(0), load_lexicon(language), ("Lina Varo", "Tomo Resta")
    for index in range(count):
        people = named(*rng.choice((names, names[:1], names[1:])), as_pronoun=rng.random() < 0.5)
        subject = rng.choice((None, speaker(rng), people))
        frame = draw_frame(rng, TOPICS[index % len(TOPICS)], subject=subject, names=names)
        print(realise(frame, language), "|", realise(frame, "en"))
    for kind in lex.facts:
        fact = Fact(kind, *names, "in_kitchen", "Melora", "colour_red", 34)
        print(realise_fact(fact, language, question=True), realise_fact(fact, language))
    for prompt in lex.prompts:
        for noun in (Noun("bread"), Noun("shoe", "pl")):
            print(lex.fill_prompt(prompt, noun))
    for text in lex.instructions.values():
        print(text.format(closing=lex.closing, L=lex.language_names["fr"]))


if __name__ == "__main__":
    _print_samples(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 200)
