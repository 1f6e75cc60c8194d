"""Many flows to one address that several VMs share: which of them answers each flow, and when.

Runs inside its correspondent's namespace, standard library only.  A flow is a UDP socket of its
own, so a source port; VMs answer on port 10 with their name.  For each family it writes to
DIR/FAMILY.flows: `s,FLOW,NS` for what was sent, `r,FLOW,NS,NAME` for each answer.  It records; it
does not judge (flows.py).

    python -m vmmobility.lab.flow_probe DIR FLOWS EVERY_MS ADDRESS …

ends on SIGTERM, 2 s later.
"""

from __future__ import annotations

import contextlib
import gc
import socket
import sys
import time
from pathlib import Path
from typing import TextIO

from vmmobility.lab.light_guest import NAME_PORT
from vmmobility.lab.send_grid import Stream, run, stopping_by_signal

_FLUSH_NS = 100_000_000


class Flow:
    """One flow.  sock, due_ns, every_ns: as Stream wants them (nanoseconds)."""

    def __init__(self, number: int, address: str, out: TextIO, due_ns: int, every_ns: int) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.sock: socket.socket | None = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.due_ns, self.every_ns = due_ns, every_ns
        self._number, self._target, self._out = number, (address, NAME_PORT), out

    def send(self, now_ns: int) -> None:
        """The next question."""
        assert self.sock is not None
        sent_ns = time.time_ns()
        with contextlib.suppress(OSError):  # no route: a question without an answer
            self.sock.sendto(b"who", self._target)
        self._out.write(f"s,{self._number},{sent_ns}\n")

    def receive(self, now_ns: int) -> None:
        """Note who has answered."""
        assert self.sock is not None
        while True:
            try:
                name = self.sock.recv(64)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error; that question gets no answer
            self._out.write(
                f"r,{self._number},{time.time_ns()},{name.decode('ascii', 'replace')}\n"
            )


def main(folder: str, count: str, every_ms: str, *addresses: str) -> None:
    """All flows to all addresses, until told to stop."""
    stopping = stopping_by_signal()
    gc.disable()
    every_ns = int(every_ms) * 1_000_000
    begin, streams, outs = time.monotonic_ns(), list[Stream](), list[TextIO]()
    for address in addresses:
        family = "ipv6" if ":" in address else "ipv4"
        out = Path(folder, f"{family}.flows").open("a", encoding="ascii")  # noqa: SIM115
        outs.append(out)
        for number in range(int(count)):
            due = begin + number * every_ns // int(count)
            streams.append(Flow(number, address, out, due, every_ns))
    run(streams, outs, stopping, _FLUSH_NS)


if __name__ == "__main__":
    main(*sys.argv[1:])
