"""What runs inside a light VM: the same services as in the QEMU guest, and one for sizes.

UDP and TCP echo on port 7, a UDP control port 8 that answers `check` and `status` with one line
of JSON; UDP port 9 answers with the beginning of what came, so that the answer fits any path, and
UDP port 10 with the VM's name.  Its memory is a small block with a checksum a page.  Not here: its
network card (drivers/hypervisor/light_nic.py).  Standard library only.

    python -m vmmobility.lab.light_guest [NAME]        inside the VM's namespace
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import sys
import time
import zlib
from collections.abc import Callable

SIZE_PORT, _SIZE_ANSWER = 9, 64
NAME_PORT = 10
_PAGES = 64
_PAGE = 4096


class Guest:
    """The services of one light VM."""

    def __init__(self, name: str = "") -> None:
        self._selector = selectors.DefaultSelector()
        self._memory = [os.urandom(_PAGE) for _ in range(_PAGES)]
        self._sums = [zlib.crc32(page) for page in self._memory]
        self._started = time.monotonic()
        for family in (socket.AF_INET, socket.AF_INET6):
            self._udp(family, 7, lambda data: data)
            self._udp(family, 8, self._control)
            self._udp(family, SIZE_PORT, lambda data: data[:_SIZE_ANSWER])
            self._udp(family, NAME_PORT, lambda data: name.encode())
            self._tcp(family, 7)

    def run(self) -> None:
        """Serve for ever."""
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _udp(self, family: int, port: int, answer: Callable[[bytes], bytes]) -> None:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.bind(("", port))
        sock.setblocking(False)

        def ready() -> None:
            while True:
                try:
                    data, source = sock.recvfrom(65536)
                    sock.sendto(answer(data), source)
                except BlockingIOError:
                    return
                except OSError:
                    continue

        self._selector.register(sock, selectors.EVENT_READ, ready)

    def _tcp(self, family: int, port: int) -> None:
        server = socket.socket(family, socket.SOCK_STREAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.bind(("", port))
        server.listen(64)
        server.setblocking(False)

        def accept() -> None:
            client, _ = server.accept()
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(client, selectors.EVENT_READ, lambda: self._echo(client))

        self._selector.register(server, selectors.EVENT_READ, accept)

    def _echo(self, client: socket.socket) -> None:
        try:
            data = client.recv(65536)
            if data:
                client.sendall(data)
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._selector.unregister(client)
        client.close()

    def _control(self, question: bytes) -> bytes:
        bad = 0
        if question.strip() == b"check":
            pairs = zip(self._memory, self._sums, strict=True)
            bad = sum(zlib.crc32(page) != total for page, total in pairs)
        uptime = round(time.monotonic() - self._started, 3)
        answer = {"bad_pages": bad, "memory_pages": _PAGES, "dirtied_pages": 0, "uptime_s": uptime}
        return json.dumps(answer).encode() + b"\n"


if __name__ == "__main__":
    Guest(*sys.argv[1:2]).run()
