"""Registration messages across NAPT boxes: real managers, NVEs and boxes in one World."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from tests.engine.fake_hypervisor import Pace
from tests.engine.napt_world import PRIVATE, VM, VM_INTERFACE, NaptWorld, one_like
from tests.engine.network import MANAGER, Node, Weather
from vmmobility.engine.channel import Peer
from vmmobility.engine.napt_mappings import NaptRefused
from vmmobility.engine.napt_plane import Detour, Flow
from vmmobility.engine.napt_settings import NaptPolicy
from vmmobility.engine.outputs import ExportFlows, ImportFlows, Output
from vmmobility.wire.registry import Phase
from vmmobility.wire.values import VmKey

PUBLIC = "198.51.100.2"  # of VM: a's locator takes the pool's first


@pytest.fixture
def world() -> NaptWorld:
    made = NaptWorld()
    made.run(2.0)
    return made


def test_an_attach_crosses_with_public_addresses_and_its_own_name(world: NaptWorld) -> None:
    assert not world.begin().error
    binding = world.manager.cache.bindings[VM]
    assert binding.nve.nve_id == "a"
    assert str(binding.nve.ipv4) == "198.51.100.1"
    assert str(binding.nve.ipv6) == "fd00:0:1::2", "IPv6 passes untranslated"
    prefixes = {str(p) for i in binding.interfaces for p in i.prefixes}
    assert prefixes == {f"{PUBLIC}/32", "fd01:1::77/128"}
    [mapping] = binding.mappings
    assert (mapping.box, str(mapping.private), str(mapping.public)) == ("x", str(PRIVATE), PUBLIC)
    assert world.boxes["x"].static == {"10.0.1.2": "198.51.100.1", str(PRIVATE): PUBLIC}
    assert world.edge("a").entries[VM].phase is Phase.SERVING


def test_it_is_refreshed_through_the_box(world: NaptWorld) -> None:
    world.begin()
    world.run(300.0)  # more than two lifetimes
    assert not world.manager.cache.bindings[VM].expired


def test_a_vm_keeps_its_address_where_it_is_moved_to(world: NaptWorld) -> None:
    world.begin()
    move = world.moved("b")
    assert move.ok, move.reason
    entry = world.edge("b").entries[VM]
    assert entry.interfaces == VM_INTERFACE, "its own addresses, at the destination, too"
    binding = world.manager.cache.bindings[VM]
    assert (binding.nve.nve_id, str(binding.nve.ipv4)) == ("b", "203.0.113.1")
    assert str(binding.interfaces[0].prefixes[0]) == f"{PUBLIC}/32"
    source = world.edge("a").entries[VM]
    assert source.phase is Phase.REDIRECTING
    assert source.target is not None
    assert str(source.target.ipv4) == "203.0.113.1", "the other data centre's public locator"
    assert source.interfaces == VM_INTERFACE


@pytest.mark.parametrize("manager_at", ["", "x"])
def test_there_and_back(manager_at: str) -> None:
    world = NaptWorld(manager_at)
    world.run(2.0)
    assert not world.begin().error
    assert world.moved("b").ok
    assert world.edge("b").entries[VM].interfaces == VM_INTERFACE
    [mapping] = world.box("y").mappings.of_vm(VM)
    assert (mapping.here, mapping.ours, mapping.owner) == (True, False, "x")
    world.run(1.0)
    [kept] = world.box("x").mappings.of_vm(VM)
    assert (kept.here, kept.holder, kept.ours) == (False, "y", True)
    detours = [Detour(PRIVATE, IPv4Address("10.0.50.2"))]
    assert list(world.boxes["y"].state.detours) == detours
    assert world.boxes["x"].static[str(PRIVATE)] == str(kept.public)
    back = world.moved("a")
    assert back.ok, back.reason
    world.run(1.0)
    assert world.boxes["y"].state.detours == ()
    if (
        not manager_at
    ):  # where the manager is inside, nothing of a homecoming crosses but a redirect
        assert kept.here
    assert kept.holder == ""


def test_two_nves_behind_one_box_have_each_a_locator(world: NaptWorld) -> None:
    world.begin()
    other = VmKey(0, "vm2")
    assert not world.begin(other, "c", one_like(2, "10.3.0.9")).error
    cache = world.manager.cache.bindings
    locators = {str(cache[VM].nve.ipv4), str(cache[other].nve.ipv4)}
    assert len(locators) == 2
    assert locators < set(world.boxes["x"].static.values())
    assert world.moved("c").ok, "and a move between them crosses the box twice"
    assert world.edge("c").entries[VM].interfaces == VM_INTERFACE


# ---- answers that are defined --------------------------------------------------------------------


def test_an_exhausted_pool_refuses_in_words() -> None:
    world = NaptWorld(box_settings={"x": {"pool": (IPv4Network("198.51.100.0/31"),)}})
    world.run(2.0)
    assert not world.begin().error
    done = world.begin(VmKey(0, "vm2"), "a", one_like(2, "10.1.0.78"))
    assert "x: no public address for VM vm2: pool 198.51.100.0/31 is exhausted" in done.error
    assert VmKey(0, "vm2") not in world.manager.cache.bindings
    assert VM in world.manager.cache.bindings, "the others live on"


def test_a_private_address_that_is_in_the_other_s_range_is_refused_before_anything_moves() -> None:
    inside = {"inside": (IPv4Network("10.0.2.0/24"), IPv4Network("10.1.0.64/27"))}
    world = NaptWorld(box_settings={"y": inside})
    world.run(2.0)
    world.begin()
    move = world.moved("b")
    assert not move.ok
    assert "y: 10.1.0.77 of VM vm1 is of this data centre's own private range" in move.reason
    assert world.manager.cache.bindings[VM].nve.nve_id == "a"
    assert world.edge("a").entries[VM].phase is Phase.SERVING


def test_two_vms_of_one_private_address_never_meet(world: NaptWorld) -> None:
    """Each data centre uses 10.9/16 for VMs; one of them moves to where the other is."""
    shared = (IPv4Network("10.9.0.0/16"),)
    world = NaptWorld(
        box_settings={
            "x": {"inside": (IPv4Network("10.0.1.0/24"), *shared)},
            "y": {"inside": (IPv4Network("10.0.2.0/24"), *shared)},
        }
    )
    world.run(2.0)
    at_b = VmKey(0, "vm2")
    assert not world.begin(VM, "a", one_like(1, "10.9.0.5")).error
    assert not world.begin(at_b, "b", one_like(2, "10.9.0.5")).error, "no clash: public ones differ"
    move = world.moved("b")
    assert "10.9.0.5 of VM vm1 is VM vm2's here" in move.reason
    assert world.manager.cache.bindings[VM].nve.nve_id == "a"


def test_a_message_waits_for_the_kernel_and_is_refused_with_it(world: NaptWorld) -> None:
    world.boxes["x"].fail_next = ["static 10.1.0.77: no such table"]
    done = world.begin()
    assert "x: the kernel refused: static 10.1.0.77: no such table" in done.error
    assert VM not in world.manager.cache.bindings
    world.run(6.0)  # what the kernel refused is tried again
    assert not world.begin().error
    assert world.boxes["x"].static[str(PRIVATE)] == PUBLIC


def test_a_mapping_of_which_nothing_is_heard_ends_and_waits() -> None:
    pool = (IPv4Network("198.51.100.0/30"),)  # has but these two
    short = {"mapping_s": 300.0, "quarantine_s": 100.0, "pool": pool}
    world = NaptWorld(box_settings={"x": short})
    world.run(2.0)
    world.begin()
    world.run(1000.0)
    [mapping] = world.box("x").mappings.of_vm(VM)
    assert not mapping.ended, "refreshes keep it"
    world.power_cut("a")
    world.run_until(lambda: mapping.ended, 1000.0)
    world.run(0.1)
    assert str(PRIVATE) not in world.boxes["x"].static
    with pytest.raises(NaptRefused, match="1 in quarantine"):  # nobody else gets it
        world.box("x").mappings._free("VM vm9", world.now)
    world.run_until(lambda: not world.box("x").mappings.of_vm(VM), 200.0)
    assert str(world.box("x").mappings._free("VM vm9", world.now)) == PUBLIC


def test_a_move_keeps_the_mapping_that_would_time_out() -> None:
    """The copy takes longer than a mapping lives, and the NVE's refreshes are lost meanwhile."""
    world = NaptWorld(
        box_settings={"x": {"mapping_s": 20.0}},
        nve_settings={"lifetime_s": 4000.0},
        manager_settings={"lifetime_s": 8.0},
        pace=Pace(copy_s=60.0),
    )
    world.run(2.0)
    world.begin()
    move = world.manager.moves[world.move(VM, "b")]
    world.run_until(lambda: move.state.value == "copying")
    [mapping] = world.box("x").mappings.of_vm(VM)
    for entry in world.edge("a").entries.values():
        entry.refresh_at = None
    world.run_until(lambda: move.ok is not None, 200.0)
    assert move.ok, move.reason
    assert (mapping.ended, str(mapping.public)) == (False, PUBLIC)


