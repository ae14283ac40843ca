"""The extra `chip` goes into a chip vendor's environment and leaves the vendor's torch and triton as they are."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from vendor_environment import plant

from flagrelease.extras import remedy

ROOT = Path(__file__).parents[2]
VENDORS = {"torch", "triton", "torch-npu", "torch-musa", "triton-ascend", "flagtree", "flag-gems", "vllm", "sglang"}


def requirements(extra: str) -> list[Requirement]:
    """Of flagrelease with one extra, from pyproject.toml. `tomllib` came with Python 3.11."""
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(line) for line in (*project["dependencies"], *project["optional-dependencies"][extra])]


def closure(wanted: list[Requirement]) -> set[str]:
    """All that pip would install for these, by what the installed versions require in turn."""
    found: set[str] = set()
    pending = [(requirement, extra) for requirement in wanted for extra in ("", *requirement.extras)]
    seen = set()
    while pending:
        requirement, extra = pending.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        found.add(name)
        for asked in ("", *requirement.extras):
            if (name, asked) not in seen:
                seen.add((name, asked))
                needed = importlib.metadata.distribution(name).requires or []
                pending += [(Requirement(line), asked) for line in needed]
    return found


def test_nothing_of_the_vendors_is_required() -> None:
    assert "torch" in closure(requirements("engine")), "the walk sees what it looks for"
    found = closure(requirements("chip"))
    assert not found & VENDORS
    assert {"numpy", "tokenizers", "starlette"} <= found


def test_it_has_all_that_engine_and_serve_need_beside_torch_and_triton() -> None:
    chip = {str(one) for one in requirements("chip")}
    others = {str(one) for extra in ("engine", "serve") for one in requirements(extra)}
    assert {one for one in others - chip if Requirement(one).name not in ("torch", "triton")} == set()
    assert all(
        operator in (">=",) for one in requirements("chip")[-4:] for operator in [s.operator for s in one.specifier]
    )


def test_beside_a_torch_what_is_missing_comes_by_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    assert remedy("engine").startswith("pip install '.[chip]'")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert remedy("engine").startswith("pip install '.[engine]'")
    assert remedy("serve").startswith("pip install '.[serve]'")


def digests(packages: Path) -> dict[str, str]:
    return {
        str(path.relative_to(packages)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in ("torch*", "triton*", "numpy*")
        for found in packages.glob(pattern)
        for path in ([found] if found.is_file() else found.rglob("*"))
        if path.is_file()
    }


def tree(tmp_path: Path) -> Path:
    """What is built, apart from the clone: pip leaves a folder build/ there."""
    folder = tmp_path / "tree"
    folder.mkdir()
    for name in ("flagrelease", "recipes"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, folder / name)
    return folder


@pytest.mark.slow  # a minute: pip fetches and installs what the extra asks for
def test_pip_leaves_a_vendors_torch_and_triton_as_they_are(tmp_path: Path) -> None:
    environment = tmp_path / "vendor"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    plant(packages, "torch", "2.5.1+musa", {"torch/__init__.py": "raise ImportError('no MUSA driver here')\n"})
    plant(packages, "torch_musa", "2.0.0", {"torch_musa/__init__.py": ""}, requires=["torch==2.5.1+musa"])
    plant(packages, "triton", "3.1.0+musa", {"triton/__init__.py": "vendor = True\n"})
    before = digests(packages)
    assert len(before) > 6
    source = tree(tmp_path)
    pip = [environment / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    report = tmp_path / "report.json"
    subprocess.run([*pip, "--dry-run", "--report", report, f"{source}[chip]"], check=True, timeout=500)
    planned = {one["metadata"]["name"].lower() for one in json.loads(report.read_text())["install"]}
    assert "flagrelease" in planned
    assert not planned & VENDORS
    subprocess.run([*pip, f"{source}[chip]"], check=True, timeout=500)
    after = digests(packages)
    assert {path: after.get(path) for path in before} == before
    check = [environment / "bin" / "python", "-m", "pip", "check"]
    assert subprocess.run(check, capture_output=True, text=True).returncode == 0
    command = [environment / "bin" / "flagrelease"]
    plan = [*command, "plan", "tiny", "--checkpoint", ROOT / "examples" / "tiny" / "flagrelease-tiny-v4"]
    done = subprocess.run(plan, cwd=tmp_path, env={"PATH": "/usr/bin"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    doctor = [*command, "doctor", "--chip", "mthreads", "--json"]
    done = subprocess.run(doctor, cwd=tmp_path, env={"PATH": "/usr/bin"}, capture_output=True, text=True)
    assert done.returncode == 4, done.stderr
    told = json.loads(done.stdout)
    assert told["sightings"][0]["software"] == ["torch 2.5.1+musa", "torch-musa 2.0.0"]
    assert told["torch"]["failed_at"] == "import torch"
    assert told["torch"]["failure"] == "ImportError: no MUSA driver here"
    assert {path: sha256 for path, sha256 in digests(packages).items() if path in before} == before


# What a vendor's image of 2025 with vLLM has, at least as old as that.
IMAGE = {
    "torch": "2.5.1+musa", "triton": "3.1.0+musa", "numpy": "1.26.4", "safetensors": "0.5.3", "tokenizers": "0.21.1",
    "fastapi": "0.115.5", "uvicorn": "0.34.0", "starlette": "0.41.3", "pydantic": "2.10.6", "rich": "13.9.4",
    "packaging": "24.2", "jinja2": "3.1.4", "pyyaml": "6.0.2", "markdown-it-py": "3.0.0", "click": "8.1.8",
    "huggingface-hub": "0.30.0", "typer": "0.15.1",
}  # fmt: skip


@pytest.mark.slow  # half a minute: pip asks the index
def test_of_what_an_image_has_only_typer_is_replaced(tmp_path: Path) -> None:
    environment = tmp_path / "vendor"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    for name, version in IMAGE.items():
        plant(packages, name, version)
    report = tmp_path / "report.json"
    pip = [environment / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    subprocess.run([*pip, "--dry-run", "--report", report, f"{tree(tmp_path)}[chip]"], check=True, timeout=500)
    planned = {canonicalize_name(one["metadata"]["name"]) for one in json.loads(report.read_text())["install"]}
    assert {"flagrelease", "numba", "blake3"} <= planned
    assert planned & set(IMAGE) == {"typer"}
