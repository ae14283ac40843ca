"""What two manifests cannot say, in sentences: so that nobody takes "no difference found" for more than it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flagrelease.diff.difference import DocumentDifference, TensorDifference
from flagrelease.records.manifest import Manifest


def unsaid(
    old: Manifest, new: Manifest, tensors: Sequence[TensorDifference], documents: Sequence[DocumentDifference]
) -> Iterator[str]:
    """Sentences for this comparison, the general ones first."""
    yield (
        "Manifests were compared, not files: whether the files on disk are still those of the manifests is what "
        "flagrelease verify says."
    )
    if any(one.what == ("bytes",) for one in tensors):
        yield (
            "Another digest says that bytes differ, not by how much nor whether answers change: flagrelease validate "
            "measures that."
        )
    if any("dtype" in one.what for one in tensors):
        yield (
            "A tensor in another dtype has other bytes even where every value is the same. What a conversion changed "
            "is in each manifest's own counts, against its own source."
        )
    if 1 in (old.schema_version, new.schema_version):
        yield (
            "A manifest of schema 1 identifies its source by headers alone: two sources with equal headers and other "
            "contents look the same in it, except for the digests of their tensors."
        )
    if any(one.unknown is not None and not one.keys for one in documents):
        yield "Which keys changed in a file whose keys are not known: a manifest has only the digest of the file."
    if old.recipe is None or new.recipe is None:
        yield "Which recipe a release without one followed: it was converted from a bare folder."
