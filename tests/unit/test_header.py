"""Hostile and valid safetensors headers. The oracle for "valid" is the safetensors library itself."""

from __future__ import annotations

import copy
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from flagrelease.errors import CheckpointError
from flagrelease.shard.header import (
    DTYPE_BITS,
    MAX_HEADER_BYTES,
    Header,
    build_header,
    parse_header,
    read_header,
    tensor_bytes,
)

FILE = Path("folder/model-00001.safetensors")


def container(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def parse(header: bytes, data_bytes: int = 0) -> Header:
    return parse_header(header, FILE, 8 + len(header) + data_bytes)


def entry(dtype: Any = "U8", shape: Any = (1,), offsets: Any = (0, 1)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refusal(document: dict[str, Any], data_bytes: int) -> str:
    with pytest.raises(CheckpointError) as caught:
        parse(json.dumps(document).encode(), data_bytes)
    assert str(FILE) in str(caught.value)
    return str(caught.value)


def library(raw: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {
        name: (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"]))
        for name, tensor in safetensors.deserialize(raw)
    }


def ours(header: Header, raw: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {m.name: (m.dtype, m.shape, raw[m.begin : m.end]) for m in header.tensors.values()}


# --- the file around the header


@pytest.mark.parametrize("size", range(8))
def test_file_without_whole_length_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(container(b"{}")[:size])
    with pytest.raises(CheckpointError, match=rf"a\.safetensors: {size} bytes"):
        read_header(path)


def test_header_longer_than_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 3) + b"{}")
    with pytest.raises(CheckpointError, match=r"a\.safetensors: header of 3 bytes in a file of 10 bytes: truncated"):
        read_header(path)


@pytest.mark.parametrize("length", [MAX_HEADER_BYTES, 2**31, 2**63, 2**64 - 1])
def test_huge_header_is_refused_by_its_length_alone(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", length))
    os.truncate(path, min(8 + length, 1 << 31))  # sparse: the length itself is true where it can be
    with pytest.raises(CheckpointError, match=rf"a\.safetensors: header of {length} bytes; the limit is 100000000"):
        read_header(path)


def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.safetensors: cannot be read \(No such file"):
        read_header(tmp_path / "gone.safetensors")
    with pytest.raises(CheckpointError, match=r"cannot be read \(Is a directory"):
        read_header(tmp_path)


def test_file_that_is_cut_inside_its_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    whole = container(json.dumps({"w": entry("U8", [4], [0, 4])}).encode(), b"1234")
    path.write_bytes(whole)
    assert read_header(path).tensors["w"].nbytes == 4
    path.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=r"a\.safetensors: .*truncated"):
        read_header(path)


# --- the JSON


@pytest.mark.parametrize(
    ("header", "rule"),
    [
        (b"", "does not start with"),
        (b"\x80\x04", "does not start with"),
        (b"[]", "does not start with"),
        (b" {}", "does not start with"),
        (b"\xef\xbb\xbf{}", "does not start with"),
        (b"{", "not valid JSON"),
        (b"{}{}", "not valid JSON"),
        (b"{}\x00", "not valid JSON"),
        (b'{"a\x01":1}', "not valid JSON"),
        (b'{"\xff":1}', "not valid JSON"),
        (b'{"\xed\xa0\x80":1}', "not valid JSON"),
        (b'{"a":NaN}', "NaN is not JSON"),
        (b'{"a":Infinity}', "Infinity is not JSON"),
        (b'{"a":-Infinity}', "Infinity is not JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a":-0}', "-0 is not an integer"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a":' + b"[" * 1_000_000, "nested too deeply"),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_header_that_is_not_json_is_refused(header: bytes, rule: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{FILE}: .*{rule}"):
        parse(header)


def test_nesting_that_json_allows_is_refused_by_type() -> None:
    bomb = json.loads("[" * 500 + "]" * 500)
    assert "'w'" in refusal({"w": bomb}, 0)
    assert "shape" in refusal({"w": entry("U8", bomb)}, 1)


@pytest.mark.parametrize("repeat", ['"w"', '"\\u0077"'], ids=["literal", "escaped"])
def test_name_that_appears_twice_is_refused(repeat: str) -> None:
    one = json.dumps(entry("U8", [0], [0, 0]))
    with pytest.raises(CheckpointError, match=rf"{FILE}: .*'w' appears twice"):
        parse(f'{{"w":{one},{repeat}:{one}}}'.encode())


def test_field_that_appears_twice_is_refused() -> None:
    with pytest.raises(CheckpointError, match="'shape' appears twice"):
        parse(b'{"w":{"dtype":"U8","shape":[2],"shape":[1],"data_offsets":[0,1]}}', 1)


def test_duplicate_among_very_many_names_is_found_in_one_pass() -> None:
    names = [f"n{i}" for i in range(200_000)]
    header = "{" + ",".join(f'"{name}":1' for name in [*names, names[-1]]) + "}"
    with pytest.raises(CheckpointError, match="'n199999' appears twice"):
        parse(header.encode())  # the quadratic search that once was here takes minutes


# --- the entries


@pytest.mark.parametrize(
    "value",
    [
        None,
        1,
        "U8",
        [],
        {},
        {**entry(), "extra": 1},
        {"dtype": "U8", "shape": [1]},
        {"shape": [], "data_offsets": [0, 1]},
    ],
)
def test_entry_without_exactly_its_three_fields_is_refused(value: Any) -> None:
    message = refusal({"w": value}, 1)
    assert "'w'" in message
    assert "exactly dtype, shape and data_offsets" in message


@pytest.mark.parametrize("dtype", ["F3", "f32", "", "F8_E4M3FN", "U8 ", None, 8, ["U8"], {"U8": 1}])
def test_unknown_dtype_is_refused(dtype: Any) -> None:
    message = refusal({"w": entry(dtype)}, 1)
    assert "'w'" in message
    assert f"unknown dtype {dtype!r}" in message


BAD_SIZES = [
    None,
    1,
    "1",
    {},
    ["1"],
    [None],
    [[1]],
    [True],
    [False, 1],
    [1.0],
    [-1],
    [2**63],
    [1e308],
    [float("1e999")],
]


@pytest.mark.parametrize("shape", BAD_SIZES, ids=repr)
def test_shape_that_is_not_a_list_of_sizes_is_refused(shape: Any) -> None:
    header = json.dumps({"w": entry("U8", shape)}).replace("Infinity", "1e999").encode()
    with pytest.raises(CheckpointError, match=rf"{FILE}: tensor 'w': shape .* is not a list of sizes"):
        parse(header, 1)


@pytest.mark.parametrize(
    "offsets", [*BAD_SIZES, [], [0], [0, 1, 2], [False, True], [0, 1.0], [-1, 0], [0, 2**63]], ids=repr
)
def test_offsets_that_are_not_two_sizes_are_refused(offsets: Any) -> None:
    header = json.dumps({"w": entry("U8", [1], offsets)}).replace("Infinity", "1e999").encode()
    with pytest.raises(CheckpointError, match=rf"{FILE}: tensor 'w': data_offsets .* are not two offsets"):
        parse(header, 1)


@pytest.mark.parametrize(
    ("dtype", "shape", "offsets", "needed"),
    [
        ("U8", [2], [0, 1], "2"),
        ("F32", [], [0, 1], "4"),
        ("I64", [3], [0, 3], "24"),
        ("U8", [1], [1, 0], "1"),
        ("U8", [0], [0, 1], "0"),
        ("F4", [2], [0, 2], "1"),
        ("F4", [3], [0, 1], "1.5"),
        ("F4", [1, 1], [0, 0], "0.5"),
    ],
)
def test_bytes_that_do_not_fit_the_shape_are_refused(dtype: str, shape: Any, offsets: Any, needed: str) -> None:
    message = refusal({"w": entry(dtype, shape, offsets)}, 1)
    assert "'w'" in message
    assert f"takes {needed} bytes, its offsets span {offsets[1] - offsets[0]}" in message


@pytest.mark.parametrize(
    "shape", [[2**62, 2**62, 0], [2**62] * 20, [2**62, 2], [2**62] * 500_000], ids=["hidden by 0", "20", "2", "many"]
)
def test_shape_beyond_any_file_is_refused_without_computing_it(shape: Any) -> None:
    """The library says overflow; a Python integer would not, and the last one would take a day."""
    message = refusal({"w": entry("U8", shape, [0, 0])}, 0)
    assert "'w'" in message
    assert "more elements than a file can hold" in message


@pytest.mark.parametrize(
    "name", ["", "\x00", "a\nb", "a\tb", "\x1b[31mred", "\u202eevil", "\ud800", "\ue000", "a\x7f"], ids=ascii
)
def test_name_that_cannot_be_printed_is_refused(name: str) -> None:
    message = refusal({name: entry()}, 1)
    assert repr(name) in message
    assert "printable" in message
    assert message.isprintable()


@pytest.mark.parametrize("name", ["w", "été", "重み", "a b", "../w", "__metadata", "__metadata__x"])
def test_printable_name_is_kept(name: str) -> None:
    assert list(parse(json.dumps({name: entry()}).encode(), 1).tensors) == [name]


@pytest.mark.parametrize("metadata", [None, [], "pt", 1, {"a": 1}, {"a": None}, {"a": ["b"]}, {"a": {"b": "c"}}])
def test_metadata_that_is_not_strings_is_refused(metadata: Any) -> None:
    assert "__metadata__ must map strings to strings" in refusal({"__metadata__": metadata}, 0)


@pytest.mark.parametrize("metadata", [{"a": "\ud800"}, {"\udfff": "a"}, {"a": "\udc00", "b": "\ud800"}], ids=ascii)
def test_metadata_with_half_a_character_is_refused(metadata: Any) -> None:
    header = json.dumps({"__metadata__": metadata}).encode()
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(container(header))
    assert "not Unicode" in refusal({"__metadata__": metadata}, 0)


# --- the tensors together


def test_overlapping_tensors_are_refused() -> None:
    message = refusal({"a": entry("U8", [2], [0, 2]), "b": entry("U8", [2], [1, 3])}, 3)
    assert "tensor 'b': begins at 1 and overlaps" in message


def test_same_bytes_for_two_tensors_are_refused() -> None:
    message = refusal({"a": entry("U8", [2], [0, 2]), "b": entry("U8", [2], [0, 2])}, 2)
    assert "tensor 'b': begins at 0 and overlaps" in message


def test_empty_tensor_inside_another_is_refused() -> None:
    assert "'e'" in refusal({"a": entry("U8", [2], [0, 2]), "e": entry("U8", [0], [1, 1])}, 2)


def test_hole_before_a_tensor_is_refused() -> None:
    assert "tensor 'a': begins at 1 and leaves a hole" in refusal({"a": entry("U8", [2], [1, 3])}, 3)
    message = refusal({"a": entry("U8", [2], [0, 2]), "b": entry("U8", [1], [3, 4])}, 4)
    assert "tensor 'b': begins at 3 and leaves a hole" in message


def test_tensor_behind_the_end_of_the_file_is_refused() -> None:
    assert "truncated" in refusal({"a": entry("U8", [3], [0, 3])}, 2)
    assert "truncated" in refusal({"a": entry("U8", [2**62], [0, 2**62])}, 2)


def test_bytes_behind_the_last_tensor_are_refused() -> None:
    assert "has bytes that no tensor owns" in refusal({"a": entry("U8", [3], [0, 3])}, 4)
    assert "has bytes that no tensor owns" in refusal({}, 1)


def test_tensors_come_in_file_order_with_absolute_offsets() -> None:
    document = {"z": entry("F4", [2, 2], [8, 10]), "m": entry("I64", [], [0, 8]), "e": entry("F32", [0, 7], [8, 8])}
    header = json.dumps(document).encode()
    parsed = parse(header, 10)
    start = 8 + len(header)
    assert [(m.name, m.begin - start, m.end - start) for m in parsed.tensors.values()] == [
        ("m", 0, 8), ("e", 8, 8), ("z", 8, 10),
    ]  # fmt: skip
    assert parsed.tensors["z"].elements == 4
    assert (parsed.raw, parsed.file_size, parsed.metadata) == (header, start + 10, {})


# --- fuzzing


def accepted(header: bytes, file_size: int) -> Header | None:
    """The one property of the parser: a Header, or a CheckpointError that names the file, whatever the bytes."""
    try:
        return parse_header(header, FILE, file_size)
    except CheckpointError as error:
        if str(FILE) not in str(error):
            raise
        return None


@settings(deadline=None)
@given(st.binary(max_size=80), st.integers(0, 100), st.sampled_from([(b"", b""), (b"{", b""), (b'{"', b'":{}}')]))
def test_any_bytes_give_a_header_or_a_refusal(noise: bytes, size: int, around: tuple[bytes, bytes]) -> None:
    parsed = accepted(around[0] + noise + around[1], size)
    assert parsed is None or parsed.file_size == size


VALID: dict[str, Any] = {
    "__metadata__": {"format": "pt", "note": "é"},
    "i": entry("I64", [1, 2], [0, 16]),
    "f": entry("F32", [], [16, 20]),
    "b": entry("BF16", [3, 1], [20, 26]),
    "none": entry("F16", [0, 4], [26, 26]),
    "q": entry("F4", [2, 4], [26, 30]),
    "s": entry("F8_E8M0", [2, 1], [30, 32]),
    "w": entry("F8_E4M3", [2, 2], [32, 36]),
}
DATA = bytes(range(36))
JUNK = [
    None, True, False, 0, -0.0, 1, 2, -1, 1.0, 1e999, 2**53, 2**63, 2**64, 10**400, "", "w", "U8", "F4", "F6_E2M3",
    "\ud800", "\x00", "é", [], [0], [0, 0], [2**32, 2**32], [0, 36], [True, 1], [[0]], {}, entry(), {"a": "b"},
]  # fmt: skip


def agrees_with_the_library(raw: bytes) -> bool:
    """Whether the header is accepted; if so, the library must accept it with the same tensors."""
    (length,) = struct.unpack("<Q", raw[:8])
    parsed = accepted(raw[8 : 8 + length], len(raw))
    if parsed is not None:
        assert ours(parsed, raw) == library(raw)
    return parsed is not None


def test_the_fuzzed_header_is_valid() -> None:
    assert agrees_with_the_library(container(json.dumps(VALID).encode(), DATA))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_header_with_damaged_bytes_is_refused_or_what_the_library_reads(data: st.DataObject) -> None:
    header = bytearray(json.dumps(VALID, ensure_ascii=data.draw(st.booleans())).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(header) - 1))
        kind = data.draw(st.sampled_from(["set", "insert", "delete", "repeat"]))
        if kind == "set":
            header[at] = data.draw(st.one_of(st.sampled_from(b'0123456789-+.eE"\\{}[],: \n'), st.integers(0, 255)))
        elif kind == "insert":
            header[at:at] = data.draw(
                st.one_of(st.sampled_from([b"0", b"-", b" ", b'"a":0,', b"\\u0000"]), st.binary())
            )
        elif kind == "delete":
            del header[at : at + data.draw(st.integers(1, 8))]
        else:
            end = data.draw(st.integers(at, min(at + 60, len(header))))
            header[end:end] = header[at:end]
    agrees_with_the_library(container(bytes(header), DATA))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_header_with_other_json_is_refused_or_what_the_library_reads(data: st.DataObject) -> None:
    document = copy.deepcopy(VALID)
    for _ in range(data.draw(st.integers(1, 3))):
        parent, keys = document, list(document)
        key = data.draw(st.sampled_from(keys))
        while isinstance(parent[key], dict | list) and len(parent[key]) and data.draw(st.booleans()):
            parent = parent[key]
            key = data.draw(st.sampled_from(list(parent) if isinstance(parent, dict) else range(len(parent))))
        if isinstance(parent, dict) and data.draw(st.integers(0, 3)) == 0:
            value = parent.pop(key)
            parent[data.draw(st.sampled_from(["", "new", "__metadata__", "dtype", "\x7f"]))] = value
            if not document:
                break
        else:
            parent[key] = copy.deepcopy(data.draw(st.sampled_from(JUNK)))
    text = json.dumps(document).replace("Infinity", "1e999")
    agrees_with_the_library(container(text.encode(), DATA))


@settings(max_examples=200, deadline=None)
@given(st.permutations(list(VALID)), st.sampled_from(["", " ", "\n\t ", " " * 64]), st.integers(0, 3))
def test_order_and_padding_of_a_valid_header_do_not_matter(order: list[str], padding: str, indent: int) -> None:
    text = json.dumps({name: VALID[name] for name in order}, indent=indent or None) + padding
    assert agrees_with_the_library(container(text.encode(), DATA))


# --- writing


shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
tensor_lists = st.lists(
    st.tuples(st.text(max_size=12), st.sampled_from(sorted(DTYPE_BITS)), shapes), unique_by=lambda t: t[0], max_size=8
).map(
    lambda tensors: [
        (name, dtype, (*shape, 2) if dtype == "F4" else shape)
        for name, dtype, shape in tensors
        if name.isprintable() and name not in {"", "__metadata__"}
    ]
)


@settings(deadline=None)
@given(tensor_lists)
def test_built_header_is_read_back_by_the_library(tensors: list[tuple[str, str, tuple[int, ...]]]) -> None:
    first = build_header(tensors)
    assert first == build_header(list(tensors))
    assert len(first) % 8 == 0
    total = sum(tensor_bytes(dtype, shape) for _, dtype, shape in tensors)
    raw = first + bytes(i % 251 for i in range(total))
    expected = {}
    at = len(first)
    for name, dtype, shape in tensors:
        elements = 1
        for n in shape:
            elements *= n
        end = at + elements * DTYPE_BITS[dtype] // 8
        expected[name] = (dtype, shape, raw[at:end])
        at = end
    assert at == len(raw)
    assert library(raw) == expected
    parsed = parse_header(first[8:], FILE, len(raw))
    assert ours(parsed, raw) == expected
    assert parsed.metadata == {"format": "pt"}


def test_dtype_sizes_are_those_of_the_library() -> None:
    """Every dtype with 8 elements: the library accepts exactly `DTYPE_BITS[dtype]` bytes of data."""
    for dtype, bits in DTYPE_BITS.items():
        header = json.dumps({"w": entry(dtype, [8], [0, bits])}).encode()
        assert library(container(header, bytes(bits))) == {"w": (dtype, (8,), bytes(bits))}


def test_built_header_is_what_a_person_would_write() -> None:
    text = b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    padded = text + b" " * (-len(text) % 8)
    assert build_header([("a", "F32", (2,))]) == struct.pack("<Q", len(padded)) + padded


def test_transformers_can_open_a_built_file(tmp_path: Path) -> None:
    """`safe_open` maps the file, which `deserialize` does not; metadata is what transformers asks for."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(build_header([("a", "U8", (3,)), ("b", "F32", (1,))]) + b"abc" + struct.pack("<f", 1.5))
    with safetensors.safe_open(path, framework="np") as file:
        assert file.metadata() == {"format": "pt"}
        assert sorted(file.keys()) == ["a", "b"]
        assert bytes(file.get_tensor("a")) == b"abc"
        assert file.get_tensor("b").tolist() == [1.5]
