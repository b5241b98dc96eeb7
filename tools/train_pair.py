"""Train the embedded pair: one tokenizer and two small GPT-NeoX models, each from its own seed, on the same text.

No section of the paper; Pythia 70m and 160m have this role there. Nothing about the relation of the two models is
built in: they share text and tokenizer, as the paper's families do, and neither initialisation nor order of the
batches.

Run `python -m tools.train_pair --out FOLDER` (about an hour on two cores). It writes `tiny-a/` and
`tiny-b/`, Hugging Face folders with float16 weights, and `training.json` (tokens, steps, losses, versions).
"""

import argparse
import functools
import itertools
import json
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from stitch_utils.data.embedded.world import ASSISTANT, END, USER, documents
from stitch_utils.data.hub import EMBEDDED
from stitch_utils.utils.files import remove_sealed, write_whole

END_OF_TEXT = "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class TrainingConfig:
    """One model of the pair and how it is trained."""

    name: str
    """Name of the folder."""
    seed: int
    """Of the initialisation and of the order of the batches."""
    hidden_size: int
    n_layers: int
    n_heads: int
    learning_rate: float
    """Peak; linear warm-up, then cosine to a tenth."""
    tokens: int
    """Seen in training; the text is repeated if it is shorter."""
    context: int = 256
    """Positions of a training row; its first is always the end-of-text token."""
    batch_size: int = 8
    """Rows a step."""
    warmup_steps: int = 200
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    tied: bool = False
    """Whether the unembedding is the transposed embedding."""
    dropout: float = 0.0
    """Of embeddings and of what each block writes to the stream."""

    def __post_init__(self):
        if self.hidden_size % self.n_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of n_heads {self.n_heads}")

    @property
    def steps(self) -> int:
        return self.tokens // (self.context * self.batch_size)


PAIR = (
    TrainingConfig(
        "tiny-a", seed=1, hidden_size=160, n_layers=3, n_heads=4, learning_rate=1.5e-3, tokens=7_500_000, dropout=0.2
    ),
    TrainingConfig(
        "tiny-b", seed=2, hidden_size=192, n_layers=6, n_heads=6, learning_rate=1.25e-3, tokens=7_500_000, dropout=0.2
    ),
)
VOCABULARY = 3072
TRAINING_DOCUMENTS = 100_000  # more than `tokens`: each is seen once at most
TOKENIZER_DOCUMENTS = 40_000  # the first of the training text
HELD_OUT_DOCUMENTS = 1_000
CHECKPOINT = 200  # steps from one to the next
CURVE_STEPS = 25  # that each point of the recorded loss is a mean over


def train_tokenizer(texts, vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Pythia's end-of-text token and the three tokens of the chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [END_OF_TEXT, USER, ASSISTANT, END]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=specials, initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[USER, ASSISTANT, END],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def pack(tokenizer, texts, context: int) -> np.ndarray:
    """Documents one after another, each ended by end-of-text, cut into rows that all begin with it: (rows, context)."""
    end = tokenizer.eos_token_id
    stream: list[int] = []
    for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]:
        stream += [*ids, end]
    rows = len(stream) // (context - 1)
    body = np.array(stream[: rows * (context - 1)], dtype=np.uint16).reshape(rows, context - 1)
    return np.concatenate([np.full((rows, 1), end, dtype=np.uint16), body], axis=1)


def build_model(config: TrainingConfig, tokenizer) -> GPTNeoXForCausalLM:
    torch.manual_seed(config.seed)
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            intermediate_size=4 * config.hidden_size,
            max_position_embeddings=config.context,
            rotary_pct=0.25,
            tie_word_embeddings=config.tied,
            hidden_dropout=config.dropout,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


@torch.no_grad()
def held_out_loss(model, rows: np.ndarray, batch_size: int = 8) -> float:
    """Mean next-token cross-entropy, nats a token."""
    losses = [
        model(input_ids=batch, labels=batch).loss.item() * len(batch)
        for batch in torch.from_numpy(rows.astype(np.int64)).split(batch_size)
    ]
    return sum(losses) / len(rows)


