"""Serving an API on a unix socket and at TCP addresses, inside the daemon's own event loop.

The daemon keeps its signals and its log; shutting down is bounded.
Not here: routes, who asks (listener.py), how many are let in (door.py).  Rests on uvicorn.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from vmmobility.api.door import Acceptor, Bounds, Connection, Door
from vmmobility.api.errors import Conflict, Unavailable
from vmmobility.api.listener import Gate
from vmmobility.api.patience import PatientProtocol, protocol_for
from vmmobility.api.tokens import TokenDesk, read_tokens
from vmmobility.daemon.api_place import ApiConfig, ApiPlace, Listen
from vmmobility.errors import ConfigError

MODE = 0o660  # the daemon's user and group
CLOSE_S = 1  # requests under way get so long when the daemon ends
BACKLOG = 128
HERE = Bounds(unknown=128, source=128, known=256, asker=128)  # at the unix socket
FROM_AFAR = Bounds(unknown=128, source=32, known=256, asker=64)  # at all TCP addresses


class _Server(uvicorn.Server):
    """uvicorn without signal handlers, at sockets behind a door; it says when it has started."""

    def __init__(self, config: uvicorn.Config, door: Door) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()
        self._door = door

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override,unused-ignore]
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        def made(connection: Connection) -> asyncio.Protocol:
            protocol: PatientProtocol = self.config.http_protocol_class(  # type: ignore[assignment,call-arg]
                config=self.config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
            )
            protocol.connection = connection
            return protocol

        await self.lifespan.startup()
        self.servers = [
            Acceptor(each, self._door, made, self.config.ssl)  # type: ignore[misc]
            for each in sockets or []
        ]
        self.started = True
        self.ready.set()


@contextlib.asynccontextmanager
async def serve(app: ASGIApp, place: ApiPlace | Path) -> AsyncIterator[None]:
    """Serve the API while the body runs.  A stale socket file is replaced.

    place: where, and who is told of it; a path is a unix socket alone
    Raises Conflict if another daemon listens there, Unavailable if a place cannot be used,
    ConfigError if the certificate or the tokens are wrong.
    """
    place = ApiPlace(place) if isinstance(place, Path) else place
    async with contextlib.AsyncExitStack() as stack:
        local = _listen(place.socket)
        stack.callback(_remove, place.socket, os.stat(place.socket))
        stack.callback(local.close)
        listeners, desk = [], None
        for listen in place.config.listen:
            listeners.append(_listen_tcp(listen))
            stack.callback(listeners[-1].close)
        if place.config.tokens is not None:
            read_tokens(place.config.tokens)  # a wrong file is told at once
            desk = TokenDesk(place.config.tokens, time.time)
        gate = Gate(app, None, place.note, place.counts)
        await stack.enter_async_context(_serving(gate, [local], place, tls=False))
        if listeners:
            gate = Gate(app, desk, place.note, place.counts)
            await stack.enter_async_context(_serving(gate, listeners, place, tls=True))
        yield


@contextlib.asynccontextmanager
async def _serving(
    app: ASGIApp, listeners: list[socket.socket], place: ApiPlace, *, tls: bool
) -> AsyncIterator[None]:
    """One server at these sockets, while the body runs.  tls: if there is a certificate."""
    files = place.config if tls else ApiConfig()
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        http=protocol_for(place.counts),
        timeout_graceful_shutdown=CLOSE_S,
        ssl_certfile=files.tls_certificate,
        ssl_keyfile=files.tls_key,
    )
    try:
        config.load()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(
            f"api.tls_certificate {files.tls_certificate}, tls_key {files.tls_key}: {error}",
            "name a certificate (with its chain) and its key, both PEM, that this user can read",
        ) from None
    server = _Server(config, Door(FROM_AFAR if tls else HERE, place.counts))
    failure: BaseException | None = None
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve(listeners), name="api")
        try:
            await server.ready.wait()
            yield
        except BaseException as error:
            # Kept, not raised here: the group would cancel the server in mid-answer.
            failure = error
        server.should_exit = True
    if failure is not None:
        raise failure


def _remove(path: Path, own: os.stat_result) -> None:
    with contextlib.suppress(OSError):
        if os.path.samestat(own, os.stat(path)):
            os.unlink(path)


def _listen_tcp(listen: Listen) -> socket.socket:
    family = socket.AF_INET6 if listen.address.version == 6 else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((str(listen.address), listen.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise Unavailable(
            f"{listen}: cannot listen there: {error.strerror or error}",
            "end what listens there, or change api.listen",
        ) from error
    return listener


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
