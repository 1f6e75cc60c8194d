"""Admission against a model: hosts never promise more than they have, whatever happens.

Hypothesis asks for VMs, confirms, deletes, moves, restarts manager and NVEs, and lets time go, over
a network that loses and repeats.  After every step no host is over-committed; the same request has
the same answer; in the end every VM that was confirmed and not deleted runs, once.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.engine.fake_hypervisor import Life, Pace
from tests.engine.network import MANAGER, Weather, World
from tests.engine.test_lifecycle import asked, confirm, host, request
from vmmobility.engine.capacity import Resources
from vmmobility.engine.lifecycle_record import LifeRefused, VmRequest
from vmmobility.engine.manager_move import GuestRefused, MoveRefused
from vmmobility.wire.values import VmKey

MEMORY_MIB = {"a": 1000, "b": 1500, "c": 700}
OFFER_S = 20.0
BUSY = (Life.RUNNING, Life.WAITING)


class Admission(RuleBasedStateMachine):
    """One domain with three small hosts."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(
            pace=Pace(copy_s=5.0),  # moves last, so that much happens meanwhile
            weather=Weather(loss=0.1, repetition=0.1, delay_s=(0.001, 0.02)),
            nve_settings={"heartbeat_s": 1.0},
            manager_settings={"offer_s": OFFER_S},
        )
        for name, size in MEMORY_MIB.items():
            self.world.nodes[name].capacity = host(size)
        self.world.run(7.0)
        self.sizes: dict[VmKey, int] = {}

    def _answer(self, wanted: VmRequest) -> tuple[str, Any]:
        try:
            life = request(self.world, wanted)
        except LifeRefused as refused:
            return ("refused", refused.kind)
        return (life.nve_id, life.state)

    @rule(number=st.integers(1, 8), memory_mib=st.integers(100, 900))
    def create(self, number: int, memory_mib: int) -> None:
        vm = VmKey(0, f"vm{number}")
        wanted = asked(vm, number, f"key{number}", resources=Resources(1, memory_mib, 0))
        first = self._answer(wanted)
        assert self._answer(wanted) == first, "said again, it is answered again"

    @precondition(lambda self: self.world.manager.lives)
    @rule(data=st.data(), less=st.booleans())
    def confirm(self, data: Any, less: bool) -> None:
        vm = data.draw(st.sampled_from(sorted(self.world.manager.lives)))
        offered = self.world.manager.lives[vm].request.resources
        half = Resources(1, offered.memory_mib // 2, 0)
        try:
            confirm(self.world, vm, **({"less": half} if less else {}))
        except LifeRefused:
            return
        confirm(self.world, vm)

    @precondition(lambda self: self.world.manager.lives)
    @rule(data=st.data())
    def delete(self, data: Any) -> None:
        vm = data.draw(st.sampled_from(sorted(self.world.manager.lives)))
        world = self.world
        node, manager = world.nodes[MANAGER], world.manager
        try:
            if vm in manager.cache.bindings:
                world.feed(
                    node, lambda: (manager.order_guest(vm, "delete", world.now, True), None)[1]
                )
            else:
                world.feed(node, lambda: (manager.delete_vm(vm, world.now), None)[1])
        except (GuestRefused, LifeRefused):
            return

    @precondition(lambda self: self.world.manager.cache.bindings)
    @rule(data=st.data(), to=st.sampled_from("abc"))
    def move(self, data: Any, to: str) -> None:
        vm = data.draw(st.sampled_from(sorted(self.world.manager.cache.bindings)))
        try:
            self.world.move(vm, to)
        except MoveRefused:
            return

    @rule(name=st.sampled_from(["a", "b", "c", MANAGER]))
    def restart(self, name: str) -> None:
        self.world.restart(name)

    @rule(seconds=st.sampled_from([0.001, 0.01, 0.5, 3.0, OFFER_S + 2.0]))
    def wait(self, seconds: float) -> None:
        self.world.run(seconds)

    @invariant()
    def no_host_has_more_guests_than_memory(self) -> None:
        """By what runs, or waits for a move's memory; not by the manager's own sums."""
        manager = self.world.nodes[MANAGER].manager
        if manager is not None:
            self.sizes |= {
                vm: life.request.resources.memory_mib for vm, life in manager.lives.items()
            }
        for name, size in MEMORY_MIB.items():
            guests = self.world.nodes[name].hypervisor
            assert guests is not None
            there = [
                vm for vm, g in guests.guests.items() if g.life in (Life.RUNNING, Life.WAITING)
            ]
            given = sum(self.sizes[vm] for vm in there)
            assert given <= size, (name, there, given, size)

    @invariant()
    def no_host_promises_more_than_it_has(self) -> None:
        manager = self.world.nodes[MANAGER].manager
        if manager is None:
            return
        given: Counter[str] = Counter()
        for vm, life in manager.lives.items():
            at = {manager.place_of(vm)} - {""}
            move = manager._current.get(vm)
            for name in at | ({move.destination.nve_id} if move else set()):
                given[name] += life.request.resources.memory_mib
        for name, size in MEMORY_MIB.items():
            assert given[name] <= size, (name, given[name], size)

    def teardown(self) -> None:
        world = self.world
        world.run(150.0)
        manager = world.manager
        for vm, life in list(manager.lives.items()):
            assert life.state.value in ("running", "failed"), (vm, life)
            where = [
                name
                for name in "abc"
                if (guests := world.nodes[name].hypervisor) and guests.life(vm) != "none"
            ]
            assert len(where) <= 1
            if life.state.value == "running":
                assert where == [manager.cache.bindings[vm].nve.nve_id]
        assert manager._by_client_key == {
            life.request.client_key: vm for vm, life in manager.lives.items()
        }
        on_disk = {key for key in world.nodes[MANAGER].disk if key.startswith("life/")}
        assert on_disk == {f"life/{vm.vni}/{vm.vm_id}" for vm in manager.lives}


TestAdmission = Admission.TestCase
TestAdmission.settings = settings(
    max_examples=12,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
