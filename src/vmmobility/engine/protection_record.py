"""What an NVE holds of protected VMs, as their primary or as their standby; and its durable form.

Not here: what is done with it (nve_protection.py), the manager's record (manager_protection.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from vmmobility.engine.binding_update_list import (
    interface_from_json,
    interface_to_json,
    nve_from_json,
    nve_to_json,
)
from vmmobility.engine.channel import Received
from vmmobility.wire.options import Endpoint, Protection
from vmmobility.wire.registry import Status
from vmmobility.wire.values import Interface, Nve, VmKey


@dataclass(slots=True)
class Guarded:
    """A VM that runs here and has a standby elsewhere.

    epoch:       of the attach for which the manager has ordered it
    door:        where the standby takes checkpoints
    handed:      its last checkpoint is being taken, or was: the guest is not let go on here before
                 the manager says so
    lease_until: monotonic seconds; the guest is paused before (not durable: a restart pauses it)
    due_at:      when the next checkpoint begins; taking: one is under way
    number:      of the last that is complete at the standby
    taken_wall_s: the moment of which that is, CLOCK_REALTIME; taken_at: the same, monotonic
    fenced_at:   when its guest was paused last
    unguarded:   why nobody who outlives this daemon guards its lease, "" if somebody does
    trouble:     why the last attempt came to nothing, "" if it did not
    request:     the manager's, that waits for the last checkpoint
    whole:       that is complete, and the guest has not run since
    """

    vm: VmKey
    standby: Nve
    door: Endpoint
    terms: Protection
    epoch: int
    handed: bool = False
    number: int = 0
    taken_wall_s: float | None = None
    # not durable
    lease_until: float | None = None
    due_at: float = 0.0
    taking: bool = False
    taken_at: float | None = None
    fenced_at: float | None = None
    unguarded: str = ""
    trouble: str = ""
    request: Received | None = None
    whole: bool = False

    @property
    def lease_s(self) -> float:
        return self.terms.lease_ms / 1000

    @property
    def slack_s(self) -> float:
        """So long before its lease ends the guest is paused: pausing takes a moment."""
        return min(2.0, self.lease_s / 5)

    @property
    def fence_at(self) -> float | None:
        """When the guest is paused if no refresh is accepted before; None: never, or it is."""
        if not self.terms.fail_over or self.lease_until is None:
            return None
        return self.lease_until - self.slack_s


@dataclass(slots=True)
class Standby:
    """A VM that runs elsewhere and has its standby here.

    epoch:    of the attach under which it runs there, as the manager has named it
    ticket:   of the order to take over; empty: there is none
    number:   of the last complete checkpoint; door, token: where and how they are taken
    ordered:  the hypervisor was told to activate it
    failed:   it could not, and is told to end it: what the manager hears once that is certain
    door_at:  when its door, which could not be opened, is tried again (monotonic)
    """

    vm: VmKey
    interfaces: tuple[Interface, ...]
    definition: bytes
    primary: Nve
    terms: Protection
    epoch: int
    ticket: bytes = b""
    # not durable
    number: int = 0
    door: Endpoint | None = None
    token: str = ""
    ordered: bool = False
    failed: tuple[Status, str] | None = None
    door_at: float | None = None
    request: Received | None = None


def protection_to_json(terms: Protection) -> list[Any]:
    return [terms.fail_over, terms.interval_ms, terms.lease_ms, terms.token, terms.at_min]


def endpoint_to_json(endpoint: Endpoint | None) -> list[Any] | None:
    return [str(endpoint.address), endpoint.port] if endpoint else None


def endpoint_from_json(value: Any) -> Endpoint:
    return Endpoint(ip_address(value[0]), value[1])


def guarded_to_json(guarded: Guarded) -> dict[str, Any]:
    return {
        "standby": nve_to_json(guarded.standby),
        "door": endpoint_to_json(guarded.door),
        "terms": protection_to_json(guarded.terms),
        "epoch": guarded.epoch,
        "handed": guarded.handed,
        "number": guarded.number,
        "taken_wall_s": guarded.taken_wall_s,
    }


def standby_to_json(standby: Standby) -> dict[str, Any]:
    return {
        "interfaces": [interface_to_json(i) for i in standby.interfaces],
        "definition": standby.definition.decode(),
        "primary": nve_to_json(standby.primary),
        "terms": protection_to_json(standby.terms),
        "epoch": standby.epoch,
        "ticket": standby.ticket.hex(),
    }


def load_guarded(state: Mapping[str, Any]) -> dict[VmKey, Guarded]:
    """From the store's keys "guarded/VNI/VM-ID"."""
    return {
        vm: Guarded(
            vm,
            nve_from_json(value["standby"]),
            endpoint_from_json(value["door"]),
            Protection(*value["terms"]),
            value["epoch"],
            value["handed"],
            value.get("number", 0),
            value.get("taken_wall_s"),
        )
        for vm, value in _of_kind("guarded", state)
    }


def load_standbys(state: Mapping[str, Any]) -> dict[VmKey, Standby]:
    """From the store's keys "standby/VNI/VM-ID"."""
    return {
        vm: Standby(
            vm,
            tuple(interface_from_json(i) for i in value["interfaces"]),
            value["definition"].encode(),
            nve_from_json(value["primary"]),
            Protection(*value["terms"]),
            value["epoch"],
            bytes.fromhex(value["ticket"]),
        )
        for vm, value in _of_kind("standby", state)
    }


def record_key(kind: str, vm: VmKey) -> str:
    return f"{kind}/{vm.vni}/{vm.vm_id}"


def _of_kind(kind: str, state: Mapping[str, Any]) -> list[tuple[VmKey, Any]]:
    found = []
    for key, value in state.items():
        name, _, rest = key.partition("/")
        if name == kind:
            vni, _, vm_id = rest.partition("/")
            found.append((VmKey(int(vni), vm_id), value))
    return found
