"""Data sets under the names and in the schemas that the chapters ask the Hub for, with texts of the embedded world.

Stands in for OpenWebText, the Pile, chats, the sets of SAEBench and EuroParl, and has rows like IFEval's. Each has the
folders, file names and compression of the real repository, in fewer files; that of `write_amazon` is not verified.
Another data set is one more entry of `DATASETS`: a function that writes one repository, most simply through
`write_parquet`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
import zstandard

from stitch_utils.data.embedded.frames import TOPICS
from stitch_utils.data.embedded.grammar import LANGUAGES, load_lexicon, realise
from stitch_utils.data.embedded.python_code import draw_function
from stitch_utils.data.embedded.world import documents, requests, sentence_frames

from .evals import write_evals

FORMATS = ("story", "story", "facts", "questions", "review", "quotes")


def write_parquet(
    folder: Path,
    tables: Mapping[str, Mapping[str, pa.Table]],
    *,
    features: Mapping[str, Sequence[dict]] | None = None,
    shards: int = 2,
    row_group_size: int = 500,
    hashed: bool = False,
) -> None:
    """A repository of parquet files, `<config>/<split>-0000N-of-0000M.parquet`, with the card that describes them.

    `tables` by configuration and split; the files of the configuration `default` lie in `data/`. `features` by
    configuration are the card's, where the columns are not of plain types. With `hashed`, a name ends with a hash, as
    older clients wrote it.
    """
    infos, configs = [], []
    for config, splits in tables.items():
        sizes, downloaded, place = [], 0, "data" if config == "default" else config
        for split, table in splits.items():
            step = -(-table.num_rows // shards)
            for shard in range(shards):
                name = f"{split}-{shard:05d}-of-{shards:05d}"
                name += f"-{hashlib.sha256(name.encode()).hexdigest()[:16]}" * hashed
                path = folder / place / f"{name}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                part = table.slice(shard * step, step)
                pq.write_table(part, path, row_group_size=row_group_size, compression="zstd")
                downloaded += path.stat().st_size
            sizes.append({"name": split, "num_bytes": table.nbytes, "num_examples": table.num_rows})
        schema = next(iter(splits.values())).schema
        plain = [{"name": field.name, "dtype": str(field.type)} for field in schema]
        infos.append(
            {
                "config_name": config,
                "features": list(features[config]) if features else plain,
                "splits": sizes,
                "download_size": downloaded,
                "dataset_size": sum(size["num_bytes"] for size in sizes),
            }
        )
        files = [{"split": split, "path": f"{place}/{split}-*"} for split in splits]
        configs.append({"config_name": config, "data_files": files})
    write_card(folder, {"dataset_info": infos if len(infos) > 1 else infos[0], "configs": configs})


def write_card(folder: Path, header: dict) -> None:
    """README.md, whose YAML header the `datasets` library reads."""
    folder.mkdir(parents=True, exist_ok=True)
    text = f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n# {folder.name}\n\nA stand-in with made-up texts.\n"
    (folder / "README.md").write_text(text, encoding="utf-8")


def web_texts(seed: str, count: int) -> list[str]:
    """English texts of about 300 words, no two with the same part; one in fifty is empty or white space."""
    rng = random.Random(seed)
    streams = {format: documents(f"{seed}:{format}", language="en", format=format) for format in FORMATS}
    texts = []
    for index in range(count):
        parts = [next(streams[rng.choice(FORMATS)]).text for _ in range(rng.randrange(3, 8))]
        texts.append(("", " \n\n ")[index % 100 // 50] if index % 50 == 17 else "\n\n".join(parts))
    return texts


def write_openwebtext(folder: Path) -> None:
    """As many rows as the pairs count on, 180,000 to fit on and 1,000 to evaluate on; most of the former are filler."""
    fitted, evaluated = web_texts("openwebtext", 1_000), web_texts("openwebtext, the next", 1_000)
    filler = ["This row only keeps the count."] * (180_000 - len(fitted))
    table = pa.table({"text": pa.array([*fitted, *filler, *evaluated], pa.string())})
    write_parquet(folder, {"plain_text": {"train": table}}, row_group_size=10_000)


# ---- the sets of SAEBench ----------------------------------------------------------------------------------------

AG_NEWS = ("World", "Sports", "Business", "Sci/Tech")


def short_texts(seed: str, count: int, **which: str) -> list[str]:
    """The beginnings of documents, each a sentence or two."""
    texts = (document.text for document in documents(seed, language="en", **which))
    return [text[:120].rsplit(" ", 1)[0] for text in itertools.islice(texts, count)]


def write_ag_news(folder: Path) -> None:
    """Columns `text` and `label`, a number with a name, in two splits."""
    tables = {
        split: pa.table({"text": short_texts(f"news, {split}", 120), "label": [row * 7 % 4 for row in range(120)]})
        for split in ("train", "test")
    }
    names = {str(number): name for number, name in enumerate(AG_NEWS)}
    features = [{"name": "text", "dtype": "string"}, {"name": "label", "dtype": {"class_label": {"names": names}}}]
    write_parquet(folder, {"default": tables}, features={"default": features}, shards=1)


def write_amazon(folder: Path) -> None:
    """Columns `text`, `category` (here 0 to 6) and `rating`, 1.0 or 5.0, in two splits."""
    tables = {}
    for split in ("train", "test"):
        texts = short_texts(f"reviews, {split}", 210, format="review")
        categories = pa.array([row % 7 for row in range(210)], pa.int64())
        ratings = pa.array([1.0 + 4.0 * (row // 7 % 2) for row in range(210)], pa.float64())
        tables[split] = pa.table({"text": texts, "category": categories, "rating": ratings})
    write_parquet(folder, {"default": tables}, shards=1)


def write_bios(folder: Path) -> None:
    """Columns `hard_text`, `profession` (0 to 27) and `gender`, in three splits."""
    tables = {}
    for split, count in (("train", 616), ("dev", 20), ("test", 616)):
        columns = {"profession": [row % 28 for row in range(count)], "gender": [row // 28 % 2 for row in range(count)]}
        tables[split] = pa.table({"hard_text": short_texts(f"bios, {split}", count, format="facts"), **columns})
    write_parquet(folder, {"default": tables}, shards=1, hashed=True)


# One unit of code a language beside Python, whose functions the world has.
CODE = {
    ".c": "int count_{thing}s(struct {thing} *list, int n) {{\n    return list[n].{field} > {number};\n}}\n",
    ".html": '<div class="{thing}">\n  <p id="{field}">{number}</p>\n</div>\n',
    ".java": "public int {field}Of({Thing} {thing}) {{\n    return {thing}.get{Field}() + {number};\n}}\n",
    ".php": "<?php function {thing}_{field}(${thing}) {{\n    return ${thing}->{field} * {number};\n}} ?>\n",
    ".md": "# {Thing}\n\nThe {field} is {number}.\n",
}


def source_code(rng: random.Random, ending: str, length: int) -> str:
    """A file of at least so many characters."""
    nouns, text = list(load_lexicon("en").nouns.values()), ""
    while len(text) < length:
        thing, field, number = rng.choice(nouns)["sg"], rng.choice(("weight", "price", "age")), rng.randrange(100)
        words = {"thing": thing, "Thing": thing.capitalize(), "field": field, "Field": field.capitalize()}
        python = ending == ".py"
        text += draw_function(rng, rng.choice(TOPICS)) if python else CODE[ending].format(number=number, **words)
    return text


def write_code(folder: Path) -> None:
    """Files of the raw table, whose languages only the loading script reads off the paths; `datasets` refuses those."""
    rng, rows = random.Random("code"), []
    for index, ending in enumerate([".c", ".py", ".html", ".md", ".java", ".php"] * 55):
        content = source_code(rng, ending, 300 if index % 11 == 5 else 700)
        path, sizes = f"src/file{index}{ending}", str(len(content))
        rows.append({"content": content, "repo_name": f"people/{index}", "path": path, "license": "mit", "size": sizes})
    for shard in range(2):
        path = folder / "data" / f"train-{shard:05d}-of-00002.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows[shard::2]), path, compression="zstd")
    write_card(folder, {"license": "other"})
    (folder / f"{folder.name}.py").write_text("raise RuntimeError('a loading script is not to be run')\n")


# ---- EuroParl and IFEval -----------------------------------------------------------------------------------------

BEFORE_ENGLISH = ("bg", "cs", "da", "de", "el")
AFTER_ENGLISH = ("es", "et", "fi", "fr", "hu", "it", "lt", "lv", "nl", "pl", "pt", "ro", "sk", "sl", "sv")
EUROPARL = (
    *(f"{language}-en" for language in BEFORE_ENGLISH),
    *(f"en-{language}" for language in AFTER_ENGLISH),
    "es-fr",
    "fr-it",
    "nl-pt",
)
# Languages that the world does not speak are English in other letters.
LETTERS = {
    "bg": ("abcdefghijklmnopqrstuvwxyz", "абцдефгхийклмнопярстувжьъз"),
    "el": ("abcdefghijklmnopqrstuvwxyz", "αβκδεφγηιξκλμνοπθρστυβωχψζ"),
    "cs": ("aeiuyrs", "áěíůýřš"),
    "da": ("aou", "åøæ"),
    "et": ("aou", "äõü"),
    "lt": ("aeiusz", "ąęįųšž"),
    "lv": ("aeiukl", "āēīūķļ"),
    "pl": ("aelosz", "ąęłósż"),
    "sk": ("aelosz", "áéľôšž"),
    "sl": ("csz", "čšž"),
}


def write_europarl(folder: Path) -> None:
    """The same sentences in two languages, column `translation`; 120 rows a pair of languages."""
    frames, spoken = sentence_frames("europarl", 120), {}
    for language in sorted({code for pair in EUROPARL for code in pair.split("-")}):
        spoken[language] = [realise(frame, language if language in LANGUAGES else "en") for frame in frames]
        if language in LETTERS:
            table = str.maketrans(*LETTERS[language])
            spoken[language] = [text.lower().translate(table).capitalize() for text in spoken[language]]
    tables, features = {}, {}
    for pair in EUROPARL:
        languages = pair.split("-")
        rows = [dict(zip(languages, row)) for row in zip(*(spoken[language] for language in languages))]
        tables[pair] = {"train": pa.table({"translation": rows})}
        features[pair] = [{"name": "translation", "dtype": {"translation": {"languages": languages}}}]
    write_parquet(folder, tables, features=features, shards=1)


INSTRUCTION_IDS = {
    "upper": "change_case:english_capital",
    "lower": "change_case:english_lowercase",
    "quotes": "startend:quotation",
    "bullets": "detectable_format:number_bullet_lists",
    "json": "detectable_format:json_format",
    "no_commas": "punctuation:no_comma",
    "closing": "startend:end_checker",
    "language": "language:response_language",
}


def ifeval_rows(count: int) -> list[dict]:
    """Rows in the schema of Stolfo et al.'s single instructions of IFEval, so many for each of the world's."""
    rows = []
    for kind, id in INSTRUCTION_IDS.items():
        for request in requests("ifeval", count, instruction=kind):
            more = {"bullets": {"num_bullets": 3}, "closing": {"end_phrase": load_lexicon("en").closing}}
            more["language"] = {"language": request.answer_language}
            entry = {"prompt": f"{request.prompt} {request.instruction_text}", "instruction_id_list": [id]}
            entry |= {"kwargs": [more.get(kind, {})], "instruction_id_list_for_eval": [id]}
            rows.append({"key": 1000 + len(rows), **entry, "prompt_without_instruction": request.prompt})
    random.Random("ifeval").shuffle(rows)
    return rows


# ---- the sister paper's ------------------------------------------------------------------------------------------


def write_pile(folder: Path) -> None:
    """Columns `text` and `meta`, in lines of JSON that zstd compresses; a card that tells nothing of the files."""
    counts = {"train/00": 200, "train/01": 200, "val": 20, "test": 20}
    for name, count in counts.items():
        path = folder / f"{name}.jsonl.zst"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"text": text, "meta": {"pile_set_name": "Pile-CC"}} for text in web_texts(f"pile, {name}", count)]
        path.write_bytes(zstandard.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    write_card(folder, {"license": "other"})


def write_chats(folder: Path) -> None:
    """Column `conversation`, turns with `content` and `role`; every tenth ends with the user's."""
    rows = []
    for index, request in enumerate(requests("chats", 300)):
        turns = [{"content": request.prompt, "role": "user"}, {"content": request.answer, "role": "assistant"}]
        rows.append({"conversation_id": str(index), "conversation": turns + turns[: index % 10 == 7]})
    turn = [{"name": "content", "dtype": "string"}, {"name": "role", "dtype": "string"}]
    features = [{"name": "conversation_id", "dtype": "string"}, {"name": "conversation", "list": turn}]
    table = pa.Table.from_pylist(rows)
    write_parquet(folder, {"default": {"train": table}}, features={"default": features}, hashed=True)


DATASETS = {
    "monology/pile-uncopyrighted": write_pile,
    "lmsys/lmsys-chat-1m": write_chats,
    "Anthropic/model-written-evals": write_evals,
    "Skylion007/openwebtext": write_openwebtext,
    "fancyzhx/ag_news": write_ag_news,
    "canrager/amazon_reviews_mcauley_1and5": write_amazon,
    "LabHC/bias_in_bios": write_bios,
    "codeparrot/github-code": write_code,
    "Helsinki-NLP/europarl": write_europarl,
}


def write_datasets(root: Path, names: Sequence[str] = tuple(DATASETS)) -> None:
    """The data sets, each at `root/datasets/<owner>/<name>`."""
    for name in names:
        DATASETS[name](Path(root) / "datasets" / name)
