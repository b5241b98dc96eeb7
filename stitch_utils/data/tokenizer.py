"""Make a tokenizer read texts as its model saw them in training, or refuse it (no section of the papers).

App. A masks special tokens, of which a tokenizer keeps a list. A user may have put a token of ordinary text on it, such
as a full stop that pads, or a line break that ends a text. A tokenizer may also be made of nothing, or be that of
another model; both give streams of a text that nobody wrote.

Offers `begin_and_end`, `special_ids`, `as_trained`; and, which refuse, `explaining`, `check_tokenizer`,
`check_vocabulary` and `check_ids`.
"""

import contextlib
import functools
import importlib.util
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from tokenizers import Tokenizer
from torch import Tensor

from .hub import HubError

_NAMED = re.compile(r"<.+>|\[.+\]|^$")  # such as <s>, [PAD], <|im_end|>: no word of a text
_FILES = ("tokenizer.json", "*.model", "*.model.v*", "*.tiktoken", "tekken.json", "vocab*", "merges.txt")
_WANTED = "tokenizer.json, or what it is made from: tokenizer.model, or vocab.json and merges.txt"
_NO_MERGES = "has vocab.json and no merges.txt, without which words fall apart: expected both"
_READERS = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf", "tiktoken": "tiktoken"}
_CHAT = [{"role": "user", "content": "One."}, {"role": "assistant", "content": "Two."}]


def begin_and_end(tokenizer) -> tuple[int | None, int]:
    """Return the tokens that begin and end a text, which may be the same.

    The first is None where the tokenizer has no such token, as Qwen's: none is put before a text then. So it is where
    the token ends the turns of a chat and begins none, as <|im_end|> does. A tokenizer that only names the first ends
    texts with it, too. Raise ValueError if there is neither.
    """
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if end is None:
        end = begin
    if end is None:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path or type(tokenizer).__name__!r} has no token for the beginning "
            "or the end of a text: expected eos_token or bos_token in its tokenizer_config.json"
        )
    template = getattr(tokenizer, "chat_template", None)
    if begin is not None and template and _only_ends_turns(tokenizer, begin, str(template)):
        begin = None
    return begin, end


@functools.lru_cache(maxsize=8)
def _only_ends_turns(tokenizer, begin: int, template: str) -> bool:
    """Tell whether the chat template writes this token, and another special one before it."""
    try:
        chat = tokenizer.apply_chat_template(_CHAT, tokenize=False)
    except Exception:  # a template may refuse anything, in an error of its own
        return False
    ids = tokenizer(chat, add_special_tokens=False)["input_ids"]
    return begin in ids[1:] and ids[0] != begin and ids[0] in _added_special(tokenizer)


def _added_special(tokenizer) -> set[int]:
    return {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}


def special_ids(tokenizer) -> list[int]:
    """List the special tokens, without those that the tokenizer makes of ordinary text, such as a full stop."""
    return sorted({*tokenizer.all_special_ids} - _ordinary(tokenizer))


def as_trained(tokenizer):
    """Let a tokenizer split texts as before it got special tokens that are ordinary ones, in place, and return it.

    A special token is looked for first: one that is a full stop would cut up an ellipsis.
    """
    if ordinary := _ordinary(tokenizer):
        tokenizer._tokenizer = _without(tokenizer, ordinary)
    return tokenizer


def _ordinary(tokenizer) -> frozenset[int]:
    """Return the special tokens that are ordinary ones; most tokenizers have no candidate."""
    special = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}
    candidates = tuple(sorted((token, id) for token, id in special.items() if not _NAMED.search(token)))
    if not candidates or not getattr(tokenizer, "is_fast", False):
        return frozenset()
    return _made_of_text(tokenizer, candidates)


@functools.lru_cache(maxsize=8)
def _made_of_text(tokenizer, candidates: tuple[tuple[str, int], ...]) -> frozenset[int]:
    """Return those candidates that stand in the trained vocabulary, and that the tokenizer makes of a text."""
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    trained = {row[0] for row in vocabulary} if isinstance(vocabulary, list) else vocabulary
    candidates = tuple((token, id) for token, id in candidates if token in trained)
    plain = _without(tokenizer, {id for _, id in candidates})
    texts = {id: [f"{before}{token}" for before in ("", " ", "a", "1")] for token, id in candidates}
    return frozenset(
        id for id in texts if any(id in plain.encode(text, add_special_tokens=False).ids for text in texts[id])
    )


