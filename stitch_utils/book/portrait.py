"""What the book shows of the embedded pair and its world: examples, training, samples.

No section of the paper. Everything returned is plain rows, ready for a table or a figure of the chapter on pairs.
"""

from __future__ import annotations

import html
import json
import random
from typing import NamedTuple

import pandas as pd
import torch
from IPython.display import HTML

from ..data.embedded.grammar import LANGUAGES, load_lexicon, realise
from ..data.embedded.world import FORMATS, augmented_sentences, documents, sentence_frames
from ..data.hub import EMBEDDED
from ..models.language_model import LanguageModel
from ..steering.verifiers import detect_language
from ..utils.stats import Estimate, clopper_pearson

# Continuations for each language, by scale.
SAMPLES = {"smoke": 2, "default": 150, "paper": 400}
GIVEN_TOKENS, NEW_TOKENS, TEMPERATURE = 12, 50, 0.5
# Shorter continuations are left out of the count: a story that ends at once gives nothing to judge.
JUDGED_CHARACTERS = 40


class Sample(NamedTuple):
    """How a model went on from the beginning of a document."""

    language: str
    given: str
    continued: str


def parallel_examples(seed: int) -> list[tuple[str, str]]:
    """One frame in every language."""
    frame = next(
        frame
        for frame in sentence_frames(f"portrait:{seed}", 200)
        if frame.construction == "fronted" and frame.object is not None and frame.object.adjective
    )
    return [(load_lexicon(language).name, realise(frame, language)) for language in LANGUAGES]


def augmented_examples(seed: int, count: int = 4) -> list[list[str]]:
    """Sentences with two rewordings of each."""
    return augmented_sentences(f"portrait:{seed}", count, 2)


def show_documents(seed: int) -> HTML:
    """One document of each format in a language drawn for it, and one of code."""
    rng = random.Random(seed)
    parts = []
    for number, format in enumerate((*FORMATS, "code")):
        language = "code" if format == "code" else rng.choice(LANGUAGES[:5])
        document = next(documents(f"portrait:{seed}", start=number, language=language, format=format))
        name = "Python" if language == "code" else load_lexicon(language).name
        text = document.text if len(document.text) < 420 else document.text[:400].rsplit(" ", 1)[0] + " …"
        label = f"<p style='margin-bottom:0'><b>{format}</b> ({name})</p>"
        parts.append(f"{label}<pre style='white-space:pre-wrap;margin-top:0'>{html.escape(text)}</pre>")
    return HTML("".join(parts))


def training_report() -> dict:
    """What the training script wrote beside the weights."""
    return json.loads((EMBEDDED / "training.json").read_text(encoding="utf-8"))


def recorded_adam() -> dict[str, float]:
    """Read what `tools/full_adam.py` measured at 36 thousand steps of Adam."""
    return json.loads((EMBEDDED / "full_adam.json").read_text(encoding="utf-8"))


def training_table(report: dict) -> pd.DataFrame:
    """Size, data and losses of both models, one column each."""
    rows = {
        "parameters": lambda m: f"{m['parameters']:,}",
        "layers, width, heads": lambda m: f"{m['n_layers']}, {m['hidden_size']}, {m['n_heads']}",
        "seed": lambda m: str(m["seed"]),
        "text (tokens)": lambda m: f"{m['text_tokens']:,}",
        "steps of batch × context": lambda m: f"{m['steps']:,} of {m['batch_size']} × {m['context']}",
        "peak learning rate": lambda m: f"{m['learning_rate']:g}",
        "training loss at the end (nats)": lambda m: f"{m['train_loss']:.3f}",
        "held-out loss (nats)": lambda m: f"{m['held_out_loss']:.3f}",
    }
    models = report["models"].values()
    table = pd.DataFrame({"": list(rows)})
    for name, model in zip(("A", "B"), models):
        table[name] = [row(model) for row in rows.values()]
    return table


def training_curves(report: dict) -> dict[str, tuple[list[float], list[float]]]:
    """Tokens seen and loss, for `figures.pairs.training_curves`."""
    curves = {}
    for side, model in zip("ab", report["models"].values()):
        tokens_a_point = 25 * model["batch_size"] * model["context"]
        curves[side] = ([tokens_a_point * (i + 1) for i in range(len(model["loss_curve"]))], model["loss_curve"])
    return curves


def sample_continuations(
    model: LanguageModel, *, per_language: int, seed: int, temperature: float = TEMPERATURE
) -> list[Sample]:
    """Continuations of the first tokens of stories in each language, at `temperature`."""
    tokenizer, samples = model.tokenizer, []
    for language in LANGUAGES:
        stories = documents(f"portrait:{seed}", stop=per_language, language=language, format="story")
        starts = [tokenizer(story.text)["input_ids"][:GIVEN_TOKENS] for story in stories]
        tokens = torch.tensor([[tokenizer.bos_token_id, *start] for start in starts])
        new = model.generate(tokens, NEW_TOKENS, temperature=temperature, seed=seed)
        for start, continued in zip(starts, new.tolist()):
            texts = [
                tokenizer.decode(ids, skip_special_tokens=True) for ids in (start, _until_end(continued, tokenizer))
            ]
            samples.append(Sample(language, *texts))
    return samples


def _until_end(ids: list[int], tokenizer) -> list[int]:
    end = tokenizer.eos_token_id
    return ids[: ids.index(end)] if end in ids else ids


def one_of_each(samples: list[Sample]) -> list[tuple[str, str, str]]:
    """The first sample in each language, for a table."""
    first = {sample.language: sample for sample in reversed(samples)}
    return [(load_lexicon(key).name, first[key].given + " …", first[key].continued) for key in LANGUAGES]


def recognised_shares(samples: list[Sample]) -> dict[str, Estimate]:
    """For each language the share of continuations that langdetect takes for it, with Clopper-Pearson intervals at 95%.

    Continuations of fewer than `JUDGED_CHARACTERS` are left out.
    """
    shares = {}
    for language in LANGUAGES:
        texts = [
            s.continued for s in samples if s.language == language and len(s.continued.strip()) >= JUDGED_CHARACTERS
        ]
        right = sum(detect_language(text) == language for text in texts)
        if texts:  # a language without anything to judge has no share
            shares[language] = clopper_pearson(right, len(texts))
    return shares
