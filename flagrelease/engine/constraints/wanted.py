"""What an answer is to be, and the grammar that says so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from flagrelease.engine.constraints.calls import CalledTool, block_rules
from flagrelease.engine.constraints.schemas import LONGEST_TEXT, Schema, check_schema, json_text
from flagrelease.errors import UsageError
from flagrelease.model.spelling import OF_V4, Spelling

Grammar = tuple[Literal["lark", "regex"], str]


@dataclass(frozen=True, slots=True)
class JsonAnswer:
    """JSON that fulfils a schema."""

    schema: Schema

    def grammar(self, dsml: int) -> Grammar:
        """In Lark's form. `dsml`: the token that every tag of a call has.

        Raises:
            UsageError: the schema is too large.
        """
        check_schema(self.schema)
        return "lark", f"start: %json {json_text(self.schema)}"


@dataclass(frozen=True, slots=True)
class RegexAnswer:
    """A text that matches a regular expression as a whole."""

    pattern: str

    def grammar(self, dsml: int) -> Grammar:
        """The expression itself.

        Raises:
            UsageError: it is too long.
        """
        if len(self.pattern) > LONGEST_TEXT:
            raise UsageError(f"an expression of {len(self.pattern)} characters; at most {LONGEST_TEXT} are taken")
        return "regex", self.pattern


@dataclass(frozen=True, slots=True)
class ChosenAnswer:
    """One of some texts."""

    texts: Sequence[str]

    def grammar(self, dsml: int) -> Grammar:
        """An alternative for each.

        Raises:
            UsageError: there are none, or too many.
        """
        if not self.texts:
            raise UsageError("no choices")
        check_schema(list(self.texts))
        return "lark", "start: CHOICE\nCHOICE: " + " | ".join(
            json.dumps(each, ensure_ascii=False) for each in self.texts
        )


@dataclass(frozen=True, slots=True)
class Calls:
    """Tool calls.

    Attributes:
        tools: what may be called.
        required: the answer is a block of calls; else the model decides, and a block that it begins is held to form.
        several: a block may have more than one call.
        answer: what an answer without calls must be, where the model decides; None: any text.
        spelling: of the block.
    """

    tools: Sequence[CalledTool]
    required: bool
    several: bool
    answer: JsonAnswer | None = None
    spelling: Spelling = OF_V4

    @property
    def waits(self) -> bool:
        """Whether nothing is constrained before a block begins."""
        return not self.required and self.answer is None

    def grammar(self, dsml: int) -> Grammar:
        """That of a block, from its beginning, or where one `waits` from behind the first tag's first token.

        Raises:
            UsageError: a schema cannot be enforced or is too large.
        """
        block = block_rules(self.tools, dsml, self.spelling, several=self.several, opened=self.waits)
        if self.answer is None:
            return "lark", f"start: block\n{block}"
        check_schema(self.answer.schema)
        return "lark", f"start: block | answer\nanswer: %json {json_text(self.answer.schema)}\n{block}"


Wanted = JsonAnswer | RegexAnswer | ChosenAnswer | Calls
