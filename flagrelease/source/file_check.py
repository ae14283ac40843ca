"""`FileCheck`: the files of a checkpoint compared with the digests that are stated for them, while it is converted.

Small files are hashed at once, before a byte is written. Tensor files are hashed by threads of their own beside the
conversion, front to back and in its order, so that what one of the two has read is still in the page cache, or in
`source.hub.blocks`, for the other. A file that differs ends the conversion, and no release appears.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Iterable

from flagrelease.errors import CheckpointError
from flagrelease.records.manifest import CheckedFileRecord, DigestAlgorithm
from flagrelease.shard.files import CheckpointFiles
from flagrelease.source.digests import Claims


class FileCheck:
    """One comparison of a checkpoint with `claims`."""

    def __init__(
        self,
        files: CheckpointFiles,
        claims: Claims,
        known: Iterable[CheckedFileRecord] = (),
        record: Callable[[CheckedFileRecord], None] = lambda record: None,
    ) -> None:
        """Hash every file that holds no tensors.

        Args:
            files, claims: of the checkpoint.
            known: what an earlier run found of tensor files that have not been written since. A file whose claims are
                all among it is not hashed again.
            record: called with what is found of each tensor file, by any thread.

        Raises:
            CheckpointError: one of them is not what a claim says, or cannot be read.
        """
        self._files = files
        self._claims = claims
        self._record = record
        self._checked: list[CheckedFileRecord] = []
        self._lock = threading.Lock()
        then = {(one.path, one.algorithm): one.digest for one in known}
        self._waiting: list[str] = []
        for name in sorted(claims):
            if not name.endswith(".safetensors"):
                self._keep(self._found(name, lambda: False))
            elif all(then.get((name, claim.algorithm)) == claim.digest for claim in claims[name]):
                self._keep(self._agreeing(name, {claim.algorithm: claim.digest for claim in claims[name]}))
            else:
                self._waiting.append(name)

    def pending(self, names: Collection[str] | None = None) -> bool:
        """Whether tensor files (of `names`, if given) are still to be hashed."""
        return any(names is None or name in names for name in self._waiting)

    def work(self, stopped: Callable[[], bool], names: Collection[str] | None = None) -> None:
        """Hash tensor files (of `names`, if given) until none is left, or `stopped()`.

        Called by any number of threads at once.

        Raises:
            CheckpointError: a file is not what a claim says, or cannot be read.
        """
        while not stopped():
            with self._lock:
                name = next((one for one in self._waiting if names is None or one in names), None)
                if name is None:
                    return
                self._waiting.remove(name)
            found = self._found(name, stopped)
            self._keep(found)
            for one in found:
                self._record(one)

    def records(self) -> tuple[CheckedFileRecord, ...]:
        """What was compared, and found right, by path and algorithm."""
        return tuple(sorted(self._checked, key=lambda record: (record.path, record.algorithm)))

    def _keep(self, found: Iterable[CheckedFileRecord]) -> None:
        with self._lock:
            self._checked += found

    def _found(self, name: str, stopped: Callable[[], bool]) -> list[CheckedFileRecord]:
        """What a file that is hashed now agrees with; nothing if the work was stopped."""
        digests = self._digests(name, {claim.algorithm for claim in self._claims[name]}, stopped)
        if digests is None:
            return []
        for claim in self._claims[name]:
            if claim.digest != (found := digests[claim.algorithm]):
                raise CheckpointError(
                    f"{self._files.root / name}: its {claim.algorithm} is {found}, but {claim.by} says "
                    f"{claim.digest}: {self._what_then()}"
                )
        return self._agreeing(name, digests)

    def _what_then(self) -> str:
        if self._files.hub is not None:
            return (
                f"{self._files.hub} serves other bytes than it lists; run the same command again, and report it there"
            )
        return "damaged or exchanged since it was published; download it again"

    def _agreeing(self, name: str, digests: dict[DigestAlgorithm, str]) -> list[CheckedFileRecord]:
        return [
            CheckedFileRecord(
                path=name,
                algorithm=algorithm,
                digest=digest,
                stated_by=tuple(sorted({claim.by for claim in self._claims[name] if claim.algorithm == algorithm})),
            )
            for algorithm, digest in digests.items()
        ]

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
