"""What verification found: named checks with their findings, as one document that people and `publish` read."""

from __future__ import annotations

import json
import threading
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field

from flagrelease.chips.loading.verdict import Verdict
from flagrelease.chips.stacks import Mark
from flagrelease.records.manifest import ElementCounts, TargetRecord

Status = Literal["pass", "fail", "not-run"]

# A converter bug can spoil every tensor; the first findings say which bug it is, the count how far it goes.
MAX_FINDINGS = 20


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Finding(_Record):
    """One broken rule. `row` and `column` count logical elements of the whole tensor, `offset` bytes in `file`."""

    rule: str
    tensor: str | None = None
    file: str | None = None
    row: int | None = None
    column: int | None = None
    offset: int | None = None

    def __str__(self) -> str:
        """One line: where, then which rule."""
        where = [] if self.tensor is None else [f"tensor {self.tensor!r}"]
        if self.row is not None:
            where.append(f"row {self.row} column {self.column}")
        if self.file is not None:
            where.append(self.file if self.offset is None else f"{self.file} byte {self.offset}")
        return ": ".join([", ".join(where), self.rule] if where else [self.rule])


class Check(_Record):
    """The outcome of one check. `failed` counts all findings, `findings` holds the first of them."""

    name: str
    status: Status
    checked: int = Field(ge=0)
    bytes: int = Field(ge=0)
    detail: str
    failed: int = 0
    findings: tuple[Finding, ...] = ()


class StackVerdict(_Record):
    """What one serving stack makes of the release, by a replay of its loader and by what is known of it.

    Attributes:
        named: whether the recipe or the caller names the stack, so that the check `stacks` depends on it.
        mark: how well what is known of the release's form is known.
        why: sentences.
        flags, environment: without which the stack does not load the release, beside those of its usual launch.
    """

    stack: str
    version: str
    named: bool
    verdict: Verdict
    mark: Mark
    why: tuple[str, ...]
    flags: tuple[str, ...]
    environment: tuple[str, ...]


class VerifyReport(_Record):
    """All checks of one release.

    `manifest_sha256` ties the report to the manifest it was made for. `sample` is the share of weights whose data the
    checks `tensors` and `source` read. `elements` is counted by the second decoder over the sampled weights; null
    where no source was given. `stacks` has every serving stack that reads the release's layout, the named ones first.
    """

    manifest_sha256: str
    model: str | None
    target: TargetRecord
    sample: float
    seed: int
    elements: ElementCounts | None
    checks: tuple[Check, ...]
    stacks: tuple[StackVerdict, ...] = ()

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """No check failed. A check that was not run for lack of a source does not fail a release."""
        return all(check.status != "fail" for check in self.checks)

    def check(self, name: str) -> Check:
        """The check of this name."""
        return next(check for check in self.checks if check.name == name)

    def to_json(self) -> bytes:
        """The report as a JSON document: keys sorted, one newline at the end."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False)
        return text.encode("utf-8") + b"\n"


class CheckLog:
    """Collects what one check sees, from any thread; `close` turns it into a `Check`."""

    def __init__(self, name: str) -> None:
        """Begin the check `name`, with nothing seen."""
        self.name = name
        self.findings: list[Finding] = []
        self._failed = 0
        self._checked = 0
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def failed(self) -> int:
        """Findings so far, those beyond `MAX_FINDINGS` included."""
        return self._failed

    def add(self, finding: Finding) -> None:
        """Record a broken rule."""
        with self._lock:
            self._failed += 1
            self.findings.append(finding)

    def saw(self, items: int, nbytes: int = 0) -> None:
        """Record that `items` things of `nbytes` in all were looked at."""
        with self._lock:
            self._checked += items
            self._bytes += nbytes

    def close(self, detail: str) -> Check:
        """The finished check: it passes if nothing was found."""
        # Threads finish in any order; the report of the same release must not depend on that.
        first = sorted(self.findings, key=lambda f: (f.tensor or "", f.file or "", f.offset or 0, f.rule))
        return Check(
            name=self.name,
            status="fail" if self._failed else "pass",
            checked=self._checked,
            bytes=self._bytes,
            detail=detail,
            failed=self._failed,
            findings=tuple(first[:MAX_FINDINGS]),
        )

    def not_run(self, reason: str) -> Check:
        """The check, marked as not run for `reason`."""
        return Check(name=self.name, status="not-run", checked=0, bytes=0, detail=reason)
