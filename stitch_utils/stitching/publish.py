"""Stitches on the Hugging Face Hub: a repository of one safetensors file and a model card.

No section of the paper, which publishes none. A card says what a stitch maps onto what, what it was fitted on, its
error on held-out text, and the licences of the models and the text, for which the Hub is asked. Local paths are cut
down to names.

Offers `load_stitch`, `push_stitch`, `write_repository` and `model_card`.
"""

import contextlib
import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, constants, errors, hf_hub_download

from ..data.hub import HubError, fetched
from ..utils.files import check_ours, write_whole
from .stitch import Stitch

WEIGHTS, CARD = "stitch.safetensors", "README.md"
REPOSITORY = r"[\w][\w.-]*/[\w][\w.-]*"
# The base class of all errors of the Hub client's HTTP library, which another version of the client may replace.
HTTP_ERROR: Any = errors.HfHubHTTPError.__bases__[0]


def load_stitch(ref: str | Path, *, revision: str | None = None) -> Stitch:
    """Load a stitch from a file, or from a repository of the Hub: `owner/name`, or `owner/name@revision`.

    HubError (a ValueError) for what the Hub does not give; ValueError for a file that is no stitch, and another name.
    """
    if (file := Path(ref).expanduser()).is_file():
        return Stitch.load(file)
    name, _, pinned = str(ref).partition("@")
    if not re.fullmatch(REPOSITORY, name) or name.endswith(".safetensors"):
        raise ValueError(f"{str(ref)!r} is no file, and no repository of the Hub, such as owner/name")
    at = revision or pinned or None
    return Stitch.load(fetched("model", name, lambda: hf_hub_download(name, WEIGHTS, revision=at), revision=at))


def push_stitch(stitch: Stitch, repository: str, *, licence: str | None = None, private: bool = False) -> str:
    """Publish a stitch with its card as `owner/name`, created if it does not exist; return the commit's address.

    `licence` is the stitch's own, as the Hub abbreviates it (`mit`, `apache-2.0`). HubError, in one line, where the Hub
    refuses.
    """
    with tempfile.TemporaryDirectory() as scratch:
        write_repository(stitch, scratch, repository, licence=licence)
        files = [CommitOperationAdd(name, Path(scratch, name)) for name in (CARD, WEIGHTS)]
        api = HfApi()
        try:
            api.create_repo(repository, private=private or None, exist_ok=True)
            commit = api.create_commit(repository, files, commit_message="Upload a stitch")
        except (HTTP_ERROR, errors.OfflineModeIsEnabled, OSError, ValueError) as error:  # ValueError: of the metadata
            raise HubError(f"model {repository!r} cannot be written: {_why(error)}") from error
    return commit.commit_url


def _why(error: Exception) -> str:
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, HTTP_ERROR | ConnectionError) and not isinstance(error, errors.HfHubHTTPError):
        return f"{constants.ENDPOINT} cannot be reached, or its answer was cut off: check the network ({error})"
    if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
        return "log in with `hf auth login`, with a token that may write there"
    return " ".join(str(error).split())


def write_repository(stitch: Stitch, folder: str | Path, repository: str, *, licence: str | None = None) -> None:
    """Write stitch and card to a folder, for `hf upload OWNER/NAME FOLDER`; ValueError if it holds anything else."""
    if not re.fullmatch(REPOSITORY, repository):
        raise ValueError(f"{repository!r} is no name of a repository: expected owner/name")
    folder = Path(folder).expanduser()
    check_ours(folder, WEIGHTS, CARD)
    about = dict(stitch.about)
    for key in ("a", "b", "text", "held_out_text"):
        name = about.get(key)
        if isinstance(name, str) and (name.startswith((".", "/", "~")) or Path(name).exists()):
            about[key] = Path(name).name
    public = replace(stitch, about=about)
    card = model_card(public, repository, licence=licence, licences=_licences(about))
    write_whole(folder / WEIGHTS, public.save, sealed=False)
    write_whole(folder / CARD, lambda place: place.write_text(card, encoding="utf-8"), sealed=False)


