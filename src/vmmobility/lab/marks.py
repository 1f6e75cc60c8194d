"""What a run remembers to compare with later: bindings, a time, what was replayed, restarts.

Values and small readings of the daemons' APIs.  Not here: judging them (state_assertions.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from vmmobility.lab.daemons import Daemons

Bindings = dict[str, tuple[str, int]]


def bindings_now(daemons: Daemons) -> Bindings:
    """VM -> (NVE, epoch), as the manager has it."""
    rows = daemons.ask(daemons.manager, "GET", "/v1/bindings")
    return {row["vm"]: (str(row["nve"]), int(row["epoch"])) for row in rows}


def drops_now(daemons: Daemons, node: str) -> dict[str, int]:
    """Reason -> messages that this daemon has dropped since its start."""
    drops = daemons.ask(node, "GET", "/v1/status").get("drops") or {}
    return {str(reason): int(count) for reason, count in drops.items()}


@dataclass(frozen=True, slots=True)
class Restart:
    """A daemon started again.  forked_ns: just before its process; api_ns: its API has answered."""

    node: str
    forked_ns: int
    api_ns: int


@dataclass(slots=True)
class Marks:
    """One run's."""

    remembered_ns: int = field(default_factory=time.time_ns)
    bindings: Bindings = field(default_factory=dict)
    restarts: list[Restart] = field(default_factory=list)
    # node -> (its drops before, messages that were sent to it again and that it must drop)
    replayed: dict[str, tuple[int, int]] = field(default_factory=dict)

    def remember(self, daemons: Daemons) -> None:
        """From now on."""
        self.bindings = bindings_now(daemons)
        self.remembered_ns = time.time_ns()
