"""`manifest.json`: what a release holds and where it comes from. Written last, so its presence says "complete".

It holds nothing of the machine, the workers or the time: two conversions of one source under one recipe have the same
manifest, byte for byte. A digest of a tensor is BLAKE3 over its logical row-major bytes, whatever files and ranks it is
cut into, so releases of one model in several layouts are tied together tensor by tensor.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from flagrelease.errors import VerificationError, first_problem
from flagrelease.formats.releases import ReleaseFormatName

MANIFEST_NAME = "manifest.json"

Dtype = ReleaseFormatName
OGroups = Literal["shared", "split"]
Drafts = Literal["keep", "drop"]
DigestAlgorithm = Literal["sha256", "git-sha1"]
# Who states the digest of a source file: the name of a blob in a hub cache, the bookkeeping of `hf download`, a file
# that the user gave, the listing of a hub.
DigestAuthority = Literal["hub-cache", "download-metadata", "digest-file", "huggingface", "modelscope"]
_AUTHORITIES: dict[DigestAuthority, str] = {
    "hub-cache": "the names of blobs in a hub cache",
    "download-metadata": "the records of hf download",
    "digest-file": "a file of digests that the user gave",
    "huggingface": "the listing of Hugging Face",
    "modelscope": "the listing of ModelScope",
}

_NOT_IN_NAMES = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control characters, bytes that are no text, line separators


def inside_release(path: str) -> str:
    """`path` itself, if it is a plain relative path with forward slashes that stays inside the folder of a release.

    Whoever reads a manifest writes, links or hashes files under these paths, so they are refused here, for everyone.

    Raises:
        ValueError: the path is empty or absolute, has a backslash, a control character, a drive letter, an empty part,
            `.` or `..`, or lies in `.flagrelease/` or `.git/`, which belong to programs.
    """
    parts = path.split("/")
    control = any(unicodedata.category(letter) in _NOT_IN_NAMES for letter in path)
    if control or "\\" in path or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{path!r} is not a plain path inside the release")
    if parts[0][1:2] == ":" or parts[0].lower() in (".flagrelease", ".git"):
        raise ValueError(f"{path!r} is not a place for a file of a release")
    return path


def clashing(paths: Iterable[str]) -> str | None:
    """The first path that appears twice, or that is a folder of another one; None if there is none."""
    seen: set[str] = set()
    for path in paths:
        if path in seen:
            return path
        seen.add(path)
    folders = {parent.as_posix() for path in seen for parent in PurePosixPath(path).parents}
    return min(seen & folders, default=None)


def alike_but_for_case(paths: Iterable[str]) -> tuple[str, str] | None:
    """The first two paths, files or folders, whose spellings differ only in upper and lower case; None if none do.

    macOS, Windows and ModelScope keep one file where such a release has two.
    """
    spellings: dict[str, str] = {}
    for path in sorted(paths):
        for place in (path, *(parent.as_posix() for parent in PurePosixPath(path).parents)):
            if (other := spellings.setdefault(place.casefold(), place)) != place:
                return other, place
    return None


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ToolRecord(_Record):
    """Which program wrote the release."""

    name: Literal["flagrelease"] = "flagrelease"
    version: str


class TargetRecord(_Record):
    """What the release is. `mp` and `o_groups` are null for the hf layout, `o_groups` also where mp <= o_groups.

    `drafts`: whether it holds the draft stages of its source.
    """

    dtype: Dtype
    layout: Literal["hf", "mp"]
    mp: int | None = None
    o_groups: OGroups | None = None
    drafts: Drafts = "keep"


class SourceFileRecord(_Record):
    """One safetensors file of the source."""

    path: str
    size: int
    header_sha256: str


class CheckedFileRecord(_Record):
    """A source file that was hashed whole and has the digest that `stated_by` state for it."""

    path: str
    algorithm: DigestAlgorithm
    digest: str = Field(pattern="^([0-9a-f]{40}|[0-9a-f]{64})$")
    stated_by: tuple[DigestAuthority, ...] = Field(min_length=1)


class SourceRecord(_Record):
    """The checkpoint that was converted.

    Attributes:
        identity: the digest of its `SourceIdentity`, whose three parts are `headers_sha256`, `config_sha256` and
            `contents_blake3`. In schema 1 it is what is now `headers_sha256`, and the two other keys are absent.
        tensors: each stored tensor, scales included -> the BLAKE3 digest of the bytes read.
        checked: files that were compared with a digest somebody states for them; empty if nobody stated any.
    """

    repo: str | None
    revision: str | None
    license: str | None
    identity: str
    headers_sha256: str | None = None
    config_sha256: str
    contents_blake3: str | None = None
    files: tuple[SourceFileRecord, ...]
    tensors: dict[str, str]
    checked: tuple[CheckedFileRecord, ...] = ()

    @property
    def checked_against(self) -> str:
        """What the tensor files were compared with, in words for reports and cards."""
        names = {file.path for file in self.files}
        tensor_files = [record for record in self.checked if record.path in names]
        if not tensor_files:
            return "not checked against any published digest"
        count = len({record.path for record in tensor_files})
        stated = {authority for record in tensor_files for authority in record.stated_by}
        whom = " and ".join(words for authority, words in _AUTHORITIES.items() if authority in stated)
        return f"{count} of {len(names)} tensor files checked against {whom}"

    @property
    def headers(self) -> str:
        """The digest of names, sizes and headers, in either schema."""
        return self.headers_sha256 or self.identity


class FileRecord(_Record):
    """One file of the release. `path` is relative, with forward slashes, and stays inside (`inside_release`)."""

    path: Annotated[str, AfterValidator(inside_release)]
    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class TensorRecord(_Record):
    """One tensor of the release, whole: dtype as in safetensors headers, logical shape, digest of all its bytes."""

    dtype: str
    shape: tuple[int, ...]
    blake3: str = Field(pattern="^[0-9a-f]{64}$")


class ElementCounts(_Record):
    """What happened to the elements of all weights: each is counted once.

    copied: bits unchanged; exact: decoded to BF16 without rounding; rounded: decoded to BF16 with rounding;
    repacked: held exactly by another quantised format; lost: what that format could not hold exactly.
    """

    copied: int = 0
    exact: int = 0
    rounded: int = 0
    repacked: int = 0
    lost: int = 0

    def __add__(self, other: ElementCounts) -> ElementCounts:
        """Sum by kind."""
        mine, others = self.model_dump(), other.model_dump()
        return ElementCounts(**{kind: mine[kind] + others[kind] for kind in mine})


class LossRecord(_Record):
    """What one weight lost when it was stored with a scale for each row.

    Attributes:
        rows, exact_rows: all rows, and those in which every element is exact.
        elements, exact_elements: likewise.
        largest_error: the largest |stored - source| over the largest |source| of the weight.
        rms_error: the root of the sum of (stored - source)^2 over the sum of source^2. Both sums are taken row by row
            in float64, and the rows' sums are added exactly (math.fsum), so that chunks and workers change nothing.
    """

    rows: int
    exact_rows: int
    elements: int
    exact_elements: int
    largest_error: float
    rms_error: float


class Manifest(_Record):
    """The whole document.

    Attributes:
        model, recipe: null when a bare folder was converted.
        options: what of `convert` in a recipe decides bytes, defaults written out.
        plan: digest of everything planned; a folder is finished under the plan that began it.
        schema_version: 2; manifests of schema 1, which know less of their source, are still read.
        inexact: weight -> elements rounded or lost; a weight that is not listed has none.
        losses: weight -> what scales by row cost it; a weight that is not listed lost nothing.
    """

    schema_version: Literal[1, 2] = 2
    tool: ToolRecord
    model: str | None
    target: TargetRecord
    source: SourceRecord
    recipe: dict[str, Any] | None
    options: dict[str, Any]
    plan: str
    elements: ElementCounts
    inexact: dict[str, int]
    losses: dict[str, LossRecord] = {}
    files: tuple[FileRecord, ...]
    tensors: dict[str, TensorRecord]

    @field_validator("files")
    @classmethod
    def _each_path_once(cls, files: tuple[FileRecord, ...]) -> tuple[FileRecord, ...]:
        if (twice := clashing([MANIFEST_NAME, *(file.path for file in files)])) is not None:
            raise ValueError(f"{twice!r} is listed twice, is the manifest itself, or is a folder of another file")
        return files

    def to_json(self) -> bytes:
        """The bytes of `manifest.json`: keys sorted, one space of indent, one newline at the end."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False)
        return text.encode("utf-8") + b"\n"


def read_manifest(release: Path) -> Manifest:
    """Read and check `manifest.json` of a release folder.

    Raises:
        VerificationError: there is none (an unfinished conversion), or it does not follow the schema.
    """
    return parse_manifest(read_manifest_bytes(release), str(release / MANIFEST_NAME))


def read_manifest_bytes(release: Path) -> bytes:
    """The bytes of `manifest.json`, whose digest ties a report and a publication to the release.

    Raises:
        VerificationError: there is none (an unfinished conversion), or it cannot be read.
    """
    path = release / MANIFEST_NAME
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise VerificationError(f"{path}: not found: not a release, or its conversion did not finish") from None
    except OSError as error:
        raise VerificationError(f"{path}: cannot be read ({error.strerror})") from None


def parse_manifest(content: bytes, name: str) -> Manifest:
    """Check the bytes of a manifest; `name` is for the message.

    Raises:
        VerificationError: it does not follow the schema.
    """
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        raise VerificationError(f"{name}: {first_problem(error)}") from error
