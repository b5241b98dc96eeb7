"""What the book shows of the embedded pair and its world: examples, training, samples (no section of its own).

Offers, as plain rows for a table or a figure of the chapter on pairs, `parallel_examples`, `augmented_examples`,
`show_documents`, `training_report`, `training_table`, `training_curves`, `recorded_adam`, `sample_continuations`, which
gives `Sample`s, `one_of_each`, `recognised_shares`, and the constants `SAMPLES` and `TEMPERATURE`.
"""

import html
import itertools
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
    """How a model continued the beginning of a document."""

    language: str
    given: str
    continued: str


def parallel_examples(seed: int) -> list[tuple[str, str]]:
    """Write one frame in every language: (name of the language, sentence)."""
    frames = (frame for frame in sentence_frames(f"portrait:{seed}", 200) if frame.construction == "fronted")
    frame = next(frame for frame in frames if frame.object is not None and frame.object.adjective)
    return [(load_lexicon(language).name, realise(frame, language)) for language in LANGUAGES]


def augmented_examples(seed: int) -> list[list[str]]:
    """Draw four sentences with two rewordings of each."""
    return augmented_sentences(f"portrait:{seed}", 4, 2)


def show_documents(seed: int) -> HTML:
    """Show one document of each format in a language drawn for it, and one of code."""
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
    """Read what the training script wrote beside the weights."""
    return json.loads((EMBEDDED / "training.json").read_text(encoding="utf-8"))


def recorded_adam() -> dict[str, float]:
    """Read what `tools/full_adam.py` measured at 36 thousand steps of Adam."""
    return json.loads((EMBEDDED / "full_adam.json").read_text(encoding="utf-8"))


def training_table(report: dict) -> pd.DataFrame:
    """List size, data and losses of both models, a column for each."""
    rows = {
        "parameters": "{parameters:,}",
        "layers, width, heads": "{n_layers}, {hidden_size}, {n_heads}",
        "seed": "{seed}",
        "text (tokens)": "{text_tokens:,}",
        "steps of batch × context": "{steps:,} of {batch_size} × {context}",
        "peak learning rate": "{learning_rate:g}",
        "training loss at the end (nats)": "{train_loss:.3f}",
        "held-out loss (nats)": "{held_out_loss:.3f}",
    }
    models = zip("AB", report["models"].values())
    columns = {name: [row.format(**model) for row in rows.values()] for name, model in models}
    return pd.DataFrame({"": list(rows)} | columns)


def training_curves(report: dict) -> dict[str, tuple[list[float], list[float]]]:
    """Return tokens seen and loss of each model, for `figures.stitching.training_curves`."""
    curves = {}
    for side, model in zip("ab", report["models"].values()):
        tokens_a_point = 25 * model["batch_size"] * model["context"]
        curves[side] = ([tokens_a_point * (i + 1) for i in range(len(model["loss_curve"]))], model["loss_curve"])
    return curves


def sample_continuations(
    model: LanguageModel, *, per_language: int, seed: int, temperature: float = TEMPERATURE
) -> list[Sample]:
    """Let the model continue the first tokens of stories in each language."""
    tokenizer, samples = model.tokenizer, []
    for language in LANGUAGES:
        stories = documents(f"portrait:{seed}", stop=per_language, language=language, format="story")
        starts = [tokenizer(story.text)["input_ids"][:GIVEN_TOKENS] for story in stories]
        tokens = torch.tensor([[tokenizer.bos_token_id, *start] for start in starts])
        new = model.generate(tokens, NEW_TOKENS, temperature=temperature, seed=seed)
        for start, ids in zip(starts, new.tolist()):
            continued = list(itertools.takewhile(lambda id: id != tokenizer.eos_token_id, ids))
            given, text = (tokenizer.decode(part, skip_special_tokens=True) for part in (start, continued))
            samples.append(Sample(language, given, text))
    return samples


def one_of_each(samples: list[Sample]) -> list[tuple[str, str, str]]:
    """Return the first sample in each language: (name of the language, given, continued)."""
    first = {sample.language: sample for sample in reversed(samples)}
    return [(load_lexicon(key).name, first[key].given + " …", first[key].continued) for key in LANGUAGES]


def recognised_shares(samples: list[Sample]) -> dict[str, Estimate]:
    """Return the share of continuations in each language that langdetect takes for it (95% Clopper-Pearson intervals).

    Continuations of fewer than `JUDGED_CHARACTERS` are not counted, and a language without any others is left out.
    """
    judged = [sample for sample in samples if len(sample.continued.strip()) >= JUDGED_CHARACTERS]
    shares = {}
    for language in LANGUAGES:
        right = [detect_language(sample.continued) == language for sample in judged if sample.language == language]
        if right:
            shares[language] = clopper_pearson(sum(right), len(right))
    return shares
