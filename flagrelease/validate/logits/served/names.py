"""`TokenNames`: which token a server means when it writes a token's text in place of its id."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol


class Spelt(Protocol):
    """What is needed of a tokenizer; `engine.text.Tokenizer` is one."""

    def bytes_of(self, token: int) -> bytes:
        """What the token stands for."""
        ...


class TokenNames:
    """The texts under which servers show tokens.

    A token that is no whole characters is shown as U+FFFD by vLLM and SGLang, and as `bytes:\\xe4\\xb8` by OpenAI and
    `flagrelease serve`. Several tokens may so have one name; such a name tells nothing.
    """

    def __init__(self, tokenizer: Spelt, vocabulary: int) -> None:
        """`vocabulary`: tokens that the model has."""
        self._tokenizer, self._vocabulary = tokenizer, vocabulary

    def fits(self, name: str, token: int) -> bool:
        """Whether a server may call the token so."""
        return name in _names(self._tokenizer.bytes_of(token))

    def id_of(self, name: str) -> int | None:
        """The only token that is called so; None if there is none, or several."""
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> dict[str, int]:
        once: dict[str, int] = {}
        again: set[str] = set()
        for token in range(self._vocabulary):
            for name in _names(self._tokenizer.bytes_of(token)):
                (again.add(name) if name in once else once.update({name: token}))
        return {name: token for name, token in once.items() if name not in again}


def _names(raw: bytes) -> set[str]:
    spelt = "".join(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in raw)
    return {raw.decode("utf-8", "replace"), f"bytes:{spelt}"} if raw else set()
