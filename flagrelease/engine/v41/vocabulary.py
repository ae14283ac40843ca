"""The vocabulary of Engram's n-grams: tokens that differ in case, accents, width or space alone are one word.

Rules: DeepSeek's inference/engram.py of V4.1. It is computed from the release's tokenizer, and where the published
digest is known it must be that one: another numbering would read other rows of the tables, and answers would only be a
little worse.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, normalizers
from torch import Tensor

from flagrelease.errors import CheckpointError
from flagrelease.model.v41.config import V41Config

# Words -> SHA-256 of the map as little-endian int64, of DeepSeek's tokenizer.
_DIGESTS = {99_092: "26b9be2936d236a124ba318a998c417bc7032e3e92a3107fe98deee49f1dc496"}
_CUT = "\N{REPLACEMENT CHARACTER}"  # in the text of a token that is a part of a character
_LONE_SPACE = "\ue000"  # stands for a text of one space while spaces are stripped
_WORD = normalizers.Sequence(
    [
        normalizers.NFKC(),
        normalizers.NFD(),
        normalizers.StripAccents(),
        normalizers.Lowercase(),
        normalizers.Replace(Regex(r"[ \t\r\n]+"), " "),
        normalizers.Replace(Regex("^ $"), _LONE_SPACE),
        normalizers.Strip(),
        normalizers.Replace(_LONE_SPACE, " "),
    ]
)


def compressed_ids(folder: Path, config: V41Config) -> Tensor:
    """The word of every token id, int64 [V], numbered in the order of the ids that have them first.

    Raises:
        CheckpointError: there is no tokenizer, or it makes another vocabulary than the model was trained with.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{path}: not found; Engram's tables are read by words, which the tokenizer tells")
    tokenizer = Tokenizer.from_file(str(path))
    texts = tokenizer.decode_batch([[token] for token in range(config.vocab_size)], skip_special_tokens=False)
    numbers: dict[str, int] = {}
    words = [numbers.setdefault(_word(tokenizer, token, text), len(numbers)) for token, text in enumerate(texts)]
    found = torch.tensor(words, dtype=torch.int64)
    wanted = config.engram_compressed_vocab_size
    if len(numbers) != wanted:
        raise CheckpointError(
            f"{path}: its tokens are {len(numbers)} words, and engram_compressed_vocab_size is {wanted}: it is not the "
            f"tokenizer that this model was trained with"
        )
    if wanted in _DIGESTS and hashlib.sha256(found.numpy().astype("<i8").tobytes()).hexdigest() != _DIGESTS[wanted]:
        raise CheckpointError(f"{path}: its tokens make other words than DeepSeek-V4.1's tokenizer does")
    return found


def _word(tokenizer: Tokenizer, token: int, text: str) -> str:
    if _CUT in text:
        return tokenizer.id_to_token(token) or text
    normal: str = _WORD.normalize_str(text)
    return normal or text
