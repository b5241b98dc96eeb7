"""What one language alone does in a sentence, and sentences that state a fact, as a speaker writes them."""

import pytest
from toy_frames import HE, SHE, THE_WOMEN, me

from stitch_utils.data.embedded.grammar import (
    Fact,
    Frame,
    Noun,
    realise,
    realise_fact,
)

# What is peculiar to a language: elision, article by sound, separable verbs, two verbs for "to be", double forms.
PECULIAR = (
    (
        "en",
        "They do not hang up the pictures.",
        Frame("negated", "art", "pres", THE_WOMEN, "hang", Noun("picture", "pl")),
    ),
    ("en", "Does he need the old map?", Frame("question", "school", "pres", HE, "need", Noun("map", "sg", "old"))),
    ("en", "I am so ill!", Frame("exclaim", "sea", "pres", me("f"), predicate="ill")),
    ("en", "The sheep was heavy.", Frame("predicate", "farm", "past", Noun("sheep"), predicate="heavy")),
    (
        "fr",
        "Il voit le vieil hôtel en ville.",
        Frame("plain", "travel", "pres", HE, "see", Noun("hotel", "sg", "old"), place="in_city"),
    ),
    (
        "fr",
        "J'ouvre la belle armoire.",
        Frame("plain", "workshop", "pres", me("f"), "open", Noun("cupboard", "sg", "beautiful")),
    ),
    (
        "fr",
        "Nous n'achèterons pas les œufs blancs.",
        Frame("negated", "kitchen", "fut", me("f", "pl"), "buy", Noun("egg", "pl", "white")),
    ),
    ("fr", "Elle est nerveuse aujourd'hui.", Frame("predicate", "sea", "pres", SHE, predicate="nervous", time="today")),
    (
        "de",
        "Der Astronom beobachtet den roten Planeten.",
        Frame("plain", "science", "pres", Noun("astronomer"), "observe", Noun("planet", "sg", "red")),
    ),
    (
        "de",
        "Der Arzt, der das Bett vorbereitet, hängt das Bild auf.",
        Frame("relative", "hospital", "pres", Noun("doctor"), "hang", Noun("picture"), "prepare", Noun("bed")),
    ),
    (
        "de",
        "Die Künstler hängten die Maske gestern nicht im Museum auf.",
        Frame(
            "negated", "art", "past", Noun("artist", "pl"), "hang", Noun("mask"), place="in_museum", time="yesterday"
        ),
    ),
    (
        "de",
        "Wird er morgen die alte Landkarte brauchen?",
        Frame("question", "school", "fut", HE, "need", Noun("map", "sg", "old"), time="tomorrow"),
    ),
    (
        "de",
        "Das alte Schloss wird morgen schön sein.",
        Frame("predicate", "travel", "fut", Noun("castle", "sg", "old"), predicate="beautiful", time="tomorrow"),
    ),
    (
        "es",
        "Los marineros arrastran el ancla vieja.",
        Frame("plain", "sea", "pres", Noun("sailor", "pl"), "pull", Noun("anchor", "sg", "old")),
    ),
    ("es", "Las anclas son pesadas.", Frame("predicate", "sea", "pres", Noun("anchor", "pl"), predicate="heavy")),
    (
        "es",
        "La inventora vende la máquina e inventa el robot.",
        Frame("and", "science", "pres", Noun("inventor"), "sell", Noun("machine"), "invent", Noun("robot")),
    ),
    ("es", "Yo estaré cansada mañana.", Frame("predicate", "sea", "fut", me("f"), predicate="tired", time="tomorrow")),
    ("es", "¡Yo soy tan perezoso!", Frame("exclaim", "sea", "pres", me("m"), predicate="lazy")),
    (
        "it",
        "Lo scienziato osserva gli esperimenti.",
        Frame("plain", "science", "pres", Noun("scientist"), "observe", Noun("experiment", "pl")),
    ),
    ("it", "Io compro sei uova.", Frame("count", "kitchen", "pres", me("m"), "buy", Noun("egg", "pl"), numeral="six")),
    (
        "it",
        "Gli scultori non hanno venduto l'uovo bianco.",
        Frame("negated", "art", "past", Noun("sculptor", "pl"), "sell", Noun("egg", "sg", "white")),
    ),
    (
        "it",
        "L'anno scorso l'artista ha venduto i quadri.",
        Frame("fronted", "art", "past", Noun("artist"), "sell", Noun("picture", "pl"), time="last_year"),
    ),
    ("pt", "Eu preciso do queijo.", Frame("plain", "kitchen", "pres", me("m"), "need", Noun("cheese"))),
    (
        "pt",
        "Nós não precisámos das moedas ontem.",
        Frame("negated", "market", "past", me("f", "pl"), "need", Noun("coin", "pl"), time="yesterday"),
    ),
    ("pt", "Ela compra duas maçãs.", Frame("count", "kitchen", "pres", SHE, "buy", Noun("apple", "pl"), numeral="two")),
    (
        "pt",
        "Elas estarão doentes amanhã.",
        Frame("predicate", "sea", "fut", THE_WOMEN, predicate="ill", time="tomorrow"),
    ),
    (
        "nl",
        "Brino Bozeka zegt dat de boeren de tractor nodig hebben.",
        Frame("says", "farm", "pres", Noun("farmer", "pl"), "need", Noun("tractor"), speaker="Brino Bozeka"),
    ),
    (
        "nl",
        "Brino Bozeka zegt dat de boer de tractor nodig zal hebben.",
        Frame("says", "farm", "fut", Noun("farmer"), "need", Noun("tractor"), speaker="Brino Bozeka"),
    ),
    (
        "nl",
        "De dokter die de pil zal voorschrijven, zal het raam openen.",
        Frame("relative", "hospital", "fut", Noun("doctor"), "open", Noun("window"), "prescribe", Noun("pill")),
    ),
    ("nl", "Ik zie het oude kasteel.", Frame("plain", "travel", "pres", me("f"), "see", Noun("castle", "sg", "old"))),
    (
        "sv",
        "Jag hänger inte upp den lilla tavlan.",
        Frame("negated", "art", "pres", me("m"), "hang", Noun("picture", "sg", "small")),
    ),
    (
        "sv",
        "Det gamla slottet kommer att vara vackert.",
        Frame("predicate", "travel", "fut", Noun("castle", "sg", "old"), predicate="beautiful"),
    ),
    (
        "sv",
        "I morgon ska hon köpa de små båtarna.",
        Frame("fronted", "sea", "fut", SHE, "buy", Noun("boat", "pl", "small"), time="tomorrow"),
    ),
    (
        "ro",
        "Eu am văzut calul alb ieri.",
        Frame("plain", "farm", "past", me("m"), "see", Noun("horse", "sg", "white"), time="yesterday"),
    ),
    ("ro", "Ea cumpără două mere.", Frame("count", "kitchen", "pres", SHE, "buy", Noun("apple", "pl"), numeral="two")),
    (
        "ro",
        "Ea cumpără doi cartofi.",
        Frame("count", "kitchen", "pres", SHE, "buy", Noun("potato", "pl"), numeral="two"),
    ),
    (
        "ro",
        "Va vinde el mașinăria mâine?",
        Frame("question", "science", "fut", HE, "sell", Noun("machine"), time="tomorrow"),
    ),
    (
        "fi",
        "Me emme ostaneet vanhoja kirjoja.",
        Frame("negated", "school", "past", me("m", "pl"), "buy", Noun("book", "pl", "old")),
    ),
    ("fi", "Näkikö hän saaren?", Frame("question", "sea", "past", SHE, "see", Noun("island"))),
    ("fi", "Minä en myy suurta venettä.", Frame("negated", "sea", "fut", me("f"), "sell", Noun("boat", "sg", "big"))),
    (
        "hu",
        "A pék, aki meg fogja sütni a tortát, el fogja adni az almákat.",
        Frame("relative", "kitchen", "fut", Noun("baker"), "sell", Noun("apple", "pl"), "bake", Noun("cake")),
    ),
    (
        "hu",
        "Én holnap nem fogom megvenni az almát.",
        Frame("negated", "kitchen", "fut", me("f"), "buy", Noun("apple"), time="tomorrow"),
    ),
    (
        "hu",
        "A gazda két lovat lát.",
        Frame("count", "farm", "pres", Noun("farmer"), "see", Noun("horse", "pl"), numeral="two"),
    ),
    (
        "hu",
        "Látni fogják a matrózok a szigetet?",
        Frame("question", "sea", "fut", Noun("sailor", "pl"), "see", Noun("island")),
    ),
    ("hu", "Én olyan fáradt vagyok!", Frame("exclaim", "sea", "pres", me("m"), predicate="tired")),
)

