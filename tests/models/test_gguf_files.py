"""GGUF files against the same weights in a folder, and what cannot be read from one."""

import re
import shutil
import sys

import pytest
import torch
from toy_book import call_here
from toy_families import TOKENS, halved, qwen_tokenizer, save_family, write_gguf
from transformers import AutoModelForCausalLM

from stitch_utils.data.hub import resolve
from stitch_utils.data.pairs import ModelRef, load_pair
from stitch_utils.models import gguf_files
from stitch_utils.models.harvest import weights_digest
from stitch_utils.models.language_model import check_pair, load_config, load_model, load_tokenizer

TEXTS = ["The cook bakes 12 cakes.", "  two\n\nlines\t", "日本 🤗", "<|im_start|>user\nHi<|im_end|>", ""]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Gives a family as a folder and as a GGUF file, made once."""
    made = {}

    def of(kind, *, n_tokens=384):
        if (kind, n_tokens) not in made:
            folder = tmp_path_factory.mktemp(kind)
            changes = {"layer_types": ["sliding_attention"] * 3} if kind == "gemma3_text" else {}  # every sixth is full
            model = halved(save_family(kind, folder, vocab_size=n_tokens, **changes))
            model.save_pretrained(folder)
            if n_tokens != 384:
                qwen_tokenizer("<|endoftext|>", size=n_tokens).save_pretrained(folder)
            write_gguf(model, load_tokenizer(str(folder)), folder / "tiny.gguf")
            made[kind, n_tokens] = folder, folder / "tiny.gguf"
        return made[kind, n_tokens]

    return of


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma3_text"])
def test_a_file_gives_what_the_folder_gives(kind, both):
    folder, file = both(kind)
    found, expected = load_model(str(file), "cpu"), load_model(str(folder), "cpu")
    torch.testing.assert_close(found.logits(TOKENS), expected.logits(TOKENS), rtol=1e-5, atol=1e-5)
    theirs = expected.residuals(TOKENS, [0, 1, 2])
    for layer, residual in found.residuals(TOKENS, [0, 1, 2]).items():
        torch.testing.assert_close(residual, theirs[layer], rtol=1e-5, atol=1e-5)
    for text in TEXTS:
        ours, other = (
            model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True) for model in (found, expected)
        )
        assert dict(ours) == dict(other)
        assert found.tokenizer.decode(ours["input_ids"]) == text
    alike = ("bos_token_id", "eos_token_id", "chat_template")
    assert [getattr(found.tokenizer, name) for name in alike] == [getattr(expected.tokenizer, name) for name in alike]
    assert load_model(str(file), "cpu", dtype="bfloat16").logits(TOKENS).dtype == torch.bfloat16


def test_a_pair_of_a_file_and_a_folder(both, tmp_path):
    """A file is named relative to the pair's file; a link keeps its name; its key is its content."""
    folder, file = both("llama")
    shutil.copy(file, tmp_path / "blob")
    (tmp_path / "linked.gguf").symlink_to(tmp_path / "blob")
    given = f"name: mine\na: {{model: linked.gguf, layer: 1}}\nb: {{model: {folder}}}\ntext: my.txt\ncontext: 20\n"
    (tmp_path / "mine.yml").write_text(given)
    pair = load_pair(tmp_path / "mine.yml")
    assert (pair.a.model, pair.a.short) == (str(tmp_path / "linked.gguf"), "linked")
    check_pair(pair)
    assert weights_digest(pair.a) == weights_digest(ModelRef(str(file))) != weights_digest(pair.b)
    (tmp_path / "mine.yml").write_text(given.replace("linked", "none"))
    with pytest.raises(ValueError, match=rf"pair 'mine' .*, model a: there is no GGUF file '{tmp_path}/none\.gguf'"):
        check_pair(load_pair(tmp_path / "mine.yml"))


def test_fit_prints_for_two_files_what_it_prints_for_their_folders(both, bare_book):
    """The models have different tokenizers, and the pair's file names them, a text and no more but a small context."""
    text = " ".join(f"The cook of {n} bakes {n * n} cakes, and the {n}th ends." for n in range(150))
    (bare_book / "my.txt").write_text("\n\n".join(text[start : start + 600] for start in range(0, len(text), 600)))
    said = []
    for of in range(2):
        a, b = both("llama")[of], both("gemma3_text", n_tokens=320)[of]
        file = bare_book / f"{['folders', 'files'][of]}.yml"
        file.write_text(f"name: mine\na: {{model: {a}, layer: 1}}\nb: {{model: {b}, layer: 2}}\ntext: my.txt\n")
        with file.open("a") as more:
            more.write("context: 40\n")  # as far as these models read
        code, lines, err = call_here(bare_book, "fit", "--pair", str(file), "--scale", "smoke")
        assert (code, err) == (0, "")
        said.append(lines)
    folders, files = ([re.sub(r"\S*/\S+", "", line) for line in lines] for lines in said)
    assert folders == files
    assert any(line.startswith("A->B") for line in files) and any(
        "tokens whose stream is replaced" in line for line in files
    )


def test_a_home_folder(both, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(both("llama")[1], tmp_path / "mine.GGUF")
    assert resolve("~/mine.GGUF") == str(tmp_path / "mine.GGUF")


def test_files_that_are_damaged_or_none(both, tmp_path):
    whole = both("llama")[1].read_bytes()
    for name, content in (("empty", b""), ("text", b"hello"), ("cut", whole[:-5000]), ("short", whole[:700])):
        (tmp_path / f"{name}.gguf").write_bytes(content)
        with pytest.raises(
            ValueError, match=rf"{name}\.gguf' is no GGUF file, or a damaged one \(.+\): put it"
        ) as said:
            load_config(str(tmp_path / f"{name}.gguf"))
        assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"add": [("llama.rope.scaling.type", "yarn")]}, "scales its rotary frequencies"),
        ({"split": "made-up"}, "splits text in a way 'made-up'"),
        ({"leave_out": ["blk.2.ffn_down.weight"]}, r"no weights for model\.layers\.2\.mlp\.down_proj\.weight"),
    ],
)
def test_what_would_give_other_numbers_is_refused(both, changes, message, tmp_path):
    folder, _ = both("llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    write_gguf(model, qwen_tokenizer("<|endoftext|>"), tmp_path / "odd.gguf", **changes)
    with pytest.raises(ValueError, match=message):
        load_model(str(tmp_path / "odd.gguf"), "cpu")


def test_without_the_package(both, monkeypatch):
    for kept in (gguf_files._read_once, gguf_files._config):
        kept.cache_clear()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match="needs the package `gguf`, which is not installed: pip install gguf"):
        load_config(str(both("llama")[1]))


def test_an_unknown_architecture(both, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(both("llama")[0])
    model.config.model_type = "falcon"
    write_gguf(model, qwen_tokenizer("<|endoftext|>"), tmp_path / "odd.gguf")
    with pytest.raises(
        ValueError, match=r"unknown architecture in .*'falcon': expected one of llama, qwen2, qwen3, gemma3"
    ):
        load_model(str(tmp_path / "odd.gguf"), "cpu")