def _without(tokenizer, ids: Collection[int]) -> Tokenizer:
    """Copy what reads the text, without these among the added tokens."""
    said = json.loads(tokenizer.backend_tokenizer.to_str())
    said["added_tokens"] = [token for token in said["added_tokens"] if token["id"] not in ids]
    return Tokenizer.from_str(json.dumps(said))


@contextlib.contextmanager
def explaining(ref: str, path: str) -> Iterator[None]:
    """Re-raise in one line what transformers says of a tokenizer that it cannot read, in a folder or on the Hub."""
    try:
        yield
    except HubError:
        raise
    except Exception as error:  # of the classes of several libraries
        said, files = str(error.__cause__ or error), _files(path)
        if files == ["vocab.json"]:
            raise ValueError(f"{ref!r} {_NO_MERGES}") from error
        if Path(path).is_dir() and not files:
            raise ValueError(f"{ref!r} has no tokenizer: expected {_WANTED}") from error
        missing = [package for module, package in _READERS.items() if not _is_installed(module)]
        if missing and any(package in said for package in ("sentencepiece", "protobuf", "tiktoken")):
            raise ValueError(
                f"the tokenizer of {ref!r} ({', '.join(files) or 'without tokenizer.json'}) cannot be read without the "
                f"package {missing[0]}: install it (`pip install {missing[0]}`), or put a tokenizer.json beside it"
            ) from error
        if type(error) is ValueError and "\n" not in str(error):
            raise
        raise ValueError(f"the tokenizer of {ref!r} cannot be read ({' '.join(said.split())})") from error


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _files(path: str) -> list[str]:
    """List the files of a folder that a tokenizer may be made from."""
    return sorted({file.name for pattern in _FILES for file in Path(path).glob(pattern)}) if Path(path).is_dir() else []


def check_tokenizer(tokenizer, ref: str, path: str) -> None:
    """Raise ValueError, naming the files, for a tokenizer that transformers made of nothing, or without its merges."""
    files, added = _files(path), tokenizer.get_added_vocab()
    if not files:
        vocabulary = tokenizer.get_vocab()
        if not any(token.strip("▁Ġ ") and not _NAMED.search(token) for token in vocabulary if token not in added):
            made = f"transformers makes one of {len(vocabulary)} tokens"
            raise ValueError(f"{ref!r} has no tokenizer, so that {made}: expected {_WANTED}")
    elif "merges_file" in type(tokenizer).vocab_files_names and files == ["vocab.json"]:
        raise ValueError(f"{ref!r} {_NO_MERGES}")


def check_vocabulary(tokenizer, rows: int, ref: str) -> None:
    """Raise ValueError if a token that text may hold has none of the `rows` of the model's embedding matrix.

    Special tokens may be beyond it, as one of Gemma 3 is: text seldom holds them.
    """
    vocabulary, special = tokenizer.get_vocab(), {*tokenizer.all_special_ids} | _added_special(tokenizer)
    if beyond := {token: id for token, id in vocabulary.items() if id >= rows and id not in special}:
        token = max(beyond, key=beyond.__getitem__)
        raise ValueError(
            f"the tokenizer of {ref!r} has tokens up to {beyond[token]} ({token!r}), and its model embeddings for "
            f"{rows}: expected the tokenizer that the model was trained with"
        )


def check_ids(tokens: Tensor, tokenizer, rows: int, ref: str) -> None:
    """Raise ValueError for a token that has none of the `rows` of the model's embedding matrix."""
    if tokens.numel() and (last := int(tokens.max())) >= rows:
        raise ValueError(
            f"the text holds the token {last} ({tokenizer.convert_ids_to_tokens(last)!r}), and {ref!r} has embeddings "
            f"for {rows}: take it out of the text, or of the special tokens in tokenizer_config.json"
        )
