"""A recipe: which checkpoint becomes which releases. YAML in, a strict frozen `Recipe` out.

A recipe says what a release is and travels with it in the manifest. How the work is done (workers, device) is not in
it, and nothing that changes a byte is outside it. Its `validation` says how a release is judged: that changes no byte,
so it goes into the validation's report and not into the manifest.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from flagrelease.chips.table import get_chip
from flagrelease.errors import UsageError, first_problem
from flagrelease.publish.hubs.registry import known_hub
from flagrelease.records.chip_releases import (
    LONGEST_NAME,
    OWNER_PATTERN,
    ChipRelease,
    ReleaseSpec,
    choose,
    require_served,
)
from flagrelease.records.convert_spec import ConvertSpec
from flagrelease.records.rules import ValidationRules


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceSpec(_Strict):
    """Where the checkpoint is published, and where it lies on this machine.

    Attributes:
        repo: OWNER/NAME on the hub.
        revision: the commit that is released.
        license: as the card names it, for example MIT.
        path: the folder on this machine, relative to the recipe, where `--checkpoint` does not name one.
    """

    repo: str
    revision: str
    license: str
    path: str | None = None


def _as_list(value: Any) -> Any:
    """One release may be written without the list around it."""
    return [value] if isinstance(value, dict) else value


ReleaseSpecs = Annotated[tuple[ReleaseSpec, ...], BeforeValidator(_as_list), Field(min_length=1)]


class Recipe(_Strict):
    """One model and the chips it is released for.

    Attributes:
        schema_version: of the form of recipes: 1.
        model: the name that repositories and cards give it.
        owner: of the repositories, in place of FlagRelease.
        languages: that it was made for (ISO 639), which cards claim.
        source: the checkpoint.
        convert: what changes a byte of all releases.
        hubs: where the cards say that it is published.
        releases: chip -> its releases, or one release without the list around it. No two of a chip have the same format
            and layout: one release serves several stacks.
        validation: how a release is judged.
    """

    schema_version: Literal[1]
    model: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    owner: str | None = Field(default=None, pattern=f"^{OWNER_PATTERN}$")
    languages: tuple[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")], ...] = ()
    source: SourceSpec
    convert: ConvertSpec = ConvertSpec()
    hubs: tuple[Annotated[str, AfterValidator(known_hub)], ...] = ()
    releases: dict[str, ReleaseSpecs] = Field(min_length=1)
    validation: ValidationRules = ValidationRules()

    @model_serializer(mode="wrap")
    def _without_what_is_not_said(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Manifests hold the recipe: a key that came later must not change those of recipes without it."""
        document: dict[str, Any] = dump(self)
        return document if self.owner is not None else {key: document[key] for key in document if key != "owner"}

    def document(self) -> dict[str, Any]:
        """The recipe as manifests and statements hold it.

        It leaves out how a release is judged, which changes no byte, and the source's folder on this machine.
        """
        document = self.model_dump(mode="json", exclude={"validation"})
        del document["source"]["path"]
        return document

    @field_validator("releases")
    @classmethod
    def _known_chips(cls, releases: dict[str, tuple[ReleaseSpec, ...]]) -> dict[str, tuple[ReleaseSpec, ...]]:
        for name, specs in releases.items():
            try:
                chip = get_chip(name)
            except UsageError as error:
                raise ValueError(str(error)) from error
            if chip.id != name:
                raise ValueError(f"{name!r} is an alias; write {chip.id!r}")
            names = [spec.name for spec in specs]
            if twice := sorted({one for one in names if names.count(one) > 1}):
                raise ValueError(f"{name} has {twice[0]} twice; one release serves every stack that loads it")
            for spec in specs:
                require_served(chip, spec)
        return releases

    @model_validator(mode="after")
    def _repositories_can_be_made(self) -> Recipe:
        taken: dict[str, str] = {}
        for one in self.chosen():
            named = f"{one.chip.id}:{one.spec.name}"
            if (other := taken.setdefault(one.repo, named)) != named:
                raise ValueError(f"{other} and {named} would both be published in {one.repo}")
            name = one.repo.partition("/")[2]
            if len(name) > LONGEST_NAME or "--" in name or ".." in name:
                raise ValueError(
                    f"model: its repository for {one.chip.id} would be {name}; hubs take {LONGEST_NAME} characters "
                    "and neither -- nor .. in them"
                )
        return self

    def chosen(self, choices: Iterable[str] = ()) -> tuple[ChipRelease, ...]:
        """The releases that `--chip` names, as `CHIP` or `CHIP:FORMAT-LAYOUT`; all of them without a choice.

        Raises:
            UsageError: no such chip or release.
        """
        return choose(self.model, self.releases, choices, self.owner)


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        UsageError: not a file, not YAML, a key twice, an unknown key or chip, a value of the wrong form. What YAML
            itself can locate is named with its line.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}: line {line}: not UTF-8 text (byte 0x{error.object[error.start]:02x})") from error
    return parse_recipe(text, str(path))


def parse_recipe(text: str, origin: str) -> Recipe:
    """Check the text of a recipe; `origin` names it in errors.

    Raises:
        UsageError: as `read_recipe`.
    """
    try:
        document = yaml.load(text, Loader=_StrictLoader)
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise UsageError(f"{origin}: line {line}: the character {chr(error.character)!r} is not allowed") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f"line {mark.line + 1}: "
        raise UsageError(f"{origin}: {where}not a valid recipe: {error.problem}") from error
    except RecursionError:
        raise UsageError(f"{origin}: nested too deeply") from None
    except ValueError as error:  # e.g. a date that no calendar has
        raise UsageError(f"{origin}: not valid YAML ({error})") from error
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise UsageError(f"{origin}: {first_problem(error, 'recipe')}") from error


class _StrictLoader(yaml.SafeLoader):
    """YAML without what surprises: a key twice (YAML takes the last), keys that are no text, anchors and merges."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.constructor.ConstructorError(
                None, None, "anchors and aliases are not allowed; write the value out", event.start_mark
            )
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                kind = "a list" if isinstance(key_node, yaml.SequenceNode) else "a mapping"
                raise yaml.constructor.ConstructorError(
                    None, None, f"a key is {kind}; keys are names", key_node.start_mark
                )
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value!r} appears twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)
