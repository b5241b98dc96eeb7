"""From a frame to a sentence: the embedded world's grammar.

No section of the paper: the embedded world stands in for OpenWebText, EuroParl, SAEBench's data and IFEval. A *frame*
says who does what to what, where, when and how, without words. A *lexicon* (`lexicons/<language>.yml`) has a template
for each construction, and every form of each word, so that one frame gives the same sentence in every language. This
module only looks forms up and fills templates: a speaker can correct a language without reading Python.

Offers `Lexicon`, `load_lexicon`, `LANGUAGES`, the frame classes `Noun`, `Named`, `Frame` and `Fact`,
`load_concepts`, `person_of`, `by_class`, `realise` and `realise_fact`.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import yaml

DATA_FILES = "lexicons/*.yml"  # read by `load_lexicon`: they enter the keys of artifacts
LEXICON_FOLDER = Path(__file__).parent / "lexicons"
# From the most to the least frequent in the training text.
LANGUAGES = ("en", "fr", "de", "es", "it", "pt", "nl", "sv", "ro", "fi", "hu")
# What the templates of the constructions leave open.
SLOTS = ["S", "fin", "nonfin", "O", "Q", "M", "P", "T", "A", "cop", "copnf", "rel", "pron", "N"]
SLOTS += ["fin2", "nonfin2", "O2"]


@dataclass(frozen=True)
class Noun:
    """A thing or a kind of person, as subject or object, in the singular (`sg`) or plural (`pl`)."""

    concept: str
    number: str = "sg"
    adjective: str | None = None
    """The adjective that stands with the noun."""


@dataclass(frozen=True)
class Named:
    """One or two named people, or a pronoun for them, or the speaker (person 1: `I`, `we`), who has no name."""

    names: tuple[str, ...]
    gender: str
    """`f` or `m`: the pronoun and the adjectives agree with it."""
    number: str = "sg"
    person: int = 3
    as_pronoun: bool = False
    """Whether a pronoun stands for the names."""


@dataclass(frozen=True)
class Frame:
    """One thing to say, with content words of a topic, by their ids in the lexicons; what is not said is None."""

    construction: str
    """A key of the lexicons' `templates`."""
    topic: str
    tense: str
    """`pres`, `past` or `fut`."""
    subject: Noun | Named
    verb: str | None = None
    object: Noun | None = None
    verb2: str | None = None
    object2: Noun | None = None
    predicate: str | None = None
    """The adjective after the copula."""
    numeral: str | None = None
    speaker: str | None = None
    """The name of the person who says it, in reported speech."""
    place: str | None = None
    time: str | None = None
    manner: str | None = None


@dataclass(frozen=True)
class Fact:
    """Something that holds throughout the world, about a person (`name`, whose friend is `name2`) or a city."""

    kind: str
    """A key of the lexicons' `facts`."""
    name: str = ""
    name2: str = ""
    place: str = ""
    city: str = ""
    colour: str = ""
    number: int = 0


class Forms(dict):
    """The forms of one word, which a template reads as attributes (`{n.sg}`)."""

    __getattr__ = dict.__getitem__

    def __missing__(self, key: str):
        raise AttributeError(f"the word {dict(self)} has no form {key!r}")


class Lexicon(SimpleNamespace):
    """One language. The entries of its file (`nouns`, `templates`, `facts`, ...) are attributes."""

    def __init__(self, data: dict):
        super().__init__(**data)
        for kind in ("nouns", "verbs", "adjectives", "numerals"):
            setattr(self, kind, {key: Forms(forms) for key, forms in data[kind].items()})
        self.joiner = data.get("and", "and")
        self.action = data.get("action", "{fin} {nonfin}")  # a verb without its subject and objects
        self._fixes = [(re.compile(pattern), replacement) for pattern, replacement in data["fix"]]

    def finish(self, text: str, *, capital: bool = True) -> str:
        """Collapse the gaps of empty slots, apply the language's contractions and begin with a capital."""
        text = re.sub(r" ([.,?!])", r"\1", " ".join(text.split()))
        for pattern, replacement in self._fixes:
            text = pattern.sub(replacement, text)
        return re.sub(r"\w", lambda first: first.group().upper(), text, count=1) if capital else text

    def noun_phrase(self, noun: Noun, role: str, *, numeral: str | None = None) -> str:
        """Return the noun phrase in a `role`: `subj`, `obj`, `negobj`, or `count` with a numeral."""
        word = self.nouns[noun.concept]
        if numeral is not None:
            return by_class(self.np["count"], word["class"]).format(n=word, num=self.numerals[numeral])
        table = self.np if noun.adjective is None else self.np_adj
        template = by_class(table[f"{role}_{noun.number}"], word["class"])
        return template.format(n=word, a=self.adjectives.get(noun.adjective))

    def verb_parts(self, word: Forms | None, tense: str, person: str, kind: str = "") -> tuple[str, str]:
        """Split a verb (the copula if `word` is None) into finite part and rest; `kind`: `neg_`, `ask_`, `count_`."""
        table = self.copula if word is None else self.verb
        entry = by_class(table.get(kind + tense, table[tense]), person)
        finite, _, rest = entry.format(v=word).partition("|")
        return finite, rest

    def fill_prompt(self, prompt: str, noun: Noun) -> str:
        """Return a prompt about a thing, which its template may name as subject, object or negated object."""
        roles = {"S": "subj", "O": "obj", "NO": "negobj"}
        return self.finish(prompt.format(**{slot: self.noun_phrase(noun, role) for slot, role in roles.items()}))


