"""Draws what people want of guests: stop and start, suspend and resume, delete; and what befalls
that.

From a die of its own, so that the rest of a schedule is as without it.  Not here: what the verbs do
(operations.py).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.engine.network import MANAGER
from tests.simulation.schedule import Operation

SHARE = 0.6  # of the schedules
THERE = "there"
ORDERS = ("start", "stop", "pause", "resume", "keep", "copy-out", "prepare-incoming", "cancel")
STAGES = ("copy", "moment", "switch", "load")
PAIRS = (("stop", "start"), ("suspend", "resume"), ("suspend", "stop"), ("stop", "start"))


class DrawGuests:
    """The operations about guests of one schedule.  vms: those that no other hands run."""

    def __init__(self, seed: int, nves: Sequence[str], vms: Sequence[str], until: float) -> None:
        self.operations: list[Operation] = []
        self._chance = random.Random(f"guests {seed}")
        self._nves, self._until = nves, until
        if not vms or self._chance.random() >= SHARE:
            return
        for _ in range(self._chance.randint(1, 5)):
            self._incident(self._chance.choice(vms))

    def _incident(self, vm: str) -> None:
        at = self._chance.uniform(0.5, self._until)
        first, second = self._chance.choice(PAIRS)
        force = ("force",) if self._chance.random() < 0.5 else ()
        self._add(at, "guest", first, vm, *(force if first == "stop" else ()))
        if self._chance.random() < 0.8:
            after = self._chance.choice((0.01, 0.3, 1.5, 5.0))
            self._add(at + after, "guest", second, vm, *(force if second == "stop" else ()))
            if self._chance.random() < 0.15:
                self._add(at + after + 1.0, "guest", "delete", vm, "force")
        if self._chance.random() < 0.5:  # moved as it is, between the two
            self._add(
                at + self._chance.choice((0.0, 0.2)), "move", vm, self._chance.choice(self._nves)
            )
        if self._chance.random() < 0.3:
            cold = self._chance.uniform(0.5, self._until)
            self._add(cold, "move", vm, self._chance.choice(self._nves), "cold")
            self._fault(vm, cold)
        for _ in range(self._chance.choice((0, 1, 1, 2))):
            self._fault(vm, at)

    def _fault(self, vm: str, at: float) -> None:
        at += self._chance.choice((0.0, 0.003, 0.02, 0.3, self._chance.uniform(0.0, 3.0)))
        node = self._chance.choice((MANAGER, *self._nves))
        nve = self._chance.choice(self._nves)
        away = f"{self._chance.choice((0.001, 0.1, 1.0, 4.0)):.3f}"
        verb, *words = self._chance.choice(
            (
                ("crash", node, away),
                ("crash-at", node, str(self._chance.randrange(12)), away),
                ("power", nve, away),
                ("cut", MANAGER, nve, "3.000"),
                ("move", vm, nve),
                ("start", vm, nve),
                ("stop", vm, THERE),
                ("kill", vm, THERE),
                ("fail-order", nve, self._chance.choice(ORDERS)),
                ("break", nve, self._chance.choice(STAGES)),
                ("abort", vm),
            )
        )
        self._add(at, verb, *words)

    def _add(self, at: float, verb: str, *words: str) -> None:
        self.operations.append(Operation(round(at, 3), verb, words))
