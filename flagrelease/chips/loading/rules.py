"""`Loader`: the loading rules of a serving stack, read from `chips/loaders.yaml`. The rules are data, checked here."""

from __future__ import annotations

import re
from functools import cache, cached_property
from importlib import resources
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from flagrelease.plain_yaml import parse_yaml

Mark = Literal["verified", "stated", "inferred"]
Scheme = Literal["fp8", "compressed-tensors", "modelslim", "none"]
Dtype = Literal["F8_E4M3", "F8_E8M0", "F32", "F16", "BF16", "I8", "U8", "I32", "I64", "F4"]
Reading = Literal["value", "bytes", "encoded", "rounded", "exponent", "byte value"]
Environment: TypeAlias = "dict[str, str]"
Size = Literal["o", "o/2", "o/block", "i", "i/2", "i/32", "i/block", "1", "any"]


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error})") from error
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Renaming(_Strict):
    """One step from a name in the release to a name of the stack; `to` null leaves the tensor out.

    `experts` and `schemes` name the expert dtypes and the schemes with which the step is taken; null: with all.
    """

    pattern: Pattern
    to: str | None
    experts: tuple[str, ...] | None = None
    schemes: tuple[Scheme, ...] | None = None


class Home(_Strict):
    """A module that is filled a second time from the tensors of `modules`, one part of it a stage."""

    modules: Pattern
    name: str


class Fused(_Strict):
    """A module that the stack makes of several. Names are ends of the stack's names, `parts` after the renaming."""

    into: str
    parts: tuple[str, ...] = Field(min_length=2)
    when: Environment = Field(default_factory=dict)


class HeldParameter(_Strict):
    """A parameter of a module: dtype, shape, what it holds when nothing is loaded, and what it makes of each dtype."""

    dtype: Dtype
    shape: tuple[Size, Size]
    initial: str
    reads: dict[Dtype, Reading]


class Experts(_Strict):
    """The methods of routed experts and of linears with one expert dtype; or why the stack refuses that dtype."""

    experts: str | None = None
    linears: str | None = None
    refused: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Experts:
        if (self.refused is None) != (self.experts is not None and self.linears is not None):
            raise ValueError("an expert dtype has the methods of experts and linears, or it is refused with a reason")
        return self


class SchemeRules(_Strict):
    """What a stack makes of one scheme.

    Attributes:
        unknown: why nobody can say; the rest is empty then.
        expert_dtype: whether the dtype of routed experts is taken from config.json or from the headers.
        missing: the dtype that is assumed where config.json names none.
        experts: methods by expert dtype.
        kinds: methods by kind of quantisation (int8-channel), or by the word in the description of a ModelSlim folder.
        ignore: how names of modules in lists are compared with a module.
    """

    unknown: str | None = None
    expert_dtype: Literal["config", "headers"] | None = None
    missing: str | None = None
    experts: dict[str, Experts] = Field(default_factory=dict)
    kinds: dict[str, str] = Field(default_factory=dict)
    ignore: Literal["exact", "prefix"] = "exact"


class Dropped(_Strict):
    """Parameters of `modules` other than `keeps` are left out with a warning."""

    modules: Pattern
    keeps: tuple[str, ...]
    why: str
    when: Environment = Field(default_factory=dict)


class Refused(_Strict):
    """The stack ends in an error when one of `modules` is held by one of `methods`."""

    modules: Pattern
    methods: tuple[str, ...]
    why: str
    mark: Mark
    schemes: tuple[Scheme, ...] | None = None
    when: Environment = Field(default_factory=dict)


class Noted(_Strict):
    """What is worth knowing of `modules` that a release stores as `stored`; `dspark`: in a model with DSpark only."""

    modules: Pattern
    stored: Dtype
    dspark: bool
    why: str


class PlainWhen(_Strict):
    """Modules that are held plain while a switch has a value."""

    modules: Pattern
    when: Environment


class Needed(_Strict):
    """A key of config.json that must have a value."""

    key: str
    value: str
    why: str


