"""`FileCheck`: the files of a checkpoint compared with the digests that are stated for them, while it is converted.

Small files are hashed at once, before a byte is written. Tensor files are hashed by threads of their own beside the
conversion, front to back and in its order, so that what one of the two has read is still in the page cache, or in
`source.hub.blocks`, for the other. A file that differs ends the conversion, and no release appears.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable

from flagrelease.errors import CheckpointError
from flagrelease.records.manifest import CheckedFileRecord, DigestAlgorithm
from flagrelease.shard.files import CheckpointFiles
from flagrelease.source.digests import Claim, Claims


class FileCheck:
    """One comparison of a checkpoint with `claims`."""

    def __init__(self, files: CheckpointFiles, claims: Claims) -> None:
        """Hash every file that holds no tensors.

        Raises:
            CheckpointError: one of them is not what a claim says, or cannot be read.
        """
        self._files = files
        self._claims = claims
        self._waiting = deque(sorted(name for name in claims if name.endswith(".safetensors")))
        self._checked: list[CheckedFileRecord] = []
        self._lock = threading.Lock()
        for name in sorted(claims.keys() - set(self._waiting)):
            self._check(name, lambda: False)

    @property
    def pending(self) -> bool:
        """Whether tensor files are still to be hashed."""
        return bool(self._waiting)

    def work(self, stopped: Callable[[], bool]) -> None:
        """Hash tensor files until none is left, or `stopped()`. Called by any number of threads at once.

        Raises:
            CheckpointError: a file is not what a claim says, or cannot be read.
        """
        while not stopped():
            with self._lock:
                if not self._waiting:
                    return
                name = self._waiting.popleft()
            self._check(name, stopped)

    def records(self) -> tuple[CheckedFileRecord, ...]:
        """What was compared, and found right, by path and algorithm."""
        return tuple(sorted(self._checked, key=lambda record: (record.path, record.algorithm)))

    def _check(self, name: str, stopped: Callable[[], bool]) -> None:
        by_algorithm: dict[DigestAlgorithm, list[Claim]] = {}
        for claim in self._claims[name]:
            by_algorithm.setdefault(claim.algorithm, []).append(claim)
        found = self._digests(name, set(by_algorithm), stopped)
        if found is None:
            return
        for algorithm, claims in by_algorithm.items():
            for claim in claims:
                if claim.digest != found[algorithm]:
                    raise CheckpointError(
                        f"{self._files.root / name}: its {algorithm} is {found[algorithm]}, but {claim.by} says "
                        f"{claim.digest}: damaged or exchanged since it was published; download it again"
                    )
            authorities = tuple(sorted({claim.by for claim in claims}))
            record = CheckedFileRecord(path=name, algorithm=algorithm, digest=found[algorithm], stated_by=authorities)
            with self._lock:
                self._checked.append(record)

    def _digests(
        self, name: str, algorithms: set[DigestAlgorithm], stopped: Callable[[], bool]
    ) -> dict[DigestAlgorithm, str] | None:
        """The digests of a whole file; None if the work was stopped."""
        hashes = {algorithm: hashlib.new("sha256" if algorithm == "sha256" else "sha1") for algorithm in algorithms}
        if "git-sha1" in hashes:
            hashes["git-sha1"].update(b"blob %d\0" % self._files.size(name))
        for block in self._files.stream(name):
            if stopped():
                return None
            for digest in hashes.values():
                digest.update(block)
        return {algorithm: digest.hexdigest() for algorithm, digest in hashes.items()}
