"""What the verbs of a schedule do to a World, and what they leave to be expected of it.

Whatever dies is started again some time later, as a supervisor does.  A verb that makes no sense
when its moment comes (the node is down, the VM is not there) does nothing.
Not here: which VMs must live at the end (fates.py).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.fake_hypervisor import Guest, Life
from tests.engine.network import MANAGER, Node, Weather, World, a_secret
from tests.simulation.fabric_operations import FabricOperations
from tests.simulation.fates import Fates
from tests.simulation.host_operations import HostOperations
from tests.simulation.protection_operations import ProtectionOperations
from tests.simulation.schedule import Operation, Schedule
from vmmobility.engine.manager import ManagerEngine
from vmmobility.engine.manager_move import CommandRefused
from vmmobility.engine.manager_transitions import FINAL
from vmmobility.engine.outputs import CommandDone, Order, Output
from vmmobility.wire.move_terms import NO_TERMS, MoveTerms
from vmmobility.wire.registry import OnTimeout, Phase
from vmmobility.wire.values import Interface, VmKey

AWAY_S = 0.5  # a daemon that nobody planned to crash is started again after so long
THERE = "there"  # the NVE that serves the VM, by the manager's record
FORCED = MoveTerms(timeout_s=1, on_timeout=OnTimeout.FORCE)
BY_HAND = ("expect", "hand-start", "hand-move")
ROTATION_S = 0.7  # from one step of a key's rotation to the next
GIVEN_UP = "people gave up the host of"


class Operations(FabricOperations, HostOperations, ProtectionOperations):
    """Carries operations out.  hit(what, node) is told of every fault that strikes."""

    def __init__(self, world: World, schedule: Schedule, hit: Callable[[str, str], None]) -> None:
        self.world, self.schedule, self.hit = world, schedule, hit
        self.fates = Fates(world)
        for node in world.nodes.values():
            if node.hypervisor is not None:
                node.hypervisor.about_to_end = self._broken_at_load
        self.told: Callable[[Operation], None] = lambda operation: None
        self.lost_state: Callable[[str], None] = lambda name: None
        self.by_hand = {o.words[0] for o in schedule.operations if o.verb in BY_HAND}
        self.crashes = 0
        self._like = {vm: g.split(",")[0] for g in schedule.groups for vm in g.split(",")}
        self._homes = {vm: schedule.nves.index(home) + 1 for vm, home in schedule.homes}
        self._calm = False
        self._starting: dict[int, VmKey] = {}
        self._copy: dict[str, Any] = {}  # of the manager's disk, by `back-up`
        self._away: dict[str, float] = {}
        self._armed: dict[str, tuple[int, str, float]] = {}
        self._cuts: dict[frozenset[str], int] = {}
        self._when: dict[tuple[str, str], list[tuple[float, Operation]]] = {}
        world.interrupt = self._interrupt
        world.torn = self._torn

    def plan(self, operations: Iterable[Operation]) -> None:
        for operation in operations:
            self.world.later(operation.at - self.world.now, partial(self.carry_out, operation))

    def carry_out(self, operation: Operation) -> None:
        if self._calm:
            return
        self.told(operation)
        method: Callable[..., None] = getattr(self, "do_" + operation.verb.replace("-", "_"))
        method(*operation.words)

    def do_when(self, vm: str, phase: str, delay: str, verb: str, *words: str) -> None:
        """Once, when the VM's next move comes to that phase."""
        operation = Operation(self.world.now, verb, words)
        self._when.setdefault((vm, phase), []).append((float(delay), operation))

    def entered(self, vm: str, phase: str, parts: Mapping[str, str]) -> None:
        """To be told of every phase of every move.  parts: which NVEs "source" and "destination"
        mean in it."""
        parts = {**parts, **self.routers_of(parts)}
        for delay, operation in self._when.pop((vm, phase), ()):
            words = tuple(parts.get(word, word) for word in operation.words)
            meant = Operation(self.world.now + delay, operation.verb, words)
            self.world.later(delay, partial(self.carry_out, meant))

    def _where(self, vm: str, name: str) -> Node | None:
        """The node meant by `name`."""
        if name != THERE:
            return self.world.nodes[name]
        manager = self._manager()
        binding = manager.cache.bindings.get(vm_key(vm)) if manager else None
        return self.world.nodes[binding.nve.nve_id] if binding else None

    def calm(self) -> None:
        """No more faults: the network heals, whatever was set to fail does not."""
        world, self._calm = self.world, True
        world.weather = Weather()
        world.cut.clear()
        self._cuts.clear()
        self._armed.clear()
        self._away.clear()
        self._when.clear()
        self.calm_fabric()
        for node in world.nodes.values():
            node.fail_persist = node.tear_persist = False
            node.kernel.fail_next.clear()
            if node.hypervisor is not None:
                node.hypervisor.fail_next.clear()
                node.hypervisor.break_next.clear()

    # ---- crashes -------------------------------------------------------------------------------

    def crashed(self, node: Node) -> None:
        """To be told of every daemon's end: it comes back."""
        self.crashes += 1
        away = self._away.pop(node.node_id, AWAY_S)
        self.world.later(away, partial(self.revive, node.node_id))

    def revive(self, name: str) -> None:
        if self.world.nodes[name].engine is None:
            self.world.restart(name)

    def _interrupt(self, node: Node, output: Output) -> bool:
        name = node.node_id
        if name not in self._armed:
            return False
        left, kind, away = self._armed[name]
        if left:
            self._armed[name] = (left - 1, kind, away)
            return False
        del self._armed[name]
        self._end(kind, name, away)
        return True

    def _end(self, kind: str, name: str, away: float) -> None:
        node = self.world.nodes[name]
        self.hit(kind, name)
        self._away[name] = away
        if kind == "power":
            guests = node.hypervisor.guests.values() if node.hypervisor else ()
            self.fates.destroyed(guests, f"{name} lost its power")
            self.world.power_cut(name)
        else:
            self.world.crash(name)
        self._away.pop(name, None)

    def _torn(self, node: Node) -> None:
        self._end("torn", node.node_id, AWAY_S)

    def do_crash(self, name: str, away: str) -> None:
        if self.world.nodes[name].engine is not None:
            self._end("crash", name, float(away))

    do_outage = do_crash

    def do_power(self, name: str, away: str) -> None:
        self._end("power", name, float(away))

    def do_crash_at(self, name: str, count: str, away: str) -> None:
        self._armed[name] = (int(count), "crash", float(away))

    def do_power_at(self, name: str, count: str, away: str) -> None:
        self._armed[name] = (int(count), "power", float(away))

    def do_tear(self, name: str, away: str) -> None:
        self.world.nodes[name].tear_persist = True

    def do_fill_disk(self, name: str, away: str) -> None:
        self.hit("disk full", name)
        self.world.nodes[name].fail_persist = True

    # ---- the network ---------------------------------------------------------------------------

    def do_cut(self, one: str, other: str, length: str) -> None:
        pair = frozenset((one, other))
        self._cuts[pair] = self._cuts.get(pair, 0) + 1
        self.world.cut.add(pair)
        self.world.later(float(length), partial(self._heal, pair, self._cuts[pair]))

    def _heal(self, pair: frozenset[str], number: int) -> None:
        if self._cuts.get(pair) == number:
            self.world.cut.discard(pair)

    def do_weather(self, loss: str, repetition: str, delay: str, length: str) -> None:
        before = self.world.weather
        now = Weather(float(loss), float(repetition), (0.001, float(delay)))
        self.world.weather = now
        self.world.later(float(length), partial(self._weather_back, now, before))

    def _weather_back(self, now: Weather, before: Weather) -> None:
        if self.world.weather is now:
            self.world.weather = before

    def _broken_at_load(self, guest: Guest) -> None:
        self.fates.destroyed([guest], f"it could not be loaded at {guest.at.own.nve_id}")

    def do_say_again(self, where: str) -> None:
        """An old datagram once more, of the whole time so far."""
        overheard = self.world.overheard
        if overheard:
            index = min(int(float(where) * len(overheard)), len(overheard) - 1)
            self.hit("replayed", overheard[index][0].node_id)
            self.world.say_again(index)

    def do_rotate(self, name: str) -> None:
        """A new key for an NVE and the manager: both take it, each signs with it, the old goes."""
        world = self.world
        secrets, signing = world.keys(name, MANAGER)
        number = max(secrets) + 1
        secrets[number] = a_secret(name, MANAGER, number)
        self.hit("key rotated", name)

        def both_read() -> None:
            world.read_keys(name, MANAGER)
            world.read_keys(MANAGER, name)

        def sign(end: str) -> None:
            signing[end] = max(signing[end], number)
            both_read()

        def forget_old() -> None:
            for old in [n for n in secrets if n < min(signing.values())]:
                del secrets[old]
            both_read()

        both_read()
        world.later(ROTATION_S, lambda: sign(name))
        world.later(2 * ROTATION_S, lambda: sign(MANAGER))
        world.later(12 * ROTATION_S, forget_old)

    # ---- the machine below ---------------------------------------------------------------------

    def do_fail_kernel(self, name: str, count: str) -> None:
        self.hit("kernel fails", name)
        self.world.nodes[name].kernel.fail_next += ["no route to host"] * int(count)

    def do_fail_order(self, name: str, order: str) -> None:
        hypervisor = self.world.nodes[name].hypervisor
        assert hypervisor is not None
        self.hit("hypervisor fails", name)
        hypervisor.fail_next.setdefault(Order(order), []).append("no such device")

    def do_break(self, name: str, stage: str) -> None:
        hypervisor = self.world.nodes[name].hypervisor
        assert hypervisor is not None
        self.hit("copy breaks", name)
        hypervisor.break_next.add(stage)

    def do_kill(self, vm: str, name: str) -> None:
        node = self._where(vm, name)
        hypervisor = node.hypervisor if node else None
        guest = hypervisor.guests.get(vm_key(vm)) if hypervisor else None
        if node is not None and hypervisor is not None and guest is not None:
            self.hit("guest dies", node.node_id)
            self.fates.destroyed([guest], f"its guest at {node.node_id} died")
            hypervisor.kill(vm_key(vm))

    # ---- people --------------------------------------------------------------------------------

    def _addresses(self, vm: str) -> tuple[VmKey, tuple[Interface, ...]]:
        like = self._like.get(vm, vm)  # a member of a group has those of its first
        return vm_key(vm), interfaces_of(like, self._homes[like], 1)

    def do_start(self, vm: str, name: str) -> None:
        key, addresses = self._addresses(vm)
        if self.world.nodes[name].engine is not None and not self._unknown(key):
            number = self.world.start_vm(key, name, addresses)
            self._starting[number] = key

    def command_done(self, done: CommandDone) -> None:
        """To be told of every command's end: a VM whose start has succeeded must live."""
        if done.command in self._starting and not done.error:
            key = self._starting[done.command]
            self.fates.ran.add(key)
            if self.fates.doomed.get(key, "").startswith(GIVEN_UP):
                del self.fates.doomed[key]

    def do_stop(self, vm: str, name: str) -> None:
        node = self._where(vm, name)
        if node is not None and node.engine is not None:
            number = self.world.stop_vm(vm_key(vm), node.node_id)
            done = self.world.results.get(number)
            if done is None or not done.error:
                self.fates.doomed.setdefault(vm_key(vm), "people stopped it")

    def _manager(self) -> ManagerEngine | None:
        return self.world.nodes[MANAGER].manager

    def do_force_move(self, vm: str, to: str) -> None:
        """One that ends in post-copy."""
        self.do_move(vm, to, terms=FORCED)

    def do_move(self, vm: str, to: str, mode: str = "", terms: MoveTerms = NO_TERMS) -> None:
        """Where the VM is there already, to the next NVE.  One that does not run moves cold."""
        manager = self._manager()
        if manager is not None:
            binding = manager.cache.bindings.get(vm_key(vm))
            if binding is not None and binding.nve.nve_id == to:
                nves = self.schedule.nves
                to = nves[nves.index(to) - 1]
            try:
                self.world.move(vm_key(vm), to, terms, mode)
            except CommandRefused:
                self.hit("move refused", MANAGER)

    def do_abort(self, vm: str) -> None:
        manager = self._manager()
        if manager is None:
            return
        for move in list(manager.moves.values()):
            if move.vm == vm_key(vm) and move.ok is None:
                try:
                    manager.abort_move(move, self.world.now)
                    self.hit("given up", MANAGER)
                except CommandRefused:
                    self.hit("not given up", MANAGER)
        self.world.feed(self.world.nodes[MANAGER], lambda: None)

    def do_guest(self, verb: str, vm: str, force: str = "") -> None:
        """What people want of a guest, by the manager."""
        if self._manager() is None:
            return
        try:
            self.world.order_guest(vm_key(vm), verb, force=bool(force))
        except CommandRefused:
            self.hit("guest order refused", MANAGER)
            return
        self.hit(f"guest to {verb}", MANAGER)
        if verb == "delete":
            self.fates.doomed.setdefault(vm_key(vm), "people deleted it")

    def do_release(self, vm: str) -> None:
        """Only where it is true: that machine is without power, and of the VM is nothing there."""
        manager, key = self._manager(), vm_key(vm)
        for name, node in self.world.nodes.items():
            hypervisor = node.hypervisor
            if manager is None or hypervisor is None or node.engine is not None:
                continue
            if key not in hypervisor.guests and key not in node.kernel.held:
                try:
                    binding = manager.release(key, self.world.now, name)
                    self.hit("released", name)
                    if binding.released and not self.fates.copies(key):
                        # By that word nothing of it is there any more, a stopped VM's disks too.
                        self.fates.doomed.setdefault(key, f"{GIVEN_UP} {name}")
                except CommandRefused:
                    self.hit("not released", name)
                self.world.feed(self.world.nodes[MANAGER], lambda: None)

    def do_lossless(self, vm: str) -> None:
        """From now on no packet for the VM may be lost, from wherever it comes."""
        self.world.lossless.add(vm_key(vm))

    def do_traffic(self, vm: str, name: str, state: str) -> None:
        if state == "on":
            self.world.senders.add((name, vm_key(vm)))
        else:
            self.world.senders.discard((name, vm_key(vm)))

    # ---- other hands ---------------------------------------------------------------------------

    def do_expect(self, vm: str, name: str) -> None:
        """Other hands run this VM's guests, and may bring one here."""
        if self.world.nodes[name].engine is not None:
            key, addresses = self._addresses(vm)
            self.world.expect_vm(key, name, addresses)

    def do_hand_start(self, vm: str, name: str) -> None:
        """Unless it lives somewhere: who starts a guest twice has it twice."""
        hypervisor, key = self.world.nodes[name].hypervisor, vm_key(vm)
        guests = self.fates.guests(key)
        if hypervisor is not None and all(g.life is Life.DEPARTED for g in guests):
            self.fates.ran.add(key)
            self.fates.doomed.pop(key, None)
            hypervisor.start_by_hand(key)

    def do_hand_move(self, vm: str, name: str) -> None:
        target, key = self.world.nodes[name].hypervisor, vm_key(vm)
        guests = self.fates.guests(key)
        running = [g for g in guests if g.life is Life.RUNNING and g.at is not target]
        free = not any(g.at is target and g.life is not Life.DEPARTED for g in guests)
        down = running and self.world.nodes[running[0].at.own.nve_id].engine is None
        if down and self.fates.manager_forgot:
            return  # brought back before its daemon is up, it would be taken for one that yields
        if target is not None and running and free:
            self.hit("moved by hand", name)
            running[0].at.migrate_by_hand(key, target)

    def do_drift(self, vm: str, name: str) -> None:
        """Hands remove what a kernel holds."""
        node = self._where(vm, name)
        if node is not None and vm_key(vm) in node.kernel.held:
            self.hit("kernel drifts", node.node_id)
            node.kernel.hold(vm_key(vm), None)
            node.kernel.lost.add(vm_key(vm))

    def do_check(self, name: str) -> None:
        if self.world.nodes[name].engine is not None:
            self.world.check(name)

    def do_reimage(self, name: str, away: str) -> None:
        """A machine is made anew: without guests, and without its state."""
        edge = self.world.nodes[name].edge
        for entry in edge.entries.values() if edge else ():
            if entry.phase is Phase.STOPPED:
                self.fates.doomed.setdefault(entry.vm, f"all of it was at {name}")
        self._end("power", name, float(away))
        self.hit("state lost", name)
        self.world.lose_state(name)
        self.lost_state(name)

    # ---- the manager's records -----------------------------------------------------------------

    def do_back_up(self) -> None:
        """People copy the manager's disk."""
        self._copy = json.loads(json.dumps(self.world.nodes[MANAGER].disk))

    def do_lose_manager(self, away: str) -> None:
        """The manager is made anew, and nothing of its records is left."""
        self._end("crash", MANAGER, float(away))
        self.hit("state lost", MANAGER)
        self.world.lose_state(MANAGER)
        self._forgot()

    def do_set_back(self, away: str) -> None:
        """The manager is made anew on what was copied; without a copy, on nothing."""
        if not self._copy:
            self.do_lose_manager(away)
            return
        if self._moved_on():
            return
        self.fates.set_back = True
        self._end("crash", MANAGER, float(away))
        self.hit("set back", MANAGER)
        self.world.nodes[MANAGER].disk = json.loads(json.dumps(self._copy))
        self._forgot()

    def _moved_on(self) -> bool:
        """Whether the copy lacks all of a move that is under way, and the end of one before it: the
        manager would wait for ever for the end of the first."""
        final, prefix = {state.value for state in FINAL}, "move/"
        disk = self.world.nodes[MANAGER].disk
        old = [v for k, v in self._copy.items() if k.startswith(prefix) and v["state"] not in final]
        new = [v for k, v in disk.items() if k.startswith(prefix) and k not in self._copy]
        begun = Counter(v["vm"] for v in old + new)
        done = {v["vm"] for v in new if v["state"] in final}
        return any(
            begun[v["vm"]] > 1 and (v["vm"] not in done or v["state"] not in final) for v in new
        )

    def _unknown(self, vm: VmKey) -> bool:
        """Whether it lives where a manager that was set back does not look for it."""
        manager, guests = self._manager(), self.fates.guests(vm)
        binding = manager.cache.bindings.get(vm) if manager else None
        known = binding.nve.nve_id if binding else ""
        return self.fates.set_back and any(g.at.own.nve_id != known for g in guests)

    def _forgot(self) -> None:
        self.lost_state(MANAGER)
        self.fates.manager_forgot = True
        for vm in self.fates.must_live:
            if self.fates.guests(vm) and not self.fates.copies(vm):
                self.fates.doomed[vm] = "its one copy was handed over, and nobody knows"
