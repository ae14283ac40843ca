"""`marking`: the marker of a kind of exam, ready for answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from flagrelease.errors import UsageError
from flagrelease.records.rules import ExamKind
from flagrelease.validate.exams.extraction import Extracted, extract
from flagrelease.validate.exams.instructions import CHECKS
from flagrelease.validate.exams.items import INSTRUCTIONS_FOLLOWED, Item
from flagrelease.validate.exams.marking.code import CodeMarker
from flagrelease.validate.exams.marking.expressions import Equality, ExpressionMarker
from flagrelease.validate.exams.marking.mark import Mark, Marker
from flagrelease.validate.exams.marking.sandbox import Sandbox

CODE_NEEDS_SANDBOX = "it runs what the model writes, and needs --sandbox"


def can_be_marked(kind: ExamKind, sandbox: str | None) -> bool:
    """Whether an exam of this kind can be asked at all: code is run in the user's sandbox, or not at all."""
    return kind != "code" or sandbox is not None


def require_markers(kinds: Iterable[ExamKind], sandbox: str | None) -> None:
    """Refuse before anything is asked what marking would refuse after it.

    Raises:
        UsageError: the sandbox is none.
        ResourceError: the package that compares expressions is missing.
    """
    for kind in set(kinds):
        if kind in ("code", "expression") and can_be_marked(kind, sandbox):
            with marking(kind, sandbox):
                pass


@contextmanager
def marking(kind: ExamKind, sandbox: str | None) -> Iterator[Marker]:
    """The marker of a kind. `sandbox`: the command that code runs in.

    Raises:
        UsageError: code without a sandbox, or one that does not do what a sandbox does.
        ResourceError: the package that compares expressions is missing, or does not.
    """
    if kind == "code":
        if sandbox is None:
            raise UsageError(f"an exam of code: {CODE_NEEDS_SANDBOX}")
        opened = Sandbox(sandbox)
        opened.probe()
        yield CodeMarker(opened)
    elif kind == "expression":
        with Equality() as equality:
            equality.probe()
            yield ExpressionMarker(equality)
    elif kind == "instructions":
        yield InstructionMarker()
    else:
        yield ExtractingMarker(kind)


@dataclass(frozen=True, slots=True)
class ExtractingMarker:
    """Letters and numbers, which are right where they are the same text."""

    kind: Extracted

    def mark(self, item: Item, text: str) -> Mark:
        """As `Marker` says."""
        return Mark(extract(text, self.kind))


@dataclass(frozen=True, slots=True)
class InstructionMarker:
    """Right is what follows every instruction of the item, which are its `key`."""

    def mark(self, item: Item, text: str) -> Mark:
        """As `Marker` says. An empty answer is none."""
        if not text.strip():
            return Mark(None)
        followed = all(CHECKS[name](text.strip(), given) for name, given in json.loads(item.key))
        return Mark(INSTRUCTIONS_FOLLOWED if followed else "broken")
