"""Whatever the engines say is what docs/protocol.md, Section 10, allows: option by option.

The engines are joined by tests/engine/network.py; here only their datagrams are looked at.
"""

from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from tests.engine.fake_servers import ApartWorld
from tests.engine.network import World
from tests.engine.router_pair import Pair
from tests.forge.domain import SITES
from vmmobility.engine.capacity import HostCapacity, Resources, ServerRoom
from vmmobility.engine.outputs import Send
from vmmobility.wire.authentication import TRAILER
from vmmobility.wire.message import Message, decode_part
from vmmobility.wire.options import BY_CLASS, AtServer, PhaseOption, Route, ServerCapacity, Sight
from vmmobility.wire.registry import Kind, Phase, Purpose, RouteState, Status
from vmmobility.wire.values import Interface, VmKey

VM = VmKey(0, "vm-1")
ETH0 = Interface(b"\x52\x54\0\0\0\x01", (ip_network("10.1.0.5/32"), ip_network("fd01:1::5/128")))

# (kind, purpose, from the manager, phase or route asked for) -> options that MUST, that MAY stand.
# A reply stands under its request's phase; ANY: it plays no part.
ANY = None
STAND = "VM-ID, Epoch, Phase"
ROUTED = "VM-ID, Epoch, Route"
STEPS = (Phase.PREPARED, Phase.DELIVERING, Phase.SWITCHED, Phase.SERVING, Phase.FAILED)
Row = tuple[Kind, Purpose, bool, Phase | RouteState | None]
SECTION_10: dict[Row, tuple[str, str]] = {
    (Kind.REQUEST, Purpose.ATTACH, False, ANY): (
        "VM-ID, Interface Group, Serving NVE, Attach-ID",
        "Mobility Kind, Ticket, Definition, Epoch, Previous NVE, Guest, Sight, Timestamp, "
        "Measurements, At Server",
    ),
    (Kind.REPLY, Purpose.ATTACH, True, ANY): ("VM-ID, Epoch", "Previous NVE"),
    (Kind.REQUEST, Purpose.REFRESH, False, ANY): (
        "VM-ID, Attach-ID, Epoch",
        "Protection, Checkpoint, Reason, At Server",
    ),
    (Kind.REQUEST, Purpose.PROTECT, True, Phase.STANDBY): (
        f"{STAND}, Interface Group, Serving NVE, Protection",
        "Definition",
    ),
    (Kind.REPLY, Purpose.PROTECT, False, Phase.STANDBY): (
        f"{STAND}, Endpoint, Protection, Checkpoint",
        "",
    ),
    (Kind.REQUEST, Purpose.PROTECT, True, Phase.SERVING): (
        f"{STAND}, Serving NVE, Endpoint, Protection",
        "",
    ),
    (Kind.REPLY, Purpose.PROTECT, False, Phase.SERVING): (STAND, ""),
    (Kind.REQUEST, Purpose.PROTECT, True, Phase.SWITCHED): (STAND, ""),
    (Kind.REPLY, Purpose.PROTECT, False, Phase.SWITCHED): (f"{STAND}, Checkpoint", ""),
    (Kind.REQUEST, Purpose.PROTECT, True, Phase.ATTACHING): (f"{STAND}, Ticket", ""),
    (Kind.REQUEST, Purpose.PROTECT, True, Phase.NONE): (STAND, ""),
    (Kind.REPLY, Purpose.PROTECT, False, Phase.NONE): (STAND, ""),
    (Kind.REQUEST, Purpose.PROTECT, False, Phase.STANDBY): (
        f"{STAND}, Endpoint, Protection, Checkpoint",
        "",
    ),
    (Kind.REPLY, Purpose.PROTECT, True, Phase.STANDBY): ("VM-ID", ""),
    (Kind.REPLY, Purpose.REFRESH, True, ANY): ("VM-ID, Epoch", "Previous NVE"),
    **{
        (Kind.REQUEST, Purpose.REFRESH, False, phase): ("VM-ID, Epoch, Phase", "")
        for phase in (Phase.REDIRECTING, Phase.DEPARTED)
    },
    (Kind.REPLY, Purpose.REFRESH, True, Phase.REDIRECTING): (
        "VM-ID, Epoch, Serving NVE",
        "Sight",
    ),
    (Kind.REPLY, Purpose.REFRESH, True, Phase.DEPARTED): ("VM-ID, Epoch, Serving NVE", ""),
    (Kind.REQUEST, Purpose.CHECK, True, ANY): ("VM-ID", "Guest"),
    (Kind.REPLY, Purpose.CHECK, False, ANY): (
        f"{STAND}, Guest",
        "Serving NVE, Reason, Measurements",
    ),
    **{
        (kind, Purpose.CHALLENGE, manager, ANY): ("Nonce, Known Boot", "")
        for kind in Kind
        for manager in (True, False)
    },
    (Kind.REQUEST, Purpose.DEREGISTER, False, ANY): ("VM-ID, Attach-ID, Epoch", ""),
    (Kind.REQUEST, Purpose.DEREGISTER, False, Phase.REDIRECTING): ("VM-ID, Epoch, Phase", ""),
    (Kind.REPLY, Purpose.DEREGISTER, True, ANY): ("VM-ID", ""),
    (Kind.REQUEST, Purpose.DEREGISTER, True, ANY): ("VM-ID, Epoch", "Ticket"),
    (Kind.REPLY, Purpose.DEREGISTER, False, ANY): (STAND, ""),
    (Kind.REQUEST, Purpose.REDIRECT, True, ANY): (
        "VM-ID, Serving NVE, Epoch",
        "Interface Group, Previous NVE, Sight",
    ),
    (Kind.REPLY, Purpose.REDIRECT, False, ANY): (STAND, "Measurements, Sight"),
    (Kind.REQUEST, Purpose.PREPARE, True, Phase.PREPARED): (
        "VM-ID, Phase, Epoch, Ticket, Interface Group, Previous NVE, Definition",
        "Mobility Kind, Server",
    ),
    (Kind.REPLY, Purpose.PREPARE, False, Phase.PREPARED): (f"{STAND}, Endpoint", "Sight"),
    (Kind.REQUEST, Purpose.PREPARE, True, Phase.COPYING): (
        "VM-ID, Phase, Epoch, Ticket, Endpoint, Serving NVE",
        "",
    ),
    (Kind.REPLY, Purpose.PREPARE, False, Phase.COPYING): (STAND, ""),
    (Kind.REQUEST, Purpose.PREPARE, True, Phase.RELOCATING): (
        "VM-ID, Phase, Epoch, Ticket, Server",
        "",
    ),
    (Kind.REPLY, Purpose.PREPARE, False, Phase.RELOCATING): (f"{STAND}, At Server", ""),
    **{
        (Kind.REQUEST, Purpose.SWITCH, True, phase): ("VM-ID, Phase, Epoch, Ticket", "")
        for phase in STEPS
    },
    **{(Kind.REPLY, Purpose.SWITCH, False, phase): (STAND, "Measurements") for phase in STEPS},
    **{
        (Kind.REQUEST, Purpose.SWITCH, False, phase): (
            "VM-ID, Phase, Epoch, Ticket",
            "Measurements, Reason",
        )
        for phase in (Phase.CONVERGED, Phase.FAILED)
    },
    (Kind.REPLY, Purpose.SWITCH, True, ANY): ("VM-ID", ""),
    (Kind.REQUEST, Purpose.ROUTE, True, RouteState.NONE): (ROUTED, ""),
    (Kind.REQUEST, Purpose.ROUTE, True, RouteState.KEEP): (
        f"{ROUTED}, Interface Group, Serving NVE, Previous NVE",
        "",
    ),
    **{
        (Kind.REQUEST, Purpose.ROUTE, True, state): (
            f"{ROUTED}, Interface Group, Serving NVE",
            "",
        )
        for state in (RouteState.WATCH, RouteState.LEAD, RouteState.ANNOUNCE)
    },
    (Kind.REPLY, Purpose.ROUTE, False, ANY): (f"{ROUTED}, Sight", ""),
    (Kind.REQUEST, Purpose.HEARTBEAT, False, ANY): ("Known Boot, Capacity", "Server Capacity"),
    (Kind.REPLY, Purpose.HEARTBEAT, True, ANY): ("", ""),
    (Kind.REQUEST, Purpose.SIGHT, False, ANY): (f"{ROUTED}, Sight", "Serving NVE"),
    (Kind.REPLY, Purpose.SIGHT, True, ANY): ("VM-ID", ""),
}
# CHECK to a router, on behalf of people.
ROUTER_CHECKS: dict[Kind, tuple[str, str]] = {
    Kind.REQUEST: ("Interface Group", "VM-ID"),
    Kind.REPLY: ("Epoch, Route, Measurements", "VM-ID, Sight"),
}
# What replies that reject must carry; Reason may always be there.
REJECTIONS: dict[Status, str] = {
    Status.SUPERSEDED: "VM-ID, Serving NVE, Epoch",
    Status.BOUND_ELSEWHERE: "Serving NVE, Epoch",
    Status.WRONG_PHASE: STAND,
    Status.STALE_EPOCH: STAND,
}


