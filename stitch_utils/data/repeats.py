"""Count the held-out documents that stand in the training text, too (no section of the papers).

Losses on text that a map was fitted on flatter it. A user's text may hold a document twice, and its two copies fall
on both sides.

Offers `count_repeats`.
"""

import hashlib
import itertools
from collections import Counter

from .documents import read_documents
from .pairs import TextRef


def count_repeats(
    train: TextRef, held_out: TextRef, *, n_held_out: int, n_train: int | None = None, n_bytes: int | None = None
) -> tuple[int, int]:
    """Count those of the first `n_held_out` held-out documents that stand in the training text, and all of them.

    Of the training text, at most `n_train` documents or the first `n_bytes` count. White space makes no difference.
    """
    held = Counter(map(_key, itertools.islice(read_documents(held_out), n_held_out)))
    found, read = set(), 0
    for document in itertools.islice(read_documents(train), n_train):
        if (key := _key(document)) in held:
            found.add(key)
        read += len(document.encode())
        if len(found) == len(held) or (n_bytes is not None and read >= n_bytes):
            break
    return sum(held[key] for key in found), held.total()


def _key(document: str) -> bytes:
    return hashlib.blake2b(" ".join(document.split()).encode(), digest_size=16).digest()
