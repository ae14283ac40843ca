"""Grammars compiled in threads of their own, bounded in time and size, and kept."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import re
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import TYPE_CHECKING

from flagrelease.engine.constraints.calls import place_of
from flagrelease.engine.constraints.constraint import Constraint
from flagrelease.engine.constraints.wanted import Calls, Grammar, Wanted
from flagrelease.engine.text import Tokenizer
from flagrelease.errors import UsageError
from flagrelease.extras import remedy
from flagrelease.model.v4.chat import DSML, END_THINK, EOS
from flagrelease.model.v4.encoded import Part

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher, LLTokenizer

_IN_GRAMMAR = re.compile(r"at (\d+)\(\d+\): (?:failed to compile JSON schema: )?(.*)")
_QUOTED = re.compile(r"\s*\d+ \| ")
_WORDS = {
    "Unimplemented keys:": "keywords that are not enforced here:",
    "oneOf constraints are not supported. Enable 'coerce_one_of' option to approximate oneOf with anyOf": (
        "the alternatives of oneOf may overlap, which is not enforced here; anyOf is"
    ),
}
_TRIED = 3  # steps that are tried: an expression that is too large shows it in its first ones
_KEPT = 64  # compiled grammars: some MB each, at most


class Compiler:
    """Compiles what requests want. It may be called by coroutines of any event loop."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Nothing is loaded before the first constraint is asked for."""
        self._tokenizer = tokenizer
        self._loading, self._lock = threading.Lock(), threading.Lock()
        self._loaded: tuple[LLTokenizer, LLExecutor] | None = None
        self._pool = ThreadPoolExecutor(2, "constraints")  # a hostile schema holds one of them for a second or so
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()

    async def compile(self, wanted: Wanted, part: Part) -> Constraint:
        """The constraint for an answer that begins in `part`; the reasoning is free.

        Raises:
            UsageError: llguidance is not installed, what is wanted cannot be enforced, or it takes too much.
        """
        if importlib.util.find_spec("llguidance") is None:
            raise UsageError(f"this needs llguidance, which the server does not have: {remedy('constraints')}")
        after = (self._id(END_THINK),) if part == "reasoning_content" else ()
        waits = isinstance(wanted, Calls) and wanted.waits
        digest, matcher = await asyncio.get_running_loop().run_in_executor(self._pool, self._compile, wanted)
        tokenizer, threads = self._tables()
        first = (*after, self._id(DSML)) if waits else after
        return Constraint(digest, first, not waits, matcher, threads, tokenizer.vocab_size)

    def _id(self, special: str) -> int:
        ids = self._tokenizer.encode(special)
        if len(ids) != 1:
            raise UsageError(f"the release's tokenizer has no token {special}")
        return ids[0]

    def _compile(self, wanted: Wanted) -> tuple[str, LLMatcher]:
        grammar = wanted.grammar(self._id(DSML) if isinstance(wanted, Calls) else -1)
        digest = hashlib.blake2b(json.dumps(grammar).encode(), digest_size=16).hexdigest()
        with self._lock:
            matcher = self._kept.pop(digest, None)
        if matcher is None:
            matcher = _matcher(self._tables()[0], grammar)
        with self._lock:
            self._kept[digest] = matcher
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return digest, matcher

    def _tables(self) -> tuple[LLTokenizer, LLExecutor]:
        """The tokenizer as llguidance needs it, and its threads. All added tokens are special: none of them is text."""
        from llguidance import LLExecutor, LLTokenizer

        with self._loading:
            if self._loaded is None:
                document = self._tokenizer.document()
                for token in document["added_tokens"]:
                    token["special"] = True
                self._loaded = LLTokenizer(json.dumps(document), eos_token=self._id(EOS)), LLExecutor()
            return self._loaded


def _matcher(tokenizer: LLTokenizer, grammar: Grammar) -> LLMatcher:
    from llguidance import LLMatcher, LLParserLimits

    kind, text = grammar
    compiled = LLMatcher.grammar_from_regex(text) if kind == "regex" else LLMatcher.grammar_from_lark(text)
    # fuel is 0.1 microseconds of a lexer's work, the others are counts; the defaults are 4 to 12 times as much
    limits = LLParserLimits(
        initial_lexer_fuel=200_000,
        step_lexer_fuel=50_000,
        step_max_items=10_000,
        max_lexer_states=20_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )
    matcher = LLMatcher(tokenizer, compiled, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()  # what all copies share is warm then
    tried = matcher.deep_copy()
    for _ in range(_TRIED):
        token = _first(tried.compute_bitmask())
        if tried.is_error() or tried.is_stopped() or not tried.consume_token(token):
            break
    if tried.is_error():
        raise UsageError(_readable(tried.get_error(), text))
    return matcher


def _first(mask: bytes) -> int:
    """The first token that is allowed."""
    place = next(place for place, byte in enumerate(mask) if byte)
    return place * 8 + (mask[place] & -mask[place]).bit_length() - 1


def _readable(error: str, grammar: str) -> str:
    """llguidance's message without the grammar that it quotes, and the schema's place where the grammar tells it."""
    told = takewhile(lambda line: not _QUOTED.match(line), error.replace("<non-verbose/>", "").strip().split("\n"))
    text, place = " ".join(" ".join(told).split()), ""
    if found := _IN_GRAMMAR.fullmatch(text):
        lines, text = grammar.split("\n"), found[2]
        place = place_of(lines[int(found[1]) - 1]) if int(found[1]) <= len(lines) else ""
    for theirs, ours in _WORDS.items():
        text = text.replace(theirs, ours)
    whole = f"{place}: {text}" if place else text
    return whole if len(whole) <= 300 else f"{whole[:297]}..."
