"""The chip table, read from `chips.yaml`: what is known of the eight platforms, and how well. A chip is data."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from flagrelease.errors import UsageError
from flagrelease.plain_yaml import parse_yaml
from flagrelease.publish.hubs.registry import known_hub

ReleaseDtype = Literal["bf16", "fp8"]
Count = Annotated[int, Field(gt=0, strict=True)]
# One `docker run` option as one word, so that a list of them can be joined, quoted or taken apart again.
Flag = Annotated[str, StringConstraints(pattern=r"^--[a-z-]+(=\S+)?$")]
Reason = Annotated[str, StringConstraints(pattern=r"^(unknown|none): \S")]
# Fields that are claims about the world; each needs evidence. The rest are names, prose, or what the claims rest on.
CLAIMS = (
    "products", "torch_device", "torch_module", "graph_class", "dist_backend", "dist_library", "visible_devices", "smi",
    "fp8", "fp4", "release_dtype", "host_arch", "container", "stacks", "release_stack", "published",
)  # fmt: skip


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CardProduct(_Strict):
    """One product of a platform; the memory is that of one card, as sold."""

    name: str
    memory_gib: Count
    cards_per_node: Count


class VisibleDevices(_Strict):
    """Environment variables that choose devices: for a process, and for the vendor's container runtime."""

    process: str
    container: str | None


class Toolkit(_Strict):
    """The vendor's container runtime: `command` runs in place of docker, `flags` ask for the cards."""

    command: str
    prerequisite: str
    flags: tuple[Flag, ...]


class Container(_Strict):
    """How a container gets the cards: by the vendor's runtime, or `raw_flags` without it; `common_flags` go with both.

    {card} and {cards} in a flag stand for one card and all cards of a node; `Chip.docker_flags` fills them in.
    """

    toolkit: Toolkit | None
    raw_flags: tuple[Flag, ...]
    common_flags: tuple[Flag, ...]
    base_image: str | None


class Stack(_Strict):
    """Versions that FlagOS validated together on the platform."""

    driver: str | None
    sdk: str
    python: str
    torch: str
    triton: str
    flagtree: str | None


class ReleaseStack(_Strict):
    """Versions that flag_gems 5.0.2 asks for, which the published DeepSeek-V4 releases use."""

    torch: str
    flagtree: str


class PublishedModel(_Strict):
    """One release that FlagOS made by hand. Its repository, FlagRelease/MODEL-CHIP-FlagOS, is on each of `hubs`."""

    hubs: tuple[Annotated[str, AfterValidator(known_hub)], ...] = Field(min_length=1)
    dtype: ReleaseDtype | None
    mp: tuple[Count, ...] | None
    nodes: Count | None
    image: str | None


class Published(_Strict):
    """The DeepSeek-V4 releases there are already."""

    flash: PublishedModel
    pro: PublishedModel | None


class Evidence(_Strict):
    """What fields rest on: `verified` was read in the source, `stated` is somebody's word, `inferred` is concluded."""

    mark: Literal["verified", "stated", "inferred"]
    sources: tuple[str, ...] = Field(min_length=1)
    fields: tuple[str, ...] = Field(min_length=1)