@pytest.mark.parametrize(
    "state", ["preparing", "copying", "delivering", "switching", "redirecting"]
)
@pytest.mark.parametrize("manager_at", ["", "x"])
@pytest.mark.parametrize("box", ["x", "y"])
def test_a_box_that_restarts_in_mid_move_goes_on(manager_at: str, box: str, state: str) -> None:
    world = NaptWorld(manager_at)
    world.run(2.0)
    world.begin()
    move = world.manager.moves[world.move(VM, "b")]
    world.run_until(lambda: move.state.value == state)
    before = world.boxes[box].static
    world.restart(box)
    assert world.boxes[box].static == before
    world.run_until(lambda: move.ok is not None)
    assert move.ok, move.reason
    assert world.edge("b").entries[VM].interfaces == VM_INTERFACE
    world.run(60.0)
    assert world.box("y").mappings.of_vm(VM)[0].here


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("manager_at", ["", "x"])
def test_loss_and_repetition_on_every_hop_change_nothing(manager_at: str, seed: int) -> None:
    weather = Weather(loss=0.15, repetition=0.2, delay_s=(0.001, 0.05))
    world = NaptWorld(manager_at, weather=weather, seed=seed)
    world.run(5.0)
    # A new manager asks every NVE first, and gives each 5 s: with three hops that may be too short.
    assert any(not world.begin().error for _ in range(20))
    for to in ("b", "c", "a"):
        move = world.moved(to)
        assert move.ok or world.manager.cache.bindings[VM].nve.nve_id != to, move.reason
    at = world.manager.cache.bindings[VM].nve.nve_id
    assert world.edge(at).entries[VM].interfaces == VM_INTERFACE
    for name in ("a", "b", "c", MANAGER):
        assert not {"bad-origin", "bad-translation", "wrong-receiver"} & world.drops(name).keys()


