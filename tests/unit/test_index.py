"""Folders whose index, headers and files disagree; and the real headers of a public DeepSeek-V4 checkpoint."""

from __future__ import annotations

import json
import os
import struct
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flagrelease.errors import CheckpointError
from flagrelease.shard.folder import FolderFiles
from flagrelease.shard.header import build_header
from flagrelease.shard.index import INDEX_NAME, CheckpointIndex, open_checkpoint, survey
from flagrelease.source.source import read_source

GOLDEN = Path(__file__).parents[1] / "golden"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
Contents = Mapping[str, Mapping[str, int]]  # file -> tensor -> bytes
USUAL: Contents = {ONE: {"a": 3, "b": 5}, TWO: {"c": 7}}


def write_files(folder: Path, contents: Contents) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file, tensors in contents.items():
        header = build_header((name, "U8", (size,)) for name, size in tensors.items())
        (folder / file).write_bytes(header + bytes(sum(tensors.values())))


def write_index(folder: Path, weight_map: Any, metadata: Any) -> None:
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound checkpoint of two files."""
    write_files(tmp_path, USUAL)
    write_index(tmp_path, {name: file for file, tensors in USUAL.items() for name in tensors}, {"total_size": 15})
    return tmp_path


def edit_index(folder: Path, **changes: str | None) -> None:
    document = json.loads((folder / INDEX_NAME).read_text())
    for name, file in changes.items():
        document["weight_map"].pop(name, None)
        if file is not None:
            document["weight_map"][name] = file
    (folder / INDEX_NAME).write_text(json.dumps(document))


def survey_folder(folder: Path) -> tuple[CheckpointIndex, list[str]]:
    return survey(FolderFiles(folder))


def problems_of(folder: Path) -> list[str]:
    """Everything `survey` lists; `open_checkpoint` refuses with the first of it."""
    _, problems = survey_folder(folder)
    assert problems
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert str(caught.value) == problems[0]
    return problems


def test_sound_folder_is_read(folder: Path) -> None:
    index, problems = survey_folder(folder)
    assert problems == []
    found = [(meta.name, meta.file.name, meta.nbytes) for meta in index.tensors.values()]
    assert found == [("a", ONE, 3), ("b", ONE, 5), ("c", TWO, 7)]
    assert (index.total_size, index.declared_total_size) == (15, 15)


def test_single_file_needs_no_index(tmp_path: Path) -> None:
    write_files(tmp_path, {"model.safetensors": {"a": 3}})
    index = open_checkpoint(tmp_path)
    assert list(index.tensors) == ["a"]
    assert index.declared_total_size is None


def test_several_files_need_an_index(folder: Path) -> None:
    (folder / INDEX_NAME).unlink()
    (problem,) = problems_of(folder)
    assert problem == f"{folder / INDEX_NAME}: not found, though the folder has 2 safetensors files"


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"/gone: no such folder"):
        open_checkpoint(tmp_path / "gone")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"/file: no such folder"):
        open_checkpoint(tmp_path / "file")


def test_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").mkdir()
    (tmp_path / "model.safetensors.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors file in it"):
        open_checkpoint(tmp_path)


def test_broken_header_in_any_file_is_refused(folder: Path) -> None:
    os.truncate(folder / TWO, (folder / TWO).stat().st_size - 1)
    with pytest.raises(CheckpointError, match=rf"{TWO}: .*truncated"):
        survey_folder(folder)


# --- index against headers and folder


def test_file_that_the_index_does_not_name_is_refused(folder: Path) -> None:
    write_files(folder, {"extra.safetensors": {"d": 2}})
    problems = problems_of(folder)
    assert f"{folder / 'extra.safetensors'}: not named by the index" in problems
    assert "tensor 'd': in extra.safetensors, but not in the index" in problems


def test_file_without_tensors_that_the_index_does_not_name_is_refused(folder: Path) -> None:
    write_files(folder, {"empty.safetensors": {}})
    assert problems_of(folder) == [f"{folder / 'empty.safetensors'}: not named by the index"]


def test_tensor_that_the_index_does_not_name_is_refused(folder: Path) -> None:
    edit_index(folder, b=None)
    assert problems_of(folder) == [f"tensor 'b': in {ONE}, but not in the index"]


def test_tensor_in_no_file_is_refused(folder: Path) -> None:
    edit_index(folder, ghost=ONE)
    assert problems_of(folder) == [f"tensor 'ghost': the index says {ONE}, but no file holds it"]


def test_tensor_in_another_file_than_the_index_says_is_refused(folder: Path) -> None:
    edit_index(folder, b=TWO)
    assert problems_of(folder) == [f"tensor 'b': the index says {TWO}, but it is in {ONE}"]


def test_missing_file_is_refused(folder: Path) -> None:
    (folder / TWO).unlink()
    problems = problems_of(folder)
    assert problems[0] == f"{folder / TWO}: named by the index, but not in the folder"
    assert f"tensor 'c': the index says {TWO}, but no file holds it" in problems


def test_tensor_in_two_files_is_refused(folder: Path) -> None:
    write_files(folder, {TWO: {"c": 7, "a": 3}})
    assert problems_of(folder)[0] == f"tensor 'a' is in both {folder / ONE} and {folder / TWO}"


def test_tensor_in_two_files_is_refused_though_sizes_and_index_agree(folder: Path) -> None:
    """The copy has no bytes, so total_size cannot show it."""
    write_files(folder, {ONE: {"a": 0, "b": 5}, TWO: {"c": 7, "a": 3}})
    edit_index(folder, a=TWO)
    assert problems_of(folder)[0] == f"tensor 'a' is in both {folder / ONE} and {folder / TWO}"


@pytest.mark.parametrize("total", [0, 14, 16, -15])
def test_wrong_total_size_is_refused(folder: Path, total: int) -> None:
    write_index(folder, {"a": ONE, "b": ONE, "c": TWO}, {"total_size": total})
    assert problems_of(folder) == [f"{folder / INDEX_NAME}: total_size is {total}, the headers sum to 15"]


@pytest.mark.parametrize("total", [None, "15", 15.5, True])
def test_total_size_that_is_no_number_is_refused(folder: Path, total: Any) -> None:
    write_index(folder, {"a": ONE, "b": ONE, "c": TWO}, {"total_size": total})
    assert problems_of(folder) == [f"{folder / INDEX_NAME}: metadata.total_size is {total!r}, not a number of bytes"]


@pytest.mark.parametrize("metadata", [None, {}, []])
def test_an_index_without_total_size_is_accepted_with_a_remark(folder: Path, metadata: Any) -> None:
    """DeepSeek's own older conversion script writes such an index; it was refused."""
    write_index(folder, {"a": ONE, "b": ONE, "c": TWO}, metadata)
    index = open_checkpoint(folder)
    assert index.declared_total_size is None
    (remark,) = index.remarks
    assert remark.startswith(f"{folder / INDEX_NAME}: has no metadata.total_size")


