"""A guest's move between two servers of one NVE: whatever breaks, it runs at exactly one."""

from __future__ import annotations

import contextlib
import random
from ipaddress import ip_address
from typing import Any

import pytest

from tests.engine import safety
from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.fake_hypervisor import Life, Pace
from tests.engine.fake_servers import ApartWorld
from tests.engine.node import Node
from tests.engine.test_restarts import settle
from vmmobility.engine.manager_move import MoveRefused
from vmmobility.engine.outputs import SetDataPlane
from vmmobility.engine.protection_record import Guarded
from vmmobility.wire.options import Endpoint, Protection
from vmmobility.wire.registry import Phase

VM = vm_key("vm1")
SEEDS = 150


class Rig:
    """A VM at s1 of NVE a, and what is seen of it."""

    def __init__(self, **options: Any) -> None:
        self.world = ApartWorld(**options)
        self.seen: list[str] = []
        self.world.observe = self._observe
        self.world.start_vm(VM, "a", interfaces_of("vm1", 1, 1), "s1")
        settle(self.world)
        self.seen.clear()

    def _observe(self, node: Node, what: str, value: object) -> None:
        if isinstance(value, SetDataPlane) and node.node_id == "a":
            state = value.state
            self.seen.append(f"{state.server}<{','.join(state.sends)}")
        self.check()

    def check(self) -> None:
        """At every moment: never two."""
        running = [
            f"{name}/{server}"
            for name in ("a", "b", "c")
            for server in self.world.servers(name).running_at(VM)
        ]
        assert len(running) <= 1, f"it runs at {running}"

    @property
    def entry(self) -> Any:
        return self.world.edge("a").entries[VM]

    @property
    def places(self) -> list[str]:
        return self.world.servers("a").running_at(VM)

    def relocate(self, to: str = "s2") -> int:
        return self.world._give("a", lambda e, n, now: e.relocate_vm(n, VM, to, now))

    def error(self, number: int) -> str:
        self.world.run_until(lambda: number in self.world.results)
        return self.world.results[number].error

    def settled(self, *at: str) -> None:
        """It is at one of these, whole, and nothing of it anywhere else."""
        self.world.run(3.0)
        settle(self.world)
        self.check()
        safety.check_settled(self.world)
        assert self.places in [[place] for place in at], self.entry
        entry = self.entry
        assert (entry.phase, [entry.server], entry.server_to) == (Phase.SERVING, self.places, "")
        left = [n for n, one in self.world.servers("a").at.items() if VM in one.guests]
        assert left == self.places


def test_the_circuit_turns_before_the_guest_stops() -> None:
    rig = Rig()
    servers = rig.world.servers("a").at
    number = rig.relocate()
    rig.world.run_until(lambda: servers["s1"].guests[VM].life is Life.HANDED)
    assert rig.seen[-1] == "s2<s1"
    rig.settled("s2")
    assert rig.seen[0] == "s1<s2"
    assert rig.seen[-1] == "s2<"
    assert rig.world.results[number].result == {"vm": "vm1", "server": "s2"}
    assert rig.error(number) == ""
    rig.relocate("s1")
    rig.settled("s1")


@pytest.mark.parametrize("stage", ["copy", "moment", "switch"])
def test_a_copy_that_breaks_leaves_it_where_it_was(stage: str) -> None:
    rig = Rig()
    rig.world.servers("a").at["s1"].break_next.add(stage)
    number = rig.relocate()
    rig.settled("s1")
    assert f"broken at {stage}" in rig.error(number)
    assert rig.seen[-1] == "s1<"


def test_a_guest_that_cannot_load_goes_on_where_it_was() -> None:
    rig = Rig()
    rig.world.servers("a").at["s2"].break_next.add("load")
    number = rig.relocate()
    rig.settled("s1")
    assert "stays at s1" in rig.error(number)


def test_a_relocation_is_given_up_by_a_command() -> None:
    rig = Rig()
    first = rig.relocate()
    rig.world.run_until(lambda: rig.entry.phase is Phase.RELOCATING)
    second = rig.relocate("s1")
    rig.settled("s1")
    assert "given up" in rig.error(first)
    assert "given up" in rig.error(second)


