"""What a client or a monitor asks about the server itself: models, health, version, metrics."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

import flagrelease
from flagrelease.engine.serve.metrics import exposition
from flagrelease.engine.serve.served import Served

Handler = TypeVar("Handler", bound=Callable[..., Any])


def add_status(app: FastAPI, served: Served) -> None:
    """Add the routes, each for GET and HEAD."""
    now = datetime.now(timezone.utc).replace(microsecond=0)
    card: dict[str, Any] = {"id": served.name, "object": "model", "created": int(now.timestamp())}
    card |= {"owned_by": "flagrelease", "max_model_len": served.service.context}
    # as Anthropic's clients read it, which ask the same path
    card |= {"type": "model", "display_name": served.name, "created_at": now.isoformat().replace("+00:00", "Z")}
    whole = {"has_more": False, "first_id": served.name, "last_id": served.name}

    def asked(path: str) -> Callable[[Handler], Handler]:
        def add(handler: Handler) -> Handler:
            app.get(path)(handler)
            app.head(path, include_in_schema=False)(handler)
            return handler

        return add

    @asked("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card], **whole}

    @asked("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        served.check_model(name)
        return card

    @asked("/health/live")
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @asked("/health/ready")
    @asked("/health")
    async def ready() -> Response:
        """Requests are answered: the model is loaded and has not failed."""
        alive = served.service.alive
        return JSONResponse({"status": "ready" if alive else "stopped"}, 200 if alive else 503)

    @asked("/version")
    async def version() -> dict[str, str]:
        return {"version": flagrelease.__version__}

    @asked("/metrics")
    async def metrics() -> Response:
        return Response(exposition(served.service.load), media_type="text/plain; version=0.0.4")
