"""The second decoder against the definitions, float64, ml_dtypes and torch. Everything here is exact."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flagrelease.verify import decoder

# Every finite BF16 by its bits, as float64: the nearest one is then found by search, without any rounding code.
_MAGNITUDES = (np.arange(0x7F80, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)
_LARGEST = float(_MAGNITUDES[-1])
_OVERFLOW = _LARGEST + (_LARGEST - float(_MAGNITUDES[-2])) / 2  # from here on, infinity is nearest


def nearest_bf16(exact: np.ndarray) -> np.ndarray:
    """Bits of the BF16 nearest to float64 values, ties to even, by search among all BF16 values."""
    magnitude = np.abs(exact)
    above = np.clip(np.searchsorted(_MAGNITUDES, magnitude), 1, 0x7F7F)
    down, up = magnitude - _MAGNITUDES[above - 1], _MAGNITUDES[above] - magnitude
    bits = np.where((up < down) | ((up == down) & (above % 2 == 0)), above, above - 1)
    bits = np.where(magnitude >= _OVERFLOW, 0x7F80, bits)
    return (bits | np.where(np.signbit(exact), 0x8000, 0)).astype(np.uint16)


def is_nan(bits: np.ndarray) -> np.ndarray:
    return (bits & 0x7FFF) > 0x7F80


ALL = np.arange(256, dtype=np.uint8)


def test_code_values_are_those_of_ml_dtypes() -> None:
    e4m3 = ALL.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    e8m0 = ALL.view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    e2m1 = ALL[:16].view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    np.testing.assert_array_equal([decoder.e4m3_value(c) for c in range(256)], e4m3)
    np.testing.assert_array_equal([decoder.e8m0_value(c) for c in range(256)], e8m0)
    np.testing.assert_array_equal([decoder.e2m1_value(c) for c in range(16)], e2m1)
    assert np.signbit(decoder.e2m1_value(8))
    assert [decoder.e2m1_value(c) for c in range(8)] == [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def test_all_fp8_codes_times_all_scale_codes() -> None:
    values = np.repeat(decoder.fp8_values(ALL[None, :]), 256, axis=0)  # row: scale code, column: code
    bits, rounded = decoder.to_bf16(values, decoder.scale_values(ALL[:, None], "F8_E8M0"), (1, 256))
    codes, scales = ALL.view(ml_dtypes.float8_e4m3fn), ALL.view(ml_dtypes.float8_e8m0fnu)
    exact = codes.astype(np.float64)[None, :] * scales.astype(np.float64)[:, None]
    nan = np.isnan(exact)
    np.testing.assert_array_equal(is_nan(bits), nan)
    np.testing.assert_array_equal(bits[~nan], nearest_bf16(exact)[~nan])
    by_torch = torch.from_numpy(exact).float().bfloat16().view(torch.uint16).numpy()
    np.testing.assert_array_equal(bits[~nan], by_torch[~nan])
    held = (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    assert rounded == np.count_nonzero((held != exact) & ~nan) > 0


def test_all_fp4_bytes_times_all_scale_codes() -> None:
    values = np.repeat(decoder.fp4_values(ALL[None, :]), 256, axis=0)
    bits, rounded = decoder.to_bf16(values, decoder.scale_values(ALL[:, None], "F8_E8M0"), (1, 512))
    nibbles = np.stack([ALL & 15, ALL >> 4], axis=-1).reshape(-1)  # low nibble first
    codes = nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    exact = codes[None, :] * ALL.view(ml_dtypes.float8_e8m0fnu).astype(np.float64)[:, None]
    nan = np.isnan(exact)
    np.testing.assert_array_equal(is_nan(bits), nan)
    np.testing.assert_array_equal(bits[~nan], nearest_bf16(exact)[~nan])
    # facts: exact for scale codes 0..252, the largest values overflow at 253 and 254
    held = (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    assert (held[:253] == exact[:253]).all()
    assert rounded == np.count_nonzero(held[253:255] != exact[253:255]) > 0
    assert set(bits[127][nibbles == 8]) == {0x8000}


def test_fast_and_exact_paths_agree() -> None:
    """A scale outside the safe range anywhere in the chunk sends the whole chunk through float64."""
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 0x7F, (4, 512), dtype=np.uint8)
    scales = decoder.scale_values(generator.integers(100, 140, (4, 4), dtype=np.uint8), "F8_E8M0")
    fast, _ = decoder.to_bf16(decoder.fp8_values(codes), scales, (1, 128))
    mixed = scales.copy()
    mixed[3, 3] = 2.0**-127
    slow, _ = decoder.to_bf16(decoder.fp8_values(codes), mixed, (1, 128))
    np.testing.assert_array_equal(fast[:3], slow[:3])
    assert (fast[3, 384:] != slow[3, 384:]).any()


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8),
    st.lists(st.integers(0, 255), min_size=1, max_size=16),
)
@settings(deadline=None)
def test_any_float32_scale_is_rounded_once(scales: list[float], codes: list[int]) -> None:
    values = np.repeat(decoder.fp8_values(np.array([codes], np.uint8)), len(scales), axis=0)
    exact = values.astype(np.float64) * np.array(scales)[:, None]
    bits, rounded = decoder.to_bf16(values, np.array(scales)[:, None], (1, len(codes)))
    nan = np.isnan(exact)
    np.testing.assert_array_equal(bits[~nan], nearest_bf16(exact)[~nan])
    held = (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    assert rounded == np.count_nonzero((held != exact) & ~nan)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_float_scales_are_read_as_they_are(dtype: str) -> None:
    numbers = np.array([[1.5, 0.0078125], [2.0**-10, 3.0]])
    stored = numbers.astype({"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16}[dtype])
    np.testing.assert_array_equal(decoder.scale_values(stored.view(np.uint8), dtype), stored.astype(np.float64))


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_ragged_blocks_have_their_own_scale(rows: int, columns: int, seed: int) -> None:
    """Element [i, j] has scale [i // 128, j // 128], also where the last block is cut off."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 0x7F, (rows, columns), dtype=np.uint8)
    scales = generator.integers(100, 140, (-(-rows // 128), -(-columns // 128)), dtype=np.uint8)
    bits, _ = decoder.to_bf16(decoder.fp8_values(codes), decoder.scale_values(scales, "F8_E8M0"), (128, 128))
    i, j = np.indices((rows, columns))
    exact = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    exact = exact * np.ldexp(1.0, scales[i // 128, j // 128].astype(np.int32) - 127)
    np.testing.assert_array_equal(bits, nearest_bf16(exact))


@given(
    st.sampled_from([(128, 128), (128, 256), (256, 128), (130, 160), (64, 32)]),
    st.integers(0, 20),
    st.integers(0, 230),
    st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=60)
def test_repack_is_the_rule(shape: tuple[int, int], spread: int, lowest: int, seed: int) -> None:
    """Scale: the tile's largest / 2^6, but no smaller than there is; codes: torch's cast of value times old / new."""
    rows, columns = shape
    generator = np.random.default_rng(seed)
    packed = generator.integers(0, 256, (rows, columns // 2), dtype=np.uint8)
    codes = generator.integers(lowest, lowest + spread + 1, (rows, columns // 32), dtype=np.uint8)
    tiles = decoder.repacked_scales(codes, (128, 128))
    found, lost = decoder.repacked_codes(packed, codes, tiles, (128, 128))
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, columns)
    values = nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    i, j = np.indices(shape)
    for tile in np.ndindex(*tiles.shape):
        inside = (i // 128 == tile[0]) & (j // 128 == tile[1])
        olds = codes[i[inside], j[inside] // 32].astype(np.int32)
        new = max(int(olds.max()) - 6, 0)
        assert tiles[tile] == new
        scaled = torch.from_numpy(np.ldexp(values[inside], olds - new))
        wanted = scaled.to(torch.float8_e4m3fn)
        np.testing.assert_array_equal(found[inside], wanted.view(torch.uint8).numpy())
        lost -= int((wanted.double() != scaled).sum())
    assert lost == 0


def test_what_survives_a_repack_by_span() -> None:
    """The table of `deepseek-v4.md` 2.10: which magnitudes stay exact when a tile spans 2^k."""
    survive = {14: {0, 0.5, 1, 1.5, 2, 3, 4, 6}, 15: {0, 1, 2, 3, 4, 6}, 16: {0, 2, 4, 6}, 17: {0, 4}, 18: {0}, 25: {0}}
    for span, magnitudes in survive.items():
        codes = np.full((128, 4), 200 - span, np.uint8)
        codes[0, 0] = 200
        packed = np.zeros((128, 64), np.uint8)
        packed[1, :4] = [0x10, 0x32, 0x54, 0x76]  # all eight magnitudes
        tiles = decoder.repacked_scales(codes, (128, 128))
        found, lost = decoder.repacked_codes(packed, codes, tiles, (128, 128))
        values = decoder.fp8_values(found)[1, :8].astype(np.float64) * 2.0 ** (span - 6)
        exact = {m for m, v in zip((0, 0.5, 1, 1.5, 2, 3, 4, 6), values, strict=True) if m == v}
        assert exact == magnitudes, span
        assert lost == 8 - len(magnitudes)
