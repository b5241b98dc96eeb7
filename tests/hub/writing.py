"""The Hub's HTTP interface for writing: a repository is made, large files are sent by LFS, a commit puts all in place.

Stands in for huggingface.co without Xet, so clients must be told so (`HF_HUB_DISABLE_XET=1`). Large files are first
sent by their sha256 and then named by it in the commit; small ones are sent within it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path

from .answers import Answer, Refusal, as_json
from .repository import LARGE, Repository, front_matter

ID = r"(?P<id>[^/]+/[^/]+)"
PREUPLOAD = re.compile(rf"/api/models/{ID}/preupload/main")
BATCH = re.compile(rf"/{ID}\.git/info/lfs/objects/batch")
OBJECT = re.compile(r"/lfs/(?P<sha256>[0-9a-f]{64})")
COMMIT = re.compile(rf"/api/models/{ID}/commit/main")


class Desk:
    """Takes what clients bring: into `root/models/<owner>/<name>/`, from those whose token is among `writers`."""

    def __init__(self, root: Path, writers: Collection[str]):
        self.root, self.writers = root, set(writers)
        self.objects: dict[str, bytes] = {}
        """Large files by their sha256."""

    def answer(self, method: str, path: str, body: bytes, token: str | None, url: str) -> Answer | None:
        """None for what is no request to write. `url` is where the server can be reached."""
        if method == "PUT" and (found := OBJECT.fullmatch(path)):  # as on S3, the address is all the permission needed
            return self._receive(found["sha256"], body)
        if method != "POST":
            return None
        if path == "/api/validate-yaml":
            return _validated(json.loads(body)["content"])
        if path == "/api/repos/create":
            self._check(token)
            return self._create(json.loads(body), url)
        for pattern, act in ((PREUPLOAD, _modes), (BATCH, self._batch), (COMMIT, self._commit)):
            if found := pattern.fullmatch(path):
                self._check(token)
                if not (folder := self.root / "models" / found["id"]).is_dir():
                    raise Refusal(404, "RepoNotFound", "Repository not found")
                return act(Repository("models", found["id"], folder), body, url)
        return None

    def _check(self, token: str | None) -> None:
        if token is None:
            raise Refusal(401, None, "Invalid username or password.")
        if token not in self.writers:
            raise Refusal(403, None, "You don't have the rights to create a model under this namespace")

    def _create(self, asked: dict, url: str) -> Answer:
        id = f"{asked['organization'] or 'reader'}/{asked['name']}"
        folder, said = self.root / "models" / id, {"url": f"{url}/{id}", "name": id}
        if folder.is_dir():
            return as_json(said | {"error": "You already created this model repo"}, 409)
        folder.mkdir(parents=True)
        return as_json(said)

    def _batch(self, repository: Repository, body: bytes, url: str) -> Answer:
        objects = [{"oid": asked["oid"], "size": asked["size"]} for asked in json.loads(body)["objects"]]
        for asked in objects:
            if asked["oid"] not in self.objects:
                asked["actions"] = {"upload": {"href": f"{url}/lfs/{asked['oid']}"}}
        return as_json({"transfer": "basic", "objects": objects})

    def _receive(self, sha256: str, body: bytes) -> Answer:
        if hashlib.sha256(body).hexdigest() != sha256:
            raise Refusal(400, None, "the content is not what was announced")
        self.objects[sha256] = body
        return Answer(200, {}, b"")

    def _commit(self, repository: Repository, body: bytes, url: str) -> Answer:
        head, *operations = map(json.loads, body.splitlines())
        if head["key"] != "header" or not head["value"]["summary"]:
            raise Refusal(400, None, "a commit needs a summary")
        contents = {}
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "lfsFile":
                contents[value["path"]] = self.objects[value["oid"]]
            elif operation["key"] == "file" and Path(value["path"]).suffix not in LARGE:
                contents[value["path"]] = base64.b64decode(value["content"])
            else:
                raise Refusal(400, None, f"{operation['key']} of {value['path']} is not taken here")
        for name, content in contents.items():
            (repository.folder / name).write_bytes(content)
        commit = repository.commit()
        return as_json({"success": True, "commitOid": commit, "commitUrl": f"{url}/{repository.id}/commit/{commit}"})


def _modes(repository: Repository, body: bytes, url: str) -> Answer:
    def of(path: str) -> dict:
        mode = "lfs" if Path(path).suffix in LARGE else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False}

    return as_json({"files": [of(file["path"]) for file in json.loads(body)["files"]]})


def _validated(content: str) -> Answer:
    """As the Hub does, with errors for metadata that it cannot use."""
    errors = []
    metadata = front_matter(content)
    if not metadata:
        errors.append("there is no metadata")
    elif not isinstance(metadata.get("tags", []), list):
        errors.append('"tags" must be an array')
    elif not re.fullmatch(r"[a-z0-9.-]+", metadata.get("license", "other")):
        errors.append('"license" must be one of [apache-2.0, mit, ...]')
    said = {"errors": [{"message": error} for error in errors], "warnings": []}
    return as_json(said, 400 if errors else 200)
