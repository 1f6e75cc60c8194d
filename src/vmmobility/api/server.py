"""Serving an API on a unix socket, inside the daemon's own event loop.

The daemon keeps its signals and its log; shutting down is bounded.  Not here: routes.
Rests on uvicorn.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from vmmobility.api.access import BY_THE_SOCKET, asked_by
from vmmobility.api.errors import Conflict, Unavailable

MODE = 0o660  # the daemon's user and group
CLOSE_S = 1  # requests under way get so long when the daemon ends
BACKLOG = 64


class _Server(uvicorn.Server):
    """uvicorn without signal handlers, which says when it has started."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override,unused-ignore]
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


@contextlib.asynccontextmanager
async def serve(app: ASGIApp, socket_path: Path) -> AsyncIterator[None]:
    """Serve the API while the body runs.  A stale socket file is replaced.

    Raises Conflict if another daemon listens there, Unavailable if the path cannot be used.
    """
    listener = _listen(socket_path)
    own = os.stat(socket_path)
    config = uvicorn.Config(
        _asked_on_the_socket(app),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        http="h11",
        timeout_graceful_shutdown=CLOSE_S,
    )
    server = _Server(config)
    failure: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve([listener]), name="api")
            try:
                await server.ready.wait()
                yield
            except BaseException as error:
                # Kept, not raised here: the group would cancel the server in mid-answer.
                failure = error
            server.should_exit = True
    finally:
        listener.close()
        with contextlib.suppress(OSError):
            if os.path.samestat(own, os.stat(socket_path)):
                os.unlink(socket_path)
    if failure is not None:
        raise failure


def _asked_on_the_socket(app: ASGIApp) -> ASGIApp:
    async def asked(scope: Scope, receive: Receive, send: Send) -> None:
        await app(asked_by(scope, BY_THE_SOCKET), receive, send)

    return asked


def _listen(path: Path) -> socket.socket:
    """A listening socket at the path, never for a moment open to others."""
    _refuse_if_taken(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o022)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        os.umask(0o777 & ~MODE)
        path.unlink(missing_ok=True)
        listener.bind(os.fspath(path))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise Unavailable(
            f"{path}: cannot listen there: {error.strerror or error}",
            "check the folder's owner and the path's length, or change api_socket",
        ) from error
    finally:
        os.umask(umask)
    return listener


def _refuse_if_taken(path: Path) -> None:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise Conflict(f"{path}: is there and is no socket", "remove it, or change api_socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            pass  # somebody listens, with a full backlog
        except OSError:
            return  # nobody listens: a file that a crash left
    raise Conflict(
        f"{path}: another daemon listens there", "end it first, or give this one its own api_socket"
    )
