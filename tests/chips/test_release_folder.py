"""A release read from its folder, and judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flagrelease.chips.loading.folder import release_in
from flagrelease.chips.loading.verdict import judge
from flagrelease.chips.stacks import get_stack
from flagrelease.errors import CheckpointError
from flagrelease.formats.releases import MODELSLIM_DESCRIPTION
from flagrelease.model.synthetic import Stored
from flagrelease.model.v4.synthetic import tiny_config, write_checkpoint


@pytest.mark.parametrize(
    ("stored", "form", "verdict"),
    [
        (Stored(), "native", "loads"),
        (Stored(experts="fp8", scale_dtype="F32"), "fp8", "loads"),
        (Stored(experts="fp8"), "fp8-e8m0", "silently wrong"),
    ],
)
def test_a_folder_is_judged_by_its_headers(tmp_path: Path, stored: Stored, form: str, verdict: str) -> None:
    config = tiny_config(topk_method="noaux_tc", expert_dtype=stored.experts)
    write_checkpoint(tmp_path, config, stored, holes=True)
    release = release_in(tmp_path)
    assert "model.safetensors.index.json" in release.files
    assert (release.form, judge(get_stack("vllm"), release).verdict) == (form, verdict)


def test_a_description_makes_a_folder_one_of_modelslim(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config(), holes=True)
    (tmp_path / MODELSLIM_DESCRIPTION).write_text(json.dumps({"embed.weight": "FLOAT"}), encoding="utf-8")
    assert release_in(tmp_path).description == {"embed.weight": "FLOAT"}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("config.json", "[]", "config.json: a JSON object is expected, not list"),
        ("config.json", "{", "config.json: not valid JSON"),
        (MODELSLIM_DESCRIPTION, "1", f"{MODELSLIM_DESCRIPTION}: a JSON object is expected"),
    ],
)
def test_documents_that_are_none_are_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    write_checkpoint(tmp_path, tiny_config(), holes=True)
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=words):
        release_in(tmp_path)


def test_a_folder_without_config_or_with_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json: cannot be read \(No such file"):
        release_in(tmp_path / "nothing")
    write_checkpoint(tmp_path, tiny_config(), holes=True)
    first = min(tmp_path.glob("*.safetensors"))
    (tmp_path / "copy.safetensors").write_bytes(first.read_bytes())
    with pytest.raises(CheckpointError, match="is in another file too"):
        release_in(tmp_path)
