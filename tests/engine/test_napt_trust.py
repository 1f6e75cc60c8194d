"""What a NAPT box can do with its keys beyond its task: nothing that its peers do not count.

Here the box is the attacker: it uses its own keys of the hop, and alters, forges, keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from tests.engine.napt_world import VM, NaptWorld, one_like
from tests.engine.network import MANAGER
from vmmobility.engine.napt_settings import NaptPolicy
from vmmobility.engine.napt_told import told
from vmmobility.engine.outputs import Endpoint
from vmmobility.engine.peer import Received
from vmmobility.engine.relay_channel import RelayChannel
from vmmobility.wire.message import Message
from vmmobility.wire.options import (
    AttachId,
    Epoch,
    InterfaceGroup,
    OriginAuthentication,
    PhaseOption,
    PreviousNve,
    ServingNve,
    Translation,
    VmId,
)
from vmmobility.wire.registry import Kind, Phase, Purpose, Status
from vmmobility.wire.values import Address, Nve, VmKey

Alter = Callable[[Message], Message]


@pytest.fixture
def world() -> NaptWorld:
    made = NaptWorld()
    made.run(2.0)
    return made


def corrupt(relay: RelayChannel, alter: Alter) -> None:
    """From now on the box alters what it sends on in that name."""
    honest = relay.forward

    def forward(peer: object, message: Message, to: Endpoint, local: Address | None) -> None:
        honest(peer, alter(message), to, local)  # type: ignore[arg-type]

    relay.forward = forward  # type: ignore[method-assign]


def changed(message: Message, kind: type, alter: Callable[[object], object]) -> Message:
    options = tuple(alter(o) if isinstance(o, kind) else o for o in message.options)
    return replace(message, options=options)  # type: ignore[arg-type]


def portrait(world: NaptWorld) -> object:
    """All that messages could change at the ends."""
    manager, edges = world.manager, [world.edge(n) for n in ("a", "b", "c")]
    bindings = {vm: (b.nve, b.epoch, b.interfaces) for vm, b in manager.cache.bindings.items()}
    return bindings, [{vm: (e.phase, e.epoch) for vm, e in edge.entries.items()} for edge in edges]


def other_name(option: object) -> object:
    assert isinstance(option, VmId)
    return VmId(VmKey(0, "vm-stolen"))


def other_address(option: object) -> object:
    assert isinstance(option, InterfaceGroup)
    first, *rest = option.interface.prefixes
    stolen = type(first)("198.51.100.9/32") if first.version == 4 else first
    return InterfaceGroup(replace(option.interface, prefixes=(stolen, *rest)))


def other_ipv6(option: object) -> object:
    assert isinstance(option, ServingNve)
    return ServingNve(replace(option.nve, ipv6=IPv6Address("fd00::bad")))


ALTERED: dict[str, tuple[Alter, str]] = {
    "the VM's name": (lambda m: changed(m, VmId, other_name), "bad-origin"),
    "an address, untold": (lambda m: changed(m, InterfaceGroup, other_address), "bad-origin"),
    "an IPv6 locator": (lambda m: changed(m, ServingNve, other_ipv6), "bad-origin"),
    "the attach-id": (lambda m: changed(m, AttachId, lambda o: AttachId(7)), "bad-origin"),
    "the lifetime": (lambda m: replace(m, lifetime=m.lifetime + 1), "bad-origin"),
    "the purpose": (lambda m: replace(m, purpose=Purpose.REFRESH), "bad-origin"),
    "an option more": (lambda m: replace(m, options=(*m.options, Epoch(9))), "bad-origin"),
    "no seal": (
        lambda m: replace(
            m, options=tuple(o for o in m.options if not isinstance(o, OriginAuthentication))
        ),
        "bad-origin",
    ),
    "no translation told": (
        lambda m: replace(m, options=tuple(o for o in m.options if not isinstance(o, Translation))),
        "bad-origin",
    ),
    "a translation in another's name": (
        lambda m: changed(
            m,
            Translation,
            lambda o: replace(o, box="z"),  # type: ignore[type-var]
        ),
        "bad-translation",
    ),
}


@pytest.mark.parametrize("what", ALTERED)
def test_what_a_box_alters_beyond_addresses_is_dropped_and_counted(
    world: NaptWorld, what: str
) -> None:
    alter, reason = ALTERED[what]
    corrupt(world.box("x").relays["a"], alter)
    before = portrait(world)
    world.start_vm(VM, "a", one_like(1, "10.1.0.77"))
    world.run(3.0)
    assert world.drops(MANAGER).get(reason, 0) >= 2, "counted, and asked again"
    assert VM not in world.manager.cache.bindings
    assert portrait(world)[0] == before[0]  # type: ignore[index]


def test_a_substitute_must_be_of_a_box_s_pool(world: NaptWorld) -> None:
    """It tells honestly that it has put another private address in."""

    def alter(message: Message) -> Message:
        message = changed(message, InterfaceGroup, other_address)
        note = Translation("x", IPv4Address("10.1.0.77"), IPv4Address("192.0.2.66"))
        kept = [o for o in message.options if not isinstance(o, Translation)]
        group = message.interfaces[0]
        stolen = replace(group, prefixes=(type(group.prefixes[0])("192.0.2.66/32"),))
        made = [InterfaceGroup(stolen) if isinstance(o, InterfaceGroup) else o for o in kept]
        locators = [o for o in message.options if isinstance(o, Translation)]
        told = [o for o in locators if o.original != note.original]
        return replace(message, options=(*made, *told, note))

    corrupt(world.box("x").relays["a"], alter)
    world.start_vm(VM, "a", one_like(1, "10.1.0.77"))
    world.run(3.0)
    assert world.drops(MANAGER).get("bad-translation", 0) >= 2
    assert VM not in world.manager.cache.bindings


def forged(world: NaptWorld, box: str, name: str, to: str, message: Message) -> None:
    """The box sends that in an originator's name."""
    node, relay = world.nodes[box], world.box(box).relays[name]
    peer = relay.peers[to]
    world.feed(node, lambda: relay.forward(peer, message, peer.endpoints[0], None))
    world.run(0.5)


