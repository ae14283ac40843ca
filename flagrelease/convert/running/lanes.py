"""`Lane`: one output file, written by a thread of its own, beside which another one hashes.

Decoding and writing meet in queues: a worker fills a buffer and puts views of it into the queues of all files that want
a piece; each file's threads hash and write it; the buffer is free again when the last of them is done. Bytes that come
before their turn wait in the lane.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from flagrelease.convert.codecs.decoder import U8
from flagrelease.convert.planning.files import OutputFile
from flagrelease.convert.planning.jobs import Piece
from flagrelease.convert.running.buffers import Buffers, Run, Shared
from flagrelease.convert.running.journal import FileState, Journal
from flagrelease.shard.writer import SequentialFile, sector_offset

# A file's first bytes are made safe and journalled this often; a kill costs at most this much of each open file.
CHECKPOINT_BYTES = 256 << 20


class Lane:
    """One output file. Its thread starts with the first bytes put and ends with the last byte of the file.

    Attributes:
        resume_at: how many bytes an earlier run has left, after `recover`.
        position: how many bytes have gone into the file.
    """

    def __init__(
        self,
        run: Run,
        file: OutputFile,
        journal: Journal,
        told: Callable[[OutputFile], None] = lambda file: None,
    ) -> None:
        """Nothing is read yet: `recover` finds out what an earlier run has left. `told` hears of the finished file."""
        self.name = file.name
        self.resume_at = 0
        self.position = 0
        self._run = run
        self._plan = file
        self._journal = journal
        self._told = told
        self._output: SequentialFile | None = None
        self._queue: SimpleQueue[tuple[int, U8, Shared] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    @property
    def path(self) -> Path:
        """Where the file grows; it gets its final name when the whole release is there."""
        return self._journal.work / self.name

    @property
    def finished(self) -> bool:
        """Whether an earlier run finished the file."""
        return self.resume_at == self._plan.size

    def recover(self) -> None:
        """Set `resume_at` to what the journal says, if the file still has those bytes: they are read and hashed again,
        also those of a finished file."""
        state = self._journal.files.get(self.name)
        if state is None:
            return
        if state.offset == self._plan.size:
            if any(_holds(path, state) for path in (self.path, self._journal.work.parent / self.name)):
                self.resume_at = state.offset
                self._told(self._plan)
            return
        if self.path.is_file():
            output = SequentialFile(self.path, self._plan.size)
            if output.resume(state.offset, state.sha256):
                self.resume_at = state.offset
            self._output = output

    def space_needed(self) -> int:
        """Bytes that the disk must still give, after `recover`: blocks that an earlier run got are written again."""
        if self.finished or not self.path.is_file():
            return self._plan.size - self.resume_at
        allocated = self.path.stat().st_blocks * 512  # st_blocks counts so on every file system
        return self._plan.size - max(self.resume_at, min(allocated, self._plan.size))

    def put(self, begin: int, data: U8, shared: Shared) -> None:
        """Give the bytes that belong at offset `begin`, in any order and from any thread."""
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name=self.name, daemon=True)
                self._thread.start()
        self._queue.put((begin, data, shared))

    def close(self) -> None:
        """Wait for the thread; in a stopped run, end it."""
        if self._thread is not None:
            if self._run.stopped:
                self._queue.put(None)
            self._thread.join()
        elif self._output is not None:
            self._output.close()

    def _main(self) -> None:
        try:
            with self._output or SequentialFile(self.path, self._plan.size) as output:
                self._write(output)
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            self._run.stop(error)

    def _write(self, output: SequentialFile) -> None:
        if output.position == 0:
            self._append(output, 0, np.frombuffer(self._plan.header, dtype=np.uint8))
        safe = output.position
        early: list[tuple[int, int, U8, Shared]] = []  # a heap: bytes whose turn has not come; a count orders equals
        for count in itertools.count():
            if output.position == self._plan.size:
                break
            item = self._queue.get()
            if item is None or self._run.stopped:
                return
            heapq.heappush(early, (item[0], count, *item[1:]))
            while early and early[0][0] <= output.position:
                begin, _, data, shared = heapq.heappop(early)
                self._append(output, begin, data)
                shared.release()
                if output.position - safe >= CHECKPOINT_BYTES:
                    safe = output.position
                    self._journal.add_file(self.name, *output.sync())
        self._journal.add_file(self.name, self._plan.size, output.finish())
        self._told(self._plan)

    def _append(self, output: SequentialFile, begin: int, data: U8) -> None:
        """Append what an earlier run has not written."""
        skip = output.position - begin
        if skip < 0:
            raise AssertionError(f"{self.path}: bytes for offset {begin} come when {output.position} are there")
        if skip < len(data):
            output.append(data[skip:])
            self.position = output.position
            self._run.add_written(len(data) - skip)


def _holds(path: Path, state: FileState) -> bool:
    """Whether `path` is the finished file of a record, by its size and SHA-256."""
    if not path.is_file() or path.stat().st_size != state.offset:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == state.sha256


class LaneSink:
    """Cuts the chunks of one job into the pieces of the files that want them."""

    def __init__(self, buffers: Buffers, lanes: dict[int, Lane], job: int) -> None:
        """`job` is its number. Pieces of files that are not in `lanes` are not wanted."""
        self.drop = buffers.give
        self._job = job
        self._buffers = buffers
        self._lanes = lanes

    def buffer(self, nbytes: int) -> U8:
        """Wait for memory."""
        return self._buffers.take(nbytes, self._job)

    def buffer_for(self, nbytes: int, row: int, row_bytes: int, pieces: tuple[Piece, ...]) -> U8:
        """Wait for memory, placed so that the first file that takes whole rows can write them from where they are."""
        start = 0
        for _, piece, _, _ in self._wanted(row, nbytes // max(1, row_bytes), pieces):
            if (piece.cut.byte0, piece.cut.byte1) == (0, row_bytes):
                start = sector_offset(piece.begin + (row - piece.cut.row0) * row_bytes)
                break
        return self._buffers.take(nbytes, self._job, start)

    def put(self, data: U8, row: int, row_bytes: int, pieces: tuple[Piece, ...]) -> None:
        """Queue the part of each piece that lies in this chunk: whole rows from `row` on."""
        matrix = data.reshape(-1, row_bytes)
        cuts: dict[tuple[int, int, int, int], U8] = {}  # ranks that hold the same piece share one copy
        queued: list[tuple[Lane, int, U8]] = []
        for lane, piece, first, end in self._wanted(row, len(matrix), pieces):
            cut = piece.cut
            key = (first - row, end - row, cut.byte0, cut.byte1)
            if key not in cuts:
                cuts[key] = np.ascontiguousarray(matrix[key[0] : key[1], key[2] : key[3]]).reshape(-1)
            begin = piece.begin + (first - cut.row0) * (cut.byte1 - cut.byte0)
            queued.append((lane, begin, cuts[key]))
        if not queued:
            self._buffers.give(data)
            return
        shared = Shared(self._buffers, data, len(queued))
        for lane, begin, view in queued:
            lane.put(begin, view, shared)

    def _wanted(self, row: int, rows: int, pieces: tuple[Piece, ...]) -> Iterator[tuple[Lane, Piece, int, int]]:
        """The pieces that files still want of `rows` rows from `row` on: the file, the piece, its rows among them."""
        for piece in pieces:
            lane = self._lanes.get(piece.file)
            first, end = max(row, piece.cut.row0), min(row + rows, piece.cut.row1)
            if lane is not None and first < end and piece.end > lane.resume_at:
                yield lane, piece, first, end
