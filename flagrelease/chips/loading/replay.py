"""A stack's loader replayed on the headers of a release: which parameters would be filled, and with what.

No byte of a tensor is read, and no stack is installed. What only the values can tell (whether scales are powers of two)
is a note.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from flagrelease.chips.loading.described import PLAIN, RefusedByStackError, UnknownRulesError
from flagrelease.chips.loading.methods import Holding, hold
from flagrelease.chips.loading.release import Release
from flagrelease.chips.loading.rules import Dtype, Environment, HeldParameter, Loader, Reading, Size
from flagrelease.model.tensors import Storage, TensorSpec
from flagrelease.shard.index import INDEX_NAME

Kind = Literal["unfilled", "misread", "refused", "unknown", "note"]
_NOTES: dict[Reading, str] = {
    "encoded": "is rounded up to a power of two: exact only if every value is one",
    "exponent": "only its exponent is used: right only if every value is a power of two",
    "rounded": "is rounded to the parameter's dtype: exact only if every value fits",
}
_ANYTHING = -1
# Plain tensors that a stack reads as numbers without loss, beside those of the parameter's own dtype
_WIDENED = {"F32": {"BF16", "F16"}, "I64": {"I32"}}
_NARROWED = {"BF16": {"F32", "F16"}}


@dataclass(frozen=True)
class Finding:
    """One parameter that would not hold what it should, or might not.

    Attributes:
        kind: `unfilled` keeps what it held, `misread` holds other numbers, `refused` ends the load in an error,
            `unknown` cannot be said, `note` asks for a look at the values.
        parameter: the stack's name of it; empty where the release as a whole is meant.
        tensor: its tensor in the release, if there is one.
        words: what happens.
    """

    kind: Kind
    parameter: str
    tensor: str | None
    words: str

    def __str__(self) -> str:
        """Where and what, as a sentence."""
        where = self.tensor or self.parameter
        return f"{where}: {self.words}" if where else self.words


@dataclass(frozen=True)
class Replay:
    """What came of a replay: parameters there are, those that are filled once with what they should hold, the rest."""

    parameters: int
    filled: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A parameter as the stack builds it; `experts`: it is a part of the module of routed experts."""

    dtype: str
    shape: tuple[int, ...]
    initial: str
    reads: Mapping[str, Reading] | Mapping[Dtype, Reading]
    experts: bool


def replay(loader: Loader, release: Release, environment: Environment | None = None) -> Replay:
    """Load `release` by the rules of `loader`, on headers alone.

    Args:
        loader: of the stack.
        release: the release.
        environment: values of the loader's switches; its defaults otherwise.

    Raises:
        CheckpointError: config.json is not one of DeepSeek-V4.
    """
    switches = {**loader.environment, **(environment or {})}
    try:
        holding = hold(loader, release, switches)
    except RefusedByStackError as error:
        return Replay(0, 0, (Finding("refused", "", None, str(error)),))
    except UnknownRulesError as error:
        return Replay(0, 0, (Finding("unknown", "", None, str(error)),))
    findings: list[Finding] = list(_refused_methods(loader, holding, switches))
    findings += _notes(loader, release, holding)
    wanted = _parameters(loader, release, holding)
    given = _given(loader, release, holding, switches, wanted, findings)
    filled = 0
    if holding.scheme == "fp8" and loader.without_ue8m0 and release.quantization.get("scale_fmt") != "ue8m0":
        words = f"config.json: quantization_config has no scale_fmt ue8m0: {loader.without_ue8m0}"
        findings.append(Finding("note", "", None, words))
    strict = holding.scheme == "none" and loader.unfilled == "silent"
    for name, parameter in wanted.items():
        found = given.get(name)
        if found is None:
            findings.append(_unfilled(name, parameter, loader, strict))
        else:
            finding = _read(name, parameter, found, release, loader)
            if finding is not None:
                findings.append(finding)
            filled += finding is None or finding.kind == "note"
    return Replay(len(wanted), filled, tuple(findings))


def _refused_methods(loader: Loader, holding: Holding, switches: Environment) -> Iterator[Finding]:
    for rule in loader.refuses:
        if not rule.when.items() <= switches.items() or (rule.schemes and holding.scheme not in rule.schemes):
            continue
        for module, method in holding.methods.items():
            if method in rule.methods and re.search(rule.modules, module):
                yield Finding("refused", module, f"{module}.weight", f"{method}: {rule.why}")


def _notes(loader: Loader, release: Release, holding: Holding) -> Iterator[Finding]:
    for rule in loader.notes:
        for module in holding.methods if release.model.is_dspark or not rule.dspark else ():
            if re.search(rule.modules, module) and release.dtype_of(f"{module}.weight") == rule.stored:
                yield Finding("note", module, f"{module}.weight", rule.why)


def _parameters(loader: Loader, release: Release, holding: Holding) -> dict[str, _Wanted]:
    wanted: dict[str, _Wanted] = {}
    for spec in release.specs:
        renamed = holding.rename(spec.name)
        if renamed is None:
            continue
        method = holding.methods.get(spec.name.removesuffix(".weight"), PLAIN)
        if method == PLAIN:
            plain = spec.storage.value.plain
            wanted[renamed] = _Wanted(plain, spec.shape, "whatever memory held", _plain_reads(plain), False)
            continue
        stem = renamed.removesuffix("weight")
        for suffix, parameter in loader.methods[method].items():
            wanted[stem + suffix] = _wanted(spec, parameter, release.block)
    for module, (_, method) in holding.homes.items():
        spec = next(spec for spec in release.specs if spec.name == f"{module}.weight")
        held = {name: _wanted(spec, one, release.block) for name, one in loader.methods.get(method, {}).items()}
        if not held:
            held = {"weight": _Wanted("BF16", spec.shape, "whatever memory held", _plain_reads("BF16"), False)}
        wanted |= {_in_home(holding, module, suffix): parameter for suffix, parameter in held.items()}
    return wanted


