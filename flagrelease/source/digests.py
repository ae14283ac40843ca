"""Who states a digest for which file of a checkpoint, without the network: a claim for each file, to be compared.

- A hub cache names each blob by the digest that the hub gave: SHA-256 for LFS files, git's SHA-1 for small ones.
- `hf download --local-dir` leaves it in `.cache/huggingface/download/FILE.metadata`: commit, digest, time.
- `--source-digests FILE` names files in the format of sha256sum.

ModelScope's clients leave no digest: modelscope_hub 0.5 records only downloads that failed, and the older `.msc` is a
pickle with a commit for each file. For a ModelScope download the hub's listing has them (`hub_listing.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flagrelease.errors import CheckpointError, UsageError
from flagrelease.records.manifest import DigestAlgorithm, DigestAuthority
from flagrelease.shard.files import CheckpointFiles

_HUBS: dict[str, DigestAuthority] = {"huggingface": "huggingface", "modelscope": "modelscope"}
_HEX = {40: "git-sha1", 64: "sha256"}
_LINE = re.compile(r"([0-9a-fA-F]{64})[ \t]+\*?(?:\./)?(\S.*)")
_METADATA = Path(".cache", "huggingface", "download")


@dataclass(frozen=True, slots=True)
class Claim:
    """A digest that somebody states for a file; `algorithm` git-sha1 is of git's blob, which begins with its size."""

    algorithm: DigestAlgorithm
    digest: str
    by: DigestAuthority


Claims = dict[str, tuple[Claim, ...]]  # path relative to the checkpoint -> what is stated for it


def claim(text: str, by: DigestAuthority) -> Claim | None:
    """A digest as hubs write it: 64 or 40 hexadecimal digits; None for anything else (an ETag of another kind)."""
    digest = text.strip().strip('"').lower()
    if not re.fullmatch("[0-9a-f]+", digest) or len(digest) not in _HEX:
        return None
    return Claim("sha256" if len(digest) == 64 else "git-sha1", digest, by)


def local_claims(folder: Path) -> Claims:
    """What a hub cache and the bookkeeping of `hf download` state for the files in `folder`."""
    found: Claims = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts) or not path.is_file():
            continue
        claims = []
        blob = path.resolve()
        if path.is_symlink() and blob.parent.name == "blobs":
            claims.append(claim(blob.name, "hub-cache"))
        metadata = folder / _METADATA / f"{relative.as_posix()}.metadata"
        if metadata.is_file():
            lines = metadata.read_text(encoding="utf-8", errors="replace").split("\n")
            claims.append(claim(lines[1], "download-metadata") if len(lines) > 1 else None)
        if kept := tuple(one for one in claims if one is not None):
            found[relative.as_posix()] = kept
    return found


def stated_claims(files: CheckpointFiles) -> Claims:
    """What the place itself states for its files: a hub its listing, a folder what lies beside them."""
    if files.folder is not None:
        return local_claims(files.folder)
    by = _HUBS[files.hub or ""]
    found = {name: claim(text, by) for name, text in files.stated.items()}
    return {name: (one,) for name, one in found.items() if one is not None}


def read_digest_file(path: Path, files: CheckpointFiles) -> Claims:
    """The claims of a file as sha256sum writes it, about `files`.

    Raises:
        UsageError: it cannot be read, a line is not of that form, a file is named twice or is none of `files`.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # U+2028 may stand in a name
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--source-digests {path}: cannot be read ({error})") from error
    found: Claims = {}
    there = set(files.names())
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise UsageError(f"--source-digests {path}, line {number}: not a line of sha256sum")
        name = match[2].strip()
        if name in found:
            raise UsageError(f"--source-digests {path}, line {number}: {name} is named twice")
        if name not in there:
            raise UsageError(f"--source-digests {path}, line {number}: {name} is not in {files.root}")
        found[name] = (Claim("sha256", match[1].lower(), "digest-file"),)
    if not found:
        raise UsageError(f"--source-digests {path}: names no file")
    return found


def join_claims(files: CheckpointFiles, several: Iterable[Mapping[str, tuple[Claim, ...]]]) -> Claims:
    """All claims about files that are there.

    Raises:
        CheckpointError: two of them contradict each other: seen without reading the file.
    """
    joined: Claims = {}
    there = set(files.names())
    for claims in several:
        for name, more in claims.items():
            if name not in there:
                continue
            for one in more:
                for earlier in joined.get(name, ()):
                    if earlier.algorithm == one.algorithm and earlier.digest != one.digest:
                        raise CheckpointError(
                            f"{files.root / name}: {earlier.by} says its {one.algorithm} is {earlier.digest}, {one.by} "
                            f"says {one.digest}: this file is not of the revision that is asked for"
                        )
                joined[name] = (*joined.get(name, ()), one)
    return joined
