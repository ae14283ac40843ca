"""`bench compile`: what is asked, what a binary tells, and how failures are shown. Compiling itself: tests/kernels."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from flagrelease.bench.compile import matrix
from flagrelease.bench.compile.binary import Registers, cubin_registers, registers
from flagrelease.bench.compile.display import cell, failures, markdown, show_compiled
from flagrelease.bench.compile.matrix import Compiled, CompileReport, CompileRequest, compile_matrix
from flagrelease.bench.compile.record import CompiledLaunch, Recorder
from flagrelease.bench.compile.target import TARGETS, CompileTarget
from flagrelease.cli import main
from flagrelease.errors import ResourceError, UsageError

REQUEST = CompileRequest(("cuda:80",), (), "flash", ("native",), (1,), 4096, ())
FITS = CompiledLaunch("add", "_add_kernel", 46080, 168, None, None)
FAILS = CompiledLaunch("add", "_add_kernel", None, None, None, "CompilationError: no fp8e4nv | here")


def test_targets_are_read() -> None:
    assert [str(CompileTarget.parse(text)) for text in TARGETS] == list(TARGETS)
    assert CompileTarget.parse("cuda:90") == CompileTarget("cuda", 90)
    assert [CompileTarget.parse(text).warp for text in ("cuda:90", "hip:gfx942", "hip:gfx1201", "maca:80")] == [
        32, 64, 32, 64
    ]  # fmt: skip
    for text in ("cuda", "cuda:sm_90", "cuda:", ":90", "hip:gfx942:x"):
        with pytest.raises(UsageError, match="backend:architecture is needed"):
            CompileTarget.parse(text)


def test_a_target_that_is_none_is_refused_before_anything_is_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compile", "--target", "cuda:90", "--target", "gfx942"]) == UsageError.exit_code
    assert "--target 'gfx942'" in capsys.readouterr().err


def test_a_folder_without_triton_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compile", "--triton", str(tmp_path)]) == ResourceError.exit_code
    assert "it has no package triton" in capsys.readouterr().err


def cubin(*counts: int) -> bytes:
    """An ELF file of 64 bits with the section .nv.info alone: a flag without a value, then register counts."""
    info = struct.pack("<BBH", 3, 0x50, 0) + b"".join(struct.pack("<BBHII", 4, 0x2F, 8, 1, n) for n in counts)
    names = b"\0.nv.info\0"
    sections = [(1, len(info), 64), (0, len(names), 64 + len(info))]
    table = b"".join(struct.pack("<IIQQQQ24x", name, 1, 0, 0, at, size) for name, size, at in sections)
    header = struct.pack("<40sQ10xHHH", b"\x7fELF", 64 + len(info) + len(names), 64, len(sections), 1)
    return header.ljust(64, b"\0") + info + names + table


def test_registers_are_read_from_binaries() -> None:
    assert cubin_registers(cubin(32, 168)) == 168
    assert cubin_registers(cubin()) is None
    assert registers({"cubin": cubin(40), "ptx": ""}) == Registers(40, None)
    amd = "    .sgpr_count: 30\n    .vgpr_count:     128\n    .vgpr_spill_count: 7\n"
    assert registers({"amdgcn": amd}) == Registers(128, 7)
    assert registers({"ttir": ""}) is None


def test_cells_and_failures() -> None:
    assert cell(()) == ""
    assert cell((FITS, FITS)) == "2; 45; 168"
    assert cell((FITS, FAILS)) == "**1 of 2**; 45; 168"
    assert cell((FAILS,)) == "**0 of 1**"
    columns = (Compiled("cuda:80", "3.6.0", (FITS, FAILS)), Compiled("cuda:90", "3.6.0", (FITS,)))
    report = CompileReport("2026-12-01", "0.1.0", REQUEST, columns)
    assert list(failures(report)) == [("cuda:80, 3.6.0", "CompilationError: no fp8e4nv | here", "add (_add_kernel)")]
    page = markdown(report)
    assert "| add | **1 of 2**; 45; 168 | 1; 45; 168 |" in page
    assert "| cuda:80, 3.6.0 | CompilationError: no fp8e4nv / here | add (_add_kernel) |" in page
    assert json.loads(json.dumps(report.document()))["columns"][0]["launches"][1]["failure"] == FAILS.failure


def test_what_a_worker_says_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").touch()
    asked: list[tuple[dict[str, Any], str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        asked.append((json.loads(options["input"]), options["env"]["PYTHONPATH"].split(":")[0]))
        launch = {"operator": "add", "kernel": "k", "shared": 0, "registers": 9, "spilled": 0, "failure": None}
        return subprocess.CompletedProcess(
            command, 0, "LLVM says hello\n" + json.dumps({"triton": "3", "launches": [launch]}), ""
        )

    monkeypatch.setattr(matrix.subprocess, "run", run)
    request = CompileRequest(("cuda:80", "hip:gfx942"), (tmp_path,), "flash", ("native",), (1,), 4096, ())
    report = compile_matrix(request, lambda _: None)
    assert [(what["target"], where) for what, where in asked] == [(t, str(tmp_path)) for t in request.targets]
    assert [cell(column.of("add")) for column in report.columns] == ["1; 0; 9"] * 2
    assert report.operators == ["add"]


def test_a_compiler_that_ends_the_process_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.CompletedProcess([], -6, "", "warning\nLLVM ERROR: Cannot select\n")
    monkeypatch.setattr(matrix.subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(ResourceError, match="cuda:80: the process ended with -6: LLVM ERROR: Cannot select"):
        compile_matrix(REQUEST, lambda _: None)


class Kernel:
    """As Triton returns a compiled one."""

    def __init__(self, hashed: str, shared: int) -> None:
        self.hash, self.asm = hashed, {"cubin": cubin(64)}
        self.metadata = type("Metadata", (), {"shared": shared})()


def test_a_launch_is_recorded_once_and_one_that_takes_too_much_memory_fails() -> None:
    recorder = Recorder(CompileTarget("hip", "gfx942"))

    def refuse() -> None:
        raise RuntimeError("PassManager::run failed\n\n")

    recorder.begin("add")
    for _ in range(2):
        recorder("small", lambda: Kernel("a", 65536), {"num_warps": 4})
        recorder("large", lambda: Kernel("b", 65537), {"num_warps": 4})
        recorder("refused", refuse, {"num_warps": 4})
    assert [(launch.operator, launch.kernel, launch.failure) for launch in recorder.launches] == [
        ("add", "small", None),
        ("add", "large", "takes 65537 bytes of shared memory; hip:gfx942 has 65536"),
        ("add", "refused", "RuntimeError: PassManager::run failed"),
    ]
    recorder.begin("swiglu")
    recorder("small", lambda: Kernel("a", 65536), {"num_warps": 4})
    assert recorder.launches[3].operator == "swiglu"


def test_a_terminal_sees_the_table_and_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    columns = (Compiled("cuda:80", "3.6.0", (FITS, FAILS)),)
    show_compiled(CompileReport("2026-12-01", "0.1.0", REQUEST, columns))
    shown = capsys.readouterr().out
    assert "1 of 2; 45; 168" in shown
    assert "cuda:80, 3.6.0: CompilationError: no fp8e4nv | here: add (_add_kernel)" in shown


@pytest.mark.slow
def test_steps_of_a_small_model_compile_for_hopper(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--dimensions tiny --target cuda:90 --numerics bf16 --batch 1 --prompt 64 --json"
    assert main(["bench", "compile", *words.split()]) == 0
    (column,) = json.loads(capsys.readouterr().out)["columns"]
    operators = {launch["operator"] for launch in column["launches"]}
    assert {"decode_attention", "expert_outputs", "linear", "sparse_attention"} <= operators
    assert all(launch["failure"] is None and launch["registers"] for launch in column["launches"])


def test_a_model_of_few_layers_has_all_of_them() -> None:
    """`--dimensions tiny`, of four layers, was refused because five are launched of the others."""
    from flagrelease.bench.compile.steps import run_steps

    run_steps("tiny", "bf16", (), 64, (), lambda operator: None)