def test_a_total_size_written_as_a_float_is_accepted_with_a_remark(folder: Path) -> None:
    total = open_checkpoint(folder).total_size
    write_index(folder, {"a": ONE, "b": ONE, "c": TWO}, {"total_size": float(total)})
    index = open_checkpoint(folder)
    assert index.declared_total_size == total
    assert "written as a float" in index.remarks[0]
    write_index(folder, {"a": ONE, "b": ONE, "c": TWO}, {"total_size": float(total + 1)})
    assert f"total_size is {total + 1}, the headers sum to {total}" in problems_of(folder)[0]


@pytest.mark.parametrize("name", [INDEX_NAME, "model-00001-of-00002.safetensors"])
def test_a_pointer_in_place_of_an_index_or_a_shard_says_so(folder: Path, name: str) -> None:
    names = [path.name for path in folder.iterdir()]
    target = folder / (name if name in names else next(n for n in names if n.endswith(".safetensors")))
    target.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12\n")
    with pytest.raises(CheckpointError, match=f"{target}: a git-lfs pointer"):
        survey_folder(folder)
    target.write_text("<!DOCTYPE html><html>")
    with pytest.raises(CheckpointError, match=f"{target}: a web page"):
        survey_folder(folder)


# --- the index file itself


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "not json", '{"weight_map": {}} x', "\ufeff{}", "[" * 100_000,
        '{"metadata": {"total_size": NaN}, "weight_map": {}}',
        '{"metadata": {"total_size": 15}, "weight_map": {"a": "x", "a": "y"}}',
        '{"weight_map": {}, "metadata": {"total_size": 1, "total_size": 15}}',
        '{"weight_map": {"a": "x"}, "weight_map": {}}',
    ],
    ids=lambda text: repr(text[:30]),
)  # fmt: skip
def test_index_that_is_not_json_or_repeats_a_key_is_refused(folder: Path, text: str) -> None:
    (folder / INDEX_NAME).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"{INDEX_NAME}: not valid JSON"):
        survey_folder(folder)


