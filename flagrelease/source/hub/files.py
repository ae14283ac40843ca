"""`HubFiles`: a checkpoint in a repository of a hub, at one revision, read by ranges with the hub's own client."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeVar

from flagrelease.errors import CheckpointError, VerificationError
from flagrelease.publish.hubs.hub import Hub
from flagrelease.publish.hubs.registry import hub_by_scheme
from flagrelease.publish.reading.remote import Address, HubReader, RemoteFile, open_reader
from flagrelease.shard.files import Bytes, Told
from flagrelease.shard.header import Header, TensorMeta, header_length, parse_header
from flagrelease.source.hub.address import HubPath
from flagrelease.source.hub.blocks import BLOCK_BYTES, MEMORY_BYTES, Blocks, Pace

_HEAD_BYTES = 512 << 10  # V4-Flash's headers have 160 to 190 KB: one request a file is enough
_PREFIX_BYTES = 8
_REQUESTS = 32  # at once, of headers and of small pieces
_GAP_BYTES = 256 << 10  # small pieces nearer to one another than this are fetched in one request
_KEPT_BYTES = 16 << 20  # companions up to this length are kept, since several stages read them

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class HubFiles:
    """See `CheckpointFiles`. `revision` is a commit where the hub has them; the listing is the one of the beginning."""

    place: Hub
    repo: str
    revision: str
    listed: Mapping[str, RemoteFile] = field(repr=False)
    _own: _Own = field(default_factory=lambda: _Own(), repr=False, compare=False)

    def __reduce__(self) -> tuple[Callable[..., HubFiles], tuple[object, ...]]:
        """A hub's facts hold functions, so it travels by its scheme."""
        return _unpickled, (self.place.scheme, self.repo, self.revision, self.listed)

    @property
    def root(self) -> HubPath:
        """See `CheckpointFiles`."""
        return HubPath(f"{self.place.scheme}://{self.repo}@{self.revision}")

    @property
    def folder(self) -> None:
        """See `CheckpointFiles`."""
        return

    @property
    def hub(self) -> str:
        """See `CheckpointFiles`."""
        return self.place.name

    @property
    def stated(self) -> Mapping[str, str]:
        """See `CheckpointFiles`."""
        digests = {name: file.sha256 or file.git_sha1 for name, file in self.listed.items()}
        return {name: digest for name, digest in digests.items() if digest is not None}

    @property
    def memory_bytes(self) -> int:
        """See `CheckpointFiles`."""
        return MEMORY_BYTES

    def names(self) -> Sequence[str]:
        """See `CheckpointFiles`."""
        return sorted(self.listed)

    def size(self, name: str) -> int:
        """See `CheckpointFiles`."""
        return self.listed[name].size

    def stamp(self, name: str) -> str:
        """See `CheckpointFiles`: what the listing states; another revision may have the very same file."""
        file = self.listed[name]
        return file.sha256 or file.git_sha1 or f"{self.revision}:{file.size}"

    def read(self, name: str) -> bytes:
        """See `CheckpointFiles`."""
        if (content := self.find(name)) is None:
            raise CheckpointError(f"{self.root / name}: not found")
        return content

    def find(self, name: str) -> bytes | None:
        """See `CheckpointFiles`."""
        if name not in self.listed:
            return None
        if (kept := self._own.kept.get(name)) is not None:
            return kept
        content = self._fetch(name, 0, self.size(name))
        self._require_listed(name, content)
        if len(content) <= _KEPT_BYTES:
            self._own.kept[name] = content
        return content

    def stream(self, name: str) -> Iterator[memoryview]:
        """See `CheckpointFiles`: not far before those who read tensors, so that each block is fetched once."""
        size = self.size(name)
        with self._own.shared(self) as blocks:
            for begin in range(0, size, BLOCK_BYTES):
                self._own.pace.wait(self._place(name) + begin)
                block = memoryview(bytearray(min(BLOCK_BYTES, size - begin)))
                blocks.read(name, begin, block)
                yield block

    def headers(self, names: Sequence[str], told: Told) -> list[Header]:
        """See `CheckpointFiles`: as many files at once as the hub is asked for, most with one request."""
        found = []
        for header in self._together(self._header, names):
            found.append(header)
            told(len(found), len(names))
        return found

    @contextmanager
    def tensors(self, wanted: Sequence[tuple[TensorMeta, int]] | None = None) -> Iterator[HubReading]:
        """See `CheckpointFiles`.

        Raises:
            CheckpointError: at the end, if the repository is no longer what was listed at the beginning.
        """
        pieces = dict(self._together(lambda span: (span, self._fetch(*span)), _spans(wanted or ())))
        with self._own.shared(self) as blocks:
            yield HubReading(blocks, pieces, lambda name, begin: self._own.pace.read(self._place(name) + begin))
        if wanted is None:
            self.require_unchanged()

    def require_unchanged(self) -> None:
        """Refuse a repository whose listing is another one than at the beginning: a branch or tag that was moved.

        Raises:
            CheckpointError: it changed; the message names the first file.
        """
        now = {file.path: file for file in self._client().list_files(self.repo, self.revision)}
        changed = sorted(name for name in now.keys() | self.listed.keys() if now.get(name) != self.listed.get(name))
        if changed:
            raise CheckpointError(
                f"{self.root}: changed while it was read: {len(changed)} files are others now, the first is "
                f"{changed[0]}; give a revision that stays, and begin again"
            )

    def _require_listed(self, name: str, content: bytes) -> None:
        file = self.listed[name]
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        for algorithm, stated, found in (
            ("SHA-256", file.sha256, hashlib.sha256(content).hexdigest()),
            ("git SHA-1", file.git_sha1, blob),
        ):
            if stated is not None and stated != found:
                raise CheckpointError(
                    f"{self.root / name}: its {algorithm} is {found}, but {self.place.name} lists {stated}"
                )

    def _place(self, name: str) -> int:
        """Where a file begins if all files lie behind one another in the order of their names."""
        if not self._own.places:  # replaced as a whole: several threads ask
            ends = list(accumulate(self.size(other) for other in self.names()))
            self._own.places = dict(zip(self.names(), [0, *ends], strict=False))
        return self._own.places[name]

    def _header(self, name: str) -> Header:
        size, path = self.size(name), self.root / name
        head = self._fetch(name, 0, min(_HEAD_BYTES, size))
        length = header_length(head, path, size)
        missing = _PREFIX_BYTES + length - len(head)
        if missing > 0:
            head += self._fetch(name, len(head), missing)
        return parse_header(head[_PREFIX_BYTES : _PREFIX_BYTES + length], path, size)

    def _fetch(self, name: str, begin: int, count: int) -> bytes:
        return self._client().read(self.repo, self.revision, name, begin, count) if count else b""

    def _client(self) -> HubReader:
        return self._own.client(self.place)

    @staticmethod
    def _together(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """`work` of all items by threads, in their order. The first error ends what has not begun."""
        with ThreadPoolExecutor(max(1, min(_REQUESTS, len(items))), "hub") as pool:
            try:
                yield from pool.map(work, items)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _unpickled(scheme: str, repo: str, revision: str, listed: Mapping[str, RemoteFile]) -> HubFiles:
    hub = hub_by_scheme(scheme)
    assert hub is not None, scheme
    return HubFiles(hub, repo, revision, listed)


class _Own:
    """What a process opens for itself: the client, small files, and blocks while somebody reads."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.places: dict[str, int] = {}
        self.pace = Pace()
        self._reader: HubReader | None = None
        self._blocks: Blocks | None = None
        self._users = 0
        self._lock = threading.Lock()

    def client(self, hub: Hub) -> HubReader:
        with self._lock:
            if self._reader is None:
                self._reader = open_reader(hub)
            return self._reader

    @contextmanager
    def shared(self, files: HubFiles) -> Iterator[Blocks]:
        with self._lock:
            if self._blocks is None:
                self._blocks = Blocks(files._fetch, files.size)
            blocks = self._blocks
            self._users += 1
        try:
            yield blocks
        finally:
            with self._lock:
                self._users -= 1
                ended = self._users == 0
                if ended:
                    self._blocks = None
            if ended:
                blocks.close()


class HubReading:
    """See `TensorReading`."""

    def __init__(
        self, blocks: Blocks, pieces: Mapping[tuple[str, int, int], bytes], reads: Callable[[str, int], None]
    ) -> None:
        """`pieces`: (file, begin, count) -> bytes that were fetched ahead; `reads` is told what is read now."""
        self._blocks, self._reads = blocks, reads
        self._pieces = {(name, begin): content for (name, begin, _), content in pieces.items()}
        self._begins: dict[str, list[int]] = {}
        for name, begin, _ in pieces:
            self._begins.setdefault(name, []).append(begin)

    def read(self, tensor: TensorMeta, offset: int, out: Bytes) -> None:
        """See `TensorReading`."""
        if offset + len(out) > tensor.nbytes:
            raise ValueError(f"{tensor.name}: {offset} + {len(out)} bytes of {tensor.nbytes}")
        name, begin, view = tensor.file.name, tensor.begin + offset, memoryview(out)
        for at in self._begins.get(name, ()):
            content = self._pieces[name, at]
            if at <= begin and begin + len(out) <= at + len(content):
                view[:] = content[begin - at : begin - at + len(out)]
                return
        self._reads(name, begin)
        self._blocks.read(name, begin, view)


def _spans(wanted: Sequence[tuple[TensorMeta, int]]) -> list[tuple[str, int, int]]:
    """(file, begin, count) of requests that bring all that is wanted; what lies near one another comes in one."""
    by_file: dict[str, list[tuple[int, int]]] = {}
    for meta, count in wanted:
        if count:
            by_file.setdefault(meta.file.name, []).append((meta.begin, meta.begin + count))
    spans = []
    for name, ranges in by_file.items():
        begin, end = -1, -1
        for first, last in sorted(ranges):
            if begin >= 0 and first - end <= _GAP_BYTES:
                end = max(end, last)
                continue
            if begin >= 0:
                spans.append((name, begin, end - begin))
            begin, end = first, last
        spans.append((name, begin, end - begin))
    return spans


def open_hub_files(address: Address) -> HubFiles:
    """The checkpoint at `address`: its revision becomes a commit where the hub has them, and its files are listed.

    Raises:
        CheckpointError: there is no such repository or revision, it needs a token, or a tensor file has no digest.
        ResourceError: the hub's client is not installed.
        NetworkError: the hub refuses, or does not answer.
    """
    client = open_reader(address.hub)
    try:
        revision = client.pin(address.repo, address.revision)
    except VerificationError as error:
        raise CheckpointError(f"{address.hub.scheme}://{error}") from error
    listed = {file.path: file for file in client.list_files(address.repo, revision)}
    files = HubFiles(address.hub, address.repo, revision, listed)
    for name in files.names():
        if name.endswith(".safetensors") and name not in files.stated:
            raise CheckpointError(f"{files.root / name}: the hub's listing states no digest of it to compare it with")
    return files
