"""The door to the monitor of a QEMU that others run: its socket, and the process behind it.

knock(name, path) -> a connection, or None: no QEMU is there
Not here: what is said over the monitor (qmp.py), when to knock (external_guest.py).
Rests on Unix sockets and pidfds.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from vmmobility.errors import HypervisorError

END_POLL_S = 0.01
# Nothing has this name, or nobody listens behind it any more.
_ABSENT = (FileNotFoundError, NotADirectoryError, ConnectionRefusedError)
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid


@dataclass(slots=True)
class Process:
    """The process that listens at a monitor.  pid is 0 where the kernel does not tell it."""

    pid: int
    _handle: int = -1

    @classmethod
    def of(cls, connection: socket.socket) -> Process:
        """Who listens at the other end; pinned, so that its pid cannot become another's."""
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        pid = _PEER.unpack(peer)[0]
        try:
            return cls(pid, os.pidfd_open(pid)) if pid > 0 else cls(0)
        except OSError:
            return cls(0)  # it has ended meanwhile, or may not be looked at

    @property
    def lives(self) -> bool | None:
        """Whether it lives; None if that cannot be seen."""
        if self._handle < 0:
            return None
        watch = select.poll()
        watch.register(self._handle, select.POLLIN)
        return not watch.poll(0)

    async def ends(self, limit_s: float) -> bool:
        """Whether it is seen to have ended, now or within the limit."""
        deadline = asyncio.get_running_loop().time() + limit_s
        while self.lives:
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(END_POLL_S)
        return self.lives is False

    def close(self) -> None:
        """Look no more."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def knock(name: str, path: Path) -> socket.socket | None:
    """A connection to the monitor; None if nobody listens there.

    Raises HypervisorError, naming the guest `name`, if it cannot be told.
    """
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise HypervisorError(
                f"{name}: {path} is not a socket",
                "start QEMU with -qmp unix:PATH,server=on,wait=off and this path",
            )
    except _ABSENT:
        return None
    except OSError as error:
        raise _closed(name, path, error) from None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        connection.connect(str(path))
    except _ABSENT:
        connection.close()
        return None
    except BlockingIOError:
        connection.close()
        raise HypervisorError(
            f"{name}: its monitor {path} does not answer, and others wait for it, too",
            "see whether QEMU hangs; give each program a monitor of its own (several -qmp)",
        ) from None
    except OSError as error:
        connection.close()
        raise _closed(name, path, error) from None
    return connection


def _closed(name: str, path: Path, error: OSError) -> HypervisorError:
    return HypervisorError(
        f"{name}: its monitor {path} cannot be opened: {error.strerror}",
        "let this daemon's user read and write the socket, and enter its folders",
    )