def test_a_box_is_no_manager(world: NaptWorld) -> None:
    world.begin()
    before = portrait(world)
    away = Nve("b", IPv4Address("203.0.113.1"))
    options = (VmId(VM), ServingNve(away), Epoch(99), PhaseOption(Phase.SWITCHED))
    for number, purpose in enumerate((Purpose.REDIRECT, Purpose.SWITCH, Purpose.DEREGISTER)):
        message = Message(Kind.REQUEST, purpose, 1000 + number, options)
        forged(world, "x", MANAGER, "a", message)
    assert world.drops("a")["bad-origin"] == 3
    assert portrait(world) == before


def test_a_box_s_keys_are_good_for_no_node_that_is_not_behind_it(world: NaptWorld) -> None:
    relay = world.box("x").relays["a"]
    relay.node_id = "b"  # x seals as b, whom the manager reaches by y
    message = Message(Kind.REQUEST, Purpose.DEREGISTER, 1, (VmId(VM), AttachId(1), Epoch(0)))
    world.feed(
        world.nodes["x"],
        lambda: relay.forward(
            relay.peers[MANAGER], message, relay.peers[MANAGER].endpoints[0], None
        ),
    )
    world.run(0.5)
    assert world.drops(MANAGER)["bad-digest"] == 1


def test_what_is_for_one_is_not_for_another_behind_the_same_box(world: NaptWorld) -> None:
    """The hop to both has one key: somebody on it turns a datagram to the other."""
    world.begin()
    overheard = world.overheard = []
    world.moved("c")
    world.overheard = None
    before = portrait(world)
    node, a = world.nodes["a"], world.edge("a")
    for target, data, source, local in overheard:
        if target.node_id == "c":
            world.feed(node, partial(a.datagram_received, data, source, local, world.now))
    assert world.drops("a")["bad-digest"] >= 1, "another hop's key: not even authentic"
    node, x = world.nodes["x"], world.box("x")
    for target, data, source, local in overheard:
        if target is node and source.address in world.nodes[MANAGER].nve.locators:
            world.feed(node, partial(x.datagram_received, data, source, local, world.now))
    assert world.drops("x")["replayed"] >= 1, "and the manager's have but one receiver each"
    assert portrait(world) == before


def test_a_datagram_for_another_node_is_dropped(world: NaptWorld) -> None:
    """The box seals for z, and sends it to the manager; or it names nobody."""
    relay = world.box("x").relays["a"]
    honest = relay.peers[MANAGER]
    message = Message(Kind.REQUEST, Purpose.REFRESH, 1, (VmId(VM), AttachId(1), Epoch(0)))
    for wrong in (replace(honest, node_id="z"), replace(honest, via="")):
        relay._own._counters["z"] = 1000
        world.feed(
            world.nodes["x"],
            partial(relay.forward, wrong, message, honest.endpoints[0], None),
        )
    world.run(0.5)
    assert world.drops(MANAGER)["wrong-receiver"] == 2


def test_an_old_life_s_message_is_not_taken_when_a_box_brings_it_again(world: NaptWorld) -> None:
    world.begin()
    kept: list[Message] = []
    relay = world.box("x").relays["a"]

    def keep(message: Message) -> Message:
        kept.append(message)
        return message

    corrupt(relay, keep)
    world.run(70.0)  # a refresh
    world.restart("a")
    world.run(70.0)  # and one of the next start
    old = next(m for m in kept if m.purpose is Purpose.REFRESH)
    forged(world, "x", "a", MANAGER, old)
    assert world.drops(MANAGER)["old-origin"] == 1


