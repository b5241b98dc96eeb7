"""What the Hub knows of one repository: its files with their hashes, its commit, its branches.

Stands in for the git repositories behind the Hub. The folder is read at each question, so that a test may add a file;
the commit is a hash of all names and contents and changes with them.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

LARGE = {".safetensors", ".parquet", ".bin", ".npz", ".pt", ".arrow", ".gz", ".zst"}
# Commits of the real repositories that pairs name; here they hold what `main` holds.
COMMITS = {"datasets/Skylion007/openwebtext": "79d93d786212f7344586290adb811d4ae6a1762c"}
DATE = "2024-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class StoredFile:
    """A file's hashes, as git and git-lfs compute them."""

    path: str
    size: int
    blob: str
    """Git's name for it; of its pointer, where the file is a large one."""
    sha256: str | None
    """Only of large files (git-lfs)."""
    pointer_size: int

    @property
    def etag(self) -> str:
        return self.sha256 or self.blob


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def front_matter(content: str) -> dict | None:
    """The metadata at the head of a card."""
    found = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    return yaml.safe_load(found[1]) if found else None


@functools.lru_cache(maxsize=4096)
def _hashes(path: Path, size: int, modified: int) -> tuple[str, str | None, int]:
    content = path.read_bytes()
    if path.suffix not in LARGE:
        return git_blob(content), None, 0
    sha256 = hashlib.sha256(content).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    return git_blob(pointer), sha256, len(pointer)


@dataclass(frozen=True)
class Repository:
    """A folder of files under one id."""

    kind: str
    """`models` or `datasets`."""
    id: str
    folder: Path
    friends: Collection[str] | None = None
    """Tokens that have access, if it is gated."""
    revisions: Collection[str] = ()
    """Branches and tags beside `main`; they hold the same files."""

    @property
    def key(self) -> str:
        """Its id as in the Hub's addresses, where a data set's begins with `datasets/`."""
        return self.id if self.kind == "models" else f"{self.kind}/{self.id}"

    def files(self) -> dict[str, StoredFile]:
        """All files by their path in the repository, in order."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                name, status = path.relative_to(self.folder).as_posix(), path.stat()
                found[name] = StoredFile(name, status.st_size, *_hashes(path, status.st_size, status.st_mtime_ns))
        return found

    def commit(self) -> str:
        listing = "\n".join(f"{file.path} {file.etag}" for file in self.files().values())
        return hashlib.sha1(f"{self.kind}/{self.id}\n{listing}".encode()).hexdigest()

    def has_revision(self, revision: str) -> bool:
        return revision in ("main", self.commit(), COMMITS.get(self.key), *self.revisions)

    def info(self, blobs: bool) -> dict:
        """What `/api/{kind}/{id}` answers; `blobs` adds sizes and hashes to the names of the files."""
        siblings = []
        for file in self.files().values():
            entry: dict = {"rfilename": file.path}
            if blobs:
                entry |= {"size": file.size, "blobId": file.blob}
                if file.sha256:
                    entry["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
            siblings.append(entry)
        gated = False if self.friends is None else "manual"
        card = self.folder / "README.md"
        metadata = front_matter(card.read_text(encoding="utf-8")) if card.is_file() else None
        return {
            "_id": git_blob(self.id.encode())[:24],
            "id": self.id,
            "author": self.id.split("/")[0],
            "sha": self.commit(),
            "createdAt": DATE,
            "lastModified": DATE,
            "private": False,
            "disabled": False,
            "gated": gated,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
            **({"cardData": metadata} if metadata else {}),
        } | ({"modelId": self.id} if self.kind == "models" else {})

    def tree(self, path: str, *, recursive: bool, expand: bool) -> list[dict] | None:
        """The entries of a folder, those of its folders too if `recursive`; None if there is no such folder."""
        inside = f"{path}/" if path else ""
        entries = [
            entry
            for entry in self._entries(expand)
            if entry["path"].startswith(inside) and (recursive or "/" not in entry["path"][len(inside) :])
        ]
        return entries if entries or not path else None

    def paths_info(self, paths: list[str], *, expand: bool) -> list[dict]:
        """The entries of those of the paths that exist."""
        return [entry for entry in self._entries(expand) if entry["path"] in paths]

    def _entries(self, expand: bool) -> Iterator[dict]:
        """Every file, and every folder before what is in it."""
        more: dict = {"lastCommit": {"id": self.commit(), "title": "Add files", "date": DATE}} if expand else {}
        safe = {"securityFileStatus": {"status": "safe", "avScan": None, "pickleImportScan": None}} if expand else {}
        seen = set()
        for file in self.files().values():
            parents = [parent.as_posix() for parent in reversed(Path(file.path).parents[:-1])]
            for folder in parents:
                if folder not in seen:
                    seen.add(folder)
                    yield {"type": "directory", "oid": git_blob(folder.encode()), "size": 0, "path": folder} | more
            entry = {"type": "file", "oid": file.blob, "size": file.size, "path": file.path} | more | safe
            if file.sha256:
                entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
            yield entry
