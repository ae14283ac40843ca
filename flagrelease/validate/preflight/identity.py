"""Which model the server lists, and how long its prompts and answers may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from flagrelease.validate.endpoint.replies import ServedModel, Unsupported
from flagrelease.validate.preflight.check import PreflightCheck, Server, judged

Listed = Sequence[ServedModel] | Unsupported


def judge_identity(listed: Listed, name: str) -> PreflightCheck:
    """The name is in the list. Nothing shows which weights answer under it."""
    asked, expected = "the list of models", f"a model {name!r}"
    if isinstance(listed, Unsupported):
        return judged(
            "identity", asked, expected, f"no list ({listed.reason})", "fail" if listed.malformed else "not-shown"
        )
    names = [model.id for model in listed]
    came = ", ".join(map(repr, names)) or "no model"
    return judged("identity", asked, expected, came, "pass" if name in names else "fail")


def kind_of(listed: Listed, name: str) -> Server | None:
    """Which kind of server it says that it is: vLLM, SGLang and ours put their name into `owned_by`."""
    owners = () if isinstance(listed, Unsupported) else (model.owned_by for model in listed if model.id == name)
    kinds: tuple[Server, ...] = get_args(Server)
    return next((kind for owner in owners for kind in kinds if owner == kind), None)


def judge_context(listed: Listed, name: str, needed: int, why: str, longest: int) -> PreflightCheck:
    """What the list says of the context; a server that tells nothing may refuse hours later.

    Args:
        listed: the models.
        name: of the one that is asked.
        needed: tokens of the longest prompt and its answer.
        why: what needs them.
        longest: tokens that the model itself can see, by its config.
    """
    asked, expected = "max_model_len in the list of models", f"{needed:,} tokens ({why}) to {longest:,} (config.json)"
    told = [] if isinstance(listed, Unsupported) else [model.context for model in listed if model.id == name]
    context = next((each for each in told if each is not None), None)
    if context is None:
        return judged("context", asked, expected, "not told", "not-shown")
    return judged("context", asked, expected, f"{context:,} tokens", "pass" if needed <= context <= longest else "fail")
