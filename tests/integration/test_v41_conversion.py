"""DeepSeek-V4.1: a small checkpoint of every kind of tensor, converted, compared with a second reading, and verified.

What the files must hold is written here a third time, in torch, from the rules of DeepSeek's `inference/convert.py` of
V4.1 as the fact sheet has them (facts on V4.1, B.3): neither the converter's nor verify's tables are asked.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from safetensors import safe_open
from torch import Tensor

from flagrelease.convert.codecs.lookup import cpu_lookup
from flagrelease.convert.planning.layouts import tensor_parallel
from flagrelease.convert.planning.plan import make_plan
from flagrelease.convert.planning.target import parse_target
from flagrelease.convert.running.conversion import convert
from flagrelease.errors import UsageError
from flagrelease.model.v41.config import parse_config
from flagrelease.model.v41.inventory import inventory
from flagrelease.model.v41.synthetic import tiny_config, write_checkpoint
from flagrelease.records.convert_spec import ConvertSpec
from flagrelease.source.source import read_source
from flagrelease.verify.result import VerifyReport
from flagrelease.verify.splits import Ranks, place
from flagrelease.verify.verify import verify_release

TARGETS = ("native:hf", "fp8:hf", "fp8-e8m0:hf", "bf16:hf", "native:mp2", "fp8:mp4", "native:mp8", "bf16:mp4")
TABLES = ("layers.1.engram.embed", "layers.4.engram.embed")
EXPERT = "layers.3.ffn.experts.5.w2"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("v41") / "source"
    write_checkpoint(folder, tiny_config())
    return folder


@pytest.fixture(scope="module")
def releases(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of `TARGETS`, and under `kept/` BF16 releases whose Engram tables keep their codes."""
    out = tmp_path_factory.mktemp("v41-releases")
    _convert(source, out, TARGETS)
    _convert(source, out / "kept", ("bf16:hf", "bf16:mp4"), engram_tables="keep")
    return out


def _convert(source: Path, out: Path, targets: tuple[str, ...], **options: Any) -> None:
    spec = ConvertSpec(**options)
    wanted = [replace(parse_target(text), engram=spec.engram_tables) for text in targets]
    convert(make_plan(read_source(source), wanted, spec), out, workers=2, lookup=cpu_lookup, progress=lambda _: None)


# --- what files must hold, from DeepSeek's rules


def stored(folder: Path, pattern: str = "*.safetensors") -> dict[str, Tensor]:
    """All tensors of a folder; FP4 packed, as bytes."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob(pattern)):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                found[name] = file.get_tensor(name)
    return found


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8) if tensor.dtype != torch.int8 else tensor.view(torch.uint8)


def rows_of_32(scale: Tensor, shape: torch.Size) -> Tensor:
    """The scale of each element: of 32 elements of a row (FP4, Engram), or of a tile of 32 x 32."""
    wide = scale.float().repeat_interleave(32, dim=1)
    return wide if wide.shape == shape else wide.repeat_interleave(32, dim=0)[: shape[0], : shape[1]]


E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])


def exact(weight: Tensor, scale: Tensor) -> Tensor:
    """The numbers that a quantised weight stands for."""
    if weight.dtype == torch.int8:
        packed = weight.view(torch.uint8)
        values = E2M1[torch.stack([packed & 15, packed >> 4], dim=-1).long()].flatten(1)
    else:
        values = weight.float()
    return values * rows_of_32(scale, values.shape)


def as_fp8(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """FP4 as E4M3 in tiles of 32 x 32: the scale is the largest of the tile's 32 over 2^6."""
    tall = scale.float().unflatten(0, (-1, 32)).amax(dim=1) / 2**6
    codes = exact(weight, scale) / rows_of_32(tall, torch.Size((weight.shape[0], weight.shape[1] * 2)))
    return codes.to(torch.float8_e4m3fn), tall.to(torch.float8_e8m0fnu)


