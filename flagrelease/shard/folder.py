"""`FolderFiles`: a checkpoint in a folder on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flagrelease.errors import CheckpointError
from flagrelease.shard.files import Told
from flagrelease.shard.header import Header, TensorMeta, read_header
from flagrelease.shard.reader import TensorReader

_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class FolderFiles:
    """See `CheckpointFiles`."""

    root: Path

    @property
    def folder(self) -> Path:
        """See `CheckpointFiles`."""
        return self.root

    @property
    def hub(self) -> None:
        """See `CheckpointFiles`."""
        return

    @property
    def stated(self) -> Mapping[str, str]:
        """See `CheckpointFiles`: what lies beside the files is read by `source.digests`."""
        return {}

    @property
    def memory_bytes(self) -> int:
        """See `CheckpointFiles`."""
        return 0

    def names(self) -> Sequence[str]:
        """See `CheckpointFiles`."""
        if not self.root.is_dir():
            raise CheckpointError(f"{self.root}: no such folder")
        return [path.relative_to(self.root).as_posix() for path in sorted(self.root.rglob("*")) if path.is_file()]

    def size(self, name: str) -> int:
        """See `CheckpointFiles`."""
        return (self.root / name).stat().st_size

    def stamp(self, name: str) -> str:
        """See `CheckpointFiles`."""
        return str((self.root / name).stat().st_mtime_ns)

    def read(self, name: str) -> bytes:
        """See `CheckpointFiles`."""
        if (content := self.find(name)) is None:
            raise CheckpointError(f"{self.root / name}: not found")
        return content

    def find(self, name: str) -> bytes | None:
        """See `CheckpointFiles`."""
        path = self.root / name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error

    def stream(self, name: str) -> Iterator[memoryview]:
        """See `CheckpointFiles`."""
        path, buffer = self.root / name, bytearray(_BLOCK_BYTES)
        view = memoryview(buffer)
        try:
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    yield view[:count]
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error

    def headers(self, names: Sequence[str], told: Told) -> list[Header]:
        """See `CheckpointFiles`."""
        found = []
        for name in names:
            found.append(read_header(self.root / name))
            told(len(found), len(names))
        return found

    def tensors(self, wanted: Sequence[tuple[TensorMeta, int]] | None = None) -> TensorReader:
        """See `CheckpointFiles`."""
        return TensorReader()


def in_folder(folder: Path) -> FolderFiles:
    """The checkpoint in `folder`.

    Raises:
        CheckpointError: there is no such folder.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    return FolderFiles(folder)
