"""Whether text stands inside Markdown's code, where markup is shown and not meant."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Quoting:
    """Read text in order, then ask whether what follows is in a fence of ``` or between single backticks."""

    _fenced: bool = False
    _line: str = ""

    def read(self, text: str) -> None:
        """Go on behind `text`."""
        first, *others = text.split("\n")
        self._line += first
        for line in others:
            self._fenced ^= self._is_fence(self._line)
            self._line = line

    def after(self, text: str) -> bool:
        """Whether what follows `text`, which comes next, is quoted."""
        ahead = Quoting(self._fenced, self._line)
        ahead.read(text)
        return ahead._fenced or ahead._line.count("`") % 2 == 1

    def _is_fence(self, line: str) -> bool:
        bare = line.strip()
        if not bare.startswith("```"):
            return False
        return not bare.strip("`") if self._fenced else "`" not in bare.lstrip("`")
