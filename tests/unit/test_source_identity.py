"""Which checkpoint this is: equal wherever the files lie, another one for another training step with equal headers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from blake3 import blake3

from flagrelease.errors import VerificationError
from flagrelease.records.manifest import SourceRecord
from flagrelease.records.source_identity import SourceIdentity, identify, identity_of_record
from flagrelease.shard.header import build_header
from flagrelease.shard.index import open_checkpoint

SMALL, LARGE = 32 * 1024, 40 * 1024  # bytes of a tensor that is read whole, and of one that is sampled
TENSORS = [("a.norm", "U8", (SMALL,)), ("b.w", "U8", (LARGE,)), ("c.w", "U8", (LARGE,)), ("d.w", "I8", (LARGE,))]


def write(folder: Path, spoil: dict[tuple[str, int], int] | None = None, config: str = "{}") -> Path:
    """One file of counted bytes; `spoil` maps (tensor, offset in it) to another byte."""
    folder.mkdir()
    (folder / "config.json").write_text(config)
    data = b""
    for name, _, shape in TENSORS:
        values = bytearray((i * 7 + len(data)) % 251 for i in range(shape[0]))
        for (tensor, offset), value in (spoil or {}).items():
            if tensor == name:
                assert values[offset] != value
                values[offset] = value
        data += bytes(values)
    (folder / "model.safetensors").write_bytes(build_header(TENSORS) + data)
    return folder


def test_identity_is_what_its_definition_says(tmp_path: Path) -> None:
    """Computed a second time from the bytes: small tensors whole, 4 KiB of the first tensor of each dtype and shape."""
    folder = write(tmp_path / "one")
    raw = (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    digest = blake3()
    for name, count in (("a.norm", SMALL), ("b.w", 4096), ("d.w", 4096)):  # c.w is of the kind of b.w
        begin = start + header[name]["data_offsets"][0]
        digest.update(f"{name}\n{count}\n".encode() + raw[begin : begin + count])
    found = identify(folder)
    assert found.contents_blake3 == digest.hexdigest()
    assert found.config_sha256 == hashlib.sha256(b"{}").hexdigest()
    lines = f"model.safetensors\n{len(raw)}\n{hashlib.sha256(raw[8:start]).hexdigest()}\n"
    assert found.headers_sha256 == hashlib.sha256(lines.encode()).hexdigest()
    parts = "\n".join([found.headers_sha256, found.config_sha256, found.contents_blake3])
    assert found.digest == hashlib.sha256(parts.encode()).hexdigest()


def test_copies_and_links_are_the_same_checkpoint(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in one.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert identify(one) == identify(two) == identify(snapshot)


@pytest.mark.parametrize(
    "spoil",
    [{("a.norm", 0): 255}, {("a.norm", SMALL - 1): 255}, {("b.w", 4095): 255}, {("d.w", 0): 255}],
    ids=["a norm begins otherwise", "a norm ends otherwise", "the sample of a matrix", "of another dtype"],
)
def test_equal_headers_with_other_values_are_another_checkpoint(
    tmp_path: Path, spoil: dict[tuple[str, int], int]
) -> None:
    """It was one identity before: only names, sizes and headers counted."""
    one, other = write(tmp_path / "one"), write(tmp_path / "other", spoil)
    assert open_checkpoint(one).headers_sha256() == open_checkpoint(other).headers_sha256()
    assert "another training step" in (identify(one).difference(identify(other)) or "")
    assert identify(one).digest != identify(other).digest


def test_the_rest_of_a_large_tensor_is_left_to_the_digests_of_tensors_and_files(tmp_path: Path) -> None:
    """The limit of a cheap identity, stated: the byte behind the sample is not seen."""
    assert identify(write(tmp_path / "one")) == identify(write(tmp_path / "other", {("b.w", 4096): 255}))


def test_another_config_is_another_checkpoint(tmp_path: Path) -> None:
    one, other = identify(write(tmp_path / "one")), identify(write(tmp_path / "other", config='{"a": 1}'))
    assert one.difference(other) == "config.json differs"


def test_a_manifest_of_schema_1_cannot_say_which_checkpoint_it_is_of() -> None:
    record = SourceRecord(
        repo=None, revision=None, license=None, identity="1" * 64, config_sha256="2" * 64, files=(), tensors={}
    )
    assert record.headers == "1" * 64
    with pytest.raises(VerificationError, match=r"m\.json: .* recorded only the headers of its source"):
        identity_of_record(record, Path("m.json"))


def test_a_manifest_gives_the_identity_of_its_source(tmp_path: Path) -> None:
    identity = identify(write(tmp_path / "one"))
    record = SourceRecord(
        repo=None, revision=None, license=None, identity=identity.digest, files=(), tensors={}, **identity.model_dump()
    )
    assert identity_of_record(record, Path("m.json")) == identity
    assert isinstance(identity, SourceIdentity)
