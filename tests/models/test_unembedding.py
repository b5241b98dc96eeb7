"""Logit weights against the models' own logits, for each architecture."""

import pytest
import torch
from toy_saes import normal

from stitch_utils.models.language_model import load_model
from stitch_utils.models.unembedding import LogitWeights

TOKENS = torch.tensor([[2, 17, 30, 44, 102, 7, 9, 250], [2, 5, 80, 81, 82, 83, 84, 85]])


@pytest.mark.parametrize("id", ["EleutherAI/pythia-160m-deduped", "openai-community/gpt2", "google/gemma-2-2b"])
def test_final_streams_become_the_models_logits(hub_root, id):
    model = load_model(str(hub_root / "models" / id))
    norm = model.bridge.ln_final.original_component
    before = {name: parameter.detach().clone() for name, parameter in norm.named_parameters()}
    final = []
    try:
        with torch.no_grad():
            for seed, parameter in enumerate(norm.parameters()):
                parameter += normal(len(parameter), seed=seed).to(parameter)
        with model.bridge.hooks(fwd_hooks=[("ln_final.hook_in", lambda t, hook: final.append(t.detach()))]):
            logits = model.logits(TOKENS)
        readout = LogitWeights(model)
        assert readout.takes_mean == ("gemma" not in id)
        y, every = final[0][0], torch.arange(logits.shape[-1])
        centred = y - y.mean(-1, keepdim=True) if readout.takes_mean else y
        divisors = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()  # what the final norm divides by
        read = (readout.fold(y) / divisors + readout.shift) @ readout.columns(every).T
        cap = getattr(model.config, "final_logit_softcapping", None)
        read = cap * torch.tanh(read / cap) if cap else read
        torch.testing.assert_close(read, logits[0], rtol=1e-4, atol=1e-4)
        assert logits.std() > 0.1
    finally:
        norm.load_state_dict(before)


def test_columns_of_some_tokens_with_and_without_their_mean(random_models):
    readout = LogitWeights(random_models[0])
    everything = readout.columns(torch.arange(len(readout.weight)))
    some = torch.tensor([3, 3, 9])
    assert torch.equal(readout.columns(some), everything[some])
    torch.testing.assert_close(readout.columns(some, centre=True), everything[some] - everything.mean(0))
