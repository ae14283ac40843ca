"""Arguments for operators whose cached keys are rows of codes, and for those that make such rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from decoding_cases import _entries, attention, compress, latents, positions, several
from kernel_cases import BF16, Case, index, spread
from kernel_cases import attention as sparse
from torch import Tensor

from flagrelease.engine.kernels.reference.key_rows import pack_index_keys, pack_keys, unpack_index_keys, unpack_keys

Arguments = tuple[Any, ...]
ROWS = torch.tensor([3, 0, 2, 0])  # of the cache, that four sequences have


@dataclass(frozen=True)
class CodedCase:
    """A call over plain keys, and which argument of it they are."""

    operator: str
    label: str
    place: int
    make: Callable[[], Arguments]
    index: bool = False

    def coded(self, arguments: Arguments) -> Arguments:
        """With the keys as rows of codes."""
        return self._with(arguments, (pack_index_keys if self.index else pack_keys)(arguments[self.place]))

    def rounded(self, arguments: Arguments) -> Arguments:
        """With plain keys of the values that the codes hold."""
        keys: Tensor = arguments[self.place]
        unpack, pack = (unpack_index_keys, pack_index_keys) if self.index else (unpack_keys, pack_keys)
        return self._with(arguments, unpack(pack(keys), keys.shape[-1]))

    def _with(self, arguments: Arguments, keys: Tensor) -> Arguments:
        return *arguments[: self.place], keys, *arguments[self.place + 1 :]


def _latents() -> Arguments:
    return latents(BF16, 3, several(6, 20, 3, fewer=2), True, 6)


def _compress(ratio: int, d: int, at: Tensor, rounding: str, width: int = 1) -> Callable[[], Arguments]:
    return lambda: compress(BF16, ratio, d, at, rounding, width)


def _attention(h: int, d: int, at: Tensor, ratio: int, chosen: int | None, width: int = 1) -> Callable[[], Arguments]:
    return lambda: attention(BF16, h, d, at, ratio, chosen, d % 256 == 0, width=width)


CODED = [
    CodedCase("latents", "codes", 7, _latents),
    CodedCase("compress_token", "codes", 10, _compress(4, 128, several(6, 0, 2, 25), "fp8", 6)),
    CodedCase("compress_token", "128 codes", 10, _compress(128, 128, positions(127, 255), "fp8")),
    CodedCase("compress_token", "index codes", 10, _compress(4, 128, positions(3, 43), "hadamard_fp4"), True),
    CodedCase("compress_token", "narrow index codes", 10, _compress(4, 32, positions(7), "hadamard_fp4"), True),
    CodedCase("decode_attention", "codes of a window", 1, _attention(5, 128, positions(7, 60, -1), 0, None)),
    CodedCase("decode_attention", "codes", 1, _attention(5, 256, several(6, 30, 77, fewer=3), 4, 70, 6)),
    CodedCase("decode_attention", "codes of a prefix", 1, _attention(20, 128, positions(2, 79), 4, None)),
    CodedCase("decode_attention", "codes, many rows", 1, _attention(3, 128, torch.arange(-1, 32) * 3, 4, 20)),
    CodedCase("decode_attention", "codes, long list", 1, _attention(5, 128, positions(7, 60, 79, 9), 4, 1100)),
    CodedCase("choose_entries", "codes", 1, lambda: _entries(BF16, 5, 32, 150, [150, 0, 7, 131, 9, 90], 12, 3), True),
    CodedCase("choose_entries", "codes, two levels", 1, lambda: _entries(BF16, 9, 32, 2501, [2501], 12), True),
    CodedCase("sparse_attention", "codes", 1, lambda: sparse(2, 3, 5, 128, 50, 150, BF16)),
    CodedCase("sparse_attention", "rows of codes", 1, lambda: (*sparse(4, 3, 5, 256, 50, 150, BF16), ROWS)),
    CodedCase("sparse_attention", "codes, read once", 1, lambda: sparse(2, 3, 5, 128, 50, 20, BF16)),
    CodedCase("indexer_scores", "codes, many queries", 1, lambda: (*index(4, 64, 2, 32, 40, BF16), ROWS), True),
    CodedCase("indexer_scores", "codes", 1, lambda: index(2, 3, 5, 64, 150, BF16), True),
    CodedCase("indexer_scores", "rows of codes", 1, lambda: (*index(4, 3, 5, 32, 150, BF16), ROWS), True),
]
CODED_CASES = [
    *(Case(one.operator, one.label, lambda one=one: one.coded(one.make())) for one in CODED),  # type: ignore[misc]
    Case("pack_keys", "128", lambda: (spread(3, 5, 128, dtype=BF16),)),
    Case("pack_keys", "512", lambda: (spread(3, 544, dtype=BF16)[:, 32:],)),
    Case("pack_index_keys", "128", lambda: (spread(3, 5, 128, dtype=BF16),)),
    Case("pack_index_keys", "32", lambda: (spread(3, 64, dtype=BF16)[:, 32:],)),
]
