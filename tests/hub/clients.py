"""What the clients of the Hub find on it, as JSON: `python -m hub.clients online|offline|downloads`.

They read `HF_ENDPOINT` when they are imported, so each of the three runs in a process of its own, in the environment
that `Hub.environment` makes. Nothing in here knows of the stand-in.
"""

import io
import itertools
import json
import os
import sys
from pathlib import Path

PYTHIA, GEMMA, CHAT = "EleutherAI/pythia-70m-deduped", "google/gemma-2-2b", "google/gemma-2-2b-it"
WEB = "Skylion007/openwebtext"
TEXT = "The cook bakes a café cake."


def load(name):
    """(model, tokenizer, tokens of TEXT)"""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="eager")
    return model, tokenizer, tokenizer(TEXT, return_tensors="pt")["input_ids"]


def logits(model, tokens):
    import torch

    with torch.no_grad():
        return model(tokens).logits.float()


def describe(model, tokenizer, tokens):
    output = logits(model, tokens)
    return {
        "class": type(model).__name__,
        "layers": model.config.num_hidden_layers,
        "dtype": str(model.dtype),
        "tied": model.get_input_embeddings().weight is model.get_output_embeddings().weight,
        "stand_in": model.config.stand_in,
        "tokenizer": type(tokenizer).__name__,
        "vocabulary": tokenizer.get_vocab(),
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "first": tokens[0, 0].item(),
        "text": tokenizer.decode(tokens[0], skip_special_tokens=True),
        "ends": model.generation_config.eos_token_id,
        "sum": output.double().sum().item(),
        "spread": output.std().item(),
        "largest": output.abs().max().item(),
    }


def bridged(name, model, tokens):
    """How far transformer_lens' logits are from those of transformers."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(name, device="cpu", dtype=model.dtype)
    return (bridge(tokens, return_type="logits").float() - logits(model, tokens)).abs().max().item()


def caps(model, tokenizer):
    """The largest logit without the last cap, and the largest change of one without the caps in attention."""
    model.float()  # in bfloat16 every change of the arithmetic changes logits
    tokens = tokenizer(TEXT * 8, return_tensors="pt")["input_ids"]
    capped = logits(model, tokens)
    final, model.config.final_logit_softcapping = model.config.final_logit_softcapping, None
    largest = logits(model, tokens).abs().max().item()
    model.config.final_logit_softcapping = final
    for layer in model.model.layers:
        layer.self_attn.attn_logit_softcapping = None
    return largest, (logits(model, tokens) - capped).abs().max().item()


def online():
    """Every model through transformers, two through transformer_lens, the data set streamed and whole."""
    from datasets import load_dataset

    from .checkpoints import CHECKPOINTS

    found = {}
    for name in CHECKPOINTS:
        model, tokenizer, tokens = load(name)
        found[name] = describe(model, tokenizer, tokens)
        if name in (PYTHIA, GEMMA):
            found[name]["bridge"] = bridged(name, model, tokens)
        if name == GEMMA:
            found["caps"] = caps(model, tokenizer)
        if name == CHAT:
            messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
            found["chat"] = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    stream = load_dataset(WEB, split="train", streaming=True)
    found["streamed"] = [row["text"] for row in itertools.islice(stream, 40)]
    found["skipped to"] = next(iter(stream.skip(180_003)))["text"]
    rows = load_dataset(WEB, "plain_text", split="train")
    found |= {"features": str(rows.features), "rows": len(rows)}
    return found | {"fitted": rows[:1_000]["text"], "evaluated": rows[180_000:]["text"]}


def offline():
    """Two models and the data set."""
    from datasets import load_dataset

    found = {}
    for name in (PYTHIA, GEMMA):
        model, _, tokens = load(name)
        found[name] = logits(model, tokens).double().sum().item()
    return found | {"rows": len(load_dataset(WEB, "plain_text", split="train"))}


def failure(call, *arguments, **options):
    """[name of the error, status of the answer, message], or None."""
    try:
        call(*arguments, **options)
    except Exception as error:
        return [type(error).__name__, getattr(getattr(error, "response", None), "status_code", None), str(error)]


def downloads():
    """What huggingface_hub downloads, lists and is refused, where Gemma is gated for all but `hf_friend`."""
    from huggingface_hub import HfApi, HfFileSystem, hf_hub_download, hf_hub_url, snapshot_download
    from huggingface_hub.file_download import http_get

    api, weights = HfApi(), "model.safetensors"
    path = Path(hf_hub_download(PYTHIA, weights))
    whole, partial = path.read_bytes(), io.BytesIO()
    partial.write(whole[:1000])
    http_get(hf_hub_url(PYTHIA, weights), partial, resume_size=1000, expected_size=len(whole))
    with HfFileSystem().open(f"{PYTHIA}/{weights}", block_size=1 << 12) as file:
        file.seek(-500, os.SEEK_END)
        end = file.read()
    info = api.model_info(PYTHIA)
    paths = ["plain_text", "README.md", "plain_text/train-00000-of-00002.parquet", "none"]
    return {
        "resumed": partial.getvalue() == whole,
        "end": end == whole[-500:],
        "commits": [info.sha, path.parent.name, api.model_info(PYTHIA, revision=info.sha).sha],
        "by_commit": hf_hub_download(PYTHIA, weights, revision=info.sha) == str(path),
        "siblings": sorted(file.rfilename for file in info.siblings),
        "snapshot": sorted(file.name for file in Path(snapshot_download(PYTHIA, revision="step1000")).iterdir()),
        "tree": [
            [type(entry).__name__, entry.path, entry.last_commit.title]
            for entry in api.list_repo_tree(WEB, repo_type="dataset", recursive=True, expand=True)
        ],
        "top": [entry.path for entry in api.list_repo_tree(WEB, repo_type="dataset")],
        "paths": [
            [entry.path, getattr(entry, "size", None), bool(getattr(entry, "lfs", None))]
            for entry in api.get_paths_info(WEB, paths, repo_type="dataset")
        ],
        "gated": [info.gated, api.model_info(GEMMA).gated],
        "whoami": api.whoami(token="hf_any")["name"],
        "errors": {
            "no repository": failure(hf_hub_download, "google/none", "config.json"),
            "no repository for a reader": failure(hf_hub_download, "google/none", "config.json", token="hf_any"),
            "no file": failure(hf_hub_download, PYTHIA, "none.json"),
            "no revision": failure(hf_hub_download, PYTHIA, "config.json", revision="none"),
            "no commit": failure(api.model_info, PYTHIA, revision="0" * 40),
            "no folder": failure(lambda: list(api.list_repo_tree(PYTHIA, "none"))),
            "gated": failure(hf_hub_download, GEMMA, "config.json"),
            "gated snapshot": failure(snapshot_download, GEMMA),
            "gated for a stranger": failure(hf_hub_download, GEMMA, "config.json", token="hf_stranger"),
            "gated for a friend": failure(hf_hub_download, GEMMA, "config.json", token="hf_friend"),
        },
    }


if __name__ == "__main__":
    print(json.dumps({"online": online, "offline": offline, "downloads": downloads}[sys.argv[1]]()))
