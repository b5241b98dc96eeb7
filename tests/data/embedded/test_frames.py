"""Sentences against what a speaker of each language writes, and frames: drawing, re-lexicalising, labelling."""

import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from stitch_utils.data.embedded.frames import (
    CONSTRUCTIONS,
    TENSES,
    TOPICS,
    draw_frame,
    labels_of,
    named,
    relexicalise,
)
from stitch_utils.data.embedded.grammar import (
    LANGUAGES,
    Fact,
    Frame,
    Named,
    Noun,
    load_concepts,
    load_lexicon,
    realise,
    realise_fact,
)
from stitch_utils.data.embedded.world import sentence_frames

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

SENTENCES = {
    "en": {
        "plain": "The cook bakes the loaf in the kitchen today.",
        "adjectives": "The friendly nurse will show the new beds in the hospital.",
        "fronted": "Yesterday the singer practised the song carefully on the stage.",
        "negated": "Mira Feneda did not sell the soup yesterday.",
        "question": "Did the farmers clean the barns on the farm?",
        "who": "Who will prepare the injection soon?",
        "pronoun": "They were proud yesterday.",
        "exclaim": "The eggs are so dirty!",
        "relative": "The baker who bakes the cake sells the apples.",
        "because": "Mira Feneda sells the coat at the market because she is tired.",
        "and": "Mira Feneda and Brino Bozeka see the ring and sell the bag in the shop.",
        "says": "Brino Bozeka says that the nurses prepared the bed in the hospital.",
        "count": "We will see two islands tomorrow.",
    },
    "fr": {
        "plain": "Le cuisinier cuit le pain dans la cuisine aujourd'hui.",
        "adjectives": "L'infirmière aimable montrera les nouveaux lits à l'hôpital.",
        "fronted": "Hier la chanteuse a répété avec soin la chanson sur scène.",
        "negated": "Mira Feneda n'a pas vendu la soupe hier.",
        "question": "Est-ce que les fermiers ont nettoyé les granges à la ferme?",
        "who": "Qui préparera la piqûre bientôt?",
        "pronoun": "Elles étaient fières hier.",
        "exclaim": "Les œufs sont si sales!",
        "relative": "Le boulanger qui cuit le gâteau vend les pommes.",
        "because": "Mira Feneda vend le manteau au marché parce qu'elle est fatiguée.",
        "and": "Mira Feneda et Brino Bozeka voient la bague et vendent le sac dans le magasin.",
        "says": "Brino Bozeka dit que les infirmières ont préparé le lit à l'hôpital.",
        "count": "Nous verrons deux îles demain.",
    },
    "de": {
        "plain": "Der Koch backt heute das Brot in der Küche.",
        "adjectives": "Die freundliche Krankenschwester wird die neuen Betten im Krankenhaus zeigen.",
        "fronted": "Gestern übte der Sänger das Lied vorsichtig auf der Bühne.",
        "negated": "Mira Feneda verkaufte die Suppe gestern nicht.",
        "question": "Reinigten die Bauern die Scheunen auf dem Bauernhof?",
        "who": "Wer wird bald die Spritze vorbereiten?",
        "pronoun": "Sie waren gestern stolz.",
        "exclaim": "Die Eier sind so schmutzig!",
        "relative": "Der Bäcker, der den Kuchen backt, verkauft die Äpfel.",
        "because": "Mira Feneda verkauft den Mantel auf dem Markt, weil sie müde ist.",
        "and": "Mira Feneda und Brino Bozeka sehen den Ring und verkaufen die Tasche im Laden.",
        "says": "Brino Bozeka sagt, dass die Krankenschwestern das Bett im Krankenhaus vorbereiteten.",
        "count": "Wir werden morgen zwei Inseln sehen.",
    },
    "es": {
        "plain": "El cocinero hornea el pan en la cocina hoy.",
        "adjectives": "La enfermera amable mostrará las camas nuevas en el hospital.",
        "fronted": "Ayer la cantante ensayó la canción con cuidado en el escenario.",
        "negated": "Mira Feneda no vendió la sopa ayer.",
        "question": "¿Limpiaron los granjeros los graneros en la granja?",
        "who": "¿Quién preparará la inyección pronto?",
        "pronoun": "Ellas estaban orgullosas ayer.",
        "exclaim": "¡Los huevos están tan sucios!",
        "relative": "El panadero que hornea el pastel vende las manzanas.",
        "because": "Mira Feneda vende el abrigo en el mercado porque ella está cansada.",
        "and": "Mira Feneda y Brino Bozeka ven el anillo y venden el bolso en la tienda.",
        "says": "Brino Bozeka dice que las enfermeras prepararon la cama en el hospital.",
        "count": "Nosotros veremos dos islas mañana.",
    },
    "it": {
        "plain": "Il cuoco cuoce il pane in cucina oggi.",
        "adjectives": "L'infermiera gentile mostrerà i letti nuovi in ospedale.",
        "fronted": "Ieri il cantante ha provato con cura la canzone sul palco.",
        "negated": "Mira Feneda non ha venduto la zuppa ieri.",
        "question": "I contadini hanno pulito i fienili nella fattoria?",
        "who": "Chi preparerà l'iniezione presto?",
        "pronoun": "Loro erano orgogliose ieri.",
        "exclaim": "Le uova sono così sporche!",
        "relative": "Il fornaio che cuoce la torta vende le mele.",
        "because": "Mira Feneda vende il cappotto al mercato perché lei è stanca.",
        "and": "Mira Feneda e Brino Bozeka vedono l'anello e vendono la borsa nel negozio.",
        "says": "Brino Bozeka dice che le infermiere hanno preparato il letto in ospedale.",
        "count": "Noi vedremo due isole domani.",
    },
    "pt": {
        "plain": "O cozinheiro coze o pão na cozinha hoje.",
        "adjectives": "A enfermeira simpática mostrará as camas novas no hospital.",
        "fronted": "Ontem a cantora ensaiou a canção com cuidado no palco.",
        "negated": "Mira Feneda não vendeu a sopa ontem.",
        "question": "Os agricultores limparam os celeiros na quinta?",
        "who": "Quem preparará a injeção em breve?",
        "pronoun": "Elas estavam orgulhosas ontem.",
        "exclaim": "Os ovos estão tão sujos!",
        "relative": "O padeiro que coze o bolo vende as maçãs.",
        "because": "Mira Feneda vende o casaco no mercado porque ela está cansada.",
        "and": "Mira Feneda e Brino Bozeka veem o anel e vendem o saco na loja.",
        "says": "Brino Bozeka diz que as enfermeiras prepararam a cama no hospital.",
        "count": "Nós veremos duas ilhas amanhã.",
    },
    "nl": {
        "plain": "De kok bakt het brood vandaag in de keuken.",
        "adjectives": "De vriendelijke verpleger zal de nieuwe bedden in het ziekenhuis tonen.",
        "fronted": "Gisteren oefende de zanger het lied voorzichtig op het podium.",
        "negated": "Mira Feneda verkocht de soep gisteren niet.",
        "question": "Maakten de boeren de schuren op de boerderij schoon?",
        "who": "Wie zal de injectie binnenkort klaarmaken?",
        "pronoun": "Ze waren gisteren trots.",
        "exclaim": "De eieren zijn zo vies!",
        "relative": "De bakker die de taart bakt, verkoopt de appels.",
        "because": "Mira Feneda verkoopt de jas op de markt omdat ze vermoeid is.",
        "and": "Mira Feneda en Brino Bozeka zien de ring en verkopen de tas in de winkel.",
        "says": "Brino Bozeka zegt dat de verplegers het bed in het ziekenhuis klaarmaakten.",
        "count": "We zullen morgen twee eilanden zien.",
    },
    "sv": {
        "plain": "Kocken bakar brödet i köket i dag.",
        "adjectives": "Den vänliga sjuksköterskan ska visa de nya sängarna på sjukhuset.",
        "fronted": "I går övade sångaren försiktigt sången på scenen.",
        "negated": "Mira Feneda sålde inte soppan i går.",
        "question": "Rengjorde bönderna ladorna på gården?",
        "who": "Vem ska förbereda sprutan snart?",
        "pronoun": "De var stolta i går.",
        "exclaim": "Äggen är så smutsiga!",
        "relative": "Bagaren som bakar tårtan säljer äpplena.",
        "because": "Mira Feneda säljer rocken på marknaden eftersom hon är trött.",
        "and": "Mira Feneda och Brino Bozeka ser ringen och säljer väskan i affären.",
        "says": "Brino Bozeka säger att sjuksköterskorna förberedde sängen på sjukhuset.",
        "count": "Vi ska se två öar i morgon.",
    },
    "ro": {
        "plain": "Bucătarul coace pâinea în bucătărie astăzi.",
        "adjectives": "Asistenta prietenoasă va arăta paturile noi la spital.",
        "fronted": "Ieri cântărețul a exersat cu grijă cântecul pe scenă.",
        "negated": "Mira Feneda nu a vândut supa ieri.",
        "question": "Au curățat fermierii hambarele la fermă?",
        "who": "Cine va pregăti injecția în curând?",
        "pronoun": "Ele erau mândre ieri.",
        "exclaim": "Ouăle sunt atât de murdare!",
        "relative": "Brutarul care coace tortul vinde merele.",
        "because": "Mira Feneda vinde paltonul la piață pentru că este obosită.",
        "and": "Mira Feneda și Brino Bozeka văd inelul și vând geanta în magazin.",
        "says": "Brino Bozeka spune că asistentele au pregătit patul la spital.",
        "count": "Noi vom vedea două insule mâine.",
    },
    "fi": {
        "plain": "Kokki paistaa leivän keittiössä tänään.",
        "adjectives": "Ystävällinen sairaanhoitaja näyttää uudet sängyt sairaalassa.",
        "fronted": "Eilen laulaja opetteli laulun huolellisesti lavalla.",
        "negated": "Mira Feneda ei myynyt keittoa eilen.",
        "question": "Puhdistivatko maanviljelijät ladot maatilalla?",
        "who": "Kuka valmistelee ruiskeen pian?",
        "pronoun": "He olivat ylpeitä eilen.",
        "exclaim": "Kananmunat ovat niin likaisia!",
        "relative": "Leipuri, joka paistaa kakun, myy omenat.",
        "because": "Mira Feneda myy takin torilla, koska hän on väsynyt.",
        "and": "Mira Feneda ja Brino Bozeka näkevät sormuksen ja myyvät laukun kaupassa.",
        "says": "Brino Bozeka sanoo, että sairaanhoitajat valmistelivat sängyn sairaalassa.",
        "count": "Me näemme kaksi saarta huomenna.",
    },
    "hu": {
        "plain": "A szakács ma a konyhában megsüti a kenyeret.",
        "adjectives": "A barátságos ápoló a kórházban meg fogja mutatni az új ágyakat.",
        "fronted": "Tegnap az énekes a színpadon óvatosan gyakorolta a dalt.",
        "negated": "Mira Feneda tegnap nem adta el a levest.",
        "question": "Megtisztították a gazdák a pajtákat a farmon?",
        "who": "Ki fogja előkészíteni hamarosan az injekciót?",
        "pronoun": "Ők tegnap büszkék voltak.",
        "exclaim": "A tojások olyan piszkosak!",
        "relative": "A pék, aki megsüti a tortát, eladja az almákat.",
        "because": "Mira Feneda a piacon eladja a kabátot, mert ő fáradt.",
        "and": "Mira Feneda és Brino Bozeka az üzletben látják a gyűrűt, és eladják a táskát.",
        "says": "Brino Bozeka azt mondja, hogy az ápolók a kórházban előkészítették az ágyat.",
        "count": "Mi holnap két szigetet fogunk látni.",
    },
}

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


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", FRAMES)
def test_sentences_of_every_construction(name, language):
    assert realise(FRAMES[name], language) == SENTENCES[language][name]


@pytest.mark.parametrize(("language", "sentence", "frame"), PECULIAR, ids=[sentence for _, sentence, _ in PECULIAR])
def test_sentences_peculiar_to_a_language(language, sentence, frame):
    assert realise(frame, language) == sentence


@pytest.mark.parametrize(("language", "sentence", "fact"), FACTS, ids=[sentence for _, sentence, _ in FACTS])
def test_sentences_that_state_a_fact(language, sentence, fact):
    assert realise_fact(fact, language) == sentence


def test_spanish_women_say_nosotras():
    frame = Frame("exclaim", "sea", "pres", me("f", "pl"), predicate="tired")
    assert realise(frame, "es") == "¡Nosotras estamos tan cansadas!"


def test_every_construction_is_spelt_out_above():
    assert {frame.construction for frame in FRAMES.values()} == set(CONSTRUCTIONS)
    assert all(set(sentences) == set(FRAMES) for sentences in SENTENCES.values())


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
