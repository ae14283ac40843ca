"""What a request wants its answer to be, from its parameters to a compiled constraint."""

from __future__ import annotations

from typing import Any, cast

from flagrelease.engine.constraints.calls import CalledTool
from flagrelease.engine.constraints.constraint import Constraint
from flagrelease.engine.constraints.wanted import Calls, JsonAnswer, Wanted
from flagrelease.engine.serve.requests.prompts import NamedTool
from flagrelease.engine.serve.requests.protocol import ChatRequest, GenerationRequest
from flagrelease.engine.serve.requests.refusals import ParameterError, blamed
from flagrelease.engine.serve.served import Served
from flagrelease.model.spelling import OF_V4, Spelling
from flagrelease.model.v4.encoded import Part

_NONE: dict[str, Any] = {"type": "object", "properties": {}}  # a function without a schema has no parameters


async def constrained(
    served: Served, request: GenerationRequest, part: Part, spelling: Spelling = OF_V4
) -> Constraint | None:
    """The constraint of an answer that begins in `part`, whose calls are spelt so; None if it may be any text.

    Raises:
        ParameterError: parameters contradict each other, or what they want cannot be enforced.
    """
    found = _of_chat(request, spelling) if isinstance(request, ChatRequest) else request.form()
    if found is None:
        return None
    param, wanted = found
    if isinstance(request, ChatRequest) and request.continues:
        raise ParameterError(f"{param} cannot be combined with a message that is continued", param)
    for name in ("ignore_eos", "allowed_token_ids"):
        if getattr(request, name):
            raise ParameterError(f"{name} cannot be combined with {param}", name)
    with blamed(param):
        return await served.constraints.compile(wanted, part)


def _of_chat(request: ChatRequest, spelling: Spelling) -> tuple[str, Wanted] | None:
    """By `response_format` and the like, `tool_choice`, the tools that are strict, and `parallel_tool_calls`."""
    form, choice = request.form(), request.tool_choice
    required = choice == "required" or isinstance(choice, NamedTool)
    tools = [] if choice == "none" else _tools(request, required=required)
    if required:
        several = request.parallel_tool_calls and choice == "required"
        return "tool_choice", Calls(tools, required=True, several=several, spelling=spelling)
    strict = any(tool.parameters is not None for tool in tools)
    if not tools or (form is None and not strict and request.parallel_tool_calls):
        return form
    if form is not None and not isinstance(form[1], JsonAnswer):
        raise ParameterError(f"{form[0]} cannot be combined with tools", form[0])
    answer = None if form is None else cast(JsonAnswer, form[1])
    several = request.parallel_tool_calls
    calls = Calls(tools, required=False, several=several, answer=answer, spelling=spelling)
    return ("tools" if form is None else form[0]), calls


def _tools(request: ChatRequest, *, required: bool) -> list[CalledTool]:
    """Those of the request and of its messages. Where the model decides, only strict functions have to fit a schema."""
    places = [(f"tools[{n}]", tool) for n, tool in request.chosen_tools()] + request.message_tools()
    called = []
    for place, tool in places:
        function: dict[str, Any] = tool["function"]
        strict = bool(function.get("strict"))
        parameters = function.get("parameters")
        schema = _NONE if parameters is None else parameters
        param = f"{place}.function.parameters"
        called.append(CalledTool(function["name"], schema if required or strict else None, strict, param))
    return called
