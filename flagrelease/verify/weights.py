"""The checks `tensors` and `source`, which gather every weight from its parts and read it once.

`tensors` compares digests with the manifest: it proves that the parts make up the tensors the converter recorded.
`source` compares with what the second decoder makes of the source: it proves that those tensors are the model.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from blake3 import blake3

from flagrelease.formats.formats import weight_of_scale
from flagrelease.records.manifest import MANIFEST_NAME, ElementCounts
from flagrelease.shard.header import DTYPE_BITS
from flagrelease.verify import losses
from flagrelease.verify.expectations import Expectation
from flagrelease.verify.expected import ExpectedWeight
from flagrelease.verify.gather import Bytes, GatheredTensor
from flagrelease.verify.origin import Origin
from flagrelease.verify.proof import WeightProof, prepare
from flagrelease.verify.result import CheckLog, Finding
from flagrelease.verify.structure import StoredRelease
from flagrelease.verify.tables import wrong_filling
from flagrelease.verify.workers import Workers

_QUANTISED = frozenset({"F8_E4M3", "F8_E8M0", "I8", "U8", "F4"})


@dataclass(slots=True)
class _Differences:
    """How many bytes of one tensor are wrong, and where the first one is."""

    count: int = 0
    row: int = 0
    byte: int = 0
    found: Bytes | None = None
    wanted: Bytes | None = None

    def compare(self, start: int, found: Bytes, wanted: Bytes) -> None:
        """Add the differences of rows from `start` on."""
        places = np.argwhere(found != wanted)
        if self.count == 0:
            row, self.byte = (int(i) for i in places[0])
            self.row, self.found, self.wanted = start + row, found[row], wanted[row]
        self.count += len(places)


class WeightChecks:
    """Makes both checks; `run` fills the logs and counts elements."""

    def __init__(self, release: StoredRelease, source: Origin | None, workers: Workers) -> None:
        """Nothing is read yet. Without a source only `tensors` is checked."""
        self._release = release
        self._source = source
        self._workers = workers
        self._lock = threading.Lock()
        self.tensors = CheckLog("tensors")
        self.source = CheckLog("source")
        self.elements = ElementCounts()

    def run(self, weights: Sequence[ExpectedWeight]) -> None:
        """Read and check `weights`.

        Raises:
            CheckpointError: the source breaks a rule of its format.
            VerificationError: a file cannot be read.
        """
        # The longest first: no thread is left alone with one at the end.
        self._workers.each(self._check, sorted(weights, key=lambda weight: -math.prod(weight.spec.shape)))

    def _check(self, weight: ExpectedWeight) -> None:
        tensors = [self._release.tensors[form.name] for form in weight.forms]
        proof = None if self._source is None else prepare(weight, self._source, self._release.manifest)
        misfit = None if proof is None else proof.misfit(tensors)
        if misfit is not None:
            self.source.add(Finding(tensor=weight.spec.name, rule=misfit))
        if proof is None or misfit is not None:
            for tensor in tensors:
                self._stream(tensor, weight, None)
            return
        for tensor, expectation in zip(tensors, proof.expectations, strict=True):
            self._stream(tensor, weight, expectation)
        self._conclude(proof)

    def _stream(self, tensor: GatheredTensor, weight: ExpectedWeight, expectation: Expectation | None) -> None:
        """Read a tensor that holds `weight` once, for its digest and against its expectation."""
        digest, differences, blank = blake3(), _Differences(), _must_hold_values(tensor)
        for start, stop in tensor.chunks(1 if expectation is None else expectation.row_multiple):
            found = tensor.read(start, stop)
            digest.update(found)
            blank = blank and not found[0].any() and not found.any()
            if expectation is not None:
                wanted = expectation.rows(start, stop)
                if not np.array_equal(found.view(wanted.dtype), wanted):
                    differences.compare(start, found, np.ascontiguousarray(wanted).view(np.uint8))
            self._workers.advance(found.nbytes)
        self.tensors.saw(1, tensor.nbytes)
        for file, rule in wrong_filling(tensor):
            self.tensors.add(Finding(tensor=tensor.name, file=file, rule=rule))
        if blank and not self._may_be_blank(tensor, weight):
            rule = "all its bytes are zero, which no trained weight or scale is: the source was damaged"
            self.tensors.add(Finding(tensor=tensor.name, rule=rule))
        if digest.hexdigest() != self._release.manifest.tensors[tensor.name].blake3:
            files = {self._release.path_of(copies[0].file) for copies in tensor.boxes.values()}
            rule = "its digest is not the manifest's"
            self.tensors.add(Finding(tensor=tensor.name, file=" + ".join(sorted(files)), rule=rule))
        if expectation is not None and differences.found is not None and differences.wanted is not None:
            self.source.add(self._describe(tensor, differences, differences.found, differences.wanted, expectation))

    def _may_be_blank(self, tensor: GatheredTensor, weight: ExpectedWeight) -> bool:
        """Whether the recipe allows zeros here. It names tensors of the source, which may spell a scale otherwise."""
        allowed = self._release.manifest.options.get("allow_zero_tensors", ())
        name = weight.source_scale if weight.scale is not None and tensor.name == weight.scale.name else tensor.name
        return any(fnmatchcase(one, pattern) for one in (tensor.name, name or "") for pattern in allowed)

    def _describe(
        self, tensor: GatheredTensor, at: _Differences, found: Bytes, wanted: Bytes, expectation: Expectation
    ) -> Finding:
        bits = DTYPE_BITS[tensor.dtype]
        first = at.byte - at.byte % max(1, bits // 8)
        element = slice(first, first + max(1, bits // 8))
        file, offset = tensor.locate(at.row, first)
        # elements are little-endian in files, and read by people from the highest byte
        shown = f"is 0x{found[element][::-1].tobytes().hex()}, must be 0x{wanted[element][::-1].tobytes().hex()}"
        return Finding(
            tensor=tensor.name,
            file=self._release.path_of(file),
            row=at.row,
            column=first * 8 // bits,
            offset=offset,
            rule=f"{expectation.broken(at.row, found[element])}: {shown}; {at.count} of {tensor.nbytes} bytes differ",
        )

    def _conclude(self, proof: WeightProof) -> None:
        """Compare what is known only after the last row: digests and faults of the source, and elements lost."""
        manifest, name = self._release.manifest, proof.weight.spec.name
        for tensor, digest in ((hashed.tensor, hashed.digest()) for hashed in proof.sources):
            self.source.saw(1, tensor.nbytes)
            if digest != manifest.source.tensors[tensor.name]:
                self.source.add(Finding(tensor=tensor.name, rule="the source's digest is not the one recorded"))
        for fault in (fault for expectation in proof.expectations for fault in expectation.faults()):
            self.source.add(Finding(tensor=name, rule=fault))
        counts = proof.elements()
        inexact, recorded = counts.rounded + counts.lost, manifest.inexact.get(name, 0)
        if inexact != recorded:
            rule = f"inexact is {recorded}, the second decoder counts {inexact}"
            self.source.add(Finding(tensor=name, file=MANIFEST_NAME, rule=rule))
        for problem in losses.problems(proof, counts, manifest):
            self.source.add(problem)
        with self._lock:
            self.elements += counts


def _must_hold_values(tensor: GatheredTensor) -> bool:
    """Whether all-zero bytes are damage: in 8-bit and 4-bit weights, scales of any dtype and BF16 matrices they are.

    As zeros, scales in F32, F16 or BF16 would make the whole weight zero; as E8M0, a zero byte stands for 2^-127.
    """
    scale = weight_of_scale(tensor.name) is not None
    return scale or tensor.dtype in _QUANTISED or (tensor.dtype == "BF16" and len(tensor.shape) == 2)


def check_recorded_copies(release: StoredRelease, log: CheckLog) -> None:
    """Compare the manifest's digests of copied tensors with those of their sources, without reading either."""
    manifest = release.manifest
    for weight in release.weights:
        for form, name in weight.sure_copies():
            if manifest.tensors[form.name].blake3 != manifest.source.tensors[name]:
                log.add(Finding(tensor=form.name, rule="recorded with another digest than its source's, yet copied"))
