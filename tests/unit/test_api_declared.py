"""Every route is declared, every declared route answers as it says, and the pages tell the same."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.unit.fake_services import ALARM, FakeManager, FakeNapt, FakeNve, FakeRouter
from vmmobility.api import http, schema
from vmmobility.api.access import Asker, asked_by
from vmmobility.api.declared import ApiRole, Declared, declarations
from vmmobility.api.manager_api import ManagerRoutes
from vmmobility.api.napt_api import NaptRoutes
from vmmobility.api.nve_api import NveRoutes
from vmmobility.api.openapi import describe
from vmmobility.api.router_api import RouterRoutes
from vmmobility.api.schema import Schema, flaw

ROOT = Path(__file__).parents[2]
DEFINITION = {"vm_id": "vm1", "kind": "qemu", "interfaces": [{}]}
RECORD = {"vm_id": "vm1", "interfaces": [{"mac": "52:54:00:00:00:01", "addresses": ["10.1.0.5"]}]}


def manager() -> ManagerRoutes:
    service = FakeManager()
    service.raised = [ALARM]
    service.held = [{**service.held[0], "state": "frozen"}]
    return ManagerRoutes(service)


APIS = {
    "manager": manager,
    "nve": lambda: NveRoutes(FakeNve()),
    "router": lambda: RouterRoutes(FakeRouter()),
    "napt": lambda: NaptRoutes(FakeNapt()),
}
NEW_VM = {"client_key": "k", "vm_id": "vm1", "resources": {"memory_mib": 512}}
GROUP = {"members": {"vm1": 1, "vm2": 2}}
VALUES = {"group": "web", "vm": "vm1", "id": "m1", "nve": "nve-a", "address": "10.1.0.5"}
GUARDED: tuple[str, str, Any] = ("POST", "/v1/vms/vm1/protection", {"to": "nve-b"})
# What is asked first, so that a route has something to answer; and the bodies.
BEFORE: dict[tuple[str, str, str], list[tuple[str, str, Any]]] = {
    ("manager", "GET", "/v1/moves/{id}"): [("POST", "/v1/moves", {"vm": "vm1", "to": "nve-b"})],
    ("manager", "GET", "/v1/moves"): [("POST", "/v1/moves", {"vm": "vm1", "to": "nve-b"})],
    ("manager", "GET", "/v1/vms"): [("POST", "/v1/moves", {"vm": "vm1", "to": "nve-b"})],
    ("manager", "POST", "/v1/moves/{id}/abort"): [
        ("POST", "/v1/moves", {"vm": "vm1", "to": "nve-b"})
    ],
    ("manager", "GET", "/v1/drains"): [("POST", "/v1/drains", {"nve": "nve-a"})],
    ("manager", "GET", "/v1/drains/{id}"): [("POST", "/v1/drains", {"nve": "nve-a"})],
    ("manager", "POST", "/v1/drains/{id}/abort"): [("POST", "/v1/drains", {"nve": "nve-a"})],
    ("manager", "DELETE", "/v1/vms/{vm}"): [("POST", "/v1/vms/vm1/stop", None)],
    ("manager", "GET", "/v1/protected"): [GUARDED],
    ("manager", "DELETE", "/v1/vms/{vm}/protection"): [GUARDED],
    ("manager", "GET", "/v1/onboarded"): [("PUT", "/v1/onboarded/vm1", RECORD)],
    ("manager", "DELETE", "/v1/onboarded/{vm}"): [("PUT", "/v1/onboarded/vm1", RECORD)],
    ("manager", "POST", "/v1/vms/{vm}/confirm"): [("POST", "/v1/vms", NEW_VM)],
    ("manager", "GET", "/v1/vms/{vm}/life"): [("POST", "/v1/vms", NEW_VM)],
    ("manager", "GET", "/v1/groups"): [("PUT", "/v1/groups/web", GROUP)],
    ("manager", "DELETE", "/v1/groups/{group}"): [("PUT", "/v1/groups/web", GROUP)],
    ("nve", "GET", "/v1/vms"): [("PUT", "/v1/vms/vm1", DEFINITION)],
    ("nve", "DELETE", "/v1/vms/{vm}"): [("PUT", "/v1/vms/vm1", DEFINITION)],
    ("nve", "POST", "/v1/vms/{vm}/relocate"): [("PUT", "/v1/vms/vm1", DEFINITION)],
    ("nve", "DELETE", "/v1/expected/{vm}"): [
        ("PUT", "/v1/expected/vm1", {**DEFINITION, "kind": "external"})
    ],
}
BODIES: dict[tuple[str, str, str], Any] = {
    ("manager", "POST", "/v1/vms"): NEW_VM,
    ("manager", "POST", "/v1/vms/{vm}/confirm"): {"resources": {"memory_mib": 256}},
    ("manager", "POST", "/v1/drains"): {"nve": "nve-a", "to": ["nve-b"], "parallel": 2},
    ("manager", "PUT", "/v1/onboarded/{vm}"): RECORD,
    ("manager", "PUT", "/v1/groups/{group}"): GROUP,
    ("manager", "POST", "/v1/vms/{vm}/protection"): {"to": "nve-b", "every_s": 5},
    ("manager", "POST", "/v1/moves"): {"vm": "vm1", "to": "nve-b"},
    ("nve", "PUT", "/v1/vms/{vm}"): DEFINITION,
    ("nve", "PUT", "/v1/expected/{vm}"): {**DEFINITION, "kind": "external"},
}


def every() -> list[tuple[str, Declared]]:
    return [(name, route) for name, made in APIS.items() for route, _ in declarations(made())]


def path_of(route: Declared) -> str:
    values = {**VALUES, "id": "d1"} if "/drains/" in route.path else VALUES
    return route.path.format(**values)


def ask(
    app: Any, method: str, target: str, body: Any = None, role: ApiRole | None = ApiRole.ADMIN
) -> tuple[int, Any]:
    """Status and JSON of a request that someone of this role makes; None: nobody is known."""
    path, _, query = target.partition("?")
    scope: dict[str, Any] = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method,
        "scheme": "http", "path": path, "raw_path": path.encode(), "root_path": "",
        "query_string": query.encode(), "headers": [],
    }  # fmt: skip
    said: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(body).encode() if body else b""}

    async def send(message: Any) -> None:
        said.append(message)

    asker = scope if role is None else asked_by(scope, Asker("a test", role))
    asyncio.run(app(asker, receive, send))
    content = b"".join(message.get("body", b"") for message in said)
    return said[0]["status"], json.loads(content)


@pytest.mark.parametrize(("name", "route"), every(), ids=lambda x: getattr(x, "operation", x))
def test_every_declared_route_answers_what_it_says(name: str, route: Declared):
    app = http.application(APIS[name]())
    key = (name, route.method, route.path)
    for method, target, body in BEFORE.get(key, []):
        assert ask(app, method, target, body)[0] < 300
    if route.stream:
        return  # tests/unit/test_event_feed.py follows it
    status, answer = ask(app, route.method, path_of(route), BODIES.get(key))
    assert status == route.status, answer
    assert flaw(answer, route.answer, closed=True) == ""


@pytest.mark.parametrize(("name", "route"), every(), ids=lambda x: getattr(x, "operation", x))
def test_every_route_is_for_its_role_and_those_above(name: str, route: Declared):
    app = http.application(APIS[name]())
    assert ask(app, route.method, path_of(route), role=None)[0] == 401
    for role in ApiRole:
        if route.stream and role >= route.role:
            continue  # it would go on
        status, answer = ask(app, route.method, path_of(route), role=role)
        assert (status == 403) is (role < route.role), answer
        if status == 403:
            assert f"needs the role {route.role.text}" in answer["error"]
            assert f"--role {route.role.text}" in answer["remedy"]


@pytest.mark.parametrize(("name", "route"), every(), ids=lambda x: getattr(x, "operation", x))
def test_nothing_unknown_is_passed_over(name: str, route: Declared):
    app = http.application(APIS[name]())
    status, answer = ask(app, route.method, path_of(route) + "?colour=red")
    assert (status, "'colour'" in answer["error"]) == (400, True)
    if route.body is not None:
        body = {**BODIES[(name, route.method, route.path)], "colour": "red"}
        status, answer = ask(app, route.method, path_of(route), body)
        assert (status, answer["error"]) == (400, "unknown field 'colour'")


def test_what_only_looks_is_for_readers_and_nothing_else_is():
    for _, route in every():
        assert (route.role is ApiRole.READ) is (route.method == "GET")
        assert route.changes is (route.method != "GET")


@pytest.mark.parametrize("name", APIS)
def test_the_description_has_every_route(name: str):
    document = ask(http.application(APIS[name]()), "GET", "/v1/openapi.json")[1]
    routes = [route for route, _ in declarations(APIS[name]())]
    found = {(path, method) for path, item in document["paths"].items() for method in item}
    assert found == {(route.path, route.method.lower()) for route in routes}
    assert document == json.loads(json.dumps(describe(routes, APIS[name]().title)))
    operations = [o["operationId"] for item in document["paths"].values() for o in item.values()]
    assert len(set(operations)) == len(operations)
    text = json.dumps(document)
    for reference in set(_references(document)):
        assert reference.removeprefix(schema.REFERENCE) in document["components"]["schemas"]
    assert document["openapi"].startswith("3.1.")
    assert '"x-role": "read"' in text


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (value[key] for key in value if key == "$ref")
        for each in value.values():
            yield from _references(each)
    elif isinstance(value, list):
        for each in value:
            yield from _references(each)


def test_schemas_have_no_word_that_is_not_heeded():
    for _, route in every():
        for declared in (route.answer, route.body or {}, *(query.schema for query in route.query)):
            _check_words(declared)
    for declared in schema.NAMED.values():
        _check_words(declared)


def _check_words(declared: Schema) -> None:
    assert set(declared) <= schema.KEYWORDS, declared
    for inner in declared.get("properties", {}).values():
        _check_words(inner)
    for key in ("items", "additionalProperties"):
        if isinstance(declared.get(key), dict):
            _check_words(declared[key])


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ({"n": 1, "l": ["a"]}, ""),
        ({"n": 1, "l": ["a"], "c": None}, ""),
        ({"n": 1}, "'l' is missing"),
        ({"n": True, "l": []}, "n: is not a whole number"),
        ({"n": -1, "l": []}, "n: -1 is not 0 or more"),
        ({"n": 1 << 24, "l": []}, ""),
        ({"n": 1, "l": "a"}, "l: is not a list"),
        ({"n": 1, "l": ["a", 2]}, "l[1]: is not a text"),
        ({"n": 1, "l": [""]}, "l[0]: has 0 characters, not 1 or more"),
        ({"n": 1, "l": [], "c": "no"}, "c: 'no' is none of yes, None"),
        ({"n": 1, "l": [], "t": {"a": 1, "b": "x"}}, "t.b: is not a whole number"),
        ({"n": 1, "l": [], "x": 1}, "unknown field 'x'"),
        ([], "is not an object"),
    ],
)
def test_what_breaks_a_schema_is_named(value: Any, what: str):
    wanted = schema.body(
        {"n": schema.COUNT, "l": schema.listed(schema.NAME)},
        {"c": schema.nullable(schema.choice("yes")), "t": schema.table(schema.COUNT)},
    )
    assert flaw(value, wanted) == what


def test_bounds_of_numbers():
    bounded: Schema = {"type": "number", "minimum": 1, "maximum": 2}
    assert flaw(1.5, bounded) == ""
    assert flaw(3, bounded) == "3 is not 1 to 2"
    assert flaw(float("nan"), bounded) == "nan is not 1 to 2"
    assert flaw([1, 2], {"type": "array", "maxItems": 1}) == "has more than 1 entries"
    assert get_args(schema.Schema)


def test_the_page_has_the_tables_of_the_code():
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "api_tables.py", "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