def test_index_that_is_not_text_is_refused(folder: Path) -> None:
    (folder / INDEX_NAME).write_bytes(b'{"weight_map": {"\xff": "x"}}')
    with pytest.raises(CheckpointError, match=rf"{INDEX_NAME}: not valid JSON"):
        survey_folder(folder)


def test_index_that_names_a_tensor_twice_is_refused_by_name(folder: Path) -> None:
    text = (folder / INDEX_NAME).read_text().replace('"weight_map": {', f'"weight_map": {{"\\u0062": "{TWO}", ')
    (folder / INDEX_NAME).write_text(text)
    with pytest.raises(CheckpointError, match="'b' appears twice"):
        survey_folder(folder)


@pytest.mark.parametrize(
    "document",
    [
        [], "text", 1, None, {}, {"weight_map": None}, {"weight_map": ["a"]}, {"weight_map": {"a": 1}},
        {"weight_map": {"a": None}}, {"weight_map": {"a": [ONE]}},
    ],
)  # fmt: skip
def test_index_of_another_form_is_refused(folder: Path, document: Any) -> None:
    (folder / INDEX_NAME).write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=rf"{INDEX_NAME}: weight_map must map tensor names to file names"):
        survey_folder(folder)


def test_index_that_is_a_folder_is_refused(folder: Path) -> None:
    (folder / INDEX_NAME).unlink()
    (folder / INDEX_NAME).mkdir()
    with pytest.raises(CheckpointError, match=rf"{INDEX_NAME}: cannot be read \(Is a directory\)"):
        survey_folder(folder)


@pytest.mark.parametrize(
    "file",
    [
        "", ".", "..", "/", "../x.safetensors", "../../etc/passwd", "/etc/passwd", "//x", "sub/x.safetensors",
        "a/../b.safetensors", "\\x.safetensors", "..\\x.safetensors", "C:\\x.safetensors", "a\\b",
    ],
)  # fmt: skip
def test_path_out_of_the_folder_is_refused(folder: Path, file: str) -> None:
    edit_index(folder, b=file)
    with pytest.raises(CheckpointError, match=r"tensor 'b': .* is not a file name inside the folder") as caught:
        survey_folder(folder)
    assert repr(file) in str(caught.value)


@pytest.mark.parametrize("spelling", [f"./{ONE}", f"{ONE}/", f"{ONE} ", ONE.upper(), f"{ONE}\x00"])
def test_other_spelling_of_a_file_is_refused(folder: Path, spelling: str) -> None:
    edit_index(folder, b=spelling)
    problems_of(folder)


def test_path_out_of_the_folder_is_refused_even_where_the_file_exists(tmp_path: Path) -> None:
    write_files(tmp_path / "outside", {"x.safetensors": {"b": 5}})
    write_files(tmp_path / "in", {ONE: {"a": 3}})
    write_index(tmp_path / "in", {"a": ONE, "b": "../outside/x.safetensors"}, {"total_size": 8})
    with pytest.raises(CheckpointError, match="not a file name inside the folder"):
        open_checkpoint(tmp_path / "in")


# --- files that do not belong


@pytest.mark.parametrize(
    "name",
    ["model.bin", "x.pt", "x.pth", "x.pkl", "x.pickle", "x.ckpt", "sub/deep/training_args.bin", "X.BIN", "y.Pt"],
)
def test_pickle_file_is_refused_wherever_it_lies(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"\x80\x04.")
    assert problems_of(folder) == [f"{folder / name}: pickle files can run code when read; remove it"]


def test_safetensors_file_in_a_sub_folder_is_refused(folder: Path) -> None:
    """It would be neither converted nor carried over."""
    write_files(folder / "sub" / "deep", {"x.safetensors": {"d": 1}})
    (problem,) = problems_of(folder)
    assert problem.startswith(f"{folder / 'sub' / 'deep' / 'x.safetensors'}: in a sub-folder")


def test_files_that_only_sound_like_pickles_are_kept(folder: Path) -> None:
    for name in ("binary.txt", "pt", "bin", "model.py", "x.ptx", "tokenizer.json"):
        (folder / name).write_text("")
    (folder / "x.bin").mkdir()
    open_checkpoint(folder)


