"""Refusals as clients read them: the error object of their interface, with the path of what was wrong."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from flagrelease.engine.sampling import SamplingError
from flagrelease.engine.serve.service import BusyError
from flagrelease.errors import FlagReleaseError, ResourceError, UsageError
from flagrelease.strict_json import parse_json

CLIENT_LEFT = 499  # nginx's number, for logs: nobody reads the response
MOST_BYTES = 16 * 2**20  # of a body: a million token ids are half of it
MOST_VALUES = 50_000  # that are no integers: a conversation of some thousand messages
_DIGITS = 20  # of a body's length: more of them would say no more
_NO_JSON = "the body is not a JSON object, or its content-type is not application/json"
_SMALL = 8192  # bytes that take about a millisecond
_DEEPEST = 100  # levels of a body: beyond a few hundred more, writing it back as JSON would end in a RecursionError
_KINDS = {401: "authentication_error", 429: "rate_limit_error"}
ANTHROPIC = "/v1/messages"  # paths that are of Anthropic's interface
_ANTHROPIC_KINDS = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error",
}  # fmt: skip


class ParameterError(UsageError):
    """A request that is refused for one parameter. `param` is its path, `code` OpenAI's word for the kind."""

    def __init__(self, message: str, param: str, code: str | None = None, status: int = 400) -> None:
        """`status` is that of HTTP."""
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


@contextmanager
def blamed(param: str) -> Iterator[None]:
    """Say of what is refused inside, and names no parameter, that it is `param`'s fault."""
    try:
        yield
    except ParameterError:
        raise
    except UsageError as error:
        raise ParameterError(str(error), error.name if isinstance(error, SamplingError) else param) from error


class BadBody(HTTPException):
    """A body that is not the JSON of a request: FastAPI lets HTTP's own exceptions through while it reads one."""

    def __init__(self, message: str, param: str | None = None, status: int = 400) -> None:
        """`param`: the path of the value that is to blame."""
        super().__init__(status, message)
        self.param = param


def _too_long() -> BadBody:
    return BadBody(f"the body is longer than {MOST_BYTES:,} bytes", status=413)


class JsonRequest(Request):
    """A request whose body is read strictly."""

    async def body(self) -> bytes:
        """The body, read once, and no further than its limit; none of one that is said to be longer.

        Raises:
            BadBody: it is longer, or the client has left in the middle of it.
        """
        if not hasattr(self, "_read"):
            said = self.headers.get("content-length", "")
            if said.isdecimal() and int(said[:_DIGITS]) > MOST_BYTES:
                raise _too_long()
            try:
                self._read = b"".join([piece async for piece in self._pieces()])
            except ClientDisconnect as error:
                raise BadBody("the client has left", status=CLIENT_LEFT) from error
        return self._read

    async def _pieces(self) -> AsyncIterator[bytes]:
        size = 0
        async for piece in self.stream():
            size += len(piece)
            if size > MOST_BYTES:
                raise _too_long()
            yield piece

    async def json(self) -> Any:
        """The body, parsed once.

        Raises:
            BadBody: it is not JSON of texts that UTF-8 can hold and of finite numbers, and the message says where; or
                it is said to be another kind of JSON, which FastAPI would take and no `BodyReader` would be given.
        """
        if not self.is_json:
            raise BadBody(_NO_JSON)
        if not hasattr(self, "_parsed"):
            self._parsed = read_json(await self.body())
        return self._parsed

    @property
    def is_json(self) -> bool:
        """Whether the body is said to be JSON."""
        return self.headers.get("content-type", "").split(";")[0].strip().lower() == "application/json"


class BodyReader(Protocol):
    """Reads large bodies without holding the event loop up."""

    async def read(self, path: str, raw: bytes) -> Any:
        """The checked value of a body for the route `path`; raises what reading it here would raise."""
        ...


class JsonRoute(APIRoute):
    """A route whose requests are `JsonRequest`s. Where the application has a `BodyReader`, it reads large bodies."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's own, given another kind of request."""
        handle = super().get_route_handler()

        async def read_strictly(request: Request) -> Response:
            own = JsonRequest(request.scope, request.receive)
            reader: BodyReader | None = getattr(request.app.state, "reader", None)
            if reader is None or self.body_field is None or not own.is_json or len(await own.body()) <= _SMALL:
                return await handle(own)
            return await self._call(own, await reader.read(self.path, await own.body()))

        return read_strictly

    async def _call(self, request: Request, value: Any) -> Response:
        (body,) = self.dependant.body_params
        given = {body.name: value}
        if self.dependant.request_param_name is not None:
            given[self.dependant.request_param_name] = request
        assert self.dependant.call is not None, "a route has an endpoint"
        answer = await self.dependant.call(**given)
        return answer if isinstance(answer, Response) else JSONResponse(answer)


