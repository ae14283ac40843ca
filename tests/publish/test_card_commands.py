"""The commands of a card, taken from the card and run: downloads by the hubs' own tools, the rest as far as it can be.

What no test machine has (torchrun over many cards, docker, pip's network) is replaced by a program of the same name
that writes down its arguments; they are then parsed by the real command line.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_standin
import modelscope_standin
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from huggingface_standin import HuggingFaceStandIn
from modelscope_standin import ModelScopeStandIn
from publish_release import RECIPES, Converted
from stack_records import records_of_format
from test_card import GOLDEN, records_of

from flagrelease.chips.table import get_chip, load_chips
from flagrelease.cli import main
from flagrelease.publish.card import make_card
from flagrelease.publish.hubs.hub import Hub
from flagrelease.publish.hubs.huggingface import HUGGING_FACE
from flagrelease.publish.hubs.modelscope import MODELSCOPE
from flagrelease.publish.publish import publish

RECORDED = ("pip", "docker", "torchrun", "curl", "vllm", "model_signing")


def blocks(card: str) -> list[str]:
    """The shell blocks, in order: download, run, request, container."""
    return re.findall(r"```bash\n(.*?)```", card, re.DOTALL)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder for PATH: stand-ins that append their arguments to calls.jsonl, and this environment's own programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in RECORDED:
        program = folder / name
        program.write_text(
            f"#!{sys.executable}\nimport json, sys\n"
            f"print(json.dumps([{name!r}, *sys.argv[1:]]), file=open({str(tmp_path / 'calls.jsonl')!r}, 'a'))\n"
        )
        program.chmod(0o755)
    return folder


def shell(script: str, folder: Path, programs: Path, **variables: str) -> list[list[str]]:
    """Run a block of the card; returns what the recorded programs were called with."""
    path = f"{programs}:{Path(sys.executable).parent}:/usr/bin:/bin"
    calls = programs.parent / "calls.jsonl"
    calls.unlink(missing_ok=True)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=os.environ | {"PATH": path} | variables,
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []


@pytest.fixture(params=["hf", "modelscope"])
def online(
    request: pytest.FixtureRequest, converted: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, str]]:
    """(card, its address) of a published release."""
    hub: HuggingFaceStandIn | ModelScopeStandIn = (
        HuggingFaceStandIn(tmp_path / "cas") if request.param == "hf" else ModelScopeStandIn()
    )
    for name, value in {
        "HOME": tmp_path / "home", "HF_HOME": tmp_path / "home", "MODELSCOPE_HOME": tmp_path / "home",
        "MODELSCOPE_CACHE": tmp_path / "home" / "cache", "HF_TOKEN": huggingface_standin.TOKEN,
        "MODELSCOPE_API_TOKEN": modelscope_standin.TOKEN, "HF_ENDPOINT": hub.url, "MODELSCOPE_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    words = ["publish", str(converted.release), "--chip", "nvidia", "--to", request.param, "--yes", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "flagrelease", *words, "--allow-unvalidated"], capture_output=True, check=True
    )
    plan = json.loads(done.stdout)
    folder = tmp_path / "mirror"
    kind: Hub = HUGGING_FACE if request.param == "hf" else MODELSCOPE
    records = publish(converted.release, "nvidia", str(folder), allow_unvalidated=True).publication.records
    yield make_card(records, kind, plan["repository"]).decode(), f"{request.param}://{plan['repository']}"
    hub.close()


def test_the_download_is_whole(online: tuple[str, str], programs: Path, tmp_path: Path) -> None:
    """`hf download` and `modelscope download` are the real ones, and so is `flagrelease verify`."""
    card, address = online
    script = blocks(card)[0]
    assert "flagrelease verify ." in script
    (pip,) = shell(script, tmp_path, programs)
    assert pip[:3] == ["pip", "install", "flagrelease[serve] @ git+https://github.com/flagos-ai/flagrelease@v0.1.0"]
    assert f"flagrelease verify {address}@TAG" in card
    assert main(["verify", str(tmp_path / address.rpartition("/")[2])]) == 0


def test_who_signed_it(converted: Converted, programs: Path, tmp_path: Path) -> None:
    """`flagrelease verify --key` is the real one. model_signing is recorded: 1.1.1 was run with these words by hand."""
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "public.pem").write_bytes(public)
    publish(
        converted.release, "nvidia", str(tmp_path / "out"), allow_unvalidated=True, yes=True,
        signing_key=tmp_path / "key.pem",
    )  # fmt: skip
    block = next(one for one in blocks((tmp_path / "out" / "README.md").read_text()) if "model_signing" in one)
    pip, theirs = shell(block, tmp_path / "out", programs)
    assert pip == ["pip", "install", "model-signing", "pyOpenSSL"]
    assert theirs == [
        "model_signing", "verify", "key", ".", "--signature", "model.sig", "--public_key", "../public.pem",
        "--ignore-paths", ".cache",
    ]  # fmt: skip
    (tmp_path / "public.pem").write_bytes((Path(__file__).parent / "signed" / "public.pem").read_bytes())
    with pytest.raises(AssertionError, match="not signed by this key"):
        shell(block, tmp_path / "out", programs)


def parsed(command: list[str]) -> None:
    """The words after `-m flagrelease` are a command line of the real program, up to a release without weights."""
    assert main(command[command.index("flagrelease") + 1 :]) == 3  # no config.json


def in_folder(tmp_path: Path, recipe: str, chip: str) -> tuple[str, Path]:
    """A card, and a folder with its run files and nothing else."""
    folder = tmp_path / "downloaded release"
    folder.mkdir()
    for path in (GOLDEN / f"{recipe}-{chip}").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return make_card(records_of(recipe, chip), HUGGING_FACE, "FlagRelease/x").decode(), folder


def test_one_node_serves_and_generates(tmp_path: Path, programs: Path) -> None:
    card, folder = in_folder(tmp_path, "deepseek-v4-flash", "mthreads")
    calls = shell(blocks(card)[1], folder, programs)
    assert [call[:4] for call in calls] == [["torchrun", "--nproc-per-node", "8", "-m"]] * 2
    assert [call[5] for call in calls] == ["serve", "generate"]
    assert calls[1][-2:] == ["--prompt", "Who are you?"]
    for call in calls:
        parsed(call)


def test_several_nodes(tmp_path: Path, programs: Path) -> None:
    card, folder = in_folder(tmp_path, "deepseek-v4-flash", "ascend")
    calls = shell(blocks(card)[1], folder, programs)
    assert [call[call.index("--node-rank") + 1] for call in calls] == ["0", "1"]
    assert {call[call.index("--master-addr") + 1] for call in calls} == {"10.0.0.1"}
    for call in calls:
        parsed(call)
    asked = shell("MASTER_ADDR=a NODE_RANK=0 bash run_node.sh generate --prompt 'Who are you?'", folder, programs)
    parsed(asked[0])


@pytest.mark.parametrize("chip", [name for name, chip in load_chips().items() if chip.container.base_image])
def test_the_container_gets_the_chips_flags(tmp_path: Path, programs: Path, chip: str) -> None:
    card, folder = in_folder(tmp_path, "deepseek-v4-flash", chip)
    build, run = shell(blocks(card)[3], folder, programs, MASTER_ADDR="a", NODE_RANK="0")
    name = f"deepseek-v4-flash-{chip}"
    assert build == ["docker", "build", "-t", name, "-"]
    container = get_chip(chip).container
    toolkit = container.toolkit is not None and container.toolkit.command == "docker"
    assert set(get_chip(chip).docker_flags("toolkit" if toolkit else "raw")) < set(run)
    assert run[-3:-1] == [name, "bash"]
    script = run[-1].removeprefix("/release/")
    assert (folder / script).is_file()
    assert f"--volume={folder}:/release:ro" in run
    compose = yaml.safe_load((folder / "compose.yaml").read_text())["services"]["model"]
    assert (compose["image"], compose["command"]) == (name, ["bash", f"/release/{script}"])


def test_vllm_serves_what_the_request_asks_for(tmp_path: Path, programs: Path) -> None:
    records = records_of_format(tmp_path / "r", "nvidia", "fp8", "vllm", size=290 * 10**9)
    card = make_card(records, HUGGING_FACE, "a/b").decode()
    serve = next(block for block in blocks(card) if block.startswith("vllm serve"))
    (call,) = shell(serve, tmp_path, programs)
    assert call[:5] == ["vllm", "serve", ".", "--served-model-name", "DeepSeek-V4-Flash"]
    assert {"--tokenizer-mode=deepseek_v4", "--tensor-parallel-size=4", "--kv-cache-dtype=fp8"} < set(call)
    several = make_card(
        records_of_format(tmp_path / "s", "mthreads", "fp8", "vllm-musa", size=1600 * 10**9), HUGGING_FACE, "a/b"
    ).decode()
    # The stack's usual eight cards do not hold it
    assert "--tensor-parallel-size=32" in several
    assert "--distributed-executor-backend=ray" in several


def test_the_request_asks_the_model_by_its_name(tmp_path: Path, programs: Path) -> None:
    card, folder = in_folder(tmp_path, "deepseek-v4-flash", "mthreads")
    (curl,) = shell(blocks(card)[2], folder, programs)
    served = shell("bash run_mp8.sh", folder, programs)[0]
    assert json.loads(curl[-1])["model"] == served[served.index("--name") + 1] == "DeepSeek-V4-Flash"
    assert curl[1] == "http://127.0.0.1:8000/v1/chat/completions"


@pytest.mark.slow
def test_a_published_script_answers_on_two_ranks(tmp_path: Path) -> None:
    """No stand-in at all: torchrun, two processes, the engine."""
    recipe = yaml.safe_load((RECIPES / "tiny.yaml").read_text())
    recipe["source"]["path"] = str(RECIPES.parent / "examples" / "tiny" / "flagrelease-tiny-v4")
    recipe["releases"] = {"nvidia": {"dtype": "fp8", "layout": "mp2"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["convert", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")]) == 0
    publish(tmp_path / "out" / "fp8-mp2", "nvidia", str(tmp_path / "mirror"), allow_unvalidated=True, yes=True)
    words = shlex.split("bash run_mp2.sh generate --prompt hello --mode raw --max-tokens 4 --device cpu")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        words, cwd=tmp_path / "mirror", env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout
