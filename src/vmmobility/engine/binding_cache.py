"""The manager's binding cache: who serves which VM, and which NVEs served it before (Section 5).

Epochs come from one durable, domain-wide sequence.  (VNI, address) has one owner.
Not here: what changes a binding (manager.py), moves (manager_moves.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_network
from typing import Any

from vmmobility.engine.admission import MAX_PREVIOUS
from vmmobility.engine.binding_update_list import (
    interface_from_json,
    interface_to_json,
    nve_from_json,
    nve_to_json,
)
from vmmobility.engine.replay_window import WINDOW
from vmmobility.wire.options import Mapping as MappingOption
from vmmobility.wire.registry import GuestState, Mobility
from vmmobility.wire.values import Address, Interface, Nve, Prefix, VmKey

DUPLICATE_S = 30.0  # a second copy for which nobody has asked for so long is there no more


@dataclass(slots=True)
class Previous:
    """An NVE that served the VM and redirects.

    acknowledged: the epoch of its last reply
    direct:       it was told that the fabric leads to the serving NVE (not durable)
    heard:        when it last showed its redirect (monotonic seconds, not durable)
    """

    nve: Nve
    acknowledged: int = 0
    heard: float = 0.0
    direct: bool = False


@dataclass(slots=True)
class GuestOrder:
    """What the serving NVE was told to make of the guest, and has not answered yet.

    sure: given in this manager's life; one that is read from its records may be of an old backup
    """

    state: GuestState
    epoch: int
    grace_s: int = 0
    sure: bool = True


@dataclass(slots=True)
class Binding:
    """One VM's entry.

    ending:     epoch under which it is being removed, 0 if it is not: the binding lives on until
                no previous NVE redirects any more
    expires_at: monotonic seconds, not durable (a restart grants a lifetime)
    released:   an operator's word that its host is fenced: any NVE may attach the VM
    frozen:     no NVE may attach it without a ticket, until an operator releases it
    sure:       its NVE has shown since this manager's start that it holds the VM; before that the
                record may be of an old backup, and ends no guest (not durable)
    at_home:    its addresses lie in the serving NVE's covering prefixes; home: the last NVE of
                which that was so
    mappings: its addresses that a NAPT box has mapped
    guest:      what its NVE has made of the guest, by its last word; order: what it is told to make
                of it; guest_epoch: of the last order that it has carried out here, 0 if none;
                guest_error: why the last order was not, in words
    kept:       when the guest ends by itself the VM stays bound, stopped
    server:     at which of its NVE's servers it is, if that stands apart from them, by its word
    fabric_direct: every router asked sees the fabric lead to the serving NVE (not durable)
    takeovers:  when it changed its NVE without a ticket; heard: when its NVE last held it; lost:
                its NVE says that it has no such guest; departed: that the guest has left it;
                duplicates: NVEs that have a second copy, and when they last asked for it (none of
                them durable; monotonic seconds)
    """

    vm: VmKey
    interfaces: tuple[Interface, ...]
    definition: bytes
    nve: Nve
    boot: int
    attach_id: int
    epoch: int
    mobility: Mobility = Mobility.HOT
    lifetime_s: float = 0.0
    previous: dict[str, Previous] = field(default_factory=dict)
    ending: int = 0
    expires_at: float | None = None
    expired: bool = False
    released: bool = False
    frozen: bool = False
    guest: GuestState = GuestState.RUNNING
    order: GuestOrder | None = None
    guest_epoch: int = 0
    guest_error: str = ""
    kept: bool = False
    sure: bool = False
    at_home: bool = False
    home: Nve | None = None
    fabric_direct: bool = False
    takeovers: list[float] = field(default_factory=list)
    heard: float = 0.0
    lost: bool = False
    departed: bool = False
    duplicates: dict[str, float] = field(default_factory=dict)
    mappings: tuple[MappingOption, ...] = ()
    server: str = ""

    @property
    def state(self) -> str:
        """How its lease stands, for people."""
        for state in ("frozen", "released", "lost", "departed", "expired"):
            if getattr(self, state):
                return state
        return "serving"

    @property
    def is_cold(self) -> bool:
        """Whether it came where it is by a cold move."""
        return self.mobility is Mobility.COLD

    @property
    def previous_nves(self) -> tuple[Nve, ...]:
        return tuple(p.nve for p in self.previous.values())

    def current_duplicates(self, now: float) -> list[str]:
        """NVEs that have a second copy of its guest, by what they said lately."""
        return [node for node, at in self.duplicates.items() if now - at < DUPLICATE_S]

    def free_to_go(self) -> list[str]:
        """Previous NVEs to which no other one may still redirect.

        One that has not acknowledged this epoch's redirect leads to where the VM was after it: to
        a later one of `previous`, whose order is that in which they ceased to serve.
        """
        free = []
        for name, previous in self.previous.items():
            free.append(name)
            if previous.acknowledged < self.epoch:
                break
        return free

    def is_full(self, node: str) -> bool:
        """Whether an attach by this node would leave more previous NVEs than messages can name."""
        return len({self.nve.nve_id, *self.previous} - {node}) > MAX_PREVIOUS

    @property
    def unacknowledged(self) -> list[str]:
        """Previous NVEs that have not yet confirmed the redirect of this epoch."""
        return [n for n, p in self.previous.items() if p.acknowledged < self.epoch]


class BindingCache:
    """All bindings, the epoch sequence and the owners of addresses.

    changed(key, value) is called for every durable change.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.bindings: dict[VmKey, Binding] = {}
        self.last_epoch: int = state.get("epoch", 0)
        self._owners: dict[tuple[int, Prefix], tuple[VmKey, ...]] = {}
        self._lengths: dict[tuple[int, int], dict[int, int]] = {}
        for key, value in state.items():
            kind, _, rest = key.partition("/")
            if kind == "binding":
                vni, _, vm_id = rest.partition("/")
                binding = binding_from_json(VmKey(int(vni), vm_id), value)
                self.bindings[binding.vm] = binding
                self._own(binding.vm, binding.interfaces)

    @staticmethod
    def key(vm: VmKey) -> str:
        """A binding's key in the store."""
        return f"binding/{vm.vni}/{vm.vm_id}"

    def next_epoch(self) -> int:
        """A fresh epoch, above every one before; the caller records it ("epoch")."""
        self.last_epoch += 1
        return self.last_epoch

    def owner(
        self, vm: VmKey, interfaces: Iterable[Interface], mates: Container[VmKey] = ()
    ) -> tuple[Prefix, VmKey] | None:
        """Another VM of that VNI which owns an overlapping address, and the prefix in dispute.

        mates: VMs that share addresses with it, as members of one load-shared group
        """
        for interface in interfaces:
            for prefix in interface.prefixes:
                holder = self._overlapping(vm, prefix, mates)
                if holder is not None:
                    return prefix, holder
        return None

    def _overlapping(self, vm: VmKey, prefix: Prefix, mates: Container[VmKey]) -> VmKey | None:
        lengths = self._lengths.get((vm.vni, prefix.version), {})
        for length in lengths:
            if length <= prefix.prefixlen:
                around = prefix.supernet(new_prefix=length)
                for found in self._owners.get((vm.vni, around), ()):
                    if found != vm and (around != prefix or found not in mates):
                        return found
        if any(length > prefix.prefixlen for length in lengths):
            for (vni, held), holders in self._owners.items():
                others = [found for found in holders if found != vm]
                if others and vni == vm.vni and held != prefix and _overlap(held, prefix):
                    return others[0]
        return None

    def holder(self, vni: int, address: Address) -> VmKey | None:
        """The VM that has the address: of the longest prefix around it; the first by name of
        several that share it."""
        lengths = self._lengths.get((vni, address.version), {})
        for length in sorted(lengths, reverse=True):
            found = self._owners.get((vni, ip_network((address, length), strict=False)))
            if found:
                return found[0]
        return None

    def put(self, binding: Binding) -> None:
        """Insert or replace a binding and its ownership of addresses."""
        old = self.bindings.get(binding.vm)
        if old is not None:
            self._disown(old)
        self.bindings[binding.vm] = binding
        self._own(binding.vm, binding.interfaces)

    def remove(self, vm: VmKey) -> Binding | None:
        binding = self.bindings.pop(vm, None)
        if binding is not None:
            self._disown(binding)
        return binding

    def _own(self, vm: VmKey, interfaces: Iterable[Interface]) -> None:
        for prefix in (p for i in interfaces for p in i.prefixes):
            held = self._owners.get((vm.vni, prefix), ())
            if vm in held:
                continue  # an interface has it twice
            self._owners[vm.vni, prefix] = tuple(sorted((*held, vm)))
            lengths = self._lengths.setdefault((vm.vni, prefix.version), {})
            lengths[prefix.prefixlen] = lengths.get(prefix.prefixlen, 0) + 1

    def _disown(self, binding: Binding) -> None:
        for prefix in (p for i in binding.interfaces for p in i.prefixes):
            held = self._owners.get((binding.vm.vni, prefix), ())
            if binding.vm not in held:
                continue
            left = tuple(vm for vm in held if vm != binding.vm)
            if left:
                self._owners[binding.vm.vni, prefix] = left
            else:
                del self._owners[binding.vm.vni, prefix]
            lengths = self._lengths[binding.vm.vni, prefix.version]
            lengths[prefix.prefixlen] -= 1
            if not lengths[prefix.prefixlen]:
                del lengths[prefix.prefixlen]


