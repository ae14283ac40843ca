"""The probes are real processes: a torch that crashes, hangs or cannot be imported ends them and not doctor."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from vendor_environment import plant

from flagrelease.chips.table import get_chip
from flagrelease.doctor import devices
from flagrelease.doctor.devices import Torch, ask_torch
from flagrelease.doctor.logins import look_at_logins
from flagrelease.doctor.packages import Packages
from flagrelease.doctor.place import Place

SOUND = """\
import types
__version__ = "2.9.1+musa5.2.0"
class Properties:
    total_memory = 80 << 30
musa = types.SimpleNamespace(
    is_available=lambda: True, device_count=lambda: 2, get_device_properties=lambda index: Properties,
    get_device_name=lambda index: f"MTT S5000 {index}",
)
distributed = types.SimpleNamespace(is_available=lambda: True, is_backend_available=lambda name: name == "mccl")
"""
HF_TOKEN, MS_TOKEN = "hf_" + "A1b2" * 8, "ms-01234567-89ab-cdef-0123-456789abcdef"


def place(tmp_path: Path, modules: dict[str, str], distributions: dict[str, str]) -> Place:
    packages = tmp_path / "packages"
    for name, text in modules.items():
        path = packages / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name, version in distributions.items():
        plant(packages, name, version)
    return Place(tmp_path, (str(packages),), {"PYTHONPATH": str(packages), "PATH": "/usr/bin:/bin"})


def asked(
    tmp_path: Path, torch: str, musa: str = "__version__ = '2.9.1'\n", triton: str = "__version__ = '3'\n"
) -> Torch:
    modules = {"torch.py": torch, "torch_musa.py": musa, "triton.py": triton}
    here = place(tmp_path, modules, {"torch": "2.9.1+musa5.2.0", "torch-musa": "2.9.1", "triton": "3.6.0"})
    return ask_torch(here, Packages(here), get_chip("mthreads"))


def test_a_sound_torch_shows_its_devices(tmp_path: Path) -> None:
    found = asked(tmp_path, SOUND)
    assert (found.version, found.failed_at, found.triton) == ("2.9.1+musa5.2.0", None, "3")
    assert [(one.name, one.bytes) for one in found.devices] == [(f"MTT S5000 {n}", 80 << 30) for n in range(2)]
    assert (found.backend, found.backend_there) == ("mccl", True)


@pytest.mark.parametrize(
    ("torch", "musa", "step", "how"),
    [
        ("import os; os.abort()", "", "import torch", "was ended by a signal (Aborted)"),
        ("raise ImportError('libmusa.so: cannot open')", "", "import torch", "ImportError: libmusa.so: cannot open"),
        (SOUND, "import os; os._exit(9)", "import torch_musa", "ended with exit code 9"),
        (SOUND, "import time; time.sleep(600)", "import torch_musa", "gave no answer in time"),
    ],
)
def test_a_torch_that_ends_its_process_is_named_with_the_step(
    torch: str, musa: str, step: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "sleep" in musa:
        monkeypatch.setattr(devices, "_SECONDS", 2.0)
    found = asked(tmp_path, torch, musa)
    assert (found.failed_at, found.failure) == (step, how)
    assert found.failed_imports == (step.removeprefix("import "),)


def test_a_triton_that_does_not_import_is_told(tmp_path: Path) -> None:
    found = asked(tmp_path, SOUND, triton="import pybind11_of_nowhere\n")
    assert (found.failed_at, found.failed_imports, found.triton) == (None, ("triton",), None)


@pytest.mark.parametrize("way", ["sleep 600 &", "setsid sleep 600 &"])
def test_a_program_that_hangs_is_killed_with_what_it_started(way: str, tmp_path: Path) -> None:
    """What left the process group cannot be found, but is not waited for, though it holds the pipes."""
    (tmp_path / "xpu-smi").write_text(f"#!/bin/sh\n{way}\necho $! > {tmp_path}/child\nwait\n")
    (tmp_path / "xpu-smi").chmod(0o755)
    ran = Place(environment={"PATH": f"{tmp_path}:/usr/bin:/bin"}).run(["xpu-smi"], 1.0)
    assert ran is not None
    assert (ran.code, ran.ending) == (None, "gave no answer in time")
    state = Path(f"/proc/{(tmp_path / 'child').read_text().strip()}/stat")
    if way.startswith("setsid"):
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)
    else:
        assert not state.exists() or ") Z " in state.read_text()
    assert Place(environment={"PATH": str(tmp_path)}).run(["npu-smi"], 1.0) is None


HUGGING_FACE = """\
def get_token():
    return {token!r}
class HfApi:
    def whoami(self):
        {whoami}
"""
MODELSCOPE = {
    "modelscope_hub/__init__.py": (
        "class User:\n    username = 'bob'\nclass HubApi:\n    def whoami(self):\n        return User\n"
    ),
    "modelscope_hub/config.py": f"class C:\n    token = {MS_TOKEN!r}\ndef get_default_config():\n    return C\n",
}


@pytest.mark.parametrize(
    ("token", "whoami", "online", "there", "looks", "user", "trouble"),
    [
        (None, "pass", True, False, False, None, None),
        (HF_TOKEN, "raise AssertionError('asked')", False, True, True, None, None),
        (HF_TOKEN, "return {'name': 'alice'}", True, True, True, "alice", None),
        (HF_TOKEN, "raise OSError('401 for ' + get_token())", True, True, True, None, "OSError"),
        ("somebody's password", "pass", False, True, False, None, None),
    ],
)
def test_a_login_is_seen_and_never_shown(
    token: str | None, whoami: str, online: bool, there: bool, looks: bool, user: str | None, trouble: str | None,
    tmp_path: Path,
) -> None:  # fmt: skip
    modules = {"huggingface_hub/__init__.py": HUGGING_FACE.format(token=token, whoami=whoami), **MODELSCOPE}
    here = place(tmp_path, modules, {"huggingface-hub": "2.4.0", "modelscope-hub": "0.5.1"})
    hf, modelscope = look_at_logins(here, Packages(here), online)
    assert (hf.there, hf.looks_right, hf.user) == (there, looks, user)
    assert (hf.trouble is None) == (trouble is None)
    assert trouble is None or trouble in (hf.trouble or "")
    assert (modelscope.there, modelscope.looks_right, modelscope.user) == (True, True, "bob" if online else None)
    for login in (hf, modelscope):
        assert token is None or token not in login.model_dump_json()
        assert MS_TOKEN not in login.model_dump_json()


def test_without_its_client_a_login_is_unknown(tmp_path: Path) -> None:
    here = place(tmp_path, {"huggingface_hub.py": "raise ImportError('broken')"}, {"huggingface-hub": "2.4.0"})
    hf, modelscope = look_at_logins(here, Packages(here), online=False)
    assert (hf.there, hf.trouble) == (None, "its client ImportError: broken")
    assert (modelscope.there, modelscope.trouble) == (None, "modelscope-hub is not installed (the extra publish)")
