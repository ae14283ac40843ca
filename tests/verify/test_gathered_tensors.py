"""Rows read through a cut tensor are the rows of the whole one, and two layouts of one source are tied together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import planters as p
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_releases import Maker, checkpoint_tensors, raw, write_source

from flagrelease.errors import VerificationError
from flagrelease.verify.structure import StoredRelease
from flagrelease.verify.ties import gather_equal, open_release

CUT = ["layers.0.attn.wo_a.weight", "layers.0.attn.wo_b.weight", "layers.0.attn.wq_b.weight", "embed.weight"]
CUT += ["layers.1.attn.attn_sink", "layers.1.ffn.experts.7.w2.weight", "hc_head_scale"]


@pytest.fixture(scope="module")
def split(maker: Maker, tmp_path_factory: pytest.TempPathFactory) -> tuple[Maker, StoredRelease]:
    made = maker.of("bf16-mp8-split")
    return made, open_release(made.write(tmp_path_factory.mktemp("gather") / "release"))


@given(st.sampled_from(CUT), st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_rows_of_a_cut_tensor(split: tuple[Maker, StoredRelease], name: str, first: float, second: float) -> None:
    made, release = split
    whole = np.frombuffer(raw(made.made["bf16", True].tensors[name]), np.uint8)
    tensor = release.tensors[name]
    start, stop = sorted((int(first * tensor.rows), int(second * tensor.rows)))
    np.testing.assert_array_equal(tensor.read(start, stop), whole.reshape(tensor.rows, -1)[start:stop])
    row, byte = min(start, tensor.rows - 1), int(second * (tensor.row_bytes - 1))
    file, offset = tensor.locate(row, byte)
    assert file.read_bytes()[offset] == whole[row * tensor.row_bytes + byte]


@pytest.mark.parametrize("multiple", [1, 128])
def test_chunks_cover_a_tensor_in_order(split: tuple[Maker, StoredRelease], multiple: int) -> None:
    for tensor in split[1].tensors.values():
        chunks = list(tensor.chunks(multiple))
        assert [start for start, _ in chunks] == [0, *(stop for _, stop in chunks[:-1])]
        assert chunks[-1][1] == tensor.rows
        assert all(start % multiple == 0 for start, _ in chunks)


TIED = [
    ("bf16-hf", "bf16-mp8-split"),
    ("bf16-mp2", "bf16-mp8-shared"),
    ("native-hf", "native-mp4"),
    ("fp8-mp2", "fp8-hf"),
]


@pytest.mark.parametrize("read_bytes", [False, True])
@pytest.mark.parametrize(("first", "second"), TIED)
def test_layouts_of_one_source_are_equal(
    maker: Maker, tmp_path: Path, first: str, second: str, read_bytes: bool
) -> None:
    left, right = (maker.of(name).write(tmp_path / name) for name in (first, second))
    check = gather_equal(left, right, read_bytes, workers=2)
    assert check.status == "pass", check.findings
    untied = "3 wo_a and 72 scales are stored" if first.startswith("fp8") else "3 wo_a are stored"
    assert (f"{untied} differently" in check.detail) == (not read_bytes and not first.startswith("bf16"))
    assert (check.bytes > 0) == read_bytes


@pytest.mark.parametrize(("first", "second"), TIED)
def test_a_defect_in_one_of_them_shows(maker: Maker, tmp_path: Path, first: str, second: str) -> None:
    left = maker.of(first).write(tmp_path / first)
    # the manifest keeps the right digests, so only bytes tell
    wrong = replace(maker.of(second), spoil_ranks=p.flip_on(0, p.WO_A)).write(tmp_path / second)
    assert gather_equal(left, wrong).status == "pass"
    check = gather_equal(left, wrong, read_bytes=True)
    assert [finding.tensor for finding in check.findings] == [p.WO_A]
    # here the manifest records them as they are
    changed = replace(maker.of(second), spoil_whole=p.change_bytes(p.WQ_B, lambda b: b ^ 1)).write(tmp_path / "changed")
    check = gather_equal(left, changed)
    assert [str(finding) for finding in check.findings] == [
        f"tensor '{p.WQ_B}': has different digests in the two manifests"
    ]


def test_releases_that_cannot_be_tied(maker: Maker, tmp_path: Path) -> None:
    bf16, native = (maker.of(name).write(tmp_path / name) for name in ("bf16-hf", "native-hf"))
    assert "one release is bf16, the other native" in str(gather_equal(bf16, native).findings[0])
    tensors = checkpoint_tensors(torch.Generator().manual_seed(9))
    other = Maker(write_source(tmp_path / "other", tensors), tensors).of("bf16-hf").write(tmp_path / "other-bf16")
    assert "different sources" in str(gather_equal(bf16, other).findings[0])
    broken = replace(maker.of("bf16-mp2"), spoil_ranks=p.drop(0, p.NORM)).write(tmp_path / "broken")
    with pytest.raises(VerificationError, match=f"structure: tensor '{p.NORM}': missing on rank 0"):
        gather_equal(bf16, broken, read_bytes=True)


def test_a_shrunk_file_is_refused(maker: Maker, tmp_path: Path) -> None:
    release = open_release(maker.of("bf16-hf").write(tmp_path / "release"))
    path = release.folder / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    metas = {name: next(iter(tensor.boxes.values()))[0] for name, tensor in release.tensors.items()}
    last = max((name for name, meta in metas.items() if meta.file == path), key=lambda name: metas[name].end)
    with pytest.raises(VerificationError, match="before the end its header gives"):
        release.tensors[last].read(0, release.tensors[last].rows)
