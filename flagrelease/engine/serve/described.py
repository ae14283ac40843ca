"""/openapi.json: what FastAPI tells of the routes, made true where it cannot know."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from flagrelease.engine.serve.requests.refusals import ANTHROPIC

_STREAMED = (
    "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages",
)  # fmt: skip
_REFUSALS = {
    "400": "The request is wrong: the message says where.",
    "401": "The key is missing or wrong.",
    "403": "The host is a domain's name, and there is no key.",
    "404": "There is no such model.",
    "413": "The body is too long.",
    "429": "The queue is full.",
    "503": "The engine has stopped.",
}
_TEXT = {"type": "string"}
_EVENT = {"type": "object", "required": ["data"], "properties": {"event": _TEXT, "data": _TEXT}}  # each of a stream
_TEXT_OR_NULL = {"type": ["string", "null"]}
_ERRORS: dict[str, Any] = {
    "OpenAIError": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL},
            }
        },
    },
    "AnthropicError": {
        "type": "object",
        "required": ["type", "error"],
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "properties": {"type": _TEXT, "message": _TEXT},
            },
        },
    },
}


def describe(app: FastAPI, model: str) -> None:
    """Let `app` tell its refusals, its streams and the name of its model."""
    told = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(told(), model)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _completed(document: dict[str, Any], model: str) -> dict[str, Any]:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for schema in schemas.values():
        if "model" in schema.get("properties", {}):
            nothing = [] if "model" in schema.get("required", ()) else [None]
            schema["properties"]["model"] = {"enum": [model, *nothing], "title": "Model"}
    schemas |= _ERRORS
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete(operation, path, method)
    return document


def _complete(operation: dict[str, Any], path: str, method: str) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    if path in _STREAMED:
        responses["200"]["content"] = {"application/json": {"schema": {"type": "object"}}}
        responses["200"]["content"]["text/event-stream"] = {"schema": _EVENT}
    if path == "/metrics":
        responses["200"]["content"] = {"text/plain": {"schema": _TEXT}}
    form = "AnthropicError" if path.startswith(ANTHROPIC) else "OpenAIError"
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{form}"}}}
    answered = ("401", "403", "404", "503") if method == "get" else _REFUSALS
    responses |= {status: {"description": _REFUSALS[status], "content": content} for status in answered}
