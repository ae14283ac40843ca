"""Addresses of servers that are asked over HTTP: which are taken, how they are shown, and where a key may go."""

from __future__ import annotations

import os
import re
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from flagrelease.errors import UsageError


def check_address(url: str, key_variable: str | None) -> None:
    """Refuse an address that cannot be asked, or that would give a secret away.

    A user and a password in an address are refused, not sent: such an address is in the list of processes, in the
    shell's history and in the message of every library that fails on it. `--key-env` has none of these.

    Args:
        url: of the server.
        key_variable: the environment variable with the key that would be sent there; None if there is none.

    Raises:
        UsageError: names the rule, and the address without what may be secret.
    """
    parts, shown = _split(url), show_address(url)
    if parts is None or parts.scheme not in ("http", "https") or not _host(parts):
        raise UsageError(f"{shown}: an http or https address is expected")
    if "@" in url:
        raise UsageError(
            f"{shown}: a user and a password in the address are refused, since others can see commands; put the key "
            "into an environment variable and name it with --key-env"
        )
    if parts.query or parts.fragment:
        raise UsageError(f"{shown}: an address ends with its path; the part behind ? or # is refused")
    if key_variable is not None and parts.scheme == "http" and not is_on_loopback(url):
        raise UsageError(
            f"--key-env {key_variable}: {shown} is plain http to another machine, where everybody on the way can read "
            "the key; use https, or an ssh tunnel to a port of this machine"
        )


def show_address(url: str) -> str:
    """The address without user, password, query and fragment: the only form that is printed or stored.

    Of what is no address, whatever may be part of a password is left out too.
    """
    scheme, slashes, rest = url.partition("://") if "://" in url else ("", "", url)
    host = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    behind = rest[len(host) :]
    if "@" in behind:  # a password with one of these characters, or a query: nobody knows where it begins
        return f"{scheme}{slashes}(not shown)"
    return scheme + slashes + host.rpartition("@")[2] + re.split("[?#]", behind, maxsplit=1)[0]


def is_on_loopback(url: str) -> bool:
    """Whether the server is on this machine, as far as the address says by itself."""
    parts = _split(url)
    host = "" if parts is None else _host(parts)
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False  # another name; what it resolves to may change


def read_key(variable: str | None) -> str | None:
    """The key in an environment variable; None without one: the server may be anybody's.

    Raises:
        UsageError: the variable is not set, is empty, or holds what no header can carry. Never shows it.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "")
    if not key:
        raise UsageError(f"--key-env {variable}: the environment has no such variable, or an empty one")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UsageError(f"--key-env {variable}: holds characters that a key cannot have")
    return key


def _split(url: str) -> SplitResult | None:
    """Its parts; None where it has none, without the message of the standard library, which quotes a password."""
    try:
        return urlsplit(url)
    except ValueError:
        return None


def _host(parts: SplitResult) -> str:
    """The host's name; empty if there is none or the port is no port."""
    try:
        return (parts.hostname or "") if parts.port is None or parts.port > 0 else ""
    except ValueError:
        return ""
