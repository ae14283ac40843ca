"""Whether `tokenizer.json` is a tokenizer, and one for this model; looked at before hours are spent on a release."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from flagrelease.strict_json import parse_json

TOKENIZER_NAME = "tokenizer.json"
# Embeddings are padded to round sizes, so a few of their rows have no token. DeepSeek-V4's own has one for each row;
# a tokenizer that lacks more than this share of the rows was made for another model.
_MOST_UNUSED = 0.01
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def tokenizer_problems(path: PurePath, content: bytes, vocab_size: int, configs: dict[str, Any]) -> Iterator[str]:
    """Every reason why `content`, the file at `path`, cannot be the tokenizer of this model, as sentences.

    Args:
        vocab_size: rows of the embedding.
        configs: name -> document of the files that name special tokens (config.json, generation_config.json).
    """
    try:
        document = parse_json(content)
    except ValueError as error:
        yield f"{path}: is not valid JSON ({error}): cut off, or not a tokenizer"
        return
    ids = _ids(document)
    if ids is None:
        yield f"{path}: is not a tokenizer: model.vocab and the ids of added_tokens are expected"
        return
    if (largest := max(ids, default=-1)) >= vocab_size:
        yield f"{path}: has token id {largest}; the model's embedding has {vocab_size} rows (vocab_size in config.json)"
    covered = sum(1 for one in ids if one < vocab_size)
    if covered < (1 - _MOST_UNUSED) * vocab_size:
        yield f"{path}: has {covered} tokens for an embedding of {vocab_size} rows: the tokenizer of another model"
    for name, config in configs.items():
        for key in _SPECIAL:
            for one in _listed(config.get(key)):
                if one not in ids:
                    yield f"{path}: has no token {one}, which {name} names as {key}"


def _ids(document: Any) -> set[int] | None:
    if not isinstance(document, dict) or not isinstance(model := document.get("model"), dict):
        return None
    vocab, added = model.get("vocab"), document.get("added_tokens", [])
    if isinstance(vocab, list):  # Unigram: an entry's place is its id
        ids = set(range(len(vocab)))
    elif isinstance(vocab, dict):
        ids = set(vocab.values())
    else:
        return None
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        return None
    ids |= {token.get("id") for token in added}
    return ids if all(type(one) is int for one in ids) else None


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
