"""Runs a schedule: a World, the operations, safety after each event, liveness at the end.

Not here: how schedules are drawn (draw.py) and shrunk (shrink.py), many of them (campaign.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.engine import safety
from tests.engine.conversation import vm_key
from tests.engine.fabric_talk import sites
from tests.engine.fake_hypervisor import Pace
from tests.engine.network import MANAGER, Node, Weather, World
from tests.engine.safety import Violation
from tests.simulation import liveness
from tests.simulation.coverage import BEGINS, Coverage
from tests.simulation.operations import Operations
from tests.simulation.records import Records
from tests.simulation.schedule import Schedule
from vmmobility.engine.channel import Retransmission
from vmmobility.engine.group_record import group_to_json
from vmmobility.engine.manager_move import CommandRefused
from vmmobility.engine.manager_protection_record import ProtectionState
from vmmobility.engine.manager_transitions import MoveState
from vmmobility.engine.outputs import CommandDone, Event, Send
from vmmobility.wire.registry import GuestState
from vmmobility.wire.values import VmKey

_RUNNING = GuestState.RUNNING
LEAST_EVENTS = 200
EXPECT_AGAIN = 40  # so often, a second apart, is a guest expected that is not yet
AFTER_S = 3.0  # between the last operation and the calm


@dataclass
class Outcome:
    """What came of a schedule."""

    events: int
    crashes: int
    violation: Violation | None
    struck: Counter[tuple[str, str]] = field(default_factory=Counter)
    micro_loops: int = 0


def run(schedule: Schedule, prepare: Callable[[World], None] = lambda world: None) -> Outcome:
    """The whole schedule.  prepare: may add its own observer to the new World."""
    runner = Runner(schedule, prepare)
    try:
        runner.run()
    except Violation as violation:
        return runner.outcome(violation)
    except AssertionError as error:
        return runner.outcome(Violation("assertion", str(error)))
    except Exception as error:  # an engine must raise nothing
        return runner.outcome(Violation(f"raised {type(error).__name__}", str(error)))
    return runner.outcome(None)


class Runner:
    """One schedule's run."""

    def __init__(self, schedule: Schedule, prepare: Callable[[World], None]) -> None:
        self.schedule = schedule
        self.world = world = a_world(schedule)
        self.coverage = Coverage()
        self.records = Records(world)
        self.operations = Operations(world, schedule, self.coverage.strike)
        self.events = 0
        for number, group in enumerate(schedule.groups, 1):
            self._declare(f"group{number}", group.split(","))
        prepare(world)
        self._observe_too = world.observe
        world.observe = self._observe
        world.watch = self._watch
        world.overheard = []
        self.operations.lost_state = self.records.forget
        self.coverage.routers = frozenset(world.fabric.sites if world.fabric else ())
        for vm, _ in schedule.homes:
            self.coverage.knows(vm_key(vm))
        for node in world.nodes.values():
            self.records.durable(node, list(node.disk.items()))

    def _declare(self, name: str, members: list[str]) -> None:
        """The operator has heard that it is done, so it is durable."""
        manager = self.world.nodes[MANAGER]
        self.world.declare_group(name, tuple(map(vm_key, members)))
        group = self.world.manager.groups[name]
        manager.disk[group.key] = group_to_json(group)

    def _next_nve(self, key: VmKey, at: int, wanted: dict[VmKey, str]) -> str | None:
        """The NVE before the one of that place, to which the VM may go; None: there is none."""
        manager, nves = self.world.manager, self.schedule.nves
        binding = manager.cache.bindings.get(key)
        here = binding.nve.nve_id if binding else None
        taken = [wanted.get(mate) for mate in self.world.groups.get(key, ()) if mate != key]
        turns = [nves[(at - n) % len(nves)] for n in range(1, len(nves) + 1)]
        return next(
            (n for n in turns if n not in (here, *taken) and not manager._mate_there(key, n)), None
        )

    def outcome(self, violation: Violation | None) -> Outcome:
        struck, fabric = self.coverage.struck, self.world.fabric
        loops = fabric.micro_loops if fabric else 0
        return Outcome(self.events, self.operations.crashes, violation, struck, loops)

    def run(self) -> None:
        world, schedule = self.world, self.schedule
        self.operations.plan(schedule.operations)
        last = max((o.at for o in schedule.operations), default=0.0)
        world.run(last - world.now + AFTER_S)
        self.operations.calm()
        for name in world.nodes:
            self.operations.revive(name)
        self._thaw()
        self._expect_again()
        self._unprotect()
        self._quiet()
        self._wake_all()
        self._thaw()  # a change of NVE that was under way may have been one too many
        self._move_all()
        while self.events < LEAST_EVENTS:
            self._thaw()
            self._move_all()
            self._quiet()

    def _quiet(self) -> None:
        """Long enough for refreshes, for comparisons, and for redirects to drain."""
        world, schedule = self.world, self.schedule
        world.senders.clear()
        # A manager that has lost its records lets nobody forget before it knows: two more.
        checks = 4 if self.operations.fates.manager_forgot else 2
        liveness.settle(world, schedule.setting("lifetime") + checks * schedule.setting("check"))
        liveness.settle(world, schedule.setting("drain") + 3.0)
        liveness.check(world, self.operations.fates)
        liveness.check_drained(world, self.operations.fates)

    def _unprotect(self) -> None:
        """Standbys that have to take over do so; then nobody is protected any more."""
        manager, world = self.world.nodes[MANAGER].manager, self.world
        assert manager is not None
        end = world.now + 3 * self.schedule.setting("lifetime") + 60.0
        while manager.protected and world.now < end:
            world.run(2.0)
            if all(p.state is not ProtectionState.TAKING_OVER for p in manager.protected.values()):
                world.run(self.schedule.setting("lifetime") + 12.0)
                self.operations.unprotect_all()
        if manager.protected:
            states = [f"{p.vm} {p.state.value}" for p in manager.protected.values()]
            raise Violation("protection does not end", "; ".join(states))

    def _expect_again(self) -> None:
        """Whoever runs guests by hand sees to it that they are expected everywhere; an NVE that is
        prepared for a move of the VM (a drain's, which will fail) refuses that, and is told again.
        """
        wanted = [(vm, n) for vm in sorted(self.operations.by_hand) for n in self.schedule.nves]
        for _ in range(EXPECT_AGAIN):
            for vm, name in wanted:
                self.operations.do_expect(vm, name)
            if wanted:
                self.world.run(1.0)
            wanted = [
                (vm, name)
                for vm, name in wanted
                if not self.world.edge(name).entries.entry(vm_key(vm)).expected
            ]
            if not wanted:
                return

    def _thaw(self) -> None:
        manager = self.world.nodes[MANAGER].manager
        assert manager is not None
        for vm in [b.vm for b in manager.cache.bindings.values() if b.frozen]:
            manager.release(vm, self.world.now)
        drained = [drain.nve_id for drain in manager.drains.values() if drain.ok is None]
        for name in set(manager.cordons) - set(drained):
            manager.uncordon(name, self.world.now)
        self.world.feed(self.world.nodes[MANAGER], lambda: None)

    def _wake_all(self) -> None:
        """What was stopped or suspended can be let go on."""
        manager = self.world.nodes[MANAGER].manager
        assert manager is not None
        for vm in [b.vm for b in manager.cache.bindings.values() if b.guest is not _RUNNING]:
            binding = manager.cache.bindings[vm]
            if not binding.lost:
                verb = "resume" if binding.guest is GuestState.SUSPENDED else "start"
                self.world.order_guest(vm, verb)
        liveness.settle(self.world, 0.0)
        liveness.check(self.world, self.operations.fates)

    def _move_all(self) -> None:
        """From wherever each VM is now, it can be moved; what is no more can be started again."""
        world, schedule = self.world, self.schedule
        manager = world.nodes[MANAGER].manager
        assert manager is not None
        for key in world.interfaces:  # a move in which nothing goes wrong loses no packet
            by_hand = key.vm_id in self.operations.by_hand
            if any(not safety.running(world, mate) for mate in world.groups.get(key, ())):
                continue  # that member is to be started: it is announced before its guest answers
            if not by_hand and all(w.end == "delivered" for w in safety.walks(world, key)):
                world.lossless.add(key)
        moved: list[str] = []
        wanted: dict[VmKey, str] = {}
        left_open = liveness.left_open(world, self.operations.fates)
        for vm, _ in schedule.homes:
            key, by_hand = vm_key(vm), vm in self.operations.by_hand
            if key in left_open:
                continue
            binding = manager.cache.bindings.get(key)
            at = schedule.nves.index(binding.nve.nve_id) if binding else 1
            to = self._next_nve(key, at, wanted)
            if to is None:
                continue  # of so many members, for so few NVEs
            wanted[key] = to
            if binding is None or not safety.running(world, key):
                if binding is not None:  # lost there with all its state; elsewhere it redirects
                    wanted[key] = binding.nve.nve_id
                start = self.operations.do_hand_start if by_hand else self.operations.do_start
                start(vm, wanted[key])
            elif by_hand:
                self.operations.do_hand_move(vm, wanted[key])
            else:
                try:
                    moved.append(world.move(key, wanted[key]))
                except CommandRefused as refused:
                    raise Violation("cannot be moved again", f"{vm}: {refused}") from None
        liveness.settle(world, 10.0 if self.operations.by_hand else 0.0)
        world.lossless.clear()
        for move in (manager.moves[m] for m in moved):
            if move.state is not MoveState.DONE:
                raise Violation("cannot be moved again", f"{move.vm}: {move.reason}")
        for key, at_last in wanted.items():
            binding = manager.cache.bindings.get(key)
            if binding is None or binding.nve.nve_id != at_last:
                where = binding.nve.nve_id if binding else "nowhere"
                raise Violation("cannot be moved again", f"{key} is at {where}, not {at_last}")
        liveness.check(world, self.operations.fates)

    def _is_warm(self, event: Event) -> bool:
        manager = self.world.nodes[MANAGER].manager
        move = manager.moves.get(event.detail["move"]) if manager is not None else None
        return move is not None and move.mode == "warm"

    def _not_failed(self, event: Event) -> None:
        """A move may fail only if no whole copy is left."""
        if event.name == "move.failed":
            vm = vm_key(event.detail["vm"])
            fates = self.operations.fates
            # A manager that was set back may be asked to move it from where it was once.
            if not fates.set_back and vm in fates.must_live and fates.copies(vm):
                reason = event.detail.get("reason", "")
                raise Violation(
                    "failed though a copy lives", f"{self.world.now:.3f} {vm}: {reason}"
                )

    # ---- what is seen --------------------------------------------------------------------------

    def _watch(self, world: World) -> None:
        self.events += 1
        if world.touched:
            safety.check(world)
            self._check_held()

    def _check_held(self) -> None:
        """A VM that was ordered to be stopped, or suspended, and is confirmed so, runs nowhere."""
        manager = self.world.nodes[MANAGER].manager
        if manager is None or self.operations.fates.set_back:
            return
        for binding in manager.cache.bindings.values():
            if binding.guest is _RUNNING or binding.order is not None:
                continue
            places = safety.running(self.world, binding.vm)
            if places:
                what = f"{binding.vm} is {binding.guest.name.lower()}, and runs at {places}"
                raise Violation("runs though it was stopped", f"{self.world.now:.3f} {what}")

    def _observe(self, node: Node, what: str, value: Any) -> None:
        if what == "output":
            if isinstance(value, Event):
                self.coverage.event(value)
                phase, told = BEGINS.get(value.name), value.detail
                if phase is not None and "from" in told:
                    parts = {"source": told["from"], "destination": told["to"]}
                    self.operations.entered(told["vm"], phase, parts)
                self._not_failed(value)
                self.operations.protection_told(value)
                if value.name == "move.registered" and self._is_warm(value):
                    self.world.moved_warm(vm_key(value.detail["vm"]), value.detail["to"])
                self.records.event(value)
                if value.name == "guest.state" and node.node_id == MANAGER:
                    self._check_held()
            elif isinstance(value, Send):
                self.records.said(node, value)
            elif isinstance(value, CommandDone):
                self.operations.command_done(value)
        elif what == "durable":
            self.records.durable(node, value)
        elif what == "crash":
            self.operations.crashed(node)
        elif what in ("lost", "repeated", "cut"):
            self.coverage.strike(what, node.node_id)
        self._observe_too(node, what, value)


