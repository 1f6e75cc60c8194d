"""Fuzz targets of the daemons' HTTP APIs: method, path and query on the first line, then the body.

A wrong request is answered 4xx with words and a remedy; nothing that is asked ends in 500.
Not here: HTTP's own framing (uvicorn, h11).
"""

from __future__ import annotations

import asyncio
import json
from functools import cache, partial
from typing import Any
from urllib.parse import unquote

from starlette.applications import Starlette

from tests.fuzz.target import Target
from tests.unit.fake_services import FakeManager, FakeNve
from vmmobility.api.access import Asker, asked_by
from vmmobility.api.declared import ApiRole
from vmmobility.api.manager_api import manager_api
from vmmobility.api.nve_api import nve_api

ANSWERS = {200, 202, 204, 307, 400, 404, 405, 409, 503}
MANAGER_SEEDS = (
    b'POST /v1/moves\n{"vm":"vm1","vni":0,"to":"nve-b"}', b"GET /v1/moves/m1?wait=0\n",
    b"GET /v1/bindings/vm1?vni=0\n", b"POST /v1/bindings/vm1/release?vni=0\n{}", b"GET /v1/vms\n",
    b'PUT /v1/vms/vm1\n{"vm_id":"vm1","vni":0,"interfaces":[{"mac":"52:54:00:00:00:01",'
    b'"addresses":["10.1.0.5/32"]}],"nves":["nve-a"]}',
    b"POST /v1/check\n", b"GET /v1/nves\n", b"GET /v1/status\n", b"GET /v1/openapi.json\n",
    b'POST /v1/drains\n{"nve":"nve-a","to":["nve-b"],"parallel":4,"uncordon":true}',
    b"GET /v1/drains/d1?wait=0\n", b"PUT /v1/nves/nve-a/cordon\n",
    b"DELETE /v1/nves/nve-a/cordon\n",
    b"GET /v1/events?kind=move,alarm&vm=vm1&vni=0&after=1-1&follow=false\n",
)  # fmt: skip
NVE_SEEDS = (
    b'PUT /v1/vms/vm1\n{"vm_id":"vm1","vni":0,"kind":"qemu","machine":{"kernel":"/k"},'
    b'"interfaces":[{"mac":"52:54:00:00:00:01","addresses":["10.1.0.5/32"]}]}',
    b"DELETE /v1/vms/vm1?vni=0\n", b"GET /v1/vms\n", b"POST /v1/check\n{}", b"GET /v1/status\n",
)  # fmt: skip


@cache
def _loop() -> asyncio.Runner:
    return asyncio.Runner()


async def _ask(app: Starlette, data: bytes) -> tuple[int, bytes]:
    line, _, body = data.partition(b"\n")
    method, _, target = line.decode("latin-1").partition(" ")
    path, _, query = target.partition("?")
    scope: dict[str, Any] = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method,
        "scheme": "http", "path": unquote(path), "raw_path": path.encode("latin-1"),
        "query_string": query.encode("latin-1"), "headers": [], "root_path": "",
    }  # fmt: skip
    status, content = 0, b""
    said: list[dict[str, Any]] = [
        {"type": "http.disconnect"},  # who follows events leaves at once
        {"type": "http.request", "body": body, "more_body": False},
    ]

    async def receive() -> dict[str, Any]:
        return said.pop() if len(said) > 1 else said[0]

    async def send(message: Any) -> None:
        nonlocal status, content
        status = message.get("status", status)
        content += message.get("body", b"")

    async with asyncio.timeout(2):
        await app(asked_by(scope, Asker("fuzz", ApiRole.ADMIN)), receive, send)
    return status, content


def ask(kind: str, data: bytes) -> str:
    line = data.partition(b"\n")[0]
    if not all(0x20 < octet < 0x7F for octet in line.replace(b" ", b"", 1)):
        return "no HTTP"  # h11 lets no other octets through
    app = manager_api(FakeManager()) if kind == "manager" else nve_api(FakeNve())
    status, content = _loop().run(_ask(app, data))
    assert status in ANSWERS, f"it was answered {status}: {content!r}"
    if status >= 400:
        said = json.loads(content)
        assert said["error"]
        assert said["remedy"]
    return str(status)


WORDS = (b'"vm"', b'"vni":', b"?vni=", b"?wait=", b"/v1/", b"%2f", b"%ff", b"POST ", b"PUT ")
TARGETS = (
    Target("api-manager", partial(ask, "manager"), lambda: MANAGER_SEEDS, WORDS, weight=0.2),
    Target("api-nve", partial(ask, "nve"), lambda: NVE_SEEDS, WORDS, weight=0.2),
)
