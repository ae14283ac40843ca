"""`compare`: what two manifests say differently. No weights are read: tensors are compared by their digests.

A digest in a manifest is BLAKE3 over a tensor's whole row-major bytes, however it is cut into files and ranks, so an hf
release and one for eight ranks are compared tensor by tensor.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from pydantic import JsonValue

from flagrelease.diff.difference import (
    ComparedRelease,
    DocumentDifference,
    FileDifference,
    LossDifference,
    ReleaseDifference,
    RenamedTensor,
    Role,
    SourceTensors,
    TensorDifference,
    What,
)
from flagrelease.diff.operand import Operand
from flagrelease.diff.unsaid import unsaid
from flagrelease.diff.values import entry_differences, value_differences
from flagrelease.records.manifest import FileRecord, Manifest, TensorRecord

_STAGE = re.compile(r"mtp\.(\d+)\.")
_TOKENIZER = re.compile(
    r"(?i)(.*token.*|vocab.*|merges\.txt|special_tokens_map\.json|chat_template.*|.*\.(tiktoken|spm|model))"
)


def compare(before: Operand, after: Operand) -> ReleaseDifference:
    """Compare two releases, whatever they are of: nothing is refused, and what differs by design is listed too."""
    old, new = before.manifest, after.manifest
    tensors, renamed = _tensors(old.tensors, new.tensors)
    files = tuple(_files(old, new))
    documents = tuple(_documents(before, after, files))
    return ReleaseDifference(
        before=_described(before),
        after=_described(after),
        same_manifest=before.manifest_sha256 == after.manifest_sha256,
        facts=value_differences(_facts(old), _facts(new)),
        recipe=value_differences(old.recipe, new.recipe),
        source_tensors=_source_tensors(old.source.tensors, new.source.tensors),
        source_files=entry_differences(_source_files(old), _source_files(new)),
        tensors_same=sum(new.tensors.get(name) == one for name, one in old.tensors.items()),
        tensors=tensors,
        renamed=renamed,
        files_same=len({(f.path, f.sha256) for f in old.files} & {(f.path, f.sha256) for f in new.files}),
        files=files,
        documents=documents,
        elements=entry_differences(old.elements.model_dump(), new.elements.model_dump()),
        inexact=entry_differences(old.inexact, new.inexact),
        losses=tuple(
            LossDifference(name=name, before=old.losses.get(name), after=new.losses.get(name))
            for name in sorted(old.losses.keys() | new.losses.keys())
            if old.losses.get(name) != new.losses.get(name)
        ),
        unsaid=tuple(unsaid(old, new, tensors, documents)),
    )


def role_of(path: str) -> Role:
    """What a file of a release is for, by its name."""
    name = PurePosixPath(path).name
    if name.endswith(".safetensors"):
        return "tensors"
    if name.endswith(".safetensors.index.json"):
        return "index"
    if _TOKENIZER.fullmatch(name) and not name.endswith(".py"):
        return "tokenizer"
    return "config" if name.endswith(".json") else "other"


def layout_of(manifest: Manifest) -> str:
    """`hf`, or `mp8`."""
    return "hf" if manifest.target.mp is None else f"mp{manifest.target.mp}"


def _described(one: Operand) -> ComparedRelease:
    manifest = one.manifest
    return ComparedRelease(
        name=one.name,
        manifest_sha256=one.manifest_sha256,
        schema_version=manifest.schema_version,
        model=manifest.model,
        target=f"{manifest.target.dtype}-{layout_of(manifest)}",
        files=len(manifest.files),
        bytes=sum(file.size for file in manifest.files),
        tensor_bytes=sum(file.size for file in manifest.files if role_of(file.path) == "tensors"),
        tensors=len(manifest.tensors),
        drafts=manifest.target.drafts,
        draft_stages=len({match[1] for name in manifest.tensors if (match := _STAGE.match(name))}),
    )


def _facts(manifest: Manifest) -> JsonValue:
    whole = manifest.model_dump(mode="json", include={"schema_version", "tool", "model", "target", "options", "plan"})
    source = manifest.source.model_dump(mode="json", exclude={"files", "tensors", "checked"})
    facts: JsonValue = {**whole, "source": {**source, "checked": manifest.source.checked_against}}
    return facts


def _source_files(manifest: Manifest) -> dict[str, JsonValue]:
    """Path -> what is known of a file of the source, and what it was checked against."""
    known: dict[str, list[str]] = {}
    for file in manifest.source.files:
        known.setdefault(file.path, []).append(f"{file.size} bytes, header {file.header_sha256}")
    for checked in manifest.source.checked:
        stated = f"{checked.algorithm} {checked.digest} stated by {', '.join(checked.stated_by)}"
        known.setdefault(checked.path, []).append(stated)
    return {path: "; ".join(parts) for path, parts in known.items()}


def _source_tensors(old: Mapping[str, str], new: Mapping[str, str]) -> SourceTensors:
    both = old.keys() & new.keys()
    changed = sorted(name for name in both if old[name] != new[name])
    return SourceTensors(
        same=len(both) - len(changed),
        added=tuple(sorted(new.keys() - both)),
        removed=tuple(sorted(old.keys() - both)),
        changed=tuple(changed),
    )


def _tensors(
    old: Mapping[str, TensorRecord], new: Mapping[str, TensorRecord]
) -> tuple[tuple[TensorDifference, ...], tuple[RenamedTensor, ...]]:
    renamed = _renamed(
        {name: one for name, one in old.items() if name not in new},
        {name: one for name, one in new.items() if name not in old},
    )
    left, right = {one.before for one in renamed}, {one.after for one in renamed}
    found = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if before == after or name in left or name in right:
            continue
        found.append(TensorDifference(name=name, what=_what(before, after), before=before, after=after))
    return tuple(found), renamed


def _what(before: TensorRecord | None, after: TensorRecord | None) -> tuple[What, ...]:
    if before is None:
        return ("added",)
    if after is None:
        return ("removed",)
    what: list[What] = ["bytes"] if before.blake3 != after.blake3 else []
    what += ["dtype"] if before.dtype != after.dtype else []
    return (*what, *(("shape",) if before.shape != after.shape else ()))


def _renamed(gone: Mapping[str, TensorRecord], come: Mapping[str, TensorRecord]) -> tuple[RenamedTensor, ...]:
    """Pairs that nothing else can be: tensors of zeros are alike under any name."""
    by_content = {_content(one): name for name, one in come.items()}
    held, kept = Counter(map(_content, gone.values())), Counter(map(_content, come.values()))
    pairs = [
        RenamedTensor(before=name, after=by_content[content])
        for name, one in gone.items()
        if held[content := _content(one)] == kept[content] == 1
    ]
    return tuple(sorted(pairs, key=lambda pair: pair.before))


def _content(one: TensorRecord) -> tuple[str, tuple[int, ...], str]:
    return one.dtype, one.shape, one.blake3


def _files(old: Manifest, new: Manifest) -> Iterator[FileDifference]:
    left, right = {file.path: file for file in old.files}, {file.path: file for file in new.files}
    for path in sorted(left.keys() | right.keys()):
        if left.get(path) != right.get(path):
            yield FileDifference(path=path, role=role_of(path), before=left.get(path), after=right.get(path))


def _documents(before: Operand, after: Operand, files: tuple[FileDifference, ...]) -> Iterator[DocumentDifference]:
    """Keys of JSON files that both releases have. The index is left out: it says which file has which tensor."""
    for file in files:
        if file.before is None or file.after is None or not file.path.endswith(".json") or file.role == "index":
            continue
        yield _document(before, after, file.path, file.before, file.after)


def _document(before: Operand, after: Operand, path: str, old: FileRecord, new: FileRecord) -> DocumentDifference:
    left, why_not_left = before.document(old)
    right, why_not_right = after.document(new)
    if why_not := why_not_left or why_not_right:
        return DocumentDifference(path=path, unknown=why_not)
    keys = value_differences(left, right)
    return DocumentDifference(path=path, keys=keys, unknown=None if keys else "the same values, written differently")
