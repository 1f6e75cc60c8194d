"""The loop of the probes: each stream sends on its own grid of times, and all are received from.

Standard library only, for it runs inside correspondents' namespaces.
Not here: what is sent (probe.py, size_probe.py).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from typing import Protocol, TextIO

LATE_NS = 2_000_000_000


class Stream(Protocol):
    """One conversation.  sock: None while there is none; due_ns, every_ns: its grid, monotonic."""

    sock: socket.socket | None
    due_ns: int
    every_ns: int

    def send(self, now_ns: int) -> None: ...
    def receive(self, now_ns: int) -> None:
        """Take what has come, errors too, without waiting."""


def stopping_by_signal() -> list[bool]:
    """Filled by SIGTERM, which ends run(); SIGINT is for whoever sends that."""
    stopping: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return stopping


def run(
    streams: Sequence[Stream], outs: Sequence[TextIO], stopping: list[bool], flush_ns: int
) -> None:
    """Send on each stream's grid and receive until told to stop, then 2 s of receiving more.

    flush_ns: `outs` are flushed so often
    """
    flush_at_ns, parent = 0, os.getppid()
    end_ns: int | None = None
    known: list[socket.socket | None] = []
    by_socket: dict[socket.socket, Stream] = {}
    while end_ns is None or time.monotonic_ns() < end_ns:
        now_ns = time.monotonic_ns()
        if stopping and end_ns is None:
            end_ns = now_ns + LATE_NS
        if end_ns is None:
            for stream in streams:
                if stream.due_ns <= now_ns:
                    missed = (now_ns - stream.due_ns) // stream.every_ns
                    stream.due_ns += (missed + 1) * stream.every_ns
                    stream.send(now_ns)
        if now_ns >= flush_at_ns:
            flush_at_ns = now_ns + flush_ns
            for out in outs:
                out.flush()
            if os.getppid() != parent and not stopping:
                stopping.append(True)  # nobody will ever ask for what it records
        wake_ns = min([s.due_ns for s in streams]) if end_ns is None else end_ns
        wait_s = max(0.0, (wake_ns - time.monotonic_ns()) / 1e9)
        if (sockets := [s.sock for s in streams]) != known:
            known = sockets
            by_socket = {s.sock: s for s in streams if s.sock is not None}
        ready, _, _ = select.select(by_socket, [], [], min(wait_s, flush_ns / 1e9))
        for sock in ready:
            by_socket[sock].receive(now_ns)
    for out in outs:
        out.close()
