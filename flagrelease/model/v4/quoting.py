"""Whether text stands inside Markdown's code, where markup is shown and not meant."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Quoting:
    """Read text in order, then ask whether what follows is in a fence of ``` or ~~~, or between single backticks."""

    _fence: str = ""  # the three characters that opened the fence which is still open
    _line: str = ""

    def read(self, text: str) -> None:
        """Go on behind `text`."""
        first, *others = text.split("\n")
        self._line += first
        for line in others:
            self._end_line()
            self._line = line

    def after(self, text: str) -> bool:
        """Whether what follows `text`, which comes next, is quoted."""
        ahead = Quoting(self._fence, self._line)
        ahead.read(text)
        return bool(ahead._fence) or ahead._line.count("`") % 2 == 1

    def starts_line(self, text: str) -> bool:
        """Whether nothing but space stands on the line that `text`, which comes next, ends in."""
        _, newline, line = text.rpartition("\n")
        return not (line if newline else self._line + line).strip()

    def _end_line(self) -> None:
        bare = self._line.strip()
        if self._fence:
            if bare.startswith(self._fence) and not bare.strip(self._fence[0]):
                self._fence = ""
        elif bare.startswith("~~~") or (bare.startswith("```") and "`" not in bare.lstrip("`")):
            self._fence = bare[:3]
