"""The releases of a chip: what a recipe asks for, how a command line chooses among them, and their repositories."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from flagrelease.chips.stacks import ServingStack, get_stack, stacks_of
from flagrelease.chips.table import CardProduct, Chip, get_chip
from flagrelease.errors import UsageError
from flagrelease.formats.releases import RELEASE_FORMATS, parse_format_and_layout
from flagrelease.records.manifest import Drafts, Dtype, OGroups, TargetRecord

OWNER = "FlagRelease"
FLAGOS = "flagos"  # the stack of DeepSeek's and FlagOS' own engines, which read mp layouts
LONGEST_NAME = 96  # of a repository without its owner, on Hugging Face; ModelScope states no smaller limit
OWNER_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]*"


class ReleaseSpec(BaseModel):
    """One release of a chip.

    Attributes:
        format, dtype: a release format, as docs/formats.md lists them; `dtype` is what older recipes call the key.
        layout: `hf`, whole tensors with an index, or `mpN`, a file for each of N ranks.
        o_groups: with more ranks than o-groups, `shared` gives the ranks of a group the same piece of wo_a and wo_b;
            `split` cuts it between them.
        drafts: `drop` leaves out the draft stages of the model (`mtp.*`), which only make answers faster.
        stack: the serving stack of `chips/stacks.yaml` that it is made for; None: nobody in particular.
        repo: `OWNER/NAME` that it is published in; None: `repository` makes the name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Dtype
    layout: str = Field(pattern=r"^(hf|mp[1-9][0-9]*)$")
    o_groups: OGroups = "shared"
    drafts: Drafts = "keep"
    stack: str | None = None
    repo: str | None = Field(default=None, pattern=rf"^{OWNER_PATTERN}/{OWNER_PATTERN}$")

    @model_serializer(mode="wrap")
    def _without_what_is_not_said(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Manifests hold the recipe: a key that came later must not change those of recipes without it."""
        document: dict[str, Any] = dump(self)
        return document if self.repo is not None else {key: document[key] for key in document if key != "repo"}

    @model_validator(mode="before")
    @classmethod
    def _dtype_is_the_old_word_for_format(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "dtype" not in value:
            return value
        if "format" in value:
            raise ValueError("format and dtype are two words for one thing; write format")
        return {("format" if key == "dtype" else key): inner for key, inner in value.items()}

    @model_validator(mode="after")
    def _format_exists_in_this_layout(self) -> ReleaseSpec:
        parse_format_and_layout(self.target)
        return self

    @property
    def target(self) -> str:
        """`FORMAT:LAYOUT`, as for `--target`."""
        return f"{self.format}:{self.layout}"

    @property
    def name(self) -> str:
        """`FORMAT-LAYOUT`, the name of its folder."""
        return f"{self.format}-{self.layout}"

    @property
    def for_flagos(self) -> bool:
        """Whether it is made for FlagOS' engine, or for nobody in particular."""
        return self.stack in (None, FLAGOS)

    def is_of(self, target: TargetRecord) -> bool:
        """Whether a release with this record in its manifest is this one, wherever its o-groups are cut."""
        layout = "hf" if target.mp is None else f"mp{target.mp}"
        return (self.format, self.layout) == (target.dtype, layout)


def require_served(chip: Chip, spec: ReleaseSpec) -> None:
    """Refuse a stack that does not serve the chip, or is known not to load the release.

    A stack of which nobody knows whether it loads the format is allowed; `plan` says so.

    Raises:
        ValueError: with the stacks or formats that are accepted.
    """
    if spec.stack is None:
        return
    serving = {stack.id: stack for stack in stacks_of(chip.id)}
    if spec.stack not in serving:
        raise ValueError(f"stack {spec.stack!r} does not serve {chip.id}; those that do: {', '.join(serving)}")
    stack, claim = serving[spec.stack], serving[spec.stack].by_form[spec.format]
    kind = "hf" if spec.layout == "hf" else "mp"
    if kind not in stack.layouts:
        raise ValueError(f"stack {stack.id} reads layout {' and '.join(stack.layouts)}, not {spec.layout}")
    if claim.verdict in ("refused", "wrong"):
        how = "refuses" if claim.verdict == "refused" else "loads without an error and answers nonsense with"
        raise ValueError(f"stack {stack.id} {how} {spec.format}: {claim.why}; it accepts {_accepted(stack, kind)}")


def _accepted(stack: ServingStack, kind: str) -> str:
    loads = [
        name
        for name, one in RELEASE_FORMATS.items()
        if kind in one.layouts and stack.by_form[one.name].verdict == "loads"
    ]
    return ", ".join(loads) or "no format that is known"


def repository(
    model: str, chip: Chip, spec: ReleaseSpec, of_chip: tuple[ReleaseSpec, ...], owner: str | None = None
) -> str:
    """The repository of a release, among all that the recipe has for the chip; the one that the release itself names.

    `FlagRelease/MODEL-CHIP-FlagOS` is the first release that is for FlagOS' engine; further ones of that kind have
    format and layout before the chip. A release for another stack is `FlagRelease/MODEL-FORMAT-CHIP-STACK`, where the
    stack goes without the chip's own name: DeepSeek-V4-Flash-W8A8-ASCEND-ascend-vllm for vllm-ascend. `owner` takes
    the place of `FlagRelease`.
    """
    if spec.repo is not None:
        return spec.repo
    if spec.for_flagos:
        first = next(one for one in of_chip if one.for_flagos)
        words = [model, *([] if spec == first else [spec.format.upper(), spec.layout]), chip.id, "FlagOS"]
    else:
        assert spec.stack is not None
        own = [word for word in spec.stack.split("-") if word != chip.id] or ["serving"]
        words = [model, spec.format.upper(), chip.id, *own]
    return f"{owner or OWNER}/{'-'.join(words)}"


@dataclass(frozen=True, slots=True)
class ChipRelease:
    """One release of one chip in a recipe, and the repository that it is published in by default."""

    chip: Chip
    spec: ReleaseSpec
    repo: str

    @property
    def stack(self) -> ServingStack | None:
        """The serving stack that it is made for, if the recipe names one."""
        return None if self.spec.stack is None else get_stack(self.spec.stack)

    @property
    def product(self) -> CardProduct:
        """The product that the release is for: the one that its stack is for, else the one that plans are made for."""
        stack = self.stack
        named = [one for one in self.chip.products if stack and stack.product and stack.product in one.name]
        return (*named, self.chip.products[0])[0]


Releases = Mapping[str, tuple[ReleaseSpec, ...]]


def releases_of(model: str, releases: Releases, chip: Chip, owner: str | None) -> tuple[ChipRelease, ...]:
    """The releases of a chip, in the order of the recipe; none if the recipe does not have the chip."""
    specs = releases.get(chip.id, ())
    return tuple(ChipRelease(chip, spec, repository(model, chip, spec, specs, owner)) for spec in specs)


def split_choice(text: str) -> tuple[Chip, str | None]:
    """Read `CHIP` or `CHIP:FORMAT-LAYOUT`, as `--chip` takes it.

    Raises:
        UsageError: no such chip.
    """
    name, colon, release = text.partition(":")
    return get_chip(name), release if colon else None


def choose(model: str, releases: Releases, choices: Iterable[str], owner: str | None = None) -> tuple[ChipRelease, ...]:
    """The releases that `--chip` names, each once: all of a chip, or the one of this format and layout.

    Args:
        model: of the recipe.
        releases: of the recipe.
        choices: as typed; none means everything in the recipe.
        owner: of repositories; None: `OWNER`.

    Raises:
        UsageError: no such chip or release; the message has those there are.
    """
    chosen: dict[tuple[str, str], ChipRelease] = {}
    for text in list(choices) or list(releases):
        chip, wanted = split_choice(text)
        if chip.id not in releases:
            raise UsageError(f"chip {chip.id!r} is not in this recipe; it has {', '.join(releases)}")
        found = releases_of(model, releases, chip, owner)
        if wanted is not None and wanted not in {one.spec.name for one in found}:
            names = ", ".join(f"{chip.id}:{one.spec.name}" for one in found)
            raise UsageError(f"--chip {text}: this recipe has {names}")
        for one in found:
            if wanted in (None, one.spec.name):
                chosen.setdefault((chip.id, one.spec.name), one)
    return tuple(chosen.values())
