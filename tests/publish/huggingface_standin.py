"""A stand-in for Hugging Face: the calls of the facts sheet, with git's ids, LFS (basic and multipart) and Xet.

It is no part of the product and shares no code with it. What it refuses matters as much as what it does: blobs whose
bytes are not their id, commits on a moved parent, LFS lines without a blob, tags that exist, README with bad YAML.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import yaml
from loopback import Loopback, Reply, ranged

TOKEN = "hf_PLANTEDsecretPLANTEDsecretPLANTED01"
PART = 1 << 20
NAME = r"(?P<repo>[^/]+/[^/]+)"
MODEL = r"/api/models/" + NAME


@dataclass
class Entry:
    size: int
    oid: str
    sha256: str | None = None  # of LFS files
    content: bytes | None = None  # of the others


@dataclass
class Repository:
    private: bool
    commits: dict[str, dict[str, Entry]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    history: list[tuple[str, str]] = field(default_factory=list)  # (branch, commit)

    def commit(self, branch: str, tree: dict[str, Entry]) -> str:
        text = json.dumps([len(self.history), branch, sorted((path, entry.oid) for path, entry in tree.items())])
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha], self.branches[branch] = dict(tree), sha
        self.history.append((branch, sha))
        return sha

    def tree(self, revision: str) -> dict[str, Entry] | None:
        return self.commits.get(self.branches.get(revision) or self.tags.get(revision) or revision)


def regular(content: bytes) -> Entry:
    return Entry(len(content), hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), None, content)


def lfs(size: int, sha256: str) -> Entry:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    return Entry(size, hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest(), sha256)


def front_matter(text: str) -> dict[str, Any]:
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    return yaml.safe_load(match[1]) if match else {}


class HuggingFaceStandIn(Loopback):
    def __init__(self, cas: Path, multipart: bool = False) -> None:
        super().__init__()
        self.cas, self.multipart = cas, multipart
        self.repositories: dict[str, Repository] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.xet = False
        self.other_region = False
        self.routes = [
            ("POST", "/api/repos/create", self.create),
            ("POST", "/api/validate-yaml", self.validate_yaml),
            ("GET", MODEL, self.info),
            ("GET", MODEL + "/revision/(?P<rev>.+)", self.info),
            ("POST", MODEL + "/preupload/(?P<rev>.+)", self.preupload),
            ("GET", MODEL + "/xet-write-token/(?P<rev>.+)", self.xet_token),
            ("POST", "/" + NAME + r"\.git/info/lfs/objects/batch", self.batch),
            ("PUT", r"/blob/" + NAME + r"/(?P<oid>[0-9a-f]{64})", self.put),
            ("PUT", r"/blob/" + NAME + r"/(?P<oid>[0-9a-f]{64})/(?P<part>\d+)", self.put_part),
            ("POST", r"/blob/" + NAME + r"/(?P<oid>[0-9a-f]{64})/complete", self.complete),
            ("POST", r"/blob/" + NAME + r"/(?P<oid>[0-9a-f]{64})/verify", self.verify),
            ("POST", MODEL + "/commit/(?P<rev>.+)", self.commit),
            ("GET", MODEL + "/tree/(?P<rev>.+)", self.tree),
            ("POST", MODEL + "/paths-info/(?P<rev>.+)", self.paths_info),
            ("GET", MODEL + "/refs", self.refs),
            ("POST", MODEL + "/branch/(?P<rev>.+)", self.branch),
            ("DELETE", MODEL + "/branch/(?P<rev>.+)", self.drop_branch),
            ("POST", MODEL + "/tag/(?P<rev>.+)", self.tag),
            ("POST", MODEL + "/lfs-files/duplicate", self.duplicate),
            ("GET", "/" + NAME + "/resolve/(?P<rev>[^/]+)/(?P<path>.+)", self.resolve),
            ("HEAD", "/" + NAME + "/resolve/(?P<rev>[^/]+)/(?P<path>.+)", self.head),
        ]

    # what a test looks at

    def files(self, repo: str, revision: str) -> dict[str, str]:
        """Path -> SHA-256, computed from the bytes held where there are any."""
        held = self.repositories[repo]
        tree = held.tree(revision)
        assert tree is not None, f"no revision {revision}"
        return {
            path: entry.sha256 or hashlib.sha256(entry.content or b"").hexdigest()
            for path, entry in tree.items()
            if path != ".gitattributes"
        }

    # the calls

    def _repository(self, match: re.Match[str], headers: Any) -> Repository | Reply:
        held = self.repositories.get(match["repo"])
        if held is None or (held.private and headers.get("Authorization") != f"Bearer {TOKEN}"):
            return Reply(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        return held

    def create(self, _: Any, __: Any, body: bytes, headers: Any) -> Reply:
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            return Reply(401, {"error": "Invalid username or password."})
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        url = f"{self.url}/{repo}"
        if repo in self.repositories:
            return Reply(409, {"error": "You already created this model repo", "url": url})
        self.repositories[repo] = Repository(private=asked.get("visibility") == "private")
        self.repositories[repo].commit("main", {".gitattributes": regular(b"*.safetensors filter=lfs\n")})
        return Reply(200, {"url": url})

    def validate_yaml(self, _: Any, __: Any, body: bytes, ___: Any) -> Reply:
        asked = json.loads(body)
        data = front_matter(asked["content"])
        errors = [] if isinstance(data.get("license"), str) else [{"message": '"license" is required'}]
        return Reply(400 if errors else 200, {"errors": errors, "warnings": []})

    def info(self, match: re.Match[str], query: dict[str, list[str]], __: Any, headers: Any) -> Reply:
        held = self._repository(match, headers)
        if isinstance(held, Reply):
            return held
        revision = match.groupdict().get("rev", "main")
        tree = held.tree(revision)
        if tree is None:
            return Reply(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        card = tree.get("README.md")
        data = front_matter((card.content or b"").decode()) if card else None
        document = {
            "id": match["repo"], "sha": held.branches.get(revision, revision), "private": held.private, "tags": [],
            "siblings": [{"rfilename": path} for path in tree], "downloads": 0, "likes": 0,
        }  # fmt: skip
        if query.get("blobs"):
            document["siblings"] = [
                {"rfilename": path, "size": entry.size, "blobId": entry.oid}
                | ({"lfs": {"sha256": entry.sha256, "size": entry.size, "pointerSize": 134}} if entry.sha256 else {})
                for path, entry in tree.items()
            ]
        return Reply(200, document | ({"cardData": data} if data else {}))

    def preupload(self, match: re.Match[str], _: Any, body: bytes, headers: Any) -> Reply:
        held = self._repository(match, headers)
        if isinstance(held, Reply):
            return held
        tree = held.tree(match["rev"])
        if tree is None:
            return Reply(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        files, document = [], json.loads(body)
        hosted = tree[".gitignore"].content if ".gitignore" in tree else b""
        ignored = document.get("gitIgnore", (hosted or b"").decode()).splitlines()
        for asked in document["files"]:
            base64.b64decode(asked["sample"], validate=True)
            mode = "lfs" if asked["path"].endswith(".safetensors") or asked["size"] > 10**6 else "regular"
            there = tree.get(asked["path"])
            ignore = any(fnmatch(asked["path"], pattern) for pattern in ignored)
            oid = {"oid": there.sha256 or there.oid} if there else {}
            files.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": ignore, **oid})
        return Reply(200, {"files": files})

    def xet_token(self, match: re.Match[str], _: Any, __: Any, headers: Any) -> Reply:
        held = self._repository(match, headers)
        if isinstance(held, Reply):
            return held
        self.xet = True
        token = {"accessToken": "xet", "exp": 4102444800, "casUrl": f"local://{self.cas}"}
        names = {"X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": "4102444800", "X-Xet-Cas-Url": token["casUrl"]}
        return Reply(200, token, names)

    def batch(self, match: re.Match[str], _: Any, body: bytes, headers: Any) -> Reply:
        held = self._repository(match, headers)
        if isinstance(held, Reply):
            return held
        asked = json.loads(body)
        assert asked["operation"] == "upload"
        assert asked["hash_algo"] == "sha256"
        objects = []
        for item in asked["objects"]:
            answer: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in held.blobs:
                base = f"{self.url}/blob/{match['repo']}/{item['oid']}"
                secret = "X-Amz-Signature=PLANTEDsignaturePLANTED"
                upload: dict[str, Any] = {"href": f"{base}?{secret}"}
                if self.multipart:
                    count = -(-item["size"] // PART)
                    parts = {f"{n:05d}": f"{base}/{n}?{secret}" for n in range(1, count + 1)}
                    upload = {"href": f"{base}/complete?{secret}", "header": {"chunk_size": str(PART), **parts}}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{base}/verify"}}
            objects.append(answer)
        transfer = "multipart" if self.multipart else "basic"
        return Reply(200, {"transfer": transfer, "objects": objects})

    def put(self, match: re.Match[str], _: Any, body: bytes, __: Any) -> Reply:
        if hashlib.sha256(body).hexdigest() != match["oid"]:
            return Reply(400, {"error": "digest"})
        self.repositories[match["repo"]].blobs[match["oid"]] = body
        return Reply()

    def put_part(self, match: re.Match[str], _: Any, body: bytes, __: Any) -> Reply:
        self.parts.setdefault(match["oid"], {})[int(match["part"])] = body
        return Reply(headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    def complete(self, match: re.Match[str], _: Any, body: bytes, headers: Any) -> Reply:
        assert "Authorization" not in headers
        asked = json.loads(body)
        held = self.parts.get(match["oid"], {})
        whole = b""
        for part in asked["parts"]:
            content = held.get(part["partNumber"], b"")
            if part["etag"] != f'"{hashlib.md5(content).hexdigest()}"':
                return Reply(400, {"error": "etag"})
            whole += content
        return self.put(match, None, whole, headers)

    def verify(self, match: re.Match[str], _: Any, body: bytes, __: Any) -> Reply:
        asked = json.loads(body)
        blob = self.repositories[match["repo"]].blobs.get(asked["oid"])
        return Reply() if blob is not None and len(blob) == asked["size"] else Reply(404, {"error": "no blob"})

    def commit(self, match: re.Match[str], _: Any, body: bytes, headers: Any) -> Reply:
        held = self._repository(match, headers)
        if isinstance(held, Reply):
            return held
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            return Reply(403, {"error": "no write permission"})
        assert headers["Content-Type"] == "application/x-ndjson"
        header, *lines = [json.loads(line) for line in body.splitlines()]
        assert header["key"] == "header"
        parent = header["value"].get("parentCommit")
        if parent is not None and parent != held.branches[match["rev"]]:
            return Reply(412, {"error": "A commit has happened since. Please refresh and try again."})
        tree = dict(held.tree(match["rev"]) or {})
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = regular(base64.b64decode(value["content"], validate=True))
            elif line["key"] == "lfsFile":
                if value["oid"] not in held.blobs and not self.xet:
                    return Reply(400, {"error": f"LFS object {value['oid']} does not exist"})
                # The client's copies name no size; the hub knows it.
                known = [
                    e.size
                    for held_tree in held.commits.values()
                    for e in held_tree.values()
                    if e.sha256 == value["oid"]
                ]
                size = len(held.blobs[value["oid"]]) if value["oid"] in held.blobs else known[0] if known else None
                tree[value["path"]] = lfs(value["size"] if size is None else size, value["oid"])
            elif line["key"] == "deletedFile":
                del tree[value["path"]]
            else:
                raise AssertionError(line)
        sha = held.commit(match["rev"], tree)
        return Reply(200, {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{match['repo']}/commit/{sha}"})

    def _described(self, path: str, entry: Entry) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "file", "path": path, "size": entry.size, "oid": entry.oid}
        if entry.sha256:
            found["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": 134}
            found["xetHash"] = entry.sha256
        return found

    def tree(self, match: re.Match[str], _: Any, __: Any, headers: Any) -> Reply:
        held = self._repository(match, headers)
        if isinstance(held, Reply):
            return held
        tree = held.tree(match["rev"])
        if tree is None:
            return Reply(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        folders = sorted({path.rpartition("/")[0] for path in tree} - {""})
        entries = [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in folders]
        return Reply(200, entries + [self._described(path, entry) for path, entry in sorted(tree.items())])

    def paths_info(self, match: re.Match[str], _: Any, body: bytes, headers: Any) -> Reply:
        held = self._repository(match, headers)
        if isinstance(held, Reply):
            return held
        tree = held.tree(match["rev"]) or {}
        paths = parse_qs(body.decode()).get("paths", [])
        return Reply(200, [self._described(path, tree[path]) for path in paths if path in tree])

    def refs(self, match: re.Match[str], _: Any, __: Any, headers: Any) -> Reply:
        held = self._repository(match, headers)
        if isinstance(held, Reply):
            return held

        def described(kind: str, refs: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": sha} for n, sha in refs.items()]

        branches, tags = described("heads", held.branches), described("tags", held.tags)
        return Reply(200, {"branches": branches, "converts": [], "tags": tags})

    def branch(self, match: re.Match[str], _: Any, body: bytes, headers: Any) -> Reply:
        held = self._repository(match, headers)
        if isinstance(held, Reply):
            return held
        if match["rev"] in held.branches:
            return Reply(409, {"error": "Reference already exists"})
        start = json.loads(body).get("startingPoint", "main")
        held.branches[match["rev"]] = held.branches.get(start, start)
        return Reply(200, {})

    def drop_branch(self, match: re.Match[str], _: Any, __: Any, headers: Any) -> Reply:
        held = self._repository(match, headers)
        if isinstance(held, Reply):
            return held
        del held.branches[match["rev"]]
        return Reply(200, {})

    def tag(self, match: re.Match[str], _: Any, body: bytes, headers: Any) -> Reply:
        held = self._repository(match, headers)
        if isinstance(held, Reply):
            return held
        name = json.loads(body)["tag"]
        if name in held.tags:
            return Reply(409, {"error": "Tag reference exists already"})
        held.tags[name] = held.branches.get(match["rev"], match["rev"])
        return Reply(200, {})

    def duplicate(self, match: re.Match[str], _: Any, body: bytes, headers: Any) -> Reply:
        held = self._repository(match, headers)
        if isinstance(held, Reply):
            return held
        asked = json.loads(body)
        target = self.repositories[asked["target"]["name"]]
        known = [item for item in asked["files"] if item["sha256"] in held.blobs and not self.other_region]
        target.blobs |= {item["sha256"]: held.blobs[item["sha256"]] for item in known}
        failed = [item | {"error": "not in this region"} for item in asked["files"] if item not in known]
        return Reply(200, {"failed": failed})

    def resolve(self, match: re.Match[str], _: Any, __: Any, headers: Any) -> Reply:
        held = self._repository(match, headers)
        if isinstance(held, Reply):
            return held
        entry = (held.tree(match["rev"]) or {}).get(match["path"])
        if entry is None:
            return Reply(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        return ranged(entry.content if entry.content is not None else held.blobs[entry.sha256 or ""], headers)

    def head(self, match: re.Match[str], _: Any, __: Any, headers: Any) -> Reply:
        """What a download asks first."""
        reply = self.resolve(match, _, __, headers)
        held = self.repositories[match["repo"]]
        entry = (held.tree(match["rev"]) or {}).get(match["path"])
        if entry is not None:
            commit = held.branches.get(match["rev"]) or held.tags.get(match["rev"]) or match["rev"]
            etag = f'"{entry.sha256 or entry.oid}"'
            reply.headers |= {"X-Repo-Commit": commit, "ETag": etag, "X-Linked-Size": str(entry.size)}
        return reply
