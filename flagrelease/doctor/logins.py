"""Whether there is a token for each hub and whether it looks like one. No token comes into this process."""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict

from flagrelease.doctor.packages import Packages
from flagrelease.doctor.place import Place
from flagrelease.publish.hubs.hub import Hub
from flagrelease.publish.hubs.registry import HUBS
from flagrelease.redaction import redact

_SECONDS = 30.0


class Login(BaseModel):
    """At one hub.

    Attributes:
        there: null where the hub's client is not installed or did not answer; `trouble` says which.
        looks_right: whether it has the form of the hub's tokens.
        user: whose it is, if the hub was asked and took it.
    """

    model_config = ConfigDict(frozen=True)

    hub: str
    there: bool | None
    looks_right: bool = False
    user: str | None = None
    trouble: str | None = None


def look_at_logins(place: Place, packages: Packages, online: bool) -> list[Login]:
    """Ask each hub's own client, in a process of its own; the hub itself only where `online`."""
    return [_login(hub, place, packages, online) for hub in HUBS]


def _login(hub: Hub, place: Place, packages: Packages, online: bool) -> Login:
    if packages.version(hub.package) is None:
        return Login(hub=hub.scheme, there=None, trouble=f"{hub.package} is not installed (the extra publish)")
    ran = place.probe(f"login_{hub.scheme}.py", [hub.token, *(["online"] if online else [])], _SECONDS)
    lines = [json.loads(line) for line in ran.out.splitlines() if line.startswith("{")]
    if not lines:
        return Login(hub=hub.scheme, there=None, trouble=f"its client {redact(ran.ending)}")
    user = lines[1]["user"] if len(lines) > 1 else None
    trouble = None
    if online and lines[0]["there"] and user is None:
        kind = ran.ending.partition(":")[0].rpartition(".")[2]  # the message of an error may quote the request
        trouble = f"the hub was asked and did not take it ({redact(kind)})"
    return Login(hub=hub.scheme, there=lines[0]["there"], looks_right=lines[0]["looks"], user=user, trouble=trouble)
