"""What all APIs share of HTTP: the table of declared routes, reading strictly, errors as JSON.

Not here: the routes (manager_api.py, ...), the sockets (server.py).  Rests on Starlette.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import unquote_to_bytes

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vmmobility.api.access import allow
from vmmobility.api.declared import ApiRole, Declared, Handler, declarations, declared
from vmmobility.api.errors import BadRequest, Unavailable, status_of
from vmmobility.api.openapi import describe
from vmmobility.api.schema import ANYTHING, flaw, table
from vmmobility.api.service import Json
from vmmobility.errors import VmMobilityError
from vmmobility.wire.formats import check_name
from vmmobility.wire.values import VmKey

T = TypeVar("T")

MAX_BODY = 1 << 20  # octets
BODY_S = 30.0  # how long a body may take to come
MAX_VNI = (1 << 24) - 1
MAX_WAIT_S = 3600.0
TRACE_S = 5.0  # how long a node may take to say how it leads an address, likewise
CHECK_S = 60.0  # how long a check may take, unless the asker says otherwise


class Described:
    """What every API has: its own description.  title: of that."""

    title = ""

    @declared(
        "GET",
        "/v1/openapi.json",
        ApiRole.READ,
        "this API's OpenAPI 3.1 description",
        answer=table(ANYTHING),
    )
    async def openapi(self, _: Request) -> Response:
        routes = [route for route, _ in declarations(self)]
        return JSONResponse(describe(routes, self.title))


def application(handlers: Described) -> Starlette:
    """A Starlette application of what `handlers` declares; its every error is
    `{"error", "remedy"}`."""
    errors = {
        VmMobilityError: _refused,
        HTTPException: _no_route,
        Exception: _failed,
    }
    routes = [
        Route(route.path, _endpoint(route, getattr(handlers, name)), methods=[route.method])
        for route, name in declarations(handlers)
    ]
    return Starlette(routes=routes, exception_handlers=errors)  # type: ignore[arg-type]


def _endpoint(route: Declared, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        allow(request.scope, route)
        _plain_text(request)
        _known_query(request, route)
        request.state.declared = route
        return await handler(request)

    return endpoint


def _plain_text(request: Request) -> None:
    """Octets that are no UTF-8 would be replaced, and another name be taken for the one meant."""
    target = request.scope.get("raw_path", b"") + b"?" + request.scope["query_string"]
    try:
        unquote_to_bytes(target).decode()
    except UnicodeDecodeError:
        raise BadRequest("the path, or a parameter, is no UTF-8", "write names in UTF-8") from None


def _known_query(request: Request, route: Declared) -> None:
    """A parameter that is misspelt must not be taken for one that was not given."""
    known = [query.name for query in route.query]
    for name in request.query_params:
        if name not in known:
            raise BadRequest(f"unknown parameter {name!r:.80}", f"known here: {_listed(known)}")


def _listed(names: list[str]) -> str:
    return ", ".join(names) if names else "none"


def problem(status: int, error: str, remedy: str) -> Response:
    return JSONResponse({"error": error, "remedy": remedy}, status)


async def _refused(_: Request, error: VmMobilityError) -> Response:
    return problem(status_of(error), error.message, error.remedy)


async def _no_route(request: Request, error: HTTPException) -> Response:
    what = f"{request.method} {request.url.path}: {error.detail}"
    return problem(error.status_code, what, "see docs/api.md, or GET /v1/openapi.json")


async def _failed(_: Request, error: Exception) -> Response:
    # Starlette raises it again after this answer, so the daemon's log has the traceback.
    what = f"the daemon failed at this request: {type(error).__name__}: {error}"
    return problem(500, what, "report this with the daemon's log")


async def body(request: Request) -> Json:
    """The body, an object as the route declares it.  Raises BadRequest."""
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                data += chunk
                if len(data) > MAX_BODY:
                    raise BadRequest(f"the body is longer than {MAX_BODY} octets", "send less")
    except TimeoutError:
        raise Unavailable(f"the body did not come within {BODY_S:g} s", "send it again") from None
    try:
        value = json.loads(data.decode())
        # "\ud800" alone is JSON, and no text that could be stored, sent or answered.
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError:
        raise BadRequest("the body is no UTF-8", "write texts in UTF-8") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadRequest("the body is no JSON object", "send {…}")
    route: Declared = request.state.declared
    assert route.body is not None, f"{route.method} {route.path} declares no body"
    wrong = flaw(value, route.body)
    if wrong:
        raise BadRequest(wrong, f"send {_listed(list(route.body.get('properties', {})))}")
    return value


def vm_key(vm_id: object, vni: object) -> VmKey:
    """Raises BadRequest if they are no VM's name."""
    if isinstance(vni, bool) or not isinstance(vni, int) or not 0 <= vni <= MAX_VNI:
        raise BadRequest(f"{vni!r} is no VNI", f"use 0 to {MAX_VNI}")
    try:
        return VmKey(vni, check_name(vm_id if isinstance(vm_id, str) else ""))
    except ValueError as error:
        raise BadRequest(f"no VM-ID: {error}", "give the VM's name") from None


def vm_of(request: Request) -> VmKey:
    """The VM that the path and `?vni=` name.  Raises BadRequest."""
    text = request.query_params.get("vni", "0")
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise BadRequest(f"{text!r} is no VNI", f"use 0 to {MAX_VNI}")
    return vm_key(request.path_params["vm"], int(text))


def name_of(value: object, key: str, remedy: str) -> str:
    """A node's name.  Raises BadRequest."""
    try:
        return check_name(value if isinstance(value, str) else "")
    except ValueError as error:
        raise BadRequest(f"{key}: no NVE-ID: {error}", remedy) from None


async def while_asked(request: Request, answer: Awaitable[T]) -> T:
    """The answer, which takes long; Unavailable once nobody waits for it any more."""

    loop, limit = asyncio.get_running_loop(), asyncio.timeout(None)

    async def leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        limit.reschedule(loop.time())

    gone = loop.create_task(leaves(), name="api asker")
    try:
        async with limit:
            return await answer
    except TimeoutError:
        raise Unavailable("whoever asked has left", "ask again") from None
    finally:
        gone.cancel()


def seconds_of(request: Request, key: str) -> float | None:
    """The seconds of `?KEY=`, or None.  Raises BadRequest."""
    text = request.query_params.get(key)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= MAX_WAIT_S:
        raise BadRequest(f"{text!r} is no time to wait", f"use 0 to {MAX_WAIT_S:g} seconds")
    return seconds
