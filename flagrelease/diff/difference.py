"""`ReleaseDifference`: everything that two manifests say differently, as data for a text, a page or a script."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from flagrelease.records.manifest import FileRecord, LossRecord, TensorRecord

Role = Literal["tensors", "index", "config", "tokenizer", "other"]
What = Literal["added", "removed", "bytes", "dtype", "shape"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ComparedRelease(_Part):
    """One of the two.

    Attributes:
        name: as it was given.
        target: `FORMAT-LAYOUT`.
        bytes, tensor_bytes: of all files, and of the safetensors files among them.
        draft_stages: by the names of its tensors (`mtp.N.`).
    """

    name: str
    manifest_sha256: str
    schema_version: int
    model: str | None
    target: str
    files: int
    bytes: int
    tensor_bytes: int
    tensors: int
    drafts: str
    draft_stages: int


class ValueDifference(_Part):
    """A key whose value was added, removed or changed; dots stand between nested keys. The absent side is null."""

    key: str
    what: Literal["added", "removed", "changed"]
    before: JsonValue = None
    after: JsonValue = None


class TensorDifference(_Part):
    """A tensor that one release lacks, or that has other bytes (by its digest), another dtype or shape."""

    name: str
    what: tuple[What, ...]
    before: TensorRecord | None
    after: TensorRecord | None


class RenamedTensor(_Part):
    """A tensor with the same bytes, dtype and shape under another name; no other tensor on either side has them."""

    before: str
    after: str


class FileDifference(_Part):
    """A file that one release lacks, or whose SHA-256 differs."""

    path: str
    role: Role
    before: FileRecord | None
    after: FileRecord | None


class DocumentDifference(_Part):
    """A JSON file whose SHA-256 differs: its keys, or why they are not known."""

    path: str
    keys: tuple[ValueDifference, ...] = ()
    unknown: str | None = None


class LossDifference(_Part):
    """What a weight lost in each release; null where it lost nothing."""

    name: str
    before: LossRecord | None
    after: LossRecord | None


class SourceTensors(_Part):
    """The stored tensors of the two sources, by the digest of the bytes that were read."""

    same: int
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]


class ReleaseDifference(_Part):
    """The whole comparison.

    Attributes:
        facts: tool, model, target, options, plan, source; of the source all but its files and tensors.
        recipe: keys of the recipe; whole if only one manifest has one.
        elements: what happened to the elements of all weights, by kind.
        inexact: weight -> elements rounded or lost, where the numbers differ.
        unsaid: sentences: what these records cannot say.
    """

    before: ComparedRelease
    after: ComparedRelease
    same_manifest: bool
    facts: tuple[ValueDifference, ...]
    recipe: tuple[ValueDifference, ...]
    source_tensors: SourceTensors
    source_files: tuple[ValueDifference, ...]
    tensors_same: int
    tensors: tuple[TensorDifference, ...]
    renamed: tuple[RenamedTensor, ...]
    files_same: int
    files: tuple[FileDifference, ...]
    documents: tuple[DocumentDifference, ...]
    elements: tuple[ValueDifference, ...]
    inexact: tuple[ValueDifference, ...]
    losses: tuple[LossDifference, ...]
    unsaid: tuple[str, ...]

    def tensors_that_are(self, what: What) -> tuple[TensorDifference, ...]:
        """The differing tensors of one kind."""
        return tuple(one for one in self.tensors if what in one.what)

    def of_role(self, role: Role) -> tuple[FileDifference, ...]:
        """The differing files of one role."""
        return tuple(one for one in self.files if one.role == role)
