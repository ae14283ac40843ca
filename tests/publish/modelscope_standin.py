"""A stand-in for ModelScope: the calls of the facts sheet. It shares no code with the product."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from loopback import Loopback, Reply, ranged

TOKEN = "ms-deadbeef-0000-4000-8000-PLANTED00000"
NAME = r"(?P<repo>[^/]+/[^/]+)"
OLD = "/api/v1/models/" + NAME
LFS = "/api/v1/repos/models/" + NAME


@dataclass
class Repository:
    visibility: int
    licence: str
    master: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, dict[str, bytes]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0

    def tree(self, revision: str) -> dict[str, bytes] | None:
        return self.master if revision == "master" else self.tags.get(revision)


def wrapped(data: Any) -> Reply:
    return Reply(200, {"Code": 200, "Success": True, "Message": "success", "RequestId": "r", "Data": data})


def missing() -> Reply:
    return Reply(404, {"Code": 10010205001, "Success": False, "Message": "not found", "RequestId": "r"})


class ModelScopeStandIn(Loopback):
    def __init__(self) -> None:
        super().__init__()
        self.repositories: dict[str, Repository] = {}
        self.routes = [
            ("POST", "/api/v1/models", self.create),
            ("GET", "/openapi/v1/models/" + NAME, self.open_info),
            ("GET", OLD, self.info),
            ("POST", LFS + "/info/lfs/objects/batch", self.batch),
            ("PUT", "/blob/" + NAME + "/(?P<oid>[0-9a-f]{64})", self.put),
            ("POST", LFS + "/commit/(?P<rev>.+)", self.commit),
            ("GET", OLD + "/repo/files", self.files_of),
            ("GET", OLD + "/repo", self.download),
            ("GET", OLD + "/revisions", self.revisions),
            ("POST", OLD + "/repo/tag", self.tag),
        ]

    def files(self, repo: str, revision: str) -> dict[str, str]:
        tree = self.repositories[repo].tree(revision)
        assert tree is not None
        return {path: hashlib.sha256(content).hexdigest() for path, content in tree.items() if path != ".gitattributes"}

    def create(self, _: Any, __: Any, body: bytes, headers: Any) -> Reply:
        if TOKEN not in headers.get("Authorization", "") + headers.get("Cookie", ""):
            return Reply(401, {"Code": 401, "Success": False, "Message": "login first", "RequestId": "r"})
        asked = json.loads(body)
        repo = f"{asked['Path']}/{asked['Name']}"
        if repo in self.repositories:
            return Reply(400, {"Code": 10010101001, "Success": False, "Message": "exists", "RequestId": "r"})
        self.repositories[repo] = Repository(asked["Visibility"], asked["License"], {".gitattributes": b"x"})
        return wrapped({"Path": asked["Path"], "Name": asked["Name"]})

    def _described(self, match: re.Match[str]) -> dict[str, Any] | None:
        held = self.repositories.get(match["repo"])
        owner, name = match["repo"].split("/")
        if held is None:
            return None
        return {"Path": owner, "Name": name, "Visibility": held.visibility, "License": held.licence}

    def open_info(self, match: re.Match[str], _: Any, __: Any, ___: Any) -> Reply:
        found = self._described(match)
        if found is None or found["Visibility"] == 1:  # this surface does not show private ones
            return Reply(404, {"success": False, "message": "not found", "request_id": "r"})
        data = {"owner": found["Path"], "name": found["Name"], "visibility": found["Visibility"]}
        return Reply(200, {"success": True, "request_id": "r", "data": data | {"license": found["License"]}})

    def info(self, match: re.Match[str], _: Any, __: Any, ___: Any) -> Reply:
        found = self._described(match)
        return missing() if found is None else wrapped(found)

    def batch(self, match: re.Match[str], _: Any, body: bytes, __: Any) -> Reply:
        held = self.repositories[match["repo"]]
        objects = []
        for item in json.loads(body)["objects"]:
            answer: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in held.blobs:
                href = f"{self.url}/blob/{match['repo']}/{item['oid']}?Signature=PLANTEDsignaturePLANTED"
                answer["actions"] = {"upload": {"href": href}}
            objects.append(answer)
        return wrapped({"objects": objects})

    def put(self, match: re.Match[str], _: Any, body: bytes, __: Any) -> Reply:
        if hashlib.sha256(body).hexdigest() != match["oid"]:
            return Reply(400, {"Code": 400, "Message": "digest", "Success": False})
        self.repositories[match["repo"]].blobs[match["oid"]] = body
        return Reply(content=b"")

    def commit(self, match: re.Match[str], _: Any, body: bytes, __: Any) -> Reply:
        assert match["rev"] == "master"
        held, actions = self.repositories[match["repo"]], json.loads(body)["actions"]
        assert len(actions) <= 256
        assert len(body) <= 9 << 20
        for action in actions:
            if action["action"] == "delete":
                del held.master[action["path"]]
            elif action["type"] == "lfs":
                if action["sha256"] not in held.blobs:
                    return Reply(400, {"Code": 400, "Message": "no such blob", "Success": False})
                held.master[action["path"]] = held.blobs[action["sha256"]]
            else:
                held.master[action["path"]] = base64.b64decode(action["content"], validate=True)
        held.commits += 1
        return wrapped({"CommitId": str(held.commits)})

    def files_of(self, match: re.Match[str], query: dict[str, list[str]], _: Any, __: Any) -> Reply:
        held = self.repositories.get(match["repo"])
        tree = held.tree(query["Revision"][0]) if held else None
        if tree is None:
            return missing()
        assert query["Recursive"] == ["True"]
        folders = sorted({path.rpartition("/")[0] for path in tree} - {""})
        entries = [{"Path": folder, "Name": folder, "Type": "tree", "Size": 0, "Sha256": ""} for folder in folders]
        entries += [
            {"Path": path, "Name": path.rpartition("/")[2], "Type": "blob", "Size": len(content),
             "Sha256": hashlib.sha256(content).hexdigest(), "IsLFS": len(content) > 65536, "Revision": "1"}
            for path, content in tree.items()
        ]  # fmt: skip
        return wrapped({"Files": entries})

    def download(self, match: re.Match[str], query: dict[str, list[str]], _: Any, headers: Any) -> Reply:
        held = self.repositories.get(match["repo"])
        tree = held.tree(query["Revision"][0]) if held else None
        content = (tree or {}).get(query["FilePath"][0])
        return missing() if content is None else ranged(content, headers)

    def revisions(self, match: re.Match[str], _: Any, __: Any, ___: Any) -> Reply:
        tags = [{"Revision": tag, "CreatedAt": 1} for tag in self.repositories[match["repo"]].tags]
        return wrapped({"RevisionMap": {"Branches": [{"Revision": "master", "CreatedAt": 1}], "Tags": tags}})

    def tag(self, match: re.Match[str], _: Any, body: bytes, __: Any) -> Reply:
        held, asked = self.repositories[match["repo"]], json.loads(body)
        if asked["TagName"] in held.tags:
            return Reply(400, {"Code": 400, "Message": "tag exists", "Success": False})
        held.tags[asked["TagName"]] = dict(held.tree(asked["Ref"]) or {})
        return wrapped({})
