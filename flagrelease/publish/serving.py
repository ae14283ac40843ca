"""What a card says of engines that are not FlagOS': serving stacks by the replay of their loaders, and transformers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from flagrelease.chips.launch import launch_lines
from flagrelease.chips.loading.release import Release
from flagrelease.chips.loading.verdict import Judgement, judge
from flagrelease.chips.stacks import V4, Launch, ServingStack, stacks_of
from flagrelease.formats.releases import MODELSLIM_DESCRIPTION
from flagrelease.publish.claims import Claim, Line, manifest, of_stack
from flagrelease.publish.records import Records, read_document

TRANSFORMERS = "5.23"  # the first that was seen to load a release: tests/publish/test_card.py
_KNOWN = {"verified": "read in its source", "stated": "by its makers' word", "inferred": "concluded from its source"}


@dataclass(frozen=True, slots=True)
class Served:
    """One stack of the chip and what it makes of the release."""

    stack: ServingStack
    judgement: Judgement
    launch: Launch | None

    @property
    def name(self) -> str:
        """As people call it."""
        return f"{self.stack.title} ({self.stack.version})"

    @property
    def loads(self) -> bool:
        """Whether nothing that is known speaks against it, and the replay of its loader fills every parameter.

        Of a family whose loaders were not written down nothing is replayed, and what is known alone decides.
        """
        done = self.judgement.replay
        if done is None:
            sound = self.stack.loader is not None  # it has one, for another family
        else:
            sound = all(finding.kind == "note" for finding in done.findings)
        return sound and self.judgement.verdict in ("loads", "loads with flags")

    @property
    def answers_nonsense(self) -> bool:
        """Whether it would load the release without an error and compute with other numbers."""
        return self.judgement.verdict == "silently wrong"


def judge_stacks(records: Records) -> tuple[Served, ...]:
    """The stacks of the chip, each with its judgement of the release; none for an mp layout, which no stack reads.

    Raises:
        VerificationError: config.json or the description of the weights cannot be read.
        CheckpointError: config.json is of no family.
    """
    if records.target.mp is not None:
        return ()
    tensors = {name: (one.dtype, one.shape) for name, one in records.manifest.tensors.items()}
    files = frozenset(file.path for file in records.manifest.files)
    described = read_document(records, MODELSLIM_DESCRIPTION) if MODELSLIM_DESCRIPTION in files else None
    release = Release(read_document(records, "config.json"), described, tensors, files)
    stacks = [stack for stack in stacks_of(records.chip.id) if "hf" in stack.layouts]
    family = records.family.model_type
    return tuple(Served(stack, judge(stack, release), stack.launch_of(family)) for stack in stacks)


def loads_in_transformers(records: Records) -> bool:
    """Whether the files are what transformers reads: whole tensors in BF16, of a family that it was seen to load."""
    return (records.layout, records.target.dtype, records.family.model_type) == ("hf", "bf16", V4)


def serving(records: Records, stacks: Iterable[Served]) -> Iterator[Line]:
    """Lines of the section; none for an mp layout, which is for flagrelease and FlagOS alone."""
    stacks = tuple(stacks)
    wanted = records.wanted.spec.stack
    named = [one for one in stacks if one.loads or one.answers_nonsense or one.stack.id == wanted]
    if named:
        yield "## Serving stacks"
        yield ""
        if any(one.judgement.replay is not None for one in named):
            replayed = "The loaders of these stacks were replayed on the headers of this release: which parameter gets"
            yield Claim("inferred", manifest("/tensors"), f"{replayed} which tensor, and how.", bullet=False)
        else:
            said = f"No loader was replayed on this release: what these stacks load of {records.family.title} is known"
            yield Claim(
                "inferred", manifest("/target"), f"{said} by their makers' word, or from reading.", bullet=False
            )
        yield Claim("not run", None, "Nobody has run the commands with this release yet.", bullet=False)
    for one in named:
        if one.loads:
            yield from _loads(records, one)
    for one in named:
        if one.answers_nonsense:
            yield ""
            said = f"**Do not load this release with {one.name}**: it starts without an error and computes with other"
            whole = f"{said} numbers. {_sentence(one.judgement.why)}"
            yield Claim("inferred", of_stack(one.stack.id), whole, bullet=False)
        elif not one.loads:
            yield from _not_shown(one)
    if loads_in_transformers(records):
        yield "" if named else "## Other engines"
        if named:
            yield "### transformers"
        yield from _transformers(records)


def _loads(records: Records, one: Served) -> Iterator[Line]:
    stack, judgement = one.stack, one.judgement
    made_for = " This release is made for it." if stack.id == records.wanted.spec.stack else ""
    yield ""
    yield f"### {stack.title}"
    yield ""
    known = of_stack(stack.id)
    if judgement.replay is None:
        yield Claim("inferred", known, f"Version {stack.version}.", bullet=False)
    else:
        filled = f"all {judgement.replay.parameters:,} parameters are filled with what they should hold"
        yield Claim("inferred", known, f"Version {stack.version}: {filled}.", bullet=False)
    taken = f"That it takes this format is {_KNOWN[judgement.mark]}.{made_for}"
    yield Claim("inferred", known, taken, bullet=False)
    if one.launch is not None:
        yield ""
        yield "```bash"
        yield from command(records, one)
        yield "```"
        if one.launch.settings is not None:
            yield ""
            yield Claim("inferred", known, f"Settings: {one.launch.settings}.", bullet=False)
    # what goes wrong in silence was seen in the loader for V4; of another family's nothing of the kind is known
    silent = stack.silent if judgement.replay is not None else ()
    notes = [*judgement.why, *(each.what for each in silent)]
    if notes:
        yield ""
        yield from (Claim("inferred", known, note) for note in notes)


def command(records: Records, one: Served, folder: str = ".") -> list[str]:
    """The stack's launch with what this release needs beside it; `folder` is where the release lies."""
    launch = one.launch
    assert launch is not None
    needs = one.judgement
    return launch_lines(
        launch, folder, records.recipe.model, records.cards, records.nodes, needs.flags, needs.environment
    )


