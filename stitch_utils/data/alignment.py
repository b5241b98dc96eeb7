"""Find where the tokens of two tokenizers meet (no section of the papers, whose pairs share a tokenizer).

Two models that read one text, each in its own tokens, have read exactly the same characters where a token of A and a
token of B end at the same character. There, and nowhere else, their streams make a pair. Of several tokens that end
inside one character (bytes of UTF-8), only the last completes it.

Offers `Encoded`, `encode`, `meeting`, `reader_of_both`.
"""

import functools
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer


class Encoded(NamedTuple):
    """A text in the tokens of one tokenizer, without special tokens around it."""

    ids: np.ndarray
    """(tokens,)"""
    ends: np.ndarray
    """(tokens,): how many characters of the text are read when a token ends; 0 if it ends inside a character."""
    n_bytes: np.ndarray
    """(tokens,): how many bytes of the text, in UTF-8, each token adds to those that are read."""


def encode(tokenizer, texts: Sequence[str]) -> list[Encoded]:
    """Tokenize texts; characters are those of the text as given, even if the tokenizer rewrites it (lower case, NFKC).

    ValueError for a tokenizer that does not say where its tokens lie, or that says it wrongly.
    """
    found = []
    for text, coded in zip(texts, _plain(tokenizer, len(tokenizer)).encode_batch(list(texts))):
        places = np.array(coded.offsets, dtype=np.int64).reshape(-1, 2)
        if (np.diff(places, axis=0) < 0).any() or places.max(initial=0) > len(text):
            raise ValueError(
                f"the tokenizer of {_name(tokenizer)!r} says wrongly where its tokens lie in {text[:40]!r}"
            )
        starts, ends = places.T
        complete = ends <= np.append(starts[1:], len(text))
        sizes = np.ones(len(text), int) if text.isascii() else [len(character.encode()) for character in text]
        n_bytes = np.diff(np.cumsum([0, *sizes])[ends], prepend=0)
        found.append(Encoded(np.array(coded.ids, dtype=np.int64), np.where(complete, ends, 0), n_bytes))
    return found


def _name(tokenizer) -> str:
    return tokenizer.name_or_path or type(tokenizer).__name__


@functools.lru_cache(maxsize=8)
def _plain(tokenizer, size: int) -> Tokenizer:
    """Copy the fast tokenizer of that `size`; the copy adds, cuts and pads nothing."""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"the tokenizer of {_name(tokenizer)!r} does not say where its tokens lie in a text: expected a fast one"
        )
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_truncation()
    plain.no_padding()
    plain.post_processor = None  # it would leave white space out of the places of tokens
    return plain


def meeting(a: Encoded, b: Encoded) -> np.ndarray:
    """List the tokens (i of A, j of B) of one text that end at the same character, in their order: (met, 2).

    Of several tokens with one end, such as those that a tokenizer makes of nothing, the last is meant.
    """
    (ends_a, last_a), (ends_b, last_b) = (_last_by_end(side.ends) for side in (a, b))
    _, of_a, of_b = np.intersect1d(ends_a, ends_b, assume_unique=True, return_indices=True)
    return np.stack([last_a[of_a], last_b[of_b]], axis=1)


def _last_by_end(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the different ends above 0, and the last token with each."""
    found, from_behind = np.unique(ends[::-1], return_index=True)
    return found[found > 0], (len(ends) - 1 - from_behind)[found > 0]


def reader_of_both(tokenizer_a, tokenizer_b):
    """Return the tokenizer that reads a text for both models; None if they split texts in different ways.

    Two tokenizers split alike if they differ in nothing but added tokens that only one of them has, as a chat variant
    does. The one without these reads for both, since the other may write tokens that its partner does not know.
    """
    if tokenizer_a is tokenizer_b:
        return tokenizer_a
    return _reader_of_both(tokenizer_a, tokenizer_b, len(tokenizer_a), len(tokenizer_b))


@functools.lru_cache(maxsize=8)
def _reader_of_both(tokenizer_a, tokenizer_b, *sizes: int):
    (core_a, added_a), (core_b, added_b) = (_core(tokenizer) for tokenizer in (tokenizer_a, tokenizer_b))
    if core_a != core_b:
        return None
    if added_a.items() <= added_b.items():
        return tokenizer_a
    return tokenizer_b if added_b.items() <= added_a.items() else None


def _core(tokenizer) -> tuple[object, dict[str, int]]:
    """Return what decides how a tokenizer splits text, without its added tokens, and these."""
    added = tokenizer.get_added_vocab()
    vocabulary = {text: id for text, id in tokenizer.get_vocab().items() if text not in added}
    if not getattr(tokenizer, "is_fast", False):
        return (type(tokenizer), vocabulary), added
    said = json.loads(tokenizer.backend_tokenizer.to_str())
    said["model"].pop("vocab")
    return (said["normalizer"], said["pre_tokenizer"], said["model"], vocabulary), added
