"""What is known of targets: sizes by table, abilities by what the target is, and one place that asks which it is."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import triton.language as tl

import flagrelease
from flagrelease.engine.kernels import targets
from flagrelease.engine.kernels.attention import choose_entries
from flagrelease.engine.kernels.attention.decode_attention import _tile as attention_tile
from flagrelease.engine.kernels.attention.sparse_attention import _tile as whole_tile
from flagrelease.engine.kernels.attention.sparse_attention import heads_of_program
from flagrelease.engine.kernels.linear.tiles import Tile, tile_shape
from flagrelease.engine.kernels.targets import HOPPER, SIZES, Target, declares_e4m3

PACKAGE = Path(flagrelease.__file__).parent
# What vendors' Tritons call their chips, whose numbers are no compute capabilities: the drivers of AMD's (gfx942 is
# (9, 4) in its torch), MetaX's, Iluvatar's, Moore Threads', Kunlunxin's and Huawei's.
OTHERS = [
    ("hip", "gfx942"),
    ("hip", 94),
    ("maca", 80),
    ("maca", 100),
    ("corex", 71),
    ("musa", 31),
    ("xpu", 3),
    ("npu", 0),
]


@pytest.mark.parametrize(("backend", "arch"), OTHERS)
def test_no_other_backend_is_asked_for_what_nvidia_has(backend: str, arch: int | str) -> None:
    target = Target(backend, arch)
    assert not any((target.ptx, target.multiplies_bf16_pairs, target.starts_early))


@pytest.mark.parametrize(("arch", "pairs"), [(80, False), (89, False), (90, True), (100, True), (120, True)])
def test_what_nvidias_architectures_can_do(arch: int, pairs: bool) -> None:
    target = Target("cuda", arch)
    assert target.ptx
    assert target.multiplies_bf16_pairs == target.starts_early == pairs


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")  # Triton 3.9 says so to whoever asks for its options
@pytest.mark.parametrize(
    ("backend", "arch", "there"),
    [("cuda", 80, False), ("cuda", 86, False), ("cuda", 89, True), ("cuda", 90, True), ("hip", "gfx942", True)],
)
def test_a_target_has_e4m3_if_triton_compiles_it(backend: str, arch: int | str, there: bool) -> None:
    assert Target(backend, arch).has_e4m3 is there


@pytest.mark.parametrize(
    ("options", "there"),
    [
        ({"supported_fp8_dtypes": ("fp8e5", "fp8e4nv")}, True),
        ({"supported_fp8_dtypes": (), "allow_fp8e4nv": True}, False),
        ({"allow_fp8e4nv": True}, True),
        ({}, False),
    ],
)
def test_a_vendors_backend_declares_e4m3(options: dict[str, object], there: bool) -> None:
    """As NVIDIA's, Kunlunxin's and Triton 3.0's do it, and one that knows nothing of FP8."""
    assert declares_e4m3(type("Options", (), options)()) is there


def test_hopper_is_cut_as_it_was_measured() -> None:
    """These are the numbers that benchmarks/engine-speed_h100-h200_2026-11-22.md rests on."""
    assert (HOPPER.multiprocessors, HOPPER.filled, HOPPER.shared_memory) == (132, 128, 232_448)
    assert Target("cuda", 90).sizes == HOPPER
    assert Target("npu", "Ascend910B3").sizes == HOPPER  # no row: as before there was a table
    # The values of commit 8713e20, when the numbers were constants.
    assert [tile_shape(rows, 4096, "fp4", False) for rows in (1, 61, 65)] == [
        (16, 32, 128, 4), (64, 32, 128, 4), (64, 128, 128, 4)
    ]  # fmt: skip
    assert [tile_shape(rows, 4096, "fp8", False) for rows in (1, 61, 65)] == [
        (16, 32, 128, 2), (64, 32, 128, 4), (128, 128, 64, 8)
    ]  # fmt: skip
    shapes = ((1, 4096, 1024), (16, 4096, 512), (16, 32768, 1024), (61, 2048, 4096), (515, 4096, 8192))
    assert [Tile.of(*shape, "fp8", True, False) for shape in shapes] == [
        Tile(16, 64, 128, 4, 6, True, 2), Tile(16, 64, 128, 4, 6, True, 2), Tile(16, 128, 128, 4, 6, True, 0),
        Tile(64, 64, 128, 4, 6, False, 2), Tile(64, 128, 128, 4, 4, False, 0),
    ]  # fmt: skip
    assert [heads_of_program(queries, 64) for queries in (1, 61, 64, 255, 256)] == [16, 16, 32, 32, 64]
    assert choose_entries._tile(1 << 20, coded=True, single=False) == (128, 4, 3, 264)
    assert choose_entries._tile(1 << 17, coded=True, single=False) == (64, 4, 3, 528)
    assert attention_tile(16, 640, coded=True, single=False) == {
        "KEYS": 0,
        "BLOCK_H": 32,
        "BLOCK_T": 64,
        "num_warps": 8,
    }