def model_card(stitch: Stitch, repository: str, *, licence: str | None, licences: Mapping[str, str]) -> str:
    """Write the Markdown with the Hub's metadata. `licences` are those of `a`, `b` and `text`."""
    about, report, (d_a, d_b) = stitch.about, stitch.report, stitch.P_up.shape
    models, text = [about.get(side, "unknown") for side in "ab"], about.get("text", "unknown")
    on_hub = [about[side] for side in "ab" if _on_hub(about, side)]
    metadata = {
        "library_name": "stitch_utils",
        "tags": ["model-stitching", "residual-stream", "interpretability", "arxiv:2506.06609"],
        "license": licence,
        "base_model": list(dict.fromkeys(on_hub)),
        "datasets": [text] if _on_hub(about, "text") else [],
    }
    metadata = {name: value for name, value in metadata.items() if value}
    rows = [
        ("model", *models),
        *([("revision", *(about.get(f"revision_{side}", "main") for side in "ab"))] if on_hub else []),
        ("residual stream", *(f"before layer {about.get(f'layer_{side}', 'unknown')}" for side in "ab")),
        ("width", d_a, d_b),
        ("licence of the model", licences["a"], licences["b"]),
    ]
    fit = f", by `{report.method}` with alpha = {report.alpha:g}" if report else ""
    tokens = f"{about['tokens']:,} tokens" if "tokens" in about else "text"
    held_out = about.get("held_out_text", text)
    apart = "every tenth document of the same, which it was not fitted on" if held_out == text else f"`{held_out}`"
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# A stitch between {models[0]} and {models[1]}",
        "Two affine maps between the residual streams of two language models, fitted on the same tokens in both: "
        "`up(x) = x P_up + b_up` makes a stream of B from one of A, `down(y) = y P_down + b_down` the converse. SAEs, "
        "probes and steering vectors go across with them ([arXiv:2506.06609](https://arxiv.org/abs/2506.06609)).",
        _table(("", "A", "B"), *rows),
    ]
    if about.get("is_stand_in"):
        parts.append("**A model had random weights under another's name: this stitch is of no use beyond tests.**")
    parts += [
        "## Data and losses",
        f"Fitted on {tokens} of `{text}` (licence: {licences['text']}){fit}; held-out text: {apart}.",
    ]
    losses = {"text fitted on": about.get("loss_fitted"), "held-out text": about.get("loss_held_out")}
    if known := {name: loss for name, loss in losses.items() if loss}:
        names = list(next(iter(known.values())))
        parts += [
            "Mean squared errors over tokens and dimensions (Eq. 3 of the paper), and what is left of the variance:",
            _table(("", *names), *((name, *(f"{loss[key]:.4g}" for key in names)) for name, loss in known.items())),
        ]
    if "unexplained" in about:
        up, down = about["unexplained"]
        parts.append(f"Share of the variance of held-out text explained: up {1 - up:.1%}, down {1 - down:.1%}.")
    model, layer = models[0] if _on_hub(about, "a") else "path/of/model-a", about.get("layer_a", 0)
    parts += [
        "## How to load it",
        "```python\nfrom stitch_utils.models.language_model import load_model\n"
        "from stitch_utils.stitching.publish import load_stitch\n\n"
        f'a, stitch = load_model("{model}"), load_stitch("{repository}")\n'
        f'x = a.residuals(a.tokenizer("Some text", return_tensors="pt")["input_ids"], [{layer}])[{layer}]\n'
        "y = stitch.up(x)  # (1, tokens, d_b); stitch.down(y) goes back\n```",
        f"`{WEIGHTS}` holds the tensors P_up, b_up, P_down and b_down, so `safetensors` alone will do as well.",
        "## Licences of the sources",
        _table(("source", "licence"), *zip((*models, text), (licences[key] for key in ("a", "b", "text")))),
        "The file holds two matrices and two biases, and none of the models' weights or of the text.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: tuple, *rows: tuple) -> str:
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (head, ("---",) * len(head), *rows))


def _on_hub(about: Mapping[str, Any], source: str) -> bool:
    """Tell whether a model or the text is named by an id of the Hub."""
    if source == "text":
        return about.get("text_source") == "hub"
    return isinstance(name := about.get(source), str) and re.fullmatch(REPOSITORY, name) is not None


def _licences(about: Mapping[str, Any]) -> dict[str, str]:
    """Ask the Hub for the licences of `a`, `b` and `text`; for what lies elsewhere say that none is stated."""
    found: dict[str, str] = dict.fromkeys(("a", "b", "text"), "not stated")
    for source in found:
        name = str(about.get(source))
        if name.startswith("embedded:") or (source == "text" and about.get("text_source") == "world"):
            found[source] = "mit (part of stitch_utils)"
        elif _on_hub(about, source):
            # A Hub that cannot be asked is no reason not to publish.
            with contextlib.suppress(HTTP_ERROR, errors.OfflineModeIsEnabled, OSError):
                info: Any = HfApi().repo_info(name, repo_type="dataset" if source == "text" else "model")
                stated = getattr(info.card_data, "license", None) or "not stated"
                found[source] = ", ".join(stated) if isinstance(stated, list) else stated
    return found
