"""`Endpoint`: where a server is, and how it is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flagrelease.server_address import check_address, is_on_loopback, read_key, show_address

# How an endpoint is told whether to think: DeepSeek's field `thinking`, or vLLM's and SGLang's chat_template_kwargs.
Dialect = Literal["deepseek", "template"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server that answers in place of the bundled engine.

    Attributes:
        url: with the version, for example "http://localhost:8000/v1".
        model: the name by which the server knows the model.
        dialect: how the effort is asked for. `deepseek`: the fields `thinking` and `reasoning_effort`, as DeepSeek's
            API and `flagrelease serve`; `template`: `chat_template_kwargs`, as vLLM and SGLang.
        concurrency: requests at once.
        timeout: seconds without a byte of an answer after which the connection is given up. An answer that is not
            streamed comes as a whole, so this is how long one answer may take.
        key_variable: the environment variable that holds the key; None: no key is sent, whatever the environment has.
    """

    url: str
    model: str
    dialect: Dialect = "deepseek"
    concurrency: int = 32
    timeout: float = 3600.0
    key_variable: str | None = None

    def __post_init__(self) -> None:
        """Refuse addresses that cannot be asked, or that would give a secret away: see `check_address`.

        Raises:
            UsageError: names the rule, and the address without what may be secret.
        """
        check_address(self.url, self.key_variable)

    @property
    def shown(self) -> str:
        """The address in the only form that is printed or stored."""
        return show_address(self.url)

    @property
    def on_loopback(self) -> bool:
        """Whether the server is on this machine."""
        return is_on_loopback(self.url)

    @property
    def base(self) -> str:
        """The address with one slash at its end, to which paths such as `chat/completions` are added."""
        return self.url.rstrip("/") + "/"

    @property
    def root(self) -> str:
        """The address without /v1, to which paths such as `version` and `tokenize` are added."""
        return self.url.rstrip("/").removesuffix("/v1") + "/"

    def key(self) -> str | None:
        """The key, read from the environment; None where none is to be sent.

        Raises:
            UsageError: as `read_key`.
        """
        return read_key(self.key_variable)
