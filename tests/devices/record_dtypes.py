"""Write `collective_dtypes.json`: the dtypes that the backends of torch.distributed take, read from their sources.

    python tests/devices/record_dtypes.py

Each has a table of torch's dtypes and its own; HCCL also has a list of those that it adds up. NCCL's is in a header of
the installed torch, HCCL's in torch-npu's sources, MCCL's in torch_musa's, FlagCX's in its plugin for torch.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).parent
MUSA = "https://github.com/MooreThreads/torch_musa"
SOURCES = {
    "hccl": ("https://github.com/Ascend/pytorch", "v7.3.0-pytorch2.9.0", "torch_npu/csrc/distributed/"),
    "mccl": (
        "https://github.com/MooreThreads/torch_musa",
        "v2.7.1",
        "torch_musa/csrc/distributed/ProcessGroupMCCL.cpp",
    ),
    "flagcx": ("https://github.com/flagos-ai/FlagCX", "0c721293", "plugin/torch/flagcx/src/backend_flagcx.cpp"),
}
NAMES = {
    "kByte": "uint8", "kChar": "int8", "kShort": "int16", "kInt": "int32", "kLong": "int64", "kHalf": "float16",
    "kFloat": "float32", "kDouble": "float64", "kBool": "bool", "kBFloat16": "bfloat16",
}  # fmt: skip


def table(text: str) -> dict[str, str]:
    """torch's dtype -> the backend's, of the first map in `text`."""
    (body,) = re.findall(r"map<at::ScalarType, \w+> \w+ = \{(.*?)\};", text, re.DOTALL)[:1]
    found: dict[str, str] = {}
    for name, theirs in re.findall(r"\{at::(?:ScalarType::)?(\w+), (\w+)\}", body):
        dtype = NAMES.get(name, name.removeprefix("k").lower())
        found[dtype] = f"{found[dtype]} or {theirs}" if dtype in found else theirs  # by the version it is built with
    return found


def added_up(text: str, theirs: dict[str, str]) -> list[str]:
    """torch's dtypes that HCCL's check lets pass where numbers are added up."""
    body = text.split("void checkSupportedDataType(", 1)[1].split("};", 1)[0]
    allowed = set(re.findall(r"HCCL_DATA_TYPE_\w+", body))
    return [name for name, one in theirs.items() if one in allowed and name != "bool"]


def main(*copies: str) -> None:
    """`copies`: NAME=PATH of a repository that is here already."""
    places = dict(copy.split("=") for copy in copies)
    header = Path(torch.__file__).parent / "include/torch/csrc/distributed/c10d/NCCLUtils.hpp"
    found = {"nccl": {"from": f"torch {torch.__version__}, NCCLUtils.hpp", "dtypes": table(header.read_text())}}
    with tempfile.TemporaryDirectory() as folder:
        for name, (url, revision, path) in SOURCES.items():
            place = places.get(name) or f"{folder}/{name}"
            if name not in places:
                subprocess.run(["git", "clone", "-q", "--bare", url, place], check=True)

            def show(file: str, place: str = place, revision: str = revision) -> str:
                command = ["git", "-C", place, "show", f"{revision}:{file}"]
                return subprocess.run(command, check=True, capture_output=True, text=True).stdout

            file = path + "HCCLUtils.cpp" if name == "hccl" else path
            found[name] = {"from": f"{url} {revision}, {file}", "dtypes": table(show(file))}
            if name == "hccl":
                found[name]["added up"] = added_up(show(path + "ProcessGroupHCCL.cpp"), found[name]["dtypes"])
    (HERE / "collective_dtypes.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
