"""Answers that are programs: the code out of the text, the tests around it, and the sandbox that runs both.

Two forms of tests, as the items' `key` holds them:

    {"entry_point": "f", "prompt": "def f(..):\\n ..", "test": "def check(candidate): .."}      HumanEval
    {"cases": [{"input": "3\\n", "output": "9\\n"}, ..]}                                        LiveCodeBench, stdin
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Protocol

from flagrelease.validate.exams.items import CODE_PASSES, Item
from flagrelease.validate.exams.marking.mark import Mark, other_than

_FENCE = re.compile(
    r"^[ \t]*```[ \t]*(?:python|py|python3)?[ \t]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE | re.IGNORECASE
)
_CASES = """\
import io, json, sys
_code, _cases = json.loads({data!r})
for _case in _cases:
    sys.stdin, sys.stdout = io.StringIO(_case["input"]), io.StringIO()
    try:
        exec(compile(_code, "answer", "exec"), {{"__name__": "__main__"}})
    except SystemExit as _end:
        if _end.code not in (None, 0):
            raise
    _said, sys.stdout = sys.stdout.getvalue(), sys.__stdout__
    _lines = [[_line.rstrip() for _line in _text.rstrip().split("\\n")] for _text in (_said, _case["output"])]
    assert _lines[0] == _lines[1]
"""


class Runs(Protocol):
    """Runs programs; `Sandbox` is one."""

    def passes(self, program: str) -> bool:
        """Whether a program ends well."""
        ...


@dataclass(frozen=True, slots=True)
class CodeMarker:
    """Right is what passes the item's tests."""

    sandbox: Runs

    def mark(self, item: Item, text: str) -> Mark:
        """As `Marker` says. Without a block of code there is no answer."""
        code = last_block(text)
        if code is None:
            return Mark(None)
        passes = self.sandbox.passes(program_of(code, json.loads(item.key)))
        return Mark(CODE_PASSES if passes else other_than(code))


def last_block(text: str) -> str | None:
    """The last fenced block of Python in an answer; a block that is not closed is cut off, and none."""
    blocks = _FENCE.findall(text)
    return blocks[-1] if blocks and blocks[-1].strip() else None


def program_of(code: str, tests: dict[str, Any]) -> str:
    """The program that comes to its end where the code passes its tests. It is made here and never run here."""
    if "cases" in tests:
        return _CASES.format(data=json.dumps([code, tests["cases"]]))
    name = tests["entry_point"]
    before, _, _ = tests["prompt"].partition(f"def {name}")
    if re.search(rf"^def {re.escape(name)}\b", code, re.MULTILINE):
        whole = f"{before}\n{code}"  # with the imports and helpers that the prompt has before the function
    else:
        whole = tests["prompt"] + code  # some models write the body alone
    return f"{whole}\n\n{tests['test']}\n\ncheck({name})\n"