def rank_of(tensors: dict[str, Tensor], rank: int, mp: int) -> dict[str, Tensor]:
    """What one rank holds, wo_a as BF16."""
    held = {}
    for name, tensor in tensors.items():
        if expert := re.search(r"\.experts\.(\d+)\.", name):
            count = 8 if name.startswith("mtp.") else 16
            if int(expert[1]) // (count // mp) == rank:
                held[name] = tensor
        elif ".engram.embed." in name:
            step = -(-len(tensor) // mp)
            mine = tensor[rank * step : (rank + 1) * step]
            filling = torch.full((step - len(mine), tensor.shape[1]), 1.0 if name.endswith("scale") else 0.0)
            held[name] = torch.cat([mine.float(), filling]).to(tensor.dtype)
        else:
            key = name.removesuffix(".weight").removesuffix(".scale").rpartition(".")[2]
            cut = {"embed": 0, "head": 0, "wq_b": 0, "wo_a": 0, "attn_sink": 0, "weights_proj": 0, "wo_b": 1}.get(key)
            held[name] = tensor if cut is None else tensor.chunk(mp, dim=cut)[rank]
    for name in [name for name in held if name.endswith("wo_a.scale")]:
        weight = name.removesuffix("scale") + "weight"
        held[weight] = exact(held[weight], held.pop(name)).bfloat16()
    return held


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(bits(found[name]), bits(tensor)), name


@pytest.mark.parametrize(("target", "mp"), [("native-mp2", 2), ("native-mp8", 8)])
def test_ranks_hold_what_deepseeks_converter_gives_them(source: Path, releases: Path, target: str, mp: int) -> None:
    tensors = stored(source)
    for rank in range(mp):
        assert_equal(stored(releases / target, f"model{rank}-mp{mp}*"), rank_of(tensors, rank, mp))


def test_the_last_rank_of_a_table_is_filled_up(releases: Path) -> None:
    """1916 and 2148 rows on 8 ranks: 240 and 269 a rank, 4 rows too many on the last one."""
    last = stored(releases / "native-mp8", "model7-mp8*")
    for table, rows, filled in zip(TABLES, (240, 269), (4, 4), strict=True):
        codes, scales = last[f"{table}.weight"], last[f"{table}.scale"]
        assert (len(codes), len(scales)) == (rows, rows)
        assert not bits(codes)[-filled:].any()
        assert (bits(scales)[-filled:] == 127).all()
        assert bits(codes)[-filled - 1].any()


@pytest.mark.parametrize(("target", "mp"), [("fp8-e8m0-hf", None), ("fp8-hf", None), ("fp8-mp4", 4)])
def test_experts_become_fp8_in_tiles_of_32(source: Path, releases: Path, target: str, mp: int | None) -> None:
    tensors = stored(source)
    for name in [name for name, tensor in tensors.items() if tensor.dtype == torch.int8]:
        scale = name.removesuffix("weight") + "scale"
        tensors[name], tensors[scale] = as_fp8(tensors[name], tensors[scale])
        if target == "fp8-hf":  # vLLM copies E8M0 scales of FP8 experts as bytes
            tensors[scale] = tensors[scale].float()
    if mp is None:
        assert_equal(stored(releases / target), tensors)
    else:
        for rank in range(mp):
            assert_equal(stored(releases / target, f"model{rank}-mp{mp}*"), rank_of(tensors, rank, mp))


@pytest.mark.parametrize("kept", [False, True])
def test_bf16_decodes_everything_or_all_but_the_tables(source: Path, releases: Path, kept: bool) -> None:
    tensors = stored(source)
    for scale in [name for name in tensors if name.endswith(".scale")]:
        if not (kept and scale.removesuffix(".scale") in TABLES):
            name = scale.removesuffix("scale") + "weight"
            tensors[name] = exact(tensors[name], tensors.pop(scale)).bfloat16()
    folder = releases / "kept" if kept else releases
    assert_equal(stored(folder / "bf16-hf"), tensors)
    for rank in range(4):
        assert_equal(stored(folder / "bf16-mp4", f"model{rank}-mp4*"), rank_of(tensors, rank, 4))


def test_what_images_need_is_carried(source: Path, releases: Path) -> None:
    names = [name for name in stored(source) if name.startswith(("vision.", "aligner.", "image_"))]
    assert len(names) == 2 * 8 + 3 + 4 + 3
    assert set(names) <= stored(releases / "fp8-hf").keys()


@pytest.mark.parametrize("mp", [1, 2, 4, 8])
def test_both_tables_of_sharding_agree(mp: int) -> None:
    """The converter's comes from the inventory, verify's was written by itself."""
    config = parse_config(tiny_config(), "config.json")
    layout = tensor_parallel(config, mp, "shared")
    ranks = Ranks(mp, config.o_groups, config.n_routed_experts, None, config.draft_experts)
    for name, spec in inventory(config).items():
        boxes = place(name, spec.shape, ranks)
        held = {(rank, (b.top, b.bottom, b.left, b.right)) for b, several in boxes.items() for rank in several}
        assert held == {(rank, (r.row0, r.row1, r.col0, r.col1)) for rank, r in layout.regions(spec)}, name


# --- configs


def test_configs_say_what_the_weights_are_where_stacks_look(releases: Path) -> None:
    def config(release: str, file: str = "config.json") -> dict[str, Any]:
        document: dict[str, Any] = json.loads((releases / release / file).read_text())
        return document

    block = tiny_config()["quantization_config"]
    native, fp8, bf16 = config("native-hf"), config("fp8-hf"), config("bf16-hf")
    assert native == tiny_config()
    assert (fp8["expert_dtype"], fp8["quantization_config"]) == ("fp8", block | {"expert_dtype": "fp8"})
    for plain in (bf16, config("kept/bf16-hf")):
        assert {"quantization_config", "expert_dtype"}.isdisjoint(plain)
        assert plain["dtype"] == "bfloat16"
        assert plain["text_config"] == native["text_config"]
    names = ("dtype", "expert_dtype", "scale_fmt", "n_mtp_layers", "engram_pad_id", "vision_n_layers")
    for release, numbers in (("native-mp8", ("fp8", "fp4")), ("fp8-mp4", ("fp8", None)), ("bf16-mp4", ("bf16", None))):
        said = config(release, "inference/config.json")
        # ModelArgs of V4.1 has no scale_fmt: an unknown key ends DeepSeek's program
        assert tuple(said.get(name) for name in names) == (*numbers, None, 3, 2, 2)


# --- verify


def proved(release: Path, source: Path) -> VerifyReport:
    return verify_release(release, source)


@pytest.mark.parametrize("name", [*(t.replace(":", "-") for t in TARGETS), "kept/bf16-hf", "kept/bf16-mp4"])
def test_every_release_is_proved_by_the_second_decoder(source: Path, releases: Path, name: str) -> None:
    report = proved(releases / name, source)
    assert {check.name: check.status for check in report.checks if check.status != "pass"} == {"stacks": "not-run"}


def _plant(release: Path, tensor: str, rank_file: str, at: int, *, told: bool) -> None:
    """Change a byte of `tensor`, `at` bytes from its begin. `told`: the manifest agrees, as if convert had done it."""
    path = next(p for p in sorted(release.glob(rank_file)) if tensor in _header(p)[1])
    begin, header = _header(path)
    first, last = header[tensor]["data_offsets"]
    data = bytearray(path.read_bytes())
    data[begin + first + at] ^= 1
    path.write_bytes(data)
    if told:
        manifest = json.loads((release / "manifest.json").read_text())
        manifest["tensors"][tensor]["blake3"] = blake3(data[begin + first : begin + last]).hexdigest()
        for record in manifest["files"]:
            if record["path"] == path.name:
                record["sha256"] = hashlib.sha256(data).hexdigest()
        (release / "manifest.json").write_text(json.dumps(manifest))


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return 8 + length, json.loads(file.read(length))


@pytest.mark.parametrize(
    ("release", "tensor", "at", "says"),
    [
        ("bf16-hf", f"{TABLES[0]}.weight", 2 * 64 * 1000 + 7, "is not code times scale of the source"),
        ("kept/bf16-hf", f"{TABLES[1]}.scale", 2 * 777 + 1, "is not the source's bytes"),
        ("fp8-e8m0-hf", f"{EXPERT}.scale", 3, "is not the FP8 of the source's FP4"),
        ("fp8-e8m0-hf", f"{EXPERT}.weight", 96 * 33 + 5, "is not the FP8 of the source's FP4"),
        ("native-hf", "layers.0.attn.wq_b.scale", 1, "is not the source's bytes"),
        ("native-hf", "vision.blocks.1.mlp.w2.weight", 100, "is not the source's bytes"),
    ],
)
def test_a_wrong_byte_that_the_manifest_agrees_with_is_found(
    source: Path, releases: Path, tmp_path: Path, release: str, tensor: str, at: int, says: str
) -> None:
    shutil.copytree(releases / release, tmp_path / "release")
    _plant(tmp_path / "release", tensor, "*.safetensors", at, told=True)
    report = proved(tmp_path / "release", source)
    found = {check.name: [(f.tensor, f.rule) for f in check.findings] for check in report.checks if check.findings}
    assert found.keys() == {"source"} or found.keys() == {"source", "tensors"}  # copies are compared by digest, too
    assert any(name == tensor and says in rule for name, rule in found["source"])


@pytest.mark.parametrize("kind", ["weight", "scale"])
def test_a_wrong_byte_in_what_fills_up_the_last_rank_is_found(
    source: Path, releases: Path, tmp_path: Path, kind: str
) -> None:
    shutil.copytree(releases / "native-mp8", tmp_path / "release")
    tensor = f"{TABLES[0]}.{kind}"
    row_bytes = 64 if kind == "weight" else 2
    _plant(tmp_path / "release", tensor, "model7-mp8*", 240 * row_bytes - 1, told=False)
    report = proved(tmp_path / "release", source)
    (finding,) = next(check.findings for check in report.checks if check.name == "tensors")
    assert (finding.tensor, finding.file) == (tensor, "model7-mp8.safetensors")
    assert "rows behind the last of the table" in finding.rule


# --- tables in bounded memory


def test_a_table_is_streamed_by_rows(
    source: Path, releases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With chunks of 4 KiB a table of 130 KB is read and written in many; the files are the same."""
    largest: list[int] = []

    class Counting:
        def __init__(self, sink: Any) -> None:
            self._sink = sink
            self.put, self.drop = sink.put, sink.drop

        def buffer(self, nbytes: int) -> Any:
            largest.append(nbytes)
            return self._sink.buffer(nbytes)

        def buffer_for(self, nbytes: int, *where: Any) -> Any:
            largest.append(nbytes)
            return self._sink.buffer_for(nbytes, *where)

    from flagrelease.convert.running import work

    real = work.stream_table
    monkeypatch.setattr("flagrelease.convert.running.chunks.CHUNK_BYTES", 4096)
    monkeypatch.setattr(work, "stream_table", lambda job, fmt, read, sink, *rest: real(
        job, fmt, read, Counting(sink), *rest))  # fmt: skip
    _convert(source, tmp_path, ("native:mp8", "bf16:hf"))
    assert len(largest) > 100
    assert max(largest) <= 4096
    for name in ("native-mp8", "bf16-hf"):
        for path in (releases / name).glob("*.safetensors"):
            assert path.read_bytes() == (tmp_path / name / path.name).read_bytes()


# --- refusals


@pytest.mark.parametrize("target", ["int8:hf", "int8-experts:hf", "fp8-channel:hf", "w8a8-ascend:hf", "mxfp8:hf"])
def test_formats_that_no_stack_of_v41_loads_are_refused(source: Path, target: str) -> None:
    says = f"target {target}: no stack is known that loads DeepSeek-V4.1 in this format; it can be made bf16, native"
    with pytest.raises(UsageError, match=says):
        make_plan(read_source(source), [parse_target(target)], ConvertSpec())


@pytest.mark.parametrize(
    ("target", "says"),
    [("bf16:mp16", "mp16: dspark_n_routed_experts 8 is not divisible by 16"), ("native:mp3", "n_routed_experts 16")],
)
def test_ranks_that_the_model_cannot_have_are_refused(source: Path, target: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make_plan(read_source(source), [parse_target(target)], ConvertSpec())


def test_without_draft_stages_nothing_of_them_is_left(source: Path, tmp_path: Path) -> None:
    target = replace(parse_target("native:mp8"), drafts="drop")
    convert(make_plan(read_source(source), [target], ConvertSpec()), tmp_path, workers=1, lookup=cpu_lookup,
            progress=lambda _: None)  # fmt: skip
    release = tmp_path / "native-mp8"
    assert not [name for name in stored(release) if name.startswith("mtp.")]
    text = json.loads((release / "config.json").read_text())["text_config"]
    assert not [key for key in text if key.startswith("dspark")]
    assert (text["num_nextn_predict_layers"], len(text["compress_ratios"])) == (0, 8)
    assert json.loads((release / "inference" / "config.json").read_text())["n_mtp_layers"] == 0
    report = proved(release, source)
    assert all(check.status in ("pass", "not-run") for check in report.checks)
