"""Draws the routers of a schedule, and what goes wrong with them: in a share of the schedules.

It has a chance of its own, so that all else is drawn as without it.
Not here: the rest of a schedule (draw.py), what the verbs do (fabric_operations.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.engine.network import MANAGER
from tests.simulation.schedule import Operation

SHARE = 0.3
TURNS = (
    "delivering", "announcing", "announcing", "announcing", "withdrawing", "withdrawing",
    "withdrawing", "switching", "redirecting", "turning-back",
)  # fmt: skip
PARTS = ("source-router", "destination-router", "source-router", "destination-router", MANAGER)


class DrawFabric:
    """Of one schedule.  routers is empty in those that have none."""

    def __init__(
        self, seed: int, nves: tuple[str, ...], vms: tuple[str, ...], until: float
    ) -> None:
        self._chance = random.Random(f"routers {seed}")
        self._nves, self._vms, self._until = nves, vms, until
        self.routers: tuple[str, ...] = ()
        self.settings: tuple[tuple[str, float], ...] = ()
        self.operations: list[Operation] = []
        if self._chance.random() >= SHARE:
            return
        self._racks()
        self._settings()
        for _ in range(self._chance.randint(2, 8)):
            self._fault()

    def _racks(self) -> None:
        """Each NVE behind one router, some together; and border routers."""
        count = self._chance.randint(1, len(self._nves))
        racks: dict[str, list[str]] = {}
        for nve in self._nves:
            racks.setdefault(f"r{self._chance.randint(1, count)}", []).append(nve)
        found = [f"{name}:{','.join(nves)}" for name, nves in racks.items()]
        found += [f"x{n}" for n in range(1, self._chance.choice((0, 1, 1, 2)) + 1)]
        self._chance.shuffle(found)
        self.routers = tuple(found)

    def _settings(self) -> None:
        delay = self._chance.choice((0.005, 0.1, 0.5, 1.0))
        gate = self._chance.choice((1.0, 3.0)) + 1.5 * delay
        self.settings = (
            ("fabric", delay), ("gate", gate), ("proceed", self._chance.choice((0.0, 0.0, 1.0))),
        )  # fmt: skip

    def _fault(self) -> None:
        at = self._chance.uniform(0.0, self._until)
        when: tuple[str, ...] = ()
        if self._chance.random() < 0.6:
            delay = self._chance.choice((0.0, 0.002, 0.02, self._chance.uniform(0, 1.0)))
            when = (self._chance.choice(self._vms), self._chance.choice(TURNS), f"{delay:.3f}")
        faults: list[tuple[int, Callable[[bool], tuple[str, ...]]]] = [
            (5, self._crash), (5, self._crash_at), (2, self._tear), (1, self._disk),
            (1, self._reimage), (2, self._refuse), (3, self._bar), (3, self._cut), (2, self._abort),
        ]  # fmt: skip
        make = self._chance.choices([f for _, f in faults], [w for w, _ in faults])[0]
        verb, *words = make(bool(when))
        if when:
            verb, words = "when", [*when, verb, *words]
        self.operations.append(Operation(round(at, 3), verb, tuple(words)))

    def _router(self, turned: bool, *, manager: bool = True) -> str:
        if turned and self._chance.random() < 0.8:
            return self._chance.choice(PARTS if manager else PARTS[:-1])
        return self._chance.choice([r.partition(":")[0] for r in self.routers])

    def _away(self) -> str:
        return f"{self._chance.choice((0.001, 0.1, 1.0, self._chance.uniform(0, 6.0))):.3f}"

    def _crash(self, turned: bool) -> tuple[str, ...]:
        return "crash", self._router(turned), self._away()

    def _crash_at(self, turned: bool) -> tuple[str, ...]:
        return "crash-at", self._router(turned), str(self._chance.randrange(8)), self._away()

    def _tear(self, turned: bool) -> tuple[str, ...]:
        return "tear", self._router(turned), self._away()

    def _disk(self, turned: bool) -> tuple[str, ...]:
        return "fill-disk", self._router(turned), self._away()

    def _reimage(self, turned: bool) -> tuple[str, ...]:
        return "reimage", self._router(turned, manager=False), self._away()

    def _refuse(self, turned: bool) -> tuple[str, ...]:
        return "refuse", self._router(turned, manager=False), str(self._chance.choice((1, 1, 3)))

    def _bar(self, turned: bool) -> tuple[str, ...]:
        length = f"{self._chance.choice((0.3, 3.0, 9.0)):.3f}"
        return "bar", self._router(False), self._router(turned, manager=False), length

    def _cut(self, turned: bool) -> tuple[str, ...]:
        length = f"{self._chance.choice((0.3, 3.0, 9.0)):.3f}"
        return "cut", MANAGER, self._router(turned, manager=False), length

    def _abort(self, turned: bool) -> tuple[str, ...]:
        return "abort", self._chance.choice(self._vms)
