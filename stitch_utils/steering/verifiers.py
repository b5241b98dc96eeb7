r"""Whether a response follows an instruction: rules, no model.

App. F.2 judges instruction steering as IFEval does (Zhou et al. 2023): every instruction has an id and keywords, and a
rule that looks at the response alone. The rules here are IFEval's definitions for the instructions that occur in the
163 prompts of Stolfo et al. 2025, for postscripts, and for what the embedded world asks for. Where IFEval's own
checkers and its evaluation differ, or leave a choice, this is what happens:

- An empty response, or one of white space, follows nothing, as IFEval's evaluation says.
- Languages are detected by `detect_language`. Where nothing can be detected IFEval passes the response; here it fails.
- Words in capitals are runs of letters and digits, joined by apostrophes and hyphens: DON'T is one, where NLTK's
  tokenizer makes two. As in IFEval, "I" counts and a number by itself does not.
- As in IFEval, a line that begins with a hyphen is a bullet, a lone asterisk is none, and any JSON value is JSON.

`detect_language` also judges section 4's responses (App. F: "we use langdetect to detect the most likely language of
the response") and the embedded pair's samples. Offers `verify`, `RULES`, `WORLD_INSTRUCTIONS`, `detect_language`.
"""

import inspect
import json
import operator
import re
from collections.abc import Callable

import langdetect

from ..data.pairs import check_known

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
ANSWER = re.compile(r"My answer is (yes|no|maybe)\.")


def verify(instruction_id: str, response: str, **kwargs) -> bool:
    """Check whether `response` follows the instruction.

    Keywords whose value is None, which fill up IFEval's rows, count as not given. ValueError, naming what is known, for
    an unknown id, and for keywords that are missing, unknown, or of a value that makes no sense.
    """
    check_known("instruction", instruction_id, RULES)
    rule = RULES[instruction_id]
    given = {name: value for name, value in kwargs.items() if value is not None}
    expected = list(inspect.signature(rule).parameters)[1:]
    if set(given) != set(expected):
        said, wanted = (", ".join(names) or "none" for names in (sorted(given), expected))
        raise ValueError(f"instruction {instruction_id!r} was given the keywords {said}: expected {wanted}")
    return bool(response.strip()) and rule(response, **given)


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
    relations = {"less than": operator.lt, "at least": operator.ge}
    check_known("capital_relation", capital_relation, relations)
    count = sum(word.isupper() for word in re.findall(r"\w+(?:['’-]\w+)*", response))
    return relations[capital_relation](count, capital_frequency)


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


def _ends_with(response: str, end_phrase: str) -> bool:
    """Compare in lower case; quotation marks around the response may follow."""
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _postscript(response: str, postscript_marker: str) -> bool:
    """Find the marker anywhere, in any case; P.S. and P.P.S may have spaces between their letters."""
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return bool(re.search(known.get(postscript_marker, re.escape(postscript_marker.lower())), response.lower()))


# By id: the rule, which takes the response and its keywords, all of them.
RULES: dict[str, Callable[..., bool]] = {
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": lambda response: response.isupper() and detect_language(response) == "en",
    "change_case:english_lowercase": lambda response: response.islower() and detect_language(response) == "en",
    "detectable_content:postscript": _postscript,
    "detectable_format:constrained_response": lambda response: bool(ANSWER.search(response)),
    "detectable_format:json_format": _json,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:title": lambda response: bool(re.search(r"<<[^\n]*[^<> \t\n][^\n]*>>", response)),
    "language:response_language": lambda response, language: detect_language(response) == language,
    "punctuation:no_comma": lambda response: "," not in response,
    "startend:end_checker": _ends_with,
    "startend:quotation": lambda response: bool(re.fullmatch(r'".*"', response.strip(), re.DOTALL)),
    "world:bullet_list": _bullet_list,
}
