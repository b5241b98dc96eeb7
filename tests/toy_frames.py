"""People, and one frame of every construction."""

from dataclasses import replace

from stitch_utils.data.embedded.frames import (
    named,
)
from stitch_utils.data.embedded.grammar import (
    Frame,
    Named,
    Noun,
)

HER, HIM, BOTH = named("Mira Feneda"), named("Brino Bozeka"), named("Mira Feneda", "Brino Bozeka")
SHE, HE = replace(HER, as_pronoun=True), replace(HIM, as_pronoun=True)
THE_WOMEN = named("Mira Feneda", "Neda Ranorta", as_pronoun=True)


def me(gender, number="sg"):
    return Named((), gender, number, person=1, as_pronoun=True)


# One frame of every construction, two of the copula; each in all languages.
FRAMES = {
    "plain": Frame("plain", "kitchen", "pres", Noun("cook"), "bake", Noun("bread"), place="in_kitchen", time="today"),
    "adjectives": Frame(
        "plain",
        "hospital",
        "fut",
        Noun("nurse", "sg", "friendly"),
        "show",
        Noun("bed", "pl", "new"),
        place="in_hospital",
    ),
    "fronted": Frame(
        "fronted",
        "music",
        "past",
        Noun("singer"),
        "practise",
        Noun("song"),
        place="on_stage",
        time="yesterday",
        manner="carefully",
    ),
    "negated": Frame("negated", "kitchen", "past", HER, "sell", Noun("soup"), time="yesterday"),
    "question": Frame("question", "farm", "past", Noun("farmer", "pl"), "clean", Noun("barn", "pl"), place="on_farm"),
    "who": Frame("who", "hospital", "fut", Noun("doctor"), "prepare", Noun("injection"), time="soon"),
    "pronoun": Frame("predicate", "sea", "past", THE_WOMEN, predicate="proud", time="yesterday"),
    "exclaim": Frame("exclaim", "kitchen", "pres", Noun("egg", "pl"), predicate="dirty"),
    "relative": Frame("relative", "kitchen", "pres", Noun("baker"), "sell", Noun("apple", "pl"), "bake", Noun("cake")),
    "because": Frame("because", "market", "pres", HER, "sell", Noun("coat"), predicate="tired", place="at_market"),
    "and": Frame("and", "market", "pres", BOTH, "see", Noun("ring"), "sell", Noun("bag"), place="in_shop"),
    "says": Frame(
        "says",
        "hospital",
        "past",
        Noun("nurse", "pl"),
        "prepare",
        Noun("bed"),
        speaker="Brino Bozeka",
        place="in_hospital",
    ),
    "count": Frame("count", "sea", "fut", me("m", "pl"), "see", Noun("island", "pl"), numeral="two", time="tomorrow"),
}
