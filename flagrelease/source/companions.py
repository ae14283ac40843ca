"""Which files of a checkpoint go into its releases beside the tensors, and why the others do not.

Tokenizer, licence, encoding/ and whatever else the publisher put there come along as they are. A checkpoint folder also
holds what nobody meant to publish: a download client's records, a `.env` with a token, a link to a file elsewhere. What
is left out is named, and what must not be guessed is a problem that keeps the checkpoint from being converted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from flagrelease.errors import VerificationError
from flagrelease.publish.hubs.names import CARD_NAME, is_written_by_publishing
from flagrelease.records.manifest import MANIFEST_NAME, inside_release, parse_manifest
from flagrelease.shard.files import CheckpointFiles
from flagrelease.shard.impostors import impostor
from flagrelease.shard.index import INDEX_NAME
from flagrelease.source.secrets import find_secret
from flagrelease.source.tokenizer import TOKENIZER_NAME, tokenizer_problems
from flagrelease.strict_json import parse_json

CONFIG_NAME = "config.json"
NATIVE_CONFIG_NAME = "inference/config.json"
_GENERATION_CONFIG = "generation_config.json"
_REWRITTEN = frozenset({CONFIG_NAME, NATIVE_CONFIG_NAME, INDEX_NAME})  # the release has its own
_WORK_FOLDER = ".flagrelease"
_TEXT_BYTES = 16 << 20  # larger companions are data, not text that somebody typed a token into


@dataclass(frozen=True, slots=True)
class Companions:
    """The files beside the tensors.

    Attributes:
        taken: path inside the release, which is that inside the checkpoint -> size of the file.
        left_out: path inside the checkpoint (a folder ends with a slash) -> why it stays out.
    """

    taken: dict[str, int]
    left_out: dict[str, str]


def survey_companions(files: CheckpointFiles, vocab_size: int, config: dict[str, Any]) -> tuple[Companions, list[str]]:
    """Decide on every file that holds no tensors, and list what is wrong with any file, as sentences.

    Args:
        files: the checkpoint.
        vocab_size: rows of the model's embedding.
        config: the document of its config.json.
    """
    companions = Companions({}, {})
    problems: list[str] = []
    walk = _listed(files.names()) if files.folder is None else _walk(files.folder, companions.left_out, problems)
    for relative in walk:
        name, path = relative.as_posix(), files.root / relative
        if path.suffix == ".safetensors" or name in _REWRITTEN:
            continue
        if name == MANIFEST_NAME:
            problems += _manifest_problems(files)
            companions.left_out[name] = "the source is a release, whose manifest is its own"
            continue
        if (reason := _why_not(relative)) is not None:
            companions.left_out[name] = reason
            continue
        try:
            companions.taken[inside_release(name)] = files.size(name)
        except ValueError as error:
            problems.append(f"{path}: {error}; rename it")
        problems += _content_problems(files, name)
    problems += _tokenizer_problems(files, companions, vocab_size, config)
    return companions, problems


def _listed(names: Iterable[str]) -> Iterator[PurePath]:
    """A hub's files: it has no links, and what is hidden or compiled there is told apart by its name (`_why_not`)."""
    return (PurePosixPath(name) for name in names)


def _walk(folder: Path, left_out: dict[str, str], problems: list[str]) -> Iterator[PurePath]:
    """Files in the order of their names, links among them if they lead where they may."""
    roots = _link_roots(folder)
    for parent, folders, files in os.walk(folder):
        kept = []
        for name in sorted(folders):
            path = Path(parent, name)
            relative = path.relative_to(folder)
            if name == _WORK_FOLDER:
                problems.append(f"{path}: the work folder of an unfinished conversion; this folder is not a checkpoint")
            elif name.startswith("."):
                left_out[f"{relative.as_posix()}/"] = "a hidden folder"
            elif name == "__pycache__":
                left_out[f"{relative.as_posix()}/"] = "compiled Python"
            elif path.is_symlink():
                problems.append(f"{path}: a link to the folder {path.readlink()}; put the folder itself there")
            else:
                kept.append(name)
        folders[:] = kept
        for name in sorted(files):
            path = Path(parent, name)
            if (problem := _bad_file(path, roots)) is None:
                yield path.relative_to(folder)
            elif name.startswith(".") and name != ".gitattributes":
                left_out[path.relative_to(folder).as_posix()] = "a hidden file"
            else:
                problems.append(problem)