def train_model(
    config: TrainingConfig, tokenizer, rows: np.ndarray, checkpoint: Path | None = None
) -> tuple[GPTNeoXForCausalLM, list[float]]:
    """The trained model and its training loss at each step (nats).

    The state is written to `checkpoint` every `CHECKPOINT` steps, and taken up from there by another call: the result
    is that of a training without a break.
    """
    model = build_model(config, tokenizer).train()
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)

    def schedule(step):
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, done)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    losses = []
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["config"] != asdict(config):
            raise ValueError(f"{checkpoint} is of another training: {state['config']}; remove it to begin anew")
        losses = state["losses"]
        torch.set_rng_state(state["drawn"])
        for name, part in parts.items():
            part.load_state_dict(state[name])
    batches = _batches(config, rows, start=len(losses))
    for step in tqdm(range(len(losses), config.steps), desc=config.name, unit="step", mininterval=5):
        batch = next(batches)
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
        if checkpoint is not None and (step + 1) % CHECKPOINT == 0:
            state = {name: part.state_dict() for name, part in parts.items()}
            state |= {"losses": losses, "config": asdict(config), "drawn": torch.get_rng_state()}
            write_whole(checkpoint, functools.partial(torch.save, state))
    return model.eval(), losses


def _batches(config: TrainingConfig, rows: np.ndarray, *, start: int) -> Iterator[torch.Tensor]:
    """Yield the batches of a training from step `start`: all rows in a drawn order, then in another, and so on."""
    order = np.random.default_rng(config.seed)
    queue = np.empty(0, dtype=np.int64)
    for step in itertools.count():
        if len(queue) < config.batch_size:
            queue = np.concatenate([queue, order.permutation(len(rows))])
        chosen, queue = queue[: config.batch_size], queue[config.batch_size :]
        if step >= start:
            yield torch.from_numpy(rows[chosen].astype(np.int64))


def save_model(model: GPTNeoXForCausalLM, tokenizer, folder: Path) -> GPTNeoXForCausalLM:
    """Write float16 weights and tokenizer; return the model as a reader will load it, in float32."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def train_one(config: TrainingConfig, tokenizer, texts: list[str], held_out: list[str], out: Path) -> dict:
    """Train one model and write it to `out / config.name`; return its part of the report."""
    rows, test_rows = pack(tokenizer, texts, config.context), pack(tokenizer, held_out, config.context)
    began, checkpoint = time.perf_counter(), out / f"{config.name}.checkpoint.pt"
    model, losses = train_model(config, tokenizer, rows, checkpoint)
    seconds = time.perf_counter() - began
    model = save_model(model, tokenizer, out / config.name)
    remove_sealed(checkpoint)
    return asdict(config) | {
        "steps": config.steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "text_tokens": int(rows[:, 1:].size),
        "held_out_tokens": int(test_rows[:, 1:].size),
        "train_loss": round(float(np.mean(losses[-50:])), 4),
        "held_out_loss": round(held_out_loss(model, test_rows), 4),
        "curve_steps": CURVE_STEPS,
        "loss_curve": [
            round(float(np.mean(losses[i : i + CURVE_STEPS])), 3) for i in range(0, len(losses), CURVE_STEPS)
        ],
        "seconds": round(seconds),
    }


def train_pair(
    out: Path,
    configs=PAIR,
    *,
    seed: int = 0,
    n_documents: int = TRAINING_DOCUMENTS,
    n_held_out: int = HELD_OUT_DOCUMENTS,
    vocabulary: int = VOCABULARY,
) -> dict:
    """Train tokenizer and models, write everything below `out`, and return what `training.json` holds."""
    texts = [document.text for document in documents(f"train:{seed}", stop=n_documents)]
    tokenizer = train_tokenizer(texts[:TOKENIZER_DOCUMENTS], vocabulary)
    held_out = [document.text for document in documents(f"held-out:{seed}", stop=n_held_out)]
    report = {
        "seed": seed,
        "documents": n_documents,
        "held_out_documents": n_held_out,
        "vocabulary": len(tokenizer),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "models": {},
    }
    for config in configs:
        report["models"][config.name] = train_one(config, tokenizer, texts, held_out, out)
        (out / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the embedded pair.")
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train_pair(arguments.out, seed=arguments.seed)
