"""`serve`: a session answers requests until it is told to stop."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flagrelease.console import say
from flagrelease.engine.batch.runner import Runner
from flagrelease.engine.serve.bind import listen_on
from flagrelease.engine.session import Session
from flagrelease.errors import ResourceError
from flagrelease.extras import remedy
from flagrelease.model.v4.efforts import Mode

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from flagrelease.engine.serve.large import LargeBodies
    from flagrelease.engine.serve.served import Served
    from flagrelease.engine.text import Tokenizer


@dataclass(frozen=True, slots=True)
class Serving:
    """How a model is served.

    Attributes:
        name: the model's, for clients.
        mode: of chats that do not say one.
        host: address to listen on.
        port: port to listen on.
        sockets: bound to them; on ranks that do not lead none.
        context: tokens a sequence may have; None: `Session.default_context`.
        rows: sequences at once.
        queue: sequences that may wait for a row.
        budget: tokens of prompts read in a step, between two tokens of running answers.
        grace: seconds that running answers get at the end.
        access_log: print a line for every request on stderr.
        origins: of web pages that may ask from a browser.
        key: what clients must send; None: nothing, and the server answers to no other name than localhost.
    """

    name: str
    mode: Mode
    host: str
    port: int
    sockets: Sequence[socket.socket]
    context: int | None
    rows: int
    queue: int
    budget: int
    grace: int
    access_log: bool = False
    origins: Sequence[str] = ()
    key: str | None = field(default=None, repr=False)


def serve(session: Session, serving: Serving, *, as_json: bool = False) -> None:
    """Answer requests until SIGINT or SIGTERM; then no new ones, and the others get `grace` seconds to end.

    When requests are answered, a line on stderr says where; with `as_json`, a JSON document on stdout.

    Raises:
        ResourceError: the packages of the server are not installed, or another program listens on the port by now.
        LostRankError: another rank has ended.
        BaseException: whatever else ended the engine: a bug.
    """
    runner = session.runner(serving.rows, serving.context)
    if not session.model.groups.is_leader:
        # torchrun, systemd and a terminal send signals to every rank. The leader needs the others until it has stopped.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        runner.follow()
        return
    try:
        from flagrelease.engine.serve.large import LargeBodies
        from flagrelease.engine.serve.listen import listen
        from flagrelease.engine.serve.served import Served
        from flagrelease.engine.serve.service import Service
    except ModuleNotFoundError as error:
        raise ResourceError(f"serving needs {error.name}, which is not installed: {remedy('serve')}") from error
    tokenizer, efforts = session.tokenizer(), session.efforts()
    say(f"{session.release}: {efforts.said}")
    service = Service(session.scheduler(runner, tokenizer, serving.budget), serving.queue)
    large = LargeBodies()
    app = application(serving, Served(service, tokenizer, serving.name, serving.mode, efforts), large)
    settle(tokenizer)
    service.start()
    try:
        listen(
            app, serving.sockets, service, serving.grace,
            begin=lambda: listen_on(serving.sockets, serving.host, serving.port),
            started=lambda: _announce(serving, runner, as_json=as_json),
        )  # fmt: skip
    finally:
        large.stop()
        service.stop()
    runner.stop()


def settle(tokenizer: Tokenizer) -> None:
    """Do once what would hold the first requests up, and let the garbage collector pass over all that is loaded."""
    tokenizer.prepare()
    gc.collect()
    gc.freeze()


def application(serving: Serving, served: Served, large: LargeBodies) -> ASGIApp:
    """The server's application behind its checks. A preflight of a browser is answered before the key is asked for."""
    from flagrelease.engine.serve.access import AccessLog
    from flagrelease.engine.serve.guard import Guard, for_pages
    from flagrelease.engine.serve.server import make_app

    api = make_app(served)
    api.state.reader = large
    app: ASGIApp = Guard(api, serving.key)
    if serving.origins:
        app = for_pages(app, serving.origins)
    if serving.access_log:
        app = AccessLog(app, lambda line: print(line, file=sys.stderr, flush=True))
    return app


def _announce(serving: Serving, runner: Runner, *, as_json: bool) -> None:
    host = f"[{serving.host}]" if ":" in serving.host else serving.host
    url = f"http://{host}:{serving.port}/v1"
    if not as_json:
        say(f"serving {serving.name} at {url}")
        return
    document = {
        "event": "serving", "url": url, "model": serving.name, "context": runner.context, "rows": serving.rows,
        "ranks": runner.model.groups.mp, "numerics": runner.model.numerics.name, "pid": os.getpid(),
    }  # fmt: skip
    print(json.dumps(document, ensure_ascii=False), flush=True)
