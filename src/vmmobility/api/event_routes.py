"""`GET /v1/events`: the daemon's events as they come, as server-sent events (WHATWG HTML 9.2).

Each has `id` (none for what is only of the moment), `event`, and `data`: a JSON object on one line.
Comments come where nothing else does, so that both ends notice a dead path; the stream ends when
its token counts no more.  A reader that does not take what is sent within WRITE_S is cut off.
Not here: which events there are, what is kept (daemon/event_feed.py).  Rests on http.py.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vmmobility.api import http
from vmmobility.api.access import asker_of, counts_still
from vmmobility.api.declared import ApiRole, Query, declared
from vmmobility.api.errors import BadRequest
from vmmobility.api.schema import ANYTHING, COUNT, NAME, TEXT, VNI, choice, named, record

if TYPE_CHECKING:
    from vmmobility.api.service import EventReader, EventService

HEARTBEAT_S = 10.0  # a comment comes, and the token is looked up again, so often
WRITE_S = 10.0  # a reader may take so long to take what is sent
MOST_OCTETS = 200  # of an id, a kind, a move

EVENT = named(
    "Event", record({"event": NAME, "ts_ns": COUNT}, {"id": NAME, "vni": VNI, "vm": ANYTHING})
)
QUERIES = (
    Query("kind", TEXT, "these alone: names, or what stands before the dot; with commas between"),
    Query("vm", NAME, "of this VM alone"),
    Query("vni", VNI, "of that VM"),
    Query("move", NAME, "of this move alone"),
    Query("after", TEXT, "those that came after this id, as Last-Event-ID; 0: all that are kept"),
    Query("follow", choice("true", "false"), "false: what is kept, and the end"),
)


class EventRoutes:
    """The route to EventService."""

    if TYPE_CHECKING:
        _events: EventService

    @declared(
        "GET",
        "/v1/events",
        ApiRole.READ,
        "events as they come: phases of moves, states of VMs, alarms",
        answer=EVENT,
        query=QUERIES,
        stream=True,
    )
    async def events(self, request: Request) -> Response:
        query = request.query_params
        vm = None
        if "vm" in query:
            text = query.get("vni", "0")
            vni = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
            key = http.vm_key(query["vm"], vni)
            vm = (key.vni, key.vm_id)
        follow = query.get("follow", "true")
        if follow not in ("true", "false"):
            raise BadRequest(f"follow: {follow!r:.80} is neither true nor false", "write one")
        after = request.headers.get("last-event-id") or query.get("after", "")
        kinds = frozenset(kind for kind in query.get("kind", "").split(",") if kind)
        move = query.get("move", "")
        if max(map(len, (after, move, *kinds))) > MOST_OCTETS:
            raise BadRequest("a parameter is too long", f"use at most {MOST_OCTETS} characters")
        asker = asker_of(request.scope)
        audit = asker.role >= ApiRole.ADMIN
        afar = asker.name if asker.by_token else None
        after = after or ("0" if follow == "false" else "")
        reader = self._events.follow(after, kinds, vm, move, audit, afar)
        return EventStream(reader, follow=follow == "true")


class EventStream(Response):
    """An answer that goes on until the reader leaves, or is too slow."""

    media_type = "text/event-stream"

    def __init__(self, reader: EventReader, *, follow: bool) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._reader = reader
        self._follow = follow

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            await send(start)
            async with asyncio.TaskGroup() as group:
                gone = group.create_task(self._until_gone(receive), name="events reader")
                whole = await self._tell(scope, send)
                gone.cancel()
            if whole:
                await send({"type": "http.response.body", "body": b""})
            else:
                scope.get("state", {}).get("abort", lambda: None)()
        finally:
            self._reader.close()

    async def _until_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._reader.close()

    async def _tell(self, scope: Scope, send: Send) -> bool:
        """False: the reader was too slow, and its connection is to be cut."""
        try:
            await self._send(send, b": events\n\n")
            if not self._follow:
                for row in self._reader.waiting():
                    await self._send(send, written(row))
                return True
            now = asyncio.get_running_loop().time
            due = now() + HEARTBEAT_S
            while not self._reader.is_closed:
                found = await self._reader.next(due - now())
                if now() >= due:
                    if not counts_still(scope):
                        return True
                    due = now() + HEARTBEAT_S
                    await self._send(send, b":\n\n")
                if found is not None:
                    await self._send(send, written(found))
        except TimeoutError:
            return False
        return not self._reader.is_cut_off

    @staticmethod
    async def _send(send: Send, data: bytes) -> None:
        """Raises TimeoutError."""
        async with asyncio.timeout(WRITE_S):
            await send({"type": "http.response.body", "body": data, "more_body": True})


def written(row: dict[str, Any]) -> bytes:
    """One event on the wire."""
    head = f"id: {row['id']}\n" if "id" in row else ""
    # ASCII: there are readers that take U+2028 or U+0085 in a name for the end of a line.
    data = json.dumps(row, default=str)
    return f"{head}event: {row['event']}\ndata: {data}\n\n".encode()
