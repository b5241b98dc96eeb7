"""Which language a text is in: the judge of section 4's steering experiments, and of the embedded pair's samples.

App. F: "we use langdetect to detect the most likely language of the response". langdetect draws at random unless it
is seeded, and takes text in capitals for another language; both are settled here and nowhere else.

Offers `detect_language`.
"""

from __future__ import annotations

import langdetect


def detect_language(text: str) -> str:
    """The most likely language, as langdetect's code (`en`, `fr`, ...); `unknown` where there are no letters to judge.

    Text all in capitals is lower-cased first, and only such text: lower-casing German nouns costs accuracy.
    """
    langdetect.DetectorFactory.seed = 0
    try:
        return langdetect.detect(text.lower() if text.isupper() else text)
    except langdetect.LangDetectException:
        return "unknown"
