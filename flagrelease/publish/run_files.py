"""Files that run a release on its chip: scripts for one node and for several, a Containerfile, a compose file.

They are generated from the chip table. The tests run the scripts with a torchrun that only records its arguments. We
have not built or started the containers, and the files say so.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from typing import Any

import yaml

from flagrelease.errors import UsageError
from flagrelease.publish.hubs.names import COMPOSE_FILE, CONTAINER_FILE, NODE_SCRIPT
from flagrelease.publish.hubs.names import one_node_script as script_name
from flagrelease.publish.records import Records
from flagrelease.records.provenance import PROJECT

_NOT_BUILT = "Made from the chip table of flagrelease; nobody has built or started it on this chip yet."
# One option of `docker run` -> the key of a compose service; a list where the option may be repeated.
_LISTS = {
    "--env": "environment", "--device": "devices", "--volume": "volumes", "--group-add": "group_add",
    "--cap-add": "cap_add", "--security-opt": "security_opt", "--tmpfs": "tmpfs",
}  # fmt: skip
_VALUES = {"--network": "network_mode", "--ipc": "ipc", "--shm-size": "shm_size", "--runtime": "runtime"}


def run_files(records: Records, elsewhere: bool = False) -> dict[str, bytes]:
    """All of them: path -> content.

    Args:
        records: of the release.
        elsewhere: the files are for another folder than the release, whose path they then name.
    """
    files = {NODE_SCRIPT: _node_script(records, elsewhere)}
    if (script := one_node_script(records)) is not None:
        files[script] = _one_node(records, elsewhere)
    if records.chip.container.base_image is not None:
        files[CONTAINER_FILE] = _container_file(records)
        files[COMPOSE_FILE] = _compose(records, elsewhere)
    return {path: text.encode() for path, text in files.items()}


def stack_script(records: Records, lines: Iterable[str], title: str) -> bytes:
    """A script that starts a serving stack; `lines` are its command on the folder `"$release"`."""
    return "\n".join([_head(f"{records.recipe.model} in {title}.") + _where(records, True), *lines, ""]).encode()


def one_node_script(records: Records) -> str | None:
    """The name of the script for one node; None if the release needs several nodes."""
    return script_name(records.layout) if records.nodes == 1 else None


def requirements(records: Records) -> str:
    """What to `pip install` beside the vendor's torch. With the `engine` extra, pip could replace that torch."""
    version = records.manifest.tool.version
    return f'"flagrelease[serve] @ git+{PROJECT}@v{version}" "safetensors>=0.5" "tokenizers>=0.21"'


def image_name(records: Records) -> str:
    """The name under which the image is built."""
    return f"{records.recipe.model}-{records.chip.id}".lower()


def docker_flags(records: Records) -> tuple[str, ...]:
    """Options for `docker run`: the vendor's container runtime if docker has one, otherwise every device by name."""
    toolkit = records.chip.container.toolkit
    return records.chip.docker_flags("toolkit" if toolkit is not None and toolkit.command == "docker" else "raw")


def _head(what: str) -> str:
    return f"#!/usr/bin/env bash\n# {what}\nset -euo pipefail\n"


def _where(records: Records, elsewhere: bool) -> str:
    """Where the release is: beside the script, or at its own path unless RELEASE says another, as in a container."""
    if elsewhere:
        return f"release=${{RELEASE:-{shlex.quote(str(records.release.absolute()))}}}"
    return 'release="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"'


def _command(records: Records, elsewhere: bool) -> str:
    """The server is told the model's name, because the folder may have any name. The numerics are the release's own."""
    return f"""\
{_where(records, elsewhere)}
if [ "${{1:-serve}}" = serve ]; then
  set -- serve --name {records.recipe.model} "${{@:2}}"
fi
"""