def test_links_of_a_hub_cache_are_read(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    snapshot = tmp_path_factory.mktemp("snapshot")
    for path in folder.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert list(open_checkpoint(snapshot).tensors) == ["a", "b", "c"]


# --- identity


@pytest.fixture
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("other")


def test_identity_does_not_depend_on_the_folder_or_the_index(folder: Path, other: Path) -> None:
    write_files(other, USUAL)
    assert survey_folder(other)[0].headers_sha256() == survey_folder(folder)[0].headers_sha256()


@pytest.mark.parametrize(
    "contents",
    [
        {ONE: {"a": 3, "x": 5}, TWO: {"c": 7}},
        {ONE: {"a": 5, "b": 3}, TWO: {"c": 7}},
        {ONE: {"b": 5, "a": 3}, TWO: {"c": 7}},
        {ONE: {"a": 3}, TWO: {"b": 5, "c": 7}},
        {ONE: {"a": 3, "b": 5}, "model-00003-of-00002.safetensors": {"c": 7}},
        {ONE: {"a": 3, "b": 5}},
    ],
    ids=["name", "size", "order", "file", "file name", "file gone"],
)
def test_identity_changes_with_what_headers_say(folder: Path, other: Path, contents: Contents) -> None:
    write_files(other, contents)
    assert survey_folder(other)[0].headers_sha256() != survey_folder(folder)[0].headers_sha256()


# --- real headers


@pytest.fixture(scope="module")
def reap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A public V4-Flash-0731 variant with 160 experts: its 48 real headers, index and config; the data are holes."""
    folder = tmp_path_factory.mktemp("reap")
    with tarfile.open(GOLDEN / "flash-0731-reap.tar.xz") as archive:
        for member in archive:
            opened = archive.extractfile(member)
            if opened is None:
                continue
            data, name = opened.read(), Path(member.name).name
            if not name.endswith(".safetensors.json"):
                (folder / name).write_bytes(data)
                continue
            entries = [entry for key, entry in json.loads(data).items() if key != "__metadata__"]
            path = folder / name.removesuffix(".json")
            path.write_bytes(struct.pack("<Q", len(data)) + data)
            os.truncate(path, 8 + len(data) + max(entry["data_offsets"][1] for entry in entries))
    return folder


def test_real_headers_have_the_published_totals(reap: Path) -> None:
    index = open_checkpoint(reap)
    assert len(index.headers) == 48
    assert len(index.tensors) == 45_821
    assert index.total_size == index.declared_total_size == 107_803_320_952


def test_real_headers_are_the_inventory_of_their_config(reap: Path) -> None:
    """Names, dtypes, shapes, scales: DeepSeek's own files leave nothing over, and no spec is without a tensor."""
    source = read_source(reap)
    assert source.config.is_dspark
    assert source.config.n_mtp_layers == 3
    assert source.expert_format is not None
    assert source.expert_format.name == "fp4"
    # (43 layers + 3 MTP stages) x 160 experts x 3 matrices
    assert Counter(t.format.name if t.format else None for t in source.tensors)["fp4"] == 46 * 160 * 3
    assert sum(1 + (t.scale is not None) for t in source.tensors) == 45_821


def test_real_files_hold_one_layer_each(reap: Path) -> None:
    """Facts 2.2: embed; a file a decoder layer; head and norm; a file an MTP stage."""
    prefixes = [{name.split(".")[0] for name in header.tensors} for header in open_checkpoint(reap).headers]
    assert prefixes[0] == {"embed"}
    assert prefixes[1:44] == [{"layers"}] * 43
    assert prefixes[44] == {"head", "norm", "hc_head_base", "hc_head_fn", "hc_head_scale"}
    assert prefixes[45:] == [{"mtp"}] * 3


def test_one_byte_less_of_a_real_file_is_refused(reap: Path, tmp_path: Path) -> None:
    for path in reap.iterdir():
        (tmp_path / path.name).symlink_to(path)
    name = "model-00017-of-00048.safetensors"
    (tmp_path / name).unlink()
    with (reap / name).open("rb") as file:
        prefix = file.read(8)
        (tmp_path / name).write_bytes(prefix + file.read(struct.unpack("<Q", prefix)[0]))
    os.truncate(tmp_path / name, (reap / name).stat().st_size - 1)
    with pytest.raises(CheckpointError, match=rf"{name}: .*truncated"):
        open_checkpoint(tmp_path)