def names(text: str) -> set[str]:
    return {name for name in text.split(", ") if name}


def asked_for(message: Message) -> Phase | RouteState | None:
    phase, route = message.find(PhaseOption), message.find(Route)
    return phase.phase if phase else route.state if route else ANY


class Ear:
    """Hears all that is sent in a World."""

    def __init__(self, world: World) -> None:
        self.heard: list[tuple[str, str, Message]] = []
        self._asked: dict[tuple[str, int], Phase | RouteState | None] = {}
        carry_out = world._carry_out

        def listen(node, output):
            if isinstance(output, Send):
                target = world.by_address[output.destination.address].node_id
                pair = (node.node_id, target)
                self.heard.append((*pair, decode_part(output.data, TRAILER).message))
            carry_out(node, output)

        world._carry_out = listen  # type: ignore[method-assign]

    def rows(self) -> Iterator[tuple[Row, Message]]:
        for sender, receiver, message in self.heard:
            manager, phase = sender == "manager", asked_for(message)
            if message.kind is Kind.REQUEST:
                self._asked[sender, message.sequence] = phase
            else:
                phase = self._asked.get((receiver, message.sequence), ANY)
            row = (message.kind, message.purpose, manager, phase)
            if row not in SECTION_10:
                row = (*row[:3], ANY)
            yield row, message