# ---- what is noticed from end to end -------------------------------------------------------------


@pytest.mark.parametrize("manager_at", ["", "x"])
def test_an_nve_that_lost_its_state_is_noticed_behind_boxes(manager_at: str) -> None:
    world = NaptWorld(manager_at)
    world.run(2.0)
    world.begin(VM, "b", one_like(1, "10.2.0.9"))
    told: list[str] = []
    heeded = world.manager.channel.peer_lost_state

    def heed(peer: Peer, now: float) -> None:
        told.append(peer.node_id)
        heeded(peer, now)

    world.manager.channel.peer_lost_state = heed
    world.lose_state("b")
    world.restart("b")
    world.run_until(lambda: told, 30.0)
    assert told == ["b"]


@pytest.mark.parametrize("manager_at", ["", "x"])
def test_a_manager_that_lost_its_state_learns_it_behind_boxes(manager_at: str) -> None:
    world = NaptWorld(manager_at)
    world.run(2.0)
    world.begin(VM, "b", one_like(1, "10.2.0.9"))
    world.lose_state(MANAGER)
    world.restart(MANAGER)
    world.run_until(lambda: VM in world.manager.cache.bindings, 200.0)
    assert world.manager._loss_heeded, "its neighbour remembered it"
    assert world.manager.cache.bindings[VM].nve.nve_id == "b"
    [mapping] = world.box("y").mappings.of_vm(VM)
    told = (mapping.owner, mapping.private, mapping.public)
    binding = world.manager.cache.bindings[VM]
    if manager_at:  # inside, it has the VM's own addresses
        assert str(binding.interfaces[0].prefixes[0]) == "10.2.0.9/32"
    else:
        [known] = binding.mappings
        assert (known.box, known.private, known.public) == told


