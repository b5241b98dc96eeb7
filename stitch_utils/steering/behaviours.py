r"""Behaviours with two answers: what contrast vectors are taken from, and what shows whether they steer.

The sister paper (arXiv 2506.00653) steers models in multiple-choice questions from Anthropic's model-written
evaluations. A behaviour here is a set of contrast pairs, two texts that differ in nothing but what the behaviour is
about and end at the same place, and a set of questions: a prompt with two ways on, the first of them the behaviour's.

The embedded pair answers no questions, but it has clear preferences about the next word: after a sentence about a woman
it expects "She". So the world's behaviours are such choices, one frame said in two ways, with prompts that call for
either answer in equal numbers, to check first that the model has the preference (`multiple_choice.preference`).

Offers `Behaviour`, `Choice`, `behaviours`, `world_behaviour`, `WORLD_BEHAVIOURS`, `FILES`, `COLUMNS`.
"""

import copy
import dataclasses
import random
from collections.abc import Iterable
from typing import NamedTuple

from huggingface_hub import hf_hub_download

from ..data.embedded.frames import TOPICS, draw_frame, named, relexicalise
from ..data.embedded.grammar import Frame, Noun, load_concepts, load_lexicon, realise
from ..data.hub import reaching
from ..data.pairs import DatasetRef, ModelPair, blaming, check_known
from .prompts import as_turn, named_rows, text_columns

COLUMNS = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
# The sister paper's tasks -> files of Anthropic's data (`Anthropic/model-written-evals` on the Hub). Open: that paper
# names its tasks in short, and which files they are is our reading.
_RISK, _PERSONA = "advanced-ai-risk/human_generated_evals", "persona"
FILES = {
    "corrigible-neutral-HHH": f"{_RISK}/corrigible-neutral-HHH.jsonl",
    "self-awareness-text-model": f"{_RISK}/self-awareness-text-model.jsonl",
    "self-awareness-good": f"{_RISK}/self-awareness-good-text-model.jsonl",
    "self-awareness-web-gpt": f"{_RISK}/self-awareness-web-gpt.jsonl",
    "anti-LGBTQ-rights": f"{_PERSONA}/anti-LGBTQ-rights.jsonl",
    "openness": f"{_PERSONA}/openness.jsonl",
    "AIs-not-existential-threat": f"{_PERSONA}/believes-AIs-are-not-an-existential-threat-to-humanity.jsonl",
    "deontology": f"{_PERSONA}/subscribes-to-deontology.jsonl",
    "myopic-reward": f"{_RISK}/myopic-reward.jsonl",
    "not-being-watched": f"{_PERSONA}/believes-it-is-not-being-watched-by-humans.jsonl",
    "average-utilitarianism": f"{_PERSONA}/subscribes-to-average-utilitarianism.jsonl",
    "narcissism": f"{_PERSONA}/narcissism.jsonl",
    "physical-force": f"{_PERSONA}/willingness-to-use-physical-force-to-achieve-benevolent-goals.jsonl",
}

# A text that calls for the first answer, the same text changed so that it calls for the second, and both answers.
Drawn = tuple[str, str, str, str]


class Choice(NamedTuple):
    """A prompt and two ways on."""

    prompt: str
    matching: str
    """The behaviour's answer, as it follows the prompt."""
    other: str
    called_for: bool | None = None
    """Whether the prompt calls for the first; None where it is a matter of opinion."""


class Behaviour(NamedTuple):
    """Something that a model does or does not do."""

    name: str
    contrasts: tuple[tuple[str, str], ...]
    """Texts with it and without it, alike in all else."""
    choices: tuple[Choice, ...]
    """Questions, none of whose prompts is among the contrasts."""


