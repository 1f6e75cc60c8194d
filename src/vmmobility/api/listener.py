"""Who asks: the gate before an API at each of its sockets, and the record of what was changed.

At the unix socket it is whoever may open it, with the role admin; at TCP addresses it is the bearer
of a token.  A request that changes something is one event, `api.request`, with who made it.
Not here: the sockets (server.py), tokens (tokens.py), what a role may (access.py).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vmmobility.api.access import Asker, asked_by
from vmmobility.api.declared import ApiRole
from vmmobility.api.errors import ApiError, Unauthorized, Unavailable, status_of
from vmmobility.api.http import problem
from vmmobility.api.tokens import TokenDesk

Note = Callable[..., None]

NO_CHANGE = ("GET", "HEAD")
TOLD = 300  # characters of a path that are written down
REFUSALS_A_SECOND = 10  # so many are told; all are counted
BEARER = "bearer "
_NO_TOKEN = Unauthorized(
    "no token was sent", "send `Authorization: Bearer TOKEN` (vmmob: --token-file FILE)"
)
_CROWDED = Unavailable(
    "too many connections are open here, or as many as one asker may have",
    "end some (who waits, who follows events), and ask again",
)


class Gate:
    """An API with the asker found out, its changes noted and its refusals counted.

    desk: None at the unix socket; counts: "no-token", "token", "role"
    """

    def __init__(
        self, app: ASGIApp, desk: TokenDesk | None, note: Note, counts: Counter[str]
    ) -> None:
        self._app = app
        self._desk = desk
        self._note = note
        self._counts = counts
        self._second, self._told = 0, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            asker = self._asker(scope)
        except ApiError as error:
            status = status_of(error)
            self._refused(scope, None, "no-token" if error is _NO_TOKEN else "token", status)
            answer = problem(status, error.message, error.remedy)
            answer.headers["Connection"] = "close"
            if status == 401:
                answer.headers["WWW-Authenticate"] = 'Bearer realm="vmmobility"'
            await answer(scope, receive, send)
            return
        connection = scope.get("state", {}).get("connection")
        if connection is not None and not connection.is_let_in(asker.name):
            answer = problem(503, _CROWDED.message, _CROWDED.remedy)
            answer.headers["Connection"] = "close"
            await answer(scope, receive, send)
            return
        status = 0

        async def told(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            again = partial(self._asker, scope)
            await self._app(asked_by(scope, asker, again), receive, told)
        finally:
            if status == 403:
                self._refused(scope, asker, "role", status)
            if scope["method"] not in NO_CHANGE:
                self._note("api.request", status=status, **_who(asker), **_what(scope))

    def _asker(self, scope: Scope) -> Asker:
        """Raises Unauthorized, Unavailable."""
        if self._desk is None:
            uid = scope.get("state", {}).get("uid")
            # Who may open the socket's file (mode 0660: root, the daemon's group) administers.
            return Asker("unix socket" if uid is None else f"uid {uid}", ApiRole.ADMIN)
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        text = values[0].decode("latin-1") if len(values) == 1 else ""
        if not text[: len(BEARER)].lower() == BEARER:
            raise _NO_TOKEN
        return self._desk.asker(text[len(BEARER) :].strip())

    def _refused(self, scope: Scope, asker: Asker | None, reason: str, status: int) -> None:
        self._counts[reason] += 1
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._told = second, 0
        self._told += 1
        if self._told <= REFUSALS_A_SECOND:
            who = _who(asker) if asker else {}
            self._note("api.refused", reason=reason, status=status, **who, **_what(scope))


def _who(asker: Asker) -> dict[str, str]:
    return {"who": asker.name, "role": asker.role.text}


def _what(scope: Scope) -> dict[str, Any]:
    query = scope["query_string"].decode("latin-1")
    target = scope["path"] + (f"?{query}" if query else "")
    client = scope.get("client")
    source = {"source": str(client[0])} if client else {}
    return {"method": scope["method"], "path": target[:TOLD], **source}
