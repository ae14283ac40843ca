"""`flagrelease publish` and `verify` as users run them: processes against the stand-ins. No token is left anywhere."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_standin
import modelscope_standin
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from huggingface_standin import HuggingFaceStandIn
from loopback import Fault
from modelscope_standin import ModelScopeStandIn
from publish_release import Converted, write_report

from flagrelease.cli import main

Hub = HuggingFaceStandIn | ModelScopeStandIn


class Shell:
    """Runs commands with a home of their own, and keeps all they print."""

    def __init__(self, home: Path, hub: Hub) -> None:
        self.home = home
        home.mkdir()
        # Xet keeps uploads in a folder of the test instead of a server, which serves no downloads.
        self.environment = os.environ | {
            "HOME": str(home),
            "HF_HOME": str(home / "hf"),
            "HF_TOKEN": huggingface_standin.TOKEN,
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "MODELSCOPE_HOME": str(home / "modelscope"),
            "MODELSCOPE_API_TOKEN": modelscope_standin.TOKEN,
            "MODELSCOPE_ENDPOINT": hub.url,
        }
        self.log = ""

    def __call__(self, *words: str | Path, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "flagrelease", *map(str, words)],
            env=self.environment, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        self.log += done.stdout + done.stderr
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(params=["hf", "modelscope"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Shell, Hub, str]]:
    hub: Hub = HuggingFaceStandIn(tmp_path / "cas") if request.param == "hf" else ModelScopeStandIn()
    yield Shell(tmp_path / "home", hub), hub, request.param
    hub.close()


def write_keys(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "public.pem").write_bytes(public)
    return folder / "key.pem", folder / "public.pem"


def test_publish_and_verify_on_a_hub(shell: tuple[Shell, Hub, str], converted: Converted, tmp_path: Path) -> None:
    run, hub, to = shell
    key, public = write_keys(tmp_path)
    report = write_report(converted.release, tmp_path / "report.json")
    words = ["publish", converted.release, "--chip", "nvidia", "--to", to, "--report", report, "--signing-key", key]
    planned = run(*words)
    assert not hub.repositories
    assert "repository on" in planned
    assert "FlagRelease/flagrelease-tiny-v4-nvidia-FlagOS" in planned
    assert "visibility public, licence Apache-2.0" in planned
    hub.faults = [Fault("(POST|PUT) .*", "status", 1, 500)]
    done = json.loads(run(*words, "--yes", "--json"))
    assert done["revision"]
    address = f"{to}://{done['repository']}@{done['version']}"
    assert "whole and unchanged" in run("verify", address, "--key", public, "--sample-bytes", "300000")
    assert json.loads(run("verify", address, "--json"))["signature"] == "not-checked"
    run("verify", address, "--private", code=5)
    run("verify", f"{to}://{done['repository']}@v9", code=5)
    run("verify", address, "--source", "x", code=2)
    for secret in ("PLANTED", "BEGIN"):
        assert secret not in run.log
        for path in run.home.rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def test_a_mirror_and_its_signature(converted: Converted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, public = write_keys(tmp_path)
    write_report(converted.release, tmp_path / "report.json")
    words = ["publish", str(converted.release), "--chip", "nvidia", "--to", str(tmp_path / "out"), "--yes"]
    assert main([*words, "--report", str(tmp_path / "report.json"), "--signing-key", str(key)]) == 0
    assert "published and checked" in capsys.readouterr().out
    verify = ["verify", str(tmp_path / "out"), "--key", str(public), "--json"]
    assert main([*verify, "--source", str(converted.source)]) == 0
    assert json.loads(capsys.readouterr().out)["signature_problems"] == []
    (tmp_path / "other").mkdir()
    _, other = write_keys(tmp_path / "other")
    assert main(["verify", str(tmp_path / "out"), "--key", str(other)]) == 5
    assert "not signed by this key" in capsys.readouterr().err
    (tmp_path / "out" / "model.sig").unlink()
    assert main(verify) == 5
    assert main(["verify", str(converted.release), "--key", str(public)]) == 5
    assert "not a published folder" in capsys.readouterr().err


def test_the_report_is_where_validate_puts_it(converted: Converted, tmp_path: Path, capsys: Any) -> None:
    out = ["--chip", "nvidia", "--to", str(tmp_path / "out"), "--json"]
    assert main(["publish", str(converted.release), *out]) == 5
    assert "no report; validate the release first" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert main(["publish", str(converted.release), *out, "--allow-unvalidated"]) == 0
    assert json.loads(capsys.readouterr().out)["validated"] is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--chip", "abacus", "--to", "hf"], "chip 'abacus' is not in the table"),
        (["--chip", "ascend", "--to", "hf"], "the recipe gives ascend w8a8-ascend-hf and bf16-mp16"),
        (["--chip", "nvidia", "--to", "out", "--repo", "a/b"], "--repo is for hubs"),
        (["--chip", "nvidia", "--to", "hf", "--signing-key", "/nowhere"], "cannot be read"),
    ],
)
def test_bad_usage(converted: Converted, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", str(converted.release), *words, "--allow-unvalidated"]) == 2
    assert message in capsys.readouterr().err


def test_options_of_one_kind_of_place_are_refused_for_the_other(converted: Converted) -> None:
    assert main(["verify", str(converted.release), "--sample-bytes", "9"]) == 2
    assert main(["verify", str(converted.release), "--private"]) == 2
    assert main(["verify", str(converted.release), "--key", "/nowhere"]) == 2


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("huggingface_hub", ["publish", "{release}", "--chip", "nvidia", "--to", "hf", "--allow-unvalidated", "--yes"]),
        ("modelscope_hub", ["verify", "modelscope://a/b"]),
        ("cryptography", ["verify", "{mirror}", "--key", "{key}"]),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(
    converted: Converted, tmp_path: Path, package: str, words: list[str],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    mirror = ["publish", str(converted.release), "--chip", "nvidia", "--to", str(tmp_path / "mirror"), "--yes"]
    assert main([*mirror, "--allow-unvalidated"]) == 0
    (tmp_path / "public.pem").write_text("")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == package else find(name, *more))
    filled = [
        word.format(release=converted.release, mirror=tmp_path / "mirror", key=tmp_path / "public.pem")
        for word in words
    ]
    (tmp_path / "mirror" / "model.sig").write_text("{}")
    assert main(filled) == 4
    assert f"{package} is not installed: pip install '.[publish]'" in capsys.readouterr().err
