"""The verdict of the pre-flight, from what came. It asks nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flagrelease.records.report import Stage
from flagrelease.records.rules import PreflightRules
from flagrelease.validate.endpoint.replies import ChatReply
from flagrelease.validate.preflight.asking import TOP, PreflightReplies
from flagrelease.validate.preflight.check import CHECKS, PreflightCheck, PreflightFigures, Server
from flagrelease.validate.preflight.ending import judge_ends, judge_markup, judge_stop
from flagrelease.validate.preflight.identity import judge_context, judge_identity, kind_of
from flagrelease.validate.preflight.logprobs import judge_logprobs
from flagrelease.validate.preflight.prompts import judge_efforts, judge_prompts
from flagrelease.validate.preflight.reasoning import judge_no_reasoning, judge_reasoning
from flagrelease.validate.preflight.refusals import judge_refusals
from flagrelease.validate.preflight.sampling import judge_greedy, judge_seeds
from flagrelease.validate.preflight.tools import judge_call, judge_own_call, judge_streamed_call
from flagrelease.validate.preflight.usage import judge_streamed, judge_usage


@dataclass(frozen=True, slots=True)
class Meant:
    """What the server is meant to serve.

    Attributes:
        name: of the model, as the server is asked for it.
        bos: id of the begin token.
        needed: tokens of the longest prompt and answer of the stages behind; `why` says which.
        longest: that the model can see, by its config.
    """

    name: str
    bos: int
    needed: int
    why: str
    longest: int


def judge_replies(replies: PreflightReplies, meant: Meant, rules: PreflightRules) -> list[PreflightCheck]:
    """All checks, in the order of the list."""
    chats = (*replies.greedy, *replies.short)
    limited = [
        *((reply, rules.max_tokens) for reply in chats),
        *((reply, rules.thinking_tokens) for reply in replies.thinking),
        *((reply, rules.call_tokens) for reply in (replies.forced, replies.own)),
    ]
    stop, stopped = replies.stop
    found = [
        judge_identity(replies.listed, meant.name),
        judge_context(replies.listed, meant.name, meant.needed, meant.why, meant.longest),
        *judge_prompts(replies.prompts, meant.bos),
        judge_efforts(replies.prompts),
        judge_ends(replies.short, rules.max_tokens),
        judge_markup((*chats, replies.own)),
        judge_stop(replies.greedy[0], stop, stopped),
        judge_reasoning(replies.thinking),
        judge_no_reasoning(chats),
        judge_call(replies.forced),
        judge_streamed_call(replies.forced, replies.forced_stream),
        judge_own_call(replies.own),
        judge_greedy(replies.greedy, rules.tie),
        judge_seeds(replies.same, replies.others, rules.chance),
        judge_logprobs(replies.scored, TOP),
        judge_usage(limited),
        judge_streamed(replies.greedy[0], replies.streamed, rules.tie),
        judge_refusals(replies.wrong),
    ]
    kind = kind_of(replies.listed, meant.name)
    return [_told(check, kind, rules) for check in sorted(found, key=lambda check: CHECKS.index(check.id))]


def _told(check: PreflightCheck, kind: Server | None, rules: PreflightRules) -> PreflightCheck:
    """With the fix for this kind of server alone, if it is known, and the reason of the rules if they accept it."""
    reason = rules.accepted.get(check.id) if check.verdict != "pass" else None
    fixes = {server: line for server, line in check.fixes.items() if kind in (None, server)}
    return check.model_copy(update={"accepted": reason, "fixes": fixes})


def preflight_stage(checks: Sequence[PreflightCheck], server: str, answers: Sequence[ChatReply]) -> Stage:
    """Fail if a check failed, cannot tell if one showed nothing; those that the rules accept decide nothing."""
    figures = PreflightFigures(
        server=server,
        checks=tuple(checks),
        requests=len(answers),
        prompt_tokens=sum(reply.used.prompt for reply in answers),
        tokens=sum(reply.used.answer for reply in answers),
    )
    failed, unshown = _deciding(checks, "fail"), _deciding(checks, "not-shown")
    passed = [check for check in checks if check.verdict == "pass"]
    return Stage(
        name="preflight",
        verdict="fail" if failed else "cannot-tell" if unshown else "pass",
        detail=_detail(checks, failed, unshown),
        proves=(f"{server} does {len(passed)} things that the other stages take for granted.",)
        if not failed and not unshown
        else (),
        leaves_open=tuple(_leaves_open(checks)),
        figures=figures.model_dump(mode="json"),
    )


def _deciding(checks: Sequence[PreflightCheck], verdict: str) -> list[PreflightCheck]:
    return [check for check in checks if check.verdict == verdict and check.accepted is None]


def _detail(
    checks: Sequence[PreflightCheck], failed: Sequence[PreflightCheck], unshown: Sequence[PreflightCheck]
) -> str:
    if failed:
        first, others = failed[0], [check.id for check in failed[1:]]
        also = f" Also failed: {', '.join(others)}." if others else ""
        fixes = "; ".join(f"{server}: {line}" for server, line in first.fixes.items())
        return f"{first.id}: {first.came}; expected: {first.expected}. To fix it, {fixes}.{also}"
    if unshown:
        return f"Nothing failed, but {', '.join(check.id for check in unshown)} showed nothing."
    passed = sum(check.verdict == "pass" for check in checks)
    return f"{passed} of {len(checks)} checks passed" + (
        f"; {len(checks) - passed} decide nothing." if passed < len(checks) else "."
    )


def _leaves_open(checks: Sequence[PreflightCheck]) -> list[str]:
    lines = ["Which weights answer: nothing in the answers of a server shows them."]
    for check in checks:
        if check.verdict == "not-shown":
            said = f" Accepted: {check.accepted}." if check.accepted is not None else ""
            lines.append(f"{check.id}: {check.came}.{said}")
        elif check.verdict == "fail" and check.accepted is not None:
            lines.append(f"{check.id} failed, which the rules accept: {check.accepted}.")
        elif check.verdict == "noted":
            lines.append(f"{check.id}: {check.came}.")
    if unmade := [id_ for id_ in CHECKS if id_ not in {check.id for check in checks}]:
        lines.append(f"Not checked, since no answer could be read: {', '.join(unmade)}.")
    return lines
