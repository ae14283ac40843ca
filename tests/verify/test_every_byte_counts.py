"""No byte of a tensor can change unseen, even if whoever changed it recorded the files again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_releases import Maker, write_manifest

from flagrelease.verify.result import VerifyReport
from flagrelease.verify.verify import verify_release


def _failed(report: VerifyReport) -> set[str]:
    return {check.name for check in report.checks if check.status == "fail"}


@pytest.fixture(
    scope="module",
    params=["bf16-hf", "bf16-mp8-split", "native-mp8-shared", "fp8-mp2", "int8-hf", "w8a8-ascend-hf", "mxfp8-hf"],
)
def release(request: pytest.FixtureRequest, maker: Maker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return maker.of(request.param).write(tmp_path_factory.mktemp("bytes") / "release")


@given(st.data())
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changed_byte_of_any_tensor_is_found(release: Path, maker: Maker, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(release.glob("*.safetensors"))))
    original = path.read_bytes()
    begin = 8 + int.from_bytes(original[:8], "little")
    position = data.draw(st.integers(begin, len(original) - 1))
    changed = bytearray(original)
    changed[position] ^= data.draw(st.integers(1, 255))
    manifest = json.loads((release / "manifest.json").read_text())
    try:
        path.write_bytes(changed)
        assert "files" in _failed(verify_release(release))
        write_manifest(release, manifest)
        found = _failed(verify_release(release, maker.source))
        assert found in ({"replicas"}, {"tensors", "source"}, {"replicas", "tensors", "source"})
    finally:
        path.write_bytes(original)
        write_manifest(release, manifest)
