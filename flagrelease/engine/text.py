"""The tokenizer of a release, and text that grows token by token."""

from __future__ import annotations

import json
from codecs import getincrementaldecoder
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HfTokenizer
from tokenizers.decoders import ByteLevel

from flagrelease.errors import CheckpointError, UsageError
from flagrelease.model.v4.encoded import EncodedChat


class Tokenizer:
    """`tokenizer.json`, whose tokens are bytes. Nothing is added on the way in: a chat brings its special tokens."""

    def __init__(self, folder: str | Path) -> None:
        """Read the tokenizer of the release in `folder`.

        Raises:
            CheckpointError: there is none, or its tokens do not stand for bytes.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{path}: not found; text needs the release's tokenizer (token ids do not)")
        self._tokenizer = HfTokenizer.from_file(str(path))
        if not isinstance(self._tokenizer.decoder, ByteLevel):
            kind = type(self._tokenizer.decoder).__name__
            raise CheckpointError(f"{path}: the decoder is {kind}; DeepSeek-V4's is ByteLevel, whose tokens are bytes")
        self._bytes: dict[int, bytes] = {}

    def encode(self, text: str | EncodedChat) -> list[int]:
        """Token ids. Special tokens are recognised in a text; in a chat, only those that its encoding wrote.

        Raises:
            UsageError: the text holds half of a surrogate pair, or a chat shows images.
        """
        if isinstance(text, EncodedChat):
            if text.images:
                raise UsageError(
                    "the chat shows an image, and the bundled engine reads text only: it runs no vision tower"
                )
            parts = [self._ids(piece, self._tokenizer if special else self._plain) for piece, special in text.pieces]
            return [token for ids in parts for token in ids]
        return self._ids(text, self._tokenizer)

    def _ids(self, text: str, tokenizer: HfTokenizer) -> list[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair, UTF-8 cannot hold it
            half = ord(text[error.start])
            raise UsageError(f"the text holds half of a character, \\u{half:04x}, as a cut emoji does") from None
        # Of the methods of tokenizers 0.23 that encode, those for one text hold Python's lock until they are done.
        (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids

    def prepare(self) -> None:
        """Make what the first chat would wait for: seconds with DeepSeek's vocabulary."""
        _ = self._plain, self.longest

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token."""
        return max(len(self.bytes_of(token)) for token in self._tokenizer.get_vocab().values())

    @cached_property
    def _plain(self) -> HfTokenizer:
        """The same without the added vocabulary, so that a special token that is spelt out is only its characters."""
        return HfTokenizer.from_str(json.dumps({**self.document(), "added_tokens": [], "post_processor": None}))

    def document(self) -> dict[str, Any]:
        """What `tokenizer.json` holds."""
        document: dict[str, Any] = json.loads(self._tokenizer.to_str())
        return document

    def bytes_of(self, token: int) -> bytes:
        """UTF-8 that `token` stands for, perhaps only a part of a character; empty for an id without a token."""
        if (known := self._bytes.get(token)) is None:
            name = self._tokenizer.id_to_token(token)
            if name is None:
                return b""
            known = self._bytes[token] = _bytes_of(name)
        return known

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`, special ones written out. Each part of a character that is not whole is one U+FFFD."""
        return b"".join(map(self.bytes_of, tokens)).decode("utf-8", "replace")

    def stream(self) -> TokenStream:
        """For text that grows."""
        return TokenStream(self.bytes_of)


class TokenStream:
    """Tokens in, text out as soon as it is whole characters.

    Attributes:
        begin, end: the characters of the text, counted from 0, that hold a byte of the newest token. A token without
            text has none: they are equal. Tokens that share a character have it both.
    """

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        """`bytes_of`: the bytes of a token. Nothing has come yet."""
        self._bytes_of, self._decoder = bytes_of, getincrementaldecoder("utf-8")("replace")
        self._length = self.begin = self.end = 0

    @property
    def length(self) -> int:
        """Characters so far, an incomplete one included."""
        return self._length + self._is_inside

    def push(self, token: int) -> str:
        """The text that `token` completes, often empty inside a character of several tokens."""
        raw = self._bytes_of(token)
        text = self._read(raw[:1])
        self.begin = self._length - (bool(raw) and not self._is_inside)
        text += self._read(raw[1:])
        self.end = self.length if raw else self.begin
        return text

    def rest(self) -> str:
        """What was held back, at the end: an incomplete character as U+FFFD."""
        return self._read(b"", final=True)

    def _read(self, raw: bytes, *, final: bool = False) -> str:
        text = self._decoder.decode(raw, final)
        self._length += len(text)
        return text

    @property
    def _is_inside(self) -> bool:
        """Whether the last byte left a character incomplete."""
        return bool(self._decoder.getstate()[0])


def _alphabet() -> dict[str, int]:
    """The characters that stand for bytes in the vocabulary: where one is not visible, another from U+0100 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + n): byte for n, byte in enumerate(unseen)}


_BYTE_OF = _alphabet()


def _bytes_of(token: str) -> bytes:
    """A token that was added has characters of its own."""
    try:
        return bytes([_BYTE_OF[character] for character in token])
    except KeyError:
        return token.encode()