@pytest.mark.parametrize("status", [Status.SUPERSEDED, Status.UNKNOWN_BINDING, Status.ACCEPTED])
def test_a_box_may_refuse_and_nothing_more(world: NaptWorld, status: Status) -> None:
    """SUPERSEDED would end the guest, ACCEPTED would let it think that it is bound."""
    world.begin()
    before = portrait(world)
    world.cut.add(frozenset(("x", MANAGER)))
    edge, box = world.edge("a"), world.box("x")
    world.run_until(lambda: edge.channel._outstanding, 200.0)
    sequence = next(iter(edge.channel._outstanding))
    peer = box.neighbours["a"].peer
    request = (Purpose.REFRESH, sequence)
    world.feed(
        world.nodes["x"],
        lambda: box.channel.refuse(peer, request, status, "go away", peer.endpoints[0]),
    )
    world.run(0.1)
    assert edge.channel.drops["unexpected-reply"] >= 1
    assert sequence in edge.channel._outstanding, "it is asked on"
    assert portrait(world) == before


def test_nobody_gets_more_rights_by_a_box(world: NaptWorld) -> None:
    """An NVE behind it asks for what only a manager may."""
    edge = world.edge("a")

    def ask() -> None:
        edge.channel.request(edge.manager, Purpose.REDIRECT, (VmId(VM),), world.now, print)

    world.feed(world.nodes["a"], ask)
    world.run(0.5)
    assert world.drops("x")["wrong-role"] >= 1
    assert "wrong-role" not in world.drops(MANAGER)


def test_a_datagram_that_leads_nowhere_is_counted(world: NaptWorld) -> None:
    edge = world.edge("a")
    peer = replace(edge.manager, node_id="c")
    world.feed(
        world.nodes["a"],
        lambda: edge.channel._send(
            peer, Message(Kind.REQUEST, Purpose.CHECK, 5, (VmId(VM),)), peer.endpoints[0], None
        ),
    )
    world.run(0.5)
    assert world.drops("x")["no-path"] == 1


@pytest.mark.parametrize("kind", [PreviousNve, ServingNve])
def test_no_nve_says_where_another_one_is(
    world: NaptWorld, kind: type[PreviousNve] | type[ServingNve]
) -> None:
    """c attaches a VM that a is said to have had, at another locator of the same data centre."""
    world.begin()
    static, edge = world.boxes["x"].static, world.edge("c")
    other = Nve("a", IPv4Address("10.0.3.66"))
    options = (VmId(VmKey(0, "vm2")), kind(other))

    def ask() -> None:
        edge.channel.request(edge.manager, Purpose.ATTACH, options, world.now, print)

    world.feed(world.nodes["c"], ask)
    world.run(0.5)
    assert world.box("x").mappings.locators["a"].private == IPv4Address("10.0.1.2")
    assert world.boxes["x"].static == static
    [said] = [e for _, n, e in world.events if n == "x" and e.name == "refused"]
    assert said.detail["status"] == "administratively_prohibited"
    assert "x: a is at 10.0.1.2" in str(said.detail["reason"])


@pytest.mark.parametrize(("policy", "phase"), [("keep", Phase.SERVING), ("hand-over", None)])
def test_no_box_takes_a_mapping_by_saying_that_it_has_it(policy: str, phase: Phase | None) -> None:
    """By `keep` it stays; by `hand-over` what is said must be that it is translated there."""
    world = NaptWorld(box_settings={"x": {"policy": NaptPolicy(policy)}})
    world.run(2.0)
    world.begin()
    x, y = world.box("x"), world.box("y")
    [mapping] = x.mappings.of_vm(VM)
    said = PhaseOption(phase or Phase.SWITCHED)
    options = (VmId(VM), Epoch(mapping.epoch), told(mapping), said)

    def claim() -> None:
        peer = y.neighbours["x"].peer
        y.channel.request(peer, Purpose.HOLD, options, world.now, lambda *_: None, lifetime=60)

    world.feed(world.nodes["y"], claim)
    world.run(0.5)
    assert mapping.ours
    assert world.boxes["x"].static["10.1.0.77"] == str(mapping.public)


def test_an_nve_that_is_behind_no_box_has_the_locators_that_are_configured() -> None:
    world = NaptWorld("x")  # c speaks to the manager itself
    world.run(2.0)
    world.begin()
    channel = world.edge("c").channel
    honest = channel.reply

    def reply(received: Received, status: Status, options: Any = (), *more: Any, **by: Any) -> None:
        if received.message.purpose is Purpose.PREPARE and status.accepted:
            options = (*options, ServingNve(Nve("c", IPv4Address("10.66.6.6"))))
        honest(received, status, options, *more, **by)

    channel.reply = reply  # type: ignore[method-assign]
    move = world.moved("c")
    assert move.destination.ipv4 == world.nodes["c"].nve.ipv4
