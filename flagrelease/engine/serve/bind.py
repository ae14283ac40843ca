"""The server's address, taken before the model is loaded: a port in use is known at once, and nobody takes it since."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterable
from typing import Any

from flagrelease.errors import ResourceError

BACKLOG = 2048  # connections that may wait until the server accepts them, as many as uvicorn allows
_READING = 60  # seconds without any progress of what is sent, after which the kernel closes the connection
_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # IPv6 is switched off, though `localhost` still names ::1


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets bound to every address of `host`. Until they listen, callers are refused, not kept waiting.

    Raises:
        ResourceError: another program has the port, or no address is this machine's.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise _refusal(host, port, error) from error
    tried = [_bind(socket.socket(family, kind, protocol), address) for family, kind, protocol, _, address in found]
    bound = [each for each in tried if isinstance(each, socket.socket)]
    problems = [each for each in tried if isinstance(each, OSError)]
    severe = [each for each in problems if each.errno not in _ABSENT or not bound]
    if severe:
        close(bound)
        raise _refusal(host, port, severe[0]) from severe[0]
    return bound


def listen_on(sockets: Iterable[socket.socket], host: str, port: int) -> None:
    """Accept connections from now on.

    Raises:
        ResourceError: another program listens there by now.
    """
    try:
        for each in sockets:
            # Connections inherit these. The next server can have the port while they still linger (TIME_WAIT).
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if sys.platform == "linux":
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _READING * 1000)
            each.listen(BACKLOG)
    except OSError as error:
        raise _refusal(host, port, error) from error


def close(sockets: Iterable[socket.socket]) -> None:
    """Give the addresses back."""
    for each in sockets:
        each.close()


def _bind(new: socket.socket, address: Any) -> socket.socket | OSError:
    """Bind for this socket alone, or beside what lingers of an earlier server. Returns what prevents it."""
    try:
        if new.family == socket.AF_INET6:
            new.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 addresses have a socket of their own
        if not _bound_alone(new, address):
            new.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            new.bind(address)
    except OSError as error:
        new.close()
        return error
    return new


def _bound_alone(new: socket.socket, address: Any) -> bool:
    """Bind, unless the address is in use, be it by what lingers only."""
    try:
        new.bind(address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


def _refusal(host: str, port: int, error: OSError) -> ResourceError:
    if error.errno == errno.EADDRINUSE:
        return ResourceError(f"port {port} of {host} is in use; --port chooses another")
    return ResourceError(f"cannot listen on {host} port {port} ({error.strerror})")