def a_world(schedule: Schedule) -> World:
    """The World of a schedule's settings."""
    value = schedule.setting
    retransmission = Retransmission(value("first"), value("most"))
    manager: dict[str, Any] = {
        "lifetime_s": value("lifetime"),
        "step_s": value("step"),
        "copy_s": value("copy"),
        "ticket_s": value("ticket"),
        "ask_s": value("ask"),
        "check_s": value("check"),
        "retransmission": retransmission,
        "protect_margin_s": 1.0,
    }
    nve = {
        "lifetime_s": value("lifetime"),
        "drain_s": value("drain"),
        "check_s": value("check"),
        "retransmission": retransmission,
    }
    if schedule.groups:
        nve["heartbeat_s"] = 1.0  # whose NVE is dead is out of service
    pace = Pace(value("order"), value("copying"), value("moment"), value("stop"), value("load"))
    delay = (min(0.001, value("delay")), value("delay"))
    weather = Weather(value("loss"), value("repetition"), delay)
    persist = (min(0.0005, value("persist")), value("persist"))
    fabric: dict[str, Any] = {}
    if schedule.routers:
        manager["gate_s"] = value("gate")
        manager["gate_policy"] = "proceed" if value("proceed") else "abort"
        most = value("fabric")
        fabric = {"routers": sites("/".join(schedule.routers)), "fabric_delay_s": (most / 5, most)}
    return World(schedule.nves, schedule.seed, weather, persist, pace, manager, nve, **fabric)
