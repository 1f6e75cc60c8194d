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
from dataclasses import dataclass, replace
from typing import Any

from vmmobility.errors import LabError
from vmmobility.lab import fault_terms as terms
from vmmobility.lab.fault_eyes import Eye
from vmmobility.lab.laboratory import Laboratory
from vmmobility.wire.registry import Purpose

_TABLE = "vmmob_hold"
_POLL_S = 0.01
SOURCE, DESTINATION, MANAGER = "source", "destination", "manager"


@dataclass(frozen=True, slots=True)
class Approach:
    """How a phase is reached and held.  Who is a role: source, destination or manager.

    until:   "qemu" (one lives at the destination), "memory" (its memory is being copied), "event"
             (the one that freezes), "runs" (the guest does, at the destination), "rest" (the move
             has ended), or (role, event) of a daemon's log
    past:    a line of the manager's log that shows that the phase is over
    lose:    (from, to, purpose): such control messages are lost, requests and replies
    freeze:  (role of a QEMU, its event, whose daemon hangs from then on)
    """

    until: str | tuple[str, str]
    past: str
    lose: tuple[str, str, Purpose] | None = None
    freeze: tuple[str, str, str] | None = None


_PREPARING = Approach("qemu", "move.prepared", lose=(DESTINATION, MANAGER, Purpose.PREPARE))
_COPYING_DISK = Approach((SOURCE, "guest.progress"), "move.converged")
_COPYING_MEMORY = Approach("memory", "move.converged")
_CONVERGED = Approach(
    (SOURCE, "guest.converged"), "move.converged", lose=(SOURCE, MANAGER, Purpose.SWITCH)
)
_DELIVERING = Approach(
    (MANAGER, "move.converged"), "move.delivering", lose=(MANAGER, DESTINATION, Purpose.SWITCH)
)
_REDIRECTING = Approach(
    (MANAGER, "move.registered"), "move.done", lose=(MANAGER, SOURCE, Purpose.REDIRECT)
)
_RESTING = Approach("rest", "")
# The disks have been handed over, the last of the machine has not.
_HANDING_OVER = Approach("event", "move.registered", freeze=(SOURCE, "MIGRATION device", SOURCE))

APPROACHES: Mapping[tuple[str, str], Approach] = {
    ("hot", terms.PREPARING): _PREPARING,
    ("hot", terms.COPYING_DISK): _COPYING_DISK,
    ("hot", terms.COPYING_MEMORY): _COPYING_MEMORY,
    ("hot", terms.CONVERGED): _CONVERGED,
    ("hot", terms.DELIVERING): _DELIVERING,
    ("hot", terms.BEFORE_STOP): Approach(
        (MANAGER, "move.delivering"), "move.turned", lose=(MANAGER, SOURCE, Purpose.SWITCH)
    ),
    ("hot", terms.AFTER_STOP): Approach(
        "event", "move.registered", freeze=(SOURCE, "STOP", SOURCE)
    ),
    ("hot", terms.REDIRECTING): _REDIRECTING,
    ("hot", terms.RESTING): _RESTING,
    ("cold-suspended", terms.SUSPENDING): Approach(
        (SOURCE, "guest.state"), "move.suspended", lose=(SOURCE, MANAGER, Purpose.GUEST)
    ),
    ("cold-suspended", terms.PREPARING): _PREPARING,
    ("cold-suspended", terms.COPYING_DISK): _COPYING_DISK,
    ("cold-suspended", terms.COPYING_MEMORY): _COPYING_MEMORY,
    ("cold-suspended", terms.CONVERGED): _CONVERGED,
    ("cold-suspended", terms.DELIVERING): _DELIVERING,
    ("cold-suspended", terms.SWITCHING): _HANDING_OVER,
    ("cold-suspended", terms.REDIRECTING): replace(_REDIRECTING, until="runs"),
    ("cold-suspended", terms.WAKING): Approach(
        (MANAGER, "move.registered"), "move.awake", lose=(MANAGER, DESTINATION, Purpose.GUEST)
    ),
    ("cold-suspended", terms.RESTING): _RESTING,
    ("cold-stopped", terms.PREPARING): _PREPARING,
    ("cold-stopped", terms.COPYING_DISK): _COPYING_DISK,
    ("cold-stopped", terms.CONVERGED): _CONVERGED,
    ("cold-stopped", terms.DELIVERING): _DELIVERING,
    ("cold-stopped", terms.SWITCHING): _HANDING_OVER,
    ("cold-stopped", terms.REDIRECTING): _REDIRECTING,
    ("cold-stopped", terms.RESTING): _RESTING,
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

    def lose(self, way: tuple[str, str, Purpose]) -> None:
        """Control messages of that purpose from one to the other are lost."""
        sender, receiver = (self._roles.node(role) for role in way[:2])
        drop(self._lab, receiver, sender, _TABLE, message_of(way[2]))
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


def message_of(purpose: Purpose) -> str:
    """A match of nftables': the third octet of a message says what it is for."""
    return f"meta l4proto udp @th,80,8 {int(purpose)} "


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
