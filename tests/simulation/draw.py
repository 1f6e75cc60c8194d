"""Draws a schedule from its seed: a topology, its pace and weather, work, and what goes wrong.

Faults come in clusters about moves, starts and stops, for that is where they hurt; a crash may be
set for the k-th output of a node from then on, so it falls between any two.  Every schedule has a
crash; a few have a manager that loses its records, once, for what only the NVEs remember is gone
with a second loss.  Not here: what the verbs do (operations.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.engine.network import MANAGER
from tests.simulation.draw_fabric import DrawFabric
from tests.simulation.draw_groups import DrawGroups
from tests.simulation.draw_guests import DrawGuests
from tests.simulation.draw_protection import DrawProtection
from tests.simulation.host_operations import drawn
from tests.simulation.operations import THERE
from tests.simulation.schedule import CALM, Operation, Schedule

NAMES = ("a", "b", "c", "d", "e")
ORDERS = (
    "start", "stop", "pause", "resume", "prepare-incoming", "copy-out", "switch-over", "proceed",
    "cancel", "announce",
)  # fmt: skip
STAGES = ("copy", "moment", "switch", "load")
PARTS = ("source", "destination")
CRASHES = frozenset({"crash", "power", "outage", "reimage"})
LOSES_RECORDS = 0.15  # of the schedules
TURNS = (
    "copying", "delivering", "delivering", "switching", "switching", "switching", "redirecting",
    "ending-guest", "turning-back", "clearing",
)  # fmt: skip


def draw(seed: int) -> Schedule:
    return _Draw(seed).schedule()


class _Draw:
    """One schedule in the making."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = random.Random(f"schedule {seed}")
        self.nves = NAMES[: self.chance.choice((2, 3, 3, 3, 4, 5))]
        count = self.chance.choice((1, 1, 1, 2, 2, 3, 4))
        self.vms = tuple(f"vm{n}" for n in range(1, count + 1))
        self.at = 0.0
        self.operations: list[Operation] = []
        self.by_hand: list[str] = []
        self.homes: dict[str, str] = {}
        self._when: tuple[str, ...] = ()

    def schedule(self) -> Schedule:
        self.homes = {vm: self.chance.choice(self.nves) for vm in self.vms}
        settings = tuple(self._settings().items())
        for vm in self.vms:
            if self.chance.random() < 0.25:
                self._expect(vm)
            else:
                self._add("start", vm, self.chance.choice(self.nves))
            self.at += self.chance.uniform(0.0, 0.4)
        self.at += self.chance.uniform(0.0, 1.5)
        for _ in range(self.chance.randint(4, 9)):
            self._incident()
            self.at += self.chance.expovariate(1 / 2.0)
        if not any(o.verb in CRASHES for o in self.operations):
            self._add("crash", self._node(), self._away(), after=-self.at * self.chance.random())
        until = self.at
        fabric = DrawFabric(self.seed, self.nves, self.vms, until)
        self._manager_loses_records()
        hosts = drawn(self.seed, self.nves, until)
        shared = DrawGroups(self.seed, self.nves, self.vms, until, self.operations)
        # (A member of a group that is stopped has its taps, and so what its own NVE sends to it.)
        shares = {vm for group in shared.groups for vm in group.split(",")}
        ours = [vm for vm in self.vms if vm not in self.by_hand and vm not in shares]
        guests = DrawGuests(self.seed, self.nves, ours, until)
        forgets = any("lose-manager" in (o.verb, *o.words) for o in self.operations)
        guarded = () if forgets or guests.operations or shared.operations else tuple(ours)
        protection = DrawProtection(self.seed, self.nves, guarded, until)
        every = [*self.operations, *fabric.operations, *hosts, *shared.operations]
        every += [*guests.operations, *protection.operations]
        self.operations = sorted(every, key=lambda o: o.at)
        self.homes |= dict.fromkeys(shared.started, self.homes[self.vms[0]])
        homes, settings = tuple(self.homes.items()), (*settings, *fabric.settings)
        operations, routers = tuple(self.operations), fabric.routers
        return Schedule(self.seed, self.nves, homes, settings, operations, routers, shared.groups)

    def _manager_loses_records(self) -> None:
        """In a few schedules, once.  (Set back to an older copy it is in kept schedules only: a
        manager cannot always tell at once that its records are old, docs/design/safety.md.)"""
        self.chance = random.Random(f"records {self.seed}")  # the rest is as without it
        if self.chance.random() >= LOSES_RECORDS:
            return
        self.at = self.chance.uniform(0.0, self.at)
        if self.chance.random() < 0.5:
            self._when = (self._vm(), self.chance.choice(TURNS), self._delay())
        self._add("lose-manager", self._away())
        self._when = ()

    def _settings(self) -> dict[str, float]:
        pick, settings = self.chance.choice, dict(CALM)
        settings |= {
            "lifetime": pick((8.0, 12.0, 20.0)),
            "drain": pick((1.5, 3.0)),
            "step": pick((2.0, 4.0, 8.0)),
            "copy": pick((4.0, 12.0)),
            "ticket": pick((6.0, 40.0)),
            "first": pick((0.1, 0.25)),
            "most": pick((1.0, 2.0)),
            "persist": pick((0.0005, 0.002, 0.02, 0.1)),
            "order": pick((0.001, 0.002, 0.02, 0.2)),
            "copying": pick((0.05, 0.5, 2.0)),
            "moment": pick((0.0, 0.02, 0.2)),
            "stop": pick((0.001, 0.01, 0.2)),
            "load": pick((0.001, 0.01, 0.2)),
        }
        if self.chance.random() < 0.6:
            settings |= {
                "loss": pick((0.0, 0.1, 0.3)),
                "repetition": pick((0.0, 0.1, 0.4)),
                "delay": pick((0.001, 0.02, 0.2, 0.8)),
            }
        return settings

    def _expect(self, vm: str) -> None:
        """One that other hands run, at any NVE."""
        self.by_hand.append(vm)
        for node in self.nves:
            self._add("expect", vm, node, after=self.chance.choice((0.0, self._soon())))
        self._add("hand-start", vm, self.chance.choice(self.nves), after=self._soon())

    # ---- incidents -----------------------------------------------------------------------------

    def _incident(self) -> None:
        """Something is wanted; with luck it goes wrong."""
        work: list[tuple[int, Callable[[], None]]] = [
            (10, self._move), (2, self._start), (1, self._stop), (1, self._tug), (2, self._nothing),
            (1, self._traffic), (1, self._release), (1, self._start_and_stop),
            (6 if self.by_hand else 0, self._hand_move), (1, self._left_behind),
        ]  # fmt: skip
        self._weighted(work)()
        for _ in range(self.chance.choice((0, 1, 1, 1, 2, 3))):
            if self.chance.random() < 0.5:
                self._when = (self._vm(), self.chance.choice(TURNS), self._delay())
            self._weighted(self._faults())()
            self._when = ()

    def _delay(self) -> str:
        """From a turn in a move to what befalls it."""
        return f"{self.chance.choice((0.0, 0.001, 0.003, 0.02, self.chance.uniform(0, 1.0))):.3f}"

    def _faults(self) -> list[tuple[int, Callable[[], None]]]:
        return [
            (6, self._crash), (8, self._crash_at), (3, self._power), (2, self._power_at),
            (1, self._several), (3, self._cut), (1, self._partition), (2, self._weather),
            (2, self._disk), (2, self._kernel), (3, self._hypervisor), (3, self._break),
            (2, self._kill), (2, self._abort), (3, self._say_again), (1, self._outage),
            (2, self._tear), (1, self._rotate), (1, self._drift), (1, self._reimage),
        ]  # fmt: skip

    def _weighted(self, table: list[tuple[int, Callable[[], None]]]) -> Callable[[], None]:
        return self.chance.choices([f for _, f in table], [w for w, _ in table])[0]

    def _add(self, verb: str, *words: str, after: float = 0.0) -> None:
        at = round(max(0.0, self.at + after), 3)
        if "" in words:
            return  # there is no such VM
        if self._when:
            at, words, verb = round(self.at, 3), (*self._when, verb, *words), "when"
        self.operations.append(Operation(at, verb, words))

    def _soon(self) -> float:
        return self.chance.choice((0.0, self.chance.uniform(0, 0.1), self.chance.uniform(0, 3.0)))

    def _vm(self) -> str:
        return self.chance.choice(self.vms)

    def _ours(self) -> str:
        """A VM that no other hands run, if there is one: nobody rules a guest from two places."""
        return self.chance.choice([vm for vm in self.vms if vm not in self.by_hand] or [""])

    def _nve(self) -> str:
        if self._when and self.chance.random() < 0.8:
            return self.chance.choice(PARTS)
        return self.chance.choice(self.nves)

    def _node(self) -> str:
        if self._when and self.chance.random() < 0.8:
            return self.chance.choice((MANAGER, *PARTS))
        return self.chance.choice((MANAGER, *self.nves))

    def _away(self) -> str:
        return f"{self.chance.choice((0.001, 0.1, 1.0, self.chance.uniform(0, 6.0))):.3f}"

    def _move(self) -> None:
        self._add(self.chance.choice(("move",) * 4 + ("force-move",)), self._ours(), self._nve())

    def _start(self) -> None:
        self._add("start", self._ours(), self._nve())

    def _left_behind(self) -> None:
        """Two moves of which one NVE hears nothing, the home's more often than not."""
        vm = self._ours()
        node = self.chance.choice((self.homes.get(vm, self.nves[0]), self._nve()))
        self._add("cut", MANAGER, node, "20.000", after=self.chance.choice((0.0, 1.0)))
        self._add("move", vm, self._nve())
        self._add("move", vm, self._nve(), after=self.chance.uniform(1.5, 4.0))

    def _hand_move(self) -> None:
        vm = self.chance.choice(self.by_hand)
        self._add("hand-move", vm, self._nve())
        if self.chance.random() < 0.2:
            self._add("hand-start", vm, self._nve(), after=self._soon())

    def _drift(self) -> None:
        self._add("drift", self._vm(), self._there(), after=self._soon())
        self._add("check", self._node(), after=self._soon())

    def _reimage(self) -> None:
        self._add("reimage", self._nve(), self._away(), after=self._soon())

    def _stop(self) -> None:
        if self.chance.random() < 0.5:
            self._add("cut", MANAGER, self._nve(), "3.000")
        self._add("stop", self._ours(), self._there())

    def _start_and_stop(self) -> None:
        vm, node = self._ours(), self._nve()
        self._add("start", vm, node)
        self._add("stop", vm, node, after=self.chance.choice((0.0, 0.1, 0.5)))
        self._add("start", vm, self._nve(), after=self.chance.uniform(0.0, 3.0))

    def _there(self) -> str:
        """Where the VM is then, or anywhere."""
        return self.chance.choice((THERE, THERE, THERE, self._nve()))

    def _tug(self) -> None:
        """Two nodes want one VM at once."""
        vm = self._ours()
        for node in self.chance.sample(self.nves, 2):
            self._add("start", vm, node, after=self.chance.choice((0.0, 0.01, 0.3)))

    def _nothing(self) -> None:
        return

    def _traffic(self) -> None:
        vm, node = self._vm(), self._nve()
        self._add("traffic", vm, node, "on")
        self._add("traffic", vm, node, "off", after=self.chance.uniform(1.0, 8.0))

    def _release(self) -> None:
        """A machine is fenced, and the operator says so."""
        vm, node = self._ours(), self._nve()
        self._add("power", node, "30.000")
        later = self.chance.choice((1.0, 14.0, 22.0))
        self._add("release", vm, after=later)
        self._add("start", vm, self._nve(), after=later + 0.5)

    def _crash(self) -> None:
        self._add("crash", self._node(), self._away(), after=self._soon())

    def _crash_at(self) -> None:
        count = str(self.chance.randrange(30))
        self._add("crash-at", self._node(), count, self._away())

    def _tear(self) -> None:
        self._add("tear", self._node(), self._away(), after=self._soon())

    def _power(self) -> None:
        self._add("power", self._nve(), self._away(), after=self._soon())

    def _power_at(self) -> None:
        count = str(self.chance.randrange(30))
        self._add("power-at", self._nve(), count, self._away())

    def _several(self) -> None:
        """Several daemons at once, of which some come back sooner."""
        nodes = (MANAGER, *self.nves)
        after = self._soon()
        for node in self.chance.sample(nodes, self.chance.randint(2, len(nodes))):
            self._add("crash", node, self._away(), after=after)

    def _outage(self) -> None:
        """The manager is away for longer than all lifetimes."""
        self._add("outage", MANAGER, "25.000", after=self._soon())

    def _cut(self) -> None:
        after, length = self._soon(), f"{self.chance.choice((0.3, 3.0, 9.0, 20.0)):.3f}"
        self._add("cut", MANAGER, self._nve(), length, after=after)

    def _partition(self) -> None:
        after, length = self._soon(), f"{self.chance.choice((0.3, 2.0, 6.0)):.3f}"
        for node in self.chance.sample(self.nves, self.chance.randint(1, len(self.nves))):
            self._add("cut", MANAGER, node, length, after=after)

    def _weather(self) -> None:
        loss, repetition = self.chance.choice((0.0, 0.3, 0.7)), self.chance.choice((0.0, 0.5))
        delay = self.chance.choice((0.001, 0.3, 2.0))
        words = (f"{loss:g}", f"{repetition:g}", f"{delay:g}", "4.000")
        self._add("weather", *words, after=self._soon())

    def _disk(self) -> None:
        self._add("fill-disk", self._node(), self._away(), after=self._soon())

    def _kernel(self) -> None:
        count = str(self.chance.choice((1, 1, 2, 4)))
        self._add("fail-kernel", self._nve(), count, after=self._soon())

    def _hypervisor(self) -> None:
        self._add("fail-order", self._nve(), self.chance.choice(ORDERS), after=self._soon())

    def _break(self) -> None:
        self._add("break", self._nve(), self.chance.choice(STAGES), after=self._soon())

    def _kill(self) -> None:
        self._add("kill", self._vm(), self._there(), after=self._soon())

    def _abort(self) -> None:
        self._add("abort", self._vm(), after=self._soon())

    def _say_again(self) -> None:
        for _ in range(self.chance.choice((1, 5, 20))):
            self._add("say-again", f"{self.chance.random():.4f}", after=self._soon())

    def _rotate(self) -> None:
        self._add("rotate", self._nve(), after=self._soon())
