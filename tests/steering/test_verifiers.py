"""The rules for following an instruction, on responses written by hand, and the judge of languages."""

import json
from pathlib import Path

import pytest

from stitch_utils.data.embedded.world import INSTRUCTIONS, requests
from stitch_utils.steering.verifiers import RULES, WORLD_INSTRUCTIONS, detect_language, verify

REAL = Path(__file__).parents[3] / "shared" / "data" / "ifeval" / "ifeval_single_instr_format.jsonl"
CAPITALS, SMALL = "change_case:english_capital", "change_case:english_lowercase"
WORDS, HIGHLIGHTS = "change_case:capital_word_frequency", "detectable_format:number_highlighted_sections"
BULLETS, LIST, JSON = "detectable_format:number_bullet_lists", "world:bullet_list", "detectable_format:json_format"
TITLE, SECTIONS = "detectable_format:title", "detectable_format:multiple_sections"
CHOICE, COMMAS, QUOTES = "detectable_format:constrained_response", "punctuation:no_comma", "startend:quotation"
END, LANGUAGE, POSTSCRIPT = "startend:end_checker", "language:response_language", "detectable_content:postscript"
ENGLISH = "The baker tastes the cheese in the old kitchen every morning."
KEYWORDS = {
    WORDS: {"capital_relation": "less than", "capital_frequency": 5},
    BULLETS: {"num_bullets": 0},
    HIGHLIGHTS: {"num_highlights": 0},
    SECTIONS: {"section_spliter": "Day", "num_sections": 0},
    LANGUAGE: {"language": "unknown"},
    END: {"end_phrase": ""},
    POSTSCRIPT: {"postscript_marker": "P.S."},
}