def _link_roots(folder: Path) -> tuple[Path, ...]:
    """Where links may lead: inside the folder, and into the blobs of the hub cache that the folder is a snapshot of."""
    real = folder.resolve()
    inside_cache = real.parent.name == "snapshots"
    return (real, real.parent.parent / "blobs") if inside_cache else (real,)


def _bad_file(path: Path, roots: tuple[Path, ...]) -> str | None:
    if path.is_symlink():
        if not path.exists():
            return f"{path}: a link that leads nowhere ({path.readlink()})"
        if not any(path.resolve().is_relative_to(root) for root in roots):
            return (
                f"{path}: a link out of the checkpoint, to {path.readlink()}; only links inside the folder and into "
                "the blobs of its hub cache are followed. Copy the file if it belongs to the model"
            )
    return None if path.is_file() else f"{path}: neither a file nor a folder"


def _why_not(relative: PurePath) -> str | None:
    name = relative.as_posix()
    if any(part.startswith(".") for part in relative.parts[:-1]):
        return "in a hidden folder"
    if "__pycache__" in relative.parts:
        return "compiled Python"
    if relative.name.startswith(".") and relative.name != ".gitattributes":
        return "a hidden file"
    if name != CARD_NAME and is_written_by_publishing(name):
        return "publishing writes a file with this name"
    return None


def _manifest_problems(files: CheckpointFiles) -> Iterator[str]:
    """A release may be cut anew, if the manifest beside its files is theirs."""
    path, there = files.root / MANIFEST_NAME, set(files.names())
    try:
        manifest = parse_manifest(files.read(MANIFEST_NAME), str(path))
    except VerificationError as error:
        yield f"{error}; a checkpoint has no file of this name, so remove it if it belongs to another tool"
        return
    for file in manifest.files:
        if file.path not in there or files.size(file.path) != file.size:
            yield f"{path}: the manifest of another release: {file.path!r} is missing here or has another size"
            return


def _content_problems(files: CheckpointFiles, name: str) -> Iterator[str]:
    path = files.root / name
    if files.size(name) > _TEXT_BYTES:
        return
    content = files.read(name)
    if (instead := impostor(content, path)) is not None:
        yield f"{path}: {instead}"
    elif (secret := find_secret(content)) is not None:
        line, kind = secret
        yield f"{path}: line {line} holds {kind}, which would be published; remove it, and have it revoked"


def _tokenizer_problems(
    files: CheckpointFiles, companions: Companions, vocab_size: int, config: dict[str, Any]
) -> Iterator[str]:
    if TOKENIZER_NAME not in companions.taken:
        return
    path, content = files.root / TOKENIZER_NAME, files.read(TOKENIZER_NAME)
    if impostor(content, path) is not None:
        return  # said already
    configs = {CONFIG_NAME: config}
    if _GENERATION_CONFIG in companions.taken:
        where, generation_bytes = files.root / _GENERATION_CONFIG, files.read(_GENERATION_CONFIG)
        if impostor(generation_bytes, where) is None:
            try:
                generation = parse_json(generation_bytes)
            except ValueError as error:
                yield f"{where}: not valid JSON ({error})"
            else:
                if isinstance(generation, dict):
                    configs[_GENERATION_CONFIG] = generation
                else:
                    yield f"{where}: a JSON object is expected"
    yield from tokenizer_problems(path, content, vocab_size, configs)