def _in_home(holding: Holding, module: str, suffix: str) -> str:
    """The name of a part of a second home: of the parameter `suffix`, for the stage of `module`."""
    return f"{holding.homes[module][0]}.{suffix}[{module.split('.')[1]}]"


def _plain_reads(dtype: str) -> dict[str, Reading]:
    reads: dict[str, Reading] = dict.fromkeys({dtype, *_WIDENED.get(dtype, ())}, "value")
    return reads | dict.fromkeys(_NARROWED.get(dtype, ()), "rounded")


def _wanted(spec: TensorSpec, parameter: HeldParameter, block: tuple[int, int]) -> _Wanted:
    shape = tuple(_size(size, spec.shape, block) for size in parameter.shape)
    experts = spec.storage is Storage.EXPERT
    return _Wanted(parameter.dtype, shape, parameter.initial, parameter.reads, experts)


def _size(size: Size, shape: tuple[int, ...], block: tuple[int, int]) -> int:
    rows, columns = shape
    sizes: dict[Size, int] = {
        "o": rows, "o/2": rows // 2, "o/block": -(-rows // block[0]), "i": columns, "i/2": columns // 2,
        "i/32": columns // 32, "i/block": -(-columns // block[1]), "1": 1, "any": _ANYTHING,
    }  # fmt: skip
    return sizes[size]


def _given(
    loader: Loader,
    release: Release,
    holding: Holding,
    switches: Environment,
    wanted: Mapping[str, _Wanted],
    findings: list[Finding],
) -> dict[str, str]:
    """The tensor of each parameter. What goes nowhere, or where another has been, is added to `findings`."""
    if loader.description is not None and release.description is not None and INDEX_NAME in release.files:
        words = f"{INDEX_NAME} is in the folder, so the loader leaves out every file that it does not name"
        findings.append(Finding("unfilled", "", None, words))
        return {}
    drops = [(re.compile(rule.modules), rule) for rule in loader.drops if rule.when.items() <= switches.items()]
    copies = [] if release.model.is_dspark else [re.compile(pattern) for pattern in loader.copies]
    given: dict[str, str] = {}
    for tensor in release.tensors:
        if any(pattern.search(tensor) for pattern in copies):
            continue
        module, _, suffix = tensor.rpartition(".")
        name = holding.rename(tensor)
        if name is None:
            continue
        kept = name.rpartition(".")[2]
        dropped = next((rule for pattern, rule in drops if kept not in rule.keeps and pattern.search(module)), None)
        if dropped is not None:
            findings.append(Finding("unfilled", name, tensor, dropped.why))
            continue
        if module in holding.homes:
            again = _in_home(holding, module, kept)
            if again in wanted:
                given[again] = tensor
            else:
                findings.append(_stranger(loader, again, tensor, suffix))
        if name not in wanted:
            findings.append(_stranger(loader, name, tensor, suffix))
        elif name in given:
            findings.append(Finding("misread", name, tensor, f"{given[name]} fills the same parameter"))
        else:
            given[name] = tensor
    return given


def _stranger(loader: Loader, name: str, tensor: str, suffix: str) -> Finding:
    if loader.unknown_tensor == "refused":
        return Finding("refused", name, tensor, f"the stack has no parameter {name} (KeyError)")
    kind: Kind = "misread" if "scale" in suffix or "offset" in suffix else "unfilled"
    return Finding(kind, name, tensor, f"the stack has no parameter {name}, and leaves the tensor out with a warning")


def _unfilled(name: str, parameter: _Wanted, loader: Loader, strict: bool) -> Finding:
    if strict:
        return Finding("refused", name, None, "no tensor of the release fills it, which is checked in a plain model")
    how = "without a word" if loader.unfilled == "silent" else "with a warning"
    return Finding("unfilled", name, None, f"no tensor of the release fills it; it keeps {parameter.initial} {how}")


def _read(name: str, parameter: _Wanted, tensor: str, release: Release, loader: Loader) -> Finding | None:
    dtype, shape = release.tensors[tensor]
    if not all(want in (have, _ANYTHING) for want, have in zip(parameter.shape, shape, strict=False)) or len(
        parameter.shape
    ) != len(shape):
        smaller = len(shape) == len(parameter.shape) and all(
            have <= want for want, have in zip(parameter.shape, shape, strict=True)
        )
        sizes = f"{dtype} {list(shape)} goes into {parameter.dtype} {list(parameter.shape)}"
        if smaller and parameter.experts and loader.fills_part_of_experts:
            return Finding("misread", name, tensor, f"{sizes} and fills a part of it, without a word")
        return Finding("refused", name, tensor, f"{sizes}: shapes differ")
    reading = next((how for read, how in parameter.reads.items() if read == dtype), None)
    if reading is None:
        return Finding("misread", name, tensor, f"the numbers of {dtype} are copied into {parameter.dtype}")
    if reading == "byte value":
        return Finding(
            "misread",
            name,
            tensor,
            f"the bytes of {dtype} are copied as numbers into {parameter.dtype}, without a word",
        )
    if reading in _NOTES:
        return Finding("note", name, tensor, f"{dtype} {_NOTES[reading]}")
    return None