CASES = [
    (CAPITALS, ENGLISH.upper(), {}, True),
    (CAPITALS, ENGLISH, {}, False),
    (CAPITALS, ENGLISH.upper() + " 42 + 3!", {}, True),
    (CAPITALS, "DER BÄCKER ISST DEN KÄSE JEDEN MORGEN IN DER KÜCHE.", {}, False),  # not English
    (CAPITALS, ENGLISH.upper() + " ß", {}, False),  # ß is a small letter
    (CAPITALS, ENGLISH.upper() + " İ", {}, True),
    (CAPITALS, "1234 5678", {}, False),  # nothing in capitals
    (CAPITALS, "?!... --", {}, False),
    (SMALL, ENGLISH.lower(), {}, True),
    (SMALL, ENGLISH, {}, False),
    (SMALL, ENGLISH.lower() + " ß", {}, True),
    (SMALL, ENGLISH.lower() + " İ", {}, False),
    (SMALL, "der bäcker isst jeden morgen in der alten küche den käse.", {}, False),
    (SMALL, "1234", {}, False),
    (SMALL, "...", {}, False),
    (WORDS, "I saw NASA and a UFO", {"capital_relation": "at least", "capital_frequency": 3}, True),
    (WORDS, "I saw NASA and a UFO", {"capital_relation": "at least", "capital_frequency": 4}, False),
    (WORDS, "I saw NASA and a UFO", {"capital_relation": "less than", "capital_frequency": 4}, True),
    (WORDS, "I saw NASA and a UFO", {"capital_relation": "less than", "capital_frequency": 3}, False),
    (WORDS, "DON'T use STATE-OF-THE-ART or Iphone", {"capital_relation": "less than", "capital_frequency": 3}, True),
    (WORDS, "2024 19 !", {"capital_relation": "at least", "capital_frequency": 1}, False),
    (WORDS, "COVID-19", {"capital_relation": "at least", "capital_frequency": 1}, True),
    (COMMAS, "No. None; at (all)!", {}, True),
    (COMMAS, "One, two", {}, False),
    (COMMAS, "12345", {}, True),
    (COMMAS, "、 ，", {}, True),  # other scripts' commas are other characters
    (JSON, '{"a": [1, {"b": null}]}', {}, True),
    (JSON, ' \n{"a": "ß"}\n ', {}, True),
    (JSON, '```json\n{"a": {"b": {"c": [[]]}}}\n```', {}, True),
    (JSON, '```JSON\n{"a": 1}\n```', {}, True),
    (JSON, "```\n[1, 2]\n```", {}, True),
    (JSON, "```yaml\na: 1\n```", {}, False),
    (JSON, 'Here it is: {"a": 1}', {}, False),
    (JSON, '{"a": 1} {"b": 2}', {}, False),
    (JSON, "{'a': 1}", {}, False),
    (JSON, '{"a": 1,', {}, False),
    (JSON, "42", {}, True),
    (JSON, "...", {}, False),
    (JSON, "[" * 100_000, {}, False),
    (BULLETS, "* one\n* two\nthree", {"num_bullets": 2}, True),
    (BULLETS, "- one\n* two\n  - three", {"num_bullets": 3}, True),
    (BULLETS, "- one\n- two", {"num_bullets": 3}, False),
    (BULLETS, "- one\n- two\n- three\n- four", {"num_bullets": 3}, False),
    (BULLETS, "**bold**\n* one", {"num_bullets": 1}, True),
    (BULLETS, "*\none - two", {"num_bullets": 0}, True),
    (BULLETS, "• one", {"num_bullets": 1}, False),
    (BULLETS, "Points:\n\t*one", {"num_bullets": 1}, True),
    (LIST, "- One.\n- Two.", {}, True),
    (LIST, "- One.\n\n- Two.\n-", {}, True),
    (LIST, "- One.\nTwo.", {}, False),
    (LIST, "Well:\n- One.", {}, False),
    (LIST, "* One.\n* Two.", {}, False),
    (LIST, "One - two", {}, False),
    (LIST, "-5 degrees", {}, False),
    (TITLE, "<<On cheese>>\nIt is good.", {}, True),
    (TITLE, "<<>> << >>", {}, False),
    (TITLE, "<On cheese>", {}, False),
    (TITLE, "<<On\ncheese>>", {}, False),
    (HIGHLIGHTS, "*one* and *two words*", {"num_highlights": 2}, True),
    (HIGHLIGHTS, "*one* and *two words*", {"num_highlights": 3}, False),
    (HIGHLIGHTS, "**one** and *two*", {"num_highlights": 2}, True),
    (HIGHLIGHTS, "**one** ", {"num_highlights": 2}, False),
    (HIGHLIGHTS, "* * ** ** 3 * 4", {"num_highlights": 1}, False),
    (HIGHLIGHTS, "* one\n* two", {"num_highlights": 1}, False),  # bullets are none
    (SECTIONS, "SECTION 1\na\nSECTION 2\nb", {"section_spliter": "SECTION", "num_sections": 2}, True),
    (SECTIONS, "SECTION 1\na\nSECTION 2\nb", {"section_spliter": "SECTION", "num_sections": 3}, False),
    (SECTIONS, "Section 1", {"section_spliter": "SECTION", "num_sections": 1}, False),
    (SECTIONS, "SECTION one", {"section_spliter": "SECTION", "num_sections": 1}, False),
    (SECTIONS, "Day1 Day2", {"section_spliter": "Day", "num_sections": 2}, True),
    (SECTIONS, "S 1", {"section_spliter": "S.", "num_sections": 1}, False),  # no pattern, but the characters
    (CHOICE, "Well. My answer is maybe.", {}, True),
    (CHOICE, "my answer is maybe.", {}, False),
    (CHOICE, "My answer is yes", {}, False),
    (QUOTES, '"Quite."', {}, True),
    (QUOTES, ' \n"Quite."\t', {}, True),
    (QUOTES, '"Quite." he said', {}, False),
    (QUOTES, "“Quite.”", {}, False),
    (QUOTES, '"', {}, False),
    (QUOTES, '""', {}, True),
    (QUOTES, "'Quite.'", {}, False),
    (END, "So. That is all for now.  \n", {"end_phrase": "That is all for now."}, True),
    (END, "SO. THAT IS ALL FOR NOW.", {"end_phrase": " That is all for now. "}, True),
    (END, '"So. That is all for now."', {"end_phrase": "That is all for now."}, True),
    (END, "That is all for now. Or not.", {"end_phrase": "That is all for now."}, False),
    (END, "That is all for now", {"end_phrase": "That is all for now."}, False),
    (END, "BİTTİ", {"end_phrase": "bİttİ"}, True),
    (END, "Good luck on the STRASSE", {"end_phrase": "straße"}, False),  # lower case is no case folding
    (LANGUAGE, "Le boulanger goûte le fromage dans la vieille cuisine.", {"language": "fr"}, True),
    (LANGUAGE, "LE BOULANGER GOÛTE LE FROMAGE DANS LA VIEILLE CUISINE.", {"language": "fr"}, True),
    (LANGUAGE, ENGLISH, {"language": "fr"}, False),
    (LANGUAGE, "12 34", {"language": "en"}, False),
    (LANGUAGE, "?!", {"language": "en"}, False),
    (POSTSCRIPT, "Yours\n\nP.S. Bring cheese.", {"postscript_marker": "P.S."}, True),
    (POSTSCRIPT, "Yours\np. s. bring cheese", {"postscript_marker": "P.S."}, True),
    (POSTSCRIPT, "Yours, PS bring cheese", {"postscript_marker": "P.S."}, False),
    (POSTSCRIPT, "P.P.S more", {"postscript_marker": "P.P.S"}, True),
    (POSTSCRIPT, "P.S. once", {"postscript_marker": "P.P.S"}, False),
    (POSTSCRIPT, "note: more", {"postscript_marker": "NOTE:"}, True),
]


