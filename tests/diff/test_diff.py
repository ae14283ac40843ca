"""Two manifests compared: every planted difference is found, and named for what it is; equal ones give none."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flagrelease.cli import main
from flagrelease.diff.compare import compare, role_of
from flagrelease.diff.difference import ReleaseDifference
from flagrelease.diff.display import difference_text
from flagrelease.diff.kinds import tensor_kinds
from flagrelease.diff.operand import Operand
from flagrelease.diff.values import value_differences
from flagrelease.records.manifest import parse_manifest

CONFIG = {"hidden_size": 256, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def tensor(name: str, dtype: str = "BF16", shape: tuple[int, ...] = (4, 2)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "blake3": digest(name)}


def file(path: str, content: bytes = b"", size: int | None = None) -> dict[str, Any]:
    return {"path": path, "size": len(content) if size is None else size, "sha256": hashlib.sha256(content).hexdigest()}


def document() -> dict[str, Any]:
    """A manifest in which no field has its default or is empty."""
    loss = {"rows": 4, "exact_rows": 1, "elements": 8, "exact_elements": 2, "largest_error": 0.1, "rms_error": 0.01}
    checked = {"path": "m.safetensors", "algorithm": "sha256", "digest": digest("c"), "stated_by": ["digest-file"]}
    return {
        "schema_version": 2,
        "tool": {"name": "flagrelease", "version": "0.1.0"},
        "model": "M",
        "target": {"dtype": "fp8", "layout": "mp", "mp": 8, "o_groups": "shared", "drafts": "keep"},
        "source": {
            "repo": "who/what", "revision": "r1", "license": "MIT", "identity": digest("i"),
            "headers_sha256": digest("h"), "config_sha256": digest("k"), "contents_blake3": digest("b"),
            "files": [{"path": "m.safetensors", "size": 10, "header_sha256": digest("f")}],
            "tensors": {"layers.0.w": digest("s0"), "layers.1.w": digest("s1")}, "checked": [checked],
        },
        "recipe": {"model": "M", "releases": {"nvidia": [{"format": "fp8", "layout": "mp8"}]}},
        "options": {"max_file_bytes": 5, "int8_scale": "best"},
        "plan": "p1",
        "elements": {"copied": 1, "exact": 2, "rounded": 3, "repacked": 4, "lost": 5},
        "inexact": {"layers.0.w": 3},
        "losses": {"layers.0.w": loss},
        "files": [
            file("config.json", json.dumps(CONFIG).encode()), file("model0-mp8.safetensors", size=30),
            file("tokenizer.json", b"{}"),
        ],
        "tensors": {f"{part}.{n}.w": tensor(f"{part}{n}") for part in ("layers", "mtp") for n in range(2)},
    }  # fmt: skip


def operand(content: dict[str, Any], name: str = "a", folder: Path | None = None) -> Operand:
    raw = json.dumps(content).encode()
    return Operand(name, parse_manifest(raw, name), hashlib.sha256(raw).hexdigest(), folder)


def against(changed: dict[str, Any]) -> ReleaseDifference:
    return compare(operand(document()), operand(changed, "b"))


def found_anything(found: ReleaseDifference) -> bool:
    """Whether any list of the comparison has an entry: the digest of the manifest alone names nothing."""
    source = found.source_tensors
    lists = (
        found.facts, found.recipe, found.source_files, found.tensors, found.renamed, found.files, found.elements,
        found.inexact, found.losses, source.added, source.removed, source.changed,
    )  # fmt: skip
    return any(map(len, lists))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value that is neither an object nor a list."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))
    else:
        yield path


def other(path: tuple[Any, ...], value: Any) -> Any:
    """Another value that the schema allows at this place."""
    fixed = {
        "schema_version": 1, "dtype": "bf16" if path[0] == "target" else "F32", "layout": "hf", "o_groups": "split",
        "drafts": "drop", "algorithm": "git-sha1", "stated_by": "huggingface",
    }  # fmt: skip
    for key in reversed(path):
        if key in fixed and path[0] not in ("recipe", "options"):
            return fixed[key]
    if isinstance(value, int | float):
        return value + 1
    return digest(value) if len(value) == 64 else f"{value}x"


@pytest.mark.parametrize("path", [p for p in leaves(document()) if p != ("tool", "name")], ids=str)
def test_no_field_of_a_manifest_can_change_unseen(path: tuple[Any, ...]) -> None:
    changed = document()
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = other(path, place[path[-1]])
    there, back = against(changed), compare(operand(changed, "b"), operand(document()))
    assert found_anything(there)
    assert found_anything(back)
    assert not there.same_manifest


def test_the_same_manifest_differs_in_nothing() -> None:
    found = against(document())
    assert found.same_manifest
    assert not found_anything(found)
    assert found.tensors_same == 4
    assert found.files_same == 3
    assert "\n".join(difference_text(found)).count("The same release") == 1


def test_each_way_in_which_a_tensor_differs_has_its_name() -> None:
    changed = document()
    tensors = changed["tensors"]
    tensors["layers.0.w"]["blake3"] = digest("other")
    tensors["layers.1.w"] = tensor("layers1", "F32")  # the same digest: only the dtype is other
    del tensors["mtp.0.w"]
    tensors["mtp.1.w"]["shape"] = [8]
    tensors["new.w"] = tensor("new")
    found = against(changed)
    assert {one.name: one.what for one in found.tensors} == {
        "layers.0.w": ("bytes",), "layers.1.w": ("dtype",), "mtp.0.w": ("removed",), "mtp.1.w": ("shape",),
        "new.w": ("added",),
    }  # fmt: skip
    assert (found.tensors_same, found.before.draft_stages, found.after.draft_stages) == (0, 2, 1)
    kinds = {kind.name: kind.said for kind in tensor_kinds(found.tensors) if kind.name == "mtp.*.w"}
    assert kinds == {"mtp.*.w": "shape 4x2 to 8, same bytes"}


def test_a_tensor_under_another_name_is_no_change_of_bytes() -> None:
    changed = document()
    changed["tensors"]["renamed.w"] = changed["tensors"].pop("layers.0.w")
    found = against(changed)
    assert [(one.before, one.after) for one in found.renamed] == [("layers.0.w", "renamed.w")]
    assert found.tensors == ()


def test_tensors_that_are_alike_are_not_paired_by_guess() -> None:
    """Two tensors of zeros went and two came: nobody can say which became which."""
    before, after = document(), document()
    for name in ("old.0", "old.1"):
        before["tensors"][name] = tensor("zeros")
    for name in ("new.0", "new.1"):
        after["tensors"][name] = tensor("zeros")
    found = compare(operand(before), operand(after, "b"))
    assert found.renamed == ()
    assert {one.name for one in found.tensors} == {"old.0", "old.1", "new.0", "new.1"}


def test_equal_weights_in_another_layout_differ_in_files_only() -> None:
    changed = document()
    changed["target"] = {"dtype": "fp8", "layout": "hf", "mp": None, "o_groups": None, "drafts": "keep"}
    changed["files"][1] = file("model-00001-of-00001.safetensors", size=30)
    found = against(changed)
    assert (found.tensors, found.tensors_same) == ((), 4)
    assert {one.path for one in found.of_role("tensors")} == {
        "model0-mp8.safetensors", "model-00001-of-00001.safetensors"
    }  # fmt: skip


def test_configs_are_compared_by_key_where_the_files_are_at_hand(tmp_path: Path) -> None:
    changed, config = document(), copy.deepcopy(CONFIG)
    config["quantization_config"] = {"quant_method": "int8", "bits": 8}
    content = json.dumps(config).encode()
    changed["files"][0] = file("config.json", content)
    for name, data in (("a", json.dumps(CONFIG).encode()), ("b", content)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_bytes(data)
    found = compare(operand(document(), "a", tmp_path / "a"), operand(changed, "b", tmp_path / "b"))
    (one,) = found.documents
    assert [(key.key, key.what, key.before, key.after) for key in one.keys] == [
        ("quantization_config.bits", "added", None, 8),
        ("quantization_config.quant_method", "changed", "fp8", "int8"),
        ("quantization_config.weight_block_size", "removed", [128, 128], None),
    ]
    (tmp_path / "b" / "config.json").write_bytes(content.replace(b"8", b"4"))
    (tampered,) = compare(operand(document(), "a", tmp_path / "a"), operand(changed, "b", tmp_path / "b")).documents
    assert tampered.unknown == "the file in b is not what its manifest says"
    (absent,) = compare(operand(document(), "a", tmp_path / "a"), operand(changed, "b")).documents
    assert absent.unknown == "only the manifest of b is at hand"
    (large,) = compare(
        operand(document(), "a", tmp_path / "a"),
        operand({**changed, "files": [file("config.json", size=2 << 20), *changed["files"][1:]]}, "b", tmp_path / "b"),
    ).documents
    assert large.unknown == "2,097,152 bytes: keys are compared up to 1,048,576"


def test_values_are_compared_as_json_tells_them_apart() -> None:
    pairs: list[tuple[Any, Any]] = [(1, 1.0), (1, True), ([1], [1.0]), ({"a": 1}, {"a": True}), (None, False), ("", {})]
    for left, right in pairs:
        assert value_differences({"k": left}, {"k": right}), (left, right)
        assert not value_differences({"k": left}, {"k": left})
    assert value_differences({"a": {"b": 1}}, {"a.b": 1})[0].key == "a.b"
    assert len(value_differences({"a": {"b": 1}}, {"a.b": 1})) == 2, "a dot inside a name is no step down"
    assert [one.what for one in value_differences({"k": None}, {})] == ["removed"]


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("model-00001-of-00004.safetensors", "tensors"), ("quant_model_weights.safetensors.index.json", "index"),
        ("tokenizer.json", "tokenizer"), ("tokenizer_config.json", "tokenizer"), ("merges.txt", "tokenizer"),
        ("inference/config.json", "config"), ("encoding/encoding_dsv4.py", "other"), ("README.md", "other"),
        ("special_tokens_map.json", "tokenizer"), ("inference/tokenizer_test.py", "other"),
    ],
)  # fmt: skip
def test_roles(path: str, role: str) -> None:
    assert role_of(path) == role


HOSTILE = "w\x1b[31m\u202e<script>[bold]"


def test_no_name_can_paint_the_terminal() -> None:
    changed = document()
    changed["tensors"][HOSTILE] = tensor("x")
    changed["model"] = HOSTILE
    text = "\n".join(difference_text(against(changed)))
    assert all(line.isprintable() for line in text.splitlines())
    assert "w\\x1b[*m\\u202e<script>[bold]: added" in text


def test_long_lists_are_cut_and_say_so() -> None:
    changed = document()
    changed["tensors"] |= {f"{chr(97 + n)}.w": tensor(str(n)) for n in range(25)}
    lines = list(difference_text(against(changed)))
    assert "  and 5 more; --json has them" in lines


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        changed = document() if name == "a" else {**document(), "model": "N"}
        (tmp_path / name / "manifest.json").write_text(json.dumps(changed))
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    shown = ReleaseDifference.model_validate_json(capsys.readouterr().out)
    assert [(one.key, one.after) for one in shown.facts] == [("model", "N")]
    assert main(["diff", str(tmp_path / "a" / "manifest.json"), str(tmp_path / "b")]) == 0
    assert "  model: M -> N" in capsys.readouterr().out.splitlines()
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "c")]) == 2
    assert main(["diff", str(tmp_path), str(tmp_path / "b")]) == 5