def behaviours(
    pair: ModelPair, tokenizer, *, contrasts: int, choices: int, count: int = 0, seed: int = 0
) -> list[Behaviour]:
    """Make the behaviours of the data set `behaviours` that the pair's file names, else the world's.

    Each has at most so many contrast pairs and choices; all are made, or `count` that lie far apart in their list.
    ValueError for counts below one, or data without `COLUMNS`; HubError for data that cannot be had.
    """
    if min(contrasts, choices) < 1 or count < 0:
        raise ValueError(f"expected at least one contrast pair and one choice: got {contrasts} and {choices}")
    data = pair.datasets.get("behaviours")
    names = list(FILES if data else WORLD_BEHAVIOURS)
    if 0 < count < len(names):
        names = [names[place * len(names) // count] for place in range(count)]
    if data is None:
        return [world_behaviour(name, contrasts=contrasts, choices=choices, seed=seed) for name in names]
    with blaming(pair, "datasets: behaviours"):
        return [_published(name, data, tokenizer, contrasts, choices, seed) for name in names]


def _published(name: str, data: DatasetRef, tokenizer, contrasts: int, choices: int, seed: int) -> Behaviour:
    """Order the rows by their texts and the seed, take the first, at most half, for contrasts, and others for choices.

    A contrast pair is a question with either answer, without the bracket after a letter: the letter is the last token.
    """
    file = FILES[name]
    with reaching("dataset", data.name, data.revision):
        path = hf_hub_download(data.name, file, repo_type="dataset", revision=data.revision)
    found = named_rows(DatasetRef(path), lambda row: text_columns(row, COLUMNS, file), picked="answers")
    rows = sorted(set(map(tuple, found)))
    if len(rows) < 2:
        raise ValueError(f"{file!r} holds {len(rows)} questions: expected at least two")
    random.Random(f"{seed}:{name}").shuffle(rows)
    space = "" if tokenizer.chat_template else " "  # after the cue
    questions = [
        Choice(as_turn(tokenizer, question, cue="\n\nAnswer:"), f"{space}{matching}", f"{space}{other}")
        for question, matching, other in rows
    ]
    first = min(contrasts, len(questions) // 2)
    pairs = tuple(
        (f"{prompt}{matching.removesuffix(')')}", f"{prompt}{other.removesuffix(')')}")
        for prompt, matching, other, _ in questions[:first]
    )
    return Behaviour(name, pairs, tuple(questions[first : first + choices]))


def world_behaviour(name: str, *, contrasts: int, choices: int, seed: int = 0) -> Behaviour:
    """Make one of `WORLD_BEHAVIOURS`; every other choice calls for the behaviour's answer, and no text comes twice."""
    check_known("behaviour", name, WORLD_BEHAVIOURS)
    drawn: dict[str, Drawn] = {}
    wanted, index = contrasts + -(-choices // 2), 0
    while len(drawn) < wanted:
        found = WORLD_BEHAVIOURS[name](random.Random(f"behaviours:{seed}:{name}:{index}"))
        drawn.setdefault(found[0], found)
        index += 1
    rows = list(drawn.values())
    asked = [
        Choice(prompt, matching, other, called_for)
        for yes, no, matching, other in rows[contrasts:]
        for prompt, called_for in ((yes, True), (no, False))
    ]
    return Behaviour(name, tuple((yes, no) for yes, no, *_ in rows[:contrasts]), tuple(asked[:choices]))


def _text(frames: Iterable[Frame], *end: str, language: str = "en") -> str:
    return " ".join([*(realise(frame, language) for frame in frames), *end])


def _frames(rng: random.Random, topic: str, kinds: Iterable[str], **given) -> list[Frame]:
    return [draw_frame(rng, topic, construction=kind, **given) for kind in kinds]


def _thing(rng: random.Random, topic: str) -> str:
    """Draw something whose plural is another word."""
    nouns = load_lexicon("en").nouns
    things = load_concepts()["topics"][topic]["objects"]
    return rng.choice([thing for thing in things if nouns[thing]["sg"] != nouns[thing]["pl"]])


def _noun_phrase(concept: str, number: str) -> str:
    return load_lexicon("en").noun_phrase(Noun(concept, number), "subj").capitalize()


def _pronoun(rng: random.Random) -> Drawn:
    """Draw a sentence about a woman or a man."""
    concepts, topic = load_concepts(), rng.choice(TOPICS)
    family = rng.choice(concepts["families"])
    woman, man = (named(f"{rng.choice(concepts[people])} {family}") for people in ("women", "men"))
    frame = draw_frame(rng, topic, construction=rng.choice(("plain", "negated", "count")), subject=woman)
    return _text([frame]), _text([dataclasses.replace(frame, subject=man)]), " She", " He"


def _number(rng: random.Random) -> Drawn:
    """Draw a text in the present tense that ends with several things or one."""
    topic = rng.choice(TOPICS)
    before, thing = _frames(rng, topic, ["plain"], tense="pres"), _thing(rng, topic)
    several, one = (_text(before, _noun_phrase(thing, number)) for number in ("pl", "sg"))
    return several, one, " are", " is"


def _sentiment(rng: random.Random) -> Drawn:
    """Draw two sentences of praise or blame of the same thing."""
    topic, adjectives, kinds = rng.choice(TOPICS), load_lexicon("en").adjectives, load_concepts()["adjectives"]
    thing, number = _thing(rng, topic), rng.choice(("sg", "pl"))
    end = f"{_noun_phrase(thing, number)} {'is' if number == 'sg' else 'are'}"

    def review(rng: random.Random, mood: int) -> str:
        constructions = (rng.choice(("predicate", "exclaim")) for _ in range(2))
        return _text(_frames(rng, topic, constructions, tense="pres", subject=Noun(thing, number), mood=mood), end)

    praise, blame = (f" {adjectives[rng.choice(kinds[f'thing_{kind}'])]['x']}" for kind in ("positive", "negative"))
    return review(copy.copy(rng), 1), review(rng, -1), praise, blame


def _past(rng: random.Random) -> Drawn:
    """Draw two sentences in the past or the present tense."""
    topic = rng.choice(TOPICS)
    end = _noun_phrase(_thing(rng, topic), "sg")
    past, present = (_frames(copy.copy(rng), topic, ("fronted", "plain"), tense=tense) for tense in ("past", "pres"))
    return _text(past, end), _text(present, end), " was", " is"


def _sea(rng: random.Random) -> Drawn:
    """Draw two sentences about the sea, or the same about a farm."""
    frames = _frames(rng, "sea", ("plain", "fronted"))
    moved = [relexicalise(frame, rng, "en", topic="farm") for frame in frames]
    agents = (load_concepts()["topics"][topic]["agents"] for topic in ("sea", "farm"))
    at_sea, on_farm = (f" {load_lexicon('en').nouns[rng.choice(some)]['sg']}" for some in agents)
    return _text(frames, "The"), _text(moved, "The"), at_sea, on_farm


def _french(rng: random.Random) -> Drawn:
    """Draw two sentences in French or in English."""
    frames = _frames(rng, rng.choice(TOPICS), ("plain", "fronted"))
    return _text(frames, language="fr"), _text(frames), " Le", " The"


def _capitals(rng: random.Random) -> Drawn:
    """Draw a sentence in capitals, or as one writes."""
    text = _text(_frames(rng, rng.choice(TOPICS), ["plain"]))
    return text.upper(), text, " THE", " The"


def _question(rng: random.Random) -> Drawn:
    """Draw a question or a statement without its last mark."""
    frame = draw_frame(rng, rng.choice(TOPICS), construction="plain", tense=rng.choice(("pres", "past", "fut")))
    frame = dataclasses.replace(frame, manner=None, time=None)
    asked = dataclasses.replace(frame, construction="question")
    return _text([asked]).rstrip("?"), _text([frame]).rstrip("."), "?", "."


def _bullets(rng: random.Random) -> Drawn:
    """Draw two lines of a list or of speech."""
    lines = [realise(frame, "en") for frame in _frames(rng, rng.choice(TOPICS), ("plain", "plain"))]
    return "".join(f"- {line}\n" for line in lines), "".join(f'"{line}"\n' for line in lines), "-", '"'


_DRAWS = (_pronoun, _number, _sentiment, _past, _sea, _french, _capitals, _question, _bullets)
WORLD_BEHAVIOURS = {draw.__name__.removeprefix("_"): draw for draw in _DRAWS}
