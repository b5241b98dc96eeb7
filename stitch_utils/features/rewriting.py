"""Sentences with versions of them that keep the structure and change what is spoken of.

Section 5.1 and App. H.1 (Table 7). For each sentence of a text an instruction-tuned model writes k versions, at
temperature 1, in which function words and punctuation stay and every content word comes from another field. Without a
model the embedded world writes them by its grammar, where the form changes too if a phrase of place or time has other
prepositions, articles or words, if a verb has a particle ("hung up"), or if it is spelt as a function word ("need").
The paper keeps every answer and calls it noisy; here the versions that break the structure are counted. A run that was
stopped goes on where it was: batches begin at fixed places, so it samples what it would have sampled without the stop.

Offers `augmented_groups`, `AugmentedGroups`, `broken_rules`, `sentences`, `show_augmentations`, `world_stream`.
"""

import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..data.documents import read_documents
from ..data.embedded.world import augmented_sentences
from ..data.hub import remembered
from ..data.pairs import AugmenterRef, ModelPair, ModelRef, blaming
from ..models.generation import chat, generate_texts
from ..models.harvest import text_key, weights_digest
from ..models.language_model import LanguageModel, load_config, load_model
from ..utils.cache import artifact
from ..utils.stats import Estimate, from_resamples, resampled_totals

# App. H.1's rules in other words, with an example of our own.
INSTRUCTION = """\
Rewrite a sentence so that it keeps its form and says something that has nothing to do with the original.
- Leave all function words ("the", "of", "because", "has" and the like) and all punctuation marks (full stops, commas, \
quotation marks, dashes, brackets of any kind) as and where they are.
- Replace each content word, whether noun, verb, adjective or adverb, by one that fits its place in the grammar and \
comes from an entirely different area of life (such as "sing" -> "measure", "river" -> "pencil").
- Use neither synonyms nor words from the original's area.
- Change nothing in the order of the words, the grammar or the punctuation.
- The result must be a correct and natural sentence, however odd its connection with the original.
- Answer with the new sentence and nothing else.

Input: "When the rain had stopped, two farmers slowly carried a broken ladder back to the barn."
Output: "When the vote had failed, two lawyers secretly mailed a sealed contract back to the bank."

Now do the same, by the same rules, and give only the new sentence.
Input: "{sentence}"
Output:"""
# Words that carry the grammar of an English sentence: they should stay.
_GRAMMAR = """
a an the this that these those some any no every each either neither both all such what whatever which whichever
i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it its itself we us our
ours ourselves they them their theirs themselves one ones who whom whose whoever there here
and or but nor so yet for if unless because since although though while whereas when whenever where wherever whether
than as until till before after once lest
of in on at by to from with without within into onto upon over under above below between among through during about
against across along around behind beside besides beyond despite down inside near off out outside past per toward
towards underneath up via like
be am is are was were been being have has had having do does did doing done will would shall should can could may might
must ought need not never also too very just only even still then thus how why
isn't aren't wasn't weren't don't doesn't didn't won't wouldn't can't cannot couldn't shouldn't haven't hasn't hadn't
it's that's i'm you're we're they're he's she's i've you've we've they've i'll you'll he'll she'll we'll they'll
much many more most few little less least several enough own same other another
"""
FUNCTION_WORDS = frozenset(_GRAMMAR.split())
WORD_OR_MARK = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"”’)]*\s+(?=[\"“‘(]?[A-Z])")
WHOLE = re.compile(r"[\"“‘(]?[A-Z].*[.!?][\"”’)]?")
RULES = ("empty", "punctuation", "function words", "length", "content words")
SHORTEST, LONGEST = 6, 30  # words of a sentence
AT_ONCE = 8  # sentences whose versions are sampled in one batch
TEMPERATURE = 1.0  # App. H.1
TOLERANCE = 0.1  # share of the words by which the number of words may change
REPEATED = 0.25  # share of the content words that may come back


class AugmentedGroups(NamedTuple):
    """Sentences with their versions, and how well these keep the structure."""

    groups: list[list[str]]
    """Each sentence followed by its versions, as many for all."""
    source: str
    """`world`, or the model that wrote the versions."""
    versions: int
    """The number of versions that were written and judged."""
    kept: list[int]
    """Of each sentence that was judged, how many of its versions break no rule."""
    broken: Mapping[str, int]
    """{rule: versions that break it}; a version may break several."""
    clean: list[bool]
    """Whether none of a group's versions breaks a rule."""

    def whole(self, seed: int = 0) -> Estimate:
        """Give the share of versions that break no rule, with an interval that resamples sentences."""
        totals = resampled_totals(np.array(self.kept, dtype=float), seed)
        return from_resamples(totals / self.versions)


def augmented_groups(pair: ModelPair, count: int, k: int = 5, *, seed: int = 0) -> AugmentedGroups:
    """Find at most `count` sentences with `k` versions each, by the pair's `augmenter` or, without one, by the world.

    The sentences are drawn from different documents of the evaluation text. Versions that break a rule stay, as in the
    paper; sentences with a version that says nothing are left out. ValueError if no sentence is left.
    """
    if min(count, k) < 1:
        raise ValueError(f"expected count >= 1 and k >= 1: got {count} and {k}")
    if pair.augmenter is None:
        source, found = "world", augmented_sentences(world_stream(seed), count, k)
    else:
        with blaming(pair, "augmenter"):
            written = _rewritten(pair, pair.augmenter, k, seed, min(AT_ONCE, count))
            source, found = pair.augmenter.model, list(itertools.islice(written, count))
    groups, clean, judged, kept = [], [], [], []
    for original, *versions in found:
        rules = [broken_rules(original, version) for version in versions]
        judged += rules
        kept.append(rules.count(()))
        if not any("empty" in one for one in rules):
            groups.append([original, *versions])
            clean.append(not any(rules))
    if not groups:
        raise ValueError(f"none of {len(found)} sentences has {k} versions by {source!r} that say anything")
    broken = {rule: sum(rule in one for one in judged) for rule in RULES}
    return AugmentedGroups(groups, source, len(judged), kept, broken, clean)


