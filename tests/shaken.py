"""Random models whose norms and biases are random too: untrained ones have scales of 1 and biases of 0, under which a
norm or a bias that is left out would not show. For `test_heads.py`, `test_entropy.py`, `test_attention.py`."""

import functools
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stitch_utils.models.language_model import LanguageModel, load_model

IDS = ("EleutherAI/pythia-160m-deduped", "openai-community/gpt2", "google/gemma-2-2b")


@functools.cache
def shaken(hub_root: Path, id: str) -> LanguageModel:
    """A model of the stand-in Hub in float32, with everything in it that has one dimension moved by about 0.3."""
    folder = hub_root / "models" / id
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    with tempfile.TemporaryDirectory() as target:
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(folder).save_pretrained(target)
        return load_model(target)