def check(ear: Ear) -> set[Row]:
    """Every message heard against the tables; the rows that were met."""
    met: set[Row] = set()
    for row, message in ear.rows():
        found = {BY_CLASS[type(o)].name for o in message.options}
        if not message.status.accepted:
            needed = REJECTIONS.get(message.status, "")
            if message.purpose is Purpose.ROUTE:
                needed = ROUTED
            assert names(needed) <= found, (row, message)
            continue
        must, may = map(names, SECTION_10[row])
        if row[0] is Kind.REQUEST and message.purpose is Purpose.ATTACH and "Ticket" in found:
            may -= {"Definition", "Epoch", "Previous NVE", "Guest"}
        assert must <= found, (row, must - found)
        assert found <= must | may, (row, found - must - may)
        met.add(row)
        if message.purpose in (Purpose.ATTACH, Purpose.REFRESH):
            assert (message.lifetime > 0) is (row[3] is ANY)
        if message.purpose is Purpose.DEREGISTER:
            assert message.lifetime == 0
    return met


def started() -> tuple[World, Ear]:
    world = World(nve_settings={"lifetime_s": 40.0, "drain_s": 5.0, "heartbeat_s": 5.0})
    ear = Ear(world)
    number = world.start_vm(VM, "a", (ETH0,))
    world.run_until(lambda: number in world.results)
    return world, ear


def a_life_with_moves() -> Ear:
    world, ear = started()
    for to in ("b", "c", "a"):
        world.move(VM, to)
        world.run(40.0)
    world.move(VM, "b")
    world.run(10.0)
    world.stop_vm(VM, "b")
    world.run(20.0)
    return ear


def a_life_with_a_standby() -> Ear:
    """Protected, its standby restarted, moved to it; protected again, and unprotected."""
    world, ear = started()
    world.protect(VM, "b")
    world.run(10.0)
    world.restart("b")
    world.run(10.0)
    world.hand_over(VM)
    world.run(20.0)
    world.protect(VM, "c")
    world.run(10.0)
    world.unprotect(VM)
    world.run(10.0)
    return ear


def a_life_at_servers() -> Ear:
    """Of NVEs apart: to another server, to another NVE's, back to a certain one; one breaks."""
    world = ApartWorld({"lifetime_s": 40.0, "drain_s": 5.0, "heartbeat_s": 5.0})
    ear = Ear(world)
    room = HostCapacity(Resources(16, 1000, 0), Resources(16, 1000, 0))
    for node in "abc":
        world.nodes[node].rooms = tuple(ServerRoom(s, True, 4, room) for s in ("s1", "s2"))
    world.run(15.0)
    world.start_vm(VM, "a", (ETH0,), "s1")
    world.run(5.0)
    for to, server in (("a", "s2"), ("b", ""), ("a", "s1")):
        world.move(VM, to, server=server)
        world.run(40.0)
    world.servers("a").at["s1"].break_next.add("copy")
    world.move(VM, "a", server="s2")
    world.run(20.0)
    return ear


def a_move_that_breaks(stage: str) -> Ear:
    world, ear = started()
    hypervisor = world.nodes["a"].hypervisor
    assert hypervisor is not None
    hypervisor.break_next = {stage}
    world.move(VM, "b")
    world.run(90.0)
    return ear


