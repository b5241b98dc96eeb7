"""What the book shows of the embedded pair and its world: examples, training, samples (no section of its own).

Offers, for tables and figures of the chapter on pairs, `parallel_examples`, `show_documents`, `recorded`,
`training_table`, `trials_table`, `sample_continuations`, `one_of_each`, `recognised_shares`, and the constants
`SAMPLES` and `TEMPERATURE`.
"""

import html
import itertools
import json
import random

import pandas as pd
import torch
from IPython.display import HTML

from ..data.embedded.grammar import LANGUAGES, load_lexicon, realise
from ..data.embedded.world import FORMATS, documents, sentence_frames
from ..data.hub import EMBEDDED
from ..models.language_model import LanguageModel
from ..steering.verifiers import detect_language
from ..utils.stats import Estimate, clopper_pearson

# Continuations for each language, by scale.
SAMPLES = {"smoke": 2, "default": 100, "paper": 400}
GIVEN_TOKENS, NEW_TOKENS, TEMPERATURE = 12, 50, 0.5
# Shorter continuations are left out of the count: a story that ends at once gives nothing to judge.
JUDGED_CHARACTERS = 40


def parallel_examples(seed: int) -> list[tuple[str, str]]:
    """Write one frame in every language: (name of the language, sentence)."""
    frames = (frame for frame in sentence_frames(f"portrait:{seed}", 200) if frame.construction == "fronted")
    frame = next(frame for frame in frames if frame.object is not None and frame.object.adjective)
    return [(load_lexicon(language).name, realise(frame, language)) for language in LANGUAGES]


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


def recorded(name: str) -> dict:
    """Read what a script wrote beside the weights: `training`, `trials`, or `full_adam`, of 36 thousand steps."""
    return json.loads((EMBEDDED / f"{name}.json").read_text(encoding="utf-8"))


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


def trials_table(trials: dict[str, dict]) -> pd.DataFrame:
    """List the pairs that were tried, a row for each: sizes, losses (nats), and what the stitch costs each way."""
    rows = []
    for name, trial in trials.items():
        sizes = [
            f"{side['hidden_size']} × {side['n_layers']}{', tied' if side['tied'] else ''}, {side['tokens'] / 1e6:g}M"
            for side in (trial["a"], trial["b"])
        ]
        own, rises = (f"{trial['own'][side]:.2f}" for side in "ab"), trial["rises"]
        counted = (trial["fitted"]["a_to_b"], trial["components"]["a_to_b"], trial["bigram"])
        rows.append(
            [name, trial["question"], *sizes, f"{trial['vocabulary']:,}", *own, "{}, {}".format(*trial["layers"])]
        )
        rows[-1] += [f"{rises[way]:+.0%}" for way in ("a_to_b", "b_to_a")] + [f"{loss:.2f}" for loss in counted]
        rows[-1] += [f"{trial[task]:.0%}" if task in trial else "not tried" for task in ("written", "answered")]
    columns = ["trial", "tried for", "A: width × layers, tokens", "B", "vocabulary", "A itself", "B itself", "layers"]
    columns += ["A → B", "B → A", "A → B, nats", "components alone", "bigram model", "B writes", "B answers"]
    return pd.DataFrame(rows, columns=columns)


def sample_continuations(
    model: LanguageModel, *, per_language: int, seed: int, temperature: float = TEMPERATURE
) -> pd.DataFrame:
    """Let the model continue the first tokens of stories in each language: its `language`, `given`, `continued`."""
    tokenizer, samples = model.tokenizer, []
    for language in LANGUAGES:
        stories = documents(f"portrait:{seed}", stop=per_language, language=language, format="story")
        starts = [tokenizer(story.text)["input_ids"][:GIVEN_TOKENS] for story in stories]
        tokens = torch.tensor([[tokenizer.bos_token_id, *start] for start in starts])
        new = model.generate(tokens, NEW_TOKENS, temperature=temperature, seed=seed)
        for start, ids in zip(starts, new.tolist()):
            continued = list(itertools.takewhile(lambda id: id != tokenizer.eos_token_id, ids))
            texts = (tokenizer.decode(part, skip_special_tokens=True) for part in (start, continued))
            samples.append([language, *texts])
    return pd.DataFrame(samples, columns=["language", "given", "continued"])


def one_of_each(samples: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Return the first sample in each language: (name of the language, given, continued)."""
    first = samples.drop_duplicates("language").itertuples(index=False)
    return [(load_lexicon(language).name, f"{given} …", continued) for language, given, continued in first]


def recognised_shares(samples: pd.DataFrame) -> dict[str, Estimate]:
    """Return the share of continuations in each language that langdetect takes for it (95% Clopper-Pearson intervals).

    Continuations of fewer than `JUDGED_CHARACTERS` are not counted, and a language without any others is left out.
    """
    right: dict[str, list[bool]] = {}
    for language, _, continued in samples.itertuples(index=False):
        if len(continued.strip()) >= JUDGED_CHARACTERS:
            right.setdefault(language, []).append(detect_language(continued) == language)
    return {language: clopper_pearson(sum(found), len(found)) for language, found in right.items()}
