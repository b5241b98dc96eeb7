"""Sentences of every construction against what a speaker of each language writes."""

import pytest
from toy_frames import FRAMES, me

from stitch_utils.data.embedded.frames import (
    CONSTRUCTIONS,
)
from stitch_utils.data.embedded.grammar import (
    LANGUAGES,
    Frame,
    realise,
)

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


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", FRAMES)
def test_sentences_of_every_construction(name, language):
    assert realise(FRAMES[name], language) == SENTENCES[language][name]


def test_spanish_women_say_nosotras():
    frame = Frame("exclaim", "sea", "pres", me("f", "pl"), predicate="tired")
    assert realise(frame, "es") == "¡Nosotras estamos tan cansadas!"


def test_every_construction_is_spelt_out_above():
    assert {frame.construction for frame in FRAMES.values()} == set(CONSTRUCTIONS)
    assert all(set(sentences) == set(FRAMES) for sentences in SENTENCES.values())