def person_of(subject: Noun | Named) -> str:
    """Return the person and number that the verb agrees with: `1s`, `3s`, `1p` or `3p`."""
    return f"{getattr(subject, 'person', 3)}{'s' if subject.number == 'sg' else 'p'}"


def by_class(table: str | dict, key: str) -> str:
    """Look up a table of a lexicon: one value, or one for each agreement class (or person)."""
    return table if isinstance(table, str) else table[key]


@functools.cache
def load_lexicon(language: str) -> Lexicon:
    """Load the lexicon of one of `LANGUAGES`; raise ValueError, naming them, for another."""
    path = LEXICON_FOLDER / f"{language}.yml"
    if not path.exists():
        raise ValueError(f"unknown language {language!r}: known are {', '.join(LANGUAGES)}")
    return Lexicon(_read(path))


@functools.cache
def load_concepts() -> dict:
    """Load what can be said in every language: topics, general verbs, adjectives, times, manners, colours, names."""
    return _read(LEXICON_FOLDER / "concepts.yml") | _read(LEXICON_FOLDER / "names.yml")


def _read(path: Path) -> dict:
    """Read a YAML file, with PyYAML's C reader where it was built: it takes a ninth of the time."""
    return yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def realise(frame: Frame, language: str, *, capital: bool = True) -> str:
    """Return the sentence that says `frame` in `language`."""
    lex = load_lexicon(language)
    subject, person = frame.subject, person_of(frame.subject)
    kind = {"negated": "neg_", "question": "ask_", "count": "count_"}.get(frame.construction, "")

    slots: dict[str, str] = dict.fromkeys(SLOTS, "") | {"N": frame.speaker or ""}
    if isinstance(subject, Noun):
        slots["S"] = lex.noun_phrase(subject, "subj")
        agreement = lex.nouns[subject.concept]["class"]
        slots["rel"] = by_class(lex.relative[subject.number], agreement)
    else:
        slots["pron"] = lex.pronouns.get(f"{person}_{subject.gender}") or lex.pronouns[person]
        slots["S"] = slots["pron"] if subject.as_pronoun else f" {lex.joiner} ".join(subject.names)
        agreement = lex.name_class[subject.gender]

    if frame.verb is not None:
        slots["fin"], slots["nonfin"] = lex.verb_parts(lex.verbs[frame.verb], frame.tense, person, kind)
    if frame.verb2 is not None and frame.object2 is not None:
        slots["fin2"], slots["nonfin2"] = lex.verb_parts(lex.verbs[frame.verb2], frame.tense, person)
        slots["O2"] = lex.noun_phrase(frame.object2, "obj")
    if frame.predicate is not None:
        slots["cop"], slots["copnf"] = lex.verb_parts(None, frame.tense, person, kind)
        slots["A"] = by_class(lex.predicate[subject.number], agreement).format(a=lex.adjectives[frame.predicate])
    if frame.numeral is not None and frame.object is not None:
        slots["Q"] = lex.noun_phrase(frame.object, "count", numeral=frame.numeral)
    elif frame.object is not None:
        slots["O"] = lex.noun_phrase(frame.object, "negobj" if frame.construction == "negated" else "obj")
    for slot, phrase in (("M", frame.manner), ("P", frame.place), ("T", frame.time)):
        slots[slot] = lex.phrases[phrase] if phrase else ""
    return lex.finish(lex.templates[frame.construction].format(**slots), capital=capital)


def realise_fact(fact: Fact, language: str, *, question: bool = False) -> str:
    """Return the sentence that states `fact`, or the question that it answers."""
    lex = load_lexicon(language)
    template = (lex.fact_questions if question else lex.facts)[fact.kind]
    place, colour = lex.phrases.get(fact.place, ""), lex.phrases.get(fact.colour, "")
    return lex.finish(template.format(N=fact.name, N2=fact.name2, C=fact.city, Y=fact.number, P=place, K=colour))
