"""`Endpoint`: where a server is, how it is asked, and whether it may be sent a key."""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal
from urllib.parse import SplitResult, urlsplit, urlunsplit

from flagrelease.errors import UsageError

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
        """Refuse addresses that cannot be asked, or that would give a secret away.

        A user and a password in an address are refused, not sent: such an address is in the list of processes, in the
        shell's history and in the message of every library that fails on it. `--key-env` has none of these.

        Raises:
            UsageError: names the rule, and the address without what may be secret.
        """
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not _host(parts):
            raise UsageError(f"--endpoint {self.shown}: an http or https address is expected")
        if "@" in parts.netloc:
            raise UsageError(
                f"--endpoint {self.shown}: a user and a password in the address are refused, since others can see "
                "commands; put the key into an environment variable and name it with --key-env"
            )
        if parts.query or parts.fragment:
            raise UsageError(
                f"--endpoint {self.shown}: an address ends with its path; the part behind ? or # is refused"
            )
        if self.key_variable is not None and parts.scheme == "http" and not self.on_loopback:
            raise UsageError(
                f"--key-env {self.key_variable}: {self.shown} is plain http to another machine, where everybody on the "
                "way can read the key; use https, or an ssh tunnel to a port of this machine"
            )

    @property
    def shown(self) -> str:
        """The address without user, password, query and fragment: the only form that is printed or stored."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))

    @property
    def on_loopback(self) -> bool:
        """Whether the server is on this machine, as far as the address says by itself."""
        host = _host(urlsplit(self.url))
        try:
            return host == "localhost" or ip_address(host).is_loopback
        except ValueError:
            return False  # another name; what it resolves to may change

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
            UsageError: the variable is not set, is empty, or holds what no header can carry. Never shows it.
        """
        if self.key_variable is None:
            return None
        key = os.environ.get(self.key_variable, "")
        if not key:
            raise UsageError(f"--key-env {self.key_variable}: the environment has no such variable, or an empty one")
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise UsageError(f"--key-env {self.key_variable}: holds characters that a key cannot have")
        return key


def _host(parts: SplitResult) -> str:
    """The host's name; empty if there is none or the port is no port."""
    try:
        return (parts.hostname or "") if parts.port is None or parts.port > 0 else ""
    except ValueError:
        return ""
