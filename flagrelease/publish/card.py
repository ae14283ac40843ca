"""The card: what the release is, what was proved, how to run it. From records only; what is not known is left out."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

from flagrelease.console import human_bytes
from flagrelease.formats.formats import Format
from flagrelease.formats.releases import RELEASE_FORMATS, Description, Kept
from flagrelease.publish.drafts import drafting, drafts_row
from flagrelease.publish.front_matter import check_card, front_matter, render
from flagrelease.publish.hubs.hub import Hub
from flagrelease.publish.hubs.names import COMPOSE_FILE, CONTAINER_FILE, NODE_SCRIPT, STATEMENT_NAME
from flagrelease.publish.losses import losses
from flagrelease.publish.records import Records
from flagrelease.publish.run_files import (
    docker_flags,
    image_name,
    one_node_script,
    requirements,
)
from flagrelease.publish.serving import judge_stacks, serving
from flagrelease.records.chip_releases import FLAGOS
from flagrelease.records.provenance import PROJECT
from flagrelease.records.report import Score


def make_card(records: Records, hub: Hub, repo: str) -> bytes:
    """README.md for `hub`.

    Raises:
        VerificationError: its metadata break a rule of the hub, which is a fault of the records, or config.json of an
            hf release, or of one with DSpark's stages, cannot be read.
        CheckpointError: config.json of an hf release is not one of DeepSeek-V4.
    """
    stacks = judge_stacks(records)
    engines = (lambda r: serving(r, stacks), _run)
    sections = (
        _what_it_is, _provenance, _proof, _evaluation, lambda r: _download(r, hub, repo),
        *(engines if not records.wanted.spec.for_flagos else engines[::-1]), lambda r: drafting(r, stacks), _limits,
        _licences,
    )  # fmt: skip
    text = render(front_matter(records, hub))
    for section in sections:
        lines = list(section(records))
        if lines:
            text += "\n" + "\n".join(lines) + "\n"
    check_card(text, hub)
    return text.encode()


def _what_it_is(records: Records) -> Iterator[str]:
    chip, product, files = records.chip, records.product, records.manifest.files
    shards = sum(file.path.endswith(".safetensors") for file in files)
    cut = f"cut for {records.cards} ranks" if records.target.mp else "whole tensors and an index"
    yield f"# {records.recipe.model} for {chip.vendor} {product.name}"
    yield ""
    stack = records.wanted.stack
    loader = f"{stack.title} loads" if stack is not None and stack.id != FLAGOS else "this chip computes in"
    yield f"{records.recipe.source.repo} for {chip.vendor} {product.name}: the same model in a format that"
    yield f"{loader}, made by [flagrelease]({PROJECT})."
    yield ""
    yield "| what | value |"
    yield "|---|---|"
    yield f"| weights | {_weights(records)} |"
    yield f"| parameters | {_parameters(records):,}{_hubs_count(records)} |"
    held = f"{_count(shards, 'safetensors file')}, {cut}; {human_bytes(records.weight_bytes)}"
    yield f"| layout | {records.layout}: {held} |"
    if records.target.o_groups is not None:
        yield f"| o-groups | {records.target.o_groups} between ranks |"
    yield drafts_row(records)
    cards = f"{_count(records.cards, 'card')} x {product.memory_gib} GiB"
    nodes = "one node" if records.nodes == 1 else f"{records.nodes} nodes of {product.cards_per_node}"
    yield f"| needs | {cards}, {nodes} |"


def _weights(records: Records) -> str:
    """What the format makes of each kind of quantised weight. In mp layouts wo_a is BF16 in any case."""
    kept = RELEASE_FORMATS[records.target.dtype]
    wo_a = kept.wo_a if records.target.mp is None else None
    kinds = {"routed experts": kept.experts, "other linears": kept.linears, "wo_a": wo_a}
    held = ", ".join(f"{kind} {_held(stored)}" for kind, stored in kinds.items())
    return f"{kept.words}: {held}; what the source does not quantise is as there"


def _held(stored: Format | Kept | None) -> str:
    if stored is None:
        return "BF16"
    return "as in the source" if isinstance(stored, Kept) else stored.name.upper()


def _parameters(records: Records) -> int:
    """Elements of all weights, without the scales of blocks."""
    return sum(records.manifest.elements.model_dump().values())


def _hubs_count(records: Records) -> str:
    """Hubs count stored elements: FP4 is stored in pairs, and the scales are counted too."""
    return (
        "; the hub shows fewer, since it counts a pair of FP4 values once" if records.target.dtype == "native" else ""
    )


def _provenance(records: Records) -> Iterator[str]:
    source, tool = records.recipe.source, records.manifest.tool
    yield "## Where it comes from"
    yield ""
    yield f"- source: `{source.repo}` at revision `{source.revision}`, identity `{records.manifest.source.identity}`"
    yield f"- source files: {records.manifest.source.checked_against}"
    recipe = "`manifest.json`" if records.manifest.recipe is not None else f"`{STATEMENT_NAME}`, attached afterwards"
    yield f"- made by: {tool.name} {tool.version}; the recipe is in {recipe}"
    yield "- `manifest.json` has the SHA-256 of every file and a digest of every tensor; its own SHA-256 is"
    yield f"  `{records.manifest_sha256}`"


def _proof(records: Records) -> Iterator[str]:
    yield "## What was proved"
    yield ""
    yield from losses(records.manifest)
    yield ""
    if records.report is None:
        yield "**This release was published without validation on its chip.**"
        return
    yield "| stage | verdict | detail |"
    yield "|---|---|---|"
    for stage in records.report.stages:
        yield f"| {stage.name} | {stage.verdict} | {_cell(stage.detail)} |"
    yield ""
    for stage in records.report.stages:
        yield from (f"- {stage.name}: {sentence}" for sentence in stage.proves)
        yield from (f"- {stage.name} leaves open: {sentence}" for sentence in stage.leaves_open)
    yield ""
    if not records.weights_proved:
        yield "**The weights were not compared with those they were made from, only with digests in the manifest: a"
        yield "fault of the conversion is not excluded.**"
        yield ""
    yield "The whole record is `report.json`."
    if records.report.environment:
        machine = ", ".join(f"{name} {value}" for name, value in records.report.environment.items())
        yield f"It was made with {machine}."
    if records.report.rules.device == "any":
        yield "**Its figures count wherever they were computed, so they prove nothing of this chip.**"


def _evaluation(records: Records) -> Iterator[str]:
    if records.report is None or not records.report.benchmarks:
        return
    yield "## Evaluation"
    yield ""
    yield "| benchmark | n x repeats | native | this release | verdict |"
    yield "|---|---|---|---|---|"
    for entry in records.report.benchmarks:
        native = "not run" if entry.native is None else _score(entry.native)
        yield (
            f"| {entry.task} ({entry.metric}, {entry.unit}) | {entry.n} x {entry.repeats} "
            f"| {native} | {_score(entry.chip)} | {entry.verdict} |"
        )
    yield ""
    for entry in records.report.benchmarks:
        stack = f" Native: {entry.native_stack}." if entry.native_stack else ""
        yield (f"- {entry.task}: `{entry.dataset}` at `{entry.revision}`; {entry.mode}. Rule: {entry.rule}.{stack}")


def _cell(text: str) -> str:
    """Text inside a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _score(score: Score) -> str:
    low, high = round(score.low, 2), round(score.high, 2)
    return f"{round(score.value, 2):g} ({score.confidence:.0%}: {low:g} to {high:g})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _download(records: Records, hub: Hub, repo: str) -> Iterator[str]:
    folder = shlex.quote(repo.rpartition("/")[2])
    yield "## Download"
    yield ""
    yield "```bash"
    yield hub.download.format(repo=shlex.quote(repo), folder=folder)
    yield f"pip install {requirements(records)}"
    yield f"cd {folder}"
    yield "flagrelease verify .   # every file and tensor against the manifest"
    yield "```"
    yield ""
    yield "Every tag of this repository is one whole publication. What is online is checked without downloading it by"
    yield f"`flagrelease verify {hub.scheme}://{repo}@TAG`."


