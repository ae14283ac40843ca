"""The prompts of a request: texts or token ids, or a conversation that is encoded."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Literal, cast

from pydantic import Discriminator, Field, Tag, WrapValidator

from flagrelease.engine.serve.requests.conversation import ENCODED, ChatMessage, Tools
from flagrelease.engine.serve.requests.fields import Typed, as_sent
from flagrelease.engine.serve.requests.refusals import ParameterError, blamed
from flagrelease.model.chats import encode_messages
from flagrelease.model.turns import Message
from flagrelease.model.v4.efforts import Effort, Mode
from flagrelease.model.v4.encoded import EncodedChat


def _kind_of_prompt(value: Any) -> str | None:
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list):
        return None
    first = value[0] if value else ""
    return "texts" if isinstance(first, str) else "several" if isinstance(first, list) else "tokens"


Prompt = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], Field(min_length=1), Tag("texts")]
    | Annotated[list[int], Tag("tokens")]
    | Annotated[list[list[int]], Tag("several")],
    Discriminator(
        _kind_of_prompt,
        custom_error_type="prompt_type",
        custom_error_message="Input should be text, a list of texts, token ids, or a list of lists of token ids",
    ),
]


class Prompts(Typed):
    """Text or token ids, one or several."""

    prompt: Prompt

    async def tokens(self, encode_each: Callable[[list[str]], Coroutine[Any, Any, list[list[int]]]]) -> list[list[int]]:
        """Token ids of each. `encode_each` tokenises texts."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return await encode_each([prompt])
        texts = [each for each in prompt if isinstance(each, str)]
        if texts:
            return await encode_each(texts)
        return cast(list[list[int]], prompt if prompt and isinstance(prompt[0], list) else [prompt])


class Thinking(Typed):
    """DeepSeek's switch between its modes."""

    type: Literal["enabled", "disabled", "adaptive"]


class FunctionName(Typed):
    """Of a function among the tools."""

    name: str


class NamedTool(Typed):
    """The function that must be called."""

    type: Literal["function"]
    function: FunctionName


def _kind_of_choice(value: Any) -> str | None:
    return "named" if isinstance(value, dict) else "word" if isinstance(value, str) else None


ToolChoice = Annotated[
    Annotated[Literal["auto", "none", "required"], Tag("word")] | Annotated[NamedTool, Tag("named")],
    Discriminator(
        _kind_of_choice,
        custom_error_type="tool_choice",
        custom_error_message="Input should be 'auto', 'none', 'required', or an object that names a function",
    ),
]


AskedEffort = Annotated[
    Annotated[Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"], Tag("word")]
    | Annotated[int, Field(ge=1, le=100), Tag("number")],
    Discriminator(lambda value: "number" if type(value) is int else "word"),
]


class Conversation(Typed):
    """Messages, the tools that the model may call, and how it thinks."""

    messages: Annotated[list[ChatMessage], Field(min_length=1), WrapValidator(as_sent)]
    tools: Annotated[Tools, WrapValidator(as_sent)] = Field(default_factory=list)
    tool_choice: ToolChoice = "auto"
    thinking: Thinking | None = None
    reasoning_effort: AskedEffort | None = None
    continue_final_message: bool = False
    add_generation_prompt: bool | None = None

    def encoded(self, effort: Effort) -> EncodedChat:
        """The prompt, which shows messages and tools as they were sent.

        Raises:
            ParameterError: the encoding refuses a message, or the prompt would ask for no answer.
        """
        messages = [_encoded(message) for message in cast(list[Message], self.messages)]
        tools = [_shown(tool) for _, tool in self.chosen_tools()]
        if told := self.told():
            if messages[0]["role"] != "system":
                messages.insert(0, {"role": "system", "content": ""})
            messages[0] = {**messages[0], **told}
        if self.continue_final_message:
            messages[-1] = {**messages[-1], "prefix": True}
        if self.add_generation_prompt is not None and self.add_generation_prompt == bool(messages[-1].get("prefix")):
            continued = "is" if self.add_generation_prompt else "is not"
            raise ParameterError(
                f"add_generation_prompt {self.add_generation_prompt}, but the last message {continued} to be continued",
                "add_generation_prompt",
            )
        with blamed("messages"):
            return encode_messages(messages, effort, tools)

    def told(self) -> dict[str, Any]:
        """What the system's message is to say besides, by the encoding's keys."""
        return {}

    @property
    def continues(self) -> bool:
        """Whether the last message is to be continued."""
        return self.continue_final_message or bool(cast(list[Message], self.messages)[-1].get("prefix"))

    def chosen_tools(self) -> list[tuple[int, dict[str, Any]]]:
        """The tools that `tool_choice` leaves to the model, each with its place: where it names one, that one alone.

        Raises:
            ParameterError: a call is required, but of what is neither among the tools nor brought by a message.
        """
        if self.tool_choice == "none":
            return []
        tools = cast(list[dict[str, Any]], self.tools)
        chosen = [(n, tool) for n, tool in enumerate(tools) if self._leaves(tool)]
        if self.tool_choice != "auto" and not chosen and not self.message_tools():
            raise ParameterError("tool_choice requires a function that is not among the tools", "tool_choice")
        return chosen

    def message_tools(self) -> list[tuple[str, dict[str, Any]]]:
        """Those that system and developer messages bring, which count as the request's, each with its place."""
        return [
            (f"messages[{n}].tools[{m}]", tool)
            for n, message in enumerate(cast(list[Message], self.messages))
            for m, tool in enumerate(message.get("tools") or ())
            if self._leaves(tool)
        ]

    def _leaves(self, tool: dict[str, Any]) -> bool:
        """Whether `tool_choice`, where it names a function, names this one."""
        choice = self.tool_choice
        return not isinstance(choice, NamedTool) or bool(tool["function"]["name"] == choice.function.name)

    def mode(self, default: Mode) -> Mode | int:
        """What `thinking` and `reasoning_effort` ask for; where they leave it open, what the server does by default.

        A request that only switches thinking on gets the server's effort, if the server's chats think, else the
        model's own default.

        Raises:
            ParameterError: they contradict each other.
        """
        switch = None if self.thinking is None else self.thinking.type != "disabled"
        effort = self.reasoning_effort
        if effort is not None and switch is not None and switch != (effort != "none"):
            raise ParameterError(
                f"thinking is {'en' if switch else 'dis'}abled, but reasoning_effort is {effort}", "reasoning_effort"
            )
        if effort is not None:
            return "chat" if effort == "none" else effort
        if switch is None:
            return default
        return "chat" if not switch else "thinking" if default == "chat" else default


def _shown(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool without `strict`, which is for the server and not for the model."""
    return {**tool, "function": {key: value for key, value in tool["function"].items() if key != "strict"}}


def _encoded(message: Message) -> Message:
    """What the encoding reads of a message, without nulls."""
    return {key: value for key, value in message.items() if key in ENCODED and value is not None}
