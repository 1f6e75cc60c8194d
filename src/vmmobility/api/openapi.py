"""The OpenAPI 3.1 description of an API, made from its declarations; and their table for people.

Not here: the declarations (declared.py, and the modules of each daemon's routes).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vmmobility import __version__
from vmmobility.api.declared import ApiRole, Declared, parameter_of
from vmmobility.api.schema import NAMED, REFERENCE, TEXT, Schema, named, record

PROBLEM = named("Problem", record({"error": TEXT, "remedy": TEXT}))
EVERYWHERE = (400, 401, 403, 500, 503)  # statuses that every route may answer
_WORDS = {
    400: "the request is wrong in itself",
    401: "no token, or one that is not known, has expired or was revoked",
    403: "the token's role may not do this",
    404: "there is no such thing",
    409: "it does not fit the present state",
    500: "the daemon failed at this request",
    503: "the daemon cannot do it now",
}


def describe(routes: Iterable[Declared], title: str) -> dict[str, Any]:
    """The whole document."""
    paths: dict[str, dict[str, Any]] = {}
    used: set[str] = set()
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
        _collect(route.answer, used)
        _collect(route.body or {}, used)
    _collect(PROBLEM, used)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": __version__},
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": {name: NAMED[name] for name in sorted(used)},
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "made by `vmmob token new`; none on the unix socket",
                }
            },
        },
    }


def _operation(route: Declared) -> dict[str, Any]:
    kind = "text/event-stream" if route.stream else "application/json"
    answers: dict[str, Any] = {
        str(route.status): {
            "description": route.summary,
            "content": {kind: {"schema": TEXT if route.stream else route.answer}},
        }
    }
    for status in sorted({*EVERYWHERE, *route.refusals}):
        answers[str(status)] = {
            "description": _WORDS[status],
            "content": {"application/json": {"schema": PROBLEM}},
        }
    found: dict[str, Any] = {
        "operationId": route.operation,
        "summary": route.summary,
        "x-role": route.role.text,
        "parameters": [
            *map(parameter_of, route.parameters),
            *(
                {"name": q.name, "in": "query", "schema": q.schema, "description": q.words}
                for q in route.query
            ),
        ],
        "responses": answers,
    }
    if route.stream:
        found["x-event-data"] = route.answer
    if route.body is not None:
        content = {"application/json": {"schema": route.body}}
        found["requestBody"] = {"required": True, "content": content}
    return found


def _collect(schema: Any, used: set[str]) -> None:
    """The names that a schema refers to, and those that they refer to."""
    if isinstance(schema, dict):
        name = schema.get("$ref", "")
        if isinstance(name, str) and name and (name := name.removeprefix(REFERENCE)) not in used:
            used.add(name)
            _collect(NAMED[name], used)
        for each in schema.values():
            _collect(each, used)
    elif isinstance(schema, list | tuple):
        for each in schema:
            _collect(each, used)


def route_table(routes: Iterable[Declared]) -> str:
    """The rows of docs/api.md."""
    lines = ["| Request | Role | Body | Answer | |", "|---|---|---|---|---|"]
    for route in routes:
        query = "".join(f" `?{q.name}=`" for q in route.query)
        what = f"{route.status} " if route.status != 200 else ""
        lines.append(
            f"| `{route.method} {route.path}`{query} | {route.role.text} | {_short(route.body)} "
            f"| {what}{'events of ' if route.stream else ''}{_short(route.answer)} "
            f"| {route.summary} |"
        )
    return "\n".join(lines) + "\n"


def role_table(routes: Iterable[Declared]) -> str:
    """What each role may, and the requests that change something for which it is needed."""
    known = list(routes)
    lines = ["| Role | May | Requests |", "|---|---|---|"]
    for role in ApiRole:
        mine = [each for each in known if each.role is role and each.changes]
        requests = [f"`{each.method} {each.path}{_forced(each)}`" for each in mine]
        besides = "" if role is min(ApiRole) else "besides: "
        lines.append(
            f"| `{role.text}` | {besides}{role.may} | {', '.join(requests) or 'every GET'} |"
        )
    return "\n".join(lines) + "\n"


def _forced(route: Declared) -> str:
    """The parameter that makes it worse."""
    return "[?force=1]" if any(query.name == "force" for query in route.query) else ""


def schema_table(routes: Iterable[Declared]) -> str:
    """The named schemas of docs/api.md."""
    used: set[str] = set()
    for route in routes:
        _collect(route.answer, used)
    lines = ["| Schema | Fields (`?`: not always there; `null`: may be null) |", "|---|---|"]
    lines += [f"| {name} | {_short(NAMED[name], whole=True)} |" for name in sorted(used)]
    return "\n".join(lines) + "\n"


def _short(schema: Schema | None, *, whole: bool = False) -> str:
    """A schema in few words."""
    if schema is None:
        return "–"
    if "$ref" in schema:
        return str(schema["$ref"]).removeprefix(REFERENCE)
    kinds = schema.get("type", "anything")
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    null = " null" if "null" in kinds else ""
    kind = next((each for each in kinds if each != "null"), "null")
    if "enum" in schema:
        return " \\| ".join(f"`{value}`" for value in schema["enum"] if value is not None) + null
    if kind == "array":
        return f"list of {_short(schema.get('items', {}), whole=whole)}{null}"
    if kind == "object" and schema.get("properties"):
        must = schema.get("required", ())
        fields = (
            f"`{name}`{'' if name in must else '?'}"
            + (f" ({_short(inner)})" if whole and _is_told(inner) else "")
            for name, inner in schema["properties"].items()
        )
        return ", ".join(fields) + null
    return kind + null


def _is_told(schema: Schema) -> bool:
    return "$ref" in schema or "enum" in schema or schema.get("type") == "array"
