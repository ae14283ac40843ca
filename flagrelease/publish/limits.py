"""What a hub takes of a publication: sizes, numbers of files, and the commits they make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeVar

from flagrelease.publish.hubs.hub import HUB_LIMITS
from flagrelease.publish.hubs.names import CARD_NAME, CONFIGURATION_NAME
from flagrelease.publish.publication import Publication, PublishedFile
from flagrelease.records.manifest import MANIFEST_NAME

Item = TypeVar("Item")

_INLINE_BYTES = 64 << 10  # of ModelScope: a longer file is LFS, and so is a tensor file of any length
_INLINE_NAMES = frozenset({"README.md", CONFIGURATION_NAME, "config.json", ".gitattributes", ".gitignore"})
_COMMIT_BYTES = 8 << 20  # of ModelScope: the body of one commit
_ACTION_BYTES = 256  # around the content of a file in that body
_LAST = (CARD_NAME, MANIFEST_NAME)


def is_inline(file: PublishedFile) -> bool:
    """Whether ModelScope takes the file inside a commit, or as a blob of its own. Some names it reads itself."""
    name = PurePosixPath(file.path).name
    return name in _INLINE_NAMES or not (file.size > _INLINE_BYTES or name.endswith(".safetensors"))


def in_commit_order(paths: Iterable[str]) -> list[str]:
    """By name, and last what says that the publication is complete."""
    return sorted(paths, key=lambda path: (path in _LAST, path))


def commit_batches(items: Iterable[tuple[Item, int]]) -> Iterator[list[Item]]:
    """Cut (item, bytes of its path and content) into the commits that ModelScope takes."""
    batch: list[Item] = []
    size = 0
    for item, content in items:
        length = content + _ACTION_BYTES
        if batch and (len(batch) == HUB_LIMITS["modelscope"].commit_files or size + length > _COMMIT_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += length
    if batch:
        yield batch


def commits(publication: Publication) -> int:
    """Commits into an empty repository: Hugging Face one on the branch and one on main, ModelScope by its limits."""
    if publication.hub is None:
        return 0
    if publication.hub == "huggingface":
        return 2
    files = [publication.by_path[path] for path in in_commit_order(publication.by_path)]
    return len(list(commit_batches((file, len(file.path) + _encoded_bytes(file)) for file in files)))


def _encoded_bytes(file: PublishedFile) -> int:
    """Of the content in a commit, which is base64."""
    return -(-file.size // 3) * 4 if is_inline(file) else 0


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a publication beside the most that the hub takes; None: it says none."""

    what: str
    value: int
    limit: int | None


def figures(publication: Publication) -> list[Figure]:
    """What a hub looks at; empty for a folder."""
    if publication.hub is None:
        return []
    files, limits = publication.files, HUB_LIMITS[publication.hub]
    found = [
        Figure("files", len(files), limits.repo_files),
        Figure("files in one folder", max(_by_folder(publication).values()), limits.folder_entries),
        Figure("bytes of the largest file", max(file.size for file in files), limits.file_bytes),
        Figure("bytes in all", publication.bytes, None),
    ]
    if publication.hub == "huggingface":
        found.append(Figure("files in the one commit", len(files), limits.commit_files))
    if limits.inline_bytes is not None:
        found.append(Figure("bytes outside LFS", _inline(publication), limits.inline_bytes))
    return found


def _inline(publication: Publication) -> int:
    return sum(file.size for file in publication.files if is_inline(file))


def _by_folder(publication: Publication) -> Counter[str]:
    return Counter(file.path.rpartition("/")[0] for file in publication.files)


def limit_problems(publication: Publication) -> list[str]:
    """What the hub would refuse, as sentences; empty for a folder."""
    if publication.hub is None:
        return []
    hub, limits = publication.hub, HUB_LIMITS[publication.hub]
    problems = [
        f"{file.path}: {file.size:,} bytes; {hub} takes files of at most {limits.file_bytes:,} "
        "(set convert.rank_part_bytes or convert.max_file_bytes in the recipe)"
        for file in publication.files
        if file.size > limits.file_bytes
    ]
    if len(publication.files) > limits.repo_files:
        problems.append(f"{len(publication.files):,} files; {hub} takes {limits.repo_files:,} a repository")
    if hub == "huggingface" and len(publication.files) > limits.commit_files:
        problems.append(f"{len(publication.files):,} files; {hub} takes {limits.commit_files:,} in the one commit")
    inline = _inline(publication)
    if limits.inline_bytes is not None and inline > limits.inline_bytes:
        problems.append(f"{inline:,} bytes in small files; {hub} takes {limits.inline_bytes:,} outside LFS")
    problems += [
        f"{folder or 'the top folder'}: {count:,} files; {hub} takes {limits.folder_entries:,} a folder"
        for folder, count in _by_folder(publication).items()
        if count > limits.folder_entries
    ]
    return problems


def limit_advice(publication: Publication) -> list[str]:
    """What the hub advises against but takes, as sentences."""
    if publication.hub is None:
        return []
    limits = HUB_LIMITS[publication.hub]
    return [
        f"{file.path}: {file.size:,} bytes; {publication.hub} advises files below {limits.advised_file_bytes:,}"
        for file in publication.files
        if limits.advised_file_bytes < file.size <= limits.file_bytes
    ]
