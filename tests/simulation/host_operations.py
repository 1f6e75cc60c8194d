"""What schedules do to whole hosts: they are emptied (`vmmob drain`), and take VMs again.

Not here: the other verbs (operations.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.engine.network import MANAGER, World
from tests.simulation.schedule import Operation
from vmmobility.engine.manager_move import CommandRefused

EMPTIES = 0.2  # of the schedules


class HostOperations:
    """A part of Operations."""

    world: World
    hit: Callable[[str, str], None]

    def do_empty(self, name: str, parallel: str, uncordon: str) -> None:
        """People drain that NVE; VMs may come again at the end, or it stays cordoned."""
        self._told(
            "emptied", lambda m, now: m.drain(name, (), int(parallel), uncordon == "yes", now)
        )

    def do_admit(self, name: str) -> None:
        self._told("uncordoned", lambda m, now: m.uncordon(name, now))

    def _told(self, what: str, tell: Callable[..., object]) -> None:
        manager = self.world.nodes[MANAGER].manager
        if manager is None:
            return
        try:
            tell(manager, self.world.now)
            self.hit(what, MANAGER)
        except CommandRefused:
            self.hit(f"not {what}", MANAGER)
        self.world.feed(self.world.nodes[MANAGER], lambda: None)


def drawn(seed: int, nves: tuple[str, ...], until: float) -> list[Operation]:
    """In a few schedules one host, or two, is emptied; drawn apart, so the rest is as without."""
    chance = random.Random(f"hosts {seed}")
    if chance.random() >= EMPTIES:
        return []
    found = []
    for _ in range(chance.choice((1, 1, 2))):
        name, at = chance.choice(nves), round(chance.uniform(0.0, until), 3)
        words = (name, chance.choice("1248"), chance.choice(("yes", "no")))
        found.append(Operation(at, "empty", words))
        if chance.random() < 0.5:
            later = round(chance.uniform(at, until + 2.0), 3)
            found.append(Operation(later, "admit", (name,)))
    return found
