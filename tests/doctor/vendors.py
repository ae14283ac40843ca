"""Machines of each vendor, made of files: device files, a tool that prints, distributions as its image has them.

Versions are those of the fact sheet's table of FlagOS 2.1.2 images (4.3 a), written by hand, not read from chips.yaml.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vendor_environment import plant

from flagrelease.doctor.place import Place, Ran

MEMINFO = "MemTotal:       1056784000 kB\nMemFree: 1 kB\nMemAvailable:    900000000 kB\n"


@dataclass(frozen=True)
class Vendor:
    """One vendor's machine.

    Attributes:
        nodes: device files. tool: name of the vendor's program, and what it prints.
        packages: distribution -> version.
        kind, module: of torch; `card` is what a device is called and its GiB.
        driver: that the tool's text says.
        numbered: device files that carry a number.
    """

    nodes: tuple[str, ...]
    tool: tuple[str, str]
    packages: Mapping[str, str]
    kind: str
    card: tuple[str, int]
    driver: str | None
    numbered: int | None
    module: str | None = None


def _numbered(form: str, count: int) -> tuple[str, ...]:
    return tuple(form.format(number) for number in range(count))


VENDORS: dict[str, Vendor] = {
    "nvidia": Vendor(
        (*_numbered("nvidia{}", 8), "nvidiactl", "nvidia-uvm"),
        ("nvidia-smi", "| NVIDIA-SMI 610.43.02   Driver Version: 610.43.02   CUDA Version: 13.3 |"),
        {"torch": "2.11.0+cu130", "triton": "3.6.0", "flag-gems": "5.3.3", "vllm": "0.34.0"},
        "cuda", ("NVIDIA H20", 95), "610.43.02", 8,
    ),
    "ascend": Vendor(
        (*_numbered("davinci{}", 8), "davinci_manager", "devmm_svm", "hisi_hdc"),
        ("npu-smi", "| npu-smi 25.5.0                  Version: 25.5.0 |"),
        {"torch": "2.9.0+cpu", "torch-npu": "2.9.0", "triton-ascend": "3.2.0", "pybind11": "3.0.1", "vllm": "0.34.0",
         "vllm-ascend": "0.26.0rc1"},
        "npu", ("Ascend910B", 60), "25.5.0", 8, "torch_npu",
    ),
    "hygon": Vendor(
        ("kfd", "mkfd", "dri/card0"), ("hy-smi", "HY-SMI 2.0\nDriver Version: 6.3.30-V1.4.1a"),
        {"torch": "2.9.0+das.opt1.dtk2604", "triton": "3.3.0+das.opt1.dtk2604.torch290", "numpy": "1.26.4"},
        "cuda", ("BW1000", 63), "6.3.30-V1.4.1a", None,
    ),
    "metax": Vendor(
        ("mxcd", "dri/card0"), ("mx-smi", "| Kernel Mode Driver Version: 3.9.6 |"),
        {"torch": "2.10.0+metax3.8.1.0", "triton": "3.6.0+metax3.8.1.0", "numpy": "2.3.5"},
        "cuda", ("MetaX C550", 63), "3.9.6", None,
    ),
    "mthreads": Vendor(
        (*_numbered("mtgpu.{}", 8), "dri/card0"), ("mthreads-gmi", "mthreads-gmi:2.3   Driver Version:5.2.0-server"),
        {"torch": "2.9.1+musa5.2.0", "torch-musa": "2.9.1", "triton": "3.6.0", "numpy": "1.26.4"},
        "musa", ("MTT S5000", 79), "5.2.0-server", 8, "torch_musa",
    ),
    "kunlunxin": Vendor(
        (*_numbered("xpu{}", 8), "xpuctrl"), ("xpu-smi", "| XPU-SMI  Driver Version: 5.37.1  XPU-RT Version: N/A |"),
        {"torch": "2.9.0+cu129", "torch-xray": "2.0.4", "triton": "3.0.0+a48aedef", "numpy": "2.2.6"},
        "cuda", ("P800", 96), "5.37.1", 8,
    ),
    "zhenwu": Vendor(
        (*_numbered("alixpu_ppu{}", 16), "alixpu", "alixpu_ctl"), ("ppu-smi", "| PPU-SMI 2.0 |"),
        {"torch": "2.9.0+ppu2.0.0.oe", "triton": "3.5.0+ppu2.0.0.oe"},
        "cuda", ("PPU-ZW810E", 95), None, 16,
    ),
    "iluvatar": Vendor(
        _numbered("iluvatar{}", 16), ("ixsmi", "| IX-ML: 4.4.0   Driver Version: 4.4.0   CUDA Version: N/A |"),
        {"torch": "2.7.1+corex.4.4.0", "triton": "3.1.0+corex.4.4.0", "numpy": "1.26.4"},
        "cuda", ("Iluvatar BI-V150", 63), "4.4.0", 16,
    ),
}  # fmt: skip
ENGINE = {"numba": "0.68.1", "blake3": "1.0.11", "safetensors": "0.8.0", "tokenizers": "0.23.3", "numpy": "2.3.5"}
SERVE = {"fastapi": "0.165.0", "uvicorn": "0.54.0"}


@dataclass(frozen=True)
class Machine:
    """A place that is being furnished; `torch` is what its torch will say, by the lines of the probe."""

    folder: Path
    torch: list[dict[str, Any]] = field(default_factory=list)
    code: int = 0

    @property
    def packages(self) -> Path:
        return self.folder / "site-packages"

    def install(self, packages: Mapping[str, str]) -> None:
        for name, version in packages.items():
            folder = name.replace("-", "_")
            plant(self.packages, name, version, {f"{folder}/__init__.py": f"version = {version!r}\n"})

    def node(self, name: str) -> None:
        path = self.folder / "dev" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def tool(self, name: str, text: str, code: int = 0) -> None:
        path = self.folder / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {code}\n")
        path.chmod(0o755)

    def place(self) -> Place:
        (self.folder / "proc").mkdir(exist_ok=True)
        (self.folder / "proc" / "meminfo").write_text(MEMINFO)
        (self.folder / "dev" / "shm").mkdir(parents=True, exist_ok=True)
        self.packages.mkdir(exist_ok=True)
        environment = {"PATH": f"{self.folder / 'bin'}:/usr/bin:/bin", "HOME": str(self.folder)}
        return Furnished(self.folder, (str(self.packages),), environment, json.dumps(self.torch), self.code)


@dataclass(frozen=True)
class Furnished(Place):
    """Its probes say what they were told to; a login is none."""

    said: str = "[]"
    code: int = 0

    def probe(self, script: str, words: Sequence[str], seconds: float) -> Ran:
        if script.startswith("login_"):
            return Ran(0, '{"there": false, "looks": false}\n', "")
        lines = [json.dumps(line) for line in json.loads(self.said)]
        return Ran(self.code, "\n".join(lines), "ImportError: libvendor.so: cannot open\n" if self.code else "")


def torch_lines(vendor: Vendor, count: int) -> list[dict[str, Any]]:
    """What the probe prints where all goes well."""
    name, gib = vendor.card
    capability = [9, 0] if vendor.kind == "cuda" else None
    device = {"name": name, "bytes": gib << 30, "capability": capability}
    return [
        {"step": "import torch"},
        {"torch": vendor.packages["torch"]},
        *({"device": device} for _ in range(count)),
        {"backend": {"there": True, "version": None}},
        {"step": "import triton"},
        {"triton": {"version": "3.6.0", "file": "triton/__init__.py"}},
        {"step": "done"},
    ]


def furnish(folder: Path, chip: str, devices: int = 8) -> Machine:
    """The vendor's machine with its image, and flagrelease with the extra `chip` in it."""
    vendor = VENDORS[chip]
    machine = Machine(folder, torch_lines(vendor, devices))
    for node in vendor.nodes:
        machine.node(node)
    machine.tool(*vendor.tool)
    machine.install(ENGINE | SERVE | dict(vendor.packages))
    return machine
