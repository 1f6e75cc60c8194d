"""How a phase is reached, and held until the fault has struck in it.

By means that a real fabric has, too: control messages between two nodes are lost for a time
(nftables), or a daemon hangs (SIGSTOP).  No product code knows of it.  Not here: the faults
themselves (fault_strikes.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vmmobility.errors import LabError
from vmmobility.lab import fault_table as table
from vmmobility.lab.fault_eyes import Eye
from vmmobility.lab.laboratory import Laboratory

_TABLE = "vmmob_hold"
_POLL_S = 0.01
SOURCE, DESTINATION, MANAGER = "source", "destination", "manager"


@dataclass(frozen=True, slots=True)
class Approach:
    """How a phase is reached and held.  Who is a role: source, destination or manager.

    lose:    (from, to): control messages that are lost from the beginning, or once the source
             copies (lose_later)
    freeze:  (role of a QEMU, its event, whose daemon hangs from then on)
    until:   "qemu" (one lives at the destination), "memory" (its memory is being copied), "event"
             (the eye's), "rest" (the move has ended), or (role, event) of a daemon's log
    past:    a line of the manager's log that shows that the phase is over
    """

    until: str | tuple[str, str]
    past: str
    lose: tuple[str, str] | None = None
    lose_later: tuple[str, str] | None = None
    freeze: tuple[str, str, str] | None = None


APPROACHES: Mapping[tuple[str, str], Approach] = {
    ("hot", table.PREPARING): Approach("qemu", "move.prepared", lose=(DESTINATION, MANAGER)),
    ("hot", table.COPYING_DISK): Approach((SOURCE, "guest.progress"), "move.converged"),
    ("hot", table.COPYING_MEMORY): Approach("memory", "move.converged"),
    ("hot", table.CONVERGED): Approach(
        (SOURCE, "guest.converged"), "move.converged", lose_later=(SOURCE, MANAGER)
    ),
    ("hot", table.DELIVERING): Approach(
        (MANAGER, "move.converged"), "move.delivering", lose_later=(MANAGER, DESTINATION)
    ),
    ("hot", table.BEFORE_STOP): Approach(
        (MANAGER, "move.delivering"), "move.turned", lose_later=(MANAGER, SOURCE)
    ),
    ("hot", table.AFTER_STOP): Approach(
        "event", "move.registered", freeze=(SOURCE, "STOP", SOURCE)
    ),
    ("hot", table.REDIRECTING): Approach(
        (MANAGER, "move.registered"), "move.done", freeze=(DESTINATION, "RESUME", SOURCE)
    ),
    ("hot", table.RESTING): Approach("rest", ""),
}


@dataclass(frozen=True, slots=True)
class Roles:
    """Who is who in a cell."""

    source: str
    destination: str
    manager: str

    def node(self, role: str) -> str:
        """The node in that role."""
        return str(getattr(self, role))


class Holds:
    """What is held in one cell.  release() lets all of it go."""

    def __init__(self, lab: Laboratory, roles: Roles) -> None:
        self._lab = lab
        self._roles = roles
        self._lost: set[str] = set()
        self._frozen: list[int] = []
        self.seen = False  # the event that freezes

    def lose(self, way: tuple[str, str]) -> None:
        """Control messages from one to the other are lost."""
        sender, receiver = (self._roles.node(role) for role in way)
        drop(self._lab, receiver, sender, _TABLE, "meta l4proto udp ")
        self._lost.add(receiver)

    def freeze_upon(self, wanted: tuple[str, str, str]) -> Callable[[Eye, str], None]:
        """What the eyes tell each event to."""
        role, event, whose = wanted
        node, daemon = self._roles.node(role), self._lab.daemons.processes[self._roles.node(whose)]

        def hear(eye: Eye, name: str) -> None:
            if eye.node == node and name == event and not self.seen:
                os.kill(daemon.pid, signal.SIGSTOP)
                self._frozen.append(daemon.pid)
                self.seen = True

        return hear

    def release(self) -> None:
        """Whoever hung goes on, whatever was lost comes again.  Idempotent."""
        for pid in self._frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._frozen.clear()
        for node in self._lost:
            undrop(self._lab, node, _TABLE)
        self._lost.clear()


def drop(lab: Laboratory, receiver: str, sender: str, name: str, what: str = "") -> None:
    """From now on `receiver` drops what comes from `sender`'s own addresses."""
    rules = ""
    for address in lab.fabric.first_end(sender).addresses:
        family = "ip" if address.version == 4 else "ip6"
        rules += f"  {family} saddr {address.ip} {what}drop\n"
    text = (
        f"table inet {name} {{\n chain heard {{\n  type filter hook prerouting priority -450;\n"
        f"{rules} }}\n}}\n"
    )
    nft(lab, receiver, text)


def undrop(lab: Laboratory, receiver: str, name: str) -> None:
    """Take that away; no error if it is not there."""
    nft(lab, receiver, f"add table inet {name}\ndelete table inet {name}\n")


def nft(lab: Laboratory, node: str, text: str) -> None:
    """Carry out a file of nftables' in a node."""
    command = ["ip", "netns", "exec", lab.spaces.name(node), "nft", "-f", "-"]
    done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise LabError(f"nft at {node}: {done.stderr.strip()}", "is nftables installed?")


def await_true(look: Callable[[], Any], within_s: float) -> bool:
    """Whether it has become true in that time."""
    deadline = time.monotonic() + within_s
    while not look():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
