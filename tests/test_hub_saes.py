"""The pairs' published SAEs, through the clients that think they talk to the Hub."""

import json

import pytest
import torch
from hub import child
from hub.saes import K, weights

from stitch_utils.data.pairs import load_pair

SAES = {
    "pythia.a": ("EleutherAI/pythia-70m-deduped", "topk", "blocks.2.hook_resid_post"),
    "pythia.b": ("EleutherAI/pythia-160m-deduped", "topk", "blocks.3.hook_resid_post"),
    "gemma.a": ("google/gemma-2-2b", "jumprelu", "blocks.19.hook_resid_post"),
    "gemma.b": ("google/gemma-2-9b", "jumprelu", "blocks.32.hook_resid_post"),
    "gemma3.a": ("google/gemma-3-270m", "jumprelu", "blocks.9.hook_resid_post"),
    "gemma3.b": ("google/gemma-3-1b-pt", "jumprelu", "blocks.13.hook_resid_post"),
}
OLD = {"old": ("EleutherAI/pythia-70m-deduped", "topk", "blocks.2.hook_resid_post")}  # by SAELens 3
CHILD = """
import dataclasses, json, sys, torch
from stitch_utils.data.pairs import SAERef, load_pair
from stitch_utils.saes.io import load_sae

found = {"saes": {}, "errors": {}}
refs = {f"{pair}.{side}": ref for pair in ("pythia", "gemma", "gemma3") for side, ref in load_pair(pair).saes.items()}
for name, ref in [*refs.items(), ("old", SAERef("sae_lens", "someone/old-saes", "layer_2"))]:
    sae = load_sae(ref)
    if ref.revision is None:  # the same by name
        assert torch.equal(load_sae(f"{ref.format}:{ref.release}/{ref.id}").W_enc, sae.W_enc)
    x = 3 * torch.randn(20, sae.cfg.d_in, generator=torch.Generator().manual_seed(0))
    found["saes"][name] = {
        "architecture": sae.cfg.architecture(), "hook": sae.cfg.metadata.hook_name, "dtype": str(sae.dtype),
        "output": sae(x).tolist(), "l0": (sae.encode(x) > 0).sum(1).tolist(),
    }
ref = load_pair("pythia").saes["a"]
for label, changes in json.loads(sys.argv[1]).items():
    try:
        load_sae(dataclasses.replace(ref, **changes))
    except ValueError as error:
        found["errors"][label] = [type(error).__name__, str(error)]
print(json.dumps(found))
"""
REFUSED = {
    "repository": ({"release": "EleutherAI/sae-none"}, "HubError", "model 'EleutherAI/sae-none' does not exist on"),
    "folder": ({"id": "layers.7"}, "HubError", "lacks a file that is needed"),
    "revision": ({"revision": "step9"}, "HubError", "has no revision 'step9'"),
    "release": ({"format": "sae_lens", "release": "none"}, "ValueError", "Release none not found"),
    "id": ({"format": "sae_lens", "release": "gemma-scope-2b-pt-res", "id": "x"}, "ValueError", "ID x not found"),
    "pinned": (
        {"format": "sae_lens", "release": "gemma-scope-2b-pt-res", "revision": "v1"},
        "ValueError",
        "SAELens reads the main branch alone: got revision 'v1'",
    ),
    "format": ({"format": "pickle"}, "ValueError", "unknown SAE format 'pickle': expected one of sae_lens, sp"),
}


def load_all(environment, changes):
    """What a process of its own loads, and how it is refused."""
    return child(environment, "-c", CHILD, json.dumps(changes))


@pytest.fixture(scope="module")
def online(hub, home):
    return load_all(hub.environment(home), {label: changes for label, (changes, _, _) in REFUSED.items()})


@pytest.mark.parametrize("name", [*SAES, *OLD])
def test_saes_compute_what_their_files_say(online, name):
    model, architecture, hook = (SAES | OLD)[name]
    found, stored = online["saes"][name], weights(model)
    assert (found["architecture"], found["hook"], found["dtype"]) == (architecture, hook, "torch.float32")
    x = 3 * torch.randn(20, len(stored["b_dec"]), generator=torch.Generator().manual_seed(0))
    if architecture == "topk":
        latents = torch.zeros(20, len(stored["b_enc"]))
        for row, values in enumerate((x - stored["b_dec"]) @ stored["W_enc"] + stored["b_enc"]):
            for index in values.sort().indices[-K:]:
                latents[row, index] = max(values[index], 0)
    else:
        values = x @ stored["W_enc"] + stored["b_enc"]
        latents = values * (values > stored["threshold"])
    assert found["l0"] == (latents > 0).sum(1).tolist()
    expected = latents @ stored["W_dec"] + stored["b_dec"]
    torch.testing.assert_close(torch.tensor(found["output"]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("label", REFUSED)
def test_what_cannot_be_had_is_said_in_one_line(online, label):
    _, kind, words = REFUSED[label]
    found = online["errors"][label]
    assert found[0] == kind and words in found[1] and "\n" not in found[1]


def test_what_was_fetched_once_needs_no_network(online, hub, home, tmp_path):
    asked = len(hub.requests)
    again = load_all(hub.environment(home, HF_HUB_OFFLINE="1"), {"folder": {"id": "layers.7"}})
    assert again["saes"] == online["saes"] and len(hub.requests) == asked
    assert again["errors"]["folder"][0] == "HubError" and "unset HF_HUB_OFFLINE once" in again["errors"]["folder"][1]


def test_the_layers_are_those_before_which_the_pairs_are_stitched():
    for name, (_, _, hook) in SAES.items():
        pair, side = name.split(".")
        after = int(hook.split(".")[1])
        assert after + 1 == getattr(load_pair(pair), side).layer