def test_what_cannot_be_relocated_is_refused() -> None:
    rig = Rig()
    assert rig.error(rig.relocate("s3")) == "this NVE has no server 's3': its servers are s1, s2"
    assert rig.error(rig.relocate("s1")) == "", "it is there"
    rig.relocate()
    assert "not settled" in rig.error(rig.relocate("s2"))
    number = rig.world.stop_vm(VM, "a")
    assert "relocating" in rig.error(number)
    rig.settled("s2")
    number = rig.world._give("a", lambda e, n, now: e.relocate_vm(n, vm_key("vm9"), "s2", now))
    assert rig.error(number) == "VM vm9 is not here"
    edge = rig.world.edge("a")
    door = Endpoint(ip_address("192.0.2.9"), 1)
    edge.guarded[VM] = Guarded(VM, edge.settings.own, door, Protection(False, 3_600_000, 1), 1)
    assert "is protected" in rig.error(rig.relocate("s1"))
    del edge.guarded[VM]
    rig.settled("s2")


def test_a_move_to_another_nve_waits_its_turn() -> None:
    rig = Rig()
    rig.relocate()
    rig.world.move(VM, "b")
    settle(rig.world)
    rig.settled("s2")
    rig.world.move(VM, "b")
    settle(rig.world)
    assert rig.places == []
    assert safety.running(rig.world, VM) == ["b"]


def test_a_guest_that_dies_at_its_server_is_told_lost() -> None:
    rig = Rig()
    number = rig.relocate()
    rig.world.run(0.1)
    rig.world.servers("a").at["s1"].kill(VM)
    rig.world.run(30.0)
    settle(rig.world)
    assert rig.places == []
    assert rig.error(number)
    assert VM not in rig.world.servers("a").at["s2"].guests


@pytest.mark.parametrize("after_ms", [*range(0, 40, 2), *range(480, 640, 4)])
def test_a_crash_at_any_moment(after_ms: int) -> None:
    rig = Rig()
    rig.relocate()
    rig.world.run(after_ms / 1000)
    rig.world.crash("a")
    rig.world.run(0.05)
    rig.world.restart("a")
    rig.settled("s1", "s2")


def life(seed: int) -> None:
    """Relocations among faults: crashes, broken copies, dead waiting guests, second thoughts."""
    chance = random.Random(seed)
    pace = Pace(copy_s=chance.uniform(0.01, 0.5), load_s=chance.uniform(0.001, 0.1))
    rig = Rig(seed=seed, pace=pace)
    world = rig.world
    for _ in range(4):
        before = rig.places[0]
        to = "s2" if before == "s1" else "s1"
        servers = world.servers("a").at
        if chance.random() < 0.4:
            stage = chance.choice(["copy", "moment", "switch", "load"])
            servers[to if stage == "load" else before].break_next = {stage}
        rig.relocate(to)
        for _ in range(chance.randrange(3)):
            world.run(chance.uniform(0.0, 0.4))
            fault = chance.choice(["crash", "waiting", "abort", "move"])
            if fault == "crash":
                world.crash("a")
                world.run(chance.uniform(0.0, 0.3))
                world.restart("a")
            elif fault == "waiting":
                guest = servers[to].guests.get(VM)
                if guest is not None and guest.life is Life.WAITING:
                    servers[to].kill(VM)
            elif fault == "abort":
                rig.relocate(before)
            elif rig.entry.phase is Phase.RELOCATING:
                with contextlib.suppress(MoveRefused):  # another one is being turned back
                    world.move(VM, "b")
        world.run(3.0)
        settle(world)
        for one in servers.values():
            one.break_next.clear()
        if not rig.places:
            assert safety.running(world, VM) == ["b"]
            return
        rig.settled("s1", "s2")


@pytest.mark.parametrize("first", range(0, SEEDS, 50))
def test_lives_among_faults(first: int) -> None:
    for seed in range(first, first + 50):
        life(seed)
