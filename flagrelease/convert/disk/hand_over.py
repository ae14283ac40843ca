"""`HandOver`: a thread that takes finished files to their places and deletes them here, while others are written."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from flagrelease.convert.planning.files import OutputFile
from flagrelease.convert.planning.plan import Plan
from flagrelease.convert.running.journal import Journal
from flagrelease.publish.publication import PublishedFile
from flagrelease.publish.staging.place import Place

# Files that are handed over together, one commit on a hub, which takes some 128 commits an hour. A file that is
# finished while others are on their way waits for the next group.
_GROUP_BYTES = 50 * 10**9
_GROUP_FILES = 100
_POLL = 0.1  # seconds; a wait without an end does not hear Ctrl-C


class HandOver:
    """The hand-over of one pass."""

    def __init__(
        self, plan: Plan, journals: Mapping[int, Journal], places: Mapping[str, Place], told: Callable[[int], None]
    ) -> None:
        """`told` is called with the bytes of files that are whole in their places, and deleted here."""
        self._plan, self._journals, self._places, self._told = plan, journals, places, told
        self._waiting: deque[OutputFile] = deque()
        self._changed = threading.Condition()
        self._closing = self._abandoned = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="hand over", daemon=True)
        self._thread.start()

    def put(self, file: OutputFile) -> None:
        """Take a finished file.

        Raises:
            BaseException: what ended the hand-over of an earlier one.
        """
        with self._changed:
            if self._error is not None:
                raise self._error
            self._waiting.append(file)
            self._changed.notify_all()

    def finish(self) -> None:
        """Wait until every file is in its place.

        Raises:
            BaseException: what ended the hand-over.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        while self._thread.is_alive():
            self._thread.join(_POLL)
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """The work ends early: nothing more is sent, and what is on its way now is not deleted."""
        with self._changed:
            self._closing = self._abandoned = True
            self._waiting.clear()
            self._changed.notify_all()

    def _main(self) -> None:
        try:
            while group := self._next():
                self._hand_over(group)
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            with self._changed:
                self._error = error

    def _next(self) -> list[OutputFile]:
        """Files of one release that wait, in the order in which they were finished; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            group: list[OutputFile] = []
            while self._waiting and len(group) < _GROUP_FILES:
                file = self._waiting[0]
                size = sum(one.size for one in group) + file.size
                if group and (file.release != group[0].release or size > _GROUP_BYTES):
                    break
                group.append(self._waiting.popleft())
            return group

    def _hand_over(self, group: list[OutputFile]) -> None:
        journal = self._journals[group[0].release]
        place = self._places[self._plan.releases[group[0].release].target.folder]
        files = [staged_file(journal, file) for file in group]
        place.send(files)
        with self._changed:
            if self._abandoned:
                return
        for file in files:
            assert isinstance(file.origin, Path)
            file.origin.unlink()
        self._told(sum(file.size for file in files))


def staged_file(journal: Journal, file: OutputFile) -> PublishedFile:
    """A finished file, by its record; it need not be here any more."""
    return PublishedFile(file.name, file.size, journal.files[file.name].sha256, journal.work / file.name)