class Chip(_Strict):
    """One platform.

    `graph_class` is what its torch module calls the class that records work and replays it. `fp8_from` is the compute
    capability from which on its devices have FP8, empty where they all are alike. `why_null` maps each field
    that is null (nested ones dotted) to "unknown: ..." or "none: ...".
    """

    id: str
    vendor: str
    products: tuple[CardProduct, ...] = Field(min_length=1)
    other_products: tuple[str, ...]
    aliases: tuple[str, ...]
    torch_device: str
    torch_module: str | None
    graph_class: str | None
    dist_backend: str
    dist_library: str
    visible_devices: VisibleDevices
    smi: str
    fp8: bool | None
    fp8_from: tuple[()] | tuple[int, int] = ()
    fp4: bool
    release_dtype: ReleaseDtype
    release_reason: str
    host_arch: Literal["x86_64", "aarch64"]
    container: Container
    stacks: tuple[Stack, ...] = Field(min_length=1)
    release_stack: ReleaseStack | None
    published: Published
    notes: tuple[str, ...]
    evidence: tuple[Evidence, ...]
    why_null: dict[str, Reason]

    @property
    def memory_gib(self) -> int:
        """Memory of a card of the product that plans are made for."""
        return self.products[0].memory_gib

    @property
    def cards_per_node(self) -> int:
        """Cards a node of that product."""
        return self.products[0].cards_per_node

    def older_than_fp8(self, capability: tuple[int, int] | None) -> bool:
        """Whether a device of the chip, of this compute capability (None: it has none), is too old to have FP8."""
        return bool(self.fp8_from) and capability is not None and capability < self.fp8_from

    def docker_flags(self, access: Literal["toolkit", "raw"]) -> tuple[str, ...]:
        """`docker run` flags that give a container all cards of a node, with the vendor's container runtime or without.

        Raises:
            UsageError: no container runtime of the vendor is known.
        """
        toolkit, flags = self.container.toolkit, self.container.raw_flags
        if access == "toolkit":
            if toolkit is None:
                raise UsageError(f"{self.id}: no toolkit flags ({self.why_null['container.toolkit']})")
            flags = toolkit.flags
        cards = [str(card) for card in range(self.cards_per_node)]
        filled = [flag.replace("{cards}", ",".join(cards)) for flag in flags]
        once_a_card = [
            [flag.replace("{card}", card) for card in cards] if "{card}" in flag else [flag] for flag in filled
        ]
        return (*(flag for repeated in once_a_card for flag in repeated), *self.container.common_flags)

    @model_validator(mode="after")
    def _every_null_has_a_reason(self) -> Chip:
        nulls, reasons = set(_nulls(self.model_dump(exclude={"why_null"}))), set(self.why_null)
        if nulls != reasons:
            raise ValueError(
                f"null without a reason: {sorted(nulls - reasons)}; reason beside a value: {sorted(reasons - nulls)}"
            )
        return self

    @model_validator(mode="after")
    def _every_claim_has_evidence(self) -> Chip:
        document = self.model_dump()
        fields = [field for evidence in self.evidence for field in evidence.fields]
        wrong = sorted(field for field in fields if not _holds(document, field))
        bare = [claim for claim in CLAIMS if claim not in {field.split(".")[0] for field in fields}]
        if wrong or bare:
            raise ValueError(f"evidence for no field of a chip: {wrong}; claims without evidence: {bare}")
        return self


def _nulls(value: Any, path: str = "") -> Iterator[str]:
    if value is None:
        yield path
    elif isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _nulls(inner, f"{path}.{key}" if path else str(key))


def _holds(document: dict[str, Any], field: str) -> bool:
    head, _, rest = field.partition(".")
    return head in document and (not rest or (isinstance(document[head], dict) and _holds(document[head], rest)))


def parse_chips(text: str) -> dict[str, Chip]:
    """Read a chip table, by id.

    Raises:
        ValueError: a row breaks the schema, a name is claimed by two rows, an evidence names no source of the table, or
            chips that share a torch device differ in the module, graph class or backend it needs.
    """
    table = parse_yaml(text)
    chips = {name: Chip.model_validate({"id": name, **row}) for name, row in table["chips"].items()}
    names = [name for chip in chips.values() for name in (chip.id, *chip.aliases)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"names claimed twice: {', '.join(twice)}")
    cited = {source for chip in chips.values() for evidence in chip.evidence for source in evidence.sources}
    if cited != set(table["sources"]):
        raise ValueError(f"cited but not listed, or listed but not cited: {sorted(cited ^ set(table['sources']))}")
    for kind in {chip.torch_device for chip in chips.values()}:
        alike = [chip for chip in chips.values() if chip.torch_device == kind]
        seams = {(chip.torch_module, chip.graph_class, chip.dist_backend) for chip in alike}
        if len(seams) > 1:
            raise ValueError(
                f"chips with torch device {kind!r} differ in torch module, graph class or backend: "
                f"{sorted(map(str, seams))}"
            )
    return chips


@cache
def load_chips() -> dict[str, Chip]:
    """The table by id, in its order."""
    return parse_chips(resources.files("flagrelease.chips").joinpath("chips.yaml").read_text(encoding="utf-8"))


def get_chip(name: str) -> Chip:
    """The chip of this id or alias.

    Raises:
        UsageError: no such chip; the message has those there are, and the nearest name.
    """
    chips = load_chips()
    by_name = {alias: chip for chip in chips.values() for alias in (chip.id, *chip.aliases)}
    if name in by_name:
        return by_name[name]
    near = difflib.get_close_matches(name, by_name, n=1)
    hint = f"; did you mean {by_name[near[0]].id!r}?" if near else ""
    raise UsageError(f"chip {name!r} is not in the table ({', '.join(chips)}){hint}")