def _not_shown(one: Served) -> Iterator[Line]:
    """The stack that the recipe names, where no replay shows that it loads the release."""
    judgement, known_of = one.judgement, of_stack(one.stack.id)
    yield ""
    if judgement.verdict == "refused":
        said = f"**{one.name}, which this release was to be made for, refuses it**: {_sentence(judgement.why)}"
    elif one.stack.loader is None:
        known = f"loads it, {_KNOWN[judgement.mark]}" if judgement.verdict != "unknown" else "may load it"
        said = (
            f"This release is made for {one.name}, which {known}. Its loader could not be replayed "
            f"({one.stack.why_no_loader}), so nothing here vouches for it. {_sentence(judgement.why)}"
        ).rstrip()
    else:
        said = f"Whether {one.name} loads this release is not known: {_sentence(judgement.why)}"
    yield Claim("inferred", known_of, said, bullet=False)


def _sentence(why: Iterable[str]) -> str:
    text = "; ".join(why)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _transformers(records: Records) -> Iterator[Line]:
    module = records.chip.torch_module
    made = manifest("/target")
    yield ""
    tried = (
        f"transformers {TRANSFORMERS} or newer loads the files: tried with a small model on a CPU, not on this chip."
    )
    yield Claim("inferred", made, tried, bullet=False)
    said = f"It knows no chat format of {records.family.title}: prompts are written by `encoding/` of the release."
    yield Claim("inferred", made, said, bullet=False)
    if records.nodes > 1:
        said = "It knows one node only: what its cards do not hold is kept in the host's memory, and is slow."
        yield Claim("inferred", made, said, bullet=False)
    yield ""
    yield "```python"
    if module is not None:
        yield f"import {module}  # the chip's torch device"
    yield "from transformers import AutoModelForCausalLM, AutoTokenizer"
    yield ""
    yield 'tokenizer = AutoTokenizer.from_pretrained(".")'
    yield 'model = AutoModelForCausalLM.from_pretrained(".", dtype="bfloat16", device_map="auto")  # needs accelerate'
    yield 'tokens = tokenizer("The capital of France is", return_tensors="pt").to(model.device)'
    yield "print(tokenizer.decode(model.generate(**tokens, max_new_tokens=8)[0]))"
    yield "```"