def test_the_current_target_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chip with 64 compute units is filled by fewer programs than Hopper, so its tiles need not be as small."""
    monkeypatch.setattr("flagrelease.engine.kernels.linear.tiles.TARGET", Target("hip", "gfx1201"))
    assert tile_shape(61, 2048, "fp8", False)[1] == 32
    monkeypatch.undo()
    assert tile_shape(61, 2048, "fp8", False)[1] == 16


def test_no_more_steps_are_on_their_way_than_memory_holds() -> None:
    """AMD's 64 KiB hold three steps of 20 KiB; six of them, as Hopper has, made launches that a device refuses."""
    assert HOPPER.stages(6, 20480) == 6
    assert Target("hip", "gfx942").sizes.stages(6, 20480) == 3
    assert Target("hip", "gfx942").sizes.stages(3, 1 << 20) == 1


@pytest.mark.parametrize(
    ("backend", "arch", "tile"),
    [("cuda", 90, (64, 64, 2)), ("cuda", 100, (32, 64, 2)), ("cuda", 80, (32, 32, 1)), ("hip", "gfx950", (32, 32, 1))],
)
def test_prompts_attention_fits_what_a_program_may_have(
    backend: str, arch: int | str, tile: tuple[int, int, int]
) -> None:
    """Hopper's tile takes 257 KiB on 10.0, whose programs have 227, and 193 on others, as Triton 3.9 compiles it."""
    assert whole_tile(Target(backend, arch), "3.9.0") == tile
    assert whole_tile(Target(backend, arch), "3.1.0") == (32, 32, 1)


def test_every_row_says_where_its_numbers_are_from() -> None:
    for (backend, _), sizes in SIZES.items():
        assert backend in ("cuda", "hip")
        assert sizes.source
        assert 0 < sizes.filled <= sizes.multiprocessors
        assert sizes.shared_memory % 1024 == 0


QUESTIONS = {"get_current_target", "get_device_capability", "compute_capability", "hip"}


def questions(source: str) -> set[str]:
    """How a file asks what the device is."""
    tree = ast.parse(source)
    named = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    named |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return named & QUESTIONS


def test_one_place_asks_what_the_device_is() -> None:
    asking = {
        str(path.relative_to(PACKAGE)): questions(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")
    }
    assert {path: found for path, found in asking.items() if found} == {
        "engine/kernels/targets.py": {"get_current_target", "hip"},
        # What torch says is shown to the user, in a process that may have no Triton.
        "doctor/probes/torch_devices.py": {"get_device_capability"},
    }
    assert questions("torch.cuda.get_device_capability() >= (9, 0)")
    assert questions("torch.version.hip is None")


def compares(source: str) -> bool:
    """Whether a file compares a compute capability with anything but None."""
    comparisons = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Compare))
    sides = (
        side
        for node in comparisons
        if not all(isinstance(how, ast.Is | ast.IsNot) for how in node.ops)
        for whole in (node.left, *node.comparators)
        for side in ast.walk(whole)
    )
    names = {getattr(side, "id", getattr(side, "attr", "")) for side in sides}
    return any("capability" in name for name in names) or "_nvidia" in names


def test_compute_capabilities_are_compared_where_it_is_known_whose_they_are() -> None:
    """doctor compared one with (8, 9) itself, and asked for NVIDIA by name to be allowed to."""
    comparing = [path for path in PACKAGE.rglob("*.py") if compares(path.read_text(encoding="utf-8"))]
    assert sorted(str(path.relative_to(PACKAGE)) for path in comparing) == [
        "chips/table.py",  # with what the chip's row says; rows of other vendors have no such number
        "engine/kernels/targets.py",
    ]
    assert compares("found.chip is not None and device.capability < (8, 9)")
    assert compares("if (9, 0) <= torch.cuda.get_device_capability(): pass")
    assert not compares("capability is not None")


def test_without_a_device_kernels_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoDriver:
        @property
        def active(self) -> None:
            raise RuntimeError("0 active drivers ([]). There should only be one.")

    monkeypatch.setattr(targets, "INTERPRETED", tl.constexpr(False))
    monkeypatch.setattr(targets.triton.runtime, "driver", NoDriver())
    assert targets._current() == Target("", 0)
