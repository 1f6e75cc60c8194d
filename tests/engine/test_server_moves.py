"""The manager knows the servers of an NVE apart: their room, their death, moves to one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.engine import safety
from tests.engine.conversation import interfaces_of, vm_key
from tests.engine.fake_hypervisor import Pace
from tests.engine.fake_servers import ApartWorld
from tests.engine.network import MANAGER
from tests.engine.test_groups import ADDRESSES
from tests.engine.test_restarts import settle
from vmmobility.engine.capacity import HostCapacity, Resources, ServerRoom
from vmmobility.engine.fabric_record import RouterSite
from vmmobility.engine.lifecycle_record import Life, LifeRefused, VmRequest
from vmmobility.engine.manager import ManagerEngine
from vmmobility.engine.manager_move import Move, MoveRefused
from vmmobility.engine.manager_transitions import MoveState
from vmmobility.engine.outputs import Event
from vmmobility.wire.move_terms import MoveTerms
from vmmobility.wire.registry import Phase

SITES = (
    RouterSite("ra", border=False, serves=("a",), dc="one"),
    RouterSite("edge", border=True, dc="one"),
    RouterSite("rb", border=False, serves=("b", "c"), dc="two"),
)
VM, OTHER = vm_key("vm1"), vm_key("vm2")


def room(name: str, memory_mib: int, answers: bool = True, threads: int = 4) -> ServerRoom:
    found = Resources(16, memory_mib, 10_000)
    return ServerRoom(name, answers, threads, HostCapacity(found, found))


class Rig:
    """Three NVEs with two servers each; a VM at s1 of NVE a."""

    def __init__(self, **options: Any) -> None:
        settings = {"servers": ("s1", "s2"), "heartbeat_s": 1.0}
        self.world = ApartWorld(settings=settings, **options)
        self.events: list[Event] = []
        self.world.observe = self._observe
        for name in ("a", "b", "c"):
            self.rooms(name, room("s1", 1000), room("s2", 2000))
        self.world.run(7.0)

    def _observe(self, node: Any, what: str, value: object) -> None:
        if isinstance(value, Event) and node.node_id == MANAGER:
            self.events.append(value)
        for name in ("a", "b", "c"):
            assert len(self.world.servers(name).running_at(VM)) <= 1

    def rooms(self, nve: str, *rooms: ServerRoom) -> None:
        self.world.nodes[nve].rooms = rooms

    def start(self, server: str = "s1") -> None:
        self.world.start_vm(VM, "a", interfaces_of("vm1", 1, 1), server)
        self.settled("a", server)

    def settled(self, nve: str, *servers: str) -> None:
        self.world.run(3.0)
        settle(self.world)
        safety.check_settled(self.world)
        assert self.world.servers(nve).running_at(VM) == list(servers)
        binding = self.manager.cache.bindings[VM]
        assert (binding.nve.nve_id, binding.server) == (nve, servers[0])

    @property
    def manager(self) -> ManagerEngine:
        return self.world.manager

    def move(self, to: str, server: str = "", **more: Any) -> Move:
        return self.manager.moves[self.world.move(VM, to, server=server, **more)]

    def ended(self, move: Move) -> Move:
        self.world.run_until(lambda: self.manager.moves[move.move_id].ok is not None)
        return self.manager.moves[move.move_id]

    def names(self) -> list[str]:
        return [event.name for event in self.events]


def test_the_manager_hears_of_servers_and_where_a_vm_is() -> None:
    rig = Rig()
    rig.start()
    assert {n: s.room for n, s in rig.manager.servers_of("a").items()} == {
        "s1": room("s1", 1000),
        "s2": room("s2", 2000),
    }
    assert rig.manager.pulses["a"].capacity.total == Resources(32, 3000, 20_000)
    rig.world._give("a", lambda e, n, now: e.relocate_vm(n, VM, "s2", now))
    rig.settled("a", "s2")
    rig.world.crash(MANAGER)
    rig.world.restart(MANAGER)
    assert rig.manager.cache.bindings[VM].server == "s2", "it is on record"


def test_one_verb_moves_to_another_server_of_the_same_nve() -> None:
    rig = Rig()
    rig.start()
    move = rig.move("a", "s2")
    assert move.relocates
    assert (move.server_from, move.server) == ("s1", "s2")
    epoch = rig.manager.cache.bindings[VM].epoch
    assert rig.ended(move).ok
    assert [name for name, _ in move.phases] == ["requested", "relocating", "done"]
    rig.settled("a", "s2")
    assert rig.manager.cache.bindings[VM].epoch == epoch, "the binding stays as it is"
    assert rig.ended(rig.move("a", "s1")).ok
    rig.settled("a", "s1")


def test_a_move_between_nves_comes_to_the_server_that_is_named_or_has_most_memory() -> None:
    rig = Rig()
    rig.start()
    assert rig.ended(rig.move("b", "s1")).ok
    rig.settled("b", "s1")
    assert rig.ended(rig.move("c")).ok
    rig.settled("c", "s2")
    rig.rooms("a", room("s1", 3000), room("s2", 2000))
    rig.world.run(7.0)
    assert rig.ended(rig.move("a")).ok
    rig.settled("a", "s1")


@pytest.mark.parametrize(
    ("to", "server", "more", "words"),
    [
        ("b", "s9", {}, "b has no server s9: its servers are s1, s2"),
        ("a", "s9", {}, "a has no server s9: its servers are s1, s2"),
        ("a", "", {}, "VM vm1 is already at a"),
        ("a", "s1", {}, "VM vm1 is already at s1 of a"),
        ("a", "s2", {"mode": "cold"}, "is hot, and takes no terms"),
        ("a", "s2", {"terms": MoveTerms(timeout_s=5)}, "is hot, and takes no terms"),
    ],
)
def test_what_cannot_be_is_refused_with_what_could(
    to: str, server: str, more: dict[str, Any], words: str
) -> None:
    rig = Rig()
    rig.start()
    with pytest.raises(MoveRefused) as refused:
        rig.move(to, server, **more)
    assert words in refused.value.message
    if not server:
        assert "s1, s2" in refused.value.remedy


def test_a_vm_must_fit_one_server_not_the_sum() -> None:
    rig = Rig()
    rig.world.start_vm(VM, "a", interfaces_of("vm1", 1, 1), "s1")
    settle(rig.world)
    binding = rig.manager.cache.bindings[VM]
    binding.definition = json.dumps({"vcpus": 1, "memory_mib": 1500}).encode()
    with pytest.raises(MoveRefused) as refused:
        rig.move("b", "s1")
    assert "s1 of b has 1000 MiB of memory left, 1500 are wanted" in refused.value.message
    rig.rooms("b", room("s1", 1000), room("s2", 1400))
    rig.world.run(7.0)
    with pytest.raises(MoveRefused) as refused:
        rig.move("b")
    assert "s2 of b has 1400 MiB of memory left" in refused.value.message
    rig.rooms("b", room("s1", 1500), room("s2", 1400))
    rig.world.run(7.0)
    assert rig.move("b").server == "s1"


def asked(name: str, memory_mib: int, threads: int = 0) -> VmRequest:
    vm, own = vm_key(name), interfaces_of(name, 1, 1)
    data = json.dumps({"vcpus": 1, "memory_mib": memory_mib}).encode()
    return VmRequest(name, name, vm, own, data, Resources(1, memory_mib, 0), threads)


def ask(rig: Rig, request: VmRequest) -> Life:
    rig.world.interfaces[request.vm] = request.interfaces
    try:
        return rig.manager.request_vm(request, rig.world.now)
    finally:
        rig.world._pump(rig.world.nodes[MANAGER])


def test_a_new_vm_is_offered_one_server_and_comes_there() -> None:
    rig = Rig()
    with pytest.raises(LifeRefused) as refused:
        ask(rig, asked("vm1", 2500))
    assert "2500 MiB of memory wanted, most free 2000 at s2 of" in refused.value.message
    with pytest.raises(LifeRefused) as refused:
        ask(rig, asked("vm1", 100, threads=8))
    assert "8 threads wanted, its host has 4" in refused.value.message
    life = ask(rig, asked("vm1", 900))
    assert life.place == ("a", "s1"), "best fit"
    assert ask(rig, asked("vm2", 900)).place == ("b", "s1"), "the offer holds its room"
    rig.manager.confirm_vm(VM, rig.world.now)
    rig.world._pump(rig.world.nodes[MANAGER])
    rig.settled("a", "s1")
    assert rig.manager.room_of("a", server="s1")["memory_mib"] == 100
    assert rig.manager.room_of("a", server="s2")["memory_mib"] == 2000


def test_a_dead_server_is_told_its_vms_marked_and_its_nve_lives() -> None:
    rig = Rig()
    ask(rig, asked("vm1", 900))
    rig.manager.confirm_vm(VM, rig.world.now)
    rig.world._pump(rig.world.nodes[MANAGER])
    rig.settled("a", "s1")
    rig.rooms("a", room("s1", 1000, answers=False), room("s2", 2000))
    rig.world.run(6.0)
    assert rig.manager.server_liveness("a", "s1") == "silent"
    assert "server.silent" not in rig.names(), "an agent may be restarted"
    rig.world.run(5.0)
    now = rig.world.now
    assert rig.manager.server_liveness("a", "s1") == "dead"
    assert rig.names().count("server.silent") == 1
    assert rig.manager.liveness_of("a", now) == "alive"
    assert rig.manager.life_state(VM, now) == "failed"
    assert rig.manager.lives[VM].reason == "s1 of a does not answer any more"
    with pytest.raises(MoveRefused, match="where VM vm1 is, does not answer"):
        rig.move("a", "s2")
    life = ask(rig, asked("vm2", 900))
    assert life.place == ("b", "s1"), "nothing new comes to a dead server"
    rig.rooms("a", room("s1", 1000), room("s2", 2000))
    rig.world.run(7.0)
    assert rig.names().count("server.back") == 1
    assert rig.manager.life_state(VM, rig.world.now) == "running"


@pytest.mark.parametrize("stage", ["copy", "moment", "switch"])
def test_a_relocation_that_breaks_ends_where_it_was(stage: str) -> None:
    rig = Rig()
    rig.start()
    rig.world.servers("a").at["s1"].break_next.add(stage)
    move = rig.ended(rig.move("a", "s2"))
    assert move.state is MoveState.ABORTED
    assert f"broken at {stage}" in move.reason
    rig.settled("a", "s1")


def test_a_relocation_is_given_up() -> None:
    rig = Rig(pace=Pace(copy_s=30.0))
    rig.start()
    move = rig.move("a", "s2")
    rig.world.run(2.0)
    assert rig.world.edge("a").entries[VM].phase is Phase.RELOCATING
    rig.manager.abort_move(move, rig.world.now)
    rig.world._pump(rig.world.nodes[MANAGER])
    assert rig.ended(move).state is MoveState.ABORTED
    assert "given up" in move.reason
    rig.settled("a", "s1")


@pytest.mark.parametrize("victim", ["a", MANAGER, "both"])
def test_every_crash_in_a_relocation_ends_at_one_server_and_is_told_truly(victim: str) -> None:
    for at_ms in range(5, 900, 25):
        rig = Rig()
        rig.start()
        move = rig.move("a", "s2")
        rig.world.run(at_ms / 1000)
        victims = {"both": ("a", MANAGER)}.get(victim, (victim,))
        for node in victims:
            rig.world.crash(node)
        rig.world.run(0.05)
        for node in victims:
            rig.world.restart(node)
        ended = rig.ended(move)
        rig.settled("a", "s2" if ended.ok else "s1")


def test_a_member_at_a_dead_server_is_announced_no_more_as_at_a_dead_nve() -> None:
    rig = Rig(routers=SITES)
    world, members = rig.world, (vm_key("web1"), vm_key("web2"))
    world.declare_group("web", members)
    for vm, at in zip(members, ("a", "b"), strict=True):
        number = world.start_vm(vm, at, ADDRESSES, "s1")
        world.run(2.0)
        assert not world.results[number].error
    group = rig.manager.groups["web"]
    assert group.present == members
    rig.rooms("a", room("s1", 1000, answers=False), room("s2", 2000))
    world.run(11.0)
    assert [vm.vm_id for vm in group.present] == ["web2"]
    assert group.out == {members[0]: "s1 of a does not answer"}
    rig.rooms("a", room("s1", 1000), room("s2", 2000))
    world.run(7.0)
    assert group.present == members


def test_a_vm_that_is_being_ended_at_its_nve_is_not_moved_to_another_server() -> None:
    rig = Rig(pace=Pace(order_s=2.0))
    rig.start()
    rig.world.stop_vm(VM, "a")
    assert rig.world.edge("a").entries[VM].ending
    move = rig.ended(rig.move("a", "s2"))
    assert move.state is MoveState.ABORTED
    rig.world.run(20.0)
    assert VM not in rig.manager.cache.bindings
    assert rig.world.servers("a").running_at(VM) == []
