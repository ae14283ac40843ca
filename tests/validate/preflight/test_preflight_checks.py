"""Each check of the pre-flight, on replies that are written here: what it passes, catches, and cannot see."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from flagrelease.model.v4.dsml import ToolCall
from flagrelease.model.v4.efforts import efforts_of
from flagrelease.records.rules import PreflightRules
from flagrelease.validate.endpoint.replies import (
    ChatReply,
    ScoredToken,
    ServedModel,
    StreamedReply,
    TokensUsed,
    Unsupported,
)
from flagrelease.validate.preflight.check import CHECKS, CheckId, CheckVerdict, PreflightCheck, fixes_of, judged
from flagrelease.validate.preflight.ending import choose_stop, judge_ends, judge_markup, judge_stop, markup_in
from flagrelease.validate.preflight.identity import judge_context, judge_identity, kind_of
from flagrelease.validate.preflight.logprobs import judge_logprobs
from flagrelease.validate.preflight.prompts import CASES, CountedPrompt, efforts_asked, judge_efforts, judge_prompts
from flagrelease.validate.preflight.reasoning import judge_no_reasoning, judge_reasoning
from flagrelease.validate.preflight.refusals import judge_refusals
from flagrelease.validate.preflight.sampling import judge_greedy, judge_seeds
from flagrelease.validate.preflight.stage import preflight_stage
from flagrelease.validate.preflight.tools import judge_call, judge_own_call, judge_streamed_call
from flagrelease.validate.preflight.usage import judge_streamed, judge_usage

REFUSED = Unsupported("chat/completions", "HTTP 400 (logprobs)", 400)
EFFORTS = efforts_of("preview")


def reply(content: str = "ready", finish: str = "stop", **changes: Any) -> ChatReply:
    used = changes.pop("used", TokensUsed(10, max(1, len(content.split())), None))
    given: dict[str, Any] = {
        "content": content, "reasoning": "", "tool_calls": (), "finish": finish, "used": used, "logprobs": None,
        "reasoning_logprobs": None, "prompt_logprobs": None, "token_ids": None, "prompt_token_ids": None, "raw": None,
    }  # fmt: skip
    return ChatReply(**given | changes)


def scored(text: str, logprob: float = -0.1, other: float = -3.0) -> ScoredToken:
    top = (ScoredToken(text, None, logprob), ScoredToken("other", None, other))
    return ScoredToken(text, None, logprob, top=top)


def told(content: str, logprob: float = -0.1, other: float = -3.0) -> ChatReply:
    return reply(content, logprobs=tuple(scored(word, logprob, other) for word in content.split()))


def counted(shift: int = 0, *, ids: bool = False) -> list[CountedPrompt]:
    found = []
    for number, case in enumerate(CASES):
        for effort in efforts_asked(EFFORTS):
            expected = (0, *range(5, 12 + number + 3 * (effort.name == "max")))
            used = TokensUsed(len(expected) + shift, 1, None)
            came = reply(used=used, prompt_token_ids=expected if ids else None)
            found.append(CountedPrompt(case, effort, expected, len(expected) - 2, came))
    return found


def test_every_check_has_a_line_to_change_for_each_kind_of_server() -> None:
    for check in CHECKS:
        assert set(fixes_of(check)) == {"vllm", "sglang", "flagrelease"}
        assert judged(check, "a", "b", "c", "fail").fixes
        assert not judged(check, "a", "b", "c", "pass").fixes


def test_identity_and_context() -> None:
    listed = (ServedModel("m", 4096, None), ServedModel("other", None, None))
    assert judge_identity(listed, "m").verdict == "pass"
    assert judge_identity(listed, "n").verdict == "fail"
    assert judge_identity(REFUSED, "m").verdict == "not-shown"
    assert judge_context(listed, "m", 4096, "exams", 8192).verdict == "pass"
    assert judge_context(listed, "m", 4097, "exams", 8192).verdict == "fail"
    assert judge_context(listed, "m", 100, "exams", 2048).verdict == "fail", "more than the model can see"
    assert judge_context(listed, "other", 10, "exams", 8192).verdict == "not-shown"


def test_a_server_that_says_what_it_is_gets_its_own_line() -> None:
    listed = (ServedModel("m", 4096, "vllm"), ServedModel("n", 4096, "somebody"))
    assert kind_of(listed, "m") == "vllm"
    assert kind_of(listed, "n") is kind_of(REFUSED, "m") is None


def verdicts(prompts: list[CountedPrompt]) -> dict[str, str]:
    return {check.id: check.verdict for check in [*judge_prompts(prompts, 0), judge_efforts(prompts)]}


def test_prompts_of_the_expected_tokens_pass_by_count_and_by_id() -> None:
    expected = {"prompt-tokens": "pass", "one-bos": "pass", "quoted-markup": "pass", "efforts": "pass"}
    assert verdicts(counted()) == verdicts(counted(ids=True)) == expected
    assert "id by id" in judge_prompts(counted(ids=True), 0)[0].came


def with_reply(prompt: CountedPrompt, **changes: Any) -> CountedPrompt:
    assert isinstance(prompt.reply, ChatReply)
    return replace(prompt, reply=replace(prompt.reply, **changes))


def test_a_second_begin_token_is_told_by_counts_and_by_ids() -> None:
    one_more = judge_prompts(counted(shift=1), 0)
    assert [check.verdict for check in one_more[:2]] == ["fail", "fail"]
    assert one_more[1].came == "every prompt has one token more than expected"
    doubled = [with_reply(each, prompt_token_ids=(0, *each.expected)) for each in counted()]
    assert judge_prompts(doubled, 0)[1].verdict == "fail"


def test_another_chat_format_is_named_by_chat_and_effort() -> None:
    prompts = counted()
    first = prompts[4] = with_reply(prompts[4], used=TokensUsed(99, 1, None))
    found = judge_prompts(prompts, 0)
    assert (found[0].verdict, found[1].verdict) == ("fail", "not-shown")
    assert f"{first.case.id}, {first.effort.name}: 99 for {len(first.expected)}" in found[0].came


def test_equal_counts_of_other_ids_fail() -> None:
    prompts = counted(ids=True)
    prompts[1] = with_reply(prompts[1], prompt_token_ids=(0, 999, *prompts[1].expected[2:]))
    assert "other ids from token 2 on" in judge_prompts(prompts, 0)[0].came


def test_special_tokens_that_a_user_quotes_are_noted_and_stop_nothing() -> None:
    prompts = [
        with_reply(each, used=TokensUsed(each.recognised, 1, None)) if each.case.quotes else each for each in counted()
    ]
    found = judge_prompts(prompts, 0)
    assert [check.verdict for check in found] == ["pass", "pass", "noted"]
    assert "close its reasoning" in found[2].came
    efforts = [each if not each.effort.thinks else with_reply(each, used=TokensUsed(400, 1, None)) for each in prompts]
    assert "close its reasoning" in judge_prompts(efforts, 0)[2].came, "whatever the server makes of efforts"


def test_an_effort_that_the_server_ignores_or_refuses_fails() -> None:
    ignored = [
        with_reply(each, used=TokensUsed(len(each.expected) - 3, 1, None)) if each.effort.name == "max" else each
        for each in counted()
    ]
    assert judge_efforts(ignored).verdict == "fail"
    refused = [replace(each, reply=REFUSED) if each.effort.name == "max" else each for each in counted()]
    assert judge_efforts(refused).came.endswith("max refused (HTTP 400 (logprobs))")
    assert judge_efforts(refused).verdict == "fail"


@pytest.mark.parametrize(
    ("answers", "verdict"),
    [
        ([reply(), reply("Paris")], "pass"),
        ([reply(finish="length"), reply("Paris")], "pass"),
        ([reply(finish="length"), reply(finish="length")], "not-shown"),
        ([reply(finish="eos")], "fail"),
        ([REFUSED], "not-shown"),
    ],
)
def test_ends(answers: list[ChatReply], verdict: str) -> None:
    assert judge_ends(answers, 48).verdict == verdict


@pytest.mark.parametrize("text", ["ready<｜end▁of▁sentence｜>", "a</think>b", "<think>a", "<｜DSML｜tool_calls>"])
def test_special_tokens_in_a_text_are_seen(text: str) -> None:
    assert markup_in(text)
    assert judge_markup([reply(text)]).verdict == "fail"
    assert markup_in("a < b, <thinking> and ｜x｜") is None


def test_a_stop_string_cuts_where_it_begins() -> None:
    whole = reply("The harbour wakes slowly.")
    stop = choose_stop(whole.content)
    assert stop is not None
    begun = whole.content[: whole.content.index(stop)]
    assert judge_stop(whole, stop, reply(begun)).verdict == "pass"
    assert judge_stop(whole, stop, whole).verdict == "fail"
    assert judge_stop(whole, stop, reply(begun + stop)).verdict == "fail"
    assert judge_stop(whole, stop, reply(begun, "length")).verdict == "fail"
    assert judge_stop(whole, stop, REFUSED).verdict == "fail"
    assert judge_stop(whole, stop, reply("Something else")).verdict == "not-shown"
    assert judge_stop(reply(""), choose_stop(""), None).verdict == "not-shown"
    assert choose_stop("青青青青青") is None


def test_reasoning_is_apart() -> None:
    apart = reply("9.8", reasoning="Compare the tenths.")
    assert judge_reasoning([apart, reply("9.8")]).verdict == "pass"
    assert judge_reasoning([reply("Compare the tenths.</think>9.8")]).verdict == "fail"
    assert judge_reasoning([reply("Compare the tenths", "length")]).verdict == "fail"
    assert judge_reasoning([REFUSED]).verdict == "fail"
    assert judge_reasoning([reply("")]).verdict == "not-shown"
    assert judge_no_reasoning([reply()]).verdict == "pass"
    assert judge_no_reasoning([apart]).verdict == "fail"


ARGUMENTS = '{"city": "Oslo", "days": 3}'


def called(
    arguments: str = ARGUMENTS, name: str = "get_weather", finish: str = "tool_calls", id_: str = "c"
) -> ChatReply:
    raw = {"choices": [{"message": {"tool_calls": [{"id": id_}]}}]}
    return reply("", finish, tool_calls=(ToolCall(name, arguments),), raw=raw)


@pytest.mark.parametrize(
    ("forced", "verdict"),
    [
        (called(), "pass"),
        (called(finish="stop"), "pass"),
        (called(name="get_whether"), "fail"),
        (called('{"city": 3}'), "fail"),
        (called('{"city": "Oslo"'), "fail"),
        (called(id_=""), "fail"),
        (called('{"city": "Os', finish="length"), "not-shown"),
        (reply("I do not know."), "fail"),
        (REFUSED, "not-shown"),
    ],
)
def test_a_required_call(forced: ChatReply, verdict: str) -> None:
    assert judge_call(forced).verdict == verdict


def test_a_call_of_the_models_own_accord() -> None:
    assert judge_own_call(called()).verdict == "pass"
    assert judge_own_call(called(finish="stop")).verdict == "fail", "clients look at finish_reason"
    assert judge_own_call(reply("It rains.")).verdict == "not-shown", "a model that calls no tool shows nothing"
    unread = judge_own_call(reply('<｜DSML｜tool_calls>\n<｜DSML｜invoke name="get_weather">'))
    assert unread.verdict == "fail"
    assert "--tool-call-parser deepseek_v4" in unread.fixes["vllm"]


def streamed_call(*pieces: dict[str, Any], made: ChatReply | None = None, done: bool = True) -> StreamedReply:
    chunks = tuple({"choices": [{"delta": {"tool_calls": [piece]}}]} for piece in pieces)
    return StreamedReply(called() if made is None else made, chunks, done)


def test_a_streamed_call() -> None:
    begin = {"index": 0, "id": "c", "function": {"name": "get_weather", "arguments": '{"city"'}}
    rest = {"index": 0, "function": {"arguments": ': "Oslo", "days": 3}'}}
    assert judge_streamed_call(called(), streamed_call(begin, rest)).verdict == "pass"
    spaced = called(json.dumps(json.loads(ARGUMENTS), indent=1))
    assert judge_streamed_call(called(), streamed_call(begin, rest, made=spaced)).verdict == "pass"
    for fault in (
        streamed_call(begin, rest, done=False),
        streamed_call(rest, begin),
        streamed_call({**begin, "index": None}),
        streamed_call({**begin, "id": None}),
        streamed_call(begin, rest, made=called('{"city": "Oslo"}')),
        streamed_call(begin, rest, made=called(finish="stop")),
    ):
        assert judge_streamed_call(called(), fault).verdict == "fail"
    assert judge_streamed_call(reply(), streamed_call(begin)).verdict == "not-shown"


def test_greedy_answers_repeat_but_for_near_ties() -> None:
    sure, close = told("a b c"), told("a b c", -0.69, -0.70)
    assert judge_greedy([sure, sure, sure], 0.5).verdict == "pass"
    assert judge_greedy([sure, told("a x c"), sure], 0.5).verdict == "fail"
    assert judge_greedy([close, told("a x c", -0.69, -0.70)], 0.5).verdict == "pass"
    assert judge_greedy([reply("a b"), reply("a c")], 0.5).verdict == "fail", "nothing explains the difference"
    assert judge_greedy([REFUSED, REFUSED], 0.5).verdict == "not-shown"


def test_seeds() -> None:
    same, others = [reply("a"), reply("a")], [reply("b"), reply("c"), reply("a")]
    assert judge_seeds(same, others, 0.01).verdict == "pass"
    assert judge_seeds([reply("a"), reply("b")], others, 0.01).verdict == "fail"
    likely = [told("a", -0.01), told("a", -0.01)]
    assert judge_seeds(likely, [reply("a")] * 3, 0.01).verdict == "not-shown", "a sure model has one answer"
    drawn = [told("a b", -2.0), told("a b", -2.0)]
    assert judge_seeds(drawn, [reply("a b")] * 3, 0.01).verdict == "fail"
    assert judge_seeds(same, [reply("a")] * 3, 0.01).verdict == "not-shown", "nobody told the probability"
    assert judge_seeds([REFUSED, REFUSED], others, 0.01).verdict == "fail"


@pytest.mark.parametrize(
    ("tokens", "verdict"),
    [
        ([scored("a"), scored("b", -0.5)], "pass"),
        ([scored("a", 0.2)], "fail"),
        ([scored("a", -3.0, -0.1)], "fail"),
        ([scored("a", -0.1, -0.2)], "fail"),
        ([replace(scored("a"), text="c")], "fail"),
        ([replace(scored("a"), logprob=-0.4)], "fail"),
        ([replace(scored("a"), logprob=None)], "fail"),
        ([scored("a", 0.0, -9999.0), scored("b", 0.0, -9999.0)], "fail"),
        ([scored("a", -0.1, float("nan"))], "fail"),
        ([replace(scored("a"), top=())], "not-shown"),
        ([], "not-shown"),
    ],
)
def test_logprobs(tokens: list[ScoredToken], verdict: str) -> None:
    assert judge_logprobs(reply("a b", logprobs=tuple(tokens)), 2).verdict == verdict
    assert judge_logprobs(REFUSED, 5).verdict == "not-shown"


def test_usage() -> None:
    used = TokensUsed(10, 4, None)
    whole = reply("a b c d", used=used, raw={"usage": {"total_tokens": 14}})
    assert judge_usage([(whole, 48)]).verdict == "pass"
    assert judge_usage([(replace(whole, raw={"usage": {"total_tokens": 15}}), 48)]).verdict == "fail"
    assert judge_usage([(whole, 3)]).verdict == "fail"
    assert judge_usage([(replace(whole, finish="length"), 48)]).verdict == "fail"
    assert judge_usage([(replace(whole, finish="length"), 4)]).verdict == "pass"
    assert judge_usage([(replace(whole, used=TokensUsed(10, 0, None)), 48)]).verdict == "fail"


def test_a_streamed_answer_is_the_whole_one() -> None:
    whole = told("a b c")
    assert judge_streamed(whole, StreamedReply(whole, ({},), True), 0.5).verdict == "pass"
    assert judge_streamed(whole, StreamedReply(whole, ({},), False), 0.5).verdict == "fail"
    assert judge_streamed(whole, StreamedReply(told("a b"), ({},), True), 0.5).verdict == "fail"
    other_end = StreamedReply(replace(whole, finish="length"), ({},), True)
    assert judge_streamed(whole, other_end, 0.5).verdict == "fail"
    other_count = StreamedReply(replace(whole, used=TokensUsed(10, 9, None)), ({},), True)
    assert judge_streamed(whole, other_count, 0.5).verdict == "fail"
    assert judge_streamed(whole, REFUSED, 0.5).verdict == "fail"


def test_bad_requests_are_refused_by_status() -> None:
    assert judge_refusals({"a": REFUSED, "b": replace(REFUSED, status=422)}).verdict == "pass"
    assert judge_refusals({"a": REFUSED, "b": reply()}).verdict == "fail"
    assert judge_refusals({"a": REFUSED, "b": "HTTP 500 for model 'm'"}).verdict == "fail"


def checks(*pairs: tuple[CheckId, CheckVerdict], accepted: str | None = None) -> list[PreflightCheck]:
    made = [judged(id_, "asked", "expected", "came", verdict) for id_, verdict in pairs]
    return [each.model_copy(update={"accepted": accepted}) for each in made]


def test_a_failing_check_fails_the_stage_with_the_line_to_fix() -> None:
    stage = preflight_stage(
        checks(("identity", "pass"), ("reasoning-apart", "fail"), ("usage", "fail")), "m", [reply()]
    )
    assert stage.verdict == "fail"
    assert "vllm: --reasoning-parser deepseek_v4" in stage.detail
    assert "Also failed: usage." in stage.detail
    assert stage.figures["requests"] == 1


def test_what_was_not_shown_is_never_a_pass() -> None:
    stage = preflight_stage(checks(("identity", "pass"), ("own-call", "not-shown")), "m", [])
    assert stage.verdict == "cannot-tell"
    assert not stage.proves
    accepted = checks(("own-call", "not-shown"), accepted="it was taught no tools")
    stage = preflight_stage([*checks(("identity", "pass"), ("quoted-markup", "noted")), *accepted], "m", [])
    assert stage.verdict == "pass"
    assert any("it was taught no tools" in line for line in stage.leaves_open)


def test_rules_accept_known_checks_only() -> None:
    assert PreflightRules(accepted={"own-call": "never taught"}).accepted
    with pytest.raises(ValueError, match="own-calls"):
        PreflightRules.model_validate({"accepted": {"own-calls": "never taught"}})


def test_lists_that_are_shorter_than_asked_for_are_noted() -> None:
    check = judge_logprobs(told("a b"), 5)
    assert (check.verdict, check.came) == ("noted", "2 tokens, from -0.10 to -0.10, with 2 alternatives of 5")


def test_what_came_is_one_line_that_a_terminal_only_shows() -> None:
    call = ToolCall("get_\x1b[2J\nPASS", "{}")
    came = judge_call(reply(tool_calls=(call,), finish="tool_calls")).came
    assert came == "a call that does not follow the schema: get_�[2J�PASS({})"
    many = [ServedModel(f"model-{n}", None, None) for n in range(1000)]
    assert len(judge_identity(many, "m").came) == 400