def world_stream(seed: int) -> str:
    """Name the world's stream that `augmented_groups` takes, for `embedded.marked.marked_groups`."""
    return f"augmentation:{seed}"


def broken_rules(original: str, version: str) -> tuple[str, ...]:
    """Find which of `RULES` a version of an English sentence breaks.

    It should have the same punctuation marks and the same function words in the same order, about as many words, and
    few of the original's content words.
    """
    if not version.strip():
        return ("empty",)
    (marks, words), (new_marks, new_words) = _parts(original), _parts(version)
    grammar, new_grammar = ([word for word in some if word in FUNCTION_WORDS] for some in (words, new_words))
    content = set(words) - FUNCTION_WORDS
    broken = {
        "punctuation": marks != new_marks,
        "function words": grammar != new_grammar,
        "length": abs(len(new_words) - len(words)) > TOLERANCE * len(words),
        "content words": len(content & set(new_words)) > REPEATED * len(content),
    }
    return tuple(rule for rule, yes in broken.items() if yes)


def _parts(sentence: str) -> tuple[list[str], list[str]]:
    """Split a sentence into its punctuation marks and its words in lower case."""
    parts = WORD_OR_MARK.findall(sentence.replace("’", "'").replace("“", '"').replace("”", '"'))
    words = [part.lower() for part in parts if re.match(r"\w", part)]
    return [part for part in parts if not re.match(r"\w", part)], words


def sentences(pair: ModelPair, seed: int) -> Iterator[str]:
    """Draw one sentence from each document of the evaluation text that has a whole one of fitting length."""
    for number, document in enumerate(read_documents(pair.evaluation)):
        fitting = [
            sentence
            for line in document.split("\n")
            for sentence in map(str.strip, SENTENCE_END.split(line))
            if WHOLE.fullmatch(sentence) and SHORTEST <= len(sentence.split()) <= LONGEST
        ]
        if fitting:
            yield random.Random(f"{seed}:{number}").choice(fitting)


def _rewritten(pair: ModelPair, augmenter: AugmenterRef, k: int, seed: int, at_once: int) -> Iterator[list[str]]:
    """Give each sentence with its versions, from the file that remembers them or from the pair's augmenter."""
    load_config(augmenter.model, revision=augmenter.revision)  # from then on it is known which commit the Hub gives
    digest = weights_digest(ModelRef(augmenter.model, revision=augmenter.revision))
    made_of = {"model": digest, "dtype": augmenter.dtype, "text": text_key(pair.evaluation)}
    made_of |= {"k": k, "seed": seed, "at_once": at_once}
    path = artifact(pair.name, "augmented", made_of, sources=(augmented_groups,), suffix=".jsonl")

    def stream(start: int) -> Iterator[list[str]]:
        first = start // at_once * at_once  # a batch that was cut is sampled again, as it was
        todo = itertools.islice(sentences(pair, seed), first, None)
        model = None
        while batch := list(itertools.islice(todo, at_once)):
            model = model or load_model(augmenter.model, dtype=augmenter.dtype, revision=augmenter.revision)
            versions = _versions(model, batch, k, seed=seed * 1_000_003 + first)
            yield from versions[max(start - first, 0) :]
            first += at_once

    return remembered(path, stream)


def _versions(model: LanguageModel, batch: Sequence[str], k: int, *, seed: int) -> list[list[str]]:
    prompts = [INSTRUCTION.format(sentence=sentence) for sentence in batch for _ in range(k)]
    if model.tokenizer.chat_template is not None:
        prompts = chat(model, prompts)
    longest = max(map(len, model.tokenizer(list(batch), add_special_tokens=False)["input_ids"]))
    sizes = {"max_new_tokens": longest + longest // 2 + 8, "batch_size": len(prompts)}
    options = {"temperature": TEMPERATURE, "seed": seed, "losses": False, "title": "versions"}
    texts = [_answer(response.text) for response in generate_texts(model, prompts, **sizes, **options)]
    return [[sentence, *texts[k * place : k * (place + 1)]] for place, sentence in enumerate(batch)]


def _answer(text: str) -> str:
    """Take the first line that says something, without the label and quotation marks of the prompt's example."""
    line = next(filter(None, map(str.strip, text.split("\n"))), "").removeprefix("Output:").strip()
    quoted = re.fullmatch(r'["“]([^"“”]*)["”]', line)
    return quoted.group(1).strip() if quoted else line


def show_augmentations(groups: Sequence[Sequence[str]], count: int = 2) -> pd.DataFrame:
    """Tabulate the first groups (Table 7), the original of each as version 1."""
    shown = enumerate(groups[:count], 1)
    rows = [(number, version, text) for number, group in shown for version, text in enumerate(group, 1)]
    return pd.DataFrame(rows, columns=["group", "version", "sentence"])
