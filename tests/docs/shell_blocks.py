"""The commands that README.md and docs/ show: what stands in fenced blocks without a language.

`<!-- not run: REASON -->` on the line before a block says why no test runs it. Everything else is of another language:
`text` for forms of a command and for output, `json`, `yaml`, `python`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "examples/tiny/README.md"]
_BLOCK = re.compile(r"(?:^<!-- not run: (.+?) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One command of a page, as a user types it, without its comment. `reason`: why no test runs it."""

    page: Path
    text: str
    reason: str | None

    @property
    def parts(self) -> list[list[str]]:
        """The words of each command of an `&&`, without variables that are set for it."""
        found = []
        for part in self.text.split(" && "):
            words = shlex.split(part)
            while words and re.fullmatch(r"[A-Z0-9_]+=.*", words[0]):
                del words[0]
            found.append(words)
        return found

    @property
    def ours(self) -> list[list[str]]:
        """What follows `flagrelease`, of the parts that call it, by torchrun too."""
        calls = []
        for words in self.parts:
            if words[0] == "flagrelease":
                calls.append(words[1:])
            elif "-m" in words and words[words.index("-m") + 1] == "flagrelease":
                calls.append(words[words.index("-m") + 2 :])
        return calls


def commands_of(page: Path) -> Iterator[Command]:
    """The commands of one page, in order. A line that ends with a backslash goes on in the next one."""
    for reason, language, block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if language:
            continue
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            text = re.split(r"(?:^|\s{2,})# ", line)[0].strip()
            if text:
                yield Command(page, text, reason or None)
