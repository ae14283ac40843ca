"""`WorkFolder`: a folder that one command fills over hours, and that the same command resumes after a kill.

FOLDER/CONTROL/lock         held by the process that works here
FOLDER/CONTROL/begun.json   what the folder was begun for; absent only until the first moment of the first run is over
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from flagrelease.durable.files import partial_name, refused, sync_folder, write_whole
from flagrelease.durable.lock import FileLock
from flagrelease.durable.log import differing
from flagrelease.errors import ResourceError

LOCK_NAME, BEGUN_NAME = "lock", "begun.json"
OWN_NAMES = frozenset({LOCK_NAME, BEGUN_NAME, partial_name(BEGUN_NAME)})


class Begun(BaseModel):
    """What a folder was begun for: `binding` never changes, `facts` may be added to but do not change either."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1] = 1
    command: str
    binding: dict[str, str]
    facts: dict[str, str] = {}


class WorkFolder:
    """A folder that is open and locked; use it as a context, or call `close`.

    Attributes:
        folder: what is filled.
        control: the folder inside it that holds the lock.
        resumed: whether an earlier run began it.
        facts: those of all runs.
    """

    def __init__(
        self,
        folder: Path,
        control: str,
        command: str,
        binding: Mapping[str, str],
        facts: Mapping[str, str] | None = None,
    ) -> None:
        """Begin the folder, or resume what an earlier run of the same command began there.

        Args:
            folder: absent, empty, or begun by the same command with the same binding.
            control: name of the folder inside it for lock and binding; more can be kept there.
            command: whose folder it is: "validate".
            binding: what all work in the folder depends on, by names that a user understands.
            facts: what must not change between runs but may become known later, as when a device comes in.

        Raises:
            ResourceError: the folder holds something else, was begun for another binding or with other facts, is in
                use by another process, or cannot be written.
        """
        self.folder, self.control = folder, folder / control
        if folder.exists() and not folder.is_dir():
            raise ResourceError(f"{folder}: is not a folder")
        self._refuse_foreign(command)
        with refused(self.control):
            self.control.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.control / LOCK_NAME, folder)
        try:
            self.resumed, self.facts = self._bind(
                Begun(command=command, binding=dict(binding), facts=dict(facts or {}))
            )
        except BaseException:
            self.close()
            raise

    def _refuse_foreign(self, command: str) -> None:
        """Without a binding, the folder may hold only what a kill before the binding leaves."""
        if (self.control / BEGUN_NAME).is_file() or not self.folder.is_dir():
            return
        with refused(self.folder):
            entries = [path for path in self.folder.iterdir() if path != self.control]
            inside = list(self.control.iterdir()) if self.control.is_dir() else []
        foreign = sorted([*entries, *(path for path in inside if path.name not in OWN_NAMES)])
        if foreign:
            raise ResourceError(
                f"{self.folder}: is not empty and was not begun by {command} (it holds "
                f"{foreign[0].relative_to(self.folder)}); give another --out"
            )

    def _bind(self, now: Begun) -> tuple[bool, dict[str, str]]:
        path = self.control / BEGUN_NAME
        resumed = path.is_file()
        if resumed:
            begun = self._read(path)
            self._refuse_differences(begun, now)
            now = now.model_copy(update={"facts": begun.facts | now.facts})
            if begun == now:
                return True, now.facts
        write_whole(path, now.model_dump_json(indent=1).encode() + b"\n")
        with refused(self.folder):
            sync_folder(self.folder)
        return resumed, now.facts

    def _read(self, path: Path) -> Begun:
        try:
            with refused(path):
                return Begun.model_validate_json(path.read_bytes())
        except ValidationError:
            raise ResourceError(
                f"{path}: is damaged or was written by another version of flagrelease; give another --out, or remove "
                f"{self.folder}"
            ) from None

    def _refuse_differences(self, begun: Begun, now: Begun) -> None:
        if begun.command != now.command:
            raise ResourceError(f"{self.folder}: was begun by {begun.command}; give another --out")
        if differs := differing(begun.binding, now.binding):
            raise ResourceError(
                f"{self.folder}: was begun for {differs}; finish it with the command that began it, or give another "
                "--out"
            )
        for name in sorted(begun.facts.keys() & now.facts.keys()):
            if begun.facts[name] != now.facts[name]:
                raise ResourceError(
                    f"{self.folder}: was begun with {name} {begun.facts[name]}, here it is {now.facts[name]}: results "
                    "of both would be mixed; give another --out"
                )

    def remove_control(self, ours: Collection[str]) -> None:
        """All is done: remove the control folder, as the function of that name does. Closes the folder."""
        remove_control(self.control, self._lock, ours)

    def close(self) -> None:
        """Let another process have the folder. Calling it again does nothing."""
        self._lock.close()

    def __enter__(self) -> WorkFolder:
        """Use as a context."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See `close`."""
        self.close()


def refuse_foreign(control: Path, ours: Collection[str]) -> None:
    """Refuse files in a control folder that nobody but a user can have put there: they would be removed with the rest.

    Raises:
        ResourceError: names the first of them.
    """
    foreign = sorted(path for path in control.iterdir() if path.name not in OWN_NAMES and path.name not in ours)
    if foreign:
        raise ResourceError(f"{foreign[0]}: flagrelease did not write this; move it away and run the command again")


def remove_control(control: Path, lock: FileLock, ours: Collection[str]) -> None:
    """Remove a control folder whose lock is held. The lock goes last and is given back.

    Args:
        control: the folder.
        lock: its `LOCK_NAME`.
        ours: names of the files, beside `OWN_NAMES`, that may be in it.

    Raises:
        ResourceError: something else is in it, or the system refuses.
    """
    refuse_foreign(control, ours)
    with refused(control):
        for path in sorted(control.iterdir()):
            if path.name != LOCK_NAME:
                path.unlink()
        (control / LOCK_NAME).unlink()
    lock.close()  # before rmdir: NFS keeps the name of an open file
    with suppress(OSError):  # another process may just have begun to look at the folder; it then removes it
        control.rmdir()