def install(app: FastAPI) -> None:
    """Let every refusal of `app`, those of its router included, have its interface's error object as its body."""

    @app.exception_handler(FlagReleaseError)
    async def refuse(request: Request, error: FlagReleaseError) -> Response:
        path = request.url.path
        if isinstance(error, ParameterError):
            return error_response(error.status, str(error), error.param, error.code, path=path)
        if isinstance(error, BusyError):
            return error_response(429, str(error), headers={"Retry-After": str(error.retry_after)}, path=path)
        return error_response(503 if isinstance(error, ResourceError) else 400, str(error), path=path)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        problem = error.errors()[0]
        refusal = invalid_parameter({**problem, "loc": problem["loc"][1:]}, error.body)
        if not refusal.param:
            return error_response(400, _NO_JSON, path=request.url.path)
        return error_response(400, str(refusal), refusal.param, refusal.code, path=request.url.path)

    @app.exception_handler(BadBody)
    async def unread(request: Request, error: BadBody) -> Response:
        return error_response(error.status_code, error.detail, error.param, path=request.url.path)

    @app.exception_handler(HTTPException)
    async def unrouted(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        words = {404: f"{path}: not found", 405: f"{path} does not take {request.method}"}
        message, headers = words.get(error.status_code, error.detail), error.headers
        if error.status_code == 405 and headers == {"Allow": "GET"}:
            headers = {"Allow": "GET, HEAD"}  # each has a route of its own, and the first one answered
        return error_response(error.status_code, message, headers=headers, path=path)


def invalid_parameter(problem: Mapping[str, Any], body: Any) -> ParameterError:
    """What pydantic found, as a refusal that names the place in `body`."""
    path = parameter_path(problem["loc"], body)
    if problem["type"] == "extra_forbidden":
        return ParameterError(f"Unknown parameter: '{path}'", path, "unknown_parameter")
    kinds = {"missing": "missing_required_parameter", "unsupported_value": "unsupported_value"}
    return ParameterError(f"{path}: {_words(problem)}", path, kinds.get(problem["type"]))


def _words(problem: Mapping[str, Any]) -> str:
    if problem["type"] in ("model_type", "model_attributes_type"):  # pydantic names our class
        return "Input should be an object"
    words: str = problem["msg"]
    return words


def error_response(
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
    path: str = "",
) -> Response:
    """The error object of the interface that `path` belongs to.

    It is escaped as ASCII, for a message may quote half a surrogate pair of the request.
    """
    if path.startswith(ANTHROPIC):
        document = _anthropic_error(status, message, param)
    else:
        kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
        document = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return Response(json.dumps(document), status, headers, "application/json")


def _anthropic_error(status: int, message: str, param: str | None) -> dict[str, Any]:
    """Anthropic's object, which has no place for a parameter: the message begins with it."""
    kind = _ANTHROPIC_KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    words = message if param is None or param in message else f"{param}: {message}"
    return {"type": "error", "error": {"type": kind, "message": words}, "request_id": None}


def parameter_path(place: Sequence[str | int], body: Any) -> str:
    """The path of a parameter, such as `messages[1].content`.

    Args:
        place: where pydantic found a problem. The names that it gives to the members of a union are left out.
        body: the body of the request, which tells those names from keys.
    """
    path = ""
    for n, step in enumerate(place):
        if isinstance(step, int):
            known = isinstance(body, list)
            path += f"[{step}]" if known else ""
            body = body[step] if known and step < len(body) else None
        elif isinstance(body, dict) and (step in body or n + 1 == len(place)):
            path += f".{step}" if path else step
            body = body.get(step)
    return path


def read_json(raw: bytes) -> Any:
    """The body's value.

    Raises:
        BadBody: it is not JSON of texts that UTF-8 can hold and of finite numbers; the message says where.
    """
    try:
        body = parse_json(raw)
    except ValueError as error:
        raise BadBody(f"the body is not JSON: {error}") from error
    _check_values(body)
    return body


def _check_values(body: Any) -> None:
    """Look at every value, without recursion."""
    left: list[tuple[str, int, Any]] = [("", 0, body)]
    seen = 0
    while left:
        path, depth, value = left.pop()
        seen += 1
        if seen + len(left) > MOST_VALUES:
            raise BadBody(f"the body has more than {MOST_VALUES:,} values", status=413)
        if depth > _DEEPEST:
            raise BadBody(f"{path[:80]}...: nested more than {_DEEPEST} levels deep", path[:80])
        if isinstance(value, str) and not _is_text(value):
            raise BadBody(f"{path}: half of a surrogate pair, which is no character", path)
        if isinstance(value, float) and not math.isfinite(value):
            raise BadBody(f"{path}: the number is too large", path)
        if isinstance(value, list):
            left += [(f"{path}[{n}]", depth + 1, each) for n, each in enumerate(value) if not isinstance(each, int)]
        if isinstance(value, dict):
            for key, each in value.items():
                if not _is_text(key):
                    raise BadBody(f"{path}: a key with half of a surrogate pair, which is no character", path or None)
                left.append((f"{path}.{key}" if path else key, depth + 1, each))


def _is_text(value: str) -> bool:
    """Whether UTF-8 can hold it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
