"""A checkpoint's folder put into a stand-in hub, and what tests of hub sources ask of one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from huggingface_standin import HuggingFaceStandIn, Repository, lfs, regular
from loopback import Loopback, Reply, ranged
from modelscope_standin import ModelScopeStandIn
from modelscope_standin import Repository as ModelScopeRepository

REPO = "deepseek-ai/Small"


def contents_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def commit(hub: HuggingFaceStandIn, folder: Path, branch: str = "main") -> str:
    """Commit the folder; returns the commit."""
    held, tree = hub.repositories[REPO], {}
    for name, content in contents_of(folder).items():
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(content).hexdigest()
            held.blobs[digest] = content
            tree[name] = lfs(len(content), digest)
        else:
            tree[name] = regular(content)
    return held.commit(branch, tree)


class StoredElsewhere(HuggingFaceStandIn):
    """Hugging Face as it answers for LFS and for Xet: a redirect to a store on another host, which takes ranges and no
    token. A presigned address is good for `good_for` requests."""

    def __init__(self, cas: Path) -> None:
        super().__init__(cas)
        self.store = Loopback()
        self.store.routes = [("GET", r"/store/(?P<oid>[0-9a-f]+)/(?P<number>\d+)", self.serve)]
        self.good_for, self.resolved = 10**9, 0
        self.gated: tuple[int, str] | None = None  # what a gated repository answers whoever asks for a file of it
        self.served: dict[str, int] = {}

    def resolve(self, match: Any, query: Any, body: bytes, headers: Any) -> Reply:
        held = self._repository(match, headers)
        if isinstance(held, Reply):
            return held
        if self.gated is not None:  # its listing is shown to all
            return Reply(self.gated[0], {"error": self.gated[1]}, {"X-Error-Code": "GatedRepo"})
        entry = (held.tree(match["rev"]) or {}).get(match["path"])
        if entry is None or entry.sha256 is None:
            return super().resolve(match, query, body, headers)
        self.resolved += 1
        address = f"{self.store.url}/store/{entry.sha256}/{self.resolved}?X-Amz-Signature=PLANTEDsignaturePLANTED"
        return Reply(302, {}, {"Location": address})

    def serve(self, match: Any, _: Any, __: Any, headers: Any) -> Reply:
        self.served[match["number"]] = self.served.get(match["number"], 0) + 1
        if self.served[match["number"]] > self.good_for:
            return Reply(403, {"error": "Request has expired"})
        return ranged(
            next(r.blobs[match["oid"]] for r in self.repositories.values() if match["oid"] in r.blobs), headers
        )

    def close(self) -> None:
        super().close()
        self.store.close()


@contextmanager
def huggingface(folder: Path, cas: Path, patch: pytest.MonkeyPatch, private: bool = False) -> Iterator[StoredElsewhere]:
    hub = StoredElsewhere(cas)
    hub.repositories[REPO] = Repository(private=private)
    commit(hub, folder)
    patch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    resolve = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", resolve)
    try:
        yield hub
    finally:
        hub.close()


@contextmanager
def modelscope(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[ModelScopeStandIn]:
    hub = ModelScopeStandIn()
    held = ModelScopeRepository(5, "mit", contents_of(folder))
    held.tags["v1"] = dict(held.master)
    hub.repositories[REPO] = held
    patch.setattr("modelscope_hub.config._default_config", None)  # it reads its endpoint once a process
    patch.setenv("MODELSCOPE_ENDPOINT", hub.url)
    try:
        yield hub
    finally:
        hub.close()
