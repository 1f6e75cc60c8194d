"""Routes as they are declared, once, above what serves them: method, path, role, body, answers.

From a declaration come the server's table, the check of the asker's role and of its body
(http.py), the OpenAPI description (openapi.py) and the table of docs/api.md.
Not here: what a role's holder proves it by (listener.py).  Rests on schema.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from vmmobility.api.schema import NUMBER, TEXT, VNI, Schema

Handler = Callable[[Request], Awaitable[Response]]
Method = TypeVar("Method", bound=Callable[..., Awaitable[Response]])

_ATTRIBUTE = "__declared__"


class ApiRole(IntEnum):
    """What an asker may do; each may do what those before it may."""

    READ = 1
    OPERATE = 2
    ADMIN = 3

    @property
    def text(self) -> str:
        return self.name.lower()

    @property
    def may(self) -> str:
        """In words; each also what those before it may."""
        return _MAY[self]


_MAY = {
    ApiRole.READ: "look",
    ApiRole.OPERATE: "create VMs, start, stop, suspend and delete any VM (by force, too), protect "
    "and move them, drain and cordon NVEs, have things compared",
    ApiRole.ADMIN: "change the records of VMs and groups, release what is frozen or fenced, read "
    "who asks the API",
}


@dataclass(frozen=True, slots=True)
class Query:
    """A parameter behind the `?`; none is required.  words: what it does."""

    name: str
    schema: Schema
    words: str


VNI_QUERY = Query("vni", VNI, "the VM's virtual network; 0 unless given")
TIMEOUT_QUERY = Query("timeout", NUMBER, "seconds that it may take")
WAIT_QUERY = Query("wait", NUMBER, "seconds to wait for its end")


@dataclass(frozen=True, slots=True)
class Declared:
    """One route.

    summary: a sentence; answer: the schema of what is answered with `status`; body: of what is
    asked, None where nothing is read; stream: the answer is text/event-stream, each event's data
    is an answer; refusals: the statuses of errors that it may answer, beside 400, 401, 403, 500
    and 503
    """

    method: str
    path: str
    role: ApiRole
    summary: str
    answer: Schema
    status: int = 200
    query: tuple[Query, ...] = ()
    body: Schema | None = None
    refusals: tuple[int, ...] = ()
    stream: bool = False
    operation: str = field(default="", compare=False)

    @property
    def parameters(self) -> list[str]:
        """The names of the path's parameters."""
        return [part[1:-1] for part in self.path.split("/") if part.startswith("{")]

    @property
    def changes(self) -> bool:
        """Whether a request is written down with who made it."""
        return self.method != "GET"


def declared(
    method: str,
    path: str,
    role: ApiRole,
    summary: str,
    *,
    answer: Schema,
    status: int = 200,
    query: tuple[Query, ...] = (),
    body: Schema | None = None,
    refusals: tuple[int, ...] = (),
    stream: bool = False,
) -> Callable[[Method], Method]:
    """Declares the route that this method serves."""

    def mark(handler: Method) -> Method:
        route = Declared(
            method, path, role, summary, answer, status, query, body, refusals, stream,
            handler.__name__,
        )  # fmt: skip
        setattr(handler, _ATTRIBUTE, route)
        return handler

    return mark


def declarations(handlers: type | object) -> Iterator[tuple[Declared, str]]:
    """Each declared route of a class, and the name of the method that serves it; base classes
    last."""
    kind = handlers if isinstance(handlers, type) else type(handlers)
    seen: set[str] = set()
    for each in kind.__mro__:
        for name, member in vars(each).items():
            route = getattr(member, _ATTRIBUTE, None)
            if isinstance(route, Declared) and name not in seen:
                seen.add(name)
                yield route, name


# What each parameter of a path is.
PATH_PARAMETERS: Mapping[str, tuple[Schema, str]] = {
    "vm": (TEXT, "VM-ID"),
    "group": (TEXT, "the group's name"),
    "id": (TEXT, "the ID that the answer to its beginning gave"),
    "nve": (TEXT, "NVE-ID"),
    "address": (TEXT, "IPv4 or IPv6 address"),
}


def parameter_of(name: str) -> dict[str, Any]:
    """A path's parameter as OpenAPI has it."""
    schema, words = PATH_PARAMETERS[name]
    return {"name": name, "in": "path", "required": True, "schema": schema, "description": words}
