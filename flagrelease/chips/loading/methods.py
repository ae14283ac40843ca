"""How a stack will hold each module of a release: by its rules, config.json and the description, before any tensor."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flagrelease.chips.loading.described import PLAIN, Described, RefusedByStackError, UnknownRulesError
from flagrelease.chips.loading.release import Release, by_skeleton
from flagrelease.chips.loading.rules import Environment, Loader, Renaming, Scheme, SchemeRules
from flagrelease.model.tensors import Storage

_EXPERT = re.compile(r"^(?P<layer>.*\.experts)\.\d+\.w[123]$")
_SCHEMES: dict[str, Scheme] = {
    "fp8": "fp8",
    "deepseek_v4_fp8": "fp8",
    "compressed-tensors": "compressed-tensors",
}


@dataclass(frozen=True)
class Holding:
    """What a stack makes of a release before it sees a tensor.

    Attributes:
        scheme: by config.json or the description.
        rename: the stack's name for a name in the release; null for one that it leaves out.
        methods: of each module, by its name in the release.
        homes: the second module that is filled from a module's tensors: its name in the stack and its method.
    """

    scheme: Scheme
    rename: Callable[[str], str | None]
    methods: Mapping[str, str]
    homes: Mapping[str, tuple[str, str]]


def hold(loader: Loader, release: Release, environment: Environment) -> Holding:
    """Decide how each module of `release` is held.

    Raises:
        RefusedByStackError: the stack ends in an error that no tensor is needed for.
        UnknownRulesError: see there.
    """
    if loader.unread and any(re.search(loader.unread.names, name) for name in release.tensors):
        raise UnknownRulesError(loader.unread.why)
    for needed in loader.needs:
        if (given := release.config.get(needed.key)) != needed.value:
            raise RefusedByStackError(f"config.json: {needed.key} is {given!r}, not {needed.value!r}: {needed.why}")
    scheme = _scheme(loader, release)
    rules = loader.schemes.get(scheme)
    if rules is None:
        raise RefusedByStackError(f"it has no {scheme} form of DeepSeek-V4" if scheme != "none" else "no plain form")
    if rules.unknown:
        raise UnknownRulesError(f"{scheme}: {rules.unknown}")
    experts_as = _expert_dtype(rules, release) if scheme == "fp8" else None
    rename = _renamer(loader, scheme, experts_as)
    modules = [
        spec.name.removesuffix(".weight") for spec in release.specs if spec.storage in (Storage.LINEAR, Storage.EXPERT)
    ]
    ask = Described(loader, release, rename, rules)
    if scheme == "fp8":
        chosen = ask.fp8(experts_as or "")
    elif scheme == "compressed-tensors":
        chosen = ask.compressed_tensors()
    elif scheme == "modelslim":
        chosen = ask.modelslim()
    else:
        chosen = _always_plain
    methods: dict[str, str] = {}
    layers: dict[str, str] = {}
    for module in modules:
        expert = _EXPERT.match(module)
        if expert is None:
            methods[module] = _exception(loader, release, environment, module) or chosen(module)
        else:
            layer = expert["layer"]
            if layer not in layers:
                layers[layer] = chosen(module)
            methods[module] = layers[layer]
    _same_in_fused(loader, environment, methods, rename)
    homes = {
        module: (home.name, chosen(home.name))
        for home in (loader.dspark_homes if release.model.is_dspark else ())
        for module in methods
        if re.search(home.modules, module)
    }
    return Holding(scheme, rename, methods, homes)


def _always_plain(module: str) -> str:
    return PLAIN


def _scheme(loader: Loader, release: Release) -> Scheme:
    declared = release.quantization.get("quant_method")
    if loader.description is not None and release.description is not None:
        if declared is not None:
            raise RefusedByStackError(
                f"config.json names the quantisation {declared!r}, which contradicts {loader.description}: a ModelSlim "
                f"folder has no quantization_config"
            )
        return "modelslim"
    if declared is None:
        return "none"
    if release.quantization.get("moe_quant_algo"):
        raise UnknownRulesError("experts of NVFP4 are no form of ours, and their rules are not written down here")
    if declared not in _SCHEMES:
        raise RefusedByStackError(f"quantization_config has the quant_method {declared!r}")
    return _SCHEMES[declared]


def _expert_dtype(rules: SchemeRules, release: Release) -> str:
    if rules.expert_dtype == "headers":
        spec = next(spec for spec in release.specs if spec.storage is Storage.EXPERT)
        dtype = release.dtype_of(spec.name)
        by_header = {"I8": "fp4", "U8": "fp4", "F4": "fp4", "F8_E4M3": "fp8"}
        if dtype not in by_header:
            raise UnknownRulesError(f"routed experts are {dtype or 'absent'}; it looks for FP4 and FP8")
        found = by_header[dtype]
    else:
        found = str(release.config.get("expert_dtype") or rules.missing)
    if found not in rules.experts:
        raise RefusedByStackError(f"expert_dtype is {found!r}; it knows {', '.join(rules.experts)}")
    if refused := rules.experts[found].refused:
        raise RefusedByStackError(refused)
    return found


def _renamer(loader: Loader, scheme: Scheme, experts_as: str | None) -> Callable[[str], str | None]:
    steps = [
        (re.compile(step.pattern), step.to)
        for step in (*loader.names, *loader.names_after)
        if _holds(step, scheme, experts_as)
    ]

    def rename(name: str) -> str | None:
        for pattern, to in steps:
            if pattern.search(name):
                if to is None:
                    return None
                name = pattern.sub(to, name)
        return name

    return by_skeleton(rename)


def _holds(step: Renaming, scheme: Scheme, experts_as: str | None) -> bool:
    # Without an expert dtype (compressed-tensors removes the key) the stacks take the default names, those of FP4
    return (step.schemes is None or scheme in step.schemes) and (
        step.experts is None or (experts_as or "fp4") in step.experts
    )


def _exception(loader: Loader, release: Release, environment: Environment, module: str) -> str | None:
    """`plain` for a module that is held so whatever config.json says."""
    always = any(re.search(pattern, module) for pattern in loader.plain)
    switched = any(
        re.search(rule.modules, module) and rule.when.items() <= environment.items() for rule in loader.plain_when
    )
    stored = any(re.search(pattern, module) for pattern in loader.as_stored)
    if always or switched or (stored and release.dtype_of(f"{module}.weight") == "BF16"):
        return PLAIN
    return None


def _same_in_fused(
    loader: Loader, environment: Environment, methods: Mapping[str, str], rename: Callable[[str], str | None]
) -> None:
    by_name = {
        (rename(f"{module}.weight") or "").removesuffix(".weight"): method
        for module, method in methods.items()
        if not _EXPERT.match(module)
    }
    for rule in loader.fused:
        if not rule.when.items() <= environment.items():
            continue
        first = rule.parts[0]
        for name in by_name:
            if name.endswith(f".{first}"):
                stem = name.removesuffix(first)
                held = {part: by_name.get(stem + part, PLAIN) for part in rule.parts}
                if len(set(held.values())) > 1:
                    shown = ", ".join(f"{part} {method}" for part, method in held.items())
                    raise RefusedByStackError(f"{stem}{rule.into} is made of parts that are held differently: {shown}")
