"""What is run teacher-forced for the logits, and how much of it a baseline keeps."""

from __future__ import annotations

from pydantic import Field

from flagrelease.records.rules.strict import Strict


class ReplayRules(Strict):
    """What is run teacher-forced, and how much of it is kept. A baseline holds these, and is refused under others.

    Attributes:
        documents: of the set, at most (the first ones).
        tokens, long_tokens: of a document, at most; the latter of one whose kind is `long`.
        decode_tokens: at a document's end that are also fed one by one, through the cache.
        top: most likely tokens kept at each position; a smaller vocabulary is kept whole.
        chunk: tokens the engine takes in one step.
        floor_chunk, floor_rows: the noise floor is another run with steps of `floor_chunk` tokens, and `floor_rows`
            equal sequences side by side where tokens are fed one by one.
        layer_positions: of a document, evenly spread to its end, at which the states of all layers are kept.
    """

    documents: int = Field(64, ge=2)
    tokens: int = Field(512, ge=3)
    long_tokens: int = Field(16384, ge=3)
    decode_tokens: int = Field(128, ge=1)
    top: int = Field(1000, ge=2)
    chunk: int = Field(512, ge=1)
    floor_chunk: int = Field(192, ge=1)
    floor_rows: int = Field(3, ge=1)
    layer_positions: int = Field(1, ge=1)