@pytest.mark.parametrize(("instruction", "response", "keywords", "expected"), CASES)
def test_by_hand(instruction, response, keywords, expected):
    assert verify(instruction, response, **keywords) is expected


@pytest.mark.parametrize("instruction", RULES)
@pytest.mark.parametrize("response", ["", "  \n\t "])
def test_an_empty_response_follows_nothing(instruction, response):
    assert verify(instruction, response, **KEYWORDS.get(instruction, {})) is False


def test_every_rule_has_cases_of_both_kinds():
    for instruction in RULES:
        assert {expected for id, *_, expected in CASES if id == instruction} == {True, False}, instruction


def test_what_is_not_known():
    with pytest.raises(ValueError, match=r"unknown instruction 'case:upper': expected one of change_case"):
        verify("case:upper", "A")
    with pytest.raises(ValueError, match=r"was given the keywords none: expected num_bullets"):
        verify(BULLETS, "- a")
    with pytest.raises(ValueError, match=r"was given the keywords number: expected none"):
        verify(COMMAS, "a", number=1)
    with pytest.raises(ValueError, match=r"unknown capital_relation 'about': expected one of less than, at least"):
        verify(WORDS, "a", capital_relation="about", capital_frequency=1)
    with pytest.raises(ValueError, match=r"keywords none: expected capital_relation, capital_frequency"):
        verify(WORDS, "a")


def test_keywords_without_a_value_are_not_given():
    assert verify(BULLETS, "- a", num_bullets=1, language=None, end_phrase=None)


def test_the_worlds_own_answers_follow_and_others_do_not():
    assert set(WORLD_INSTRUCTIONS) == set(INSTRUCTIONS) - {None}
    for kind, instruction in WORLD_INSTRUCTIONS.items():
        asked, plain = requests("verifiers", 30, instruction=kind), requests("verifiers", 30, instruction=None)
        keywords = {"end_phrase": "That is all for now."} if kind == "closing" else {}

        def share(found, instruction=instruction, keywords=keywords, kind=kind):
            given = [keywords | ({"language": r.answer_language} if kind == "language" else {}) for r in found]
            return sum(verify(instruction, r.answer, **k) for r, k in zip(found, given)) / len(found)

        assert share(asked) >= 0.95, kind
        if kind not in ("no_commas", "language"):  # plain answers are in the language that is asked about here
            assert share(plain) == 0, kind


@pytest.mark.skipif(not REAL.is_file(), reason="the prompts of Stolfo et al. are not on this disk")
def test_every_instruction_of_the_163_prompts_is_known():
    rows = [json.loads(line) for line in REAL.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 163 and len({row["instruction_id_list"][0] for row in rows}) == 13
    for row in rows:
        found = verify(row["instruction_id_list"][0], "A reply, of which little is right?", **row["kwargs"][0])
        assert found is (row["kwargs"][0].get("capital_relation") == "less than")


# ---- languages ------------------------------------------------------------------------------------------------------


SENTENCES = {
    "en": "The baker opens the window because the kitchen is too warm.",
    "de": "Der Bäcker öffnet das Fenster, weil die Küche zu warm ist.",
    "fr": "Le boulanger ouvre la fenêtre parce que la cuisine est trop chaude.",
    "fi": "Leipuri avaa ikkunan, koska keittiössä on liian kuuma.",
    "hu": "A pék kinyitja az ablakot, mert a konyhában túl meleg van.",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_sentences_in_lower_case_and_in_capitals(language):
    assert detect_language(SENTENCES[language]) == language
    assert detect_language(SENTENCES[language].upper()) == language


def test_the_same_every_time():
    ambiguous = "Lina Varo, Tomo Resta, 34, 12"
    assert len({detect_language(ambiguous) for _ in range(20)}) == 1


@pytest.mark.parametrize("text", ["", "   ", "12 + 34 = 46", "?!"])
def test_text_without_letters(text):
    assert detect_language(text) == "unknown"
