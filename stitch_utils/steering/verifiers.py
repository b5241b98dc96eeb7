r"""Whether a response follows an instruction: rules, no model.

App. F.2 judges instruction steering as IFEval does (Zhou et al. 2023): every instruction has an id and keywords, and a
rule that looks at the response alone. The rules here are IFEval's definitions for the instructions that occur in the
163 prompts of Stolfo et al. 2025, for postscripts, and for what the embedded world asks for. Where IFEval's own
checkers and its evaluation differ, or leave a choice, this is what happens:

- An empty response, or one of white space, follows nothing. IFEval's evaluation says so too, though its checker for
  commas, asked alone, would pass it.
- Languages are detected by `detect_language`, which lower-cases capitals first. Where nothing can be detected IFEval
  passes the response; here it fails.
- Words in capitals are runs of letters and digits, joined by apostrophes and hyphens: DON'T is one, where NLTK's
  tokenizer makes two. As in IFEval, "I" counts and a number by itself does not.
- A line that begins with a hyphen is a bullet, as in IFEval, so a rule (---) is one as well; a lone asterisk is none.
- Any JSON value is JSON, as in IFEval, so a response that is nothing but a number passes.

`detect_language` also judges section 4's responses (App. F: "we use langdetect to detect the most likely language of
the response") and the embedded pair's samples.

Offers `verify`, `RULES`, `WORLD_INSTRUCTIONS`, `detect_language`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import NamedTuple

import langdetect

# What the embedded world calls an instruction -> the id of its rule.
WORLD_INSTRUCTIONS = {
    "upper": "change_case:english_capital",
    "lower": "change_case:english_lowercase",
    "no_commas": "punctuation:no_comma",
    "quotes": "startend:quotation",
    "bullets": "world:bullet_list",
    "json": "detectable_format:json_format",
    "language": "language:response_language",
    "closing": "startend:end_checker",
}
CONSTRAINED_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
RELATIONS = ("less than", "at least")


class Rule(NamedTuple):
    """How one instruction is checked."""

    follows: Callable[..., bool]
    """Takes the response and the keywords."""
    keywords: tuple[str, ...] = ()
    """The keywords that it needs, all of them."""


def verify(instruction_id: str, response: str, **kwargs) -> bool:
    """Check whether `response` follows the instruction.

    Keywords whose value is None, which fill up IFEval's rows, count as not given. ValueError, naming what is known, for
    an unknown id, and for keywords that are missing, unknown, or of a value that makes no sense.
    """
    if instruction_id not in RULES:
        raise ValueError(f"unknown instruction {instruction_id!r}: known are {', '.join(sorted(RULES))}")
    rule = RULES[instruction_id]
    given = {name: value for name, value in kwargs.items() if value is not None}
    if set(given) != set(rule.keywords):
        raise ValueError(
            f"instruction {instruction_id!r} was given the keywords {', '.join(sorted(given)) or 'none'}: expected "
            f"{', '.join(rule.keywords) or 'none'}"
        )
    if not response.strip():
        return False
    return rule.follows(response, **given)


def detect_language(text: str) -> str:
    """Name the most likely language by langdetect's code (`en`, `fr`, ...); `unknown` where there are no letters.

    Text all in capitals is lower-cased first, and only such text: lower-casing German nouns costs accuracy.
    """
    langdetect.DetectorFactory.seed = 0  # langdetect draws at random unless it is seeded, here and nowhere else
    try:
        return langdetect.detect(text.lower() if text.isupper() else text)
    except langdetect.LangDetectException:
        return "unknown"


def _capital_words(response: str, capital_relation: str, capital_frequency: int) -> bool:
    if capital_relation not in RELATIONS:
        raise ValueError(f"unknown capital_relation {capital_relation!r}: expected {' or '.join(RELATIONS)}")
    count = sum(word.isupper() for word in re.findall(r"\w+(?:['’-]\w+)*", response))
    return count < capital_frequency if capital_relation == "less than" else count >= capital_frequency


def _json(response: str) -> bool:
    """Parse the whole response, with or without a Markdown fence around it."""
    body = re.sub(r"^```(json|Json|JSON)?", "", response.strip()).removesuffix("```")
    try:
        json.loads(body.strip())
    except (ValueError, RecursionError):
        return False
    return True


def _bullets(response: str, num_bullets: int) -> bool:
    """Find exactly so many bullets, whatever stands between them."""
    lines = [line.lstrip() for line in response.splitlines()]
    return sum(bool(re.match(r"\*[^*]|-", line)) for line in lines) == num_bullets


def _bullet_list(response: str) -> bool:
    """Find nothing but bullets, as the world writes them; a last one that was cut off after its hyphen counts."""
    return all(f"{line} ".startswith("- ") for line in response.strip().splitlines() if line.strip())


def _highlights(response: str, num_highlights: int) -> bool:
    """Find at least so many of *this* and **this**."""
    single, double = re.findall(r"\*([^\n*]*)\*", response), re.findall(r"\*\*([^\n*]*)\*\*", response)
    return sum(bool(text.strip()) for text in (*single, *double)) >= num_highlights


def _sections(response: str, section_spliter: str, num_sections: int) -> bool:
    """Find at least so many headings with a number; `section_spliter` is spelled as IFEval spells it."""
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", response)) >= num_sections


def _quotation(response: str) -> bool:
    inside = response.strip()
    return len(inside) > 1 and inside[0] == inside[-1] == '"'


def _ends_with(response: str, end_phrase: str) -> bool:
    """Compare in lower case; quotation marks around the response may follow."""
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _postscript(response: str, postscript_marker: str) -> bool:
    """Find the marker anywhere, in any case; P.S. and P.P.S may have spaces between their letters."""
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return bool(re.search(known.get(postscript_marker, re.escape(postscript_marker.lower())), response.lower()))


RULES = {
    "change_case:capital_word_frequency": Rule(_capital_words, ("capital_relation", "capital_frequency")),
    "change_case:english_capital": Rule(lambda response: response.isupper() and detect_language(response) == "en"),
    "change_case:english_lowercase": Rule(lambda response: response.islower() and detect_language(response) == "en"),
    "detectable_content:postscript": Rule(_postscript, ("postscript_marker",)),
    "detectable_format:constrained_response": Rule(
        lambda response: any(said in response for said in CONSTRAINED_ANSWERS)
    ),
    "detectable_format:json_format": Rule(_json),
    "detectable_format:multiple_sections": Rule(_sections, ("section_spliter", "num_sections")),
    "detectable_format:number_bullet_lists": Rule(_bullets, ("num_bullets",)),
    "detectable_format:number_highlighted_sections": Rule(_highlights, ("num_highlights",)),
    "detectable_format:title": Rule(
        lambda response: any(found.strip("<> \t") for found in re.findall(r"<<[^\n]+>>", response))
    ),
    "language:response_language": Rule(lambda response, language: detect_language(response) == language, ("language",)),
    "punctuation:no_comma": Rule(lambda response: "," not in response),
    "startend:end_checker": Rule(_ends_with, ("end_phrase",)),
    "startend:quotation": Rule(_quotation),
    "world:bullet_list": Rule(_bullet_list),
}