class EndedAttaches:
    """Attaches that their own NVEs have deregistered: a late datagram must not bind them again.

    As many an NVE as its replay window has counters: what is later than that is dropped there (and
    so is, after a restart, all that was sent before the deregistration).  So none need be durable.
    """

    def __init__(self) -> None:
        self._ended: dict[str, OrderedDict[tuple[VmKey, int], None]] = {}

    def add(self, node: str, vm: VmKey, attach_id: int) -> None:
        ended = self._ended.setdefault(node, OrderedDict())
        ended[vm, attach_id] = None
        while len(ended) > WINDOW:
            ended.popitem(last=False)

    def holds(self, node: str, vm: VmKey, attach_id: int) -> bool:
        return (vm, attach_id) in self._ended.get(node, ())


def _overlap(one: Prefix, other: Prefix) -> bool:
    return one.version == other.version and one.overlaps(other)


def binding_to_json(binding: Binding) -> dict[str, Any]:
    order = binding.order
    return {
        "interfaces": [interface_to_json(i) for i in binding.interfaces],
        "definition": binding.definition.decode(),
        "nve": nve_to_json(binding.nve),
        "boot": binding.boot,
        "attach_id": binding.attach_id,
        "epoch": binding.epoch,
        "mobility": int(binding.mobility),
        "lifetime_s": binding.lifetime_s,
        "previous": [
            {**(nve_to_json(p.nve) or {}), "acknowledged": p.acknowledged}
            for p in binding.previous.values()
        ],
        "ending": binding.ending,
        "released": binding.released,
        "frozen": binding.frozen,
        "at_home": binding.at_home,
        "home": nve_to_json(binding.home),
        "guest": int(binding.guest),
        "order": [int(order.state), order.epoch, order.grace_s] if order else None,
        "guest_epoch": binding.guest_epoch,
        "guest_error": binding.guest_error,
        "kept": binding.kept,
        "mappings": [[m.box, str(m.private), str(m.public)] for m in binding.mappings],
        **({"server": binding.server} if binding.server else {}),
    }