def _run(records: Records) -> Iterator[str]:
    script = one_node_script(records)
    yield "## Run"
    yield ""
    yield "In an environment with the vendor's torch, in the folder of the release:"
    yield ""
    yield "```bash"
    if script is not None:
        yield f"bash {script}                                      # OpenAI's API on port 8000"
        yield f"bash {script} generate --prompt 'Who are you?'     # one answer"
    else:
        for rank in range(records.nodes):
            yield f"MASTER_ADDR=10.0.0.1 NODE_RANK={rank} bash {NODE_SCRIPT}   # on node {rank}; 10.0.0.1 is node 0"
    yield "```"
    yield ""
    if script is None:
        yield f"With `generate --prompt 'Who are you?'` behind `{NODE_SCRIPT}` on each node there is one answer and no"
        yield "server. Ask the server on node 0:"
    else:
        yield f"Across nodes: `{NODE_SCRIPT}`, which says how. Ask the server:"
    yield ""
    yield "```bash"
    yield "curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\"
    request = {"model": records.recipe.model, "messages": [{"role": "user", "content": "Who are you?"}]}
    yield f"  -d '{json.dumps(request)}'"
    yield "```"
    if records.chip.container.base_image is not None:
        yield from _container(records, script or NODE_SCRIPT)


def _container(records: Records, script: str) -> Iterator[str]:
    name = image_name(records)
    variables = "" if script != NODE_SCRIPT else " --env=MASTER_ADDR --env=NODE_RANK"
    yield ""
    yield f"In a container. `{CONTAINER_FILE}` and `{COMPOSE_FILE}` are made from documents; nobody has built"
    yield "them on this chip yet:"
    yield ""
    yield "```bash"
    yield f"docker build -t {name} - < {CONTAINER_FILE}"
    yield f'docker run --rm{variables} --volume="$PWD":/release:ro \\'
    for flag in docker_flags(records):
        yield f"  {shlex.quote(flag)} \\"
    yield f"  {name} bash /release/{script}"
    yield "```"


def _limits(records: Records) -> Iterator[str]:
    yield "## Limits"
    yield ""
    if records.target.mp is not None:
        yield (
            f"- The `model{{rank}}-mp{records.target.mp}` files are for flagrelease's engine and FlagOS' engine. "
            "vLLM and transformers do not load them."
        )
    if RELEASE_FORMATS[records.target.dtype].description is not Description.DEEPSEEK:
        yield (
            "- Stacks round activations as the format says, with a scale for each token or block of it, and not as the "
            "native model does; the two numerics differ by that."
        )
    if records.target.dtype == "bf16":
        yield "- Activations are not rounded to FP8 as the native model rounds them; the two numerics differ by that."
    yield "- The commands above are made from the chip table; what was run on the chip itself is what the report says."


def _licences(records: Records) -> Iterator[str]:
    yield "## Licence"
    yield ""
    yield f"The weights are under the licence of `{records.recipe.source.repo}`: {records.licence}."
    yield "flagrelease itself is Apache-2.0."
