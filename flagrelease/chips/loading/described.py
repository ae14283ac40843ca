"""What config.json and the description of a release say of its modules, as a stack asks them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flagrelease.chips.loading.release import Release
from flagrelease.chips.loading.rules import Experts, Loader, SchemeRules
from flagrelease.model.tensors import Storage

PLAIN = "plain"


class RefusedByStackError(Exception):
    """The stack ends in an error on this release, whatever its tensors are."""


class UnknownRulesError(Exception):
    """The stack has the scheme of this release, and nobody has read its rules."""


class Described:
    """The questions to config.json and description, for one stack and one release.

    `fp8`, `compressed_tensors` and `modelslim` each return the function that names the method of a module. Asked for a
    module of routed experts, its answer is that of all experts of the layer.

    Raises:
        RefusedByStackError: in the questions and their answers, where the stack ends in an error.
    """

    def __init__(
        self, loader: Loader, release: Release, rename: Callable[[str], str | None], rules: SchemeRules
    ) -> None:
        """Args: the stack's rules, the release, the stack's renaming, and the rules of the release's scheme."""
        self.loader, self.release, self.rename, self.rules = loader, release, rename, rules
        self.homes = {home.name for home in loader.dspark_homes}
        self.storage = {spec.name.removesuffix(".weight"): spec.storage for spec in release.specs}
        self.storage |= dict.fromkeys(self.homes, Storage.LINEAR)

    def names(self, module: str) -> list[str]:
        """What the stack calls `module` when it looks through a list, for routed experts each projection."""
        if module in self.homes:
            return [module]
        draft = re.match(r"mtp\.(\d+)\.(.*)", module)
        renamed = (self.rename(f"{module}.weight") or module).removesuffix(".weight")
        if draft and self.loader.draft_modules.endswith("layers."):
            number = int(draft[1]) + self.release.model.num_hidden_layers
            renamed = renamed.replace(f"mtp.{draft[1]}.", f"layers.{number}.", 1)
            for step in self.loader.dspark_modules:
                renamed = re.sub(step.pattern, step.to or "", renamed)
        if expert := re.match(r"(.*\.experts)\.\d+\.\w+$", renamed):
            return [f"{expert[1]}.0.{projection}" for projection in self.loader.expert_lookup]
        return [renamed]

    def listed(self, names: Iterable[str]) -> list[str]:
        """Names of a list in config.json as the stack has them; patterns stay as they are."""
        return [name if name.startswith("re:") else self.rename(name) or name for name in names]

    def fp8(self, expert_dtype: str) -> Callable[[str], str]:
        """Of a release with quant_method fp8: by the dtype of its experts and its lists of ignored modules."""
        ways: Experts = self.rules.experts[expert_dtype]
        given = self.release.quantization
        written = list(given.get("ignored_layers") or given.get("modules_to_not_convert") or [])
        lists = {True: set(written), False: set(self.listed(written))}

        def skipped(module: str, name: str, experts: bool) -> bool:
            as_written = self._as_written(module)
            ignored = lists[as_written]
            if self.rules.ignore == "prefix":
                forms = (module, name, name.removeprefix("model."))
                return any(form.startswith(listed) for listed in ignored for form in forms)
            within = experts and any(name in listed for listed in ignored)
            return within or bool(self._forms(name, as_written) & ignored)

        def chosen(module: str) -> str:
            experts = self.storage[module] is Storage.EXPERT
            name = self.names(module)[0]
            if experts:
                name = name.partition(".experts.")[0] + ".experts"
            if skipped(module, name, experts):
                return PLAIN
            return (ways.experts if experts else ways.linears) or PLAIN

        return chosen

    def _as_written(self, module: str) -> bool:
        """Whether the stack reads lists for `module` without its renaming and its fused modules: some do for DSpark."""
        drafted = module.startswith("mtp.") or module in self.homes
        return drafted and self.release.model.is_dspark and self.loader.dspark_lists == "as written"

    def _forms(self, name: str, as_written: bool) -> set[str]:
        """The names under which a module is looked for in a list."""
        fused = self._fused(name)
        return fused if fused and as_written else {name, *fused}

    def _fused(self, name: str) -> set[str]:
        """The names of the fused modules that `name` is a part of."""
        return {
            name.removesuffix(part) + rule.into
            for rule in self.loader.fused
            for part in rule.parts
            if name.endswith(f".{part}")
        }

    def compressed_tensors(self) -> Callable[[str], str]:
        """Of a release of compressed-tensors: by its groups and what it ignores."""
        given = self.release.quantization
        groups = (given.get("config_groups") or {}).values()
        written: list[tuple[list[str], str]] = [(given.get("ignore") or [], PLAIN)]
        written += [(group.get("targets") or [], self._kind(group)) for group in groups]
        lists = {True: written, False: [(self.listed(names), method) for names, method in written]}

        def one(name: str, as_written: bool) -> str:
            forms = self._forms(name, as_written)
            for patterns, method in lists[as_written]:
                if any(_matches(pattern, form) for pattern in patterns for form in forms):
                    return method
            return next((method for patterns, method in lists[as_written][1:] if "Linear" in patterns), PLAIN)

        def chosen(module: str) -> str:
            found = {one(name, self._as_written(module)) for name in self.names(module)}
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
        """Of a ModelSlim folder: by its description, with the stack's test of prefixes."""
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
            if str(kind) not in self.rules.kinds:
                raise RefusedByStackError(f"{weight} is {kind}; it knows {', '.join(self.rules.kinds)}")
            return self.rules.kinds[str(kind)]

        return chosen


def _matches(pattern: str, name: str) -> bool:
    return re.match(pattern[3:], name) is not None if pattern.startswith("re:") else pattern == name