def _order_from_json(value: list[int] | None) -> GuestOrder | None:
    if value is None:
        return None
    state, epoch, grace_s = value
    return GuestOrder(GuestState(state), epoch, grace_s, sure=False)


def binding_from_json(vm: VmKey, value: Mapping[str, Any]) -> Binding:
    previous = [Previous(nve_from_json(p), p["acknowledged"]) for p in value["previous"]]
    return Binding(
        vm,
        tuple(interface_from_json(i) for i in value["interfaces"]),
        value["definition"].encode(),
        nve_from_json(value["nve"]),
        value["boot"],
        value["attach_id"],
        value["epoch"],
        Mobility(value["mobility"]),
        value["lifetime_s"],
        {p.nve.nve_id: p for p in previous},
        value["ending"],
        released=value.get("released", False),
        frozen=value.get("frozen", False),
        guest=GuestState(value.get("guest", GuestState.RUNNING)),
        order=_order_from_json(value.get("order")),
        guest_epoch=value.get("guest_epoch", 0),
        guest_error=value.get("guest_error", ""),
        kept=value.get("kept", False),
        at_home=value.get("at_home", False),
        home=nve_from_json(value["home"]) if value.get("home") else None,
        mappings=tuple(
            MappingOption(box, IPv4Address(private), IPv4Address(public))
            for box, private, public in value.get("mappings", ())
        ),
        server=value.get("server", ""),
    )
