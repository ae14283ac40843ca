"""What a hub takes of a publication: sizes, numbers of files, and the commits they make."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from flagrelease.publish.hubs.hub import Hub
from flagrelease.publish.publication import Publication


def commits(publication: Publication) -> int:
    """Commits into an empty repository; 0 for a folder."""
    return 0 if publication.hub is None else publication.hub.commits([(f.path, f.size) for f in publication.files])


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
    files, limits = publication.files, publication.hub.limits
    found = [
        Figure("files", len(files), limits.repo_files),
        Figure("files in one folder", max(_by_folder(publication).values()), limits.folder_entries),
        Figure("bytes of the largest file", max(file.size for file in files), limits.file_bytes),
        Figure("bytes in all", publication.bytes, None),
    ]
    if limits.commit_files is not None:
        found.append(Figure("files in the one commit", len(files), limits.commit_files))
    if limits.inline_bytes is not None:
        found.append(Figure("bytes outside LFS", _inline(publication, publication.hub), limits.inline_bytes))
    return found


def _inline(publication: Publication, hub: Hub) -> int:
    """Bytes in files that are not LFS, as far as the hub says which those are."""
    return sum(file.size for file in publication.files if hub.is_inline and hub.is_inline(file.path, file.size))


def _by_folder(publication: Publication) -> Counter[str]:
    return Counter(file.path.rpartition("/")[0] for file in publication.files)


def limit_problems(publication: Publication) -> list[str]:
    """What the hub would refuse, as sentences; empty for a folder."""
    if publication.hub is None:
        return []
    hub, limits = publication.hub.name, publication.hub.limits
    problems = [
        f"{file.path}: {file.size:,} bytes; {hub} takes files of at most {limits.file_bytes:,} "
        "(set convert.rank_part_bytes or convert.max_file_bytes in the recipe)"
        for file in publication.files
        if file.size > limits.file_bytes
    ]
    if len(publication.files) > limits.repo_files:
        problems.append(f"{len(publication.files):,} files; {hub} takes {limits.repo_files:,} a repository")
    if limits.commit_files is not None and len(publication.files) > limits.commit_files:
        problems.append(f"{len(publication.files):,} files; {hub} takes {limits.commit_files:,} in the one commit")
    inline = _inline(publication, publication.hub)
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
    limits = publication.hub.limits
    return [
        f"{file.path}: {file.size:,} bytes; {publication.hub.name} advises files below {limits.advised_file_bytes:,}"
        for file in publication.files
        if limits.advised_file_bytes < file.size <= limits.file_bytes
    ]
