"""Write `signatures.json`: what torch, torch_npu and torch_musa offer as `torch.cuda`, `.npu` and `.musa`, by sources.

    python tests/devices/record_signatures.py

The vendors' cannot be imported without their libraries, so nothing is: wheels of torch and torch-npu come from PyPI,
torch_musa from its tags on GitHub, and the names that an `__init__.py` exposes are followed to where they are defined.
Run it when a version is new; the tests then say which of our calls it no longer takes.
"""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Distribution -> versions of chips.yaml's stacks and the newest of 2026-11-30; of torch that is the installed one, and
# the tests ask it. torch's wheel for macOS has the same Python files and no CUDA libraries.
WHEELS = {"torch": ("2.7.1", "2.9.0"), "torch-npu": ("2.9.0", "2.10.0", "2.14.0")}
PLATFORMS = {"torch": "macosx_11_0_arm64", "torch-npu": "manylinux_2_28_x86_64"}
ROOTS = {"torch": "torch/cuda/__init__.py", "torch-npu": "torch_npu/npu/__init__.py"}
TAGS = ("v2.1.1", "v2.5.0", "v2.7.1")  # of torch_musa; later ones are not public
MUSA = "https://github.com/MooreThreads/torch_musa"
HERE = Path(__file__).parent
# Methods of at::PrivateUse1HooksInterface that torch calls for what accelerator.py's docstring names.
HOOKS = ("getNewGenerator", "getPinnedMemoryAllocator")
HOOK_FILES = {
    "torch_npu": "torch_npu/include/torch_npu/csrc/core/npu/NPUHooksInterface.h",
    "torch_musa": "torch_musa/csrc/core/MUSAHooks.h",
}

Read = Callable[[str], str | None]  # path in the package -> its text, None if there is no such file
Parameters = list[list[Any]]  # [name, how it may be given, whether it has a default]
Entry = dict[str, Any]


def parameters(function: ast.FunctionDef) -> Parameters:
    """In the order of `inspect.Signature`; kinds by the names of `inspect.Parameter`."""
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    without = len(positional) - len(given.defaults)
    found: Parameters = []
    for place, one in enumerate(positional):
        kind = "POSITIONAL_ONLY" if place < len(given.posonlyargs) else "POSITIONAL_OR_KEYWORD"
        found.append([one.arg, kind, place >= without])
    if given.vararg:
        found.append([given.vararg.arg, "VAR_POSITIONAL", False])
    for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        found.append([one.arg, "KEYWORD_ONLY", default is not None])
    if given.kwarg:
        found.append([given.kwarg.arg, "VAR_KEYWORD", False])
    return found


def entry(node: ast.FunctionDef | ast.ClassDef) -> Entry:
    """A function's parameters; a class's, of its constructor, and of its public methods."""
    if isinstance(node, ast.FunctionDef):
        return {"parameters": parameters(node)}
    methods = {one.name: parameters(one)[1:] for one in node.body if isinstance(one, ast.FunctionDef)}
    return {
        "parameters": methods.get("__init__") or methods.get("__new__", []),
        "methods": {name: given for name, given in sorted(methods.items()) if not name.startswith("_")},
    }


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Of a module, also those under `if` and `try`."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from statements(node.body)
        else:
            yield node


def exposed(path: str, read: Read) -> dict[str, Entry]:
    """Name -> what a module or package offers under it, functions and classes of its own package only."""
    text = read(path)
    if text is None:
        return {}
    folder, found = path.rpartition("/")[0], {}
    for node in statements(ast.parse(text).body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = entry(node)
        elif isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            inner = f"{folder}/{node.module.replace('.', '/')}"
            there = exposed(f"{inner}.py", read) or exposed(f"{inner}/__init__.py", read)
            for alias in node.names:
                if alias.name == "*":
                    found.update(starred(inner, there, read))
                elif alias.name in there:
                    found[alias.asname or alias.name] = there[alias.name]
    return found


def starred(inner: str, there: dict[str, Entry], read: Read) -> dict[str, Entry]:
    """What `import *` takes: `__all__`, or all names without an underscore."""
    text = read(f"{inner}.py") or read(f"{inner}/__init__.py") or ""
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and [ast.unparse(one) for one in node.targets] == ["__all__"]:
            return {name: there[name] for name in ast.literal_eval(node.value) if name in there}
    return {name: one for name, one in there.items() if not name.startswith("_")}


def record(package: str, path: str, read: Read) -> dict[str, Any]:
    """One version: names with signatures, and the hooks that its header overrides."""
    names = {name: one for name, one in sorted(exposed(path, read).items()) if not name.startswith("_")}
    header = read(HOOK_FILES[package]) or "" if package in HOOK_FILES else ""
    return {"names": names, "hooks": [hook for hook in HOOKS if f" {hook}(" in header]}


def of_wheels(folder: Path, distribution: str) -> Iterator[dict[str, Any]]:
    """torch, torch-npu."""
    for version in WHEELS[distribution]:
        here = folder / distribution / version
        wanted = ["--no-deps", "--only-binary=:all:", "--python-version=3.11", f"--platform={PLATFORMS[distribution]}"]
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            *wanted,
            "-d",
            str(here),
            f"{distribution}=={version}",
        ]
        subprocess.run(command, check=True)
        (wheel,) = here.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            files = set(archive.namelist())

            def read(path: str, archive: zipfile.ZipFile = archive, files: set[str] = files) -> str | None:
                return archive.read(path).decode() if path in files else None

            package, root = distribution.replace("-", "_"), ROOTS[distribution]
            yield {
                "package": package,
                "version": version,
                "from": f"PyPI {wheel.name}, sha256 {hashlib.sha256(wheel.read_bytes()).hexdigest()}",
                "root": root,
                **record(package, root, read),
            }


def of_tags(folder: Path, source: str = MUSA) -> Iterator[dict[str, Any]]:
    """torch_musa."""
    clone = folder / "torch_musa"
    subprocess.run(["git", "clone", "-q", "--bare", source, str(clone)], check=True)

    def git(*words: str) -> str | None:
        ran = subprocess.run(["git", "-C", str(clone), *words], check=False, capture_output=True, text=True)
        return ran.stdout if ran.returncode == 0 else None

    for tag in TAGS:
        commit = str(git("rev-parse", f"{tag}^{{commit}}")).strip()

        def read(path: str, commit: str = commit) -> str | None:
            return git("show", f"{commit}:{path}")

        yield {
            "package": "torch_musa",
            "version": tag.removeprefix("v"),
            "from": f"{MUSA} {commit}",
            "root": "torch_musa/__init__.py",
            **record("torch_musa", "torch_musa/__init__.py", read),
        }


def main(musa: str = MUSA) -> None:
    """Of all versions. `musa`: where its repository is, if not on GitHub."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        every = [one for name in WHEELS for one in of_wheels(folder, name)] + list(of_tags(folder, musa))
    lines = []
    for one in every:
        head = {key: one[key] for key in ("package", "version", "from", "root", "hooks")}
        names = ",\n".join(f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in one["names"].items())
        lines.append(f' {json.dumps(head)[:-1]},\n  "names": {{\n{names}\n  }}\n }}')
    (HERE / "signatures.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
