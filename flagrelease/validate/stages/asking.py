"""Who answers on this side, for benchmarks and behaviour alike: the release on the engine, or an endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flagrelease.model.v4.efforts import Efforts
from flagrelease.records.rules import BehaviourRules, BenchmarkRules
from flagrelease.validate.behaviour.answers import Behaviour
from flagrelease.validate.behaviour.journal import collect
from flagrelease.validate.behaviour.prompts import prompts_of
from flagrelease.validate.behaviour.served import EndpointAsker
from flagrelease.validate.endpoint.address import Endpoint
from flagrelease.validate.endpoint.answerer import EndpointAnswerer
from flagrelease.validate.exams.answerer import Answerer, AskRules
from flagrelease.validate.exams.engine_answerer import EngineAnswerer
from flagrelease.validate.exams.exam import Exam, encode_item, read_exam
from flagrelease.validate.exams.hub import download
from flagrelease.validate.stages.port import Port
from flagrelease.validate.stages.request import Exams
from flagrelease.validate.stages.stage import Watch


def open_exam(name: str, rules: BenchmarkRules, exams: Exams) -> Exam:
    """The exam that was read from a user's files if there is one, else the hub's.

    Raises:
        UsageError: the hub's file is malformed.
        NetworkError: the hub does not give the data.
    """
    if name in exams:
        return exams[name]
    paths, revision = download(rules)
    return read_exam(rules, paths, revision)


@contextmanager
def answering(
    exam: Exam[AskRules], endpoint: Endpoint | None, port: Port | str, efforts: Efforts, longest: int | None = None
) -> Iterator[Answerer]:
    """Give the endpoint if there is one, else the port with room for the longest question and its answer.

    Args:
        efforts: those of the model that is asked.
        longest: tokens of the longest prompt, where they are known.
    """
    if endpoint is not None:
        yield EndpointAnswerer(endpoint, stack_of(endpoint), efforts)
        return
    assert isinstance(port, Port)
    rules, tokenizer = exam.rules, port.session.tokenizer()
    if longest is None:
        prompts = (encode_item(item.prompt, rules, efforts) for item in exam.items)
        longest = max(len(tokenizer.encode(prompt)) for prompt in prompts)
    with port.answering(longest, rules.max_tokens) as scheduler:
        yield EngineAnswerer(scheduler, port.stack, efforts)


def ask_behaviour(
    who: Port | Endpoint, efforts: Efforts, subject: str, rules: BehaviourRules, journal: Path, watch: Watch
) -> Behaviour:
    """Ask the port or the endpoint all behaviour prompts that `journal` has no answer to; it keeps the answers.

    `efforts` are those of the model that is asked.
    """

    def progress(done: int, total: int) -> None:
        watch("behaviour", done, total, "answers")

    effort = efforts.of(rules.mode)
    if isinstance(who, Endpoint):
        return collect(EndpointAsker(who, effort, rules), subject, stack_of(who), rules, journal, progress)
    from flagrelease.validate.behaviour.ask import EngineAsker

    tokenizer = who.session.tokenizer()
    longest = max(len(tokenizer.encode(prompt.encode(effort))) for prompt in prompts_of(rules))
    with who.answering(longest, rules.max_tokens) as scheduler:
        return collect(EngineAsker(scheduler, effort, rules), subject, who.stack, rules, journal, progress)


def stack_of(endpoint: Endpoint) -> str:
    """How answers of an endpoint name who gave them: answers that were asked for in another dialect are others.

    What the server says of itself is in the report's environment.
    """
    asked = "" if endpoint.dialect == "deepseek" else f", --dialect {endpoint.dialect}"
    return f"{endpoint.model} at {endpoint.shown}{asked}"
