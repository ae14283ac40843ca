"""Whether text stands inside Markdown's code, where markup is shown and not meant."""

from __future__ import annotations

from dataclasses import dataclass

_LONG = 256


@dataclass(slots=True)
class Quoting:
    """Read text in order, then ask whether what follows is in a fence of ``` or ~~~, or between single backticks."""

    _fence: str = ""  # the three characters that opened the fence which is still open
    _line: str = ""

    def read(self, text: str) -> None:
        """Go on behind `text`."""
        first, *others = text.split("\n")
        self._line = _shortened(self._line + first)
        for line in others:
            self._end_line()
            self._line = _shortened(line)

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


def _shortened(line: str) -> str:
    """A long line of a few characters that is quoted alike, whatever follows: else it is copied with each token."""
    if len(line) <= _LONG:
        return line
    bare = line.lstrip()
    fence = bare[: len(bare) - len(bare.lstrip(bare[0]))] if bare[:1] in ("`", "~") else ""
    rest = bare[len(fence) :]
    kept = fence[: 3 + (len(fence) - 3) % 2] if len(fence) >= 3 else fence  # an odd number stays odd
    if not rest.strip():
        return kept + rest[:1]
    ticks = rest.count("`")
    return f"{kept}x{'`' * (2 - ticks % 2 if ticks else 0)}"