class Override(_Strict):
    """A launch flag that sets keys of config.json."""

    flag: str
    sets: dict[str, str]


class Unread(_Strict):
    """Names in a release of which nobody has read what the stack makes of them."""

    names: Pattern
    why: str


class Switch(_Strict):
    """An environment variable that changes rules."""

    default: str
    other: str


class Loader(_Strict):
    """The loading rules of a stack; `chips/loaders.yaml` says at its head what each key means."""

    id: str
    mark: Mark
    sources: tuple[str, ...] = Field(min_length=1)
    unknown_tensor: Literal["refused", "warning"]
    unfilled: Literal["silent", "warning"]
    description: str | None
    names: tuple[Renaming, ...]
    names_after: tuple[Renaming, ...] = ()
    draft_modules: str
    dspark_modules: tuple[Renaming, ...] = ()
    dspark_homes: tuple[Home, ...] = ()
    dspark_lists: Literal["renamed", "as written"] = "renamed"
    expert_lookup: tuple[str, ...] = Field(min_length=1)
    copies: tuple[Pattern, ...] = ()
    fused: tuple[Fused, ...]
    plain: tuple[Pattern, ...]
    plain_when: tuple[PlainWhen, ...] = ()
    as_stored: tuple[Pattern, ...] = ()
    schemes: dict[Scheme, SchemeRules]
    methods: dict[str, dict[str, HeldParameter]]
    drops: tuple[Dropped, ...]
    refuses: tuple[Refused, ...]
    notes: tuple[Noted, ...] = ()
    switches: dict[str, Switch]
    overrides: tuple[Override, ...] = ()
    fills_part_of_experts: bool = False
    needs: tuple[Needed, ...] = ()
    without_ue8m0: str | None = None
    unread: Unread | None = None

    @cached_property
    def environment(self) -> Environment:
        """The switches with their defaults."""
        return {name: switch.default for name, switch in self.switches.items()}

    @model_validator(mode="after")
    def _names_what_there_is(self) -> Loader:
        named = {
            method
            for scheme in self.schemes.values()
            for method in [
                *scheme.kinds.values(),
                *(method for kind in scheme.experts.values() for method in (kind.experts, kind.linears) if method),
            ]
        }
        if missing := sorted(named - {"plain", *self.methods}):
            raise ValueError(f"methods that are not described: {missing}")
        conditions: list[Fused | Dropped | Refused | PlainWhen] = [
            *self.fused,
            *self.drops,
            *self.refuses,
            *self.plain_when,
        ]
        switches = {name for rule in conditions for name in rule.when}
        if unknown := sorted(switches - set(self.switches)):
            raise ValueError(f"conditions on switches that are not listed: {unknown}")
        return self


def parse_loaders(text: str) -> dict[str, Loader]:
    """Read a table of loaders, by id; a loader with a base takes over what it does not say itself.

    Raises:
        ValueError: a row breaks the schema, has a base that is not above it, or cites a source that is not listed.
    """
    table = parse_yaml(text)
    rows: dict[str, dict[str, Any]] = {}
    for name, row in table["loaders"].items():
        base = row.pop("base", None)
        if base is not None and base not in rows:
            raise ValueError(f"{name}: its base {base!r} is not above it")
        inherited = rows.get(base, {})
        rows[name] = {**inherited, **row, "methods": {**inherited.get("methods", {}), **row.get("methods", {})}}
    cited = {source for row in rows.values() for source in row["sources"]}
    if cited != set(table["sources"]):
        raise ValueError(f"cited but not listed, or listed but not cited: {sorted(cited ^ set(table['sources']))}")
    return {name: Loader.model_validate({"id": name, **row}) for name, row in rows.items()}


@cache
def load_loaders() -> dict[str, Loader]:
    """The table by id, in its order."""
    return parse_loaders(resources.files("flagrelease.chips").joinpath("loaders.yaml").read_text(encoding="utf-8"))
