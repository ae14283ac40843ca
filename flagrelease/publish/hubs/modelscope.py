"""ModelScope: limits of its documentation and of what its client puts into one request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import TypeVar

from flagrelease.publish.hubs.hub import CardRules, Hub, HubLimits
from flagrelease.publish.hubs.names import CARD_NAME, CONFIGURATION_NAME

Item = TypeVar("Item")

_INLINE_BYTES = 64 << 10  # a longer file is LFS, and so is a tensor file of any length
_INLINE_NAMES = frozenset({CARD_NAME, CONFIGURATION_NAME, "config.json", ".gitattributes", ".gitignore"})
_COMMIT_FILES = 256
_COMMIT_BYTES = 8 << 20  # the body of one commit
_ACTION_BYTES = 256  # around the content of a file in that body
_LAST = (CARD_NAME, "manifest.json")


def is_inline(path: str, size: int) -> bool:
    """Whether the hub takes a file inside a commit, or as a blob of its own. Some names it reads itself."""
    name = PurePosixPath(path).name
    return name in _INLINE_NAMES or not (size > _INLINE_BYTES or name.endswith(".safetensors"))


def in_commit_order(paths: Iterable[str]) -> list[str]:
    """By name, but last the files that say that the publication is complete."""
    return sorted(paths, key=lambda path: (path in _LAST, path))


def commit_batches(items: Iterable[tuple[Item, int]]) -> Iterator[list[Item]]:
    """Cut (item, bytes of its path and content) into the commits that the hub takes."""
    batch: list[Item] = []
    size = 0
    for item, content in items:
        length = content + _ACTION_BYTES
        if batch and (len(batch) == _COMMIT_FILES or size + length > _COMMIT_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += length
    if batch:
        yield batch


def _commits(files: Sequence[tuple[str, int]]) -> int:
    sizes = dict(files)
    return len(list(commit_batches((path, _length(path, sizes[path])) for path in in_commit_order(sizes))))


def _length(path: str, size: int) -> int:
    """Of the path and the content in a commit, which is base64."""
    return len(path) + (-(-size // 3) * 4 if is_inline(path, size) else 0)


MODELSCOPE = Hub(
    name="modelscope",
    scheme="modelscope",
    limits=HubLimits(
        file_bytes=100 * 10**9,
        advised_file_bytes=100 * 10**9,
        repo_files=100_000,
        folder_entries=50_000,
        inline_bytes=500 * 10**6,
    ),
    licences={"MIT": "MIT License", "Apache-2.0": "Apache License 2.0"},
    card=CardRules(
        fields=(
            "license",
            "language",
            "base_model",
            "base_model_relation",
            "tasks",
            "frameworks",
            "domain",
            "tags",
        ),
        optional=frozenset({"language"}),
        fixed={"tasks": ["text-generation"], "frameworks": ["pytorch"], "domain": ["nlp"]},
    ),
    documents={CONFIGURATION_NAME: b'{"framework": "pytorch", "task": "text-generation"}\n'},
    download="modelscope download --model {repo} --local_dir {folder}",
    reader="flagrelease.publish.reading.modelscope:ModelScopeClient",
    client="flagrelease.publish.upload.modelscope:ModelScope",
    package="modelscope-hub",
    token=r"ms-[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    login="set MODELSCOPE_API_TOKEN or run `modelscope login`",
    commits=_commits,
    is_inline=is_inline,
)