def test_a_manager_that_lost_its_state_learns_whose_mapping_it_is(world: NaptWorld) -> None:
    """The VM is behind y, and its address is x's."""
    world.begin()
    assert world.moved("b").ok
    world.lose_state(MANAGER)
    world.restart(MANAGER)
    world.run_until(lambda: VM in world.manager.cache.bindings, 200.0)
    [known] = world.manager.cache.bindings[VM].mappings
    assert (known.box, known.private, str(known.public)) == ("x", PRIVATE, PUBLIC)


@pytest.mark.parametrize("box", ["x", "y"])
def test_a_box_that_lost_its_state_is_believed_again(box: str) -> None:
    world = NaptWorld("x")
    world.run(2.0)
    world.begin()
    assert world.moved("b").ok
    world.lose_state(box)
    world.restart(box)
    world.run(10.0)
    lost = [e for _, node, e in world.events if node == box and e.name == "state.lost"]
    assert lost, "and it says that its mappings are gone"
    number = world.stop_vm(VM, "b")
    world.run_until(lambda: number in world.results, 60.0)
    assert VM not in world.manager.cache.bindings


# ---- where a mapping is --------------------------------------------------------------------------

FLOW = Flow(
    6, (PRIVATE, 80), (IPv4Address(PUBLIC), 80), (IPv4Address("192.0.2.9"), 4000), False, 300
)
OTHER_FLOW = Flow(
    17,
    (IPv4Address("10.0.1.2"), 5),
    (IPv4Address("198.51.100.1"), 5),
    (IPv4Address("192.0.2.9"), 4001),
    True,
    30,
)


def test_a_mapping_and_its_flows_are_handed_over_and_come_back() -> None:
    world = NaptWorld(box_settings={"x": {"policy": NaptPolicy.HAND_OVER}})
    world.run(2.0)
    world.begin()
    flows = [
        Flow(6, (PRIVATE, n), (IPv4Address(PUBLIC), n), (IPv4Address("192.0.2.9"), 4000), True, 9)
        for n in range(1, 600)
    ]
    world.boxes["x"].flows = [*flows, OTHER_FLOW]
    assert world.moved("b").ok
    world.run_until(lambda: str(PRIVATE) not in world.boxes["x"].static)
    assert world.boxes["y"].static[str(PRIVATE)] == PUBLIC
    assert world.boxes["y"].flows == flows
    world.run(0.1)
    assert world.boxes["x"].flows == [OTHER_FLOW]
    assert world.boxes["y"].state.detours == ()
    world.run(200.0)
    assert str(PRIVATE) not in world.boxes["x"].static, "holding it does not hand it over again"
    assert world.moved("a").ok
    world.run_until(lambda: str(PRIVATE) not in world.boxes["y"].static)
    assert world.boxes["x"].static[str(PRIVATE)] == PUBLIC
    assert set(world.boxes["x"].flows) == {*flows, OTHER_FLOW}


@pytest.mark.parametrize("box", ["x", "y"])
def test_a_box_that_restarts_while_it_hands_over_goes_on(box: str) -> None:
    world = NaptWorld(box_settings={"x": {"policy": NaptPolicy.HAND_OVER}})
    world.run(2.0)
    world.begin()
    world.boxes["x"].flows = [FLOW]
    done: list[str] = []

    def interrupt(node: Node, output: Output) -> bool:
        if node.node_id != box or done or not isinstance(output, ExportFlows | ImportFlows):
            return False
        done.append(box)
        return True

    world.interrupt = interrupt
    assert world.moved("b").ok
    world.run_until(lambda: done)
    world.restart(box)
    world.run_until(lambda: str(PRIVATE) not in world.boxes["x"].static, 120.0)
    assert world.boxes["y"].static[str(PRIVATE)] == PUBLIC
    assert world.boxes["y"].flows == [FLOW]


def test_what_other_boxes_have_for_a_vm_goes_with_it() -> None:
    world = NaptWorld()
    world.run(2.0)
    world.begin()
    assert world.moved("b").ok
    world.run(1.0)
    number = world.stop_vm(VM, "b")
    world.run_until(lambda: number in world.results, 60.0)
    world.run(1.0)
    assert world.box("y").mappings.of_vm(VM) == []
    [mapping] = world.box("x").mappings.of_vm(VM)
    assert mapping.ended
    assert str(PRIVATE) not in world.boxes["x"].static
