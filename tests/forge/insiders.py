"""What peers who hold a true key, but not the right, can send: refused, and nothing else.

An NVE, router or NAPT box with a manager's purposes; a manager with an NVE's or a router's; an NVE
with a router's; an NVE that speaks for others' VMs or under another's name; a router that says what
it sees of VMs, or of times, of which nobody asked it; a manager's order of a binding or a move that
is over.
Not here: those without keys (shots.py), what is then looked at (campaign.py).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network

from tests.engine.network import MANAGER
from tests.forge.domain import SITES, TAKEN, Domain, taken_endpoint
from vmmobility.engine import manager as manager_module
from vmmobility.engine import nve as nve_module
from vmmobility.engine import router as router_module
from vmmobility.engine.binding_cache import Binding
from vmmobility.engine.binding_update_list import make_nve
from vmmobility.engine.manager import ManagerEngine
from vmmobility.engine.nve import IN_A_MOVE
from vmmobility.engine.outputs import Endpoint
from vmmobility.wire.message import Message
from vmmobility.wire.options import (
    AttachId,
    Epoch,
    Guest,
    InterfaceGroup,
    Measurements,
    MobilityKind,
    Option,
    PhaseOption,
    PreviousNve,
    Route,
    ServingNve,
    Sight,
    Ticket,
    VmId,
)
from vmmobility.wire.options import Endpoint as EndpointOption
from vmmobility.wire.registry import (
    UDP_PORT,
    GuestLife,
    Kind,
    Mobility,
    Phase,
    Purpose,
    Role,
    RouteState,
    Status,
)
from vmmobility.wire.values import Interface, VmKey

# As they were when this module was loaded: a mutant of an engine changes the engine's.
RIGHTS = {
    Role.MANAGER: dict(manager_module.RIGHTS),
    Role.NVE: dict(nve_module.RIGHTS),
    Role.DEFAULT_ROUTER: dict(router_module.RIGHTS),
    Role.BORDER_ROUTER: dict(router_module.RIGHTS),
}
ROUTERS = tuple(site.router_id for site in SITES)
REFUSALS = frozenset(s for s in Status if not s.accepted)
PROHIBITED = frozenset({Status.ADMINISTRATIVELY_PROHIBITED})
ANY = frozenset(Status)
ATTACHES = ("name", "address", "ticket", "vni", "range")
NO_VMS = tuple(
    ip_network(text)
    for text in ("0.0.0.0/0", "127.0.0.1/32", "224.0.0.5/32", "fe80::1/128", "::/0", "10.0.0.0/8")
)
# A challenge is everybody's right (engine/channel.py), hence no insider's trick.
PURPOSES = tuple(p for p in Purpose if p is not Purpose.CHALLENGE)


@dataclass(frozen=True, slots=True)
class Demand:
    """A message, who signs it, and the statuses with which it may be answered."""

    kind: str
    sender: str
    source: Endpoint
    message: Message
    answers: frozenset[Status]


class Insiders:
    """Demands on the nodes of one domain, made of what really is in it."""

    def __init__(self, domain: Domain, chance: random.Random) -> None:
        self._domain, self._chance = domain, chance

    def demand(self, target: str) -> Demand | None:
        way = self._chance.choice(("role", "role", "foreign", "stale"))
        if way == "role":
            return self._of_another_role(target)
        if way == "foreign" and target == MANAGER:
            return self._for_anothers_vm() if self._chance.random() < 0.7 else self._not_asked()
        if way == "stale" and target in ROUTERS:
            return self._past_route(target)
        if way == "stale" and target != MANAGER:
            return self._of_the_past(target)
        return None

    # ---- material ------------------------------------------------------------------------------

    def _binding(self) -> Binding | None:
        manager = self._domain.nodes[MANAGER].manager
        bindings = list(manager.cache.bindings.values()) if manager else []
        return self._chance.choice(bindings) if bindings else None

    def _tickets(self) -> list[bytes]:
        manager = self._domain.nodes[MANAGER].manager
        return [m.ticket for m in manager.moves.values()] if manager else []

    def _about(self, vm: VmKey, nve: str) -> Iterator[Option]:
        """Everything that a purpose may need, and as true as the attacker can know it."""
        binding, chance = self._binding(), self._chance
        yield VmId(vm)
        for interface in self._domain.interfaces.get(vm, ()):
            yield InterfaceGroup(interface)
        where = self._domain.nodes.get(nve) or self._domain.nodes["a"]
        yield ServingNve(where.nve)
        yield Epoch(chance.choice((0, 1, 2, 1000, (1 << 64) - 1)))
        yield Ticket(chance.choice([*self._tickets(), bytes(16)]))
        yield AttachId(binding.attach_id if binding else chance.getrandbits(64))
        yield PhaseOption(chance.choice(list(Phase)))
        yield MobilityKind(Mobility.HOT)
        yield EndpointOption(where.nve.locators[0], 49001)
        yield Measurements(b'{"downtime_ms":0.25}')
        yield Guest(GuestLife.NONE)
        yield PreviousNve(self._domain.nodes["a"].nve)
        yield Route(chance.choice(list(RouteState)))
        yield Sight(chance.random() < 0.5, chance.random() < 0.5)

    def _request(self, purpose: Purpose, options: list[Option], lifetime: int) -> Message:
        sequence = self._chance.getrandbits(32)
        return Message(Kind.REQUEST, purpose, sequence, tuple(options), lifetime)

    def _vm(self) -> VmKey:
        return self._chance.choice([*self._domain.interfaces, VmKey(0, "vm99")])

    def _source(self, sender: str) -> Endpoint:
        node = self._domain.nodes.get(sender)
        if node is None:
            return taken_endpoint(sender)
        return Endpoint(node.nve.locators[0], UDP_PORT)

    def _can_sign(self, sender: str, target: str) -> bool:
        """A node that is down cannot be impersonated fresh; and one that was restarted is first
        heard of by itself, for its peers act on that news."""
        node = self._domain.nodes.get(sender)
        if node is None:
            return True
        return node.engine is not None and self._domain.has_spoken(sender, target)

    # ---- demands -------------------------------------------------------------------------------

    def _of_another_role(self, target: str) -> Demand | None:
        """A purpose that the sender's role does not have at the target."""
        domain, chance = self._domain, self._chance
        node = domain.nodes[target]
        real = [n for n in domain.nodes if n != target and MANAGER in (n, target)]
        taken = [n for n in TAKEN if node.role is Role.MANAGER or TAKEN[n] is not Role.MANAGER]
        sender = chance.choice(real + taken)
        role = TAKEN[sender] if sender in TAKEN else domain.nodes[sender].role
        if not self._can_sign(sender, target):
            return None
        rights = RIGHTS[node.role]
        purposes = [p for p in PURPOSES if role not in rights.get(p, frozenset())]
        if not purposes:
            return None
        options = list(self._about(self._vm(), target))
        message = self._request(chance.choice(purposes), options, chance.choice((0, 30)))
        return Demand(f"{role.name} at {node.role.name}".lower(), sender, self._source(sender),
                      message, PROHIBITED)  # fmt: skip

    def _for_anothers_vm(self) -> Demand | None:
        """An NVE speaks for a VM that it has nothing to do with, or under another's name."""
        binding = self._binding()
        if binding is None:
            return None
        ways = ("refresh", "deregister", "redirecting", "report", *ATTACHES)
        way = self._chance.choice(ways)
        if way in ATTACHES:
            message, answers = self._attach(binding, way), REFUSALS
        else:
            message, answers = self._words_about(binding, way), REFUSALS
            if way in ("redirecting", "report"):
                answers = ANY  # "it need not care any more": true, and it changes nothing here
        return Demand(f"foreign {way}", "rogue", taken_endpoint("rogue"), message, answers)

    def _words_about(self, binding: Binding, way: str) -> Message:
        """A refresh, an end or a report of another NVE's VM, with its true attach-ID or ticket."""
        vm, ticket = binding.vm, bytes(16)
        manager = self._domain.nodes[MANAGER].manager
        under_way = [m for m in manager.moves.values() if m.ok is None] if manager else []
        if way == "report" and under_way:
            move = self._chance.choice(under_way)
            vm, ticket = move.vm, move.ticket
        options = {type(o): o for o in self._about(vm, "rogue")}
        options[AttachId], options[Ticket] = AttachId(binding.attach_id), Ticket(ticket)
        # Any NVE may tell a manager that was set back how far epochs had come: no trick.
        options[Epoch] = Epoch(binding.epoch)
        if way == "redirecting":
            options[PhaseOption] = PhaseOption(Phase.REDIRECTING)
        elif way != "report":
            del options[PhaseOption]
        purposes = {"refresh": Purpose.REFRESH, "report": Purpose.SWITCH}
        purpose = purposes.get(way, Purpose.DEREGISTER)
        return self._request(purpose, [*options.values()], 30 if way == "refresh" else 0)

    def _attach(self, binding: Binding, way: str) -> Message:
        """An attach under another's name, with another's address or ticket, or of no VM's kind."""
        options = {type(o): o for o in self._about(binding.vm, "rogue")}
        for unwanted in (PhaseOption, InterfaceGroup, Epoch):
            options.pop(unwanted, None)
        if way != "ticket":
            del options[Ticket]
        rogue = make_nve("rogue", (taken_endpoint("rogue").address,))
        options[ServingNve] = ServingNve(binding.nve if way == "name" else rogue)
        options[AttachId] = AttachId(self._chance.choice((binding.attach_id, 7)))
        interfaces = binding.interfaces
        if way in ("address", "range"):
            options[VmId] = VmId(VmKey(0, "vm77"))
        elif way == "vni":
            options[VmId] = VmId(VmKey(5, binding.vm.vm_id))
        if way == "range":
            interfaces = (Interface(b"\2\0\0\0\0\x4d", (self._chance.choice(NO_VMS),)),)
        groups = [InterfaceGroup(i) for i in interfaces]
        return self._request(Purpose.ATTACH, [*options.values(), *groups], 30)

    def _of_the_past(self, target: str) -> Demand | None:
        """A true manager's order of a binding or a move that is over."""
        domain, chance = self._domain, self._chance
        edge = domain.nodes[target].edge
        held = [e for e in edge.entries.values() if e.epoch > 0] if edge else []
        if not held or not self._can_sign(MANAGER, target):
            return None
        entry = chance.choice(held)
        options = {type(o): o for o in self._about(entry.vm, target)}
        options[Epoch] = Epoch(chance.randrange(entry.epoch))
        purpose, kind = Purpose.REDIRECT, "past epoch"
        if entry.phase in IN_A_MOVE and entry.ticket and chance.random() < 0.7:
            purpose, kind = Purpose.SWITCH, "another move's ticket"
            phases = (Phase.DELIVERING, Phase.SWITCHED, Phase.SERVING, Phase.FAILED)
            options[PhaseOption] = PhaseOption(chance.choice(phases))
            options[Ticket] = Ticket(chance.randbytes(16))
            options[Epoch] = Epoch(max(entry.epoch, entry.move_epoch))
        message = self._request(purpose, [*options.values()], 0)
        return Demand(kind, MANAGER, self._source(MANAGER), message, REFUSALS)

    # ---- of and to routers ---------------------------------------------------------------------

    def _past_route(self, target: str) -> Demand | None:
        """A true manager's order to a router under an epoch of the past, or another one under the
        epoch that it has obeyed."""
        router = self._domain.nodes[target].router
        if router is None or not router.entries or not self._can_sign(MANAGER, target):
            return None
        entry = self._chance.choice(list(router.entries.values()))
        options = {type(o): o for o in self._about(entry.vm, self._chance.choice("abcd"))}
        past = entry.epoch > 0 and self._chance.random() < 0.5
        options[Epoch] = Epoch(self._chance.randrange(entry.epoch) if past else entry.epoch)
        if not past:
            others = [s for s in RouteState if s is not entry.state]
            options[Route] = Route(self._chance.choice(others))
        message = self._request(Purpose.ROUTE, [*options.values()], 0)
        return Demand("past route", MANAGER, self._source(MANAGER), message, REFUSALS)

    def _not_asked(self) -> Demand | None:
        """A router tells what it sees under an epoch that is not that of its newest order: it is
        heard, and it is nothing to go by."""
        manager = self._domain.nodes[MANAGER].manager
        told = [
            (entry.vm, name, told.epoch)
            for entry in (manager._fabric.values() if manager else ())
            for name, told in entry.routers.items()
            if told.epoch > 0 and self._can_sign(name, MANAGER)
        ]
        if not told:
            return None
        vm, name, epoch = self._chance.choice(told)
        options = {type(o): o for o in self._about(vm, "a")}
        options[Epoch] = Epoch(self._chance.randrange(epoch))
        message = self._request(Purpose.SIGHT, [*options.values()], 0)
        return Demand("past sight", name, self._source(name), message, ANY)

    def unasked(self) -> Demand | None:
        """A router tells what it sees of a VM of which it was told nothing."""
        manager = self._domain.nodes[MANAGER].manager
        if manager is None:
            return None
        vm, name = self._vm(), self._chance.choice(ROUTERS)
        entry = manager._fabric.get(vm)
        if (entry is not None and name in entry.routers) or not self._can_sign(name, MANAGER):
            return None
        options = {type(o): o for o in self._about(vm, "a")}
        options[Epoch] = Epoch(self._chance.randrange(manager.cache.last_epoch + 1))
        message = self._request(Purpose.SIGHT, [*options.values()], 0)
        unknown = frozenset({Status.UNKNOWN_BINDING})
        return Demand("unasked sight", name, self._source(name), message, unknown)


def told_to_others(
    manager: ManagerEngine, router: str
) -> dict[tuple[VmKey, str], tuple[object, ...]]:
    """What every router but that one was told, and what of it has been heard."""
    return {
        (entry.vm, name): (told.lead, told.epoch, told.acknowledged, told.direct)
        for entry in manager._fabric.values()
        for name, told in entry.routers.items()
        if name != router
    }
