"""How a stack will hold each module of a release: by its rules, config.json and the description, before any tensor."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flagrelease.chips.loading.release import Release, by_skeleton
from flagrelease.chips.loading.rules import Environment, Experts, Loader, Renaming, Scheme, SchemeRules
from flagrelease.model.v4.inventory import Storage

PLAIN = "plain"
_EXPERT = re.compile(r"^(?P<layer>.*\.experts)\.\d+\.w[123]$")
_SCHEMES: dict[str, Scheme] = {
    "fp8": "fp8",
    "deepseek_v4_fp8": "fp8",
    "compressed-tensors": "compressed-tensors",
}


class RefusedByStackError(Exception):
    """The stack ends in an error on this release, whatever its tensors are."""


class UnknownRulesError(Exception):
    """The stack has the scheme of this release, and nobody has read its rules."""


@dataclass(frozen=True)
class Holding:
    """The scheme, the stack's name for each tensor of the release, and the method of each module by its own name."""

    scheme: Scheme
    rename: Callable[[str], str | None]
    methods: Mapping[str, str]


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
    ask = _Asked(loader, release, rename, rules)
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
    return Holding(scheme, rename, methods)


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


class _Asked:
    """The questions to config.json and description, for one stack and one release."""

    def __init__(
        self, loader: Loader, release: Release, rename: Callable[[str], str | None], rules: SchemeRules
    ) -> None:
        self.loader, self.release, self.rename, self.rules = loader, release, rename, rules
        self.storage = {spec.name.removesuffix(".weight"): spec.storage for spec in release.specs}

    def names(self, module: str) -> list[str]:
        """What the stack calls `module` when it looks through a list, for routed experts each projection."""
        draft = re.match(r"mtp\.(\d+)\.(.*)", module)
        renamed = (self.rename(f"{module}.weight") or module).removesuffix(".weight")
        if draft and self.loader.draft_modules.endswith("layers."):
            number = int(draft[1]) + self.release.model.num_hidden_layers
            renamed = renamed.replace(f"mtp.{draft[1]}.", f"layers.{number}.", 1)
        if expert := re.match(r"(.*\.experts)\.\d+\.\w+$", renamed):
            return [f"{expert[1]}.0.{projection}" for projection in self.loader.expert_lookup]
        return [renamed]

    def listed(self, names: Iterable[str]) -> list[str]:
        """Names of a list in config.json as the stack has them; patterns stay as they are."""
        return [name if name.startswith("re:") else self.rename(name) or name for name in names]

    def fp8(self, expert_dtype: str) -> Callable[[str], str]:
        ways: Experts = self.rules.experts[expert_dtype]
        given = self.release.quantization
        ignored = set(self.listed(given.get("ignored_layers") or given.get("modules_to_not_convert") or []))

        def skipped(module: str, name: str, experts: bool) -> bool:
            if self.rules.ignore == "prefix":
                forms = (module, name, name.removeprefix("model."))
                return any(form.startswith(listed) for listed in ignored for form in forms)
            within = experts and any(name in listed for listed in ignored)
            return within or name in ignored or bool(self._fused(name) & ignored)

        def chosen(module: str) -> str:
            experts = self.storage[module] is Storage.EXPERT
            name = self.names(module)[0]
            if experts:
                name = name.partition(".experts.")[0] + ".experts"
            if skipped(module, name, experts):
                return PLAIN
            return (ways.experts if experts else ways.linears) or PLAIN

        return chosen

    def _fused(self, name: str) -> set[str]:
        """The names of the fused modules that `name` is a part of."""
        return {
            name.removesuffix(part) + rule.into
            for rule in self.loader.fused
            for part in rule.parts
            if name.endswith(f".{part}")
        }

    def compressed_tensors(self) -> Callable[[str], str]:
        given = self.release.quantization
        ignored = self.listed(given.get("ignore") or [])
        groups = [
            (self.listed(group.get("targets") or []), self._kind(group))
            for group in (given.get("config_groups") or {}).values()
        ]

        def matches(name: str, patterns: Iterable[str]) -> bool:
            forms = {name, *self._fused(name)}
            return any(
                any(re.match(pattern[3:], form) for form in forms) if pattern.startswith("re:") else pattern in forms
                for pattern in patterns
            )

        def one(name: str) -> str:
            if matches(name, ignored):
                return PLAIN
            for targets, method in groups:
                if matches(name, targets):
                    return method
            return next((method for targets, method in groups if "Linear" in targets), PLAIN)

        def chosen(module: str) -> str:
            found = {one(name) for name in self.names(module)}
            if len(found) > 1:
                raise RefusedByStackError(f"{module}: the projections of experts have several schemes: {sorted(found)}")
            return found.pop()

        return chosen

    def _kind(self, group: Mapping[str, Any]) -> str:
        weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
        kind = f"{'fp' if weights.get('type') == 'float' else 'int'}{weights.get('num_bits')}-{weights.get('strategy')}"
        if kind not in self.rules.kinds:
            raise RefusedByStackError(f"weights of {kind}; it knows {', '.join(self.rules.kinds)}")
        if weights.get("symmetric") is False:
            raise RefusedByStackError(f"{kind}: weights must be symmetric")
        if (inputs.get("strategy"), inputs.get("dynamic")) != ("token", True):
            raise RefusedByStackError(f"{kind}: activations must be dynamic, with a scale for each token")
        return self.rules.kinds[kind]

    def modelslim(self) -> Callable[[str], str]:
        described = self.release.description or {}
        if "hc_head_fn" not in described:
            raise RefusedByStackError(
                f"{self.loader.description} has no entry hc_head_fn, so it is not taken for DeepSeek-V4's"
            )
        floats = [key for key, value in described.items() if value == "FLOAT" and key.endswith(".weight")]

        def chosen(module: str) -> str:
            weight = f"{module}.weight"
            # The stack asks whether any key that begins with the module's name is FLOAT; its module of experts is one
            whole = module.partition(".experts.")[0] + ".experts" if ".ffn.experts." in module else module
            if any(key.startswith(whole) for key in floats):
                return PLAIN
            kind = described.get(weight)
            if kind is None:
                raise RefusedByStackError(f"{self.loader.description} has no entry {weight}")
            if kind not in self.rules.kinds:
                raise RefusedByStackError(f"{weight} is {kind}; it knows {', '.join(self.rules.kinds)}")
            return self.rules.kinds[kind]

        return chosen