def a_move_by_hand() -> Ear:
    """Other hands move a guest while its new NVE is cut off; then both nodes lose their state."""
    world = World(nve_settings={"lifetime_s": 40.0, "check_s": 5.0})
    ear = Ear(world)
    for node in "ab":
        world.expect_vm(VM, node, (ETH0,))
    world.run(1.0)
    old, new = world.nodes["a"].hypervisor, world.nodes["b"].hypervisor
    assert old is not None
    assert new is not None
    old.start_by_hand(VM)
    world.run(5.0)
    cut = frozenset(("b", "manager"))
    world.cut.add(cut)
    old.migrate_by_hand(VM, new)
    world.run(10.0)
    world.cut.remove(cut)
    world.run(20.0)
    world.check("manager")
    world.run(5.0)
    for node in ("manager", "a"):
        world.lose_state(node)
        world.restart(node)
        world.run(20.0)
    return ear


def a_life_among_routers() -> Ear:
    """Leaving home, to another router's NVE and home; then a move on that the fabric holds up."""
    world = World(routers=SITES, nve_settings={"lifetime_s": 40.0, "drain_s": 5.0, "check_s": 5.0})
    ear = Ear(world)
    number = world.start_vm(VM, "a", (ETH0,))
    world.run_until(lambda: number in world.results)
    for to in ("b", "c", "a", "c"):
        world.move(VM, to)
        world.run(1.0)
        world.senders = {("a", VM)} if to == "b" else set()
        world.run(39.0)
    world.restart("r1")
    world.restart("manager")
    world.run(30.0)
    world.lose_state("manager")
    world.restart("manager")
    world.run(60.0)
    world.stop_vm(VM, "c")
    world.run(20.0)
    return ear


STAGES = ("copy", "moment", "switch", "load")


def test_a_life_with_a_standby():
    check(a_life_with_a_standby())


def test_a_life_with_moves():
    check(a_life_with_moves())


def test_a_life_among_routers():
    """Also where Sight stands in the words of NVEs."""
    ear = a_life_among_routers()
    check(ear)
    heard = {
        (row[:2], (sight.direct, sight.covered))
        for row, message in ear.rows()
        if (sight := message.find(Sight)) and message.purpose not in (Purpose.ROUTE, Purpose.SIGHT)
    }
    assert heard == {
        ((Kind.REQUEST, Purpose.ATTACH), (False, True)),
        ((Kind.REPLY, Purpose.PREPARE), (False, True)),
        ((Kind.REPLY, Purpose.REDIRECT), (False, True)),
        ((Kind.REQUEST, Purpose.REDIRECT), (True, False)),
        ((Kind.REPLY, Purpose.REFRESH), (True, False)),
    }


def test_a_move_by_hand():
    check(a_move_by_hand())


@pytest.mark.parametrize("stage", STAGES)
def test_a_move_that_breaks(stage):
    check(a_move_that_breaks(stage))


def test_a_life_at_servers():
    ear = a_life_at_servers()
    check(ear)
    told = [message.find(ServerCapacity) for _, message in ear.rows()]
    assert {room.name for room in told if room} == {"s1"}, "first of each heartbeat"
    ends = [
        (message.status, at.name)
        for row, message in ear.rows()
        if row[:2] == (Kind.REPLY, Purpose.PREPARE) and (at := message.find(AtServer))
    ]
    assert ends == [(Status.ACCEPTED, "s2"), (Status.HYPERVISOR_FAILURE, "s1")]


def test_every_row_of_the_tables_is_met():
    met = check(a_life_with_a_standby()) | check(a_life_at_servers())
    met |= check(a_life_with_moves()) | check(a_move_by_hand()) | check(a_life_among_routers())
    for stage in STAGES:
        met |= check(a_move_that_breaks(stage))
    assert set(SECTION_10) == met


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("vm", [VM, None])
def test_people_ask_routers(vm: VmKey | None, known: bool):
    pair = Pair(known=known)
    pair.ask(vm)
    assert [message.kind for message in pair.heard] == [Kind.REQUEST, Kind.REPLY]
    for message in pair.heard:
        found = {BY_CLASS[type(o)].name for o in message.options}
        must, may = map(names, ROUTER_CHECKS[message.kind])
        assert must <= found <= must | may
        assert ("VM-ID" in found) is (vm is not None)
        assert message.lifetime == 0
    assert ("Sight" in found) is (known and vm is not None)


def test_a_manager_that_lost_its_state_is_told_epochs_and_previous_nves():
    world, ear = started()
    world.move(VM, "b")
    world.run(5.0)
    world.crash("manager")
    world.nodes["manager"].disk.clear()
    world.restart("manager")
    ear.heard.clear()
    world.run(40.0)
    assert check(ear)
    (attach,) = [
        message
        for sender, _, message in ear.heard
        if (sender, message.kind, message.purpose) == ("b", Kind.REQUEST, Purpose.ATTACH)
    ]
    assert attach.epoch == 2
    assert [nve.nve_id for nve in attach.previous] == ["a"]
