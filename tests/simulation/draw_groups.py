"""Draws the load-shared group of a schedule: in a share of them two or three VMs are members.

It has a chance of its own, so that all else is drawn as without it; a schedule of one VM gets a
second.  Members are started, stopped, moved and killed as VMs are, and some more of that befalls
them here.  Not in schedules whose manager loses its records, and with them what is a group.
Not here: the rest of a schedule (draw.py).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.simulation.operations import THERE
from tests.simulation.schedule import Operation

SHARE = 0.25


class DrawGroups:
    """Of one schedule.  groups: each as "vm1,vm2"; started: VMs beyond the schedule's own."""

    def __init__(
        self,
        seed: int,
        nves: Sequence[str],
        vms: Sequence[str],
        until: float,
        operations: Sequence[Operation],
    ) -> None:
        self._chance = random.Random(f"groups {seed}")
        self._nves, self._until = nves, until
        self.groups: tuple[str, ...] = ()
        self.operations: list[Operation] = []
        self.started: list[str] = []
        by_hand = {o.words[0] for o in operations if o.verb in ("expect", "hand-start")}
        members = [vm for vm in vms if vm not in by_hand]
        forgets = any("lose-manager" in (o.verb, *o.words) for o in operations)
        if self._chance.random() >= SHARE or forgets or not members:
            return
        while len(members) < 2:
            self.started.append(f"vm{len(vms) + len(self.started) + 1}")
            members.append(self.started[-1])
        members = members[: self._chance.choice((2, 2, 3))]
        self.groups = (",".join(members),)
        for vm in members:
            self._add(self._chance.uniform(0.0, 1.0), "start", vm, self._nve())
        for _ in range(self._chance.randint(2, 6)):
            self._incident(self._chance.choice(members))

    def _add(self, at: float, verb: str, *words: str) -> None:
        self.operations.append(Operation(round(at, 3), verb, words))

    def _nve(self) -> str:
        return self._chance.choice(self._nves)

    def _incident(self, vm: str) -> None:
        at = self._chance.uniform(1.0, max(self._until, 2.0))
        away = f"{self._chance.choice((2.0, 5.0, 9.0)):.3f}"
        kind = self._chance.choice(("join", "leave", "kill", "move", "silent", "dark", "both"))
        if kind == "join":
            self._add(at, "start", vm, self._nve())
        elif kind == "leave":
            self._add(at, "stop", vm, THERE)
            self._add(at + self._chance.uniform(0.5, 3.0), "start", vm, self._nve())
        elif kind == "kill":
            self._add(at, "kill", vm, THERE)
            self._add(at + self._chance.uniform(0.5, 3.0), "start", vm, self._nve())
        elif kind == "move":
            self._add(at, "move", vm, self._nve())
        elif kind == "silent":
            self._add(at, "cut", "manager", self._nve(), away)
        elif kind == "dark":
            self._add(at, "power", self._nve(), away)
        else:
            self._add(at, "move", vm, self._nve())
            self._add(at + self._chance.uniform(0.0, 1.0), "cut", "manager", self._nve(), away)
