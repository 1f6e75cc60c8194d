"""A correspondent's flows with a VM's echo service (port 7) that stay open while the VM moves.

Each keeps its five-tuple from its first word to its last.  Not here: flows made anew for each
question (lab/inside.udp_ask).
"""

from __future__ import annotations

import socket
import time

from vmmobility.lab.inside import inside

_ECHO = 7
_PATIENCE_S = 20.0
_AGAIN_S = 0.5


class Dialogue:
    """One flow, TCP or UDP, from a namespace to an address; made by the first word."""

    def __init__(self, namespace: str, address: str, kind: socket.SocketKind, name: str) -> None:
        self._name = name
        self._kind = kind
        self._said = 0
        self._socket = inside(namespace, lambda: socket.socket(socket.AF_INET, kind))
        self._socket.settimeout(_PATIENCE_S)
        try:
            self._socket.connect((address, _ECHO))
        except OSError:
            self._socket.close()
            raise

    def exchange(self) -> None:
        """Say something and hear it: TCP every byte of it; UDP, which may lose it, within 20 s."""
        self._said += 1
        text = f"{self._name}, {self._said}. ".encode() * 20
        if self._kind == socket.SOCK_STREAM:
            self._socket.sendall(text)
            heard = self._heard(len(text))
        else:
            heard = self._asked(text)
        assert heard == text, f"{self._name}: not heard"

    def _heard(self, size: int) -> bytes:
        heard = b""
        while len(heard) < size:
            part = self._socket.recv(size - len(heard))
            assert part, f"{self._name}: the connection has ended"
            heard += part
        return heard

    def _asked(self, text: bytes) -> bytes:
        self._socket.settimeout(_AGAIN_S)
        deadline = time.monotonic() + _PATIENCE_S
        heard = b""
        while heard != text and time.monotonic() < deadline:
            try:
                self._socket.send(text)
                while heard != text:  # what came late answers an earlier word
                    heard = self._socket.recv(len(text) + 1)
            except (TimeoutError, ConnectionRefusedError):
                continue
        return heard

    def close(self) -> None:
        self._socket.close()
