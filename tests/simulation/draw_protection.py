"""Draws the warm standbys of a schedule, and what befalls them: in a share of the schedules.

It has a chance of its own, so that all else is drawn as without it.  A manager that has lost its
records while a standby takes over is not drawn: it does not know that (docs/design/safety.md).
"""

from __future__ import annotations

import random

from tests.engine.network import MANAGER
from tests.simulation.schedule import Operation

SHARE = 0.35
CLOCKS = (0.0, 0.0, 0.007)  # twice as much apart is less than the manager's CLOCK_RATE


class DrawProtection:
    """Of one schedule.  vms: those that no other hands run; homes play no part."""

    def __init__(
        self, seed: int, nves: tuple[str, ...], vms: tuple[str, ...], until: float
    ) -> None:
        self._chance = random.Random(f"protection {seed}")
        self._nves = nves
        self.operations: list[Operation] = []
        self.drawn = bool(vms) and self._chance.random() < SHARE
        if not self.drawn:
            return
        share = self._chance.choice(CLOCKS)
        if share:
            self._add(0.0, "clocks", f"{share}")
        for vm in vms:
            self._protect(vm, self._chance.uniform(0.5, max(1.0, until / 2)))
        for _ in range(self._chance.randint(1, 4)):
            self._befall(self._chance.choice(vms), self._chance.uniform(2.0, until + 8.0))

    def _protect(self, vm: str, at: float) -> None:
        mode = self._chance.choice(("fail-over", "fail-over", "fail-over", "no-fail-over"))
        lease = self._chance.choice(("2", "3", "4"))
        for to in self._chance.sample(self._nves, len(self._nves)):  # one of them it is not at
            self._add(at, "protect", vm, to, mode, lease)

    def _befall(self, vm: str, at: float) -> None:
        pick, nve = self._chance.choice, self._chance.choice(self._nves)
        away = f"{pick((0.1, 1.0, 6.0, 15.0)):.3f}"
        what = pick(
            ("power", "power", "cut", "cut", "apart", "crash", "crash-at", "outage", "hand-over",
             "hand-over", "unprotect", "kill", "activation", "pause")
        )  # fmt: skip
        if what == "cut":
            self._add(at, "cut", MANAGER, nve, pick(("2.000", "6.000", "20.000")))
        elif what == "apart":
            self._add(at, "cut", MANAGER, nve, "12.000")
            self._add(at + 1.0, "power", pick(self._nves), away)
        elif what in ("power", "crash"):
            self._add(at, what, nve, away)
        elif what == "crash-at":
            node = pick((MANAGER, nve))
            self._add(at, what, node, str(self._chance.randrange(20)), away)
        elif what == "outage":
            self._add(at, "crash", MANAGER, away)
        elif what in ("hand-over", "unprotect"):
            self._add(at, what, vm)
        elif what == "kill":
            self._add(at, "kill", vm, "there")
        else:
            order = "activate" if what == "activation" else "pause"
            self._add(at, "fail-order", nve, order)
        if self._chance.random() < 0.4:
            self._protect(vm, at + self._chance.uniform(1.0, 12.0))

    def _add(self, at: float, verb: str, *words: str) -> None:
        self.operations.append(Operation(round(at, 3), verb, words))
