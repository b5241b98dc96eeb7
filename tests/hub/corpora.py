"""Data sets under the names and in the schemas that the chapters ask the Hub for, with texts of the embedded world.

Stands in for OpenWebText. Another data set is one more entry of `DATASETS`: a function that writes one repository,
most simply through `write_parquet`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from stitch_utils.embedded.world import documents

FORMATS = ("story", "story", "facts", "questions", "review", "quotes")


def write_parquet(
    folder: Path,
    tables: Mapping[str, Mapping[str, pa.Table]],
    *,
    features: Mapping[str, Sequence[dict]] | None = None,
    shards: int = 2,
    row_group_size: int = 500,
) -> None:
    """A repository of parquet files, `<config>/<split>-0000N-of-0000M.parquet`, with the card that describes them.

    `tables` by configuration and split. `features` by configuration are the card's, where the columns are not of plain
    types.
    """
    infos, configs = [], []
    for config, splits in tables.items():
        sizes, downloaded = [], 0
        for split, table in splits.items():
            step = -(-table.num_rows // shards)
            for shard in range(shards):
                path = folder / config / f"{split}-{shard:05d}-of-{shards:05d}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(table.slice(shard * step, step), path, row_group_size=row_group_size)
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
        files = [{"split": split, "path": f"{config}/{split}-*"} for split in splits]
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


DATASETS = {"Skylion007/openwebtext": write_openwebtext}


def write_datasets(root: Path, names: Sequence[str] = tuple(DATASETS)) -> None:
    """The data sets, each at `root/datasets/<owner>/<name>`."""
    for name in names:
        DATASETS[name](Path(root) / "datasets" / name)
