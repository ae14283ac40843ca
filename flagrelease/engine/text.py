"""The tokenizer of a release, and text that grows token by token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer as HfTokenizer
from tokenizers.decoders import DecodeStream

from flagrelease.errors import CheckpointError, UsageError
from flagrelease.model.v4.encoded import EncodedChat


class Tokenizer:
    """`tokenizer.json`. Nothing is added on the way in: the chat encoding writes the special tokens."""

    def __init__(self, folder: str | Path) -> None:
        """Read the tokenizer of the release in `folder`.

        Raises:
            CheckpointError: there is none.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{path}: not found; text needs the release's tokenizer (token ids do not)")
        self._tokenizer = HfTokenizer.from_file(str(path))

    def encode(self, text: str | EncodedChat) -> list[int]:
        """Token ids. Special tokens are recognised in a text; in a chat, only those that its encoding wrote.

        Raises:
            UsageError: the text holds half of a surrogate pair.
        """
        if isinstance(text, EncodedChat):
            parts = [self._ids(piece, self._tokenizer if special else self._plain) for piece, special in text.pieces]
            return [token for ids in parts for token in ids]
        return self._ids(text, self._tokenizer)

    def _ids(self, text: str, tokenizer: HfTokenizer) -> list[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair, UTF-8 cannot hold it
            half = ord(text[error.start])
            raise UsageError(f"the text holds half of a character, \\u{half:04x}, as a cut emoji does") from None
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def _plain(self) -> HfTokenizer:
        """The same without the added vocabulary, so that a special token that is spelt out is only its characters."""
        document = json.loads(self._tokenizer.to_str())
        return HfTokenizer.from_str(json.dumps({**document, "added_tokens": [], "post_processor": None}))

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`, special ones written out."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=False)
        return text

    def stream(self) -> TokenStream:
        """For text that grows."""
        return TokenStream(self._tokenizer)


class TokenStream:
    """Tokens in, text out as soon as it is whole characters."""

    def __init__(self, tokenizer: HfTokenizer) -> None:
        """Nothing has come yet."""
        self._tokenizer, self._tokens, self._said = tokenizer, list[int](), ""
        self._stream = DecodeStream(skip_special_tokens=False)

    def push(self, token: int) -> str:
        """The text that `token` completes, often empty inside a character of several tokens."""
        self._tokens.append(token)
        text = self._stream.step(self._tokenizer, token) or ""
        self._said += text
        return text

    def rest(self) -> str:
        """What was held back, at the end: an incomplete character as U+FFFD."""
        whole: str = self._tokenizer.decode(self._tokens, skip_special_tokens=False)
        return whole[len(self._said) :]


def held_back(text: str, markers: Sequence[str]) -> int:
    """Characters at the end of `text` that one of `markers` may begin with."""
    lengths = (n for marker in markers for n in range(1, len(marker)) if text.endswith(marker[:n]))
    return max(lengths, default=0)


class StopWatch:
    """Text in, the same text out up to the first stop string, with nothing said that a stop string may begin with."""

    def __init__(self, stops: Sequence[str]) -> None:
        """No text has come yet."""
        self._stops, self._held = tuple(stops), ""
        self.stopped_by: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self.stopped_by is not None

    def push(self, text: str) -> str:
        """What can be said now. After a stop string nothing can; `stopped_by` is that string."""
        if self.stopped:
            return ""
        self._held += text
        found = [(at, stop) for at, stop in ((self._held.find(stop), stop) for stop in self._stops) if at >= 0]
        if found:
            at, self.stopped_by = min(found, key=lambda each: each[0])
            said, self._held = self._held[:at], ""
            return said
        cut = len(self._held) - held_back(self._held, self._stops)
        said, self._held = self._held[:cut], self._held[cut:]
        return said

    def rest(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held