FACTS = (
    ("en", "Mira Feneda is 34 years old.", Fact("age", "Mira Feneda", number=34)),
    ("fr", "La couleur préférée de Mira Feneda est le rouge.", Fact("colour", "Mira Feneda", colour="colour_red")),
    ("de", "Mira Feneda ist am besten mit Brino Bozeka befreundet.", Fact("friend", "Mira Feneda", "Brino Bozeka")),
    ("es", "El mejor amigo de Mira Feneda es Brino Bozeka.", Fact("friend", "Mira Feneda", "Brino Bozeka")),
    ("es", "La mejor amiga de Brino Bozeka es Mira Feneda.", Fact("friend", "Brino Bozeka", "Mira Feneda")),
    ("it", "Il migliore amico di Mira Feneda è Brino Bozeka.", Fact("friend", "Mira Feneda", "Brino Bozeka")),
    ("it", "La migliore amica di Brino Bozeka è Mira Feneda.", Fact("friend", "Brino Bozeka", "Mira Feneda")),
    ("pt", "O melhor amigo de Mira Feneda é Brino Bozeka.", Fact("friend", "Mira Feneda", "Brino Bozeka")),
    ("pt", "A melhor amiga de Brino Bozeka é Mira Feneda.", Fact("friend", "Brino Bozeka", "Mira Feneda")),
    ("nl", "De stad Tekusa heeft 12 bruggen.", Fact("city", city="Tekusa", number=12)),
    ("sv", "Mira Fenedas bästa vän är Brino Bozeka.", Fact("friend", "Mira Feneda", "Brino Bozeka")),
    ("ro", "Cel mai bun prieten al Mirei Feneda este Brino Bozeka.", Fact("friend", "Mira Feneda", "Brino Bozeka")),
    ("ro", "Cea mai bună prietenă a lui Brino Bozeka este Mira Feneda.", Fact("friend", "Brino Bozeka", "Mira Feneda")),
    ("ro", "Mira Feneda are 19 ani.", Fact("age", "Mira Feneda", number=19)),
    ("ro", "Mira Feneda are 20 de ani.", Fact("age", "Mira Feneda", number=20)),
    ("ro", "Orașul Tekusa are 31 de poduri.", Fact("city", city="Tekusa", number=31)),
    ("fi", "Mira Feneda asuu Tekusassa.", Fact("lives", "Mira Feneda", city="Tekusa")),
    ("hu", "Mira Feneda a konyhában dolgozik.", Fact("works", "Mira Feneda", place="in_kitchen")),
)


@pytest.mark.parametrize(("language", "sentence", "frame"), PECULIAR, ids=[sentence for _, sentence, _ in PECULIAR])
def test_sentences_peculiar_to_a_language(language, sentence, frame):
    assert realise(frame, language) == sentence


@pytest.mark.parametrize(("language", "sentence", "fact"), FACTS, ids=[sentence for _, sentence, _ in FACTS])
def test_sentences_that_state_a_fact(language, sentence, fact):
    assert realise_fact(fact, language) == sentence
