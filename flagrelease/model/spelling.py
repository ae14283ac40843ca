"""How the markup of tool calls is spelt: DeepSeek-V4 and V4.1 write the same tags with other words."""

from __future__ import annotations

from dataclasses import dataclass

DSML = "｜DSML｜"


@dataclass(frozen=True, slots=True)
class Spelling:
    """What stands behind `｜DSML｜` in each kind of tag.

    Attributes:
        calls: of a block of calls.
        invoke: of one call.
        parameter: of one argument.
        empty: the space between the tags of a call without arguments.
    """

    calls: str
    invoke: str
    parameter: str
    empty: str

    def opening(self, word: str) -> str:
        """A tag that opens, up to its attributes."""
        return f"<{DSML}{word}"

    def closing(self, word: str) -> str:
        """A whole tag that closes."""
        return f"</{DSML}{word}>"

    @property
    def block(self) -> str:
        """The tag that opens a block of calls."""
        return f"{self.opening(self.calls)}>"

    @property
    def end_block(self) -> str:
        """The tag that closes it."""
        return self.closing(self.calls)

    @property
    def end_invoke(self) -> str:
        """The tag that closes a call."""
        return self.closing(self.invoke)


OF_V4 = Spelling("tool_calls", "invoke", "parameter", "\n")
OF_V41 = Spelling(" calls", " invoke", " parameter", "\n\n")