def _one_node(records: Records, elsewhere: bool) -> str:
    name = one_node_script(records)
    return (
        _head(f"{records.recipe.model} on one node of {records.chip.vendor} {records.product.name}.")
        + f"""\
# bash {name}                          serve OpenAI's API on port 8000
# bash {name} generate --prompt TEXT   answer one prompt
{_command(records, elsewhere)}exec torchrun --nproc-per-node {records.cards} \\
  -m flagrelease "$1" "$release" "${{@:2}}"
"""
    )


def _node_script(records: Records, elsewhere: bool) -> str:
    cards, check = min(records.cards, records.product.cards_per_node), _rank_check(records)
    command = _command(records, elsewhere)
    return (
        _head(f"{records.recipe.model} on any number of nodes: run it on each, with the same MASTER_ADDR.")
        + f"""\
# MASTER_ADDR=10.0.0.1 NODES={records.nodes} NODE_RANK=0 bash {NODE_SCRIPT}
# NODE_RANK is 0 on the node of MASTER_ADDR and counts up; CARDS is the cards of a node, PORT a free port of the first.
: "${{MASTER_ADDR:?the address of the first node}}"
: "${{NODE_RANK:?the number of this node, from 0}}"
nodes="${{NODES:-{records.nodes}}}"
cards="${{CARDS:-{cards}}}"
{check}{command}exec torchrun --nnodes "$nodes" --node-rank "$NODE_RANK" --nproc-per-node "$cards" \\
  --master-addr "$MASTER_ADDR" --master-port "${{PORT:-29500}}" \\
  -m flagrelease "$1" "$release" "${{@:2}}"
"""
    )


def _rank_check(records: Records) -> str:
    """A check for mp releases, which have a fixed number of ranks. An hf release is cut while it is loaded."""
    if records.target.mp is None:
        return ""
    return f"""\
if [ "$((nodes * cards))" -ne {records.cards} ]; then
  echo "NODES x CARDS must be {records.cards}, the ranks this release is cut for; it is $nodes x $cards" >&2
  exit 2
fi
"""


def _container_file(records: Records) -> str:
    return f"""\
# {_NOT_BUILT}
# docker build -t {image_name(records)} - < {CONTAINER_FILE}
FROM {records.chip.container.base_image}
# The vendor's torch and triton are in the image and stay.
RUN pip install --no-cache-dir {requirements(records)}
"""


def _compose(records: Records, elsewhere: bool) -> str:
    script = one_node_script(records) or NODE_SCRIPT
    scripts = "/scripts" if elsewhere else "/release"
    service: dict[str, Any] = {"image": image_name(records), "command": ["bash", f"{scripts}/{script}"]}
    service |= compose_service(docker_flags(records))
    service["volumes"] = [*service.get("volumes", []), f".:{scripts}:ro"]
    if elsewhere:
        service["volumes"].append(f"{records.release.absolute()}:/release:ro")
        service["environment"] = [*service.get("environment", []), "RELEASE=/release"]
    if script == NODE_SCRIPT:
        names = ("MASTER_ADDR", "NODE_RANK")
        service["environment"] = [*service.get("environment", []), *names]
    document = {"services": {"model": service}}
    return f"# {_NOT_BUILT}\n" + yaml.safe_dump(document, sort_keys=False, width=120)


def compose_service(flags: tuple[str, ...]) -> dict[str, Any]:
    """Options of `docker run` as keys of a compose service.

    Raises:
        UsageError: the chip table has an option that is not translated here.
    """
    service: dict[str, Any] = {}
    for flag in flags:
        option, _, value = flag.partition("=")
        if option in _LISTS:
            service.setdefault(_LISTS[option], []).append(value)
        elif option in _VALUES:
            service[_VALUES[option]] = value
        elif flag == "--privileged":
            service["privileged"] = True
        elif flag == "--gpus=all":
            service["gpus"] = "all"
        elif match := re.fullmatch(r"--ulimit=(\w+)=(-?\d+)", flag):
            service.setdefault("ulimits", {})[match[1]] = int(match[2])
        else:
            raise UsageError(f"docker option {flag!r} of the chip table has no translation for a compose file")
    return service
