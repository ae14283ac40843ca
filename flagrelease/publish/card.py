"""The card: what the release is, what was proved, how to run it. From records only; what is not known is left out."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

from flagrelease.console import human_bytes
from flagrelease.formats.formats import Format
from flagrelease.formats.releases import RELEASE_FORMATS, Description, Kept
from flagrelease.publish.claims import (
    CHIPS,
    MEANINGS,
    RECIPE,
    Advice,
    Claim,
    Claims,
    Columns,
    Evidence,
    Line,
    Row,
    Status,
    manifest,
    of_chip,
    of_stack,
)
from flagrelease.publish.drafts import drafting, drafts_row
from flagrelease.publish.front_matter import check_card, front_matter, render
from flagrelease.publish.hubs.hub import Hub
from flagrelease.publish.hubs.names import CLAIMS_NAME, COMPOSE_FILE, CONTAINER_FILE, NODE_SCRIPT, STATEMENT_NAME
from flagrelease.publish.proof import computed_line, evaluation, files_status, proof, weights_status
from flagrelease.publish.records import Records
from flagrelease.publish.run_files import (
    docker_flags,
    image_name,
    one_node_script,
    requirements,
)
from flagrelease.publish.serving import judge_stacks, serving
from flagrelease.publish.who_signed import who_signed
from flagrelease.records.chip_releases import FLAGOS
from flagrelease.records.provenance import PROJECT


def make_card(records: Records, hub: Hub, repo: str) -> bytes:
    """README.md for `hub`.

    Raises:
        VerificationError: a claim without a record, or metadata that break a rule of the hub, which are faults of
            flagrelease or of the records; or config.json cannot be read.
        CheckpointError: config.json is of no family.
    """
    claims, text = Claims(records), render(front_matter(records, hub))
    for lines in _sections(records, hub, repo):
        text += "\n" + "\n".join(claims.render(lines)) + "\n"
    check_card(text, hub)
    return text.encode()


def make_claims(records: Records, hub: Hub, repo: str) -> bytes:
    """`claims.json`: what that card says, for programs.

    Raises:
        VerificationError, CheckpointError: as `make_card`.
    """
    return Claims(records).document(line for lines in _sections(records, hub, repo) for line in lines)


def _sections(records: Records, hub: Hub, repo: str) -> list[list[Line]]:
    """The lines of each section; a section that has none is left out."""
    stacks = judge_stacks(records)
    engines = (lambda r: serving(r, stacks), _run)
    sections = (
        _what_it_is, _provenance, proof, evaluation, lambda r: _download(r, hub, repo),
        *(engines if not records.wanted.spec.for_flagos else engines[::-1]), lambda r: drafting(r, stacks), _limits,
        who_signed, _licences, _how_to_read,
    )  # fmt: skip
    return [lines for section in sections if (lines := list(section(records)))]


def _what_it_is(records: Records) -> Iterator[Line]:
    chip, product, files = records.chip, records.product, records.manifest.files
    shards = sum(file.path.endswith(".safetensors") for file in files)
    cut = f"cut for {records.cards} ranks" if records.target.mp else "whole tensors and an index"
    yield f"# {records.recipe.model} for {chip.vendor} {product.name}"
    yield ""
    stack = records.wanted.stack
    loader = f"{stack.title} loads" if stack is not None and stack.id != FLAGOS else "this chip computes in"
    yield computed_line(records)
    yield ""
    same = f"{records.recipe.source.repo} for {chip.vendor} {product.name}: the same model in a format that {loader},"
    known = of_chip(chip.id) if stack is None else of_stack(stack.id)
    yield Claim("inferred", known, f"{same} made by [flagrelease]({PROJECT}).", bullet=False)
    yield ""
    values, files_are = weights_status(records), files_status(records)
    yield Columns(("what", "value"))
    yield Row(values, manifest("/target/dtype"), ("weights", _weights(records)))
    yield Row(values, manifest("/elements"), ("parameters", f"{_parameters(records):,}{_hubs_count(records)}"))
    held = f"{_count(shards, 'safetensors file')}, {cut}; {human_bytes(records.weight_bytes)}"
    yield Row(files_are, manifest("/target/layout"), ("layout", f"{records.layout}: {held}"))
    if records.target.o_groups is not None:
        shared = f"{records.target.o_groups} between ranks"
        yield Row(files_are, manifest("/target/o_groups"), ("o-groups", shared))
    yield drafts_row(records, files_are)
    yield from _of_the_family(records, files_are)
    cards = f"{_count(records.cards, 'card')} x {product.memory_gib} GiB"
    nodes = "one node" if records.nodes == 1 else f"{records.nodes} nodes of {product.cards_per_node}"
    yield Row("inferred", Evidence(CHIPS, f"/chips/{chip.id}/products"), ("needs", f"{cards}, {nodes}"))


def _weights(records: Records) -> str:
    """What the format makes of each kind of quantised weight. In mp layouts wo_a is BF16 in any case."""
    kept = RELEASE_FORMATS[records.target.dtype]
    wo_a = kept.wo_a if records.target.mp is None else None
    kinds = {"routed experts": kept.experts, "other linears": kept.linears, "wo_a": wo_a}
    held = ", ".join(f"{kind} {_held(stored)}" for kind, stored in kinds.items())
    rows, columns = records.family.repack_tile
    words = kept.words.replace("128 x 128", f"{rows} x {columns}")
    return f"{words}: {held}; what the source does not quantise is as there"


def _of_the_family(records: Records, status: Status) -> Iterator[Row]:
    """What only some families have: Engram tables, and a vision tower."""
    tensors = records.manifest.tensors
    tables = sorted(name for name in tensors if name.endswith(".engram.embed.weight"))
    if tables:
        coded = tables[0].removesuffix("weight") + "scale" in tensors
        how = "FP8 as in the source, a scale for 32 elements of a row" if coded else "BF16"
        yield Row(status, manifest("/tensors"), ("Engram tables", f"{len(tables)}: {how}"))
    if any(name.startswith("vision.") for name in tensors):
        yield Row(status, manifest("/tensors"), ("images", "vision tower and aligner as in the source"))


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


def _provenance(records: Records) -> Iterator[Line]:
    source, tool = records.recipe.source, records.manifest.tool
    yield "## Where it comes from"
    yield ""
    identity = f"source: `{source.repo}` at revision `{source.revision}`, identity `{records.manifest.source.identity}`"
    yield Claim("inferred", manifest("/source/identity"), identity)
    provider = f"provider of the model: `{source.repo.partition('/')[0]}` (upstream)"
    yield Claim("inferred", Evidence(RECIPE, "/source/repo"), provider)
    untrained = "no training or fine-tuning took place here: the weights were only stored in another format"
    yield Claim(weights_status(records), manifest("/elements"), untrained)
    told = records.manifest.source
    checked = manifest("/source/checked") if told.checked else None
    yield Claim("proved" if told.checked else "not run", checked, f"source files: {told.checked_against}")
    recipe = "`manifest.json`" if records.manifest.recipe is not None else f"`{STATEMENT_NAME}`, attached afterwards"
    yield Claim("inferred", manifest("/tool"), f"made by: {tool.name} {tool.version}; the recipe is in {recipe}")
    said = "`manifest.json` has the SHA-256 of every file and a digest of every tensor; its own SHA-256 is"
    yield Claim(files_status(records), manifest("/source"), f"{said} `{records.manifest_sha256}`")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _download(records: Records, hub: Hub, repo: str) -> Iterator[Line]:
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
    yield Advice(
        "Every tag of this repository is one whole publication. What is online is checked without downloading it by\n"
        f"`flagrelease verify {hub.scheme}://{repo}@TAG`."
    )


def _run(records: Records) -> Iterator[Line]:
    script = one_node_script(records)
    yield "## Run"
    yield ""
    yield Advice("In an environment with the vendor's torch, in the folder of the release:")
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
        yield Advice(
            f"With `generate --prompt 'Who are you?'` behind `{NODE_SCRIPT}` on each node there is one answer and no\n"
            "server. Ask the server on node 0:"
        )
    else:
        yield Advice(f"Across nodes: `{NODE_SCRIPT}`, which says how. Ask the server:")
    yield ""
    yield "```bash"
    yield "curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\"
    request = {"model": records.recipe.model, "messages": [{"role": "user", "content": "Who are you?"}]}
    yield f"  -d '{json.dumps(request)}'"
    yield "```"
    if records.chip.container.base_image is not None:
        yield from _container(records, script or NODE_SCRIPT)


def _container(records: Records, script: str) -> Iterator[Line]:
    name = image_name(records)
    variables = "" if script != NODE_SCRIPT else " --env=MASTER_ADDR --env=NODE_RANK"
    yield ""
    yield Advice("In a container:")
    yield ""
    made = f"`{CONTAINER_FILE}` and `{COMPOSE_FILE}` are made from documents; nobody has built them on this chip yet."
    yield Claim("not run", of_chip(records.chip.id), made, bullet=False)
    yield ""
    yield "```bash"
    yield f"docker build -t {name} - < {CONTAINER_FILE}"
    yield f'docker run --rm{variables} --volume="$PWD":/release:ro \\'
    for flag in docker_flags(records):
        yield f"  {shlex.quote(flag)} \\"
    yield f"  {name} bash /release/{script}"
    yield "```"


def _limits(records: Records) -> Iterator[Line]:
    yield "## Limits"
    yield ""
    made = manifest("/target")
    if records.target.mp is not None:
        files = f"The `model{{rank}}-mp{records.target.mp}` files are for {records.family.mp_readers}."
        yield Claim("inferred", made, f"{files} vLLM and transformers do not load them.")
    if RELEASE_FORMATS[records.target.dtype].description is not Description.DEEPSEEK:
        said = "Stacks round activations as the format says, with a scale for each token or block of it, and not as the"
        yield Claim("inferred", made, f"{said} native model does; the two numerics differ by that.")
    if records.target.dtype == "bf16":
        said = "Activations are not rounded to FP8 as the native model rounds them; the two numerics differ by that."
        yield Claim("inferred", made, said)
    said = "The commands above are made from the chip table; what was run on the chip itself is what the report says."
    yield Claim("inferred", of_chip(records.chip.id), said)


def _licences(records: Records) -> Iterator[Line]:
    yield "## Licence"
    yield ""
    said = f"The weights are under the licence of `{records.recipe.source.repo}`: {records.licence}."
    yield Claim("inferred", Evidence(RECIPE, "/source/license"), said, bullet=False)
    yield Advice("flagrelease itself is Apache-2.0.")


def _how_to_read(records: Records) -> Iterator[Line]:
    """What the words in brackets mean."""
    yield "## What the words behind each claim mean"
    yield ""
    meant = "; ".join(f"*{status}*: {meaning}" for status, meaning in MEANINGS.items())
    yield Advice(f"{meant[0].upper()}{meant[1:]}. `{CLAIMS_NAME}` has every claim with its status and its record.")
