"""The serving stacks, read from `stacks.yaml`: which forms of release each loads, how well that is known, its flags."""

from __future__ import annotations

from collections import Counter
from functools import cache, cached_property
from importlib import resources
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from flagrelease.chips.table import get_chip, load_chips
from flagrelease.errors import UsageError
from flagrelease.plain_yaml import parse_yaml

# How a release can be stored: our release formats, and what others publish. `stacks.yaml` says what the last six are.
OurForm = Literal[
    "bf16", "native", "fp8", "fp8-e8m0", "fp8-bf16-wo-a", "int8", "int8-experts", "fp8-channel", "w8a8-ascend", "mxfp8"
]
OthersForm = Literal["fp8-no-expert-dtype", "fp8-bf16-experts", "int8-wo-a", "nvfp4", "w4a8-ascend", "transformers"]
Form = OurForm | OthersForm
OUR_FORMS: tuple[OurForm, ...] = get_args(OurForm)
FORMS: tuple[Form, ...] = (*OUR_FORMS, *get_args(OthersForm))

V4 = "deepseek_v4"  # the family that `claims` and `launch` of a stack are about

Mark = Literal["verified", "stated", "inferred"]
LaunchFlag = Annotated[str, StringConstraints(pattern=r"^--[a-z-]+(=.+)?$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]*=\S+$")]
Sources = Annotated[tuple[str, ...], Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Claim(_Strict):
    """What is known of some forms of release under a stack; `why` is the reason, which only `loads` may lack."""

    forms: tuple[Form, ...] = Field(min_length=1)
    verdict: Literal["loads", "wrong", "refused", "unknown"]
    mark: Mark
    sources: Sources
    why: str | None = None
    flags: tuple[LaunchFlag, ...] = ()
    environment: tuple[Variable, ...] = ()

    @model_validator(mode="after")
    def _has_a_reason(self) -> Claim:
        if self.verdict != "loads" and self.why is None:
            raise ValueError(f"{', '.join(self.forms)}: {self.verdict} without a reason")
        return self


DraftKind = Literal["mtp", "dspark"]


class Drafting(_Strict):
    """How the stack is told to draft with the stages of a release, in words or flags."""

    how: str
    mark: Mark
    sources: Sources


class Launch(_Strict):
    """How the stack is started for a family of models, in whatever form.

    `settings`: what else must be set. `drafts`: by the kind of draft stages; of an absent kind nothing is known.
    """

    mark: Mark
    sources: Sources
    command: str
    flags: tuple[LaunchFlag, ...]
    environment: tuple[Variable, ...] = ()
    settings: str | None = None
    drafts: dict[DraftKind, Drafting] = {}


class Silent(_Strict):
    """Something that goes wrong without an error."""

    what: str
    mark: Mark
    sources: Sources


class OtherFamily(_Strict):
    """What is known of a stack and a family other than DeepSeek-V4; a form without a claim is unknown."""

    launch: Launch | None = None
    claims: tuple[Claim, ...] = ()


class ServingStack(_Strict):
    """One serving stack; `stacks.yaml` says at its head what each key means."""

    id: str
    title: str
    version: str
    chips: tuple[str, ...] = Field(min_length=1)
    product: str | None = None
    layouts: tuple[Literal["hf", "mp"], ...] = Field(min_length=1)
    loader: str | None
    why_no_loader: Annotated[str, StringConstraints(pattern=r"^(unknown|none): \S")] | None = None
    launch: Launch | None
    claims: tuple[Claim, ...]
    silent: tuple[Silent, ...]
    unknown: tuple[str, ...]
    families: dict[str, OtherFamily] = {}

    @cached_property
    def by_form(self) -> dict[Form, Claim]:
        """The claim of each form."""
        return {form: claim for claim in self.claims for form in claim.forms}

    def claim(self, form: Form, model_type: str) -> Claim:
        """What is known of this form of a model of the family; an `unknown` of its own where nothing is."""
        if model_type == V4:
            return self.by_form[form]
        for claim in self.families.get(model_type, OtherFamily()).claims:
            if form in claim.forms:
                return claim
        why = f"whether {self.title} loads {model_type} in this form was not established"
        return Claim(forms=(form,), verdict="unknown", mark="inferred", sources=("nothing",), why=why)

    def launch_of(self, model_type: str) -> Launch | None:
        """How it is started for models of the family, if a source says so."""
        return self.launch if model_type == V4 else self.families.get(model_type, OtherFamily()).launch

    @property
    def sources(self) -> set[str]:
        """All that its facts rest on."""
        facts: list[Claim | Silent | Launch | Drafting] = [*self.claims, *self.silent]
        facts += [claim for family in self.families.values() for claim in family.claims]
        for launch in (self.launch, *(family.launch for family in self.families.values())):
            if launch is not None:
                facts += [launch, *launch.drafts.values()]
        return {source for fact in facts for source in fact.sources}

    @model_validator(mode="after")
    def _says_each_form_once(self) -> ServingStack:
        said = Counter(form for claim in self.claims for form in claim.forms)
        if wrong := [form for form in FORMS if said[form] != 1]:
            raise ValueError(f"each form has one claim, these have none or several: {', '.join(wrong)}")
        if (self.loader is None) != (self.why_no_loader is not None):
            raise ValueError("a stack has a loader, or a reason why it has none")
        if unlisted := sorted(set(self.chips) - set(load_chips())):
            raise ValueError(f"chips that are not in the chip table: {', '.join(unlisted)}")
        return self


def parse_stacks(text: str) -> dict[str, ServingStack]:
    """Read a table of stacks, by id.

    Raises:
        ValueError: a row breaks the schema, leaves out a form or a reason, or cites a source that is not listed.
    """
    table = parse_yaml(text)
    stacks = {name: ServingStack.model_validate({"id": name, **row}) for name, row in table["stacks"].items()}
    cited = {source for stack in stacks.values() for source in stack.sources}
    if cited != set(table["sources"]):
        raise ValueError(f"cited but not listed, or listed but not cited: {sorted(cited ^ set(table['sources']))}")
    return stacks


@cache
def load_stacks() -> dict[str, ServingStack]:
    """The table by id, in its order."""
    return parse_stacks(resources.files("flagrelease.chips").joinpath("stacks.yaml").read_text(encoding="utf-8"))


def get_stack(name: str) -> ServingStack:
    """The stack of this id.

    Raises:
        UsageError: no such stack; the message has those there are.
    """
    stacks = load_stacks()
    if name not in stacks:
        raise UsageError(f"stack {name!r} is not in the table ({', '.join(stacks)})")
    return stacks[name]


def stacks_of(chip: str) -> tuple[ServingStack, ...]:
    """The stacks of a chip (its id or an alias), in the order of the table.

    Raises:
        UsageError: no such chip.
    """
    wanted = get_chip(chip).id
    return tuple(stack for stack in load_stacks().values() if wanted in stack.chips)
